"""Adversarial and knowledge transferability on images: do attacks transfer to where features transfer?

Liang et al. (2021), both ways: sources of several architectures, or on several mixtures of classes, get new last layers
for a target domain, and attack a reference that was trained there.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas
from ml_collections import ConfigDict

from jtrans import models
from jtrans.errors import InputError
from jtrans.experiments.knowledge import stages, words
from jtrans.experiments.knowledge.figures import draw
from jtrans.experiments.knowledge.stages import Study, Task
from jtrans.experiments.knowledge.words import tell
from jtrans.harness import fields, folder, setup
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, is_tuple, one_of, positive, seed, whole, yes_no
from jtrans.population import devices, engine

NAME = "knowledge"


FIELDS: Mapping[str, Field] = {
    "seed": seed(),
    # A source for each architecture and each mixture of classes; a mixture of none is all classes of the source domain.
    "models": fields.some_of(("lenet", "alexnet", "resnet18"), models.WIDTHS),
    "mixtures": Field(
        ((),),
        lambda v: is_tuple(v, fields.DATA["data.classes"].accepts) and len(set(v)) == len(v),
        "a tuple of tuples of class names, each once, as ((),) or (('cat', 'dog'), ('cat', 'ship'))",
    ),
    "reference": one_of("resnet18", models.WIDTHS),
    **fields.WIDTHS,
    "initializer": one_of("pytorch", models.INITIALIZERS),
    "num_networks": whole(5),  # seeds of each source, and of the reference
    **{name.replace("data", of, 1): field for of in ("source", "target") for name, field in fields.DATA.items()},
    "num_epochs": whole(100),
    "reference_epochs": whole(100),
    "refit_epochs": whole(10),  # of a new last layer by SGD
    "batch_size": whole(64),
    "learning_rate": positive(0.1),
    "augment": yes_no(True),  # crops and flips
    "num_examples": whole(1000),  # test images attacked, at most
    "attack.epsilon": fields.epsilon(0.1),
    "attack.steps": whole(50),
    "group_size": whole(0, least=0),
    **fields.CHECKPOINT,
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    labels = [label for label, *_ in sources(config)]
    if not 3 <= len(labels) <= 9:
        raise InputError(f"models: got {len(labels)} sources in all, by models and mixtures; correlations take 3 to 9")
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise InputError(f"mixtures: two sources would both be called {repeated[0]!r}; rename the classes")
    for section, names in (("source", config.models), ("target", (config.reference,))):
        for name in names:
            fields.check_size(name, config.widths[name], config[section].image_size, f"{section}.image_size")
    if config.source.image_size != config.target.image_size:
        sizes = f"{config.target.image_size}; source.image_size is {config.source.image_size}"
        raise InputError(f"target.image_size: got {sizes}, and attacks transfer only at the same size")


def sources(config: ConfigDict) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The label, the architecture and the mixture of each source; the label names whatever there are several of."""
    for name, classes in itertools.product(config.models, config.mixtures):
        parts = [name] * (len(config.models) > 1) + ["+".join(classes) or "all"] * (len(config.mixtures) > 1)
        yield "-".join(parts), name, classes


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Train, refit and attack every source, each stage from where an earlier run stopped."""
    keys = engine.keys(config.seed)
    target = setup.images(config, keys.data, "target")
    domains = {classes: setup.images(config, keys.data, "source", classes) for classes in config.mixtures}
    of_reference = Task(0, "reference", config.reference, "target", target, config.reference_epochs)
    of_sources = [
        Task(number, label, name, "source", domains[classes], config.num_epochs)
        for number, (label, name, classes) in enumerate(sources(config), 1)
    ]
    check_data(config, [of_reference, *of_sources])
    devices.first_does(partial(folder.write_config, workdir, NAME, config))
    study = Study(config, workdir, keys, target)
    reference = stages.train(study, of_reference)
    references = stages.references(study, reference)
    with_heads, parts = [], []
    for task in of_sources:
        source = stages.train(study, task)
        with_heads.append(stages.refit(study, source, references))
        parts.append(stages.attack(study, source, with_heads[-1], references))
    of_heads, table = stages.success(study, [*with_heads, reference]), pandas.concat(parts, ignore_index=True)
    summary = words.summarize(table, np.random.default_rng(config.seed))
    return Results(config, summary, {"knowledge": table, "matrix": of_heads}, {})


def check_data(config: ConfigDict, tasks: Sequence[Task]) -> None:
    """Check that all data sets have a batch of training images, and images of one number of channels."""
    channels = [task.dataset.test.images.shape[-1] for task in tasks]
    if different := set(channels) - {channels[0]}:
        what = f"its images have {channels[0]} channels, and those of {config.source.name} {different.pop()}"
        raise InputError(f"target.name: got {config.target.name}; {what}; attacks transfer only at the same number")
    for task in tasks:
        if (count := len(task.dataset.train.labels)) < config.batch_size:
            raise InputError(f"batch_size: got {config.batch_size}; {task.label} has {count} training images")


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check)
