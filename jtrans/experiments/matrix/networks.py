"""The networks of a matrix: those that runs have saved, state dicts, and what Python functions return, by name."""

import functools
import importlib
import itertools
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from jtrans import files, loops, models
from jtrans.data import Dataset
from jtrans.errors import InputError, one_line
from jtrans.harness import fields, folder, setup
from jtrans.jacobian import Function
from jtrans.models import Variables

WITH_NETWORKS = "name a run with --config.save_networks, or a folder in networks/ or refitted/ of a knowledge run"
EARLIER = "made by an earlier version of jtrans; run it again in a new folder"
RUN, JTRANS, PYTHON = "run", "jtrans", "python"  # where a network comes from, besides a library
LIBRARIES = ("torchvision", "timm")
WEIGHTS = (".npz", ".pth", ".pt", ".bin")  # endings of files, which labels leave out


class Entry(NamedTuple):
    """An entry of the config field `networks`.

    Attributes:
      text: as given.
      origin: `RUN`, `JTRANS`, `PYTHON`, or one of `LIBRARIES`.
      name: of the architecture, or of the function; empty for a run.
      path: of the run's folder, or of the file with weights; for a function its module's name, in parts.
    """

    text: str
    origin: str
    name: str
    path: Path


class Network(NamedTuple):
    """A network: its name, what its name shares with networks that differ from it by their seeds, and what it is."""

    name: str
    kind: str
    function: Function
    num_classes: int


# Networks of one architecture: it, the options of `models.build` that they take, and their variables by name.
Saved = tuple[str, dict[str, Any], dict[str, Variables]]


def parse(text: str) -> Entry:
    """An entry of the config field `networks`; InputError if it names no known library or architecture, or no file."""
    before, _, file = text.partition("=")
    origin, colon, name = before.partition(":")
    if Path(text).is_dir() or not (file or colon):  # the folders of a sweep's settings have `=` in their names too
        return Entry(text, RUN, "", Path(text))
    if not colon:
        origin, name = JTRANS, before
        if name not in models.WIDTHS:
            raise InputError(f"networks: got {text!r}; no architecture {name}; {fields.nearest(name, models.WIDTHS)}")
    elif origin in LIBRARIES and not file:
        raise InputError(f"networks: got {text!r}; it takes a file of weights too, as {text}=weights.pth")
    elif origin not in LIBRARIES and file:
        raise InputError(f"networks: got {text!r}; no library {origin}; {fields.nearest(origin, LIBRARIES)}")
    elif origin not in LIBRARIES:
        return Entry(text, PYTHON, name, Path(*origin.split(".")))
    return Entry(text, origin, name, Path(file))


def labels(texts: Sequence[str]) -> dict[str, str]:
    """For each entry the shortest trailing parts of its path that no other ends in; InputError if two are the same."""
    entries: dict[tuple[str, str, Path], Entry] = {}
    for entry in map(parse, texts):
        path = entry.path / entry.name if entry.origin == PYTHON else entry.path.resolve()
        path = path.with_suffix("") if entry.origin != RUN and path.suffix in WEIGHTS else path
        first = entries.setdefault((entry.origin, entry.name, path), entry)
        if first is not entry:
            raise InputError(f"networks: got {first.text!r} and {entry.text!r}, which are the same; it takes each once")
    paths, of_entries = {path.parts for *_, path in entries}, {}
    for (*_, path), entry in entries.items():
        tails = (path.parts[-count:] for count in range(1, len(path.parts) + 1))
        unique = next((tail for tail in tails if sum(parts[-len(tail) :] == tail for parts in paths) == 1), path.parts)
        of_entries[entry.text] = Path(*unique).as_posix()
    return of_entries


def read_all(config: ConfigDict, dataset: Dataset) -> list[Network]:
    """The networks of all entries of the config, of different names.

    Raises InputError if an entry cannot be read, or its networks tell another number of classes apart than the first.
    """
    of_entries = (read(text, label, config, dataset) for text, label in labels(config.networks).items())
    first, *others = networks = list(itertools.chain.from_iterable(of_entries))
    for network in others:
        if [n.name for n in networks].count(network.name) > 1:
            raise InputError(f"networks: two are named {network.name}; copy or rename the file of one")
        if network.num_classes != first.num_classes:
            what = f"{network.name} tells {network.num_classes} classes apart, {first.name} {first.num_classes}"
            raise InputError(f"networks: {what}; it takes networks of the same classes")
    return networks


