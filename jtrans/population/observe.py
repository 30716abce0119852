"""What is measured of networks and of pairs after a step: `NETWORK_MEASURES` and `PAIR_MEASURES`.

A new quantity is one entry in one of them. The trajectory, its npz and CSV files, its checkpoints and the summary loop
over the entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtrans import attacks, directions, loops, stats
from jtrans.attacks.balls import BALLS, within
from jtrans.data import Split
from jtrans.models import Model, Variables
from jtrans.population import devices
from jtrans.population.devices import Group, Placement
from jtrans.training import Network

if TYPE_CHECKING:  # the engine imports this module
    from jtrans.population.engine import Population

# Directions along which a network of the first architecture is attacked.
ATTACKS = ("another network's", "its own", "random signs")

# Test images are measured so many at once at most, and fewer where the directions of all networks would take more.
BLOCK = 200
DIRECTIONS_BYTES = 3 * 2**27
SINGLY = 100  # images at which one network alone is measured at once
MOST_PAIRS = 2**17  # of more pairs, the values of a sample of so many are kept: all of 512 networks are fewer
ROWS = 256  # networks of a device compared with others at once: larger products are no faster


class Seen(NamedTuple):
    """What one network does at n test examples of D values."""

    unit: jax.Array  # `[n, D]`, its adversarial directions at unit length; NaN where it has none
    logits: jax.Array  # `[n, K]`
    labels: jax.Array  # `[n]`
    channels: int = 1  # C, the values at a position, the last axis of an input
    positions: jax.Array | None = None  # `[n]`, those that are no padding; None: all of the D / C


def mean(values: np.ndarray) -> np.ndarray:
    """The mean over images of `[M, N]`, in float64: `[M]`."""
    return np.mean(values, axis=1, dtype=np.float64)


def mean_of_directions(values: np.ndarray) -> np.ndarray:
    """The mean of `[M, N]` over the images where a network has a direction, in float64: `[M]`; NaN if it has none."""
    return stats.mean_ci(values, axis=1).mean


class NetworkMeasure(NamedTuple):
    """A quantity of a network: what is taken of each image on the device, and how that is reduced on the host.

    Attributes:
      of_images: `Seen -> [n]` or `[..., n]`, for each image of a block.
      over_images: `[M, N]` or `[M, ..., N] -> [M]`, from all N test images, float32.
      share: whether it is a share, whose interval over networks lies in [0, 1].
    """

    of_images: Callable[[Seen], jax.Array]
    over_images: Callable[[np.ndarray], np.ndarray] = mean
    share: bool = False


class PairMeasure(NamedTuple):
    """A quantity of a pair of networks, the mean over images of what it is at each; NaN is left out."""

    of_images: Callable[[jax.Array], jax.Array]  # of cosines between the directions of two networks, each for itself
    share: bool = False  # whether it is a share, whose interval over pairs lies in [0, 1]


def loss(seen: Seen) -> jax.Array:
    """The negative log-likelihood in nats; NaN where the logits are not finite."""
    of_images = optax.softmax_cross_entropy_with_integer_labels(seen.logits, seen.labels)
    return jnp.where(jnp.isnan(attacks.right(seen.logits, seen.labels)), jnp.nan, of_images)


def correct(seen: Seen) -> jax.Array:
    """1 where the label is predicted, else 0; NaN where the loss is not finite: such a network is lost."""
    return jnp.where(jnp.isfinite(loss(seen)), attacks.right(seen.logits, seen.labels), jnp.nan)


def without_direction(seen: Seen) -> jax.Array:
    """1 where the input gradient is zero or not finite, else 0."""
    return jnp.isnan(seen.unit[:, 0]).astype(jnp.float32)


def constant_share(seen: Seen) -> jax.Array:
    """The share of a direction's squared length that is the same at every position: in images, a constant colour."""
    each = seen.unit.reshape(len(seen.unit), -1, seen.channels)
    count = each.shape[1] if seen.positions is None else seen.positions
    return jnp.minimum(jnp.square(each.sum(1)).sum(-1) / count, 1.0)  # against rounding


