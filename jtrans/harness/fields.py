"""Config fields: their defaults, which values they accept, and the groups that several experiments share."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jtrans import data, models, training
from jtrans.errors import InputError, listed, one_line

LARGEST_SQUARED = 64  # pixels along an image, where matrices of all its values by all of them are computed


class Field(NamedTuple):
    """A config field: its default, whether it accepts a value, and in words what it takes and what it means."""

    default: Any
    accepts: Callable[[Any], bool]
    takes: str
    means: str = ""


def is_number(value: Any) -> bool:
    """Whether the value is a finite int or float."""
    return type(value) in (int, float) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether the value is an int, which True and False are not."""
    return type(value) is int


def is_count(value: Any) -> bool:
    """Whether the value is a whole number, 1 or more."""
    return is_whole(value) and value > 0


def is_tuple(value: Any, each: Callable[[Any], bool], lengths: range = range(1, 10**6)) -> bool:
    """Whether the value is a tuple of one of these lengths, all of whose items pass."""
    return isinstance(value, tuple) and len(value) in lengths and all(map(each, value))


def whole(default: int, means: str = "", *, least: int = 1) -> Field:
    """A whole number, `least` or more."""
    return Field(default, lambda v: is_whole(v) and v >= least, f"a whole number, {least} or more", means)


def seed(means: str = "the seed of all that is random") -> Field:
    """The seed of an experiment's PRNG keys."""
    return Field(0, lambda v: is_whole(v) and 0 <= v < 2**32, "a whole number from 0 to 2**32 - 1", means)


def positive(default: float, means: str = "") -> Field:
    """A number above 0."""
    return Field(default, lambda v: is_number(v) and v > 0, "a number above 0", means)


def epsilon(default: float, means: str = "") -> Field:
    """The largest change of a pixel in [0, 1]; of a text the Euclidean length of the change of its embeddings, whose
    values have a standard deviation of 1. 0, where that is the default, means no attack.
    """
    takes = "a number, 0 or more" if default == 0 else "a number above 0"
    of = "the largest change of a pixel in [0, 1], of a text the Euclidean length of the change of its embeddings"
    means = f"{means}: {of}" if means else of
    return Field(default, lambda v: is_number(v) and v >= 0 and (v > 0 or default == 0), takes, means)


def yes_no(default: bool, means: str = "") -> Field:
    """True or False."""
    return Field(default, lambda v: isinstance(v, bool), "True or False", means)


def text(default: str, takes: str, means: str = "", *, empty: bool = True) -> Field:
    """A string, which may be empty unless `empty` is False."""
    return Field(default, lambda v: isinstance(v, str) and (empty or v != ""), takes, means)


def one_of(default: str, names: Iterable[str], means: str = "") -> Field:
    """One of the names."""
    names = tuple(names)
    return Field(default, lambda v: v in names, f"one of {', '.join(names)}", means)


def none_or_one_of(names: Iterable[str], means: str = "") -> Field:
    """'' for none, which is the default, or one of the names."""
    names = tuple(names)
    return Field("", ("", *names).__contains__, f"'' for none, or one of {', '.join(names)}", means)


def some_of(default: Sequence[str], names: Iterable[str], means: str = "") -> Field:
    """A tuple of some of the names, each once."""
    names = tuple(names)
    takes = f"a tuple of {', '.join(names)}, each once"
    return Field(tuple(default), lambda v: is_tuple(v, names.__contains__) and len(set(v)) == len(v), takes, means)


def increasing(default: Sequence[Any], each: Callable[[Any], bool], what: str, means: str = "") -> Field:
    """A tuple of increasing numbers, each of which passes; `what` says in words which those are."""
    takes = f"a tuple of {what}, each larger than the one before"
    return Field(tuple(default), lambda v: is_tuple(v, each) and sorted(set(v)) == list(v), takes, means)


def rates(default: Sequence[float], means: str = "learning rates") -> Field:
    """A tuple of increasing numbers above 0."""
    return increasing(default, lambda v: is_number(v) and v > 0, "numbers above 0", means)


def counts(default: Sequence[int], means: str = "") -> Field:
    """A tuple of increasing whole numbers, 1 or more."""
    return increasing(default, is_count, "whole numbers, 1 or more", means)


