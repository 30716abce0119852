"""Measures of transfer between two networks: what a notebook imports."""

import jax
import jax.numpy as jnp

from jtrans import directions


def angles(u: jax.Array, v: jax.Array, *, fold: bool = True) -> jax.Array:
    """The angle between each pair of vectors, in degrees.

    Computed as `2 atan2(|a - b|, |a + b|)` of the unit vectors, which is accurate near 0, 90 and 180 degrees alike;
    in float32, `arccos` of the cosine is 0.03 degrees off near 0.

    Args:
      u, v: `[N, ...]`, the same shape.
      fold: give `min(angle, 180 - angle)`, in [0, 90] (BenShmuel 2022, section 3.1), rather than [0, 180].

    Returns:
      `[N]`; NaN where either vector is zero or not finite.

    Raises:
      ValueError: the shapes differ.
    """
    if jnp.shape(u) != jnp.shape(v):
        raise ValueError(f"u and v: got shapes {jnp.shape(u)} and {jnp.shape(v)}; they must be the same")
    a, b = directions.normalize(jnp.asarray(u)), directions.normalize(jnp.asarray(v))
    difference, total = jnp.linalg.norm(a - b, axis=1), jnp.linalg.norm(a + b, axis=1)
    if fold:
        difference, total = jnp.minimum(difference, total), jnp.maximum(difference, total)
    return jnp.rad2deg(2 * jnp.arctan2(difference, total))
