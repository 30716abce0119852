"""How often the 95 % intervals of `jtrans.stats` and `jtrans.scores` cover the truth, by simulation.

python benchmarks/coverage.py > docs/coverage.md

It takes about five minutes, most of them for scores. All seeds are fixed, so the page changes only with the code.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import scipy.special

from jtrans import scores, stats
from jtrans.stats import Interval

REPETITIONS = 4000
CURVES = 2000  # repetitions where a step is selected, which are computed one by one
DATA_SETS = 400  # repetitions of the intervals of scores, each with bootstrap samples of its own
RESAMPLES = 100
NETWORKS = (4, 8, 16)
IMAGES = 200  # for each share
STEPS = 10  # to select from

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
Sample = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]  # a number of examples, in two arrays


class Law(NamedTuple):
    """How to draw effects of networks with mean 0, and the coverage that an interval must have."""

    draw: Draw
    least: float


LAWS = {
    "normal": Law(lambda rng, shape: rng.normal(size=shape), 0.94),
    "lognormal": Law(lambda rng, shape: rng.lognormal(size=shape) - np.exp(0.5), 0.82),
    "t, 3 degrees of freedom": Law(lambda rng, shape: rng.standard_t(3, size=shape), 0.94),
    "10 % outliers": Law(lambda rng, shape: rng.normal(size=shape) * np.where(rng.random(shape) < 0.1, 10, 1), 0.94),
}


class Shares(NamedTuple):
    """How to draw the true shares of networks, their mean, and the coverage that an interval must have."""

    draw: Draw
    mean: float
    least: float


def beta(mean: float, deviation: float, least: float) -> Shares:
    """Shares with this mean and standard deviation."""
    total = mean * (1 - mean) / deviation**2 - 1
    return Shares(lambda rng, shape: rng.beta(mean * total, (1 - mean) * total, size=shape), mean, least)


def either(low: float, high: float, chance: float) -> Shares:
    """Shares that are `high` with a probability of `chance`, otherwise `low`."""
    draw = lambda rng, shape: np.where(rng.random(shape) < chance, high, low)
    return Shares(draw, low + chance * (high - low), 0.94)


SHARES = {
    "all 0.5": either(0.5, 0.5, 1),
    "all 0.002": either(0.002, 0.002, 1),
    "beta, 0.5, deviation 0.1": beta(0.5, 0.1, 0.94),
    "beta, 0.05, deviation 0.02": beta(0.05, 0.02, 0.94),
    "beta, 0.05, deviation 0.1": beta(0.05, 0.1, 0.82),
    "beta, 0.9, deviation 0.2": beta(0.9, 0.2, 0.82),
    "0 or 0.3, 20 % are 0.3": either(0, 0.3, 0.2),
    "0 or 1, 50 % are 1": either(0, 1, 0.5),
    "0 or 1, 80 % are 1": either(0, 1, 0.8),
}


class Row(NamedTuple):
    """A simulated setting: numbers by column, the first is the coverage, which must be `least` or more."""

    setting: str
    size: int  # the number of networks, or of examples
    columns: dict[str, float]
    least: float


def covers(interval: Interval, truth: float | np.ndarray = 0.0) -> float:
    return float(((interval.low <= truth) & (truth <= interval.high)).mean())


def width(interval: Interval) -> float:
    return float(np.median(interval.high - interval.low))


def pairs(networks: int, models: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of one architecture, or across two."""
    if models == 1:
        return np.stack(np.triu_indices(networks, 1), axis=1), np.zeros(networks, int)
    first, second = np.indices((networks, networks)).reshape(2, -1)
    return np.stack([first, networks + second], axis=1), np.repeat([0, 1], networks)


def settings() -> Iterator[tuple[str, Law, int]]:
    """Each law of effects with each number of networks."""
    return ((name, law, networks) for name, law in LAWS.items() for networks in NETWORKS)


def means() -> Iterator[Row]:
    """Means of independent networks (`mean_ci`): Student's t

    Exact for normal effects. Outliers and heavy tails make it wider than needed. For skewed effects too many intervals
    miss the truth on the side of the long tail; this becomes better slowly with the number of networks.
    """
    for name, law, networks in settings():
        interval = stats.mean_ci(law.draw(np.random.default_rng(0), (networks, REPETITIONS)))
        yield Row(name, networks, {"coverage": covers(interval)}, law.least)


def one_group() -> Iterator[Row]:
    """Means over all pairs of one architecture (`pair_mean_ci`): jackknife over networks

    A pair's value is the sum of its networks' effects and normal noise. In the last column pairs are wrongly taken for
    independent.
    """
    for name, law, networks in settings():
        rng, (pair, model) = np.random.default_rng(0), pairs(networks, 1)
        effects = law.draw(rng, (networks, REPETITIONS))
        values = effects[pair].sum(1) + rng.normal(size=(len(pair), REPETITIONS))
        coverage = covers(stats.pair_mean_ci(values, pair, model))
        yield Row(name, networks, {"coverage": coverage, "by pairs": covers(stats.mean_ci(values))}, law.least)


