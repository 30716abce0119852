"""Memory of a device against its estimate, and networks that wait in host memory against those that stay on the device.

    python benchmarks/placement.py [--model=mlp_deep] [--networks=64] [--batch=128] [--groups=4] [--steps=10]

The memory is that of the placement that jtrans chooses; then the networks are in so many groups. A run takes one model,
since a process's peak never falls.
"""

from functools import partial
from unittest import mock

import jax
import numpy as np
import populations

from jtrans.harness import runtime
from jtrans.population import devices, engine


def main() -> None:
    parser = populations.parser(__doc__)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="2 or more")
    options = parser.parse_args()
    runtime.prepare()
    print(memory(options.model, options.networks, options.batch), flush=True)
    size = max(1, options.networks // (options.groups * jax.device_count()))
    print(waiting(populations.on_noise(options.model, options.networks, options.batch, group_size=size), options.steps))


def memory(model: str, networks: int, batch: int) -> str:
    """What two steps take on a device beyond what is there before, and what `engine.place` expects of them."""
    before, total = devices.memory()
    with mock.patch.object(devices, "place", wraps=devices.place) as place:
        population = populations.on_noise(model, networks, batch)
    _, bytes_each, state_bytes = place.call_args.args
    for _ in engine.trajectory(population, engine.initialize(population), 2):
        pass
    (placement,) = population.placements
    others = 0 if placement.rest_on_host else (placement.num_groups - 1) * placement.size
    expected, taken = placement.size * bytes_each + others * state_bytes, devices.memory()[0] - before
    gib = [f"{count / 2**30:.2f}" for count in (taken, expected, total)]
    return (
        f"{model}, {networks} networks, {placement.size} at once on each of {len(placement.devices)} devices: "
        f"{gib[0]} GiB, expected {gib[1]}, ratio {taken / expected:.2f}, of {gib[2]} in all"
    )


def waiting(population: engine.Population, steps: int) -> str:
    """The same groups on the devices, and in host memory while others are there."""
    (placement,) = population.placements
    on_host = population._replace(placements=[placement._replace(rest_on_host=True)])
    places = {"on the devices": population, "on the host": on_host}
    runs = {
        name: partial(next, engine.trajectory(placed, engine.initialize(placed), steps))
        for name, placed in places.items()
    }
    ms, angles = populations.in_turns(runs, steps)
    times = ", ".join(f"{name} {taken:.2f} ms" for name, taken in ms.items())
    apart = np.abs(np.subtract(*angles)).max()
    return f"{placement.num_groups} groups of {placement.size}: {times} a step; angles differ by {apart:.5f} degrees"


if __name__ == "__main__":
    main()
