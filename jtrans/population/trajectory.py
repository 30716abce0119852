"""A whole run: what was measured of every network and pair, step by step; its means, intervals and verdict.

A trajectory is a mapping from names to arrays, as `trajectory.npz` holds it, for T measured steps, P pairs, M networks
and N test images:

- `step [T]`, 0 before training; `pair [P, 2]`, the networks compared; `model [M]`, the architecture of each network, 0
  or 1; `num_examples`, N;
- each of `observe.NETWORK_MEASURES [M, T]`: `accuracy` (share of images; NaN where the loss is not finite), `loss`
  (nats), `undirected` (the number of images without a direction, which are in no mean), `constant_share` (the share of
  a direction's squared length that is the same at every position), `auc` (the area under the ROC curve);
- each of `observe.PAIR_MEASURES [P, T]`, means over images: `angle`, folded, 0 to 90 degrees; `signed_angle`, 0 to 180
  degrees; `agreement`, the share of images where the cosine is above 0;
- where the networks were attacked `success [M, T, 3, 3]` of the first architecture's, as in `observe.Measurement`;
  where it was kept `angle_examples [P, T, N]`, the angle of each image;
- where `pair` is a sample each of `observe.Measurement.every [M or 90, T]`, of all pairs: of these are all means.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.optimize

from jtrans import stats
from jtrans.attacks import DENOMINATORS
from jtrans.population import observe
from jtrans.population.engine import Population
from jtrans.population.observe import ATTACKS, NETWORK_MEASURES, PAIR_MEASURES, Measurement
from jtrans.stats import Estimate, Interval

Trajectory = dict[str, np.ndarray]

FALL = 15.0  # degrees below the random mean that count as early transferability
QUANTILE = 0.01  # of random directions, below which a mean angle is called below random
# Success rates by FGSM, and whose direction it goes along.
SUCCESS = dict(zip(("success_transferred", "success_own", "success_random"), ATTACKS, strict=True))


def collect(population: Population, steps: Sequence[int], measurements: Sequence[Measurement]) -> Trajectory:
    """The measurements of a population at the given steps as one trajectory."""
    _, model = observe.pairs(len(population.models), population.num_networks)
    count = np.array(len(population.test.labels))
    fixed = {"step": np.array(steps), "pair": population.pair, "model": model, "num_examples": count}
    stacked = lambda of_steps: {name: np.stack([of[name] for of in of_steps], axis=1) for name in of_steps[0]}
    return fixed | {name: values for part in zip(*measurements, strict=True) for name, values in stacked(part).items()}


def measurements(trajectory: Mapping[str, np.ndarray]) -> list[Measurement]:
    """What `collect` put together."""
    networks = [name for name in (*NETWORK_MEASURES, "success") if name in trajectory]
    pairs = [name for name in (*PAIR_MEASURES, "angle_examples") if name in trajectory]
    every = [name for name in trajectory if name.startswith("every_")]
    at = lambda names, t: {name: trajectory[name][:, t] for name in names}
    return [Measurement(at(networks, t), at(pairs, t), at(every, t)) for t in range(len(trajectory["step"]))]


def select(trajectory: Mapping[str, np.ndarray], networks: np.ndarray) -> Trajectory:
    """The trajectory of some of its networks of one architecture, given by their numbers, and of the pairs among them.

    Success rates, which are of a ring of networks, and means over pairs with other networks are left out.
    """
    number = np.full(len(trajectory["model"]), -1)
    number[networks] = np.arange(len(networks))
    pair = number[trajectory["pair"]]
    among = (pair >= 0).all(axis=1)
    rows = dict.fromkeys(("model", *NETWORK_MEASURES), networks)
    rows |= dict.fromkeys((*PAIR_MEASURES, "angle_examples"), among)
    kept = {n: v for n, v in trajectory.items() if n != "success" and not n.startswith("every_")}
    selected = {n: v[rows[n]] if n in rows else v for n, v in kept.items()}
    return selected | {"pair": pair[among]}


def curves(trajectory: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """Means and 95 % intervals at each measured step.

    Of every pair measure (over pairs, by a jackknife over networks), of `one_sign` (the share of pairs whose cosines
    have the same sign at all images), of every network measure (over networks; one that is not finite is left out) and,
    where networks were attacked, of a share for each of `SUCCESS`: of the images that the attacked network classifies
    rightly, those that the attack makes it get wrong.
    """
    pair, model = trajectory["pair"], trajectory["model"]
    finite = lambda values: np.where(np.isfinite(values), values, np.nan)
    over = {
        name: _interval(_over_pairs(trajectory, name), measure.share)
        for name, measure in PAIR_MEASURES.items()
        if name in trajectory
    }
    over |= {
        name: interval_over(name, finite(trajectory[name]), pair, model)
        for name in NETWORK_MEASURES
        if name in trajectory
    }
    if "agreement" in trajectory:
        over["one_sign"] = _over_pairs(trajectory, "one_sign").share_interval()
    if "success" in trajectory:
        num_models = model.max() + 1
        ring = observe.attackers(num_models, len(model) // num_models)
        of_target = trajectory["success"][..., DENOMINATORS.index("those the target gets right")]
        for attack, name in enumerate(SUCCESS):
            over[name] = stats.pair_mean(of_target[..., attack], ring, model).share_interval()
    return over


def interval_over(name: str, values: np.ndarray, pair: np.ndarray, model: np.ndarray) -> Interval:
    """The mean of a measure and its 95 % interval, of values `[P, ...]` over pairs, or `[M, ...]` over networks."""
    of_pairs = name in PAIR_MEASURES
    estimate = stats.pair_mean(values, pair, model) if of_pairs else stats.network_mean(values, model)
    return _interval(estimate, PAIR_MEASURES[name].share if of_pairs else NETWORK_MEASURES[name].share)


def _over_pairs(trajectory: Mapping[str, np.ndarray], name: str) -> Estimate:
    """The mean of a pair measure or of `one_sign` at each step; of all pairs, also where those kept are a sample."""
    if "every_count" in trajectory:
        of_networks = trajectory[f"every_{name}"], trajectory["every_count"]
        return stats.pair_mean_of_networks(*of_networks, trajectory["model"])
    values = observe.one_sign(trajectory["agreement"]) if name == "one_sign" else trajectory[name]
    return stats.pair_mean(values, trajectory["pair"], trajectory["model"])


def _interval(estimate: Estimate, is_share: bool) -> Interval:
    return estimate.share_interval() if is_share else estimate.interval()


def random(dimensions: np.ndarray) -> dict[str, Any]:
    """The exact law of the angle between random directions, ready for JSON: its mean and its low quantile, degrees.

    `dimensions` `[N]` are those of each example's directions. Where they differ, the law is the mixture over examples,
    and `dimension` their mean.
    """
    of_laws, counts = np.unique(dimensions, return_counts=True)
    laws, average = list(map(stats.random_angle, of_laws.tolist())), partial(np.dot, counts / counts.sum())
    low, high = (float(law.quantile(QUANTILE)) for law in (laws[0], laws[-1]))
    excess = lambda angle: average([law.cdf(angle) for law in laws]) - QUANTILE
    return {
        "dimension": laws[0].dimension if len(laws) == 1 else float(average(of_laws)),
        "mean_angle": float(average([law.mean() for law in laws])),
        "quantile": QUANTILE,
        "quantile_angle": low if low == high else scipy.optimize.brentq(excess, low, high),
    }


def summarize(
    trajectory: Mapping[str, np.ndarray], over: Mapping[str, Interval], dimensions: np.ndarray, num_classes: int
) -> dict[str, Any]:
    """The run's findings, ready for JSON, from its `curves`, the `dimensions` of `random`, and the classes' number, K.

    A moment is `{step}` and each of the curves as `{mean, low, high}`.

    Returns:
      `random` (the law's mean and 1 % quantile, degrees), `chance` (1 / K), the moments `before_training`, `last`,
      `lowest`, `lowest_at_chance` (among the steps before the mean accuracy first leaves chance) and
      `first_below_random` (the first below the quantile; None if there is none), `early_transferability` (whether
      `lowest_at_chance` is `FALL` degrees or more below the random mean; None where no angle was measured at chance),
      `selected` (the lowest angle at chance, before any network is lost, without the bias from choosing its step on the
      same networks: `stats.selected_minimum`, as `{mean, low, high}`, with its degrees of `freedom` and the two chosen
      `steps`),
      and the counts of what was left out: `undirected` directions (of `directions`) and `non_finite`: the networks
      whose loss stopped being finite, with the step where that was seen.
    """
    law, angle = random(dimensions), over["angle"].mean
    below = np.flatnonzero(angle < law["quantile_angle"])

    def moment(index: int) -> dict[str, Any]:
        at = {name: stats.plain(Interval(*(bound[index] for bound in interval))) for name, interval in over.items()}
        return {"step": int(trajectory["step"][index]), **at}

    lowest_at_chance = _lowest(angle[: steps_at_chance(over["accuracy"].mean, 1 / num_classes)])
    lowest_angle = angle[lowest_at_chance]

    def at_chance_of(networks: np.ndarray) -> int:
        # NaN from where a network is lost: those left are no longer the networks that were to be measured.
        return steps_at_chance(trajectory["accuracy"][networks].mean(0), 1 / num_classes)

    model = trajectory["model"]
    if "every_count" in trajectory:
        within = trajectory["every_half_angle"], trajectory["every_half_count"]
        selected, chosen = stats.selected_minimum_of_networks(*within, model, at_chance_of)
    else:
        selected, chosen = stats.selected_minimum(trajectory["angle"], trajectory["pair"], model, at_chance_of)
    return {
        "random": law,
        "chance": 1 / num_classes,
        "before_training": moment(0),
        "first_below_random": moment(below[0]) if len(below) else None,
        "lowest_at_chance": moment(lowest_at_chance),
        "lowest": moment(_lowest(angle)),
        "last": moment(-1),
        "early_transferability": None if np.isnan(lowest_angle) else bool(lowest_angle <= law["mean_angle"] - FALL),
        "selected": {
            **stats.plain(selected.interval()),
            "freedom": float(selected.freedom),
            "steps": [int(trajectory["step"][index]) if index >= 0 else None for index in chosen],
        },
        "directions": int(trajectory["accuracy"].size * trajectory["num_examples"]),
        "undirected": int(trajectory["undirected"].sum()),
        "non_finite": [
            {"network": int(network), "step": int(trajectory["step"][np.argmin(finite)])}
            for network, finite in enumerate(np.isfinite(trajectory["loss"]))
            if not finite.all()
        ],
    }


def at_chance(chance: float) -> float:
    """How near to chance, 1 / K, a mean accuracy is "at chance": 0.05, and for more than ten classes half of chance."""
    return min(0.05, chance / 2)


def steps_at_chance(accuracy: np.ndarray, chance: float) -> int:
    """How many of the measured steps there are before the mean accuracy `[..., T]` first leaves chance, 1 / K.

    It has left where any of the means at a step has, or is NaN, since no network is left. That before training is of
    random weights, which is no learning, wherever it stands.
    """
    off = ~(np.abs(accuracy[..., 1:] - chance) <= at_chance(chance))
    left = np.flatnonzero(off.reshape(-1, off.shape[-1]).any(0))
    return left[0] + 1 if len(left) else accuracy.shape[-1]


def _lowest(angle: np.ndarray) -> int:
    """The index of the lowest angle that there is; 0 where there is none."""
    return 0 if np.isnan(angle).all() else int(np.nanargmin(angle))
