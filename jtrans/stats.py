"""Means with confidence intervals over seeds, and the distribution of the angle between random directions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.integrate
import scipy.sparse
import scipy.stats


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval; `low` and `high` are NaN where there are too few values."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plain(interval: Interval) -> dict[str, float]:
    """The interval of a single mean, as plain numbers for JSON."""
    return {bound: float(value) for bound, value in interval._asdict().items()}


def interval_text(interval: dict[str, float], digits: int) -> str:
    """`mean [low, high]`, or the mean alone where there is no interval."""
    mean, low, high = (math.nan if interval[key] is None else interval[key] for key in ("mean", "low", "high"))
    has_interval = not (math.isnan(low) or math.isnan(high))
    return f"{mean:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if has_interval else "")


def _student(mean: np.ndarray, standard_error: np.ndarray, freedom: np.ndarray | int) -> Interval:
    margin = scipy.stats.t.ppf(0.975, freedom) * standard_error  # NaN without a degree of freedom
    return Interval(mean, mean - margin, mean + margin)


def mean_ci(values: np.ndarray, axis: int = 0) -> Interval:
    """The mean of values that are independent along `axis` and its 95 % interval by Student's t.

    NaN entries are left out; n remaining values give n - 1 degrees of freedom. The bounds are NaN where n is 1, the
    mean too where n is 0.
    """
    values = np.asarray(values, np.float64)
    valid, mean = ~np.isnan(values), _mean(values, axis)
    count = valid.sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, as documented
        variance = np.square(np.where(valid, values - np.expand_dims(mean, axis), 0)).sum(axis) / (count - 1)
        return _student(mean, np.sqrt(variance / count), count - 1)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the values that are not NaN; NaN if there are none."""
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as documented
        return np.nansum(values, axis) / (~np.isnan(values)).sum(axis)


def pair_mean_ci(values: np.ndarray, pair: np.ndarray, model: np.ndarray) -> Interval:
    """The mean over pairs of networks and its 95 % interval by a jackknife over networks.

    Pairs that share a network are not independent, so networks, not pairs, are the samples. Each network in turn is
    left out with all its pairs, and the networks of each architecture g add to the variance
    `(n_g - 1) / n_g * sum_i (mean without i - average of these means)^2`. Efron and Stein (1981); Arvesen (1969) for
    averages over pairs.

    Args:
      values: `[P, ...]`, one row per pair; NaN entries are left out. The bounds are NaN where leaving out some network
        leaves no pair.
      pair: `[P, 2]`, the two networks of each pair.
      model: `[M]`, the architecture of each network.
    """
    values, pair = np.asarray(values, np.float64), np.asarray(pair)
    flat = values.reshape(len(pair), math.prod(values.shape[1:]))
    valid, mean = ~np.isnan(flat), _mean(flat, 0)
    centred = np.where(valid, flat - mean, 0)  # so that differences of sums lose no precision
    column = np.broadcast_to(np.arange(len(pair))[:, None], pair.shape)
    entries = np.ones(pair.size, bool), (pair.ravel(), column.ravel())
    includes = scipy.sparse.csr_array(entries, shape=(len(model), len(pair)))
    # Without network i: all pairs minus those that include it.
    count = valid.sum(0) - includes @ valid.astype(int)
    without = mean + (centred.sum(0) - includes @ centred) / np.where(count == 0, np.nan, count)
    return _jackknife(mean.reshape(values.shape[1:]), without.reshape(-1, *values.shape[1:]), model)


def wilson(successes: np.ndarray, count: np.ndarray) -> Interval:
    """The share of successes among `count` independent trials and its 95 % interval (Wilson 1927), in [0, 1].

    For arrays of one shape, `successes` from 0 to `count`; all NaN where `count` is 0.
    """
    successes, count = np.asarray(successes, np.float64), np.asarray(count, np.float64)
    z = scipy.stats.norm.ppf(0.975)

    def low(successes: np.ndarray) -> np.ndarray:
        spread = z * np.sqrt(z**2 / 4 + successes * (count - successes) / count)
        return successes**2 / count / (successes + z**2 / 2 + spread)  # the smaller root, without cancellation

    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as documented
        return Interval(successes / count, low(successes), 1 - low(count - successes))


def jackknife_ci(estimate: Callable[[np.ndarray], np.ndarray], group: np.ndarray) -> Interval:
    """Any estimate from independent networks and its 95 % interval by a jackknife, leaving out each network in turn.

    Args:
      estimate: maps the networks to use, a boolean mask `[M]`, to an array. The bounds are NaN where some network
        cannot be left out.
      group: `[M]`, the group that each network is a sample of, such as its architecture.
    """
    number = np.arange(len(group))
    without = np.stack([estimate(number != i) for i in number])
    return _jackknife(np.asarray(estimate(np.ones(len(group), bool))), without, group)


def _jackknife(whole: np.ndarray, without: np.ndarray, group: np.ndarray) -> Interval:
    """The interval from the estimates `[M, ...]`, each without one network."""
    by_group = [without[np.asarray(group) == label] for label in np.unique(group)]
    variance = sum((len(estimates) - 1) * estimates.var(axis=0) for estimates in by_group)
    return _student(whole, np.sqrt(variance), sum(len(estimates) - 1 for estimates in by_group))


class Correlation(NamedTuple):
    """The correlation of the sources' means with its 95 % interval.

    The p-value is of the two-sided exact permutation test over sources: the share of all pairings whose statistic is at
    least as far from 0.
    """

    statistic: Interval
    p_value: float


