"""The figures: every measure against the transfer loss, and the success of attacks between all networks."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jtrans import stats
from jtrans.experiments import matrix
from jtrans.experiments.knowledge import words
from jtrans.harness import figures
from jtrans.harness.experiment import Results

TAUS = """tau1: how far an attack on the one network moves
the other's outputs, in shares of what the other's
own attack does; tau2: how alike it moves both,
from 0 to 1; tau1 tau2: both in one.
Transfer loss: of a new last layer, cross entropy
on the target's test images. A rank correlation
below 0: larger goes with better transfer."""
OF_ATTACKS = (*(f"pgd_liang_{tau}_S_T" for tau in ("tau1", "tau2", "tau1tau2")), "virtual_tau1_S_T", "virtual_tau2_S_T")
SHOWN = (*OF_ATTACKS, "pgd_liang_success", "logme", "leep", "h_score", "cka", "parameters")


def draw(results: Results) -> dict[str, Figure]:
    """Every measure against the transfer loss; the matrix of the sources with new last layers."""
    of_config, seeds = (results.config["attack"]["epsilon"], results.config["target"]), results.summary["num_seeds"]
    labels = {"over": f"{seeds} seeds" * (seeds > 1), "note": "; sources with new last layers"}
    of_heads = matrix.heat_maps(results.tables["matrix"], *of_config, **labels)
    return {"figure": _against_loss(results), "matrix": of_heads}


def _against_loss(results: Results) -> Figure:
    """A point for each source, with 95 % intervals over seeds."""
    config, table, summary = results.config, results.tables["knowledge"], results.summary
    correlations = {row["measure"]: row for row in summary["correlations"]}
    figure = Figure(figsize=(14, 10), layout="constrained")
    *panels, key = figure.subplots(3, 4).flat
    loss, *measured = (stats.mean_ci(words.by_source(table, name), axis=1) for name in ("transfer_loss", *SHOWN))
    for axes, name, values in zip(panels, SHOWN, measured, strict=True):
        _scatter(axes, values, loss, correlations[name])
    panels[SHOWN.index("parameters")].set_xscale("log")
    key.axis("off")
    point = partial(Line2D, [], [], marker="o", linestyle="")
    handles = [point(color=f"C{i}", label=row["source"]) for i, row in enumerate(summary["sources"])]
    if summary["num_seeds"] > 1:
        handles.append(Line2D([], [], color="0.3", label=f"95 % interval, {summary['num_seeds']} seeds"))
    key.legend(handles=handles, loc="upper center", title="sources")
    key.text(0.5, 0, TAUS, ha="center", va="bottom", fontsize="small", transform=key.transAxes)
    domains = f"from {figures.data(config['source'])} to {figures.data(config['target'])}"
    reference = f"reference {config['reference']}; PGD of epsilon {config['attack']['epsilon']:g} (pixels in [0, 1])"
    figure.suptitle(f"Adversarial and knowledge transferability: {domains}; {reference}", fontsize="medium")
    return figure


def _scatter(axes: Axes, values: stats.Interval, loss: stats.Interval, row: Mapping[str, Any]) -> None:
    """The sources' values of a measure against their losses; `row` is the measure's correlation in the summary."""
    across, up = figures.errors(values), figures.errors(loss)
    for i in range(len(loss.mean)):
        bars = {"xerr": None if across is None else across[:, [i]], "yerr": None if up is None else up[:, [i]]}
        axes.errorbar(values.mean[i], loss.mean[i], **bars, fmt="o", color=f"C{i}", capsize=3)
    rank = row["spearman"]
    title = row["undefined"] or f"rank correlation {stats.interval_text(rank, 2)}, p {rank['p_value']:.2f}"
    axes.set_title(f"{title}\n{words.missing(row)}".rstrip(), fontsize="small")
    axes.set(xlabel=words.CAPTIONS[row["measure"]], ylabel="transfer loss (nats)")
    axes.grid(alpha=0.25)
