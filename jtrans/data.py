"""Named sources of images -> `Dataset(train, test)`: uint8 images, integer labels, class names.

A source lists its classes and splits and reads one image; everything after that (choosing classes, the test split,
scaling, the cache) is the same for all of them.
"""

import hashlib
import importlib.util
import io
import itertools
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import PIL.Image
import PIL.ImageOps

from jtrans import runtime
from jtrans.errors import InputError, one_line

CACHE_VERSION = 2  # of decoded images: one more whenever decoding, scaling or the choice of test images changes
TEST_SHARE = 5  # where a source has no test split, one image in five of each class is held out
NOISE_IMAGES = {"train": 10_000, "test": 2_000}  # as many as two classes of CIFAR-10 have
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Split(NamedTuple):
    """Images `[N, H, W, C]`, uint8, and their labels `[N]`, int32 in [0, K)."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """What networks train on and what they are measured on, which share no image.

    `origin` says in words where the test images come from.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    origin: str


class Records(NamedTuple):
    """One split of a source: its labels, read when called, and a reader of image i (PIL)."""

    labels: Callable[[], np.ndarray]
    read: Callable[[int], PIL.Image.Image]
    describe: Callable[[int], str] = lambda i: f"image {i}"


class Source(NamedTuple):
    """`mode` is PIL's name for the pixels ("L" or "RGB"); `fingerprint` changes whenever the images do, and is empty
    where reading is too quick for a cache to pay."""

    class_names: tuple[str, ...]
    splits: Mapping[str, Records]
    mode: str
    fingerprint: str = ""


class Wanted(NamedTuple):
    """What a source may want to know, as `load` is given it; the key is of its own."""

    key: jax.Array
    directory: str
    classes: tuple[str, ...]
    image_size: int


def load(
    name: str,
    key: jax.Array,
    *,
    directory: str = "",
    classes: Sequence[str] = (),
    image_size: int = 32,
    shuffle_labels: bool = False,
) -> Dataset:
    """The named data set, its images square and its labels numbered in the order of `classes`.

    The test images are the split `test`, else `validation`, else a fixed fifth of each class of `train`. Images
    are scaled so that they cover the square and are then cropped at the centre. Decoded images are kept in
    `$JTRANS_CACHE` (default `~/.cache/jtrans`).

    Args:
      name: `digits` (scikit-learn's handwritten digits), `noise` (uniform random pixels, arbitrary labels), `folder`
        (folders of images named by class, inside `train` and `test` where there is such a split), or
        any image classification set of TensorFlow Datasets.
      key: draws the noise and the shuffled labels; unused otherwise.
      directory: the folder of images; for TensorFlow Datasets the data directory, or one prepared data set.
      classes: names of the classes to keep; all when empty.
      image_size: the images' height and width in pixels.
      shuffle_labels: permute the labels within each split, so that they carry no meaning.

    Raises:
      InputError: an absent data set or directory, an unknown, repeated or empty class, fewer than two classes, or an
        image that does not decode.
    """
    noise_key, *label_keys = jax.random.split(key, 3)
    read = SOURCES.get(name, partial(_tensorflow_datasets, name))
    source = read(Wanted(noise_key, directory, tuple(classes), image_size))
    chosen = tuple(classes) or source.class_names
    _check_classes(chosen, source.class_names)
    dataset = _cached(source, chosen, image_size, name)
    if shuffle_labels:
        splits = zip((dataset.train, dataset.test), label_keys, strict=True)
        train, test = (
            split._replace(labels=np.asarray(jax.random.permutation(k, split.labels))) for split, k in splits
        )
        dataset = dataset._replace(train=train, test=test)
    return dataset


def balanced(split: Split, count: int, field: str) -> Split:
    """The first `count` images, taking the classes in turn, so that no class has more than one image over another.

    Args:
      field: the config's field that asks for so many.

    Raises:
      InputError: the split does not hold that many.
    """
    order = np.argsort(split.labels, kind="stable")
    sizes = np.bincount(split.labels)
    rank = np.empty_like(order)
    rank[order] = np.concatenate([np.arange(size) for size in sizes])
    turn = np.lexsort((split.labels, rank))
    most = int(sizes.min() * len(sizes))
    if count > most:
        raise InputError(f"{field}: got {count}; the class-balanced images are {most}, so at most that")
    return Split(split.images[turn[:count]], split.labels[turn[:count]])


def digest(dataset: Dataset) -> str:
    """The SHA-256, as 64 hexadecimal digits, of the class names and of both splits' images and labels.

    It depends on the arrays' values, shapes and data types, not on their layout in memory or byte order.
    """
    sha = hashlib.sha256(repr(tuple(map(str, dataset.class_names))).encode())
    for array in map(np.asarray, (*dataset.train, *dataset.test)):
        sha.update(repr((array.dtype.name, array.shape)).encode())
        sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
    return sha.hexdigest()


