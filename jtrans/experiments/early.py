"""Early transferability: the angle between adversarial directions, and the accuracy, after every optimizer step.

Many networks train side by side, and every pair of them is measured on held-out images (BenShmuel 2022).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from ml_collections import ConfigDict

from jtrans import models, stats
from jtrans.data import Dataset, Split
from jtrans.harness import fields, figures, folder, setup, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, whole, yes_no
from jtrans.population import engine, follow, observe, tracker, trajectory
from jtrans.population.devices import Group
from jtrans.population.engine import Population
from jtrans.population.trajectory import FALL, SUCCESS, at_chance
from jtrans.stats import Interval

NAME = "early"
# The fields that change no shape and no program: settings that differ in these alone can run side by side.
VALUES = {"seed", "optimizer.learning_rate", "attack.epsilon", "data.shuffle_labels"}
MOST_CURVES = 10  # of runs in one figure
MOST_THIN = 200  # single pairs that are drawn
EPOCHS = 10  # from so many on, the x axis counts epochs, not steps

CAPTIONS = {
    "angle": "folded angle",
    "signed_angle": "signed angle",
    "agreement": "of images, cosine above 0",
    "one_sign": "of pairs, one sign at all images",
    "constant_share": "of a direction, the same everywhere",
    "accuracy": "accuracy",
    "auc": "AUC",
}
FIELDS: Mapping[str, Field] = {
    **fields.NETWORKS,
    **fields.TRAINING,
    "num_steps": whole(50, "optimizer steps"),
    "measure_every": whole(1, "measure before training and after each so many steps"),
    "attack.epsilon": fields.epsilon(0.0, "FGSM from each network on the next at each measurement, 0: none"),
    "keep_examples": yes_no(False, "keep the angle of each image, in trajectory.npz"),
    "save_networks": yes_no(False, "keep the trained networks, as an Orbax checkpoint"),
    **fields.CHECKPOINT,
    "tracker": fields.none_or_one_of(tracker.LIBRARIES, "what shows the means while a run goes on"),
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    tracker.check(config.tracker)
    fields.check_networks(config)
    fields.check_epsilon(config.attack.epsilon, not set(config.models) & set(models.TEXT))


class Setting(NamedTuple):
    """A run before its training: its config, its data set, what tells that from others (`setup.identity`), the examples
    measured, its population and plan.
    """

    config: ConfigDict
    dataset: Dataset
    identity: Mapping[str, Any]
    test: Split
    population: Population
    plan: follow.Plan


def load(config: ConfigDict) -> tuple[Dataset, Split]:
    """The data set and the examples measured; InputError if the data do not have them."""
    return setup.load(config, engine.keys(config.seed).data, config.batch_size)


def prepare(config: ConfigDict, workdir: Path) -> Setting:
    """Load the data and place the networks."""
    keys = engine.keys(config.seed)
    dataset, test = load(config)
    options = {"epsilon": config.attack.epsilon, "keep_examples": config.keep_examples}
    population = setup.population(config, dataset, test, keys, **options)
    announce(config, population)
    settings = config.num_steps, config.measure_every, config.checkpoint.seconds, config.checkpoint.steps
    identity, begin = setup.identity(dataset), partial(folder.write_config, workdir, NAME, config)
    track = partial(tracker.opened, config.tracker, workdir, config.to_dict()) if config.tracker else tracker.nothing
    plan = follow.Plan(workdir, *settings, identity["data_sha256"], begin, track)
    return Setting(config, dataset, identity, test, population, plan)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Train and measure the population, from where an earlier run stopped."""
    (results,) = side_by_side([prepare(config, workdir)])
    return results


def side_by_side(settings: Sequence[Setting]) -> list[Results]:
    """`measure` of settings that differ in `VALUES` alone, in the same programs."""
    found = follow.side_by_side([each.population for each in settings], [each.plan for each in settings])
    return [_results(setting, *of_setting) for setting, of_setting in zip(settings, found, strict=True)]


