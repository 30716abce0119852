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


class Estimate(NamedTuple):
    """An estimate with its standard error and the degrees of freedom of that, for intervals and tests by Student's t.

    A test at 2.5 % agrees with the 95 % interval: `p_above(bound) < 0.025` where the whole interval lies above the
    bound. P-values are NaN where there is no interval.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    freedom: np.ndarray

    def interval(self) -> Interval:
        """The 95 % interval; NaN without a degree of freedom."""
        margin = scipy.stats.t.ppf(0.975, self.freedom) * self.standard_error
        return Interval(self.mean, self.mean - margin, self.mean + margin)

    def share_interval(self) -> Interval:
        """The 95 % interval of a share: within [0, 1], and not symmetric about the mean.

        It is Wilson's (1927) interval for `share (1 - share) / standard_error^2` independent trials, with the quantile
        of Student's t in place of the normal one (Korn and Graubard 1998). Where all samples are 0, or all are 1, they
        tell nothing about their spread: the number of trials is then `freedom`, as for samples that can only be 0 or 1,
        whose spread is the largest. `docs/coverage.md` has its coverage.
        """
        mean, freedom = np.asarray(self.mean, np.float64), np.asarray(self.freedom, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN without a degree of freedom
            trial = np.where(mean * (1 - mean) > 0, np.square(self.standard_error) / (mean * (1 - mean)), 1 / freedom)
            trial = np.where(np.isnan(self.standard_error), np.nan, trial)
        return _score_interval(mean, np.square(scipy.stats.t.ppf(0.975, freedom)) * trial)

    def p_above(self, bound: np.ndarray | float) -> np.ndarray:
        """The p-value of "above `bound`": of the one-sided test of the hypothesis that it is at most `bound`."""
        return scipy.stats.t.sf(self._distance(bound), self.freedom)

    def p_below(self, bound: np.ndarray | float) -> np.ndarray:
        """The p-value of "below `bound`": of the one-sided test of the hypothesis that it is at least `bound`."""
        return scipy.stats.t.cdf(self._distance(bound), self.freedom)

    def p_inside(self, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        """The p-value of "between `low` and `high`", by two one-sided tests (Schuirmann 1987): the larger of the two.

        Below 0.025 where the whole 95 % interval lies inside. A side without a bound takes an infinite one.
        """
        return np.maximum(self.p_above(low), self.p_below(high))

    def p_outside(self, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        """The p-value of "below `low` or above `high`": the smaller of the two one-sided ones.

        Below 0.025 where the whole 95 % interval lies outside, on one side. If the truth is inside, that happens with
        a probability of 2.5 % at a bound, of up to 5 % only if the range is narrower than a few standard errors.
        """
        return np.minimum(self.p_below(low), self.p_above(high))

    def _distance(self, bound: np.ndarray | float) -> np.ndarray:
        """How far above a bound the mean is, in standard errors; 0 at the bound, whatever the standard error."""
        gap = np.asarray(self.mean, np.float64) - bound
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(gap == 0, 0 * self.standard_error, gap / self.standard_error)


def from_interval(interval: Interval, freedom: np.ndarray | int) -> Estimate:
    """The estimate whose 95 % interval by Student's t was saved, for its p-values.

    If the degrees of freedom are not known, the fewest possible (for groups the least n_g - 1) give p-values that are
    too large rather than too small, where they are below 0.025.
    """
    margin = (np.asarray(interval.high) - interval.low) / 2
    return Estimate(interval.mean, margin / scipy.stats.t.ppf(0.975, freedom), freedom)


def holm(p_values: np.ndarray) -> np.ndarray:
    """The p-values `[tests]` adjusted by Holm (1979), so that a level holds for all of the tests together.

    Of the adjusted p-values at most the level, with a probability of at least 1 - level none is of a true hypothesis,
    however the tests depend on each other. NaN, where there was no test, is left out.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values)  # NaN comes last
    hypotheses = (~np.isnan(p_values)).sum() - np.arange(len(p_values))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * hypotheses), 1)
    return adjusted


