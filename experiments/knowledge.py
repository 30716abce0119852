"""Adversarial and knowledge transferability on images, both ways: sources, a reference, heads fitted again, attacks."""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from jtrans import (
    attacks,
    checkpoints,
    cli,
    data,
    devices,
    early,
    findings,
    knowledge,
    loops,
    metrics,
    models,
    plots,
    population,
    report,
    results,
    runs,
    settings,
    stats,
    training,
    transfer,
    transfer_findings,
)
from jtrans.data import Dataset, Split
from jtrans.errors import InputError
from jtrans.jacobian import Function
from jtrans.knowledge import Attacked, Seen
from jtrans.models import Model, Variables
from jtrans.population import Keys
from jtrans.transfer import Head

BATCH = 500  # images seen at a time


class Networks(NamedTuple):
    """All seeds of a source, or of the reference, whose own name is its label.

    variables: `[num_networks, ...]`.
    """

    label: str
    name: str
    model: Model
    variables: Variables

    def functions(self) -> list[Function]:
        """Each network, compiled once for all, and as a pytree of its variables, for functions of networks."""
        apply = jax.jit(self.model.apply)
        return [Partial(apply, variables) for variables in loops.unstack(self.variables)]


class Reference(NamedTuple):
    """One seed's reference: what it makes of the target's test images, and itself attacked on some it gets right."""

    network: Function
    seen: Seen
    accuracy: float
    images: np.ndarray
    labels: np.ndarray
    attacked: Attacked

    @property
    def lost(self) -> str:
        """Why it measures nothing, where it does not; its images are then any."""
        return knowledge.lost(self.seen)


def main(config: ConfigDict, workdir: Path) -> None:
    """Adversarial and knowledge transferability: do attacks go over to where features go over to?"""
    settings.check_knowledge(config)
    results.ensure(workdir, config, measure)
    print(f"\n{report.tell(workdir)}\n\nresults: {workdir}, figures: figure.png, matrix.png")


def measure(config: ConfigDict, workdir: Path) -> None:
    """Every stage, each from where an earlier run stopped: train, refit, attack, report."""
    started = time.monotonic()
    keys = population.keys(config.seed)
    target = load(config, "target", keys.data)
    kinds = list(itertools.product(config.models, config.mixtures))
    domains = {classes: load(config, "source", keys.data, classes) for classes in config.mixtures}
    check_shapes(config, target, domains.values())
    results.write_config(workdir, config)
    own = folded(keys, 0)
    reference = train(config, workdir, "reference", config.reference, "target", target, config.reference_epochs, own)
    attacked = jax.jit(partial(knowledge.attacked, known_attacks(config)))
    references = measured_references(config, attacked, reference, target.test, keys.attack)
    fitted, parts, of_heads = [], [], folded(keys, len(kinds) + 1)
    for i, (name, classes) in enumerate(kinds):
        label = settings.source_label(config, name, classes)
        own = folded(keys, i + 1)
        source = train(config, workdir, label, name, "source", domains[classes], config.num_epochs, own)
        fitted.append(refit(config, workdir, source, domains[classes], references, target, of_heads))
        parts.append(attack(config, workdir, attacked, (source, fitted[-1]), references, keys.attack))
    write_report(config, workdir, parts, success([*fitted, reference], config, target.test, keys.attack), started)


def load(config: ConfigDict, section: str, key: jax.Array, classes: Sequence[str] = ()) -> Dataset:
    """The source or the target domain; of the source those classes, where any are named."""
    dataset = early.images(config, section, key, classes)
    print(f"{section}, {config[section].name}: {early.describe(dataset)}", flush=True)
    return dataset


def check_shapes(config: ConfigDict, target: Dataset, domains: Iterable[Dataset]) -> None:
    """Nothing, if the images of both domains have the same shape.

    Raises:
      InputError: they differ in their channels.
    """
    shape = target.test.images.shape[1:]
    for domain in domains:
        if (there := domain.test.images.shape[1:]) != shape:
            what = f"its images have {shape[-1]} channels, and those of {config.source.name} {there[-1]}"
            raise InputError(f"target.name: got {config.target.name}; {what}; attacks transfer only at the same number")


