import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from jtrans import models
from jtrans.data import Split
from jtrans.experiments import updates
from jtrans.harness import cli, experiment

SHAPE = (3, 3, 2)


def images(count, seed):
    rng = np.random.default_rng(seed)
    return Split(rng.integers(256, size=(count, *SHAPE), dtype=np.uint8), rng.integers(2, size=count))


def folded(first, second):
    """In float64, every vector with every other; NaN where one is zero."""
    unit = [np.float64(v) / np.linalg.norm(np.float64(v), axis=1, keepdims=True) for v in (first, second)]
    return np.rad2deg(np.arccos(np.minimum(np.abs(unit[0] @ unit[1].T), 1)))


def by_hand(params, x, y):
    """The gradient of the first layer's kernel of a network with one hidden layer, and the input's, in float64."""
    hidden, output = ({k: np.float64(v) for k, v in layer.items()} for layer in params.values())
    x = np.moveaxis(np.float64(x) / 255, -1, 1).reshape(len(x), -1)
    h = x @ hidden["kernel"].T + hidden["bias"]
    logits = np.maximum(h, 0) @ output["kernel"].T + output["bias"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    g = p / p.sum(1, keepdims=True) - np.eye(2)[y]
    back = (g @ output["kernel"]) * (h > 0)
    return back.T @ x / len(x), back @ hidden["kernel"], [hidden, output], (g, np.maximum(h, 0), back)


def test_one_step_agrees_with_float64():
    model = models.build("mlp_shallow", SHAPE, 2, widths=(6,))
    batch, test = images(9, 0), images(5, 1)
    rate = 3.0
    got = updates.one_step(model, jax.random.key(0), batch, test, learning_rate=rate)
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    moved, _, (hidden, output), (g, h, back) = by_hand(params, *batch)
    with np.errstate(invalid="ignore"):
        want = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(got.vectors, want, atol=1e-5)
    among = folded(want, want)[np.triu_indices(6, 1)]
    assert float(got.within.mean) == pytest.approx(np.nanmean(among), abs=1e-2)
    after = {
        "0": {"kernel": hidden["kernel"] - rate * moved, "bias": hidden["bias"] - rate * back.mean(0)},
        "1": {"kernel": output["kernel"] - rate * g.T @ h / 9, "bias": output["bias"] - rate * g.mean(0)},
    }
    _, gradient, _, _ = by_hand(after, *test)
    with np.errstate(invalid="ignore"):
        assert float(got.adversarial.mean) == pytest.approx(np.nanmean(folded(gradient, want)), abs=1e-2)
    assert float(got.ratio) == pytest.approx(rate * np.linalg.norm(moved) / np.linalg.norm(hidden["kernel"]), rel=1e-5)


def test_angles_of_chosen_vectors_are_counted_once_and_without_the_zero_ones():
    at = lambda degrees: jnp.array([[np.cos(np.deg2rad(d)), np.sin(np.deg2rad(d))] for d in degrees])
    first = at([0.5, 30.5, 150.5])
    got = updates.angles(first, first, same=True)  # 30, 150 and 120 degrees, folded: 30, 30, 60
    assert float(got.mean) == pytest.approx(40, abs=1e-3)
    got = updates.angles(jnp.concatenate([first, jnp.full((1, 2), jnp.nan)]), at([0.0]))  # 0.5, 30.5, 29.5
    assert float(got.mean) == pytest.approx(60.5 / 3, abs=1e-3)
    assert np.flatnonzero(got.histogram).tolist() == [0, 29, 30]
    np.testing.assert_allclose(got.histogram.sum(), 1, rtol=1e-6)
    assert np.isnan(updates.angles(first * jnp.nan, first).mean)


def test_more_than_2_to_the_24_angles_in_one_degree_are_all_counted():
    at = lambda degrees: jnp.stack([jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))], axis=1)
    angle = updates.angles(at(jnp.zeros(4500)), at(jnp.where(jnp.arange(4500) < 450, 60.5, 30.5)))
    assert 4500 * 4050 > 2**24
    assert float(angle.histogram[30]) == pytest.approx(0.9)
    assert float(angle.histogram[60]) == pytest.approx(0.1)
    assert float(angle.mean) == pytest.approx(33.5, abs=1e-3)


