"""The networks of texts: float64 NumPy, PyTorch's state dicts, padding, a population, derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax.traverse_util import flatten_dict

from jtrans import directions, jacobian, models
from jtrans.models import text

SIZE, CLASSES = 6, 3
WIDTHS = {
    "text_mean": (5, 4),
    "text_cnn": (4, 3, 5, 6),
    "text_lstm": (5, 16),
    "text_transformer": (8, 7, 9),
}
LENGTHS = (7, 1, 4, 2, 5)
MASK = np.arange(7) < np.array(LENGTHS)[:, None]
LABELS = np.arange(5) % CLASSES

every_network = pytest.mark.parametrize("name", models.TEXT)


def build(name):
    return models.build(name, (7, SIZE), CLASSES, widths=WIDTHS[name])


def scattered(name, seed=0):
    """A network's variables, with scales and biases away from ones and zeros, and from one another."""
    rng = np.random.default_rng(seed)
    scatter = lambda array: np.asarray(array) + np.float32(rng.normal(scale=0.2, size=array.shape))
    return jax.tree.map(scatter, jax.jit(build(name).init)(jax.random.key(seed)))


def function(name):
    return partial(build(name).apply, scattered(name))


def texts(seed=0):
    """Embedded texts `[5, 7, E]`, with noise in place of padding."""
    return np.random.default_rng(seed).normal(size=(5, 7, SIZE)).astype(np.float32)


def padded(x, length=7):
    """With zeros in place of padding, up to this length."""
    return np.pad(x * MASK[..., None], ((0, 0), (0, length - 7), (0, 0)))


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
    f, x, along = function(name), padded(texts()), texts(1)
    params = jax.tree.map(np.float64, scattered(name)["params"])
    by_hand = lambda x: each_text(lambda of_text: BY_HAND[name](params, of_text), x)
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
    f = lambda x: models.TEXT[name](WIDTHS[name], CLASSES).apply(variables, x, MASK)
    look = jax.jit(lambda x: (f(x), directions.loss_gradient(f, x, jnp.asarray(LABELS))))
    logits, gradient = map(np.asarray, look(x))
    assert (gradient[~MASK] == 0).all()
    assert np.abs(gradient).sum((1, 2)).min() > 0
    for noise in (1e3, np.inf, np.nan):
        with_noise = look(np.where(MASK[..., None], x, noise))
        np.testing.assert_array_equal(logits, with_noise[0])
        np.testing.assert_array_equal(gradient, with_noise[1])
    np.testing.assert_array_equal(logits, jax.jit(function(name))(padded(x)))  # there padding is known by its zeros


@every_network
def test_more_padding_changes_nothing(name):
    f = function(name)

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
    f = function(name)
    logits, gradient = jax.jit(lambda x: (f(x), jax.grad(lambda x: f(x).sum())(x)))(jnp.zeros((2, 4, SIZE)))
    assert np.isfinite(logits).all()
    assert not gradient.any()


@every_network
def test_networks_at_once_equal_one_after_another(name):
    networks = [scattered(name, seed) for seed in range(3)]
    stacked, model = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks), build(name)

    def look(variables, x):
        f = partial(model.apply, variables)
        return f(x), directions.loss_gradient(f, x, jnp.asarray(LABELS))

    x, alone = padded(texts()), jax.jit(look)
    for shared in (True, False):
        at_once = jax.jit(jax.vmap(look, (0, None if shared else 0)))(stacked, x if shared else np.stack([x] * 3))
        for m, variables in enumerate(networks):
            for ours, want in zip(at_once, alone(variables, x), strict=True):
                np.testing.assert_allclose(ours[m], want, atol=2e-6)


@pytest.mark.slow
@every_network
def test_forward_reverse_and_second_derivatives_agree(name):
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), scattered(name))
        f = partial(build(name).apply, variables)
        x, along = (jnp.asarray(padded(texts(seed)), jnp.float64) for seed in (0, 1))
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
def test_the_last_layer_takes_the_features_and_can_be_replaced(name):
    model, variables, x, rng = build(name), scattered(name), padded(texts()), np.random.default_rng(2)
    features = jax.jit(model.features)(variables, x)
    kernel, bias = rng.normal(size=(CLASSES, features.shape[1])), rng.normal(size=CLASSES)
    replaced = models.with_last_layer(variables, jnp.float32(kernel), jnp.float32(bias))
    want = np.float64(features) @ kernel.T + bias
    np.testing.assert_allclose(jax.jit(model.apply)(replaced, x), want, atol=2e-6)


