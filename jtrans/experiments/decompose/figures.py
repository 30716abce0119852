"""The figures: what is left without each subspace, where equal shares are removed, and without one fitted before."""

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jtrans.experiments.decompose import findings
from jtrans.experiments.decompose.findings import captions
from jtrans.experiments.decompose.subspaces import NOTHING, WHOLE
from jtrans.harness import figures, tables
from jtrans.harness.experiment import Results

LEFT = "angle between adversarial directions (degrees)"
SHARE = "share of the directions' squared length taken out"


def draw(results: Results) -> dict[str, Figure]:
    """Every subspace over steps, those that remove equal shares, and updates fitted at other steps."""
    return {"figure": draw_all(results), "matched": draw_matched(results), "lasting": draw_lasting(results)}


def draw_all(results: Results) -> Figure:
    """The angle without each subspace and the share it takes out, how many directions are enough, and attacks."""
    figure = Figure(figsize=(13, 10.5), layout="constrained")
    angle, share, enough, attack = figure.subplots(2, 2).flat
    _draw_curves(angle, share, attack, results)
    _draw_counts(enough, results)
    for axes in (angle, share, enough, attack):
        _over_steps(axes, results)
    figure.legend(*angle.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=3)
    refitted = " and ".join(captions(results)[name] for name in findings.REFITTED)
    figure.suptitle(f"{_title(results)}\n{refitted} are refitted at every step", fontsize="medium")
    return figure


def _title(results: Results) -> str:
    config = results.config
    optimizer = config["optimizer"]
    return (
        f"Adversarial directions without a small subspace: {figures.networks(config)}, {config['num_networks']} "
        f"networks, subspaces from {config['num_fit']} others\n{figures.data(config['data'])}; {optimizer['name']}, "
        f"learning rate {optimizer['learning_rate']:g}, batch size {config['batch_size']}"
    )


def _over_steps(axes: Axes, results: Results) -> None:
    steps = results.tables["decompose"]["step"].unique()
    axes.set_xticks(range(len(steps)), steps)
    axes.set_xlabel("optimizer steps")
    axes.grid(alpha=0.25)


def _colours(results: Results) -> dict[str, str]:
    names = results.tables["decompose"]["subspace"].unique()[::-1]  # random directions, which come last, are grey
    return {name: f"C{i}" for i, name in enumerate(names)} | {NOTHING: "k"}


def _places(results: Results, steps: pandas.Series) -> np.ndarray:
    """Where steps are on the axis of the measured steps."""
    return np.searchsorted(results.tables["decompose"]["step"].unique(), steps)


def _draw_curves(angle: Axes, share: Axes, attack: Axes, results: Results) -> None:
    """Angles without each subspace, shares that it takes out, and attacks along either component."""
    config, table, kind = results.config, results.tables["decompose"], figures.kind(results.summary)
    shown = findings.shown_rank(config["ranks"])
    drawn = table[(table["rank"] == shown) | table["subspace"].isin((NOTHING, *WHOLE))]
    for (name, rank), rows in drawn.groupby(["subspace", "rank"], sort=False):
        x, colour = _places(results, rows["step"]), _colours(results)[name]
        label = f"off {captions(results)[name]}" + f", {rank} of them" * (rank > 1) if rank else "whole directions"
        figures.curve(angle, x, tables.interval(rows, "angle"), colour, label)
        figures.curve(attack, x, tables.interval(rows, "off"), colour, None if rank else label)
        if rank:
            figures.curve(share, x, tables.interval(rows, "share"), colour)
            figures.curve(attack, x, tables.interval(rows, "inside"), colour, linestyle=":")
    figures.random_mean(angle, results.summary["random"])
    figures.band_entry(angle)
    angle.set(ylabel=LEFT, ylim=(0, 92))
    angle.set_title("what is left of the directions", fontsize="medium")
    share.set(ylabel=SHARE, ylim=(0, 1.02))
    share.set_title("how much was taken out", fontsize="medium")
    attack.plot([], [], color="0.4", label="along what is left")
    attack.plot([], [], color="0.4", linestyle=":", label="along what was taken out")
    attack.set(ylabel=f"errors by another network's direction\n(share of {kind} got right)", ylim=(0, 1))
    attack.set_title(f"attacks of L2 length {config['attack']['epsilon']:g} ({figures.UNITS[kind]})", fontsize="medium")
    attack.legend(fontsize="x-small", loc="upper left")


