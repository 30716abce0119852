import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from conftest import ROOT

from jtrans import directions, models, stats
from jtrans.data import Dataset, Split
from jtrans.experiments import decompose, early
from jtrans.experiments.decompose import comparisons, figures, findings, removal, subspaces
from jtrans.harness import cli, experiment
from jtrans.harness.fields import defaults
from jtrans.models import Model, layers
from jtrans.models.modules import Convolution
from jtrans.population import observe, trajectory
from jtrans.training import Network

SHAPE = (6, 5, 3)
DIMENSION = 90
RANDOM = trajectory.random(np.array([DIMENSION]))


def orthonormal(count, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(DIMENSION, count)))[0].T


def test_projection_agrees_with_float64():
    rng = np.random.default_rng(0)
    vectors, basis = rng.normal(size=(7, *SHAPE)), orthonormal(4, 1)
    got = directions.project_off(jnp.array(vectors, jnp.float32), jnp.array(basis, jnp.float32))
    flat = vectors.reshape(7, -1)
    want = flat - flat @ basis.T @ basis
    assert got.shape == vectors.shape
    np.testing.assert_allclose(got.reshape(7, -1), want, atol=1e-5)
    np.testing.assert_allclose(got.reshape(7, -1) @ basis.T, 0, atol=1e-5)
    vectors = np.float32(vectors)
    np.testing.assert_array_equal(directions.project_off(vectors, np.zeros((2, DIMENSION), np.float32)), vectors)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("count", [40, 200])  # fewer rows than values, and more
def test_leading_directions_of_a_chosen_spectrum(count, scale):
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(count, 5)))[0]
    right = orthonormal(5, 1)
    rows = scale * left * [9, 5, 3, 2, 1] @ right
    rows = np.concatenate([rows, np.full((1, DIMENSION), np.nan), np.zeros((1, DIMENSION))])
    basis = subspaces.leading(rows, 3)
    np.testing.assert_allclose(np.abs(basis @ right.T), np.eye(3, 5), atol=1e-3)
    many = subspaces.leading(rows[:4], 10)
    assert many.shape == (4, DIMENSION)
    np.testing.assert_allclose(many @ many.T, np.eye(4), atol=1e-5)
    assert subspaces.leading(np.zeros((3, DIMENSION)), 2).shape == (0, DIMENSION)


@pytest.mark.parametrize("shape", [(60, 90), (2500, 90)])  # the second in several blocks
@pytest.mark.parametrize("center", [0.0, 100.0])
def test_leading_directions_are_those_of_a_float64_svd(shape, center):
    rng = np.random.default_rng(0)
    rows = rng.integers(256, size=shape, dtype=np.uint8)
    rows[::2, :30] //= 4
    assert_leading(subspaces.leading(rows, 7, center=center), np.float64(rows) - center)


