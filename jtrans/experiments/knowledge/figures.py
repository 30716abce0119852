"""The figures: every measure against the transfer loss, and the success of attacks between all networks."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jtrans import stats
from jtrans.experiments import matrix
from jtrans.experiments.knowledge import words
from jtrans.harness import figures
from jtrans.harness.experiment import Results

TAUS = """\
tau1: how far an attack on the one network moves the other's outputs, in shares of what the other's own attack does; \
tau2: how alike it moves both, from 0 to 1. Transfer loss: of a new last layer, cross entropy on
the target's test images. A rank correlation below 0: larger goes with better transfer; p is of a permutation test \
over sources."""
SHOWN = (
    *words.PRIMARY,
    "virtual_tau1_S_T",
    "virtual_tau1_T_S",
    "pgd_liang_success_S_T",
    "pgd_liang_success_T_S",
    "logme",
    "leep",
    "h_score",
    "gbc",
    "cka",
    "source_accuracy",
    "stratum",
)
MANY = 8  # sources that still have an entry each in the legend


def draw(results: Results) -> dict[str, Figure]:
    """Every measure against the transfer loss; where measured, the matrix of the sources with new last layers."""
    drawn = {"figure": _against_loss(results)}
    if "matrix" in results.tables:
        seeds = min(results.summary["num_seeds"], results.config["num_references"])
        labels = {"over": f"{seeds} seeds" * (seeds > 1), "note": "; sources with new last layers"}
        labels["kind"] = figures.kind(results.summary)
        of_config = results.config["attack"]["epsilon"], results.config["target"]
        drawn["matrix"] = matrix.heat_maps(results.tables["matrix"], *of_config, **labels)
    return drawn


def _against_loss(results: Results) -> Figure:
    """A point for each source, with 95 % intervals over seeds, whose spread is taken to be the same for all sources."""
    config, table, summary = results.config, results.tables["knowledge"], results.summary
    correlations = {row["measure"]: row for row in summary["correlations"]}
    figure = Figure(figsize=(15, 13), layout="constrained")
    *panels, key = figure.subplots(4, 4).flat
    shown = [name for name in SHOWN if name != "stratum" or config["strata"]]
    loss, *measured = (stats.pooled_ci(words.compared(table, name)) for name in ("transfer_loss", *shown))
    names = [row["source"] for row in summary["sources"]]
    strata = words.by_source(table, "stratum")[:, 0].astype(int)
    # Many sources are told apart by their strata alone.
    groups = names if len(names) <= MANY else [str(stratum) for stratum in strata]
    legend = list(dict.fromkeys(groups))
    colours = matplotlib.colormaps["viridis" if len(names) > MANY else "tab10"]
    shades = np.linspace(0, 0.9, len(legend)) if len(names) > MANY else np.arange(len(legend))
    colour = dict(zip(legend, map(colours, shades), strict=True))
    contrast = words.has_contrast(table)
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes, name, values in zip(panels[: len(shown)], shown, measured, strict=True):
        _scatter(axes, values, loss, correlations[name], [colour[group] for group in groups])
        difference = contrast and name in words.OF_TARGET
        caption = config["strata"] if name == "stratum" else words.CAPTIONS[name]
        axes.set_xlabel(caption.replace(", ", "\n", 1) + "\n(target less contrast)" * difference, fontsize="small")
        axes.set_ylabel("transfer loss (nats)" + ",\ntarget less contrast" * contrast, fontsize="small")
    key.axis("off")
    point = partial(Line2D, [], [], marker="o", linestyle="")
    handles = [point(color=colour[group], label=group) for group in legend]
    if summary["num_seeds"] > 1:
        handles.append(
            Line2D(
                [], [], color="0.3", label=f"95 % interval, {summary['num_seeds']} seeds,\nspread pooled over sources"
            )
        )
    title = "sources" if len(names) <= MANY else config["strata"] or "stratum"
    key.legend(handles=handles, loc="upper center", title=title, fontsize="small")
    figure.supxlabel(figures.of_kind(TAUS, figures.kind(summary)), fontsize="small")
    domains = f"{len(names)} sources, from {figures.data(config['source'])} to {figures.data(config['target'])}"
    unit = figures.UNITS[figures.kind(results.summary)]
    reference = f"reference {config['reference']}; PGD of epsilon {config['attack']['epsilon']:g} ({unit})"
    figure.suptitle(f"Adversarial and knowledge transferability: {domains}; {reference}", fontsize="medium")
    return figure


def _scatter(axes: Axes, values: stats.Interval, loss: stats.Interval, row: Mapping[str, Any], colours: list) -> None:
    """The sources' values of a measure against their losses; `row` is the measure's correlation in the summary."""
    across, up = figures.errors(values), figures.errors(loss)
    for i, colour in enumerate(colours):
        bars = {"xerr": None if across is None else across[:, [i]], "yerr": None if up is None else up[:, [i]]}
        axes.errorbar(
            values.mean[i], loss.mean[i], **bars, fmt="o", color=colour, capsize=2, markersize=4, linewidth=0.8
        )
    rank = row["spearman"]
    title = row["undefined"] or f"rank correlation {stats.interval_text(rank, 2)}, p {words.p_text(rank['p_value'])}"
    axes.set_title(f"{title}\n{words.missing(row)}".rstrip(), fontsize="small")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.25)