def _results(setting: Setting, run: trajectory.Trajectory, networks: Sequence[Sequence[Group]]) -> Results:
    config, dataset, identity, test, population, plan = setting
    if config.save_networks:
        variables = [[group.variables for group in groups] for groups in networks]
        folder.write_networks(plan.workdir, engine.merge(population, variables))
    curves, num_classes = trajectory.curves(run), len(dataset.class_names)
    summary = trajectory.summarize(run, curves, setup.dimensions(dataset, test, config.models), num_classes)
    summary |= {"steps_per_epoch": population.steps_per_epoch, "batch_overlap": engine.batch_overlap(population)}
    summary |= identity
    return Results(config, summary, {"trajectory": tables.of_trajectory(run, curves)}, {"trajectory": run})


def announce(config: ConfigDict, population: engine.Population) -> None:
    """Say how many networks are on the devices at once, and how many pairs are compared, where these are not all."""
    for name, placement in zip(config.models, population.placements, strict=True):
        if placement.num_groups > 1 or len(placement.devices) > 1:
            on = f"each of {len(placement.devices)} {placement.devices[0].platform} devices"
            print(f"{name}: {config.num_networks} networks, {placement.size} at once on {on}")
    if population.is_sampled:
        every = observe.num_pairs(len(config.models), config.num_networks)
        kept = f"more than {observe.MOST_PAIRS}, so the values of {len(population.pair)}, drawn at random, are kept"
        print(f"{every} pairs are compared, {kept}")


def tell(results: Results) -> str:
    """The findings as a table, what is left out of the means, and a sentence."""
    summary, random, kind = results.summary, results.summary["random"], figures.kind(results.summary)
    moments = {
        "before training": summary["before_training"],
        f"first below {random['quantile_angle']:.1f} deg *": summary["first_below_random"],
        "lowest while at chance": summary["lowest_at_chance"],
        "lowest": summary["lowest"],
    }
    measured = {name: 1 if "angle" in name else 3 for name in CAPTIONS if name in summary["lowest"]}  # and digits
    cells = lambda m: [m["step"], *(stats.interval_text(m[name], digits) for name, digits in measured.items())]
    columns = {said: cells(moment) if moment else ["never", *[""] * len(measured)] for said, moment in moments.items()}
    named = [figures.of_kind(CAPTIONS[name], kind) + ", degrees" * (digits == 1) for name, digits in measured.items()]
    below = f"* {random['quantile']:.0%} of random pairs have an angle below this"
    lines = [tables.text({"mean [95 %]": ["step", *named], **columns})]
    lines += [f"{below}; the mean of random pairs is {random['mean_angle']:.2f}"]
    if "selected" in summary:
        steps = " and ".join(map(str, summary["selected"]["steps"]))
        angle = stats.interval_text(summary["selected"], 1)
        lines.append(
            f"lowest while at chance, each half of the networks choosing for the other: {angle}, steps {steps}"
        )
    if summary["undirected"]:
        counted = f"{summary['undirected']} of {summary['directions']}"
        lines.append(f"{counted} input gradients were zero or not finite and are left out")
    if summary["non_finite"]:
        lost = ", ".join(f"{lost['network']} (from step {lost['step']} on)" for lost in summary["non_finite"])
        lines.append(f"networks whose loss is not finite: {lost}")
    moment = summary["lowest_at_chance"]
    if all(name in moment for name in SUCCESS):
        lines.append(f"share of the rightly classified {kind} that FGSM changes at step {moment['step']}, by whose")
        rates = (f"{attack} {stats.interval_text(moment[name], 2)}" for name, attack in SUCCESS.items())
        lines.append(figures.of_kind(f"direction: {', '.join(rates)}", kind))
    return "\n".join([*lines, verdict(summary)])


def verdict(summary: Mapping[str, Any]) -> str:
    """Whether there is early transferability, in a sentence."""
    chance, lowest = summary["chance"], summary["lowest_at_chance"]
    while_at_chance = f"while the accuracy was still at chance ({chance:.3f} +- {at_chance(chance):.3f})."
    if summary["early_transferability"] is None:
        return f"No network had a direction {while_at_chance}"
    drop = f"{summary['random']['mean_angle'] - lowest['angle']['mean']:.1f} degrees below that of random directions"
    if summary["early_transferability"]:
        return f"Early transferability: at step {lowest['step']} the angle was {drop}\n{while_at_chance}"
    return f"No early transferability (a fall of {FALL:.0f} degrees): the angle was at most {drop}\n{while_at_chance}"


