"""Adversarial and knowledge transferability: do attacks transfer to where features transfer?

Liang et al. (2021), both ways: sources that differ in their architecture, in the classes that they learn or in how well
they are trained get new last layers for a target domain; they and references that were trained there are attacked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas
from ml_collections import ConfigDict

from jtrans import data, models
from jtrans.data import Dataset
from jtrans.errors import InputError
from jtrans.experiments.knowledge import sources, stages, words
from jtrans.experiments.knowledge.figures import draw
from jtrans.experiments.knowledge.sources import Source
from jtrans.experiments.knowledge.stages import Domain, Study, Task
from jtrans.experiments.knowledge.words import tell
from jtrans.harness import fields, folder, setup
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, one_of, positive, seed, whole, yes_no
from jtrans.population import devices, engine

NAME = "knowledge"

LEAST_OF_A_CLASS = 2  # training examples of the target, for a score that rests on a class's spread
FIELDS: Mapping[str, Field] = {
    "seed": seed(),
    "sources": sources.field((("lenet",), ("alexnet",), ("resnet18",))),
    "strata": fields.text(
        "", "words, as 'vehicles among its classes'", "what the stratum of a source is, for captions"
    ),
    "reference": one_of("resnet18", models.WIDTHS, "the architecture of the networks trained on the target"),
    **fields.WIDTHS,
    "initializer": fields.NETWORKS["initializer"],
    "num_networks": whole(5, "seeds of each source"),
    "num_references": whole(4, "seeds of the reference, over which measures are averaged"),
    **{name.replace("data", of, 1): field for of in ("source", "target") for name, field in fields.DATA.items()},
    "contrast": fields.DATA["data.classes"]._replace(
        takes="a tuple of class names, or () for none",
        means="classes of a second target in the same data set; measures are then those of the target less these",
    ),
    "num_epochs": whole(100, "epochs of training a source"),
    "reference_epochs": whole(100, "epochs of training a reference"),
    "refit_epochs": whole(10, "epochs of training a new last layer for a source on the target"),
    "batch_size": whole(64, "training examples in a batch"),
    "learning_rate": positive(0.1, "of SGD with momentum, at the start"),
    "augment": yes_no(True, "train on random crops and flips"),
    "num_examples": whole(1000, "test examples attacked, at most"),
    "attack.epsilon": fields.epsilon(0.1),
    "attack.steps": whole(50, "steps of PGD"),
    "matrix": yes_no(True, "also attack every network from every other"),
    "group_size": fields.NETWORKS["group_size"],
    **fields.CHECKPOINT,
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    listed = of_config(config)
    labels = sources.labels(listed)
    if len(labels) < sources.LEAST:
        raise InputError(f"sources: got {len(labels)}; correlations take {sources.LEAST} or more")
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise InputError(f"sources: two of them would both be called {repeated[0]!r}; they must differ")
    architectures = {config.reference, *(source.model for source in listed)}
    if (of_texts := architectures & set(models.TEXT)) and of_texts != architectures:
        other = min(architectures - of_texts)
        raise InputError(f"sources: got {min(of_texts)} of texts and {other} of images; all take the same inputs")
    if of_texts and config.augment:
        raise InputError(f"augment: got True and {min(of_texts)}; texts are neither cropped nor flipped, so False")
    fields.check_epsilon(config.attack.epsilon, not of_texts)
    if config.contrast and config.matrix:
        raise InputError("matrix: got True with a contrast, where networks tell other classes apart; it takes False")
    for section, names in (("source", {source.model for source in listed}), ("target", {config.reference})):
        for name in sorted(names):
            fields.check_model(name, config, section)
    if config.source.image_size != config.target.image_size:
        sizes = f"{config.target.image_size}; source.image_size is {config.source.image_size}"
        raise InputError(f"target.image_size: got {sizes}, and attacks transfer only at the same size")


def of_config(config: ConfigDict) -> list[Source]:
    """The sources of a config."""
    return [Source(*entry) for entry in config.sources]


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Train, refit and attack every source, each stage from where an earlier run stopped."""
    keys, listed = engine.keys(config.seed), of_config(config)
    names = sources.labels(listed)
    target, source_domain = (setup.images(config, keys.data, section) for section in ("target", "source"))
    domains = [Domain("target", workdir, setup.few(config, target, "target"))]
    if config.contrast:
        other = contrast(config, keys.data, target)
        domains.append(Domain("contrast", workdir / "contrast", setup.few(config, other, "target")))
    datasets = [
        setup.few(config, data.of_classes(source_domain, source.classes, "sources"), "source") for source in listed
    ]
    # The references come before and after the sources, so that the draws of these do not depend on a contrast.
    of_references = [
        Task(number, "reference", config.reference, "target", domain.dataset, config.reference_epochs, domain.path)
        for number, domain in zip((0, len(listed) + 1), domains, strict=False)
    ]
    of_sources = [
        Task(number, label, source.model, "source", dataset, source.num_epochs or config.num_epochs, workdir)
        for number, (label, source, dataset) in enumerate(zip(names, listed, datasets, strict=True), 1)
    ]
    check_data(config, [*of_references, *of_sources])
    devices.first_does(lambda: folder.write_config(workdir, NAME, config))
    study = Study(config, workdir, keys, target.inputs)
    references = [stages.train(study, task, config.num_references) for task in of_references]
    targets = stages.targets(study, domains, references)
    with_heads, parts = [], []
    for task, source in zip(of_sources, listed, strict=True):
        noisy = sources.with_label_noise(
            task.dataset.train,
            len(task.dataset.class_names),
            source.label_noise,
            jax.random.fold_in(keys.data, task.number),
        )
        task = task._replace(dataset=task.dataset._replace(train=noisy))
        trained = stages.train(study, task, config.num_networks)
        for of_target in targets:
            with_heads.append(stages.refit(study, trained, of_target))
            table = stages.attack(study, trained, with_heads[-1], of_target)
            parts.append(table.assign(stratum=source.stratum))
    table = pandas.concat(parts, ignore_index=True)
    tables = {"knowledge": table}
    if config.matrix:
        tables["matrix"] = stages.success(study, targets[0], with_heads, references[0])
    summary = words.summarize(table, np.random.default_rng(config.seed))
    tests = [domain.dataset.test for domain in domains]
    known = {task.label: sum(data.common(task.dataset.train, test) for test in tests) for task in of_sources}
    summary["test_in_training"] = {label: count for label, count in known.items() if count}
    counts = {of.domain.name: {"images": len(of.x), "references": of.accuracies()} for of in targets}
    return Results(config, {"attacked": counts, "lexicon_sha256": setup.lexicon(target), **summary}, tables, {})


