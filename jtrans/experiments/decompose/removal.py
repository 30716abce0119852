"""Networks measured with a subspace taken out of their adversarial directions."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtrans import attacks, loops, training
from jtrans.data import Split
from jtrans.experiments.decompose import subspaces
from jtrans.models import Model, Variables
from jtrans.population import observe
from jtrans.population.observe import NETWORK_MEASURES, Observation
from jtrans.training import Network

IMAGES = 100  # that a network is measured on at once
ACCURACY = {"accuracy": NETWORK_MEASURES["accuracy"]}


class Measured(NamedTuple):
    """M networks of one architecture and their P pairs, with a subspace taken out of their directions.

    Attributes:
      angle: `[P]`, the mean folded angle between what is left of the directions, in degrees.
      share: `[M]`, the mean share of a direction's squared length that was taken out.
      off, inside: `[M]`, the success of attacks along the component left, and along the one taken out, from the next
        network round a ring: the share of the images that the attacked network classifies rightly which it then
        classifies wrongly; NaN where there is none.
      accuracy: `[M]`, without an attack; NaN where a loss is not finite.
    """

    angle: jax.Array
    share: jax.Array
    off: jax.Array
    inside: jax.Array
    accuracy: jax.Array


def look(model: Model, networks: Network, test: Split) -> Observation:
    """`observe.observe` of networks `[M, ...]`, one network and `IMAGES` images at once: in the memory of those."""
    return jax.lax.map(partial(_look_at_one, model, test), networks)


def _look_at_one(model: Model, test: Split, network: Network) -> Observation:
    alone = jax.tree.map(lambda leaf: leaf[None], network)

    def batch(images: jax.Array, labels: jax.Array) -> tuple[None, Observation]:
        seen = observe.observe(model, alone, images, labels, measures=ACCURACY)
        return None, jax.tree.map(lambda leaf: leaf[0], seen)

    return loops.in_batches(batch, IMAGES, *test)[1]


def measure(
    model: Model, networks: Network, seen: Observation, test: Split, basis: jax.Array, *, epsilon: float
) -> Measured:
    """The angles without the subspace, and attacks along either component, bounded in L2.

    Args:
      networks: `[M, ...]` of one architecture.
      seen: what `look` gives of them on these test images, uint8 `[n, H, W, C]` with labels `[n]`.
      basis: as in `subspaces.split`.
      epsilon: the attacks' Euclidean length, in units of pixels in [0, 1].
    """
    parts, correct = subspaces.split(seen.unit, basis), seen.values["accuracy"]
    first, second = observe.pairs(1, len(seen.unit))[0].T
    _, source = observe.attackers(1, len(seen.unit)).T
    cosine = jnp.einsum("and,bnd->abn", parts.off, parts.off, precision="highest")
    angle = jnp.nanmean(observe.folded(cosine[first, second]), 1)
    attacked = partial(_attacked, model, networks.variables, test, epsilon=epsilon)
    success = lambda unit: attacks.flipped(attacked(unit[source]), correct)
    share, accuracy = jnp.nanmean(parts.share, 1), jnp.mean(correct, 1)
    return Measured(angle, share, success(parts.off), success(parts.inside), accuracy)


def _attacked(model: Model, variables: Variables, test: Split, unit: jax.Array, *, epsilon: float) -> jax.Array:
    """What `attacks.right` gives, `[M, n]`, of images moved along directions `[M, n, D]`, one network at once."""

    def batch(variables: Variables, images: jax.Array, labels: jax.Array, unit: jax.Array) -> tuple[None, jax.Array]:
        x = training.pixels(images)
        # An image without a direction stays as it is.
        moved = jnp.clip(x + epsilon * jnp.nan_to_num(unit).reshape(x.shape), 0, 1)
        return None, attacks.right(model.apply(variables, moved), labels)

    right = lambda one: loops.in_batches(partial(batch, one[0]), IMAGES, *test, one[1])[1]
    return jax.lax.map(right, (variables, unit))
