"""Networks measured with a subspace taken out of their adversarial directions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtrans import attacks, directions, loops
from jtrans.attacks.balls import within
from jtrans.data import Split
from jtrans.models import Model, Variables
from jtrans.population import observe
from jtrans.training import Network

ROUNDING = 1e-5  # of a unit direction: a shorter part is float32's rounding
ACCURACY = {"accuracy": observe.NETWORK_MEASURES["accuracy"]}


class Left(NamedTuple):
    """The P pairs of M networks, with a subspace taken out of their directions: two fields of `Measured`."""

    angle: jax.Array
    share: jax.Array


class Measured(NamedTuple):
    """M networks of one architecture and their P pairs, with a subspace taken out of their directions.

    Attributes:
      angle: `[P]`, the mean folded angle between what is left of the directions, in degrees.
      share: `[M]`, the mean share of a direction's squared length that was taken out.
      off, inside: `[M]`, the success of attacks along the component left, and along the one taken out, from the next
        network round a ring: the share of the examples that the attacked network classifies rightly which it then
        classifies wrongly; NaN where there is none. An example without such a component stays as it is.
      accuracy: `[M]`, without an attack; NaN where a loss is not finite.
    """

    angle: jax.Array
    share: jax.Array
    off: jax.Array
    inside: jax.Array
    accuracy: jax.Array


def measure(
    model: Model, networks: Network, seen: observe.Observation, test: Split, basis: jax.Array, *, epsilon: float
) -> Measured:
    """The angles without the subspace of a basis as in `split`, and attacks along either component, bounded in L2.

    Args:
      networks: `[M, ...]` of one architecture.
      seen: what `observe.observe_singly` gives of them on these test examples, as they are stored, with labels `[n]`.
      epsilon: the attacks' Euclidean length, in units of pixels in [0, 1] or of embeddings.
    """
    (off, inside, share), correct = split(seen.unit, basis), seen.values["accuracy"]
    _, source = observe.attackers(1, len(correct)).T
    angle = mean_angles(off)

    def batch(variables: Variables, images: jax.Array, labels: jax.Array, unit: jax.Array) -> tuple[None, jax.Array]:
        x = model.inputs.of(images)
        # An example without a direction stays as it is.
        moved = within(x + epsilon * jnp.nan_to_num(unit).reshape(x.shape), model.inputs.bounds)
        return None, attacks.right(model.apply(variables, moved), labels)

    def success(unit: jax.Array) -> jax.Array:
        right = lambda one: loops.in_batches(batch, observe.SINGLY, *test, one[1], whole=one[:1])[1]
        return attacks.flipped(jax.lax.map(right, (networks.variables, unit[source])), correct)

    return Measured(angle, jnp.nanmean(share, 1), success(off), success(inside), jnp.mean(correct, 1))


def left(unit: jax.Array, basis: jax.Array) -> Left:
    """What `measure` says of unit directions `[M, n, D]` alone: without attacks, and without the networks."""
    off, _, share = split(unit, basis)
    return Left(mean_angles(off), jnp.nanmean(share, 1))


def mean_angles(unit: jax.Array) -> jax.Array:
    """The mean folded angle `[P]` of each pair of networks between unit directions `[M, n, D]`, in degrees."""
    first, second = observe.pairs(1, len(unit))[0].T
    cosine = jnp.einsum("and,bnd->abn", unit, unit, precision="highest")
    return jnp.nanmean(observe.folded(cosine[first, second]), 1)


def shares(unit: jax.Array, basis: jax.Array) -> jax.Array:
    """The mean share of the squared length of unit directions `[M, n, D]` that the first 1, 2, ..., K directions of a
    basis `[K, D]` take out: `[K]`.
    """
    coefficients = jnp.einsum("mnd,kd->mnk", unit, basis, precision="highest")
    return jnp.nanmean(jnp.nanmean(jnp.square(coefficients), 1), 0).cumsum()


def split(unit: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unit directions `[M, n, D]`, split by the span of a basis `[K, D]`, orthonormal but for rows of zeros.

    Returns:
      The components outside and within it, at unit length, NaN where there is none; `[M, n]`, the squared length of the
      one within, from 0 to 1.
    """
    flat = unit.reshape(-1, unit.shape[-1])
    off = directions.project_off(flat, basis)
    inside = flat - off

    def at_unit_length(part: jax.Array) -> jax.Array:
        real = jnp.linalg.norm(part, axis=1, keepdims=True) > ROUNDING
        return directions.normalize(jnp.where(real, part, 0)).reshape(unit.shape)

    return at_unit_length(off), at_unit_length(inside), jnp.square(inside).sum(-1).reshape(unit.shape[:-1])