def assert_leading(basis, rows):
    """The basis is of the rows' first right singular vectors, in any mixture where singular values are the same."""
    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    count = len(basis)
    np.testing.assert_allclose(basis @ basis.T, np.eye(count), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows @ basis.T, axis=0), singular[:count], rtol=1e-4)
    assert singular[count] < singular[count - 1] * 0.9999  # else the span would not be determined
    np.testing.assert_allclose(np.linalg.norm(basis @ right[:count].T, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("layer", [Convolution(3, 1, 1), Convolution(5, 2, 1), Convolution(3, 2, 0)])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_updates_of_a_convolution_lead_along_what_it_sees(monkeypatch, layer, scale):
    """As the Jacobian of the convolution with every network's filters does."""
    monkeypatch.setitem(models.CONVOLUTIONAL, "lenet", (layer,))
    rng = np.random.default_rng(0)
    moved = rng.normal(size=(2, layer.kernel, layer.kernel, 3, 20)).astype(np.float32)
    see = lambda x, kernel: layers.convolve(x[None], kernel, stride=layer.stride, padding=layer.padding).ravel()
    after = np.float32(scale) * moved
    after[0, ..., 7], moved[0, ..., 7] = np.nan, 0  # a filter that is not finite is left out
    jacobian_of = jax.jit(jax.jacrev(see))
    jacobian = np.concatenate([jacobian_of(jnp.zeros(SHAPE), k).reshape(-1, DIMENSION) for k in moved])
    assert_leading(subspaces.updates("lenet", SHAPE, [0 * moved], [after], 6), np.float64(jacobian))
    nothing = subspaces.updates("lenet", SHAPE, [moved], [moved], 6)
    assert nothing.shape == (0, DIMENSION)


def test_updates_of_a_fully_connected_layer_are_in_the_order_of_the_images():
    model = models.build("mlp_shallow", SHAPE, 2, widths=(4,))
    before, after = (jax.jit(model.init)(jax.random.key(i)) for i in range(2))
    kernels = [np.asarray(v["params"]["Dense_0"]["kernel"])[None] for v in (before, after)]
    basis = subspaces.updates("mlp_shallow", SHAPE, *[[kernel] for kernel in kernels], 4)
    # The images that the hidden units have moved to, by what they do to each image of a single value.
    pixels = np.eye(DIMENSION, dtype=np.float32).reshape(DIMENSION, *SHAPE)
    hidden = lambda kernel: np.moveaxis(pixels, -1, 1).reshape(DIMENSION, -1) @ kernel[0].T
    rows = np.float64(hidden(kernels[1]) - hidden(kernels[0])).T
    np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(rows @ basis.T @ basis, rows, atol=1e-5)


OF_WORDS = {  # what comes before the first layer's biases, of a text [L, E]
    "text_mean": lambda x, params: params["MLP_0"]["Dense_0"]["kernel"] @ x.mean(0),
    "text_cnn": lambda x, params: [
        layers.convolve(jnp.pad(x, ((k - 1, k - 1), (0, 0)))[None, :, None], params[f"Conv1d_{i}"]["kernel"][:, None])
        for i, k in enumerate((3, 4, 5))
    ],
    "text_lstm": lambda x, params: x @ params["LSTM_0"]["word_kernel"].T,
    "text_transformer": lambda x, params: x @ params["projection"]["kernel"].T,
}


@pytest.mark.parametrize("name", models.TEXT)
def test_updates_of_networks_of_texts_lead_along_what_their_first_layers_see(name):
    shape = (6, 15)
    model = models.build(name, shape, 2)
    before, after = (jax.vmap(model.init)(jax.random.split(jax.random.key(i), 2)) for i in range(2))
    kernels = [subspaces.first_kernels(name, shape, variables) for variables in (before, after)]
    moved = jax.tree.map(lambda b, a: a - b, before["params"], after["params"])
    jacobian_of = jax.jit(jax.vmap(jax.jacrev(OF_WORDS[name]), (None, 0)))
    rows = [np.reshape(leaf, (-1, DIMENSION)) for leaf in jax.tree.leaves(jacobian_of(jnp.zeros(shape), moved))]
    assert_leading(subspaces.updates(name, shape, *kernels, 6), np.float64(np.concatenate(rows)))


@pytest.mark.parametrize("name", ["text_lstm", "text_transformer"])
def test_updates_of_filters_of_single_words_are_first_the_same_at_all_words(name):
    """Where there are fewer directions than the words have in common, none is fixed by its length alone."""
    model = models.build(name, (6, 15), 2)
    before, after = (
        subspaces.first_kernels(name, (6, 15), jax.vmap(model.init)(jax.random.split(jax.random.key(i), 2)))
        for i in range(2)
    )
    of_words = np.linalg.svd(np.float64(after[0] - before[0]).reshape(-1, 15))[2]
    basis = subspaces.updates(name, (6, 15), before, after, 8).reshape(8, 6, 15)
    np.testing.assert_allclose(np.linalg.norm(basis[:6] @ of_words[0], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(basis[6:] @ of_words[1], axis=1), 1, rtol=1e-5)
    for number in (0, 6):
        np.testing.assert_allclose(basis[number], np.broadcast_to(basis[number, :1], (6, 15)), atol=1e-6)
    np.testing.assert_allclose(basis.reshape(8, -1) @ basis.reshape(8, -1).T, np.eye(8), atol=1e-5)


def test_a_padded_convolution_of_an_image_of_one_pixel_is_no_linear_layer():
    kernels = [np.random.default_rng(i).normal(size=(2, 3, 3, 3, 4)).astype(np.float32) for i in range(2)]
    basis = subspaces.updates("resnet18", (1, 1, 3), kernels[:1], kernels[1:], 2)
    rows = np.float64(kernels[1] - kernels[0])[:, 1, 1].transpose(0, 2, 1).reshape(-1, 3)
    assert_leading(basis, rows)


@pytest.mark.parametrize("center", [0.0, 100.0])
def test_mixtures_of_images_are_noise_with_their_second_moments(center):
    rng = np.random.default_rng(0)
    rows = rng.integers(256, size=(2500, 6)).astype(np.uint8)  # in several blocks
    rows[:, 3] //= 4
    weights = rng.normal(size=(4000, len(rows)))
    mixtures = subspaces.mixtures(rows, weights, center=center)
    np.testing.assert_allclose(mixtures, weights @ (np.float64(rows) - center), rtol=1e-4, atol=0.5)
    moments, want = (np.float64(m).T @ m / len(m) for m in (mixtures / np.sqrt(len(rows)), rows - center))
    np.testing.assert_allclose(moments, want, atol=0.06 * np.diag(want).max())


def test_an_orthonormal_basis_spans_the_rows_in_their_order():
    rows = np.random.default_rng(0).normal(size=(4, DIMENSION))
    basis = subspaces.orthonormal(np.stack([rows[0], 0 * rows[0], rows[1], rows[0] - 3 * rows[1], rows[2], rows[3]]))
    np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-6)
    for count in range(1, 5):
        np.testing.assert_allclose(rows[:count] @ basis[:count].T @ basis[:count], rows[:count], atol=1e-5)


def test_subspaces_of_images_are_what_their_names_say():
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(30, *SHAPE), dtype=np.uint8)
    labels = rng.permutation(np.arange(30) % 5)
    dataset = Dataset(Split(images, labels), Split(images, labels), tuple("abcde"), "")
    bases = subspaces.of_examples(dataset, jax.random.key(0), 40, subtract_mean=False)
    assert {name: len(basis) for name, basis in bases.items()} == {
        "random": 40,
        "random_images": 30,  # all that 30 images span
        "mean_image": 1,
        "constant_colours": 3,
        "class_means": 4,
        "training_images": 30,
    }
    off = lambda rows, name: rows - rows @ bases[name].T @ bases[name]
    rows = np.float64(images).reshape(30, -1)
    np.testing.assert_allclose(off(rows, "random_images"), 0, atol=1e-2)
    without_colours = images - images.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(off(rows, "constant_colours"), without_colours.reshape(30, -1), atol=1e-3)
    means = off(np.stack([rows[labels == k].mean(0) for k in range(5)]), "class_means")
    np.testing.assert_allclose(means, np.broadcast_to(means.mean(0), means.shape), atol=1e-3)
    centred = subspaces.of_examples(dataset, jax.random.key(0), 40, subtract_mean=True)
    assert len(centred["random_images"]) == 29
    mixed = centred["random_images"]  # of differences from the mean: inside their span
    differences = np.linalg.svd(rows - rows.mean(0))[2][:29]
    np.testing.assert_allclose(mixed @ differences.T @ differences, mixed, atol=1e-4)


def peak(call):
    """The bytes of NumPy's arrays that a call takes at most, beyond what was there before."""
    tracemalloc.start()
    call()
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return taken


def test_many_rows_take_the_memory_of_blocks_of_them():
    rows = np.random.default_rng(0).integers(256, size=(40_000, 60), dtype=np.uint8)
    assert peak(lambda: subspaces.leading(rows, 5)) < rows.size  # a quarter of them in float32


def test_updates_of_a_convolution_take_the_memory_of_a_gram_matrix(monkeypatch):
    kernels = list(np.random.default_rng(0).normal(size=(2, 3, 3, 3, 3, 16)).astype(np.float32))
    shape = (20, 20, 3)
    monkeypatch.setitem(models.CONVOLUTIONAL, "lenet", (Convolution(3, 1, 1),))
    taken = peak(lambda: subspaces.updates("lenet", shape, kernels[:1], kernels[1:], 10))
    assert taken < 4 * 4 * np.prod(shape) ** 2  # the filters at all positions would take 9 of them


def test_networks_are_measured_in_the_memory_of_one(shorten):
    shorten("lenet", 1)
    model = models.build("lenet", (16, 16, 3), 2, widths=(3, 8))
    test = Split(np.zeros((40, 16, 16, 3), np.uint8), np.zeros(40, int))
    basis = np.zeros((4, 768), np.float32)

    def memory(count):
        shapes = jax.eval_shape(jax.vmap(model.init), jax.random.split(jax.random.key(0), count))
        networks = Network(shapes, None)
        look = jax.jit(partial(observe.observe_singly, model, measures=removal.ACCURACY))
        attack = jax.jit(partial(removal.measure, model, epsilon=0.5))
        seen = jax.eval_shape(look, networks, test)
        programs = look.lower(networks, test), attack.lower(networks, seen, test, basis)
        return np.array([program.compile().memory_analysis().temp_size_in_bytes for program in programs])

    directions_bytes = 4 * 768 * 40  # of a network, which has a few copies of them and no activations
    assert (memory(9) - memory(1) < 8 * 8 * directions_bytes).all()


# Networks whose two logits are w.x and -w.x: the adversarial direction is w, up to its sign, at every image.
def linear(variables, x):
    margin = jnp.matmul(x.reshape(len(x), -1) - 0.5, variables["w"], precision="highest")
    return jnp.stack([margin, -margin], axis=1)


MODEL = Model(None, linear, None, None, None)
TEST = Split(np.random.default_rng(3).integers(256, size=(8, *SHAPE), dtype=np.uint8), np.arange(8) % 2)


@partial(jax.jit, static_argnames="epsilon")
def measured(weights, basis, epsilon=0.5):
    networks = Network({"w": weights}, None)
    seen = observe.observe(MODEL, networks, *TEST)
    return removal.measure(MODEL, networks, seen, TEST, basis, epsilon=epsilon)


def angles(weights):
    unit = np.float64(weights) / np.linalg.norm(weights, axis=1, keepdims=True)
    a, b = np.triu_indices(len(unit), 1)
    return np.rad2deg(np.arccos(np.minimum(np.abs((unit @ unit.T)[a, b]), 1)))


def test_alignment_inside_the_span_goes_back_to_the_random_law():
    span, count = orthonormal(4, 1), 60
    rng = np.random.default_rng(0)
    own = rng.normal(size=(count, DIMENSION))
    own -= own @ span.T @ span
    shared = 20 * rng.normal(size=(count, 1)) * span.sum(0) + 5 * rng.normal(size=(count, 4)) @ span
    whole = measured(own + shared, np.zeros_like(span))
    assert np.mean(whole.angle) < 60
    np.testing.assert_allclose(whole.share, 0, atol=1e-6)
    left = measured(own + shared, span)
    law = stats.random_angle(DIMENSION - 4)
    interval = stats.pair_mean_ci(left.angle, observe.pairs(1, count)[0], np.zeros(count))
    assert interval.low < law.mean() < interval.high
    assert interval.high - interval.low < 2
    np.testing.assert_allclose(left.angle, angles(own), atol=0.02)
    lengths = np.square(shared).sum(1) / np.square(own + shared).sum(1)
    np.testing.assert_allclose(left.share, lengths, rtol=1e-4)


def test_what_rounding_leaves_is_no_direction():
    span = orthonormal(3, 1)
    weights = np.random.default_rng(0).normal(size=(4, 3)) @ span  # all of it inside
    left = measured(weights, span)
    assert np.isnan(left.angle).all()
    np.testing.assert_allclose(left.share, 1, atol=1e-5)
    assert not left.off.any()  # an attack without a direction does nothing


def test_alignment_outside_the_span_stays():
    span, count = orthonormal(5, 1), 12
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(count, DIMENSION))
    weights -= weights @ span[:4].T @ span[:4]
    weights += 30 * span[4]
    whole, left = (measured(weights, basis) for basis in (np.zeros_like(span[:4]), span[:4]))
    assert np.mean(whole.angle) < 40
    np.testing.assert_allclose(left.angle, whole.angle, atol=1e-2)
    np.testing.assert_allclose(left.angle, angles(weights), atol=1e-2)


