"""The stages of a run, each of which resumes: train, refit, attack.

`networks/LABEL` and `refitted/LABEL` are work directories of their own, with a config, a summary and saved networks,
which `matrix` reads as it reads any run; `attacked/LABEL.csv` is a table. What belongs to a contrast is in `contrast/`.
The processes of a job call each stage together, and all read what the first has written. Sources of one architecture
share one compiled program a stage.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas
from jax.tree_util import Partial
from ml_collections import ConfigDict

from jtrans import attacks, data, loops, metrics, models, training, transfer
from jtrans.attacks import Attack
from jtrans.data import Dataset, Inputs, Split
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
    """What all stages take: the config, the work directory, the keys, and how networks take the target's inputs."""

    config: ConfigDict
    workdir: Path
    keys: Keys
    inputs: Inputs


class Domain(NamedTuple):
    """A target domain: its name, the work directory of what belongs to it, and its images."""

    name: str
    path: Path
    dataset: Dataset


class Task(NamedTuple):
    """All seeds of a source, or of a reference, to train in `path`; `number` tells its draws from those of others.

    `section` of the config is of its images.
    """

    number: int
    label: str
    name: str
    section: str
    dataset: Dataset
    num_epochs: int
    path: Path


class Networks(NamedTuple):
    """Trained networks; their variables are `[num_networks, ...]`, `accuracy` on their own test images."""

    task: Task
    model: Model
    variables: Variables
    accuracy: Sequence[float]

    def functions(self) -> list[Function]:
        """Each network, compiled once for all, and as a pytree of its variables, for functions of networks."""
        return [Partial(_apply(self.model), variables) for variables in loops.unstack(self.variables)]


class Reference(NamedTuple):
    """One seed's reference: why it is left out (or ""), its accuracy on the target's test images, and of those attacked
    which it gets `right` `[N]`, and itself attacked there.
    """

    network: Function
    outputs: Outputs
    accuracy: float
    lost: str
    right: np.ndarray
    perturbed: Perturbed


class Target(NamedTuple):
    """A target domain with its references, and the test images attacked, each right by one of them or more."""

    domain: Domain
    references: Sequence[Reference]
    x: np.ndarray
    labels: np.ndarray

    def healthy(self) -> list[Reference]:
        """The references that are not lost."""
        return [reference for reference in self.references if not reference.lost]

    def accuracies(self) -> list[float]:
        """The accuracy of each reference, NaN where it is lost."""
        return [math.nan if reference.lost else reference.accuracy for reference in self.references]


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


def _stage(study: Study, kind: str, path: Path, task: Task, section: Mapping[str, Any], **settings: Any) -> Stage:
    """The stage of networks that tell apart the classes of a task's data set, which a section of the config has."""
    config = {
        "models": (task.name,),
        "widths": {task.name: study.config.widths[task.name]},
        "data": {**section, "classes": task.dataset.class_names},
        "data_sha256": data.digest(task.dataset),
        **settings,
    }
    return Stage(path / kind / folder.folder_name(task.label), f"knowledge-{kind}", ConfigDict(config))


def few(config: ConfigDict, test: Split) -> Split:
    """`num_examples` test images, or as many as there are, of every class as many as of any other."""
    per_class = np.bincount(test.labels)
    return data.balanced(test, min(config.num_examples, int(per_class.min()) * len(per_class)), "num_examples")


def train(study: Study, task: Task, num_networks: int) -> Networks:
    """The networks of a task, from the disk where they are trained already."""
    config = study.config
    per_epoch = len(task.dataset.train.labels) // config.batch_size
    steps = {"num_steps": task.num_epochs * per_epoch, "measure_every": per_epoch, "num_networks": num_networks}
    stage = _stage(study, "networks", task.path, task, config[task.section].to_dict(), **steps)
    model = setup.model(config, task.name, task.dataset, task.section)
    variables = stage.networks(partial(_train, study, task, model, stage))
    return Networks(task, model, variables, folder.read_summary(stage.path)["accuracy"])


