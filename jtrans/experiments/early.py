"""Early transferability: the angle between adversarial directions, and the accuracy, after every optimizer step.

Many networks train side by side, and every pair of them is measured on held-out images (BenShmuel 2022).
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import stats
from jtrans.errors import InputError
from jtrans.harness import fields, figures, folder, setup, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, whole, yes_no
from jtrans.population import engine, follow, trajectory
from jtrans.population.engine import Population
from jtrans.population.follow import Plan
from jtrans.population.trajectory import FALL, SUCCESS, at_chance

NAME = "early"
COLOURS = ("C0", "C1")
MOST_CURVES = 10  # of runs in one figure
EPOCHS = 10  # from so many on the x axis counts epochs, not steps

FIELDS: Mapping[str, Field] = {
    **fields.NETWORKS,
    **fields.TRAINING,
    "num_steps": whole(50),
    "measure_every": whole(1),
    # FGSM from one network on the next, the largest change of a pixel in [0, 1]; 0: no attack.
    "attack.epsilon": fields.epsilon(0.0),
    "keep_examples": yes_no(False),  # the angle of each image, in trajectory.npz
    "save_networks": yes_no(False),  # the trained networks, as an Orbax checkpoint
    **fields.CHECKPOINT,
    "tensorboard": yes_no(False),  # the means as TensorBoard events too
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise InputError("tensorboard: got True; it takes pip install jtrans[tensorboard]")
    fields.check_networks(config)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Train and measure the population, from where an earlier run stopped."""
    keys = engine.keys(config.seed)
    dataset, test = setup.load(config, keys.data, config.batch_size)
    options = {"epsilon": config.attack.epsilon, "keep_examples": config.keep_examples}
    population = setup.population(config, dataset, test, keys, **options)
    announce(config, population)
    identity = setup.identity(dataset)
    begin = partial(folder.write_config, workdir, NAME, config)
    checkpoint = config.checkpoint.seconds, config.checkpoint.steps
    plan = Plan(config.num_steps, config.measure_every, *checkpoint, identity["data_sha256"], begin, config.tensorboard)
    run, networks = follow.run(population, plan, workdir)
    if config.save_networks:
        folder.write_networks(workdir, [network.variables for network in networks])
    curves = trajectory.curves(run)
    summary = {
        **trajectory.summarize(run, curves, test.images[0].size, len(dataset.class_names)),
        "steps_per_epoch": population.steps_per_epoch,
        "batch_overlap": engine.batch_overlap(population),
        **identity,
    }
    return Results(config, summary, {"trajectory": tables.of_trajectory(run, curves)}, {"trajectory": run})


def announce(config: ConfigDict, population: Population) -> None:
    """Log how many networks are on the devices at once, and how many pairs are compared, where these are not all."""
    for name, placement in zip(config.models, population.placements, strict=True):
        if placement.num_groups > 1 or len(placement.devices) > 1:
            on = f"each of {len(placement.devices)} {placement.devices[0].platform} devices"
            print(f"{name}: {config.num_networks} networks, {placement.size} at once on {on}")
    count = config.num_networks
    every = count**2 if len(config.models) > 1 else math.comb(count, 2)
    if len(population.pair) < every:
        print(f"{len(population.pair)} of {every} pairs, drawn at random, are compared")


def tell(results: Results) -> str:
    """The findings as a table and a sentence."""
    summary = results.summary
    random, chance = summary["random"], summary["chance"]
    moments = {
        "before training": summary["before_training"],
        f"first below {random['quantile_angle']:.1f} deg *": summary["first_below_random"],
        "lowest while at chance": summary["lowest_at_chance"],
        "lowest": summary["lowest"],
    }
    cell = lambda moment, name, digits: stats.interval_text(moment[name], digits) if moment else ""
    table = {
        "": list(moments),
        "step": [moment["step"] if moment else "never" for moment in moments.values()],
        "angle, degrees [95 %]": [cell(moment, "angle", 2) for moment in moments.values()],
        "accuracy [95 %]": [cell(moment, "accuracy", 3) for moment in moments.values()],
    }
    below = f"* {random['quantile']:.0%} of random pairs have an angle below this"
    lines = [tables.text(table), f"{below}; the mean of random pairs is {random['mean_angle']:.2f}"]
    lines += [*left_out(summary), *attacks(summary["lowest_at_chance"]), verdict(summary, chance)]
    return "\n".join(lines)


def left_out(summary: Mapping[str, Any]) -> list[str]:
    """A line for the directions, and one for the networks, that are in no mean."""
    lines = []
    if summary["undirected"]:
        counted = f"{summary['undirected']} of {summary['directions']}"
        lines.append(f"{counted} input gradients were zero or not finite and are left out")
    if summary["non_finite"]:
        lost = ", ".join(f"{lost['network']} (from step {lost['step']} on)" for lost in summary["non_finite"])
        lines.append(f"networks whose loss is not finite: {lost}")
    return lines


def attacks(moment: Mapping[str, Any]) -> list[str]:
    """Two lines on how often FGSM succeeds, where networks were attacked."""
    if "success_transferred" not in moment:
        return []
    rates = ", ".join(f"{attack} {stats.interval_text(moment[name], 2)}" for name, attack in SUCCESS.items())
    return [
        f"share of the rightly classified images that FGSM changes at step {moment['step']}, by whose",
        f"direction: {rates}",
    ]