def read(text: str, label: str, config: ConfigDict, dataset: Dataset) -> list[Network]:
    """The networks of an entry, named by its label, their architecture and, in a run, their number.

    Raises InputError if it cannot be read, or its networks are for other classes or images than the data set's.
    """
    entry, shape = parse(text), setup.shape(dataset)
    try:
        if entry.origin == RUN:
            saved = from_run(entry.path, dataset)
        elif entry.origin == JTRANS:
            saved = [from_state_dict(entry, config, dataset)]
        else:
            return [from_code(entry, label, dataset)]
    except InputError as error:
        raise InputError(f"networks: {error}") from error
    networks = []
    for architecture, options, variables_of in saved:
        setup.check_kind(architecture, config.data.name, dataset, "networks")
        fields.check_model(architecture, config, "data", options["widths"])
        apply, expected = compiled(architecture, shape, **options)
        kind, num_classes = f"{label}/{architecture}", options["num_classes"]
        for name, variables in variables_of.items():
            if jax.tree.map(np.shape, variables) != expected:
                needed = f"{architecture} of widths {options['widths']} for images of shape {shape}"
                what = f"set widths.{architecture} and data.image_size as it was trained"
                raise InputError(f"networks: {text} holds arrays of other shapes than {needed}; {what}")
            networks.append(Network(f"{label}/{name}", kind, Partial(apply, variables), num_classes))
    return networks


@functools.cache
def compiled(architecture: str, shape: tuple[int, ...], num_classes: int, **options: Any) -> tuple[Callable, Any]:
    """A network as a program of its variables and images, and the variables' shapes.

    The same object for the same arguments, so that an attack is one program for networks of several runs.
    """
    model = models.build(architecture, shape, num_classes, **options)
    return jax.jit(model.apply), jax.tree.map(np.shape, jax.eval_shape(model.init, jax.random.key(0)))


def check_count(what: Path | str, num_classes: int, dataset: Dataset) -> None:
    """Check that a network tells as many classes apart as the images have, where those are named."""
    if dataset.class_names and num_classes != (count := len(dataset.class_names)):
        raise InputError(f"{what} tells {num_classes} classes apart; the images have {count} classes")


def from_run(path: Path, dataset: Dataset) -> list[Saved]:
    """All networks that a run has saved, numbered within each architecture; InputError if there are none to use."""
    if not (path / folder.CONFIG).is_file():
        raise InputError(f"{path} is no run's folder; name one, ARCHITECTURE=FILE.npz, or MODULE:FUNCTION")
    run = folder.read_config(path)
    try:
        subtract_mean, pixel_range = (run["data"][name] for name in ("subtract_mean", "pixel_range"))
        kinds = [
            (name, {"widths": tuple(run["widths"][name]), "pixel_range": tuple(pixel_range)}) for name in run["models"]
        ]
    except (LookupError, TypeError):
        kinds = []  # the config of another experiment
    if not (kinds and (path / folder.NETWORKS).is_dir()):
        raise InputError(f"{path} holds no saved networks; {WITH_NETWORKS}")
    if subtract_mean:
        raise InputError(f"{path} had its mean image subtracted, which is not among what it saved")
    num_classes = check_images(path, dataset)
    networks = folder.read_networks(path)
    if len(networks) != len(kinds):
        raise InputError(f"{path} holds networks of {len(networks)} architectures; its config has {len(kinds)}")
    numbers = {name: itertools.count() for name, _ in kinds}  # two kinds may have the same architecture
    return [
        (
            name,
            {**options, "num_classes": num_classes},
            {f"{name}-{next(numbers[name])}": network for network in loops.unstack(variables)},
        )
        for (name, options), variables in zip(kinds, networks, strict=True)
    ]


def check_images(path: Path, dataset: Dataset) -> int:
    """The number of classes of a run's networks, once checked that they were trained on images of the data set's shape.

    Where the data set names its classes, they must be the same, in the same order.
    """
    summary = folder.read_summary(path)
    for name in ("class_names", "input_shape", "lexicon_sha256"):
        if name not in summary:
            raise InputError(f"{path} has no {name} in its {folder.SUMMARY}: {EARLIER}")
    trained, attacked = summary["class_names"], dataset.class_names
    check_count(path, len(trained), dataset)
    for i, (of_run, of_images) in enumerate(zip(trained, attacked, strict=bool(attacked))):
        if of_run != of_images:
            what = f"its class {i} is {of_run!r}, where the images have {of_images!r}"
            raise InputError(f"{path}: {what}; name the classes that it was trained on, in order, in data.classes")
    shape = list(setup.shape(dataset))
    if summary["lexicon_sha256"] != setup.lexicon(dataset):
        raise InputError(f"{path} was trained with other words or embeddings; name the same texts and data.* fields")
    if summary["input_shape"] != shape:
        what = f"images of shape {summary['input_shape']}; these have shape {shape}"
        raise InputError(f"{path} was trained on {what}; attacked images take the same, by data.image_size")
    return len(trained)


