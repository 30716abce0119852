"""A work directory: names for any label, files that are missing or damaged; results in memory and on disk."""

import itertools
import json
import math
from functools import partial

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import files
from jtrans.errors import InputError
from jtrans.harness import cli, experiment, fields, folder
from jtrans.harness.experiment import Experiment, Results


def test_every_label_has_a_directory_of_its_own(tmp_path):
    alphabet = ["/", "\\", "%", ".", "\n", "\0", "\x85", "\u202e", "\ud800", "é", "2F", "a"]
    labels = {"".join(some) for count in range(4) for some in itertools.product(alphabet, repeat=count)}
    long = ["a" * 300, "a" * 299 + "b", "/" * 300, "é" * 100, "a" + "é" * 100, "." * 300]
    labels |= {*long, *map(folder.folder_name, [*labels, *long])}  # nor do a label and another's name meet
    names = {label: folder.folder_name(label) for label in labels}
    assert len(set(names.values())) == len(labels)
    for name in names.values():
        (tmp_path / name).mkdir()
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert len(name.encode()) <= folder.LONGEST_NAME
        assert name.isprintable()
        assert not name.startswith(".")
    assert len(list(tmp_path.iterdir())) == len(labels)


def test_plain_labels_are_their_own_names():
    plain = (
        "resnet18",
        "cat+dog",
        "data.name=noise,data.shuffle_labels=False",
        "models=(mlp_deep, lenet)",
        "猫",
        "a" * 120,
    )
    for label in plain:
        assert folder.folder_name(label) == label


# Columns of each type, with values that CSV could lose.
BITS = np.random.default_rng(0).integers(2**64, size=4, dtype=np.uint64).view(np.float64)
TABLE = pandas.DataFrame(
    {
        "name": ["a, b", 'say "x"', "two\r\nlines", ""],
        "value": [1.5, np.nan, 1 / 3, -0.0],
        "bits": np.where(np.isfinite(BITS), BITS, 0),
        "whole_float": [1.0, 2.0, 3.0, 4.0],
        "count": [1, 2, 3, 2**62],
        "found": [True, False, True, True],
    }
)


def test_a_table_comes_back(tmp_path):
    folder.write_table(tmp_path / "table.csv", TABLE)
    pandas.testing.assert_frame_equal(folder.read_table(tmp_path / "table.csv"), TABLE, check_exact=True)
    assert (tmp_path / "table.csv").read_text().splitlines()[0] == "name,value,bits,whole_float,count,found"


