import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jtrans import models

SHAPE = (32, 32, 3)
TEXT_SHAPE = (9, 50)


def shape_of(name):
    return TEXT_SHAPE if name in models.TEXT else SHAPE


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
    for name in ("mlp_deep", "conv_a", "resnet18"):
        drawn = jax.vmap(models.build(name, SHAPE, 10).init)(jax.random.split(jax.random.key(0), 4))
        variables = jax.device_get(drawn)
        for path, array in flatten_dict(variables["params"]).items():
            if path[-1] == "scale" or "BatchNorm" in path[-2]:
                assert (array == (path[-1] == "scale")).all()
                continue
            kernel = flatten_dict(variables["params"])[(*path[:-1], "kernel")]
            bound = 1 / np.sqrt(kernel[0, 0].size if kernel.ndim == 3 else np.prod(kernel.shape[1:-1]))
            assert np.abs(array).max() <= bound * (1 + 1e-6)
            assert np.abs(array).max() > 0.8 * bound
            if path[-1] == "kernel":
                assert array.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_flax_initialisation_is_sqrt_3_times_larger_with_zero_biases():
    ours = models.build("mlp_shallow", SHAPE, 10).init(jax.random.key(0))
    flax = models.build("mlp_shallow", SHAPE, 10, initializer="flax").init(jax.random.key(0))
    for a, b in zip(layers(ours), layers(flax), strict=True):
        assert b["kernel"].std() / a["kernel"].std() == pytest.approx(np.sqrt(3), rel=0.05)
        assert not b["bias"].any()
        reference = nn.initializers.lecun_normal()(jax.random.key(1), b["kernel"].T.shape)
        assert b["kernel"].std() == pytest.approx(float(reference.std()), rel=0.05)
        assert np.abs(b["kernel"]).max() == pytest.approx(float(np.abs(reference).max()), rel=0.1)


def fan_in(path, kernel):
    """Of a layer of texts that has a kernel."""
    if path[-2].startswith("LSTM_"):
        return kernel[1]  # the size of the state
    return np.prod(kernel[:-1]) if path[-2].startswith("Conv1d_") else kernel[1]


@pytest.mark.parametrize("initializer", models.INITIALIZERS)
@pytest.mark.parametrize("name", models.TEXT)
def test_networks_of_texts_start_as_pytorchs_and_flaxs_layers(name, initializer):
    model = models.build(name, TEXT_SHAPE, 10, widths=(64, 96, 80, 72), initializer=initializer)
    arrays = flatten_dict(jax.vmap(model.init)(jax.random.split(jax.random.key(0), 4))["params"])
    for path, array in arrays.items():
        *layer, leaf = path
        is_attention = layer[-1] in ("in_proj", "out_proj")
        if layer[-1].startswith("LayerNorm_") or (leaf == "bias" and (initializer == "flax" or is_attention)):
            assert (array == (leaf == "scale")).all()
            continue
        kernel = arrays[*layer, "kernel"].shape[1:]
        bound = np.sqrt(6 / sum(kernel)) if layer[-1] == "in_proj" else 1 / np.sqrt(fan_in(path, kernel))
        std = bound / np.sqrt(3) if initializer == "pytorch" else 1 / np.sqrt(fan_in(path, kernel))
        assert abs(array.mean()) < 4 * std / np.sqrt(array.size)
        if initializer == "pytorch":
            assert 0.9 * bound < np.abs(array).max() <= bound * (1 + 1e-6)
        if array.size > 1000:
            assert array.std() == pytest.approx(std, rel=0.05)