def two_groups() -> Iterator[Row]:
    """Means over all pairs across two architectures (`pair_mean_ci`), one with effects five times as wide

    With Satterthwaite's degrees of freedom; the last column has the sum of those of the two groups, which is too many.
    "networks" counts those of each architecture.
    """
    for name, law, networks in settings():
        rng, (pair, model) = np.random.default_rng(0), pairs(networks, 2)
        effects = law.draw(rng, (2 * networks, REPETITIONS)) * np.where(model == 0, 1, 5)[:, None]
        values = effects[pair].sum(1) + rng.normal(size=(len(pair), REPETITIONS))
        estimate = stats.pair_mean(values, pair, model)
        summed = estimate._replace(freedom=2 * networks - 2).interval()
        yield Row(name, networks, {"coverage": covers(estimate.interval()), "summed": covers(summed)}, law.least)


def selected() -> Iterator[Row]:
    """Means over pairs at the step where they are lowest (`selected_minimum`)

    Of ten steps, where the true mean is the same at all, or rises by 1 or 5 a step from its minimum in the middle; a
    network's effects (normal, standard deviation 1) at two steps are correlated by 0 or 0.8.

    "coverage" is of the true mean at the chosen steps; "of the minimum" is of the lowest true mean, which is below that
    where the data do not show clearly which step is lowest. "naive" is `pair_mean_ci` at the step that the same data
    chose: in a flat curve it is too low. The bias is the mean of the estimate less the true mean at the chosen steps;
    its standard error is 0.03 or less.
    """
    for models, slope, correlation, networks in itertools.product((1, 2), (0, 1, 5), (0, 0.8), (8, 16)):
        shape = f"rises by {slope}" if slope else "flat"
        name = f"{shape}, correlation {correlation:g}, {('one architecture', 'two architectures')[models - 1]}"
        yield Row(name, networks, of_curves(networks, models, slope, correlation), 0.94)


def of_curves(networks: int, models: int, slope: float, correlation: float) -> dict[str, float]:
    rng, (pair, model) = np.random.default_rng(0), pairs(networks, models)
    truth = slope * np.abs(np.arange(STEPS) - STEPS // 2)
    results = []
    for _ in range(CURVES):
        shared, of_step = rng.normal(size=(len(model), 1)), rng.normal(size=(len(model), STEPS))
        effects = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * of_step
        values = truth + effects[pair].sum(1) + rng.normal(size=(len(pair), STEPS))
        estimate, chosen = stats.selected_minimum(values, pair, model)
        interval, at_chosen, lowest = estimate.interval(), truth[chosen].mean(), values.mean(0).argmin()
        naive = stats.pair_mean_ci(values[:, lowest], pair, model)
        results.append(
            {
                "coverage": covers(interval, at_chosen),
                "of the minimum": covers(interval, 0),
                "naive": covers(naive, truth[lowest]),
                "bias": estimate.mean - at_chosen,
                "naive bias": naive.mean - truth[lowest],
                "width": width(interval),
                "naive width": width(naive),
            }
        )
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}


def shares() -> Iterator[Row]:
    """Means of independent shares (`share_ci`)

    Each network's share is counted on 200 images; the first column says how the true shares differ between networks.
    The other columns: Student's t and how often it leaves [0, 1]; Student's t for the logits, with half an image more
    of either kind; Wilson's interval for all images of all networks, as if networks did not differ. `share_ci` never
    leaves [0, 1] and covers no less than Student's t, and much more where many networks have a share of 0 or 1. Few
    networks that are nearly all near 0 can still hide a rare large share.
    """
    for (name, (draw, truth, least)), networks in itertools.product(SHARES.items(), NETWORKS):
        rng = np.random.default_rng(0)
        values = rng.binomial(IMAGES, draw(rng, (networks, REPETITIONS))) / IMAGES
        interval, student = stats.share_ci(values), stats.mean_ci(values)
        pooled = stats.wilson(np.rint(values.sum(0) * IMAGES), np.full(REPETITIONS, networks * IMAGES))
        columns = {
            "coverage": covers(interval, truth),
            "width": width(interval),
            "t": covers(student, truth),
            "t leaves [0, 1]": float(((student.low < 0) | (student.high > 1)).mean()),
            "t of logits": covers(of_logits(values), truth),
            "by images": covers(pooled, truth),
        }
        yield Row(name, networks, columns, least)


def of_logits(values: np.ndarray) -> Interval:
    """Student's t for the logits of the shares, each with half an image more of either kind."""
    logits = scipy.special.logit((values * IMAGES + 0.5) / (IMAGES + 1))
    return Interval(*(scipy.special.expit(bound) for bound in stats.mean_ci(logits)))


