"""Balls around inputs: projection onto them, random points in them, and steps, in L-inf and in L2."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import directions

Bounds = tuple[float, float] | None
Support = Callable[[jax.Array], jax.Array] | None


class Ball(NamedTuple):
    """A norm's ball.

    Attributes:
      project: `(adversarial, x, epsilon, bounds)`: the nearest point of the ball around x, within the bounds.
      offset: `(key, support)`: a uniformly random point of the unit ball around 0, shaped like the support, which is 1
        at the values that change and 0 at the others.
      along: the step of length 1 along each of the vectors `[N, ...]`.
      flat: how much longer `along` makes a vector of D equal values whose L1 norm is 1, from D.
    """

    project: Callable[[jax.Array, jax.Array, float, Bounds], jax.Array]
    offset: Callable[..., jax.Array]
    along: Callable[[jax.Array], jax.Array]
    flat: Callable[[jax.Array], jax.Array]

    def offsets(self, keys: jax.Array | None, x: jax.Array, support: Support = None) -> jax.Array:
        """Random points of the unit ball, one for each example's key, shaped like `x`; ValueError without keys."""
        return jax.vmap(self.offset)(directions.example_keys(keys, len(x)), support_of(x, support))


def support_of(x: jax.Array, support: Support) -> jax.Array:
    """1 at the values of the support, and 0 at the others, shaped like `x`."""
    return jnp.ones_like(x) if support is None else jnp.broadcast_to(support(x), x.shape).astype(x.dtype)


def sums(x: jax.Array) -> jax.Array:
    """The sum of each example's values, `[N, 1, ...]` with the axes of `x`."""
    return x.reshape(len(x), -1).sum(1).reshape(-1, *[1] * (x.ndim - 1))


def within(x: jax.Array, bounds: Bounds) -> jax.Array:
    """The values clipped to the bounds, if there are any."""
    return x if bounds is None else jnp.clip(x, *bounds)


def _project_linf(adversarial: jax.Array, x: jax.Array, epsilon: float, bounds: Bounds) -> jax.Array:
    """Project onto the L-inf ball around x, exact to the last bit: `x +- epsilon` is rounded towards x."""
    radius = np.asarray(epsilon, x.dtype)
    radius = radius if radius <= epsilon else np.nextafter(radius, np.asarray(0, x.dtype))
    high, low = (jnp.where(_rounded_out(x, r), jnp.nextafter(x + r, x), x + r) for r in (radius, -radius))
    return within(jnp.clip(adversarial, low, high), bounds)


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
    return within(x + delta * jnp.minimum(1, radius / jnp.where(length == 0, 1, length)), bounds)


def _uniform_in_box(key: jax.Array, support: jax.Array) -> jax.Array:
    return jax.random.uniform(key, support.shape, support.dtype, -1, 1) * support


def _uniform_in_ball(key: jax.Array, support: jax.Array) -> jax.Array:
    direction, radius = jax.random.split(key)
    normal = jax.random.normal(direction, support.shape, support.dtype) * support
    length = jax.random.uniform(radius, (), support.dtype) ** (1 / support.sum())
    return normal / jnp.linalg.norm(normal.reshape(-1)) * length


def _along_gradient(gradient: jax.Array) -> jax.Array:
    unit = directions.normalize(gradient).reshape(gradient.shape)
    return jnp.where(gradient == 0, 0, unit)  # a zero gradient gives a zero step, not NaN


BALLS: dict[str, Ball] = {
    "linf": Ball(_project_linf, _uniform_in_box, jnp.sign, lambda count: count),
    "l2": Ball(_project_l2, _uniform_in_ball, _along_gradient, jnp.sqrt),
}
