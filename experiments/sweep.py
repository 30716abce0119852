"""Many settings of an early-transferability run, one after another, each in a work directory of its own."""

import ast
import copy
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jtrans import cli, devices, early, plots, results, settings, stats
from jtrans.errors import InputError

OPTIONS = {
    "sweep": "the fields that vary: --sweep='optimizer.learning_rate=1e-3,1e-2 seed=0,1,2' makes six settings",
    "shard": "of this many parts, only this one: --shard=0/4 to --shard=3/4, side by side",
}


def main(config: ConfigDict, workdir: Path, sweep: str | None, shard: str | None) -> None:
    """Early transferability under many settings. What is finished is kept: the same command goes on after a stop."""
    combinations = named(product(parse(sweep or "")))
    cases = {case: setting(config, values) for case, values in combinations.items()}
    part, parts = read_shard(shard or "0/1")
    for case, of_case in list(cases.items())[part::parts]:
        print(f"\n{case}", flush=True)
        early.run(of_case, workdir / case)
    if devices.is_first():
        rows = {case: row(values, workdir / case, cases[case]) for case, values in combinations.items()}
        finished = {case: line for case, line in rows.items() if line}
        if finished:
            table = list(finished.values())
            results.write_table(workdir / "sweep.csv", stats.columns(table))
            print(f"\n{describe(table)}")
            drawn = {case: results.read(workdir / case) for case in list(finished)[: plots.MOST_CURVES]}
            results.write_figure(workdir, plots.overlay(drawn), "sweep")
        print(f"{len(finished)} of {len(cases)} settings are finished: {workdir / 'sweep.csv'}")


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


def product(varied: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values."""
    return [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]


def named(combinations: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings by the names of their directories.

    Raises:
      InputError: two of them have the same name.
    """
    cases: dict[str, dict[str, Any]] = {}
    for values in combinations:
        label = ",".join(f"{field}={value}" for field, value in values.items())
        case = results.folder_name(label.replace("'", ""))
        if case in cases:
            raise InputError(
                f"--sweep: got {cases[case]} and {values}, which share the directory {case}; leave one out"
            )
        cases[case] = values
    return cases


def setting(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """The config with these values, which are checked before anything runs.

    Raises:
      InputError: a field is unknown or its value wrong.
    """
    config = copy.deepcopy(config)
    known = settings.flat(config)
    for field, value in values.items():
        if field not in known:
            raise settings.unknown_field(field, known)
        *sections, last = field.split(".")
        inner = config
        for section in sections:
            inner = inner[section]
        with inner.ignore_type():  # the check below says it better
            inner[last] = float(value) if isinstance(known[field], float) and type(value) is int else value
    settings.check_early(config)
    return config


def read_shard(text: str) -> tuple[int, int]:
    """`I/N` as numbers.

    Raises:
      InputError: it is not of that form, or I is not below N.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise InputError(f"--shard: got {text!r}; it takes I/N with I from 0 to N - 1, as 0/4")
    return int(part), int(parts)


def row(values: Mapping[str, Any], workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """A line of the table; None where the setting is not finished."""
    if not results.is_finished(workdir, config):
        return None
    _, _, summary = results.read(workdir)
    lowest = summary["lowest_at_chance"]
    found = {f"{key}_{bound}": lowest[key][bound] for key in ("angle", "accuracy") for bound in ("mean", "low", "high")}
    return {
        **{field: str(value) for field, value in values.items()},
        "step": lowest["step"],
        **found,
        "early_transferability": summary["early_transferability"],  # None where no angle was measured at chance
    }


def describe(table: Sequence[Mapping[str, Any]]) -> str:
    """The table, with the lowest angle while the accuracy was at chance."""
    fields = [key for key in table[0] if key not in ("step", "early_transferability")][:-6]
    lines = []
    for r in table:
        interval = lambda key, digits, r=r: stats.interval_text(
            {bound: r[f"{key}_{bound}"] for bound in ("mean", "low", "high")}, digits
        )
        verdict = {True: "yes", False: "no"}.get(r["early_transferability"], "-")  # no angle at chance, no verdict
        values = [*(str(r[field]) for field in fields), str(r["step"]), interval("angle", 1), interval("accuracy", 3)]
        lines.append([*values, verdict])
    head = [*fields, "step", "lowest angle at chance, degrees [95 %]", "accuracy [95 %]", "early transferability"]
    widths = np.array([[len(cell) for cell in line] for line in (head, *lines)]).max(0)
    aligned = [[f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)] for line in (head, *lines)]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


if __name__ == "__main__":
    sys.exit(cli.run(main, options=OPTIONS, several=True))
