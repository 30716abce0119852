"""The stages of a run, each of which resumes: train, refit, attack.

`networks/LABEL` and `refitted/LABEL` are work directories of their own, with a config, a summary and saved networks,
which `matrix` reads as it reads any run; `attacked/LABEL.csv` is a table. The processes of a job call each stage
together, and all read what the first has written.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas
from jax.tree_util import Partial
from ml_collections import ConfigDict

from jtrans import attacks, data, loops, metrics, models, training, transfer
from jtrans.attacks import Attack
from jtrans.data import Dataset, Split
from jtrans.errors import InputError
from jtrans.experiments import matrix
from jtrans.experiments.knowledge import measures
from jtrans.experiments.knowledge.measures import Outputs, Perturbed
from jtrans.harness import folder, setup, tables
from jtrans.harness.experiment import Results, write_data
from jtrans.jacobian import Function
from jtrans.metrics import SuccessMatrix
from jtrans.models import Model, Variables
from jtrans.population import devices, engine, follow, trajectory
from jtrans.population.engine import Keys
from jtrans.population.follow import Plan
from jtrans.transfer import Head

BATCH = 500  # images at once, where no gradient is taken
ATTACKS = ("fgsm_liang", "pgd_liang")  # those of finite size


class Study(NamedTuple):
    """What all stages take: the config, the work directory, the run's keys, and the target domain."""

    config: ConfigDict
    workdir: Path
    keys: Keys
    target: Dataset


class Task(NamedTuple):
    """All seeds of a source, or of the reference (number 0), to train; `section` of the config is of their images."""

    number: int
    label: str
    name: str
    section: str
    dataset: Dataset
    num_epochs: int


class Networks(NamedTuple):
    """Trained networks; their variables are `[num_networks, ...]`."""

    task: Task
    model: Model
    variables: Variables

    def functions(self) -> list[Function]:
        """Each network, compiled once for all, and as a pytree of its variables, for functions of networks."""
        apply = jax.jit(self.model.apply)
        return [Partial(apply, variables) for variables in loops.unstack(self.variables)]


class Reference(NamedTuple):
    """One seed's reference: its outputs and accuracy on the target's test images, why it is lost (or ""), some of the
    images that it classifies rightly (where it is lost, any), their labels, and these attacked on it.
    """

    network: Function
    outputs: Outputs
    accuracy: float
    lost: str
    images: np.ndarray
    labels: np.ndarray
    perturbed: Perturbed


class Stage(NamedTuple):
    """A work directory in that of the run; its config is what the networks in it depend on."""

    path: Path
    name: str
    config: ConfigDict

    def networks(self, make: Callable[[], tuple[Variables, Results]]) -> Variables:
        """The saved networks, made where they are not there yet."""
        with folder.claimed(*self) as finished:
            if not finished:
                variables, results = make()
                devices.first_does(partial(folder.write_config, *self))
                folder.write_networks(self.path, [variables])
                devices.first_does(partial(write_data, self.path, results))
                summary = folder.complete(results.summary, self.config)
                devices.first_does(partial(folder.write_summary, self.path, summary))
        return folder.read_networks(self.path)[0]


def _stage(study: Study, kind: str, task: Task, section: Mapping[str, Any], dataset: Dataset, **settings: Any) -> Stage:
    """The stage of networks that tell apart the classes of a data set, which a section of the config describes."""
    config = {
        "models": (task.name,),
        "widths": {task.name: study.config.widths[task.name]},
        "data": {**section, "classes": dataset.class_names},
        "data_sha256": data.digest(dataset),
        **settings,
    }
    return Stage(study.workdir / kind / folder.folder_name(task.label), f"knowledge-{kind}", ConfigDict(config))


def few(config: ConfigDict, test: Split) -> Split:
    """`num_examples` test images, or as many as there are, of every class as many as of any other."""
    per_class = np.bincount(test.labels)
    return data.balanced(test, min(config.num_examples, int(per_class.min()) * len(per_class)), "num_examples")


def train(study: Study, task: Task) -> Networks:
    """The networks of a task, from the disk where they are trained already."""
    config = study.config
    per_epoch = len(task.dataset.train.labels) // config.batch_size
    steps = {"num_steps": task.num_epochs * per_epoch, "measure_every": per_epoch}
    stage = _stage(study, "networks", task, config[task.section].to_dict(), task.dataset, **steps)
    model = setup.model(config, task.name, task.dataset, task.section)
    return Networks(task, model, stage.networks(partial(_train, study, task, model, stage)))


