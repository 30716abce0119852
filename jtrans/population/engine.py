"""A population: many networks trained side by side, and every pair of them measured after every step.

M networks of one architecture give M (M - 1) / 2 pairs; M networks of each of two architectures give the M x M pairs
across. `devices` says how they lie on the devices; the functions here are of one network, or of one device's share.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtrans import training
from jtrans.data import Split
from jtrans.models import Model
from jtrans.population import devices, observe
from jtrans.population.devices import Group, Part, Placement
from jtrans.population.observe import Measurement
from jtrans.training import Network, Objective


class Keys(NamedTuple):
    """One PRNG key for each purpose, so that one can be replaced while the others stay."""

    data: jax.Array
    init: jax.Array
    order: jax.Array
    dropout: jax.Array
    attack: jax.Array
    augment: jax.Array

    def folded(self, number: int) -> "Keys":
        """Other keys, as for networks that are trained apart from the rest."""
        return Keys(*(jax.random.fold_in(key, number) for key in self))


class Population(NamedTuple):
    """M networks of each of one or two architectures, what they train on, and how they are measured.

    Attributes:
      models: one architecture, or two for the pairs across.
      optimizer: of every network.
      placements: of each architecture, where its networks lie; all on the same devices.
      keys: all but `data` are used.
      train, test: examples as they are stored, `[N, ...]`, and labels `[N]`; the test examples are those measured.
      batch_size: images in a training batch.
      pair: `[P, 2]`, the networks compared.
      objective: what training lowers.
      order: `(key, epoch, num_examples) -> [num_examples]`, the order of the training images in an epoch.
      augment: `(key, images) -> images` of a training batch, as `training.crop_and_flip`; None for nothing.
      learning_rate: of every network where the optimizer is `training.adjustable`; None: set elsewhere.
      batch_statistics: as in `observe.observe`; all test images are then measured at once.
      epsilon: of FGSM from network to network, in units of pixels in [0, 1]; 0: no attack.
      keep_examples: whether a measurement holds the angle of each image, not the mean alone.
      is_sampled: whether `pair` is a sample, and a measurement holds means over all pairs too.
    """

    models: Sequence[Model]
    optimizer: optax.GradientTransformation
    placements: Sequence[Placement]
    keys: Keys
    train: Split
    test: Split
    batch_size: int
    pair: np.ndarray
    objective: Objective = training.cross_entropy
    order: Callable[[jax.Array, jax.Array, int], jax.Array] = training.epoch_order
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    learning_rate: float | None = None
    batch_statistics: bool = False
    epsilon: float = 0.0
    keep_examples: bool = False
    is_sampled: bool = False

    @property
    def num_networks(self) -> int:
        """M, of each architecture."""
        return self.placements[0].num_networks

    @property
    def devices(self) -> Sequence[jax.Device]:
        """The devices of all processes that the networks lie on."""
        return self.placements[0].devices

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the images that do not fill a last batch wait for the next epoch."""
        return len(self.train.labels) // self.batch_size

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `[N, ...]` of the test examples as networks take them."""
        return jax.eval_shape(self.models[0].inputs.of, self.test.inputs).shape

    @property
    def block(self) -> int:
        """Test images measured at once."""
        return observe.block_size(self.shape, self.num_networks * len(self.models), self.batch_statistics)

    @property
    def side_by_side(self) -> int:
        """How many populations like this one the devices hold at once, for `trajectories`."""
        return min(max(1, placement.fit // placement.size) for placement in self.placements)

    def without_arrays(self) -> "Population":
        """Shapes in the place of arrays, and no numbers that programs take as arguments: hashable, and equal for
        populations that the same compiled programs serve.
        """
        shape_of = lambda array: jax.ShapeDtypeStruct(np.shape(array), array.dtype)
        fields = {name: tuple(getattr(self, name)) for name in ("models", "placements")}
        arrays = {name: jax.tree.map(shape_of, getattr(self, name)) for name in ("keys", "train", "test", "pair")}
        return self._replace(**fields, **arrays, learning_rate=None, epsilon=0.0)


def keys(seed: int) -> Keys:
    """The keys of a run."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def network_keys(key: jax.Array, num_models: int, num_networks: int) -> list[jax.Array]:
    """For each architecture the keys `[M]` of its networks; a network's key does not depend on how many there are."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return [fold(jax.random.fold_in(key, model), jnp.arange(num_networks)) for model in range(num_models)]


def build(num_networks: int, group_size: int = 0, on: Sequence[jax.Device] | None = None, **fields: Any) -> Population:
    """A population whose networks are placed on the devices, as many at once as their memory allows.

    Args:
      num_networks: M, of each architecture.
      group_size: networks on a device at once; 0: as many as fit.
      on: the devices; all when None.
      fields: of `Population`, all but `placements`; without `pair`, the networks compared are those of `observe.pairs`.
    """
    if "pair" not in fields:
        fields["pair"], _ = observe.pairs(len(fields["models"]), num_networks)
        fields["is_sampled"] = len(fields["pair"]) < observe.num_pairs(len(fields["models"]), num_networks)
    population = Population(placements=(), **fields)
    shape, num_models = population.shape, len(population.models)
    block = observe.block_size(shape, num_networks * num_models, population.batch_statistics)
    batch = jax.ShapeDtypeStruct((max(population.batch_size, block), *shape[1:]), jnp.float32)
    placements = [place(model, batch, num_networks, group_size, on) for model in population.models]
    return population._replace(placements=placements)


def place(
    model: Model,
    batch: jax.ShapeDtypeStruct,
    num_networks: int,
    group_size: int = 0,
    on: Sequence[jax.Device] | None = None,
) -> Placement:
    """Where `build` places the networks of one architecture, for a training batch or measured block `[N, H, W, C]`."""
    key = jax.random.key(0)
    variables = jax.eval_shape(model.init, key)
    forward = jax.make_jaxpr(model.train)(variables, batch, key)
    # What every operation puts out, half of which is fused away; parameters, their gradient, and Adam's two averages.
    outputs = devices.num_bytes([out.aval for equation in forward.eqns for out in equation.outvars])
    state = 3 * devices.num_bytes(variables)
    return devices.place(num_networks, outputs // 2 + state * 4 // 3, state, size=group_size, devices=on)


def initialize(population: Population) -> list[list[Group]]:
    """The networks of each architecture before training, in groups."""
    if population.learning_rate is None:
        return _untrained(population)
    return initialize_at(population, np.full(population.num_networks, population.learning_rate))


def initialize_at(population: Population, learning_rates: np.ndarray) -> list[list[Group]]:
    """`initialize`, each network of each architecture with its learning rate `[M]`; the optimizer is `adjustable`."""
    rates = np.asarray(learning_rates, np.float32)
    start = zip(_untrained(population), population.placements, strict=True)
    return [
        list(map(training.with_learning_rate, groups, devices.split(rates, placement))) for groups, placement in start
    ]


def _untrained(population: Population) -> list[list[Group]]:
    """The networks of each architecture as the optimizer starts them."""
    networks = []
    all_keys = split(population, network_keys(population.keys.init, len(population.models), population.num_networks))
    for model, keys, placement in zip(population.models, all_keys, population.placements, strict=True):
        groups = map(_start(model, population.optimizer, population.devices), keys)
        networks.append([jax.device_get(group) if placement.rest_on_host else group for group in groups])
    return networks


@lru_cache(devices.PROGRAMS)
def _start(
    model: Model, optimizer: optax.GradientTransformation, on: Sequence[jax.Device]
) -> Callable[[jax.Array], Group]:
    """The compiled program that draws a group of networks."""
    return devices.program(jax.vmap(partial(training.initialize, model, optimizer)), on)


def shapes(population: Population) -> list[Network]:
    """The networks of each architecture, `[M, ...]`, as the shapes of their arrays."""
    keys = jax.random.split(jax.random.key(0), population.num_networks)
    start = lambda model: jax.vmap(partial(training.initialize, model, population.optimizer))
    return [jax.eval_shape(start(model), keys) for model in population.models]


def split(population: Population, networks: Sequence[Any]) -> list[list[Group]]:
    """What belongs to the networks of each architecture, `[M, ...]`, in groups."""
    return list(map(devices.split, networks, population.placements))


def merge(population: Population, networks: list[list[Group]]) -> list[Any]:
    """What `split` took apart, on the host, in every process."""
    return list(map(devices.merge, networks, population.placements))


def pieces(population: Population, networks: list[list[Group]], num_bytes: int) -> Iterator[list[Part]]:
    """The networks, on the host, in every process, about so many bytes at a time: some of each architecture.

    Not less than one network of each device and architecture. The processes of a job take each piece together.
    """
    all_slots = [placement.num_slots for placement in population.placements]
    count = min(-(-devices.num_bytes(shapes(population)) // num_bytes), *all_slots)
    for i in range(count):
        slots = [range(of_model * i // count, of_model * (i + 1) // count) for of_model in all_slots]
        yield list(map(devices.merge_slots, networks, population.placements, slots))


def trajectory(
    population: Population, networks: list[list[Group]], num_steps: int, *, measure_every: int = 1, first_step: int = 0
) -> Iterator[tuple[int, list[list[Group]], Measurement | None]]:
    """Train all networks, and measure them before training, after every `measure_every` steps, and after the last.

    Every network goes through the training images in its own order, a new one each epoch.

    Args:
      networks: of each architecture its groups, as `initialize` makes them. The first step overwrites them.
      first_step: the steps that the networks have behind them; above 0 nothing is measured before the next.

    Yields:
      `(step, networks, measurement)` for each step; the measurement is None where none is due. The networks may be
      used until the next step is asked for.
    """
    options = {"measure_every": measure_every, "first_step": first_step}
    for step, trained, measurements in trajectories([population], [networks], num_steps, **options):
        yield step, trained, measurements[0] if measurements else None


def trajectories(
    populations: Sequence[Population],
    networks: Sequence[list[list[Group]]],
    num_steps: int,
    *,
    measure_every: int = 1,
    first_step: int = 0,
) -> Iterator[tuple[int, list[list[Group]], list[Measurement]]]:
    """`trajectory` of populations side by side, in one program.

    Args:
      populations: S of them that have equal `without_arrays` and `pair`, and either all or none are attacked.

    Yields:
      `(step, networks, measurements)`: of each architecture the groups of all populations, which `take_apart` takes
      apart; and the measurement of each population, of none where none is due.
    """
    population, count = populations[0], len(populations)
    splits, axis = _splits(populations)
    train, test, pair = devices.copies((*splits, np.int32(population.pair)), population.devices)
    measure = observe.measurer(populations, test, pair, axis)
    take_steps, shuffle = _programs(population.without_arrays(), count, axis)
    draw, draws = _drawer(populations, shuffle), None
    trained = _together(population, networks)
    del networks  # arrays on the host would stay beside those that take their place
    if first_step == 0:
        yield 0, trained, measure(trained)
    for step in range(first_step + 1, num_steps + 1):
        epoch, batch = divmod(step - 1, population.steps_per_epoch)
        if batch == 0 or draws is None:
            draws = draw(epoch)
        at = step, batch * population.batch_size
        for groups, drawn, take_step, placement in zip(trained, draws, take_steps, population.placements, strict=True):
            for i, of_group in enumerate(drawn):
                group = take_step(groups[i], of_group, at, train)
                groups[i] = jax.device_get(group) if placement.rest_on_host else group
        due = step % measure_every == 0 or step == num_steps
        yield step, trained, measure(trained) if due else []


def take_apart(populations: Sequence[Population], networks: list[list[Group]]) -> list[list[list[Group]]]:
    """For each of the populations what it has of the networks that `trajectories` gives."""
    each = [[devices.apart(group, len(populations)) for group in groups] for groups in networks]
    return [[[group[i] for group in groups] for groups in each] for i in range(len(populations))]


def _together(population: Population, groups: Sequence[list[list[Any]]]) -> list[list[Any]]:
    """The inverse of `take_apart`, of anything that is in groups, of populations like this one."""
    together = partial(devices.together, devices=population.devices)
    return [list(map(together, zip(*of_model, strict=True))) for of_model in zip(*groups, strict=True)]


def _splits(populations: Sequence[Population]) -> tuple[tuple[Split, Split], int | None]:
    """The training and test examples that populations share, and None; if they differ, `[S, N, ...]` of all, and 0."""
    each = [(population.train, population.test) for population in populations]
    equal = lambda other: all(map(np.array_equal, jax.tree.leaves(each[0]), jax.tree.leaves(other)))
    if all(map(equal, each[1:])):
        return each[0], None
    return jax.tree.map(lambda *arrays: np.stack(arrays), *each), 0


class Draws(NamedTuple):
    """What is random in a network's training: the order `[N]` of its images in an epoch, and keys."""

    order: jax.Array
    dropout: jax.Array
    augment: jax.Array


