import csv
import json

import jax
import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

from jtrans import stats
from jtrans.experiments import random_angles
from jtrans.harness import cli

CONFIG = ROOT / "configs" / "random_angles.py"
SMALL = [
    "--config.num_seeds=3",
    "--config.dimensions=(2, 50)",
    "--config.num_pairs=700",
    "--config.dimension=20",
    "--config.num_rare_pairs=1500",
    "--config.factors=(1, 2, 4)",
]


def run(workdir, *arguments):
    argv = ["random_angles.py", f"--config={CONFIG}", f"--workdir={workdir}", *arguments]
    return cli.run(random_angles.EXPERIMENT, argv)


def columns(path):
    rows = list(csv.DictReader(path.open()))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def test_the_tables_hold_the_law_the_papers_values_and_samples_that_agree(tmp_path, capsys):
    assert run(tmp_path, *SMALL) == 0
    typical, unlikely = columns(tmp_path / "typical.csv"), columns(tmp_path / "unlikely.csv")
    assert typical["dimension"].tolist() == [2, 50]
    np.testing.assert_allclose(typical["typical"], [45, np.rad2deg(np.arccos(1 / np.sqrt(50)))])
    assert typical["exact"][0] == pytest.approx(45)
    law = stats.random_angle(50)
    spread = 26 / np.sqrt(3 * 700)  # the standard deviation of a uniform angle is 26 degrees
    np.testing.assert_allclose(typical["sampled"], typical["exact"], atol=5 * spread)
    assert typical["exact"][1] == pytest.approx(law.mean())
    np.testing.assert_allclose(unlikely["markov"], [1, 1 / 4, 1 / 16])
    cosine = np.array([1, 2, 4]) / np.sqrt(20)
    np.testing.assert_allclose(unlikely["exact"], scipy.stats.beta.sf(cosine**2, 0.5, 9.5))
    error = np.sqrt(unlikely["exact"] / 4500)
    np.testing.assert_allclose(unlikely["sampled"], unlikely["exact"], atol=5 * error.max())
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = summary["expected"]
    assert expected["low"] < summary["least"]["mean"] < expected["high"]
    assert "The smallest of 1500 angles in 20 dimensions, over 3 seeds" in capsys.readouterr().out
    assert (tmp_path / "figure.svg").is_file()


def test_the_pairs_of_a_seed_do_not_depend_on_their_number(monkeypatch):
    keys = jax.random.split(jax.random.key(0), 2)
    monkeypatch.setattr(random_angles, "BLOCK", 100)
    few, many = random_angles.sample(keys, 5, 30), random_angles.sample(keys, 5, 400)
    assert few.shape == (2, 30)
    np.testing.assert_array_equal(few, many[:, :30])
    assert len(np.unique(many)) > 790  # no pair twice


def test_one_seed_has_no_interval(tmp_path):
    assert run(tmp_path, *SMALL, "--config.num_seeds=1") == 0
    assert np.isnan(columns(tmp_path / "typical.csv")["sampled_low"]).all()


def test_bad_input_is_one_line(tmp_path, capsys):
    assert run(tmp_path / "run", "--config.dimensions=(1,)") == 2
    assert capsys.readouterr().err == (
        "random_angles.py: error: dimensions: got (1,); it takes a tuple of whole numbers, 2 or more\n"
    )
