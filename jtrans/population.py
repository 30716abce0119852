"""The trajectory: many networks trained side by side, every pair of them measured after every step.

M networks of one architecture give M (M - 1) / 2 pairs; M networks of each of two architectures give the M x M pairs
across. How they lie on the devices is for `devices.py`; what stands here is one network's share, or one device's.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtrans import attacks, devices, directions, training
from jtrans.data import Split
from jtrans.devices import Group, Placement
from jtrans.models import Model, Variables
from jtrans.training import Network, Objective

ATTACKS = (
    "another network's",
    "its own",
    "random signs",
)  # along which a network of the first architecture is attacked

# Test images are measured so many at a time at most, and fewer where the directions of all networks would take more.
BLOCK = 200
DIRECTIONS_BYTES = 2**29
MOST_PAIRS = 2**17  # of more pairs, a sample of so many is compared: all of 512 networks are fewer


class Keys(NamedTuple):
    """One PRNG key for each purpose, so that one can be replaced while the others stay."""

    data: jax.Array
    init: jax.Array
    order: jax.Array
    dropout: jax.Array
    attack: jax.Array
    augment: jax.Array


class Observation(NamedTuple):
    """M networks of one architecture on n test images of D values.

    Attributes:
      unit: `[M, n, D]` adversarial directions; NaN where a network has none.
      correct: `[M, n]`, whether the label is predicted, as `attacks.right` gives it.
      loss: `[M, n]`, the negative log-likelihood in nats; NaN where `correct` is.
    """

    unit: jax.Array
    correct: jax.Array
    loss: jax.Array


class Measurement(NamedTuple):
    """All networks and pairs after one step, on N test images.

    Attributes:
      angle: `[P]`, the mean over the images of the folded angle, in degrees; NaN where no image has one.
      accuracy, loss: `[M]`, shares of 1 and nats, means over the same images. Where the loss is not finite, the network
        is lost and its accuracy NaN.
      undirected: `[M]`, the number of images at which the network's input gradient is zero or not finite.
      success: `[M, 3, 3]`, of FGSM on the M networks of the first architecture: for each of `ATTACKS` and
        `attacks.DENOMINATORS` the share of images got wrong under attack; NaN where there is no such image. None where
        there was no attack.
      angle_examples: `[P, N]`, each image's angle; NaN where either network has no direction there. None where it was
        not asked for.
    """

    angle: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    undirected: np.ndarray
    success: np.ndarray | None
    angle_examples: np.ndarray | None


class Trajectory(NamedTuple):
    """A whole run, as `trajectory.npz` holds it: T measured steps, P pairs, M networks, N test images.

    Attributes:
      step: `[T]`; 0 is before training.
      pair: `[P, 2]`, the networks compared.
      angle: `[P, T]`, the mean over the images of the folded angle, in degrees; NaN where no image has one.
      accuracy, loss: `[M, T]`, shares of 1 and nats; the accuracy is NaN where the loss is not finite.
      model: `[M]`, the architecture of each network, 0 or 1.
      undirected: `[M, T]`, the number of images at which the network has no direction, left out of the mean.
      num_examples: N.
      success: `[M, T, 3, 3]` of the first architecture's networks, as in `Measurement`, where they were attacked.
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
    success: np.ndarray | None = None
    angle_examples: np.ndarray | None = None


def keys(seed: int) -> Keys:
    """The keys of a run."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def network_keys(key: jax.Array, num_models: int, num_networks: int) -> list[jax.Array]:
    """For each architecture the keys `[M]` of its networks; a network's key does not depend on how many there are."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return [fold(jax.random.fold_in(key, model), jnp.arange(num_networks)) for model in range(num_models)]


def pairs(num_models: int, num_networks: int) -> tuple[np.ndarray, np.ndarray]:
    """Which networks are compared: `pair [P, 2]`, and the architecture of each network, `model`.

    All pairs of one architecture, or all across two; of more than `MOST_PAIRS` a sample, the same at each call.

    Raises:
      ValueError: other than one or two architectures.
    """
    if num_models == 1:
        pair = np.stack(np.triu_indices(num_networks, 1), axis=1)
    elif num_models == 2:
        first, second = np.indices((num_networks, num_networks)).reshape(2, -1)
        pair = np.stack([first, num_networks + second], axis=1)
    else:
        raise ValueError(f"num_models: got {num_models}; it takes 1 or 2")
    return sample(pair, MOST_PAIRS), np.repeat(np.arange(num_models), num_networks)


