"""The claims of BenShmuel (2022), each held to measured intervals by one rule, from the folders that runs leave."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

from jtrans import stats
from jtrans.harness import experiment, folder, tables
from jtrans.models import WIDTHS
from jtrans.population import trajectory
from jtrans.population.trajectory import FALL, Trajectory
from jtrans.stats import Estimate, Interval

CLAIMS = {
    1: "Before training the directions of two networks are as far apart as random ones; after a few steps they are "
    "much nearer, while the accuracy is still at chance.",
    2: "This holds for fully-connected, convolutional and residual networks, and for pairs of one and of two "
    "architectures.",
    3: "It holds on photographs, and where nothing can be learned: on noise, or with shuffled labels.",
    4: "Adam and RMSprop show it; SGD, with momentum or without, shows it only at much larger learning rates.",
    5: "After one step of SGD, the update vectors of the first layer's units are alike, within a network and between "
    "networks.",
    6: "After a step so large that the initial weights hardly count, adversarial directions are like the update "
    "vectors.",
    7: "In the long run the learning rate alone decides the angle, at about the same accuracy.",
    8: "The effect is strongest between networks with the same hyperparameters.",
}
# Early's runs, by claim; those of 0 are measured before training alone.
RUNS = {0: ("start-*",), 1: ("case-1", "case-3"), 2: ("case-2", "case-[4-9]*", "conv-b*"), 3: ("vgg11", "data/*")}
WITHOUT_VERDICT = ("case-7",)  # a small fall, of unlike networks: its size is what matters
ADAPTIVE = ("adam", "rmsprop")
USUAL_RATE = 1e-3
# The columns of intervals.
ANGLE = ("angle", "angle_low", "angle_high")
SELECTED = ("selected", "selected_low", "selected_high")
LATE = 0.2  # the last share of a long run, over which its long-term angle is averaged


LEVEL = 0.025  # of each one-sided test, as of each side of a 95 % interval


class Row(NamedTuple):
    """One claim as one run measures it."""

    claim: int
    statement: str  # what must lie between `low` and `high`
    measured: Estimate
    unit: str
    low: float  # -inf: any lower value is in the range too
    high: float
    networks: str  # how many, and of what architecture
    run: str  # its folder, relative to that of all runs
    note: str = ""  # as the step


def table(root: Path) -> pandas.DataFrame:
    """Every claim that the finished runs below a folder measure, in the order of the claims, as `judged`."""
    rows = sorted([*_early(root), *_optimizers(root), *_updates(root), *_long_term(root)], key=lambda row: row.claim)
    return judged(rows)


def judged(rows: Sequence[Row]) -> pandas.DataFrame:
    """The rows with their intervals, p-values and verdicts, alone and `adjusted` for the number of rows (Holm 1979).

    A claim "holds" where the measured value is shown to lie in the range, "does not hold" where it is shown to lie
    outside, each by one-sided tests at `LEVEL`; else it is "open". Alone, these are the cases of a 95 % interval that
    lies in the range, or outside, as a whole. A row without bounds asks for no verdict.
    """
    measured = Estimate(*np.transpose([row.measured for row in rows]).astype(float))
    frame = pandas.DataFrame([row._asdict() for row in rows]).rename(columns={"low": "range_low", "high": "range_high"})
    bounds = frame["range_low"].to_numpy(float), frame["range_high"].to_numpy(float)
    asked = np.isfinite(bounds).any(axis=0)
    p_inside, p_outside = (
        np.where(asked, p, np.nan) for p in (measured.p_inside(*bounds), measured.p_outside(*bounds))
    )
    return frame.assign(
        **tables.interval_columns({"measured": measured.interval()}),
        p_inside=p_inside,
        p_outside=p_outside,
        verdict=np.where(asked, _verdicts(p_inside, p_outside), "not asked"),
        adjusted=np.where(asked, _verdicts(stats.holm(p_inside), stats.holm(p_outside)), "not asked"),
    )


def _verdicts(p_inside: np.ndarray, p_outside: np.ndarray) -> np.ndarray:
    cases = {"no interval": np.isnan(p_inside), "holds": p_inside < LEVEL, "does not hold": p_outside < LEVEL}
    return np.select(list(cases.values()), list(cases), "open")


def counted(verdicts: Iterable[str]) -> str:
    """How often there is each verdict, in words."""
    return ", ".join(f"{verdict}: {count}" for verdict, count in Counter(verdicts).items())


def finished(root: Path, *patterns: str) -> dict[str, experiment.Results]:
    """The results of the finished runs whose folders match, by the folders' names relative to `root`."""
    folders = [path.parent for pattern in patterns for path in sorted(root.glob(f"{pattern}/{folder.SUMMARY}"))]
    return {path.relative_to(root).as_posix(): experiment.read(path) for path in folders}