def draw(results: Results) -> dict[str, Figure]:
    """The layout of BenShmuel (2022), Figure 1, with what folding hides: angles above, shares, accuracies and AUC.

    Below them stand the success rates, where networks were attacked. Bands are 95 % intervals (over pairs by a
    jackknife over networks; over networks by Student's t); a single pair has none.
    """
    (x, x_label), attacked = progress(results), "success" in results.arrays["trajectory"]
    ratios = (3, 2, 2, 2)[: 3 + attacked]
    figure = Figure(figsize=(7.5, 1.1 + sum(ratios)), layout="constrained")
    angles, shares, accuracies, *rest = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    angles.set_title(title([results]), fontsize="medium")
    _draw_angles(angles, x, results)
    for name, colour in {"constant_share": "C1", "agreement": "C2"}.items():
        caption = figures.of_kind(CAPTIONS[name], figures.kind(results.summary))
        figures.curve(shares, x, tables.interval(results.tables["trajectory"], name), colour, caption)
    figures.band_entry(shares)
    shares.set(ylabel="share", ylim=(0, 1.02))
    _draw_accuracies(accuracies, x, results)
    for axes in rest:
        _draw_attacks(axes, x, results)
    return {"figure": _finished(figure, x_label)}


def _draw_angles(axes: Axes, x: np.ndarray, results: Results) -> None:
    """The mean angles, folded and signed, over the signed angles of single pairs."""
    table, signed = results.tables["trajectory"], results.arrays["trajectory"]["signed_angle"]
    shown = observe.sample(signed, MOST_THIN)
    axes.plot(x, shown.T, color="C3", alpha=0.15, linewidth=0.5)
    of, thin = pairs(results), f" (thin: {'all' if len(shown) == len(signed) else len(shown)})"
    angle, signed_angle = (tables.interval(table, name) for name in ("angle", "signed_angle"))
    figures.curve(axes, x, signed_angle, "C3", f"signed angle, mean of {of}{thin}")
    figures.curve(axes, x, angle, "C0", f"folded angle, mean of {of}")
    figures.band(axes, x, angle, "C0")
    figures.random_lines(axes, results.summary["random"])
    axes.set(ylim=(0, 180), yticks=range(0, 181, 45))


def _draw_accuracies(axes: Axes, x: np.ndarray, results: Results) -> None:
    """The accuracies and areas under the ROC curve of each architecture, over the accuracies of single networks."""
    run = results.arrays["trajectory"]
    for group, name in enumerate(results.config["models"]):
        (accuracy, auc), colour = (run[of][run["model"] == group] for of in ("accuracy", "auc")), f"C{group}"
        axes.plot(x, accuracy.T, color=colour, alpha=0.25, linewidth=0.6)
        figures.curve(axes, x, stats.share_ci(accuracy), colour, f"{name}, accuracy, mean of {len(auc)} (thin: each)")
        figures.curve(axes, x, stats.share_ci(auc), colour, f"{name}, {CAPTIONS['auc']}", linestyle="--")
    figures.band_entry(axes)
    figures.chance_line(axes, results.summary["chance"])
    axes.set_ylabel(f"test accuracy (share of\n{figures.kind(results.summary)}), AUC")


def _draw_attacks(axes: Axes, x: np.ndarray, results: Results) -> None:
    """Success rates by FGSM along three directions."""
    for i, (name, attack) in enumerate(SUCCESS.items()):
        whose = figures.of_kind(f"along {attack}" + " direction" * (i < 2), figures.kind(results.summary))
        figures.curve(axes, x, tables.interval(results.tables["trajectory"], name), f"C{i + 2}", whose)
    figures.band_entry(axes)
    epsilon = results.config["attack"]["epsilon"]
    axes.set(
        ylabel=f"errors by FGSM, epsilon {epsilon:.3g}\n(share of {figures.kind(results.summary)} got right)",
        ylim=(0, 1),
    )


