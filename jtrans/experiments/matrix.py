"""The success of every attack from each network on each, for networks saved by jtrans or taken from PyTorch."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas
from jax.tree_util import Partial
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from ml_collections import ConfigDict

from jtrans import attacks, files, loops, metrics, models, stats, training
from jtrans.data import Dataset
from jtrans.errors import InputError, one_line
from jtrans.harness import fields, figures, folder, setup, tables
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, is_tuple, seed, whole
from jtrans.jacobian import Function
from jtrans.metrics import SuccessMatrix
from jtrans.models import Variables
from jtrans.population import engine
from jtrans.stats import Interval

NAME = "matrix"
RATES = ("all_images", "target_right", "both_right")  # the columns of `attacks.DENOMINATORS`
MOST_NUMBERED = 24  # networks of a matrix whose cells have numbers
MOST_NAMED = 8  # networks with their names along the axes of a larger one
WITH_NETWORKS = "name a run with --config.save_networks, or a folder in networks/ or refitted/ of a knowledge run"
EARLIER = "made by an earlier version of jtrans; run it again in a new folder"

FIELDS: Mapping[str, Field] = {
    "seed": seed(),
    "networks": Field(
        (),
        lambda v: is_tuple(v, lambda entry: isinstance(entry, str)),
        "a tuple of run folders with saved networks, and of ARCHITECTURE=FILE.npz for PyTorch state dicts",
    ),
    **fields.WIDTHS,
    **fields.DATA,
    "num_examples": whole(200),  # test images attacked
    "attacks": fields.some_of(("fgsm", "pgd", "mi_fgsm", "virtual"), attacks.BY_NAME),
    "attack.epsilon": fields.epsilon(8 / 255),
    "attack.steps": whole(10),
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    if config.data.subtract_mean:
        raise InputError("data.subtract_mean: got True; saved networks hold no mean image to subtract, so False")
    for entry in config.networks:
        if parse(entry)[0] not in (None, *models.WIDTHS):
            raise InputError(f"networks: got {entry!r}; the architectures are {', '.join(models.WIDTHS)}")
    labels(config.networks)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Read the networks, and make every attack on each of them."""
    keys = engine.keys(config.seed)
    dataset, test = setup.load(config, keys.data)
    networks: dict[str, Function] = {}
    for entry, label in labels(config.networks).items():
        networks |= read(entry, label, config, dataset)
    functions, x = list(networks.values()), np.asarray(training.pixels(test.images))
    matrices = {}
    for name in config.attacks:
        attack = jax.jit(attacks.BY_NAME[name](config.attack.epsilon, config.attack.steps, x[0].size))
        matrices[name] = metrics.success_matrix(functions, functions, x, test.labels, attack, key=keys.attack)
        print(f"{name}: {len(functions)} networks attacked", flush=True)
    summary = {"networks": list(networks), **setup.identity(dataset)}
    return Results(config, summary, {"matrix": table(matrices, list(networks))}, {})


def parse(entry: str) -> tuple[str | None, Path]:
    """An entry of `networks`: the architecture and file of a PyTorch state dict, or None and the folder of a run."""
    name, _, file = entry.partition("=")
    # The folders of a sweep's settings have `=` in their names too.
    return (name, Path(file)) if file and not Path(entry).is_dir() else (None, Path(entry))


def labels(entries: Sequence[str]) -> dict[str, str]:
    """For each entry the shortest trailing parts of its path that no other ends in; InputError if two are the same."""
    entry_of: dict[tuple[str | None, Path], str] = {}
    for entry in entries:
        architecture, path = parse(entry)
        path = path.resolve()
        key = (architecture, path.with_suffix("") if architecture and path.suffix == ".npz" else path)
        if key in entry_of:
            raise InputError(f"networks: got {entry_of[key]!r} and {entry!r}, which are the same; it takes each once")
        entry_of[key] = entry
    paths, of_entries = {path.parts for _, path in entry_of}, {}
    for (_, path), entry in entry_of.items():
        tails = (path.parts[-count:] for count in range(1, len(path.parts) + 1))
        unique = next(tail for tail in tails if sum(parts[-len(tail) :] == tail for parts in paths) == 1)
        of_entries[entry] = Path(*unique).as_posix()
    return of_entries


# Networks of one architecture: it, the options of `models.build` that they take, and their variables by name.
Saved = tuple[str, dict[str, Any], dict[str, Variables]]


