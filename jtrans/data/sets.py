"""What all data sets are: examples as they are stored, their labels, and how networks take them."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtrans.errors import InputError, listed, one_line

NAMES = ("digits", "noise", "folder", "text")  # of data sets, besides those of TensorFlow Datasets
TEST_SHARE = 5  # without a test split, one example in five of each class is held out


class Split(NamedTuple):
    """Examples as they are stored, uint8 images `[N, H, W, C]` or int32 token ids `[N, L]`, and their labels `[N]`,
    int32 in [0, K).
    """

    inputs: np.ndarray
    labels: np.ndarray


class Inputs(NamedTuple):
    """What networks take and are differentiated by, in the place of what a data set stores.

    Attributes:
      of: stored inputs `[N, ...]` -> `x`, floats: of images `[N, H, W, C]` pixels in [0, 1], of texts `[N, L, E]`
        embeddings, which are 0 at padding.
      support: `x` -> Booleans that broadcast to its shape: which values there are. The others are padding, along which
        no direction has a component, and which no attack may change.
      bounds: the range of valid values; None: all.
      norm: of the ball that an attack's epsilon is the radius of, as in `attacks.iterative`.
    """

    of: Callable[[jax.Array], jax.Array]
    support: Callable[[jax.Array], jax.Array]
    bounds: tuple[float, float] | None
    norm: str

    def options(self) -> dict[str, Any]:
        """Those of `attacks.iterative` that depend on the inputs."""
        return {"support": self.support, "bounds": self.bounds, "norm": self.norm}


def pixels(images: jax.Array) -> jax.Array:
    """uint8 images as floats in [0, 1]."""
    return images.astype(jnp.float32) / 255


def everywhere(x: jax.Array) -> jax.Array:
    """Every value."""
    return jnp.ones((1,) * x.ndim, bool)


def at_words(x: jax.Array) -> jax.Array:
    """Where the embeddings `[N, L, E]` are those of words: `[N, L, 1]`."""
    return (x != 0).any(-1, keepdims=True)


PIXELS = Inputs(pixels, everywhere, (0.0, 1.0), "linf")
EMBEDDED = Inputs(jnp.asarray, at_words, None, "l2")


class Lexicon(NamedTuple):
    """The words of token ids `[V]`, and their embeddings `[V, E]`, float32, which are 0 for padding, id 0."""

    words: tuple[str, ...]
    table: np.ndarray

    def inputs(self) -> Inputs:
        """Token ids as the embeddings of their words, by a table that is a constant of compiled programs."""
        return EMBEDDED._replace(of=lambda ids: jnp.asarray(self.table)[ids])


class Dataset(NamedTuple):
    """Disjoint examples to train on and to measure on.

    Attributes:
      train, test: the examples.
      class_names: `[K]`.
      origin: where the test examples come from, in words.
      inputs: how networks take them.
      lexicon: of texts; None for images.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    origin: str
    inputs: Inputs = PIXELS
    lexicon: Lexicon | None = None


def of_classes(dataset: Dataset, classes: Sequence[str], field: str) -> Dataset:
    """The examples of some of a data set's classes, () for all, with labels numbered in the order of `classes`.

    Raises:
      InputError: a class is unknown or repeated, or it is one only; `field` names the config field at fault.
    """
    if not classes:
        return dataset
    check_classes(classes, dataset.class_names, field)
    number = np.full(len(dataset.class_names), -1, np.int32)
    number[[dataset.class_names.index(name) for name in classes]] = np.arange(len(classes))

    def members(split: Split) -> Split:
        labels = number[split.labels]
        return Split(split.inputs[labels >= 0], labels[labels >= 0])

    return dataset._replace(train=members(dataset.train), test=members(dataset.test), class_names=tuple(classes))


def check_classes(chosen: Sequence[str], available: Sequence[str], field: str = "data.classes") -> None:
    names = ", ".join(chosen)
    if unknown := [c for c in chosen if c not in available]:
        raise InputError(f"{field}: unknown class {unknown[0]!r}; the classes are {listed(available, 20)}")
    if len(set(chosen)) < len(chosen):
        raise InputError(f"{field}: got {names}; each class may be named once")
    if len(chosen) < 2:
        raise InputError(f"{field}: got only {names or 'none'}; a classifier takes two or more classes")


def held_out(members: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A fixed share of each class's examples, given by their numbers, to test on; and the rest. Both in order."""
    shares = [np.split(np.random.default_rng(0).permutation(m), [len(m) // TEST_SHARE]) for m in members]
    test, train = (list(map(np.sort, parts)) for parts in zip(*shares, strict=True))
    return test, train


def _newest(root: Path, name: str) -> Path | None:
    """The folder of the newest prepared version of a data set, or `root` itself, if that is one."""
    info = root / "dataset_info.json"
    folders = [root] if info.is_file() else sorted(path.parent for path in (root / name).glob(f"*/{info.name}"))
    return max(folders, key=lambda f: [int(n) if n.isdigit() else -1 for n in f.name.split(".")], default=None)


def builder_of(name: str, directory: str):
    """The builder of a prepared data set; to prepare one that is not takes TensorFlow and the internet."""
    import tensorflow_datasets as tfds

    if directory and not Path(directory).is_dir():
        raise InputError(f"data.dir: no directory {directory!r}; name one that holds {name!r}, or leave it empty")
    root = Path(directory or os.environ.get("TFDS_DATA_DIR", tfds.core.constants.DATA_DIR)).expanduser()
    if path := _newest(root, name):
        try:
            builder = tfds.builder_from_directory(path)
        except Exception as error:  # a damaged description may raise anything
            raise InputError(f"data.dir: {path} cannot be read ({one_line(error)[:200]})") from error
        if builder.name != name.split("/")[0]:
            raise InputError(f"data.name: got {name!r}, but {path} holds {builder.name!r}; use that name")
        return builder
    where = directory or "the default data directory"
    try:
        builder = tfds.builder(name, data_dir=directory or None, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        what = f"{name!r} is none of {', '.join(NAMES)}, nor prepared in {where}, nor known to TensorFlow Datasets"
        raise InputError(f"data.name: {what}; see tensorflow.org/datasets/catalog") from error
    except Exception as error:  # names with other letters, versions and configs that are not there
        what = f"{one_line(error)[:200]}; it takes {', '.join(NAMES)} or a name as cifar10 or name/config"
        raise InputError(f"data.name: got {name!r}; {what}") from error
    if importlib.util.find_spec("tensorflow") is None:  # checked before a download that would be useless
        what = f"{name!r} is not in {where}, and preparing it needs TensorFlow"
        raise InputError(f"data.dir: {what}; install jtrans[prepare], or name a directory that holds it")
    try:
        builder.download_and_prepare()
    except Exception as error:  # downloads may raise anything
        what = f"{name!r} is not in {where} and could not be downloaded ({one_line(error)[:200]})"
        raise InputError(f"data.dir: {what}; name a directory that holds it") from error
    return builder