def folded(keys: Keys, number: int) -> Keys:
    """Keys of their own for one source, or for the heads, or for one seed of those."""
    return Keys(*(jax.random.fold_in(key, number) for key in keys))


def train(
    config: ConfigDict, workdir: Path, label: str, name: str, section: str, dataset: Dataset, epochs: int, keys: Keys
) -> Networks:
    """One source's networks, or the reference's: from the disk where they are trained already."""
    per_epoch = len(dataset.train.labels) // config.batch_size
    if not per_epoch:
        count = len(dataset.train.labels)
        raise InputError(f"batch_size: got {config.batch_size}; {label} has {count} training images")
    model = early.build(config, name, dataset, section)
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
            "data_sha256": data.digest(dataset),
        }
    )

    def make(run: ConfigDict, folder: Path) -> None:
        print(f"{label}: {config.num_networks} networks, {epochs} epochs of {per_epoch} steps", flush=True)
        train_population(config, run, folder, model, dataset, keys)

    folder = workdir / "networks" / results.folder_name(label)
    results.ensure(folder, run, make)
    return Networks(label, name, model, results.read_networks(folder)[0])


def train_population(
    config: ConfigDict, run: ConfigDict, workdir: Path, model: Model, dataset: Dataset, keys: Keys
) -> None:
    """The networks side by side, as the official code trains them, and their accuracy."""
    test = few(config, dataset.test)
    count = len(test.labels)
    size = max(config.batch_size, population.block_size(count, config.num_networks, test.images[0].size))
    placement = population.place(model, test.images.shape[1:], size, config.num_networks, size=config.group_size)
    optimizer = training.cosine_sgd(config.learning_rate, run.num_steps)
    saves = checkpoints.Checkpoints(workdir)
    shapes = population.shapes([model], optimizer, config.num_networks)
    reached = runs.restore(saves, shapes, run, run.data_sha256) or runs.Progress(0, shapes, [], [])
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
    trajectory, (trained,) = runs.follow(steps, [placement], reached, saves, run, workdir, count, run.data_sha256)
    results.write_networks(workdir, [trained.variables])
    results.write_trajectory(workdir, trajectory, findings.curves(trajectory))
    results.write_config(workdir, run)
    results.write_summary(workdir, run, {"accuracy": trajectory.accuracy[:, -1].tolist(), **identity(dataset)})
    saves.wait()


def identity(dataset: Dataset) -> dict[str, Any]:
    """What saved networks take and tell apart, for whoever reads them."""
    return {"class_names": dataset.class_names, "image_shape": dataset.test.images.shape[1:]}


def few(config: ConfigDict, test: Split) -> Split:
    """`num_examples` test images, or as many as there are, of every class as many as of any other."""
    per_class = np.bincount(test.labels)
    return data.balanced(test, min(config.num_examples, int(per_class.min()) * len(per_class)), "num_examples")


def see(networks: Networks, images: np.ndarray) -> list[Seen]:
    """What each network makes of images, some at a time."""
    look = jax.jit(partial(knowledge.see, networks.model))
    each = lambda variables: loops.in_batches(lambda x: (None, look(variables, x)), BATCH, images)[1]
    return [jax.device_get(each(variables)) for variables in loops.unstack(networks.variables)]


