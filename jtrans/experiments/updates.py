"""The vectors by which one SGD step moves the first layer: how alike they are, within networks and between them.

BenShmuel (2022), section 4, Tables 1 and 2. The networks are fully connected; their first layer's kernel is `[H, D]`, a
row for each of H hidden units.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import directions, models, stats
from jtrans.data import Split
from jtrans.errors import InputError
from jtrans.harness import fields, figures, setup, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, is_tuple, whole
from jtrans.population import engine, observe, trajectory
from jtrans.stats import Interval

NAME = "updates"
BINS = 90  # of one degree each
FIRST_LAYER = "Dense_0"
FULLY_CONNECTED = ("mlp_shallow", "mlp_deep", "fcnet")
# What is compared, before the names of the architectures.
CAPTIONS = {"within": "within {}", "adversarial": "{}, to adversarial directions", "between": "between {} and {}"}

FIELDS: Mapping[str, Field] = {
    "seed": fields.seed(),
    "models": Field(
        ("mlp_shallow", "mlp_deep"),
        lambda v: is_tuple(v, lambda name: name in FULLY_CONNECTED, range(1, 3)) and len(set(v)) == len(v),
        f"one or two of {', '.join(FULLY_CONNECTED)}, as a tuple",
        "the architectures",
    ),
    **{f"widths.{name}": fields.WIDTHS[f"widths.{name}"] for name in FULLY_CONNECTED},
    "initializer": fields.NETWORKS["initializer"],
    "num_networks": whole(16, "networks of each architecture", least=2),
    "num_examples": whole(100, "test images at which adversarial directions are taken"),
    "batch_size": fields.TRAINING["batch_size"],
    "learning_rate": fields.positive(1e5, "of the large step"),
    **fields.DATA,
}


def measure(config: ConfigDict, workdir: Path) -> Results:
    """One step of every network, on a batch of its own; the angles between all their update vectors."""
    keys = engine.keys(config.seed)
    dataset, test = setup.load(config, keys.data, config.batch_size)
    count = config.num_networks
    batches = disjoint(keys.order, dataset.train, config.batch_size, len(config.models) * count)
    init_keys = engine.network_keys(keys.init, len(config.models), count)
    steps = {}
    for name, of_model, shares in zip(config.models, init_keys, itertools.batched(batches, count), strict=True):
        step = jax.jit(partial(one_step, setup.model(config, name, dataset), learning_rate=config.learning_rate))
        # The update vectors stay on the device, where every network is compared with all others.
        steps[name] = [jax.block_until_ready(step(*of_one, test)) for of_one in zip(of_model, shares, strict=True)]
        print(f"{name}: {count} networks took a step", flush=True)
    frames = tabulate(steps)
    summary = {
        "table": frames[NAME].to_dict("records"),
        "random": trajectory.random(setup.dimensions(dataset, test, config.models)),
        "num_networks": count,
        **sizes(steps),
        **setup.identity(dataset),
    }
    return Results(config, summary, frames, {})


def disjoint(key: jax.Array, train: Split, batch_size: int, count: int) -> list[Split]:
    """Batches that share no image; InputError if there are too few images for them."""
    needed, num_images = batch_size * count, len(train.labels)
    if needed > num_images:
        what = f"{count} networks with batches of their own take {needed} images, and there are {num_images}"
        raise InputError(f"batch_size: got {batch_size}; {what}; take fewer networks or smaller batches")
    order = np.asarray(jax.random.permutation(key, num_images))[:needed].reshape(count, batch_size)
    return [Split(train.inputs[batch], train.labels[batch]) for batch in order]


class Angles(NamedTuple):
    """The mean of folded angles in degrees, NaN where there is none, and `[BINS]`, the share of them in each degree."""

    mean: jax.Array
    histogram: jax.Array


class Step(NamedTuple):
    """One network's first step of SGD.

    Attributes:
      vectors: `[H, D]`, the unit update vectors; NaN where a unit did not move.
      within: the angles between them.
      adversarial: after a step so large that little of the initial weights is left, the angles between the adversarial
        direction at each test image and each update vector.
      ratio: the length of the first layer's large step over that of its initial weights.
    """

    vectors: jax.Array
    within: Angles
    adversarial: Angles
    ratio: jax.Array


def one_step(model: models.Model, key: jax.Array, batch: Split, test: Split, *, learning_rate: float) -> Step:
    """One step on a batch (uint8 `[B, H, W, C]`, labels `[B]`), measured for Tables 1 and 2.

    Args:
      key: the initial weights are drawn from it.
      test: the images at which the adversarial directions are taken.
      learning_rate: of the large step; the direction of the update vectors does not depend on it.
    """
    variables = model.init(key)

    def loss(params: models.Variables) -> jax.Array:
        logits = model.apply({**variables, "params": params}, model.inputs.of(batch.inputs))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    update = jax.grad(loss)(variables["params"])
    vectors = directions.normalize(update[FIRST_LAYER]["kernel"])
    after = jax.tree.map(lambda p, g: p - learning_rate * g, variables["params"], update)
    f = partial(model.apply, {**variables, "params": after})
    gradients = directions.loss_gradient(f, model.inputs.of(test.inputs), test.labels)
    # The kernel has its inputs as the network flattens them, channels first.
    adversarial = directions.normalize(jnp.moveaxis(gradients, -1, 1))
    size = lambda params: jnp.linalg.norm(params[FIRST_LAYER]["kernel"])
    ratio = learning_rate * size(update) / size(variables["params"])
    return Step(vectors, angles(vectors, vectors, same=True), angles(adversarial, vectors), ratio)


def angles(first: jax.Array, second: jax.Array, *, same: bool = False) -> Angles:
    """Every unit vector of `first [G, D]` with every one of `second [H, D]`; vectors of NaN are left out.

    Where both are the same set, each pair counts once, and no vector with itself.
    """
    angle = observe.folded(jnp.matmul(first, second.T, precision="highest"))
    valid = jnp.triu(~jnp.isnan(angle), 1) if same else ~jnp.isnan(angle)
    count = valid.sum()
    degree = jnp.clip(jnp.where(valid, angle, 0), 0, BINS - 1).astype(int)
    histogram = jnp.zeros(BINS, int).at[degree].add(valid)  # float32 stops counting at 2^24
    return Angles(jnp.where(valid, angle, 0).sum() / count, histogram / count)


def tabulate(steps: Mapping[str, Sequence[Step]]) -> dict[str, pandas.DataFrame]:
    """BenShmuel (2022), Tables 1 and 2, over many networks, by what is compared: `KIND.ARCHITECTURE`.

    The mean angles in degrees, with 95 % intervals over networks, a row each; and the mean share of the angles in each
    degree, a column each.
    """
    compared = {}
    for name, of_model in steps.items():
        compared[f"within.{name}"] = average([step.within for step in of_model])
        compared[f"adversarial.{name}"] = average([step.adversarial for step in of_model])
    for names in itertools.combinations_with_replacement(steps, 2):
        compared[".".join(("between", *names))] = between([steps[name] for name in dict.fromkeys(names)])
        print(f"{' and '.join(names)} compared", flush=True)
    intervals, histograms = zip(*compared.values(), strict=True)
    angle = tables.interval_columns({"angle": Interval(*np.transpose(intervals))})
    shares = {"degree": np.arange(BINS), **dict(zip(compared, histograms, strict=True))}
    return {NAME: pandas.DataFrame({"what": list(compared), **angle}), "histograms": pandas.DataFrame(shares)}


def between(steps: Sequence[Sequence[Step]]) -> tuple[Interval, np.ndarray]:
    """The update vectors of one network with those of another: all pairs of one architecture, or across two."""
    unit = [step.vectors for of_model in steps for step in of_model]
    pair, model = observe.pairs(len(steps), len(steps[0]))
    compiled = jax.jit(angles)
    each = [jax.device_get(compiled(unit[a], unit[b])) for a, b in pair]
    return average(each, partial(stats.pair_mean_ci, pair=pair, model=model))


def average(each: Sequence[Angles], interval: Callable[..., Interval] = stats.mean_ci) -> tuple[Interval, np.ndarray]:
    """The mean angle by `interval`, and the mean histogram `[BINS]`, of networks or of pairs."""
    means, histograms = zip(*each, strict=True)
    return interval(np.array(means, np.float64)), stats.mean_ci(histograms).mean


def sizes(steps: Mapping[str, Sequence[Step]]) -> dict[str, Any]:
    """By architecture: how many update vectors there are and are left out, and the size of the large step."""
    ratios = {name: pandas.Series([float(step.ratio) for step in of_model]) for name, of_model in steps.items()}
    return {
        "unmoved": {name: sum(int(np.isnan(s.vectors[:, 0]).sum()) for s in of) for name, of in steps.items()},
        "vectors": {name: sum(len(step.vectors) for step in of_model) for name, of_model in steps.items()},
        "large_step_over_weights": {name: ratio.where(np.isfinite).median() for name, ratio in ratios.items()},
    }


def caption(what: str) -> str:
    """In words what the tables hold under a name, as `within.mlp_deep`."""
    kind, *names = what.split(".")
    return CAPTIONS[kind].format(*names)


def tell(results: Results) -> str:
    """The means, and what was left out."""
    table, summary = results.tables[NAME], results.summary
    random, angles = summary["random"], tables.cells(table, "angle", 2)
    columns = {"update vectors": table["what"].map(caption), "mean angle, degrees [95 %]": angles}
    lines = [tables.text(columns), f"random directions in {random['dimension']} dimensions: {random['mean_angle']:.2f}"]
    for name, unmoved in summary["unmoved"].items():
        ratio = summary["large_step_over_weights"][name]
        lines.append(
            f"{name}: {unmoved} of {summary['vectors'][name]} units did not move and are left out; "
            f"the large step is {math.nan if ratio is None else ratio:.3g} times the first layer's weights"
        )
    return "\n".join(lines)


def draw(results: Results) -> dict[str, Figure]:
    """Histograms of the angles between update vectors, and their means."""
    table, histograms, summary = results.tables[NAME], results.tables["histograms"], results.summary
    texts = table["what"].map(caption)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(4, 3))
    degrees = np.append(histograms["degree"], BINS)
    for i, what in enumerate(table["what"]):
        left.stairs(100 * histograms[what], degrees, color=f"C{i}", label=texts[i])
        angle = tables.interval(table.iloc[[i]], "angle")
        right.errorbar(angle.mean, [i], xerr=figures.errors(angle), fmt="o", color=f"C{i}", capsize=3)
    law = stats.random_angle(summary["random"]["dimension"])
    left.stairs(100 * np.diff(law.cdf(degrees)), degrees, color="0.3", linestyle="--", label="random directions")
    left.set(xlabel="angle (degrees)", ylabel="share of the angles in each degree (%)", yscale="symlog", xlim=(0, BINS))
    left.legend(fontsize="small", loc="upper left")
    right.axvline(law.mean(), color="0.3", linestyle="--", label="random directions, mean")
    right.set_yticks(range(len(texts)), texts, fontsize="small")
    right.invert_yaxis()
    right.set(xlabel="mean angle (degrees)", xlim=(0, 92))
    right.plot([], [], "o-", color="0.3", label="mean, 95 % interval over networks")
    figure.legend(*right.get_legend_handles_labels(), fontsize="small", loc="outside lower right", ncols=2)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    title = f"First-layer update vectors after one SGD step, {summary['num_networks']} networks of each kind"
    figure.suptitle(title, fontsize="medium")
    return {"figure": figure}


def headline(results: Results) -> dict[str, Interval]:
    """The mean angle between the update vectors of one network, for each architecture."""
    table = results.tables[NAME]
    within = table[table["what"].str.startswith("within.")].groupby("what", sort=False)
    return {f"angle {caption(what)} (degrees)": tables.first(rows, "angle") for what, rows in within}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, headline=headline)