def read(entry: str, label: str, config: ConfigDict, dataset: Dataset) -> Iterator[tuple[str, Function]]:
    """The networks of an entry of the config, named by its label, their architecture and, in a run, their number;
    InputError if it cannot be read, or its networks are for other classes or images than the data set's.
    """
    architecture, path = parse(entry)
    shape, num_classes = dataset.train.images.shape[1:], len(dataset.class_names)
    try:
        saved = [from_pytorch(architecture, path, config, num_classes)] if architecture else from_run(path, dataset)
    except InputError as error:
        raise InputError(f"networks: {error}") from error
    for architecture, options, networks in saved:
        fields.check_size(architecture, options["widths"], shape[0], "data.image_size")
        model = models.build(architecture, shape, num_classes, **options)
        apply, expected = jax.jit(model.apply), jax.eval_shape(model.init, jax.random.key(0))
        for name, variables in networks.items():
            if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, expected):
                needed = f"{architecture} of widths {tuple(options['widths'])} for images of shape {shape}"
                what = f"set widths.{architecture} and data.image_size as it was trained"
                raise InputError(f"networks: {entry} holds arrays of other shapes than {needed}; {what}")
            yield f"{label}/{name}", Partial(apply, variables)


def from_run(path: Path, dataset: Dataset) -> list[Saved]:
    """All networks that a run has saved, numbered within each architecture; InputError if there are none to use."""
    if not (path / folder.CONFIG).is_file():
        raise InputError(f"{path} is no run's folder; name one, or ARCHITECTURE=FILE.npz")
    run = folder.read_config(path)
    try:
        subtract_mean, pixel_range = (run["data"][name] for name in ("subtract_mean", "pixel_range"))
        kinds = [(name, {"widths": run["widths"][name], "pixel_range": pixel_range}) for name in run["models"]]
    except (LookupError, TypeError):
        kinds = []  # the config of another experiment
    if not (kinds and (path / folder.NETWORKS).is_dir()):
        raise InputError(f"{path} holds no saved networks; {WITH_NETWORKS}")
    if subtract_mean:
        raise InputError(f"{path} had its mean image subtracted, which is not among what it saved")
    check_images(path, dataset)
    networks = folder.read_networks(path)
    if len(networks) != len(kinds):
        raise InputError(f"{path} holds networks of {len(networks)} architectures; its config has {len(kinds)}")
    numbers = {name: itertools.count() for name, _ in kinds}  # two kinds may have the same architecture
    return [
        (name, options, {f"{name}-{next(numbers[name])}": network for network in loops.unstack(variables)})
        for (name, options), variables in zip(kinds, networks, strict=True)
    ]


def check_images(path: Path, dataset: Dataset) -> None:
    """Check that a run's networks were trained on images of that shape, of the same classes in the same order."""
    summary = folder.read_summary(path)
    for name in ("class_names", "image_shape"):
        if name not in summary:
            raise InputError(f"{path} has no {name} in its {folder.SUMMARY}: {EARLIER}")
    trained, attacked = summary["class_names"], dataset.class_names
    if len(trained) != len(attacked):
        raise InputError(f"{path} tells {len(trained)} classes apart; the images have {len(attacked)} classes")
    for i, (of_run, of_images) in enumerate(zip(trained, attacked, strict=True)):
        if of_run != of_images:
            what = f"its class {i} is {of_run!r}, where the images have {of_images!r}"
            raise InputError(f"{path}: {what}; name the classes that it was trained on, in order, in data.classes")
    shape = list(dataset.train.images.shape[1:])
    if summary["image_shape"] != shape:
        what = f"images of shape {summary['image_shape']}; these have shape {shape}"
        raise InputError(f"{path} was trained on {what}; attacked images take the same, by data.image_size")


def from_pytorch(architecture: str, file: Path, config: ConfigDict, num_classes: int) -> Saved:
    """The network of a state dict, whose widths and pixel range are the config's."""
    try:
        variables = models.from_pytorch(architecture, files.read_numbers(file))
    except ValueError as error:
        raise InputError(f"{architecture}={file} cannot be read ({one_line(error)})") from error
    if (outputs := len(models.last_layer(variables)["bias"])) != num_classes:
        what = f"tells {outputs} classes apart; the images have {num_classes} classes"
        raise InputError(f"{architecture}={file} {what}")
    options = {"widths": config.widths[architecture], "pixel_range": config.data.pixel_range}
    return architecture, options, {architecture: variables}


