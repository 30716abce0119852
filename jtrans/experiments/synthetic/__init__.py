"""The synthetic experiment: transferability, adversarial and of knowledge, as a source drifts away from its target.

Liang et al. (2021), over the seeds of generated problems, or on a given problem.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from ml_collections import ConfigDict

from jtrans import loops, stats
from jtrans.errors import InputError
from jtrans.experiments.synthetic import problem
from jtrans.harness import fields, figures, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, is_number, is_tuple, is_whole, whole
from jtrans.stats import Interval

NAME = "synthetic"
MEASURES = {
    "tau1_S_T": "tau1, source to target",
    "tau1_T_S": "tau1, target to source",
    "tau2_S_T": "tau2, source to target",
    "tau2_T_S": "tau2, target to source",
    "tau1tau2_S_T": "tau1 tau2, source to target",
    "tau1tau2_T_S": "tau1 tau2, target to source",
    "transfer_loss_S": "transfer loss",
    "gradient_matching_distance": "gradient matching distance",
}

FIELDS: Mapping[str, Field] = {
    "problem": fields.text("", "an npz file, or '' to generate problems", "a problem as the official code saves it"),
    "seed": fields.seed(),
    "num_seeds": whole(10, "problems, each with networks of its own"),
    "scales": Field(
        tuple(i / 10 for i in range(10)),
        lambda v: is_tuple(v, is_number) and problem.are_scales(v),
        "a tuple of numbers, 0 first and each larger than the one before",
        "how far a source drifts at each step from where it was: more and more, from its target on",
    ),
    "widths": fields.widths((50, 100, 200), "hidden units of the sources; a given problem brings its own"),
    "levels": Field(
        (0, 1),
        lambda v: is_tuple(v, lambda n: is_whole(n) and n >= 0),
        "a tuple of whole numbers, 0 or more, as (0, 1)",
        "which singular vectors of the Jacobian attack; 0: the top one",
    ),
    "target_width": whole(100, "hidden units of the target"),
    "num_points": whole(5000, "points of a problem"),
    "input_size": whole(50, "values of a point"),
    "output_size": whole(10, "outputs of a network"),
    "num_clusters": whole(10, "clusters that the points form"),
    "num_basis_functions": whole(100, "radial basis functions, whose sum the outputs are"),
    "fit.num_steps": whole(4000, "optimizer steps of fitting a network"),
    "fit.batch_size": whole(250, "points in a batch"),
    "fit.learning_rate": fields.positive(1e-2, "of Adam"),
}


def check(config: ConfigDict) -> None:
    """Check that a given problem can be read, and that its Jacobians have all the levels."""
    sizes = [config.input_size, config.output_size, config.target_width, *config.widths]
    if config.problem:
        given = problem.load(config.problem)
        sizes = [given.x.shape[1], given.y.shape[1], given.target.W1.shape[0], *given.sources]
    if max(config.levels) >= min(sizes):
        raise InputError(f"levels: got {max(config.levels)}; Jacobians of this size have levels 0 to {min(sizes) - 1}")


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Measure the given problem, or those of the seeds."""
    problems = [(config.seed, problem.load(config.problem))] if config.problem else generated(config)
    table = measured(problems, config.levels)
    return Results(config, summarize(table), {NAME: table}, {})


def generated(config: ConfigDict) -> Iterator[tuple[int, problem.Problem]]:
    """The problems of consecutive seeds, all of whose networks train together."""
    seeds = jnp.arange(config.num_seeds, dtype=jnp.uint32) + jnp.uint32(config.seed)
    count = len({*config.widths, config.target_width})
    print(f"fitting {count} networks for each of {config.num_seeds} seeds", flush=True)
    problems = jax.jit(jax.vmap(partial(problem.generate, config=config)))(seeds)
    yield from zip(seeds.tolist(), loops.unstack(problems), strict=True)


def measured(problems: Iterable[tuple[int, problem.Problem]], levels: Sequence[int]) -> pandas.DataFrame:
    """A row for each seed, width, level and scale, with `problem.COLUMNS`."""
    measures = {n: jax.jit(jax.vmap(partial(problem.measure, level=n), (None, 0, None, None))) for n in levels}
    parts = []
    for seed, (x, y, scales, target, sources) in problems:
        for width, of_width in sources.items():
            for level, of_scales in measures.items():
                columns = {"scale": scales, **jax.device_get(of_scales(target, of_width, x, y))}
                columns = {name: np.asarray(columns[name], np.float64) for name in problem.COLUMNS}
                parts.append(pandas.DataFrame({"seed": seed, "width": width, "level": level, **columns}))
        print(f"seed {seed}: measured", flush=True)
    return pandas.concat(parts, ignore_index=True)


