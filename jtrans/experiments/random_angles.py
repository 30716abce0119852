"""The angle between random directions: typical and mean angles by dimension, and how rare small angles are.

BenShmuel (2022), Appendix A, Tables 3 and 4, with the exact law and samples beside them.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import directions, metrics, stats
from jtrans.harness import figures, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, is_number, is_tuple, is_whole, seed, whole
from jtrans.stats import Interval

BLOCK = 2**21  # values drawn at once

FIELDS: Mapping[str, Field] = {
    "seed": seed(),
    "num_seeds": whole(10, "how often all is drawn anew"),
    "dimensions": Field(
        (3, 10, 100, 784, 3072, 150_528),
        lambda v: is_tuple(v, lambda d: is_whole(d) and d >= 2),
        "a tuple of whole numbers, 2 or more",
        "the dimensions in which directions are drawn",
    ),
    "num_pairs": whole(200, "pairs of random directions, of each dimension and seed"),
    "dimension": whole(3072, "the dimension in which small angles are looked for", least=2),
    "num_rare_pairs": whole(20_000, "pairs of each seed there"),
    "factors": Field(
        (1, 2, 3, 4, 5, 6, 8, 10),
        lambda v: is_tuple(v, lambda k: is_number(k) and k > 0),
        "a tuple of numbers above 0",
        "each is the small angle arccos(factor / sqrt(dimension))",
    ),
}


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Sample pairs of random directions, and hold them to the paper's approximations and the exact law."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    sampled = {dimension: sample(keys, dimension, config.num_pairs) for dimension in config.dimensions}
    rare = sample(keys, config.dimension, config.num_rare_pairs)
    frames = {"typical": typical_table(sampled), "unlikely": unlikely_table(rare, config.dimension, config.factors)}
    return Results(config, smallest(rare, config.dimension), frames, {})


def sample(keys: jax.Array, dimension: int, num_pairs: int) -> np.ndarray:
    """The folded angles `[seeds, num_pairs]` of independent pairs, in degrees."""
    size = min(max(1, BLOCK // dimension), num_pairs)

    def block(key: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        like = jnp.zeros((size, dimension))
        return metrics.angles(directions.random(first, like), directions.random(second, like))

    draw = jax.jit(partial(jax.lax.map, block))
    angles = [np.ravel(draw(directions.example_keys(key, -(-num_pairs // size))))[:num_pairs] for key in keys]
    print(f"{dimension} dimensions: {len(keys)} x {num_pairs} pairs drawn", flush=True)
    return np.stack(angles)


def typical_table(sampled: Mapping[int, np.ndarray]) -> pandas.DataFrame:
    """Table 3: the paper's typical angle, the exact mean, and that of sampled angles `[seeds, pairs]`, in degrees."""
    laws = [stats.random_angle(dimension) for dimension in sampled]
    means = stats.mean_ci(np.stack([angles.mean(1, dtype=np.float64) for angles in sampled.values()]), axis=1)
    columns = {"dimension": list(sampled), "typical": [law.typical() for law in laws]}
    columns |= {"exact": [law.mean() for law in laws], **tables.interval_columns({"sampled": means})}
    return pandas.DataFrame(columns)


def unlikely_table(rare: np.ndarray, dimension: int, factors: tuple[float, ...]) -> pandas.DataFrame:
    """Table 4: by factor an angle, and how rare one as small is: Markov's bound, exact, and in `[seeds, pairs]`."""
    law, factor = stats.random_angle(dimension), np.array(factors, np.float64)
    angle = np.rad2deg(np.arccos(np.minimum(factor / np.sqrt(dimension), 1)))
    shares = stats.share_ci((rare[:, :, None] <= angle).mean(1))
    columns = {"factor": factor, "angle": angle, "markov": law.markov_bound(angle), "exact": law.cdf(angle)}
    return pandas.DataFrame({**columns, **tables.interval_columns({"sampled": shares})})


