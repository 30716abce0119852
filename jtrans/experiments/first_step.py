"""What the first step of training makes of adversarial directions: predicted from class means, and measured.

The prediction has no free parameter (`docs/first_step.md`): the same networks take the same step of the same optimizer,
on the mean image of each class in their batch, weighted by the class's share of it. A rule predicts the sign alone:
whether the untrained network gives a class more probability than the batch has labels of it.
"""

import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
from ml_collections import ConfigDict

from jtrans import stats, training
from jtrans.data import Dataset, Split
from jtrans.errors import InputError
from jtrans.harness import fields, setup, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.models import Model, Variables
from jtrans.population import devices, engine, observe, trajectory
from jtrans.population.engine import Population

NAME = "first_step"
SHOWN = {"angle": 1, "signed_angle": 1, "agreement": 2, "constant_share": 2}  # with so many digits

FIELDS: Mapping[str, fields.Field] = {
    **fields.NETWORKS,
    "batch_size": fields.whole(128),
    "optimizers": fields.some_of(("adam",), training.OPTIMIZERS),
    "learning_rates": fields.increasing((1e-4, 1e-3, 1e-2), lambda v: fields.is_number(v) and v > 0, "numbers above 0"),
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    fields.check_one_model(config)
    fields.check_networks(config)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """What one step makes of every network's directions, under each setting: predicted."""
    keys = engine.keys(config.seed)
    dataset, test = setup.load(config, keys.data, config.batch_size)
    check_two_classes(config, dataset)
    arrays = {}
    for optimizer in config.optimizers:
        population = setup.population(config, dataset, test, keys, optimizer=training.adjustable(optimizer))
        untrained = {"pair": population.pair, "excess": excess(population)}
        for rate in config.learning_rates:
            predicted = after_one_step(population._replace(objective=of_the_class_means), rate)
            del predicted["unit"]
            arrays[f"{optimizer}-{rate:g}"] = untrained | predicted
            print(f"{optimizer}, learning rate {rate:g}: {population.num_networks} networks took a step", flush=True)
    table = pandas.DataFrame(itertools.starmap(row, arrays.items()))
    summary = {"random": trajectory.random(test.images[0].size), **setup.identity(dataset)}
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


def after_one_step(population: Population, rate: float) -> dict[str, np.ndarray]:
    """All networks and pairs after a first step: each of `observe`'s measures, `[M]` or `[P]`, and `unit [M, N, D]`."""
    (placement,), (start,) = population.placements, engine.initialize(population)
    rates = devices.split(np.full(population.num_networks, rate, np.float32), placement)
    start = [training.with_learning_rate(group, of_group) for group, of_group in zip(start, rates, strict=True)]
    *_, (_, (groups,), measurement) = engine.trajectory(population, [start], 1)
    variables = devices.merge([group.variables for group in groups], placement)
    look = jax.jit(partial(observe.observe, *population.models, measures={}))
    unit = look(training.Network(variables, None), *population.test).unit
    assert measurement is not None  # the last step is always measured
    return {**measurement.networks, **measurement.pairs, "unit": np.asarray(unit)}


def excess(population: Population) -> np.ndarray:
    """By how much each untrained network's mean probability of the second class exceeds the share of its labels: `[M]`.

    In its first batch. The sign says which way the first step shifts all outputs.
    """
    (batches,), (groups,), (placement,) = (
        engine.first_batches(population),
        engine.initialize(population),
        population.placements,
    )
    variables = devices.merge([group.variables for group in groups], placement)
    of_networks = jax.jit(jax.vmap(partial(_excess, *population.models), (0, 0, None)))
    return np.asarray(of_networks(variables, batches, population.train))


def _excess(model: Model, variables: Variables, batch: jax.Array, train: Split) -> jax.Array:
    probability = jax.nn.softmax(model.apply(variables, training.pixels(train.images[batch])))[:, 1]
    return (probability - train.labels[batch]).mean()


def row(setting: str, of_setting: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A setting's row of the table: means with 95 % intervals, over pairs or networks."""
    optimizer, rate = setting.split("-", 1)
    model, of_pairs = np.zeros(len(of_setting["excess"]), int), {*observe.PAIR_MEASURES}
    intervals = {
        name: stats.pair_mean_ci(values, of_setting["pair"], model) if name in of_pairs else stats.mean_ci(values)
        for name, values in of_setting.items()
        if name != "pair"
    }
    return {"optimizer": optimizer, "learning_rate": float(rate), **tables.interval_columns(intervals)}


def tell(results: Results) -> str:
    """The table of settings."""
    table = results.tables[NAME]
    columns = {name: table[name] for name in ("optimizer", "learning_rate")}
    columns |= {name: tables.cells(table, name, digits) for name, digits in SHOWN.items()}
    return tables.text(columns)


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, lambda results: {}, check)
