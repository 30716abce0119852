"""What controls early transferability: learning rate, batch size and optimizer, hundreds of settings side by side.

BenShmuel (2022), sections 2.3 and 4.4: the lowest angle while the accuracy is at chance, for each setting.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import data, files, stats, training
from jtrans.harness import fields, figures, folder, setup, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.population import devices, engine, observe, trajectory
from jtrans.population.trajectory import FALL, Trajectory

NAME = "control"
PART = "{}-{}"  # the npz file of an optimizer and batch size

FIELDS: Mapping[str, fields.Field] = {
    **fields.NETWORKS,
    "num_networks": fields.NETWORKS["num_networks"]._replace(means="networks of each architecture, for each setting"),
    "num_steps": fields.whole(20, "optimizer steps"),
    "optimizers": fields.some_of(tuple(training.OPTIMIZERS), training.OPTIMIZERS, "optimizers of the map"),
    "learning_rates": fields.rates((1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
    "batch_sizes": fields.counts((128,), "training examples in a batch"),
}

# By optimizer and batch size the trajectory of all learning rates' networks, those of each rate in a row, with pairs
# across rates; and with `first_update [M]`, the length of each network's first update over that of its weights.
Parts = Mapping[tuple[str, int], Trajectory]


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    fields.check_one_model(config)
    fields.check_networks(config)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Train and measure every setting, except the parts that an earlier run finished."""
    keys = engine.keys(config.seed)
    dataset, test = setup.load(config, keys.data, max(config.batch_sizes))
    identity = setup.identity(dataset)
    devices.first_does(partial(folder.write_config, workdir, NAME, config))
    num_rates, num_classes = len(config.learning_rates), len(dataset.class_names)
    options = {"num_networks": num_rates * config.num_networks, "pair": compared(num_rates, config.num_networks)}
    parts = {}
    for optimizer, batch_size in itertools.product(config.optimizers, config.batch_sizes):
        options |= {"optimizer": training.adjustable(optimizer), "batch_size": batch_size}
        population = setup.population(config, dataset, test, keys, **options)
        path = workdir / f"{PART.format(optimizer, batch_size)}.npz"
        parts[optimizer, batch_size] = part(path, population, config, identity["data_sha256"])
    dimensions = setup.dimensions(dataset, test, config.models)
    table = settings_table(parts, config.learning_rates, dimensions, num_classes)
    summary = {
        "num_settings": len(table),
        "num_networks": sum(len(run["model"]) for run in parts.values()),
        "random": trajectory.random(dimensions),
        "chance": 1 / num_classes,
        "unlike": unlike_rates(parts, table, config.learning_rates, 1 / num_classes),
        **identity,
    }
    return Results(config, summary, {NAME: table}, {PART.format(*setting): run for setting, run in parts.items()})


