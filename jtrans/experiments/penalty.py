"""Controlling transferability: networks trained to keep their adversarial directions away from a surrogate's.

As Liang et al. (2021) say, the loss gets a penalty: a coefficient times the absolute cosine between the two networks'
input gradients. In their released code it has no effect on training: both gradients are those of the trained networks,
and the term is detached by `.item()`. That code also adds 0.2 times the squared lengths of both gradients, which is
left out here.

The surrogate is frozen. It and the coefficient are part of a network's variables, beside its parameters, so that the
networks of many coefficients train at once.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import attacks, directions, loops, metrics, models, stats, training
from jtrans.data import Split
from jtrans.harness import fields, figures, setup, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, is_number, one_of, whole
from jtrans.models import Model, Variables
from jtrans.population import devices, engine
from jtrans.population.engine import Population
from jtrans.training import Objective

PENALTY = "penalty"  # where a network's variables hold the surrogate and the coefficient

FIELDS: Mapping[str, Field] = {
    **fields.NETWORKS,
    "num_networks": fields.NETWORKS["num_networks"]._replace(
        means="networks for each coefficient, each with a surrogate of its own"
    ),
    **fields.TRAINING,
    "surrogate": one_of("mlp_shallow", models.WIDTHS, "the architecture whose directions are penalised"),
    "coefficients": fields.increasing(
        (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0),
        lambda c: is_number(c) and c >= 0,
        "numbers, 0 or more",
        "weights of the penalty in the loss",
    ),
    "num_steps": whole(200, "optimizer steps"),
    "attack.epsilon": fields.epsilon(8 / 255),
}

MEASURES = {
    "angle": "angle to the surrogate's directions (degrees)",
    "tau1": "tau1, virtual attack from the surrogate (0 to 1)",
    "tau2": "tau2, virtual attack from the surrogate (0 to 1)",
    "success": "errors by FGSM from the surrogate (share of those got right)",
    "success_own": "errors by FGSM from itself (share of those got right)",
    "accuracy": "test accuracy (share)",
}


class Penalty(NamedTuple):
    """What keeps a network away from a surrogate: the surrogate's variables, and how much the cosine counts (nats)."""

    surrogate: Variables
    coefficient: jax.Array


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    fields.check_running_statistics(config)
    fields.check_one_model(config)
    fields.check_networks(config)
    fields.check_model(config.surrogate, config, "data")
    fields.check_epsilon(config.attack.epsilon, config.models[0] not in models.TEXT)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Train surrogates, then the networks of all coefficients at once, and measure each against its surrogate."""
    keys = engine.keys(config.seed)
    dataset, test = setup.load(config, keys.data, config.batch_size)
    model, surrogate = (setup.model(config, name, dataset) for name in (*config.models, config.surrogate))
    frozen = train(setup.population(config, dataset, test, keys, models=[surrogate]), config.num_steps)
    print(f"{config.surrogate}: {config.num_networks} surrogates trained", flush=True)
    # Every surrogate with every coefficient, by coefficient.
    repeated = jax.tree.map(lambda leaf: np.concatenate([leaf] * len(config.coefficients)), frozen)
    penalties = Penalty(repeated, np.repeat(np.float32(config.coefficients), config.num_networks))
    options = {"num_networks": len(penalties.coefficient), "objective": objective(surrogate), "models": [model]}
    population = setup.population(config, dataset, test, keys.folded(1), **options)
    trained = train(population, config.num_steps, penalties)
    print(f"{config.models[0]}: {population.num_networks} networks trained", flush=True)
    each = jax.jit(partial(against, (surrogate, model), epsilon=config.attack.epsilon))
    pairs = zip(loops.unstack(penalties.surrogate), loops.unstack(trained), strict=True)
    table = tabulate([jax.device_get(each(test, *pair)) for pair in pairs], config.coefficients)
    return Results(config, setup.identity(dataset), {"penalty": table}, {})


def train(population: Population, num_steps: int, penalties: Penalty | None = None) -> Variables:
    """The variables `[M, ...]` of the trained networks, on the host, without the penalties that the objective takes."""
    (groups,), (placement,) = engine.initialize(population), population.placements
    if penalties is not None:
        add = lambda group, penalty: group._replace(variables=with_penalty(group.variables, penalty))
        groups = list(map(add, groups, devices.split(penalties, placement)))
    *_, (_, (groups,), _) = engine.trajectory(population, [groups], num_steps, measure_every=num_steps)
    trained = devices.merge([group.variables for group in groups], placement)
    return {name: leaf for name, leaf in trained.items() if name != PENALTY}


def with_penalty(variables: Variables, penalty: Penalty) -> Variables:
    """A network's variables with what the `objective` takes beside them."""
    return {**variables, PENALTY: penalty._asdict()}


def objective(surrogate: Model) -> Objective:
    """The cross entropy and the penalty, against a network of the surrogate's architecture, for `with_penalty`'s
    variables; training leaves the penalty as it is. The input gradients are those of evaluation mode.
    """

    def penalised(
        model: Model, variables: Variables, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Variables]:
        loss, moved = training.cross_entropy(model, variables, images, labels, key)
        penalty = Penalty(**variables[PENALTY])
        own = directions.loss_gradient(lambda x: model.apply(variables, x), images, labels)
        other = directions.loss_gradient(lambda x: surrogate.apply(penalty.surrogate, x), images, labels)
        return loss + penalty.coefficient * absolute_cosine(own, other).mean(), moved

    return penalised


