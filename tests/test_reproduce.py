"""The page of claims, from small runs of every kind."""

import math
from pathlib import Path

import jax
import numpy as np
import pandas
import pytest
import scipy.stats
from conftest import ROOT
from ml_collections import ConfigDict

import jtrans
from jtrans import stats
from jtrans.experiments import reproduce
from jtrans.experiments.reproduce import claims, page, runs
from jtrans.experiments.reproduce.runs import Run
from jtrans.harness import cli, experiment, fields, folder
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field
from jtrans.models import WIDTHS
from jtrans.stats import Interval

SMALL = ["--config.num_examples=20", "--config.data.name=digits", "--config.data.classes=()"]
SMALL += ["--config.data.image_size=8", "--config.widths.mlp_deep=(32,16)", "--config.widths.mlp_shallow=(32,)"]
PAIRED = [*SMALL, "--config.num_networks=3"]
THREE_EIGHT = "--config.data.classes=('3', '8')"
STEPS = [*PAIRED, "--config.num_steps=4"]
FEW = ["--config.num_fit=2", "--config.fit_examples=20", "--config.ranks=(1,10)", "--config.steps=(0,2)"]


def small_runs(images_dir, full=False):
    """One run of each kind, under the names that the claims go by."""
    return [
        Run("case-1", "early", "cases:1", "Case 1.", STEPS),
        Run("case-4", "early", "cases:4", "Case 4.", STEPS),
        Run("updates", "updates", "updates", "Tables 1 and 2.", [*PAIRED, "--config.batch_size=20"]),
        Run("data", "sweep", "cases:3", "Data.", [*STEPS, "--sweep=data.shuffle_labels=False,True"], runs.SWEEP),
        Run(
            "long-term", "sweep", "cases:1", "Long.", [*STEPS, "--sweep=optimizer.learning_rate=1e-3,1e-2"], runs.SWEEP
        ),
        Run("optimizers", "control", "optimizers", "Optimizers.", [*PAIRED, "--config.num_steps=2"]),
        Run("first-step-small", "first_step", "first_step", "First step.", [*PAIRED, THREE_EIGHT]),
        Run("causes", "causes", "causes", "Causes.", [*PAIRED, THREE_EIGHT, "--config.steps=(1, 2)"]),
        Run("decompose-fc", "decompose", "decompose", "Early part.", [*PAIRED, *FEW]),
    ]


def run(tmp_path, *arguments):
    flags = ["--config=reproduce", f"--workdir={tmp_path / 'runs'}", f"--config.docs={tmp_path / 'docs'}", *arguments]
    return cli.run(reproduce.EXPERIMENT, ["reproduce.py", *flags])


