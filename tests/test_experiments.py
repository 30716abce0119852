"""Every experiment keeps to the protocol, and so does one that somebody writes elsewhere."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
from conftest import ROOT
from matplotlib.figure import Figure

from jtrans import stats
from jtrans.experiments import causes, control, matrix, penalty
from jtrans.harness import cli, experiment, fields
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, defaults
from jtrans.metrics import SuccessMatrix
from jtrans.stats import Interval

NAMES = experiment.names()
FLAGS = {"sweep": {"sweep": "seed=0,1"}}  # which it does not run without
CONFIGS = {path.stem: path.read_text() for path in sorted(ROOT.glob("configs/*.py"))}


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_an_experiment(name):
    slice_ = experiment.load(name)
    assert slice_.name == name
    assert cli.about(slice_).endswith((".", "?"))
    for function in (slice_.measure, slice_.tell, slice_.figures):
        assert (function.__doc__ or "").strip(), f"{function.__name__} has no docstring"
    assert slice_.resumable in {"", *slice_.fields}
    assert f"{name}.EXPERIMENT" in (ROOT / "experiments" / f"{name}.py").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_of_an_experiment_pass_its_checks(name):
    slice_ = experiment.load(name)
    config = defaults(slice_.fields)
    wanted = [field for field, made in slice_.fields.items() if not made.accepts(made.default)]
    # Where there is no default the field is empty, and the command line must fill it.
    assert all(slice_.fields[field].default in ((), "") for field in wanted)
    if not wanted:
        fields.check(config, slice_.fields)
        slice_.check(config, **FLAGS.get(name, {}))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_has_the_fields_of_its_experiment(config):
    (name,) = re.findall(r"from jtrans\.experiments import (\w+)", CONFIGS[config])
    values, overrides = cli.parse(["jtrans", f"--config={config}"], experiment.load(name))
    loaded, workdir = cli.load("jtrans", values, overrides)
    assert workdir.name == config
    assert fields.flat(loaded).keys() == experiment.load(name).fields.keys()


ABOUT_OTHERS = {"sweep", "reproduce", "knowledge_paper"}
PUBLISHED = [path.parent for path in sorted(ROOT.glob("docs/*/results/*/config.json"))]
# By experiment, with how many digits its words have what it comes down to.
TOLD = {"early": 1, "updates": 2, "random_angles": 2, "first_step": 2, "decompose": 1, "synthetic": 3, "knowledge": 2}


def published(name):
    """Results of an experiment that come with the documentation, a few."""
    return [experiment.read(path) for path in PUBLISHED if experiment.maker(path).name == name][:3]


def headline(slice_, results):
    """What the results come down to, as intervals, held to the protocol."""
    found = slice_.headline(results)
    assert found
    intervals = {}
    for name, value in found.items():
        (unit,) = re.fullmatch(r"[^()]+ \((degrees|share|-1 to 1)\)", name).groups()
        mean, low, high = intervals[name] = (
            value if isinstance(value, Interval) else Interval(value, math.nan, math.nan)
        )
        least, most = {"degrees": (0, 180), "share": (0, 1), "-1 to 1": (-1, 1)}[unit]
        assert least <= mean <= most
        assert low <= mean <= high or (math.isnan(low) and math.isnan(high))
    return intervals


def test_every_experiment_but_those_about_others_comes_down_to_numbers():
    assert {name for name in NAMES if experiment.load(name).headline is None} == ABOUT_OTHERS


@pytest.mark.parametrize("name", TOLD)
def test_what_an_experiment_comes_down_to_is_what_it_tells(name):
    slice_, has_interval = experiment.load(name), []
    for results in published(name):
        told = slice_.tell(results)
        for value in headline(slice_, results).values():
            has_interval.append(not math.isnan(value.low))
            shown = value if name != "decompose" else Interval(value.mean, math.nan, math.nan)
            assert stats.interval_text(shown._asdict(), TOLD[name]) in told
    assert any(has_interval)


@pytest.mark.parametrize("name", experiment.names())
def test_every_field_says_what_it_means(name):
    assert [field for field, made in experiment.load(name).fields.items() if not made.means] == []


def test_control_comes_down_to_the_share_of_settings_that_it_counts():
    for results in published("control"):
        (share,) = headline(control.EXPERIMENT, results).values()
        count, of = re.search(r"(\d+) of (\d+) settings", control.tell(results)).groups()
        assert share.mean == int(count) / int(of)


def test_causes_come_down_to_the_angle_and_what_the_first_change_does():
    for results in published("causes"):
        angle, rise = headline(causes.EXPERIMENT, results).values()
        rows = [
            row
            for row in results.tables["causes"].to_dict("records")
            if row["measure"] == "angle" and row["step"] == results.config["steps"][1]
        ]
        (plain,) = [row for row in rows if row["change"] == "adam"]
        assert angle == (plain["value"], plain["value_low"], plain["value_high"])
        first = results.config["changes"][1]
        assert [rise.mean] == [row["difference"] for row in rows if row["change"] == first]
        results.config["changes"] = ["adam"]
        assert list(headline(causes.EXPERIMENT, results).values()) == [angle]


def test_matrix_comes_down_to_the_mean_success_on_other_networks():
    rate = np.stack([np.full((3, 3), -1.0), [[1.0, 0.5, 0.25], [0.0, 1.0, 0.25], [0.5, 0.5, 1.0]], np.full((3, 3), -1)])
    success = SuccessMatrix(np.moveaxis(rate, 0, -1), np.full((3, 3, 3), 4), np.zeros(3))
    table = matrix.table({"fgsm": success, "pgd": success._replace(rate=np.ones((3, 3, 3)))}, ["a", "b", "c"])
    found = headline(matrix.EXPERIMENT, Results({"attack": {}}, {}, {"matrix": table}, {}))
    assert [value.mean for value in found.values()] == [2 / 6, 1]
    assert ["fgsm" in name for name in found] == [True, False]


def test_penalty_comes_down_to_the_largest_coefficient():
    rows = [dict.fromkeys(penalty.MEASURES, value) for value in (0.1, 0.3, 0.5, 0.7)]
    table = penalty.tabulate(rows, (0.0, 1.0))
    for value in headline(penalty.EXPERIMENT, Results({}, {}, {"penalty": table}, {})).values():
        assert value.mean == pytest.approx(0.6)
        assert value.low < 0.5 < 0.7 < value.high  # two networks


DICE = {"sides": Field(6, lambda v: type(v) is int and v > 1, "a whole number, 2 or more"), "seed": fields.seed()}


def roll(config, workdir):
    """Roll a die."""
    rolls = np.random.default_rng(config.seed).integers(1, config.sides + 1, 100)
    table = pandas.DataFrame({"rolls": [100], "mean": rolls.mean()})
    return Results(config, {"mean": rolls.mean(), "lost": np.nan}, {"dice": table}, {"dice": {"rolls": rolls}})


def tell(results):
    """The mean."""
    return f"the mean is {results.summary['mean']:.2f}"


def draw(results):
    """The rolls."""
    figure = Figure()
    figure.subplots().hist(results.arrays["dice"]["rolls"])
    return {"figure": figure}


TOY = Experiment("dice", DICE, roll, tell, draw)


class Shown(HTMLParser):
    """What a page shows: its elements, and its text in order."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)

    def handle_data(self, data):
        self.text.append(data.strip())


