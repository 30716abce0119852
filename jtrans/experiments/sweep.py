"""A sweep: early transferability under many settings, each a run in a directory of its own."""

import ast
import contextlib
import copy
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
VERDICTS = {"True": "yes", "False": "no"}


def check(config: ConfigDict, sweep: str | None = None, shard: str | None = None) -> None:
    """Check every setting, and both flags."""
    settings(config, sweep or "")
    read_shard(shard)


def measure(config: ConfigDict, workdir: Path, sweep: str | None = None, shard: str | None = None) -> Results:
    """Run the settings of the shard, and put together all that are finished."""
    cases = settings(config, sweep or "")
    part, parts = read_shard(shard)
    alike: dict[str, dict[Path, ConfigDict]] = {}
    for case, of_case in list(cases.items())[part::parts]:
        alike.setdefault(repr(shapes(of_case)), {})[workdir / case] = of_case
    for each in alike.values():
        run(each)
    summaries: dict[str, Any] = {}
    shown: dict[str, Results] = {}

    def read() -> None:
        finished = [case for case, of_case in cases.items() if folder.is_finished(workdir / case, of_case)]
        summaries.update({case: folder.read_summary(workdir / case) for case in finished})
        shown.update({case: experiment.read(workdir / case) for case in finished[: early.MOST_CURVES]})

    devices.first_does(read)  # the other processes of a job may have no access to the files
    values = {field: [str(fields.flat(cases[case])[field]) for case in summaries] for field in parse(sweep or "")}
    counts = {"num_settings": len(cases), "num_finished": len(summaries)}
    if not summaries:
        return Results(config, counts, {}, {})
    curves, common = early.combine(shown)
    frames = {NAME: table(values, list(summaries.values())), "curves": curves}
    return Results(config, {**counts, "common": common}, frames, {})


def shapes(config: ConfigDict) -> dict[str, Any]:
    """What settings have in common that the same programs run: all but values."""
    rest = {field: value for field, value in fields.flat(config).items() if field not in early.VALUES}
    return rest | {"is_attacked": config.attack.epsilon > 0}


def run(cases: Mapping[Path, ConfigDict]) -> None:
    """Settings that differ in values alone, by their directories: as many side by side as the devices hold."""
    with contextlib.ExitStack() as claims:
        waiting = []
        for workdir, config in cases.items():
            if claims.enter_context(experiment.claimed(early.EXPERIMENT, config, workdir)):
                print(f"{workdir} holds the results of this config already", flush=True)
            else:
                waiting.append((workdir, config))
        while waiting:
            started = time.monotonic()
            first = prepare(*waiting[0])
            batches = math.ceil(len(waiting) / first.population.side_by_side)
            count = math.ceil(len(waiting) / batches)  # as equal as possible: of each size there is a program
            batch, waiting = waiting[:count], waiting[count:]
            measured = early.side_by_side([first, *itertools.starmap(prepare, batch[1:])])
            seconds = time.monotonic() - started
            for (workdir, config), of_setting in zip(batch, measured, strict=True):
                results = experiment.write(early.EXPERIMENT, config, workdir, of_setting, seconds)
                experiment.say(early.EXPERIMENT, workdir, results)


def prepare(workdir: Path, config: ConfigDict) -> early.Setting:
    """A setting, ready for training."""
    print(f"\n{workdir.name}", flush=True)
    return early.prepare(config, workdir)


def settings(config: ConfigDict, sweep: str) -> dict[str, ConfigDict]:
    """The configs by the names of their directories; InputError if one is no early run's, or two share a directory."""
    varied = parse(sweep)
    cases: dict[str, ConfigDict] = {}
    for combination in itertools.product(*varied.values()):
        values = dict(zip(varied, combination, strict=True))
        case = folder.folder_name(",".join(f"{field}={value}" for field, value in values.items()).replace("'", ""))
        if case in cases:
            there = {field: fields.flat(cases[case])[field] for field in varied}
            raise InputError(f"--sweep: got {there} and {values}, which share the directory {case}; leave one out")
        cases[case] = with_values(config, values)
    return cases


def parse(sweep: str) -> dict[str, tuple[Any, ...]]:
    """`FIELD=VALUE,VALUE FIELD=VALUE` as values by field; InputError if a field or one of its values is repeated."""
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
    """A copy of the config with these values; InputError if a field is unknown or its value wrong."""
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
    """`I/N` as numbers, I below N; 0 and 1 where it is not given."""
    part, _, parts = (shard or "0/1").partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise InputError(f"--shard: got {shard!r}; it takes I/N with I from 0 to N - 1, as 0/4")
    return int(part), int(parts)


def table(values: Mapping[str, Sequence[str]], summaries: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """A row for each finished setting: the fields that vary, and its lowest angle while the accuracy was at chance."""
    lowest = pandas.json_normalize([summary["lowest_at_chance"] for summary in summaries])
    interval = lambda name: Interval(*(lowest[f"{name}.{bound}"].to_numpy(float) for bound in Interval._fields))
    intervals = tables.interval_columns({name: interval(name) for name in ("angle", "accuracy")})
    shows = [summary["early_transferability"] for summary in summaries]  # None where no angle was measured at chance
    return pandas.DataFrame({**values, "step": lowest["step"], **intervals, "early_transferability": shows})


def tell(results: Results) -> str:
    """The table, and how many of the settings are finished."""
    counted = f"{results.summary['num_finished']} of {results.summary['num_settings']} settings are finished"
    if NAME not in results.tables:
        return counted
    frame = results.tables[NAME]
    columns = {
        **frame.loc[:, :"step"],
        "lowest angle at chance, degrees [95 %]": tables.cells(frame, "angle", 1),
        "accuracy [95 %]": tables.cells(frame, "accuracy", 3),
        "early transferability": frame["early_transferability"].astype(str).map(VERDICTS).fillna("-"),
    }
    return f"{tables.text(columns)}\n\n{counted}"


def draw(results: Results) -> dict[str, Figure]:
    """The first finished settings in one figure."""
    return {NAME: early.overlay(results.tables["curves"], results.summary["common"])} if results.tables else {}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, options=OPTIONS, holds_runs=True)