def verdict(summary: Mapping[str, Any], chance: float) -> str:
    """Whether there is early transferability, in a sentence."""
    while_at_chance = f"while the accuracy was still at chance ({chance:.3f} +- {at_chance(chance):.3f})."
    if summary["early_transferability"] is None:
        return f"No network had a direction {while_at_chance}"
    lowest, mean = summary["lowest_at_chance"], summary["random"]["mean_angle"]
    drop = f"{mean - lowest['angle']['mean']:.1f} degrees below that of random directions"
    if summary["early_transferability"]:
        return f"Early transferability: at step {lowest['step']} the angle was {drop}\n{while_at_chance}"
    return f"No early transferability (a fall of {FALL:.0f} degrees): the angle was at most {drop}\n{while_at_chance}"


def draw(results: Results) -> dict[str, Figure]:
    """The layout of BenShmuel (2022), Figure 1: the angle above, the accuracies below, over optimizer steps.

    Where networks were attacked, the success rates stand below. Shaded bands are 95 % intervals (over pairs by a
    jackknife over networks; over networks by Student's t). A single pair has none, and none is drawn.
    """
    run, config, table = results.arrays["trajectory"], results.config, results.tables["trajectory"]
    x, x_label = progress(results)
    attacked = "success" in run
    figure = Figure(figsize=(7.5, 8.4 if attacked else 6.4), layout="constrained")
    above, below, *rest = figure.subplots(2 + attacked, 1, sharex=True, height_ratios=(3, 2, 2)[: 2 + attacked])

    pairs = len(run["pair"])
    angle = tables.interval(table, "angle")
    above.plot(x, angle.mean, "C0", marker=".", label=f"mean of {pairs} pair{'s' * (pairs > 1)}")
    figures.band(above, x, angle, "C0")
    figures.random_lines(above, results.summary["random"])
    above.set_title(title([config], int(run["num_examples"])), fontsize="medium")
    above.legend(loc="best", fontsize="small")

    for group, name in enumerate(config["models"]):
        rows, colour = run["accuracy"][run["model"] == group], COLOURS[group]
        below.plot(x, rows.T, color=colour, alpha=0.25, linewidth=0.6)
        accuracy = stats.mean_ci(rows)
        below.plot(x, accuracy.mean, colour, marker=".", label=f"{name}, mean of {len(rows)} (thin: each)")
        figures.band(below, x, accuracy, colour, figures.INTERVAL if group == 0 else None)
    figures.chance_line(below, results.summary["chance"])
    below.legend(loc="best", fontsize="small")
    for axes in rest:
        _draw_attacks(axes, x, results)
    figures.finish_steps((above, below, *rest), x_label)
    return {"figure": figure}


def _draw_attacks(axes: Axes, x: np.ndarray, results: Results) -> None:
    """The success rates of FGSM."""
    for i, (name, attack) in enumerate(SUCCESS.items()):
        rate = tables.interval(results.tables["trajectory"], name)
        figures.curve(axes, x, rate, f"C{i + 2}", f"along {attack}" + " direction" * (i < 2))
    epsilon = results.config["attack"]["epsilon"]
    axes.set(ylabel=f"errors by FGSM, epsilon {epsilon:.3g}\n(share of images got right)", ylim=(0, 1))
    axes.legend(loc="best", fontsize="small")


def overlay(runs: Mapping[str, Results]) -> Figure:
    """Several runs in one figure, by label: the angle of each above, the accuracies below, with 95 % intervals.

    Of more than `MOST_CURVES` runs the first are drawn.
    """
    runs = dict(list(runs.items())[:MOST_CURVES])
    figure = Figure(figsize=(7.5, 6.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for i, (label, results) in enumerate(runs.items()):
        (x, x_label), table = progress(results), results.tables["trajectory"]
        pairs = len(results.arrays["trajectory"]["pair"])
        named = f"{label} ({pairs} pair{'s' * (pairs > 1)})"
        figures.curve(above, x, tables.interval(table, "angle"), f"C{i}", named)
        figures.curve(below, x, tables.interval(table, "accuracy"), f"C{i}")
    figures.random_lines(above, results.summary["random"])
    figures.chance_line(below, results.summary["chance"])
    figures.band_entry(above)
    num_examples = int(results.arrays["trajectory"]["num_examples"])
    above.set_title(title([run.config for run in runs.values()], num_examples), fontsize="medium")
    for axes in (above, below):
        axes.legend(loc="best", fontsize="small")
    figures.finish_steps((above, below), x_label)
    return figure


def progress(results: Results) -> tuple[np.ndarray, str]:
    """The x axis and its label: optimizer steps, or epochs where a run has many."""
    steps = results.arrays["trajectory"]["step"]
    epochs = steps / results.summary["steps_per_epoch"]
    return (epochs, "epochs") if epochs[-1] >= EPOCHS else (steps, "optimizer steps")


def title(configs: Sequence[Mapping[str, Any]], num_examples: int) -> str:
    """What the runs have in common."""

    def same(texts: list[str], before: str = ", ") -> str:
        return before + texts[0] if len(set(texts)) == 1 else ""

    data = same([figures.data(config["data"]) for config in configs], "")
    return (
        "Adversarial directions of independently trained networks"
        + same([figures.networks(config) for config in configs], ": ")
        + f"\n{data}{', ' * bool(data)}{num_examples} test images"
        + same([config["optimizer"]["name"] for config in configs], "; ")
        + same([f"learning rate {config['optimizer']['learning_rate']:g}" for config in configs])
        + same([f"batch size {config['batch_size']}" for config in configs])
    )


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, resumable="num_steps")
