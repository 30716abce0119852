import csv
import json

import control
import jax
import numpy as np
import pytest
from conftest import ROOT

from jtrans import cli, findings, models, plots, population, results, settings, training
from jtrans.data import Split

SHAPE = (4, 4, 1)


def images(count, seed):
    rng = np.random.default_rng(seed)
    return Split(rng.integers(256, size=(count, *SHAPE), dtype=np.uint8), rng.integers(2, size=count, dtype=np.int32))


TRAIN, TEST = images(40, 0), images(12, 1)
MODEL = models.build("mlp_deep", SHAPE, 2, widths=(16, 8))
RATES = (1e-3, 1e-2, 1e-1)


def all_rates(optimizer):
    config = settings.control()
    config.learning_rates, config.num_networks, config.num_steps, config.num_examples = RATES, 2, 3, 12
    return control.train(MODEL, config, optimizer, 8, population.keys(0), TRAIN, TEST)


@pytest.mark.parametrize("name", training.OPTIMIZERS)
def test_a_learning_rate_of_its_own_is_the_same_as_one_for_all(name):
    """The networks of the second rate are the third and fourth of a population that has this rate throughout."""
    trajectory, first_update = all_rates(name)
    optimizer, keys = training.OPTIMIZERS[name](RATES[1]), population.keys(0)
    placements = [population.place(MODEL, SHAPE, 12, 4, on=jax.devices()[:1])]
    networks = population.initialize([MODEL], optimizer, keys.init, placements)
    steps, weights, measured = [], [], []
    for step, ((group,),), measurement in population.trajectory(
        [MODEL], optimizer, networks, placements, keys, TRAIN, TEST, batch_size=8, num_steps=3
    ):
        steps.append(step)
        measured.append(measurement)
        weights.append(jax.tree.map(lambda leaf: np.array(leaf)[0], group.variables["params"]))
    alone = population.collect(steps, measured, 1, 12)
    got, want = (population.select(t, np.array([2, 3])) for t in (trajectory, alone))
    np.testing.assert_allclose(got.angle, want.angle, atol=1e-3)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-4)
    flat = [np.concatenate([leaf[2].ravel() for leaf in jax.tree.leaves(w)]) for w in weights[:2]]
    assert first_update[2] == pytest.approx(np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0]), rel=1e-4)


def test_the_first_updates_of_adam_and_sgd_grow_with_the_learning_rate():
    _, adam = all_rates("adam")
    assert adam.reshape(3, 2).mean(1) / adam[:2].mean() == pytest.approx([1, 10, 100], rel=0.2)
    _, sgd = all_rates("sgd")
    assert sgd.max() < adam.min() * 100  # a hundredth of Adam's at the same rate
    # Adam moves every weight that has a gradient by the learning rate, whatever the gradient's size.
    variables = jax.vmap(MODEL.init)(population.network_keys(population.keys(0).init, 1, 2)[0])["params"]
    length = control.length(jax.tree.leaves(variables))
    count = sum(leaf[0].size for leaf in jax.tree.leaves(variables))
    assert (adam[:2] <= 1e-3 * np.sqrt(count) / length * 1.01).all()
    assert (adam[:2] >= 1e-3 * np.sqrt(count / 4) / length).all()


def trajectory(angle, num_settings, accuracy=0.5):
    """Two networks a setting; `angle [settings, settings]` between their networks at both of two steps."""
    pair, model = population.pairs(1, 2 * num_settings)
    setting = np.repeat(np.arange(num_settings), 2)
    values = np.repeat(np.array(angle, float)[setting[pair[:, 0]], setting[pair[:, 1]]][:, None], 2, 1)
    of_networks = np.full((2 * num_settings, 2), accuracy)
    return population.Trajectory(
        np.arange(2), pair, values, of_networks, of_networks, model, np.zeros_like(of_networks), np.array(9)
    )


def test_networks_of_unlike_settings_against_those_of_like_ones():
    parts = {("adam", 8): (trajectory([[20, 50, 60], [50, 30, 70], [60, 70, 40]], 3), {"first_update": np.ones(6)})}
    rates = (1, 2, 3)
    table = findings.control(parts, rates, 3072, 2)
    assert table["angle_mean"].tolist() == [20, 30, 40]
    assert table["early_transferability"].tolist() == [1, 1, 1]
    (row,) = findings.summarize_control(parts, table, rates, 3072, 2)["unlike"]
    assert row["mean"] == pytest.approx(((50 - 25) + (60 - 30) + (70 - 35)) / 3)
    assert row["learning_rates"] == [1, 2, 3]


SMALL = ["--config.num_networks=3", "--config.num_steps=2", "--config.num_examples=20", "--config.data.name=digits"]
SMALL += ["--config.data.classes=()", "--config.data.image_size=8", "--config.widths.mlp_deep=(32,16)"]
SMALL += ["--config.learning_rates=(1e-3,1e-1)", "--config.optimizers=('adam','sgd')"]