def labelled_odds(seen: Seen) -> jax.Array:
    """The labels, and the log-odds of each class's probability: `[1 + K, n]`; NaN where the loss is not finite."""
    # Of the other classes, before and after each one: not of probabilities, which round to 0 and 1.
    before = jax.lax.associative_scan(jnp.logaddexp, seen.logits, axis=1)[:, :-1]
    after = jax.lax.associative_scan(jnp.logaddexp, seen.logits, axis=1, reverse=True)[:, 1:]
    nothing = jnp.full((len(seen.logits), 1), -jnp.inf)
    others = jnp.logaddexp(jnp.concatenate([nothing, before], axis=1), jnp.concatenate([after, nothing], axis=1))
    odds = seen.logits - others
    return jnp.stack([seen.labels, *jnp.where(jnp.isfinite(loss(seen)), odds.T, jnp.nan)])


def auc(values: np.ndarray) -> np.ndarray:
    """The area under the ROC curve of M networks, from their `labelled_odds [M, 1 + K, N]`; a tie counts one half.

    For more than two classes the mean over all two classes and both roles (Hand and Till 2001, equation 7), of those
    that have images. It is 0.5 for outputs that do not depend on the image, wherever the outputs stand. NaN where the
    loss is not finite, or all images are of one class.
    """
    labels, odds = values[0, 0].astype(int), values[:, 1:].astype(np.float64)
    classes, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        return np.full(len(odds), np.nan)
    weight = 1 / counts[number] / (len(classes) - 1)  # of an image among all that are not of a class
    areas = [[_area(of_network[k], labels == k, weight) for k in classes] for of_network in odds]
    return np.where(np.isnan(odds).any(axis=(1, 2)), np.nan, np.mean(areas, axis=1))


def _area(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """The weight of the other images below a positive one, of scores `[N]`: the mean over the positive ones."""
    order = np.argsort(scores)
    below = np.concatenate([[0], np.cumsum(np.where(positive, 0, weight)[order])])
    ends = [np.searchsorted(scores[order], scores[positive], side) for side in ("left", "right")]
    return np.round(below[ends].mean(), 12)  # of ties a half: those below, and those up to it; sums of weights round


def folded(cosine: jax.Array) -> jax.Array:
    """The folded angles in degrees, 0 to 90."""
    return jnp.minimum(signed(cosine), 180 - signed(cosine))  # of one arc cosine, which is what takes time


def signed(cosine: jax.Array) -> jax.Array:
    """The angles in degrees, 0 to 180: above 90 where one direction is nearer to the other's opposite.

    Rounding may have taken the cosines beyond 1.
    """
    return jnp.rad2deg(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)))


def agrees(cosine: jax.Array) -> jax.Array:
    """1 where the cosine is above 0, else 0; NaN where either network has no direction."""
    return jnp.where(jnp.isnan(cosine), jnp.nan, cosine > 0)


def one_sign(agreement: np.ndarray) -> np.ndarray:
    """From the measure `agreement`: 1 where a pair's cosines have the same sign at all images, else 0; NaN as there."""
    return np.where(np.isnan(agreement), np.nan, (agreement == 0) | (agreement == 1))


def count(values: np.ndarray) -> np.ndarray:
    """The number of images `[M]` at which `[M, N]` is 1."""
    return (values == 1).sum(axis=1)


NETWORK_MEASURES: dict[str, NetworkMeasure] = {
    "accuracy": NetworkMeasure(correct, share=True),
    "loss": NetworkMeasure(loss),
    "undirected": NetworkMeasure(without_direction, count),
    "constant_share": NetworkMeasure(constant_share, mean_of_directions, share=True),
    "auc": NetworkMeasure(labelled_odds, auc, share=True),
}
PAIR_MEASURES: dict[str, PairMeasure] = {
    "angle": PairMeasure(folded),
    "signed_angle": PairMeasure(signed),
    "agreement": PairMeasure(agrees, share=True),
}


class Observation(NamedTuple):
    """M networks of one architecture on n test images of D values."""

    unit: jax.Array  # `[M, n, D]`, adversarial directions; NaN where a network has none
    values: dict[str, jax.Array]  # by the name of each network measure, `[M, n]` or `[M, ..., n]`


# For each architecture, a device's share of each group.
Share = Sequence[Sequence[Observation]]


