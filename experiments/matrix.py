"""How often attacks made on each network are attacks on every other: a matrix for any list of trained networks."""

import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from jtrans import (
    attacks,
    cli,
    early,
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
    networks = dict(named for entry in config.networks for named in read(entry, config, dataset))
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
    results.write_summary(workdir, config, {"networks": list(networks), "seconds": time.monotonic() - started})


def read(entry: str, config: ConfigDict, dataset: Dataset) -> Iterator[tuple[str, Function]]:
    """The networks of an entry of the config by name: a run's folder, or `ARCHITECTURE=FILE.npz`, a PyTorch state dict.

    Raises:
      InputError: it cannot be read, or tells other numbers of classes apart than the images have.
    """
    architecture, _, file = entry.partition("=")
    saved = from_pytorch(architecture, Path(file), config) if file else from_run(Path(entry))
    shape, count = dataset.train.images.shape[1:], len(dataset.class_names)
    for architecture, run, networks in saved:
        options = {"widths": run["widths"][architecture], "pixel_range": tuple(run["data"]["pixel_range"])}
        apply = jax.jit(models.build(architecture, shape, count, **options).apply)
        for name, variables in networks.items():
            outputs = len(models.last_layer(variables)["bias"])
            if outputs != count:
                raise InputError(f"networks: {entry} tells {outputs} classes apart; the images have {count} classes")
            yield name, Partial(apply, variables)


def from_run(folder: Path) -> Iterator[tuple[str, dict, dict[str, Variables]]]:
    """All networks that a run has saved: each architecture with the config, and the networks named by folder, it and
    their number.
    """
    if not (folder / results.CONFIG).is_file():
        raise InputError(f"networks: {folder} is no run's folder; name one, or ARCHITECTURE=FILE.npz")
    run = results.read_config(folder)
    if run["data"]["subtract_mean"]:
        raise InputError(f"networks: {folder} had its mean image subtracted, which is not among what it saved")
    for architecture, variables in zip(run["models"], results.read_networks(folder), strict=True):
        each = loops.unstack(variables)
        yield architecture, run, {f"{folder.name}/{architecture}-{i}": network for i, network in enumerate(each)}


def from_pytorch(
    architecture: str, file: Path, config: ConfigDict
) -> Iterator[tuple[str, ConfigDict, dict[str, Variables]]]:
    """The network of a state dict, whose widths and pixel range are the config's."""
    try:
        with np.load(file) as arrays:
            variables = models.from_pytorch(architecture, dict(arrays))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"networks: {architecture}={file} cannot be read ({one_line(error)})") from error
    yield architecture, config, {f"{file.stem}/{architecture}": variables}


if __name__ == "__main__":
    sys.exit(cli.run(main))