def _train(study: Study, task: Task, model: Model, stage: Stage) -> tuple[Variables, Results]:
    """The networks trained side by side, as the official code trains them, and their trajectory."""
    config, num_steps, per_epoch = study.config, stage.config.num_steps, stage.config.measure_every
    count = stage.config.num_networks
    print(f"{task.label}: {count} networks, {task.num_epochs} epochs of {per_epoch} steps", flush=True)
    population = engine.build(
        num_networks=count,
        group_size=config.group_size,
        models=[model],
        optimizer=training.cosine_sgd(config.learning_rate, num_steps),
        keys=study.keys.folded(task.number),
        train=task.dataset.train,
        test=few(config, task.dataset.test),
        batch_size=config.batch_size,
        augment=training.crop_and_flip if config.augment else None,
    )
    saved = config.checkpoint.seconds, config.checkpoint.steps, stage.config.data_sha256
    plan = Plan(stage.path, num_steps, per_epoch, *saved, partial(folder.write_config, *stage))
    run, (groups,) = follow.run(population, plan)
    variables = devices.merge([group.variables for group in groups], *population.placements)
    summary = {"accuracy": run["accuracy"][:, -1], **setup.identity(task.dataset)}
    table = tables.of_trajectory(run, trajectory.curves(run))
    return variables, Results(stage.config, summary, {"trajectory": table}, {"trajectory": run})


@lru_cache(devices.PROGRAMS)
def _apply(model: Model) -> Callable:
    return jax.jit(model.apply)


@lru_cache(devices.PROGRAMS)
def _outputs(model: Model) -> Callable:
    return jax.jit(partial(measures.outputs, model))


@lru_cache(devices.PROGRAMS)
def _head_step(model: Model, optimizer: Any) -> Callable:
    return jax.jit(partial(measures.head_step, model, optimizer))


@lru_cache(devices.PROGRAMS)
def _finite_attacks(epsilon: float, steps: int, inputs: Inputs) -> dict[str, Attack]:
    return {name: jax.jit(attacks.BY_NAME[name](epsilon, steps, 0, **inputs.options())) for name in ATTACKS}


@lru_cache(devices.PROGRAMS)
def _perturb(epsilon: float, steps: int, inputs: Inputs) -> Callable:
    return jax.jit(partial(measures.perturb, _finite_attacks(epsilon, steps, inputs)))


_transferability = jax.jit(measures.transferability)
_crop_and_flip = jax.jit(training.crop_and_flip)


def perturb(study: Study, network: Function, x: np.ndarray, seed: int) -> Perturbed:
    """A network attacked at `x`; the attacks of finite size as in the official code, in the norm of the inputs."""
    attack = study.config.attack
    program = _perturb(attack.epsilon, attack.steps, study.inputs)
    return program(network, x, jax.random.fold_in(study.keys.attack, seed))


def outputs(networks: Networks, images: np.ndarray) -> list[Outputs]:
    """What each network puts out for images."""
    compiled = _outputs(networks.model)
    each = lambda variables: loops.in_batches(lambda x: (None, compiled(variables, x)), BATCH, images)[1]
    return [jax.device_get(each(variables)) for variables in loops.unstack(networks.variables)]


