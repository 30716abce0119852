from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans.models import layers

# [height, width, channels], features, kernel, stride, padding, and the outputs that are filtered together along each
# axis: odd sizes, taps that meet padding alone, kernels that are not square, every kind of layer there is
CASES = [
    ((8, 8, 96), 90, 3, 1, 1, (2, 2)),
    ((7, 5, 96), 90, 3, 1, 1, (2, 1)),
    ((15, 15, 128), 128, 5, 2, 1, (2, 2)),
    ((6, 9, 17), 20, 3, 1, 0, (2, 1)),
    ((3, 3, 64), 40, 3, 1, 1, (3, 1)),
    ((8, 7, 64), 60, 5, 2, 1, (3, 1)),
    ((12, 12, 40), 40, 4, 2, 1, (2, 1)),
    ((10, 1, 32), 30, (4, 1), 1, 0, (2, 1)),
    ((1, 9, 32), 30, (1, 3), 1, 0, (1, 2)),
    ((7, 8, 16), 5, (2, 5), 1, 1, (2, 1)),
    ((3, 3, 16), 40, 3, 1, 0, (1, 1)),
    ((1, 1, 16), 4, 3, 1, 1, (1, 1)),
    ((1, 1, 16), 4, 3, 5, 3, (1, 1)),
    ((8, 8, 3), 5, 3, 1, 1, (1, 1)),
    ((3, 3, 16), 6, 5, 2, 1, (1, 1)),
    ((15, 15, 4), 6, 5, 2, 1, (1, 1)),
    ((9, 8, 40), 60, 3, 2, 1, (1, 1)),
    ((13, 13, 3), 2, 11, 4, 5, (1, 1)),
    ((6, 6, 20), 3, 1, 2, 0, (1, 1)),
]
# size, stride, tile
FILTERINGS = [
    (3, 1, 2),
    (3, 1, 3),
    (4, 1, 2),
    (2, 1, 3),
    (5, 2, 2),
    (5, 2, 3),
    (4, 2, 2),
    (7, 3, 2),
    (11, 4, 2),
    (5, 3, 1),
]


