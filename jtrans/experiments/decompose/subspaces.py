"""Small subspaces of the images' space: which they are, and how they are fitted to rows of numbers.

A subspace is an orthonormal basis `[K, D]`, its most important directions first. It is fitted on other networks and
other images than those measured.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import scipy.linalg

from jtrans import directions
from jtrans.models.modules import Convolution

NOTHING = "nothing"  # the subspace of no directions
BLOCK = 1000  # rows of a Gram matrix that are in memory at once


def leading(rows: np.ndarray, count: int, *, center: np.ndarray | float = 0.0) -> np.ndarray:
    """The first right singular vectors `[K, D]` of the rows, float32: K is `count`, or where fewer, the rows or D.

    Args:
      rows: `[R, D]`, numbers of any kind, taken as they are but for the center; those that are zero or not finite are
        left out.
      center: what is subtracted, as the rows' mean; `[D]`, or `[R, D]`, from each row its own.
    """
    rows, dimension = np.asarray(rows), rows.shape[1]
    centers = np.broadcast_to(center, rows.shape)
    starts = range(0, len(rows), BLOCK)
    blocks = lambda: (_usable(rows[i : i + BLOCK], centers[i : i + BLOCK]) for i in starts)
    used = sum(map(len, blocks()))
    if used == 0:
        return np.zeros((0, dimension), np.float32)
    scale = max(np.abs(block).max(initial=0) for block in blocks())
    scaled = (block / scale for block in blocks())  # products of very long or very short rows leave float32
    count = min(count, used, dimension)
    # The smaller of two Gram matrices: of the rows, or else of the values, which blocks of rows add up to.
    if used <= dimension:
        whole = np.fromiter(itertools.chain.from_iterable(scaled), (np.float32, dimension), used)
        basis = _leading_of_gram(whole @ whole.T, count) @ whole
        # Those of small singular values are no longer at right angles in float32.
        return np.ascontiguousarray(np.linalg.qr(basis.T)[0].T)
    gram = np.zeros((dimension, dimension), np.float32)
    for block in scaled:
        gram += block.T @ block
    return _leading_of_gram(gram, count)


def _usable(rows: np.ndarray, center: np.ndarray) -> np.ndarray:
    """The rows less the center in float32, without those that are zero or not finite."""
    centered = np.subtract(rows, center, dtype=np.float32)
    return centered[np.isfinite(centered).all(1) & centered.any(1)]


def _leading_of_gram(gram: np.ndarray, count: int) -> np.ndarray:
    """The eigenvectors `[count, D]` of a Gram matrix's largest eigenvalues, which overwrite the matrix."""
    # Its transpose is in Fortran's order, which LAPACK takes without a copy.
    _, vectors = scipy.linalg.eigh(gram.T, subset_by_index=(len(gram) - count, len(gram) - 1), overwrite_a=True)
    return np.ascontiguousarray(vectors.T[::-1])


def updates(
    before: np.ndarray, after: np.ndarray, shape: Sequence[int], layer: Convolution | None, count: int
) -> np.ndarray:
    """The directions among images `[K, D]` in which networks' first layers have moved most: `leading` of the rows.

    The rows of a fully-connected layer's update are images already. A convolution's update is a set of small filters,
    each of which acts at every position: the rows are the filters at each of these, with zeros around them.

    Args:
      before, after: the layer's kernels of M networks, `[M, H, D]`, whose columns are the inputs, channels first; or of
        a convolution `[M, kh, kw, C, F]`.
      shape: `(height, width, channels)` of the images.
      layer: the convolution; None where the layer is fully connected.
    """
    height, width, channels = shape
    dimension = math.prod(shape)
    if layer is None:
        basis = leading(after.reshape(-1, dimension), count, center=before.reshape(-1, dimension))
        return basis.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(basis.shape)
    side, padding = layer.kernel, layer.padding
    filters = _usable(*(np.moveaxis(kernels, -1, 1).reshape(-1, side**2 * channels) for kernels in (after, before)))
    if len(filters) == 0:
        return np.zeros((0, dimension), np.float32)
    filters /= np.abs(filters).max()  # products of very long or very short ones leave float32
    of_filters = filters.T @ filters
    # Where each value that a filter sees stands among the values of the image; -1 in the padding.
    inner = np.arange(dimension).reshape(shape)
    padded = np.pad(inner, ((padding, padding), (padding, padding), (0, 0)), constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side, channels))[:: layer.stride, :: layer.stride]
    gram = np.zeros((dimension, dimension), np.float32)
    for values in windows.reshape(-1, side**2 * channels):
        seen = values >= 0
        gram[np.ix_(values[seen], values[seen])] += of_filters[np.ix_(seen, seen)]
    return _leading_of_gram(gram, min(count, dimension))


def of_images(images: np.ndarray, key: jax.Array, count: int, *, subtract_mean: bool) -> dict[str, np.ndarray]:
    """The subspaces that need no network, of `count` directions at most; of training images, uint8 `[N, H, W, C]`,
    which the networks see without their mean if `subtract_mean`.
    """
    rows = images.reshape(len(images), -1)
    mean = rows.mean(0, keepdims=True, dtype=np.float32)
    noise = directions.random(key, np.zeros((count, rows.shape[1]), np.float32))
    # As the networks see them, but for their scale, which changes no direction.
    of_rows = leading(rows, count, center=mean if subtract_mean else 0.0)
    return {"random": leading(noise, count), "mean_image": leading(mean, 1), "training_images": of_rows}


def ranked(
    subspaces: Mapping[str, np.ndarray], ranks: Sequence[int], dimension: int
) -> Iterator[tuple[str, int, np.ndarray]]:
    """The name, the number of directions and the basis of nothing, and of each subspace at each rank that it has.

    All bases have the same shape, for one compiled program, by rows of zeros.
    """
    zeros = np.zeros((ranks[-1], dimension), np.float32)
    yield NOTHING, 0, zeros
    for name, basis in subspaces.items():
        for rank in ranks:
            if rank <= len(basis):
                yield name, rank, np.concatenate([basis[:rank], zeros[rank:]])