def sample(pair: np.ndarray, most: int) -> np.ndarray:
    """The rows of `pair [P, 2]`, or where there are more than `most` of them a sample of so many, in their order."""
    if len(pair) <= most:
        return pair
    return pair[np.sort(np.random.default_rng(0).choice(len(pair), most, replace=False))]


def attackers(num_models: int, num_networks: int) -> np.ndarray:
    """`[M, 2]`: each network of the first architecture, and the one whose attack it is put to.

    That is the next network of the last architecture, round a ring, so that M attacks stand for all pairs.
    """
    target = np.arange(num_networks)
    return np.stack([target, (num_models - 1) * num_networks + (target + 1) % num_networks], axis=1)


def block_size(num_examples: int, num_networks: int, image_size: int, *, batch_statistics: bool = False) -> int:
    """How many test images are measured at a time: blocks of one size, the last of which may overlap the one before.

    Args:
      num_networks: of all architectures, whose directions on a block are held together on every device.
      image_size: values in an image.
      batch_statistics: the statistics are those of all test images, which are therefore measured at a time.
    """
    if batch_statistics:
        return num_examples
    most = max(1, min(BLOCK, DIRECTIONS_BYTES // (4 * image_size * num_networks)))
    return -(-num_examples // -(-num_examples // most))


def place(
    model: Model,
    image_shape: Sequence[int],
    num_images: int,
    num_networks: int,
    *,
    size: int = 0,
    on: Sequence[jax.Device] | None = None,
) -> Placement:
    """The networks of one architecture over the devices, as many at a time as their memory allows.

    Args:
      num_images: images in a batch, or in a measured block, whichever are more.
      size: networks that a device takes on at a time; 0: as many as fit.
      on: the devices; all when None.
    """
    key = jax.random.key(0)
    variables = jax.eval_shape(model.init, key)
    forward = jax.make_jaxpr(model.train)(variables, jax.ShapeDtypeStruct((num_images, *image_shape), jnp.float32), key)
    # What every operation puts out, half of which is fused away; parameters, their gradient, and Adam's two averages.
    outputs = devices.num_bytes([out.aval for equation in forward.eqns for out in equation.outvars])
    state = 3 * devices.num_bytes(variables)
    return devices.place(num_networks, outputs // 2 + state * 4 // 3, state, size=size, devices=on)


def initialize(
    models: Sequence[Model], optimizer: optax.GradientTransformation, key: jax.Array, placements: Sequence[Placement]
) -> list[list[Group]]:
    """The networks of each architecture before training, in groups."""
    groups = []
    all_keys = network_keys(key, len(models), placements[0].num_networks)
    for model, keys, placement in zip(models, all_keys, placements, strict=True):
        start = devices.program(jax.vmap(partial(training.initialize, model, optimizer)), placement.devices)
        made = map(start, devices.split(keys, placement))
        groups.append([jax.device_get(group) if placement.rest_on_host else group for group in made])
    return groups


def shapes(models: Sequence[Model], optimizer: optax.GradientTransformation, num_networks: int) -> list[Network]:
    """The networks of each architecture, `[M, ...]`, as the shapes of their arrays."""
    keys = jax.random.split(jax.random.key(0), num_networks)
    return [jax.eval_shape(jax.vmap(partial(training.initialize, model, optimizer)), keys) for model in models]


def observe(
    model: Model, networks: Network, images: jax.Array, labels: jax.Array, *, batch_statistics: bool = False
) -> Observation:
    """What networks `[M, ...]` do on test images (uint8 `[n, H, W, C]`, labels `[n]`).

    Args:
      batch_statistics: BatchNorm goes by the statistics of these images, held constant, instead of its running ones.
    """

    def one(variables: Variables, images: jax.Array) -> Observation:
        x = training.pixels(images)
        f = partial(model.apply, model.calibrate(variables, x) if batch_statistics else variables)
        logits = f(x)
        correct = attacks.right(logits, labels)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        unit = directions.normalize(directions.loss_gradient(f, x, labels))
        return Observation(unit, correct, jnp.where(jnp.isnan(correct), jnp.nan, loss))

    # A copy of the images for each network: shared ones would turn the first layer into one wide product, whose
    # operands and result have to be transposed, which takes longer than the product.
    count = len(jax.tree.leaves(networks)[0])
    return jax.vmap(one)(networks.variables, jnp.broadcast_to(images, (count, *images.shape)))


def compare(
    observations: Sequence[Sequence[Observation]], placements: Sequence[Placement], pair: jax.Array
) -> tuple[jax.Array, ...]:
    """Every pair's angles and what every network does, on every device; within a program of `devices.py`.

    Args:
      observations: for each architecture, this device's share of each group.
      pair: `[P, 2]`, the networks compared.

    Returns:
      `angle [P, n]` in degrees, and `[M, n]` of both architectures' networks: `correct` and `loss` of `Observation`,
      and 1 where there is a direction, else 0.
    """
    (last,) = devices.gather([([group.unit for group in observations[-1]], placements[-1])])
    # Each device compares its own networks with all of the last architecture's.
    # float32 cosines are good to 1e-3 degrees above 1 degree, which is enough here; metrics.angles is good everywhere.
    rows = [jnp.einsum("and,bnd->abn", group.unit, last, precision="highest") for group in observations[0]]

    def facts(seen: Observation) -> jax.Array:
        return jnp.stack([seen.correct, seen.loss, ~jnp.isnan(seen.unit[:, :, 0])], axis=1, dtype=jnp.float32)

    own = [(list(map(facts, groups)), placement) for groups, placement in zip(observations, placements, strict=True)]
    cosine, *known = devices.gather([(rows, placements[0]), *own])
    first, second = pair.T
    return folded(cosine[first, second % len(last)]), *jnp.moveaxis(jnp.concatenate(known), 1, 0)


def folded(cosine: jax.Array) -> jax.Array:
    """The folded angles in degrees, from cosines that rounding may have taken beyond 1."""
    return jnp.rad2deg(jnp.arccos(jnp.minimum(jnp.abs(cosine), 1.0)))


def withstand(
    model: Model,
    groups: Sequence[Network],
    observations: Sequence[Sequence[Observation]],
    placements: Sequence[Placement],
    images: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    *,
    epsilon: float,
    batch_statistics: bool = False,
) -> jax.Array:
    """Whether each network of the first architecture gives the label under FGSM (Goodfellow et al. 2015).

    On every device; within a program of `devices.py`.

    Args:
      model: the first architecture.
      groups: this device's share of its networks.
      observations, placements: as in `compare`; the directions are the attacks, one step along their signs.
      images, labels: uint8 `[n, H, W, C]` and `[n]`.
      keys: `[n]`, for the random signs.
      epsilon: the largest change of a pixel, in [0, 1].
      batch_statistics: as in `observe`; the statistics stay those of the clean images.

    Returns:
      `[M, 3, n]`, for each of `ATTACKS` what `attacks.right` gives.
    """
    x = training.pixels(images)
    (last,) = devices.gather([([group.unit for group in observations[-1]], placements[-1])])
    # A network without a direction at an image leaves it as it is.
    step = lambda direction: epsilon * jnp.nan_to_num(jnp.sign(direction.reshape(x.shape)))
    noise = directions.random(keys, x)

    def one(variables: Variables, own: jax.Array, other: jax.Array) -> jax.Array:
        variables = model.calibrate(variables, x) if batch_statistics else variables
        attacked = [jnp.clip(x + step(direction), 0, 1) for direction in (other, own, noise)]
        return jnp.stack([attacks.right(model.apply(variables, images), labels) for images in attacked])

    kept = []
    for networks, seen, targets in zip(groups, observations[0], devices.slots(placements[0]), strict=True):
        others = last[(targets + 1) % len(last)]
        kept.append(jax.vmap(one)(networks.variables, seen.unit, others))
    (whole,) = devices.gather([(kept, placements[0])])
    return whole


def success(attacked: np.ndarray, correct: np.ndarray, num_models: int) -> np.ndarray:
    """The success rates `[M, 3, 3]` of `Measurement`.

    Args:
      attacked: `[M, 3, N]`, whether the label is still predicted under each attack, as `attacks.right` gives it.
      correct: `[M, N]` of all architectures, whether it is without.
    """
    target, source = attackers(num_models, len(attacked)).T
    return attacks.success(attacked, correct[target, None], correct[source, None]).rate


def trajectory(
    models: Sequence[Model],
    optimizer: optax.GradientTransformation,
    networks: Sequence[Sequence[Group]],
    placements: Sequence[Placement],
    keys: Keys,
    train: Split,
    test: Split,
    *,
    batch_size: int,
    num_steps: int,
    measure_every: int = 1,
    batch_statistics: bool = False,
    epsilon: float = 0.0,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    objective: Objective = training.cross_entropy,
    first_step: int = 0,
    pair: np.ndarray | None = None,
    keep_examples: bool = False,
) -> Iterator[tuple[int, list[list[Group]], Measurement | None]]:
    """Train all networks and measure them before training, after every `measure_every` steps, and after the last.

    Every network goes through the training images in its own order, a new one each epoch; the images that do not fill a
    last batch wait for the next epoch.

    Args:
      models: one architecture, or two for the pairs across.
      networks: of each, its groups, as `initialize` makes them. They are used up: the first step writes over them.
      placements: of each, where its networks lie; all on the same devices.
      keys: all but `data` and `init` are used.
      train, test: images uint8 `[N, H, W, C]` and labels `[N]`, kept on the devices as they are.
      batch_statistics: as in `observe`; all test images are then measured at a time.
      epsilon: of FGSM, in units of pixels in [0, 1], from network to network; 0: none.
      augment: `(key, images) -> images` of a training batch, as `training.crop_and_flip`; None for nothing.
      objective: what training lowers.
      first_step: the steps that the networks have behind them; above 0 nothing is measured before the next.
      pair: `[P, 2]`, the networks compared; those of `pairs` when None.
      keep_examples: give the angle of each image, not the mean alone.

    Yields:
      `(step, networks, measurement)` for each step, None in the place of what is not measured; the networks are the
      generator's own until it is asked for the next.
    """
    on = placements[0].devices
    num_networks = placements[0].num_networks
    num_images, num_examples = len(train.labels), len(test.labels)
    pair = pairs(len(models), num_networks)[0] if pair is None else pair
    all_networks, image_size = num_networks * len(models), test.images[0].size
    block = block_size(num_examples, all_networks, image_size, batch_statistics=batch_statistics)
    train, test, compared_pairs = devices.copies((tuple(train), tuple(test), np.int32(pair)), on)

    def one_step(model, network, order, step_keys, step, position, images, labels):
        batch = jax.lax.dynamic_slice(order, (position,), (batch_size,))
        dropout_key, augment_key = (jax.random.fold_in(key, step) for key in step_keys)
        chosen = images[batch] if augment is None else augment(augment_key, images[batch])
        return training.train_step(model, optimizer, network, chosen, labels[batch], dropout_key, objective)

    def look(model, group, images, labels, start):
        images, labels = (jax.lax.dynamic_slice_in_dim(a, start, block) for a in (images, labels))
        return observe(model, group, images, labels, batch_statistics=batch_statistics)

    def steps_of(model):
        each = jax.vmap(partial(one_step, model), (0, 0, 0, None, None, None, None))
        return devices.program(each, on, in_axes=(0, 0, 0, None, None, 0, 0), donate=(0,))

    def resist(groups, seen, images, labels, start):
        noise_keys = jax.vmap(jax.random.fold_in, (None, 0))(keys.attack, start + jnp.arange(block))
        images, labels = (jax.lax.dynamic_slice_in_dim(a, start, block) for a in (images, labels))
        options = {"epsilon": epsilon, "batch_statistics": batch_statistics}
        return withstand(models[0], groups, seen, placements, images, labels, noise_keys, **options)

    def comparison(seen, pair, skipped):
        angle, *of_networks = compare(seen, placements, pair)
        # The first images of a block that overlaps the one before are counted there.
        counted = ~jnp.isnan(angle) & (jnp.arange(block) >= skipped)[None]
        # Whole degrees add up exactly in float32, and what is left is too small to lose more than 1e-6 of a degree.
        whole = jnp.round(angle)
        sums = [jnp.where(counted, part, 0).sum(1) for part in (whole, angle - whole)]
        return (*sums, counted.sum(1)), [*([angle] if keep_examples else []), *of_networks]

    steps = list(map(steps_of, models))
    looks = [devices.program(partial(look, model), on, in_axes=(0, 0, 0, None)) for model in models]
    shuffled = jax.vmap(partial(training.epoch_order, num_examples=num_images), (0, None))
    shuffle = devices.program(shuffled, on, in_axes=(0, None))
    compared = devices.program(comparison, on, in_axes=(0, 0, None), out_axes=None)
    resisted = devices.program(resist, on, in_axes=(0, 0, 0, 0, None), out_axes=None)

    trained: list[list[Group]] = [list(groups) for groups in networks]
    by_group = lambda key: list(map(devices.split, network_keys(key, len(models), num_networks), placements))
    order_keys = by_group(keys.order)
    step_keys = [
        list(zip(*own, strict=True)) for own in zip(by_group(keys.dropout), by_group(keys.augment), strict=True)
    ]
    orders = None

    def advance(take, groups, orders, step_keys, placement, *at):
        for i, per_group in enumerate(zip(groups, orders, step_keys, strict=True)):
            group = take(*per_group, *at, *train)
            groups[i] = jax.device_get(group) if placement.rest_on_host else group

    def measured():
        totals, counts, blocks = 0.0, 0, []
        for start in range(0, num_examples, block):
            at = min(start, num_examples - block)
            seen = [[see(g, *test, at) for g in groups] for see, groups in zip(looks, trained, strict=True)]
            (whole, rest, count), values = jax.device_get(compared(seen, compared_pairs, start - at))
            totals, counts = totals + (np.float64(whole) + rest), counts + count
            values += [jax.device_get(resisted(trained[0], seen, *test, at))] if epsilon else []
            blocks.append([value[..., start - at :] for value in values])
        whole = [np.concatenate(values, axis=-1) for values in zip(*blocks, strict=True)]
        examples = whole.pop(0) if keep_examples else None
        correct, loss, directed, *attacked = whole
        mean = partial(np.mean, axis=1, dtype=np.float64)
        with np.errstate(invalid="ignore"):  # 0 / 0, where no image has an angle, is the NaN that is meant
            angle = totals / counts
        accuracy = np.where(np.isfinite(mean(loss)), mean(correct), np.nan)
        fooled = success(*attacked, correct, len(models)) if attacked else None
        return Measurement(angle, accuracy, mean(loss), (directed == 0).sum(1), fooled, examples)

    if first_step == 0:
        yield 0, trained, measured()
    for step in range(first_step + 1, num_steps + 1):
        epoch, batch = divmod(step - 1, num_images // batch_size)
        if batch == 0 or orders is None:
            orders = [[shuffle(key, epoch) for key in groups] for groups in order_keys]
        for own in zip(steps, trained, orders, step_keys, placements, strict=True):
            advance(*own, step, batch * batch_size)
        due = step % measure_every == 0 or step == num_steps
        yield step, trained, measured() if due else None


def collect(
    steps: Sequence[int],
    measurements: Sequence[Measurement],
    num_models: int,
    num_examples: int,
    pair: np.ndarray | None = None,
) -> Trajectory:
    """The measurements of the given steps, of N test images, as one trajectory; `pair` as in `trajectory`."""
    stack = lambda values: None if values[0] is None else np.stack(values, axis=1)
    angle, accuracy, loss, undirected, *kept = map(stack, zip(*measurements, strict=True))
    every, model = pairs(num_models, len(accuracy) // num_models)
    pair = every if pair is None else pair
    return Trajectory(np.array(steps), pair, angle, accuracy, loss, model, undirected, np.array(num_examples), *kept)


def select(trajectory: Trajectory, networks: np.ndarray) -> Trajectory:
    """The trajectory of some of its networks of one architecture, given by their numbers, and of the pairs among them.

    Success rates, which are of a ring of networks, are left out.
    """
    number = np.full(len(trajectory.model), -1)
    number[networks] = np.arange(len(networks))
    pair = number[trajectory.pair]
    among = (pair >= 0).all(axis=1)
    of_pairs = {
        name: getattr(trajectory, name)[among]
        for name in ("angle", "angle_examples")
        if getattr(trajectory, name) is not None
    }
    of_networks = {name: getattr(trajectory, name)[networks] for name in ("accuracy", "loss", "model", "undirected")}
    return trajectory._replace(pair=pair[among], success=None, **of_pairs, **of_networks)


def by_pair(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """The angles as a table by columns, a row for each pair and step: `step`, `first`, `second`, `angle` in degrees."""
    pairs, steps = trajectory.angle.shape
    first, second = np.repeat(trajectory.pair, steps, axis=0).T
    return {
        "step": np.tile(trajectory.step, pairs),
        "first": first,
        "second": second,
        "angle": trajectory.angle.reshape(-1),
    }


def measurements(trajectory: Trajectory) -> list[Measurement]:
    """What `collect` put together."""
    at = lambda t: (None if a is None else a[:, t] for a in (getattr(trajectory, name) for name in Measurement._fields))
    return [Measurement(*at(t)) for t in range(len(trajectory.step))]


def batch_overlap(key: jax.Array, num_models: int, num_networks: int, num_images: int, batch_size: int) -> float:
    """The share of a network's first batch that is also in the first batch of the other, averaged over pairs."""
    first = jax.jit(lambda k: training.epoch_order(k, 0, num_images)[:batch_size])
    uses = np.zeros((num_models, num_images))  # how many networks' first batches an image is in
    for count, model_keys in zip(uses, network_keys(key, num_models, num_networks), strict=True):
        for network_key in model_keys:
            count[np.asarray(first(network_key))] += 1
    if num_models == 1:
        shared, num_pairs = (uses * (uses - 1)).sum() / 2, num_networks * (num_networks - 1) / 2
    else:
        shared, num_pairs = uses.prod(0).sum(), num_networks**2
    return float(shared / num_pairs / batch_size)
