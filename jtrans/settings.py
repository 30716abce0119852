"""What an experiment's config may hold, checked before anything runs."""

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jtrans import attacks, data, models, training
from jtrans.errors import InputError, one_line


class Field(NamedTuple):
    """A config field: its default, a test of its value, and in words what passes the test."""

    default: Any
    accepts: Callable[[Any], bool]
    takes: str


def is_number(value: Any) -> bool:
    """A finite int or float."""
    return type(value) in (int, float) and math.isfinite(value)


def is_tuple(value: Any, each: Callable[[Any], bool], lengths: range = range(1, 10**6)) -> bool:
    """A tuple of such a length whose values all pass."""
    return isinstance(value, tuple) and len(value) in lengths and all(map(each, value))


def whole(default: int, least: int = 1) -> Field:
    """A whole number, `least` or more."""
    return Field(default, lambda v: type(v) is int and v >= least, f"a whole number, {least} or more")


def seed() -> Field:
    """What a run's PRNG keys are made from."""
    return Field(0, lambda v: type(v) is int and 0 <= v < 2**32, "a whole number from 0 to 2**32 - 1")


def one_of(default: str, names: Iterable[str]) -> Field:
    """One of the names."""
    names = tuple(names)
    return Field(default, lambda v: v in names, f"one of {', '.join(names)}")


def yes_no(default: bool) -> Field:
    """True or False."""
    return Field(default, lambda v: isinstance(v, bool), "True or False")


def widths(default: tuple[int, ...], number: Callable[[tuple[int, ...]], bool] = bool) -> Field:
    """Sizes of hidden layers, of which there may be such a number."""
    return Field(
        default,
        lambda v: is_tuple(v, lambda w: type(w) is int and w > 0) and number(v),
        f"a tuple of whole numbers, 1 or more, as {default}",
    )


FULLY_CONNECTED = ("mlp_shallow", "mlp_deep", "fcnet")

DATA: Mapping[str, Field] = {
    "data.name": Field(
        "digits", lambda v: isinstance(v, str) and v != "", f"{', '.join(data.SOURCES)} or the name of a TFDS image set"
    ),
    "data.dir": Field("", lambda v: isinstance(v, str), "a directory, or '' for the default"),
    "data.classes": Field(
        (), lambda v: is_tuple(v, lambda c: isinstance(c, str), range(10**6)), "a tuple of class names, or () for all"
    ),
    "data.image_size": whole(32),
    # What the networks see of a black and of a white pixel.
    "data.pixel_range": Field(
        (0.0, 1.0),
        lambda v: is_tuple(v, is_number, range(2, 3)) and v[0] < v[1],
        "two numbers, the smaller first, as (0.0, 1.0)",
    ),
    "data.shuffle_labels": yes_no(False),
    "data.subtract_mean": yes_no(False),  # the mean training image, from every image
    "data.num_train": whole(0, least=0),  # training images taken, class-balanced; 0: all
}


NETWORKS: Mapping[str, Field] = {
    "seed": seed(),
    # One architecture: every pair of its networks is measured. Two: the pairs across.
    "models": Field(
        ("mlp_deep",),
        lambda v: is_tuple(v, lambda name: name in models.WIDTHS, range(1, 3)),
        f"one or two of {', '.join(models.WIDTHS)}, as a tuple",
    ),
    **{f"widths.{name}": widths(v, partial(models.takes_widths, name)) for name, v in models.WIDTHS.items()},
    "initializer": one_of("pytorch", models.INITIALIZERS),
    "num_networks": whole(16),  # of each architecture
    "num_examples": whole(200),  # test images measured
    "group_size": whole(0, least=0),  # networks that a device takes on at a time; 0: as many as fit
    "batch_statistics": yes_no(False),  # measure BatchNorm by the measured images' statistics, not its running ones
    **DATA,
}


TRAINING: Mapping[str, Field] = {
    "batch_size": whole(128),
    "optimizer.name": one_of("adam", training.OPTIMIZERS),
    "optimizer.learning_rate": Field(1e-3, lambda v: is_number(v) and v > 0, "a number above 0"),
}