def smallest(rare: np.ndarray, dimension: int) -> dict[str, Any]:
    """The smallest of the angles `[seeds, pairs]` of each seed, and what the exact law expects of it."""
    law, (num_seeds, num_pairs) = stats.random_angle(dimension), rare.shape
    quantiles = {"low": 0.025, "median": 0.5, "high": 0.975}
    least = {"least": stats.plain(stats.mean_ci(rare.min(1)))}
    least["expected"] = {name: law.least(num_pairs, p) for name, p in quantiles.items()}
    return {"dimension": dimension, "num_pairs": num_pairs, "num_seeds": num_seeds, **least}


def tell(results: Results) -> str:
    """Both tables, and the smallest angle."""
    typical, unlikely, summary = results.tables["typical"], results.tables["unlikely"], results.summary
    by_dimension = {
        "dimension": typical["dimension"],
        "typical angle": typical["typical"].map("{:.2f}".format),
        "exact mean": typical["exact"].map("{:.2f}".format),
        "sampled mean, degrees [95 %]": tables.cells(typical, "sampled", 2),
    }
    by_angle = {
        "angle": unlikely["angle"].map("{:.2f}".format),
        "Markov's bound": unlikely["markov"].map("{:.4f}".format),
        "exact": unlikely["exact"].map("{:.3g}".format),
        "sampled share of pairs [95 %]": tables.cells(unlikely, "sampled", 5),
    }
    least, expected = stats.interval_text(summary["least"], 2), summary["expected"]
    return (
        f"{tables.text(by_dimension)}\n\n{tables.text(by_angle)}\n\n"
        f"The smallest of {summary['num_pairs']} angles in {summary['dimension']} dimensions, over "
        f"{summary['num_seeds']} seeds: {least} degrees.\nThe exact law expects a median of "
        f"{expected['median']:.2f}, and 95 % of the time {expected['low']:.2f} to {expected['high']:.2f}."
    )


def draw(results: Results) -> dict[str, Figure]:
    """The mean angle over the dimension, and the probability of small angles."""
    typical, unlikely, summary = results.tables["typical"], results.tables["unlikely"], results.summary
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, table, x in ((left, typical, "dimension"), (right, unlikely, "angle")):
        axes.plot(table[x], table["exact"], color="C0", label="exact law")
        sampled = tables.interval(table, "sampled")
        if axes is right:  # a logarithmic axis has no place for a bound of 0
            sampled = sampled._replace(low=np.maximum(sampled.low, sampled.mean / 10))
        positive, reach = sampled.mean > 0, figures.errors(sampled)
        label = f"sampled{'' if reach is None else ', 95 % interval'} over {summary['num_seeds']} seeds"
        bars = None if reach is None else reach[:, positive]
        axes.errorbar(table[x][positive], sampled.mean[positive], bars, fmt=".", color="0.2", capsize=3, label=label)
        axes.grid(alpha=0.25)
    paper = {"color": "C3", "linestyle": "--"}
    left.plot(typical["dimension"], typical["typical"], label="arccos(1 / sqrt(dimension)) (Table 3)", **paper)
    left.set(xscale="log", xlabel="dimension", ylabel="mean folded angle (degrees)")
    left.set_title("Random directions by dimension", fontsize="medium")
    right.plot(unlikely["angle"], unlikely["markov"], label="Markov's bound (Table 4)", **paper)
    label = f"smallest of {summary['num_pairs']} pairs, mean over seeds"
    right.axvline(summary["least"]["mean"], color="0.5", linestyle=":", label=label)
    right.set(yscale="log", ylim=(1e-9, 2), xlabel="angle (degrees)", ylabel="probability of an angle as small")
    right.set_title(f"Small angles in {summary['dimension']} dimensions", fontsize="medium")
    handles = [axes.get_legend_handles_labels() for axes in (left, right)]
    entries = {label: line for lines, labels in handles for line, label in zip(lines, labels, strict=True)}
    figure.legend(entries.values(), entries, fontsize="small", loc="outside lower center", ncols=3)  # each once
    return {"figure": figure}


def headline(results: Results) -> dict[str, Interval]:
    """The smallest of many angles, which grows with the dimension."""
    return {"smallest angle of all pairs (degrees)": stats.from_plain(results.summary["least"])}


EXPERIMENT = Experiment("random_angles", FIELDS, measure, tell, draw, headline=headline)