def widths(default: tuple[int, ...], means: str = "", *, number: Callable[[tuple[int, ...]], bool] = bool) -> Field:
    """Sizes of hidden layers; `number` says whether there may be that many."""
    takes = f"a tuple of whole numbers, 1 or more, as {default}"
    return Field(default, lambda v: is_tuple(v, is_count) and number(v), takes, means)


WIDTHS = {
    f"widths.{name}": widths(sizes, f"sizes of the hidden layers of {name}", number=partial(models.takes_widths, name))
    for name, sizes in models.WIDTHS.items()
}

DATA: Mapping[str, Field] = {
    "data.name": text(
        "digits",
        f"{', '.join(data.NAMES)} or the name of a TFDS image or text set",
        "the data set, with training and test examples",
        empty=False,
    ),
    "data.dir": text("", "a directory, of texts also a file, or '' for the default", "where the data set is"),
    "data.classes": Field(
        (),
        lambda v: is_tuple(v, lambda c: isinstance(c, str), range(10**6)),
        "a tuple of class names, or () for all",
        "the classes that are used",
    ),
    "data.image_size": whole(32, "pixels along an image, to which larger and smaller ones are scaled"),
    "data.pixel_range": Field(
        (0.0, 1.0),
        lambda v: is_tuple(v, is_number, range(2, 3)) and v[0] < v[1],
        "two numbers, the smaller first, as (0.0, 1.0)",
        "what the networks see of a black and of a white pixel",
    ),
    "data.shuffle_labels": yes_no(False, "permute the labels"),
    "data.subtract_mean": yes_no(False, "subtract the mean training image from every image"),
    "data.vocabulary": whole(data.EMBEDDING.vocabulary, "words of texts that have a vector of their own"),
    "data.max_length": whole(data.EMBEDDING.max_length, "words of a text, its first", least=2),
    "data.embedding_size": whole(data.EMBEDDING.size, "values in the vector of a word", least=2),
    "data.embeddings": text("", "a file (npz or as GloVe's), or '' for random ones", "the vectors of words"),
    "data.embedding_mean": Field(data.EMBEDDING.mean, is_number, "a number", "added to each value of the vectors"),
    "data.embedding_seed": seed("the seed of random vectors"),
    "data.num_train": whole(0, "training examples used, as many of each class; 0: all", least=0),
}

NETWORKS: Mapping[str, Field] = {
    "seed": seed(),
    "models": Field(
        ("mlp_deep",),
        lambda v: is_tuple(v, tuple(models.WIDTHS).__contains__, range(1, 3)),
        f"one or two of {', '.join(models.WIDTHS)}, as a tuple",
        "the architecture, of which every pair of networks is measured; of two, the pairs across",
    ),
    **WIDTHS,
    "initializer": one_of("pytorch", models.INITIALIZERS, "the law of the initial weights"),
    "num_networks": whole(16, "networks of each architecture"),
    "num_examples": whole(200, "test examples measured"),
    "group_size": whole(0, "networks on a device at once; 0: as many as fit", least=0),
    "batch_statistics": yes_no(False, "measure BatchNorm by the measured images' statistics, not by its running ones"),
    **DATA,
}

TRAINING: Mapping[str, Field] = {
    "batch_size": whole(128, "training examples in a batch"),
    "optimizer.name": one_of("adam", training.OPTIMIZERS, "the optimizer, with PyTorch's default settings"),
    "optimizer.learning_rate": positive(1e-3, "its learning rate"),
}

CHECKPOINT: Mapping[str, Field] = {
    "checkpoint.seconds": Field(
        300.0,
        lambda v: is_number(v) and v >= 0,
        "a number, 0 or more",
        "save a checkpoint after so many seconds; 0: no matter how many. Both 0: never, not at the end either",
    ),
    "checkpoint.steps": whole(0, "save a checkpoint after so many steps; 0: no matter how many", least=0),
}


