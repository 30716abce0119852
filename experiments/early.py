"""Train many networks side by side and measure every pair's adversarial angle after every step."""

import sys
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from jtrans import cli, data, findings, models, plots, population, results, settings, training
from jtrans.errors import InputError

REPORTED = {0, 1, 2, 5, 10, 20, 50, *range(100, 10**6, 100)}  # steps that get a line where there is no progress bar


def main(config: ConfigDict, workdir: Path) -> None:
    """Early transferability: the angle between adversarial directions, and the accuracy, after every optimizer step."""
    settings.check_early(config)
    results.check_workdir(workdir, config)
    started = time.monotonic()
    keys = population.keys(config.seed)
    dataset, test = load(config.data, keys.data, config.num_examples)
    num_images = len(dataset.train.labels)
    if config.batch_size > num_images:
        raise InputError(f"batch_size: got {config.batch_size}; the training images are {num_images}, so at most that")
    num_classes, shape = len(dataset.class_names), dataset.train.images.shape[1:]
    print(
        f"{config.data.name}: {num_images} training images of {num_classes} classes; test images from {dataset.origin}"
    )

    built = [
        models.build(
            name,
            shape,
            num_classes,
            widths=config.widths[name],
            initializer=config.initializer,
            pixel_range=config.data.pixel_range,
        )
        for name in config.models
    ]
    optimizer = training.OPTIMIZERS[config.optimizer.name](config.optimizer.learning_rate)
    most = max(config.batch_size, config.num_examples)
    sizes = [config.group_size or population.group_size(m, shape, most, config.num_networks) for m in built]
    for name, size in zip(config.models, sizes, strict=True):
        if size < config.num_networks:
            print(f"{name}: {config.num_networks} networks, {size} at a time")
    networks = population.initialize(built, optimizer, keys.init, config.num_networks, sizes)
    run = population.trajectory(
        built,
        optimizer,
        networks,
        keys,
        dataset.train,
        test,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        measure_every=config.measure_every,
        batch_statistics=config.batch_statistics,
    )
    ready = time.monotonic()
    trajectory, networks = follow(run, config)

    summary = findings.summarize(trajectory, test.images[0].size, num_classes)
    overlap = population.batch_overlap(keys.order, len(built), config.num_networks, num_images, config.batch_size)
    summary["batch_overlap"] = overlap
    summary["seconds"] = {"preparing": ready - started, "running": time.monotonic() - ready}
    summary |= results.environment()
    results.write_config(workdir, config)
    if config.save_networks:
        results.write_networks(workdir, networks)
    results.write_trajectory(workdir, trajectory)
    results.write_json(workdir / results.SUMMARY, summary)
    results.write_figure(workdir, plots.early(workdir))
    print(f"\n{findings.describe(summary)}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def load(config: ConfigDict, key: jax.Array, num_examples: int) -> tuple[data.Dataset, data.Split]:
    """The data set, and the test images that are measured."""
    dataset = data.load(
        config.name,
        key,
        directory=config.dir,
        classes=config.classes,
        image_size=config.image_size,
        shuffle_labels=config.shuffle_labels,
    )
    return dataset, data.balanced(dataset.test, num_examples)


def follow(run, config: ConfigDict) -> tuple[population.Trajectory, list]:
    """Go through the run, showing the mean angle and accuracy on the way: a bar on a terminal, else lines."""
    steps, measurements = [], []
    with tqdm(total=config.num_steps, unit="step", disable=None) as bar:
        for step, networks, values in run:  # noqa: B007 (the last networks are returned)
            measurement = jax.device_get(values)
            steps.append(step)
            measurements.append(measurement)
            over_pairs, accuracy = population.mean_angle(measurement.angle), measurement.accuracy.mean()
            mean_angle = population.mean_angle(over_pairs)
            bar.set_postfix_str(f"angle {mean_angle:.1f} deg, accuracy {accuracy:.2f}", refresh=False)
            bar.update(step - bar.n)
            if bar.disable and (step in REPORTED or step == config.num_steps):
                print(f"step {step}: angle {mean_angle:.2f} degrees, accuracy {accuracy:.3f}", flush=True)
    trajectory = population.collect(steps, measurements, len(config.models), keep_examples=config.keep_examples)
    return trajectory, networks


if __name__ == "__main__":
    sys.exit(cli.run(main))