@lru_cache(devices.PROGRAMS)
def _programs(population: Population, count: int, axis: int | None) -> tuple[list[Callable], Callable]:
    """The compiled programs that take a step of a group, one for each architecture; and the one that draws an order.

    Of so many populations side by side, with their examples along the axis, as `_splits` has them.
    """
    compiled = partial(devices.program, devices=population.devices)
    take_steps = []
    for model in population.models:
        one_step = jax.vmap(partial(_one_step, population, model), (0, 0, None, None))
        of_all = devices.side_by_side(one_step, count, (0, 0, None, axis))
        take_steps.append(compiled(of_all, in_axes=(0, 0, None, 0), donate=(0,)))
    order = jax.vmap(lambda key, epoch: population.order(key, epoch, len(population.train.labels)), (0, None))
    return take_steps, compiled(devices.side_by_side(order, count, (0, None)), in_axes=(0, None))


def _drawer(populations: Sequence[Population], shuffle: Callable) -> Callable[[int], list[list[Draws]]]:
    """The draws of an epoch, for each architecture and group; `shuffle` draws the orders of a group."""

    def before(population: Population) -> list[list[Draws]]:
        num_models, count, of = len(population.models), population.num_networks, population.keys
        keys = zip(*(network_keys(key, num_models, count) for key in (of.order, of.dropout, of.augment)), strict=True)
        return split(population, [Draws(*of_model) for of_model in keys])

    groups = _together(populations[0], list(map(before, populations)))
    return lambda epoch: [[draws._replace(order=shuffle(draws.order, epoch)) for draws in each] for each in groups]