# Layer by layer: parameters of the convolutions (with the BatchNorms after them), then of the linear layers.
COUNTS = {
    "fcnet": 3072 * 1176 + 1176 + 1176 * 400 + 400 + 400 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10,
    "conv_a": 25 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256) + 128 + 128 + 256 + 256 + 256 * 10 + 10,
    "conv_b": 9 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512 + 512 * 1024)
    + 3 * (128 + 128 + 256 + 256 + 512 + 512 + 1024)
    + 1024 * 10
    + 10,
    "lenet": 25 * (3 * 6 + 6 * 16) + 6 + 16 + 400 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10,
    "alexnet": 121 * 3 * 64 + 25 * 64 * 192 + 9 * (192 * 384 + 384 * 256 + 256 * 256) + 64 + 192 + 384 + 512 + 2570,
    "vgg11": 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512) + 2752 + 5130,
    "resnet18": 11_173_962,  # the usual counts of the CIFAR forms with ten classes
    "resnet50": 23_520_842,
    "text_mean": 50 * 128 + 128 + 128 * 10 + 10,
    "text_cnn": (3 + 4 + 5) * 50 * 64 + 3 * 64 + 3 * 64 * 10 + 10,
    "text_lstm": 4 * 64 * (50 + 64 + 2) + 64 * 10 + 10,
    # Attention, the two fully-connected layers and the two normalisations of each layer.
    "text_transformer": 50 * 64
    + 64
    + 2 * (4 * (64 * 64 + 64) + 2 * 64 * 128 + 128 + 64 + 4 * 64)
    + 2 * 64
    + 64 * 10
    + 10,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_counted_against_the_listings(name):
    model = models.build(name, shape_of(name), 10)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name]
    logits = jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((2, *shape_of(name)), jnp.float32))
    assert logits.shape == (2, 10)


def test_vgg11_on_large_images_is_torchvisions():
    model = models.build("vgg11", (224, 224, 3), 1000)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 132_863_336


def test_conv_a_takes_32_pixels_to_one_and_others_are_too_small():
    kernel = jax.eval_shape(models.build("conv_a", SHAPE, 2).init, jax.random.key(0))["params"]["MLP_0"]["Dense_0"]
    assert kernel["kernel"].shape == (2, 256)
    with pytest.raises(ValueError, match="a kernel of 5 x 5 takes a larger one"):
        models.build("conv_a", (8, 8, 3), 2).init(jax.random.key(0))


@pytest.mark.parametrize("name", models.WIDTHS)
def test_features_are_what_the_last_layer_takes_in(name):
    widths = [4 if name in models.TEXT else 2] * len(models.WIDTHS[name])
    model = models.build(name, shape_of(name), 4, widths=widths)
    x = np.random.default_rng(0).uniform(size=(3, *shape_of(name))).astype(np.float32)

    @jax.jit
    def start():
        variables = model.init(jax.random.key(0))
        return models.last_layer(variables), model.features(variables, x), model.apply(variables, x)

    head, features, outputs = start()
    assert features.shape == (3, head["kernel"].shape[1])
    logits = np.float64(features) @ np.float64(head["kernel"]).T + np.float64(head["bias"])
    np.testing.assert_allclose(outputs, logits, atol=1e-5)


def test_a_mean_image_is_subtracted_before_anything_else():
    mean = np.random.default_rng(0).uniform(size=(2, 2, 1))
    options = {"widths": (5,), "pixel_range": (-1.0, 1.0)}
    with_mean = models.build("mlp_shallow", (2, 2, 1), 3, **options, mean_image=mean)
    without = models.build("mlp_shallow", (2, 2, 1), 3, **options)
    variables, x = with_mean.init(jax.random.key(0)), jax.random.uniform(jax.random.key(1), (4, 2, 2, 1))
    want = without.apply(variables, x - jnp.float32(mean)[None])
    np.testing.assert_allclose(with_mean.apply(variables, x), want, atol=1e-6)


