"""Estimates with their intervals and tests: means, shares, and p-values adjusted together."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.special  # scipy.stats, which has these distributions too, takes a second to import


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval; `low` and `high` are NaN where there are too few values."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plain(interval: Interval) -> dict[str, float]:
    """The interval of a single mean, as plain numbers for JSON."""
    return {bound: float(value) for bound, value in interval._asdict().items()}


def from_plain(interval: Mapping[str, float | None]) -> Interval:
    """What `plain` made plain; JSON has None for NaN."""
    return Interval(*(math.nan if interval[bound] is None else interval[bound] for bound in Interval._fields))


def interval_text(interval: Mapping[str, float | None], digits: int) -> str:
    """`mean [low, high]`, or the mean alone where there is no interval."""
    mean, low, high = from_plain(interval)
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
        margin = scipy.special.stdtrit(self.freedom, 0.975) * self.standard_error
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
        return _score_interval(mean, np.square(scipy.special.stdtrit(freedom, 0.975)) * trial)

    def p_above(self, bound: np.ndarray | float) -> np.ndarray:
        """The p-value of "above `bound`": of the one-sided test of the hypothesis that it is at most `bound`."""
        return scipy.special.stdtr(self.freedom, -self._distance(bound))

    def p_below(self, bound: np.ndarray | float) -> np.ndarray:
        """The p-value of "below `bound`": of the one-sided test of the hypothesis that it is at least `bound`."""
        return scipy.special.stdtr(self.freedom, self._distance(bound))

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
    return Estimate(interval.mean, margin / scipy.special.stdtrit(freedom, 0.975), freedom)


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
    valid, average = ~np.isnan(values), valid_mean(values, axis)
    count = valid.sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, as documented
        variance = np.square(np.where(valid, values - np.expand_dims(average, axis), 0)).sum(axis) / (count - 1)
        return Estimate(average, np.sqrt(variance / count), count - 1)


def mean_ci(values: np.ndarray, axis: int = 0) -> Interval:
    """The mean of values that are independent along `axis` and its 95 % interval by Student's t.

    NaN entries are left out. The bounds are NaN where a single value remains, the mean too where none does.
    """
    return mean(values, axis).interval()


def pooled_ci(values: np.ndarray) -> Interval:
    """The mean of each of S groups of R values `[S, R]` and its 95 % interval, if all groups have the same spread.

    By Student's t with the S (R - 1) degrees of freedom of the pooled variance: narrower than `mean_ci` where groups
    are of two or three values. NaN entries are left out; the bounds are NaN if no group has two values.
    """
    each = mean(values, axis=1)
    count, freedom = each.freedom + 1, np.maximum(each.freedom, 0)
    squares = np.where(freedom > 0, np.square(each.standard_error) * count * freedom, 0).sum()
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, as documented
        return Estimate(each.mean, np.sqrt(squares / freedom.sum() / count), freedom.sum()).interval()


def share_ci(values: np.ndarray, axis: int = 0) -> Interval:
    """The mean of shares, in [0, 1], that are independent along `axis` and its 95 % interval, in [0, 1] too.

    As `Estimate.share_interval`: a share of 0, or 1, in each of n samples does not make it certain.
    """
    return mean(values, axis).share_interval()


def valid_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the values that are not NaN; NaN if there are none."""
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as documented
        return np.nansum(values, axis) / (~np.isnan(values)).sum(axis)


def wilson(successes: np.ndarray, count: np.ndarray) -> Interval:
    """The share of successes among `count` independent trials and its 95 % interval (Wilson 1927), in [0, 1].

    For arrays of one shape, `successes` from 0 to `count`; all NaN where `count` is 0.
    """
    successes, count = np.asarray(successes, np.float64), np.asarray(count, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, as documented
        return _score_interval(successes / count, scipy.special.ndtri(0.975) ** 2 / count)


def _score_interval(share: np.ndarray, width: np.ndarray) -> Interval:
    """Where `(share - p)^2 <= width p (1 - p)`: the p from which a share is no further than the quantile.

    `width` is the squared quantile over the number of trials.
    """
    with np.errstate(invalid="ignore"):  # NaN where the width is
        larger = share + width / 2 + np.sqrt(width * share * (1 - share) + width**2 / 4)
        # The roots' product is share^2 / (1 + width): thus the smaller one without cancellation.
        low, high = share**2 / larger, np.minimum(larger / (1 + width), 1)
    return Interval(share, np.minimum(low, share), np.maximum(high, share))  # rounding may take them past the share