def test_attacks_of_either_component_agree_with_float64():
    span = orthonormal(3, 1)
    weights = np.random.default_rng(0).normal(size=(4, DIMENSION)) + 2 * span.sum(0)
    got = measured(weights, span, epsilon=1.5)
    x = TEST.inputs.reshape(8, -1) / 255
    sign = np.where(TEST.labels == 0, 1, -1)  # label 0 is the class of positive margins
    inside = weights @ span.T @ span
    for part, rates in ((weights - inside, got.off), (inside, got.inside)):
        unit = part / np.linalg.norm(part, axis=1, keepdims=True)
        for target in range(4):
            attacked = np.clip(x - 1.5 * sign[:, None] * unit[(target + 1) % 4], 0, 1)
            right, still = (((v - 0.5) @ weights[target] > 0) == (sign > 0) for v in (x, attacked))
            assert float(rates[target]) == pytest.approx((right & ~still).sum() / right.sum(), abs=1e-6)


def directions_of(weights):
    """Unit directions `[M, n, D]`, float32."""
    return np.float32(weights / np.linalg.norm(weights, axis=-1, keepdims=True))


def test_shares_at_every_rank_are_those_of_the_removal():
    unit = directions_of(np.random.default_rng(0).normal(size=(3, 7, DIMENSION)) + 2 * orthonormal(5, 1)[:1])
    unit[1, 2] = np.nan  # no direction there
    basis = orthonormal(5, 1).astype(np.float32)
    want = [np.mean(removal.left(unit, subspaces.padded(basis[:rank], 5)).share) for rank in range(1, 6)]
    np.testing.assert_allclose(removal.shares(unit, basis), want, rtol=1e-5)


