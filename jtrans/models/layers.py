"""Convolution and pooling that stay fast when vmapped over the weights of many networks.

`lax.conv_general_dilated`, vmapped over its weights, becomes a grouped convolution, several times slower than the same
networks one by one. The functions here use large matrix products instead, which stay large with a batch of weights.
Images are `[N, H, W, C]`, kernels `[kh, kw, C, F]`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Winograd's minimal filtering F(2x2, 3x3): 16 products instead of 36 for four outputs (Lavin and Gray 2016, arXiv
# 1509.09308, section 4.1). Exact up to rounding errors, which are no larger than those of the direct sum.
TILE = 2
INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
# With fewer channels the products save less time than the transforms cost.
WINOGRAD_CHANNELS = 16


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Convolution as in neural networks (a cross-correlation), with this many zeros on each side of the image.

    The result is `[N, (H + 2 padding - kh) // stride + 1, (W + 2 padding - kw) // stride + 1, F]`; ValueError if the
    padded image is smaller than the kernel.
    """
    (_, height, width, channels), (rows, columns, *_) = x.shape, kernel.shape
    if height + 2 * padding < rows or width + 2 * padding < columns:
        image = f"an image of {height} x {width} pixels with {padding} of padding on each side"
        raise ValueError(f"x: got {image}; a kernel of {rows} x {columns} takes a larger one")
    if rows == columns == 3 and stride == 1 and channels >= WINOGRAD_CHANNELS:
        # The tiles take four times the input's memory: recompute them in the backward pass, which is cheap.
        return jax.checkpoint(_winograd, static_argnums=2)(x, kernel, padding)
    return _patches(x, kernel, stride, padding)


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """The maximum of each `size x size` square of pixels; rows and columns that do not fill a square are left out.

    Equal maxima share the derivative, where PyTorch gives it to the first. After a ReLU both give the same gradients,
    since only its zeros are expected to be equal. ValueError if the image is smaller than a square.
    """
    _, height, width, _ = x.shape
    if min(height, width) < size:
        raise ValueError(f"x: got an image of {height} x {width} pixels; a pool of {size} x {size} takes a larger one")
    parts = _shifted(x[:, : height // size * size, : width // size * size], size, size, size)
    return functools.reduce(jnp.maximum, parts)


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


def _shifted(x: jax.Array, height: int, width: int, stride: int) -> list[jax.Array]:
    """For each pixel of a `height x width` kernel, row by row, the values under it at every position of the kernel."""
    count, rows, columns, channels = x.shape
    down, right = (rows - height) // stride * stride + 1, (columns - width) // stride * stride + 1
    return [
        jax.lax.slice(x, (0, i, j, 0), (count, i + down, j + right, channels), (1, stride, stride, 1))
        for i in range(height)
        for j in range(width)
    ]


def _pad(x: jax.Array, before: int, below: int, right: int) -> jax.Array:
    """Zero-pad the image, with `before` rows above and columns on the left."""
    return jnp.pad(x, ((0, 0), (before, below), (before, right), (0, 0)))


def _matmul(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """`[N, H, W, C]` times `[C, F]`, as one product of two matrices."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def _patches(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Concatenate the values under all kernel pixels, and multiply once by the whole kernel."""
    height, width, _, features = kernel.shape
    under = _shifted(_pad(x, padding, padding, padding), height, width, stride)
    return _matmul(jnp.concatenate(under, axis=-1), kernel.reshape(-1, features))


def _winograd(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """A 3 x 3 kernel at stride 1: tiles of 4 x 4 pixels give 2 x 2 outputs by 16 products, one per pixel.

    The products stay 16 separate arrays: stacking them takes longer than computing them.
    """
    count, height, width, _ = x.shape
    rows, columns = height + 2 * padding - 2, width + 2 * padding - 2
    down, right = -(-rows // TILE), -(-columns // TILE)
    x = _pad(x, padding, down * TILE + 2 - height - padding, right * TILE + 2 - width - padding)
    tiles = _sandwich(INPUT, _shifted(x, 4, 4, TILE))
    taps = jax.lax.split(kernel.reshape(9, *kernel.shape[2:]), [1] * 9)  # its gradient is one concatenation
    kernels = _sandwich(KERNEL, [tap[0] for tap in taps])
    parts = _sandwich(OUTPUT, [_matmul(*pair) for pair in zip(tiles, kernels, strict=True)])
    # [N, down, row in the tile, right, column in the tile, F]
    y = jnp.stack([jnp.stack(parts[i * TILE : (i + 1) * TILE], axis=3) for i in range(TILE)], axis=2)
    return y.reshape(count, down * TILE, right * TILE, -1)[:, :rows, :columns]


def _sandwich(matrix: np.ndarray, grid: Sequence[jax.Array]) -> list[jax.Array]:
    """`matrix @ grid @ matrix.T` for a square grid of arrays, given and returned row by row."""
    size = matrix.shape[1]
    columns = [_combine(matrix, grid[j::size]) for j in range(size)]
    return [y for row in zip(*columns, strict=True) for y in _combine(matrix, row)]


def _combine(matrix: np.ndarray, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """For each row of the matrix, the sum of the arrays weighted by its entries; zeros are skipped."""
    return [
        functools.reduce(jnp.add, [a if f == 1 else f * a for f, a in zip(row.tolist(), arrays, strict=True) if f])
        for row in matrix
    ]
