"""Correlations over sources, each trained from several seeds."""

from typing import NamedTuple

import numpy as np
import scipy.stats

from jtrans.stats.estimates import Interval, valid_mean


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
    both = both[:, np.isfinite(valid_mean(both, -1)).all(0)]
    _, sources, seeds = both.shape
    first_mean, second_mean = valid_mean(both, -1)
    if sources < 3 or constant(first_mean) or constant(second_mean):
        return Correlation(Interval(np.nan, np.nan, np.nan), np.nan)

    distance_from_zero = lambda x, axis: np.abs(_correlate(np.moveaxis(x, axis, -1), second_mean, ranks))
    test = {"permutation_type": "pairings", "alternative": "greater", "n_resamples": np.inf, "vectorized": True}
    permutation = scipy.stats.permutation_test((first_mean,), distance_from_zero, **test)
    resampled = rng.integers(seeds, size=(resamples, sources, seeds))
    first, second = valid_mean(both[:, np.arange(sources)[:, None], resampled], -1)
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