def test_equal_shares_are_compared_at_the_nearest_rank():
    """Directions whose squared lengths along the first values of an image are 1/2, 1/4, 1/8, ...: shares in order."""
    rng, axes = np.random.default_rng(0), np.eye(DIMENSION, dtype=np.float32)
    unit = np.float32(np.sqrt(0.5 ** np.arange(1, DIMENSION + 1)) * rng.choice([-1, 1], (6, 5, DIMENSION)))
    bases = {
        "updates": axes[[0, 1]],  # a share of 3/4
        "gradients": axes[[1, 0, 2]],  # 1/4, 3/4
        "training_images": axes[[2, 3, 1, 0]],  # 1/8, 3/16, 7/16, 15/16
        "random_images": axes[[5]],
    }
    none = bases | {"updates": axes[[0]]}
    rows = comparisons.matched({0: unit, 1: unit, 2: np.full_like(unit, np.nan)}, {0: none, 1: bases, 2: bases}, 2)
    ranks = {"nothing": 0, "updates": 2, "gradients": 2, "training_images": 4, "random_images": 1}
    assert set(rows) == {(0, "nothing", 0), (2, "nothing", 0), *((1, name, rank) for name, rank in ranks.items())}
    shares = {name: np.mean(rows[1, name, rank].share) for name, rank in ranks.items()}
    want = {"nothing": 0, "updates": 3 / 4, "gradients": 3 / 4, "training_images": 15 / 16, "random_images": 1 / 64}
    assert shares == pytest.approx(want, abs=1e-6)
    for name, rank in ranks.items():
        left = unit.copy()
        left[..., np.argwhere(bases.get(name, axes[:0])[:rank])[:, 1]] = 0
        of_images = [angles(left[:, i]) for i in range(5)]
        np.testing.assert_allclose(rows[1, name, rank].angle, np.mean(of_images, 0), atol=0.05)


