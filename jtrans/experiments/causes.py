"""What causes early transferability: the same networks under one change at a time, and which phase it removes.

First the networks become brightness meters, whose directions agree or oppose by chance; then they learn, and agree
(`docs/first_step.md`). Each change acts on the optimizer, on the inputs or on the batches. The initial weights are the
same under all of them, and so is the order of the images, but for class-balanced batches, which need their own.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import data, models, stats, training
from jtrans.data import Dataset, Split
from jtrans.errors import InputError
from jtrans.harness import fields, figures, setup, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.population import engine, trajectory
from jtrans.population.observe import PAIR_MEASURES
from jtrans.population.trajectory import Trajectory

NAME = "causes"
PLAIN = "adam"
FLOOR = 0.01  # of the images' mean variance: along directions of less, whitening divides by this


class Setting(NamedTuple):
    """What a change acts on."""

    config: ConfigDict
    dataset: Dataset
    test: Split
    options: dict[str, Any]  # of `engine.build`


class Change(NamedTuple):
    """One change of the plain setting."""

    caption: str
    act: Callable[[Setting], Setting]


def by(make: Callable[[Setting], optax.GradientTransformation]) -> Callable[[Setting], Setting]:
    """The change to another optimizer."""
    return lambda setting: setting._replace(options=setting.options | {"optimizer": make(setting)})


def having(name: str, value: Any) -> Callable[[Setting], Setting]:
    """The change of a config field."""

    def act(setting: Setting) -> Setting:
        config = setting.config.copy_and_resolve_references()
        config.update_from_flattened_dict({name: value})
        return setting._replace(config=config)

    return act


def adam(setting: Setting) -> optax.GradientTransformation:
    """The optimizer of every change that names no other."""
    return training.OPTIMIZERS["adam"](setting.config.learning_rate)


def sign_sgd(setting: Setting) -> optax.GradientTransformation:
    """The signs of each batch's gradient times the learning rate: Adam's first step at every step."""
    return optax.sign_sgd(setting.config.learning_rate)


def matched_sgd(setting: Setting) -> optax.GradientTransformation:
    """SGD whose rate makes each network's first update as long as that of `sign_sgd`."""

    def init(params: optax.Params) -> jax.Array:
        return jnp.zeros(())

    def update(gradient: optax.Updates, rate: jax.Array, params: optax.Params | None = None) -> tuple[Any, jax.Array]:
        ratio = optax.tree.norm(jax.tree.map(jnp.sign, gradient)) / optax.tree.norm(gradient)
        rate = jnp.where(rate == 0, setting.config.learning_rate * ratio, rate)
        return jax.tree.map(lambda g: -rate * g, gradient), rate

    return optax.GradientTransformation(init, update)


def without_constant_colours(setting: Setting) -> optax.GradientTransformation:
    """Adam, but the first layer does not move along constant colours: each channel's mean update is taken out."""
    layer, convolution = models.first_layer(*setting.config.models)

    def project(updates: Any, params: Any) -> Any:
        kernel = updates[layer]["kernel"]  # of a linear layer `[H, C * positions]`, of a convolution `[kh, kw, C, F]`
        positions = kernel if convolution else kernel.reshape(len(kernel), setting.test.inputs.shape[-1], -1)
        off = positions - positions.mean((0, 1) if convolution else -1, keepdims=True)
        return updates | {layer: updates[layer] | {"kernel": off.reshape(kernel.shape)}}

    return optax.chain(adam(setting), optax.stateless(project))


def frozen_bias(setting: Setting) -> optax.GradientTransformation:
    """Adam, but the last layer's bias stays as it was."""

    def freeze(updates: Any, params: Any) -> Any:
        last = models.last_layer({"params": updates})
        return models.with_last_layer({"params": updates}, last["kernel"], 0 * last["bias"])["params"]

    return optax.chain(adam(setting), optax.stateless(freeze))


