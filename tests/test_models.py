import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import models

SHAPE = (32, 32, 3)


def layers(variables):
    return list(variables["params"].values())


@pytest.mark.parametrize(
    ("name", "widths"), [("mlp_shallow", [3072, 256, 2]), ("mlp_deep", [3072, 1024, 512, 256, 128, 2])]
)
def test_widths_and_parameter_counts(name, widths):
    model = models.build(name, SHAPE, 2)
    variables = model.init(jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count == sum(a * b + b for a, b in itertools.pairwise(widths))
    assert model.apply(variables, jnp.zeros((5, *SHAPE))).shape == (5, 2)


def test_pytorch_initialisation_is_uniform_within_one_over_root_fan_in():
    model = models.build("mlp_deep", SHAPE, 10)
    for layer in jax.vmap(model.init)(jax.random.split(jax.random.key(0), 4))["params"].values():
        bound = 1 / np.sqrt(layer["Dense_0"]["kernel"].shape[1])
        for array in layer["Dense_0"].values():
            assert np.abs(array).max() <= bound
            assert np.abs(array).max() > 0.8 * bound
        assert layer["Dense_0"]["kernel"].std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_flax_initialisation_is_sqrt_3_times_larger_with_zero_biases():
    ours = models.build("mlp_shallow", SHAPE, 10).init(jax.random.key(0))
    flax = models.build("mlp_shallow", SHAPE, 10, initializer="flax").init(jax.random.key(0))
    for a, b in zip(layers(ours), layers(flax), strict=True):
        assert b["Dense_0"]["kernel"].std() / a["Dense_0"]["kernel"].std() == pytest.approx(np.sqrt(3), rel=0.05)
        assert not b["Dense_0"]["bias"].any()


def test_the_network_maps_pixels_to_its_range_and_agrees_with_numpy():
    model = models.build("mlp_shallow", (2, 2, 1), 3, widths=(5, 4), pixel_range=(-1.0, 1.0))
    variables = model.init(jax.random.key(0))
    x = np.random.default_rng(0).uniform(size=(6, 2, 2, 1))
    h = 2 * x.reshape(6, 4) - 1
    for i, layer in enumerate(layers(variables)):
        h = h @ np.float64(layer["Dense_0"]["kernel"]) + np.float64(layer["Dense_0"]["bias"])
        h = np.maximum(h, 0) if i < 2 else h
    np.testing.assert_allclose(model.apply(variables, jnp.array(x, jnp.float32)), h, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"name": "resnet"}, {"initializer": "glorot"}])
def test_unknown_names_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        models.build(**{"name": "mlp_deep", "image_shape": SHAPE, "num_classes": 2, **wrong})