def from_state_dict(entry: Entry, config: ConfigDict, dataset: Dataset) -> Saved:
    """The network of a state dict in the architecture of that name, whose widths and pixel range are the config's."""
    try:
        variables = models.from_pytorch(entry.name, files.read_numbers(entry.path))
    except ValueError as error:
        raise InputError(f"{entry.text} cannot be read ({one_line(error)})") from error
    num_classes = len(models.last_layer(variables)["bias"])
    check_count(entry.text, num_classes, dataset)
    options = {"widths": config.widths[entry.name], "pixel_range": config.data.pixel_range, "num_classes": num_classes}
    return entry.name, options, {entry.name: variables}


def from_code(entry: Entry, label: str, dataset: Dataset) -> Network:
    """The network that a function of a module or a library makes, after a forward and a backward pass of two images.

    Raises InputError if it fails, whatever that code raises.
    """
    x = jnp.full((2, *setup.shape(dataset)), 0.5)
    try:
        function = from_module(entry) if entry.origin == PYTHON else from_library(entry)
        outputs, pull_back = jax.vjp(function, x)
        pull_back(jnp.ones_like(outputs))
    except InputError as error:
        raise InputError(f"{entry.text}: {error}") from error
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise InputError(f"{entry.text} fails for images of shape {x.shape[1:]} ({what})") from error
    if outputs.ndim != 2 or len(outputs) != len(x):
        what = f"returns shape {outputs.shape} for images of shape {x.shape}"
        raise InputError(f"{entry.text} {what}; a network returns [N, K], K logits for each image")
    check_count(entry.text, outputs.shape[1], dataset)
    if entry.origin != PYTHON:
        return Network(f"{label}/{entry.name}", f"{label}/{entry.name}", function, outputs.shape[1])
    return Network(label, label, jax.jit(function), outputs.shape[1])  # compiled, since it may be JAX code


def from_module(entry: Entry) -> Function:
    """What a Python function without arguments returns; its module may lie in the current directory."""
    here, module = os.getcwd(), ".".join(entry.path.parts)
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        members = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if not error.name or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        known = [*LIBRARIES, *(found.name for found in pkgutil.iter_modules([here]))]
        raise InputError(f"no module {module}; {fields.nearest(module, known)}") from error
    if entry.name not in members:
        known = [name for name, member in members.items() if callable(member) and not name.startswith("_")]
        raise InputError(f"{module} has no function {entry.name}; {fields.nearest(entry.name, known)}")
    return members[entry.name]()


def from_library(entry: Entry) -> Function:
    """A network that PyTorch computes, with the weights of a state dict and the normalisation of its library."""
    try:
        # By their names, since PyTorch is no dependency.
        library, torch, bridge = map(importlib.import_module, (entry.origin, "torch", "jtrans.torch"))
    except ImportError as error:
        raise InputError(f"it takes {entry.origin} ({one_line(error)}); pip install {entry.origin}") from error
    is_timm = entry.origin == "timm"
    names = library.list_models() if is_timm else library.models.list_models(module=library.models)
    if entry.name.partition(".")[0] not in names:  # in timm a tag may follow, which says how it was trained
        raise InputError(f"{entry.origin} has no {entry.name}; {fields.nearest(entry.name, names)}")
    weights = read_weights(torch, entry.path)
    build = library.create_model if is_timm else library.models.get_model
    model = build(entry.name, num_classes=len(list(weights.values())[-1])).eval()  # the last is a bias
    model.load_state_dict(weights)
    if is_timm:
        return bridge.function(model)
    if hasattr(model, "transform_input"):
        model.transform_input = True  # as with torchvision's own weights
    normalisation = library.models.get_model_weights(entry.name).DEFAULT.transforms()
    return bridge.function(model, mean=normalisation.mean, std=normalisation.std)


def read_weights(torch: Any, file: Path) -> Mapping[str, Any]:
    """The tensors of a state dict by name; InputError if the file holds anything else."""
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        tensors = [isinstance(tensor, torch.Tensor) for tensor in weights.values()]
    except Exception as error:  # PyTorch may raise anything on a damaged file
        tensors, what = [], f" ({one_line(error)[:200]})"
    else:
        what = ""
    if not tensors or not all(tensors):
        raise InputError(f"{file} holds no state dict{what}; it takes what torch.save(model.state_dict(), FILE) writes")
    return weights