def defaults(fields: Mapping[str, Field]) -> ConfigDict:
    """The config with every field at its default."""
    config: dict[str, Any] = {}
    for name, field in fields.items():
        *sections, last = name.split(".")
        reduce(lambda section, part: section.setdefault(part, {}), sections, config)[last] = field.default
    return ConfigDict(config)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config's values by dotted name."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, ConfigDict | dict) else {prefix + name: value}
    return values


def check(config: ConfigDict, fields: Mapping[str, Field]) -> None:
    """Check that the config has exactly these fields, and that each accepts its value.

    Raises InputError, which names the first field for which that is not so.
    """
    values = flat(config)
    for name in sorted(values.keys() - fields.keys()):
        raise unknown_field(name, fields)
    for name, field in fields.items():
        if name not in values:
            raise InputError(f"{name}: missing from the config; it takes {field.takes}")
        if not field.accepts(values[name]):
            raise InputError(f"{name}: got {values[name]!r}; it takes {field.takes}")


def unknown_field(name: str, fields: Iterable[str]) -> InputError:
    """The error for a field that the experiment does not have; it names the nearest that it has."""
    return InputError(f"{name}: unknown config field; {nearest(name, fields)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """In words the known name that a wrong one is nearest to, or all of them, of many the first."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"it takes {listed(known, 100)}"


def check_networks(config: ConfigDict) -> None:
    """Check that the networks of a config with the fields `NETWORKS` can be built and paired; else InputError."""
    if len(config.models) == 1 and config.num_networks < 2:
        raise InputError("num_networks: got 1; pairs of one architecture take 2 networks or more")
    for name in config.models:
        check_model(name, config, "data")


def check_one_model(config: ConfigDict) -> None:
    """Check that the config names a single architecture; else InputError."""
    if len(config.models) > 1:
        raise InputError(f"models: got {config.models}; this experiment takes one, as {config.models[:1]}")


def check_running_statistics(config: ConfigDict) -> None:
    """Check that BatchNorm is measured by its running statistics; else InputError."""
    if config.batch_statistics:
        raise InputError("batch_statistics: got True; this experiment measures by running statistics, so False")


def check_images(config: ConfigDict) -> None:
    """Check that the networks are of images; else InputError."""
    if texts := set(config.models) & set(models.TEXT):
        raise InputError(f"models: got {texts.pop()}, a network of texts; this experiment takes networks of images")


def check_epsilon(epsilon: float, of_images: bool) -> None:
    """Check that pixels can change by that much; else InputError."""
    if of_images and epsilon > 1:
        raise InputError(f"attack.epsilon: got {epsilon}; of images it takes 1 at most, the range of a pixel")


def check_values_squared(config: ConfigDict, what: str) -> None:
    """Check that matrices of all values of an input by all of them, which `what` says, fit in memory."""
    if set(config.models) <= set(models.TEXT):
        length, size, most = config.data.max_length, config.data.embedding_size, 3 * LARGEST_SQUARED**2
        if length * size > most:
            of_size = f"{what} with the square of max_length times embedding_size, which are {most} at most together"
            raise InputError(f"data.max_length: got {length}, with data.embedding_size {size}; {of_size}")
        return
    if (size := config.data.image_size) > LARGEST_SQUARED:
        raise InputError(f"data.image_size: got {size}; {what} with its 4th power: {LARGEST_SQUARED} at most")


def check_model(name: str, config: ConfigDict, section: str, widths: tuple[int, ...] | None = None) -> None:
    """Check that the architecture, of the config's widths or these, takes a section's inputs; else InputError."""
    if name not in models.TEXT:
        check_size(name, widths or config.widths[name], config[section].image_size, f"{section}.image_size")
    for field in ("pixel_range", "subtract_mean"):
        if name in models.TEXT and config[section][field] != (default := DATA[f"data.{field}"].default):
            raise InputError(f"{section}.{field}: got {config[section][field]}; texts have no pixels, so {default}")


def check_size(name: str, widths: tuple[int, ...], size: int, field: str) -> None:
    """Check that the architecture takes images of that size; else InputError, which names the field."""
    try:
        jax.eval_shape(models.build(name, (size, size, 3), 2, widths=widths).init, jax.random.key(0))
    except ValueError as error:
        raise InputError(f"{field}: got {size}, too small for {name} ({one_line(error)})") from error
