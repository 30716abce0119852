"""From a config to a data set, models and a population: the one place that reads those fields."""

from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jtrans import data, models, training
from jtrans.data import Dataset, Split
from jtrans.errors import InputError
from jtrans.models import Model
from jtrans.population import engine
from jtrans.population.engine import Keys, Population


def load(config: ConfigDict, key: jax.Array, batch_size: int = 1) -> tuple[Dataset, Split]:
    """The data set and the test images measured; InputError if it cannot be read, or is too small for the config."""
    dataset = few(config, _images(config, key))
    test = data.balanced(dataset.test, config.num_examples, "num_examples")
    count = len(dataset.train.labels)
    if batch_size > count:
        raise InputError(f"batch_size: got {batch_size}; the training images are {count}, so at most that")
    if test.images[0].size < 2:
        size = config.data.image_size
        raise InputError(f"data.image_size: got {size}; directions take images of 2 values or more, so a larger one")
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
        shuffle_labels=fields.shuffle_labels,
    )


def few(config: ConfigDict, dataset: Dataset, section: str = "data") -> Dataset:
    """The data set with as many training images as the section of the config has; InputError if it has fewer."""
    count = config[section].num_train
    return dataset._replace(train=data.balanced(dataset.train, count, f"{section}.num_train")) if count else dataset


def _announce(config: ConfigDict, dataset: Dataset, section: str = "data") -> None:
    count, classes_count = len(dataset.train.labels), len(dataset.class_names)
    where = f"test images from {dataset.origin}"
    print(f"{section}, {config[section].name}: {count} training images of {classes_count} classes; {where}", flush=True)


def identity(dataset: Dataset) -> dict[str, Any]:
    """What tells a data set from others, for the summary: its classes, the images' shape and their SHA-256."""
    shape = dataset.test.images.shape[1:]
    return {"class_names": dataset.class_names, "image_shape": shape, "data_sha256": data.digest(dataset)}


def model(config: ConfigDict, name: str, dataset: Dataset, section: str = "data") -> Model:
    """The architecture of that name for the images of a section, as the config has it."""
    train = dataset.train.images
    return models.build(
        name,
        train.shape[1:],
        len(dataset.class_names),
        widths=config.widths[name],
        initializer=config.initializer,
        pixel_range=config[section].pixel_range,
        mean_image=train.mean(0) / 255 if config[section].subtract_mean else None,
    )


def population(config: ConfigDict, dataset: Dataset, test: Split, keys: Keys, **options: Any) -> Population:
    """The networks of a config with the fields `NETWORKS` and, unless `options` bring their own, `TRAINING`.

    `test` holds the test images measured; the options, those of `engine.build`, replace the config's.
    """
    if "models" not in options:
        options["models"] = [model(config, name, dataset) for name in config.models]
    if "optimizer" not in options:
        options["optimizer"] = training.OPTIMIZERS[config.optimizer.name](config.optimizer.learning_rate)
    options.setdefault("batch_size", config.get("batch_size"))
    settings = {name: config[name] for name in ("num_networks", "group_size", "batch_statistics")}
    return engine.build(keys=keys, train=dataset.train, test=test, **settings | options)
