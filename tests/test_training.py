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
    after = training.train_step(model, optimizer, before, jnp.array(images), jnp.array(labels))

    hidden, output = (
        {k: np.float64(v) for k, v in layer["Dense_0"].items()} for layer in before.variables["params"].values()
    )
    x = images.reshape(8, 4) / 255
    h = np.maximum(x @ hidden["kernel"] + hidden["bias"], 0)
    logits = h @ output["kernel"] + output["bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    g = (p - np.eye(3)[labels]) / 8
    gh = (g @ output["kernel"].T) * (h > 0)
    want = [
        {"kernel": hidden["kernel"] - 0.5 * x.T @ gh, "bias": hidden["bias"] - 0.5 * gh.sum(0)},
        {"kernel": output["kernel"] - 0.5 * h.T @ g, "bias": output["bias"] - 0.5 * g.sum(0)},
    ]
    for layer, arrays in zip(after.variables["params"].values(), want, strict=True):
        for name, array in arrays.items():
            np.testing.assert_allclose(layer["Dense_0"][name], array, atol=1e-6)


def test_each_epoch_has_its_own_order_of_all_images():
    key = jax.random.key(0)
    orders = [training.epoch_order(key, epoch, 50) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
