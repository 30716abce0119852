"""The claims of BenShmuel (2022), each held to measured intervals by one rule, from the folders that runs leave."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jtrans import findings, results, stats
from jtrans.models import WIDTHS
from jtrans.stats import Interval

RULE = (
    "Each row names a range for the measured figure. The claim *holds* where the whole 95 % interval lies in it, "
    "it *does not hold* where the whole interval lies outside, and else it stays *open*."
)
CLAIMS = {
    1: "Before training the directions of two networks are as far apart as random ones; a few steps on they are much "
    "nearer, while the accuracy is still at chance.",
    2: "So it is for fully-connected, convolutional and residual networks, for two of one architecture and of two.",
    3: "So it is on photographs, and where nothing can be learned: on noise, or with labels without meaning.",
    4: "Adam and RMSprop show it; SGD, with momentum or without, only at much larger learning rates.",
    5: "After one step of SGD, the vectors by which the first layer's units moved are alike, in and between networks.",
    6: "After a step so large that the initial weights hardly count, adversarial directions are like those vectors.",
    7: "In the long run the learning rate alone decides the angle, at about the same accuracy.",
    8: "The effect is strongest between networks with like hyperparameters.",
}
LATE = 0.2  # of a long run, the last share that its long-term angle is averaged over


class Row(NamedTuple):
    """One claim as one run measures it.

    Attributes:
      claim: its number.
      statement: in words what must lie between `low` and `high`.
      measured: with its interval, in `unit`; `note` says more, as the step.
      run: the folder.
      networks: how many, and of what architecture.
    """

    claim: int
    statement: str
    measured: Interval
    unit: str
    low: float
    high: float
    networks: str
    run: str
    note: str = ""

    @property
    def verdict(self) -> str:
        """By `RULE`."""
        _, low, high = self.measured
        if math.isnan(low) or math.isnan(high):
            return "no interval"
        if self.low <= low and high <= self.high:
            return "holds"
        return "does not hold" if high < self.low or low > self.high else "open"


def rows(root: Path) -> list[Row]:
    """Every claim that the finished runs in the folder measure, in the order of the claims."""
    found = [*_early(root), *_optimizers(root), *_updates(root), *_long_term(root)]
    return sorted(found, key=lambda row: row.claim)


def _interval(moment: Mapping[str, Any]) -> Interval:
    return Interval(*(math.nan if moment[key] is None else moment[key] for key in Interval._fields))


def _folders(root: Path, *patterns: str) -> list[Path]:
    return [path.parent for pattern in patterns for path in sorted(root.glob(f"{pattern}/{results.SUMMARY}"))]


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A finished run's config and summary."""
    return tuple(json.loads((folder / name).read_text()) for name in (results.CONFIG, results.SUMMARY))


def networks(config: Mapping[str, Any]) -> str:
    """The number and architecture of a run's networks; what is smaller than in the paper is named as reduced."""
    names = [name + " (reduced)" * (list(config["widths"][name]) != list(WIDTHS[name])) for name in config["models"]]
    few = f", {config['data']['num_train']} training images" if config["data"]["num_train"] else ""
    return " and ".join(f"{config['num_networks']} {name}" for name in names) + few


def _early(root: Path) -> Iterator[Row]:
    """Claims 1 to 3: random before training, and a fall while at chance."""
    claims = {
        1: ("case-1", "case-3"),
        2: ("case-2", "case-[45678]", "conv-b"),
        3: ("vgg11", "data/*"),
    }
    for claim, patterns in claims.items():
        for folder in _folders(root, *patterns):
            config, summary = read(folder)
            random = summary["random"]["mean_angle"]
            name, who = folder.relative_to(root).as_posix(), networks(config)
            if claim == 1:
                start = _interval(summary["before_training"]["angle"])
                said = f"before training the angle is within 1 degree of that of random directions, {random:.2f}"
                yield Row(1, said, start, "degrees", random - 1, random + 1, who, name)
            lowest = summary["lowest_at_chance"]
            accuracy = stats.interval_text(lowest["accuracy"], 3)
            said = f"the angle falls {findings.FALL:.0f} degrees or more below random while the accuracy is at chance"
            what = _data(config)
            yield Row(
                claim,
                f"{said}: {what}" if claim == 3 else said,
                _interval(lowest["angle"]),
                "degrees",
                0,
                random - findings.FALL,
                who,
                name,
                f"step {lowest['step']}, accuracy {accuracy}",
            )


