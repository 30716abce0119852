"""The networks of texts: float64 NumPy, PyTorch with the same weights, padding, a population, derivatives."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from conftest import ROOT
from flax.traverse_util import flatten_dict, unflatten_dict

from jtrans import directions, jacobian, models
from jtrans.models import text

SIZE, CLASSES = 6, 3
NETWORKS = {
    "text_mean": (text.TextMean, (5, 4)),
    "text_cnn": (text.TextCNN, (4, 3, 5, 6)),
    "text_lstm": (text.TextLSTM, (5, 4)),
    "text_transformer": (text.TextTransformer, (8, 7, 9)),
}
LENGTHS = (7, 1, 4, 2, 5)  # as in benchmarks/pytorch_text_peer.py
MASK = np.arange(7) < np.array(LENGTHS)[:, None]
LABELS = np.arange(5) % CLASSES

every_network = pytest.mark.parametrize("name", NETWORKS)


def module(name, **options):
    of, widths = NETWORKS[name]
    return of(widths, CLASSES, **options)


def start(name, key, initializer="pytorch"):
    """A network's variables, drawn as those of image networks are."""
    shapes = flatten_dict(jax.eval_shape(module(name).init, key, jnp.zeros((1, 7, SIZE)), MASK[:1]))
    return models._start({path: leaf.shape for path, leaf in shapes.items()}, initializer, key)


def scattered(name, seed=0):
    """`start`, with scales and biases away from ones and zeros."""
    key = jax.random.key(seed)
    return jax.tree.map(lambda a: a + 0.2 * jax.random.normal(key, a.shape), start(name, key))


def texts(seed=0):
    """Embedded texts `[5, 7, E]`, with noise in place of padding."""
    return np.random.default_rng(seed).normal(size=(5, 7, SIZE)).astype(np.float32)


def padded(x, length=7):
    """With zeros in place of padding, up to this length."""
    return np.pad(x * MASK[..., None], ((0, 0), (0, length - 7), (0, 0)))


def of_array(name, variables):
    """The network as a function of `x` alone, whose padding is zeros."""
    return lambda x: module(name).apply(variables, x, (x != 0).any(-1))


def each_text(network, x, lengths=LENGTHS):
    return np.stack([network(of_text[:length]) for of_text, length in zip(x, lengths, strict=True)])


def numpy_mlp(params, x):
    for i in range(len(params)):
        layer = params[f"Dense_{i}"]
        x = x @ layer["kernel"].T + layer["bias"]
        x = np.maximum(x, 0) if i < len(params) - 1 else x
    return x


def numpy_mean(params, x):
    return numpy_mlp(params["MLP_0"], x.mean(0))


def numpy_cnn(params, x):
    features = []
    for i, size in enumerate((3, 4, 5)):
        layer, wide = params[f"Conv1d_{i}"], np.pad(x, ((size - 1, size - 1), (0, 0)))
        windows = [wide[position : position + size] for position in range(len(x) + size - 1)]
        y = [np.tensordot(window, layer["kernel"], 2) + layer["bias"] for window in windows]
        features.append(np.maximum(y, 0).max(0))
    return numpy_mlp(params["MLP_0"], np.concatenate(features))


def numpy_lstm(params, x):
    layer = params["LSTM_0"]
    width = layer["kernel"].shape[1]
    hidden, cell = np.zeros(width), np.zeros(width)
    for word in x:
        gates = layer["word_kernel"] @ word + layer["bias"][0] + layer["kernel"] @ hidden + layer["bias"][1]
        i, f, g, o = gates.reshape(4, width)
        cell = scipy.special.expit(f) * cell + scipy.special.expit(i) * np.tanh(g)
        hidden = scipy.special.expit(o) * np.tanh(cell)
    return numpy_mlp(params["MLP_0"], hidden)


