"""The figures: a heat map for each attack."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from jtrans import attacks
from jtrans.harness import figures, tables
from jtrans.stats import Interval

MOST_NUMBERED = 24  # networks of a matrix whose cells have numbers
MOST_NAMED = 8  # networks with their names along the axes of a larger one
MOST_ABREAST = 4  # heat maps


def heat_maps(
    table: pandas.DataFrame,
    epsilon: float,
    data: Mapping[str, Any],
    *,
    kind: str = "images",
    over: str = "",
    words: int = 0,
    note: str = "",
    success: str = "errors",
) -> Figure:
    """A heat map for each attack, of the success from each source on each target, as `table` has it.

    Each cell has its number and each network its name; more than `MOST_NUMBERED` networks are a heat map without
    numbers, of one size, with a name every so many networks. `data` is the section of the config that the examples
    are from, `kind` what these are, `over` what the intervals are over, empty where there are none, `words` how many
    of a text attacks on words substitute at most, `note` a further part of the title, and `success` what is counted.
    """
    attacked, sources, targets = (list(dict.fromkeys(table[column])) for column in ("attack", "source", "target"))
    numbered = len(targets) <= MOST_NUMBERED
    width, height = (0.55 * (len(names) if numbered else MOST_NAMED) for names in (targets, sources))  # inches
    abreast = min(len(attacked), MOST_ABREAST)
    rows = -(-len(attacked) // abreast)
    figure = Figure(figsize=(2.2 + abreast * (1 + width), 2.5 + rows * (0.7 + height)), layout="compressed")
    panels = figure.subplots(rows, abreast, squeeze=False, sharex=True, sharey=True)
    for axes, attack in itertools.zip_longest(panels.flat, attacked):
        if attack is None:
            axes.remove()
            continue
        of_attack = tables.interval(table[table["attack"] == attack], "target_right")
        image = _heat_map(axes, of_attack, sources, targets, numbered)
        axes.set_title(attack)
    figure.supxlabel("attacked network (target)", fontsize="medium")
    figure.supylabel("network that the attack is made on (source)", fontsize="medium")
    figure.colorbar(image, ax=panels, label=f"{success} (% of the {kind}\nthat the target gets right)")
    virtual = "; virtual: of the same length in L2" if "virtual" in attacked and kind == "images" else ""
    signs = (
        f"; ±: 95 % interval over {over}" * bool(over)
        if numbered
        else f"; white: the target gets none of the {kind} right"
    )
    on_words = set(attacked) & set(attacks.ON_WORDS)
    sizes = [f"at most {words} word{'s' * (words != 1)}"] if on_words else []
    if on_words != set(attacked):
        sizes.insert(0, f"epsilon {epsilon:.3g} ({figures.UNITS[kind]}{virtual})")
    title = f"Attacks of {' or of '.join(sizes)}{note}\n{figures.data(data)}"
    figure.suptitle(f"{title}, {table['all_images_count'].max():.0f} test {kind}{signs}", fontsize="medium")
    return figure


def _heat_map(
    axes: Axes, interval: Interval, sources: Sequence[str], targets: Sequence[str], numbered: bool
) -> AxesImage:
    """The shares of one attack in percent, a row for each source."""
    rate, low, high = (100 * bound.reshape(len(sources), len(targets)) for bound in interval)
    image = axes.imshow(rate, vmin=0, vmax=100, cmap="viridis")
    reach = (high - low) / 2
    for (row, column), share in np.ndenumerate(rate) if numbered else ():
        sign = f"\n±{reach[row, column]:.0f}" if np.isfinite(reach[row, column]) else ""
        text = "-" if np.isnan(share) else f"{share:.0f}{sign}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="w" if share <= 55 else "k")
    step = 1 if numbered else -(-len(targets) // MOST_NAMED)
    axes.set_xticks(range(0, len(targets), step), targets[::step], rotation=60, ha="right", fontsize="small")
    axes.set_yticks(range(0, len(sources), step), sources[::step], fontsize="small")
    return image
