"""Figures, from results alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jtrans import findings, results, stats, transfer_findings
from jtrans.models import WIDTHS
from jtrans.population import Trajectory
from jtrans.stats import Interval, mean_ci, random_angle

TAUS = """tau1: how far an attack on the one network moves
the other's outputs, in shares of what the other's
own attack does; tau2: how alike it moves both,
from 0 to 1; tau1 tau2: both in one.
Transfer loss: of a new last layer, cross entropy
on the target's test images. A rank correlation
below 0: larger goes with better transfer."""
COLOURS = ("C0", "C1")
SHOWN_RANK = 10  # of the ranks, the largest up to this one is drawn
MOST_CURVES = 10  # of runs in one figure
MOST_NUMBERED = 24  # networks of a matrix whose cells have numbers
MOST_NAMED = 8  # networks that have their names along a larger one
EPOCHS = 10  # from so many on the x axis counts epochs, not steps


def early(
    config: Mapping[str, Any], trajectory: Trajectory, summary: Mapping[str, Any], curves: Mapping[str, Interval]
) -> Figure:
    """The layout of BenShmuel (2022), Figure 1: the angle above, the accuracies below, over optimizer steps.

    Where networks were attacked, the success rates stand below. Shaded bands are 95 % intervals (over pairs by a
    jackknife over networks; over networks by Student's t). A single pair has none, and none is drawn.

    Args:
      config, trajectory, summary: as `results.read` gives them.
      curves: `findings.curves` of the trajectory.
    """
    x, x_label = _progress(trajectory, summary)
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
        known = None if np.isnan(reach).all() else reach[:, seen]
        label = "sampled" + (", 95 % interval" if known is not None else "")
        axes.errorbar(table[x][seen], middle[seen], known, label=f"{label} over {summary['num_seeds']} seeds", **bars)
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


def control(config: Mapping[str, Any], table: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> Figure:
    """The lowest angle at chance: a map over learning rate and batch size, a panel for each optimizer; or, for a single
    batch size, curves over the learning rate, and over the size of the first update.

    Args:
      config: the run's config.
      table, summary: as `findings.control` and `findings.summarize_control` give them.
    """
    draw = _control_map if len(config["batch_sizes"]) > 1 else _control_curves
    figure = draw(config, table, summary)
    figure.suptitle(
        f"Lowest mean angle within {config['num_steps']} steps while the accuracy is within "
        f"{100 * findings.at_chance(summary['chance']):.2g} points of chance\n"
        f"{_networks(config)}, {config['num_networks']} networks a setting; "
        f"{_data(config)}, {config['num_examples']} test images",
        fontsize="medium",
    )
    return figure


def _control_map(config, table, summary) -> Figure:
    optimizers, rates, batches = (list(config[name]) for name in ("optimizers", "learning_rates", "batch_sizes"))
    columns = min(len(optimizers), 2)
    rows = -(-len(optimizers) // columns)
    size = (1.6 + columns * (1.2 + 0.62 * len(rates)), 1.6 + rows * (1.0 + 0.52 * len(batches)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, optimizer in zip(panels.flat, optimizers, strict=False):
        of = table["optimizer"] == optimizer
        value = lambda name, of=of: np.reshape(table[name][of], (len(batches), len(rates)))
        mean, reach = value("angle_mean"), value("angle_high") - value("angle_mean")
        image = axes.imshow(mean, vmin=0, vmax=90, cmap="viridis", aspect="auto", origin="lower")
        for (row, column), angle in np.ndenumerate(mean):
            text = f"{angle:.0f}" + (f"\n±{reach[row, column]:.0f}" if np.isfinite(reach[row, column]) else "")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="k" if angle > 50 else "w")
        axes.set_xticks(range(len(rates)), [f"{rate:.0e}".replace("e-0", "e-").replace("e+0", "e") for rate in rates])
        axes.set_yticks(range(len(batches)), batches)
        axes.set(title=optimizer, xlabel="learning rate", ylabel="batch size")
    for axes in list(panels.flat)[len(optimizers) :]:
        axes.axis("off")
    label = f"mean angle (degrees), ± 95 % interval\nrandom directions: {summary['random']['mean_angle']:.1f}"
    figure.colorbar(image, ax=panels, label=label)
    return figure


def _control_curves(config, table, summary) -> Figure:
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, optimizer in enumerate(config["optimizers"]):
        of = table["optimizer"] == optimizer
        mean, low, high = (table[f"angle_{bound}"][of] for bound in ("mean", "low", "high"))
        for axes, x in ((left, "learning_rate"), (right, "first_update")):
            axes.plot(table[x][of], mean, f"C{i}", marker=".", label=optimizer if axes is left else None)
            _band(axes, table[x][of], Interval(mean, low, high), f"C{i}", None)
    left.fill_between([], [], [], color="0.5", alpha=0.25, linewidth=0, label="95 % intervals")
    left.set(xlabel="learning rate", ylabel="lowest mean angle at chance (degrees)", ylim=(0, 92))
    right.set(xlabel="first update over initial weights (ratio of Euclidean lengths)")
    for axes in (left, right):
        label = "random directions, mean" if axes is left else None
        axes.axhline(summary["random"]["mean_angle"], color="0.3", linestyle="--", label=label)
        axes.set_xscale("log")
        axes.grid(alpha=0.25)
    figure.legend(*left.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=6)
    return figure


def decompose(config: Mapping[str, Any], table: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> Figure:
    """Directions without small subspaces, over optimizer steps: the angle, how many directions are enough, attacks.

    Args:
      config: the run's config.
      table, summary: as `findings.decomposition` and `findings.summarize_decomposition` give them.
    """
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    panels = angle, enough, attack = figure.subplots(1, 3)
    steps = np.unique(table["step"])
    shown = max(rank for rank in config["ranks"] if rank <= SHOWN_RANK or rank == config["ranks"][0])
    names = [name for name in dict.fromkeys(table["subspace"].tolist()) if name != findings.NOTHING]

    def curve(axes, name, rank, value, colour, style="-", label=None):
        rows = (table["subspace"] == name) & (table["rank"] == rank)
        x = np.searchsorted(steps, table["step"][rows])
        interval = Interval(*(table[f"{value}_{bound}"][rows] for bound in Interval._fields))
        axes.plot(x, interval.mean, color=colour, linestyle=style, marker=".", label=label)
        _band(axes, x, interval, colour, None)

    colours = {name: f"C{i}" for i, name in enumerate(names)}
    curve(angle, findings.NOTHING, 0, "angle", "k", label="whole directions")
    curve(attack, findings.NOTHING, 0, "off", "k", label="whole directions")
    for name, colour in colours.items():
        rank = 1 if name == "the mean image" else shown
        curve(angle, name, rank, "angle", colour, label=f"off {name}" + f", {rank} of them" * (rank > 1))
        curve(attack, name, rank, "off", colour)
        curve(attack, name, rank, "inside", colour, ":")
    angle.axhline(summary["random"]["mean_angle"], color="0.3", linestyle="--", label="random directions, mean")
    angle.fill_between([], [], [], color="0.5", alpha=0.25, linewidth=0, label="95 % intervals")
    angle.set(ylabel="angle between adversarial directions (degrees)", ylim=(0, 92))
    angle.set_title("what is left of the directions", fontsize="medium")
    figure.legend(*angle.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=4)

    grid = [0, *config["ranks"]]
    place = lambda rank: len(grid) if rank is None else grid.index(rank)
    for i, (name, colour) in enumerate(colours.items()):
        if name in ("random directions", "the mean image"):
            continue
        of = [row for row in summary["enough"] if row["subspace"] == name]
        x = np.searchsorted(steps, [row["step"] for row in of]) + 0.08 * (i - len(names) / 2)
        middle, low, high = (np.array([place(row[key]) for row in of]) for key in ("mean", "low", "high"))
        enough.errorbar(x, middle, [middle - low, high - middle], color=colour, marker="o", capsize=3, label=name)
    enough.set_yticks(range(len(grid) + 1), [*grid, f"over {grid[-1]}"])
    enough.set(ylabel=f"directions to take out for a mean angle\nwithin {summary['near']:.0f} degrees of random ones")
    enough.set_title("how many directions are enough (bars: 95 % interval)", fontsize="medium")
    enough.legend(fontsize="x-small", loc="best")

    attack.plot([], [], color="0.4", label="along what is left")
    attack.plot([], [], color="0.4", linestyle=":", label="along what was taken out")
    epsilon = config["attack"]["epsilon"]
    attack.set(ylabel="errors by another network's direction\n(share of images got right)", ylim=(0, 1))
    attack.set_title(f"attacks of L2 length {epsilon:g} (pixels in [0, 1])", fontsize="medium")
    attack.legend(fontsize="x-small", loc="upper left")
    for axes in panels:
        axes.set_xticks(range(len(steps)), [f"{step:.0f}" for step in steps])
        axes.set_xlabel("optimizer steps")
        axes.grid(alpha=0.25)
    optimizer = config["optimizer"]
    figure.suptitle(
        f"Adversarial directions without a small subspace: {_networks(config)}, {config['num_networks']} networks, "
        f"subspaces from {config['num_fit']} others\n{_data(config)}; {optimizer['name']}, "
        f"learning rate {optimizer['learning_rate']:g}, batch size {config['batch_size']}",
        fontsize="medium",
    )
    return figure


def penalty(config: Mapping[str, Any], table: Mapping[str, np.ndarray]) -> Figure:
    """What the penalty's coefficient does to each measure, with 95 % intervals; of `transfer_findings.penalty`."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    x = np.arange(len(table["coefficient"]))
    for i, (axes, (name, label)) in enumerate(zip(panels.flat, transfer_findings.PENALTY.items(), strict=True)):
        interval = Interval(*(table[f"{name}_{bound}"] for bound in Interval._fields))
        axes.plot(x, interval.mean, f"C{i}", marker=".", label=f"mean of {config['num_networks']} networks")
        _band(axes, x, interval, f"C{i}")
        axes.set_ylabel(label.replace(" (", "\n("))
        axes.set_ylim(0, 92 if name == "angle" else 1.03)
        axes.grid(alpha=0.25)
        axes.legend(fontsize="x-small", loc="best")
    for axes in panels[1]:
        axes.set_xticks(x, [f"{c:g}" for c in table["coefficient"]])
        axes.set_xlabel("coefficient of the penalty (nats)")
    figure.suptitle(
        f"Input gradients kept away from a frozen surrogate's ({config['surrogate']}): {_networks(config)}\n"
        f"{_data(config)}, {config['num_examples']} test images, {config['num_steps']} steps; FGSM of epsilon "
        f"{config['attack']['epsilon']:.3g} (pixels in [0, 1])",
        fontsize="medium",
    )
    return figure


def matrix(config: Mapping[str, Any], table: Mapping[str, np.ndarray], note: str = "") -> Figure:
    """The success of every attack from each network on each, as `transfer_findings.matrix` gives it.

    Each cell has its number and each network its name; more than `MOST_NUMBERED` networks are a heat map without
    numbers, of one size, with a name every so many networks.

    Args:
      config: the run's, with the attacked images' data set in `data`.
      note: what else the title should say of the networks.
    """
    attacks, names = (list(dict.fromkeys(table[column].tolist())) for column in ("attack", "source"))
    count = len(names)
    numbered = count <= MOST_NUMBERED
    side = 0.55 * (count if numbered else MOST_NAMED)  # inches
    ticks = range(0, count, 1 if numbered else -(-count // MOST_NAMED))
    figure = Figure(figsize=(2.2 + len(attacks) * (1 + side), 3.2 + side), layout="compressed")
    panels = figure.subplots(1, len(attacks), squeeze=False, sharey=True)[0]
    for axes, attack in zip(panels, attacks, strict=True):
        of = table["attack"] == attack
        value = lambda name, of=of: 100 * np.reshape(table[f"target_right{name}"][of], (count, count))
        rate, reach = value(""), (value("_high") - value("_low")) / 2
        image = axes.imshow(rate, vmin=0, vmax=100, cmap="viridis")
        for (row, column), share in np.ndenumerate(rate) if numbered else ():
            interval = f"\n±{reach[row, column]:.0f}" if np.isfinite(reach[row, column]) else ""
            text = "-" if np.isnan(share) else f"{share:.0f}{interval}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="w" if share <= 55 else "k")
        axes.set_xticks(ticks, names[:: ticks.step], rotation=60, ha="right", fontsize="small")
        axes.set_yticks(ticks, names[:: ticks.step], fontsize="small")
        axes.set(title=attack, xlabel="attacked network (target)")
    panels[0].set_ylabel("network that the attack is made on (source)")
    figure.colorbar(image, ax=panels, label="errors (% of the images\nthat the target gets right)")
    virtual = "; virtual: of the same length in L2" if "virtual" in attacks else ""
    over = f"{config['num_networks']} seeds" if config.get("num_networks", 1) > 1 else "images"
    signs = f"±: 95 % interval over {over}" if numbered else "white: the target gets no image right"
    figure.suptitle(
        f"Attacks of epsilon {config['attack']['epsilon']:.3g} (pixels in [0, 1]{virtual}){note}\n"
        f"{_data(config)}, {table['all_images_count'][0]:.0f} test images; {signs}",
        fontsize="medium",
    )
    return figure


def knowledge(config: Mapping[str, Any], table: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> Figure:
    """Every measure against the transfer loss, a point for each source, with 95 % intervals over seeds.

    Args:
      config: the run's config.
      table, summary: as the run leaves them; `transfer_findings.summarize_knowledge`.
    """
    of_attacks = (
        "pgd_liang_tau1_S_T",
        "pgd_liang_tau2_S_T",
        "pgd_liang_tau1tau2_S_T",
        "virtual_tau1_S_T",
        "virtual_tau2_S_T",
    )
    shown = (*of_attacks, "pgd_liang_success", "logme", "leep", "h_score", "cka", "parameters")
    figure = Figure(figsize=(14, 10), layout="constrained")
    *panels, key = figure.subplots(3, 4).flat
    loss = mean_ci(transfer_findings.by_source(table, "transfer_loss"), axis=1)
    correlations = {row["measure"]: row for row in summary["correlations"]}
    names = list(dict.fromkeys(table["source"].tolist()))
    reach = lambda i: None if np.isnan(i.low).all() else np.stack([i.mean - i.low, i.high - i.mean])
    for axes, name in zip(panels, shown, strict=True):
        values = mean_ci(transfer_findings.by_source(table, name), axis=1)
        across, up = reach(values), reach(loss)
        for i in range(len(names)):
            bars = {"xerr": None if across is None else across[:, [i]], "yerr": None if up is None else up[:, [i]]}
            axes.errorbar(values.mean[i], loss.mean[i], **bars, fmt="o", color=f"C{i}", capsize=3)
        row, rank = correlations[name], correlations[name]["spearman"]
        title = row["undefined"] or f"rank correlation {stats.interval_text(rank, 2)}, p {rank['p_value']:.2f}"
        axes.set_title(f"{title}\n{transfer_findings.describe_missing(row)}".rstrip(), fontsize="small")
        axes.set(xlabel=transfer_findings.KNOWLEDGE[name], ylabel="transfer loss (nats)")
        axes.grid(alpha=0.25)
        if name == "parameters":
            axes.set_xscale("log")
    key.axis("off")
    handles = [Line2D([], [], color=f"C{i}", marker="o", linestyle="", label=name) for i, name in enumerate(names)]
    if summary["num_seeds"] > 1:
        handles.append(Line2D([], [], color="0.3", label=f"95 % interval, {summary['num_seeds']} seeds"))
    key.legend(handles=handles, loc="upper center", title="sources")
    key.text(0.5, 0, TAUS, ha="center", va="bottom", fontsize="small", transform=key.transAxes)
    source, target = ({**config, "data": config[section]} for section in ("source", "target"))
    figure.suptitle(
        f"Adversarial and knowledge transferability: from {_data(source)} to {_data(target)}; reference "
        f"{config['reference']}; PGD of epsilon {config['attack']['epsilon']:g} (pixels in [0, 1])",
        fontsize="medium",
    )
    return figure


_DIRECTIONS = (("-", "source to target"), ("--", "target to source"))


def _lines(axes, columns, name, widths, level, style) -> None:
    for i, width in enumerate(widths):
        scale, values = transfer_findings.over_seeds(columns, name, width, level)
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

    def same(text: Callable[[Mapping[str, Any]], str], before: str = ", ") -> str:
        texts = {text(config) for config in configs}
        return before + texts.pop() if len(texts) == 1 else ""

    return (
        f"Adversarial directions of independently trained networks{same(_networks, ': ')}\n"
        f"{same(_data, '')}{', ' * bool(same(_data))}{num_examples} test images"
        + same(lambda c: c["optimizer"]["name"], "; ")
        + same(lambda c: f"learning rate {c['optimizer']['learning_rate']:g}")
        + same(lambda c: f"batch size {c['batch_size']}")
    )


def _networks(config: Mapping[str, Any]) -> str:
    """The architectures, with their widths where those are not the usual ones."""

    def named(name: str) -> str:
        widths = list(config["widths"][name])
        if widths == list(WIDTHS[name]):
            return name
        return f"{name} of widths " + (
            f"{widths[0]} to {widths[-1]}" if len(widths) > 4 else ", ".join(map(str, widths))
        )

    return " and ".join(map(named, config["models"]))


def _data(config: Mapping[str, Any]) -> str:
    data = config["data"]
    classes = f" ({' / '.join(data['classes'])})" if 0 < len(data["classes"]) <= 3 else ""
    changes = ", shuffled labels" * data["shuffle_labels"] + ", mean image subtracted" * data["subtract_mean"]
    return f"{data['name']}{classes}{changes}" + (f", {data['num_train']} training images" if data["num_train"] else "")