def numpy_norm(layer, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return layer["scale"] * (x - mean) / np.sqrt(variance + 1e-5) + layer["bias"]


def numpy_transformer(params, x):
    linear = lambda layer, x: x @ layer["kernel"].T + layer["bias"]
    x = linear(params["projection"], x)
    width = x.shape[1]
    for position, column in np.ndindex(x.shape):
        angle = position / 10_000 ** (column // 2 * 2 / width)
        x[position, column] += np.cos(angle) if column % 2 else np.sin(angle)
    for i in range(2):
        layer = params[f"TransformerLayer_{i}"]
        joint = linear(layer["Attention_0"]["in_proj"], numpy_norm(layer["LayerNorm_0"], x))
        heads, depth = [], width // 4
        for head in range(4):
            query, key, value = (part[:, head * depth : (head + 1) * depth] for part in np.split(joint, 3, axis=1))
            heads.append(scipy.special.softmax(query @ key.T / np.sqrt(depth), axis=1) @ value)
        x = x + linear(layer["Attention_0"]["out_proj"], np.concatenate(heads, axis=1))
        hidden = np.maximum(linear(layer["linear1"], numpy_norm(layer["LayerNorm_1"], x)), 0)
        x = x + linear(layer["linear2"], hidden)
    return numpy_mlp(params["MLP_0"], numpy_norm(params["LayerNorm_0"], x).mean(0))


BY_HAND = {
    "text_mean": numpy_mean,
    "text_cnn": numpy_cnn,
    "text_lstm": numpy_lstm,
    "text_transformer": numpy_transformer,
}


@every_network
def test_logits_and_slopes_agree_with_float64_numpy_of_each_text_without_padding(name):
    variables, x, along = scattered(name), texts(), texts(1)
    params = jax.tree.map(np.float64, variables["params"])
    by_hand = lambda x: each_text(lambda of_text: BY_HAND[name](params, of_text), x)
    f = lambda x: module(name).apply(variables, x, MASK)
    logits, slope = jax.jit(lambda x, along: jax.jvp(f, (x,), (along,)))(x, along)
    np.testing.assert_allclose(logits, by_hand(np.float64(x)), atol=2e-6)
    step = 1e-6 * np.float64(along)
    np.testing.assert_allclose(slope, (by_hand(x + step) - by_hand(x - step)) / 2e-6, atol=1e-5)


def test_the_mean_of_words_and_its_direction_in_closed_form():
    kernel, bias = (np.random.default_rng(2).normal(size=shape) for shape in ((CLASSES, SIZE), (CLASSES,)))
    variables = {"params": {"MLP_0": {"Dense_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}}
    f, x = lambda x: text.TextMean((), CLASSES).apply(variables, x, MASK), texts()
    logits = each_text(lambda words: kernel @ words.mean(0, dtype=np.float64) + bias, x)
    np.testing.assert_allclose(jax.jit(f)(x), logits, atol=1e-6)
    # The same at every word: the weights of the other classes less the label's, over the number of words.
    others = scipy.special.softmax(np.where(np.eye(CLASSES, dtype=bool)[LABELS], -np.inf, logits), axis=1)
    gradient = (others - np.eye(CLASSES)[LABELS]) @ kernel / np.array(LENGTHS)[:, None]
    want = gradient[:, None] * MASK[..., None]
    got = jax.jit(lambda x: directions.loss_gradient(f, x, jnp.asarray(LABELS)))(x)
    np.testing.assert_allclose(got, want, atol=1e-6)


@every_network
def test_padding_carries_no_direction(name):
    variables, x = scattered(name), texts()
    f = lambda x: module(name).apply(variables, x, MASK)
    look = jax.jit(lambda x: (f(x), directions.loss_gradient(f, x, jnp.asarray(LABELS))))
    logits, gradient = map(np.asarray, look(x))
    assert (gradient[~MASK] == 0).all()
    assert np.abs(gradient).sum((1, 2)).min() > 0
    for noise in (1e3, np.inf, np.nan):
        with_noise = look(np.where(MASK[..., None], x, noise))
        np.testing.assert_array_equal(logits, with_noise[0])
        np.testing.assert_array_equal(gradient, with_noise[1])


@every_network
def test_more_padding_changes_nothing(name):
    f = of_array(name, scattered(name))

    def look(x):
        triple = jacobian.top_singular_triple(f, x)
        return f(x), directions.loss_gradient(f, x, jnp.asarray(LABELS)), jacobian.jacobian(f, x), triple.v, triple.s

    logits, gradient, matrices, vector, value = jax.jit(look)(padded(texts()))
    longer = jax.jit(look)(padded(texts(), 12))
    np.testing.assert_allclose(longer[0], logits, atol=1e-6)
    np.testing.assert_allclose(longer[4], value, rtol=1e-5)
    vectors = np.concatenate([np.asarray(gradient)[:, None], matrices.reshape(5, CLASSES, 7, SIZE), vector[:, None]], 1)
    of_longer = [longer[1][:, None], longer[2].reshape(5, CLASSES, 12, SIZE), longer[3][:, None]]
    of_longer = np.concatenate(of_longer, axis=1)
    assert (vectors.transpose(0, 2, 1, 3)[~MASK] == 0).all()
    assert (of_longer[:, :, 7:] == 0).all()
    of_longer[:, -1] *= np.sign((of_longer[:, -1, :7] * vectors[:, -1]).sum((1, 2), keepdims=True))
    np.testing.assert_allclose(of_longer[:, :, :7], vectors, atol=2e-5)


@every_network
def test_a_text_without_words_gives_finite_logits_and_no_direction(name):
    f = lambda x: module(name).apply(scattered(name), x, jnp.zeros((2, 4), bool))
    logits, gradient = jax.jit(lambda x: (f(x), jax.grad(lambda x: f(x).sum())(x)))(jnp.ones((2, 4, SIZE)))
    assert np.isfinite(logits).all()
    assert not gradient.any()


@every_network
def test_networks_at_once_equal_one_after_another(name):
    networks = [scattered(name, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)

    def look(variables, x):
        f = lambda x: module(name).apply(variables, x, MASK)
        return f(x), directions.loss_gradient(f, x, jnp.asarray(LABELS))

    x, alone = texts(), jax.jit(look)
    for shared in (True, False):
        at_once = jax.jit(jax.vmap(look, (0, None if shared else 0)))(stacked, x if shared else np.stack([x] * 3))
        for m, variables in enumerate(networks):
            for ours, want in zip(at_once, alone(variables, x), strict=True):
                np.testing.assert_allclose(ours[m], want, atol=2e-6)


@every_network
def test_forward_reverse_and_second_derivatives_agree(name):
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), scattered(name))
        f = lambda x: module(name).apply(variables, x, MASK)
        x, along = (jnp.asarray(texts(seed), jnp.float64) for seed in (0, 1))
        outputs = jnp.asarray(np.random.default_rng(3).normal(size=(5, CLASSES)))

        def look(x):
            pulled = jax.vjp(f, x)[1](outputs)[0]
            gradient = jax.grad(lambda x: (jnp.tanh(f(x)) * outputs).sum())
            return jax.jvp(f, (x,), (along,))[1], pulled, gradient(x), jax.jvp(gradient, (x,), (along,))[1]

        look = jax.jit(look)
        pushed, pulled, gradient, second = look(x)
        assert gradient.dtype == jnp.float64
        np.testing.assert_allclose((pushed * outputs).sum(), (pulled * along).sum(), rtol=1e-10)
        differences = (look(x + 1e-6 * along)[2] - look(x - 1e-6 * along)[2]) / 2e-6
        np.testing.assert_allclose(second, differences, atol=1e-7)


@every_network
def test_features_are_what_the_last_layer_takes_in(name):
    variables, x = scattered(name), texts()
    features = jax.jit(lambda x: module(name, headless=True).apply(variables, x, MASK))(x)
    head = models.last_layer(variables)
    assert features.shape == (5, head["kernel"].shape[1])
    logits = np.float64(features) @ np.float64(head["kernel"]).T + np.float64(head["bias"])
    np.testing.assert_allclose(jax.jit(lambda x: module(name).apply(variables, x, MASK))(x), logits, atol=1e-6)
    replaced = models.with_last_layer(variables, jnp.zeros((2, features.shape[1])), jnp.ones(2))
    assert (models.last_layer(replaced)["bias"] == 1).all()


def test_attention_refuses_a_width_that_its_heads_do_not_share():
    with pytest.raises(ValueError, match="widths: got 6 first; attention of 4 heads takes a multiple of 4"):
        text.TextTransformer((6, 5), 2).init(jax.random.key(0), jnp.zeros((1, 2, 3)), jnp.ones((1, 2), bool))


def bound(path, shapes):
    """Within which PyTorch draws an array of a layer, 0 for none: 1 / sqrt(fan-in), in an LSTM of the state."""
    kernel = shapes.get((*path[:-1], "kernel"))
    if kernel is None:
        return 0
    return 1 / np.sqrt(kernel[1] if len(kernel) == 2 else np.prod(kernel[:-1]))


@every_network
def test_arrays_start_as_those_of_image_networks(name):
    of, _ = NETWORKS[name]
    wide = of((64, 96, 80, 72), CLASSES)
    shapes = flatten_dict(jax.eval_shape(wide.init, jax.random.key(0), jnp.zeros((1, 7, 16)), MASK[:1]))
    shapes = {path: leaf.shape for path, leaf in shapes.items()}
    for path, array in flatten_dict(models._start(shapes, "pytorch", jax.random.key(1))).items():
        if largest := bound(path, shapes):
            assert np.abs(array).max() <= largest * (1 + 1e-6)
            assert array.size < 64 or np.abs(array).max() > 0.9 * largest
        else:
            assert path[-2].startswith("LayerNorm_")
            assert (array == (path[-1] == "scale")).all()
        if path[-1] == "bias":
            assert not flatten_dict(models._start(shapes, "flax", jax.random.key(1)))[path].any()
    lstm = {path[-1]: bound(path, shapes) for path in shapes if path[-2] == "LSTM_0"}
    assert all(of_array == 1 / np.sqrt(64) for of_array in lstm.values())


# In PyTorch's names, those of `params`.
RENAMED = {
    "convolutions.": "Conv1d_",
    "lstm.weight_hh_l0": "LSTM_0.kernel",
    "lstm.weight_ih_l0": "LSTM_0.word_kernel",
    "layers.": "TransformerLayer_",
    "self_attn.in_proj_": "Attention_0.in_proj.",
    "self_attn.out_proj": "Attention_0.out_proj",
    "norm1.weight": "LayerNorm_0.scale",
    "norm2.weight": "LayerNorm_1.scale",
    "norm.weight": "LayerNorm_0.scale",
    "norm1.bias": "LayerNorm_0.bias",
    "norm2.bias": "LayerNorm_1.bias",
    "norm.bias": "LayerNorm_0.bias",
    "mlp.0": "MLP_0.Dense_0",
    "mlp.2": "MLP_0.Dense_1",
    "mlp.4": "MLP_0.Dense_2",
    "weight": "kernel",
}


def from_pytorch(state):
    """A state dict of `benchmarks/pytorch_text_peer.py` as variables."""
    arrays = dict(state)
    if "lstm.bias_ih_l0" in arrays:
        arrays["LSTM_0.bias"] = np.stack([arrays.pop(f"lstm.bias_{part}_l0") for part in ("ih", "hh")])
    params = {}
    for path, array in arrays.items():
        for theirs, ours in RENAMED.items():
            path = path.replace(theirs, ours)
        params["params", *path.split(".")] = np.moveaxis(array, (1, 0), (-2, -1)) if array.ndim == 3 else array
    return params


@every_network
def test_pytorchs_logits_gradients_train_step_and_start(python, tmp_path, name):
    out, (_, widths) = tmp_path / "network.npz", NETWORKS[name]
    script = ROOT / "benchmarks" / "pytorch_text_peer.py"
    subprocess.run([python, script, out, name, *map(str, (SIZE, CLASSES, *widths))], check=True)
    with np.load(out) as arrays:
        theirs = dict(arrays)
    assert theirs["lengths"].tolist() == list(LENGTHS)
    state = lambda when: from_pytorch({k.removeprefix(when): v for k, v in theirs.items() if k.startswith(when)})
    before, labels = unflatten_dict(state("before/")), jnp.asarray(theirs["labels"])
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(before) == shapes(start(name, jax.random.key(0)))
    losses = optax.softmax_cross_entropy_with_integer_labels

    def look(variables, x):
        f = lambda x: module(name).apply(variables, x, MASK)
        return f(x), jax.grad(lambda x: losses(f(x), labels).sum())(x)

    for got, what in zip(jax.jit(look)(before, theirs["x"]), ("logits", "gradient"), strict=True):
        np.testing.assert_allclose(got, theirs[f"{what}/float32"], rtol=1e-4, atol=1e-5)
    with jax.enable_x64(True):
        before = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), before)
        x = jnp.asarray(theirs["x"], jnp.float64)
        for got, what in zip(jax.jit(look)(before, x), ("logits", "gradient"), strict=True):
            np.testing.assert_allclose(got, theirs[f"{what}/float64"], atol=1e-9)
        loss = lambda variables: losses(module(name).apply(variables, x, MASK, mutable=False), labels).mean()
        after = jax.tree.map(lambda a, slope: a - 0.1 * slope, before, jax.jit(jax.grad(loss))(before))
        for path, want in state("after/").items():
            np.testing.assert_allclose(flatten_dict(after)[path], want, atol=1e-9)

    drawn, shapes = state("start/"), {path: array.shape for path, array in state("start/").items()}
    for path, array in drawn.items():
        largest = bound(path, shapes)
        if path[-2] == "in_proj" and path[-1] == "kernel":
            largest = np.sqrt(6 / sum(array.shape))  # by Xavier's rule
        elif path[-2] in ("in_proj", "out_proj") and path[-1] == "bias":
            largest = 0
        if path[-1] == "scale":
            assert (array == 1).all()
        else:
            assert np.abs(array).max() <= largest * (1 + 1e-6)
            assert array.size < 20 or np.abs(array).max() >= 0.8 * largest
