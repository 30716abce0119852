"""A sweep: early transferability under many settings, each a run in a directory of its own."""

import ast
import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans.errors import InputError
from jtrans.experiments import early
from jtrans.harness import experiment, fields, folder, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.population import devices
from jtrans.stats import Interval

NAME = "sweep"
FIELDS = early.FIELDS
OPTIONS = {
    "sweep": "the fields that vary: --sweep='optimizer.learning_rate=1e-3,1e-2 seed=0,1,2' makes six settings",
    "shard": "of this many parts, only this one: --shard=0/4 to --shard=3/4, side by side",
}


class Setting(NamedTuple):
    """One run of a sweep: the values of the fields that vary, and its config."""

    values: Mapping[str, Any]
    config: ConfigDict


def check(config: ConfigDict, sweep: str | None = None, shard: str | None = None) -> None:
    """Check every setting, and both flags."""
    settings(config, sweep or "")
    read_shard(shard)


def measure(config: ConfigDict, workdir: Path, sweep: str | None = None, shard: str | None = None) -> Results:
    """Run the settings of the shard one after another, and put together all that are finished."""
    cases = settings(config, sweep or "")
    part, parts = read_shard(shard)
    for case, setting in list(cases.items())[part::parts]:
        print(f"\n{case}", flush=True)
        experiment.run(early.EXPERIMENT, setting.config, workdir / case)
    summaries: dict[str, Any] = {}
    shown: dict[str, Results] = {}

    def read() -> None:
        finished = [case for case, setting in cases.items() if folder.is_finished(workdir / case, setting.config)]
        summaries.update({case: folder.read_summary(workdir / case) for case in finished})
        shown.update({case: experiment.read(workdir / case) for case in finished[: early.MOST_CURVES]})

    devices.first_does(read)  # the other processes of a job may have no access to the files
    values = [cases[case].values for case in summaries]
    frames = {NAME: table(values, list(summaries.values()))} if summaries else {}
    return Results(config, {"num_settings": len(cases), "num_finished": len(summaries)}, frames, {}, shown)


def settings(config: ConfigDict, sweep: str) -> dict[str, Setting]:
    """The settings of a sweep by the names of their directories.

    Raises:
      InputError: `sweep` is not of the form that `parse` takes, a setting is no config of an early run, or two of them
        have the same directory.
    """
    varied = parse(sweep)
    cases: dict[str, Setting] = {}
    for combination in itertools.product(*varied.values()):
        values = dict(zip(varied, combination, strict=True))
        label = ",".join(f"{field}={value}" for field, value in values.items())
        case = folder.folder_name(label.replace("'", ""))
        if case in cases:
            both = f"{dict(cases[case].values)} and {values}"
            raise InputError(f"--sweep: got {both}, which share the directory {case}; leave one out")
        of_case = with_values(config, values)
        cases[case] = Setting({field: fields.flat(of_case)[field] for field in values}, of_case)
    return cases


def parse(sweep: str) -> dict[str, tuple[Any, ...]]:
    """`FIELD=VALUE,VALUE FIELD=VALUE` as values by field.

    Raises:
      InputError: a part of it is not of that form, or a field or one of its values is repeated.
    """
    varied: dict[str, tuple[Any, ...]] = {}
    for part in sweep.split(" "):
        field, _, text = part.partition("=")
        try:
            values = ast.literal_eval(f"({text},)")
        except (ValueError, SyntaxError, TypeError) as error:
            what = "it takes FIELD=VALUE,VALUE with numbers, True, False or quoted text, and spaces between fields only"
            raise InputError(f"--sweep: got {part!r}; {what}") from error
        if field in varied:
            raise InputError(f"--sweep: got {field} twice; it takes each field once, with all its values")
        for i, value in enumerate(values):
            if value in values[:i]:
                raise InputError(f"--sweep: got {part!r}, where {value!r} is repeated; it takes each value once")
        varied[field] = values
    return varied


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with these values.

    Raises:
      InputError: a field is unknown or its value wrong.
    """
    config, known = copy.deepcopy(config), fields.flat(config)
    for field in values:
        if field not in known:
            raise fields.unknown_field(field, known)
    as_float = lambda field, value: float(value) if isinstance(known[field], float) and type(value) is int else value
    with config.ignore_type():  # the check below says it better
        config.update_from_flattened_dict({field: as_float(field, value) for field, value in values.items()})
    fields.check(config, FIELDS)
    early.check(config)
    return config


def read_shard(shard: str | None) -> tuple[int, int]:
    """`I/N` as numbers; a single part where it is not given.

    Raises:
      InputError: it is not of that form, or I is not below N.
    """
    part, _, parts = (shard or "0/1").partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise InputError(f"--shard: got {shard!r}; it takes I/N with I from 0 to N - 1, as 0/4")
    return int(part), int(parts)


def table(values: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """A row for each finished setting: its values, and its lowest angle while the accuracy was at chance.

    Args:
      values: of the fields that vary, of each setting.
      summaries: of the runs.
    """
    lowest = [summary["lowest_at_chance"] for summary in summaries]
    bounds = lambda name: (np.array([moment[name][bound] for moment in lowest], float) for bound in Interval._fields)
    return pandas.DataFrame(
        {
            **{field: [str(of_setting[field]) for of_setting in values] for field in values[0]},
            "step": [moment["step"] for moment in lowest],
            **tables.interval_columns({name: Interval(*bounds(name)) for name in ("angle", "accuracy")}),
            # None where no angle was measured at chance
            "early_transferability": [summary["early_transferability"] for summary in summaries],
        }
    )


def tell(results: Results) -> str:
    """The table, and how many of the settings are finished."""
    summary = results.summary
    counted = f"{summary['num_finished']} of {summary['num_settings']} settings are finished"
    if NAME not in results.tables:
        return counted
    frame = results.tables[NAME]
    verdicts = frame["early_transferability"].astype(str).map({"True": "yes", "False": "no"}).fillna("-")
    columns = {
        **frame.loc[:, :"step"],
        "lowest angle at chance, degrees [95 %]": tables.cells(frame, "angle", 1),
        "accuracy [95 %]": tables.cells(frame, "accuracy", 3),
        "early transferability": verdicts,
    }
    return f"{tables.text(columns)}\n\n{counted}"


def draw(results: Results) -> dict[str, Figure]:
    """The first finished settings in one figure."""
    return {NAME: early.overlay(results.runs)} if results.runs else {}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, options=OPTIONS, holds_runs=True)
