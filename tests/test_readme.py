"""Every command block of README and docs runs as printed, in order, in a fresh clone; every Python block runs."""

import re
import subprocess

import jax.numpy as jnp
import pandas
import pytest
from conftest import ROOT

from jtrans import stats
from jtrans.experiments import synthetic
from jtrans.experiments.reproduce import page, runs
from jtrans.harness import experiment, fields
from jtrans.population import observe

DOCS = ROOT / "docs"
README, EARLY, TRANSFER = ((ROOT / name).read_text() for name in ("README.md", "docs/early.md", "docs/transfer.md"))
GUIDES = [  # in the order in which a newcomer reads them; tests/test_torch.py runs what takes PyTorch
    ROOT / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in ("first_experiment", "own_networks", "own_data", "attacks", "devices", "transfer")
    ),
]
BLOCKS = [
    (path.stem, language, code)
    for path in GUIDES
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", path.read_text(), re.DOTALL)
]


@pytest.mark.parametrize(
    ("page", "code"),
    [(page, code) for page, language, code in BLOCKS if language == "python" and "jtrans.torch" not in code],
)
def test_python_blocks_run(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {})


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) < 200
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", README))
    assert linked == {f"docs/{path.name}" for path in DOCS.glob("*.md")} - {
        "docs/index.md",
        *(f"docs/{name}.md" for name in ("benchmarks", "changelog", "contributing")),
    }


@pytest.mark.slow
def test_command_blocks_run_in_a_fresh_clone(tmp_path):
    clone = tmp_path / "jtrans"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    commands = [code for _, language, code in BLOCKS if language == "bash"]
    assert len(commands) >= 5
    for code in commands:
        done = subprocess.run(["bash", "-euc", code], cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (clone / "runs" / "digits" / "figure.png").is_file()
    assert (clone / "runs" / "mine" / "figure.png").is_file()
    steps = experiment.read(clone / "runs" / "digits").tables["trajectory"].set_index("step")
    start, first, third = (steps.loc[step] for step in (0, 1, 3))
    for words in (
        f"two networks is {start['angle']:.1f} degrees",
        f"it is {first['angle']:.1f} (95 % interval {first['angle_low']:.1f} to {first['angle_high']:.1f})",
        f"the accuracy, {first['accuracy']:.3f}, is at chance",
        f"with its sign the angle is {first['signed_angle']:.1f}, and two steps later {third['signed_angle']:.1f}",
        f"{100 * first['constant_share']:.0f} % of their squared length",
    ):
        assert words in " ".join(README.split())
        assert words in " ".join(EARLY.split())
    assert third["agreement_low"] < 0.5 < third["agreement"]  # hardly more than by chance
    alike = f"{100 * first['agreement']:.0f} % of images after one step, at {100 * third['agreement']:.0f} % two steps"
    assert alike in EARLY.replace("\n", " ")
    changed = steps.loc[1:4, ["success_own", "success_transferred"]]
    assert changed.to_numpy().max() < 0.06  # hardly any prediction


def test_what_holds_is_what_the_page_of_claims_says():
    section = EARLY.partition("## What holds\n")[2].partition("\n## ")[0]
    text = (ROOT / "docs" / page.PAGE).read_text()
    verdicts = re.findall(r"\*Rows: \d+ \((.*)\)\.\*", text)
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert [row[1] for row in rows] == verdicts
    numbers = re.findall(r"\d[\d.]* \[[^]]+\]", section)
    assert len(numbers) >= len(rows)
    for number in numbers:
        assert number in text
    (count,) = re.findall(r"all (\d+) rows", section)
    (minutes,) = re.findall(r"from scratch in (\d+) minutes on two cores", EARLY)
    (more,) = re.findall(r"in (\d+) minutes more", EARLY)
    seconds = {r.name: page.seconds(ROOT / "docs" / page.RESULTS / r.name) for r in runs.listed("IMAGES", full=True)}
    took = sum(seconds[run.name] for run in runs.listed("IMAGES"))
    assert float(minutes) == pytest.approx(took / 60, abs=1)
    assert float(more) == pytest.approx((sum(seconds.values()) - took) / 60, abs=1)
    assert int(count) == text.count("](#") == sum(map(int, re.findall(r"\*Rows: (\d+)", text)))


def test_the_synthetic_experiment_is_as_its_results_say():
    section = TRANSFER.partition("## The synthetic experiment")[2].partition("\n## ")[0]
    table = pandas.read_csv(ROOT / "docs" / "synthetic.csv")
    summary = synthetic.summarize(table)
    assert summary["num_seeds"] == 10
    of = {(row["width"], row["level"], row["measure"]): row for row in summary["rows"]}
    names = [name for name in synthetic.MEASURES if not name.startswith("tau1tau2")]
    for name in names:
        row = of[100, 0, name]
        numbers = " | ".join(stats.interval_text(row[key], 3) for key in ("first", "last", "spearman"))
        assert f"| {synthetic.MEASURES[name]} | {numbers} |" in section
        assert abs(row["spearman"]["mean"]) == 1
    for width in (50, 100, 200):
        fall, rise = ("tau1_S_T", "tau2_S_T", "tau2_T_S"), ("transfer_loss_S", "gradient_matching_distance")
        assert all(of[width, 0, name]["spearman"]["high"] < 0 for name in fall)
        assert all(of[width, 0, name]["spearman"]["low"] > 0 for name in rise)
        assert all(of[width, 1, name]["spearman"]["high"] < 0 for name in fall[1:])
    for width in (50, 200):
        _, values = synthetic.over_seeds(table[(table["width"] == width) & (table["level"] == 0)], "tau1_T_S")
        assert set(values.argmax(1)) <= set(range(1, 9))
        assert f"{stats.interval_text(of[width, 0, 'tau1_T_S']['spearman'], 2)} (width {width})" in section
    runs_at_level_1 = table[table["level"] == 1].groupby(["seed", "width"])["tau1_T_S"]
    higher = int((runs_at_level_1.last() > runs_at_level_1.first()).sum())
    assert f"in {higher} of {len(runs_at_level_1)} cases" in section


def test_the_experiment_of_the_contributors_guide_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    *_, slice_source = blocks
    slice_names = {}
    exec(slice_source, slice_names)
    results = experiment.run(slice_names["EXPERIMENT"], fields.defaults(slice_names["FIELDS"]), tmp_path)
    assert results.tables["tosses"]["heads"].to_numpy() == pytest.approx(results.arrays["coins"]["heads"].mean(0))
    assert (tmp_path / "figure.svg").is_file()


def test_the_quantities_of_the_contributors_guide_are_measured(monkeypatch):
    """As printed, with the names of `observe` at hand."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    for name in ("NETWORK_MEASURES", "PAIR_MEASURES"):
        monkeypatch.setattr(observe, name, dict(getattr(observe, name)))
    for block in blocks[:-1]:
        exec(block, {**vars(observe)})
    seen = observe.Seen(jnp.ones((2, 3)), jnp.log(jnp.array([[0.2, 0.8], [0.7, 0.3]])), jnp.array([0, 1]))
    assert observe.NETWORK_MEASURES["confidence"].of_images(seen).tolist() == pytest.approx([0.8, 0.7])
    assert observe.PAIR_MEASURES["cosine"].of_images(0.5) == 0.5
