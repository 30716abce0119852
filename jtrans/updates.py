"""Update vectors: how the first layer moves in one step, one vector for each hidden unit (BenShmuel 2022, section 4).

The networks are fully connected; their first layer's kernel is `[H, D]`, a row for each of H hidden units.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jtrans import directions, training
from jtrans.models import Model, Variables

BINS = 90  # of one degree each
FIRST_LAYER = "Dense_0"


class Angles(NamedTuple):
    """The folded angles between two sets of vectors.

    Attributes:
      mean: degrees in [0, 90]; NaN where no two vectors have an angle.
      histogram: `[BINS]`, the share of the angles in each degree.
    """

    mean: jax.Array
    histogram: jax.Array


class Step(NamedTuple):
    """One network's first step of SGD.

    Attributes:
      vectors: `[H, D]`, the unit update vectors; NaN where a unit did not move.
      within: the angles between them.
      adversarial: after a step so large that little of the initial weights is left, the angles between the adversarial
        direction at each test image and each update vector.
      ratio: the length of the first layer's large step over that of its initial weights.
    """

    vectors: jax.Array
    within: Angles
    adversarial: Angles
    ratio: jax.Array


def one_step(
    model: Model,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    test_images: jax.Array,
    test_labels: jax.Array,
    *,
    learning_rate: float,
) -> Step:
    """One step on a batch (uint8 `[B, H, W, C]`, labels `[B]`), measured for Tables 1 and 2.

    Args:
      key: the initial weights are drawn from it.
      test_images, test_labels: where the adversarial directions are taken.
      learning_rate: of the large step; the direction of the update vectors does not depend on it.
    """
    variables = model.init(key)
    moved = gradient(model, variables, images, labels)
    unit = vectors(moved)
    after = jax.tree.map(lambda p, g: p - learning_rate * g, variables["params"], moved)
    f = partial(model.apply, {**variables, "params": after})
    gradients = directions.loss_gradient(f, training.pixels(test_images), test_labels)
    # The kernel has its inputs as the network flattens them, channels first.
    adversarial = directions.normalize(jnp.moveaxis(gradients, -1, 1))
    size = lambda params: jnp.linalg.norm(params[FIRST_LAYER]["kernel"])
    ratio = learning_rate * size(moved) / size(variables["params"])
    return Step(unit, angles(unit, unit, same=True), angles(adversarial, unit), ratio)


def gradient(model: Model, variables: Variables, images: jax.Array, labels: jax.Array) -> Variables:
    """The gradient of the mean negative log-likelihood of a batch: what a step of SGD subtracts, per learning rate.

    Args:
      images: uint8 `[B, H, W, C]`.
      labels: `[B]`.
    """

    def loss(params: Variables) -> jax.Array:
        logits = model.apply({**variables, "params": params}, training.pixels(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss)(variables["params"])


def vectors(params: Variables) -> jax.Array:
    """The first layer's rows at unit length, `[H, D]`; NaN where a row is zero, as of a unit that did not move."""
    return directions.normalize(params[FIRST_LAYER]["kernel"])


def angles(first: jax.Array, second: jax.Array, *, same: bool = False) -> Angles:
    """Every vector of one set with every one of the other; those that are NaN are left out.

    Args:
      first, second: unit vectors `[G, D]` and `[H, D]`.
      same: both are the same set: each pair counts once, and no vector with itself.
    """
    cosine = jnp.matmul(first, second.T, precision="highest")
    angle = jnp.rad2deg(jnp.arccos(jnp.minimum(jnp.abs(cosine), 1.0)))
    known = ~jnp.isnan(angle)
    if same:
        known = jnp.triu(known, 1)
    count = known.sum()
    degree = jnp.clip(jnp.where(known, angle, 0), 0, BINS - 1).astype(int)
    histogram = jnp.zeros(BINS, int).at[degree].add(known)  # float32 stops counting at 2^24
    return Angles(jnp.where(known, angle, 0).sum() / count, histogram / count)