def contrast(config: ConfigDict, key: jax.Array, target: Dataset) -> Dataset:
    """The second target domain; InputError if its classes are not those of another domain."""
    if common := sorted({*config.contrast} & {*target.class_names}):
        raise InputError(f"contrast: got {common[0]!r}, which is a class of the target; name classes of another domain")
    return setup.images(config, key, "target", config.contrast)


def check_data(config: ConfigDict, tasks: Sequence[Task]) -> None:
    """Check that all data sets have a batch of training examples, inputs of one shape, and texts one lexicon, and that
    targets have examples enough for every score.
    """
    shapes = [setup.shape(task.dataset) for task in tasks]
    if different := set(shapes) - {shapes[0]}:
        what = f"its inputs have the shape {shapes[0]}, and those of {config.source.name} {different.pop()}"
        raise InputError(f"target.name: got {config.target.name}; {what}; attacks transfer only at the same shape")
    if len({setup.lexicon(task.dataset) for task in tasks}) > 1:
        what = "its words have other embeddings than those of the sources"
        same = "the same dir, vocabulary and embedding fields as in source"
        raise InputError(f"target.dir: got {config.target.dir}; {what}; it takes {same}")
    for task in tasks:
        if (count := len(task.dataset.train.labels)) < config.batch_size:
            raise InputError(f"batch_size: got {config.batch_size}; {task.label} has {count} training examples")
    for task in tasks:
        names, split = task.dataset.class_names, task.dataset.train
        of_class = np.bincount(split.labels, minlength=len(names))
        if task.section == "target" and of_class.min() < LEAST_OF_A_CLASS:
            what = f"of class {names[of_class.argmin()]} are {of_class.min()} training examples used"
            raise InputError(f"target.num_train: got {config.target.num_train}; {what}; it takes {LEAST_OF_A_CLASS}")


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, headline=words.headline)
