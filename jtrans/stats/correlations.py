"""Correlations over sources, each measured from several seeds, also within strata and given covariates."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

from jtrans.stats.estimates import Interval, valid_mean

ENUMERATED = math.factorial(9)  # the test goes through all permutations if there are at most so many
PERMUTATIONS = 19_999  # drawn otherwise: the smallest p-value, 1 / 20,000, is far below 5 % for several hypotheses too


class Correlation(NamedTuple):
    """A correlation with its 95 % interval, and the p-value of the two-sided permutation test, both over sources."""

    statistic: Interval
    p_value: float


def correlation(
    first: np.ndarray,
    second: np.ndarray,
    rng: np.random.Generator,
    *,
    ranks: bool = False,
    strata: np.ndarray | None = None,
    given: np.ndarray | Sequence[np.ndarray] = (),
    resamples: int = 2000,
) -> Correlation:
    """Pearson's or Spearman's correlation over sources of their means over seeds, with its interval and its test.

    The samples are sources: the precision depends on the number of different sources, not on that of seeds. Seed r of
    all sources shares what was drawn for it, such as a reference network. `docs/power.md` has the size and the power of
    the test and the coverage of the interval.

    The test is a two-sided permutation test over sources: the p-value is the share of permutations whose correlation is
    at least as far from 0. It is exact for quantities that are independent over sources. Up to 9! permutations are
    enumerated. Of more, 19,999 are drawn and the data are counted as one more: the p-value is at least 1 / 20,000, and
    the test keeps its level (Phipson and Smyth 2010).

    With `strata`, only sources of the same stratum are exchanged, and the correlation is that within strata: of the
    differences of the values (or ranks) from their stratum's mean. The test is exact whatever effect the strata have on
    both quantities. A source alone in its stratum adds nothing.

    With `given`, the correlation is the partial one: of the residuals of linear fits to the covariates, with `ranks` of
    the ranks of both quantities and all covariates. The test permutes the residuals of `second`, adds them to the fit
    and fits again (Freedman and Lane 1983; within strata Winkler et al. 2014); it divides the correlation by a standard
    error that is valid for unequal variances (DiCiccio and Romano 2017), which ranks have. This test is approximate. If
    a covariate is measured with error, a part of its effect remains.

    The interval is `tanh(arctanh(r) +- t SD / (1 - m^2))`: Fisher's z, with the mean m and the standard deviation SD
    of r over bootstrap samples. Each sample draws sources, and the same seeds for all of them. t has S - 2 degrees of
    freedom, one less for each further stratum and for each covariate. The bounds are NaN where r is 1 or -1.

    A seed where a quantity or covariate is NaN is left out of all means of its source; a source without any seed left
    is left out of everything; a bootstrap sample in which a drawn source has no value is left out. All is NaN, and
    nothing is significant, where fewer than 3 sources are left (one more for each further stratum and each covariate),
    or where strata and covariates explain one of the quantities: one that is the same for all sources, or any quantity
    if each source has its own stratum.

    Args:
      first, second: `[S, R]`, of S sources, 3 or more, from R seeds.
      rng: draws the `resamples` bootstrap samples, and permutations where there are more than 9!.
      ranks: compute Spearman's correlation.
      strata: `[S]`, labels of any kind.
      given: one covariate or several, each `[S]` or `[S, R]`.

    Raises:
      ValueError: the shapes do not fit, there are fewer than 3 sources, or a label in `strata` is NaN.
    """
    quantities, strata = _checked(first, second, given, strata)
    measured = ~np.isnan(valid_mean(quantities, -1)).any(0)
    if measured.sum() < 3:
        return Correlation(Interval(np.nan, np.nan, np.nan), np.nan)
    quantities, strata = quantities[:, measured], strata[measured]
    observed = residuals(valid_mean(quantities, -1), strata, ranks)
    p = p_value(observed, permutations(strata, rng), strata_only=len(quantities) == 2)
    return Correlation(interval(observed, resampled(quantities, strata, rng, ranks, resamples)), p)


def _checked(
    first: np.ndarray, second: np.ndarray, given: np.ndarray | Sequence[np.ndarray], strata: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both quantities and the covariates, `[2 + covariates, S, R]`, NaN in all where one is; and the strata `[S]`."""
    first, second = (np.asarray(values, np.float64) for values in (first, second))
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"second: got the shape {second.shape}; first has {first.shape}; both take [sources, seeds]")
    if len(first) < 3:
        raise ValueError(f"first: got {len(first)} sources; a correlation takes 3 or more")
    covariates = [np.asarray(each, np.float64) for each in ([given] if isinstance(given, np.ndarray) else given)]
    for covariate in covariates:
        if covariate.shape not in (first.shape[:1], first.shape):
            raise ValueError(
                f"given: got the shape {covariate.shape}; takes {first.shape[:1]} or {first.shape}, as first"
            )
    strata = np.zeros(len(first)) if strata is None else np.asarray(strata)
    if strata.shape != first.shape[:1]:
        raise ValueError(
            f"strata: got the shape {strata.shape}; takes {first.shape[:1]}, a label for each source of first"
        )
    if (strata != strata).any():
        raise ValueError("strata: got NaN; each source takes a label")
    columns = [covariate.reshape(len(first), -1) for covariate in covariates]
    quantities = np.stack([first, second, *(np.broadcast_to(column, first.shape) for column in columns)])
    return np.where(np.isnan(quantities).any(0), np.nan, quantities), strata


class Residuals(NamedTuple):
    """What strata and covariates leave of two quantities: `first` and `second`, `[..., S]`, of length 1.

    NaN where they leave nothing, or fewer than two dimensions. `controls` `[controls, ..., S]` are orthogonal and span
    the strata and covariates; each has length 1, or 0 where those before span it.
    """

    first: np.ndarray
    second: np.ndarray
    controls: np.ndarray

    def correlation(self) -> np.ndarray:
        return (self.first * self.second).sum(-1)


