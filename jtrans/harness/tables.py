"""Tables as data frames: intervals as columns, and the same table as text."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas

from jtrans import stats
from jtrans.stats import Interval


def interval_columns(intervals: Mapping[str, Interval]) -> dict[str, np.ndarray]:
    """Each interval as the columns `X` (the mean), `X_low` and `X_high`."""
    columns: dict[str, np.ndarray] = {}
    for name, (mean, low, high) in intervals.items():
        columns |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return columns


def interval(table: pandas.DataFrame, name: str) -> Interval:
    """The interval in the columns `X`, `X_low` and `X_high`."""
    return Interval(*(table[column].to_numpy(float) for column in (name, f"{name}_low", f"{name}_high")))


def first(table: pandas.DataFrame, name: str) -> Interval:
    """The interval in the first row of the columns `X`, `X_low` and `X_high`."""
    return Interval(*(bound[0] for bound in interval(table, name)))


def cells(table: pandas.DataFrame, name: str, digits: int) -> list[str]:
    """The interval of each row in words: `mean [low, high]`, or the mean alone where there is no interval."""
    rows = zip(*interval(table, name), strict=True)
    return [stats.interval_text(Interval(*bounds)._asdict(), digits) for bounds in rows]


def of_trajectory(trajectory: Mapping[str, np.ndarray], curves: Mapping[str, Interval]) -> pandas.DataFrame:
    """A row for each step: every one of `trajectory.curves` with its interval, and each network's accuracy."""
    each = {f"accuracy_{m}": row for m, row in enumerate(trajectory["accuracy"])}
    return pandas.DataFrame({"step": trajectory["step"], **interval_columns(curves), **each})


def text(columns: Mapping[str, Iterable[Any]]) -> str:
    """A table as text, its columns aligned; numbers to the right, words to the left."""
    aligned = []
    for name, values in columns.items():
        lines = [name, *map(str, values)]
        width = max(map(len, lines))
        right = all(line.strip("-+").replace(".", "", 1)[:1].isdigit() and "[" not in line for line in lines[1:])
        aligned.append([line.rjust(width) if right else line.ljust(width) for line in lines])
    return "\n".join("  ".join(row).rstrip() for row in zip(*aligned, strict=True))