def refit(
    config: ConfigDict,
    workdir: Path,
    source: Networks,
    domain: Dataset,
    references: Sequence[Reference],
    target: Dataset,
    keys: Keys,
) -> Networks:
    """The source's networks with new last layers for the target domain, and beside them what they know of it.

    Args:
      domain: what the source was trained on.
    """
    # With the source's own pixels and mean image, but the target's classes.
    model = early.build(config, source.name, domain._replace(class_names=target.class_names), "source")
    section = {**config.target.to_dict(), "classes": target.class_names}
    of_source = {name: config.source[name] for name in ("pixel_range", "subtract_mean")}
    run = ConfigDict(
        {
            "models": (source.name,),
            "widths": {source.name: config.widths[source.name]},
            "data": section | of_source,
            "data_sha256": data.digest(target),
            "refit_epochs": config.refit_epochs,
        }
    )

    def make(run: ConfigDict, folder: Path) -> None:
        labels, rows, heads = (target.train.labels, target.test.labels), [], []
        by_sgd = head_trainer(config, source.model, target.train)
        seen = zip(*(see(source, split.images) for split in (target.train, target.test)), strict=True)
        for seed, (variables, own, other) in enumerate(
            zip(loops.unstack(source.variables), seen, references, strict=True)
        ):
            measures, head, lost = knowledge.refit(own, other.seen, labels, len(target.class_names))
            sgd = math.nan, math.nan
            if not lost:
                sgd = transfer.classification(by_sgd(variables, folded(keys, seed)), own[1].features, labels[1])
            size = float(sum(leaf.size for leaf in jax.tree.leaves(variables["params"])))
            lost = lost or (other.lost and f"reference {other.lost}")
            if lost:
                print(f"{source.label}, seed {seed}: {lost}; it is left out", flush=True)
            of_sgd = dict(zip(("sgd_loss", "sgd_accuracy"), sgd, strict=True))
            rows.append({"seed": seed, "lost": lost, **measures, **of_sgd, "parameters": size})
            heads.append(head)
        print(f"{source.label}: new heads fitted", flush=True)
        stacked = Head(*map(np.stack, zip(*heads, strict=True)))
        results.write_config(folder, run)
        results.write_networks(folder, [jax.vmap(knowledge.with_head)(source.variables, stacked)])
        results.write_table(folder / results.KNOWLEDGE_TABLE, stats.columns(rows))
        results.write_summary(folder, run, identity(target))

    folder = workdir / "refitted" / results.folder_name(source.label)
    results.ensure(folder, run, make)
    return Networks(source.label, source.name, model, results.read_networks(folder)[0])


def head_trainer(config: ConfigDict, model: Model, train: Split) -> Callable[[Variables, Keys], Head]:
    """How a source gets a new last layer that is trained alone on the target domain, as the official code does it."""
    count, classes = len(train.labels), int(train.labels.max()) + 1
    per_epoch = count // config.batch_size
    optimizer = training.cosine_sgd(config.learning_rate, config.refit_epochs * per_epoch)
    step = jax.jit(partial(knowledge.head_step, model, optimizer))
    augment = jax.jit(training.crop_and_flip) if config.augment else lambda key, images: images

    def fit(variables: Variables, keys: Keys) -> Head:
        features = models.last_layer(variables)["kernel"].shape[1]
        draw = partial(jax.random.uniform, minval=-(features**-0.5), maxval=features**-0.5)
        head = Head(*map(draw, jax.random.split(keys.init), ((features, classes), (classes,))))
        state = optimizer.init(head)
        for number in range(config.refit_epochs * per_epoch):
            epoch, batch = divmod(number, per_epoch)
            if batch == 0:
                order = np.asarray(training.epoch_order(keys.order, epoch, count))
            chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
            images = augment(jax.random.fold_in(keys.augment, number), train.images[chosen])
            head, state = step(variables, head, state, images, train.labels[chosen])
        return Head(*map(np.asarray, head))

    return fit


def measured_references(
    config: ConfigDict, attacked: Callable[..., Attacked], networks: Networks, test: Split, key: jax.Array
) -> list[Reference]:
    """Each seed's reference.

    Raises:
      InputError: all of them are lost, or one of the others gets no image right.
    """
    seen = see(networks, test.images)
    correct = [np.asarray(attacks.right(of_seed.logits, test.labels)) for of_seed in seen]
    right = [np.flatnonzero(of_seed == 1) for of_seed in correct]
    healthy = [images for images, of_seed in zip(right, seen, strict=True) if not knowledge.lost(of_seed)]
    count = min(config.num_examples, *map(len, healthy)) if healthy else 0
    if not count:
        what = "a reference gets no test image right" if healthy else "every reference is lost"
        raise InputError(
            f"reference_epochs: after {config.reference_epochs}, at learning rate {config.learning_rate:g}, {what}; "
            f"change one of them and name another --workdir"
        )
    references = []
    for seed, network in enumerate(networks.functions()):
        among = np.arange(len(test.labels)) if knowledge.lost(seen[seed]) else right[seed]
        chosen = among[np.linspace(0, len(among) - 1, count).astype(int)]  # classes may come in order
        images, labels = test.images[chosen], test.labels[chosen]
        own = attacked(network, images, jax.random.fold_in(key, seed))
        accuracy = float(correct[seed].mean())
        references.append(Reference(network, seen[seed], accuracy, images, labels, own))
    return references


