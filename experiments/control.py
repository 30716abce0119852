"""What controls early transferability: learning rate, batch size and optimizer, hundreds of settings side by side."""

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jtrans import cli, data, devices, early, findings, plots, population, report, results, settings, training
from jtrans.models import Model
from jtrans.population import Keys, Trajectory


def main(config: ConfigDict, workdir: Path) -> None:
    """A map of the lowest angle while the accuracy is at chance, over learning rate, batch size and optimizer."""
    settings.check_control(config)
    results.ensure(workdir, config, measure)
    print(f"\n{report.tell(workdir)}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def measure(config: ConfigDict, workdir: Path) -> None:
    """Every setting, from where an earlier run stopped, the table, the figure."""
    started = time.monotonic()
    keys = population.keys(config.seed)
    dataset, test = early.load(config, keys.data, max(config.batch_sizes))
    (name,) = config.models
    model, digest = early.build(config, name, dataset), data.digest(dataset)
    results.write_config(workdir, config)
    of_part = {}
    for optimizer, batch_size in itertools.product(config.optimizers, config.batch_sizes):
        path = workdir / f"{optimizer}-{batch_size}.npz"
        if not path.exists():
            trajectory, first_update = train(model, config, optimizer, batch_size, keys, dataset.train, test)
            results.write_arrays(path, trajectory, first_update=first_update, data_sha256=np.array(digest))
            print(
                f"{optimizer}, batch size {batch_size}: {len(config.learning_rates)} learning rates measured",
                flush=True,
            )
        of_part[optimizer, batch_size] = trajectory, beside = results.read_arrays(path)
        results.check_digest(path, str(beside.get("data_sha256", "")), digest)
    dimension, num_classes = test.images[0].size, len(dataset.class_names)
    table = findings.control(of_part, config.learning_rates, dimension, num_classes)
    summary = findings.summarize_control(of_part, table, config.learning_rates, dimension, num_classes)
    summary["data_sha256"] = digest
    summary["seconds"] = time.monotonic() - started
    results.write_table(workdir / results.CONTROL_TABLE, table)
    results.write_figure(workdir, plots.control(config.to_dict(), table, summary))
    results.write_summary(workdir, config, summary)


def train(
    model: Model,
    config: ConfigDict,
    optimizer: str,
    batch_size: int,
    keys: Keys,
    train: data.Split,
    test: data.Split,
) -> tuple[Trajectory, np.ndarray]:
    """All learning rates of one optimizer and batch size as one population, the networks of each rate in a row.

    Returns:
      The trajectory, with pairs across learning rates; and for each network the length of its first update over
      that of its weights.
    """
    rates = np.repeat(np.array(config.learning_rates, np.float32), config.num_networks)
    placement = early.place(config, model, test.images, batch_size, len(rates))
    adjustable = training.adjustable(optimizer)
    (groups,) = population.initialize([model], adjustable, keys.init, [placement])
    groups = list(map(training.with_learning_rate, groups, devices.split(rates, placement)))
    pair = compared(len(config.learning_rates), config.num_networks)
    steps = population.trajectory(
        [model],
        adjustable,
        [groups],
        [placement],
        keys,
        train,
        test,
        batch_size=batch_size,
        num_steps=config.num_steps,
        batch_statistics=config.batch_statistics,
        pair=pair,
    )
    weights, measured = [], []
    for step, (groups,), measurement in steps:
        measured.append((step, measurement))
        if step < 2:
            weights.append(devices.merge([group.variables["params"] for group in groups], placement))
    before, after = map(jax.tree.leaves, weights)
    moved = length([b - a for a, b in zip(before, after, strict=True)])
    return population.collect(*zip(*measured, strict=True), 1, len(test.labels), pair), moved / length(before)


def compared(num_rates: int, num_networks: int) -> np.ndarray:
    """The pairs `[P, 2]` of networks that are compared: all within a learning rate, and of those across rates all, or
    a sample of `population.MOST_PAIRS`.
    """
    pair = np.stack(np.triu_indices(num_rates * num_networks, 1), axis=1)
    first, second = (pair // num_networks).T
    return np.concatenate([pair[first == second], population.sample(pair[first != second], population.MOST_PAIRS)])


def length(leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The Euclidean length of each network's numbers, which stand along the first axis."""
    return np.sqrt(sum(np.square(leaf, dtype=np.float64).reshape(len(leaf), -1).sum(1) for leaf in leaves))


if __name__ == "__main__":
    sys.exit(cli.run(main))
