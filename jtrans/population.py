"""The trajectory: many networks trained side by side, every pair of them measured after every step.

M networks of one architecture give M (M - 1) / 2 pairs; M networks of each of two architectures give the M x M pairs
across. The networks of one architecture are a list of groups, each one pytree with a leading axis, which one compiled
step takes on together; where there are several, those at rest wait in the host's memory.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtrans import directions, training
from jtrans.data import Split
from jtrans.models import Model, Variables
from jtrans.training import Network

# Memory that the networks of a group may take together. On a CPU larger groups are no faster. Elsewhere: half of it.
CPU_BYTES = 2**30


class Keys(NamedTuple):
    """One PRNG key for each purpose, so that one can be replaced while the others stay."""

    data: jax.Array
    init: jax.Array
    order: jax.Array
    dropout: jax.Array


class Observation(NamedTuple):
    """M networks of one architecture on N test images of D values.

    unit: `[M, N, D]` adversarial directions; NaN where a network has none.
    accuracy, loss: `[M]`, shares of 1 and nats.
    """

    unit: jax.Array
    accuracy: jax.Array
    loss: jax.Array


class Measurement(NamedTuple):
    """All networks and pairs after one step, on N test images.

    angle: `[P, N]` degrees in [0, 90]; NaN where either network has no direction.
    accuracy, loss: `[M]`, shares of 1 and nats, on the same images.
    undirected: `[M]`, the number of images at which the network's input gradient is zero or not finite.
    """

    angle: jax.Array
    accuracy: jax.Array
    loss: jax.Array
    undirected: jax.Array


class Trajectory(NamedTuple):
    """A whole run, as `trajectory.npz` holds it: T measured steps, P pairs, M networks, N test images.

    step: `[T]`; 0 is before training.
    pair: `[P, 2]`, the networks compared.
    angle: `[P, T]`, the mean over the images of the folded angle, in degrees; NaN where no image has one.
    accuracy, loss: `[M, T]`, shares of 1 and nats.
    model: `[M]`, the architecture of each network, 0 or 1.
    undirected: `[M, T]`, the number of images at which the network has no direction, left out of the mean.
    num_examples: N.
    angle_examples: `[P, T, N]`, the angle of each image, where it was kept.
    """

    step: np.ndarray
    pair: np.ndarray
    angle: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    model: np.ndarray
    undirected: np.ndarray
    num_examples: np.ndarray
    angle_examples: np.ndarray | None = None


def keys(seed: int) -> Keys:
    """The keys of a run."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def network_keys(key: jax.Array, num_groups: int, num_networks: int) -> list[jax.Array]:
    """For each architecture the keys `[M]` of its networks; a network's key does not depend on how many there are."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return [fold(jax.random.fold_in(key, group), jnp.arange(num_networks)) for group in range(num_groups)]


def pairs(num_groups: int, num_networks: int) -> tuple[np.ndarray, np.ndarray]:
    """Which networks are compared: `pair [P, 2]`, and the architecture of each network, `model`.

    Raises:
      ValueError: other than one or two architectures.
    """
    if num_groups == 1:
        pair = np.stack(np.triu_indices(num_networks, 1), axis=1)
    elif num_groups == 2:
        first, second = np.indices((num_networks, num_networks)).reshape(2, -1)
        pair = np.stack([first, num_networks + second], axis=1)
    else:
        raise ValueError(f"num_groups: got {num_groups}; it takes 1 or 2")
    return pair, np.repeat(np.arange(num_groups), num_networks)


def count(group) -> int:
    """How many networks a group holds: the length of the leading axis that all its arrays share."""
    return len(jax.tree.leaves(group)[0])


def join(groups: Sequence) -> jax.Array:
    """The groups, pytrees with a leading axis each, as one."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *groups)


def split_like(groups: Sequence, values: jax.Array) -> list[jax.Array]:
    """What belongs to each network, `[M, ...]`, in groups of the same sizes."""
    return jnp.split(values, np.cumsum([count(group) for group in groups])[:-1])


