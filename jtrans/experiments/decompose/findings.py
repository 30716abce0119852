"""What the measured networks show: as a table, as numbers, in words and as a figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jtrans import stats
from jtrans.experiments.decompose.removal import Measured
from jtrans.experiments.decompose.subspaces import NOTHING
from jtrans.harness import figures, tables
from jtrans.harness.experiment import Results
from jtrans.population import observe

SHOWN_RANK = 10  # of the ranks, the largest up to this one is drawn
NEAR = 2.0  # degrees below the random mean that count as random once a subspace is taken out
CAPTIONS = {
    NOTHING: "nothing",
    "random": "random directions",
    "mean_image": "the mean image",
    "training_images": "training images",
    "gradients": "other networks' gradients",
    "updates": "other networks' updates",
}


def tabulate(rows: Mapping[tuple[int, str, int], Measured]) -> pandas.DataFrame:
    """What `Measured` has, as means with 95 % intervals over networks; a row for each of the keys of `rows`.

    Those are `step`, `subspace` (of `CAPTIONS`) and its number of directions, `rank`. The column `lost` counts the
    networks whose loss is not finite: they are in no mean.
    """
    values = {name: np.stack(each, axis=1) for name, *each in zip(Measured._fields, *rows.values(), strict=True)}
    model = np.zeros(len(values["accuracy"]), int)
    ring = observe.attackers(1, len(model))
    over = {"angle": observe.pairs(1, len(model))[0], "off": ring, "inside": ring}
    intervals = {
        name: stats.pair_mean_ci(each, over[name], model) if name in over else stats.mean_ci(each)
        for name, each in values.items()
    }
    kinds = pandas.DataFrame(list(rows), columns=["step", "subspace", "rank"])
    return kinds.assign(lost=np.isnan(values["accuracy"]).sum(0), **tables.interval_columns(intervals))


def summarize(table: pandas.DataFrame, dimension: int, num_classes: int) -> dict[str, Any]:
    """How many directions are enough, ready for JSON.

    In `enough` for each step and subspace the smallest measured number of directions from which on the mean angle is
    within `NEAR` degrees of the random mean, by the mean and by both ends of its interval, where there is one: `{mean,
    low, high}`; None where that is more than was measured. Steps at which no network has a direction are left out.
    """
    random = stats.random_angle(dimension).mean()
    # The upper end of the angle gives the fewest directions.
    ends = {"mean": "angle", "low": "angle_high", "high": "angle_low"}
    enough = []
    for (step, subspace), rows in table[table["subspace"] != NOTHING].groupby(["step", "subspace"], sort=False):
        if rows["angle"].notna().any():
            whole = table[(table["step"] == step) & (table["subspace"] == NOTHING)]
            angle = pandas.concat([whole, rows]).set_index("rank")
            counts = {end: fewest(angle[name].fillna(angle["angle"]), random - NEAR) for end, name in ends.items()}
            enough.append({"step": int(step), "subspace": subspace, **counts})
    law = {"dimension": dimension, "mean_angle": random}
    return {"random": law, "chance": 1 / num_classes, "near": NEAR, "enough": enough}


def fewest(angle: pandas.Series, least: float) -> int | None:
    """The smallest rank, the index, from which on every angle is `least` or more; None where there is none."""
    after = np.flatnonzero(~(angle >= least)).max(initial=-1) + 1
    return int(angle.index[after]) if after < len(angle) else None


def tell(results: Results) -> str:
    """The mean angles, a line for each subspace and a column for each step."""
    angles = results.tables["decompose"].set_index(["subspace", "rank", "step"])["angle"].unstack(sort=False)
    names, ranks = zip(*angles.index, strict=True)
    columns = {"off the span of": [CAPTIONS[name] for name in names], "rank": ranks}
    columns |= {f"step {step}": angles[step].map("{:6.1f}".format) for step in angles}
    return f"mean angles in degrees\n{tables.text(columns)}"


def draw(results: Results) -> dict[str, Figure]:
    """The angle without each subspace, how many directions are enough, and attacks along either component."""
    config, table = results.config, results.tables["decompose"]
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    panels = angle, enough, attack = figure.subplots(1, 3)
    colours = {name: f"C{i}" for i, name in enumerate(name for name in table["subspace"].unique() if name != NOTHING)}
    _draw_curves(angle, attack, results, colours)
    _draw_counts(enough, results, colours)
    steps = table["step"].unique()
    for axes in panels:
        axes.set_xticks(range(len(steps)), steps)
        axes.set_xlabel("optimizer steps")
        axes.grid(alpha=0.25)
    figure.legend(*angle.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=4)
    optimizer = config["optimizer"]
    figure.suptitle(
        f"Adversarial directions without a small subspace: {figures.networks(config)}, {config['num_networks']} "
        f"networks, subspaces from {config['num_fit']} others\n{figures.data(config['data'])}; {optimizer['name']}, "
        f"learning rate {optimizer['learning_rate']:g}, batch size {config['batch_size']}",
        fontsize="medium",
    )
    return {"figure": figure}


def _draw_curves(angle: Axes, attack: Axes, results: Results, colours: Mapping[str, str]) -> None:
    """The angles without each subspace, and attacks along either component, over the places of the steps."""
    config, table = results.config, results.tables["decompose"]
    shown = max(rank for rank in config["ranks"] if rank <= SHOWN_RANK or rank == config["ranks"][0])
    for name, colour in {NOTHING: "k", **colours}.items():
        rank = {NOTHING: 0, "mean_image": 1}.get(name, shown)
        rows = table[(table["subspace"] == name) & (table["rank"] == rank)]
        x = np.searchsorted(table["step"].unique(), rows["step"])
        label = f"off {CAPTIONS[name]}" + f", {rank} of them" * (rank > 1) if rank else "whole directions"
        figures.curve(angle, x, tables.interval(rows, "angle"), colour, label)
        figures.curve(attack, x, tables.interval(rows, "off"), colour, None if rank else label)
        if rank:
            figures.curve(attack, x, tables.interval(rows, "inside"), colour, linestyle=":")
    figures.random_mean(angle, results.summary["random"])
    figures.band_entry(angle)
    angle.set(ylabel="angle between adversarial directions (degrees)", ylim=(0, 92))
    angle.set_title("what is left of the directions", fontsize="medium")
    attack.plot([], [], color="0.4", label="along what is left")
    attack.plot([], [], color="0.4", linestyle=":", label="along what was taken out")
    attack.set(ylabel="errors by another network's direction\n(share of images got right)", ylim=(0, 1))
    attack.set_title(f"attacks of L2 length {config['attack']['epsilon']:g} (pixels in [0, 1])", fontsize="medium")
    attack.legend(fontsize="x-small", loc="upper left")


def _draw_counts(axes: Axes, results: Results, colours: Mapping[str, str]) -> None:
    """How many directions are enough, beside each other at each step."""
    grid, summary = [0, *results.config["ranks"], None], results.summary
    steps = results.tables["decompose"]["step"].unique()
    for i, (name, colour) in enumerate(colours.items()):
        if name in ("random", "mean_image"):
            continue
        rows = [row for row in summary["enough"] if row["subspace"] == name]
        x = np.searchsorted(steps, [row["step"] for row in rows]) + 0.08 * (i - len(colours) / 2)
        middle, low, high = (np.array([grid.index(row[end]) for row in rows]) for end in ("mean", "low", "high"))
        reach = [middle - low, high - middle]
        axes.errorbar(x, middle, reach, color=colour, marker="o", capsize=3, label=CAPTIONS[name])
    axes.set_yticks(range(len(grid)), [*grid[:-1], f"over {grid[-2]}"])
    axes.set(ylabel=f"directions to take out for a mean angle\nwithin {summary['near']:.0f} degrees of random ones")
    axes.set_title("how many directions are enough (bars: 95 % interval)", fontsize="medium")
    axes.legend(fontsize="x-small", loc="best")
