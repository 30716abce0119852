"""Convolution and pooling that stay fast when vmapped over the weights of many networks.

`lax.conv_general_dilated`, vmapped over its weights, becomes a grouped convolution, several times slower than the same
networks one by one. The functions here use large matrix products instead, which stay large with a batch of weights.
Images are `[N, H, W, C]`, kernels `[kh, kw, C, F]`.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial.polynomial import polyfromroots

# Where minimal filtering evaluates polynomials, besides infinity; at further points rounding errors grow.
POINTS = (0, 1, -1, 2)
# With fewer channels the products save less time than the transforms cost.
FILTERED_CHANNELS = 16
# What an addition of a transform, and a copy of a pixel under a kernel, cost in multiplications of a matrix product:
# fitted to the times of single layers of conv A and ResNet18 on two CPU cores.
ADDITION, COPY = 12, 36


class Filtering(NamedTuple):
    """`tile` neighbouring outputs of a kernel of `size` taps along one axis, as sums of products.

    Of pixels `x [pixels]` and taps `g [size]` the products are `(inputs @ x) * (kernels @ g)`, the outputs
    `outputs @ sums`, where each sum is of the products at one point.
    """

    inputs: np.ndarray  # [products, pixels], where pixels = stride (tile - 1) + size
    kernels: np.ndarray  # [products, size]
    points: Sequence[Sequence[int]]  # the products at each point, which one matrix product takes together
    outputs: np.ndarray  # [tile, points]


@functools.lru_cache
def filtering(size: int, stride: int, tile: int) -> Filtering:
    """Minimal filtering (Winograd; Lavin and Gray 2016, arXiv 1509.09308, section 4.1) of each phase of the stride.

    Every `stride`-th tap meets every `stride`-th pixel: r taps at stride 1, for which `tile + r - 1` products are
    enough, one at each point where the polynomials of both are evaluated. At the same point the phases add up. A tile
    of one output has a product for each tap, and nothing to transform.
    """
    if tile == 1:
        return Filtering(np.eye(size), np.eye(size), [range(size)], np.ones((1, 1)))
    most = tile + math.ceil(size / stride) - 2  # points besides infinity
    inputs, kernels, points = [], [], []
    for phase in range(min(stride, size)):
        taps = len(range(phase, size, stride))
        finite = POINTS[: tile + taps - 2]
        for i, point in enumerate((*finite, math.inf)):
            others = [other for other in finite if other != point]
            at_pixels = polyfromroots(others)  # zero at all other points
            scale = math.prod(point - other for other in others)
            at_taps = np.eye(taps)[-1] if point == math.inf else float(point) ** np.arange(taps) / scale
            row, tap = np.zeros(stride * (tile - 1) + size), np.zeros(size)
            row[phase : phase + stride * len(at_pixels) : stride] = at_pixels
            tap[phase::stride] = at_taps
            inputs.append(row)
            kernels.append(tap)
            points.append(most if point == math.inf else i)
    powers = np.power.outer(np.array(POINTS[:most], float), np.arange(tile)).T
    outputs = np.concatenate([powers, np.eye(tile)[:, -1:]], axis=1)
    together = [[i for i, at in enumerate(points) if at == point] for point in range(most + 1)]
    return Filtering(np.array(inputs), np.array(kernels), together, outputs)


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Convolution as in neural networks (a cross-correlation), with this many zeros on each side of the image.

    The result is `[N, (H + 2 padding - kh) // stride + 1, (W + 2 padding - kw) // stride + 1, F]`; ValueError if the
    padded image is smaller than the kernel.
    """
    (_, height, width, _), (rows, columns, *_) = x.shape, kernel.shape
    if height + 2 * padding < rows or width + 2 * padding < columns:
        image = f"an image of {height} x {width} pixels with {padding} of padding on each side"
        raise ValueError(f"x: got {image}; a kernel of {rows} x {columns} takes a larger one")
    outputs = [(n + 2 * padding - size) // stride + 1 for n, size in ((height, rows), (width, columns))]
    # Taps that meet nothing but padding are left out, and so is the padding before them.
    sizes = (height, rows), (width, columns)
    first = [
        min(max(0, padding - (n - 1) * stride), pixels + padding - 1, taps - 1)  # one tap is left
        for n, (pixels, taps) in zip(outputs, sizes, strict=True)
    ]
    kernel = kernel[first[0] : height + padding, first[1] : width + padding]
    filters = cheapest(outputs, stride, kernel.shape)
    before = [padding - n for n in first]
    filtered = functools.partial(_filtered, filters=filters, stride=stride, before=before, outputs=outputs)
    # At stride 1 the transformed tiles take several times the input's memory: made anew in the backward pass, which is
    # cheap.
    is_large = stride == 1 and any(len(f.outputs) > 1 for f in filters)
    return (jax.checkpoint(filtered) if is_large else filtered)(x, kernel)


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """The maximum of each `size x size` square of pixels; rows and columns that do not fill a square are left out.

    Equal maxima share the derivative, where PyTorch gives it to the first. After a ReLU both give the same gradients,
    since only its zeros are expected to be equal. ValueError if the image is smaller than a square.
    """
    _, height, width, _ = x.shape
    if min(height, width) < size:
        raise ValueError(f"x: got an image of {height} x {width} pixels; a pool of {size} x {size} takes a larger one")
    windows = _windows(x[:, : height // size * size, : width // size * size], (size, size), (size, size))
    return functools.reduce(jnp.maximum, itertools.chain(*windows))


def average_pool(x: jax.Array, size: int) -> jax.Array:
    """The means over `size x size` windows that cover the image, as in PyTorch's `AdaptiveAvgPool2d(size)`.

    Window i goes from pixel `floor(i H / size)` to `ceil((i + 1) H / size)`: windows overlap if `size` does not divide
    H, and repeat if the image is smaller.
    """
    rows, columns = (_window_means(length, size) for length in x.shape[1:3])
    return jnp.einsum("ah,bw,nhwc->nabc", rows, columns, x)


def _window_means(length: int, size: int) -> np.ndarray:
    """The matrix `[size, length]` that averages over the windows of one axis."""
    position, window = np.arange(length), np.arange(size)[:, None]
    inside = (position >= window * length // size) & (position < -(-(window + 1) * length // size))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def cheapest(outputs: Sequence[int], stride: int, shape: tuple[int, ...]) -> Sequence[Filtering]:
    """The filters of rows and of columns that cost least, for images of so many outputs and a kernel of this shape."""
    rows, columns, channels, features = shape
    choices = []
    # Three outputs where there are no more, and along one axis: along both, rounding errors multiply.
    for size, num_outputs, tiles in zip((rows, columns), outputs, ((3, 2, 1), (2, 1)), strict=True):
        # Filtering saves nothing in a phase of one tap.
        saves = channels >= FILTERED_CHANNELS and size >= 2 * stride
        points = math.ceil(size / stride) - 2
        fits = lambda tile, n=num_outputs, points=points: tile + points <= len(POINTS) and (tile == n or tile == 2 < n)
        choices.append([filtering(size, stride, tile) for tile in tiles if tile == 1 or (saves and fits(tile))])
    cost = functools.partial(_cost, outputs=outputs, channels=channels, features=features)
    return min(itertools.product(*choices), key=cost)


def _cost(filters: Sequence[Filtering], outputs: Sequence[int], channels: int, features: int) -> float:
    """The multiplications of an image's matrix products, for each channel and feature, with what is as expensive."""
    tiles = math.prod(-(-n // len(f.outputs)) for n, f in zip(outputs, filters, strict=True))
    products = math.prod(len(f.inputs) for f in filters)
    if all(len(f.outputs) == 1 for f in filters):
        return tiles * products * (1 + COPY / features)
    of_inputs, of_outputs = (_additions(*(getattr(f, name) for f in filters)) for name in ("inputs", "outputs"))
    return tiles * (products + ADDITION * (of_inputs / features + of_outputs / channels))


def _filtered(
    x: jax.Array,
    kernel: jax.Array,
    filters: Sequence[Filtering],
    stride: int,
    before: Sequence[int],
    outputs: Sequence[int],
) -> jax.Array:
    """A convolution by the filters of rows and of columns, with `before` zeros above and on the left."""
    tiles, pixels = [len(f.outputs) for f in filters], [f.inputs.shape[1] for f in filters]
    steps = [stride * tile for tile in tiles]
    counts = [-(-n // tile) for n, tile in zip(outputs, tiles, strict=True)]
    needed = [(n + (size - 1) // step) * step for n, size, step in zip(counts, pixels, steps, strict=True)]
    pads = [(pad, n - pad - there, 0) for pad, n, there in zip(before, needed, x.shape[1:3], strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    taps = jax.lax.split(kernel.reshape(-1, *kernel.shape[2:]), [1] * math.prod(kernel.shape[:2]))
    grid = [[tap[0] for tap in row] for row in itertools.batched(taps, kernel.shape[1])]
    windows = (_windows if stride == 1 else _windows_by_phase)(x, pixels, steps)
    inputs = _sandwich(filters[0].inputs, windows, filters[1].inputs)
    kernels = _sandwich(filters[0].kernels, grid, filters[1].kernels)
    sums = [
        [
            _matmul(*([grid[i][j] for i, j in itertools.product(row, column)] for grid in (inputs, kernels)))
            for column in filters[1].points
        ]
        for row in filters[0].points
    ]
    parts = _sandwich(filters[0].outputs, sums, filters[1].outputs)
    # [N, tiles, row in the tile, tiles, column in the tile, F]
    y = jnp.stack([jnp.stack(row, axis=3) for row in parts], axis=2)
    return y.reshape(len(x), counts[0] * tiles[0], counts[1] * tiles[1], -1)[:, : outputs[0], : outputs[1]]


def _windows(x: jax.Array, pixels: Sequence[int], steps: Sequence[int]) -> list[list[jax.Array]]:
    """For each pixel of a window, row by row, its values `[N, down, right, C]` at every position, `steps` apart."""
    count, height, width, channels = x.shape
    stop = [(n - size) // step * step + 1 for n, size, step in zip((height, width), pixels, steps, strict=True)]
    at = lambda i, j: jax.lax.slice(x, (0, i, j, 0), (count, i + stop[0], j + stop[1], channels), (1, *steps, 1))
    return [[at(i, j) for j in range(pixels[1])] for i in range(pixels[0])]


def _windows_by_phase(x: jax.Array, pixels: Sequence[int], steps: Sequence[int]) -> list[list[jax.Array]]:
    """`_windows` of an image that is a whole number of steps, split into phases, so that gradients add up whole pieces.

    That is faster where many windows overlap, and slower where an elementwise operation goes before them.
    """
    (count, height, width, channels), (down, right) = x.shape, steps
    x = x.reshape(count, height // down, down, width // right, right, channels)
    rows = jax.lax.split(x, [1] * down, axis=2)
    phases = [[phase[:, :, 0, :, 0] for phase in jax.lax.split(row, [1] * right, axis=4)] for row in rows]
    tall, wide = (n // step - (size - 1) // step for n, size, step in zip((height, width), pixels, steps, strict=True))

    def at(i: int, j: int) -> jax.Array:
        (top, phase), (left, of_phase) = divmod(i, down), divmod(j, right)
        return phases[phase][of_phase][:, top : top + tall, left : left + wide]

    return [[at(i, j) for j in range(pixels[1])] for i in range(pixels[0])]


def _matmul(inputs: Sequence[jax.Array], kernels: Sequence[jax.Array]) -> jax.Array:
    """The sum over all of `[N, H, W, C]` times `[C, F]`, as one product of two matrices."""
    x, kernel = jnp.concatenate(inputs, axis=-1), jnp.concatenate(kernels)
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def _sandwich(rows: np.ndarray, grid: Sequence[Sequence[jax.Array]], columns: np.ndarray) -> list[list[jax.Array]]:
    """`rows @ grid @ columns.T` for a grid of arrays."""
    half = zip(*(_combine(columns, row) for row in grid), strict=True)
    return [list(row) for row in zip(*(_combine(rows, column) for column in half), strict=True)]


def _combine(matrix: np.ndarray, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """For each row of the matrix, the sum of the arrays weighted by its entries; zeros are skipped."""
    return [
        functools.reduce(jnp.add, [a if f == 1 else f * a for f, a in zip(row.tolist(), arrays, strict=True) if f])
        for row in matrix
    ]


def _additions(rows: np.ndarray, columns: np.ndarray) -> int:
    """What `_sandwich` adds; the identity adds nothing."""
    of = lambda matrix: count if (count := np.count_nonzero(matrix)) > len(matrix) else 0
    return of(columns) * rows.shape[1] + of(rows) * len(columns)