@every_network
def test_training_mode_is_evaluation_mode(name):
    model, variables, x = build(name), scattered(name), padded(texts())
    logits, trained = jax.jit(model.train)(variables, x, jax.random.key(0))
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, x), atol=1e-6)
    for same in (trained, jax.jit(model.calibrate)(variables, x)):
        assert jax.tree.all(jax.tree.map(np.array_equal, variables, same))


def joined(prefix, **modules):
    """A state dict of modules, each given by its arrays."""
    return {f"{prefix}{name}.{leaf}": array for name, leaves in modules.items() for leaf, array in leaves.items()}


def of_linear(layer):
    return {"weight": layer["kernel"], "bias": layer["bias"]}


def of_norm(layer):
    return {"weight": layer["scale"], "bias": layer["bias"]}


def of_mlp(params):
    return joined("mlp.", **{str(2 * i): of_linear(params[f"Dense_{i}"]) for i in range(len(params))})


def cnn_state(params):
    layers = [params[f"Conv1d_{i}"] for i in range(3)]
    leaves = [{"weight": layer["kernel"].transpose(2, 1, 0), "bias": layer["bias"]} for layer in layers]
    return joined("convolutions.", **{str(i): layer for i, layer in enumerate(leaves)})


def lstm_state(params):
    layer = params["LSTM_0"]
    weights = {"weight_ih_l0": layer["word_kernel"], "weight_hh_l0": layer["kernel"]}
    return joined("", lstm=weights | {"bias_ih_l0": layer["bias"][0], "bias_hh_l0": layer["bias"][1]})


def transformer_state(params):
    state = joined("", projection=of_linear(params["projection"]))
    for i in range(2):
        layer, prefix = params[f"TransformerLayer_{i}"], f"layers.{i}."
        attention = layer["Attention_0"]
        joint = {"in_proj_weight": attention["in_proj"]["kernel"], "in_proj_bias": attention["in_proj"]["bias"]}
        state |= joined(prefix, self_attn=joint, **{"self_attn.out_proj": of_linear(attention["out_proj"])})
        state |= joined(prefix, **{of: of_linear(layer[of]) for of in ("linear1", "linear2")})
        state |= joined(prefix, norm1=of_norm(layer["LayerNorm_0"]), norm2=of_norm(layer["LayerNorm_1"]))
    return state | joined("", norm=of_norm(params["LayerNorm_0"]))


def state_dict(name):
    """`scattered` as PyTorch hands it over; `tests/test_pytorch.py` takes PyTorch's own."""
    params = scattered(name)["params"]
    before = {"text_cnn": cnn_state, "text_lstm": lstm_state, "text_transformer": transformer_state}
    state = before.get(name, lambda params: {})(params) | of_mlp(params["MLP_0"])
    return {path: np.asarray(array) for path, array in state.items()}


@every_network
def test_a_state_dict_is_taken_in_order_whatever_its_names(name):
    renamed = {f"module.a_{path}": array for path, array in state_dict(name).items()}
    for state in (state_dict(name), renamed):
        got, want = flatten_dict(models.from_pytorch(name, state)), flatten_dict(scattered(name))
        assert got.keys() == want.keys()
        for path, array in got.items():
            np.testing.assert_array_equal(array, want[path])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("text_mean", {"embedding.weight": np.ones((9, SIZE))}, "state_dict: got 'embedding', a table of embeddings"),
        ("text_mean", {"mlp.4.weight": np.ones((3, 5))}, "state_dict: 'mlp.4' holds"),
        ("text_cnn", {"convolutions.1.weight": np.ones((3, SIZE, 3))}, "state_dict: 'convolutions.1' holds"),
        ("text_cnn", {"mlp.0.weight": np.ones((6, 13))}, "state_dict: 'mlp.0' holds"),
        ("text_lstm", {"lstm.weight_ih_l1": np.ones((20, 5))}, "state_dict: 'lstm' holds"),
        ("text_lstm", {"lstm.weight_hh_l0": np.ones((15, 5))}, "state_dict: 'lstm' holds"),
        ("text_transformer", {"norm.weight": None, "norm.bias": None}, "got 14 layers with weights; text_transformer"),
        ("text_transformer", {"projection.weight": np.ones((6, 3))}, "takes as many as .*, the first a multiple of 4"),
        ("text_transformer", {"layers.0.self_attn.in_proj_weight": np.ones((8, 8))}, "'layers.0.self_attn' holds"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(name, changes, message):
    state = {path: array for path, array in (state_dict(name) | changes).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        models.from_pytorch(name, state)
    with pytest.raises(ValueError, match="holds no weights"):
        models.from_pytorch(name, {})