def test_the_network_maps_pixels_to_its_range_and_agrees_with_numpy():
    model = models.build("mlp_shallow", (2, 2, 1), 3, widths=(5, 4), pixel_range=(-1.0, 1.0))
    variables = model.init(jax.random.key(0))
    x = np.random.default_rng(0).uniform(size=(6, 2, 2, 1))
    h = 2 * x.reshape(6, 4) - 1
    for i, layer in enumerate(layers(variables)):
        h = h @ np.float64(layer["kernel"].T) + np.float64(layer["bias"])
        h = np.maximum(h, 0) if i < 2 else h
    np.testing.assert_allclose(model.apply(variables, jnp.array(x, jnp.float32)), h, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("resnet", SHAPE, {}, "name: got 'resnet'"),
        ("mlp_deep", SHAPE, {"initializer": "glorot"}, "initializer: got 'glorot'"),
        ("conv_a", SHAPE, {"widths": (3, 3)}, r"widths: got \(3, 3\); conv_a takes as many as"),
        ("text_cnn", TEXT_SHAPE, {"widths": (3, 3)}, r"widths: got \(3, 3\); text_cnn takes as many as"),
        ("text_transformer", TEXT_SHAPE, {"widths": (8,)}, "text_transformer takes as many as"),
        ("text_transformer", TEXT_SHAPE, {"widths": (6, 5)}, r"got \(6, 5\); .*, the first a multiple of 4"),
        ("text_lstm", SHAPE, {}, r"image_shape: got \(32, 32, 3\); text_lstm takes \(length, embedding\)"),
        ("conv_a", TEXT_SHAPE, {}, r"image_shape: got \(9, 50\); conv_a takes \(height, width, channels\)"),
        ("text_mean", TEXT_SHAPE, {"pixel_range": (-1, 1)}, r"pixel_range, mean_image: got the range \(-1, 1\)"),
        ("text_mean", TEXT_SHAPE, {"mean_image": np.zeros(TEXT_SHAPE)}, "got a mean image; text_mean has no pixels"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(name, shape, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, shape, 2, **options)


def test_the_first_layer_of_texts_is_refused():
    with pytest.raises(ValueError, match="name: got 'text_cnn', a network of texts; it takes one of images: mlp_sha"):
        models.first_layer("text_cnn")


def small_state(**changes):
    """A conv A of two channels as PyTorch would hand it over."""
    rng = np.random.default_rng(0)
    state, sizes = {}, (3, 2, 2, 2, 2)
    for i in range(4):
        state[f"{2 * i}.weight"] = rng.normal(size=(sizes[i + 1], sizes[i], 5, 5))
        state[f"{2 * i}.bias"] = rng.normal(size=2)
    state |= {"9.weight": rng.normal(size=(2, 2)), "9.bias": rng.normal(size=2)}
    return {k: v for k, v in (state | changes).items() if v is not None}


def test_a_state_dict_is_taken_in_order_whatever_its_names():
    variables = models.from_pytorch("conv_a", small_state())
    renamed = {f"module.layer{k}": v for k, v in small_state().items()}
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, models.from_pytorch("conv_a", renamed)))
    model = models.build("conv_a", SHAPE, 2, widths=(2, 2, 2, 2))
    assert model.apply(variables, jnp.zeros((1, *SHAPE))).shape == (1, 2)
    without = models.from_pytorch("conv_a", small_state(**{"0.bias": None}))
    assert not without["params"]["Conv_0"]["bias"].any()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("conv_a", {"9.weight": None, "9.bias": None}, "conv_a takes as many as"),
        ("conv_a", {"2.weight": np.zeros((2, 2, 3, 3))}, "state_dict: '2' holds"),
        ("conv_b", {}, "state_dict: got 5 layers"),
        ("resnet18", {}, "state_dict: got 5 layers"),
        ("convA", {}, "name: got 'convA'"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        models.from_pytorch(name, small_state(**changes))
    with pytest.raises(ValueError, match="holds no weights"):
        models.from_pytorch("conv_a", {})


def test_a_linear_layer_in_the_place_of_a_batch_norm_is_refused():
    batch_norm = {leaf: np.zeros(2) for leaf in ("weight", "bias", "running_mean", "running_var")}
    conv = lambda channels: {"weight": np.zeros((2, channels, 3, 3)), "bias": np.zeros(2)}
    linear = {"weight": np.zeros((10, 2)), "bias": np.zeros(10)}
    modules = [conv(3), linear, batch_norm, *[conv(2), batch_norm] * 6]
    state = {f"{i}.{leaf}": array for i, module in enumerate(modules) for leaf, array in module.items()}
    with pytest.raises(ValueError, match="state_dict: '1' holds"):
        models.from_pytorch("conv_b", state)