def combine(runs: Mapping[str, Results]) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """The curves of the first `MOST_CURVES` runs, by label, and what they have in common: what `overlay` draws."""
    runs = dict(list(runs.items())[:MOST_CURVES])
    columns = ["step", *(f"{name}{bound}" for name in ("angle", "accuracy") for bound in ("", "_low", "_high"))]
    frames = []
    for label, results in runs.items():
        table = results.tables["trajectory"]
        epoch = table["step"] / results.summary["steps_per_epoch"]
        frames.append(table[columns].assign(run=f"{label} ({pairs(results)})", epoch=epoch))
    common: dict[str, Any] = {"title": title(list(runs.values()))}
    for name in ("random", "chance"):  # None where they differ: no line is true of all curves
        first, *others = (results.summary[name] for results in runs.values())
        common[name] = first if all(other == first for other in others) else None
    return pandas.concat(frames, ignore_index=True), common


def overlay(curves: pandas.DataFrame, common: Mapping[str, Any]) -> Figure:
    """Several runs in one figure, as `combine` gives them: the angles above, the accuracies below, 95 % intervals."""
    figure = Figure(figsize=(7.5, 6.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    is_long = curves.groupby("run")["epoch"].max().min() >= EPOCHS
    x, x_label = ("epoch", "epochs") if is_long else ("step", "optimizer steps")
    for i, (label, table) in enumerate(curves.groupby("run", sort=False)):
        figures.curve(above, table[x], tables.interval(table, "angle"), f"C{i}", label)
        figures.curve(below, table[x], tables.interval(table, "accuracy"), f"C{i}")
    if common["random"] is not None:
        figures.random_lines(above, common["random"])
    if common["chance"] is not None:
        figures.chance_line(below, common["chance"])
    figures.band_entry(above)
    above.set_title(common["title"], fontsize="medium")
    return _finished(figure, x_label)


def _finished(figure: Figure, x_label: str) -> Figure:
    """With legends and grids, and whole numbers of steps or epochs along the lowest panel."""
    for axes in figure.axes:
        axes.legend(loc="best", fontsize="small")
        axes.grid(alpha=0.25)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def pairs(results: Results) -> str:
    """The number of pairs, in words."""
    run = results.arrays["trajectory"]
    num_models = run["model"].max() + 1
    count = observe.num_pairs(num_models, len(run["model"]) // num_models) if "every_count" in run else len(run["pair"])
    return f"{count} pair{'s' * (count > 1)}"


def progress(results: Results) -> tuple[np.ndarray, str]:
    """The x axis and its label: optimizer steps, or epochs where a run has many."""
    steps = results.arrays["trajectory"]["step"]
    epochs = steps / results.summary["steps_per_epoch"]
    return (epochs, "epochs") if epochs[-1] >= EPOCHS else (steps, "optimizer steps")


def title(runs: Sequence[Results]) -> str:
    """What the runs have in common."""

    def common(say: Callable[[Mapping[str, Any]], str], before: str = ", ") -> str:
        texts = {say(run.config) for run in runs}
        return before + texts.pop() if len(texts) == 1 else ""

    data = common(lambda config: figures.data(config["data"]), "")
    measured = {f"{run.arrays['trajectory']['num_examples']} test {figures.kind(run.summary)}" for run in runs}
    return (
        "Adversarial directions of independently trained networks"
        + common(figures.networks, ": ")
        + "\n"
        + ", ".join([*filter(None, [data]), *(measured if len(measured) == 1 else ())])
        + common(lambda config: config["optimizer"]["name"], "; ")
        + common(lambda config: f"learning rate {config['optimizer']['learning_rate']:g}")
        + common(lambda config: f"batch size {config['batch_size']}")
    )


def headline(results: Results) -> dict[str, Interval]:
    """The lowest mean angle while the accuracy was at chance."""
    return {"lowest angle at chance (degrees)": stats.from_plain(results.summary["lowest_at_chance"]["angle"])}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, resumable="num_steps", headline=headline)
