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
from jtrans.data import Split
from jtrans.models.modules import Convolution

NOTHING = "nothing"  # the subspace of no directions
WHOLE = ("mean_image", "constant_colours", "class_means")  # subspaces that are taken out whole, at no other rank
DEPENDENT = 1e-4  # of a row's length: what is left of it outside the rows before is rounding
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


def of_images(train: Split, key: jax.Array, count: int, *, subtract_mean: bool) -> dict[str, np.ndarray]:
    """The subspaces that need no network, by name; of `count` directions at most, but for those of `WHOLE`.

    Those of training images are of the images as networks see them: without their mean if `subtract_mean`. That holds
    for `random_images` too, since the update of a first layer is a mixture of images with their mean.
    """
    rows = train.inputs.reshape(len(train.inputs), -1)
    mean = rows.mean(0, keepdims=True, dtype=np.float32)
    center = mean if subtract_mean else 0.0  # networks see another scale, which changes no direction
    noise = directions.random(key, np.zeros((count, rows.shape[1]), np.float32))
    weights = directions.random(jax.random.fold_in(key, count), np.zeros((count, len(rows)), np.float32))
    return {
        "random": leading(noise, count),
        "random_images": orthonormal(mixtures(rows, np.asarray(weights), center=center)),
        "mean_image": leading(mean, 1),
        "constant_colours": constant_colours(train.inputs.shape[1:]),
        "class_means": class_means(rows, train.labels),
        "training_images": leading(rows, count, center=center),
    }


def mixtures(rows: np.ndarray, weights: np.ndarray, *, center: np.ndarray | float = 0.0) -> np.ndarray:
    """Mixtures `[K, D]` of the rows `[R, D]` less the center, `weights [K, R]` of each row.

    By weights of normal noise, they are normal noise with the second moments of the rows: with the covariance of images
    where the center is their mean.
    """
    starts = range(0, len(rows), BLOCK)
    blocks = (np.subtract(rows[i : i + BLOCK], center, dtype=np.float32) for i in starts)
    return sum(weights[:, i : i + BLOCK] @ block for i, block in zip(starts, blocks, strict=True))


def orthonormal(rows: np.ndarray) -> np.ndarray:
    """A basis, float32, whose first k directions span the first k rows; rows that depend on those before add none."""
    basis = np.zeros((0, rows.shape[1]))
    for row in rows.astype(np.float64):
        off = row - row @ basis.T @ basis
        off -= off @ basis.T @ basis  # once more, against rounding
        if (length := np.linalg.norm(off)) > DEPENDENT * np.linalg.norm(row):
            basis = np.concatenate([basis, off[None] / length])
    return basis.astype(np.float32)


def constant_colours(shape: Sequence[int]) -> np.ndarray:
    """The image of each channel that has one value everywhere, `[C, D]`, of images `(height, width, channels)`."""
    height, width, channels = shape
    return np.tile(np.eye(channels, dtype=np.float32), height * width) / np.float32(math.sqrt(height * width))


def class_means(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The differences between the means of K classes, `[K - 1, D]`, or fewer where some depend on the others."""
    means = np.stack([rows[labels == label].mean(0, dtype=np.float64) for label in np.unique(labels)])
    return orthonormal(means[1:] - means[0])


def padded(basis: np.ndarray, count: int) -> np.ndarray:
    """The basis with rows of zeros, which take nothing out, up to `count` rows: bases of one shape for one program."""
    return np.pad(basis, ((0, count - len(basis)), (0, 0)))


def ranked(subspaces: Mapping[str, np.ndarray], ranks: Sequence[int]) -> Iterator[tuple[str, int, np.ndarray]]:
    """The name, the number of directions and the basis, all of one shape, of nothing and of each subspace.

    Each subspace at each of the ranks that it has; those of `WHOLE` whole.
    """
    count = max(ranks[-1], *map(len, subspaces.values()))
    yield NOTHING, 0, padded(next(iter(subspaces.values()))[:0], count)
    for name, basis in subspaces.items():
        for rank in (len(basis),) if name in WHOLE else ranks:
            if 0 < rank <= len(basis):
                yield name, rank, padded(basis[:rank], count)
