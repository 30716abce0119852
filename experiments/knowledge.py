"""Adversarial and knowledge transferability on images, both ways: sources, a reference, heads fitted again, attacks."""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import early
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jtrans import (
    attacks,
    checkpoints,
    cli,
    data,
    devices,
    knowledge,
    loops,
    models,
    plots,
    population,
    results,
    runs,
    settings,
    training,
    transfer,
    transfer_findings,
)
from jtrans.data import Dataset, Split
from jtrans.errors import InputError
from jtrans.knowledge import Seen
from jtrans.models import Model, Variables
from jtrans.population import Keys
from jtrans.transfer import Head

REFERENCE = "reference"
BATCH = 500  # images seen at a time


def main(config: ConfigDict, workdir: Path) -> None:
    """Adversarial and knowledge transferability: do attacks go over to where features go over to?"""
    settings.check_knowledge(config)
    results.ensure(workdir, config, measure)
    said = transfer_findings.describe_knowledge(results.read_summary(workdir))
    print(f"\n{said}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def measure(config: ConfigDict, workdir: Path) -> None:
    """Every stage, from where an earlier run stopped: train, refit, attack, report."""
    started = time.monotonic()
    keys = population.keys(config.seed)
    target = load(config, "target", keys.data)
    sources = list(itertools.product(config.models, config.mixtures))
    domains = {classes: load(config, "source", keys.data, classes) for classes in config.mixtures}
    results.write_config(workdir, config)
    folder = workdir / "networks"
    reference = early.build(config, config.reference, target, "target")
    own = of_source(keys, 0)
    kept = train(config, folder / REFERENCE, config.reference, "target", target, config.reference_epochs, own)
    parts = []
    for i, (name, classes) in enumerate(sources):
        label, dataset = settings.source_label(config, name, classes), domains[classes]
        path = workdir / "measured" / f"{label}.csv"
        model = early.build(config, name, dataset, "source")
        own = of_source(keys, i + 1)
        variables = train(config, folder / label, name, "source", dataset, config.num_epochs, own)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            results.write_table(path, compare(config, (model, reference), (variables, kept), target, keys.attack))
            print(f"{label}: measured against the reference", flush=True)
        parts.append({"source": np.full(config.num_networks, label)} | results.read_table(path))
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    summary = transfer_findings.summarize_knowledge(table, np.random.default_rng(config.seed))
    summary["seconds"] = time.monotonic() - started
    results.write_table(workdir / results.KNOWLEDGE_TABLE, table)
    results.write_figure(workdir, plots.knowledge(config.to_dict(), table, summary))
    results.write_summary(workdir, config, summary)


def load(config: ConfigDict, section: str, key: jax.Array, classes: Sequence[str] = ()) -> Dataset:
    """The source or the target domain; of the source those classes, where any are named."""
    dataset = early.images(config, section, key, classes)
    print(f"{section}, {config[section].name}: {early.describe(dataset)}", flush=True)
    return dataset


def of_source(keys: Keys, number: int) -> Keys:
    """The keys of one source's networks."""
    return Keys(*(jax.random.fold_in(key, number) for key in keys))


def train(
    config: ConfigDict, workdir: Path, name: str, section: str, dataset: Dataset, epochs: int, keys: Keys
) -> Variables:
    """One source's networks, `[num_networks, ...]`: from the disk where they are trained already."""
    per_epoch = len(dataset.train.labels) // config.batch_size
    if not per_epoch:
        count = len(dataset.train.labels)
        raise InputError(f"batch_size: got {config.batch_size}; {workdir.name} has {count} training images")
    run = ConfigDict(
        {
            "models": (name,),
            "widths": {name: config.widths[name]},
            "data": {**config[section].to_dict(), "classes": dataset.class_names},
            "num_steps": epochs * per_epoch,
            "measure_every": per_epoch,
            "keep_examples": False,
            "tensorboard": False,
            "checkpoint": config.checkpoint.to_dict(),
        }
    )

    def make(run: ConfigDict, workdir: Path) -> None:
        print(f"{workdir.name}: {config.num_networks} networks, {epochs} epochs of {per_epoch} steps", flush=True)
        train_population(config, run, workdir, early.build(config, name, dataset, section), dataset, keys)

    results.ensure(workdir, run, make)
    return results.read_networks(workdir)[0]


def train_population(
    config: ConfigDict, run: ConfigDict, workdir: Path, model: Model, dataset: Dataset, keys: Keys
) -> None:
    """The networks side by side, as the official code trains them, and their accuracy."""
    count = min(config.num_examples, int(np.bincount(dataset.test.labels).min()) * len(dataset.class_names))
    test = data.balanced(dataset.test, count, "num_examples")
    size = max(config.batch_size, population.block_size(count, config.num_networks, test.images[0].size))
    placement = population.place(model, test.images.shape[1:], size, config.num_networks, size=config.group_size)
    optimizer = training.cosine_sgd(config.learning_rate, run.num_steps)
    saves = checkpoints.Checkpoints(workdir)
    shapes = population.shapes([model], optimizer, config.num_networks)
    reached = runs.restore(saves, shapes, run) or runs.Progress(0, shapes, [], [])
    if reached.step:
        networks = [devices.split(reached.networks[0], placement)]
    else:
        networks = population.initialize([model], optimizer, keys.init, [placement])
    steps = population.trajectory(
        [model],
        optimizer,
        networks,
        [placement],
        keys,
        dataset.train,
        test,
        batch_size=config.batch_size,
        num_steps=run.num_steps,
        measure_every=run.measure_every,
        augment=training.crop_and_flip if config.augment else None,
        first_step=reached.step,
    )
    trajectory, (trained,) = runs.follow(steps, [placement], reached, saves, run, workdir, count)
    results.write_networks(workdir, [trained.variables])
    results.write_trajectory(workdir, trajectory)
    results.write_config(workdir, run)
    results.write_summary(workdir, run, {"accuracy": trajectory.accuracy[:, -1].tolist()})
    saves.wait()


def compare(
    config: ConfigDict,
    networks: tuple[Model, Model],
    variables: tuple[Variables, Variables],
    target: Dataset,
    key: jax.Array,
) -> dict[str, np.ndarray]:
    """One source against the reference: a row for each seed, of which each has a reference of its own."""
    looks = [jax.jit(partial(knowledge.see, model)) for model in networks]
    num_steps = config.refit_epochs * (len(target.train.labels) // config.batch_size)
    optimizer = training.cosine_sgd(config.learning_rate, num_steps)
    refit = optimizer, jax.jit(partial(knowledge.head_step, networks[0], optimizer))
    attack = jax.jit(partial(knowledge.adversarial, networks, known_attacks(config)))
    labels, rows = (target.train.labels, target.test.labels), []
    for seed in range(config.num_networks):
        own = [jax.tree.map(lambda leaf, i=seed: leaf[i], v) for v in variables]
        seen = tuple(see(looks[0], own[0], split.images) for split in (target.train, target.test))
        known = see(looks[1], own[1], target.test.images)
        found, right = knowledge.knowledge(seen, known, labels, len(target.class_names))
        head = train_head(config, refit, own[0], target.train, jax.random.fold_in(key, seed))
        found["sgd_loss"], found["sgd_accuracy"] = transfer.classification(head, seen[1].features, labels[1])
        found["parameters"] = float(sum(leaf.size for leaf in jax.tree.leaves(own[0]["params"])))
        classified = known.logits.argmax(1) == labels[1]
        found["reference_accuracy"] = float(classified.mean())
        chosen = np.flatnonzero(classified)[: config.num_examples]
        taus, wrong = jax.device_get(
            attack(own, target.test.images[chosen], labels[1][chosen], jax.random.fold_in(key, seed))
        )
        rows.append({"seed": seed, **found, **taus, **knowledge.success(wrong, right[chosen])})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def train_head(
    config: ConfigDict,
    refit: tuple[optax.GradientTransformation, Callable],
    variables: Variables,
    train: Split,
    key: jax.Array,
) -> Head:
    """A new last layer trained alone on the target domain, as the official code does it.

    Args:
      refit: the optimizer, and `knowledge.head_step` with it.
    """
    optimizer, step = refit
    init_key, order_key, augment_key = jax.random.split(key, 3)
    count, classes = len(train.labels), int(train.labels.max()) + 1
    features = models.last_layer(variables)["kernel"].shape[1]
    draw = partial(jax.random.uniform, minval=-(features**-0.5), maxval=features**-0.5)
    head = Head(*map(draw, jax.random.split(init_key), ((features, classes), (classes,))))
    state = optimizer.init(head)
    augment = jax.jit(training.crop_and_flip) if config.augment else lambda key, images: images
    per_epoch = count // config.batch_size
    for number in range(config.refit_epochs * per_epoch):
        epoch, batch = divmod(number, per_epoch)
        if batch == 0:
            order = np.asarray(training.epoch_order(order_key, epoch, count))
        chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
        images = augment(jax.random.fold_in(augment_key, number), train.images[chosen])
        head, state = step(variables, head, state, images, train.labels[chosen])
    return Head(*map(np.asarray, head))


def see(look: Callable[[Variables, jax.Array], Seen], variables: Variables, images: np.ndarray) -> Seen:
    """What a network makes of images, some at a time."""
    batch = lambda images: (None, look(variables, images))
    return jax.device_get(loops.in_batches(batch, BATCH, images, compiled=False)[1])


def known_attacks(config: ConfigDict) -> dict[str, attacks.Attack | None]:
    """The attacks by name, as in the official code: epsilon in units of pixels in [0, 1]."""
    epsilon, steps = config.attack.epsilon, config.attack.steps
    return {
        "virtual": None,
        "fgsm": attacks.fgsm(epsilon, random_start=True),
        "pgd": attacks.pgd(epsilon, steps, 5 * epsilon / steps),
    }


if __name__ == "__main__":
    sys.exit(cli.run(main))