READERS = {
    "summary.json": folder.read_summary,
    "config.json": folder.read_config,
    "trajectory.npz": lambda workdir: files.read_npz(workdir / "trajectory.npz"),
    "table.csv": lambda workdir: folder.read_table(workdir / "table.csv"),
    "networks": folder.read_networks,
}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        *[(name, None, "") for name in READERS],
        *[(name, b"", "") for name in READERS],
        *[(name, b"\xff\xfe\0words", "") for name in READERS],
        ("summary.json", b'{"a": 1', "Expecting"),
        ("summary.json", b"[1]", "it holds no JSON object"),
        ("config.json", b"null", "it holds no JSON object"),
        ("config.json", b'{"seed": 0}', "it names no experiment: an earlier version of jtrans wrote it"),
        ("table.csv", b"a,b\n", "it has no rows"),
        ("table.csv", b"a,b\n1,2\n3", "its rows differ in length"),
        ("table.csv", b"a,b\n1,2,3\n4,5,6", "its rows differ in length"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named_in_one_line(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        READERS[name](tmp_path)
    assert str(tmp_path / name) in str(error.value)
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


FIELDS = {"seed": fields.seed(), "sizes": fields.counts((1, 2))}
CURVE = np.arange(4, dtype=np.float32) / 3


def measure(config, workdir):
    print("measured")
    summary = {"mean": np.float32(0.5), "missing": math.nan, "shape": (2, 3), "law": {8: jnp.ones(2)}}
    return Results(config, summary, {"toy": TABLE, "single": TABLE[:1]}, {"toy": {"curve": jnp.array(CURVE)}})


def tell(results):
    return f"mean {results.summary['mean']}, {len(results.tables['toy'])} rows, law {results.summary['law']['8']}"


def draw(results):
    figure = Figure()
    figure.subplots().plot(results.arrays["toy"]["curve"])
    return {"curve": figure}


TOY = Experiment("toy", FIELDS, measure, tell, draw)


def toy(**changes):
    config = fields.defaults(FIELDS)
    config.update(changes)
    return config


def assert_equal(one, other):
    assert one.config == other.config
    assert one.summary == other.summary
    assert one.tables.keys() == other.tables.keys()
    for name, table in one.tables.items():
        pandas.testing.assert_frame_equal(table, other.tables[name], check_exact=True)
    assert one.arrays.keys() == other.arrays.keys()
    for name, arrays in one.arrays.items():
        assert arrays.keys() == other.arrays[name].keys()
        for key, array in arrays.items():
            assert isinstance(array, np.ndarray)
            assert array.dtype == other.arrays[name][key].dtype
            np.testing.assert_array_equal(array, other.arrays[name][key])


def test_results_are_the_same_in_memory_and_on_disk(tmp_path, capsys):
    results = experiment.run(TOY, toy(), tmp_path)
    assert_equal(results, experiment.read(tmp_path))
    assert results.config == {"seed": 0, "sizes": [1, 2]}
    assert results.summary["shape"] == [2, 3]
    assert results.summary["missing"] is None
    assert results.summary["config"] == results.config
    assert results.summary["seconds"] > 0
    np.testing.assert_array_equal(results.arrays["toy"]["curve"], CURVE)
    pandas.testing.assert_frame_equal(results.tables["toy"], TABLE, check_exact=True)
    first = capsys.readouterr().out
    assert "mean 0.5, 4 rows, law [1.0, 1.0]" in first
    names = {"config.json", "summary.json", "toy.csv", "single.csv", "toy.npz", "curve.png", "curve.svg", ".lock"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "config.json").read_text()) == {"experiment": "toy", "seed": 0, "sizes": [1, 2]}
    # Again: told from the disk, not measured.
    assert_equal(experiment.run(TOY, toy(), tmp_path), results)
    again = capsys.readouterr().out
    assert "measured" not in again
    assert first.partition("\n\n")[2] == again.partition("\n\n")[2]


def test_files_of_others_in_a_finished_folder_are_no_results(tmp_path):
    results = experiment.run(TOY, toy(), tmp_path)
    (tmp_path / "notes.csv").write_text("a,b\n1")
    (tmp_path / "mine.npz").write_text("")
    assert_equal(experiment.read(tmp_path), results)


@pytest.mark.parametrize("name", ["toy.csv", "toy.npz", "config.json", "summary.json"])
def test_a_file_that_is_missing_from_a_finished_run_is_named(tmp_path, name):
    experiment.run(TOY, toy(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name}") as error:
        experiment.read(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def refused(toy_experiment, config, workdir, capsys):
    """The line with which a work directory is refused; whatever is in it stays."""
    contents = lambda: {path.name: path.read_bytes() for path in workdir.iterdir() if path.name != ".lock"}
    before = contents()
    with pytest.raises(InputError) as error:
        experiment.run(toy_experiment, config, workdir)
    assert "measured" not in capsys.readouterr().out
    assert contents() == before
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("holds_runs", [False, True])
def test_a_folder_of_an_earlier_version_is_refused(tmp_path, capsys, holds_runs):
    """It had no "experiment" in config.json."""
    (tmp_path / "config.json").write_text(json.dumps(toy().to_dict()))
    (tmp_path / "summary.json").write_text("{}")
    line = refused(TOY._replace(holds_runs=holds_runs), toy(), tmp_path, capsys)
    assert line.startswith(f"--workdir: {tmp_path / 'config.json'} names no experiment (an earlier version of jtrans")


@pytest.mark.parametrize("holds_runs", [False, True])
def test_a_folder_of_another_experiment_is_refused(tmp_path, capsys, holds_runs):
    experiment.run(TOY, toy(), tmp_path)
    capsys.readouterr()
    other = TOY._replace(name="other", holds_runs=holds_runs)
    line = refused(other, toy(), tmp_path, capsys)
    assert line == f"--workdir: {tmp_path} holds a run of toy, not of other; name another directory"


def test_a_folder_of_another_config_is_refused_and_only_the_resumable_field_may_grow(tmp_path, capsys):
    growing = TOY._replace(resumable="seed")
    experiment.run(growing, toy(seed=3), tmp_path)
    capsys.readouterr()
    assert "seed (3 there, 2 here)" in refused(growing, toy(seed=2), tmp_path, capsys)
    assert "sizes ([1, 2] there, [1] here)" in refused(growing, toy(seed=4, sizes=(1,)), tmp_path, capsys)
    assert "seed (3 there, 4 here)" in refused(TOY, toy(seed=4), tmp_path, capsys)
    assert experiment.run(growing, toy(seed=4), tmp_path).config["seed"] == 4
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 4


def test_a_run_that_goes_on_is_read_with_the_config_of_its_results(tmp_path):
    experiment.run(TOY, toy(), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "seed": 7}))
    assert experiment.read(tmp_path).config["seed"] == 0


def test_checkpoints_of_others_are_not_touched(tmp_path, capsys):
    (tmp_path / "checkpoints" / "1000").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds checkpoints/1000 but no config.json"):
        experiment.run(TOY, toy(), tmp_path)
    assert capsys.readouterr().out == ""


def test_what_is_wrong_is_said_before_any_compute(tmp_path, capsys):
    def check(config):
        raise InputError("sizes: no")

    for config, message in ((toy(seed=-1), "seed: got -1"), (toy(), "sizes: no")):
        with pytest.raises(InputError, match=message):
            experiment.run(TOY._replace(check=check), config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "measured" not in capsys.readouterr().out


def test_options_of_the_command_line_reach_measure(tmp_path, capsys):
    def takes(config, workdir, label):
        return Results(config, {"label": label}, {}, {})

    config = tmp_path / "config.py"
    config.write_text("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({})\n")
    labelled = Experiment("toy", {}, takes, lambda results: f"labelled {results.summary['label']}", lambda results: {})
    labelled = labelled._replace(options={"label": "any text"})
    run = partial(cli.run, labelled)
    assert run(["toy.py", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--label=x y"]) == 0
    assert "labelled x y" in capsys.readouterr().out
    assert run(["toy.py", "--help"]) == 0
    assert "--label           any text" in capsys.readouterr().out


def test_every_experiment_is_found_by_its_name():
    for name in experiment.names():
        made = experiment.load(name)
        assert made.name == name
        assert isinstance(fields.defaults(made.fields), ConfigDict)
    with pytest.raises(InputError, match="experiment: got 'earyl'; did you mean early"):
        experiment.load("earyl")


def test_a_folder_says_which_experiment_made_it(tmp_path):
    folder.write_config(tmp_path, "early", toy())
    assert experiment.maker(tmp_path).name == "early"
    folder.write_config(tmp_path, "erly", toy())
    with pytest.raises(InputError, match="did you mean early"):
        experiment.maker(tmp_path)
