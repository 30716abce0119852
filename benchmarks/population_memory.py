"""Peak memory of the process that trains and measures convolutional networks, by their number and group size.

python benchmarks/population_memory.py [--model=conv_b] [--batch=128]
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import numpy as np

from jtrans import models, population, runtime, training
from jtrans.data import Split

NETWORKS = ((1, 0), (4, 0), (8, 0), (64, 1))  # and how many at a time; 0: by jtrans's own rule
SHAPE, NUM_TEST = (32, 32, 3), 100


def measure(name: str, batch: int, networks: int, size: int) -> None:
    """One step and its measurement in this process."""
    runtime.prepare()
    rng = np.random.default_rng(0)
    draw = lambda n: Split(rng.integers(256, size=(n, *SHAPE), dtype=np.uint8), rng.integers(2, size=n))
    model, optimizer = models.build(name, SHAPE, 2), training.OPTIMIZERS["adam"](1e-3)
    size = size or population.group_size(model, SHAPE, max(batch, NUM_TEST), networks)
    groups = population.initialize([model], optimizer, jax.random.key(0), networks, [size])
    settings = {"batch_size": batch, "num_steps": 1}
    started = time.perf_counter()
    for _, _, measurement in population.trajectory(
        [model], optimizer, groups, population.keys(0), draw(4 * batch), draw(NUM_TEST), **settings
    ):
        jax.block_until_ready(measurement)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name} {networks:3} networks, {size} at a time: {peak:5.2f} GiB, {seconds:6.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="conv_b")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--networks", type=int)
    parser.add_argument("--group_size", type=int, default=0)
    options = parser.parse_args()
    if options.networks:
        measure(options.model, options.batch, options.networks, options.group_size)
        return
    for networks, size in NETWORKS:
        flags = [f"--model={options.model}", f"--batch={options.batch}", f"--networks={networks}"]
        subprocess.run([sys.executable, __file__, *flags, f"--group_size={size}"], check=True)


if __name__ == "__main__":
    main()