def correlation(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator, *, ranks: bool = False, resamples: int = 2000
) -> Correlation:
    """Pearson's or Spearman's correlation over sources, each trained from several seeds.

    The interval is from a bootstrap over the seeds of each source: it shows how much the correlation varies between
    seeds of the same sources. It does not cover other sources; the permutation test does.

    A seed where either quantity is NaN is left out of both means of its source. A source with no seed left is left out
    of the correlation and its test. A bootstrap sample in which a source has no value is left out. All is NaN if fewer
    than 3 sources are left, or either quantity is the same for all of them.

    Args:
      first, second: `[S, seeds]`, for 3 to 9 sources (the test goes through all S! pairings).
      rng: draws the `resamples` bootstrap samples.
      ranks: compute Spearman's correlation.

    Raises:
      ValueError: the shapes differ, or S is not 3 to 9.
    """
    first, second = (np.asarray(values, np.float64) for values in (first, second))
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"second: got the shape {second.shape}; first has {first.shape}; both take [sources, seeds]")
    if not 3 <= len(first) <= 9:
        raise ValueError(f"first: got {len(first)} sources; the exact test takes 3 to 9")
    both = np.stack([first, second])
    both = np.where(np.isnan(both).any(0), np.nan, both)  # a seed that is missing in one is missing in both
    both = both[:, np.isfinite(_mean(both, -1)).all(0)]
    _, sources, seeds = both.shape
    first_mean, second_mean = _mean(both, -1)
    if sources < 3 or constant(first_mean) or constant(second_mean):
        return Correlation(Interval(np.nan, np.nan, np.nan), np.nan)

    distance_from_zero = lambda x, axis: np.abs(_correlate(np.moveaxis(x, axis, -1), second_mean, ranks))
    test = {"permutation_type": "pairings", "alternative": "greater", "n_resamples": np.inf, "vectorized": True}
    permutation = scipy.stats.permutation_test((first_mean,), distance_from_zero, **test)
    resampled = rng.integers(seeds, size=(resamples, sources, seeds))
    first, second = _mean(both[:, np.arange(sources)[:, None], resampled], -1)
    bootstrap = _correlate(first, second, ranks)
    bootstrap = bootstrap[~np.isnan(bootstrap)]  # of samples that make all sources equal, or leave one without a value
    several_seeds = (~np.isnan(both)).sum(-1).max() > 1  # for some source, so that samples differ
    low, high = np.quantile(bootstrap, (0.025, 0.975)) if several_seeds and len(bootstrap) else (np.nan, np.nan)
    return Correlation(Interval(_correlate(first_mean, second_mean, ranks), low, high), float(permutation.pvalue))


def constant(values: np.ndarray) -> np.ndarray:
    """Whether the values along the last axis are all the same, up to rounding."""
    return np.ptp(values, axis=-1) <= 1e-12 * np.abs(values).max(-1)


def _correlate(x: np.ndarray, y: np.ndarray, ranks: bool) -> np.ndarray:
    """Pearson's or Spearman's correlation along the last axis; NaN where either is constant or has NaN."""
    undefined = constant(x) | constant(y)
    x, y = (scipy.stats.rankdata(v, axis=-1) if ranks else v for v in (x, y))
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as documented
        return np.where(undefined, np.nan, (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1)))


class RandomAngle(NamedTuple):
    """The folded angle between two independent, uniformly random directions in `dimension` dimensions, in degrees.

    The squared cosine follows Beta(1/2, (dimension - 1) / 2). All methods are exact except the last two, which are the
    approximations of BenShmuel (2022), Appendix A.
    """

    dimension: int

    def cdf(self, angle: np.ndarray | float) -> np.ndarray:
        """The probability of an angle of at most `angle` degrees, for angles in [0, 90]."""
        cosine = np.cos(np.deg2rad(angle))
        return scipy.stats.beta.sf(cosine**2, 0.5, (self.dimension - 1) / 2)

    def quantile(self, probability: np.ndarray | float) -> np.ndarray:
        """The angle below which a random pair falls with the given probability, in degrees."""
        squared = scipy.stats.beta.isf(probability, 0.5, (self.dimension - 1) / 2)
        return np.rad2deg(np.arccos(np.sqrt(squared)))

    def mean(self) -> float:
        """The mean angle, in degrees: 89.18 for the 3,072 dimensions of a CIFAR image."""
        return scipy.integrate.quad(self.quantile, 0, 1)[0]

    def least(self, count: int, probability: float = 0.5) -> float:
        """The angle below which the least of `count` independent ones falls with the given probability, in degrees."""
        return float(self.quantile(-np.expm1(np.log1p(-probability) / count)))

    def typical(self) -> float:
        """The paper's typical angle, `arccos(1 / sqrt(dimension))`, from the mean of the squared cosine (Table 3)."""
        return float(np.rad2deg(np.arccos(1 / np.sqrt(self.dimension))))

    def markov_bound(self, angle: np.ndarray | float) -> np.ndarray:
        """The paper's upper bound on `cdf`: `1 / k^2` at `arccos(k / sqrt(dimension))` (Table 4), at most 1."""
        squared = self.dimension * np.cos(np.deg2rad(angle)) ** 2
        return 1 / np.maximum(squared, 1.0)


def random_angle(dimension: int) -> RandomAngle:
    """The exact distribution of the folded angle between two random directions.

    Raises:
      ValueError: fewer than 2 dimensions, where all directions are parallel.

    >>> angle = random_angle(3072)  # the dimension of a CIFAR image
    >>> round(angle.mean(), 2), round(float(angle.quantile(0.01)), 2)
    (89.18, 87.34)
    """
    if dimension < 2:
        raise ValueError(f"dimension: got {dimension}; it takes 2 or more")
    return RandomAngle(dimension)
