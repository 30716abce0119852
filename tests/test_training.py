import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import models, training


def pytorch_updates(name, rate, gradients):
    """The updates that PyTorch's documentation gives, in float64, for a sequence of gradients."""
    momentum, square, updates = 0.0, 0.0, []
    for t, g in enumerate(gradients, 1):
        if name == "adam":
            momentum, square = 0.9 * momentum + 0.1 * g, 0.999 * square + 0.001 * g**2
            step = momentum / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        elif name == "rmsprop":
            square = 0.99 * square + 0.01 * g**2
            step = g / (np.sqrt(square) + 1e-8)
        elif name == "momentum":
            step = momentum = 0.9 * momentum + g
        else:
            step = g
        updates.append(-rate * step)
    return updates


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd", "momentum"])
def test_optimizers_follow_pytorchs_formulas(name):
    gradients = np.random.default_rng(0).normal(size=(5, 7)) * np.logspace(-6, 2, 7)
    optimizer = training.OPTIMIZERS[name](0.03)
    state = optimizer.init(jnp.zeros(7))
    for gradient, want in zip(gradients, pytorch_updates(name, 0.03, gradients), strict=True):
        update, state = optimizer.update(jnp.array(gradient, jnp.float32), state)
        np.testing.assert_allclose(update, want, rtol=1e-4)


def test_a_train_step_of_a_linear_network_in_closed_form():
    """One SGD step on softmax regression: W -= lr x^T (p - onehot(y)) / B."""
    model = models.build("mlp_shallow", (2, 2, 1), 3, widths=(4,))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(8, 2, 2, 1), dtype=np.uint8), rng.integers(3, size=8)
    optimizer = training.OPTIMIZERS["sgd"](0.5)
    before = training.initialize(model, optimizer, jax.random.key(0))
    after = training.train_step(model, optimizer, before, jnp.array(images), jnp.array(labels), jax.random.key(1))

    hidden, output = ({k: np.float64(v) for k, v in layer.items()} for layer in before.variables["params"].values())
    x = images.reshape(8, 4) / 255  # one channel: channels first or last are the same
    h = np.maximum(x @ hidden["kernel"].T + hidden["bias"], 0)
    logits = h @ output["kernel"].T + output["bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    g = (p - np.eye(3)[labels]) / 8
    gh = (g @ output["kernel"]) * (h > 0)
    want = [
        {"kernel": hidden["kernel"] - 0.5 * gh.T @ x, "bias": hidden["bias"] - 0.5 * gh.sum(0)},
        {"kernel": output["kernel"] - 0.5 * g.T @ h, "bias": output["bias"] - 0.5 * g.sum(0)},
    ]
    for layer, arrays in zip(after.variables["params"].values(), want, strict=True):
        for name, array in arrays.items():
            np.testing.assert_allclose(layer[name], array, atol=1e-6)


def test_each_epoch_has_its_own_order_of_all_images():
    key = jax.random.key(0)
    orders = [training.epoch_order(key, epoch, 50) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_running_statistics_move_as_pytorchs_do(shorten):
    """mean <- 0.9 mean + 0.1 batch mean; the variance alike, by its unbiased estimate."""
    shorten("conv_b", 1)
    model = models.build("conv_b", (8, 8, 2), 3, widths=(4,))
    optimizer = training.OPTIMIZERS["sgd"](0.1)
    before = training.initialize(model, optimizer, jax.random.key(0))
    images = np.random.default_rng(0).integers(256, size=(5, 8, 8, 2), dtype=np.uint8)
    after = training.train_step(model, optimizer, before, jnp.array(images), jnp.zeros(5, int), jax.random.key(1))
    kernel, bias = (np.float64(before.variables["params"]["Conv_0"][name]) for name in ("kernel", "bias"))
    x = np.pad(images / 255, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = bias + sum(np.tensordot(x[:, i : i + 8, j : j + 8], kernel[i, j], 1) for i in range(3) for j in range(3))
    stats = after.variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * y.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * y.var((0, 1, 2), ddof=1), atol=1e-6)


def test_dropout_follows_its_key_and_is_off_outside_training(shorten):
    shorten("vgg11", 1)
    model = models.build("vgg11", (16, 16, 1), 2, widths=(2, 16, 16))
    variables = jax.jit(model.init)(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (3, 16, 16, 1))
    first, again, other = (model.train(variables, x, jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x))


def test_cosine_sgd_follows_pytorchs_formulas():
    rng = np.random.default_rng(0)
    weights, momentum = rng.normal(size=5), 0.0
    optimizer = training.cosine_sgd(0.1, 4, weight_decay=0.01)
    params = jnp.array(weights, jnp.float32)
    state = optimizer.init(params)
    for step in range(4):
        gradient = rng.normal(size=5)
        update, state = optimizer.update(jnp.array(gradient, jnp.float32), state, params)
        params = params + update
        momentum = 0.9 * momentum + gradient + 0.01 * weights
        weights = weights - 0.1 * (1 + np.cos(np.pi * step / 4)) / 2 * momentum
        np.testing.assert_allclose(params, weights, rtol=1e-5)


def test_crops_are_windows_of_the_padded_image_mirrored_half_of_the_time():
    images = np.random.default_rng(0).integers(1, 256, size=(300, 6, 5, 2), dtype=np.uint8)
    got = np.asarray(training.crop_and_flip(jax.random.key(0), jnp.array(images), padding=2))
    assert got.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = []
    for image, border in zip(got, padded, strict=True):
        windows = {
            (i, j, m): border[i : i + 6, j : j + 5][:, :: 1 - 2 * m] for i in range(5) for j in range(5) for m in (0, 1)
        }
        (found,) = [at for at, window in windows.items() if (window == image).all()]
        seen.append(found)
    counts = [
        np.bincount(values, minlength=n) / 300 for values, n in zip(zip(*seen, strict=True), (5, 5, 2), strict=True)
    ]
    for share, n in zip(counts, (5, 5, 2), strict=True):
        np.testing.assert_allclose(share, 1 / n, atol=0.1)
    other = np.asarray(training.crop_and_flip(jax.random.key(1), jnp.array(images), padding=2))
    assert (other != got).any()