def _draw_counts(axes: Axes, results: Results) -> None:
    """How many directions are enough, beside each other at each step."""
    grid, summary, colours = [0, *results.config["ranks"], None], results.summary, _colours(results)
    counted = [name for name in colours if name not in (NOTHING, "random", *WHOLE)]
    for i, name in enumerate(counted):
        rows = [row for row in summary["enough"] if row["subspace"] == name]
        x = _places(results, [row["step"] for row in rows]) + 0.1 * (i - (len(counted) - 1) / 2)
        middle, low, high = (np.array([grid.index(row[end]) for row in rows]) for end in ("mean", "low", "high"))
        reach = [middle - low, high - middle]
        axes.errorbar(x, middle, reach, color=colours[name], marker="o", capsize=3, label=captions(results)[name])
    axes.set_yticks(range(len(grid)), [*grid[:-1], f"over {grid[-2]}"])
    axes.set(ylabel=f"directions to take out for a mean angle\nwithin {summary['near']:.0f} degrees of random ones")
    axes.set_title("how many directions are enough (bars: 95 % interval)", fontsize="medium")
    axes.legend(fontsize="x-small", loc="best")


def draw_matched(results: Results) -> Figure:
    """Angles left where each subspace takes out the share that the updates do, and how many directions that takes."""
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    angle, share, rank = figure.subplots(1, 3)
    for name, rows in results.tables["matched"].groupby("subspace", sort=False):
        x, colour = _places(results, rows["step"]), _colours(results)[name]
        label = "whole directions" if name == NOTHING else f"off {captions(results)[name]}"
        figures.curve(angle, x, tables.interval(rows, "angle"), colour, label)
        if name != NOTHING:
            figures.curve(share, x, tables.interval(rows, "share"), colour)
            rank.plot(x, rows["rank"], color=colour, marker=".")
    figures.random_mean(angle, results.summary["random"])
    figures.band_entry(angle)
    angle.set(ylabel=LEFT, ylim=(0, 92), title="what is left of the directions")
    share.set(ylabel=SHARE, ylim=(0, 1.02), title="how much was taken out")
    rank.set(ylabel="directions taken out", yscale="log", title="how many directions that takes")
    rank.set_yticks(results.config["ranks"], results.config["ranks"])
    rank.minorticks_off()
    for axes in (angle, share, rank):
        _over_steps(axes, results)
    figure.legend(*angle.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=4)
    ranks = results.config["ranks"]
    matched = f"so many directions, {ranks[-1]} at most, that they take out the share nearest to that of"
    shown = f"{findings.shown_rank(ranks)} updates; gradients and updates are refitted at every step"
    figure.suptitle(f"{_title(results)}\n{matched} {shown}", fontsize="medium")
    return figure


def draw_lasting(results: Results) -> Figure:
    """Updates fitted at each step (rows), taken out of the directions at each step (columns)."""
    table = results.tables["lasting"]
    labels = findings.fits(results) + np.where(table["rank"] > 1, ", " + table["rank"].astype(str) + " of them", "")
    size = 5 + 1.25 * table["step"].nunique(), 2.2 + 0.5 * labels.nunique()
    figure = Figure(figsize=size, layout="constrained")
    angle, share = figure.subplots(1, 2, sharey=True)
    _draw_map(angle, table.assign(label=labels), "angle", 90)
    _draw_map(share, table.assign(label=labels, **100 * table.filter(like="share")), "share", 100)
    angle.set_ylabel("taken out")
    angle.set_title("angle that is left (degrees)", fontsize="medium")
    share.set_title("share of the squared length taken out (%)", fontsize="medium")
    maps = "each cell: mean ± 95 % interval; outlined: fitted at the step of the directions"
    figure.suptitle(f"{_title(results)}\n{maps}", fontsize="medium")
    return figure


def _draw_map(axes: Axes, table: pandas.DataFrame, name: str, most: float) -> None:
    """A cell for each label and step: the mean from 0 to `most`, and how far its interval reaches."""
    grid = table.set_index(["label", "step"])[[name, f"{name}_high"]].unstack(sort=False)
    mean, reach = grid[name], (grid[f"{name}_high"] - grid[name]).to_numpy()
    axes.imshow(mean, vmin=0, vmax=most, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(mean):
        text = "-" if np.isnan(value) else f"{value:.1f}"
        text += f"\n±{reach[row, column]:.1f}" if np.isfinite(reach[row, column]) else ""
        colour = "w" if value <= 0.55 * most else "k"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    for _, same in table[(table["subspace"] == "updates") & (table["fit_step"] == table["step"])].iterrows():
        corner = mean.columns.get_loc(same["step"]) - 0.5, mean.index.get_loc(same["label"]) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="r", linewidth=2))
    axes.set_xticks(range(mean.shape[1]), mean.columns)
    axes.set_yticks(range(len(mean)), mean.index)
    axes.set_xlabel("optimizer steps")