def direct(x, kernel, stride, padding):
    """The definition, in float64."""
    x, kernel = np.float64(x), np.float64(kernel)
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    tall, wide = kernel.shape[:2]
    rows, columns = ((n - size) // stride + 1 for n, size in zip(x.shape[1:3], (tall, wide), strict=True))
    y = np.empty((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + tall, j * stride : j * stride + wide]
            y[:, i, j] = np.tensordot(window, kernel, 3)
    return y


def draw(shape, features, size, networks=()):
    keys = jax.random.split(jax.random.key(0), 2)
    tall, wide = size if isinstance(size, tuple) else (size, size)
    x = jax.random.normal(keys[0], (*networks, 2, *shape))
    return x, jax.random.normal(keys[1], (*networks, tall, wide, shape[-1], features))


@partial(jax.jit, static_argnums=0)
def with_gradients(function, x, kernel, cotangent):
    y, pull_back = jax.vjp(function, x, kernel)
    return y, pull_back(cotangent)


@pytest.mark.parametrize(("shape", "features", "size", "stride", "padding", "tiles"), CASES)
def test_convolution_agrees_with_the_definition_and_its_gradients_with_xlas(
    shape, features, size, stride, padding, tiles
):
    x, kernel = draw(shape, features, size)
    want = direct(x, kernel, stride, padding)
    filters = layers.cheapest(want.shape[1:3], stride, kernel.shape)
    assert tuple(len(f.outputs) for f in filters) == tiles
    cotangent = jax.random.normal(jax.random.key(1), want.shape)
    ours = lambda x, kernel: layers.convolve(x, kernel, stride=stride, padding=padding)
    y, gradients = with_gradients(ours, x, kernel, cotangent)
    assert y.shape == want.shape
    np.testing.assert_allclose(y, want, atol=2e-6 * np.abs(want).max())

    def reference(x, kernel):
        pads, names = [(padding, padding)] * 2, ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, pads, dimension_numbers=names, precision="highest"
        )

    for found, theirs in zip(gradients, with_gradients(reference, x, kernel, cotangent)[1], strict=True):
        np.testing.assert_allclose(found, theirs, atol=3e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("shape", "features", "size", "stride", "padding"), [CASES[1][:-1], CASES[2][:-1], CASES[15][:-1]]
)
def test_networks_at_once_equal_one_after_another(shared, shape, features, size, stride, padding):
    x, kernel = draw(shape, features, size, (3,))
    x = x[0] if shared else x
    convolve = jax.jit(partial(layers.convolve, stride=stride, padding=padding))
    got = jax.jit(jax.vmap(convolve, (None if shared else 0, 0)))(x, kernel)
    for m in range(3):
        want = convolve(x if shared else x[m], kernel[m])
        np.testing.assert_allclose(got[m], want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize(("size", "stride", "tile"), FILTERINGS)
def test_filtering_is_exact_with_the_fewest_products(size, stride, tile):
    f = layers.filtering(size, stride, tile)
    x, taps = np.random.default_rng(0).normal(size=f.inputs.shape[1]), np.random.default_rng(1).normal(size=size)
    products = (f.inputs @ x) * (f.kernels @ taps)
    found = f.outputs @ [products[at].sum() for at in map(list, f.points)]
    np.testing.assert_allclose(found, [taps @ x[stride * i : stride * i + size] for i in range(tile)], atol=1e-14)
    assert sorted(i for at in f.points for i in at) == list(range(len(products)))
    # r taps of a phase take tile + r - 1 products (Lavin and Gray 2016, section 4.1)
    assert len(products) == sum(tile - 1 + len(range(phase, size, stride)) for phase in range(stride))


@pytest.mark.parametrize(("shape", "features", "size", "stride"), [((6, 6, 96), 90, 3, 1), ((11, 11, 96), 90, 5, 2)])
def test_a_second_derivative_exists(shape, features, size, stride):
    x, kernel = draw(shape, features, size)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(layers.convolve(x, kernel, stride=stride, padding=1) ** 3)))
    direction = jax.random.normal(jax.random.key(2), x.shape)
    _, second = jax.jvp(gradient, (x,), (direction,))
    step = 1e-2
    difference = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(second, difference, atol=1e-3 * np.abs(second).max())


def test_an_image_smaller_than_the_kernel_is_refused():
    with pytest.raises(ValueError, match="got an image of 2 x 8 pixels with 1 of padding"):
        layers.convolve(jnp.zeros((1, 2, 8, 3)), jnp.zeros((5, 5, 3, 2)), padding=1)


def test_max_pool_leaves_out_what_fills_no_square():
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    want = x[:, :4, :6].reshape(2, 2, 2, 3, 2, 3).max((2, 4))
    np.testing.assert_array_equal(layers.max_pool(jnp.array(x)), want)
    gradient = jax.grad(lambda x: layers.max_pool(x).sum())(jnp.array(x))
    assert gradient.sum() == want.size
    assert (np.asarray(gradient)[:, :4, :6] == (x[:, :4, :6] == want.repeat(2, 1).repeat(2, 2))).all()


@pytest.mark.parametrize(("length", "size"), [(7, 7), (14, 7), (2, 7), (10, 7), (5, 1)])
def test_average_pool_covers_the_image_as_pytorch_documents(length, size):
    x = np.random.default_rng(0).normal(size=(2, length, 3, 4))
    got = layers.average_pool(jnp.array(x, jnp.float32), size)
    starts = [(i * length) // size for i in range(size)]
    stops = [-((-(i + 1) * length) // size) for i in range(size)]
    rows = np.stack([x[:, a:b].mean(1) for a, b in zip(starts, stops, strict=True)], 1)
    columns = [rows[:, :, (j * 3) // size : -((-(j + 1) * 3) // size)].mean(2) for j in range(size)]
    np.testing.assert_allclose(got, np.stack(columns, 2), atol=1e-6)
