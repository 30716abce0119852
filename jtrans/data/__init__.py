"""Data sets by name: images and texts, their labels, and how networks take them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jtrans.data import images, texts
from jtrans.data.images import TABLE, TABLE_COLUMNS, TABLE_CSV, Table, check_labels, table
from jtrans.data.sets import EMBEDDED, NAMES, PIXELS, Dataset, Inputs, Lexicon, Split, check_classes, of_classes
from jtrans.data.texts import Embedding
from jtrans.errors import InputError

EMBEDDING = Embedding()

__all__ = [
    "EMBEDDED",
    "EMBEDDING",
    "NAMES",
    "PIXELS",
    "TABLE",
    "TABLE_COLUMNS",
    "TABLE_CSV",
    "Dataset",
    "Embedding",
    "Inputs",
    "Lexicon",
    "Split",
    "Table",
    "balanced",
    "check_classes",
    "check_digest",
    "check_labels",
    "common",
    "digest",
    "load",
    "of_classes",
    "table",
]


def load(
    name: str,
    key: jax.Array,
    *,
    directory: str = "",
    classes: Sequence[str] = (),
    image_size: int = 32,
    embedding: Embedding = EMBEDDING,
    shuffle_labels: bool = False,
) -> Dataset:
    """Load the named data set, of square images or of texts, with labels numbered in the order of `classes`.

    The test examples are the split `test`, else `validation`, else a fixed fifth of each class of `train`. Examples
    whose label is not a class (-1 where labels are withheld), and texts without a word, are left out and counted.

    Images are scaled to cover the square, then cropped at the centre; 16 bits per channel are scaled to 8, 65535 to
    255. Transparency (a transparent pixel has the colour stored in its file) and rotations in the file's metadata are
    ignored; of several frames the first is read. Decoded images are cached in `$JTRANS_CACHE` (`~/.cache/jtrans`).

    In a folder of images, a folder named `train`, `test`, `validation` or `val` (the same as `validation`) is a split
    if it holds folders, and a class if it holds images. Hidden files are ignored; files in formats that Pillow cannot
    read are left out and counted.

    Files of texts have a text a line: its label, a space, the text, in UTF-8. The labels are whole numbers. The classes
    are named by their labels in the training texts, or by the lines of a `classes.txt` in the same folder, the first
    of which names label 0.

    Args:
      name: `digits` (scikit-learn's handwritten digits), `noise` (uniform random pixels, arbitrary labels), `folder`
        (folders of images named by class, optionally inside folders named by split), `text` (files of texts), or any
        image or text classification set of TensorFlow Datasets.
      key: draws the noise and the shuffled labels; unused otherwise.
      directory: the folder of images. Of texts a folder with `train.txt` and `test.txt`; or one file; or a folder of
        files that each are a domain, whose classes are called `FILE:LABEL`. For TensorFlow Datasets the data directory,
        or one prepared data set.
      classes: names of the classes to keep; all if empty.
      image_size: the images' height and width in pixels.
      embedding: how texts become arrays.
      shuffle_labels: permute the labels within each split, so that they carry no information.

    Raises:
      InputError: a data set, directory or file is missing, unreadable or empty; a class is unknown, repeated or empty;
        there are fewer than two classes; an image cannot be decoded, or its range is unknown (floats, 32-bit integers);
        a line of texts is not UTF-8, has no text, or a label that is no whole number or no class; a file of embeddings
        does not fit.
    """
    if name == TABLE:
        what = f"got {name!r}, which has images to attack and none to train on"
        raise InputError(f"data.name: {what}; only the matrix experiment takes it")
    noise_key, *label_keys = jax.random.split(key, 3)
    if texts.has(name, directory):
        dataset = texts.load(name, directory=directory, classes=classes, embedding=embedding)
    else:
        dataset = images.load(name, noise_key, directory=directory, classes=classes, image_size=image_size)
    if shuffle_labels:
        shuffled = lambda split, k: split._replace(labels=np.asarray(jax.random.permutation(k, split.labels)))
        train, test = map(shuffled, (dataset.train, dataset.test), label_keys)
        dataset = dataset._replace(train=train, test=test)
    return dataset


def balanced(split: Split, count: int, field: str) -> Split:
    """The first `count` examples, taking the classes in turn, so that class sizes differ by at most one.

    Raises:
      InputError: the split has fewer class-balanced examples than `count`, which comes from the config field `field`.
    """
    of_class = [np.flatnonzero(split.labels == k) for k in range(split.labels.max() + 1)]
    in_turn = np.transpose([indices[: min(map(len, of_class))] for indices in of_class]).ravel()
    if count > (most := len(in_turn)):
        raise InputError(f"{field}: got {count}; there are {most} with as many of each class, so at most {most}")
    return Split(split.inputs[in_turn[:count]], split.labels[in_turn[:count]])


def common(train: Split, test: Split) -> int:
    """How many of the test examples are also training examples: equal in every value, whatever their labels."""
    of_test = [example.tobytes() for example in test.inputs]
    wanted = set(of_test)
    repeated = {known for example in train.inputs if (known := example.tobytes()) in wanted}
    return sum(example in repeated for example in of_test)


def digest(dataset: Dataset) -> str:
    """The SHA-256, as 64 hexadecimal digits, of the class names, both splits' inputs and labels, and the embeddings.

    It depends on the arrays' values, shapes and data types, not on their memory layout or byte order.
    """
    sha = hashlib.sha256(repr(tuple(map(str, dataset.class_names))).encode())
    table = () if dataset.lexicon is None else (dataset.lexicon.table,)
    for array in map(np.asarray, (*dataset.train, *dataset.test, *table)):
        sha.update(repr((array.dtype.name, array.shape)).encode())
        sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
    return sha.hexdigest()


def check_digest(path: Path, there: str, here: str) -> None:
    """Raises InputError if the digest of its data that the file at `path` records (`there`, or "") is not `here`."""
    if there != here:
        what = f"SHA-256 {there[:12]}... there, {here[:12]}... now" if there else "it does not record which"
        what = f"was made from other data ({what}); restore those data, or use another directory"
        raise InputError(f"--workdir: {path} {what}")