@pytest.mark.slow
def test_the_page_holds_every_claim_with_its_interval_and_command(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(runs, "listed", small_runs)
    assert run(tmp_path) == 0
    text = (tmp_path / "docs" / "reproduction.md").read_text()
    results = experiment.read(tmp_path / "runs")
    table = results.tables["claims"]
    assert set(table["claim"]) == {1, 2, 3, 4, 5, 6, 7, 8}
    for row in table.itertuples():
        assert f"| {row.claim} | {row.statement} |" in text
        assert row.adjusted in ("holds", "does not hold", "open", "no interval")
    assert f"{len(table)} rows of claims" in capfd.readouterr().out
    for name in ("case-1", "long-term", "decompose-fc", "causes", "first-step-small"):
        assert (tmp_path / "docs" / "reproduction" / f"{name}.png").is_file()
        assert f"### {name}\n" in text
    assert "python -m jtrans early --config=cases:1 --config.data.dir=DIRECTORY" in text
    assert str(tmp_path) not in text
    published = tmp_path / "docs" / "reproduction" / "results"
    assert page.text(small_runs(""), claims.table(published), published) == text
    config = (published / "long-term" / "optimizer.learning_rate=0.001" / "config.json").read_text()
    assert '"dir"' not in config
    before = experiment.read(tmp_path / "runs" / "case-1").summary["before_training"]["angle"]
    assert f"{before['mean']:.1f} [{before['low']:.1f}, {before['high']:.1f}] degrees" in text

    summaries = [
        path
        for path in (tmp_path / "runs").rglob("summary.json")
        if not experiment.maker(path.parent).holds_runs  # those of a sweep and of reproduce are written again
    ]
    times = {path: path.stat().st_mtime_ns for path in summaries}
    assert run(tmp_path) == 0  # everything is there: the same page, and nothing runs again
    assert (tmp_path / "docs" / "reproduction.md").read_text() == text
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_every_number_of_the_committed_page_is_from_the_committed_results():
    docs = ROOT / "docs"
    published = docs / page.RESULTS
    listed = [run for run in runs.listed("IMAGES", full=True) if (published / run.name / folder.SUMMARY).exists()]
    assert len(listed) > 20
    assert page.text(listed, claims.table(published), published) == (docs / page.PAGE).read_text()
    for run in listed:
        for name in page.figures(run):
            assert (docs / page.FIGURES / name).is_file()


def test_a_run_that_cannot_be_made_is_named_in_any_directory(tmp_path, monkeypatch, capfd):
    wrong = Run("case-1", "early", "cases:1", "Case 1.", [*STEPS, "--config.batch_size=-1"])
    monkeypatch.setattr(runs, "listed", lambda images_dir, full=False: [wrong])
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-2] == "jtrans early: error: batch_size: got -1; it takes a whole number, 1 or more"
    assert said[-1] == "reproduce.py: error: case-1: ended with status 2, as it says above; finished parts are kept"
    assert not (tmp_path / "docs").exists()


def test_what_cannot_end_in_a_page_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").write_text("")
    assert run(tmp_path) == 2
    assert "which is no directory" in capsys.readouterr().err
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert run(tmp_path) == 2
    assert "reproduce.py: error: --num_processes: reproduce starts one process" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((5, 1, 9), "holds"),
        ((0, -1, 1), "open"),
        ((-3, -5, -1), "does not hold"),
        ((12, 11, 13), "does not hold"),
        ((9, 8, 10.5), "open"),
        ((5, np.nan, np.nan), "no interval"),
    ],
)
def test_the_rule(interval, verdict):
    row = claims.Row(1, "", stats.from_interval(Interval(*interval), 7), "degrees", 0, 10, "", "")
    assert claims.judged([row])["verdict"].tolist() == [verdict]
    assert claims.judged([row])["adjusted"].tolist() == [verdict]


def test_a_row_without_bounds_has_no_verdict_and_does_not_count():
    clear = stats.from_interval(Interval(5, 4, 6), 7)
    rows = [claims.Row(1, "", clear, "degrees", -math.inf, high, "", "") for high in (math.inf, 10)]
    table = claims.judged(rows)
    assert table["adjusted"].tolist() == ["not asked", "holds"]
    assert table["p_inside"][1] == claims.judged(rows[1:])["p_inside"][0]


def test_verdicts_of_many_rows_are_adjusted_together():
    barely = stats.from_interval(Interval(5, 0.1, 9.9), 7)
    clear = stats.from_interval(Interval(5, 4, 6), 7)
    rows = [claims.Row(1, "", estimate, "degrees", 0, 10, "", "") for estimate in (barely, clear, clear)]
    table = claims.judged(rows)
    assert table["verdict"].tolist() == ["holds"] * 3
    assert table["adjusted"].tolist() == ["holds"] * 3  # the least clear of Holm's is not adjusted
    table = claims.judged([*rows, claims.Row(1, "", barely, "degrees", 0, 10, "", "")])
    assert table["adjusted"].tolist() == ["open", "holds", "holds", "open"]


