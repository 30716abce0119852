"""Controlling transferability: networks trained to keep their adversarial directions away from a surrogate's."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jtrans import (
    attacks,
    cli,
    data,
    devices,
    directions,
    early,
    loops,
    metrics,
    penalty,
    plots,
    population,
    report,
    results,
    settings,
    training,
    transfer_findings,
)
from jtrans.data import Dataset, Split
from jtrans.models import Model, Variables
from jtrans.population import Keys


def main(config: ConfigDict, workdir: Path) -> None:
    """A penalty on the cosine to a surrogate's input gradients: what its coefficient does to angles and attacks."""
    settings.check_penalty(config)
    results.ensure(workdir, config, measure)
    print(f"\n{report.tell(workdir)}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def measure(config: ConfigDict, workdir: Path) -> None:
    """The surrogates, then the networks of every coefficient side by side, the table, the figure."""
    started = time.monotonic()
    keys = population.keys(config.seed)
    dataset, test = early.load(config, keys.data, config.batch_size)
    (name,) = config.models
    model, surrogate = (early.build(config, n, dataset) for n in (name, config.surrogate))
    own_keys = Keys(*(jax.random.fold_in(key, 1) for key in keys))
    frozen = train(config, surrogate, keys, dataset, test, config.num_networks)
    print(f"{config.surrogate}: {config.num_networks} surrogates trained", flush=True)

    count = len(config.coefficients)
    surrogates = jax.tree.map(lambda leaf: np.concatenate([leaf] * count), frozen)
    held = surrogates, np.repeat(np.float32(config.coefficients), config.num_networks)
    objective = penalty.objective(surrogate)
    trained = train(config, model, own_keys, dataset, test, len(held[1]), held=held, objective=objective)
    print(f"{name}: {len(held[1])} networks trained", flush=True)
    each = jax.jit(partial(against, (surrogate, model), epsilon=config.attack.epsilon))
    rows = [jax.device_get(each(*pair, *test)) for pair in zip(*map(loops.unstack, (surrogates, trained)), strict=True)]
    shares = np.split(np.arange(len(rows)), count)
    found = {
        coefficient: {measure: np.array([rows[i][measure] for i in own]) for measure in rows[0]}
        for coefficient, own in zip(config.coefficients, shares, strict=True)
    }
    table = transfer_findings.penalty(found)
    results.write_config(workdir, config)
    results.write_table(workdir / results.PENALTY_TABLE, table)
    results.write_figure(workdir, plots.penalty(config.to_dict(), table))
    results.write_summary(
        workdir,
        config,
        {"data_sha256": data.digest(dataset), "seconds": time.monotonic() - started},
    )


def train(
    config: ConfigDict,
    model: Model,
    keys: Keys,
    dataset: Dataset,
    test: Split,
    count: int,
    *,
    held: tuple[Variables, np.ndarray] | None = None,
    objective: training.Objective = training.cross_entropy,
) -> Variables:
    """So many trained networks, `[count, ...]`.

    Args:
      held: the surrogate `[count, ...]` and the coefficient `[count]` of each; None where there is no penalty.
    """
    placement = early.place(config, model, test.images, config.batch_size, count)
    optimizer = training.OPTIMIZERS[config.optimizer.name](config.optimizer.learning_rate)
    (groups,) = population.initialize([model], optimizer, keys.init, [placement])
    if held:
        add: Callable = lambda group, own: group._replace(variables=penalty.with_surrogate(group.variables, *own))
        groups = list(map(add, groups, devices.split(held, placement)))
    steps = population.trajectory(
        [model],
        optimizer,
        [groups],
        [placement],
        keys,
        dataset.train,
        test,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        measure_every=config.num_steps,
        objective=objective,
    )
    for step, (groups,), _ in steps:
        if step == config.num_steps:
            trained = devices.merge([group.variables for group in groups], placement)
    return {name: leaf for name, leaf in trained.items() if name != penalty.PENALTY}


def against(
    models: tuple[Model, Model],
    surrogate: Variables,
    network: Variables,
    images: jax.Array,
    labels: jax.Array,
    *,
    epsilon: float,
) -> dict[str, jax.Array]:
    """One network against its surrogate, on test images: `transfer_findings.PENALTY`."""
    f, g = (partial(model.apply, v) for model, v in zip(models, (surrogate, network), strict=True))
    x = training.pixels(images)
    taus = metrics.transferability(f, g, x)
    gradients = (directions.loss_gradient(h, x, labels) for h in (f, g))
    right = attacks.right(g(x), labels)
    attacked = lambda h: attacks.right(g(attacks.fgsm(epsilon)(h, x, labels)), labels)
    return {
        "angle": jnp.nanmean(metrics.angles(*gradients)),
        "tau1": taus.tau1,
        "tau2": taus.tau2,
        "success": attacks.flipped(attacked(f), right),
        "success_own": attacks.flipped(attacked(g), right),
        "accuracy": right.mean(),
    }


if __name__ == "__main__":
    sys.exit(cli.run(main))