def networks(config: Mapping[str, Any]) -> str:
    """The number and architecture of a run's networks; those smaller than in the paper are marked as reduced."""
    names = [name + " (reduced)" * (list(config["widths"][name]) != list(WIDTHS[name])) for name in config["models"]]
    few = f", {config['data']['num_train']} training images" if config["data"]["num_train"] else ""
    return " and ".join(f"{config['num_networks']} {name}" for name in names) + few


def _estimate(values: Mapping[str, Any], freedom: float, names: Iterable[str] = Interval._fields) -> Estimate:
    """From the interval of a summary or of a table's row; None, as JSON holds it, is NaN."""
    return stats.from_interval(Interval(*np.array([values[name] for name in names], float)), freedom)


def _early(root: Path) -> Iterator[Row]:
    """Claims 1 to 3: random before training, and a fall while at chance, where each half of the networks chooses the
    step for the other.
    """
    for claim, patterns in RUNS.items():
        for name, (config, summary, *_) in finished(root, *patterns).items():
            random, of_networks = summary["random"]["mean_angle"], networks(config)
            start = _estimate(summary["before_training"]["angle"], config["num_networks"] - 1)
            said = f"before training the angle is within 1 degree of that of random directions, {random:.2f}"
            yield Row(1, said, start, "degrees", random - 1, random + 1, of_networks, name)
            if claim == 0:
                continue
            bound = math.inf if name in WITHOUT_VERDICT else random - FALL
            said = f"the angle falls {FALL:.0f} degrees or more below random while the accuracy is at chance"
            if math.isinf(bound):
                said = f"the lowest angle while the accuracy is at chance; of random directions {random:.2f}"
            if claim == 3:
                data = config["data"]
                images = f"photographs of {data['image_size']} pixels" if data["name"] == "folder" else data["name"]
                said += f": {images}" + ", shuffled labels" * data["shuffle_labels"]
            selected = summary["selected"]
            measured = _estimate(selected, selected["freedom"] or math.nan)
            yield Row(claim, said, measured, "degrees", -math.inf, bound, of_networks, name, _note(summary))


def _note(summary: Mapping[str, Any]) -> str:
    """The steps at which the angle is lowest at chance, and both angles and the accuracy of all networks there."""
    steps = " and ".join("none" if step is None else str(step) for step in summary["selected"]["steps"])
    lowest, chance = summary["lowest_at_chance"], summary["chance"]
    accuracy = lowest["accuracy"]
    folded, signed = (stats.interval_text(lowest[name], 1) for name in ("angle", "signed_angle"))
    said = f"steps {steps}; all at step {lowest['step']}: folded {folded}, signed {signed}"
    said += f", accuracy {stats.interval_text(accuracy, 3)}"
    if accuracy["low"] is None:
        return said
    holds_chance = accuracy["low"] <= chance <= accuracy["high"]
    return f"{said}, which {'contains' if holds_chance else 'excludes'} {chance:g}"


def _optimizers(root: Path) -> Iterator[Row]:
    """Claim 4, which optimizers show the effect at which learning rate; claim 8, networks of unlike learning rates."""
    for name, (config, summary, frames, *_) in finished(root, "optimizers").items():
        bound, of_networks = summary["random"]["mean_angle"] - FALL, networks(config)
        for row in frames["control"].to_dict("records"):
            optimizer, rate = row["optimizer"], row["learning_rate"]
            adaptive, largest = optimizer in ADAPTIVE, rate == max(config["learning_rates"])
            if math.isclose(rate, USUAL_RATE) or (largest and not adaptive):
                shows = adaptive or largest
                said = f"{optimizer} at learning rate {rate:g} {'shows' if shows else 'does not show'} the fall"
                low, high = (-math.inf, bound) if shows else (bound, math.inf)
                size = f"first update {row['first_update']:.2g} of the weights"
                measured = _estimate(row, row["selected_freedom"], SELECTED)
                yield Row(4, said, measured, "degrees", low, high, of_networks, name, size)
        for row in summary["unlike"]:
            if row["optimizer"] in ADAPTIVE:
                rates = row["learning_rates"]
                said = (
                    f"{row['optimizer']}: the angle between networks of two learning rates exceeds that within either"
                )
                said += f" ({len(rates)} rates from {min(rates):g} to {max(rates):g})"
                control = frames["control"]
                of_rates = (control["optimizer"] == row["optimizer"]) & control["learning_rate"].isin(rates)
                measured = _estimate(row, config["num_networks"] - 1 - control["lost"][of_rates].max())
                yield Row(8, said, measured, "degrees", 0, math.inf, of_networks, name)


