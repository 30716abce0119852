"""What a run shows, in numbers and in words."""

import math
from typing import Any

import numpy as np
import scipy.stats

from jtrans import stats
from jtrans.population import Trajectory

AT_CHANCE = 0.05  # a mean accuracy this near to 1 / K is "at chance"
FALL = 15.0  # degrees below the random mean that count as early transferability
QUANTILE = 0.01  # of random directions, below which a mean angle is called below random
MEASURES = {
    "tau1_S_T": "tau1, source to target",
    "tau1_T_S": "tau1, target to source",
    "tau2_S_T": "tau2, source to target",
    "tau2_T_S": "tau2, target to source",
    "tau1tau2_S_T": "tau1 tau2, source to target",
    "tau1tau2_T_S": "tau1 tau2, target to source",
    "transfer_loss_S": "transfer loss",
    "gradient_matching_distance": "gradient matching distance",
}


def curves(trajectory: Trajectory) -> dict[str, stats.Interval]:
    """Means and 95 % intervals at each measured step: `angle` (degrees, over pairs) and `accuracy` (over networks)."""
    angle = stats.pair_mean_ci(trajectory.angle, trajectory.pair, trajectory.model)
    return {"angle": angle, "accuracy": stats.mean_ci(trajectory.accuracy)}


def summarize(trajectory: Trajectory, dimension: int, num_classes: int) -> dict[str, Any]:
    """The run's findings, ready for JSON.

    A moment is `{step, angle, accuracy}`, the last two as `{mean, low, high}`.

    Args:
      trajectory: the run.
      dimension: the number of input values, for the law of random angles.
      num_classes: K, for the accuracy of chance.

    Returns:
      `random` (the law's mean and 1 % quantile, degrees), `chance` (1 / K), the moments `before_training`, `lowest`,
      `lowest_at_chance` (among the steps before the mean accuracy first leaves chance) and `first_below_random` (the
      first below the quantile; None if there is none), `early_transferability` (whether `lowest_at_chance` is `FALL`
      degrees or more below the random mean), and the counts of what was left out: `undirected` directions (of
      `directions`) and `non_finite`: the networks whose loss stopped being finite, with the step where that was seen.
    """
    random = stats.random_angle(dimension)
    over = curves(trajectory)
    angle, accuracy = over["angle"].mean, over["accuracy"].mean
    # Before training the accuracy is that of random weights, which is no learning, wherever it stands.
    left = np.flatnonzero(np.abs(accuracy[1:] - 1 / num_classes) > AT_CHANCE)
    at_chance = slice(0, left[0] + 1 if len(left) else None)
    below = np.flatnonzero(angle < random.quantile(QUANTILE))

    def moment(index: int) -> dict[str, Any]:
        at = {name: _plain(stats.Interval(*(v[index] for v in interval))) for name, interval in over.items()}
        return {"step": int(trajectory.step[index]), **at}

    lowest_at_chance = _lowest(angle[at_chance])
    return {
        "random": {
            "dimension": dimension,
            "mean_angle": random.mean(),
            "quantile": QUANTILE,
            "quantile_angle": float(random.quantile(QUANTILE)),
        },
        "chance": 1 / num_classes,
        "before_training": moment(0),
        "first_below_random": moment(below[0]) if len(below) else None,
        "lowest_at_chance": moment(lowest_at_chance),
        "lowest": moment(_lowest(angle)),
        "early_transferability": bool(angle[lowest_at_chance] <= random.mean() - FALL),
        "directions": int(trajectory.accuracy.size * trajectory.num_examples),
        "undirected": int(trajectory.undirected.sum()),
        "non_finite": [
            {"network": int(network), "step": int(trajectory.step[np.argmin(finite)])}
            for network, finite in enumerate(np.isfinite(trajectory.loss))
            if not finite.all()
        ],
    }


def _lowest(angle: np.ndarray) -> int:
    return 0 if np.isnan(angle).all() else int(np.nanargmin(angle))