def test_updates_of_one_step_meet_the_directions_of_another():
    """Directions share one axis at first and another one later: each fit takes out its own, and not the other."""
    rng, axes = np.random.default_rng(0), np.eye(DIMENSION, dtype=np.float32)
    shared = lambda axis: directions_of(rng.normal(size=(8, 5, DIMENSION)) + 30 * axes[axis])
    units = {0: shared(20), 1: shared(0), 5: shared(1)}
    unchanged = {"training_images": axes[:2], "class_means": axes[2:6], "constant_colours": axes[6:7]}
    updates = {0: axes[:0], 1: axes[[0, 9, 1]], 5: axes[[1, 9, 0]]}
    rows = comparisons.lasting(units, {step: unchanged | {"updates": updates[step]} for step in units}, 2)
    references = {("nothing", 0), ("training_images", 2), ("class_means", 4), ("constant_colours", 1)}
    fits = {*((0, *reference) for reference in references), (1, "updates", 2), (5, "updates", 2)}
    assert set(rows) == {(fit, step, *what) for fit, *what in fits for step in units}
    angle = {key: row.angle.mean() for key, row in rows.items()}
    for fit, step in ((1, 1), (5, 5)):
        assert angle[fit, step, "updates", 2] > 80
        assert angle[fit, 6 - step, "updates", 2] < 40
    for step in (1, 5):
        assert angle[0, step, "training_images", 2] > 80
        assert angle[0, step, "nothing", 0] == pytest.approx(angle[0, step, "constant_colours", 1], abs=1)
        whole = [angles(units[step][:, i]) for i in range(5)]
        np.testing.assert_allclose(rows[0, step, "nothing", 0].angle, np.mean(whole, 0), atol=0.02)


