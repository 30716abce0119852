"""Train many networks side by side and measure every pair's adversarial angle after every step."""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jtrans import (
    checkpoints,
    data,
    devices,
    findings,
    models,
    plots,
    population,
    report,
    results,
    runs,
    settings,
    training,
)
from jtrans.errors import InputError


def run(config: ConfigDict, workdir: Path) -> None:
    """Early transferability: the angle between adversarial directions, and the accuracy, after every optimizer step."""
    settings.check_early(config)
    with results.claimed(workdir, config, grows="num_steps") as finished:
        if finished:
            print(f"{workdir} holds the results of this config already; the images were not read again")
        else:
            measure(config, workdir)
        if devices.is_first():
            print(f"\n{report.tell(workdir)}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def measure(config: ConfigDict, workdir: Path) -> None:
    """The run, from where it stopped where it was begun before, and its results."""
    started = time.monotonic()
    keys = population.keys(config.seed)
    dataset, test = load(config, keys.data, config.batch_size)
    num_images, digest = len(dataset.train.labels), data.digest(dataset)
    built = [build(config, name, dataset) for name in config.models]
    optimizer = training.OPTIMIZERS[config.optimizer.name](config.optimizer.learning_rate)
    placements = [place(config, model, test.images, config.batch_size, config.num_networks) for model in built]
    for name, placement in zip(config.models, placements, strict=True):
        if placement.num_groups > 1 or len(placement.devices) > 1:
            on = f"each of {len(placement.devices)} {placement.devices[0].platform} devices"
            print(f"{name}: {config.num_networks} networks, {placement.size} at a time on {on}")
    pair, _ = population.pairs(len(built), config.num_networks)
    every = config.num_networks ** len(built) if len(built) > 1 else math.comb(config.num_networks, 2)
    if len(pair) < every:
        print(f"{len(pair)} of {every} pairs, drawn at random, are compared")

    saves = checkpoints.Checkpoints(workdir)
    shapes = population.shapes(built, optimizer, config.num_networks)
    reached = runs.restore(saves, shapes, config, digest)
    if reached:
        networks = list(map(devices.split, reached.networks, placements))
    else:
        networks = population.initialize(built, optimizer, keys.init, placements)
    reached = reached or runs.Progress(0, shapes, [], [])
    steps = population.trajectory(
        built,
        optimizer,
        networks,
        placements,
        keys,
        dataset.train,
        test,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        measure_every=config.measure_every,
        batch_statistics=config.batch_statistics,
        epsilon=config.attack.epsilon,
        first_step=reached.step,
        keep_examples=config.keep_examples,
    )
    ready = time.monotonic()
    trajectory, trained = runs.follow(steps, placements, reached, saves, config, workdir, config.num_examples, digest)

    devices.first_does(partial(results.write_config, workdir, config))
    if config.save_networks:
        results.write_networks(workdir, [network.variables for network in trained])

    def write() -> None:
        curves = findings.curves(trajectory)
        results.write_trajectory(workdir, trajectory, curves)
        summary = findings.summarize(trajectory, curves, test.images[0].size, len(dataset.class_names))
        summary["steps_per_epoch"] = num_images // config.batch_size
        overlap = population.batch_overlap(keys.order, len(built), config.num_networks, num_images, config.batch_size)
        summary["batch_overlap"] = overlap
        summary |= {"class_names": dataset.class_names, "image_shape": test.images.shape[1:], "data_sha256": digest}
        summary["seconds"] = {"preparing": ready - started, "running": time.monotonic() - ready}
        results.write_figure(workdir, plots.early(config, trajectory, summary, curves))
        results.write_summary(workdir, config, summary)

    devices.first_does(write)
    saves.wait()


def load(config: ConfigDict, key: jax.Array, batch_size: int) -> tuple[data.Dataset, data.Split]:
    """The data set, and the test images that are measured.

    Raises:
      InputError: it cannot be had, or has too few images for what the config asks, or for a batch.
    """
    dataset = images(config, "data", key)
    test = data.balanced(dataset.test, config.num_examples, "num_examples")
    count = len(dataset.train.labels)
    if batch_size > count:
        raise InputError(f"batch_size: got {batch_size}; the training images are {count}, so at most that")
    print(f"{config.data.name}: {describe(dataset)}")
    return dataset, test


def images(config: ConfigDict, section: str, key: jax.Array, classes: Sequence[str] = ()) -> data.Dataset:
    """The data set of a section of the config, of those classes where any are named.

    Raises:
      InputError: it cannot be had, or has too few images.
    """
    wanted = config[section]
    dataset = data.load(
        wanted.name,
        key,
        directory=wanted.dir,
        classes=classes or wanted.classes,
        image_size=wanted.image_size,
        shuffle_labels=wanted.shuffle_labels,
    )
    if wanted.num_train:
        few = data.balanced(dataset.train, wanted.num_train, f"{section}.num_train")
        dataset = dataset._replace(train=few)
    return dataset


def describe(dataset: data.Dataset) -> str:
    """What there is to train on, and what to test on."""
    count, classes = len(dataset.train.labels), len(dataset.class_names)
    return f"{count} training images of {classes} classes; test images from {dataset.origin}"


def build(config: ConfigDict, name: str, dataset: data.Dataset, section: str = "data") -> models.Model:
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


def place(
    config: ConfigDict, model: models.Model, images: np.ndarray, batch_size: int, num_networks: int
) -> devices.Placement:
    """Where so many networks of an architecture lie, for batches and measured blocks of such images."""
    count, *shape = images.shape
    all_networks, image_size = num_networks * len(config.models), images[0].size
    block = population.block_size(count, all_networks, image_size, batch_statistics=config.batch_statistics)
    return population.place(model, shape, max(batch_size, block), num_networks, size=config.group_size)