def whiten(setting: Setting) -> Setting:
    """The inputs without their mean and their correlations (ZCA), with the same total variance.

    Networks train on whitened images and are measured at them, in the whitened coordinates. Directions in which the
    training images vary less than `FLOOR` of the mean variance are divided by that.
    """
    images = setting.dataset.train.inputs
    rows = images.reshape(len(images), -1).astype(np.float32)
    mean = rows.mean(0)
    if not np.ptp(rows, axis=0).any():
        raise InputError(
            f"data.num_train: got {len(rows)} images, all the same; whitening takes several, or no 'whitened'"
        )
    variance, axes = np.linalg.eigh(np.cov(rows, rowvar=False, dtype=np.float32))
    scale = np.sqrt(variance.mean() / np.maximum(variance, FLOOR * variance.mean()))
    zca = axes * scale @ axes.T

    def of(split: Split) -> Split:
        flat = split.inputs.reshape(len(split.inputs), -1).astype(np.float32)
        return split._replace(inputs=((flat - mean) @ zca).reshape(split.inputs.shape))

    dataset = setting.dataset._replace(train=of(setting.dataset.train))
    return setting._replace(dataset=dataset, test=of(setting.test))


def balance(setting: Setting) -> Setting:
    """Batches with the same number of images of each class."""
    train, batch_size = setting.dataset.train, setting.config.batch_size
    num_classes = len(setting.dataset.class_names)
    count = np.bincount(train.labels, minlength=num_classes).min() * num_classes
    if batch_size % num_classes or batch_size > count:
        what = f"class-balanced batches take a multiple of the {num_classes} classes, {count} images at most"
        raise InputError(f"batch_size: got {batch_size}; {what}; or take changes without 'balanced'")
    dataset = setting.dataset._replace(train=data.balanced(train, count, "data.num_train"))
    order = partial(training.balanced_order, num_classes=num_classes)
    return setting._replace(dataset=dataset, options=setting.options | {"order": order})


CHANGES: Mapping[str, Change] = {
    PLAIN: Change("none: Adam, pixels in [0, 1]", lambda setting: setting),
    "sign_sgd": Change("sign SGD", by(sign_sgd)),
    "matched_sgd": Change("SGD, first update as long", by(matched_sgd)),
    "pixels": Change("pixels in [-1, 1]", having("data.pixel_range", (-1.0, 1.0))),
    "centred": Change("mean image subtracted", having("data.subtract_mean", True)),
    "whitened": Change("whitened images", whiten),
    "balanced": Change("class-balanced batches", balance),
    "projected": Change("first layer without constant colours", by(without_constant_colours)),
    "frozen_bias": Change("last bias frozen", by(frozen_bias)),
}
# What is compared, with the label of its axis.
MEASURES = {
    "angle": "folded angle (degrees)",
    "signed_angle": "signed angle (degrees)",
    "agreement": "cosines above 0\n(share of images)",
    "constant_share": "constant colour (share\nof a direction)",
    "auc": "AUC",
    "accuracy": "test accuracy\n(share of images)",
}

CURVES = {
    "signed_angle": "signed angle",
    "angle": "folded angle",
    "constant_share": "constant colour (right)",
    "auc": "AUC (right)",
}

