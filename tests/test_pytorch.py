"""The same weights in PyTorch: logits, input gradients, a train step. Skipped where no interpreter has PyTorch.

`pytest --pytorch_python PATH` names one.
"""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT
from flax.traverse_util import flatten_dict

from jtrans import directions, models

# name, image side, channels, classes
NETWORKS = [
    ("mlp_shallow", 32, 3, 2),
    ("mlp_deep", 32, 3, 2),
    ("fcnet", 32, 3, 10),
    ("conv_a", 32, 3, 2),
    ("conv_b", 32, 3, 2),
    ("lenet", 28, 1, 10),
    ("alexnet", 32, 3, 10),
    ("vgg11", 32, 3, 10),
    ("resnet18", 32, 3, 10),
    pytest.param("resnet50", 32, 3, 10, marks=pytest.mark.slow),
    pytest.param("vgg11", 224, 3, 2, marks=pytest.mark.slow),
]
# name, widths
TEXT_NETWORKS = [
    ("text_mean", (5, 4)),
    ("text_cnn", (4, 3, 5, 6)),
    ("text_lstm", (5, 4)),
    ("text_transformer", (8, 7, 9)),
]


def relative(ours, theirs):
    """For each example."""
    ours, theirs = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (ours, theirs))
    return np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)


@pytest.mark.parametrize(("name", "side", "channels", "classes"), NETWORKS)
def test_pytorchs_logits_gradients_and_train_step(python, tmp_path, name, side, channels, classes):
    out = tmp_path / "network.npz"
    sizes = map(str, (side, side, channels, classes))
    subprocess.run([python, ROOT / "benchmarks" / "pytorch_peer.py", "networks", out, name, *sizes], check=True)
    with np.load(out) as arrays:
        theirs = dict(arrays)
    state = lambda when: {k.removeprefix(when): v for k, v in theirs.items() if k.startswith(when)}
    model = models.build(name, (side, side, channels), classes)
    before = models.from_pytorch(name, state("before/"))
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(before) == shapes(jax.eval_shape(model.init, jax.random.key(0)))

    def evaluate(variables, x, y):
        gradient = jax.grad(
            lambda x: optax.softmax_cross_entropy_with_integer_labels(model.apply(variables, x), y).sum()
        )
        return (
            model.apply(variables, x),
            gradient(x),
            directions.loss_gradient(lambda x: model.apply(variables, x), x, y),
        )

    logits, gradient, direction = jax.jit(evaluate)(before, theirs["images"], theirs["labels"])
    assert relative(logits, theirs["logits/float32"]).max() < 1e-4
    # A ReLU whose input is zero to float32 falls on either side, and the gradient of that image jumps, in PyTorch's own
    # float32 against its float64 too. So the rule is for half of the images at least, and in float64 for all of them.
    half = lambda errors: np.sort(errors)[len(errors) // 2 - 1]
    unit = lambda a: directions.normalize(jnp.asarray(a))
    assert half(relative(gradient, theirs["gradient/float32"])) < 1e-4
    assert half(relative(unit(direction), unit(theirs["gradient/float32"]))) < 1e-4

    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), before)
        x, y = jnp.asarray(theirs["images"], jnp.float64), theirs["labels"]
        logits, gradient, _ = jax.jit(evaluate)(double, x, y)
        assert relative(logits, theirs["logits/float64"]).max() < 1e-6
        assert relative(gradient, theirs["gradient/float64"]).max() < 1e-6
        if name == "vgg11" and side == 224:
            return  # dropout is on in training, from another generator

        def loss(params):
            logits, variables = model.train({**double, "params": params}, x, jax.random.key(0))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), variables

        slope, moved = jax.jit(jax.grad(loss, has_aux=True))(double["params"])
        after = {**moved, "params": jax.tree.map(lambda p, g: p - 0.1 * g, double["params"], slope)}
        for path, want in flatten_dict(models.from_pytorch(name, state("after/"))).items():
            np.testing.assert_allclose(flatten_dict(after)[path], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "widths"), TEXT_NETWORKS)
def test_pytorchs_logits_gradients_train_step_and_start_of_texts(python, tmp_path, name, widths):
    out, size, classes = tmp_path / "network.npz", 6, 3
    script = ROOT / "benchmarks" / "pytorch_text_peer.py"
    subprocess.run([python, script, out, name, *map(str, (size, classes, *widths))], check=True)
    with np.load(out) as arrays:
        theirs = dict(arrays)
    state = lambda when: {k.removeprefix(when): v for k, v in theirs.items() if k.startswith(when)}
    x, labels = theirs["x"].copy(), theirs["labels"]  # PyTorch gets each text without its padding
    x[np.arange(x.shape[1]) >= theirs["lengths"][:, None]] = 0
    model = models.build(name, x.shape[1:], classes, widths=widths)
    before = models.from_pytorch(name, state("before/"))
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(before) == shapes(jax.eval_shape(model.init, jax.random.key(0)))

    def losses(variables, x):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(variables, x), labels)

    def evaluate(variables, x):
        return model.apply(variables, x), jax.grad(lambda x: losses(variables, x).sum())(x)

    for ours, what in zip(jax.jit(evaluate)(before, x), ("logits", "gradient"), strict=True):
        np.testing.assert_allclose(ours, theirs[f"{what}/float32"], rtol=1e-4, atol=1e-5)

    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), before)
        x = jnp.asarray(x, jnp.float64)
        for ours, what in zip(jax.jit(evaluate)(double, x), ("logits", "gradient"), strict=True):
            np.testing.assert_allclose(ours, theirs[f"{what}/float64"], atol=1e-9)
        slope = jax.jit(jax.grad(lambda variables: losses(variables, x).mean()))(double)
        after = flatten_dict(jax.tree.map(lambda a, g: a - 0.1 * g, double, slope))
        for path, want in flatten_dict(models.from_pytorch(name, state("after/"))).items():
            np.testing.assert_allclose(after[path], want, rtol=1e-6, atol=1e-7)

    # Of a thousand networks the largest numbers reach as far as PyTorch's distribution does.
    drawn = flatten_dict(jax.vmap(model.init)(jax.random.split(jax.random.key(0), 1000)))
    for path, array in flatten_dict(models.from_pytorch(name, state("start/"))).items():
        bound = np.abs(drawn[path]).max()
        assert np.abs(array).max() <= 1.01 * bound
        assert array.size < 20 or np.abs(array).max() >= 0.8 * bound
