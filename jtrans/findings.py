"""What a run shows, in numbers and in words."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jtrans import stats
from jtrans.attacks import DENOMINATORS
from jtrans.decomposition import Measured
from jtrans.population import ATTACKS, Trajectory, attackers, pairs, select
from jtrans.updates import BINS, Angles, Step

FALL = 15.0  # degrees below the random mean that count as early transferability
QUANTILE = 0.01  # of random directions, below which a mean angle is called below random
NEAR = 2.0  # degrees below the random mean that count as random once a subspace is taken out
NOTHING = "nothing"
SUCCESS = dict(zip(("success_transferred", "success_own", "success_random"), ATTACKS, strict=True))


def at_chance(chance: float) -> float:
    """How near to chance, 1 / K, a mean accuracy is "at chance": 0.05, and for more than ten classes half of chance."""
    return min(0.05, chance / 2)


def curves(trajectory: Trajectory) -> dict[str, stats.Interval]:
    """Means and 95 % intervals at each measured step.

    Returns:
      `angle` (degrees, over pairs), `accuracy` (over networks) and, where networks were attacked, a share for each of
      `SUCCESS`: of the images that the attacked network gets right, those that the attack makes it get wrong.
    """
    found = {
        "angle": stats.pair_mean_ci(trajectory.angle, trajectory.pair, trajectory.model),
        "accuracy": stats.mean_ci(trajectory.accuracy),
    }
    if trajectory.success is not None:
        models = trajectory.model.max() + 1
        pair = attackers(models, len(trajectory.model) // models)
        of_target = trajectory.success[..., DENOMINATORS.index("those the target gets right")]
        for attack, name in enumerate(SUCCESS):
            found[name] = stats.pair_mean_ci(of_target[..., attack], pair, trajectory.model)
    return found


def summarize(
    trajectory: Trajectory, over: Mapping[str, stats.Interval], dimension: int, num_classes: int
) -> dict[str, Any]:
    """The run's findings, ready for JSON.

    A moment is `{step, angle, accuracy}` and the success rates of `curves`, each as `{mean, low, high}`.

    Args:
      trajectory: the run.
      over: its `curves`.
      dimension: the number of input values, for the law of random angles.
      num_classes: K, for the accuracy of chance.

    Returns:
      `random` (the law's mean and 1 % quantile, degrees), `chance` (1 / K), the moments `before_training`, `last`,
      `lowest`, `lowest_at_chance` (among the steps before the mean accuracy first leaves chance) and
      `first_below_random` (the first below the quantile; None if there is none), `early_transferability` (whether
      `lowest_at_chance` is `FALL` degrees or more below the random mean; None where no angle was measured at chance),
      and the counts of what was left out: `undirected` directions (of `directions`) and `non_finite`: the networks
      whose loss stopped being finite, with the step where that was seen.
    """
    random = stats.random_angle(dimension)
    angle, accuracy = over["angle"].mean, over["accuracy"].mean
    below = np.flatnonzero(angle < random.quantile(QUANTILE))

    def moment(index: int) -> dict[str, Any]:
        at = {name: stats.plain(stats.Interval(*(v[index] for v in interval))) for name, interval in over.items()}
        return {"step": int(trajectory.step[index]), **at}

    lowest_at_chance = _lowest(angle[: steps_at_chance(accuracy, 1 / num_classes)])
    lowest_angle = angle[lowest_at_chance]
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
        "last": moment(-1),
        "early_transferability": None if np.isnan(lowest_angle) else bool(lowest_angle <= random.mean() - FALL),
        "directions": int(trajectory.accuracy.size * trajectory.num_examples),
        "undirected": int(trajectory.undirected.sum()),
        "non_finite": [
            {"network": int(network), "step": int(trajectory.step[np.argmin(finite)])}
            for network, finite in enumerate(np.isfinite(trajectory.loss))
            if not finite.all()
        ],
    }


def steps_at_chance(accuracy: np.ndarray, chance: float) -> int:
    """How many of the measured steps there are before the mean accuracy first leaves chance.

    Args:
      accuracy: `[..., T]`, means at each step; it has left where any of them has, or is NaN, since no network is left.
        That before training is of random weights, which is no learning, wherever it stands.
      chance: 1 / K.
    """
    off = ~(np.abs(accuracy[..., 1:] - chance) <= at_chance(chance))
    left = np.flatnonzero(off.reshape(-1, off.shape[-1]).any(0))
    return left[0] + 1 if len(left) else accuracy.shape[-1]


def _lowest(angle: np.ndarray) -> int:
    """The index of the lowest angle that there is; 0 where there is none."""
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
            angle, accuracy = stats.interval_text(moment["angle"], 2), stats.interval_text(moment["accuracy"], 3)
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
    if "success_transferred" in lowest:
        rates = ", ".join(f"{attack} {stats.interval_text(lowest[name], 2)}" for name, attack in SUCCESS.items())
        lines.append(f"share of the rightly classified images that FGSM changes at step {lowest['step']}, by whose")
        lines.append(f"direction: {rates}")
    while_at_chance = f"while the accuracy was still at chance ({chance:.3f} +- {at_chance(chance):.3f})."
    if summary["early_transferability"] is None:
        lines.append(f"No network had a direction {while_at_chance}")
        return "\n".join(lines)
    drop = f"{random['mean_angle'] - lowest['angle']['mean']:.1f} degrees below that of random directions"
    if summary["early_transferability"]:
        lines.append(f"Early transferability: at step {lowest['step']} the angle was {drop}\n{while_at_chance}")
    else:
        lines.append(
            f"No early transferability (a fall of {FALL:.0f} degrees): the angle came at most {drop}\n{while_at_chance}"
        )
    return "\n".join(lines)


def control(
    parts: Mapping[tuple[str, int], tuple[Trajectory, Mapping[str, np.ndarray]]],
    learning_rates: Sequence[float],
    dimension: int,
    num_classes: int,
) -> dict[str, np.ndarray]:
    """What each setting of optimizer, batch size and learning rate reaches.

    Args:
      parts: for each optimizer and batch size the trajectory of all learning rates' networks, those of each in a row,
        and beside it `first_update [M]`, the length of each network's first update over that of its weights.
      dimension, num_classes: as in `summarize`.

    Returns:
      By columns: the setting; the step of the lowest mean angle among those before the accuracy leaves chance; the mean
      angle there in degrees, and the accuracy, each with its 95 % interval; the median of the first updates' relative
      lengths; the share of all directions that were zero or not finite; how many networks were lost, their loss no
      longer finite; and whether this is early transferability (1 or 0; NaN where no angle was measured at chance).
    """
    rows = []
    for (optimizer, batch_size), (trajectory, beside) in parts.items():
        for rate, networks in zip(learning_rates, _by_rate(trajectory, learning_rates), strict=True):
            of_rate = select(trajectory, networks)
            found = summarize(of_rate, curves(of_rate), dimension, num_classes)
            lowest = found["lowest_at_chance"]
            bounds = {f"{k}_{b}": lowest[k][b] for k in ("angle", "accuracy") for b in stats.Interval._fields}
            rows.append(
                {
                    "optimizer": optimizer,
                    "batch_size": batch_size,
                    "learning_rate": rate,
                    "step": lowest["step"],
                    **bounds,
                    "first_update": _median(beside["first_update"][networks]),
                    "undirected": found["undirected"] / found["directions"],
                    "lost": len(found["non_finite"]),
                    "early_transferability": _number(found["early_transferability"]),
                }
            )
    return stats.columns(rows)


def _by_rate(trajectory: Trajectory, learning_rates: Sequence[float]) -> np.ndarray:
    return np.arange(len(trajectory.model)).reshape(len(learning_rates), -1)


def summarize_control(
    parts: Mapping[tuple[str, int], tuple[Trajectory, Mapping[str, np.ndarray]]],
    table: Mapping[str, np.ndarray],
    learning_rates: Sequence[float],
    dimension: int,
    num_classes: int,
) -> dict[str, Any]:
    """What `control` found, ready for JSON: the number of settings and networks, the law of random angles, chance.

    `unlike` holds, for each optimizer and batch size with two or more learning rates that show early transferability,
    by how many degrees the angle between networks of two such rates exceeds the mean of those within either: over all
    two of them and over the steps at which all are at chance, as `{mean, low, high}`, with those `learning_rates`.
    """
    unlike = []
    for (optimizer, batch_size), (trajectory, _) in parts.items():
        here = (table["optimizer"] == optimizer) & (table["batch_size"] == batch_size)
        shown = np.flatnonzero(table["early_transferability"][here] == 1)
        if len(shown) > 1:
            networks = _by_rate(trajectory, learning_rates)[shown]
            difference = stats.plain(_unlike(select(trajectory, networks.ravel()), len(shown), num_classes))
            rates = [learning_rates[i] for i in shown.tolist()]
            unlike.append({"optimizer": optimizer, "batch_size": batch_size, "learning_rates": rates, **difference})
    random = stats.random_angle(dimension)
    return {
        "num_settings": len(table["step"]),
        "num_networks": sum(len(trajectory.model) for trajectory, _ in parts.values()),
        "random": {"dimension": dimension, "mean_angle": random.mean()},
        "chance": 1 / num_classes,
        "unlike": unlike,
    }


def _unlike(trajectory: Trajectory, num_settings: int, num_classes: int) -> stats.Interval:
    """The mean angle between networks of two settings less that within either, in degrees, while all are at chance."""
    setting = np.repeat(np.arange(num_settings), len(trajectory.model) // num_settings)
    accuracy = stats.mean_ci(trajectory.accuracy.reshape(num_settings, -1, len(trajectory.step)), axis=1).mean
    angle = stats.mean_ci(trajectory.angle[:, 1 : steps_at_chance(accuracy, 1 / num_classes)], axis=1).mean
    first, second = np.sort(setting[trajectory.pair], axis=1).T

    def estimate(kept: np.ndarray) -> float:
        keep = kept[trajectory.pair].all(axis=1) & ~np.isnan(angle)
        add = lambda values: np.bincount((first * num_settings + second)[keep], values[keep], num_settings**2)
        with np.errstate(invalid="ignore"):  # 0 / 0, where no pair is left, is the NaN that is meant
            mean = (add(angle) / add(np.ones_like(angle))).reshape(num_settings, num_settings)
        a, b = np.triu_indices(num_settings, 1)
        return (mean[a, b] - (mean[a, a] + mean[b, b]) / 2).mean()

    return stats.jackknife_ci(estimate, setting)


def describe_control(table: Mapping[str, np.ndarray]) -> str:
    """The table, and what it counts."""
    head = ("optimizer", "batch", "rate", "step", "lowest angle at chance", "accuracy", "update", "undirected", "lost")
    lines = ["{:10} {:>6} {:>8} {:>5}   {:24} {:24} {:>8} {:>11} {:>5}".format(*head)]
    for i in range(len(table["step"])):
        mark = "  *" * int(table["early_transferability"][i] == 1)
        lines.append(
            f"{table['optimizer'][i]:10} {table['batch_size'][i]:6.0f} {table['learning_rate'][i]:8.3g} "
            f"{table['step'][i]:5.0f}   {stats.cell(table, 'angle', i, 1):24} {stats.cell(table, 'accuracy', i, 3):24} "
            f"{table['first_update'][i]:8.3g} {table['undirected'][i]:11.1%} "
            f"{table['lost'][i]:5.0f}{mark}"
        )
    shown = int((table["early_transferability"] == 1).sum())
    lines.append("update: the first one's length over that of the weights; undirected: input gradients left out")
    lines.append("lost: networks whose loss is no longer finite; their accuracies and angles are left out")
    lines.append(f"* early transferability (a fall of {FALL:.0f} degrees): {shown} of {len(table['step'])} settings")
    return "\n".join(lines)


def decomposition(
    found: Mapping[tuple[int, str, int], Measured], accuracy: Mapping[int, np.ndarray]
) -> dict[str, np.ndarray]:
    """Directions without each subspace, at each step, by columns.

    Args:
      found: by step, subspace (`NOTHING` where none was taken out) and its number of directions.
      accuracy: by step, `[M]`.

    Returns:
      `step`, `subspace`, `rank`, how many networks are `lost` (their outputs are not finite) and in no mean, and with
      95 % intervals over networks: `angle` in degrees, `share` of the directions' squared length that was taken out,
      success of attacks along the component left (`off`) and along the one taken out (`inside`), `accuracy`.
    """
    rows = []
    for (step, subspace, rank), measured in found.items():
        model = np.zeros(len(measured.share), int)
        pair, ring = pairs(1, len(model))[0], attackers(1, len(model))
        over = {
            "angle": stats.pair_mean_ci(measured.angle, pair, model),
            "share": stats.mean_ci(measured.share),
            "off": stats.pair_mean_ci(measured.off, ring, model),
            "inside": stats.pair_mean_ci(measured.inside, ring, model),
            "accuracy": stats.mean_ci(accuracy[step]),
        }
        bounds = {f"{name}_{key}": value for name, i in over.items() for key, value in stats.plain(i).items()}
        lost = int(np.isnan(accuracy[step]).sum())
        rows.append({"step": step, "subspace": subspace, "rank": rank, "lost": lost, **bounds})
    return stats.columns(rows)


def summarize_decomposition(table: Mapping[str, np.ndarray], dimension: int, num_classes: int) -> dict[str, Any]:
    """How many directions are enough, ready for JSON.

    Returns:
      The law of random angles, `chance`, and in `enough` for each step and subspace the smallest measured number of
      directions from which on the mean angle is within `NEAR` degrees of the random mean, by the mean and by both ends
      of its interval: `{mean, low, high}`; None where that is more than was measured. Steps at which no network has a
      direction are left out.
    """
    random = stats.random_angle(dimension).mean()
    enough = []
    for step in np.unique(table["step"]):
        for subspace in dict.fromkeys(table["subspace"].tolist()):
            rows = (table["step"] == step) & np.isin(table["subspace"], [subspace, NOTHING])
            measured = ~np.isnan(table["angle_mean"]) & rows & (table["subspace"] == subspace)
            if subspace == NOTHING or not measured.any():
                continue

            def smallest(bound: str, rows: np.ndarray = rows) -> int | None:
                short = np.flatnonzero(~(table[f"angle_{bound}"][rows] >= random - NEAR))
                after = short[-1] + 1 if len(short) else 0
                ranks = table["rank"][rows]
                return int(ranks[after]) if after < len(ranks) else None

            # The upper end of the angle gives the fewest directions.
            counts = {"mean": smallest("mean"), "low": smallest("high"), "high": smallest("low")}
            enough.append({"step": int(step), "subspace": subspace, **counts})
    return {
        "random": {"dimension": dimension, "mean_angle": random},
        "chance": 1 / num_classes,
        "near": NEAR,
        "enough": enough,
    }


def describe_decomposition(table: Mapping[str, np.ndarray]) -> str:
    """The mean angles, a line for each step and a column for each subspace."""
    kinds = list(dict.fromkeys(zip(table["subspace"].tolist(), table["rank"].astype(int).tolist(), strict=True)))
    lines = []
    for kind in kinds:
        rows = (table["subspace"] == kind[0]) & (table["rank"] == kind[1])
        cells = " ".join(
            f"{dict(zip(table['step'][rows], table['angle_mean'][rows], strict=True)).get(step, math.nan):6.1f}"
            for step in np.unique(table["step"])
        )
        lines.append(f"{kind[0]:28} {kind[1]:5} {cells}")
    steps = " ".join(f"{step:6.0f}" for step in np.unique(table["step"]))
    return "\n".join(["mean angles in degrees", f"{'off the span of':28} {'rank':>5} step {steps}", *lines])


def random_angles(
    by_dimension: Mapping[int, np.ndarray], rare: np.ndarray, dimension: int, factors: Sequence[float]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """BenShmuel (2022), Tables 3 and 4, the exact law and samples beside them.

    Args:
      by_dimension: for each dimension, sampled angles `[seeds, pairs]` in degrees.
      rare: angles `[seeds, pairs]` in `dimension` dimensions.
      factors: k, for the angles `arccos(k / sqrt(dimension))`.

    Returns:
      Table 3 by columns (dimension; the paper's typical angle; the exact mean; the sampled one with its 95 % interval
      over seeds; degrees), Table 4 by columns (factor; angle in degrees; Markov's bound, the exact probability and the
      sampled share of pairs with its interval), and the smallest sampled angle with what the exact law expects.
    """
    laws = [stats.random_angle(d) for d in by_dimension]
    sampled = [stats.mean_ci(angles.mean(1, dtype=np.float64)) for angles in by_dimension.values()]
    typical = {
        "dimension": np.array(list(by_dimension)),
        "typical": np.array([law.typical() for law in laws]),
        "exact": np.array([law.mean() for law in laws]),
        **{f"sampled_{bound}": np.array([getattr(s, bound) for s in sampled]) for bound in stats.Interval._fields},
    }
    law, factor = stats.random_angle(dimension), np.array(factors, np.float64)
    angle = np.rad2deg(np.arccos(np.minimum(factor / np.sqrt(dimension), 1)))
    shares = stats.mean_ci((rare[:, :, None] <= angle).mean(1))
    unlikely = {
        "factor": factor,
        "angle": angle,
        "markov": law.markov_bound(angle),
        "exact": law.cdf(angle),
        **{f"sampled_{bound}": getattr(shares, bound) for bound in stats.Interval._fields},
    }
    least = {
        "dimension": dimension,
        "num_pairs": rare.shape[1],
        "num_seeds": len(rare),
        "least": stats.plain(stats.mean_ci(rare.min(1))),
        "expected": {
            name: law.least(rare.shape[1], p) for name, p in (("low", 0.025), ("median", 0.5), ("high", 0.975))
        },
    }
    return typical, unlikely, least


def describe_random_angles(
    typical: Mapping[str, np.ndarray], unlikely: Mapping[str, np.ndarray], summary: Mapping[str, Any]
) -> str:
    """Both tables, and a sentence."""
    lines = [f"{'dimension':>9} {'typical angle':>14} {'exact mean':>11}   sampled mean, degrees [95 %]"]
    for i, dimension in enumerate(typical["dimension"]):
        text = stats.cell(typical, "sampled", i, 2)
        lines.append(f"{dimension:9.0f} {typical['typical'][i]:14.2f} {typical['exact'][i]:11.2f}   {text}")
    lines.append(f"\n{'angle':>9} {'Markov bound':>14} {'exact':>11}   sampled share of pairs [95 %]")
    for i, angle in enumerate(unlikely["angle"]):
        text = stats.cell(unlikely, "sampled", i, 5)
        lines.append(f"{angle:9.2f} {unlikely['markov'][i]:14.4f} {unlikely['exact'][i]:11.3g}   {text}")
    least, expected = summary["least"], summary["expected"]
    lines.append(
        f"\nThe smallest of {summary['num_pairs']} angles in {summary['dimension']} dimensions, over "
        f"{summary['num_seeds']} seeds: {stats.interval_text(least, 2)} degrees;\nby the exact law it has the median "
        f"{expected['median']:.2f} and lies between {expected['low']:.2f} and {expected['high']:.2f} 95 times in 100."
    )
    return "\n".join(lines)


def updates(
    of_networks: Mapping[str, Sequence[Angles]],
    of_pairs: Mapping[str, tuple[Sequence[Angles], np.ndarray, np.ndarray]],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """BenShmuel (2022), Tables 1 and 2, over many networks.

    Args:
      of_networks: under each name the angles of every network.
      of_pairs: under each name the angles of every pair of networks, with `pair` and `model` of `population.pairs`.

    Returns:
      The tables by columns (`what`, and the mean in degrees with its 95 % interval over networks), and the histograms
      by columns (`degree`, and for each name the share of the angles from there to the next degree).
    """
    values = lambda angles: np.array([each.mean for each in angles], np.float64)
    means = {name: stats.mean_ci(values(angles)) for name, angles in of_networks.items()}
    means |= {name: stats.pair_mean_ci(values(angles), *pairs) for name, (angles, *pairs) in of_pairs.items()}
    table = {"what": np.array(list(means))}
    table |= {bound: np.array([getattr(m, bound) for m in means.values()]) for bound in stats.Interval._fields}
    every = {**of_networks, **{name: angles for name, (angles, *_) in of_pairs.items()}}
    shares = {name: stats.mean_ci([each.histogram for each in angles]).mean for name, angles in every.items()}
    return table, {"degree": np.arange(BINS), **shares}


def summarize_updates(
    table: Mapping[str, np.ndarray], steps: Mapping[str, Sequence[Step]], dimension: int
) -> dict[str, Any]:
    """The tables ready for JSON, with the update vectors that were left out and the size of the large step.

    Args:
      steps: the networks of each architecture.
      dimension: D, for the law of random angles.
    """
    return {
        "table": [{key: _item(column[i]) for key, column in table.items()} for i in range(len(table["what"]))],
        "random": {"dimension": dimension, "mean_angle": stats.random_angle(dimension).mean()},
        "num_networks": len(next(iter(steps.values()))),
        "unmoved": {name: sum(int(np.isnan(s.vectors[:, 0]).sum()) for s in of) for name, of in steps.items()},
        "vectors": {name: sum(len(s.vectors) for s in of) for name, of in steps.items()},
        "large_step_over_weights": {name: _median(float(s.ratio) for s in of) for name, of in steps.items()},
    }


def describe_updates(table: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> str:
    """The tables and what was left out."""
    lines = [f"{'update vectors':40} mean angle, degrees [95 %]"]
    for i, name in enumerate(table["what"]):
        lines.append(
            f"{name:40} {stats.interval_text({bound: float(table[bound][i]) for bound in stats.Interval._fields}, 2)}"
        )
    lines.append(
        f"random directions in {summary['random']['dimension']} dimensions: {summary['random']['mean_angle']:.2f}"
    )
    for name, unmoved in summary["unmoved"].items():
        ratio = summary["large_step_over_weights"][name]
        lines.append(
            f"{name}: {unmoved} of {summary['vectors'][name]} units did not move and are left out; "
            f"the large step is {ratio:.3g} times the first layer's weights"
        )
    return "\n".join(lines)


def _median(values: Iterable[Any]) -> float:
    """The median of those that are finite; NaN where none is."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def _number(verdict: bool | None) -> float:
    return math.nan if verdict is None else int(verdict)


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