def _data(config: Mapping[str, Any]) -> str:
    data = config["data"]
    kind = {"folder": f"photographs of {data['image_size']} pixels"}.get(data["name"], data["name"])
    return kind + ", shuffled labels" * data["shuffle_labels"]


def _optimizers(root: Path) -> Iterator[Row]:
    """Claim 4, which optimizers show the effect at which learning rate; claim 8, networks of unlike learning rates."""
    for folder in _folders(root, "optimizers"):
        config, summary = read(folder)
        table = results.read_table(folder / results.CONTROL_TABLE)
        bound, who = summary["random"]["mean_angle"] - findings.FALL, networks(config)
        usual, large = 1e-3, max(config["learning_rates"])
        for optimizer in config["optimizers"]:
            adaptive = optimizer in ("adam", "rmsprop")
            for rate in (usual,) if adaptive else (usual, large):
                shows = adaptive or rate == large
                (i,) = np.flatnonzero((table["optimizer"] == optimizer) & np.isclose(table["learning_rate"], rate))
                measured = Interval(*(table[f"angle_{key}"][i] for key in Interval._fields))
                said = f"{optimizer} at learning rate {rate:g} {'shows' if shows else 'does not show'} the fall"
                low, high = (0, bound) if shows else (bound, 90)
                size = f"first update {table['first_update'][i]:.2g} of the weights"
                yield Row(4, said, measured, "degrees", low, high, who, folder.name, size)
        for row in summary["unlike"]:
            if row["optimizer"] in ("adam", "rmsprop"):
                rates = row["learning_rates"]
                said = (
                    f"{row['optimizer']}: the angle between networks of two learning rates exceeds that within either "
                    f"({len(rates)} rates from {min(rates):g} to {max(rates):g})"
                )
                yield Row(8, said, _interval(row), "degrees", 0, 90, who, folder.name)


def _updates(root: Path) -> Iterator[Row]:
    """Claim 5, update vectors are alike; claim 6, and like adversarial directions after a large step."""
    for folder in _folders(root, "updates"):
        config, summary = read(folder)
        bound, who = summary["random"]["mean_angle"] - findings.FALL, networks(config)
        for row in summary["table"]:
            name, _, adversarial = row["what"].partition(", to ")
            below = f"{findings.FALL:.0f} degrees or more below random"
            if adversarial:
                said = f"{name}: after a large step, adversarial directions are to the update vectors {below}"
            else:
                said = f"update vectors {name} are {below}"
            yield Row(6 if adversarial else 5, said, _interval(row), "degrees", 0, bound, who, folder.name)


def _long_term(root: Path) -> Iterator[Row]:
    """Claim 7: two learning rates, the same accuracy, other angles."""
    folders = _folders(root, "long-term/*")
    if len(folders) == 2:
        runs = [results.read(folder) for folder in folders]
        rates = [config["optimizer"]["learning_rate"] for config, *_ in runs]
        (_, slow), (_, fast) = sorted(zip(rates, (trajectory for _, trajectory, _ in runs), strict=True))
        late = slow.step >= slow.step[-1] * (1 - LATE)
        between = f"learning rates {min(rates):g} and {max(rates):g}"
        note = f"mean over the last {LATE:.0%} of {slow.step[-1] / runs[0][2]['steps_per_epoch']:.0f} epochs"
        count = len(slow.model)

        def difference(name: str) -> Interval:
            def estimate(kept: np.ndarray) -> np.ndarray:
                values = []
                for trajectory, own in ((slow, kept[:count]), (fast, kept[count:])):
                    keep = own[trajectory.pair].all(1) if name == "angle" else own
                    values.append(np.nanmean(getattr(trajectory, name)[keep][:, late]))
                return np.abs(values[0] - values[1])

            return stats.jackknife_ci(estimate, np.repeat([0, 1], [count, len(fast.model)]))

        who, folder = f"{networks(runs[0][0])}, of each rate", "long-term"
        apart = difference("angle")
        yield Row(
            7, f"the angles at {between} differ by 10 degrees or more", apart, "degrees", 10, 90, who, folder, note
        )
        apart = difference("accuracy")
        yield Row(7, f"the accuracies at {between} differ by 0.05 or less", apart, "", -0.05, 0.05, who, folder, note)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _text(interval: Interval, unit: str) -> str:
    return stats.interval_text(interval._asdict(), 1 if unit == "degrees" else 3) + f" {unit}".rstrip()