def _train(study: Study, task: Task, model: Model, stage: Stage) -> tuple[Variables, Results]:
    """The networks trained side by side, as the official code trains them, and their trajectory."""
    config, num_steps, per_epoch = study.config, stage.config.num_steps, stage.config.measure_every
    print(f"{task.label}: {config.num_networks} networks, {task.num_epochs} epochs of {per_epoch} steps", flush=True)
    settings: dict[str, Any] = {name: config[name] for name in ("num_networks", "batch_size", "group_size")}
    settings |= {"models": [model], "train": task.dataset.train, "test": few(config, task.dataset.test)}
    settings |= {"augment": training.crop_and_flip if config.augment else None}
    optimizer = training.cosine_sgd(config.learning_rate, num_steps)
    population = engine.build(optimizer=optimizer, keys=study.keys.folded(task.number), **settings)
    saved = config.checkpoint.seconds, config.checkpoint.steps, stage.config.data_sha256
    plan = Plan(num_steps, per_epoch, *saved, partial(folder.write_config, *stage))
    run, (trained,) = follow.run(population, plan, stage.path)
    summary = {"accuracy": run["accuracy"][:, -1], **setup.identity(task.dataset)}
    table = tables.of_trajectory(run, trajectory.curves(run))
    return trained.variables, Results(stage.config, summary, {"trajectory": table}, {"trajectory": run})


def outputs(networks: Networks, images: np.ndarray) -> list[Outputs]:
    """What each network puts out for images."""
    compiled = jax.jit(partial(measures.outputs, networks.model))
    each = lambda variables: loops.in_batches(lambda x: (None, compiled(variables, x)), BATCH, images)[1]
    return [jax.device_get(each(variables)) for variables in loops.unstack(networks.variables)]


def references(study: Study, networks: Networks) -> list[Reference]:
    """Each seed's reference; InputError if all of them are lost, or one of the others gets no image right."""
    config, test = study.config, study.target.test
    on_test = outputs(networks, test.images)
    correct = [np.asarray(attacks.right(of_seed.logits, test.labels)) for of_seed in on_test]
    right = [np.flatnonzero(of_seed == 1) for of_seed in correct]
    lost = [measures.lost(of_seed) for of_seed in on_test]
    healthy = [images for images, why in zip(right, lost, strict=True) if not why]
    count = min(config.num_examples, *map(len, healthy)) if healthy else 0
    if not count:
        why = "a reference gets no test image right" if healthy else "every reference is lost"
        what = f"after {config.reference_epochs}, at learning rate {config.learning_rate:g}, {why}"
        raise InputError(f"reference_epochs: {what}; change one of them and name another --workdir")
    perturb = jax.jit(partial(measures.perturb, finite_attacks(config)))
    made = []
    for seed, network in enumerate(networks.functions()):
        among = np.arange(len(test.labels)) if lost[seed] else right[seed]
        chosen = among[np.linspace(0, len(among) - 1, count).astype(int)]  # classes may come in order
        images, labels = test.images[chosen], test.labels[chosen]
        perturbed = perturb(network, images, jax.random.fold_in(study.keys.attack, seed))
        of_test = on_test[seed], float(correct[seed].mean()), lost[seed]
        made.append(Reference(network, *of_test, images, labels, perturbed))
    return made


def finite_attacks(config: ConfigDict) -> dict[str, Attack]:
    """The attacks of finite size, as in the official code: epsilon in units of pixels in [0, 1]."""
    size = config.attack.epsilon, config.attack.steps, 0
    return {name: jax.jit(attacks.BY_NAME[name](*size)) for name in ATTACKS}


def refit(study: Study, source: Networks, references: Sequence[Reference]) -> Networks:
    """The source's networks with new last layers for the target domain; beside them what they know of it."""
    config, target, task = study.config, study.target, source.task
    # With the source's own pixels and mean image, but the target's classes.
    section = config.target.to_dict() | {name: config.source[name] for name in ("pixel_range", "subtract_mean")}
    stage = _stage(study, "refitted", task, section, target, refit_epochs=config.refit_epochs)
    model = setup.model(config, task.name, task.dataset._replace(class_names=target.class_names), "source")
    return Networks(task, model, stage.networks(partial(_refit, study, source, references)))


def _refit(study: Study, source: Networks, references: Sequence[Reference]) -> tuple[Variables, Results]:
    """The variables with new heads, fitted to convergence; and what the source knows, a row for each seed."""
    config, target, label = study.config, study.target, source.task.label
    labels, num_classes = (target.train.labels, target.test.labels), len(target.class_names)
    on_train, on_test = (outputs(source, split.images) for split in (target.train, target.test))
    keys = study.keys.folded(len(config.models) * len(config.mixtures) + 1)  # not those of a task
    by_sgd = sgd_heads(config, source, target.train, keys)
    num_parameters = sum(leaf[0].size for leaf in jax.tree.leaves(source.variables["params"]))
    rows, heads = [], []
    for seed, (train, test, sgd_head, reference) in enumerate(zip(on_train, on_test, by_sgd, references, strict=True)):
        scores, head, lost = measures.refit((train, test), reference.outputs, labels, num_classes)
        loss, accuracy = (math.nan,) * 2 if lost else transfer.classification(sgd_head, test.features, labels[1])
        if lost := lost or (reference.lost and f"reference {reference.lost}"):
            print(f"{label}, seed {seed}: {lost}; it is left out", flush=True)
        rows.append({"seed": seed, "lost": lost, **scores, "sgd_loss": loss, "sgd_accuracy": accuracy})
        heads.append(head)
    print(f"{label}: new heads fitted", flush=True)
    weights, bias = (np.stack(parts).astype(np.float32) for parts in zip(*heads, strict=True))
    table = pandas.DataFrame(rows).assign(parameters=float(num_parameters))
    results = Results(config, setup.identity(target), {"knowledge": table}, {})
    return jax.vmap(models.with_last_layer)(source.variables, weights.transpose(0, 2, 1), bias), results


