import csv
import itertools
import json
from functools import partial

import jax
import jax.numpy as jnp
import matrix
import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

from jtrans import attacks, cli, data, early, metrics, models, plots, results, transfer_findings

SIZES = ["--config.data.image_size=8", "--config.num_examples=40"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--config.num_networks=2", "--config.num_steps=40", "--config.save_networks", "--config.measure_every=40"]
    flags += ["--config.widths.mlp_deep=(32, 16)", "--config.attack.epsilon=0.0", f"--workdir={folder / 'run'}", *SIZES]
    assert cli.run(early.run, ["early.py", f"--config={ROOT / 'configs' / 'digits.py'}", *flags]) == 0
    # A state dict of another architecture, as a PyTorch user saves it.
    model = models.build("mlp_shallow", (8, 8, 1), 10, widths=(24,))
    layers = model.init(jax.random.key(5))["params"]
    arrays = {
        f"{2 * i}.{theirs}": np.asarray(layer[ours])
        for i, layer in enumerate(layers.values())
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    }
    np.savez(folder / "theirs.npz", **arrays)
    return folder


@pytest.mark.parametrize("seeds", [None, 4])
def test_the_table_has_a_row_for_each_attack_source_and_target(seeds):
    rng = np.random.default_rng(0)
    names, lead = ["a", "long name"], () if seeds is None else (seeds,)
    count = rng.integers(5, 20, size=(2, *lead, 2, 2, 3))
    successes = rng.integers(count + 1)
    unmoved = rng.integers(5, size=(2, *lead, 2))
    found = {
        name: metrics.SuccessMatrix(successes[i] / count[i], count[i], unmoved[i])
        for i, name in enumerate(("fgsm", "virtual"))
    }
    table = transfer_findings.matrix(found, names)
    ends = ("", "_low", "_high", "_count")
    columns = [name + end for name in transfer_findings.RATES for end in ends]
    assert list(table) == ["attack", "source", "target", "unmoved", *columns]
    rows = itertools.product(enumerate(found), enumerate(names), enumerate(names))
    for row, ((a, attack), (s, source), (t, target)) in enumerate(rows):
        assert [table[name][row] for name in ("attack", "source", "target")] == [attack, source, target]
        assert table["unmoved"][row] == unmoved[a, ..., s].mean()
        for k, name in enumerate(transfer_findings.RATES):
            of, among = successes[a, ..., s, t, k], count[a, ..., s, t, k]
            if seeds is None:
                interval = scipy.stats.binomtest(of, among).proportion_ci(method="wilson")
            else:
                interval = scipy.stats.ttest_1samp(of / among, 0).confidence_interval(0.95)
            want = [np.mean(of / among), *interval, np.mean(among)]
            np.testing.assert_allclose([table[name + end][row] for end in ends], want, rtol=1e-9, atol=1e-12)


def run(workdir, entries, *arguments):
    flags = [f"--config={ROOT / 'configs' / 'matrix.py'}", f"--workdir={workdir}", f"--config.networks={entries!r}"]
    widths = "--config.widths.mlp_shallow=(24,)"
    return cli.run(matrix.main, ["matrix.py", *flags, *SIZES, widths, *arguments])


def test_the_matrix_of_saved_and_of_pytorchs_networks(trained, tmp_path, capsys):
    entries = (str(trained / "run"), f"mlp_shallow={trained / 'theirs.npz'}")
    assert run(tmp_path, entries, "--config.attack.epsilon=0.2", "--config.attack.steps=3") == 0
    assert "pgd: errors in % of the images" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "matrix.csv").open()))
    names = ["run/mlp_deep-0", "run/mlp_deep-1", "theirs/mlp_shallow"]
    assert len(rows) == 4 * 9
    assert list(dict.fromkeys(row["source"] for row in rows)) == names
    for row in rows:
        if row["target_right_count"] != "0":
            assert float(row["target_right_low"]) <= float(row["target_right"]) <= float(row["target_right_high"])
    own = [row for row in rows if row["attack"] == "pgd" and row["source"] == row["target"] == names[0]]
    assert float(own[0]["target_right"]) > 0.5

    # One entry by hand: FGSM from the first network on the second.
    saved = results.read_networks(trained / "run")[0]
    model = models.build("mlp_deep", (8, 8, 1), 10, widths=(32, 16))
    first, second = (partial(model.apply, jax.tree.map(lambda leaf, i=i: leaf[i], saved)) for i in range(2))
    test = data.balanced(data.load("digits", jax.random.key(0), image_size=8).test, 40, "num_examples")
    x = jnp.asarray(test.images, jnp.float32) / 255
    moved = attacks.fgsm(0.2)(first, x, test.labels)
    right, wrong = second(x).argmax(1) == test.labels, second(moved).argmax(1) != test.labels
    (row,) = [r for r in rows if (r["attack"], r["source"], r["target"]) == ("fgsm", names[0], names[1])]
    assert float(row["target_right"]) == pytest.approx(float(wrong[right].mean()))
    assert int(row["target_right_count"]) == int(right.sum())

    config = json.loads((tmp_path / "config.json").read_text())
    panels = plots.matrix(config, results.read_table(tmp_path / "matrix.csv")).axes
    assert [axes.get_title() for axes in panels[:4]] == ["fgsm", "pgd", "mi_fgsm", "virtual"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((), "networks: got (); it takes a tuple of run folders"),
        (("nowhere",), "networks: nowhere is no run's folder"),
        (("vgg12=x.npz",), "networks: got 'vgg12=x.npz'; the architectures are mlp_shallow"),
        (("lenet=x.npz",), "networks: lenet=x.npz cannot be read"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, entries, message):
    assert run(tmp_path, entries) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err


def test_networks_of_other_classes_are_refused(trained, tmp_path, capsys):
    assert run(tmp_path, (str(trained / "run"),), "--config.data.classes=('1', '2')") == 2
    assert "tells 10 classes apart; the images have 2 classes" in capsys.readouterr().err
