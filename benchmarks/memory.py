"""Peak memory of the metrics on 50,000 examples of 3,072 inputs and 10 outputs, a process each.

    python benchmarks/memory.py [--examples=50000]

The inputs themselves are 586 MiB of float32.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

MEASURES = ("nothing", "transferability", "transferability_jitted", "gradient_matching_distance", "pgd")


def measure(name: str, examples: int) -> None:
    """One measure in this process; prints its seconds and the process's peak resident memory."""
    import jax
    import jax.numpy as jnp

    from jtrans import attacks, metrics

    keys = jax.random.split(jax.random.key(0), 4)
    weights = [jax.random.normal(k, (3072, 64)) / 55 for k in keys[:2]]
    heads = [jax.random.normal(k, (64, 10)) / 8 for k in keys[2:]]
    f, g = (lambda x, w=w, h=h: jnp.tanh(x @ w) @ h for w, h in zip(weights, heads, strict=True))
    rows = np.random.default_rng(0).random((1000, 3072), np.float32)
    x = jax.block_until_ready(jnp.tile(rows, (examples // 1000, 1)))
    run = {
        "nothing": lambda x: x[0],
        "transferability": lambda x: metrics.transferability(f, g, x),
        "transferability_jitted": jax.jit(lambda x: metrics.transferability(f, g, x)),
        "gradient_matching_distance": lambda x: metrics.gradient_matching_distance(f, g, x),
        "pgd": lambda x: metrics.transferability(f, g, x, attack=attacks.pgd(0.03, 3, 0.01), key=jax.random.key(6)),
    }[name]
    started = time.perf_counter()
    jax.block_until_ready(run(x))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:28} {peak:5.2f} GiB  {seconds:6.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--measure", choices=MEASURES)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.examples)
        return
    for name in MEASURES:
        subprocess.run([sys.executable, __file__, f"--measure={name}", f"--examples={options.examples}"], check=True)


if __name__ == "__main__":
    main()
