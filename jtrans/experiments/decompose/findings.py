"""What the measured networks show: as tables, as numbers and in words."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas

from jtrans import stats
from jtrans.experiments.decompose import comparisons
from jtrans.experiments.decompose.comparisons import Bases, Directions
from jtrans.experiments.decompose.removal import Left, Measured
from jtrans.experiments.decompose.subspaces import NOTHING
from jtrans.harness import figures, tables
from jtrans.harness.experiment import Results
from jtrans.population import observe

SHOWN_RANK = 10  # of the ranks, the largest up to this one is drawn and compared
NEAR = 2.0  # degrees below the random mean that count as random once a subspace is taken out
REFITTED = ("gradients", "updates")
CAPTIONS = {
    NOTHING: "nothing",
    "random": "random directions",
    "random_images": "random mixtures of training images",
    "mean_image": "the mean image",
    "constant_colours": "constant colours",
    "class_means": "differences of class means",
    "training_images": "training images",
    "gradients": "other networks' gradients",
    "updates": "other networks' updates",
}
OF_TEXTS = {"mean_image": "the mean text", "constant_colours": "vectors that are the same at all words"}


def captions(results: Results) -> Mapping[str, str]:
    """What the subspaces are called, of images or of texts."""
    kind = figures.kind(results.summary)
    called = {name: figures.of_kind(words, kind) for name, words in CAPTIONS.items()}
    return called | OF_TEXTS if kind == "texts" else called


def shown_rank(ranks: Sequence[int]) -> int:
    """The rank that is drawn and compared."""
    return max(rank for rank in ranks if rank <= SHOWN_RANK or rank == ranks[0])


def tables_of(
    rows: Mapping[tuple[int, str, int], Measured], directions: Directions, bases: Bases, rank: int
) -> dict[str, pandas.DataFrame]:
    """All tables: what was measured of each subspace, and the comparisons at the shown rank."""
    matched, lasting = (compare(directions, bases, rank) for compare in (comparisons.matched, comparisons.lasting))
    return {"decompose": tabulate(rows), "matched": tabulate(matched), "lasting": tabulate(lasting, "fit_step")}


def tabulate(rows: Mapping[tuple[Hashable, ...], Measured | Left], *before: str) -> pandas.DataFrame:
    """What `Measured` or `Left` has, as means with 95 % intervals over networks; a row for each of the keys of `rows`.

    Those are, after what the names `before` say, `step`, `subspace` (of `CAPTIONS`) and its number of directions,
    `rank`. The column `lost` counts the networks whose loss is not finite, where that was measured: they are in no
    mean.
    """
    names = next(iter(rows.values()))._fields
    values = {name: np.stack(each, axis=1) for name, *each in zip(names, *rows.values(), strict=True)}
    model = np.zeros(len(values["share"]), int)
    ring = observe.attackers(1, len(model))
    over = {"angle": observe.pairs(1, len(model))[0], "off": ring, "inside": ring}
    lost = np.isnan(values.get("accuracy", np.zeros_like(values["share"])))
    of_lost = {name: lost[over[name]].any(1) if name in over else lost for name in values}
    values = {name: np.where(of_lost[name], np.nan, each) for name, each in values.items()}
    means = {
        name: stats.pair_mean(each, over[name], model) if name in over else stats.mean(each)
        for name, each in values.items()
    }
    intervals = {
        name: mean.interval() if name == "angle" else mean.share_interval()  # all others are shares
        for name, mean in means.items()
    }
    counted = {"lost": lost.sum(0)} if "accuracy" in values else {}
    kinds = pandas.DataFrame(list(rows), columns=[*before, "step", "subspace", "rank"])
    table = kinds.assign(**counted, **tables.interval_columns(intervals))
    of_nothing = (table["subspace"] == NOTHING) & table["share"].notna()
    table.loc[of_nothing, ["share_low", "share_high"]] = 0.0  # by definition, not by measurement
    return table


def summarize(table: pandas.DataFrame, random: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """How many directions are enough, ready for JSON.

    In `enough` for each step and subspace the smallest measured number of directions from which on the mean angle is
    within `NEAR` degrees of the random mean, by the mean and by both ends of its interval, where there is one: `{mean,
    low, high}`; None where that is more than was measured. Left out are steps at which no network has a direction, and
    subspaces that leave nothing of any. The subspaces in `refitted_at_every_step` are other ones at each step.
    """
    # The upper end of the angle gives the fewest directions.
    ends = {"mean": "angle", "low": "angle_high", "high": "angle_low"}
    enough, dimension = [], random["dimension"]
    for (step, subspace), rows in table[table["subspace"] != NOTHING].groupby(["step", "subspace"], sort=False):
        if rows["angle"].notna().any():
            whole = table[(table["step"] == step) & (table["subspace"] == NOTHING)]
            angle = pandas.concat([whole, rows]).set_index("rank")
            counts = {end: fewest(angle[name].fillna(angle["angle"]), dimension) for end, name in ends.items()}
            enough.append({"step": int(step), "subspace": subspace, **counts})
    known = {"random": random, "chance": 1 / num_classes, "near": NEAR, "refitted_at_every_step": list(REFITTED)}
    return known | {"enough": enough}


def fewest(angle: pandas.Series, dimension: float) -> int | None:
    """The smallest rank, the index, from which on every angle is near that of random directions; None if there is none.

    Random directions have so many dimensions less the rank. A rank at which nothing is left, NaN, is left out.
    """
    angle = angle.dropna()
    least = [stats.random_angle(max(round(dimension) - rank, 2)).mean() - NEAR for rank in angle.index]
    after = np.flatnonzero(angle < least).max(initial=-1) + 1
    return int(angle.index[after]) if after < len(angle) else None


def tell(results: Results) -> str:
    """The mean angles left with the shares removed: of every subspace, at equal shares, and of fits at other steps."""
    whole, matched, lasting = (results.tables[name] for name in ("decompose", "matched", "lasting"))
    called = captions(results)
    equal = {
        "step": matched["step"],
        "off the span of": matched["subspace"].map(called),
        "rank": matched["rank"],
        "share removed [95 %]": tables.cells(matched, "share", 3),
        "angle [95 %]": tables.cells(matched, "angle", 1),
    }
    return (
        "mean angles in degrees, and the share of the directions' squared length that was taken out;\n"
        f"{' and '.join(called[name] for name in REFITTED)} are refitted at every step\n"
        f"{_by_step(whole, whole['subspace'].map(called))}\n\n"
        "so many directions of each that the share is nearest to that of the updates\n"
        f"{tables.text(equal)}\n\n"
        f"updates fitted at one step, taken out of the directions at each step\n{_by_step(lasting, fits(results))}"
    )


def headline(results: Results) -> dict[str, stats.Interval]:
    """The lowest angle of training, and at that step the angle without other networks' updates, where there are any."""
    table, rank = results.tables["decompose"], shown_rank(results.config["ranks"])
    table = table[table["step"] > 0]
    lowest = table[table["subspace"] == NOTHING].sort_values("angle").head(1)
    of_updates = table[(table["subspace"] == "updates") & (table["rank"] <= rank)]
    without = of_updates[of_updates["step"].isin(lowest["step"])].tail(1)
    shown = {"lowest angle (degrees)": lowest, "angle then without others' updates (degrees)": without}
    return {name: tables.first(rows, "angle") for name, rows in shown.items() if len(rows)}


def _by_step(table: pandas.DataFrame, labels: pandas.Series) -> str:
    """Angles and shares as text: a line for each label, those of the table's rows, and rank; a column for each step."""
    left = table["angle"].map("{:.1f}".format).where(table["angle"].notna(), "-")
    words = [f"{angle} {share:4.0%}" for angle, share in zip(left, table["share"], strict=True)]
    grid = pandas.DataFrame({"label": labels, "rank": table["rank"], "step": table["step"], "words": words})
    grid = grid.set_index(["label", "rank", "step"])["words"].unstack(sort=False).fillna("")
    names, ranks = zip(*grid.index, strict=True)
    columns = {"off the span of": names, "rank": ranks}
    return tables.text(columns | {f"step {step}": grid[step] for step in grid})


def fits(results: Results) -> pandas.Series:
    """In words which subspace is taken out in each row of the table `lasting`."""
    lasting = results.tables["lasting"]
    updates = "updates from step 0 to " + lasting["fit_step"].astype(str)
    return lasting["subspace"].map(captions(results)).where(lasting["subspace"] != "updates", updates)