def over_seeds(rows: pandas.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The scales `[S]` of the drift, and a column of a width's and level's rows there for each seed, `[seeds, S]`."""
    of_seeds = [of_seed for _, of_seed in rows.groupby("seed")]
    return of_seeds[0]["scale"].to_numpy(), np.stack([of_seed[name] for of_seed in of_seeds])


def summarize(table: pandas.DataFrame) -> dict[str, Any]:
    """How each measure changes with the drift, ready for JSON.

    In `rows` for each width, level and measure: its value without drift and at the largest, and Spearman's rank
    correlation with the scale, each as `{mean, low, high}` over seeds. The interval of the rank correlation lies in
    [-1, 1], and a correlation of 1 in every seed does not make it certain (`stats.share_ci`).
    """
    rows = []
    for (width, level), of_both in table.groupby(["width", "level"]):
        for name in MEASURES:
            scale, values = over_seeds(of_both, name)
            ranks = np.array([scipy.stats.spearmanr(scale, of_seed).statistic for of_seed in values])
            share = stats.share_ci((1 + np.round(ranks, 12)) / 2)  # rounded, so that perfect order is exactly 1 or 0
            intervals = {
                "first": stats.mean_ci(values[:, 0]),
                "last": stats.mean_ci(values[:, -1]),
                "spearman": Interval(*(2 * bound - 1 for bound in share)),
            }
            plain = {key: stats.plain(interval) for key, interval in intervals.items()}
            rows.append({"width": int(width), "level": int(level), "measure": name, **plain})
    return {"num_seeds": table["seed"].nunique(), "rows": rows}


def tell(results: Results) -> str:
    """The findings as a table."""
    rows, num_seeds = results.summary["rows"], results.summary["num_seeds"]
    columns = {name: [row[name] for row in rows] for name in ("width", "level")}
    columns["measure"] = [MEASURES[row["measure"]] for row in rows]
    shown = {"first": "no drift", "last": "largest drift", "spearman": "rank correlation with drift"}
    columns |= {head: [stats.interval_text(row[key], 3) for row in rows] for key, head in shown.items()}
    over = f"means [95 % intervals] over {num_seeds} seeds" if num_seeds > 1 else "one problem: no intervals"
    return f"{tables.text(columns)}\n{over}"


def draw(results: Results) -> dict[str, Figure]:
    """Every measure over the drift's scale, a row of panels for each level, with 95 % intervals over seeds."""
    table, num_seeds = results.tables[NAME], results.summary["num_seeds"]
    levels, source_widths = np.unique(table["level"]), np.unique(table["width"])
    figure = Figure(figsize=(11, 3.4 * (len(levels) + 1)), layout="constrained")
    *rows, (loss, distance, key) = figure.subplots(len(levels) + 1, 3)
    titles = {"tau1": "tau1: strength", "tau2": "tau2: alignment", "tau1tau2": "tau1 and tau2 combined"}
    for level, panels in zip(levels, rows, strict=True):
        for panel, (name, title) in zip(panels, titles.items(), strict=True):
            _curves(panel, table, f"{name}_S_T", level)
            _curves(panel, table, f"{name}_T_S", level, "--")
            panel.set(ylim=(0, 1.03), ylabel=f"{name.replace('tau1tau2', 'tau1 tau2')} (0 to 1)")
            panel.set_title(f"{title}, level {level}", fontsize="medium")
    _curves(loss, table, "transfer_loss_S", levels[0])
    loss.set_title("knowledge transfer: source's last layer refit", fontsize="medium")
    loss.set(ylabel="transfer loss (root mean squared error)", ylim=(0, None))
    _curves(distance, table, "gradient_matching_distance", levels[0])
    distance.set_title("gradient matching", fontsize="medium")
    distance.set(ylabel="gradient matching distance\n(output per unit of input)", ylim=(0, None))
    for panel in (*np.ravel(rows), loss, distance):
        panel.set_xlabel("scale of the drift's last step (steps add up)")
        panel.grid(alpha=0.25)
    handles = [Line2D([], [], color=f"C{i}", label=f"source of width {w}") for i, w in enumerate(source_widths)]
    handles.append(Line2D([], [], color="0.3", label="attack from source to target"))
    handles.append(Line2D([], [], color="0.3", linestyle="--", label="attack from target to source"))
    if num_seeds > 1:
        handles.append(Patch(color="0.3", alpha=0.25, label=f"{figures.INTERVAL} over {num_seeds} seeds"))
    singular = "attacks along singular vectors\nof the Jacobian: level 0 the top one,\nlevel 1 the second, and so on"
    key.legend(handles=handles, loc="center", title=singular)
    key.axis("off")
    figure.suptitle("How a drifting source transfers to its target, and back (one-hidden-layer networks)")
    return {"figure": figure}


def _curves(axes: Axes, table: pandas.DataFrame, name: str, level: int, style: str = "-") -> None:
    """A measure over the scale, a curve for each width of the sources."""
    for i, (_, rows) in enumerate(table[table["level"] == level].groupby("width")):
        scale, values = over_seeds(rows, name)
        interval = stats.mean_ci(values)
        axes.plot(scale, interval.mean, f"C{i}", linestyle=style)
        figures.band(axes, scale, interval, f"C{i}", None)


def headline(results: Results) -> dict[str, Interval]:
    """How transferability to the target goes with the drift, for each width of the sources, at the first level."""
    rows = results.summary["rows"]
    shown = [row for row in rows if row["measure"] == "tau1tau2_S_T" and row["level"] == rows[0]["level"]]
    name = "rank correlation of tau1 tau2 with drift, width {} (-1 to 1)"
    return {name.format(row["width"]): stats.from_plain(row["spearman"]) for row in shown}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, headline=headline)
