"""Knowledge transfer: a network's last layer fitted again on a new domain, on top of its frozen features."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Head(NamedTuple):
    """An affine map of features: `features @ weights + bias`."""

    weights: jax.Array
    bias: jax.Array


def fit_head(features: jax.Array, targets: jax.Array) -> Head:
    """The affine map of least squared error, in closed form.

    Args:
      features: `[N, F]`. Where they are redundant, the smallest weights that fit best are given.
      targets: `[N, K]`.

    Returns:
      Head of weights `[F, K]` and bias `[K]`.
    """
    with jax.default_matmul_precision("highest"):
        # Centred, the bias is no part of the system, which is better conditioned for it.
        center, middle = features.mean(0), targets.mean(0)
        weights = jnp.linalg.lstsq(features - center[None], targets - middle[None])[0]
        return Head(weights, middle - center @ weights)


def root_mean_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The square root of the squared error, summed over outputs and averaged over examples (Liang et al. 2021)."""
    return jnp.sqrt(jnp.sum((outputs - targets) ** 2, axis=1).mean())


def transfer_loss(features: jax.Array, targets: jax.Array) -> jax.Array:
    """The error on `targets [N, K]` of the best affine head on `features [N, F]`: low where the features transfer."""
    head = fit_head(features, targets)
    with jax.default_matmul_precision("highest"):
        return root_mean_squared_error(features @ head.weights + head.bias[None], targets)
