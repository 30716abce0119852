"""What any experiment comes down to (`Experiment.headline`), setting by setting."""

import math
from collections.abc import Mapping, Sequence

import pandas
from matplotlib.figure import Figure

from jtrans.harness import figures, tables
from jtrans.stats import Interval

MOST_DRAWN = 100  # settings in the figure


def table(values: Mapping[str, Sequence[str]], headlines: Sequence[Mapping[str, Interval | float]]) -> pandas.DataFrame:
    """A row for each setting: the values of the fields that vary, then every number as `X`, `X_low` and `X_high`.

    NaN where a setting has no such number, or the number no interval.
    """
    rows = [tables.interval_columns({name: _interval(each) for name, each in row.items()}) for row in headlines]
    return pandas.concat([pandas.DataFrame(values), pandas.DataFrame(rows)], axis=1)


def _interval(value: Interval | float) -> Interval:
    return value if isinstance(value, Interval) else Interval(value, math.nan, math.nan)


def names(frame: pandas.DataFrame) -> list[str]:
    """Of a `table` the names of the numbers."""
    return [name for name in frame if f"{name}_low" in frame]


def settings(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Of a `table` the values of the fields that vary."""
    return frame.iloc[:, : frame.columns.get_loc(names(frame)[0])]


def tell(frame: pandas.DataFrame) -> str:
    """The table as text."""
    digits = lambda name: 1 if "(degrees)" in name else 3
    cells = {f"{name} [95 %]": tables.cells(frame, name, digits(name)) for name in names(frame)}
    return tables.text({**settings(frame), **cells})


def draw(frame: pandas.DataFrame, experiment: str) -> Figure:
    """A panel for each number, a row for each setting, of many the first; bars are 95 % intervals."""
    shown, varied = frame.head(MOST_DRAWN), settings(frame.head(MOST_DRAWN))
    panels = names(frame)
    figure = Figure(figsize=(2.5 + 4 * len(panels), 1.6 + 0.3 * len(shown)), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, name in zip(all_axes, panels, strict=True):
        value = tables.interval(shown, name)
        reach = figures.errors(value)
        label = "value" if reach is None else f"value, {figures.INTERVAL}"
        axes.errorbar(value.mean, range(len(shown)), xerr=reach, fmt="o", capsize=3, label=label)
        axes.legend(fontsize="small")
        axes.set_xlabel(name.replace(" (", "\n("))
        axes.grid(alpha=0.25)
    all_axes[0].set_yticks(range(len(shown)), [", ".join(map(str, row)) for row in varied.itertuples(index=False)])
    all_axes[0].set_ylabel(", ".join(varied))
    all_axes[0].invert_yaxis()
    count = f"{len(frame)} settings" if len(shown) == len(frame) else f"the first {len(shown)} of {len(frame)} settings"
    figure.suptitle(f"{experiment} under {count}", fontsize="medium")
    return figure