def _one_step(
    population: Population, model: Model, network: Network, draws: Draws, at: tuple[jax.Array, jax.Array], train: Split
) -> Network:
    """One network after its next batch; `at` is the step's number and where in `draws.order` the batch starts."""
    step, position = at
    batch = jax.lax.dynamic_slice(draws.order, (position,), (population.batch_size,))
    dropout_key, augment_key = (jax.random.fold_in(key, step) for key in (draws.dropout, draws.augment))
    inputs, labels = train.inputs[batch], train.labels[batch]
    inputs = inputs if population.augment is None else population.augment(augment_key, inputs)
    return training.train_step(model, population.optimizer, network, inputs, labels, dropout_key, population.objective)


def first_batches(population: Population) -> list[np.ndarray]:
    """For each architecture, the training images in each network's first batch, by their numbers: `[M, batch_size]`."""
    keys = network_keys(population.keys.order, len(population.models), population.num_networks)
    draw = _first_batch(population.order, population.batch_size, len(population.train.labels))
    return [np.asarray(draw(of_model)) for of_model in keys]


@lru_cache(devices.PROGRAMS)
def _first_batch(order: Callable, batch_size: int, num_images: int) -> Callable[[jax.Array], jax.Array]:
    """The compiled program that draws the first batch of each network."""
    return jax.jit(partial(jax.lax.map, lambda key: order(key, 0, num_images)[:batch_size]))


def batch_overlap(population: Population) -> float:
    """The share of a network's first batch that is also in the first batch of the other, averaged over pairs."""
    num_models, count = len(population.models), population.num_networks
    num_images = len(population.train.labels)
    # How many networks' first batches an image is in.
    uses = np.stack([np.bincount(each.ravel(), minlength=num_images) for each in first_batches(population)])
    common = (uses * (uses - 1)).sum() / 2 if num_models == 1 else uses.prod(0).sum()
    return float(common / observe.num_pairs(num_models, count) / population.batch_size)
