"""The page of claims, from small runs of every kind."""

import json

import numpy as np
import pytest
import reproduce
from conftest import ROOT

from jtrans import claims, cli
from jtrans.stats import Interval

SMALL = ["--config.num_examples=20", "--config.data.name=digits", "--config.data.classes=()"]
SMALL += ["--config.data.image_size=8", "--config.widths.mlp_deep=(32,16)", "--config.widths.mlp_shallow=(32,)"]
PAIRED = [*SMALL, "--config.num_networks=3"]
STEPS = [*PAIRED, "--config.num_steps=4"]


def small_runs(images_dir):
    """One run of each kind, under the names that the claims go by."""
    return [
        reproduce.Run("case-1", "early", "cases:1", STEPS, "Case 1."),
        reproduce.Run("case-4", "early", "cases:4", STEPS, "Case 4."),
        reproduce.Run("updates", "updates", "updates", [*PAIRED, "--config.batch_size=20"], "Tables 1 and 2."),
        reproduce.Run("data", "sweep", "cases:3", [*STEPS, "--sweep=data.shuffle_labels=False,True"], "Data."),
        reproduce.Run("long-term", "sweep", "cases:1", [*STEPS, "--sweep=optimizer.learning_rate=1e-3,1e-2"], "Long."),
        reproduce.Run("optimizers", "control", "optimizers", [*PAIRED, "--config.num_steps=2"], "Optimizers."),
        reproduce.Run("decompose-fc", "decompose", "decompose", [*PAIRED, *FEW], "Early part."),
    ]


FEW = ["--config.num_fit=2", "--config.fit_examples=20", "--config.ranks=(1,10)", "--config.steps=(0,2)"]


def run(tmp_path, *arguments):
    flags = [f"--config={ROOT / 'configs' / 'reproduce.py'}", f"--workdir={tmp_path / 'runs'}", *arguments]
    return cli.run(reproduce.main, ["reproduce.py", *flags, f"--config.docs={tmp_path / 'docs'}"])


@pytest.mark.slow
def test_the_page_holds_every_claim_with_its_interval_and_command(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(reproduce, "runs", small_runs)
    assert run(tmp_path) == 0
    page = (tmp_path / "docs" / "reproduction.md").read_text()
    rows = claims.rows(tmp_path / "runs")
    assert {row.claim for row in rows} == {1, 2, 3, 4, 5, 6, 7, 8}
    for row in rows:
        assert f"| {row.claim} | {row.statement} |" in page
        assert row.verdict in ("holds", "does not hold", "open")
    for name in ("case-1", "long-term", "decompose-fc"):
        assert (tmp_path / "docs" / "reproduction" / f"{name}.png").is_file()
        assert f"### {name}\n" in page
    assert "python experiments/early.py --config=configs/cases.py:1 --config.data.dir=DIRECTORY" in page
    assert str(tmp_path) not in page
    summary = json.loads((tmp_path / "runs" / "case-1" / "summary.json").read_text())
    before = summary["before_training"]["angle"]
    assert f"{before['mean']:.1f} [{before['low']:.1f}, {before['high']:.1f}] degrees" in page

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("summary.json")}
    capfd.readouterr()
    assert run(tmp_path) == 0  # everything is there: the same page, and nothing runs again
    assert (tmp_path / "docs" / "reproduction.md").read_text() == page
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_run_that_cannot_be_made_is_named(tmp_path, monkeypatch, capfd):
    wrong = reproduce.Run("case-1", "early", "cases:1", [*STEPS, "--config.batch_size=-1"], "Case 1.")
    monkeypatch.setattr(reproduce, "runs", lambda images_dir: [wrong])
    assert run(tmp_path) == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        "reproduce.py: error: case-1: ended with status 2, as it says above; what is finished is kept"
    )
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((5, 1, 9), "holds"),
        ((0, -1, 1), "open"),
        ((-3, -5, -1), "does not hold"),
        ((12, 11, 13), "does not hold"),
        ((9, 8, 11), "open"),
        ((5, np.nan, np.nan), "no interval"),
    ],
)
def test_the_rule(interval, verdict):
    assert claims.Row(1, "", Interval(*interval), "degrees", 0, 10, "", "").verdict == verdict


def test_every_listed_run_takes_a_config_that_there_is():
    listed = reproduce.runs("IMAGES")
    assert len({run.name for run in listed}) == len(listed)
    for each in listed:
        script, config, *_ = reproduce.command(each, "DATA", ROOT)
        assert (ROOT / script).is_file()
        assert (ROOT / config.removeprefix("--config=").partition(":")[0]).is_file()
    assert not any("IMAGES" in argument for run in reproduce.runs("") for argument in run.arguments)
