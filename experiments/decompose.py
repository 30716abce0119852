"""Taking the early part out: adversarial directions without what lies in a small subspace, step by step."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jtrans import (
    cli,
    data,
    decomposition,
    devices,
    directions,
    early,
    findings,
    models,
    plots,
    population,
    report,
    results,
    settings,
    stats,
    training,
)
from jtrans.data import Dataset, Split
from jtrans.errors import InputError
from jtrans.models import Model, Variables
from jtrans.population import Keys
from jtrans.training import Network


def main(config: ConfigDict, workdir: Path) -> None:
    """The angle between adversarial directions once a small subspace is projected out, and whether attacks need it."""
    settings.check_decompose(config)
    results.ensure(workdir, config, measure)
    print(f"\n{report.tell(workdir)}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def measure(config: ConfigDict, workdir: Path) -> None:
    """The networks, the subspaces fitted on some of them, the others measured without those, the table, the figure."""
    started = time.monotonic()
    keys = population.keys(config.seed)
    dataset, test = early.load(config, keys.data, config.batch_size)
    dimension, most = test.images[0].size, config.ranks[-1]
    if most >= dimension:
        raise InputError(f"ranks: got {most}; the images have {dimension} values, so fewer than that")
    fit_images = data.balanced(dataset.train, config.fit_examples, "fit_examples")
    (name,) = config.models
    model = early.build(config, name, dataset)
    look = jax.jit(partial(decomposition.observe, model))
    without = jax.jit(partial(decomposition.measure, model, epsilon=config.attack.epsilon))
    fixed = of_images(dataset, keys.attack, most, subtract_mean=config.data.subtract_mean)
    layer, convolution = models.first_layer(name)
    found, accuracy, start = {}, {}, None
    for step, variables in trained(config, model, keys, dataset.train, test):
        fit, measured = (
            Network(jax.tree.map(lambda leaf, part=part: leaf[part], variables), None)
            for part in (slice(config.num_fit), slice(config.num_fit, None))
        )
        kernel = fit.variables["params"][layer]["kernel"]
        start = kernel.copy() if start is None else start
        gradients = look(fit, *fit_images).unit.reshape(-1, dimension)
        subspaces = fixed | {
            "other networks' gradients": decomposition.leading(gradients, most),
            "other networks' updates": decomposition.updates(start, kernel, test.images.shape[1:], convolution, most),
        }
        # No more of the networks is held than is needed: neither here on the host while they are measured, nor on the
        # device while they train on.
        measured = jax.device_put(measured)
        del variables, fit, kernel, gradients
        seen = look(measured, *test)
        accuracy[step] = np.mean(seen.correct, axis=1)
        for subspace, rank, basis in bases(subspaces, config.ranks, dimension):
            found[step, subspace, rank] = jax.device_get(without(measured, seen, *test, basis))
        print(
            f"step {step}: accuracy {stats.mean_ci(accuracy[step]).mean:.3f}, {len(subspaces)} subspaces measured",
            flush=True,
        )
        del measured, seen
    table = findings.decomposition(found, accuracy)
    summary = findings.summarize_decomposition(table, dimension, len(dataset.class_names))
    summary["data_sha256"] = data.digest(dataset)
    summary["seconds"] = time.monotonic() - started
    results.write_config(workdir, config)
    results.write_table(workdir / results.DECOMPOSE_TABLE, table)
    results.write_figure(workdir, plots.decompose(config.to_dict(), table, summary))
    results.write_summary(workdir, config, summary)


def trained(config: ConfigDict, model: Model, keys: Keys, train: Split, test: Split) -> Iterator[tuple[int, Variables]]:
    """The variables of the networks `[num_fit + num_networks, ...]` on the host, at each of the config's steps."""
    count = config.num_fit + config.num_networks
    placement = early.place(config, model, test.images, config.batch_size, count)
    optimizer = training.OPTIMIZERS[config.optimizer.name](config.optimizer.learning_rate)
    last = config.steps[-1]
    steps = population.trajectory(
        [model],
        optimizer,
        population.initialize([model], optimizer, keys.init, [placement]),
        [placement],
        keys,
        train,
        test,
        batch_size=config.batch_size,
        num_steps=last,
        measure_every=last,
    )
    for step, (groups,), _ in steps:
        if step in config.steps:
            yield step, devices.merge([group.variables for group in groups], placement)


def of_images(dataset: Dataset, key: jax.Array, most: int, *, subtract_mean: bool) -> dict[str, np.ndarray]:
    """The subspaces that no network is needed for, with `most` directions at most."""
    images = dataset.train.images.reshape(len(dataset.train.labels), -1)
    mean = images.mean(0, keepdims=True, dtype=np.float32)
    noise = directions.random(key, np.zeros((most, images.shape[1]), np.float32))
    return {
        "random directions": decomposition.leading(noise, most),
        "the mean image": decomposition.leading(mean, 1),
        # As the networks see them, but for their scale, which changes no direction.
        "training images": decomposition.leading(images, most, center=mean if subtract_mean else 0.0),
    }


def bases(
    subspaces: Mapping[str, np.ndarray], ranks: Sequence[int], dimension: int
) -> Iterator[tuple[str, int, np.ndarray]]:
    """The name, the number of directions and the basis of nothing, and of each subspace at each rank that it has.

    All bases have the same shape, for one compiled program, by rows of zeros.
    """
    nothing = np.zeros((ranks[-1], dimension), np.float32)
    yield findings.NOTHING, 0, nothing
    for name, basis in subspaces.items():
        for rank in ranks:
            if rank <= len(basis):
                yield name, rank, np.concatenate([basis[:rank], nothing[rank:]])


if __name__ == "__main__":
    sys.exit(cli.run(main))
