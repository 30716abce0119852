import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, free_port, xla_flags

from jtrans import files, models, training
from jtrans.data import Split
from jtrans.experiments import control
from jtrans.harness import cli, experiment
from jtrans.population import engine, observe, trajectory

SHAPE = (4, 4, 1)


def images(count, seed):
    rng = np.random.default_rng(seed)
    return Split(rng.integers(256, size=(count, *SHAPE), dtype=np.uint8), rng.integers(2, size=count, dtype=np.int32))


TRAIN, TEST = images(40, 0), images(12, 1)
MODEL = models.build("mlp_deep", SHAPE, 2, widths=(16, 8))
RATES = (1e-3, 1e-2, 1e-1)


def population(optimizer, num_networks, **options):
    fixed = {"models": [MODEL], "keys": engine.keys(0), "train": TRAIN, "test": TEST, "batch_size": 8}
    return engine.build(optimizer=optimizer, num_networks=num_networks, **fixed, **options)


def all_rates(optimizer):
    networks = population(training.adjustable(optimizer), 6, pair=control.compared(3, 2))
    return control.train(networks, RATES, 3)


@pytest.mark.parametrize("name", training.OPTIMIZERS)
def test_a_learning_rate_of_its_own_is_the_same_as_one_for_all(name):
    """The networks of the second rate are the third and fourth of a population that has this rate throughout."""
    run = all_rates(name)
    one_rate = population(training.OPTIMIZERS[name](RATES[1]), 4, on=jax.devices()[:1])
    steps, weights, measured = [], [], []
    for step, ((group,),), measurement in engine.trajectory(one_rate, engine.initialize(one_rate), 3):
        steps.append(step)
        measured.append(measurement)
        weights.append(jax.tree.map(lambda leaf: np.array(leaf)[0], group.variables["params"]))
    alone = trajectory.collect(one_rate, steps, measured)
    got, want = (trajectory.select(t, np.array([2, 3])) for t in (run, alone))
    np.testing.assert_allclose(got["angle"], want["angle"], atol=1e-3)
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-4)
    flat = [np.concatenate([leaf[2].ravel() for leaf in jax.tree.leaves(w)]) for w in weights[:2]]
    ratio = np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0])
    assert run["first_update"][2] == pytest.approx(ratio, rel=1e-4)


def test_the_first_updates_of_adam_and_sgd_grow_with_the_learning_rate():
    adam = all_rates("adam")["first_update"]
    assert adam.reshape(3, 2).mean(1) / adam[:2].mean() == pytest.approx([1, 10, 100], rel=0.2)
    sgd = all_rates("sgd")["first_update"]
    assert sgd.max() < adam.min() * 100  # a hundredth of Adam's at the same rate
    # Adam moves every weight that has a gradient by the learning rate, whatever the gradient's size.
    variables = jax.vmap(MODEL.init)(engine.network_keys(engine.keys(0).init, 1, 2)[0])["params"]
    length = control.length(jax.tree.leaves(variables))
    count = sum(leaf[0].size for leaf in jax.tree.leaves(variables))
    assert (adam[:2] <= 1e-3 * np.sqrt(count) / length * 1.01).all()
    assert (adam[:2] >= 1e-3 * np.sqrt(count / 4) / length).all()


def run_of(angle, num_settings, accuracy=0.5):
    """Two networks a setting; `angle [settings, settings]` between their networks at both of two steps."""
    pair, model = observe.pairs(1, 2 * num_settings)
    first, second = np.repeat(np.arange(num_settings), 2)[pair].T
    of_networks = np.full((2 * num_settings, 2), accuracy)
    values = np.repeat(np.array(angle, float)[first, second][:, None], 2, 1)
    measured = {"angle": values, "accuracy": of_networks, "loss": of_networks, "undirected": np.zeros_like(of_networks)}
    return {"step": np.arange(2), "pair": pair, "model": model, "num_examples": np.array(9), **measured}