def sgd_heads(config: ConfigDict, source: Networks, train: Split, keys: Keys) -> Iterator[Head]:
    """For each network a new last layer that is trained alone on the target domain, as the official code does it."""
    count, num_classes = len(train.labels), int(train.labels.max()) + 1
    per_epoch = count // config.batch_size
    optimizer = training.cosine_sgd(config.learning_rate, config.refit_epochs * per_epoch)
    step, augment = jax.jit(partial(measures.head_step, source.model, optimizer)), jax.jit(training.crop_and_flip)
    for seed, variables in enumerate(loops.unstack(source.variables)):
        of_seed = keys.folded(seed)
        features = models.last_layer(variables)["kernel"].shape[1]
        draw = partial(jax.random.uniform, minval=-(features**-0.5), maxval=features**-0.5)
        head = Head(*map(draw, jax.random.split(of_seed.init), ((features, num_classes), (num_classes,))))
        state = optimizer.init(head)
        for number in range(config.refit_epochs * per_epoch):
            epoch, batch = divmod(number, per_epoch)
            if batch == 0:
                order = np.asarray(training.epoch_order(of_seed.order, epoch, count))
            chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
            images = train.images[chosen]
            images = augment(jax.random.fold_in(of_seed.augment, number), images) if config.augment else images
            head, state = step(variables, head, state, Split(images, train.labels[chosen]))
        yield Head(*map(np.asarray, head))


def attack(study: Study, source: Networks, with_heads: Networks, references: Sequence[Reference]) -> pandas.DataFrame:
    """All measures of one source, which is attacked without its new last layers; a row for each seed."""
    name = folder.folder_name(source.task.label)
    path = study.workdir / "attacked" / f"{name}.csv"
    if not devices.from_first(np.array(path.exists())):
        table = _attack(study, source, with_heads, references)
        devices.first_does(partial(path.parent.mkdir, exist_ok=True))
        devices.first_does(partial(folder.write_table, path, table))
        print(f"{source.task.label}: attacked", flush=True)
    knowledge = folder.read_table(study.workdir / "refitted" / name / "knowledge.csv")
    of_attacks = folder.read_table(path).where(knowledge["lost"] == "")
    knowledge.insert(0, "source", source.task.label)
    return pandas.concat([knowledge, of_attacks], axis=1)


def _attack(study: Study, source: Networks, with_heads: Networks, references: Sequence[Reference]) -> pandas.DataFrame:
    perturb = jax.jit(partial(measures.perturb, finite_attacks(study.config)))
    compare, rows = jax.jit(measures.transferability), []
    of_seeds = zip(source.functions(), with_heads.functions(), references, strict=True)
    for seed, (network, with_head, reference) in enumerate(of_seeds):
        images, labels = reference.images, reference.labels
        perturbed = perturb(network, images, jax.random.fold_in(study.keys.attack, seed)), reference.perturbed
        taus, under_attack = jax.device_get(compare((network, reference.network), perturbed, images, labels))
        right = np.asarray(attacks.right(with_head(training.pixels(images)), labels))
        row = {"reference_accuracy": reference.accuracy, **taus, **measures.success(under_attack, right)}
        rows.append({name: float(value) for name, value in row.items()})
    return pandas.DataFrame(rows)


def success(study: Study, networks: Sequence[Networks]) -> pandas.DataFrame:
    """The `matrix.table` of networks that tell the same classes apart, with intervals over seeds."""
    test = few(study.config, study.target.test)
    x, matrices = np.asarray(training.pixels(test.images)), {}
    seeds = enumerate(zip(*(n.functions() for n in networks), strict=True))
    key = partial(jax.random.fold_in, study.keys.attack)
    of_seeds = [partial(metrics.success_matrix, fs, fs, x, test.labels, key=key(seed)) for seed, fs in seeds]
    for name, attack in finite_attacks(study.config).items():
        of_attack = zip(*(of_seed(attack) for of_seed in of_seeds), strict=True)
        matrices[name] = SuccessMatrix(*map(np.stack, of_attack))
        print(f"{name}: every network attacked", flush=True)
    return matrix.table(matrices, [n.task.label for n in networks])
