"""The one place that knows devices and processes: how a population lies on them, and what one tells the others.

The M networks of an architecture are a list of groups. Within a group every device takes on `size` of them, so an array
of a group is `[local devices, size, ...]` in each process, and one program, the same on every device, serves all
groups. Where M does not fill the last group, its last network stands in the places left, and is dropped afterwards.
"""

import math
import os
import resource
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

AXIS = "devices"
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes a launcher has started
# Memory that a device's networks may take at a time. On a CPU larger groups are no faster. Elsewhere: half of it.
CPU_BYTES = 2**30

Group = Any  # a pytree of arrays `[local devices, size, ...]`


class Placement(NamedTuple):
    """How the networks of one architecture lie on the devices.

    Attributes:
      num_networks: M.
      size: how many of them a device takes on at a time.
      devices: of all processes, in their order.
      rest_on_host: whether groups wait for their turn in the host's memory.
    """

    num_networks: int
    size: int
    devices: tuple[jax.Device, ...]
    rest_on_host: bool = False

    @property
    def num_groups(self) -> int:
        return -(-self.num_networks // (self.size * len(self.devices)))


def launched() -> int:
    """How many processes a launcher has started; 1 where there is none."""
    return max(int(os.environ.get(name, 1)) for name in TASKS)


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes of a job; called before anything else asks JAX for a device.

    Without arguments a job of several tasks under Slurm or Open MPI is joined as JAX finds it, where each task takes
    one GPU; otherwise the process is on its own.

    Raises:
      ValueError, RuntimeError: the others cannot be reached, or an argument is missing.
    """
    # A single task is not asked to join: JAX would give it one GPU of all that it has.
    if launched() > 1 or (coordinator, num_processes, process_id) != (None, None, None):
        jax.distributed.initialize(coordinator, num_processes, process_id)


def is_first() -> bool:
    """Whether this is the process that reports and writes."""
    return jax.process_index() == 0


def from_first(tree: Any) -> Any:
    """The first process's numbers or arrays, in every process; all call it at the same point, with the same shapes."""
    # One array at a time, since each is on a device meanwhile.
    return tree if jax.process_count() == 1 else jax.tree.map(multihost_utils.broadcast_one_to_all, tree)


def first_does(action: Callable[[], Any]) -> None:
    """Call `action` in the first process, while the others wait for its end.

    Raises:
      Exception: what `action` raised. The other processes end without a word.
    """
    error = None
    if is_first():
        try:
            action()
        except Exception as raised:  # whatever it is, the others must not wait for ever
            error = raised
    if from_first(np.array(error is not None)):
        raise error or SystemExit(2)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in some process; all call it at the same point."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def memory() -> tuple[int, int]:
    """Bytes in use at most so far, and all that there are: of a device, or on a CPU of this process and its machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"], stats["bytes_limit"]
    unit = 1 if sys.platform == "darwin" else 1024
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, physical


def place(
    num_networks: int,
    bytes_each: int,
    state_bytes: int,
    *,
    size: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Placement:
    """Networks over all devices, as many at a time as fit.

    Args:
      num_networks: M.
      bytes_each: the memory that a network takes while it trains or is measured.
      state_bytes: the memory that it takes at rest.
      size: how many a device takes on at a time; 0: as many as fit, in groups of equal size.
      devices: those to use, of all processes; all when None.
    """
    devices = tuple(devices or jax.devices())
    on_cpu = devices[0].platform == "cpu"
    budget = CPU_BYTES if on_cpu else memory()[1] // 2
    each = -(-num_networks // len(devices))
    fit = max(1, min(each, budget // bytes_each))
    # As few groups as fit, of sizes as equal as they can be: each group but the last is full.
    size = min(size or -(-each // -(-each // fit)), each)
    return Placement(num_networks, size, devices, rest_on_host=not on_cpu and each * state_bytes > budget)


def program(
    f: Callable, devices: Sequence[jax.Device], *, in_axes: Any = 0, out_axes: Any = 0, donate: Sequence[int] = ()
) -> Callable:
    """`f` of one device's share as a compiled program of all devices, which may speak to each other along `AXIS`."""

    def share(*arguments: Any) -> Any:
        # pmap takes the devices' axis off, and with it XLA's leave to write results over donated arrays: it does not
        # across a change of shape. An axis of length 1 in its place keeps the shapes.
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        add = partial(jax.tree.map, lambda leaf: jnp.expand_dims(leaf, 0))
        lengthened = [x if axis is None else add(x) for x, axis in zip(arguments, axes, strict=True)]
        return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), jax.vmap(f, in_axes)(*lengthened))

    return jax.pmap(
        share if donate else f, AXIS, in_axes=in_axes, out_axes=out_axes, devices=devices, donate_argnums=tuple(donate)
    )


def _local(devices: Sequence[jax.Device]) -> list[int]:
    """The places among the devices of those that belong to this process."""
    return [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]


def copies(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """The same arrays on every device, `[local devices, ...]`."""
    return program(lambda _, tree: tree, devices, in_axes=(0, None))(np.zeros(len(_local(devices))), tree)


def split(tree: Any, placement: Placement) -> list[Group]:
    """What belongs to each network, `[M, ...]`, by groups: this process's share of them."""
    num_networks, size, devices, _ = placement
    slots = np.minimum(np.arange(placement.num_groups * len(devices) * size), num_networks - 1)
    slots = slots.reshape(placement.num_groups, len(devices), size)[:, _local(devices)]
    return [jax.tree.map(lambda leaf: leaf[networks], tree) for networks in slots]  # noqa: B023 (called at once)


def slots(placement: Placement) -> list[jax.Array]:
    """Within a program: for each group which of the M networks are this device's, `[size]`."""
    first = jax.lax.axis_index(AXIS) * placement.size + jnp.arange(placement.size)
    each = placement.size * len(placement.devices)
    return [group * each + first for group in range(placement.num_groups)]


def merge(groups: Sequence[Group], placement: Placement) -> Any:
    """What `split` took apart, `[M, ...]`, on the host, in every process."""

    def whole(*parts: jax.Array) -> np.ndarray:
        gather = partial(multihost_utils.process_allgather, tiled=True) if jax.process_count() > 1 else np.asarray
        every = [np.asarray(part).reshape(-1, *part.shape[2:]) for part in map(gather, parts)]
        return np.concatenate(every)[: placement.num_networks]

    return jax.tree.map(whole, *groups)


def gather(parts: Sequence[tuple[Sequence[jax.Array], Placement]]) -> list[jax.Array]:
    """Within a program: what each device has of each group, float32 `[size, ...]`, on every device as `[M, ...]`.

    All of it travels at once: two exchanges of one program that do not wait for each other may meet in another order in
    another process.
    """
    stacks = [jnp.stack(groups) for groups, _ in parts]
    sizes = [stack.size for stack in stacks]
    every = jax.lax.all_gather(jnp.concatenate([stack.ravel() for stack in stacks]), AXIS)  # [devices, ...]
    whole = []
    for (_, placement), stack, part in zip(parts, stacks, jnp.split(every, np.cumsum(sizes)[:-1], 1), strict=True):
        part = jnp.swapaxes(part.reshape(-1, *stack.shape), 0, 1)  # [groups, devices, size, ...]
        whole.append(part.reshape(-1, *stack.shape[2:])[: placement.num_networks])
    return whole


def num_bytes(tree: Any) -> int:
    """The memory of a tree of arrays, or of what only has their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
