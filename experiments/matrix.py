"""How often attacks made on each network are attacks on every other: a matrix for any list of trained networks."""

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from jtrans import (
    attacks,
    cli,
    data,
    early,
    files,
    loops,
    metrics,
    models,
    plots,
    population,
    report,
    results,
    settings,
    training,
    transfer_findings,
)
from jtrans.data import Dataset
from jtrans.errors import InputError, one_line
from jtrans.jacobian import Function
from jtrans.models import Variables


def main(config: ConfigDict, workdir: Path) -> None:
    """The success of every attack, from each network (a row) on each network (a column)."""
    settings.check_matrix(config)
    results.ensure(workdir, config, measure)
    print(f"\n{report.tell(workdir)}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def measure(config: ConfigDict, workdir: Path) -> None:
    """The networks, their matrix for every attack, the table, the figure."""
    started = time.monotonic()
    keys = population.keys(config.seed)
    dataset, test = early.load(config, keys.data, 1)
    labels = settings.network_labels(config.networks)
    networks = dict(named for entry, label in labels.items() for named in read(entry, label, config, dataset))
    functions, x = list(networks.values()), np.asarray(training.pixels(test.images))
    found = {}
    for name in config.attacks:
        attack = jax.jit(attacks.BY_NAME[name](config.attack.epsilon, config.attack.steps, x[0].size))
        found[name] = metrics.success_matrix(functions, functions, x, test.labels, attack, key=keys.attack)
        print(f"{name}: {len(functions)} networks attacked", flush=True)
    table = transfer_findings.matrix(found, list(networks))
    results.write_config(workdir, config)
    results.write_table(workdir / results.MATRIX_TABLE, table)
    results.write_figure(workdir, plots.matrix(config.to_dict(), table))
    results.write_summary(
        workdir,
        config,
        {"networks": list(networks), "data_sha256": data.digest(dataset), "seconds": time.monotonic() - started},
    )


def read(entry: str, label: str, config: ConfigDict, dataset: Dataset) -> Iterator[tuple[str, Function]]:
    """The networks of an entry of the config, named by its label, their architecture and, in a run, their number.

    Raises:
      InputError: the entry cannot be read, or holds networks for other classes or images than the data set's.
    """
    architecture, path = settings.network_entry(entry)
    shape, count = dataset.train.images.shape[1:], len(dataset.class_names)
    try:
        saved = list(from_pytorch(architecture, path, config, dataset) if architecture else from_run(path, dataset))
    except InputError as error:
        raise InputError(f"networks: {error}") from error
    for architecture, options, networks in saved:
        settings.check_size(architecture, options["widths"], shape[0], "data.image_size")
        model = models.build(architecture, shape, count, **options)
        apply, expected = jax.jit(model.apply), jax.eval_shape(model.init, jax.random.key(0))
        for name, variables in networks.items():
            if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, expected):
                needed = f"{architecture} of widths {tuple(options['widths'])} for images of shape {shape}"
                what = f"set widths.{architecture} and data.image_size as it was trained"
                raise InputError(f"networks: {entry} holds arrays of other shapes than {needed}; {what}")
            yield f"{label}/{name}", Partial(apply, variables)


def from_run(folder: Path, dataset: Dataset) -> Iterator[tuple[str, dict, dict[str, Variables]]]:
    """All networks that a run has saved: each architecture, the options it is built with, its networks by number."""
    if not (folder / results.CONFIG).is_file():
        raise InputError(f"{folder} is no run's folder; name one, or ARCHITECTURE=FILE.npz")
    run = results.read_config(folder)
    try:
        subtract_mean, pixel_range = (run["data"][name] for name in ("subtract_mean", "pixel_range"))
        kinds = [(name, {"widths": run["widths"][name], "pixel_range": pixel_range}) for name in run["models"]]
    except (LookupError, TypeError):
        kinds = []  # the config of something else
    if not (kinds and (folder / results.NETWORKS).is_dir()):
        what = "name a run with --config.save_networks, or a folder in networks/ or refitted/ of a knowledge run"
        raise InputError(f"{folder} holds no saved networks; {what}")
    if subtract_mean:
        raise InputError(f"{folder} had its mean image subtracted, which is not among what it saved")
    check_images(folder, dataset)
    numbers = {name: itertools.count() for name, _ in kinds}  # two kinds may have the same architecture
    networks = results.read_networks(folder)
    if len(networks) != len(kinds):
        raise InputError(f"{folder} holds networks of {len(networks)} architectures; its config has {len(kinds)}")
    for (name, options), variables in zip(kinds, networks, strict=True):
        yield name, options, {f"{name}-{next(numbers[name])}": network for network in loops.unstack(variables)}


def check_images(folder: Path, dataset: Dataset) -> None:
    """Nothing, if the run's networks were trained on images of that shape, of the same classes in the same order.

    Raises:
      InputError: they were not, or the run does not say so.
    """
    summary = results.read_summary(folder)
    for name in ("class_names", "image_shape"):
        if name not in summary:
            what = "made by an earlier version of jtrans; run it again in a new folder"
            raise InputError(f"{folder} has no {name} in its {results.SUMMARY}: {what}")
    trained, attacked = summary["class_names"], list(dataset.class_names)
    if len(trained) != len(attacked):
        raise InputError(f"{folder} tells {len(trained)} classes apart; the images have {len(attacked)} classes")
    for i, (before, now) in enumerate(zip(trained, attacked, strict=True)):
        if before != now:
            what = f"its class {i} is {before!r}, where the images have {now!r}"
            raise InputError(f"{folder}: {what}; name the classes that it was trained on, in order, in data.classes")
    shape = list(dataset.train.images.shape[1:])
    if summary["image_shape"] != shape:
        what = f"images of shape {summary['image_shape']}; these have shape {shape}"
        raise InputError(f"{folder} was trained on {what}; attacked images take the same, by data.image_size")


def from_pytorch(
    architecture: str, file: Path, config: ConfigDict, dataset: Dataset
) -> Iterator[tuple[str, dict, dict[str, Variables]]]:
    """The network of a state dict, whose widths and pixel range are the config's."""
    try:
        variables = models.from_pytorch(architecture, files.read_numbers(file))
    except ValueError as error:
        raise InputError(f"{architecture}={file} cannot be read ({one_line(error)})") from error
    outputs, count = len(models.last_layer(variables)["bias"]), len(dataset.class_names)
    if outputs != count:
        raise InputError(f"{architecture}={file} tells {outputs} classes apart; the images have {count} classes")
    options = {"widths": config.widths[architecture], "pixel_range": config.data.pixel_range}
    yield architecture, options, {architecture: variables}


if __name__ == "__main__":
    sys.exit(cli.run(main))
