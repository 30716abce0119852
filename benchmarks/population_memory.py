"""Peak memory of the process that trains and measures networks, by their number, those at a time, and test images.

python benchmarks/population_memory.py [--model=conv_b] [--batch=128]
"""

import argparse
import subprocess
import sys
import time

import numpy as np

from jtrans import devices, models, population, runtime, training
from jtrans.data import Split

SHAPE = (32, 32, 3)
# Networks, how many at a time (0: by jtrans's own rule), test images.
CASES = ((2, 0, 200), (8, 0, 200), (8, 0, 2000), (32, 0, 200))


def measure(name: str, batch: int, networks: int, size: int, examples: int) -> None:
    """A step and its measurement in this process."""
    runtime.prepare()
    rng = np.random.default_rng(0)
    draw = lambda n: Split(rng.integers(256, size=(n, *SHAPE), dtype=np.uint8), rng.integers(2, size=n))
    model, optimizer = models.build(name, SHAPE, 2), training.OPTIMIZERS["adam"](1e-3)
    block = population.block_size(examples, networks, np.prod(SHAPE))
    placement = population.place(model, SHAPE, max(batch, block), networks, size=size)
    keys = population.keys(0)
    groups = population.initialize([model], optimizer, keys.init, [placement])
    started = time.perf_counter()
    for _ in population.trajectory(
        [model], optimizer, groups, [placement], keys, draw(4 * batch), draw(examples), batch_size=batch, num_steps=1
    ):
        pass
    seconds = time.perf_counter() - started
    peak, _ = devices.memory()
    print(
        f"{name} {networks:3} networks, {placement.size} at a time, {examples:4} test images: {peak / 2**30:5.2f} GiB, "
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
