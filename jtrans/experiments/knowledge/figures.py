"""The figures: every measure against the transfer loss, and the success of attacks between all networks."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jtrans import stats
from jtrans.experiments import matrix
from jtrans.experiments.knowledge import words
from jtrans.harness import figures
from jtrans.harness.experiment import Results
from jtrans.stats import Interval

TAUS = """tau1: how far an attack on the one network moves
the other's outputs, in shares of what the other's
own attack does; tau2: how alike it moves both,
from 0 to 1; tau1 tau2: both in one.
Transfer loss: of a new last layer, cross entropy
on the target's test images. A rank correlation
below 0: larger goes with better transfer."""
OF_ATTACKS = ("pgd_liang_tau1", "pgd_liang_tau2", "pgd_liang_tau1tau2", "virtual_tau1", "virtual_tau2")
OF_SOURCES = ("logme", "leep", "h_score", "cka", "parameters")
SHOWN = (*(f"{name}_S_T" for name in OF_ATTACKS), "pgd_liang_success", *OF_SOURCES)


def draw(results: Results) -> dict[str, Figure]:
    """Every measure against the transfer loss; the matrix of the sources with new last layers."""
    epsilon, target, seeds = results.config["attack"]["epsilon"], results.config["target"], results.summary["num_seeds"]
    labels = {"over": f"{seeds} seeds" if seeds > 1 else "", "note": "; sources with new last layers"}
    of_heads = matrix.heat_maps(results.tables["matrix"], epsilon, target, **labels)
    return {"figure": _against_loss(results), "matrix": of_heads}


def _against_loss(results: Results) -> Figure:
    """A point for each source, with 95 % intervals over seeds."""
    config, table, summary = results.config, results.tables["knowledge"], results.summary
    figure = Figure(figsize=(14, 10), layout="constrained")
    *panels, key = figure.subplots(3, 4).flat
    loss = stats.mean_ci(words.by_source(table, "transfer_loss"), axis=1)
    correlations = {row["measure"]: row for row in summary["correlations"]}
    for axes, name in zip(panels, SHOWN, strict=True):
        _scatter(axes, stats.mean_ci(words.by_source(table, name), axis=1), loss, correlations[name])
    panels[SHOWN.index("parameters")].set_xscale("log")
    key.axis("off")
    names = [row["source"] for row in summary["sources"]]
    handles = [Line2D([], [], color=f"C{i}", marker="o", linestyle="", label=name) for i, name in enumerate(names)]
    if summary["num_seeds"] > 1:
        handles.append(Line2D([], [], color="0.3", label=f"95 % interval, {summary['num_seeds']} seeds"))
    key.legend(handles=handles, loc="upper center", title="sources")
    key.text(0.5, 0, TAUS, ha="center", va="bottom", fontsize="small", transform=key.transAxes)
    figure.suptitle(
        f"Adversarial and knowledge transferability: from {figures.data(config['source'])} to "
        f"{figures.data(config['target'])}; reference {config['reference']}; PGD of epsilon "
        f"{config['attack']['epsilon']:g} (pixels in [0, 1])",
        fontsize="medium",
    )
    return figure


def _scatter(axes: Axes, values: Interval, loss: Interval, row: Mapping[str, Any]) -> None:
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
