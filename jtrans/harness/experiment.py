"""An experiment: what it takes, measures, says and shows; and the one way to run it."""

import contextlib
import html
import importlib
import pkgutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import experiments, files
from jtrans.errors import InputError
from jtrans.harness import fields, folder
from jtrans.harness.fields import Field
from jtrans.population import devices
from jtrans.stats import Interval

MOST_COLUMNS = 12  # of a table that a notebook shows
FILES = "files"  # the key of the summary that names the files of tables and arrays


class Results(NamedTuple):
    """What an experiment found: the same in memory, on disk, in figures and in words.

    Attributes:
      config: every field.
      summary: the findings, as JSON holds them: NaN is None.
      tables: by name; `NAME.csv` on disk. An interval is always the columns `X`, `X_low` and `X_high`.
      arrays: by name a mapping from array names to arrays; `NAME.npz` on disk.
    """

    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    tables: Mapping[str, pandas.DataFrame]
    arrays: Mapping[str, Any]

    def _repr_html_(self) -> str:
        """What a notebook shows: each table's first rows, each array's name and shape, the keys of the summary."""
        shown: list[str | pandas.DataFrame] = []
        for name, table in self.tables.items():
            shown += [f"tables[{name!r}], {len(table)} rows", table.head()]
        for name, arrays in self.arrays.items():
            shapes = (f"{key} {list(np.shape(array))}" for key, array in arrays.items())
            shown.append(f"arrays[{name!r}]: {', '.join(shapes)}")
        shown.append(f"summary: {', '.join(self.summary)}")
        return "".join(
            f"<p>{html.escape(part)}</p>" if isinstance(part, str) else part.to_html(max_cols=MOST_COLUMNS)
            for part in shown
        )


class Experiment(NamedTuple):
    """An experiment. The docstring of `measure`'s module says what it shows.

    Attributes:
      name: of its module in `jtrans.experiments`; `config.json` holds it.
      fields: of its config, by dotted name.
      measure: `(config, workdir, **options) -> Results`; it may keep finished parts in the work directory.
      tell: the results in words.
      figures: the results as figures by file stem; each becomes `STEM.png` and `STEM.svg`.
      check: `(config, **options)`, raises InputError for what no single field can say.
      resumable: the one field that may grow in its folder, which `measure` then resumes from.
      options: further flags of the command line and what they say; `check` and `measure` take their texts by name.
      holds_runs: whether the work directory is a folder of other runs, each of which claims its own.
      headline: what the results come down to, for a sweep: one or two numbers, with their 95 % intervals where they
        have one, by a name that ends in the unit, as `angle (degrees)`: a table's column and an axis's label.
      fields_under: `(**options) -> fields`, where the options decide which fields the config has.
    """

    name: str
    fields: Mapping[str, Field]
    measure: Callable[..., Results]
    tell: Callable[[Results], str]
    figures: Callable[[Results], Mapping[str, Figure]]
    check: Callable[..., None] = lambda config, **options: None
    resumable: str = ""
    options: Mapping[str, str] = {}
    holds_runs: bool = False
    headline: Callable[[Results], Mapping[str, Interval | float]] | None = None
    fields_under: Callable[..., Mapping[str, Field]] | None = None


def run(experiment: Experiment, config: ConfigDict, workdir: Path | str, /, **options: Any) -> Results:
    """Check the config, measure, write, draw and tell; or tell what is already there.

    Args:
      workdir: where the results go. A run that was stopped resumes in it.
      options: as in `Experiment`.

    Returns:
      Results, as `read` gives them.

    Raises:
      InputError: a field is wrong, or the work directory cannot be used; before any compute.
    """
    workdir = Path(workdir)
    fields.check(config, fields_of(experiment, options))
    experiment.check(config, **options)
    with claimed(experiment, config, workdir) as finished:
        if finished:
            print(f"{workdir} holds the results of this config already")
            results = read(workdir)
        else:
            started = time.monotonic()
            measured = experiment.measure(config, workdir, **options)
            results = write(experiment, config, workdir, measured, time.monotonic() - started)
    say(experiment, workdir, results)
    return results