def group_size(model: Model, image_shape: Sequence[int], num_images: int, num_networks: int) -> int:
    """How many networks one compiled step takes on together: a divisor of their number, so that one program serves all.

    Args:
      num_images: images in a batch, or measured, whichever are more.
    """
    device = jax.local_devices()[0]
    budget = CPU_BYTES if device.platform == "cpu" else device.memory_stats()["bytes_limit"] // 2
    size = lambda tree: sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    key = jax.random.key(0)
    variables = jax.eval_shape(model.init, key)
    forward = jax.make_jaxpr(model.train)(variables, jax.ShapeDtypeStruct((num_images, *image_shape), jnp.float32), key)
    # What every operation puts out, half of which is fused away; parameters, their gradient, and Adam's two averages.
    needed = size([out.aval for equation in forward.eqns for out in equation.outvars]) // 2 + 4 * size(variables)
    fit = max(1, min(num_networks, budget // needed))
    return max(n for n in range(1, fit + 1) if num_networks % n == 0)


def initialize(
    models: Sequence[Model],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    num_networks: int,
    group_sizes: Sequence[int] | None = None,
) -> list[list[Network]]:
    """The networks of each architecture before training, in groups of the given sizes; all in one when None."""
    sizes = group_sizes or [num_networks] * len(models)
    groups = []
    for model, size, all_keys in zip(models, sizes, network_keys(key, len(models), num_networks), strict=True):
        start = jax.jit(jax.vmap(partial(training.initialize, model, optimizer)))
        groups.append([start(all_keys[i : i + size]) for i in range(0, num_networks, size)])
    return groups


def observe(
    model: Model, networks: Network, images: jax.Array, labels: jax.Array, *, batch_statistics: bool = False
) -> Observation:
    """What a group of networks does on the test images (uint8 `[N, H, W, C]`, labels `[N]`).

    Args:
      batch_statistics: BatchNorm goes by the statistics of these images, held constant, instead of its running ones.
    """

    def one(variables: Variables, images: jax.Array) -> Observation:
        x = training.pixels(images)
        f = partial(model.apply, model.calibrate(variables, x) if batch_statistics else variables)
        logits = f(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        unit = directions.normalize(directions.loss_gradient(f, x, labels))
        return Observation(unit, (logits.argmax(1) == labels).mean(), loss)

    # A copy of the images for each network: shared ones would turn the first layer into one wide product, whose
    # operands and result have to be transposed, which takes longer than the product.
    return jax.vmap(one)(networks.variables, jnp.broadcast_to(images, (count(networks), *images.shape)))


def compare(observations: Sequence[Observation]) -> Measurement:
    """Every pair's angles, every network's accuracy and loss, from what the networks of each architecture do."""
    unit, accuracy, loss = zip(*observations, strict=True)
    num_networks = len(accuracy[0])
    pair, _ = pairs(len(observations), num_networks)
    first, second = pair.T
    # float32 cosines are good to 1e-3 degrees above 1 degree, which is enough here; metrics.angles is good everywhere.
    cosine = jnp.einsum("and,bnd->abn", unit[0], unit[-1], precision="highest")[first, second % num_networks]
    angle = jnp.rad2deg(jnp.arccos(jnp.minimum(jnp.abs(cosine), 1.0)))
    undirected = jnp.isnan(jnp.concatenate(unit)[:, :, 0]).sum(1)
    return Measurement(angle, jnp.concatenate(accuracy), jnp.concatenate(loss), undirected)


def trajectory(
    models: Sequence[Model],
    optimizer: optax.GradientTransformation,
    networks: Sequence[Sequence[Network]],
    keys: Keys,
    train: Split,
    test: Split,
    *,
    batch_size: int,
    num_steps: int,
    measure_every: int = 1,
    batch_statistics: bool = False,
) -> Iterator[tuple[int, list[list[Network]], Measurement]]:
    """Train all networks and measure them before training, after every `measure_every` steps, and after the last.

    Every network goes through the training images in its own order, a new one each epoch; the images that do not fill a
    last batch wait for the next epoch.

    Args:
      models: one architecture, or two for the pairs across.
      networks: their networks, as `initialize` makes them. They are used up: the first step writes over them.
      keys: `order` and `dropout` are used.
      train, test: images uint8 `[N, H, W, C]` and labels `[N]`, kept on the device as they are.
      batch_statistics: as in `observe`.

    Yields:
      `(step, networks, measurement)`; the networks are the generator's own until it is asked for the next.
    """
    train, test = jax.device_put((tuple(train), tuple(test)))
    num_images = len(train[1])
    num_networks = sum(map(count, networks[0]))

    def one_step(model, network, order, key, step, position, images, labels):
        batch = jax.lax.dynamic_slice(order, (position,), (batch_size,))
        key = jax.random.fold_in(key, step)
        return training.train_step(model, optimizer, network, images[batch], labels[batch], key)

    each = (0, 0, 0, None, None, None, None)
    steps = [jax.jit(jax.vmap(partial(one_step, model), each), donate_argnums=0) for model in models]
    looks = [jax.jit(partial(observe, model, batch_statistics=batch_statistics)) for model in models]
    shuffle = jax.jit(jax.vmap(training.epoch_order, (0, None, None)), static_argnums=2)
    compared = jax.jit(lambda seen: compare([join(groups) for groups in seen]))

    networks = [list(groups) for groups in networks]
    grouped_keys = lambda key: list(map(split_like, networks, network_keys(key, len(models), num_networks)))
    order_keys, dropout_keys = grouped_keys(keys.order), grouped_keys(keys.dropout)

    def advance(take, groups, orders, dropout_keys, *at):
        for i, per_group in enumerate(zip(groups, orders, dropout_keys, strict=True)):
            group = take(*per_group, *at, *train)
            groups[i] = jax.device_get(group) if len(groups) > 1 else group

    def measured():
        return compared(
            [[look(group, *test) for group in groups] for look, groups in zip(looks, networks, strict=True)]
        )

    yield 0, networks, measured()
    for step in range(1, num_steps + 1):
        epoch, batch = divmod(step - 1, num_images // batch_size)
        if batch == 0:
            orders = [[shuffle(key, epoch, num_images) for key in groups] for groups in order_keys]
        for own in zip(steps, networks, orders, dropout_keys, strict=True):
            advance(*own, step, batch * batch_size)
        if step % measure_every == 0 or step == num_steps:
            yield step, networks, measured()


def collect(
    steps: Sequence[int], measurements: Sequence[Measurement], num_groups: int, *, keep_examples: bool = False
) -> Trajectory:
    """The measurements (NumPy arrays) of the given steps as one trajectory."""
    angle, accuracy, loss, undirected = (np.stack(values, axis=1) for values in zip(*measurements, strict=True))
    pair, model = pairs(num_groups, len(accuracy) // num_groups)
    return Trajectory(
        np.array(steps),
        pair,
        mean_angle(angle),
        accuracy,
        loss,
        model,
        undirected,
        np.array(angle.shape[-1]),
        angle if keep_examples else None,
    )


def mean_angle(angle: np.ndarray) -> np.ndarray:
    """The mean over the last axis, leaving NaN out; NaN where nothing else is there."""
    known = ~np.isnan(angle)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant
        return np.where(known, angle, 0).sum(-1, dtype=np.float64) / known.sum(-1)


def batch_overlap(key: jax.Array, num_groups: int, num_networks: int, num_images: int, batch_size: int) -> float:
    """The share of a network's first batch that is also in the first batch of the other, averaged over pairs."""
    first = jax.vmap(lambda k: training.epoch_order(k, 0, num_images)[:batch_size])
    batches = np.concatenate([first(group_keys) for group_keys in network_keys(key, num_groups, num_networks)])
    pair, _ = pairs(num_groups, num_networks)
    return float(np.mean([np.isin(batches[a], batches[b]).mean() for a, b in pair]))