def test_networks_of_unlike_settings_against_those_of_like_ones():
    run = run_of([[20, 50, 60], [50, 30, 70], [60, 70, 40]], 3)
    parts, rates = {("adam", 8): {**run, "first_update": np.array([1, 3, 5, np.inf, np.nan, np.nan])}}, (1, 2, 3)
    table = control.settings_table(parts, rates, 3072, 2)
    assert table["angle"].tolist() == [20, 30, 40]
    assert table["early_transferability"].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(table["first_update"], [2, 5, np.nan])  # the medians of those that are finite
    (row,) = control.unlike_rates(parts, table, rates, 0.5)
    assert row["mean"] == pytest.approx(((50 - 25) + (60 - 30) + (70 - 35)) / 3)
    assert row["learning_rates"] == [1, 2, 3]


SMALL = ["--config.num_networks=3", "--config.num_steps=2", "--config.num_examples=20", "--config.data.name=digits"]
SMALL += ["--config.data.classes=()", "--config.data.image_size=8", "--config.widths.mlp_deep=(32,16)"]
SMALL += ["--config.learning_rates=(1e-3,1e-1)", "--config.optimizers=('adam','sgd')", "--config.batch_sizes=(16,64)"]


def command(workdir, *arguments):
    # A tuple given twice would be added up.
    given = {flag.partition("=")[0]: flag for flag in (*SMALL, *arguments)}
    return ["control.py", f"--config={ROOT / 'configs' / 'control.py'}", f"--workdir={workdir}", *given.values()]


def run(workdir, *arguments):
    return cli.run(control.EXPERIMENT, command(workdir, *arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    assert run(workdir) == 0
    return workdir


@pytest.fixture
def stopped(finished, tmp_path):
    """A run that was stopped in its last part."""
    parts = ("adam-16.npz", "adam-64.npz", "sgd-16.npz")
    for name in ("config.json", *parts):
        shutil.copy(finished / name, tmp_path)
    return tmp_path


def test_a_map_of_other_values_compiles_nothing(finished, tmp_path, lowerings):
    before = lowerings()
    assert run(tmp_path, "--config.seed=1", "--config.learning_rates=(1e-2,1e-1)") == 0
    assert lowerings() == before


def test_a_map_of_the_lowest_angles(finished):
    results = experiment.read(finished)
    table = results.tables["control"]
    assert table.columns[4:10].tolist() == [f"{x}{y}" for x in ("angle", "accuracy") for y in ("", "_low", "_high")]
    assert len(table) == results.summary["num_settings"] == 8
    assert table["optimizer"].unique().tolist() == ["adam", "sgd"]
    assert table["angle"][1] < 80  # adam, a large learning rate
    small = table[(table["optimizer"] == "sgd") & (table["learning_rate"] == 0.001)]
    assert (small["angle"] > 75).all()
    panels = control.draw(results)["figure"].axes
    assert [axes.get_title() for axes in panels[:2]] == ["adam", "sgd"]
    angles = table["angle"][:4].to_numpy().reshape(2, 2)  # [batch sizes, learning rates]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), angles)
    drawn = {text.get_position(): text.get_text().partition("\n")[0] for text in panels[0].texts}
    assert drawn == {(column, row): f"{angle:.0f}" for (row, column), angle in np.ndenumerate(angles)}
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["16", "64"]


def test_a_stopped_map_is_finished_from_its_parts(finished, stopped, capsys):
    assert run(stopped) == 0
    said = capsys.readouterr().out
    assert "sgd-64.npz: 2 learning rates measured" in said
    assert "adam-16" not in said
    assert {path.name for path in stopped.iterdir()} == {path.name for path in finished.iterdir()}
    for path in (*finished.glob("*.npz"), finished / "control.csv"):
        assert (stopped / path.name).read_bytes() == path.read_bytes()
    told = control.tell(experiment.read(finished))
    assert told in said
    assert run(stopped) == 0  # finished: told again
    assert told in capsys.readouterr().out


def test_every_part_is_kept_as_soon_as_it_is_trained(tmp_path, monkeypatch):
    trained, train = [], control.train

    def until_interrupted(*arguments):
        if trained:
            raise KeyboardInterrupt
        trained.append(train(*arguments))
        return trained[0]

    monkeypatch.setattr(control, "train", until_interrupted)
    assert run(tmp_path, "--config.batch_sizes=(64,)") == 130
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "adam-64.npz", ".lock"}
    part = files.read_npz(tmp_path / "adam-64.npz")
    for name in ("angle", "first_update"):
        np.testing.assert_array_equal(part[name], trained[0][name])


@pytest.mark.slow
def test_processes_of_a_job_agree_on_the_parts(finished, stopped):
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(1)}
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    line = [sys.executable, str(ROOT / "experiments" / "control.py"), *command(stopped, *flags)[1:]]
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*line, f"--process_id={i}"], **options) for i in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert ["sgd-64.npz: " in out for out in said] == [True, False]
    ours, theirs = (experiment.read(workdir).tables["control"] for workdir in (stopped, finished))
    np.testing.assert_allclose(ours["angle"], theirs["angle"], atol=1e-3)
    assert ours["step"].tolist() == theirs["step"].tolist()