def test_batches_share_no_image():
    train = Split(np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1), np.arange(60))
    batches = updates.disjoint(jax.random.key(0), train, 10, 6)
    assert sorted(np.concatenate([batch.labels for batch in batches])) == list(range(60))
    assert all((batch.inputs.ravel() == batch.labels).all() for batch in batches)


SMALL = ["--config.num_networks=3", "--config.num_examples=20", "--config.batch_size=20", "--config.data.name=digits"]
SMALL += ["--config.data.classes=()", "--config.data.image_size=8", "--config.widths.mlp_deep=(32, 16)"]
SMALL += ["--config.widths.mlp_shallow=(24,)"]


def run(workdir, *arguments):
    flags = [f"--config={ROOT / 'configs' / 'updates.py'}", f"--workdir={workdir}", *SMALL, *arguments]
    return cli.run(updates.EXPERIMENT, ["updates.py", *flags])


def test_the_experiment_leaves_both_tables(tmp_path, capsys):
    assert run(tmp_path) == 0
    results = experiment.read(tmp_path)
    table, histograms, summary = results.tables["updates"], results.tables["histograms"], results.summary
    captions = {
        "within.mlp_shallow": "within mlp_shallow",
        "adversarial.mlp_shallow": "mlp_shallow, to adversarial directions",
        "within.mlp_deep": "within mlp_deep",
        "adversarial.mlp_deep": "mlp_deep, to adversarial directions",
        "between.mlp_shallow.mlp_shallow": "between mlp_shallow and mlp_shallow",
        "between.mlp_shallow.mlp_deep": "between mlp_shallow and mlp_deep",
        "between.mlp_deep.mlp_deep": "between mlp_deep and mlp_deep",
    }
    assert table["what"].tolist() == list(captions)
    assert (
        (table["angle_low"] > 0) & (table["angle_low"] < table["angle"]) & (table["angle"] < table["angle_high"])
    ).all()
    # Real images and no learning: update vectors of one network are much nearer to each other than random ones.
    assert table["angle_high"][0] < 80  # of random ones: 84
    assert summary["table"] == table.to_dict("records")
    assert summary["vectors"] == {"mlp_shallow": 72, "mlp_deep": 96}
    assert histograms.columns.tolist() == ["degree", *captions]
    np.testing.assert_allclose(histograms[list(captions)].sum(), 1, rtol=1e-5)
    told = capsys.readouterr().out
    assert "units did not move and are left out" in told
    assert all(caption in told for caption in captions.values())
    left, right = updates.draw(results)["figure"].axes
    assert [label.get_text() for label in right.get_yticklabels()] == list(captions.values())
    assert [text.get_text() for text in left.get_legend().get_texts()] == [*captions.values(), "random directions"]


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_step_so_large_that_it_is_not_finite_is_told(tmp_path, capsys):
    assert run(tmp_path, "--config.learning_rate=1e300", "--config.models=('mlp_shallow',)") == 0
    assert "the large step is nan times the first layer's weights" in capsys.readouterr().out
    table = experiment.read(tmp_path).tables["updates"].set_index("what")
    assert np.isnan(table["angle"]["adversarial.mlp_shallow"])
    assert table["angle"]["within.mlp_shallow"] < 80


def test_update_vectors_stay_on_the_device(tmp_path, monkeypatch):
    compared, angles = [], updates.angles
    monkeypatch.setattr(updates, "angles", lambda a, b, **options: compared.extend([a, b]) or angles(a, b, **options))
    with jax.disable_jit():  # so that the arrays themselves are seen
        assert run(tmp_path, "--config.num_networks=2", "--config.models=('mlp_shallow',)") == 0
    assert len(compared) == 2 * (2 + 2 + 1)  # within networks, to adversarial directions, the pair
    assert all(isinstance(vectors, jax.Array) for vectors in compared)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.models=('conv_a',)", "models: got ('conv_a',); it takes one or two of mlp_shallow, mlp_deep, fcnet"),
        ("--config.batch_size=1000", "6 networks with batches of their own take 6000 images, and there are"),
        ("--config.num_networks=1", "num_networks: got 1; it takes a whole number, 2 or more"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flag, message):
    assert run(tmp_path, flag) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