def mean(values: np.ndarray, axis: int = 0) -> Estimate:
    """The mean of values that are independent along `axis`.

    NaN entries are left out; n remaining values give n - 1 degrees of freedom. The standard error is NaN where n is 1,
    the mean too where n is 0.
    """
    values = np.asarray(values, np.float64)
    valid, average = ~np.isnan(values), _average(values, axis)
    count = valid.sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, as documented
        variance = np.square(np.where(valid, values - np.expand_dims(average, axis), 0)).sum(axis) / (count - 1)
        return Estimate(average, np.sqrt(variance / count), count - 1)


def mean_ci(values: np.ndarray, axis: int = 0) -> Interval:
    """The mean of values that are independent along `axis` and its 95 % interval by Student's t.

    NaN entries are left out. The bounds are NaN where a single value remains, the mean too where none does.
    """
    return mean(values, axis).interval()


def share_ci(values: np.ndarray, axis: int = 0) -> Interval:
    """The mean of shares, in [0, 1], that are independent along `axis` and its 95 % interval, in [0, 1] too.

    As `Estimate.share_interval`: a share of 0, or 1, in each of n samples does not make it certain.
    """
    return mean(values, axis).share_interval()


def _average(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the values that are not NaN; NaN if there are none."""
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as documented
        return np.nansum(values, axis) / (~np.isnan(values)).sum(axis)


def pair_mean(values: np.ndarray, pair: np.ndarray, model: np.ndarray) -> Estimate:
    """The mean over pairs of networks, its standard error by a jackknife over networks.

    Pairs that share a network are not independent, so networks, not pairs, are the samples. Each network in turn is
    left out with all its pairs, and the networks of each architecture g add to the variance
    `(n_g - 1) / n_g * sum_i (mean without i - average of these means)^2`. Efron and Stein (1981); Arvesen (1969) for
    averages over pairs. The degrees of freedom are those of `jackknife`. `docs/coverage.md` has the coverage, also for
    attacks round a ring: there it covers at least about as much as Student's t for every other attack, which share no
    network, but for 4 networks, of which that interval would be almost three times as wide.

    Args:
      values: `[P, ...]`, one row per pair; NaN entries are left out, and so is a network that has no others. The
        standard error is NaN where leaving out some network leaves no pair.
      pair: `[P, 2]`, the two networks of each pair.
      model: `[M]`, the architecture of each network.
    """
    values, pair = np.asarray(values, np.float64), np.asarray(pair)
    flat = values.reshape(len(pair), math.prod(values.shape[1:]))
    valid, average = ~np.isnan(flat), _average(flat, 0)
    centred = np.where(valid, flat - average, 0)  # so that differences of sums lose no precision
    column = np.broadcast_to(np.arange(len(pair))[:, None], pair.shape)
    entries = np.ones(pair.size, bool), (pair.ravel(), column.ravel())
    includes = scipy.sparse.csr_array(entries, shape=(len(model), len(pair)))
    # Without network i: all pairs minus those that include it.
    of_network = includes @ valid.astype(int)
    count = valid.sum(0) - of_network
    without = average + (centred.sum(0) - includes @ centred) / np.where(count == 0, np.nan, count)
    rest = values.shape[1:]
    sampled = (of_network > 0).reshape(-1, *rest)
    return _jackknife(average.reshape(rest), without.reshape(-1, *rest), sampled, model)


def pair_mean_ci(values: np.ndarray, pair: np.ndarray, model: np.ndarray) -> Interval:
    """The mean over pairs of networks and its 95 % interval by a jackknife over networks, as `pair_mean`.

    Args:
      values: `[P, ...]`, one row per pair; NaN entries are left out. The bounds are NaN where leaving out some network
        leaves no pair.
      pair: `[P, 2]`, the two networks of each pair.
      model: `[M]`, the architecture of each network.
    """
    return pair_mean(values, pair, model).interval()


def wilson(successes: np.ndarray, count: np.ndarray) -> Interval:
    """The share of successes among `count` independent trials and its 95 % interval (Wilson 1927), in [0, 1].

    For arrays of one shape, `successes` from 0 to `count`; all NaN where `count` is 0.
    """
    successes, count = np.asarray(successes, np.float64), np.asarray(count, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, as documented
        return _score_interval(successes / count, scipy.stats.norm.ppf(0.975) ** 2 / count)


def _score_interval(share: np.ndarray, width: np.ndarray) -> Interval:
    """Where `(share - p)^2 <= width p (1 - p)`: the p from which a share is no further than the quantile.

    `width` is the squared quantile over the number of trials.
    """
    with np.errstate(invalid="ignore"):  # NaN where the width is
        larger = share + width / 2 + np.sqrt(width * share * (1 - share) + width**2 / 4)
        # The roots' product is share^2 / (1 + width): thus the smaller one without cancellation.
        low, high = share**2 / larger, np.minimum(larger / (1 + width), 1)
    return Interval(share, np.minimum(low, share), np.maximum(high, share))  # rounding may take them past the share


def jackknife(estimate: Callable[[np.ndarray], np.ndarray], group: np.ndarray) -> Estimate:
    """Any estimate from independent networks, its standard error by a jackknife, leaving out each network in turn.

    The groups g may differ in spread: with V_g the part of the variance that comes from the n_g networks of one, there
    are `(sum V_g)^2 / sum (V_g^2 / (n_g - 1))` degrees of freedom (Satterthwaite 1946). For a difference of two means
    this is Welch's test.

    Args:
      estimate: maps the networks to use, a boolean mask `[M]`, to an array. The standard error is NaN where some
        network cannot be left out.
      group: `[M]`, the group that each network is a sample of, such as its architecture.
    """
    number = np.arange(len(group))
    without = np.stack([estimate(number != i) for i in number])
    whole = np.asarray(estimate(np.ones(len(group), bool)))
    return _jackknife(whole, without, np.ones(without.shape, bool), group)


def jackknife_ci(estimate: Callable[[np.ndarray], np.ndarray], group: np.ndarray) -> Interval:
    """Any estimate from independent networks and its 95 % interval by a jackknife, as `jackknife`.

    Args:
      estimate: maps the networks to use, a boolean mask `[M]`, to an array. The bounds are NaN where some network
        cannot be left out.
      group: `[M]`, the group that each network is a sample of, such as its architecture.
    """
    return jackknife(estimate, group).interval()


def _jackknife(whole: np.ndarray, without: np.ndarray, sampled: np.ndarray, group: np.ndarray) -> Estimate:
    """From the estimates `[M, ...]`, each without one network; `sampled [M, ...]` says which networks are samples."""
    members = [np.asarray(group) == label for label in np.unique(group)]
    counts = np.stack([sampled[rows].sum(axis=0) for rows in members])
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN where a group has no network
        variances = np.stack(
            [(n - 1) * _variance(without[rows], sampled[rows], n) for rows, n in zip(members, counts, strict=True)]
        )
    return Estimate(whole, np.sqrt(variances.sum(axis=0)), _satterthwaite(variances, counts - 1))


def _variance(values: np.ndarray, valid: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The mean squared distance from their mean of the `count` valid values along the first axis."""
    centred = np.where(valid, values - np.where(valid, values, 0).sum(axis=0) / count, 0)
    return np.square(centred).sum(axis=0) / count


def _satterthwaite(variances: np.ndarray, freedoms: np.ndarray) -> np.ndarray:
    """The degrees of freedom of a sum of variances `[G, ...]`, each with its own; their total where all are 0."""
    total, least = sum(variances), freedoms.min(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = [(v / total) ** 2 * (least / f) for v, f in zip(variances, freedoms, strict=True)]
        return np.where(total > 0, least / sum(parts), freedoms.sum(axis=0))


class SelectedMinimum(NamedTuple):
    """The mean at a minimum that other networks chose, and the step, an index, that each half chose: `chosen [2]`.

    -1 where a half had none to choose from.
    """

    estimate: Estimate
    chosen: np.ndarray


HALVES_CORRELATION = 9 / (8 * math.pi)  # of the errors of the two halves in `selected_minimum`, the largest
FEWEST_IN_A_HALF = 4  # networks of each architecture, for an interval


def selected_minimum(
    values: np.ndarray, pair: np.ndarray, model: np.ndarray, steps: Callable[[np.ndarray], int] | None = None
) -> SelectedMinimum:
    """The mean over pairs at the step where it is lowest, without the bias from choosing the step on the same data.

    The mean where it was seen to be lowest is too low: the step was chosen for its errors too. So each half of the
    networks (those at even and at odd places of each architecture) chooses the step for the other half, and pairs are
    within a half. Given its step, a half's mean is unbiased; the estimate is the average of the two. It estimates the
    average of the true means at the two chosen steps, which is never below the lowest true mean.

    The halves are independent, but as each also chooses, their two errors are not. With s and t any two steps and
    `a[s, t] = E[error at s; t is chosen]`, the covariance is `sum over s, t of a[s, t] a[t, s]`. If all of T steps have
    the same mean and independent errors, the correlation is `m^2 / (T - 1)`, where m is the mean of the largest of T
    standard normal variables: at most `9 / (8 pi) = 0.36`, at T = 3. Where the errors of all steps are positively
    correlated, or the minimum is clear, it is smaller. The variance is computed with 0.36, the degrees of freedom by
    Satterthwaite (1946). `docs/coverage.md` has the coverage.

    Args:
      values: `[P, T]`, one row per pair; NaN entries are left out.
      pair: `[P, 2]`, the two networks of each pair.
      model: `[M]`, the architecture of each network. With fewer than 8 networks of an architecture, so fewer than 4 in
        a half, there is a mean, but its standard error is NaN.
      steps: maps a half of the networks, a boolean mask `[M]`, to how many of the first steps may be chosen for it,
        such as those at which its networks are at chance: both halves choose from the steps of both. All T by default.
    """
    values, pair, model = np.asarray(values, np.float64), np.asarray(pair), np.asarray(model)
    sides = _halves(model)
    halves = [_among(values, pair, model, side) for side in sides]
    limit = values.shape[1] if steps is None else min(map(steps, sides))
    chosen = [_lowest(_average(of_pairs, 0)[:limit]) for of_pairs, *_ in halves]
    first, second = (
        pair_mean(of_pairs[:, step] if step >= 0 else np.full(len(of_pairs), np.nan), *networks)
        for (of_pairs, *networks), step in zip(halves, reversed(chosen), strict=True)
    )
    estimate = _average_of_halves(first, second)
    if min(np.unique(model, return_counts=True)[1]) < 2 * FEWEST_IN_A_HALF:
        estimate = estimate._replace(standard_error=np.nan)
    return SelectedMinimum(estimate, np.array(chosen))


def _halves(model: np.ndarray) -> list[np.ndarray]:
    """The networks `[M]` at the even and at the odd places among those of their architecture."""
    odd = np.zeros(len(model), bool)
    for label in np.unique(model):
        odd[model == label] = np.arange((model == label).sum()) % 2
    return [~odd, odd]


def _among(
    values: np.ndarray, pair: np.ndarray, model: np.ndarray, networks: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs among some of the networks, a mask `[M]`, which are numbered anew."""
    rows = networks[pair].all(axis=1)
    return values[rows], (np.cumsum(networks) - 1)[pair[rows]], model[networks]


def _lowest(curve: np.ndarray) -> int:
    """Where a curve is lowest; -1 where it has no value."""
    return -1 if np.isnan(curve).all() else int(np.nanargmin(curve))


def _average_of_halves(first: Estimate, second: Estimate) -> Estimate:
    """The average of the estimates of two halves, whose errors are correlated by `HALVES_CORRELATION` at most."""
    variances = np.square([first.standard_error, second.standard_error])
    variance = (variances.sum() + 2 * HALVES_CORRELATION * np.sqrt(variances.prod())) / 4
    freedom = _satterthwaite(variances, np.array([first.freedom, second.freedom]))
    return Estimate((first.mean + second.mean) / 2, np.sqrt(variance), freedom)


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
    both = both[:, np.isfinite(_average(both, -1)).all(0)]
    _, sources, seeds = both.shape
    first_mean, second_mean = _average(both, -1)
    if sources < 3 or constant(first_mean) or constant(second_mean):
        return Correlation(Interval(np.nan, np.nan, np.nan), np.nan)

    distance_from_zero = lambda x, axis: np.abs(_correlate(np.moveaxis(x, axis, -1), second_mean, ranks))
    test = {"permutation_type": "pairings", "alternative": "greater", "n_resamples": np.inf, "vectorized": True}
    permutation = scipy.stats.permutation_test((first_mean,), distance_from_zero, **test)
    resampled = rng.integers(seeds, size=(resamples, sources, seeds))
    first, second = _average(both[:, np.arange(sources)[:, None], resampled], -1)
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