def test_every_listed_run_has_a_command_that_its_experiment_takes():
    listed = runs.listed("IMAGES", full=True)
    assert len({run.name for run in listed}) == len(listed)
    for each in listed:
        name, *arguments = runs.command(each, "DATA", Path("runs"))
        of_run = experiment.load(name)
        config, workdir = cli.load(name, *cli.parse([name, *arguments], of_run))
        fields.check(config, of_run.fields)
        assert workdir == Path("runs") / each.name
        if "data" in config:
            assert config.data.dir == ("IMAGES" if each.name in ("vgg11", "case-9") else "DATA")
    assert not any("IMAGES" in argument for run in runs.listed("", full=True) for argument in run.arguments)


CONFIG = {
    "models": ["mlp_deep"],
    "widths": {"mlp_deep": list(WIDTHS["mlp_deep"])},
    "num_networks": 4,
    "data": {"name": "noise", "image_size": 32, "num_train": 0, "shuffle_labels": True},
    "optimizer": {"learning_rate": 0.1},
}
RANDOM = {"random": {"mean_angle": 89.0}, "chance": 0.5}


def interval(mean, reach):
    return {
        "mean": mean,
        "low": None if reach is None else mean - reach,
        "high": None if reach is None else mean + reach,
    }


def leave(path, name, summary, frames=(), arrays=(), **config):
    """A finished run's folder."""
    config = ConfigDict(CONFIG | config)
    results = Results({}, {**RANDOM, **summary}, dict(frames), dict(arrays))
    accepted = {field: Field(None, lambda value: True, "") for field in fields.flat(config)}
    made = Experiment(name, accepted, lambda config, workdir: results, lambda results: "", lambda results: {})
    experiment.run(made, config, path)
    folder.write_json(path / "summary.json", {**folder.read_summary(path), "seconds": 30.0})


def early(path, before, lowest, **config):
    """A run whose last fifth has the angle and the accuracy 40 - 12 (learning rate) and 0.6, the same everywhere."""
    moment = {"step": 3, "angle": interval(*lowest), "accuracy": interval(0.5, 0.01)}
    moment |= {"signed_angle": interval(80, 5), "constant_share": interval(0.9, 0.05), "auc": interval(0.6, 0.05)}
    moment |= dict.fromkeys(("success_transferred", "success_own", "success_random"), interval(0.25, 0.05))
    pair = np.stack(np.triu_indices(4, 1), 1)
    rate = config.get("optimizer", {"learning_rate": 0})["learning_rate"]
    trajectory = {
        "step": np.arange(11),
        "model": np.zeros(4, int),
        "pair": pair,
        "angle": np.where(np.arange(11) >= 8, 40 - 12 * rate, 80) * np.ones((6, 1)),
        "accuracy": np.full((4, 11), 0.6),
    }
    moments = {
        "before_training": {"angle": interval(*before)},
        "lowest_at_chance": moment,
        "last": {**moment, "step": 10},
        "selected": {**interval(*lowest), "freedom": 6.0, "steps": [3, 2]},
    }
    leave(path, "early", {**moments, "steps_per_epoch": 2}, arrays={"trajectory": trajectory}, **config)


