import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from jtrans import models, training
from jtrans.experiments import penalty
from jtrans.experiments.penalty import Penalty
from jtrans.harness import cli, experiment

SHAPE = (3, 3, 1)
MODEL = models.build("mlp_shallow", SHAPE, 3, widths=(8,))


def networks():
    own, surrogate = (MODEL.init(jax.random.key(i)) for i in range(2))
    return own, surrogate


def test_the_absolute_cosine_agrees_with_float64():
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 6, 3, 3, 1)) * np.logspace(-25, 5, 6)[:, None, None, None]
    u[5] = 0
    flat = [x.reshape(6, -1) for x in (u, v)]
    want = (
        np.abs((flat[0] * flat[1]).sum(1))
        / np.linalg.norm(flat[0], axis=1).clip(1e-99)
        / np.linalg.norm(flat[1], axis=1)
    )
    got = penalty.absolute_cosine(jnp.array(u, jnp.float32), jnp.array(v, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-5)
    slope = jax.grad(lambda u: penalty.absolute_cosine(u, jnp.array(v, jnp.float32)).sum())(jnp.array(u, jnp.float32))
    assert np.isfinite(slope).all()
    assert not slope[5].any()


def test_the_objective_is_the_loss_and_the_mean_cosine_of_input_gradients():
    own, surrogate = networks()
    rng = np.random.default_rng(0)
    x, y = jnp.array(rng.uniform(size=(5, *SHAPE)), jnp.float32), np.arange(5) % 3
    negative_log = lambda v, x: -jax.nn.log_softmax(MODEL.apply(v, x))[jnp.arange(5), y]
    gradients = [
        np.float64(jax.grad(lambda x, v=v: negative_log(v, x).sum())(x)).reshape(5, -1) for v in (own, surrogate)
    ]
    unit = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in gradients]
    want = float(negative_log(own, x).mean()) + 0.7 * np.abs((unit[0] * unit[1]).sum(1)).mean()
    held = penalty.with_penalty(own, Penalty(surrogate, jnp.float32(0.7)))
    loss, moved = penalty.objective(MODEL)(MODEL, held, x, y, jax.random.key(0))
    assert float(loss) == pytest.approx(want, rel=1e-4)
    assert set(moved) == {"params", penalty.PENALTY}


def test_a_step_goes_down_the_penalised_loss_and_leaves_the_surrogate():
    """Along the direction of an SGD step the penalised loss falls by the step's squared length, to first order."""
    own, surrogate = networks()
    rng = np.random.default_rng(1)
    images, labels = rng.integers(256, size=(6, *SHAPE), dtype=np.uint8), np.arange(6) % 3
    rate, objective = 1e-4, penalty.objective(MODEL)
    optimizer = training.OPTIMIZERS["sgd"](rate)
    held = penalty.with_penalty(own, Penalty(surrogate, jnp.float32(2.0)))
    before = training.Network(held, optimizer.init(own["params"]))
    after = training.train_step(MODEL, optimizer, before, jnp.array(images), labels, jax.random.key(0), objective)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.float64(a)), tree)
        x = jnp.asarray(images / 255.0)
        losses = [objective(MODEL, wide(n.variables), x, labels, jax.random.key(0))[0] for n in (before, after)]
    moved = jax.tree.map(
        lambda a, b: np.float64(a) - np.float64(b), before.variables["params"], after.variables["params"]
    )
    squared = sum(np.square(leaf).sum() for leaf in jax.tree.leaves(moved))
    assert float(losses[0] - losses[1]) == pytest.approx(squared / rate, rel=0.05)
    for a, b in zip(*(jax.tree.leaves(n.variables[penalty.PENALTY]) for n in (before, after)), strict=True):
        np.testing.assert_array_equal(a, b)


SMALL = ["--config.num_networks=3", "--config.num_examples=30", "--config.num_steps=200", "--config.data.image_size=8"]
SMALL += ["--config.widths.mlp_shallow=(32,)", "--config.coefficients=(0.0, 1.0)"]


def run(workdir, *arguments):
    fields = {flag.partition("=")[0]: flag for flag in (*SMALL, *arguments)}
    config = workdir / "config.py"
    workdir.mkdir(exist_ok=True)
    text = (
        (ROOT / "configs" / "penalty.py")
        .read_text()
        .replace("return config", "config.coefficients = ()\n    return config")
    )
    config.write_text(text)
    flags = [f"--config={config}", f"--workdir={workdir / 'run'}", *fields.values()]
    return cli.run(penalty.EXPERIMENT, ["penalty.py", *flags])


def test_the_penalty_turns_directions_and_stops_attacks(tmp_path, capsys):
    assert run(tmp_path) == 0
    results = experiment.read(tmp_path / "run")
    without, strong = (row for _, row in results.tables["penalty"].iterrows())
    assert (without["coefficient"], strong["coefficient"]) == (0, 1)
    assert without["angle_high"] < strong["angle_low"] - 3
    assert strong["tau1_high"] < without["tau1_low"]
    assert strong["success"] < without["success"]
    assert min(without["accuracy"], strong["accuracy"]) > 0.8
    said = capsys.readouterr().out
    assert "coefficient" in said
    assert "lost" not in said
    panels = penalty.EXPERIMENT.figures(results)["figure"].axes
    assert "degrees" in panels[0].get_ylabel()
    assert "coefficient" in panels[-1].get_xlabel()


def test_networks_whose_outputs_are_not_finite_are_counted_and_in_no_mean():
    row = {name: np.float32(0.5) for name in penalty.MEASURES}
    rows = [row, {**row, "angle": np.float32(9), "accuracy": np.float32(np.nan)}, row, row]  # NaN at some images
    table = penalty.tabulate(rows, (0.0, 1.0))
    assert table["lost"].tolist() == [1, 0]
    assert table["angle"].tolist() == [0.5, 0.5]
    assert np.isnan(table["angle_low"][0])  # one network is left, and has no interval
    said = penalty.tell(experiment.Results({}, {}, {"penalty": table}, {}))
    assert "networks lost" in said


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.coefficients=(1.0, 0.5)", "coefficients: got (1.0, 0.5); it takes a tuple of numbers, 0 or more"),
        ("--config.surrogate=conv_a", "data.image_size: got 8, too small for conv_a"),
        ("--config.models=('mlp_shallow', 'mlp_deep')", "this experiment takes one"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flag, message):
    assert run(tmp_path, flag) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
