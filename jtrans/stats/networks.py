"""Estimates over networks and over pairs of them, which are not independent: by a jackknife over networks."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse

from jtrans.stats.estimates import Estimate, Interval, mean, valid_mean


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
    valid, average = ~np.isnan(flat), valid_mean(flat, 0)
    centred = np.where(valid, flat - average, 0)  # so that differences of sums lose no precision
    column = np.broadcast_to(np.arange(len(pair))[:, None], pair.shape)
    entries = np.ones(pair.size, bool), (pair.ravel(), column.ravel())
    includes = scipy.sparse.csr_array(entries, shape=(len(model), len(pair)))
    rest = values.shape[1:]
    sums, counts = (each.reshape(-1, *rest) for each in (includes @ centred, includes @ valid.astype(int)))
    average, total, number = (each.reshape(rest) for each in (average, centred.sum(0), valid.sum(0)))
    return _pair_jackknife(average, total, number, sums, counts, model)


def pair_mean_of_networks(mean: np.ndarray, count: np.ndarray, model: np.ndarray) -> Estimate:
    """`pair_mean`, of pairs of which each network's mean alone is known.

    Args:
      mean: `[M, ...]`, the mean of each network over the pairs that it is in.
      count: `[M, ...]`, their number; 0 where there is none, and the mean is NaN.
      model: `[M]`, the architecture of each network.
    """
    mean = np.asarray(mean, np.float64)
    average = _mean_of_networks(mean, count)
    sums = np.where(count > 0, mean - average, 0) * count
    return _pair_jackknife(average, sums.sum(0) / 2, count.sum(0) // 2, sums, count, model)  # each pair is in two


def _mean_of_networks(mean: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The mean over pairs, from the mean and the number of those of each network; NaN where there is none."""
    total = count.sum(0)
    return np.where(count > 0, mean * count, 0).sum(0) / np.where(total == 0, np.nan, total)


def _pair_jackknife(
    average: np.ndarray,
    total: np.ndarray,
    number: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
    model: np.ndarray,
) -> Estimate:
    """The mean over pairs, from the sum of their distances from it and their number: of all, and `[M, ...]` of those
    that each network is in.
    """
    count = number - counts  # without network i: all pairs minus those that include it
    without = average + (total - sums) / np.where(count == 0, np.nan, count)
    return _jackknife(average, without, counts > 0, model)


def pair_mean_ci(values: np.ndarray, pair: np.ndarray, model: np.ndarray) -> Interval:
    """The mean over pairs of networks and its 95 % interval by a jackknife over networks, as `pair_mean`.

    Args:
      values: `[P, ...]`, one row per pair; NaN entries are left out. The bounds are NaN where leaving out some network
        leaves no pair.
      pair: `[P, 2]`, the two networks of each pair.
      model: `[M]`, the architecture of each network.
    """
    return pair_mean(values, pair, model).interval()


def network_mean(values: np.ndarray, model: np.ndarray) -> Estimate:
    """The mean over independent networks, of which those of each architecture are a sample of their own.

    With n_g values of variance `s_g^2` of an architecture g, of n in all, the variance is `sum n_g s_g^2 / n^2`, as of
    a stratified sample: that architectures differ is no spread. The degrees of freedom are Satterthwaite's (1946), as
    in `jackknife`; of one architecture all is as in `mean`.

    Args:
      values: `[M, ...]`, one row per network; NaN entries are left out. The standard error is NaN where a single value
        of an architecture remains; an architecture of which none does is left out.
      model: `[M]`, the architecture of each network.
    """
    values, model = np.asarray(values, np.float64), np.asarray(model)
    groups = [mean(values[model == label]) for label in np.unique(model)]
    freedoms = np.stack([each.freedom for each in groups])
    there, counts = freedoms >= 0, freedoms + 1
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 where no value is left
        shares = counts / counts.sum(0)
        variances = np.where(there, np.square(shares * np.stack([each.standard_error for each in groups])), 0)
        freedom = _satterthwaite(variances, np.where(there, freedoms, np.inf))
    total = np.where(there.any(0), variances.sum(0), np.nan)
    equal = np.maximum(freedoms, 0).sum(0)  # where no architecture has a spread
    return Estimate(valid_mean(values, 0), np.sqrt(total), np.where(total == 0, equal, freedom))


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
    among = [_among(values, pair, model, side) for side in halves(model)]
    curves = [valid_mean(of_pairs, 0) for of_pairs, *_ in among]

    def estimate(half: int, step: int) -> Estimate:
        of_pairs, *networks = among[half]
        return pair_mean(of_pairs[:, step] if step >= 0 else np.full(len(of_pairs), np.nan), *networks)

    return _selected(curves, estimate, model, steps)


def selected_minimum_of_networks(
    mean: np.ndarray, count: np.ndarray, model: np.ndarray, steps: Callable[[np.ndarray], int] | None = None
) -> SelectedMinimum:
    """`selected_minimum`, of pairs of which each network's mean within its half (`halves`) alone is known.

    Args:
      mean, count: `[M, T]`, as in `pair_mean_of_networks`.
      model, steps: as in `selected_minimum`.
    """
    sides = halves(model)
    curves = [_mean_of_networks(mean[side], count[side]) for side in sides]

    def estimate(half: int, step: int) -> Estimate:
        side = sides[half]
        of_step = count[side, step] if step >= 0 else np.zeros(side.sum(), int)
        return pair_mean_of_networks(mean[side, step], of_step, model[side])

    return _selected(curves, estimate, model, steps)


def _selected(
    curves: Sequence[np.ndarray],
    estimate: Callable[[int, int], Estimate],
    model: np.ndarray,
    steps: Callable[[np.ndarray], int] | None,
) -> SelectedMinimum:
    """From the curve `[T]` of each half, and the estimate of a half, 0 or 1, at a step; at -1 it is of no pair."""
    limit = len(curves[0]) if steps is None else min(map(steps, halves(model)))
    chosen = [_lowest(curve[:limit]) for curve in curves]
    average = _average_of_halves(estimate(0, chosen[1]), estimate(1, chosen[0]))
    if min(np.unique(model, return_counts=True)[1]) < 2 * FEWEST_IN_A_HALF:
        average = average._replace(standard_error=np.nan)
    return SelectedMinimum(average, np.array(chosen))


def halves(model: np.ndarray) -> list[np.ndarray]:
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
