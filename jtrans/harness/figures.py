"""What several figures share: interval bands, reference lines, and how networks and data are named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jtrans.models import WIDTHS
from jtrans.stats import Interval

INTERVAL = "95 % interval"
UNITS = {"images": "pixels in [0, 1]", "texts": "Euclidean length over all embeddings"}  # of epsilon


def band(axes: Axes, x: np.ndarray, interval: Interval, colour: str, label: str | None = INTERVAL) -> None:
    """The interval as a shaded band, where there is one."""
    if not np.isnan(interval.low).all():
        axes.fill_between(x, interval.low, interval.high, color=colour, alpha=0.25, linewidth=0, label=label)


def curve(axes: Axes, x: np.ndarray, interval: Interval, colour: str, label: str | None = None, **options: Any) -> None:
    """The means as a line, with the interval as a band that has no entry of its own in the legend."""
    axes.plot(x, interval.mean, color=colour, marker=".", label=label, **options)
    band(axes, x, interval, colour, None)


def band_entry(axes: Axes, label: str = "95 % intervals") -> None:
    """One entry in the legend for all bands."""
    axes.fill_between([], [], [], color="0.5", alpha=0.25, linewidth=0, label=label)


def errors(interval: Interval) -> np.ndarray | None:
    """How far the interval reaches below and above the mean, `[2, ...]`, as error bars take it; None where nowhere."""
    reach = np.stack([interval.mean - interval.low, interval.high - interval.mean])
    return None if np.isnan(reach).all() else reach


def random_lines(axes: Axes, random: Mapping[str, Any]) -> None:
    """The mean and the quantile of the angle between random directions, on an axis of angles."""
    random_mean(axes, random)
    label = f"random directions, {random['quantile']:.0%} quantile"
    axes.axhline(random["quantile_angle"], color="0.6", linestyle=":", label=label)
    axes.set(ylabel="angle between adversarial\ndirections (degrees)", ylim=(0, 92))


def random_mean(axes: Axes, random: Mapping[str, Any], label: str | None = "random directions, mean") -> None:
    """The mean angle between random directions."""
    axes.axhline(random["mean_angle"], color="0.3", linestyle="--", label=label)


def chance_line(axes: Axes, chance: float) -> None:
    """The accuracy of chance, on an axis of accuracies."""
    axes.axhline(chance, color="0.3", linestyle="--", label=f"chance, {chance:.2f}")
    axes.set(ylabel="test accuracy\n(share of images)", ylim=(0, 1))


def networks(config: Mapping[str, Any]) -> str:
    """The architectures in words, with their widths where those are not the default ones."""
    words = []
    for name in config["models"]:
        widths = list(config["widths"][name])
        sizes = f"{widths[0]} to {widths[-1]}" if len(widths) > 4 else ", ".join(map(str, widths))
        words.append(name if widths == list(WIDTHS[name]) else f"{name} of widths {sizes}")
    return " and ".join(words)


def kind(summary: Mapping[str, Any]) -> str:
    """What a run's examples are, a key of `UNITS`."""
    return "texts" if summary.get("lexicon_sha256") else "images"


def of_kind(words: str, kind: str) -> str:
    """The words of a figure or table, as they are for images, or for texts."""
    return words if kind == "images" else words.replace("images", kind).replace("random signs", "a random direction")


def data(section: Mapping[str, Any]) -> str:
    """A data set in words, from its section of the config."""
    classes = f" ({' / '.join(section['classes'])})" if 0 < len(section["classes"]) <= 3 else ""
    changes = ", shuffled labels" * section["shuffle_labels"] + ", mean image subtracted" * section["subtract_mean"]
    of_texts = section["name"] == "text"
    few = f", {section['num_train']} training {'texts' if of_texts else 'images'}" if section["num_train"] else ""
    return f"{Path(section['dir']).stem if of_texts else section['name']}{classes}{changes}{few}"
