"""The only module that knows devices and processes: how networks are placed on them, how processes communicate.

The M networks of an architecture are a list of groups. In a group every device has `size` networks, so the arrays of a
group are `[local devices, size, ...]` in each process, and one program, the same on every device, serves all groups.
If M does not fill the last group, copies of the last network fill it, and are dropped afterwards.
"""

import math
import os
import resource
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
PROGRAMS = 8  # for how many populations compiled programs are kept, the most recent ones
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # the number of processes started by a launcher
# Memory for the networks on a device at once: on a CPU so much as stays in its caches (one LeNet at a time takes 0.7 of
# the time of eight, and no network takes longer: `benchmarks/README.md`), elsewhere half of the total.
CPU_BYTES = 2**27

Group = Any  # a pytree of arrays `[local devices, size, ...]`


class Placement(NamedTuple):
    """How the M networks of one architecture are placed on the devices."""

    num_networks: int  # M
    size: int  # the number of networks on a device at once
    devices: tuple[jax.Device, ...]  # of all processes, in order
    rest_on_host: bool = False  # whether a group is kept in host memory while others are on the devices
    fit: int = 1  # the number of networks on a device at once for which there is memory

    @property
    def num_groups(self) -> int:
        return -(-self.num_networks // (self.size * len(self.devices)))

    @property
    def num_slots(self) -> int:
        """The places of a device in all groups, but for those at the end that hold copies on every device."""
        before = self.num_groups - 1
        return before * self.size + min(self.size, self.num_networks - before * self.size * len(self.devices))


class Part(NamedTuple):
    """Some networks of one architecture, on the host."""

    numbers: np.ndarray  # `[m]`, which of the M they are
    arrays: Any  # a pytree of arrays `[m, ...]`


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes of a job; to be called before JAX is first asked for a device.

    Without arguments, a job of several tasks under Slurm or Open MPI is detected by JAX, which gives each task one GPU;
    otherwise the process runs alone. Raises ValueError or RuntimeError if the other processes cannot be reached, or an
    argument is missing.
    """
    launched = max(int(os.environ.get(name, 1)) for name in TASKS)
    # A single task does not join: JAX would give it only one of its GPUs.
    if launched > 1 or (coordinator, num_processes, process_id) != (None, None, None):
        jax.distributed.initialize(coordinator, num_processes, process_id)


def is_first() -> bool:
    """Whether this is the first process, which alone reports and writes."""
    return jax.process_index() == 0


def from_first(tree: Any) -> Any:
    """The first process's numbers or arrays, in every process; all call it at the same point, with equal shapes."""
    return tree if jax.process_count() == 1 else jax.tree.map(lambda leaf: _of_processes(leaf)[0], tree)


def _of_processes(value: Any) -> np.ndarray:
    """`[processes, ...]`: every process's number or array, by one device of each."""
    firsts = np.reshape(jax.devices(), (jax.process_count(), -1))[:, 0]
    own = jax.device_put(np.asarray(value)[None], jax.local_devices()[0])
    sharding = NamedSharding(Mesh(firsts, AXIS), PartitionSpec(AXIS))
    return _whole(jax.make_array_from_single_device_arrays((len(firsts), *own.shape[1:]), sharding, [own]))


def _whole(array: jax.Array) -> np.ndarray:
    """An array that is split over the devices of several processes, on the host of each."""
    assert isinstance(array.sharding, NamedSharding)
    on_each = jax.jit(_same, out_shardings=NamedSharding(array.sharding.mesh, PartitionSpec()))(array)
    # Wait for all devices, not for the first alone: a process that ends while its others still connect to those of
    # another process leaves that one waiting for ever.
    return np.asarray(jax.block_until_ready(on_each))


def _same(array: jax.Array) -> jax.Array:
    """At the top level, so that `_whole` compiles once for each shape."""
    return array


def first_does(action: Callable[[], Any]) -> None:
    """Call `action` in the first process while the others wait; where it raises, they exit with status 2, silently."""
    error = None
    if is_first():
        try:
            action()
        except Exception as raised:  # of any kind: the other processes must not wait for ever
            error = raised
    if from_first(np.array(error is not None)):
        raise error or SystemExit(2)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all call it at the same point."""
    return flag if jax.process_count() == 1 else bool(_of_processes(flag).any())


def memory() -> tuple[int, int]:
    """Peak and total memory in bytes: of a device, or for a CPU of this process and of its machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"], stats["bytes_limit"]
    unit = 1 if sys.platform == "darwin" else 1024
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, physical


def place(
    num_networks: int, bytes_each: int, state_bytes: int, *, size: int = 0, devices: Sequence[jax.Device] | None = None
) -> Placement:
    """Distribute M networks over the devices (None: all of all processes), as many at once as their memory allows.

    Args:
      bytes_each, state_bytes: the memory of a network while it is trained or measured, and of its state alone.
      size: the number of networks on a device at once; 0: as many as fit, in groups of equal size.
    """
    devices = tuple(devices or jax.devices())
    on_cpu = devices[0].platform == "cpu"
    budget = CPU_BYTES if on_cpu else memory()[1] // 2
    each = -(-num_networks // len(devices))
    fit = size or max(1, budget // bytes_each)
    # As few groups as possible, of sizes as equal as possible: all but the last are full.
    size = min(size or -(-each // -(-each // fit)), each)
    return Placement(num_networks, size, devices, not on_cpu and each * state_bytes > budget, fit)


def program(
    f: Callable, devices: Sequence[jax.Device], *, in_axes: Any = 0, out_axes: Any = 0, donate: Sequence[int] = ()
) -> Callable:
    """`f`, of one device's share, as a compiled program of all devices, which may communicate along `AXIS`."""

    def share(*arguments: Any) -> Any:
        # pmap removes the devices' axis, and XLA does not write results over donated arrays of another shape. An axis
        # of length 1 in its place keeps the shapes.
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        add_axis = partial(jax.tree.map, lambda leaf: jnp.expand_dims(leaf, 0))
        expanded = [x if axis is None else add_axis(x) for x, axis in zip(arguments, axes, strict=True)]
        return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), jax.vmap(f, in_axes)(*expanded))

    return jax.pmap(
        share if donate else f, AXIS, in_axes=in_axes, out_axes=out_axes, devices=devices, donate_argnums=tuple(donate)
    )


def _local(devices: Sequence[jax.Device]) -> list[int]:
    """The positions among the devices of those that belong to this process."""
    return [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]


def copies(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """The same arrays on every device, `[local devices, ...]`."""
    return _copier(tuple(devices))(np.zeros(len(_local(devices))), tree)


@lru_cache(PROGRAMS)
def _copier(devices: tuple[jax.Device, ...]) -> Callable:
    return program(lambda _, tree: tree, devices, in_axes=(0, None))


def split(tree: Any, placement: Placement) -> list[Group]:
    """Arrays of all networks, `[M, ...]`, split into groups: this process's share of each."""
    here = np.minimum(_numbers(placement), placement.num_networks - 1)[:, _local(placement.devices)]
    return [jax.tree.map(lambda leaf: leaf[networks], tree) for networks in here]  # noqa: B023 (called at once)


def _numbers(placement: Placement) -> np.ndarray:
    """Which network is where, `[groups, devices, size]`; copies of the last one have numbers from M on."""
    shape = placement.num_groups, len(placement.devices), placement.size
    return np.arange(math.prod(shape)).reshape(shape)


def side_by_side(f: Callable, count: int, in_axes: Sequence[int | None]) -> Callable:
    """`f`, of one device's share of a population, of several populations `[count, ...]`; of one as it is."""
    return f if count == 1 else jax.vmap(f, in_axes)


def together(groups: Sequence[Group], devices: Sequence[jax.Device]) -> Group:
    """The same group of several populations as one, `[local devices, count, size, ...]`; a single one as it is."""
    return groups[0] if len(groups) == 1 else _stacker(tuple(devices))(tuple(groups))


def apart(group: Group, count: int) -> list[Group]:
    """What `together` put together."""
    return [group] if count == 1 else [jax.tree.map(lambda leaf, i=i: leaf[:, i], group) for i in range(count)]


@lru_cache(PROGRAMS)
def _stacker(devices: tuple[jax.Device, ...]) -> Callable:
    return program(lambda groups: jax.tree.map(lambda *leaves: jnp.stack(leaves), *groups), devices)


def slots(placement: Placement) -> list[jax.Array]:
    """Within a program: for each group the numbers `[size]` of this device's networks among the M."""
    first = jax.lax.axis_index(AXIS) * placement.size + jnp.arange(placement.size)
    each = placement.size * len(placement.devices)
    return [group * each + first for group in range(placement.num_groups)]


def merge(groups: Sequence[Group], placement: Placement) -> Any:
    """The inverse of `split`: arrays `[M, ...]` on the host, in every process."""
    return merge_slots(groups, placement, range(placement.num_slots)).arrays


def merge_slots(groups: Sequence[Group], placement: Placement, slots: range) -> Part:
    """The networks in consecutive ones of the `num_slots` places, of all devices and in every process."""
    size = placement.size
    first_group, last_group = slots.start // size, (slots.stop - 1) // size
    chosen = {
        group: slice(max(slots.start - group * size, 0), min(slots.stop - group * size, size))
        for group in range(first_group, last_group + 1)
    }
    numbers = np.concatenate([_numbers(placement)[group, :, places].ravel() for group, places in chosen.items()])
    is_network = numbers < placement.num_networks

    def whole(*leaves: jax.Array) -> np.ndarray:
        # Only where it leaves something out: a slice is a program to compile for each shape.
        cut = lambda leaf, places: leaf if places == slice(0, size) else leaf[:, places]
        parts = [_on_host(cut(leaves[group], places)) for group, places in chosen.items()]
        return np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])[is_network]

    return Part(numbers[is_network], jax.tree.map(whole, *groups))


def _on_host(array: jax.Array) -> np.ndarray:
    """An array of all processes, `[local devices, ...]` in each, as `[devices, ...]`."""
    if jax.process_count() > 1:
        is_share = isinstance(array, np.ndarray) or array.is_fully_addressable  # as `split` made it
        return np.concatenate(_of_processes(array)) if is_share else _whole(array)
    if isinstance(array, np.ndarray):
        return array
    # JAX keeps what it has copied to the host for as long as the array: arrays of their own over the same memory.
    alone = lambda data: jax.make_array_from_single_device_arrays(data.shape, data.sharding, [data])
    return np.concatenate([alone(shard.data) for shard in array.addressable_shards])  # never a view of that memory


def gather(parts: Sequence[tuple[Sequence[Any], Placement]]) -> list[Any]:
    """Within a program: each device's part of each group, pytrees of float32 `[size, ...]`, gathered as `[M, ...]`.

    One exchange for all parts: independent exchanges of one program may run in different orders in different processes.
    """
    trees = [jax.tree.map(lambda *groups: jnp.stack(groups), *groups) for groups, _ in parts]
    leaves, structure = jax.tree.flatten(trees)
    placements = [placement for tree, (_, placement) in zip(trees, parts, strict=True) for _ in jax.tree.leaves(tree)]
    return jax.tree.unflatten(structure, _gather(leaves, placements))


def _gather(stacks: Sequence[jax.Array], placements: Sequence[Placement]) -> list[jax.Array]:
    """`gather` of arrays `[groups, size, ...]`."""
    if len(placements[0].devices) == 1:  # without the copies of an exchange
        of_all = [stack.reshape(-1, *stack.shape[2:]) for stack in stacks]
        return [stack[: placement.num_networks] for stack, placement in zip(of_all, placements, strict=True)]
    sizes = [stack.size for stack in stacks]
    gathered = jax.lax.all_gather(jnp.concatenate([stack.ravel() for stack in stacks]), AXIS)  # [devices, ...]
    whole = []
    each = jnp.split(gathered, np.cumsum(sizes)[:-1], 1)
    for placement, stack, part in zip(placements, stacks, each, strict=True):
        part = jnp.swapaxes(part.reshape(-1, *stack.shape), 0, 1)  # [groups, devices, size, ...]
        whole.append(part.reshape(-1, *stack.shape[2:])[: placement.num_networks])
    return whole


def num_bytes(tree: Any) -> int:
    """The bytes of a pytree of arrays, or of their shapes and data types alone."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