def table(matrices: Mapping[str, SuccessMatrix], names: Sequence[str]) -> pandas.DataFrame:
    """Success matrices by attack, of one network of each name or, stacked, of one for each seed, as a table.

    A row for each `attack`, `source` and `target`; `unmoved`, how many images the attack on the source left as they
    are; for each of `RATES` the share of images that the target gets wrong under attack, with its 95 % interval, over
    images (Wilson's) or over seeds, and as `RATE_count` the number of images (their mean over seeds).
    """
    parts = []
    for attack, (rates, counts, unmoved) in matrices.items():
        if rates.ndim > 3:
            interval, counts = stats.share_ci(rates), counts.mean(0)
        else:
            interval = stats.wilson(np.rint(rates * counts), counts)
        columns = {
            "attack": attack,
            "source": np.repeat(names, len(names)),
            "target": np.tile(names, len(names)),
            "unmoved": np.repeat(unmoved.reshape(-1, len(names)).mean(0), len(names)),
        }
        for k, name in enumerate(RATES):
            columns |= tables.interval_columns({name: Interval(*(bound[..., k].ravel() for bound in interval))})
            columns[f"{name}_count"] = counts[..., k].ravel()
        parts.append(pandas.DataFrame(columns))
    return pandas.concat(parts, ignore_index=True)


def tell(results: Results) -> str:
    """A matrix for each attack, in percent of the images that the target gets right; and where the attack failed."""
    table = results.tables["matrix"]
    names = list(dict.fromkeys(table["source"]))
    width, lines = max(map(len, names)), []
    for attack, rows in table.groupby("attack", sort=False):
        lines.append(f"{attack}: errors in % of the images that the target gets right; a row for each source")
        shares = 100 * rows["target_right"].to_numpy().reshape(len(names), -1)
        lines += [f"{n:{width}} " + " ".join(f"{s:5.1f}" for s in row) for n, row in zip(names, shares, strict=True)]
        unmoved = dict(zip(rows["source"], rows["unmoved"], strict=True))
        lines += [f"{n}: the attack leaves {count:g} images as they are" for n, count in unmoved.items() if count]
    return "\n".join(lines)


def draw(results: Results) -> dict[str, Figure]:
    """The success of every attack from each network on each."""
    of_config = results.config["attack"]["epsilon"], results.config["data"]
    return {"figure": heat_maps(results.tables["matrix"], *of_config)}


def heat_maps(
    table: pandas.DataFrame, epsilon: float, data: Mapping[str, Any], *, over: str = "images", note: str = ""
) -> Figure:
    """A heat map for each attack, of the success from each network on each, as `table` has it.

    Each cell has its number and each network its name; more than `MOST_NUMBERED` networks are a heat map without
    numbers, of one size, with a name every so many networks. `data` is the section of the config that the images are
    from, `over` what the intervals are over, empty where there are none, and `note` a further part of the title.
    """
    attacked, names = (list(dict.fromkeys(table[column])) for column in ("attack", "source"))
    numbered = len(names) <= MOST_NUMBERED
    side = 0.55 * (len(names) if numbered else MOST_NAMED)  # inches
    figure = Figure(figsize=(2.2 + len(attacked) * (1 + side), 3.2 + side), layout="compressed")
    panels = figure.subplots(1, len(attacked), squeeze=False, sharey=True)[0]
    for axes, attack in zip(panels, attacked, strict=True):
        image = _heat_map(axes, tables.interval(table[table["attack"] == attack], "target_right"), names, numbered)
        axes.set(title=attack, xlabel="attacked network (target)")
    panels[0].set_ylabel("network that the attack is made on (source)")
    figure.colorbar(image, ax=panels, label="errors (% of the images\nthat the target gets right)")
    virtual = "; virtual: of the same length in L2" if "virtual" in attacked else ""
    signs = f"; ±: 95 % interval over {over}" * bool(over) if numbered else "; white: the target gets no image right"
    title = f"Attacks of epsilon {epsilon:.3g} (pixels in [0, 1]{virtual}){note}\n{figures.data(data)}"
    figure.suptitle(f"{title}, {table['all_images_count'][0]:.0f} test images{signs}", fontsize="medium")
    return figure


def _heat_map(axes: Axes, interval: Interval, names: Sequence[str], numbered: bool) -> AxesImage:
    """The shares of one attack in percent, a row for each source."""
    count = len(names)
    rate, low, high = (100 * bound.reshape(count, count) for bound in interval)
    image = axes.imshow(rate, vmin=0, vmax=100, cmap="viridis")
    reach = (high - low) / 2
    for (row, column), share in np.ndenumerate(rate) if numbered else ():
        sign = f"\n±{reach[row, column]:.0f}" if np.isfinite(reach[row, column]) else ""
        text = "-" if np.isnan(share) else f"{share:.0f}{sign}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="w" if share <= 55 else "k")
    ticks = range(0, count, 1 if numbered else -(-count // MOST_NAMED))
    axes.set_xticks(ticks, names[:: ticks.step], rotation=60, ha="right", fontsize="small")
    axes.set_yticks(ticks, names[:: ticks.step], fontsize="small")
    return image


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check)