def test_no_field_may_grow(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in workdir.iterdir()}
    assert run(workdir, "--config.num_steps=4") == 2
    assert "num_steps (2 there, 4 here)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in workdir.iterdir()} == before


def test_lost_networks_are_counted_and_in_no_mean(tmp_path, capsys):
    flags = ["--config.optimizers=('sgd',)", "--config.learning_rates=(0.001,1e30)", "--config.batch_sizes=(64,)"]
    assert run(tmp_path, *flags) == 0
    results = experiment.read(tmp_path)
    table, part = results.tables["control"], results.arrays["sgd-64"]
    assert table["lost"].tolist() == [0, results.config["num_networks"]]
    lost = ~np.isfinite(part["loss"])
    assert lost.any()
    np.testing.assert_array_equal(np.isnan(part["accuracy"]), lost)
    # Its lowest angle is from before it was lost.
    assert table["step"][1] < part["step"][lost[-1]][0]
    assert "lost: networks whose loss is no longer finite" in capsys.readouterr().out


def test_parts_made_from_other_images_are_refused(stopped, capsys):
    path = stopped / "adam-64.npz"
    files.write_npz(path, {**files.read_npz(path), "data_sha256": np.array("0" * 64)})
    assert run(stopped) == 2
    assert "adam-64.npz was made from other data (SHA-256 000000000000... there" in capsys.readouterr().err


def test_all_pairs_within_a_learning_rate_are_compared_and_a_sample_of_those_across(monkeypatch):
    every = control.compared(3, 4)
    assert len(every) == len({tuple(pair) for pair in every.tolist()}) == 66
    monkeypatch.setattr(observe, "MOST_PAIRS", 10)
    some = control.compared(3, 4)
    within = some[:, 0] // 4 == some[:, 1] // 4
    assert (within.sum(), (~within).sum()) == (18, 10)


def test_a_single_batch_size_gives_curves(finished):
    results = experiment.read(finished)
    table = results.tables["control"]
    one = {"control": table[table["batch_size"] == 64]}
    figure = control.draw(results._replace(config={**results.config, "batch_sizes": [64]}, tables=one))["figure"]
    left, right = figure.axes
    assert left.get_xlabel() == "learning rate"
    assert "first update" in right.get_xlabel()
    np.testing.assert_array_equal(left.lines[1].get_xdata(), [1e-3, 1e-1])  # sgd
    np.testing.assert_array_equal(left.lines[1].get_ydata(), table["angle"][6:])
    np.testing.assert_array_equal(right.lines[1].get_xdata(), table["first_update"][6:])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.models=('mlp_deep','mlp_shallow')", "this experiment takes one, as ('mlp_deep',)"),
        (
            "--config.learning_rates=(1.0,0.1)",
            "learning_rates: got (1.0, 0.1); it takes a tuple of numbers above 0, each",
        ),
        ("--config.optimizers=('adagrad',)", "optimizers: got ('adagrad',); it takes a tuple of adam, rmsprop"),
        ("--config.batch_sizes=(16,5000)", "batch_size: got 5000; the training examples are 1442"),
        ("--config.num_networks=1", "num_networks: got 1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flag, message):
    assert run(tmp_path, flag) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
