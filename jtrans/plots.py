"""Figures, from results alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jtrans import findings, results
from jtrans.models import WIDTHS
from jtrans.population import Trajectory
from jtrans.stats import mean_ci, random_angle

COLOURS = ("C0", "C1")
EPOCHS = 5  # from so many on the x axis counts epochs, not steps


def early(config: Mapping[str, Any], trajectory: Trajectory, summary: Mapping[str, Any]) -> Figure:
    """The layout of BenShmuel (2022), Figure 1: the angle above, the accuracies below, over optimizer steps.

    Where networks were attacked, the success rates stand below. Shaded bands are 95 % intervals (over pairs by a
    jackknife over networks; over networks by Student's t). A single pair has none, and none is drawn.

    Args:
      config, trajectory, summary: as `results.read` gives them.
    """
    (x, x_label), curves = _progress(trajectory, summary), findings.curves(trajectory)
    attacked = trajectory.success is not None
    figure = Figure(figsize=(7.5, 8.4 if attacked else 6.4), layout="constrained")
    above, below, *rest = figure.subplots(2 + attacked, 1, sharex=True, height_ratios=(3, 2, 2)[: 2 + attacked])

    pairs = len(trajectory.pair)
    above.plot(x, curves["angle"].mean, "C0", marker=".", label=f"mean of {pairs} pair{'s' * (pairs > 1)}")
    _band(above, x, curves["angle"], "C0")
    _random_lines(above, summary["random"])
    above.set_title(_title([config], trajectory.num_examples), fontsize="medium")
    above.legend(loc="best", fontsize="small")

    for group, name in enumerate(config["models"]):
        rows = trajectory.accuracy[trajectory.model == group]
        colour = COLOURS[group]
        below.plot(x, rows.T, color=colour, alpha=0.25, linewidth=0.6)
        accuracy = mean_ci(rows)
        below.plot(x, accuracy.mean, colour, marker=".", label=f"{name}, mean of {len(rows)} (thin: each)")
        _band(below, x, accuracy, colour, "95 % interval" if group == 0 else None)
    _chance_line(below, summary["chance"])
    below.legend(loc="best", fontsize="small")
    for axes in rest:
        _attacked(axes, x, config, curves)
    _finish((above, below, *rest), x_label)
    return figure


def overlay(runs: Mapping[str, tuple[Mapping[str, Any], Trajectory, Mapping[str, Any]]]) -> Figure:
    """Several runs in one figure: the angle of each above, the accuracies below, with 95 % intervals.

    Args:
      runs: by the label of each, its config, trajectory and summary, as `results.read` gives them; the first names what
        they have in common.
    """
    figure = Figure(figsize=(7.5, 6.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for i, (label, (_, trajectory, summary)) in enumerate(runs.items()):
        (x, x_label), curves = _progress(trajectory, summary), findings.curves(trajectory)
        pairs = len(trajectory.pair)
        above.plot(x, curves["angle"].mean, f"C{i}", marker=".", label=f"{label} ({pairs} pair{'s' * (pairs > 1)})")
        below.plot(x, curves["accuracy"].mean, f"C{i}", marker=".")
        _band(above, x, curves["angle"], f"C{i}", None)
        _band(below, x, curves["accuracy"], f"C{i}", None)
    _random_lines(above, summary["random"])
    _chance_line(below, summary["chance"])
    above.fill_between([], [], [], color="0.5", alpha=0.25, linewidth=0, label="95 % intervals")
    above.set_title(_title([config for config, *_ in runs.values()], trajectory.num_examples), fontsize="medium")
    for axes in (above, below):
        axes.legend(loc="best", fontsize="small")
    _finish((above, below), x_label)
    return figure


def synthetic(workdir: Path) -> Figure:
    """Every measure over the drift's scale, a row of panels a level, with 95 % intervals over seeds.

    Raises:
      InputError: the work directory holds no finished run.
    """
    columns = results.read_table(workdir / results.SYNTHETIC_TABLE)
    levels, widths = np.unique(columns["level"]), np.unique(columns["width"])
    seeds = len(np.unique(columns["seed"]))
    figure = Figure(figsize=(11, 3.4 * (len(levels) + 1)), layout="constrained")
    *rows, (loss, distance, key) = figure.subplots(len(levels) + 1, 3)
    for level, axes in zip(levels, rows, strict=True):
        for name, panel in zip(("tau1", "tau2", "tau1tau2"), axes, strict=True):
            for direction, style in (("S_T", "-"), ("T_S", "--")):
                _lines(panel, columns, f"{name}_{direction}", widths, level, style)
            title = {"tau1": "tau1: strength", "tau2": "tau2: alignment", "tau1tau2": "tau1 and tau2 combined"}[name]
            panel.set(ylim=(0, 1.03), ylabel=f"{name.replace('tau1tau2', 'tau1 tau2')} (0 to 1)")
            panel.set_title(f"{title}, singular vector {level:.0f}", fontsize="medium")
    for name, panel, title, label in (
        ("transfer_loss_S", loss, "knowledge: head fitted again", "transfer loss (root mean squared error)"),
        ("gradient_matching_distance", distance, "gradients", "gradient matching distance\n(output per unit of input)"),
    ):
        _lines(panel, columns, name, widths, levels[0], "-")
        panel.set_title(title, fontsize="medium")
        panel.set(ylabel=label, ylim=(0, None))
    for panel in (*np.ravel(rows), loss, distance):
        panel.set_xlabel("scale of the drift's last step (steps add up)")
        panel.grid(alpha=0.25)
    handles = [Line2D([], [], color=f"C{i}", label=f"source of width {w:.0f}") for i, w in enumerate(widths)]
    handles += [Line2D([], [], color="0.3", linestyle=s, label=f"attack from {d}") for s, d in _DIRECTIONS]
    if seeds > 1:
        handles.append(Patch(color="0.3", alpha=0.25, label=f"95 % interval over {seeds} seeds"))
    key.legend(handles=handles, loc="center")
    key.axis("off")
    figure.suptitle("How a drifting source transfers to its target, and back (one-hidden-layer networks)")
    return figure


def random_angles(
    typical: Mapping[str, np.ndarray], unlikely: Mapping[str, np.ndarray], summary: Mapping[str, Any]
) -> Figure:
    """The mean angle over the dimension, and how rare small angles are; as `findings.random_angles` gives them."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    law, paper = {"color": "C0", "label": "exact law"}, {"color": "C3", "linestyle": "--"}
    bars = {"fmt": ".", "color": "0.2", "capsize": 3}
    for axes, table, x in ((left, typical, "dimension"), (right, unlikely, "angle")):
        axes.plot(table[x], table["exact"], **law)
        middle, low, high = (table[f"sampled_{bound}"] for bound in ("mean", "low", "high"))
        seen = middle > 0  # a share of zero has no place on a logarithmic axis
        reach = np.stack([middle - np.maximum(low, middle / 10 if axes is right else low), high - middle])
        reach = None if np.isnan(reach).all() else reach[:, seen]
        label = "sampled" + (", 95 % interval" if reach is not None else "")
        axes.errorbar(table[x][seen], middle[seen], reach, label=f"{label} over {summary['num_seeds']} seeds", **bars)
        axes.grid(alpha=0.25)
    left.plot(typical["dimension"], typical["typical"], label="arccos(1 / sqrt(dimension)) (Table 3)", **paper)
    left.set(xscale="log", xlabel="dimension", ylabel="mean folded angle (degrees)")
    right.plot(unlikely["angle"], unlikely["markov"], label="Markov's bound (Table 4)", **paper)
    least, pairs = summary["least"]["mean"], summary["num_pairs"]
    right.axvline(least, color="0.5", linestyle=":", label=f"smallest of {pairs} pairs, mean over seeds")
    right.set(yscale="log", ylim=(1e-9, 2), xlabel="angle (degrees)", ylabel="probability of an angle as small")
    entries = {
        label: line for axes in (left, right) for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries, fontsize="small", loc="outside lower center", ncols=3)
    left.set_title("Random directions by dimension", fontsize="medium")
    right.set_title(f"Small angles in {summary['dimension']} dimensions", fontsize="medium")
    return figure


def updates(
    table: Mapping[str, np.ndarray], histograms: Mapping[str, np.ndarray], summary: Mapping[str, Any]
) -> Figure:
    """Histograms of the angles between update vectors, and their means; as `findings.updates` gives them."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(4, 3))
    law = random_angle(summary["random"]["dimension"])
    degrees = np.append(histograms["degree"], 90)
    for i, name in enumerate(table["what"]):
        left.stairs(100 * histograms[name], degrees, color=f"C{i}", label=name)
        low, middle, high = (table[bound][i] for bound in ("low", "mean", "high"))
        reach = None if np.isnan(low) else [[middle - low], [high - middle]]
        right.errorbar(middle, i, xerr=reach, fmt="o", color=f"C{i}", capsize=3)
    left.stairs(100 * np.diff(law.cdf(degrees)), degrees, color="0.3", linestyle="--", label="random directions")
    left.set(xlabel="angle (degrees)", ylabel="share of the angles in each degree (%)", yscale="symlog", xlim=(0, 90))
    left.legend(fontsize="small", loc="upper left")
    right.axvline(law.mean(), color="0.3", linestyle="--", label="random directions, mean")
    right.set_yticks(range(len(table["what"])), table["what"], fontsize="small")
    right.invert_yaxis()
    right.set(xlabel="mean angle (degrees)", xlim=(0, 92))
    right.plot([], [], "o-", color="0.3", label="mean, 95 % interval over networks")
    figure.legend(*right.get_legend_handles_labels(), fontsize="small", loc="outside lower right", ncols=2)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    networks = summary["num_networks"]
    figure.suptitle(
        f"First-layer update vectors after one SGD step, {networks} networks of each kind", fontsize="medium"
    )
    return figure


_DIRECTIONS = (("-", "source to target"), ("--", "target to source"))


def _lines(axes, columns, name, widths, level, style) -> None:
    for i, width in enumerate(widths):
        scale, values = findings.over_seeds(columns, name, width, level)
        interval = mean_ci(values)
        axes.plot(scale, interval.mean, f"C{i}", linestyle=style)
        _band(axes, scale, interval, f"C{i}")


def _band(axes, step, interval, colour, label="95 % interval") -> None:
    if not np.isnan(interval.low).all():
        axes.fill_between(step, interval.low, interval.high, color=colour, alpha=0.25, linewidth=0, label=label)


def _progress(trajectory: Trajectory, summary: Mapping[str, Any]) -> tuple[np.ndarray, str]:
    """The x axis and its label: optimizer steps, or epochs where a run has many."""
    epochs = trajectory.step / summary["steps_per_epoch"]
    return (epochs, "epochs") if epochs[-1] >= EPOCHS else (trajectory.step, "optimizer steps")


def _finish(panels, x_label: str) -> None:
    panels[-1].set_xlabel(x_label)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for axes in panels:
        axes.grid(alpha=0.25)


def _random_lines(axes, random: Mapping[str, Any]) -> None:
    axes.axhline(random["mean_angle"], color="0.3", linestyle="--", label="random directions, mean")
    label = f"random directions, {random['quantile']:.0%} quantile"
    axes.axhline(random["quantile_angle"], color="0.6", linestyle=":", label=label)
    axes.set(ylabel="angle between adversarial\ndirections (degrees)", ylim=(0, 92))


def _chance_line(axes, chance: float) -> None:
    axes.axhline(chance, color="0.3", linestyle="--", label=f"chance, {chance:.2f}")
    axes.set(ylabel="test accuracy\n(share of images)", ylim=(0, 1))


def _attacked(axes, x, config, curves) -> None:
    """The success rates of FGSM."""
    for i, (name, attack) in enumerate(findings.SUCCESS.items()):
        axes.plot(x, curves[name].mean, f"C{i + 2}", marker=".", label=f"along {attack}" + " direction" * (i < 2))
        _band(axes, x, curves[name], f"C{i + 2}", None)
    epsilon = config["attack"]["epsilon"]
    axes.set(ylabel=f"errors by FGSM, epsilon {epsilon:.3g}\n(share of images got right)", ylim=(0, 1))
    axes.legend(loc="best", fontsize="small")


def _title(configs: Sequence[Mapping[str, Any]], num_examples: int) -> str:
    """What the runs have in common."""

    def same(text: Callable[[Mapping[str, Any]], str]) -> list[str]:
        texts = {text(config) for config in configs}
        return list(texts) if len(texts) == 1 else []

    def of_data(config: Mapping[str, Any]) -> str:
        data = config["data"]
        classes = f" ({' / '.join(data['classes'])})" if 0 < len(data["classes"]) <= 3 else ""
        few = f", {data['num_train']} training images" if data["num_train"] else ""
        return f"{data['name']}{classes}{', shuffled labels' * data['shuffle_labels']}{few}"

    def named(config: Mapping[str, Any]) -> str:
        sizes = {name: list(config["widths"][name]) for name in config["models"]}
        changed = lambda name: sizes[name] != list(WIDTHS[name])
        return " and ".join(name + f" of widths {sizes[name]}" * changed(name) for name in sizes)

    optimizer = lambda config: config["optimizer"]
    return "\n".join(
        (
            ": ".join(["Adversarial directions of independently trained networks", *same(named)]),
            ", ".join([*same(of_data), f"{num_examples} test images"])
            + "".join(f"; {part}" for part in same(lambda c: optimizer(c)["name"]))
            + "".join(f", {part}" for part in same(lambda c: f"learning rate {optimizer(c)['learning_rate']:g}"))
            + "".join(f", {part}" for part in same(lambda c: f"batch size {c['batch_size']}")),
        )
    )
