"""From a config to a data set, models and a population: the one place that reads those fields."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jtrans import data, models, training
from jtrans.data import Dataset, Split
from jtrans.errors import InputError
from jtrans.models import Model
from jtrans.population import engine
from jtrans.population.engine import Keys, Population

# The fields of a data section in the order of `data.Embedding`.
EMBEDDING = ("vocabulary", "max_length", "embedding_size", "embeddings", "embedding_mean", "embedding_seed")


def load(config: ConfigDict, key: jax.Array, batch_size: int = 1) -> tuple[Dataset, Split]:
    """The data set and the test images measured; InputError if it cannot be read, or is too small for the config."""
    dataset = few(config, _images(config, key))
    test = data.balanced(dataset.test, config.num_examples, "num_examples")
    count = len(dataset.train.labels)
    if batch_size > count:
        raise InputError(f"batch_size: got {batch_size}; the training examples are {count}, so at most that")
    if (size := shape(dataset)) == (1, 1, 1):
        what = "directions take images of 2 values or more, so a larger one"
        raise InputError(f"data.image_size: got {size[0]}; {what}")
    _announce(config, dataset)
    return dataset, test


def images(config: ConfigDict, key: jax.Array, section: str = "data", classes: Sequence[str] = ()) -> Dataset:
    """The whole data set of a section of the config, of these classes or its own; InputError if it cannot be read."""
    dataset = _images(config, key, section, classes)
    _announce(config, dataset, section)
    return dataset


def _images(config: ConfigDict, key: jax.Array, section: str = "data", classes: Sequence[str] = ()) -> Dataset:
    fields = config[section]
    return data.load(
        fields.name,
        key,
        directory=fields.dir,
        classes=classes or fields.classes,
        image_size=fields.image_size,
        embedding=data.Embedding(*(fields[name] for name in EMBEDDING)),
        shuffle_labels=fields.shuffle_labels,
    )


def few(config: ConfigDict, dataset: Dataset, section: str = "data") -> Dataset:
    """The data set with as many training images as the section of the config has; InputError if it has fewer."""
    count = config[section].num_train
    return dataset._replace(train=data.balanced(dataset.train, count, f"{section}.num_train")) if count else dataset


def _announce(config: ConfigDict, dataset: Dataset, section: str = "data") -> None:
    count, classes_count = len(dataset.train.labels), len(dataset.class_names)
    what = "images" if dataset.lexicon is None else "texts"
    where = f"test {what} from {dataset.origin}"
    print(f"{section}, {config[section].name}: {count} training {what} of {classes_count} classes; {where}", flush=True)
    if repeated := data.common(dataset.train, dataset.test):
        print(f"note: {repeated} of the {len(dataset.test.labels)} test {what} are training {what} too", flush=True)


def without_padding(dataset: Dataset) -> Dataset:
    """The texts that fill the length to which they are cut; images as they are.

    InputError if a class has no such text to train or to test on.
    """
    if dataset.lexicon is None:
        return dataset
    length, full = shape(dataset)[0], {}
    for name in ("train", "test"):
        split = getattr(dataset, name)
        full[name] = Split(*(array[(split.inputs != 0).all(1)] for array in split))
        for label, class_name in enumerate(dataset.class_names):
            if label not in full[name].labels:
                what = f"no {name} text of the class {class_name!r} has so many words; choose fewer"
                raise InputError(f"data.max_length: got {length}; {what}")
    counts = " and ".join(str(len(split.labels)) for split in full.values())
    print(f"{counts} of the training and test texts have {length} words or more; only these are looked at", flush=True)
    return dataset._replace(**full)


def identity(dataset: Dataset) -> dict[str, Any]:
    """What tells a data set from others, for the summary: its classes, the inputs' shape and their SHA-256."""
    shape_of = {"class_names": dataset.class_names, "input_shape": shape(dataset)}
    return {**shape_of, "lexicon_sha256": lexicon(dataset), "data_sha256": data.digest(dataset)}


def lexicon(dataset: Dataset) -> str:
    """The SHA-256 of the words of texts and their embeddings; empty for images."""
    if dataset.lexicon is None:
        return ""
    words = repr(dataset.lexicon.words).encode()
    return hashlib.sha256(words + dataset.lexicon.table.astype("<f4").tobytes()).hexdigest()


def shape(dataset: Dataset) -> tuple[int, ...]:
    """The shape of one input as networks take it: `(H, W, C)` of images, `(L, E)` of texts."""
    return jax.eval_shape(dataset.inputs.of, dataset.test.inputs[:1]).shape[1:]


def dimensions(dataset: Dataset, test: Split, names: Sequence[str]) -> np.ndarray:
    """Of the adversarial directions of these architectures at each test example: `[N]`.

    Padding has none; and where the gradient is the same at every word, as of `models.SAME_AT_WORDS`, all words together
    have those of one.
    """
    if set(names) <= set(models.SAME_AT_WORDS):
        return np.full(len(test.labels), shape(dataset)[-1])
    x = dataset.inputs.of(test.inputs)
    return np.broadcast_to(dataset.inputs.support(x), x.shape).reshape(len(x), -1).sum(1)


def model(config: ConfigDict, name: str, dataset: Dataset, section: str = "data") -> Model:
    """The architecture of that name for the images of a section, as the config has it."""
    check_kind(name, config[section].name, dataset, f"{section}.name")
    return models.build(
        name,
        shape(dataset),
        len(dataset.class_names),
        widths=config.widths[name],
        initializer=config.initializer,
        pixel_range=config[section].pixel_range,
        mean_image=dataset.train.inputs.mean(0) / 255 if config[section].subtract_mean else None,
        inputs=dataset.inputs,
    )


def check_kind(name: str, data_name: str, dataset: Dataset, field: str) -> None:
    """Check that the architecture takes what the data set has, images or texts; else InputError."""
    if (name in models.TEXT) != (dataset.lexicon is not None):
        has, takes = ("images", "texts") if name in models.TEXT else ("texts", "images")
        raise InputError(f"{field}: {data_name} has {has}, and {name} is a network of {takes}; name the same kind")


def population(config: ConfigDict, dataset: Dataset, test: Split, keys: Keys, **options: Any) -> Population:
    """The networks of a config with the fields `NETWORKS` and, unless `options` bring their own, `TRAINING`.

    `test` holds the test images measured; the options, those of `engine.build`, replace the config's.
    """
    if "models" not in options:
        options["models"] = [model(config, name, dataset) for name in config.models]
    if "optimizer" not in options:
        # With the rate in its state: runs on images that differ in it share compiled programs.
        options["optimizer"] = training.adjustable(config.optimizer.name)
        options["learning_rate"] = config.optimizer.learning_rate
    options.setdefault("batch_size", config.get("batch_size"))
    settings = {name: config[name] for name in ("num_networks", "group_size", "batch_statistics")}
    return engine.build(keys=keys, train=dataset.train, test=test, **settings | options)
