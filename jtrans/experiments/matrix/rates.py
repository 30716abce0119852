"""The tables: success rates with their intervals."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas

from jtrans import stats
from jtrans.harness import tables
from jtrans.metrics import SuccessMatrix
from jtrans.stats import Interval

RATES = ("all_images", "target_right", "both_right")  # the columns of `attacks.DENOMINATORS`
OTHERS = "all others"  # the source of attacks on an ensemble of all networks but the target


def table(
    matrices: Mapping[str, SuccessMatrix], names: Sequence[str], of_others: Mapping[str, SuccessMatrix] | None = None
) -> pandas.DataFrame:
    """Success matrices by attack, of one network of each name or, stacked, of one for each seed, as a table.

    A row for each `attack`, `source` and `target`; `unmoved`, how many images the attack on the source left as they
    are; for each of `RATES` the share of images on which the attack succeeds, with its 95 % interval, over images
    (Wilson's) or over seeds, and as `RATE_count` the number of images (their mean over seeds).

    Args:
      of_others: by attack, what the attack from all others does to each target, which is another attack for each:
        `rate`, `count` `[T, 1, 3]` and `unmoved` `[T]`. It makes the rows of the source `OTHERS`.
    """
    parts = []
    for attack, (rates, counts, unmoved) in matrices.items():
        if rates.ndim > 3:
            interval, counts = stats.share_ci(rates), counts.mean(0)
        else:
            interval = stats.wilson(np.rint(rates * counts), counts)
        of_source = np.reshape(unmoved, (-1, len(names))).mean(0)
        parts.append(_rows(attack, names, names, interval, counts, np.repeat(of_source, len(names))))
        if of_others:
            rates, counts, unmoved = of_others[attack]
            interval = stats.wilson(np.rint(rates * counts), counts)
            parts.append(_rows(attack, [OTHERS], names, interval, counts, unmoved))
    return pandas.concat(parts, ignore_index=True)


def of_kinds(matrices: Mapping[str, SuccessMatrix], kinds: Sequence[str]) -> pandas.DataFrame:
    """As `table`, for kinds of networks, whose networks differ in their seeds, in place of networks.

    Rates are means over all pairs of one network of each kind, two different ones of the same kind, with 95 % intervals
    over networks: by a jackknife, which also counts that pairs share networks. A kind of a single network is given, not
    a sample: the interval is over the networks of the other kind. Counts and `unmoved` are means over the same pairs.

    Args:
      matrices: by attack, of M networks.
      kinds: `[M]`, of each network.
    """
    names, number = list(dict.fromkeys(kinds)), np.arange(len(kinds))
    members = [number[np.array(kinds) == name] for name in names]
    parts = []
    for attack, (rates, counts, unmoved) in matrices.items():
        intervals, means = [], []
        for source, target in itertools.product(members, members):
            pair = np.array([p for p in itertools.product(source, target) if p[0] != p[1]], int).reshape(-1, 2)
            values, sampled = rates[*pair.T], np.unique(pair)
            if 1 in (len(source), len(target)):
                estimate = stats.mean(values)
            else:
                estimate = stats.pair_mean(values, np.searchsorted(sampled, pair), np.array(kinds)[sampled])
            intervals.append(estimate.share_interval())
            means.append(stats.mean(np.c_[unmoved[pair[:, 0]], counts[*pair.T]]).mean)
        interval = Interval(*map(np.stack, zip(*intervals, strict=True)))
        parts.append(_rows(attack, names, names, interval, np.stack(means)[:, 1:], np.stack(means)[:, 0]))
    return pandas.concat(parts, ignore_index=True)


def _rows(
    attack: str,
    sources: Sequence[str],
    targets: Sequence[str],
    interval: Interval,
    counts: np.ndarray,
    unmoved: np.ndarray,
) -> pandas.DataFrame:
    """The rows of one attack, for each source each target; all else but `unmoved` has one value for each of `RATES`."""
    columns = {
        "attack": attack,
        "source": np.repeat(sources, len(targets)),
        "target": np.tile(targets, len(sources)),
        "unmoved": unmoved,
    }
    for k, name in enumerate(RATES):
        columns |= tables.interval_columns({name: Interval(*(bound[..., k].ravel() for bound in interval))})
        columns[f"{name}_count"] = counts[..., k].ravel()
    return pandas.DataFrame(columns)