class Sums(NamedTuple):
    """A pair measure over images, `[M, L]` of each network of the first architecture with each of the last.

    Where these are the same the upper triangle counts.
    """

    whole: jax.Array  # the sum of the values' nearest whole numbers
    rest: jax.Array  # the sum of what is left of them
    number: jax.Array  # how many values there are


class Measurement(NamedTuple):
    """All networks and pairs after one step.

    Attributes:
      networks: by name `[M]` of all architectures; and where there was an attack `success [M, 3, 3]` of the networks of
        the first: for each of `ATTACKS` and `attacks.DENOMINATORS` the share of images that are wrong under attack, NaN
        where there is no such image.
      pairs: by name `[P]`, NaN where no image has a value; and where each image's angle is kept `angle_examples
        [P, N]`, NaN where either network has no direction there.
      every: where these pairs are a sample, of all pairs: `every_NAME [M]` of each pair measure and of `one_sign`, a
        network's mean over all pairs that it is in, and their number `every_count [M]`; `every_half_angle` and
        `every_half_count [M]`, of the pairs within its half (`stats.halves`); and `every_histogram [90]`, the number of
        pairs by folded angle, in steps of a degree.
    """

    networks: dict[str, np.ndarray]
    pairs: dict[str, np.ndarray]
    every: dict[str, np.ndarray]


def pairs(num_models: int, num_networks: int) -> tuple[np.ndarray, np.ndarray]:
    """Which networks are compared: `pair [P, 2]`, and the architecture of each network, `model [M]`.

    All pairs of one architecture, or all across two; of more than `MOST_PAIRS` a sample, the same at each call.
    ValueError if there are other than one or two architectures.
    """
    if num_models == 1:
        pair = np.stack(np.triu_indices(num_networks, 1), axis=1)
    elif num_models == 2:
        first, second = np.indices((num_networks, num_networks)).reshape(2, -1)
        pair = np.stack([first, num_networks + second], axis=1)
    else:
        raise ValueError(f"num_models: got {num_models}; it takes 1 or 2")
    return sample(pair, MOST_PAIRS), np.repeat(np.arange(num_models), num_networks)


def num_pairs(num_models: int, num_networks: int) -> int:
    """The number of all pairs, of one architecture or across two."""
    return num_networks**2 if num_models > 1 else math.comb(num_networks, 2)


def sample(pair: np.ndarray, most: int) -> np.ndarray:
    """The rows of `pair [P, 2]`, or where there are more than `most` of them a sample of so many, in their order."""
    if len(pair) <= most:
        return pair
    return pair[np.sort(np.random.default_rng(0).choice(len(pair), most, replace=False))]


def attackers(num_models: int, num_networks: int) -> np.ndarray:
    """`[M, 2]`: each network of the first architecture, and the one whose attack it faces.

    That is the next network of the last architecture, round a ring, so that M attacks stand for all pairs.
    """
    target = np.arange(num_networks)
    return np.stack([target, (num_models - 1) * num_networks + (target + 1) % num_networks], axis=1)


