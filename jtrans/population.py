"""The trajectory: many networks trained side by side, every pair of them measured after every step.

M networks of one architecture give M (M - 1) / 2 pairs; M networks of each of two architectures give the M x M pairs
across. Networks of one architecture are one pytree with a leading axis M.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtrans import directions, training
from jtrans.data import Split
from jtrans.models import Model
from jtrans.training import Network


class Keys(NamedTuple):
    """One PRNG key for each purpose, so that one can be replaced while the others stay."""

    data: jax.Array
    init: jax.Array
    order: jax.Array


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


def initialize(
    models: Sequence[Model], optimizer: optax.GradientTransformation, key: jax.Array, num_networks: int
) -> list[Network]:
    """The networks of each architecture before training."""
    all_keys = network_keys(key, len(models), num_networks)
    return [
        jax.jit(jax.vmap(partial(training.initialize, model, optimizer)))(group_keys)
        for model, group_keys in zip(models, all_keys, strict=True)
    ]


def measure(models: Sequence[Model], networks: Sequence[Network], images: jax.Array, labels: jax.Array) -> Measurement:
    """Every pair's angles, every network's accuracy and loss (images uint8 `[N, H, W, C]`, labels `[N]`)."""

    def one(model: Model, network: Network) -> tuple[jax.Array, jax.Array, jax.Array]:
        f = partial(model.apply, network.variables)
        x = training.pixels(images)
        logits = f(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        accuracy = (logits.argmax(1) == labels).mean()
        return directions.normalize(directions.loss_gradient(f, x, labels)), accuracy, loss

    groups = [jax.vmap(partial(one, model))(group) for model, group in zip(models, networks, strict=True)]
    unit, accuracy, loss = zip(*groups, strict=True)
    num_networks = len(accuracy[0])
    pair, _ = pairs(len(models), num_networks)
    first, second = pair.T
    # float32 cosines are good to 1e-3 degrees above 1 degree, which is enough here; metrics.angles is good everywhere.
    cosine = jnp.einsum("and,bnd->abn", unit[0], unit[-1], precision="highest")[first, second % num_networks]
    angle = jnp.rad2deg(jnp.arccos(jnp.minimum(jnp.abs(cosine), 1.0)))
    undirected = jnp.isnan(jnp.concatenate(unit)[:, :, 0]).sum(1)
    return Measurement(angle, jnp.concatenate(accuracy), jnp.concatenate(loss), undirected)


def trajectory(
    models: Sequence[Model],
    optimizer: optax.GradientTransformation,
    networks: Sequence[Network],
    key: jax.Array,
    train: Split,
    test: Split,
    *,
    batch_size: int,
    num_steps: int,
    measure_every: int = 1,
) -> Iterator[tuple[int, list[Network], Measurement]]:
    """Train all networks and measure them before training, after every `measure_every` steps, and after the last.

    Every network goes through the training images in its own order, a new one each epoch; the images that do not fill a
    last batch wait for the next epoch.

    Args:
      models: one architecture, or two for the pairs across.
      networks: their networks, as `initialize` makes them. They are used up: the first step writes over them.
      key: draws the orders.
      train, test: images uint8 `[N, H, W, C]` and labels `[N]`, kept on the device as they are.

    Yields:
      `(step, networks, measurement)`; the networks are the generator's own until it is asked for the next.
    """
    train, test = jax.device_put((tuple(train), tuple(test)))
    num_images = len(train[1])
    num_networks = len(jax.tree.leaves(networks[0])[0])
    order_keys = network_keys(key, len(models), num_networks)

    def one_step(model, network, order, position, images, labels):
        batch = jax.lax.dynamic_slice(order, (position,), (batch_size,))
        return training.train_step(model, optimizer, network, images[batch], labels[batch])

    steps = [
        jax.jit(jax.vmap(partial(one_step, model), (0, 0, None, None, None)), donate_argnums=0) for model in models
    ]
    shuffle = jax.jit(jax.vmap(training.epoch_order, (0, None, None)), static_argnums=2)
    measured = jax.jit(partial(measure, models))

    networks = list(networks)
    yield 0, networks, measured(networks, *test)
    for step in range(1, num_steps + 1):
        epoch, batch = divmod(step - 1, num_images // batch_size)
        if batch == 0:
            orders = [shuffle(group_keys, epoch, num_images) for group_keys in order_keys]
        networks = [
            take(group, order, batch * batch_size, *train)
            for take, group, order in zip(steps, networks, orders, strict=True)
        ]
        if step % measure_every == 0 or step == num_steps:
            yield step, networks, measured(networks, *test)


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