def fields_of(experiment: Experiment, options: Mapping[str, Any]) -> Mapping[str, Field]:
    """The fields of the config under these options."""
    return experiment.fields_under(**options) if experiment.fields_under else experiment.fields


def claimed(experiment: Experiment, config: ConfigDict, workdir: Path) -> contextlib.AbstractContextManager[bool]:
    """The work directory, kept from other runs; gives whether the results are there. InputError if it is unusable."""
    if experiment.holds_runs:
        devices.first_does(partial(folder.shared, workdir, experiment.name))
        return contextlib.nullcontext(False)
    return folder.claimed(workdir, experiment.name, config, experiment.resumable)


def write(experiment: Experiment, config: ConfigDict, workdir: Path, measured: Results, seconds: float) -> Results:
    """Write and draw what was measured in so many seconds; gives it as `read` does."""
    results = _as_read(measured, config, seconds)
    devices.first_does(partial(_write, experiment, config, workdir, results))
    return results


def say(experiment: Experiment, workdir: Path, results: Results) -> None:
    """The results in words, and where they are."""
    print(f"\n{experiment.tell(results)}\n\nresults: {workdir}")


def _as_read(measured: Results, config: ConfigDict, seconds: float) -> Results:
    """The results as `read` gives them: so figures and words are the same now and later."""
    tables = {name: folder.plain_table(table) for name, table in measured.tables.items()}
    arrays = {name: {key: np.asarray(array) for key, array in each.items()} for name, each in measured.arrays.items()}
    names = [*(f"{name}.csv" for name in tables), *(f"{name}.npz" for name in arrays)]
    summary = folder.complete({**measured.summary, "seconds": seconds, FILES: names}, config)
    return Results(folder.plain(config.to_dict()), summary, tables, arrays)


def _write(experiment: Experiment, config: ConfigDict, workdir: Path, results: Results) -> None:
    folder.write_config(workdir, experiment.name, config)
    write_data(workdir, results)
    for stem, figure in experiment.figures(results).items():
        for suffix in ("png", "svg"):
            files.write(workdir / f"{stem}.{suffix}", folder.drawn(figure, suffix))
            figure.set_layout_engine("none")  # the second file has the layout of the first, which takes long to find
    folder.write_summary(workdir, results.summary)


def write_data(workdir: Path, results: Results) -> None:
    """Write the tables and the arrays."""
    for name, table in results.tables.items():
        folder.write_table(workdir / f"{name}.csv", table)
    for name, arrays in results.arrays.items():
        files.write_npz(workdir / f"{name}.npz", arrays)


def read(workdir: Path | str) -> Results:
    """The results of a finished run; raises InputError if a file is missing or damaged."""
    workdir = Path(workdir)
    summary = folder.read_summary(workdir)  # the last file of a run: where it is missing, the run is not finished
    # That of the results: a run that has been continued since, with more steps, has a new one in its folder already.
    folder.read_config(workdir)
    if not isinstance(config := summary.get("config"), dict):
        raise InputError(f"{workdir / folder.SUMMARY} holds no config; run the experiment again in a new folder")
    paths = [workdir / Path(name).name for name in summary.get(FILES, ())]
    tables = {path.stem: folder.read_table(path) for path in paths if path.suffix == ".csv"}
    arrays = {path.stem: files.read_npz(path) for path in paths if path.suffix == ".npz"}
    return Results(config, summary, tables, arrays)


def maker(workdir: Path | str) -> Experiment:
    """The experiment that made a folder; raises InputError if the folder names none, or one that is not there."""
    return load(folder.read_config(Path(workdir))[folder.EXPERIMENT])


def names() -> list[str]:
    """The names of all experiments: the modules in `jtrans.experiments`."""
    return sorted(module.name for module in pkgutil.iter_modules(experiments.__path__))


def load(name: str) -> Experiment:
    """The experiment of that name; raises InputError, which names the nearest, if there is none."""
    if name not in names():
        raise InputError(f"experiment: got {name!r}; {fields.nearest(name, names())}")
    return importlib.import_module(f"jtrans.experiments.{name}").EXPERIMENT