FIELDS: Mapping[str, fields.Field] = {
    **fields.NETWORKS,
    "batch_size": fields.TRAINING["batch_size"],
    "learning_rate": fields.positive(1e-3, "of Adam, and of sign SGD"),
    "changes": fields.some_of(tuple(CHANGES), CHANGES, "one change at a time, each under new networks"),
    "steps": fields.Field(
        (10, 60),
        lambda v: fields.is_tuple(v, fields.is_count, range(2, 3)) and v[0] < v[1],
        "two whole numbers, the smaller first, as (10, 60)",
        "the steps compared, named beforehand: one in the first phase, one in the second",
    ),
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    fields.check_images(config)
    fields.check_one_model(config)
    if config.data.pixel_range != (0.0, 1.0):
        raise InputError(f"data.pixel_range: got {config.data.pixel_range}; the changes start from (0.0, 1.0)")
    if config.data.subtract_mean:
        raise InputError("data.subtract_mean: got True; the changes start from images with their mean, so False")
    if "whitened" in config.changes:
        fields.check_values_squared(config, "whitening (without it, leave 'whitened' out of changes) takes memory")
    if PLAIN not in config.changes:
        raise InputError(f"changes: got {config.changes}; it takes {PLAIN}, with which the others are compared")
    fields.check_networks(config)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Train and measure the same networks under each change."""
    keys = engine.keys(config.seed)
    dataset, test = setup.load(config, keys.data, config.batch_size)
    plain = by(adam)(Setting(config, dataset, test, {}))
    settings = {name: CHANGES[name].act(plain) for name in config.changes}
    arrays, curves = {}, {}
    for name, changed in settings.items():
        population = setup.population(changed.config, changed.dataset, changed.test, keys, **changed.options)
        arrays[name] = train(population, config.steps[-1])
        curves[name] = trajectory.curves(arrays[name])
        print(f"{CHANGES[name].caption}: {population.num_networks} networks trained", flush=True)
    frames = {NAME: differences(arrays, config.steps), "curves": by_step(arrays, curves)}
    summary = {
        "random": trajectory.random(setup.dimensions(dataset, test, config.models)),
        "chance": 1 / len(dataset.class_names),
    }
    return Results(config, summary | setup.identity(dataset), frames, arrays)


def train(population: engine.Population, num_steps: int) -> Trajectory:
    """The measured trajectory."""
    stepped = engine.trajectory(population, engine.initialize(population), num_steps)
    steps, measured = zip(*((step, measurement) for step, _, measurement in stepped), strict=True)
    return trajectory.collect(population, steps, measured)


def differences(arrays: Mapping[str, Trajectory], steps: tuple[int, int]) -> pandas.DataFrame:
    """For each change, compared step and measure its mean, and how much that differs from the plain one's.

    With 95 % intervals over the same networks, `difference` by pairing each with itself; `lost` counts the networks
    whose loss is not finite there, `undirected` the input gradients that are zero or not finite, which are left out.
    """
    plain, rows = arrays[PLAIN], []
    for name, run in arrays.items():
        networks = run["pair"], run["model"]
        for step in steps:
            lost = int((~np.isfinite(run["loss"][:, step])).sum())
            counts = {"lost": lost, "undirected": int(run["undirected"][:, step].sum())}
            for measure in MEASURES:
                here, there = run[measure][:, step], plain[measure][:, step]
                value = trajectory.interval_over(measure, here, *networks)
                less = (
                    stats.pair_mean(here - there, *networks) if measure in PAIR_MEASURES else stats.mean(here - there)
                )
                intervals = tables.interval_columns({"value": value, "difference": less.interval()})
                rows.append({"change": name, "step": step, "measure": measure, **counts, **intervals})
    return pandas.DataFrame(rows)


def by_step(arrays: Mapping[str, Trajectory], curves: Mapping[str, Mapping[str, stats.Interval]]) -> pandas.DataFrame:
    """A row for each change and step, with every one of `trajectory.curves`."""
    frames = [tables.of_trajectory(arrays[name], curves[name]).assign(change=name) for name in arrays]
    return pandas.concat(frames, ignore_index=True)


def tell(results: Results) -> str:
    """The differences, a table for each of the two steps."""
    table, lines = results.tables[NAME], []
    for step, rows in table.groupby("step"):
        columns: dict[str, Any] = {"change": [CHANGES[name].caption for name in rows["change"].unique()]}
        for measure in MEASURES:
            of_measure, digits = rows[rows["measure"] == measure], 1 if "angle" in measure else 2
            columns[measure] = tables.cells(of_measure, "value", digits)
        lines += [f"step {step}: means [95 %]", tables.text(columns), ""]
    for name, rows in table.groupby("change", sort=False):
        if rows["undirected"].any():
            counted = f"{rows['lost'].max()} networks lost, {rows['undirected'].max()} input gradients left out at most"
            lines.append(f"{CHANGES[name].caption}: {counted}")
    return "\n".join([*lines, "angles in degrees; differences from the first row are in causes.csv"])


def draw(results: Results) -> dict[str, Figure]:
    """Each measure at the two steps; and as curves over the steps, a panel for each change."""
    return {"figure": draw_steps(results), "curves": draw_curves(results)}


def draw_steps(results: Results) -> Figure:
    """Each measure under each change, at the two steps that were named beforehand."""
    table = results.tables[NAME]
    names = list(table["change"].unique())
    figure = Figure(figsize=(15, 1.6 + 0.36 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    reference = {"angle": results.summary["random"]["mean_angle"], "signed_angle": 90, "agreement": 0.5}
    reference |= {"auc": 0.5, "accuracy": results.summary["chance"]}
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for i, (step, rows) in enumerate(table[table["measure"] == measure].groupby("step")):
            value, y = tables.interval(rows, "value"), np.arange(len(names)) + 0.16 * (2 * i - 1)
            style = {"marker": "os"[i], "linestyle": "none", "capsize": 3, "color": f"C{i}"}
            axes.errorbar(value.mean, y, xerr=figures.errors(value), label=f"step {step}", **style)
        if measure in reference:
            axes.axvline(reference[measure], color="0.3", linestyle="--", label="random or chance")
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
    lost = table.groupby(["change", "step"])["lost"].max().unstack()
    of_change = {name: " and ".join(map(str, counts)) for name, counts in lost[lost.any(axis=1)].iterrows()}
    notes = [f"\n({of_change[name]} networks lost)" if name in of_change else "" for name in names]
    panels[0].set_yticks(range(len(names)), [CHANGES[n].caption + note for n, note in zip(names, notes, strict=True)])
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=3)
    figure.suptitle(f"Adversarial directions under one change at a time (bars: 95 % intervals): {title(results)}")
    return figure


def draw_curves(results: Results) -> Figure:
    """The angles, the constant share and the AUC of each change over the steps."""
    changes = results.tables["curves"].groupby("change", sort=False)
    rows = -(-len(changes) // 3)
    figure = Figure(figsize=(13, 1 + 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, table) in zip(panels, changes, strict=False):
        for measure, colour in zip(CURVES, ("C3", "C0", "C1", "C4"), strict=True):
            interval = tables.interval(table, measure)
            scaled = interval if "angle" in measure else stats.Interval(*(90 * bound for bound in interval))
            figures.curve(axes, table["step"], scaled, colour, CURVES[measure])
        axes.axhline(90, color="0.3", linestyle="--", linewidth=0.8, label="90 degrees, a share of 1")
        axes.set(title=CHANGES[name].caption, ylim=(0, 135), xlabel="optimizer steps", ylabel="angle (degrees)")
        axes.secondary_yaxis("right", functions=(lambda y: y / 90, lambda y: 90 * y)).set_ylabel("share, AUC")
        axes.grid(alpha=0.25)
    for axes in panels[len(changes) :]:
        axes.axis("off")
    figures.band_entry(panels[0])
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=6)
    figure.suptitle(f"Angles and shares under one change at a time: {title(results)}", fontsize="medium")
    return figure


def title(results: Results) -> str:
    """The networks and the data in words."""
    config = results.config
    return (
        f"{figures.networks(config)}, {config['num_networks']} networks\n{figures.data(config['data'])}, "
        f"{config['num_examples']} test images; learning rate {config['learning_rate']:g}, "
        f"batch size {config['batch_size']}"
    )


def headline(results: Results) -> dict[str, stats.Interval]:
    """The folded angle in the second phase, and how far the first of the config's changes raises it: the one that
    raises it most would be chosen by the same data.
    """
    table = results.tables[NAME]
    angle = table[(table["measure"] == "angle") & (table["step"] == table["step"].max())].set_index("change")
    found = {"folded angle without a change (degrees)": tables.first(angle.loc[[PLAIN]], "value")}
    for change in [name for name in results.config["changes"] if name != PLAIN][:1]:
        rise = tables.first(angle.loc[[change]], "difference")
        found[f"its rise by {CHANGES[change].caption} (degrees)"] = rise
    return found


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, headline=headline)
