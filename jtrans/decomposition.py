"""Taking a small subspace out of adversarial directions: how much of what networks share lies in it.

A subspace is an orthonormal basis `[K, D]`, its most important directions first. What is taken out is fitted on other
networks and other images than those measured.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from jtrans import attacks, directions, population, training
from jtrans.models import Model, Variables
from jtrans.modules import Convolution
from jtrans.population import Observation
from jtrans.training import Network

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


class Measured(NamedTuple):
    """M networks of one architecture and their P pairs, with a subspace taken out of their directions.

    Attributes:
      angle: `[P]`, the mean folded angle between what is left of the directions, in degrees.
      share: `[M]`, the mean share of a direction's squared length that was taken out.
      off, inside: `[M]`, the success of attacks along the component left, and along the one taken out, from the next
        network round a ring: the share of the images that the attacked one gets right which it then gets wrong; NaN
        where it gets none right.
    """

    angle: jax.Array
    share: jax.Array
    off: jax.Array
    inside: jax.Array


def leading(rows: np.ndarray, count: int) -> np.ndarray:
    """The orthonormal basis of the `count` directions along which the rows have most of their squared length.

    Their first right singular vectors, that is. The rows are taken as they are: their mean is not subtracted.

    Args:
      rows: `[R, D]`; those that are zero or not finite are left out.
      count: as many at most, and no more than there are rows or values.

    Returns:
      `[K, D]`, float32.
    """
    rows = np.asarray(rows, np.float32)
    rows = rows[np.isfinite(rows).all(1) & rows.any(1)]
    count = min(count, *rows.shape)
    if count == 0:
        return np.zeros((0, rows.shape[1]), np.float32)
    rows = rows / np.abs(rows).max()  # products of very long or very short rows leave float32
    wide = rows.shape[0] < rows.shape[1]
    gram = rows @ rows.T if wide else rows.T @ rows
    _, vectors = scipy.linalg.eigh(gram, subset_by_index=(len(gram) - count, len(gram) - 1))
    basis = (rows.T @ vectors if wide else vectors)[:, ::-1]
    # Those of small singular values are no longer at right angles in float32.
    return np.ascontiguousarray(np.linalg.qr(basis)[0].T)


def updates(before: np.ndarray, after: np.ndarray, shape: Sequence[int], layer: Convolution | None) -> np.ndarray:
    """Where networks' first layers have moved to, among images: rows that span it, weighted by how far.

    The rows of a fully-connected layer's update are images already. A convolution's update is a set of small filters,
    each of which acts at every position: the rows are the filters' principal directions at each of these.

    Args:
      before, after: the layer's kernels of M networks, `[M, H, D]`, whose columns are the inputs, channels first; or of
        a convolution `[M, kh, kw, C, F]`.
      shape: `(height, width, channels)` of the images.
      layer: the convolution; None where the layer is fully connected.

    Returns:
      `[R, D]`, in the order of the images.
    """
    height, width, channels = shape
    moved = after - before
    if layer is None:
        return moved.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(-1, height * width * channels)
    size, stride, padding = layer.kernel, layer.stride, layer.padding
    filters = np.moveaxis(moved, -1, 1).reshape(-1, size * size * channels)
    filters = np.linalg.qr(filters, mode="r").reshape(-1, size, size, channels)  # as many as values, with the same Gram
    tops, lefts = (range(0, side + 2 * padding - size + 1, stride) for side in (height, width))
    rows = np.zeros(
        (len(tops), len(lefts), len(filters), height + 2 * padding, width + 2 * padding, channels), np.float32
    )
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            rows[i, j, :, top : top + size, left : left + size] = filters
    inner = slice(padding, padding + height), slice(padding, padding + width)
    return rows[:, :, :, *inner].reshape(-1, height * width * channels)


def split(unit: jax.Array, basis: jax.Array) -> Parts:
    """Unit directions `[M, n, D]`, split by the span of a basis `[K, D]`, orthonormal but for rows of zeros."""
    flat = unit.reshape(-1, unit.shape[-1])
    off = directions.project_off(flat, basis)
    inside = flat - off

    def like(part: jax.Array) -> jax.Array:
        real = jnp.linalg.norm(part, axis=1, keepdims=True) > ROUNDING
        return directions.normalize(jnp.where(real, part, 0)).reshape(unit.shape)

    return Parts(like(off), like(inside), jnp.square(inside).sum(-1).reshape(unit.shape[:-1]))


def measure(
    model: Model,
    networks: Network,
    seen: Observation,
    images: jax.Array,
    labels: jax.Array,
    basis: jax.Array,
    *,
    epsilon: float,
) -> Measured:
    """The angles without the subspace, and attacks of either component, bounded in L2.

    Args:
      networks: `[M, ...]` of one architecture.
      seen: what `population.observe` finds of them on these images, uint8 `[n, H, W, C]` with labels `[n]`.
      basis: as in `split`.
      epsilon: the attacks' Euclidean length, in units of pixels in [0, 1].
    """
    x = training.pixels(images)
    parts = split(seen.unit, basis)
    first, second = population.pairs(1, len(seen.unit))[0].T
    _, source = population.attackers(1, len(seen.unit)).T
    cosine = jnp.einsum("and,bnd->abn", parts.off, parts.off, precision="highest")

    def right(variables: Variables, unit: jax.Array) -> jax.Array:
        # An image without a direction stays where it is.
        attacked = jnp.clip(x + epsilon * jnp.nan_to_num(unit).reshape(x.shape), 0, 1)
        return attacks.right(model.apply(variables, attacked), labels)

    def success(unit: jax.Array) -> jax.Array:
        attacked = jax.vmap(right)(networks.variables, unit[source])
        counted = (seen.correct == 1) & ~jnp.isnan(attacked)
        return (counted & (attacked == 0)).sum(1) / counted.sum(1)

    angle = jnp.nanmean(population.folded(cosine[first, second]), 1)
    return Measured(angle, jnp.nanmean(parts.share, 1), success(parts.off), success(parts.inside))