def _check_classes(chosen: Sequence[str], known: Sequence[str]) -> None:
    for c in chosen:
        if c not in known:
            listed = ", ".join(known[:20]) + (f", ... ({len(known)} in all)" if len(known) > 20 else "")
            raise InputError(f"data.classes: unknown class {c!r}; the classes are {listed}")
    if len(set(chosen)) < len(chosen):
        raise InputError(f"data.classes: got {', '.join(chosen)}; each class may be named once")
    if len(chosen) < 2:
        raise InputError(
            f"data.classes: got only {', '.join(chosen) or 'none'}; a classifier takes two or more classes"
        )


def _cached(source: Source, classes: tuple[str, ...], image_size: int, name: str) -> Dataset:
    if not source.fingerprint:
        return _decode(source, classes, image_size)
    facts = (CACHE_VERSION, PIL.__version__, source.fingerprint, classes, image_size)
    wanted = hashlib.sha256(repr(facts).encode()).hexdigest()[:20]
    root = runtime.cache()
    path = root / f"{name.replace('/', '-')}-{wanted}.npz"
    try:
        with np.load(path) as kept:
            train, test = (Split(kept[f"{part}_images"], kept[f"{part}_labels"]) for part in ("train", "test"))
            return Dataset(train, test, classes, str(kept["origin"]))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        dataset = _decode(source, classes, image_size)  # not there yet, or damaged
    arrays = {
        f"{part}_{field}": array
        for part, split in (("train", dataset.train), ("test", dataset.test))
        for field, array in split._asdict().items()
    }
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, suffix=".partial") as partial:  # gone in the end, come what may
            np.savez(Path(partial) / path.name, origin=dataset.origin, **arrays)
            os.replace(Path(partial) / path.name, path)
    except OSError as error:  # the cache saves time, nothing else: the run goes on without it
        print(f"note: decoded images are not cached in {root} ({one_line(error)})")
    return dataset