@pytest.fixture
def measured(tmp_path):
    """Folders of every kind, whose numbers are made up."""
    early(tmp_path / "case-1", (89.1, 0.2), (50, 10))
    early(tmp_path / "case-6", (89.1, 0.2), (80, None), widths={"mlp_deep": [8, 8]})
    early(tmp_path / "data" / "shuffled", (89.1, 0.2), (74, 1))
    for rate in (2.0, 1.0):
        early(tmp_path / "long-term" / f"rate={rate}", (89.1, 0.2), (50, 10), optimizer={"learning_rate": rate})
    columns = ("what", "angle", "angle_low", "angle_high")
    rows = [
        ("within.mlp_deep", 40, 30, 50),
        ("between.mlp_shallow.mlp_deep", 80, 79, 81),
        ("adversarial.mlp_deep", 9, 8, 10),
    ]
    leave(tmp_path / "updates", "updates", {"table": [dict(zip(columns, row, strict=True)) for row in rows]})
    rows = [(name, rate, 70 if rate > 1 else 85) for name in ("adam", "sgd") for rate in (1e-3, 1e-2, 10.0)]
    control = pandas.DataFrame(rows, columns=["optimizer", "learning_rate", "angle"])
    control = control.rename(columns={"angle": "selected"}).assign(
        first_update=0.25, selected_freedom=6.0, lost=[0, 1, 2] * 2
    )
    control = control.assign(selected_low=control["selected"] - 2, selected_high=control["selected"] + 2)
    unlike = [{"optimizer": name, "learning_rates": [1e-3, 1e-2], **interval(3, 1)} for name in ("adam", "sgd")]
    rates = [1e-3, 1e-2, 10.0]
    leave(tmp_path / "optimizers", "control", {"unlike": unlike}, {"control": control}, learning_rates=rates)
    kinds = [("nothing", 0), ("random", 10), ("updates", 10)]
    rows = [(step, *kind, 60 - step + kind[1]) for step in (0, 1, 5) for kind in kinds]
    decompose = pandas.DataFrame(rows, columns=["step", "subspace", "rank", "angle"])
    decompose = decompose.assign(accuracy=np.where(decompose["step"] == 5, 0.9, 0.5), off=0.25, inside=0.75)
    decompose = decompose.assign(share=0.875)
    for name in ("angle", "accuracy", "off", "inside"):
        decompose = decompose.assign(**{f"{name}_{end}": decompose[name] for end in ("low", "high")})
    leave(tmp_path / "decompose-fc", "decompose", {}, {"decompose": decompose})
    return tmp_path


def test_each_claim_is_read_from_its_runs(measured):
    table = claims.table(measured)
    assert table["claim"].is_monotonic_increasing
    rounded = table.round({"measured": 9, "measured_low": 9, "measured_high": 9})
    rows = {
        (row.claim, row.run, row.statement): (row.measured, row.measured_low, row.measured_high, row.verdict)
        for row in rounded.itertuples()
    }
    assert len(rows) == len(table)
    fall = "the angle falls 15 degrees or more below random while the accuracy is at chance"
    below = "15 degrees or more below random"
    within = "before training the angle is within 1 degree of that of random directions, 89.00"
    for name in ("case-1", "case-6", "data/shuffled"):
        assert rows.pop((1, name, within)) == (89.1, 88.9, 89.3, "holds")
    assert rows.pop((1, "case-1", fall)) == (50, 40, 60, "holds")
    angle, *bounds, verdict = rows.pop((2, "case-6", fall))
    assert (angle, verdict) == (80, "no interval")
    assert all(map(math.isnan, bounds))
    assert rows.pop((3, "data/shuffled", f"{fall}: noise, shuffled labels")) == (74, 73, 75, "open")
    assert rows.pop((4, "optimizers", "adam at learning rate 0.001 shows the fall")) == (85, 83, 87, "does not hold")
    assert rows.pop((4, "optimizers", "sgd at learning rate 0.001 does not show the fall")) == (85, 83, 87, "holds")
    assert rows.pop((4, "optimizers", "sgd at learning rate 10 shows the fall")) == (70, 68, 72, "holds")
    assert rows.pop((5, "updates", f"update vectors within mlp_deep are {below}")) == (40, 30, 50, "holds")
    between = f"update vectors between mlp_shallow and mlp_deep are {below}"
    assert rows.pop((5, "updates", between)) == (80, 79, 81, "does not hold")
    adversarial = f"mlp_deep: after a large step, adversarial directions are to the update vectors {below}"
    assert rows.pop((6, "updates", adversarial)) == (9, 8, 10, "holds")
    angles = "the angle at learning rate 1 exceeds that at 2 by 10 degrees or more"
    assert rows.pop((7, "long-term", angles)) == (12, 12, 12, "holds")
    accuracies = "the accuracies at learning rates 1 and 2 differ by 0.05 or less"
    assert rows.pop((7, "long-term", accuracies)) == (0, 0, 0, "holds")
    unlike = (
        "adam: the angle between networks of two learning rates exceeds that within either (2 rates from 0.001 to 0.01)"
    )
    assert rows.pop((8, "optimizers", unlike)) == (3, 2, 4, "holds")
    of_two = scipy.stats.t(2)  # of four networks of each rate one is lost
    assert table.loc[table["claim"] == 8, "p_inside"].item() == pytest.approx(of_two.sf(3 * of_two.ppf(0.975)))
    assert not rows
    assert "4 mlp_deep (reduced)" in set(table["networks"])
    note = "steps 3 and 2; all at step 3: folded 50.0 [40.0, 60.0], signed 80.0 [75.0, 85.0]"
    note += ", accuracy 0.500 [0.490, 0.510], which contains 0.5"
    assert note in set(table["note"])