def test_a_notebook_shows_the_first_rows_of_tables_and_the_names_and_shapes_of_the_rest():
    table = pandas.DataFrame({"<b>": [f"<script>{row}" for row in range(7)], "value": 0.5 * np.arange(7)})
    arrays = {"a<i>": {"rolls": np.zeros((2, 7)), "x": np.zeros(3)}}
    shown = Shown(Results({"seed": 0}, {"mean": 1.5, "<u>": {"inner": 2}}, {"dice": table}, arrays)._repr_html_())
    assert shown.elements <= {"p", "table", "thead", "tbody", "tr", "th", "td"}
    text = [part for part in shown.text if part]
    assert text[:3] == ["tables['dice'], 7 rows", "<b>", "value"]
    assert text[3:-2] == [cell for row in range(5) for cell in (str(row), f"<script>{row}", f"{0.5 * row}")]
    assert text[-2:] == ["arrays['a<i>']: rolls [2, 7], x [3]", "summary: mean, <u>"]


def test_an_experiment_of_ones_own_runs_by_the_same_command_line(tmp_path, capsys):
    (tmp_path / "dice.py").write_text(
        "from jtrans.harness.fields import defaults\nfrom test_experiments import DICE\n"
        "def get_config():\n    return defaults(DICE)\n"
    )
    line = ["dice.py", f"--config={tmp_path / 'dice.py'}", f"--workdir={tmp_path / 'run'}"]
    assert cli.run(TOY, [*line, "--config.sides=4"]) == 0
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "summary.json", "dice.csv", "dice.npz", "figure.png", "figure.svg", ".lock")
    }
    assert json.loads((run / "config.json").read_text()) == {"experiment": "dice", "sides": 4, "seed": 0}
    results = experiment.read(run)
    rolls = results.arrays["dice"]["rolls"]
    assert set(rolls.tolist()) == {1, 2, 3, 4}
    assert results.tables["dice"]["mean"][0] == results.summary["mean"] == rolls.mean()
    assert results.summary["lost"] is None
    assert results.summary["seconds"] > 0
    told = f"the mean is {rolls.mean():.2f}"
    assert told in capsys.readouterr().out

    before = (run / "summary.json").read_bytes()
    assert cli.run(TOY, [*line, "--config.sides=4"]) == 0  # finished: told, not measured again
    assert told in capsys.readouterr().out
    assert (run / "summary.json").read_bytes() == before
    for wrong, message in (
        ("--config.sides=8", "holds a run of another config; sides (4 there, 8 here)"),
        ("--config.sides=1", "sides: got 1; it takes a whole number, 2 or more"),
        ("--config.side=4", "side: unknown config field; did you mean sides?"),
    ):
        assert cli.run(TOY, [*line, wrong]) == 2
        assert message in capsys.readouterr().err
    assert cli.run(TOY._replace(name="cards"), [*line, "--config.sides=4"]) == 2
    assert "holds a run of dice, not of cards" in capsys.readouterr().err
