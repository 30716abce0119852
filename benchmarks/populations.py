"""What several benchmarks share: populations on random images, and runs that take turns."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jtrans import models, training
from jtrans.data import Split
from jtrans.population import engine

SHAPE, CLASSES = (32, 32, 3), 2


def on_noise(model: str, networks: int, batch: int, *, examples: int = 200, group_size: int = 0) -> engine.Population:
    """Networks of one architecture on random images; so many `examples` are measured."""
    rng = np.random.default_rng(0)
    draw = lambda n: Split(rng.integers(256, size=(n, *SHAPE), dtype=np.uint8), rng.integers(CLASSES, size=n))
    return engine.build(
        models=[models.build(model, SHAPE, CLASSES)],
        optimizer=training.adjustable("adam"),
        learning_rate=1e-3,
        keys=engine.keys(0),
        train=draw(4 * batch),
        test=draw(examples),
        num_networks=networks,
        batch_size=batch,
        group_size=group_size,
    )


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The command line of a script that takes one such population."""
    taken = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    taken.add_argument("--model", default="mlp_deep")
    taken.add_argument("--networks", type=int, default=64)
    taken.add_argument("--batch", type=int, default=128)
    return taken


def in_turns(runs: Mapping[str, Callable[[], Any]], steps: int) -> tuple[dict[str, float], np.ndarray]:
    """Runs that take turns, a step each.

    Args:
      runs: by name what gives the next `(step, networks, measurement)` of an `engine.trajectory` of so many steps, two
        or more.

    Returns:
      The median milliseconds of a step, by name; and the angles of all pairs `[runs, 1 + steps, P]` in degrees.
    """
    seconds, angles = ({name: [] for name in runs} for _ in range(2))
    for _ in range(steps + 1):
        for name, advance in runs.items():
            started = time.perf_counter()
            *_, measurement = advance()
            seconds[name].append(time.perf_counter() - started)
            angles[name].append(measurement.pairs["angle"])
    # The first two measure the untrained networks, and compile.
    return {name: 1e3 * statistics.median(taken[2:]) for name, taken in seconds.items()}, np.array([*angles.values()])