def ring(networks: int, models: int) -> tuple[np.ndarray, np.ndarray]:
    """Each network of the first architecture, and the next of the last, whose attack it faces."""
    target = np.arange(networks)
    attacker = (models - 1) * networks + (target + 1) % networks
    return np.stack([target, attacker], axis=1), np.repeat(np.arange(models), networks)


def of_attacks(law: Law, networks: int, models: int, alike: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of attacks round a ring: the effect of the attacker, that of the target, and noise; their ring."""
    rng, (pair, model) = np.random.default_rng(0), ring(networks, models)
    as_target, as_attacker = law.draw(rng, (2, len(model), REPETITIONS))
    as_attacker = as_target if alike else as_attacker
    noise = rng.normal(size=(networks, REPETITIONS)) / 2
    return as_target[pair[:, 0]] + as_attacker[pair[:, 1]] + noise, pair, model


def rings() -> Iterator[Row]:
    """Means of attacks round a ring: jackknife over networks (`pair_mean_ci`), or only attacks without a common network

    Network i is attacked along the direction of network i + 1. A value is the sum of the target's effect, of the
    attacker's and of noise; a network's effects in its two parts are the same or independent. "disjoint" is Student's t
    for every other attack, so that no two share a network; across two architectures no two attacks do. "by attacks"
    takes all attacks of one architecture for independent.

    Disjoint attacks are exact for normal effects, but with 4 networks there are two of them, and the interval is almost
    three times as wide. With skewed effects the jackknife covers as much or more, but for 4 networks with the same
    effects in both parts. So jtrans uses the jackknife, with all attacks. It is wider than needed where attacks do not
    depend on each other, as across two architectures.
    """
    kinds = {"independent effects": (1, False), "same effects": (1, True), "two architectures": (2, False)}
    for law, (kind, (models, alike)), networks in itertools.product(("normal", "lognormal"), kinds.items(), NETWORKS):
        values, pair, model = of_attacks(LAWS[law], networks, models, alike)
        interval = stats.pair_mean_ci(values, pair, model)
        disjoint = stats.mean_ci(values[:: 3 - models])
        columns = {
            "coverage": covers(interval),
            "width": width(interval),
            "disjoint": covers(disjoint),
            "disjoint width": width(disjoint),
            "by attacks": covers(stats.mean_ci(values)),
        }
        yield Row(f"{law}, {kind}", networks, columns, 0.93 if law == "normal" else 0.82)


def ring_shares() -> Iterator[Row]:
    """Success rates of attacks round a ring (`pair_mean(...).share_interval()`)

    A rate is the logistic function of the level and such a sum of normal effects, the same in both parts, and counted
    on 200 images.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    for level, networks in itertools.product((0, -3, -7), NETWORKS):
        values, pair, model = of_attacks(LAWS["normal"], networks, 1, True)
        rates = np.random.default_rng(1).binomial(IMAGES, scipy.special.expit(level + values)) / IMAGES
        truth = np.average(scipy.special.expit(level + 1.5 * nodes), weights=weights)  # 1.5^2 = 1 + 1 + 1/4
        estimate = stats.pair_mean(rates, pair, model)
        interval, student = estimate.share_interval(), estimate.interval()
        columns = {
            "coverage": covers(interval, truth),
            "width": width(interval),
            "t": covers(student, truth),
            "t leaves [0, 1]": float(((student.low < 0) | (student.high > 1)).mean()),
        }
        yield Row(f"level {level}, mean {truth:.3f}", networks, columns, 0.82 if level < 0 else 0.92)


def classes(size: int, features: int, apart: float) -> Sample:
    """How to draw normal features of as many examples of each class, whose means are `apart`, and their labels."""
    means = apart * np.random.default_rng(1).normal(size=(size, features))

    def draw(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % size
        return means[labels] + rng.normal(size=(count, features)), labels

    return draw


def predictions(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of a source of five classes, and the labels of three."""
    features, labels = classes(3, 5, 0.7)(count, rng)
    return scipy.special.softmax(features, axis=1), labels


def alike(features: int) -> Sample:
    """How to draw the features of two networks, half of whose variance they share."""
    return lambda count, rng: tuple(rng.normal(size=(count, features)) + rng.normal(size=(2, count, features)))


def of_difference(pair: np.ndarray, labels: np.ndarray) -> float:
    """How much larger the H-score is by the first half of the features than by the second."""
    first, second = np.split(pair, 2, axis=1)
    return scores.h_score(first, labels) - scores.h_score(second, labels)


SCORES = (
    ("LogME, 3 classes, 5 features", 120, scores.logme, classes(3, 5, 0.7), 0.94),
    ("LogME, 3 classes, 40 features", 120, scores.logme, classes(3, 40, 0.2), 0.94),
    ("LEEP, 3 classes, 5 of the source", 60, scores.leep, predictions, 0.94),
    ("GBC, 3 classes, 5 features", 120, scores.gbc, classes(3, 5, 0.7), 0.94),
    ("GBC, 10 classes, 20 features", 100, scores.gbc, classes(10, 20, 0.4), 0.88),
    ("GBC, 10 classes, 20 features", 300, scores.gbc, classes(10, 20, 0.4), 0.92),
    ("H-score, 3 classes, 5 features", 120, scores.h_score, classes(3, 5, 0.5), 0.94),
    ("H-score, 3 classes, 40 features", 120, scores.h_score, classes(3, 40, 0.2), 0.94),
    ("difference of H-scores, 3 classes, 5 features", 120, of_difference, classes(3, 10, 0.5), 0.94),
    ("CKA, 5 features", 120, scores.linear_cka, alike(5), 0.94),
    ("CKA, 40 features", 120, scores.linear_cka, alike(40), 0.94),
)


def of_scores() -> Iterator[Row]:
    """Transferability scores (`scores.interval`): a bootstrap over examples

    The truth is the mean score of data sets of the same size. Features are normal within each class. A width of 1 is
    that of the middle 95 % of a normal variable with the score's standard deviation over data sets. "percentiles" is
    the interval between the percentiles of the scores of the same bootstrap samples: repeated examples shift these
    scores, the more the fewer examples there are for each feature.

    With ten examples of each class the interval is too narrow. With a feature for every three examples, those of LogME
    and CKA are too wide. N-LEEP takes too long to fit for this table; a slow test of its own holds its coverage.
    """
    for name, examples, score, draw, least in SCORES:
        yield Row(name, examples, of_samples(score, draw, examples), least)


def of_samples(score: Callable[..., float], draw: Sample, examples: int) -> dict[str, float]:
    intervals, percentiles = [], []
    for number in range(DATA_SETS):
        values: list[float] = []  # the score, then those of the bootstrap samples

        def recorded(source: np.ndarray, target: np.ndarray, values: list[float] = values) -> float:
            values.append(score(source, target))
            return values[-1]

        sample = draw(examples, np.random.default_rng(number))
        intervals.append(scores.interval(recorded, *sample, jax.random.key(number), resamples=RESAMPLES))
        percentiles.append((values[0], *np.quantile(values[1:], (0.025, 0.975))))
    interval, by_percentiles = (Interval(*np.transpose(each)) for each in (intervals, percentiles))
    truth, spread = interval.mean.mean(), interval.mean.std()
    return {
        "coverage": covers(interval, truth),
        "width": width(interval) / (2 * 1.96 * spread),
        "percentiles": covers(by_percentiles, truth),
    }


def standard_error(coverage: float, repetitions: int) -> float:
    return float(np.sqrt(coverage * (1 - coverage) / repetitions))


TABLES = (means, one_group, two_groups, selected, shares, rings, ring_shares, of_scores)
START = f"""# Coverage of the intervals

How often the 95 % intervals of `jtrans.stats` and `jtrans.scores` contain the truth, by simulation with fixed seeds.
`python benchmarks/coverage.py > docs/coverage.md` writes this page.

There are {REPETITIONS:,} repetitions a row, {CURVES:,} where a step is selected, {DATA_SETS:,} for scores. The standard
error of a coverage of 0.95 is {standard_error(0.95, REPETITIONS):.4f}, of selected steps \
{standard_error(0.95, CURVES):.4f}, of scores {standard_error(0.95, DATA_SETS):.4f}.
A slow test holds every coverage to "at least", less three standard errors. Widths are medians, of selected steps means.

The effects of networks are drawn from four laws: normal; lognormal (of a standard normal variable), which is skewed;
Student's t with 3 degrees of freedom; and outliers: normal, with 10 % of the values ten times as wide.
"""


def section(table: Callable[[], Iterator[Row]], rows: Sequence[Row]) -> str:
    """A table with its title and text, which are its function's docstring, in Markdown."""
    title, *text = inspect.cleandoc(table.__doc__).splitlines()
    header = ["setting", "examples" if table is of_scores else "networks", *rows[0].columns, "at least"]
    cells = [[r.setting, r.size, *(f"{v:.3f}" for v in r.columns.values()), f"{r.least:.2f}"] for r in rows]
    lines = ("| " + " | ".join(map(str, line)) + " |" for line in (header, ["---"] * len(header), *cells))
    return "\n".join([f"## {title}", *text, "", *lines, ""])


def page(tables: Mapping[Callable[[], Iterator[Row]], Sequence[Row]]) -> str:
    return "\n".join([START, *(section(table, rows) for table, rows in tables.items())])


if __name__ == "__main__":
    print(page({table: list(table()) for table in TABLES}), end="")
