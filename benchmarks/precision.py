"""Pair angles and step times with matrix products at JAX's default precision, which on a GPU is TF32, and in float32.

    python benchmarks/precision.py [--models=mlp_deep,conv_a] [--networks=8] [--batch=128] [--steps=10]

The same networks on the same batches of handwritten digits, trained by SGD: Adam would turn a rounding error into a
whole step. On a CPU both precisions are float32.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from populations import in_turns

from jtrans.experiments import early
from jtrans.harness import runtime, setup
from jtrans.harness.fields import defaults
from jtrans.population import engine

PRECISIONS = ("default", "highest")


def build(model: str, networks: int, batch: int) -> engine.Population:
    config = defaults(early.FIELDS)
    config.data.name = "digits"
    config.models = (model,)
    config.num_networks = networks
    config.batch_size = batch
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    keys = engine.keys(config.seed)
    return setup.population(config, *setup.load(config, keys.data, batch), keys)


def advance(precision: str, run: Iterator[Any]) -> Any:
    """The run's next step. The precision is part of what JAX knows a compiled program by: each has its own."""
    with jax.default_matmul_precision(precision):
        return next(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp_deep,conv_a")
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="2 or more")
    options = parser.parse_args()
    runtime.prepare()
    for model in options.models.split(","):
        population = build(model, options.networks, options.batch)
        runs = {
            name: partial(advance, name, engine.trajectory(population, engine.initialize(population), options.steps))
            for name in PRECISIONS
        }
        ms, angles = in_turns(runs, options.steps)
        print(f"{model}, {options.networks} networks: {', '.join(f'{name} {ms[name]:.2f} ms' for name in ms)} a step")
        print("| model | step | largest difference, degrees | mean difference, degrees |\n|---|---|---|---|")
        for step, apart in enumerate(np.abs(np.subtract(*angles))):
            print(f"| {model} | {step} | {apart.max():.5f} | {apart.mean():.5f} |", flush=True)


if __name__ == "__main__":
    main()
