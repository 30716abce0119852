"""The settings of a sweep: which fields vary, the config and the directory of each, and which of them a shard runs."""

import ast
import copy
import itertools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jtrans.errors import InputError
from jtrans.harness import fields, folder
from jtrans.harness.experiment import Experiment


def settings(config: ConfigDict, sweep: str, swept: Experiment) -> dict[str, ConfigDict]:
    """The configs by the names of their directories; InputError if one is no config of the experiment that is swept,
    or two share a directory.
    """
    varied = parse(sweep)
    cases: dict[str, ConfigDict] = {}
    for combination in itertools.product(*varied.values()):
        values = dict(zip(varied, combination, strict=True))
        case = folder.folder_name(",".join(f"{field}={value}" for field, value in values.items()).replace("'", ""))
        if case in cases:
            there = {field: fields.flat(cases[case])[field] for field in varied}
            raise InputError(f"--sweep: got {there} and {values}, which share the directory {case}; leave one out")
        cases[case] = with_values(config, values, swept)
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


def with_values(config: ConfigDict, values: Mapping[str, Any], swept: Experiment) -> ConfigDict:
    """A copy of the config with these values; InputError if a field is unknown or its value wrong."""
    config, known = copy.deepcopy(config), fields.flat(config)
    for field in values:
        if field not in known:
            raise fields.unknown_field(field, known)
    as_float = lambda field, value: float(value) if isinstance(known[field], float) and type(value) is int else value
    with config.ignore_type():  # the check below says it better
        config.update_from_flattened_dict({field: as_float(field, value) for field, value in values.items()})
    fields.check(config, swept.fields)
    swept.check(config)
    return config


def read_shard(shard: str | None) -> tuple[int, int]:
    """`I/N` as numbers, I below N; 0 and 1 where it is not given."""
    part, _, parts = (shard or "0/1").partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise InputError(f"--shard: got {shard!r}; it takes I/N with I from 0 to N - 1, as 0/4")
    return int(part), int(parts)