def run(workdir, *arguments):
    # A tuple given twice would be added up.
    fields = {flag.partition("=")[0]: flag for flag in (*SMALL, *arguments)}
    flags = [f"--config={ROOT / 'configs' / 'control.py'}", f"--workdir={workdir}", *fields.values()]
    return cli.run(control.main, ["control.py", *flags])


def test_a_map_is_finished_from_what_is_there(tmp_path, capsys):
    batches = "--config.batch_sizes=(16,64)"
    assert run(tmp_path, batches) == 0
    said = capsys.readouterr().out
    table = (tmp_path / "control.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "control.csv").open()))
    assert len(rows) == 8
    assert {row["optimizer"] for row in rows} == {"adam", "sgd"}
    assert float(rows[1]["angle_mean"]) < 80  # adam, a large learning rate
    assert all(
        float(row["angle_mean"]) > 75 for row in rows if row["optimizer"] == "sgd" and row["learning_rate"] == "0.001"
    )
    config, summary = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("config", "summary"))
    assert summary["num_settings"] == 8
    panels = plots.control(config, results.read_table(tmp_path / "control.csv"), summary).axes
    assert [axes.get_title() for axes in panels[:2]] == ["adam", "sgd"]
    assert len(panels[0].texts) == 4

    (tmp_path / "summary.json").unlink()
    (tmp_path / "sgd-64.npz").unlink()
    assert run(tmp_path, batches) == 0
    again = capsys.readouterr().out
    assert "sgd, batch size 64" in again
    assert "adam, batch size 16:" not in again
    assert (tmp_path / "control.csv").read_bytes() == table
    assert run(tmp_path, batches) == 0  # finished: told again
    assert capsys.readouterr().out in said


def test_only_what_resumes_may_grow(tmp_path, capsys):
    flags = ("--config.batch_sizes=(64,)", "--config.optimizers=('adam',)")
    assert run(tmp_path, *flags) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    steps = json.loads((tmp_path / "config.json").read_text())["num_steps"]
    assert run(tmp_path, *flags, f"--config.num_steps={steps + 2}") == 2
    assert f"num_steps ({steps} there, {steps + 2} here)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_lost_networks_are_counted_and_in_no_mean(tmp_path, capsys):
    flags = ["--config.optimizers=('sgd',)", "--config.learning_rates=(0.001,1e30)", "--config.batch_sizes=(64,)"]
    assert run(tmp_path, *flags) == 0
    table = results.read_table(tmp_path / "control.csv")
    assert table["lost"].tolist() == [0, json.loads((tmp_path / "config.json").read_text())["num_networks"]]
    trajectory, _ = results.read_arrays(tmp_path / "sgd-64.npz")
    lost = ~np.isfinite(trajectory.loss)
    assert lost.any()
    np.testing.assert_array_equal(np.isnan(trajectory.accuracy), lost)
    # Its lowest angle is from before it was lost.
    assert table["step"][1] < trajectory.step[lost[-1]][0]
    assert "lost: networks whose loss is no longer finite" in capsys.readouterr().out


def test_parts_made_from_other_images_are_refused(tmp_path, capsys):
    flags = ["--config.batch_sizes=(64,)", "--config.optimizers=('adam',)"]
    assert run(tmp_path, *flags) == 0
    (tmp_path / "summary.json").unlink()
    trajectory, beside = results.read_arrays(tmp_path / "adam-64.npz")
    results.write_arrays(tmp_path / "adam-64.npz", trajectory, **{**beside, "data_sha256": np.array("0" * 64)})
    capsys.readouterr()
    assert run(tmp_path, *flags) == 2
    assert "adam-64.npz was made from other images (SHA-256 000000000000... there" in capsys.readouterr().err


def test_all_pairs_within_a_learning_rate_are_compared_and_a_sample_of_those_across(monkeypatch):
    every = control.compared(3, 4)
    assert len(every) == len({tuple(pair) for pair in every.tolist()}) == 66
    monkeypatch.setattr(population, "MOST_PAIRS", 10)
    some = control.compared(3, 4)
    within = some[:, 0] // 4 == some[:, 1] // 4
    assert (within.sum(), (~within).sum()) == (18, 10)


def test_a_single_batch_size_gives_curves(tmp_path):
    assert run(tmp_path, "--config.batch_sizes=(32,)") == 0
    config, summary = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("config", "summary"))
    left, right = plots.control(config, results.read_table(tmp_path / "control.csv"), summary).axes
    assert left.get_xlabel() == "learning rate"
    assert "first update" in right.get_xlabel()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.models=('mlp_deep','mlp_shallow')", "this experiment takes one, as ('mlp_deep',)"),
        (
            "--config.learning_rates=(1.0,0.1)",
            "learning_rates: got (1.0, 0.1); it takes a tuple of numbers above 0, each",
        ),
        ("--config.optimizers=('adagrad',)", "optimizers: got ('adagrad',); it takes a tuple of adam, rmsprop"),
        ("--config.batch_sizes=(16,5000)", "batch_size: got 5000; the training images are 1442"),
        ("--config.num_networks=1", "num_networks: got 1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flag, message):
    assert run(tmp_path, flag) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
