"""The vectors by which one SGD step moves the first layer: how alike they are, within networks and between them."""

import itertools
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jtrans import cli, data, early, findings, plots, population, report, results, settings, updates
from jtrans.data import Split
from jtrans.errors import InputError


def main(config: ConfigDict, workdir: Path) -> None:
    """Update vectors: the angles between them after one SGD step, and to adversarial directions after a large one."""
    settings.check(config, settings.UPDATES)
    results.ensure(workdir, config, measure)
    print(f"\n{report.tell(workdir)}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def measure(config: ConfigDict, workdir: Path) -> None:
    """Both tables, the histograms, the figure."""
    started = time.monotonic()
    keys = population.keys(config.seed)
    dataset, test = early.load(config, keys.data, config.batch_size)
    batches = disjoint(keys.order, dataset.train, config.batch_size, len(config.models) * config.num_networks)
    networks = {}
    all_keys = population.network_keys(keys.init, len(config.models), config.num_networks)
    shares = itertools.batched(batches, config.num_networks)
    for name, model_keys, own in zip(config.models, all_keys, shares, strict=True):
        model = early.build(config, name, dataset)
        step = jax.jit(partial(updates.one_step, model, learning_rate=config.learning_rate))
        # The update vectors stay on the device, where every network is compared with all others.
        each = zip(model_keys, own, strict=True)
        networks[name] = [jax.block_until_ready(step(key, *batch, *test)) for key, batch in each]
        print(f"{name}: {config.num_networks} networks took a step", flush=True)

    of_networks, of_pairs = {}, {}
    for name, steps in networks.items():
        of_networks[f"within {name}"] = [step.within for step in steps]
        of_networks[f"{name}, to adversarial directions"] = [step.adversarial for step in steps]
    between = jax.jit(updates.angles)
    for names in itertools.combinations_with_replacement(networks, 2):
        vectors = [step.vectors for name in dict.fromkeys(names) for step in networks[name]]
        pair, model = population.pairs(len(set(names)), config.num_networks)
        found = [jax.device_get(between(vectors[a], vectors[b])) for a, b in pair]
        of_pairs[f"between {' and '.join(names)}"] = found, pair, model
        print(f"{' and '.join(names)}: {len(pair)} pairs compared", flush=True)
    table, histograms = findings.updates(of_networks, of_pairs)
    summary = findings.summarize_updates(table, networks, test.images[0].size)
    results.write_config(workdir, config)
    results.write_table(workdir / results.UPDATES_TABLE, table)
    results.write_table(workdir / "histograms.csv", histograms)
    results.write_figure(workdir, plots.updates(table, histograms, summary))
    summary["data_sha256"] = data.digest(dataset)
    summary["seconds"] = time.monotonic() - started
    results.write_summary(workdir, config, summary)


def disjoint(key: jax.Array, train: Split, batch_size: int, count: int) -> list[Split]:
    """Batches that share no image.

    Raises:
      InputError: there are too few images for them.
    """
    num_images = len(train.labels)
    if batch_size * count > num_images:
        what = (
            f"{count} networks with batches of their own take {batch_size * count} images, and there are {num_images}"
        )
        raise InputError(f"batch_size: got {batch_size}; {what}; take fewer networks or smaller batches")
    order = np.asarray(jax.random.permutation(key, num_images))[: batch_size * count].reshape(count, batch_size)
    return [Split(train.images[batch], train.labels[batch]) for batch in order]


if __name__ == "__main__":
    sys.exit(cli.run(main))