def targets(study: Study, domains: Sequence[Domain], references: Sequence[Networks]) -> list[Target]:
    """The target domains, with the references attacked at as many test images in each.

    InputError if all references of a domain are lost, or get no image right.
    """
    chosen, of_domains = [], []
    for domain, networks in zip(domains, references, strict=True):
        on_test = outputs(networks, domain.dataset.test.inputs)
        right = [np.asarray(attacks.right(of_seed.logits, domain.dataset.test.labels)) for of_seed in on_test]
        healthy = [of_seed == 1 for of_seed, output in zip(right, on_test, strict=True) if not measures.lost(output)]
        chosen.append(np.flatnonzero(np.any(healthy, axis=0)) if healthy else np.array([], int))
        of_domains.append((on_test, right))
        if not len(chosen[-1]):
            why = "no reference gets a test image right" if healthy else "every reference is lost"
            what = f"after {study.config.reference_epochs}, at learning rate {study.config.learning_rate:g}, {why}"
            raise InputError(f"reference_epochs: {what}; change one of them and name another --workdir")
    count = min(study.config.num_examples, *map(len, chosen))
    made = []
    for domain, networks, (on_test, right), among in zip(domains, references, of_domains, chosen, strict=True):
        among = among[np.linspace(0, len(among) - 1, count).astype(int)]  # classes may come in order
        test = domain.dataset.test
        x, labels = np.asarray(domain.dataset.inputs.of(test.inputs[among])), test.labels[among]
        of_seeds = zip(networks.functions(), on_test, right, strict=True)
        attacked = [
            Reference(
                network,
                output,
                float(correct.mean()),
                measures.lost(output) or ("" if (correct[among] == 1).any() else "right at no image attacked"),
                correct[among] == 1,
                perturb(study, network, x, seed),
            )
            for seed, (network, output, correct) in enumerate(of_seeds)
        ]
        for seed, reference in enumerate(attacked):
            if reference.lost:
                print(f"{domain.name}, reference {seed}: {reference.lost}; it is left out", flush=True)
        made.append(Target(domain, attacked, x, labels))
    return made


def refit(study: Study, source: Networks, target: Target) -> Networks:
    """The source's networks with new last layers for the target domain; beside them what they know of it."""
    config, dataset, task = study.config, target.domain.dataset, source.task
    # With the source's own pixels and mean image, but the target's classes.
    section = config.target.to_dict() | {name: config.source[name] for name in ("pixel_range", "subtract_mean")}
    of_target = task._replace(dataset=dataset)
    settings = {"refit_epochs": config.refit_epochs, "num_networks": len(source.accuracy)}
    stage = _stage(study, "refitted", target.domain.path, of_target, section, **settings)
    model = setup.model(config, task.name, task.dataset._replace(class_names=dataset.class_names), "source")
    variables = stage.networks(partial(_refit, study, source, target))
    return Networks(of_target, model, variables, source.accuracy)


def _refit(study: Study, source: Networks, target: Target) -> tuple[Variables, Results]:
    """The variables with new heads, fitted to convergence; and what the source knows, a row for each seed."""
    config, dataset, label = study.config, target.domain.dataset, source.task.label
    labels, num_classes = (dataset.train.labels, dataset.test.labels), len(dataset.class_names)
    on_train, on_test = (outputs(source, split.inputs) for split in (dataset.train, dataset.test))
    keys = study.keys.folded(len(config.sources) + 2)  # not those of a task
    by_sgd = sgd_heads(config, source, dataset.train, num_classes, keys)
    references = [reference.outputs for reference in target.references]
    rows, heads = [], []
    for seed, (train, test, sgd_head) in enumerate(zip(on_train, on_test, by_sgd, strict=True)):
        scores, head, lost = measures.refit((train, test), references, labels, num_classes)
        loss, accuracy = (math.nan,) * 2 if lost else transfer.classification(sgd_head, test.features, labels[1])
        if lost:
            print(f"{label}, seed {seed}: {lost}; it is left out", flush=True)
        rows.append({"seed": seed, "lost": lost, **scores, "sgd_loss": loss, "sgd_accuracy": accuracy})
        heads.append(head)
    print(f"{label}: new heads fitted on the {target.domain.name}", flush=True)
    weights, bias = (np.stack(parts).astype(np.float32) for parts in zip(*heads, strict=True))
    results = Results(config, setup.identity(dataset), {"knowledge": pandas.DataFrame(rows)}, {})
    return jax.vmap(models.with_last_layer)(source.variables, weights.transpose(0, 2, 1), bias), results


def sgd_heads(config: ConfigDict, source: Networks, train: Split, num_classes: int, keys: Keys) -> Iterator[Head]:
    """For each network a new last layer that is trained alone on the target domain, as the official code does it."""
    count = len(train.labels)
    per_epoch = count // config.batch_size
    optimizer = training.cosine_sgd(config.learning_rate, config.refit_epochs * per_epoch)
    step = _head_step(source.model, optimizer)
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
            images, key = train.inputs[chosen], jax.random.fold_in(of_seed.augment, number)
            images = _crop_and_flip(key, images) if config.augment else images
            head, state = step(variables, head, state, Split(images, train.labels[chosen]))
        yield Head(*map(np.asarray, head))