def block_size(shape: tuple[int, ...], num_networks: int, batch_statistics: bool = False) -> int:
    """How many test images are measured at once, of N of `shape` `[N, ...]`; the last block may overlap another.

    The directions of all architectures' networks on a block are held together on every device. With batch statistics,
    which are those of all test images, these are measured at once.
    """
    num_examples, *of_image = shape
    if batch_statistics:
        return num_examples
    most = max(1, min(BLOCK, DIRECTIONS_BYTES // (4 * math.prod(of_image) * num_networks)))
    return -(-num_examples // -(-num_examples // most))


def observe(
    model: Model,
    networks: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    measures: Mapping[str, NetworkMeasure] = NETWORK_MEASURES,
    batch_statistics: bool = False,
) -> Observation:
    """What networks `[M, ...]` do on test examples (inputs as they are stored `[n, ...]`, labels `[n]`).

    Args:
      measures: what is taken of each image.
      batch_statistics: BatchNorm uses the statistics of these images, held constant, instead of its running ones.
    """

    def one(variables: Variables, images: jax.Array) -> Observation:
        x = model.inputs.of(images)
        f = partial(model.apply, model.calibrate(variables, x) if batch_statistics else variables)
        unit = directions.normalize(directions.loss_gradient(f, x, labels))
        positions = jnp.broadcast_to(model.inputs.support(x), (*x.shape[:-1], 1))
        seen = Seen(unit, f(x), labels, x.shape[-1], positions.reshape(len(x), -1).sum(1))
        return Observation(unit, {name: measure.of_images(seen) for name, measure in measures.items()})

    # A copy of the images for each network: shared ones would turn the first layer into one wide product, whose
    # operands and result have to be transposed, which takes longer than the product.
    count = len(jax.tree.leaves(networks)[0])
    return jax.vmap(one)(networks.variables, jnp.broadcast_to(images, (count, *images.shape)))


def observe_singly(model: Model, networks: Network, test: Split, measures: Mapping[str, NetworkMeasure]) -> Observation:
    """`observe`, one network and `SINGLY` images at once: in the memory of those."""

    def batch(network: Network, images: jax.Array, labels: jax.Array) -> tuple[None, Observation]:
        alone = jax.tree.map(lambda leaf: leaf[None], network)
        return None, jax.tree.map(lambda leaf: leaf[0], observe(model, alone, images, labels, measures=measures))

    return jax.lax.map(lambda network: loops.in_batches(batch, SINGLY, *test, whole=(network,))[1], networks)


def measurer(
    populations: Sequence[Population], test: Split, pair: jax.Array, axis: int | None
) -> Callable[[list[list[Group]]], list[Measurement]]:
    """What measures all networks and pairs, block by block, of the populations of `engine.trajectories`.

    `test` and `pair` are on the devices: the test examples of each population along the axis, or one for all.
    """
    population, count = populations[0], len(populations)
    block, num_examples = population.block, len(population.test.labels)
    looks, compare, attack = _programs(population.without_arrays(), count, axis)
    given = [(each.keys.attack, np.float32(each.epsilon)) for each in populations]
    key, epsilon = given[0] if count == 1 else (jnp.stack(of_all) for of_all in zip(*given, strict=True))

    def measure(networks: list[list[Group]]) -> list[Measurement]:
        sums, rows = [], []
        for start in range(0, num_examples, block):
            at = min(start, num_examples - block)
            seen = [[look(g, test, at) for g in groups] for look, groups in zip(looks, networks, strict=True)]
            of_pairs, of_images = compare(seen, pair, start - at)
            if population.epsilon:
                of_images["attacked"] = attack(networks[0], seen, test, at, key, epsilon)
            sums.append(jax.device_get(of_pairs))
            # The first images of a block that overlaps the one before are in that one.
            rows.append({name: value[..., start - at :] for name, value in jax.device_get(of_images).items()})
        of = lambda i, blocks: blocks if count == 1 else jax.tree.map(lambda values: values[i], blocks)
        return [_over_blocks(each, of(i, sums), of(i, rows)) for i, each in enumerate(populations)]

    return measure


@lru_cache(devices.PROGRAMS)
def _programs(population: Population, count: int, axis: int | None) -> tuple[list[Callable], Callable, Callable]:
    """The compiled programs that look at a group, one for each architecture; that compare all; and that attack them.

    Of so many populations side by side, with their test examples along the axis.
    """

    def compiled(f: Callable, over: Sequence[int | None], **axes: Any) -> Callable:
        return devices.program(devices.side_by_side(partial(f, population), count, over), population.devices, **axes)

    looks = [compiled(partial(_look, model), (0, axis, None), in_axes=(0, 0, None)) for model in population.models]
    compare = compiled(_compare, (0, None, None), in_axes=(0, 0, None), out_axes=None)
    attack = compiled(_attack, (0, 0, axis, None, 0, 0), in_axes=(0, 0, 0, None, None, None), out_axes=None)
    return looks, compare, attack


def _block(split: Split, start: jax.Array, size: int) -> Split:
    return Split(*(jax.lax.dynamic_slice_in_dim(array, start, size) for array in split))


def _look(model: Model, population: Population, group: Network, test: Split, start: jax.Array) -> Observation:
    block = _block(test, start, population.block)
    return observe(model, group, *block, batch_statistics=population.batch_statistics)


def _compare(
    population: Population, seen: Share, pair: jax.Array, skipped: jax.Array
) -> tuple[dict[str, Sums], dict[str, jax.Array]]:
    """On every device, within a program of `devices`: a block's sums of each pair measure, and by name `[M, ..., n]` of
    all networks and, if kept, `angle_examples [P, n]`; its first `skipped` images were counted in the block before.
    """
    placements, counted = population.placements, jnp.arange(population.block) >= skipped
    (last,) = devices.gather([([group.unit for group in seen[-1]], placements[-1])])
    last = jax.lax.optimization_barrier(jnp.swapaxes(last, 0, 1))  # once, not for each product
    own = [group.unit for group in seen[0]]
    sums = _pair_sums(own, last, placements[0], counted, is_triangle=len(seen) == 1)
    parts: list[tuple[Sequence[Any], Placement]] = [(sums, placements[0])]
    for groups, placement in zip(seen, placements, strict=True):
        parts.append(([jax.tree.map(jnp.float32, group.values) for group in groups], placement))
    if population.keep_examples:
        parts.append(([jnp.moveaxis(_cosine(unit, last), 0, -1) for unit in own], placements[0]))
    of_pairs, *gathered = devices.gather(parts)
    values = jax.tree.map(lambda *of_models: jnp.concatenate(of_models), *gathered[: len(seen)])
    if population.keep_examples:
        first, second = pair.T
        values["angle_examples"] = folded(gathered[-1][first, second % last.shape[1]])
    return of_pairs, values


def _pair_sums(
    own: Sequence[jax.Array], last: jax.Array, placement: Placement, counted: jax.Array, *, is_triangle: bool
) -> list[dict[str, Sums]]:
    """For each group of the first architecture, the sums of each pair measure `[size, L]` over the counted images.

    Args:
      own: a device's share of each group's directions, `[size, n, D]`.
      last: the directions of the last architecture's networks, `[n, L, D]`.
      is_triangle: whether these are the same networks, of which those before a group need not be compared with it.
    """
    at_once = max(1, ROWS // placement.size)
    sums: list[dict[str, Sums]] = []
    for start in range(0, len(own), at_once):
        groups = own[start : start + at_once]
        before = start * placement.size * len(placement.devices) if is_triangle else 0
        cosine = _cosine(jnp.concatenate(groups), last[:, before:])
        values = {name: measure.of_images(cosine) for name, measure in PAIR_MEASURES.items()}
        of_rows = {name: _sums(each, counted) for name, each in jax.lax.optimization_barrier(values).items()}
        # One after the other: at once they would take more memory.
        last, of_rows = jax.lax.optimization_barrier((last, of_rows))
        sums += loops.unstack(jax.tree.map(partial(_by_group, before=before, count=len(groups)), of_rows))
    return sums


def _by_group(rows: jax.Array, before: int, count: int) -> jax.Array:
    """Rows `[count * size, L - before]` as `[count, size, L]`, with zeros before."""
    padded = jnp.pad(rows, ((0, 0), (before, 0)))
    return padded.reshape(count, -1, padded.shape[1])


def _cosine(own: jax.Array, last: jax.Array) -> jax.Array:
    """The cosines `[n, size, L]` between directions `[size, n, D]` and `[n, L, D]`."""
    # float32 cosines are good to 1e-3 degrees above 1 degree, which is enough here; metrics.angles is good everywhere.
    return jnp.einsum("and,nbd->nab", own, last, precision="highest")


def _sums(values: jax.Array, counted: jax.Array) -> Sums:
    """The sums of values `[n, ...]` over the counted images that have one, in two parts, and their number."""
    valid = ~jnp.isnan(values) & counted[:, None, None]
    # Whole numbers add up exactly in float32, and what is left is too small to lose more than 1e-6 of a degree.
    whole = jnp.round(values)
    total = lambda part: jnp.where(valid, part, 0).sum(0)
    return Sums(total(whole), total(values - whole), total(jnp.ones_like(values)))


def _attack(
    population: Population,
    groups: Sequence[Network],
    seen: Share,
    test: Split,
    start: jax.Array,
    key: jax.Array,
    epsilon: jax.Array,
) -> jax.Array:
    """`[M, 3, n]`, what `attacks.right` gives of the first architecture's networks under FGSM (Goodfellow et al. 2015).

    On every device; within a program of `devices`. The attacks, `ATTACKS`, are one step along the directions `seen`, as
    long as the norm of the inputs has it: in L-inf along their signs. With batch statistics, these stay those of the
    clean images.
    """
    model, placement = population.models[0], population.placements[0]
    images, labels = _block(test, start, population.block)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(population.block))
    inputs, x = model.inputs, model.inputs.of(images)
    (last,) = devices.gather([([group.unit for group in seen[-1]], population.placements[-1])])
    # A network without a direction at an image leaves it as it is.
    along = lambda direction: jnp.nan_to_num(BALLS[inputs.norm].along(direction.reshape(x.shape)))
    moved = lambda direction: within(x + epsilon * along(direction), inputs.bounds)
    noise = directions.random(keys, x) * inputs.support(x)

    def one(variables: Variables, own: jax.Array, other: jax.Array) -> jax.Array:
        variables = model.calibrate(variables, x) if population.batch_statistics else variables
        attacked = jnp.concatenate([moved(direction) for direction in (other, own, noise)])  # faster as one batch
        return attacks.right(model.apply(variables, attacked), jnp.tile(labels, len(ATTACKS))).reshape(len(ATTACKS), -1)

    right = []
    for networks, own, targets in zip(groups, seen[0], devices.slots(placement), strict=True):
        right.append(jax.vmap(one)(networks.variables, own.unit, last[(targets + 1) % len(last)]))
    return devices.gather([(right, placement)])[0]


def _over_blocks(
    population: Population, sums: Sequence[dict[str, Sums]], rows: Sequence[dict[str, np.ndarray]]
) -> Measurement:
    """The measurement, from all blocks."""
    values = {name: np.concatenate([of_block[name] for of_block in rows], axis=-1) for name in rows[0]}
    networks = {name: measure.over_images(values[name]) for name, measure in NETWORK_MEASURES.items()}
    all_pairs = {name: _mean_of_sums([of_block[name] for of_block in sums]) for name in PAIR_MEASURES}
    first, second = np.sort(population.pair, axis=1).T
    of_pairs = {name: means[first, second % means.shape[1]] for name, means in all_pairs.items()}
    if population.keep_examples:
        of_pairs["angle_examples"] = values["angle_examples"]
    if population.epsilon:
        target, source = attackers(len(population.models), population.num_networks).T
        right, attacked = values["accuracy"], values["attacked"]
        # A lost network has no direction, so there is no attack along it that could fail.
        across = np.arange(len(ATTACKS)) == ATTACKS.index("another network's")
        attacked = np.where(across[:, None] & np.isnan(right[source, None]), np.nan, attacked)
        networks["success"] = attacks.success(attacked, right[target, None], right[source, None]).rate
    return Measurement(networks, of_pairs, _every(all_pairs, len(population.models)) if population.is_sampled else {})


def _every(all_pairs: Mapping[str, np.ndarray], num_models: int) -> dict[str, np.ndarray]:
    """`Measurement.every`, from the pair measures `[M, L]`, as `Sums` has them."""
    count = len(all_pairs["angle"])
    model = np.repeat(np.arange(num_models), count)

    def of_networks(values: np.ndarray) -> np.ndarray:
        # [M of all architectures, the same]: NaN but for the pairs.
        whole = np.full((len(model), len(model)), np.nan)
        whole[:count, -count:] = np.where(np.tri(count, dtype=bool), np.nan, values) if num_models == 1 else values
        return np.fmax(whole, whole.T)

    measured = {**all_pairs, "one_sign": one_sign(all_pairs["agreement"])}
    whole = {name: of_networks(values) for name, values in measured.items()}
    means = {f"every_{name}": stats.valid_mean(values, 1) for name, values in whole.items()}
    number = lambda values: (~np.isnan(values)).sum(1)
    half, _ = stats.halves(model)
    within = np.where(half == half[:, None], whole["angle"], np.nan)
    angle = whole["angle"][np.triu_indices(len(model), 1)]
    return means | {
        "every_count": number(whole["angle"]),
        "every_half_angle": stats.valid_mean(within, 1),
        "every_half_count": number(within),
        "every_histogram": np.histogram(angle[~np.isnan(angle)], np.arange(91))[0],
    }


def _mean_of_sums(blocks: Sequence[Sums]) -> np.ndarray:
    total = np.sum([np.float64(whole) + rest for whole, rest, _ in blocks], axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0, where no image has a value, is the NaN that is meant
        return total / sum(count for *_, count in blocks)