def absolute_cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """`|cos|` between each example's vectors `[N, ...]`: `[N]` in [0, 1]; 0, without a slope, where one is zero."""
    flat = [vectors.reshape(len(vectors), -1) for vectors in (first, second)]
    peaks = [jax.lax.stop_gradient(jnp.abs(vectors).max(1, keepdims=True)) for vectors in flat]
    nonzero = (peaks[0] > 0) & (peaks[1] > 0)
    # Small gradients underflow when they are squared: bring the largest entry to 1. A zero vector is
    # replaced by one that nothing depends on.
    a, b = (jnp.where(nonzero, v / jnp.where(nonzero, peak, 1), 1.0) for v, peak in zip(flat, peaks, strict=True))
    cosine = (a * b).sum(1) / (jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1))
    return jnp.where(nonzero[:, 0], jnp.abs(cosine), 0.0)


def against(
    models: tuple[Model, Model], test: Split, surrogate: Variables, network: Variables, *, epsilon: float
) -> dict[str, jax.Array]:
    """The `MEASURES` of a network, of `models[1]`, against its surrogate; epsilon is in the norm of the inputs."""
    f, g = (partial(model.apply, v) for model, v in zip(models, (surrogate, network), strict=True))
    x, labels = models[1].inputs.of(test.inputs), test.labels
    taus = metrics.transferability(f, g, x)
    angles = metrics.angles(directions.loss_gradient(f, x, labels), directions.loss_gradient(g, x, labels))
    right = attacks.right(g(x), labels)
    fgsm = attacks.fgsm(epsilon, **models[1].inputs.options())
    attacked = lambda h: attacks.right(g(fgsm(h, x, labels, None)), labels)
    return {
        "angle": jnp.nanmean(angles),
        "tau1": taus.tau1,
        "tau2": taus.tau2,
        "success": attacks.flipped(attacked(f), right),
        "success_own": attacks.flipped(attacked(g), right),
        "accuracy": right.mean(),
    }


def tabulate(rows: list[dict[str, np.ndarray]], coefficients: tuple[float, ...]) -> pandas.DataFrame:
    """For each `coefficient` the `MEASURES` with their 95 % intervals over networks, and how many of these are `lost`
    (their outputs are not finite at all images) and in no mean; `rows` are the networks' `MEASURES`, by coefficient.
    """
    values = {name: np.reshape([row[name] for row in rows], (len(coefficients), -1)) for name in MEASURES}
    lost = np.isnan(values["accuracy"])
    values = {name: np.where(lost, np.nan, of_networks) for name, of_networks in values.items()}
    interval = lambda name: stats.mean_ci if name == "angle" else stats.share_ci  # all others are in [0, 1]
    intervals = {name: interval(name)(of_networks, axis=1) for name, of_networks in values.items()}
    return pandas.DataFrame({"coefficient": coefficients, "lost": lost.sum(1), **tables.interval_columns(intervals)})


def tell(results: Results) -> str:
    """The table."""
    table = results.tables["penalty"]
    columns = {"coefficient": table["coefficient"].map("{:g}".format)}
    columns |= {name: tables.cells(table, name, 3) for name in MEASURES}
    return tables.text(columns | ({"networks lost": table["lost"]} if table["lost"].any() else {}))


def draw(results: Results) -> dict[str, Figure]:
    """What the penalty's coefficient does to each measure, with 95 % intervals."""
    config, table = results.config, results.tables["penalty"]
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels, x = figure.subplots(2, 3, sharex=True), np.arange(len(table))
    for i, (axes, (name, label)) in enumerate(zip(panels.flat, MEASURES.items(), strict=True)):
        interval = tables.interval(table, name)
        axes.plot(x, interval.mean, f"C{i}", marker=".", label=f"mean of {config['num_networks']} networks")
        figures.band(axes, x, interval, f"C{i}")
        axes.set(ylabel=label.replace(" (", "\n("), ylim=(0, 92 if name == "angle" else 1.03))
        axes.grid(alpha=0.25)
        axes.legend(fontsize="x-small", loc="best")
    for axes in panels[1]:
        axes.set_xticks(x, [f"{coefficient:g}" for coefficient in table["coefficient"]])
        axes.set_xlabel("coefficient of the penalty (nats)")
    names = f"({config['surrogate']}): {figures.networks(config)}"
    kind = figures.kind(results.summary)
    data = f"{figures.data(config['data'])}, {config['num_examples']} test {kind}, {config['num_steps']} steps"
    attack = f"FGSM of epsilon {config['attack']['epsilon']:.3g} ({figures.UNITS[kind]})"
    figure.suptitle(f"Input gradients kept away from a frozen surrogate's {names}\n{data}; {attack}", fontsize="medium")
    return {"figure": figure}


def headline(results: Results) -> dict[str, stats.Interval]:
    """What the largest coefficient reaches, and what it costs."""
    largest = results.tables["penalty"].tail(1)
    return {
        "angle to the surrogate, largest coefficient (degrees)": tables.first(largest, "angle"),
        "test accuracy, largest coefficient (share)": tables.first(largest, "accuracy"),
    }


EXPERIMENT = Experiment("penalty", FIELDS, measure, tell, draw, check, headline=headline)
