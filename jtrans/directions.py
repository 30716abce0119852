"""Adversarial directions: where in input space a network is easiest to fool.

A direction's length and overall sign carry no meaning here; `normalize` gives the unit vector.
Every `f` is a pure function from inputs `[N, ...]` to logits `[N, K]`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Function = Callable[[jax.Array], jax.Array]


def normalize(vectors: jax.Array) -> jax.Array:
    """Each example's vector at unit length.

    Args:
      vectors: `[N, ...]`, any scale that float32 can hold.

    Returns:
      `[N, D]`, flattened; NaN where the vector is zero or not finite, since neither has a direction.
    """
    flat = vectors.reshape(len(vectors), -1)
    # Squares of small gradients underflow float32: bring the largest entry to 1 before taking the norm.
    flat = flat / jnp.max(jnp.abs(flat), axis=1, keepdims=True)
    return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)


def loss_cotangent(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The direction, among the logits, in which each example's cross entropy grows.

    The gradient of the cross entropy is `softmax(logits) - onehot(label)`. Divided by the probability of a wrong class
    it becomes `softmax over the other classes - onehot(label)`: the same direction, but without the cancellation that
    costs a confident network in float32 its direction. For two classes it is the gradient of the margin.

    Args:
      logits: `[N, K]`, K at least 2.
      labels: `[N]` integers in `[0, K)`.

    Returns:
      `[N, K]`.

    Raises:
      ValueError: K is less than 2.
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"logits: got {logits.shape[-1]} class; a cross entropy takes 2 or more")
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jax.nn.softmax(jnp.where(own, -jnp.inf, logits)) - own


def loss_gradient(f: Function, x: jax.Array, y: jax.Array) -> jax.Array:
    """The direction of the gradient of each example's own cross entropy with respect to the input.

    This is the adversarial direction of BenShmuel (2022), section 3.1, up to a positive scale for each example.

    Args:
      f: `[N, ...] -> [N, K]` logits; example i's logits depend on example i alone.
      x: `[N, ...]` inputs.
      y: `[N]` integer labels in `[0, K)`.

    Returns:
      `[N, ...]`, shaped like `x`.
    """
    logits, pull_back = jax.vjp(f, x)
    (gradient,) = pull_back(loss_cotangent(logits, y))
    return gradient