def test_the_long_term_difference_agrees_with_every_network_left_out_in_turn():
    rng = np.random.default_rng(0)
    pair = np.stack(np.triu_indices(4, 1), 1)
    one, other = (
        {"step": np.arange(10), "model": np.zeros(4, int), "pair": pair, "angle": rng.uniform(0, 90, (6, 10))}
        for _ in range(2)
    )
    late = lambda run, kept: run["angle"][[i for i, p in enumerate(pair) if set(p) <= kept]][:, 8:].mean()
    every = set(range(4))
    without = [[late(run, every - {i}) for i in every] for run in (one, other)]
    whole = [late(run, every) for run in (one, other)]
    variances = [3 * np.var(of_run) for of_run in without]
    measured = claims.late_difference(one, other, "angle")
    assert measured.mean == pytest.approx(whole[0] - whole[1])
    assert claims.late_difference(other, one, "angle").mean == pytest.approx(whole[1] - whole[0])
    assert measured.standard_error == pytest.approx(np.sqrt(sum(variances)))
    assert measured.freedom == pytest.approx(sum(variances) ** 2 / sum(v**2 / 3 for v in variances))


def test_the_page_holds_what_the_runs_left(measured):
    leave(measured / "data", "sweep", {})  # the seconds of its runs are theirs
    listed = [Run("case-1", "early", "cases:1", "Case 1."), Run("data", "sweep", "cases:4", "Data.")]
    text = page.text(listed, claims.table(measured), measured)
    assert "All runs took 1 minutes on cpu" in text
    assert f"With jtrans {jtrans.__version__}, jax {jax.__version__}" in text
    assert "\n1. Before training" in text
    assert "*Rows: 4 (holds: 4).*" in text
    said = (
        "| at most 74.0 | 50.0 [40.0, 60.0] degrees (steps 3 and 2; all at step 3: folded 50.0 [40.0, 60.0], "
        "signed 80.0 [75.0, 85.0], accuracy 0.500 [0.490, 0.510], which contains 0.5) "
        "| **holds** | **holds** | 4 mlp_deep |"
    )
    assert f"{said} [case-1](#case-1) |" in text
    assert "| [data/shuffled](#data) |" in text
    attack = "0.25 [0.20, 0.30]"
    seen = "50.0 [40.0, 60.0] | 80.0 [75.0, 85.0] | 0.90 [0.85, 0.95] | 0.60 [0.55, 0.65] | 0.50 [0.49, 0.51]"
    assert f"| case-1 | last step, step 10 | {seen} | {attack} | {attack} |" in text
    lowest = "| decompose-fc | 1 | 0.500 [0.500, 0.500] | 59.0 [59.0, 59.0] | 69.0 [69.0, 69.0]; 88% | - |"
    assert lowest in text
    assert "| decompose-fc | 5 | 0.900 [0.900, 0.900] | 55.0 [55.0, 55.0]" in text
    assert "| 0.25 [0.25, 0.25] | 0.25 [0.25, 0.25] | 0.75 [0.75, 0.75] |\n" in text
    assert "### case-1\n\nCase 1. 0.5 minutes.\n\n```\npython -m jtrans early --config=cases:1" in text
    assert "![Data.](reproduction/data.png)\n" in text