def overview(rows: Sequence[Row]) -> str:
    """The claims as a list, each with its verdicts counted."""
    lines = []
    for number, text in CLAIMS.items():
        verdicts = [row.verdict for row in rows if row.claim == number]
        counted = ", ".join(f"{verdict}: {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts))
        lines.append(f"{number}. {text} *Rows: {len(verdicts)} ({counted or 'not run'}).*")
    return "\n".join(lines)


def claims_table(rows: Sequence[Row]) -> str:
    """The rows in Markdown; a run's name is a link to the heading of that name."""
    header = ("claim", "what is claimed", "range", "measured [95 % interval]", "verdict", "networks", "command")
    digits = lambda row: 1 if row.unit == "degrees" else 2
    lines = [
        (
            str(row.claim),
            row.statement,
            f"{row.low:.{digits(row)}f} to {row.high:.{digits(row)}f}",
            _text(row.measured, row.unit) + (f" ({row.note})" if row.note else ""),
            f"**{row.verdict}**",
            row.networks,
            f"[{row.run}](#{row.run.split('/')[0]})",
        )
        for row in rows
    ]
    return table(header, lines)


def attacks_table(root: Path) -> str:
    """What the angle means for attacks: FGSM from network to network, where the angle is lowest, and at the end."""
    header = ("run", "moment", "angle, degrees", "accuracy", *(f"FGSM along {a}" for a in findings.SUCCESS.values()))
    lines = []
    for folder in _folders(root, "case-*", "conv-b", "vgg11", "data/*", "long-term/*"):
        _, summary = read(folder)
        for moment, said in (("lowest_at_chance", "lowest angle at chance"), ("last", "last step")):
            at = summary[moment]
            rates = [stats.interval_text(at[name], 2) for name in findings.SUCCESS]
            angle, accuracy = stats.interval_text(at["angle"], 1), stats.interval_text(at["accuracy"], 2)
            name = folder.relative_to(root).as_posix()
            lines.append((name, f"{said}, step {at['step']}", angle, accuracy, *rates))
    return table(header, lines)


def decomposition_table(root: Path) -> str:
    """Each decomposition at the measured step of its lowest angle at chance, and at its last."""
    shown = [
        (findings.NOTHING, 0),
        ("random directions", 10),
        ("the mean image", 1),
        ("training images", 1),
        ("training images", 10),
        ("other networks' gradients", 10),
        ("other networks' updates", 1),
        ("other networks' updates", 10),
    ]
    header = ["run", "step", "accuracy", "whole", *(f"off {name}, {rank}" for name, rank in shown[1:])]
    header += ["attack along whole", "along what is left off 10 updates", "along what they hold"]
    lines = []
    for folder in _folders(root, "decompose-*"):
        columns = results.read_table(folder / results.DECOMPOSE_TABLE)
        chance = results.read_summary(folder)["chance"]
        whole = columns["subspace"] == findings.NOTHING
        angle, accuracy = columns["angle_mean"][whole], columns["accuracy_mean"][whole]
        lowest = int(np.nanargmin(angle[: findings.steps_at_chance(accuracy, chance)]))
        for step in sorted({columns["step"][whole][lowest], columns["step"].max()}):

            def at(kind: tuple[str, int], value: str, digits: int, step: float = step, columns=columns) -> str:
                of = (columns["step"] == step) & (columns["subspace"] == kind[0]) & (columns["rank"] == kind[1])
                if not of.any():
                    return "-"
                bounds = {bound: columns[f"{value}_{bound}"][of].item() for bound in Interval._fields}
                return stats.interval_text(bounds, digits)

            taken = ("other networks' updates", 10)
            attacks = [at((findings.NOTHING, 0), "off", 2), at(taken, "off", 2), at(taken, "inside", 2)]
            angles = [at(kind, "angle", 1) for kind in shown]
            lines.append([folder.name, f"{step:.0f}", at((findings.NOTHING, 0), "accuracy", 3), *angles, *attacks])
    return table(header, lines)