def attack(
    config: ConfigDict,
    workdir: Path,
    attacked: Callable[..., Attacked],
    networks: tuple[Networks, Networks],
    references: Sequence[Reference],
    key: jax.Array,
) -> dict[str, np.ndarray]:
    """A table of one source against the reference, a row for each seed, of which each has a reference of its own.

    Args:
      attacked: `knowledge.attacked` with the attacks, compiled.
      networks: the source as it is, which is attacked, and with its new last layer.
    """
    label = networks[0].label
    folder = results.folder_name(label)
    path = workdir / "attacked" / f"{folder}.csv"
    if not path.exists():
        rows, compare = [], jax.jit(knowledge.adversarial)
        for seed, (own, fitted, other) in enumerate(zip(*(n.functions() for n in networks), references, strict=True)):
            made = attacked(own, other.images, jax.random.fold_in(key, seed))
            found = compare(own, other.network, made, other.attacked, other.images, other.labels)
            taus, under_attack = jax.device_get(found)
            right_too = np.asarray(attacks.right(fitted(training.pixels(other.images)), other.labels))
            rows.append({"reference_accuracy": other.accuracy, **taus, **knowledge.success(under_attack, right_too)})
        path.parent.mkdir(exist_ok=True)
        results.write_table(path, stats.columns(rows))
        print(f"{label}: attacked", flush=True)
    refitted = results.read_table(workdir / "refitted" / folder / results.KNOWLEDGE_TABLE)
    lost = refitted["lost"] != ""
    of_attacks = {name: np.where(lost, np.nan, values) for name, values in results.read_table(path).items()}
    return {"source": np.full(config.num_networks, label), **refitted, **of_attacks}


def success(networks: Sequence[Networks], config: ConfigDict, test: Split, key: jax.Array) -> dict[str, np.ndarray]:
    """The success of attacks from each of the networks, which tell the same classes apart, on each."""
    test = few(config, test)
    x, found = np.asarray(training.pixels(test.images)), {}
    seeds = list(enumerate(zip(*(n.functions() for n in networks), strict=True)))
    for name, known in known_attacks(config).items():
        of_seed = [
            metrics.success_matrix(fs, fs, x, test.labels, known, key=jax.random.fold_in(key, seed))
            for seed, fs in seeds
        ]
        found[name] = metrics.SuccessMatrix(*map(np.stack, zip(*of_seed, strict=True)))
        print(f"{name}: every network attacked", flush=True)
    return transfer_findings.matrix(found, [n.label for n in networks])


def write_report(
    config: ConfigDict,
    workdir: Path,
    parts: Sequence[dict[str, np.ndarray]],
    matrix: dict[str, np.ndarray],
    started: float,
) -> None:
    """Both tables, both figures, the summary."""
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    summary = transfer_findings.summarize_knowledge(table, np.random.default_rng(config.seed))
    plain = config.to_dict()
    results.write_table(workdir / results.KNOWLEDGE_TABLE, table)
    results.write_table(workdir / results.MATRIX_TABLE, matrix)
    results.write_figure(workdir, plots.knowledge(plain, table, summary))
    of_heads = plots.matrix({**plain, "data": plain["target"]}, matrix, "; sources with new last layers")
    results.write_figure(workdir, of_heads, "matrix")
    results.write_summary(workdir, config, {**summary, "seconds": time.monotonic() - started})


def known_attacks(config: ConfigDict) -> dict[str, attacks.Attack]:
    """The attacks of finite size by name, as in the official code: epsilon in units of pixels in [0, 1]."""
    make = lambda name: attacks.BY_NAME[name](config.attack.epsilon, config.attack.steps, 0)
    return {name: jax.jit(make(name)) for name in ("fgsm_liang", "pgd_liang")}


if __name__ == "__main__":
    sys.exit(cli.run(main))