def residuals(quantities: np.ndarray, strata: np.ndarray, ranks: bool) -> Residuals:
    """Of two quantities and any covariates, `[2 + covariates, ..., S]`, within the strata `[..., S]`."""
    if ranks:  # of values that differ by more than rounding
        from scipy.stats import rankdata  # takes a second

        ranked = rankdata(quantities, axis=-1)
        quantities = np.where(constant(quantities)[..., None], np.nan, ranked)
    controls: list[np.ndarray] = []
    for control in (*(1.0 * (strata == label) for label in np.unique(strata)), *quantities[2:]):
        controls.append(np.nan_to_num(_unit_residual(control, controls)))
    left = strata.shape[-1] - sum(control.any(-1, keepdims=True) for control in controls)
    first, second = (np.where(left < 2, np.nan, _unit_residual(values, controls)) for values in quantities[:2])
    return Residuals(first, second, np.array(controls))


def _unit_residual(values: np.ndarray, controls: Sequence[np.ndarray]) -> np.ndarray:
    """What orthogonal controls leave of the values along the last axis, at length 1; NaN where it is only rounding."""
    rest = values
    for control in controls:
        rest = rest - (rest * control).sum(-1, keepdims=True) * control
    length, whole = (np.linalg.norm(each, axis=-1, keepdims=True) for each in (rest, values))
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, as documented
        return np.where(length > 1e-12 * whole, rest / length, np.nan)


def permutations(strata: np.ndarray, rng: np.random.Generator, draws: int = PERMUTATIONS) -> np.ndarray:
    """Orders of the sources `[orders, S]` that exchange only those of one stratum.

    All of them if there are at most 9!, otherwise that of the data and `draws` random ones; that of the data is first.
    """
    labels, stratum = np.unique(strata, return_inverse=True)
    members = [np.flatnonzero(stratum == number) for number in range(len(labels))]
    if math.prod(math.factorial(len(sources)) for sources in members) <= ENUMERATED:
        orders = np.arange(len(strata))[None]
        for sources in members:
            within = sources[_all_orders(len(sources))]
            repeated = np.repeat(orders, len(within), axis=0)
            repeated[:, sources] = np.tile(within, (len(orders), 1))
            orders = repeated
        return orders
    orders = np.tile(np.arange(len(strata)), (draws + 1, 1))
    orders[1:, np.concatenate(members)] = np.argsort(stratum + rng.random((draws, len(strata))), axis=1)
    return orders


def _all_orders(size: int) -> np.ndarray:
    """All orders of `size` numbers, `[size!, size]`: each number in each place among those before it."""
    orders = np.zeros((1, 0), int)
    for number in range(size):
        orders = np.concatenate([np.insert(orders, place, number, axis=1) for place in range(number, -1, -1)])
    return orders


def p_value(observed: Residuals, orders: np.ndarray, strata_only: bool) -> float:
    """The share of the orders of `second` that come at least as far from 0 as the first order; NaN if there is none.

    The distance is that of the correlation if there are only strata. Given covariates it is that of the correlation
    over its standard error, estimated for unequal variances (White 1980).

    Args:
      observed: of `[S]` sources.
      orders: `[orders, S]`, from `permutations`.
      strata_only: there are no covariates.
    """
    if np.isnan(observed.correlation()):
        return np.nan
    permuted, first = observed.second[orders], observed.first
    if strata_only:
        statistic = np.abs(permuted @ first)
    else:
        permuted -= permuted @ observed.controls.T @ observed.controls
        slope = permuted @ first
        variance = np.square(permuted - slope[:, None] * first) @ np.square(first)
        statistic = np.abs(slope) / np.sqrt(np.maximum(variance, np.finfo(float).eps))
    return float((statistic >= statistic[0] * (1 - 1e-9) - 1e-9).mean())  # equal up to rounding


def resampled(
    quantities: np.ndarray, strata: np.ndarray, rng: np.random.Generator, ranks: bool, resamples: int
) -> np.ndarray:
    """The correlations `[resamples]` of bootstrap samples of the sources and seeds of `[2 + covariates, S, R]`."""
    _, sources, seeds = quantities.shape
    drawn = rng.integers(sources, size=(resamples, sources))
    of_seeds = valid_mean(quantities[:, :, rng.integers(seeds, size=(resamples, seeds))], -1)
    return residuals(of_seeds[:, drawn, np.arange(resamples)[:, None]], strata[drawn], ranks).correlation()


def interval(observed: Residuals, bootstrap: np.ndarray) -> Interval:
    """The correlation, and its interval from those of bootstrap samples; NaN where there is none."""
    statistic, freedom = observed.correlation(), len(observed.first) - 1 - observed.controls.any(-1).sum()
    bootstrap = bootstrap[~np.isnan(bootstrap)]
    if len(bootstrap) < 2 or not abs(statistic) < 1 - 1e-12:
        return Interval(statistic, np.nan, np.nan)
    # The slope of z at the mean of the samples: ties among what they draw bring ranks' correlations nearer to 0, and at
    # r, near 1 or -1, it would be far too steep for their spread.
    slope = 1 / (1 - bootstrap.mean() ** 2)
    z, margin = np.arctanh(statistic), scipy.special.stdtrit(freedom, 0.975) * bootstrap.std(ddof=1) * slope
    return Interval(statistic, np.tanh(z - margin), np.tanh(z + margin))


def constant(values: np.ndarray) -> np.ndarray:
    """Whether the values along the last axis are all the same, up to rounding."""
    return np.ptp(values, axis=-1) <= 1e-12 * np.abs(values).max(-1)
