"""The angle between random directions: the paper's approximations, the exact law, and samples."""

import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jtrans import cli, directions, findings, metrics, plots, report, results, settings

BLOCK = 2**21  # values drawn at a time


def main(config: ConfigDict, workdir: Path) -> None:
    """The angle between random directions: typical and mean angles by dimension, and how rare small angles are."""
    settings.check(config, settings.RANDOM_ANGLES)
    results.ensure(workdir, config, measure)
    print(f"\n{report.tell(workdir)}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def measure(config: ConfigDict, workdir: Path) -> None:
    """The samples, both tables, the figure."""
    started = time.monotonic()
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    by_dimension = {}
    for dimension in config.dimensions:
        by_dimension[dimension] = sample(keys, dimension, config.num_pairs)
        print(f"{dimension} dimensions: {config.num_seeds} x {config.num_pairs} pairs drawn", flush=True)
    rare = sample(keys, config.dimension, config.num_rare_pairs)
    print(f"{config.dimension} dimensions: {config.num_seeds} x {config.num_rare_pairs} pairs drawn", flush=True)

    typical, unlikely, summary = findings.random_angles(by_dimension, rare, config.dimension, config.factors)
    results.write_config(workdir, config)
    results.write_table(workdir / results.TYPICAL_TABLE, typical)
    results.write_table(workdir / results.UNLIKELY_TABLE, unlikely)
    results.write_figure(workdir, plots.random_angles(typical, unlikely, summary))
    summary["seconds"] = time.monotonic() - started
    results.write_summary(workdir, config, summary)


def sample(keys: jax.Array, dimension: int, num_pairs: int) -> np.ndarray:
    """The folded angles `[seeds, num_pairs]` of independent pairs, in degrees."""
    size = max(1, BLOCK // dimension)

    def block(key: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        like = jnp.zeros((size, dimension))
        return metrics.angles(directions.random(first, like), directions.random(second, like))

    draw = jax.jit(partial(jax.lax.map, block))
    count = -(-num_pairs // size)
    angles = [np.ravel(draw(directions.example_keys(key, count)))[:num_pairs] for key in keys]
    return np.stack(angles)


if __name__ == "__main__":
    sys.exit(cli.run(main))