SMALL = ["--config.num_networks=4", "--config.num_fit=3", "--config.num_examples=20", "--config.fit_examples=20"]
SMALL += ["--config.batch_size=20", "--config.data.name=digits", "--config.data.classes=()", "--config.steps=(0,1,3)"]
SMALL += ["--config.data.image_size=8", "--config.widths.mlp_deep=(32,16)", "--config.ranks=(1,4)"]
SMALL += ["--config.optimizer.learning_rate=1e-2"]


def run(workdir, *arguments):
    # A tuple given twice would be added up.
    fields = {flag.partition("=")[0]: flag for flag in (*SMALL, *arguments)}
    flags = [f"--config={ROOT / 'configs' / 'decompose.py'}", f"--workdir={workdir}", *fields.values()]
    return cli.run(decompose.EXPERIMENT, ["decompose.py", *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    assert run(workdir) == 0
    return workdir


def test_the_measured_networks_are_others_than_the_fitted(finished, tmp_path):
    """Whole directions are those of the last four of seven networks that train together."""
    flags = [f for f in SMALL if not any(name in f for name in ("num_networks", "num_fit", "fit_ex", "steps", "ranks"))]
    flags += ["--config.num_networks=7", "--config.num_steps=3", f"--workdir={tmp_path}"]
    assert cli.run(early.EXPERIMENT, ["early.py", f"--config={ROOT / 'configs' / 'digits.py'}", *flags]) == 0
    run_of_seven = experiment.read(tmp_path).arrays["trajectory"]
    want = trajectory.select(run_of_seven, np.arange(3, 7))["angle"].mean(0)
    table = experiment.read(finished).tables["decompose"]
    np.testing.assert_allclose(table["angle"][table["subspace"] == "nothing"], want[[0, 1, 3]], atol=1e-3)


def test_the_experiment_leaves_a_table_with_every_subspace(finished, capsys):
    results = experiment.read(finished)
    table, summary = results.tables["decompose"], results.summary
    last = table[table["step"] == 3]
    ranked = ("random", "random_images", "training_images", "gradients", "updates")
    whole = {("nothing", 0), ("mean_image", 1), ("constant_colours", 1), ("class_means", 9)}  # gray images, ten classes
    kinds = whole | {(name, rank) for name in ranked for rank in (1, 4)}
    assert set(zip(last["subspace"], last["rank"], strict=True)) == kinds
    for name in ("angle", "share", "off", "inside", "accuracy"):
        interval = table[[f"{name}_low", name, f"{name}_high"]].dropna()
        assert len(interval) > 0
        assert (interval.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert {row["mean"] for row in summary["enough"] if row["step"] == 0} == {0}  # nothing has to be taken out yet
    assert summary["input_shape"] == [8, 8, 1]
    capsys.readouterr()
    assert run(finished) == 0  # finished: told again
    said = capsys.readouterr().out
    assert "off the span of" in said
    assert all(findings.CAPTIONS[name] in said for name, _ in kinds)
    assert "other networks' updates are refitted at every step" in said
    assert summary["refitted_at_every_step"] == ["gradients", "updates"]


QUANTITIES = ["angle", "angle_low", "angle_high", "share", "share_low", "share_high"]


def in_main_table(results, rows):
    """The numbers that the main table has for the same step, subspace and rank."""
    keys = ["step", "subspace", "rank"]
    return rows[keys].merge(results.tables["decompose"], on=keys, how="left", validate="one_to_one")[QUANTITIES]


def test_updates_fitted_at_the_step_of_the_directions_are_those_of_the_main_table(finished):
    results = experiment.read(finished)
    table = results.tables["lasting"]
    assert list(table) == ["fit_step", "step", "subspace", "rank", *QUANTITIES]
    fits = table[table["subspace"] == "updates"]
    assert set(zip(fits["fit_step"], fits["step"], strict=True)) == {(s, t) for s in (1, 3) for t in (0, 1, 3)}
    same = table[(table["fit_step"] == table["step"]) & (table["subspace"] == "updates")]
    unchanged = table[table["fit_step"] == 0]
    assert (len(same), len(unchanged)) == (2, 4 * 3)
    assert (unchanged[unchanged["subspace"] == "nothing"][["share", "share_low", "share_high"]] == 0).all(axis=None)
    for rows in (same, unchanged):
        np.testing.assert_allclose(rows[QUANTITIES], in_main_table(results, rows), rtol=1e-3, atol=1e-4)


def test_what_equals_the_share_of_the_updates_is_compared_with_them(finished):
    results = experiment.read(finished)
    table = results.tables["matched"]
    assert list(table) == ["step", "subspace", "rank", *QUANTITIES]
    by_step = {step: list(rows["subspace"]) for step, rows in table.groupby("step")}
    assert by_step == {0: ["nothing"], **{step: ["nothing", *comparisons.MATCHED] for step in (1, 3)}}
    reference = table[table["subspace"].isin(("nothing", "updates"))]
    np.testing.assert_allclose(reference[QUANTITIES], in_main_table(results, reference), rtol=1e-3, atol=1e-4)
    # No rank of the main table removes a share that is nearer.
    main = results.tables["decompose"].set_index(["step", "subspace"])
    for _, row in table[table["subspace"].isin(comparisons.MATCHED)].iterrows():
        target = main.loc[row["step"], "updates"].set_index("rank")["share"][4]
        others = main.loc[(row["step"], row["subspace"]), "share"]
        assert abs(row["share"] - target) <= np.abs(others - target).min() + 1e-5


def test_the_figure_shows_angles_counts_and_attacks_over_steps(finished):
    figure = decompose.EXPERIMENT.figures(experiment.read(finished))["figure"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["optimizer steps"] * 4
    assert [len(axes.get_xticks()) for axes in figure.axes] == [3] * 4
    angles, _, counts, attacks = figure.axes
    assert "refitted at every step" in figure.get_suptitle()
    shown = [line.get_label() for line in angles.get_lines() if not line.get_label().startswith("_")]
    assert {"whole directions", "off the mean image", "off training images, 4 of them"} <= set(shown)
    assert counts.get_yticklabels()[-1].get_text() == "over 4"
    assert "L2 length 2" in attacks.get_title()


def test_the_maps_have_a_cell_for_each_fit_and_step(finished):
    results = experiment.read(finished)
    figure = decompose.EXPERIMENT.figures(results)["lasting"]
    angle, share = figure.axes
    labels = [text.get_text() for text in angle.get_yticklabels()]
    assert labels[0] == "nothing"
    assert labels[-2:] == ["updates from step 0 to 1, 4 of them", "updates from step 0 to 3, 4 of them"]
    assert len(angle.texts) == len(share.texts) == 6 * 3
    assert [(box.get_x(), box.get_y()) for box in angle.patches] == [(0.5, 3.5), (1.5, 4.5)]
    table = results.tables["lasting"]
    last = table[(table["fit_step"] == 3) & (table["step"] == 3)].iloc[-1]
    assert angle.texts[-1].get_text() == f"{last['angle']:.1f}\n±{last['angle_high'] - last['angle']:.1f}"
    assert share.texts[-1].get_text().startswith(f"{100 * last['share']:.1f}\n")


def measurement(angle):
    """Four networks whose six pairs all have that angle."""
    return removal.Measured(np.full(6, angle), *np.full((4, 4), 0.5))


def test_enough_is_the_rank_from_which_on_every_mean_angle_is_near_random():
    # Of random directions less up to 7 dimensions, the mean angle is 0.2 degrees smaller.
    near, far = RANDOM["mean_angle"] - findings.NEAR + 0.1, RANDOM["mean_angle"] - findings.NEAR - 0.4
    found = {(1, "nothing", 0): measurement(near)}
    angles = {
        "random": (far, near, far, near),
        "updates": (near, near, near, near),
        "gradients": (near, near, near, far),
    }
    for name, by_rank in angles.items():
        found |= {(1, name, rank): measurement(angle) for rank, angle in zip((1, 2, 5, 7), by_rank, strict=True)}
    found |= {(2, name, rank): measurement(np.nan) for (_, name, rank) in list(found)}  # no network has a direction
    summary = findings.summarize(findings.tabulate(found), RANDOM, 10)
    assert [(row["step"], row["subspace"], row["mean"]) for row in summary["enough"]] == [
        (1, "random", 7),
        (1, "updates", 0),
        (1, "gradients", None),
    ]


def test_a_rank_at_which_nothing_is_left_is_not_far_from_random():
    of_rest = lambda rank: stats.random_angle(DIMENSION - rank).mean()
    angle = pandas.Series([20.0, of_rest(5), of_rest(60), np.nan], index=[0, 5, 60, 90])
    assert findings.fewest(angle, DIMENSION) == 5
    assert of_rest(60) < of_rest(0) - findings.NEAR
    assert findings.fewest(angle - findings.NEAR - 0.1, DIMENSION) is None


def test_a_single_pair_has_counts_and_a_figure_without_intervals():
    pair = lambda angle: removal.Measured(np.array([angle]), *np.full((4, 2), 0.5))
    found = {(s, "nothing", 0): pair(20.0) for s in (0, 1)} | {(s, "updates", 1): pair(80.0 + 9 * s) for s in (0, 1)}
    table = findings.tabulate(found)
    summary = findings.summarize(table, RANDOM, 10)
    ends = [(row["mean"], row["low"], row["high"]) for row in summary["enough"]]
    assert ends == [(None, None, None), (1, 1, 1)]
    config = defaults(decompose.FIELDS).to_dict()
    lasting = table[["step", "subspace", "rank", *QUANTITIES]].assign(
        fit_step=np.where(table["rank"] > 0, table["step"], 0)
    )
    frames = {"decompose": table, "matched": table, "lasting": lasting}
    assert set(figures.draw(experiment.Results(config, summary, frames, {}))) == {"figure", "matched", "lasting"}


def test_lost_networks_are_counted_and_in_no_mean():
    accuracy = np.array([0.5, np.nan, 0.7, 0.6])
    table = findings.tabulate({(0, "nothing", 0): measurement(80.0)._replace(accuracy=accuracy)})
    assert table["lost"].item() == 1
    assert table["accuracy"].item() == pytest.approx(0.6)
    share = np.array([0.1, 9.0, 0.2, 0.3])  # of the lost one, at the images at which it is not lost
    table = findings.tabulate({(0, "updates", 1): measurement(80.0)._replace(accuracy=accuracy, share=share)})
    assert table["share"].item() == pytest.approx(0.2)


def test_convolutional_networks(shorten, tmp_path):
    shorten("lenet", 1)
    sizes = ["--config.widths.lenet=(2,4)", "--config.data.image_size=8", "--config.num_networks=3"]
    assert run(tmp_path, "--config.models=('lenet',)", *sizes, "--config.steps=(0,1)", "--config.ranks=(1,)") == 0
    assert "updates" in set(experiment.read(tmp_path).tables["decompose"]["subspace"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.models=('mlp_deep', 'mlp_shallow')",
            "models: got ('mlp_deep', 'mlp_shallow'); this experiment takes",
        ),
        ("--config.ranks=(4,1)", "ranks: got (4, 1); it takes a tuple of whole numbers"),
        ("--config.ranks=(64,)", "ranks: got 64; the directions have 64 dimensions"),
        ("--config.steps=(0,)", "steps: got (0,); it takes"),
        (
            "--config.data.pixel_range=(-1.0, 1.0)",
            "data.pixel_range: got (-1.0, 1.0); subspaces of images take one from",
        ),
        ("--config.data.image_size=224", "data.image_size: got 224; subspaces take memory"),
        ("--config.batch_statistics", "batch_statistics: got True; this experiment measures by running statistics"),
        ("--config.fit_examples=5000", "fit_examples: got 5000; there are "),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flag, message):
    assert run(tmp_path, flag) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
