"""Controlling transferability: training that keeps a network's adversarial directions away from a surrogate's.

The code of Liang et al. (2021) adds to the loss a coefficient times the absolute cosine between the two networks' input
gradients. The surrogate is frozen. It and the coefficient are part of a network's variables, beside its parameters, so
that many coefficients are trained side by side.
"""

import jax
import jax.numpy as jnp

from jtrans import directions, training
from jtrans.models import Model, Variables
from jtrans.training import Objective

PENALTY = "penalty"  # where a network's variables hold the surrogate and the coefficient


def objective(surrogate: Model) -> Objective:
    """The loss to train with: the cross entropy, and the penalty against networks of the surrogate's architecture.

    A network's variables hold, beside its own, what `with_surrogate` puts there; training leaves it as it is. The input
    gradients are those of evaluation mode.
    """

    def penalised(
        model: Model, variables: Variables, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Variables]:
        loss, moved = training.cross_entropy(model, variables, images, labels, key)
        held = variables[PENALTY]
        own = directions.loss_gradient(lambda x: model.apply(variables, x), images, labels)
        other = directions.loss_gradient(lambda x: surrogate.apply(held["surrogate"], x), images, labels)
        return loss + held["coefficient"] * absolute_cosine(own, other).mean(), moved

    return penalised


def with_surrogate(variables: Variables, surrogate: Variables, coefficient: jax.Array) -> Variables:
    """A network's variables with the surrogate that it keeps away from, and how strongly."""
    return {**variables, PENALTY: {"surrogate": surrogate, "coefficient": coefficient}}


def absolute_cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """`|cos|` between each example's vectors `[N, ...]`: `[N]` in [0, 1]; 0, without a slope, where one is zero."""
    flat = [vectors.reshape(len(vectors), -1) for vectors in (first, second)]
    peaks = [jax.lax.stop_gradient(jnp.abs(vectors).max(1, keepdims=True)) for vectors in flat]
    known = (peaks[0] > 0) & (peaks[1] > 0)
    # Small gradients underflow when they are squared: bring the largest entry to 1. In the place of a zero vector one
    # stands that nothing depends on.
    a, b = (jnp.where(known, v / jnp.where(known, peak, 1), 1.0) for v, peak in zip(flat, peaks, strict=True))
    cosine = (a * b).sum(1) / (jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1))
    return jnp.where(known[:, 0], jnp.abs(cosine), 0.0)
