"""Small subspaces of the images' space: fitted to rows of numbers, and taken out of directions.

A subspace is an orthonormal basis `[K, D]`, its most important directions first. It is fitted on other networks and
other images than those measured.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from jtrans import directions
from jtrans.models.modules import Convolution

NOTHING = "nothing"  # the subspace of no directions
BLOCK = 1000  # rows of a Gram matrix that are in memory at once
ROUNDING = 1e-5  # of a unit direction: a shorter part is float32's rounding


class Parts(NamedTuple):
    """Unit directions `[M, n, D]` of M networks on n images, split by a subspace.

    Attributes:
      off, inside: the components outside and within it, at unit length; NaN where there is none.
      share: `[M, n]`, the squared length of the component within, from 0 to 1.
    """

    off: jax.Array
    inside: jax.Array
    share: jax.Array


def leading(rows: np.ndarray, count: int, *, center: np.ndarray | float = 0.0) -> np.ndarray:
    """The orthonormal basis of the `count` directions along which the rows have most of their squared length.

    Their first right singular vectors, that is. The rows are taken as they are, unless a center is given.

    Args:
      rows: `[R, D]`, numbers of any kind; those that are zero or not finite are left out.
      count: as many at most, and no more than there are rows or values.
      center: what is subtracted, as the rows' mean; `[D]`, or `[R, D]`, from each row its own.

    Returns:
      `[K, D]`, float32.
    """
    rows = np.asarray(rows)
    centers = np.broadcast_to(center, rows.shape)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(rows), BLOCK)]

    def usable(block: slice) -> np.ndarray:
        part = np.subtract(rows[block], centers[block], dtype=np.float32)
        return part[np.isfinite(part).all(1) & part.any(1)]

    used = sum(len(usable(block)) for block in blocks)
    if used == 0:
        return np.zeros((0, rows.shape[1]), np.float32)
    scale = max(np.abs(usable(block)).max(initial=0) for block in blocks)
    scaled = (usable(block) / scale for block in blocks)  # products of very long or very short rows leave float32
    count = min(count, used, rows.shape[1])
    # The smaller of two Gram matrices: of the rows, or else of the values, which blocks of rows add up to.
    if used <= rows.shape[1]:
        whole = np.fromiter(itertools.chain.from_iterable(scaled), (np.float32, rows.shape[1]), used)
        basis = _leading_of_gram(whole @ whole.T, count) @ whole
        # Those of small singular values are no longer at right angles in float32.
        return np.ascontiguousarray(np.linalg.qr(basis.T)[0].T)
    gram = np.zeros((rows.shape[1], rows.shape[1]), np.float32)
    for block in scaled:
        gram += block.T @ block
    return _leading_of_gram(gram, count)


def _leading_of_gram(gram: np.ndarray, count: int) -> np.ndarray:
    """The eigenvectors `[count, D]` of a Gram matrix's largest eigenvalues, which overwrite the matrix."""
    # Its transpose is in Fortran's order, which LAPACK takes without a copy.
    _, vectors = scipy.linalg.eigh(gram.T, subset_by_index=(len(gram) - count, len(gram) - 1), overwrite_a=True)
    return np.ascontiguousarray(vectors.T[::-1])


def updates(
    before: np.ndarray, after: np.ndarray, shape: Sequence[int], layer: Convolution | None, count: int
) -> np.ndarray:
    """The directions among images in which networks' first layers have moved most.

    The rows of a fully-connected layer's update are images already. A convolution's update is a set of small filters,
    each of which acts at every position: the rows are the filters at each of these, with zeros around them.

    Args:
      before, after: the layer's kernels of M networks, `[M, H, D]`, whose columns are the inputs, channels first; or of
        a convolution `[M, kh, kw, C, F]`.
      shape: `(height, width, channels)` of the images.
      layer: the convolution; None where the layer is fully connected.
      count: as in `leading`.

    Returns:
      `leading` of the rows, `[K, D]` in the order of the images.
    """
    height, width, channels = shape
    if layer is None:
        before, after = (kernel.reshape(-1, height * width * channels) for kernel in (before, after))
        basis = leading(after, count, center=before)
        return basis.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(basis.shape)
    filters = np.moveaxis(after - before, -1, 1).reshape(-1, layer.kernel**2 * channels)
    filters = filters[np.isfinite(filters).all(1)]
    if not filters.any():
        return np.zeros((0, height * width * channels), np.float32)
    filters = filters / np.abs(filters).max()  # products of very long or very short ones leave float32
    of_filters = filters.T @ filters
    # Where each value of the image stands among the values of the rows; -1 in the padding.
    inner = np.arange(height * width * channels).reshape(shape)
    value = np.pad(inner, ((layer.padding, layer.padding), (layer.padding, layer.padding), (0, 0)), constant_values=-1)
    gram = np.zeros((inner.size, inner.size), np.float32)
    tops, lefts = (range(0, side - layer.kernel + 1, layer.stride) for side in value.shape[:2])
    for top, left in itertools.product(tops, lefts):
        under = value[top : top + layer.kernel, left : left + layer.kernel].ravel()
        seen = under >= 0
        gram[np.ix_(under[seen], under[seen])] += of_filters[np.ix_(seen, seen)]
    return _leading_of_gram(gram, min(count, inner.size))


def of_images(images: np.ndarray, key: jax.Array, count: int, *, subtract_mean: bool) -> dict[str, np.ndarray]:
    """The subspaces that need no network, of `count` directions at most.

    Args:
      images: uint8 `[N, H, W, C]`, of training.
      key: draws the random directions.
      subtract_mean: whether the networks see the images without their mean.
    """
    rows = images.reshape(len(images), -1)
    mean = rows.mean(0, keepdims=True, dtype=np.float32)
    noise = directions.random(key, np.zeros((count, rows.shape[1]), np.float32))
    return {
        "random": leading(noise, count),
        "mean_image": leading(mean, 1),
        # As the networks see them, but for their scale, which changes no direction.
        "training_images": leading(rows, count, center=mean if subtract_mean else 0.0),
    }


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


def split(unit: jax.Array, basis: jax.Array) -> Parts:
    """Unit directions `[M, n, D]`, split by the span of a basis `[K, D]`, orthonormal but for rows of zeros."""
    flat = unit.reshape(-1, unit.shape[-1])
    off = directions.project_off(flat, basis)
    inside = flat - off

    def like(part: jax.Array) -> jax.Array:
        real = jnp.linalg.norm(part, axis=1, keepdims=True) > ROUNDING
        return directions.normalize(jnp.where(real, part, 0)).reshape(unit.shape)

    return Parts(like(off), like(inside), jnp.square(inside).sum(-1).reshape(unit.shape[:-1]))
