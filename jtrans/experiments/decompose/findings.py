"""What the measured networks show: as a table, as numbers, in words and as a figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jtrans import stats
from jtrans.experiments.decompose.removal import Measured
from jtrans.experiments.decompose.subspaces import NOTHING
from jtrans.harness import figures, tables
from jtrans.harness.experiment import Results
from jtrans.population import observe

SHOWN_RANK = 10  # of the ranks, the largest up to this one is drawn
NEAR = 2.0  # degrees below the random mean that count as random once a subspace is taken out
CAPTIONS = {
    NOTHING: "nothing",
    "random": "random directions",
    "mean_image": "the mean image",
    "training_images": "training images",
    "gradients": "other networks' gradients",
    "updates": "other networks' updates",
}


def tabulate(found: Mapping[tuple[int, str, int], Measured]) -> pandas.DataFrame:
    """Directions without each subspace, at each step.

    Args:
      found: by step, subspace (of `CAPTIONS`) and its number of directions.

    Returns:
      `step`, `subspace`, `rank`, how many networks are `lost` (their loss is not finite) and in no mean, and with 95 %
      intervals over networks: `angle` in degrees, `share` of the directions' squared length that was taken out, success
      of attacks along the component left (`off`) and along the one taken out (`inside`), `accuracy`.
    """
    all_rows = Measured(*(np.stack(values, axis=1) for values in zip(*found.values(), strict=True)))
    model = np.zeros(len(all_rows.share), int)
    pair, ring = observe.pairs(1, len(model))[0], observe.attackers(1, len(model))
    intervals = {
        "angle": stats.pair_mean_ci(all_rows.angle, pair, model),
        "share": stats.mean_ci(all_rows.share),
        "off": stats.pair_mean_ci(all_rows.off, ring, model),
        "inside": stats.pair_mean_ci(all_rows.inside, ring, model),
        "accuracy": stats.mean_ci(all_rows.accuracy),
    }
    kinds = pandas.DataFrame(list(found), columns=["step", "subspace", "rank"])
    return kinds.assign(lost=np.isnan(all_rows.accuracy).sum(0), **tables.interval_columns(intervals))


def summarize(table: pandas.DataFrame, dimension: int, num_classes: int) -> dict[str, Any]:
    """How many directions are enough.

    Returns:
      The law of random angles, `chance`, and in `enough` for each step and subspace the smallest measured number of
      directions from which on the mean angle is within `NEAR` degrees of the random mean, by the mean and by both ends
      of its interval, where there is one: `{mean, low, high}`; None where that is more than was measured. Steps at
      which no network has a direction are left out.
    """
    random = stats.random_angle(dimension).mean()
    enough = []
    for (step, subspace), rows in table[table["subspace"] != NOTHING].groupby(["step", "subspace"], sort=False):
        if rows["angle"].notna().any():
            whole = table[(table["step"] == step) & (table["subspace"] == NOTHING)]
            angle = pandas.concat([whole, rows]).set_index("rank")
            # The upper end of the angle gives the fewest directions.
            ends = {"mean": "angle", "low": "angle_high", "high": "angle_low"}
            bounds = {end: angle[column].fillna(angle["angle"]) for end, column in ends.items()}
            counts = {end: fewest(bound, random - NEAR) for end, bound in bounds.items()}
            enough.append({"step": int(step), "subspace": subspace, **counts})
    law = {"dimension": dimension, "mean_angle": random}
    return {"random": law, "chance": 1 / num_classes, "near": NEAR, "enough": enough}


def fewest(angle: pandas.Series, least: float) -> int | None:
    """The smallest rank, the index, from which on every angle is `least` or more; None where there is none."""
    short = np.flatnonzero(~(angle >= least))
    after = short[-1] + 1 if len(short) else 0
    return int(angle.index[after]) if after < len(angle) else None


def tell(results: Results) -> str:
    """The mean angles, a line for each subspace and a column for each step."""
    table = results.tables["decompose"]
    kinds = dict(list(table.groupby(["subspace", "rank"], sort=False)))
    columns = {"off the span of": [CAPTIONS[subspace] for subspace, _ in kinds], "rank": [rank for _, rank in kinds]}
    for step in table["step"].unique():
        angles = (rows.set_index("step")["angle"].get(step, np.nan) for rows in kinds.values())
        columns[f"step {step}"] = [f"{angle:6.1f}" for angle in angles]
    return f"mean angles in degrees\n{tables.text(columns)}"


def draw(results: Results) -> dict[str, Figure]:
    """The angle without each subspace, how many directions are enough, and attacks along either component."""
    config, table = results.config, results.tables["decompose"]
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    panels = angle, enough, attack = figure.subplots(1, 3)
    colours = {name: f"C{i}" for i, name in enumerate(name for name in table["subspace"].unique() if name != NOTHING)}
    _draw_angles(angle, results, colours)
    _draw_counts(enough, results, colours)
    _draw_attacks(attack, results, colours)
    steps = table["step"].unique()
    for axes in panels:
        axes.set_xticks(range(len(steps)), steps)
        axes.set_xlabel("optimizer steps")
        axes.grid(alpha=0.25)
    figure.legend(*angle.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=4)
    optimizer = config["optimizer"]
    figure.suptitle(
        f"Adversarial directions without a small subspace: {figures.networks(config)}, {config['num_networks']} "
        f"networks, subspaces from {config['num_fit']} others\n{figures.data(config['data'])}; {optimizer['name']}, "
        f"learning rate {optimizer['learning_rate']:g}, batch size {config['batch_size']}",
        fontsize="medium",
    )
    return {"figure": figure}


def _draw_angles(axes: Axes, results: Results, colours: Mapping[str, str]) -> None:
    table = results.tables["decompose"]
    _curve(axes, table, (NOTHING, 0), "angle", "k", label="whole directions")
    for name, colour in colours.items():
        rank = _rank(name, results.config)
        label = f"off {CAPTIONS[name]}" + f", {rank} of them" * (rank > 1)
        _curve(axes, table, (name, rank), "angle", colour, label=label)
    figures.random_mean(axes, results.summary["random"])
    figures.band_entry(axes)
    axes.set(ylabel="angle between adversarial directions (degrees)", ylim=(0, 92))
    axes.set_title("what is left of the directions", fontsize="medium")


def _draw_counts(axes: Axes, results: Results, colours: Mapping[str, str]) -> None:
    """How many directions are enough, beside each other at each step."""
    grid, summary = [0, *results.config["ranks"]], results.summary
    place = lambda rank: len(grid) if rank is None else grid.index(rank)
    steps = results.tables["decompose"]["step"].unique()
    for i, (name, colour) in enumerate(colours.items()):
        if name in ("random", "mean_image"):
            continue
        rows = [row for row in summary["enough"] if row["subspace"] == name]
        x = np.searchsorted(steps, [row["step"] for row in rows]) + 0.08 * (i - len(colours) / 2)
        middle, low, high = (np.array([place(row[end]) for row in rows]) for end in ("mean", "low", "high"))
        reach = [middle - low, high - middle]
        axes.errorbar(x, middle, reach, color=colour, marker="o", capsize=3, label=CAPTIONS[name])
    axes.set_yticks(range(len(grid) + 1), [*grid, f"over {grid[-1]}"])
    axes.set(ylabel=f"directions to take out for a mean angle\nwithin {summary['near']:.0f} degrees of random ones")
    axes.set_title("how many directions are enough (bars: 95 % interval)", fontsize="medium")
    axes.legend(fontsize="x-small", loc="best")


def _draw_attacks(axes: Axes, results: Results, colours: Mapping[str, str]) -> None:
    table, config = results.tables["decompose"], results.config
    _curve(axes, table, (NOTHING, 0), "off", "k", label="whole directions")
    for name, colour in colours.items():
        for part, style in (("off", "-"), ("inside", ":")):
            _curve(axes, table, (name, _rank(name, config)), part, colour, linestyle=style)
    axes.plot([], [], color="0.4", label="along what is left")
    axes.plot([], [], color="0.4", linestyle=":", label="along what was taken out")
    axes.set(ylabel="errors by another network's direction\n(share of images got right)", ylim=(0, 1))
    epsilon = config["attack"]["epsilon"]
    axes.set_title(f"attacks of L2 length {epsilon:g} (pixels in [0, 1])", fontsize="medium")
    axes.legend(fontsize="x-small", loc="upper left")


def _rank(name: str, config: Mapping[str, Any]) -> int:
    """The rank at which a subspace is drawn."""
    ranks = config["ranks"]
    return 1 if name == "mean_image" else max(rank for rank in ranks if rank <= SHOWN_RANK or rank == ranks[0])


def _curve(axes: Axes, table: pandas.DataFrame, kind: tuple[str, int], name: str, colour: str, **options: Any) -> None:
    """The interval of that name without one subspace, over the places of the steps."""
    rows = table[(table["subspace"] == kind[0]) & (table["rank"] == kind[1])]
    x = np.searchsorted(table["step"].unique(), rows["step"])
    figures.curve(axes, x, tables.interval(rows, name), colour, **options)