def _decode(source: Source, classes: tuple[str, ...], image_size: int) -> Dataset:
    if "train" not in source.splits:
        raise InputError(f"data.name: the splits are {', '.join(source.splits)}; one of them must be train")
    numbers = [source.class_names.index(c) for c in classes]
    train = _members(source.splits["train"], numbers)
    _check_filled(train, classes, "train")
    for part in ("test", "validation"):
        # A test split whose labels are withheld (ImageNet's) has none of any class.
        if part in source.splits and any(map(len, test := _members(source.splits[part], numbers))):
            _check_filled(test, classes, part)
            origin = f"the split {part!r}"
            break
    else:
        part, origin = "train", f"a fixed 1/{TEST_SHARE} of each class of the split 'train'"
        order = [np.random.default_rng(0).permutation(members) for members in train]
        test = [np.sort(members[: len(members) // TEST_SHARE]) for members in order]
        train = [np.sort(members[len(members) // TEST_SHARE :]) for members in order]
        _check_filled(test, classes, f"train's test share of 1/{TEST_SHARE}")
    return Dataset(
        _read(source, "train", train, image_size), _read(source, part, test, image_size), tuple(classes), origin
    )


def _members(records: Records, numbers: Sequence[int]) -> list[np.ndarray]:
    labels = records.labels()
    return [np.flatnonzero(labels == number) for number in numbers]


def _check_filled(members: Sequence[np.ndarray], classes: Sequence[str], part: str) -> None:
    for indices, c in zip(members, classes, strict=True):
        if not len(indices):
            raise InputError(f"data.classes: class {c!r} has no image in {part}; leave it out or add images")


def _read(source: Source, part: str, members: Sequence[np.ndarray], image_size: int) -> Split:
    records = source.splits[part]
    labels = np.concatenate([np.full(len(indices), k, np.int32) for k, indices in enumerate(members)])
    indices = np.concatenate(members)
    order = np.argsort(indices)  # the source's own order
    channels = len(PIL.Image.new(source.mode, (1, 1)).getbands())
    images = np.empty((len(indices), image_size, image_size, channels), np.uint8)
    for row, index in enumerate(indices[order]):
        try:
            image = records.read(int(index)).convert(source.mode)
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            what = f"{records.describe(int(index))} of {part} does not decode ({one_line(error)})"
            raise InputError(f"data.dir: {what}; replace it or remove it") from error
        image = PIL.ImageOps.fit(image, (image_size, image_size), PIL.Image.Resampling.BICUBIC)
        images[row] = np.asarray(image).reshape(images.shape[1:])
    return Split(images, labels[order])


def _digits(wanted: Wanted) -> Source:
    import sklearn.datasets  # half a second that other sources need not pay

    bunch = sklearn.datasets.load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # the set counts dark cells, 0 to 16
    records = Records(lambda: bunch.target, lambda i: PIL.Image.fromarray(pixels[i]))
    return Source(tuple(map(str, bunch.target_names)), {"train": records}, "L")


def _noise(wanted: Wanted) -> Source:
    classes, size = wanted.classes or ("a", "b"), wanted.image_size

    def records(key: jax.Array, count: int) -> Records:
        pixels = np.asarray(jax.random.bits(key, (count, size, size, 3), np.uint8))
        return Records(lambda: np.arange(count) % len(classes), lambda i: PIL.Image.fromarray(pixels[i]))

    keys = jax.random.split(wanted.key)
    splits = {part: records(k, count) for k, (part, count) in zip(keys, NOISE_IMAGES.items(), strict=True)}
    return Source(classes, splits, "RGB")


def _folder(wanted: Wanted) -> Source:
    directory = wanted.directory
    root = Path(directory)
    if not directory or not root.is_dir():
        raise InputError(f"data.dir: no directory {directory!r}; name a folder whose folders are the classes")
    roots = {part: root / part for part in ("train", "test", "validation") if (root / part).is_dir()}
    roots = roots if "train" in roots else {"train": root}
    files = {part: _class_files(path) for part, path in roots.items()}
    names = tuple(sorted(set(itertools.chain(*files.values()))))
    if not names:
        raise InputError(f"data.dir: no class folder in {roots['train']}; it takes one folder of images a class")

    def records(listing: Mapping[str, Sequence[Path]]) -> Records:
        paths = [path for c in names for path in listing.get(c, ())]
        labels = np.repeat(np.arange(len(names)), [len(listing.get(c, ())) for c in names])
        return Records(lambda: labels, lambda i: PIL.Image.open(paths[i]), lambda i: str(paths[i]))

    every = [path for listing in files.values() for paths in listing.values() for path in paths]
    return Source(names, {part: records(listing) for part, listing in files.items()}, "RGB", _fingerprint(every))


def _class_files(root: Path) -> dict[str, list[Path]]:
    return {
        folder.name: sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }


def _fingerprint(paths: Sequence[Path]) -> str:
    facts = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in sorted(paths)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _tensorflow_datasets(name: str, wanted: Wanted) -> Source:
    import tensorflow_datasets as tfds

    directory = wanted.directory
    builder = _prepared(name, directory) or _prepare(name, directory)
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict) or not {"image", "label"} <= set(features):
        raise InputError(f"data.name: {name!r} has no features named image and label; name an image classification set")
    if not isinstance(features["label"], tfds.features.ClassLabel):
        raise InputError(f"data.name: the label of {name!r} is not a class; name an image classification set")

    def records(part: str) -> Records:
        rows = builder.as_data_source(part, decoders={"image": tfds.decode.SkipDecoding()})
        return Records(
            lambda: np.fromiter((rows[i]["label"] for i in range(len(rows))), np.int64, len(rows)),
            lambda i: PIL.Image.open(io.BytesIO(rows[i]["image"])),
        )

    try:
        splits = {part: records(part) for part in builder.info.splits if part in ("train", "test", "validation")}
    except NotImplementedError as error:  # files in a format that only TensorFlow reads
        what = f"{name!r} in {builder.data_dir} is in a format that needs TensorFlow ({one_line(error)})"
        raise InputError(f"data.dir: {what}; prepare it again with file_format='array_record'") from error
    mode = "L" if features["image"].shape[-1] == 1 else "RGB"
    files = [path for path in Path(builder.data_dir).iterdir() if path.is_file()]
    return Source(tuple(features["label"].names), splits, mode, _fingerprint(files))


def _prepared(name: str, directory: str):
    """The builder of an already prepared data set, or None. Needs no TensorFlow and no network."""
    import tensorflow_datasets as tfds

    if directory and not Path(directory).is_dir():
        raise InputError(f"data.dir: no directory {directory!r}; name one that holds {name!r}, or leave it empty")
    root = Path(directory or os.environ.get("TFDS_DATA_DIR", tfds.core.constants.DATA_DIR)).expanduser()
    candidates = [root] if (root / "dataset_info.json").is_file() else sorted((root / name).glob("*/dataset_info.json"))
    if not candidates:
        return None
    newest = max(candidates, key=lambda p: [int(n) if n.isdigit() else -1 for n in p.parent.name.split(".")])
    path = newest.parent if newest.is_file() else newest
    builder = tfds.builder_from_directory(path)
    if builder.name != name.split("/")[0]:
        raise InputError(f"data.name: got {name!r}, but {path} holds {builder.name!r}; name that")
    return builder


def _prepare(name: str, directory: str):
    """Download and prepare a data set: the one place that needs TensorFlow and a network."""
    import tensorflow_datasets as tfds

    where = directory or "the default data directory"
    try:
        builder = tfds.builder(name, data_dir=directory or None, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        what = f"{name!r} is none of {', '.join(SOURCES)}, nor prepared in {where}, nor known to TensorFlow Datasets"
        raise InputError(f"data.name: {what}; see tensorflow.org/datasets/catalog") from error
    if importlib.util.find_spec("tensorflow") is None:  # said before a download that could not be used
        what = f"{name!r} is not in {where}, and preparing it needs TensorFlow"
        raise InputError(f"data.dir: {what}; install jtrans[prepare], or name a directory that holds it")
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever a download can end in
        what = f"{name!r} is not in {where} and could not be fetched ({one_line(error)[:200]})"
        raise InputError(f"data.dir: {what}; name a directory that holds it") from error
    return builder


# By name; every other name is one of TensorFlow Datasets.
SOURCES: Mapping[str, Callable[[Wanted], Source]] = {"digits": _digits, "noise": _noise, "folder": _folder}