def describe(summary: dict[str, Any]) -> str:
    """The findings as a table and a sentence."""
    random, chance = summary["random"], summary["chance"]
    rows = [
        ("before training", summary["before_training"]),
        (f"first below {random['quantile_angle']:.1f} deg *", summary["first_below_random"]),
        ("lowest while at chance", summary["lowest_at_chance"]),
        ("lowest", summary["lowest"]),
    ]
    lines = [f"{'':26}{'step':>5}   {'angle, degrees [95 %]':26}{'accuracy [95 %]'}"]
    for name, moment in rows:
        if moment is None:
            lines.append(f"{name:26}{'never':>5}")
        else:
            angle, accuracy = interval_text(moment["angle"], 2), interval_text(moment["accuracy"], 3)
            lines.append(f"{name:26}{moment['step']:>5}   {angle:26}{accuracy}")
    mean = f"{random['mean_angle']:.2f}"
    lines.append(
        f"* the angle that {random['quantile']:.0%} of random pairs fall below; the mean of random pairs is {mean}"
    )
    if summary["undirected"]:
        counted = f"{summary['undirected']} of {summary['directions']}"
        lines.append(f"{counted} input gradients were zero or not finite and are left out")
    if summary["non_finite"]:
        listed = ", ".join(f"{lost['network']} (from step {lost['step']} on)" for lost in summary["non_finite"])
        lines.append(f"networks whose loss is not finite: {listed}")
    lowest = summary["lowest_at_chance"]
    drop = f"{random['mean_angle'] - lowest['angle']['mean']:.1f} degrees below that of random directions"
    while_at_chance = f"while the accuracy was still at chance ({chance:.2f} +- {AT_CHANCE:.2f})."
    if summary["early_transferability"]:
        lines.append(f"Early transferability: at step {lowest['step']} the angle was {drop}\n{while_at_chance}")
    else:
        lines.append(
            f"No early transferability (a fall of {FALL:.0f} degrees): the angle came at most {drop}\n{while_at_chance}"
        )
    return "\n".join(lines)


def interval_text(interval: dict[str, float], digits: int) -> str:
    """`mean [low, high]`, or the mean alone where there is no interval."""
    mean, low, high = (math.nan if interval[key] is None else interval[key] for key in ("mean", "low", "high"))
    known = not (math.isnan(low) or math.isnan(high))
    return f"{mean:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if known else "")


def over_seeds(columns: dict[str, np.ndarray], name: str, width: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The scales `[S]` of the drift, and a column of the synthetic table there for each seed, `[seeds, S]`."""
    rows = (columns["width"] == width) & (columns["level"] == level)
    of_seed = [rows & (columns["seed"] == seed) for seed in np.unique(columns["seed"])]
    return columns["scale"][of_seed[0]], np.stack([columns[name][r] for r in of_seed])


def summarize_synthetic(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """How each measure moves with the drift, ready for JSON.

    Returns:
      `num_seeds`, and in `rows` for each width, level and measure: its value without drift and at the largest, and
      Spearman's rank correlation with the scale, each as `{mean, low, high}` over seeds.
    """
    rows = []
    for width, level in sorted({*zip(columns["width"].tolist(), columns["level"].tolist(), strict=True)}):
        for name in MEASURES:
            scale, values = over_seeds(columns, name, width, level)
            ranks = np.array([scipy.stats.spearmanr(scale, of_seed).statistic for of_seed in values])
            found = {"first": values[:, 0], "last": values[:, -1], "spearman": ranks}
            intervals = {key: _plain(stats.mean_ci(seeds)) for key, seeds in found.items()}
            rows.append({"width": width, "level": level, "measure": name, **intervals})
    return {"num_seeds": len(np.unique(columns["seed"])), "rows": rows}


def _plain(interval: stats.Interval) -> dict[str, float]:
    return {key: float(value) for key, value in interval._asdict().items()}


def describe_synthetic(summary: dict[str, Any]) -> str:
    """The findings as a table."""
    lines = [
        f"{'width':>5} {'level':>5}  {'measure':28} {'no drift':24} {'largest drift':24} rank correlation with drift"
    ]
    for row in summary["rows"]:
        first, last, ranks = (interval_text(row[k], 3) for k in ("first", "last", "spearman"))
        lines.append(
            f"{row['width']:5.0f} {row['level']:5.0f}  {MEASURES[row['measure']]:28} {first:24} {last:24} {ranks}"
        )
    many = summary["num_seeds"] > 1
    lines.append(f"means [95 % intervals] over {summary['num_seeds']} seeds" if many else "one problem: no intervals")
    return "\n".join(lines)