def attack(study: Study, source: Networks, with_heads: Networks, target: Target) -> pandas.DataFrame:
    """All measures of one source on one target, a row for each seed; it is attacked without its new last layers."""
    name, domain = folder.folder_name(source.task.label), target.domain
    path = domain.path / "attacked" / f"{name}.csv"
    if not devices.from_first(np.array(path.exists())):
        table = _attack(study, source, with_heads, target)
        devices.first_does(partial(path.parent.mkdir, exist_ok=True))
        devices.first_does(partial(folder.write_table, path, table))
        print(f"{source.task.label}: attacked on the {domain.name}", flush=True)
    knowledge = folder.read_table(domain.path / "refitted" / name / "knowledge.csv")
    of_attacks = folder.read_table(path).where(knowledge["lost"] == "")
    knowledge.insert(0, "source", source.task.label)
    knowledge.insert(1, "domain", domain.name)
    parameters = float(sum(leaf[0].size for leaf in jax.tree.leaves(source.variables["params"])))
    accuracy = np.array(source.accuracy, float)  # None, as JSON has it, is NaN
    return pandas.concat([knowledge, of_attacks], axis=1).assign(source_accuracy=accuracy, parameters=parameters)


def _attack(study: Study, source: Networks, with_heads: Networks, target: Target) -> pandas.DataFrame:
    """Means over the references that are not lost, a row for each seed of the source."""
    rows = []
    for seed, (network, with_head) in enumerate(zip(source.functions(), with_heads.functions(), strict=True)):
        perturbed = perturb(study, network, target.x, seed)
        of_references = [_against(network, with_head, perturbed, each, target) for each in target.healthy()]
        row = {name: np.mean([of[name] for of in of_references]) for name in of_references[0]}
        rows.append({"reference_accuracy": np.nanmean(target.accuracies()), **row})
    return pandas.DataFrame(rows)


def _against(
    network: Function, with_head: Function, perturbed: Perturbed, reference: Reference, target: Target
) -> dict[str, float]:
    """Every measure of one source, also with its new last layer, and one reference."""
    both = (network, reference.network), (perturbed, reference.perturbed)
    taus, reference_logits = jax.device_get(_transferability(*both, target.x, reference.right))
    predict = lambda x: np.asarray(loops.in_batches(lambda x: (None, with_head(x)), BATCH, x)[1])
    clean = predict(target.x), np.asarray(reference.perturbed.clean)
    rates = {}
    for name, adversarial in reference.perturbed.adversarial.items():
        for way, logits in (("S_T", reference_logits[name]), ("T_S", predict(adversarial))):
            of_way = measures.success(logits, clean, target.labels, reference.right)
            rates[f"{name}_success_{way}"], rates[f"{name}_success_both_{way}"] = of_way
    return {name: float(value) for name, value in {**taus, **rates}.items()}


def success(study: Study, target: Target, with_heads: Sequence[Networks], references: Networks) -> pandas.DataFrame:
    """The `matrix.table` of networks that tell the same classes apart, with intervals over seeds.

    There is a row for as many seeds of each as there are of sources and of the reference.
    """
    networks = [*with_heads, references]
    test = few(study.config, target.domain.dataset.test)
    x, matrices = np.asarray(target.domain.dataset.inputs.of(test.inputs)), {}
    seeds = enumerate(zip(*(n.functions() for n in networks), strict=False))
    key = partial(jax.random.fold_in, study.keys.attack)
    of_seeds = [partial(metrics.success_matrix, fs, fs, x, test.labels, key=key(seed)) for seed, fs in seeds]
    of_config = study.config.attack.epsilon, study.config.attack.steps
    for name, attack in _finite_attacks(*of_config, study.inputs).items():
        of_attack = zip(*(of_seed(attack) for of_seed in of_seeds), strict=True)
        matrices[name] = SuccessMatrix(*map(np.stack, of_attack))
        print(f"{name}: every network attacked", flush=True)
    return matrix.table(matrices, [n.task.label for n in networks])