EARLY: Mapping[str, Field] = {
    **NETWORKS,
    **TRAINING,
    "num_steps": whole(50),
    "measure_every": whole(1),
    # FGSM from one network on the next, the largest change of a pixel in [0, 1]; 0: no attack.
    "attack.epsilon": Field(0.0, lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "keep_examples": yes_no(False),  # the angle of each image, in trajectory.npz
    "save_networks": yes_no(False),  # the trained networks, as an Orbax checkpoint
    # A checkpoint after so many seconds, so many steps, and at the end; 0 and 0: none.
    "checkpoint.seconds": Field(300.0, lambda v: is_number(v) and v >= 0, "a number, 0 or more"),
    "checkpoint.steps": whole(0, least=0),
    "tensorboard": yes_no(False),  # the means as TensorBoard events too
}


PENALTY: Mapping[str, Field] = {
    **NETWORKS,  # so many networks for each coefficient, each with a surrogate of its own
    **TRAINING,
    "surrogate": one_of("mlp_shallow", models.WIDTHS),
    "coefficients": Field(
        (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0),
        lambda v: is_tuple(v, lambda c: is_number(c) and c >= 0) and sorted(set(v)) == list(v),
        "a tuple of numbers, 0 or more, each larger than the one before",
    ),
    "num_steps": whole(200),
    "attack.epsilon": Field(8 / 255, lambda v: is_number(v) and 0 < v <= 1, "a number above 0, 1 at most"),
}


CONTROL: Mapping[str, Field] = {
    **NETWORKS,  # so many networks for each setting
    "num_steps": whole(20),
    "optimizers": Field(
        tuple(training.OPTIMIZERS),
        lambda v: is_tuple(v, lambda name: name in training.OPTIMIZERS) and len(set(v)) == len(v),
        f"a tuple of {', '.join(training.OPTIMIZERS)}, each once",
    ),
    "learning_rates": Field(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        lambda v: is_tuple(v, lambda r: is_number(r) and r > 0) and sorted(set(v)) == list(v),
        "a tuple of numbers above 0, each larger than the one before",
    ),
    "batch_sizes": Field(
        (128,),
        lambda v: is_tuple(v, lambda b: type(b) is int and b > 0) and sorted(set(v)) == list(v),
        "a tuple of whole numbers, 1 or more, each larger than the one before",
    ),
}


DECOMPOSE_SIZE = 64
DECOMPOSE: Mapping[str, Field] = {
    **NETWORKS,  # so many networks are measured
    **TRAINING,
    "num_fit": whole(8),  # further networks, from which subspaces are fitted
    "fit_examples": whole(100),  # training images at which their directions are taken
    "steps": Field(
        (0, 1, 2, 3, 5, 10, 20, 50),
        lambda v: is_tuple(v, lambda s: type(s) is int, range(2, 10**6)) and sorted(set(v)) == list(v) and v[0] == 0,
        "a tuple of whole numbers, 0 first and each larger than the one before, as (0, 1, 5)",
    ),
    "ranks": Field(
        (1, 2, 5, 10, 20, 50, 100),
        lambda v: is_tuple(v, lambda r: type(r) is int and r > 0) and sorted(set(v)) == list(v),
        "a tuple of whole numbers, 1 or more, each larger than the one before",
    ),
    # The Euclidean length of an attack, in units of pixels in [0, 1].
    "attack.epsilon": Field(2.0, lambda v: is_number(v) and v > 0, "a number above 0"),
}


REPRODUCE: Mapping[str, Field] = {
    "data_dir": Field(
        "", lambda v: isinstance(v, str), "the TFDS data directory that holds cifar10, or '' for the default"
    ),
    "images_dir": Field("", lambda v: isinstance(v, str), "a folder of photographs in two classes, or '' for none"),
    "docs": Field("docs", lambda v: isinstance(v, str) and v != "", "the directory of the page"),
}


MATRIX: Mapping[str, Field] = {
    "seed": seed(),
    "networks": Field(
        (),
        lambda v: is_tuple(v, lambda entry: isinstance(entry, str)),
        "a tuple of run folders with saved networks, and of ARCHITECTURE=FILE.npz for PyTorch state dicts",
    ),
    **{f"widths.{name}": widths(v, partial(models.takes_widths, name)) for name, v in models.WIDTHS.items()},
    **DATA,
    "num_examples": whole(200),  # test images attacked
    "attacks": Field(
        ("fgsm", "pgd", "mi_fgsm", "virtual"),
        lambda v: is_tuple(v, lambda name: name in attacks.BY_NAME) and len(set(v)) == len(v),
        f"a tuple of {', '.join(attacks.BY_NAME)}, each once",
    ),
    "attack.epsilon": Field(8 / 255, lambda v: is_number(v) and 0 < v <= 1, "a number above 0, 1 at most"),
    "attack.steps": whole(10),
}


def _domain(name: str) -> dict[str, Field]:
    """The fields of a data set under another section's name."""
    return {field.replace("data", name, 1): value for field, value in DATA.items()}


KNOWLEDGE: Mapping[str, Field] = {
    "seed": seed(),
    # A source for each architecture and each mixture of classes; a mixture of none is all classes of the source domain.
    "models": Field(
        ("lenet", "alexnet", "resnet18"),
        lambda v: is_tuple(v, lambda name: name in models.WIDTHS) and len(set(v)) == len(v),
        f"a tuple of {', '.join(models.WIDTHS)}, each once",
    ),
    "mixtures": Field(
        ((),),
        lambda v: (
            is_tuple(v, lambda m: is_tuple(m, lambda c: isinstance(c, str), range(10**6))) and len(set(v)) == len(v)
        ),
        "a tuple of tuples of class names, each once, as ((),) or (('cat', 'dog'), ('cat', 'ship'))",
    ),
    "reference": one_of("resnet18", models.WIDTHS),
    **{f"widths.{name}": widths(v, partial(models.takes_widths, name)) for name, v in models.WIDTHS.items()},
    "initializer": one_of("pytorch", models.INITIALIZERS),
    "num_networks": whole(5),  # seeds of each source, and of the reference
    **_domain("source"),
    **_domain("target"),
    "num_epochs": whole(100),
    "reference_epochs": whole(100),
    "refit_epochs": whole(10),  # of a new last layer by SGD
    "batch_size": whole(64),
    "learning_rate": Field(0.1, lambda v: is_number(v) and v > 0, "a number above 0"),
    "augment": yes_no(True),  # crops and flips
    "num_examples": whole(1000),  # test images attacked, at most
    "attack.epsilon": Field(0.1, lambda v: is_number(v) and 0 < v <= 1, "a number above 0, 1 at most"),
    "attack.steps": whole(50),
    "group_size": whole(0, least=0),
    "checkpoint.seconds": Field(300.0, lambda v: is_number(v) and v >= 0, "a number, 0 or more"),
    "checkpoint.steps": whole(0, least=0),
}


SYNTHETIC: Mapping[str, Field] = {
    "problem": Field("", lambda v: isinstance(v, str), "an npz file, or '' to generate problems"),
    "seed": seed(),
    "num_seeds": whole(10),
    "scales": Field(
        tuple(i / 10 for i in range(10)),
        lambda v: is_tuple(v, lambda s: is_number(s) and s >= 0),
        "a tuple of numbers, 0 or more",
    ),
    "widths": widths((50, 100, 200)),  # of the sources; a given problem brings its own
    "levels": Field(
        (0,),
        lambda v: is_tuple(v, lambda n: type(n) is int and n >= 0),
        "a tuple of whole numbers, 0 or more, as (0, 1)",
    ),
    "target_width": whole(100),
    "num_points": whole(5000),
    "input_size": whole(50),
    "output_size": whole(10),
    "num_clusters": whole(10),
    "fit.num_steps": whole(4000),
    "fit.batch_size": whole(250),
    "fit.learning_rate": Field(1e-2, lambda v: is_number(v) and v > 0, "a number above 0"),
}


RANDOM_ANGLES: Mapping[str, Field] = {
    "seed": seed(),
    "num_seeds": whole(10),
    "dimensions": Field(
        (3, 10, 100, 784, 3072, 150_528),
        lambda v: is_tuple(v, lambda d: type(d) is int and d >= 2),
        "a tuple of whole numbers, 2 or more",
    ),
    "num_pairs": whole(200),  # of each dimension and seed
    "dimension": whole(3072, least=2),  # where small angles are looked for
    "num_rare_pairs": whole(20_000),  # of each seed, there
    "factors": Field(
        (1, 2, 3, 4, 5, 6, 8, 10),
        lambda v: is_tuple(v, lambda k: is_number(k) and k > 0),
        "a tuple of numbers above 0: the angle arccos(factor / sqrt(dimension))",
    ),
}


UPDATES: Mapping[str, Field] = {
    "seed": seed(),
    "models": Field(
        ("mlp_shallow", "mlp_deep"),
        lambda v: is_tuple(v, lambda name: name in FULLY_CONNECTED, range(1, 3)) and len(set(v)) == len(v),
        f"one or two of {', '.join(FULLY_CONNECTED)}, as a tuple",
    ),
    **{f"widths.{name}": widths(models.WIDTHS[name]) for name in FULLY_CONNECTED},
    "initializer": one_of("pytorch", models.INITIALIZERS),
    "num_networks": whole(16, least=2),  # of each architecture
    "num_examples": whole(100),  # test images at which adversarial directions are taken
    "batch_size": whole(128),
    "learning_rate": Field(1e5, lambda v: is_number(v) and v > 0, "a number above 0"),  # of the large step
    **DATA,
}


def defaults(table: Mapping[str, Field]) -> ConfigDict:
    """The config with every field of the table at its default."""
    config = ConfigDict()
    for name, field in table.items():
        *sections, last = name.split(".")
        inner = config
        for section in sections:
            if section not in inner:
                inner[section] = ConfigDict()
            inner = inner[section]
        inner[last] = field.default
    return config


def early() -> ConfigDict:
    """The defaults of `experiments/early.py`."""
    return defaults(EARLY)


def control() -> ConfigDict:
    """The defaults of `experiments/control.py`."""
    return defaults(CONTROL)


def decompose() -> ConfigDict:
    """The defaults of `experiments/decompose.py`."""
    return defaults(DECOMPOSE)


def reproduce() -> ConfigDict:
    """The defaults of `experiments/reproduce.py`."""
    return defaults(REPRODUCE)


def knowledge() -> ConfigDict:
    """The defaults of `experiments/knowledge.py`."""
    return defaults(KNOWLEDGE)


def matrix() -> ConfigDict:
    """The defaults of `experiments/matrix.py`."""
    return defaults(MATRIX)


def penalty() -> ConfigDict:
    """The defaults of `experiments/penalty.py`."""
    return defaults(PENALTY)


def synthetic() -> ConfigDict:
    """The defaults of `experiments/synthetic.py`."""
    return defaults(SYNTHETIC)


def random_angles() -> ConfigDict:
    """The defaults of `experiments/random_angles.py`."""
    return defaults(RANDOM_ANGLES)


def updates() -> ConfigDict:
    """The defaults of `experiments/updates.py`."""
    return defaults(UPDATES)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config's fields by dotted name."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def check(config: ConfigDict, table: Mapping[str, Field]) -> None:
    """Nothing, if the config has exactly the fields of the table and each passes its test.

    Raises:
      InputError: names the first field that does not.
    """
    fields = flat(config)
    for name in sorted(fields.keys() - table.keys()):
        raise unknown_field(name, table)
    for name, field in table.items():
        if name not in fields:
            raise InputError(f"{name}: missing from the config; it takes {field.takes}")
        if not field.accepts(fields[name]):
            raise InputError(f"{name}: got {fields[name]!r}; it takes {field.takes}")


def check_early(config: ConfigDict) -> None:
    """Nothing, if `experiments/early.py` can run the config.

    Raises:
      InputError: names the first field that is wrong.
    """
    check(config, EARLY)
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise InputError("tensorboard: got True; it takes pip install jtrans[tensorboard]")
    check_networks(config)


def check_control(config: ConfigDict) -> None:
    """Nothing, if `experiments/control.py` can run the config.

    Raises:
      InputError: names the first field that is wrong.
    """
    check(config, CONTROL)
    check_one_model(config)
    check_networks(config)


def check_decompose(config: ConfigDict) -> None:
    """Nothing, if `experiments/decompose.py` can run the config.

    Raises:
      InputError: names the first field that is wrong.
    """
    check(config, DECOMPOSE)
    if config.batch_statistics:
        raise InputError("batch_statistics: got True; this experiment measures by running statistics, so False")
    check_one_model(config)
    if config.data.image_size > DECOMPOSE_SIZE:
        size = config.data.image_size
        raise InputError(
            f"data.image_size: got {size}; subspaces take memory with its 4th power: {DECOMPOSE_SIZE} at most"
        )
    check_networks(config)


def check_penalty(config: ConfigDict) -> None:
    """Nothing, if `experiments/penalty.py` can run the config.

    Raises:
      InputError: names the first field that is wrong.
    """
    check(config, PENALTY)
    if config.batch_statistics:
        raise InputError("batch_statistics: got True; this experiment measures by running statistics, so False")
    check_one_model(config)
    check_networks(config)
    check_size(config.surrogate, config.widths[config.surrogate], config.data.image_size, "data.image_size")


def check_matrix(config: ConfigDict) -> None:
    """Nothing, if `experiments/matrix.py` can run the config.

    Raises:
      InputError: names the first field that is wrong.
    """
    check(config, MATRIX)
    if config.data.subtract_mean:
        raise InputError("data.subtract_mean: got True; saved networks hold no mean image to subtract, so False")
    for entry in config.networks:
        architecture, _ = network_entry(entry)
        if architecture is not None and architecture not in models.WIDTHS:
            raise InputError(f"networks: got {entry!r}; the architectures are {', '.join(models.WIDTHS)}")
    network_labels(config.networks)


def network_entry(entry: str) -> tuple[str | None, Path]:
    """An entry of `networks`: the architecture and file of a PyTorch state dict, or None and the folder of a run."""
    name, _, file = entry.partition("=")
    # The folders of a sweep's settings have `=` in their names too.
    return (name, Path(file)) if file and not Path(entry).is_dir() else (None, Path(entry))


def network_labels(entries: Sequence[str]) -> dict[str, str]:
    """What each entry of `networks` is called: the shortest trailing parts of its path that no other path ends in.

    Raises:
      InputError: two entries are the same.
    """
    first: dict[tuple[str | None, Path], str] = {}
    for entry in entries:
        architecture, path = network_entry(entry)
        path = path.resolve()
        key = (architecture, path.with_suffix("") if architecture and path.suffix == ".npz" else path)
        if key in first:
            raise InputError(f"networks: got {first[key]!r} and {entry!r}, which are the same; it takes each once")
        first[key] = entry
    paths = {path.parts for _, path in first}

    def label(parts: tuple[str, ...]) -> str:
        tails = (parts[-count:] for count in range(1, len(parts) + 1))
        unique = next(tail for tail in tails if sum(other[-len(tail) :] == tail for other in paths) == 1)
        return Path(*unique).as_posix()

    return {entry: label(path.parts) for (_, path), entry in first.items()}


def check_knowledge(config: ConfigDict) -> None:
    """Nothing, if `experiments/knowledge.py` can run the config.

    Raises:
      InputError: names the first field that is wrong.
    """
    check(config, KNOWLEDGE)
    count = len(config.models) * len(config.mixtures)
    if not 3 <= count <= 9:
        raise InputError(f"models: got {count} sources in all, by models and mixtures; correlations take 3 to 9")
    labels = [source_label(config, name, classes) for name in config.models for classes in config.mixtures]
    repeated = [label for label in labels if labels.count(label) > 1]
    if repeated:
        raise InputError(f"mixtures: two sources would both be called {repeated[0]!r}; rename the classes")
    for section, names in (("source", config.models), ("target", (config.reference,))):
        for name in names:
            check_size(name, config.widths[name], config[section].image_size, f"{section}.image_size")
    if config.source.image_size != config.target.image_size:
        sizes = f"{config.target.image_size}; source.image_size is {config.source.image_size}"
        raise InputError(f"target.image_size: got {sizes}, and attacks go over only at the same")


def source_label(config: ConfigDict, name: str, classes: tuple[str, ...]) -> str:
    """What a source is called: its architecture, its mixture, or both, whatever there are several of."""
    parts = [name] * (len(config.models) > 1) + ["+".join(classes) or "all"] * (len(config.mixtures) > 1)
    return "-".join(parts)


def check_one_model(config: ConfigDict) -> None:
    """Nothing, if the config has a single architecture.

    Raises:
      InputError: it has two.
    """
    if len(config.models) > 1:
        raise InputError(f"models: got {config.models}; this experiment takes one, as {config.models[:1]}")


def check_networks(config: ConfigDict) -> None:
    """Nothing, if the config's networks can be built, and paired.

    Raises:
      InputError: names the first field that is wrong.
    """
    if len(config.models) == 1 and config.num_networks < 2:
        raise InputError("num_networks: got 1; pairs of one architecture take 2 networks or more")
    for name in config.models:
        check_size(name, config.widths[name], config.data.image_size, "data.image_size")


def check_size(name: str, widths: tuple[int, ...], size: int, field: str) -> None:
    """Nothing, if the architecture takes images of that size.

    Raises:
      InputError: names the field, where they are too small.
    """
    try:
        jax.eval_shape(models.build(name, (size, size, 3), 2, widths=widths).init, jax.random.key(0))
    except ValueError as error:
        raise InputError(f"{field}: got {size}, too small for {name} ({one_line(error)})") from error


def check_synthetic(config: ConfigDict) -> None:
    """Nothing, if `experiments/synthetic.py` can run the config.

    Raises:
      InputError: names the first field that is wrong.
    """
    check(config, SYNTHETIC)
    if not config.problem:
        check_levels(config.levels, config.input_size, config.output_size)


def check_levels(levels: tuple[int, ...], input_size: int, output_size: int) -> None:
    """Nothing, if Jacobians of that size have all the levels.

    Raises:
      InputError: names the largest, where they have not.
    """
    most = min(input_size, output_size) - 1
    if max(levels) > most:
        raise InputError(f"levels: got {max(levels)}; Jacobians of this size have levels 0 to {most}")


def unknown_field(name: str, known: Iterable[str]) -> InputError:
    """The error for a field that no config has, with the nearest that it has."""
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}"
    return InputError(f"{name}: unknown config field; {hint}")
