"""What the first step of training makes of adversarial directions: predicted from class means, and measured.

The prediction has no free parameter (`docs/first_step.md`): the same networks take the same step of the same optimizer,
on the mean image of each class in their batch, weighted by the class's share of it. A rule predicts the sign alone:
whether the untrained network gives a class more probability than the batch has labels of it.
"""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import stats, training
from jtrans.data import Dataset, Split
from jtrans.errors import InputError
from jtrans.harness import fields, figures, setup, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.models import Model, Variables
from jtrans.population import devices, engine, observe, trajectory
from jtrans.population.engine import Population

NAME = "first_step"
CAPTIONS = {"angle": "folded angle", "signed_angle": "signed angle", "constant_share": "constant share"}
SIGNS = {
    "sign_predicted": "by the class means",
    "sign_by_rule": "by the rule: the sign of the excess",
    "sign_majority": "the sign that most pairs have",
}

FIELDS: Mapping[str, fields.Field] = {
    **fields.NETWORKS,
    "batch_size": fields.TRAINING["batch_size"],
    "optimizers": fields.some_of(("adam",), training.OPTIMIZERS, "optimizers of the step"),
    "learning_rates": fields.rates((1e-4, 1e-3, 1e-2)),
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    fields.check_images(config)
    fields.check_one_model(config)
    fields.check_running_statistics(config)
    fields.check_networks(config)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """One step of every network under each setting, predicted and taken."""
    keys = engine.keys(config.seed)
    dataset, test = setup.load(config, keys.data, config.batch_size)
    check_two_classes(config, dataset)
    population = setup.population(config, dataset, test, keys, optimizer=training.adjustable(config.optimizers[0]))
    untrained = {"pair": population.pair, "excess": excess(population)}
    (model,) = population.models
    look = jax.jit(partial(observe.observe_singly, model, measures={}))
    arrays = {}
    for optimizer in config.optimizers:
        population = population._replace(optimizer=training.adjustable(optimizer))
        for rate in config.learning_rates:
            steps = {
                "predicted": after_one_step(population._replace(objective=of_the_class_means), rate, look),
                "measured": after_one_step(population, rate, look),
            }
            arrays[f"{optimizer}-{rate}"] = untrained | compared(steps)
            print(f"{optimizer}, learning rate {rate:g}: {population.num_networks} networks took a step", flush=True)
    table = pandas.DataFrame(itertools.starmap(row, arrays.items()))
    summary = {"random": trajectory.random(setup.dimensions(dataset, test, config.models)), **setup.identity(dataset)}
    return Results(config, summary, {NAME: table}, arrays)


def check_two_classes(config: ConfigDict, dataset: Dataset) -> None:
    """InputError unless the data set has two classes, whose difference in probability has a sign."""
    if (count := len(dataset.class_names)) != 2:
        raise InputError(f"data.classes: got {config.data.classes}, {count} classes; this experiment takes two")


def of_the_class_means(
    model: Model, variables: Variables, images: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[jax.Array, Variables]:
    """A `training.Objective`: the loss at the mean image of each class in the batch, weighted by the class's share."""
    of_class = jax.nn.one_hot(labels, 2)  # `[B, 2]`
    count = of_class.sum(0)
    means = jnp.tensordot(of_class.T, images, 1) / jnp.maximum(count, 1)[:, None, None, None]
    logits, updated = model.train(variables, means, key)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(2))
    return (loss * count).sum() / count.sum(), updated


def after_one_step(
    population: Population, rate: float, look: Callable[..., observe.Observation]
) -> dict[str, np.ndarray]:
    """All networks and pairs after a first step: each of `observe`'s measures, `[M]` or `[P]`, and `unit [M, N, D]`.

    `look` gives the directions of networks at the test images.
    """
    (placement,), start = (
        population.placements,
        engine.initialize_at(population, np.full(population.num_networks, rate)),
    )
    *_, (_, (groups,), measurement) = engine.trajectory(population, start, 1)
    variables = devices.merge([group.variables for group in groups], placement)
    unit = look(training.Network(variables, None), population.test).unit
    assert measurement is not None  # the last step is always measured
    return {**measurement.networks, **measurement.pairs, "unit": np.asarray(unit)}


def excess(population: Population) -> np.ndarray:
    """By how much each untrained network's mean probability of the second class exceeds the share of its labels: `[M]`.

    In its first batch. The sign says which way the first step shifts all outputs.
    """
    (batches,), (groups,) = engine.first_batches(population), engine.initialize(population)
    variables = devices.merge([group.variables for group in groups], *population.placements)
    of_networks = jax.jit(jax.vmap(partial(_excess, *population.models), (0, 0, None, None)))
    return np.asarray(of_networks(variables, batches, population.train, population.keys.dropout))


def _excess(model: Model, variables: Variables, batch: jax.Array, train: Split, key: jax.Array) -> jax.Array:
    logits, _ = model.train(variables, model.inputs.of(train.inputs[batch]), key)
    return (jax.nn.softmax(logits)[:, 1] - train.labels[batch]).mean()


def compared(steps: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What was `predicted` and `measured` under these names and an underscore, and the angle between both.

    `own_angle [M]` is the mean over images of the signed angle, in degrees, from a network's predicted direction to its
    measured one.
    """
    cosine = np.einsum("mnd,mnd->mn", *(step["unit"] for step in steps.values()))
    values = {f"{kind}_{name}": step[name] for kind, step in steps.items() for name in step if name != "unit"}
    return {"own_angle": observe.mean_of_directions(np.asarray(observe.signed(cosine))), **values}


def row(setting: str, of_setting: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A setting's row of the table: means with 95 % intervals, over pairs or networks.

    A pair's sign is that of its cosines at most images. `sign_predicted` and `sign_by_rule` are the shares of pairs
    whose sign is the predicted one; `sign_majority` is the share of those with the sign that most pairs have. `lost`
    counts the networks whose loss is not finite after the step.
    """
    optimizer, rate = setting.split("-", 1)
    pair, excess = of_setting["pair"], of_setting["excess"]
    model = np.zeros(len(excess), int)
    sign, predicted = (signs(of_setting[f"{kind}_agreement"]) for kind in ("measured", "predicted"))
    share = lambda values: stats.pair_mean(values, pair, model).share_interval()
    positive = same(sign, 1)
    of_most = positive if stats.mean(positive).mean >= 0.5 else 1 - positive
    intervals = {
        "sign_predicted": share(same(predicted, sign)),
        "sign_by_rule": share(same(np.sign(excess[pair]).prod(1), sign)),
        "sign_majority": share(of_most),
        **{name: stats.mean_ci(of_setting[name]) for name in ("excess", "own_angle")},
        **{
            f"{kind}_{name}": trajectory.interval_over(name, of_setting[f"{kind}_{name}"], pair, model)
            for kind in ("predicted", "measured")
            for name in (*observe.PAIR_MEASURES, *observe.NETWORK_MEASURES)
        },
    }
    lost = int((~np.isfinite(of_setting["measured_loss"])).sum())
    fixed = {"optimizer": optimizer, "learning_rate": float(rate), "lost": lost}
    return fixed | tables.interval_columns(intervals)


def signs(agreement: np.ndarray) -> np.ndarray:
    """1 or -1 from shares of images with a positive cosine; NaN where there is no share, or it is one half."""
    return np.where(agreement == 0.5, np.nan, np.sign(agreement - 0.5))


def same(first: np.ndarray, second: np.ndarray | int) -> np.ndarray:
    """1 where two signs are the same, else 0; NaN where either is NaN or 0."""
    return np.where(np.isnan(first * second) | (first * second == 0), np.nan, first == second)


def tell(results: Results) -> str:
    """The table of settings: what was predicted, then what was measured."""
    table = results.tables[NAME]
    lines = []
    for setting in range(len(table)):
        of_setting = table.iloc[[setting]]
        cell = lambda name, digits, rows=of_setting: tables.cells(rows, name, digits)[0]
        optimizer, rate = of_setting[["optimizer", "learning_rate"]].iloc[0]
        columns = {f"{optimizer}, learning rate {rate:g}": [*CAPTIONS.values()]}
        for kind in ("predicted", "measured"):
            columns[f"{kind} [95 %]"] = [cell(f"{kind}_{name}", 1 + (name == "constant_share")) for name in CAPTIONS]
        by = ", ".join(f"{caption} {cell(name, 2)}" for name, caption in SIGNS.items())
        lines += [tables.text(columns), f"share of pairs whose sign is the predicted one: {by}"]
        lines += [f"networks lost, which are left out: {lost}" for lost in of_setting["lost"] if lost]
        for kind in ("predicted", "measured"):
            undirected = of_setting[f"{kind}_undirected"].iloc[0]
            missing = f"{kind}: no direction at {undirected:.3g} images of a network on average, which are left out"
            lines += [missing] * bool(undirected > 0)
        lines.append("")
    random = results.summary["random"]["mean_angle"]
    return "\n".join([*lines, f"angles in degrees; those of random directions have the mean {random:.1f}"])


def draw(results: Results) -> dict[str, Figure]:
    """Predicted and measured: the signed angle of every pair, the means of each setting, and the signs."""
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    of_pairs, of_settings, of_signs = figure.subplots(1, 3)
    _draw_pairs(of_pairs, results)
    table, config = results.tables[NAME], results.config
    x = np.arange(len(table))
    for name, colour, scale in (("angle", "C0", 90), ("constant_share", "C1", 1)):
        for kind, marker, shift in (("predicted", "x", -0.08), ("measured", "o", 0.08)):
            interval = stats.Interval(*(bound / scale for bound in tables.interval(table, f"{kind}_{name}")))
            style = {"color": colour, "marker": marker, "linestyle": "none", "capsize": 3}
            label = f"{CAPTIONS[name]}, {kind}"
            of_settings.errorbar(x + shift, interval.mean, figures.errors(interval), label=label, **style)
    of_settings.set(ylabel="folded angle (of 90 degrees), constant share", ylim=(0, 1.02))
    for i, (name, caption) in enumerate(SIGNS.items()):
        interval = tables.interval(table, name)
        errors = figures.errors(interval)
        of_signs.errorbar(x + 0.08 * i, interval.mean, errors, marker="o", linestyle="none", capsize=3, label=caption)
    of_signs.set(ylabel="pairs whose sign is the predicted one (share)", ylim=(0, 1.02))
    for axes in (of_settings, of_signs):
        named = zip(table["optimizer"], table["learning_rate"], strict=True)
        axes.set_xticks(x, [f"{optimizer}\n{rate:g}" for optimizer, rate in named])
        axes.set_xlabel("optimizer and learning rate (bars: 95 % intervals)")
    for axes in figure.axes:
        axes.legend(fontsize="small", loc="best")
        axes.grid(alpha=0.25)
    figure.suptitle(
        f"Adversarial directions after one step, predicted from class means: {figures.networks(config)}, "
        f"{config['num_networks']} networks\n{figures.data(config['data'])}, {config['num_examples']} test images; "
        f"batch size {config['batch_size']}",
        fontsize="medium",
    )
    return {"figure": figure}


def _draw_pairs(axes: Axes, results: Results) -> None:
    """Every pair of networks: its predicted and its measured signed angle."""
    for i, (setting, arrays) in enumerate(results.arrays.items()):
        style = {"marker": ".", "linestyle": "none", "alpha": 0.5, "color": f"C{i}"}
        label = setting.replace("-", ", learning rate ", 1)
        axes.plot(arrays["predicted_signed_angle"], arrays["measured_signed_angle"], label=label, **style)
    axes.plot([0, 180], [0, 180], color="0.3", linestyle="--", label="as predicted")
    axes.set(xlabel="predicted signed angle of a pair (degrees)", ylabel="measured signed angle (degrees)")
    axes.set(xlim=(0, 180), ylim=(0, 180), xticks=range(0, 181, 45), yticks=range(0, 181, 45))


def headline(results: Results) -> dict[str, stats.Interval]:
    """How often the prediction has the sign of a pair, under the setting where that is rarest."""
    rarest = results.tables[NAME].sort_values("sign_predicted")
    return {"pairs of the predicted sign, rarest setting (share)": tables.first(rarest, "sign_predicted")}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, headline=headline)
