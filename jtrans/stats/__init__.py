"""Means, shares and correlations with intervals and tests, and the angle between random directions."""

from jtrans.stats.correlations import Correlation, constant, correlation
from jtrans.stats.estimates import (
    Estimate,
    Interval,
    from_interval,
    holm,
    interval_text,
    mean,
    mean_ci,
    plain,
    pooled_ci,
    share_ci,
    wilson,
)
from jtrans.stats.networks import (
    HALVES_CORRELATION,
    SelectedMinimum,
    jackknife,
    jackknife_ci,
    pair_mean,
    pair_mean_ci,
    selected_minimum,
)
from jtrans.stats.random_angles import RandomAngle, random_angle

__all__ = [
    "HALVES_CORRELATION",
    "Correlation",
    "Estimate",
    "Interval",
    "RandomAngle",
    "SelectedMinimum",
    "constant",
    "correlation",
    "from_interval",
    "holm",
    "interval_text",
    "jackknife",
    "jackknife_ci",
    "mean",
    "mean_ci",
    "pair_mean",
    "pair_mean_ci",
    "plain",
    "pooled_ci",
    "random_angle",
    "selected_minimum",
    "share_ci",
    "wilson",
]
