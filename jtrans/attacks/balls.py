"""Balls around inputs: projection onto them, random points in them, and steps, in L-inf and in L2."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import directions

Bounds = tuple[float, float] | None


class Ball(NamedTuple):
    """A norm's ball.

    Attributes:
      project: `(adversarial, x, epsilon, bounds)`: the nearest point of the ball around x, within the bounds.
      offset: `(key, shape, dtype)`: a uniformly random point of the unit ball around 0.
      along: the step of length 1 along each of the vectors `[N, ...]`.
      flat: of `along` over its argument, for D values of equal size whose L1 norm is 1.
    """

    project: Callable[[jax.Array, jax.Array, float, Bounds], jax.Array]
    offset: Callable[..., jax.Array]
    along: Callable[[jax.Array], jax.Array]
    flat: Callable[[int], float]

    def offsets(self, keys: jax.Array | None, x: jax.Array) -> jax.Array:
        """Random points of the unit ball, one for each example's key, shaped like `x`; ValueError without keys."""
        return jax.vmap(lambda k: self.offset(k, x.shape[1:], x.dtype))(directions.example_keys(keys, len(x)))


def sums(x: jax.Array) -> jax.Array:
    """The sum of each example's values, `[N, 1, ...]` with the axes of `x`."""
    return x.reshape(len(x), -1).sum(1).reshape(-1, *[1] * (x.ndim - 1))


def _within(x: jax.Array, bounds: Bounds) -> jax.Array:
    return x if bounds is None else jnp.clip(x, *bounds)


def _project_linf(adversarial: jax.Array, x: jax.Array, epsilon: float, bounds: Bounds) -> jax.Array:
    """Project onto the L-inf ball around x, exact to the last bit: `x +- epsilon` is rounded towards x."""
    radius = np.asarray(epsilon, x.dtype)
    radius = radius if radius <= epsilon else np.nextafter(radius, np.asarray(0, x.dtype))
    high, low = (jnp.where(_rounded_out(x, r), jnp.nextafter(x + r, x), x + r) for r in (radius, -radius))
    return _within(jnp.clip(adversarial, low, high), bounds)


def _rounded_out(x: jax.Array, r: np.ndarray) -> jax.Array:
    """Whether `x + r` was rounded away from x: the sign of its rounding error, exact by Knuth's two-sum."""
    total = x + r
    rounded_r = total - x
    error = (x - (total - rounded_r)) + (r - rounded_r)
    return error * np.sign(r) < 0


def _project_l2(adversarial: jax.Array, x: jax.Array, epsilon: float, bounds: Bounds) -> jax.Array:
    """Project onto the L2 ball around x; the radius leaves room for the rounding of `x + delta` in every value."""
    delta = adversarial - x
    size = np.prod(x.shape[1:])
    largest = jnp.max(jnp.abs(x)) + epsilon
    radius = jnp.maximum(epsilon * (1 - 1e-6) - np.sqrt(size) * jnp.finfo(x.dtype).eps * largest / 2, 0)
    length = jnp.sqrt(sums(delta**2))
    return _within(x + delta * jnp.minimum(1, radius / jnp.where(length == 0, 1, length)), bounds)


def _uniform_in_ball(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    direction, radius = jax.random.split(key)
    normal = jax.random.normal(direction, shape, dtype)
    return normal / jnp.linalg.norm(normal.reshape(-1)) * jax.random.uniform(radius, (), dtype) ** (1 / np.prod(shape))


def _along_gradient(gradient: jax.Array) -> jax.Array:
    unit = directions.normalize(gradient).reshape(gradient.shape)
    return jnp.where(gradient == 0, 0, unit)  # a zero gradient gives a zero step, not NaN


BALLS: dict[str, Ball] = {
    "linf": Ball(_project_linf, partial(jax.random.uniform, minval=-1, maxval=1), jnp.sign, float),
    "l2": Ball(_project_l2, _uniform_in_ball, _along_gradient, math.sqrt),
}