def _updates(root: Path) -> Iterator[Row]:
    """Claim 5, update vectors are alike; claim 6, after a large step adversarial directions are like them."""
    below = f"{FALL:.0f} degrees or more below random"
    for name, (config, summary, *_) in finished(root, "updates").items():
        bound, of_networks = summary["random"]["mean_angle"] - FALL, networks(config)
        for row in summary["table"]:
            kind, *architectures = row["what"].split(".")
            claim, said = 5, f"update vectors {kind} {' and '.join(architectures)} are {below}"
            if kind == "adversarial":
                large = f"{' and '.join(architectures)}: after a large step, adversarial directions"
                claim, said = 6, f"{large} are to the update vectors {below}"
            measured = _estimate(row, config["num_networks"] - 1, ANGLE)
            yield Row(claim, said, measured, "degrees", -math.inf, bound, of_networks, name)


def _long_term(root: Path) -> Iterator[Row]:
    """Claim 7: two learning rates, the same accuracy, other angles late in training; and their early angles."""
    for path in sorted(root.glob("long-term*")):
        runs = sorted(
            finished(root, f"{path.name}/*").values(), key=lambda run: run.config["optimizer"]["learning_rate"]
        )
        if len(runs) == 2:
            yield from (_early_part if path.name.startswith("long-term-early") else _late_part)(path.name, *runs)


def _early_part(name: str, *runs: experiment.Results) -> Iterator[Row]:
    for config, summary, *_ in runs:
        said = f"the lowest angle at chance in the first {config['num_steps']} steps at learning rate "
        said += f"{config['optimizer']['learning_rate']:g}; of random directions {summary['random']['mean_angle']:.2f}"
        measured = _estimate(summary["selected"], summary["selected"]["freedom"] or math.nan)
        told = networks(config), name, _note(summary)
        yield Row(7, said, measured, "degrees", -math.inf, math.inf, *told)


def _late_part(run: str, slow: experiment.Results, fast: experiment.Results) -> Iterator[Row]:
    low, high = (run.config["optimizer"]["learning_rate"] for run in (slow, fast))
    of_slow, of_fast = slow.arrays["trajectory"], fast.arrays["trajectory"]
    measured = {name: late_difference(of_slow, of_fast, name) for name in ("angle", "accuracy")}
    epochs = slow.arrays["trajectory"]["step"][-1] / slow.summary["steps_per_epoch"]
    told = f"{networks(slow.config)}, of each rate", run, f"mean over the last {LATE:.0%} of {epochs:.0f} epochs"
    said = f"the angle at learning rate {low:g} exceeds that at {high:g} by 10 degrees or more"
    yield Row(7, said, measured["angle"], "degrees", 10, math.inf, *told)
    said = f"the accuracies at learning rates {low:g} and {high:g} differ by 0.05 or less"
    yield Row(7, said, measured["accuracy"], "", -0.05, 0.05, *told)


def late_difference(slow: Trajectory, fast: Trajectory, name: str) -> Estimate:
    """A measure of a first run less that of a second in the last part of their steps, by a jackknife over networks."""
    late = slow["step"] >= slow["step"][-1] * (1 - LATE)
    counts = len(slow["model"]), len(fast["model"])
    mean = lambda run, kept: np.nanmean(trajectory.select(run, np.flatnonzero(kept))[name][:, late])
    estimate = lambda kept: mean(slow, kept[: counts[0]]) - mean(fast, kept[counts[0] :])
    return stats.jackknife(estimate, np.repeat([0, 1], counts))