def compared(num_rates: int, num_networks: int) -> np.ndarray:
    """The pairs `[P, 2]` to compare: all within a learning rate, and a sample of `observe.MOST_PAIRS` across rates."""
    pair = np.stack(np.triu_indices(num_rates * num_networks, 1), axis=1)
    first, second = (pair // num_networks).T
    return np.concatenate([pair[first == second], observe.sample(pair[first != second], observe.MOST_PAIRS)])


def part(path: Path, population: engine.Population, config: ConfigDict, digest: str) -> Trajectory:
    """A part: read, if an earlier run kept it (InputError if of other images than the digest's), else trained."""
    if devices.from_first(np.array(path.exists())):
        run = files.read_npz(path)
        data.check_digest(path, str(run.get("data_sha256", "")), digest)
        return run
    run = train(population, config.learning_rates, config.num_steps) | {"data_sha256": np.array(digest)}
    devices.first_does(partial(files.write_npz, path, run))
    print(f"{path.name}: {len(config.learning_rates)} learning rates measured", flush=True)
    return run


def train(population: engine.Population, learning_rates: Sequence[float], num_steps: int) -> Trajectory:
    """One of `Parts`, from a population whose optimizer is `training.adjustable`."""
    (placement,) = population.placements
    rates = np.repeat(learning_rates, population.num_networks // len(learning_rates))
    weights, measured = [], []
    for step, (groups,), measurement in engine.trajectory(
        population, engine.initialize_at(population, rates), num_steps
    ):
        measured.append((step, measurement))
        if step < 2:
            weights.append(devices.merge([group.variables["params"] for group in groups], placement))
    before, after = map(jax.tree.leaves, weights)
    first_update = length([b - a for a, b in zip(before, after, strict=True)]) / length(before)
    return trajectory.collect(population, *zip(*measured, strict=True)) | {"first_update": first_update}


def length(leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The Euclidean length `[M]` of each network's numbers, in leaves `[M, ...]`."""
    return np.sqrt(sum(np.square(leaf, dtype=np.float64).reshape(len(leaf), -1).sum(1) for leaf in leaves))


def settings_table(
    parts: Parts, learning_rates: Sequence[float], dimensions: np.ndarray, num_classes: int
) -> pandas.DataFrame:
    """What each setting of optimizer, batch size and learning rate reaches.

    Columns: the setting; the `step` of the lowest mean angle before the accuracy leaves chance; there `angle` (degrees)
    and `accuracy`, with 95 % intervals; `selected`, the lowest angle where each half of the networks chooses the step
    for the other, with its interval and degrees of freedom (`trajectory.summarize`); the median of the first updates'
    relative lengths; the share of all directions that were zero or not finite; how many networks were `lost`, their
    loss no longer finite; and whether this is early transferability (1 or 0; NaN where no angle was measured at
    chance).
    """
    rows = []
    for (optimizer, batch_size), run in parts.items():
        by_rate = np.arange(len(run["model"])).reshape(len(learning_rates), -1)
        for rate, networks in zip(learning_rates, by_rate, strict=True):
            of_setting = trajectory.select(run, networks)
            summary = trajectory.summarize(of_setting, trajectory.curves(of_setting), dimensions, num_classes)
            lowest, verdict = summary["lowest_at_chance"], summary["early_transferability"]
            selected = {bound: summary["selected"][bound] for bound in stats.Interval._fields}
            intervals = {"angle": lowest["angle"], "accuracy": lowest["accuracy"], "selected": selected}
            row = {
                "optimizer": optimizer,
                "batch_size": batch_size,
                "learning_rate": rate,
                "step": lowest["step"],
                **tables.interval_columns({name: stats.Interval(**bounds) for name, bounds in intervals.items()}),
                "selected_freedom": summary["selected"]["freedom"],
                "first_update": pandas.Series(run["first_update"][networks]).where(np.isfinite).median(),
                "undirected": summary["undirected"] / summary["directions"],
                "lost": len(summary["non_finite"]),
                "early_transferability": math.nan if verdict is None else int(verdict),
            }
            rows.append(row)
    return pandas.DataFrame(rows)


def unlike_rates(
    parts: Parts, table: pandas.DataFrame, learning_rates: Sequence[float], chance: float
) -> list[dict[str, Any]]:
    """How much larger the angle is between networks of two learning rates than within either, ready for JSON.

    For each optimizer and batch size with two or more learning rates that show early transferability: these
    `learning_rates`, and the `excess` of those as `{mean, low, high}`.
    """
    rows = []
    for (optimizer, batch_size), run in parts.items():
        of_part = table[(table["optimizer"] == optimizer) & (table["batch_size"] == batch_size)]
        shown = np.flatnonzero(of_part["early_transferability"] == 1)
        if len(shown) > 1:
            by_rate = np.arange(len(run["model"])).reshape(len(learning_rates), -1)
            of_shown = trajectory.select(run, by_rate[shown].ravel())
            rates = [learning_rates[i] for i in shown.tolist()]
            row = {"optimizer": optimizer, "batch_size": batch_size, "learning_rates": rates}
            rows.append(row | stats.plain(excess(of_shown, len(shown), chance)))
    return rows


def excess(run: Trajectory, num_settings: int, chance: float) -> stats.Interval:
    """The mean angle between networks of two settings less the mean of those within either, in degrees.

    Over all two of the settings, and over the steps after training began at which all are at chance. The networks of
    each setting stand in a row.
    """
    setting, pair = np.repeat(np.arange(num_settings), len(run["model"]) // num_settings), run["pair"]
    accuracy = stats.mean_ci(run["accuracy"].reshape(num_settings, -1, len(run["step"])), axis=1).mean
    angle = stats.mean_ci(run["angle"][:, 1 : trajectory.steps_at_chance(accuracy, chance)], axis=1).mean
    first, second = np.sort(setting[pair], axis=1).T
    a, b = np.triu_indices(num_settings, 1)

    def estimate(included: np.ndarray) -> np.ndarray:
        """From the pairs among the networks `included [M]`."""
        valid = included[pair].all(axis=1) & ~np.isnan(angle)
        add = lambda values: np.bincount((first * num_settings + second)[valid], values[valid], num_settings**2)
        with np.errstate(invalid="ignore"):  # 0 / 0, where no pair is left, is the NaN that is meant
            mean = (add(angle) / add(np.ones_like(angle))).reshape(num_settings, num_settings)
        return np.asarray((mean[a, b] - (mean[a, a] + mean[b, b]) / 2).mean())

    return stats.jackknife_ci(estimate, setting)


def tell(results: Results) -> str:
    """The table, and what it counts."""
    table = results.tables[NAME]
    shown = table["early_transferability"] == 1
    columns = {
        "optimizer": table["optimizer"],
        "batch": table["batch_size"],
        "rate": table["learning_rate"].map("{:.3g}".format),
        "step": table["step"],
        "lowest angle at chance [95 %]": tables.cells(table, "angle", 1),
        "accuracy [95 %]": tables.cells(table, "accuracy", 3),
        "update": table["first_update"].map("{:.3g}".format),
        "undirected": table["undirected"].map("{:.1%}".format),
        "lost": table["lost"],
        "": np.where(shown, "*", ""),
    }
    return (
        f"{tables.text(columns)}\n"
        "update: the first one's length over that of the weights; undirected: input gradients left out\n"
        "lost: networks whose loss is no longer finite; their accuracies and angles are left out\n"
        f"* early transferability (a fall of {FALL:.0f} degrees): {shown.sum()} of {len(table)} settings"
    )


def draw(results: Results) -> dict[str, Figure]:
    """The lowest angle at chance, as a map of all settings, or as curves where there is a single batch size."""
    config = results.config
    figure = draw_map(results) if len(config["batch_sizes"]) > 1 else draw_curves(results)
    figure.suptitle(
        f"Lowest mean angle within {config['num_steps']} steps while the accuracy is within "
        f"{100 * trajectory.at_chance(results.summary['chance']):.2g} points of chance\n"
        f"{figures.networks(config)}, {config['num_networks']} networks a setting; "
        f"{figures.data(config['data'])}, {config['num_examples']} test {figures.kind(results.summary)}",
        fontsize="medium",
    )
    return {"figure": figure}


def draw_map(results: Results) -> Figure:
    """A panel for each optimizer, with a cell for each setting: its angle, and how far the interval reaches."""
    optimizers, rates, batches = (results.config[name] for name in ("optimizers", "learning_rates", "batch_sizes"))
    columns = min(len(optimizers), 2)
    rows = -(-len(optimizers) // columns)
    size = (1.6 + columns * (1.2 + 0.62 * len(rates)), 1.6 + rows * (1.0 + 0.52 * len(batches)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(optimizers) :]:
        axes.axis("off")
    of_optimizers = results.tables[NAME].groupby("optimizer", sort=False)
    for axes, (optimizer, table) in zip(panels.flat, of_optimizers, strict=False):
        grid = table.pivot(index="batch_size", columns="learning_rate", values=["angle", "angle_high"])
        mean, reach = grid["angle"], (grid["angle_high"] - grid["angle"]).to_numpy()
        image = axes.imshow(mean, vmin=0, vmax=90, cmap="viridis", aspect="auto", origin="lower")
        for (row, column), angle in np.ndenumerate(mean):
            text = f"{angle:.0f}" + (f"\n±{reach[row, column]:.0f}" if np.isfinite(reach[row, column]) else "")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="k" if angle > 50 else "w")
        axes.set_xticks(range(len(rates)), [f"{rate:.0e}".replace("e-0", "e-").replace("e+0", "e") for rate in rates])
        axes.set_yticks(range(len(batches)), batches)
        axes.set(xlabel="learning rate", ylabel="batch size", title=optimizer)
    label = f"mean angle (degrees), ± 95 % interval\nrandom directions: {results.summary['random']['mean_angle']:.1f}"
    figure.colorbar(image, ax=panels, label=label)
    return figure


def draw_curves(results: Results) -> Figure:
    """A curve for each optimizer: over the learning rate on the left, over the first update on the right."""
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, (optimizer, table) in enumerate(results.tables[NAME].groupby("optimizer", sort=False)):
        angle = tables.interval(table, "angle")
        figures.curve(left, table["learning_rate"], angle, f"C{i}", optimizer)
        figures.curve(right, table["first_update"], angle, f"C{i}")
    figures.band_entry(left)
    left.set(xlabel="learning rate", ylabel="lowest mean angle at chance (degrees)", ylim=(0, 92))
    right.set(xlabel="first update over initial weights (ratio of Euclidean lengths)")
    for axes in (left, right):
        figures.random_mean(axes, results.summary["random"])
        axes.set_xscale("log")
        axes.grid(alpha=0.25)
    figure.legend(*left.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=6)
    return figure


def headline(results: Results) -> dict[str, float]:
    """How many of the settings show early transferability."""
    shown = results.tables[NAME]["early_transferability"] == 1
    return {"settings with early transferability (share)": float(shown.mean())}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, headline=headline)
