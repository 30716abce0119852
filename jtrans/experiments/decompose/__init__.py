"""Taking the early part out: adversarial directions without what lies in a small subspace, step by step.

Which few directions hold what independently trained networks share, and whether attacks need it. The subspaces of
other networks' gradients and updates are refitted at every step; the table `lasting` has the updates of each step
taken out of the directions at every other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jtrans import data, stats
from jtrans.errors import InputError
from jtrans.experiments.decompose import figures, findings, removal, subspaces
from jtrans.harness import fields, setup
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, is_tuple, is_whole, whole
from jtrans.models import Variables
from jtrans.population import devices, engine, observe, trajectory
from jtrans.training import Network

FIELDS: Mapping[str, Field] = {
    **fields.NETWORKS,
    **fields.TRAINING,
    "num_fit": whole(8, "further networks, from which subspaces are fitted"),
    "fit_examples": whole(100, "training examples at which their directions are taken"),
    "steps": Field(
        (0, 1, 2, 3, 5, 10, 20, 50),
        lambda v: is_tuple(v, is_whole, range(2, 10**6)) and sorted(set(v)) == list(v) and v[0] == 0,
        "a tuple of whole numbers, 0 first and each larger than the one before, as (0, 1, 5)",
        "optimizer steps after which is measured",
    ),
    "ranks": fields.counts((1, 2, 5, 10, 20, 50, 100), "dimensions of the subspaces"),
    "attack.epsilon": fields.positive(2.0, "the Euclidean length of an attack"),
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    fields.check_running_statistics(config)
    fields.check_one_model(config)
    fields.check_values_squared(config, "subspaces take memory")
    fields.check_networks(config)
    if config.data.pixel_range[0] != 0:  # the networks would see the images shifted, so other ones than are decomposed
        raise InputError(f"data.pixel_range: got {config.data.pixel_range}; subspaces of images take one from 0")


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Fit subspaces on some of the networks, and measure the others without them."""
    keys = engine.keys(config.seed)
    dataset, _ = setup.load(config, keys.data, config.batch_size)
    shape, most = setup.shape(dataset), config.ranks[-1]
    setup.check_kind(config.models[0], config.data.name, dataset, "data.name")
    full = setup.without_padding(dataset)  # a subspace has components everywhere, and directions have none at padding
    test = data.balanced(full.test, config.num_examples, "num_examples")
    fit_examples = data.balanced(full.train, config.fit_examples, "fit_examples")
    dimensions = setup.dimensions(dataset, test, config.models)
    if most >= dimensions.min():
        raise InputError(f"ranks: got {most}; the directions have {dimensions.min()} dimensions, so fewer than that")
    population = setup.population(config, dataset, test, keys, num_networks=config.num_fit + config.num_networks)
    (model,) = population.models
    look = jax.jit(partial(observe.observe_singly, model, measures=removal.ACCURACY))
    without = jax.jit(partial(removal.measure, model, epsilon=config.attack.epsilon))
    of_examples = subspaces.of_examples(full, keys.attack, most, subtract_mean=config.data.subtract_mean)
    parts = slice(config.num_fit), slice(config.num_fit, None)
    rows, bases, directions, start = {}, {}, {}, None
    for step, variables in trained(population, config.steps):
        fit, measured = (Network(jax.tree.map(itemgetter(part), variables), None) for part in parts)
        kernels = subspaces.first_kernels(config.models[0], shape, fit.variables)
        start = [kernel.copy() for kernel in kernels] if step == 0 else start
        updates = subspaces.updates(config.models[0], shape, start, kernels, most)
        gradients = subspaces.leading(look(fit, fit_examples).unit.reshape(-1, math.prod(shape)), most)
        bases[step] = of_examples | {"gradients": gradients, "updates": updates}
        # No more of the networks is held than is needed: neither here on the host while they are measured, nor on the
        # device while they train on. Bases and directions are kept on the host, for fits and directions of two steps.
        measured = jax.device_put(measured)
        del variables, fit, kernels
        seen = look(measured, test)
        for subspace, rank, basis in subspaces.ranked(bases[step], config.ranks):
            rows[step, subspace, rank] = jax.device_get(without(measured, seen, test, basis))
        directions[step] = jax.device_get(seen.unit)
        accuracy = stats.mean_ci(rows[step, subspaces.NOTHING, 0].accuracy).mean
        print(f"step {step}: accuracy {accuracy:.3f}, {len(bases[step])} subspaces measured", flush=True)
        del measured, seen
    frames = findings.tables_of(rows, directions, bases, findings.shown_rank(config.ranks))
    random = trajectory.random(dimensions)
    summary = findings.summarize(frames["decompose"], random, len(dataset.class_names)) | setup.identity(dataset)
    return Results(config, summary, frames, {})


def trained(population: engine.Population, steps: Sequence[int]) -> Iterator[tuple[int, Variables]]:
    """The variables `[M, ...]` of the networks, on the host, at each of the steps."""
    networks = engine.initialize(population)
    for step, (groups,), _ in engine.trajectory(population, networks, steps[-1], measure_every=steps[-1]):
        if step in steps:
            yield step, devices.merge([group.variables for group in groups], *population.placements)


EXPERIMENT = Experiment("decompose", FIELDS, measure, findings.tell, figures.draw, check, headline=findings.headline)
