"""Peak memory of the process that trains and measures networks, by their number, those at once, and test images.

python benchmarks/population_memory.py [--model=conv_b] [--batch=128]
"""

import argparse
import subprocess
import sys
import time

from populations import on_noise

from jtrans.harness import runtime
from jtrans.population import devices, engine

# Networks, how many at once (0: by jtrans's own rule), test images.
CASES = ((2, 0, 200), (8, 0, 200), (8, 0, 2000), (32, 0, 200))


def measure(name: str, batch: int, networks: int, size: int, examples: int) -> None:
    """A step and its measurement in this process."""
    runtime.prepare()
    population = on_noise(name, networks, batch, examples=examples, group_size=size)
    groups = engine.initialize(population)
    started = time.perf_counter()
    for _ in engine.trajectory(population, groups, 1):
        pass
    seconds = time.perf_counter() - started
    peak, _ = devices.memory()
    at_once = population.placements[0].size
    print(
        f"{name} {networks:3} networks, {at_once} at once, {examples:4} test images: {peak / 2**30:5.2f} GiB, "
        f"{seconds:6.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="conv_b")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--networks", type=int)
    parser.add_argument("--group_size", type=int, default=0)
    parser.add_argument("--examples", type=int, default=200)
    options = parser.parse_args()
    if options.networks:
        measure(options.model, options.batch, options.networks, options.group_size, options.examples)
        return
    for networks, size, examples in CASES:
        flags = [f"--model={options.model}", f"--batch={options.batch}", f"--networks={networks}"]
        flags += [f"--group_size={size}", f"--examples={examples}"]
        subprocess.run([sys.executable, __file__, *flags], check=True)


if __name__ == "__main__":
    main()
