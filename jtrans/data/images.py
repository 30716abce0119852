"""Data sets of images.

A source lists its classes and splits and reads one image. Choosing classes, the test split, scaling and the cache are
common to all sources. A `table` has no images to train on, only images to attack.
"""

import csv
import hashlib
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from jtrans import files
from jtrans.data.sets import TEST_SHARE, Dataset, Split, builder_of, check_classes, held_out
from jtrans.errors import InputError, listed, one_line

CACHE_VERSION = 2  # of decoded images: raised whenever decoding, scaling or the choice of test images changes
CACHED = ("train_images", "train_labels", "test_images", "test_labels", "origin")
NOISE_IMAGES = {"train": 10_000, "test": 2_000}  # as in two classes of CIFAR-10
SPLIT_FOLDERS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
TABLE = "table"  # in place of a source's name
TABLE_CSV, TABLE_IMAGES = "labels.csv", "images"
TABLE_COLUMNS = ("filename", "label", "targeted_label")  # of the CSV


class Table(NamedTuple):
    """Images to attack, as a CSV lists them.

    Attributes:
      split: the images and their labels, which may be any whole numbers from 0.
      target_labels: `[N]`, int32, the class that a targeted attack is to reach; None without such a column.
      file_names: of the images.
      rows: where each image stands in the CSV, in words.
    """

    split: Split
    target_labels: np.ndarray | None
    file_names: tuple[str, ...]
    rows: tuple[str, ...]


class Records(NamedTuple):
    """One split of a source: its labels, read when called, and a reader of image i (PIL)."""

    labels: Callable[[], np.ndarray]
    read: Callable[[int], PIL.Image.Image]
    describe: Callable[[int], str] = lambda i: f"image {i}"


class Source(NamedTuple):
    """`mode` is PIL's pixel format ("L" or "RGB"); `fingerprint` changes whenever the images do, and is empty if
    reading is so fast that a cache would save nothing."""

    class_names: tuple[str, ...]
    splits: Mapping[str, Records]
    mode: str
    fingerprint: str = ""


def load(name: str, key: jax.Array, *, directory: str, classes: Sequence[str], image_size: int) -> Dataset:
    """Images by name, as `data.load` says; the key draws the noise."""
    read = SOURCES.get(name, partial(_tensorflow_datasets, name))
    source = read(key=key, directory=directory, classes=tuple(classes), image_size=image_size)
    chosen = tuple(classes) or source.class_names
    check_classes(chosen, source.class_names)
    return _cached(source, chosen, image_size, name)


def table(directory: str, num_examples: int, *, image_size: int = 32) -> Table:
    """The first `num_examples` images of a table, scaled and cropped as by `load`.

    It is laid out as TransferAttack has its 1,000 images of ImageNet: `labels.csv` in the directory, with the columns
    `filename`, `label` and, for targeted attacks, `targeted_label`, and the files in the folder `images`. Labels count
    from 0. All rows are checked, also those after the first `num_examples`.

    Raises:
      InputError: the CSV cannot be read, or has too few rows; a row has no file, or that of another row, a label that
        is no whole number, or its own label as the target; an image cannot be decoded.
    """
    rows = _table_rows(Path(directory))
    if num_examples > len(rows):
        raise InputError(f"num_examples: got {num_examples}; the table has {len(rows)} rows, so at most {len(rows)}")
    where, file_names, labels, target_labels = zip(*rows[:num_examples], strict=True)
    paths = [Path(directory, TABLE_IMAGES, name) for name in file_names]
    records = Records(lambda: np.array(labels), lambda i: PIL.Image.open(paths[i]), lambda i: str(paths[i]))
    source = Source((), {TABLE_CSV: records}, "RGB")
    split = Split(_pixels(source, TABLE_CSV, range(num_examples), image_size), np.array(labels, np.int32))
    return Table(split, None if None in target_labels else np.array(target_labels, np.int32), file_names, where)


def check_labels(table: Table, num_classes: int) -> None:
    """Raises InputError for a label or target label of the table that is not below `num_classes`."""
    for column, labels in zip(TABLE_COLUMNS[1:], (table.split.labels, table.target_labels), strict=True):
        if labels is not None and len(outside := np.flatnonzero(labels >= num_classes)):
            what = f"{table.rows[outside[0]]}: {column} is {labels[outside[0]]}"
            of_networks = f"the networks tell {num_classes} classes apart, so it takes 0 to {num_classes - 1}"
            raise InputError(f"data.dir: {what}; {of_networks}")


class _Row(NamedTuple):
    where: str  # the place of the row, in words
    file_name: str
    label: int
    target_label: int | None


def _table_rows(root: Path) -> list[_Row]:
    """All rows of a table; InputError unless each is as `table` says."""
    path = root / TABLE_CSV
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, lines = reader.fieldnames or (), [(reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = f"{path} cannot be read ({one_line(error)})"
        raise InputError(f"data.dir: {what}; it takes a folder with {TABLE_CSV} and {TABLE_IMAGES}/") from error
    if missing := [column for column in TABLE_COLUMNS[:2] if column not in columns]:
        what = f"{path} has the columns {', '.join(columns) or 'none'}, and no {missing[0]}"
        raise InputError(f"data.dir: {what}; it takes {', '.join(TABLE_COLUMNS[:2])} and perhaps {TABLE_COLUMNS[2]}")
    if not lines:
        raise InputError(f"data.dir: {path} has no rows; it takes one for each image")
    rows, row_of = [_table_row(path, line, cells) for line, cells in lines], dict[str, _Row]()
    for row in rows:
        # By its stem, since adversarial images are kept in files of another format.
        if (first := row_of.setdefault(Path(row.file_name).stem, row)) is not row:
            raise InputError(f"data.dir: {row.where}: a name that {first.where} has already; it takes each once")
    return rows


def _table_row(path: Path, line: int, cells: Mapping[str, str | None]) -> _Row:
    name, *texts = [(cells.get(column) or "").strip() for column in TABLE_COLUMNS if column in cells]
    where = f"{path}, line {line} ({name})"
    if Path(name).name != name or not (path.parent / TABLE_IMAGES / name).is_file():
        what = f"no file of that name in {path.parent / TABLE_IMAGES}"
        raise InputError(f"data.dir: {where}: {what}; add it, or remove the row")
    for column, text in zip(TABLE_COLUMNS[1:], texts, strict=False):
        if not (text.isdecimal() and int(text) < 2**31):
            raise InputError(f"data.dir: {where}: {column} is {text!r}; it takes a whole number, 0 or more")
    label, target_label = int(texts[0]), int(texts[1]) if len(texts) > 1 else None
    if label == target_label:
        what = f"{TABLE_COLUMNS[2]} is {label}, which is the {TABLE_COLUMNS[1]}"
        raise InputError(f"data.dir: {where}: {what} itself; it takes another class")
    return _Row(where, name, label, target_label)


def _cached(source: Source, classes: tuple[str, ...], image_size: int, name: str) -> Dataset:
    if not source.fingerprint:
        return _decode(source, classes, image_size)
    identity = repr((CACHE_VERSION, PIL.__version__, source.fingerprint, classes, image_size))
    root, identity_digest = files.cache(), hashlib.sha256(identity.encode()).hexdigest()[:20]
    path = root / f"{name.replace('/', '-')}-{identity_digest}.npz"
    try:
        with np.load(path) as cached:
            *arrays, origin = (cached[field] for field in CACHED)
            return Dataset(Split(*arrays[:2]), Split(*arrays[2:]), classes, str(origin))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        dataset = _decode(source, classes, image_size)  # not cached yet, or damaged
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, suffix=".partial") as temporary:  # removed after errors, too
            fields = zip(CACHED, (*dataset.train, *dataset.test, dataset.origin), strict=True)
            np.savez(Path(temporary) / path.name, **dict(fields))
            os.replace(Path(temporary) / path.name, path)
    except OSError as error:  # the cache only saves time: the run continues without it
        print(f"note: decoded images are not cached in {root} ({one_line(error)})")
    return dataset


def _decode(source: Source, classes: tuple[str, ...], image_size: int) -> Dataset:
    if "train" not in source.splits:
        raise InputError(f"data.name: the splits are {', '.join(source.splits)}; one of them must be train")
    train = _members(source, "train", classes)
    for part in ("test", "validation"):
        # A test split whose labels are withheld (ImageNet's) has no image of any class.
        if part in source.splits and any(map(len, test := _members(source, part, classes))):
            where, origin = part, f"the split {part!r}"
            break
    else:
        part, where = "train", f"train's test share of 1/{TEST_SHARE}"
        origin = f"a fixed 1/{TEST_SHARE} of each class of the split 'train'"
        test, train = held_out(train)
    for filled, members in (("train", train), (where, test)):
        for indices, c in zip(members, classes, strict=True):
            if not len(indices):
                raise InputError(f"data.classes: class {c!r} has no image in {filled}; leave it out or add images")
    train_split, test_split = _read(source, "train", train, image_size), _read(source, part, test, image_size)
    return Dataset(train_split, test_split, classes, origin)


def _members(source: Source, part: str, classes: Sequence[str]) -> list[np.ndarray]:
    labels, last = source.splits[part].labels(), len(source.class_names) - 1
    if outside := np.count_nonzero((labels < 0) | (labels > last)):
        print(f"note: {outside} of {len(labels)} images of {part} have no label from 0 to {last} and are left out")
    return [np.flatnonzero(labels == source.class_names.index(c)) for c in classes]


def _read(source: Source, part: str, members: Sequence[np.ndarray], image_size: int) -> Split:
    labels = np.concatenate([np.full(len(indices), k, np.int32) for k, indices in enumerate(members)])
    indices = np.concatenate(members)
    order = np.argsort(indices)  # the source's own order
    return Split(_pixels(source, part, indices[order], image_size), labels[order])


def _pixels(source: Source, part: str, indices: Sequence[int] | np.ndarray, image_size: int) -> np.ndarray:
    """The images of these indices, `[N, H, W, C]`."""
    records = source.splits[part]
    images = np.empty((len(indices), image_size, image_size, PIL.Image.getmodebands(source.mode)), np.uint8)
    for row, index in enumerate(indices):
        try:
            image = _eight_bit(records.read(int(index))).convert(source.mode)
        except Exception as error:  # decoders may raise anything on a damaged file
            what = f"{records.describe(int(index))} of {part} does not decode ({one_line(error)})"
            raise InputError(f"data.dir: {what}; replace it with an 8-bit image, or remove it") from error
        image = PIL.ImageOps.fit(image, (image_size, image_size), PIL.Image.Resampling.BICUBIC)
        images[row] = np.asarray(image).reshape(images.shape[1:])
    return images


def _eight_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """8-bit images as they are; 16-bit grey ones scaled, which `convert` would clip; ValueError for all others."""
    image.load()  # some formats set the mode only here
    if image.mode[0] not in "IF":  # "I;16", "I;16B", "I" and "F" are the modes of more than 8 bits
        return image
    if isinstance(image, TiffImageFile):  # Pillow rescales neither 12-bit images nor those where 0 is white
        bits, zero = image.tag_v2.get(BITSPERSAMPLE), image.tag_v2.get(PHOTOMETRIC_INTERPRETATION)
        full_range = image.mode != "I" and bits == (16,) and zero == 1  # "I" is signed here; 1: zero is black
    else:
        full_range = image.mode != "F" and image.format in ("JPEG2000", "PNG", "PPM")
    if not full_range:
        raise ValueError(f"its range from black to white is unknown: Pillow reads it in mode {image.mode!r}")
    return PIL.Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))  # 65535 / 257 = 255


def _digits(**_: Any) -> Source:
    import sklearn.datasets  # takes half a second, so only for this source

    bunch = sklearn.datasets.load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # the values are counts from 0 to 16
    records = Records(lambda: bunch.target, lambda i: PIL.Image.fromarray(pixels[i]))
    return Source(tuple(map(str, bunch.target_names)), {"train": records}, "L")


def _noise(key: jax.Array, classes: tuple[str, ...], image_size: int, **_: Any) -> Source:
    names = classes or ("a", "b")

    def records(key: jax.Array, count: int) -> Records:
        pixels = np.asarray(jax.random.bits(key, (count, image_size, image_size, 3), np.uint8))
        return Records(lambda: np.arange(count) % len(names), lambda i: PIL.Image.fromarray(pixels[i]))

    splits = map(records, jax.random.split(key), NOISE_IMAGES.values())
    return Source(names, dict(zip(NOISE_IMAGES, splits, strict=True)), "RGB")


def _folder(directory: str, classes: tuple[str, ...], **_: Any) -> Source:
    root = Path(directory)
    try:
        if not directory or not root.is_dir():
            raise InputError(f"data.dir: no directory {directory!r}; name a folder that holds one folder per class")
        return _folder_source(root, classes)
    except OSError as error:  # a broken link, or no permission
        what = f"{error.filename} cannot be read ({error.strerror})"
        raise InputError(f"data.dir: {what}; make it readable or remove it") from error


def _folder_source(root: Path, classes: Sequence[str]) -> Source:
    folders = {part: _folders(path) for part, path in _splits(root).items()}
    names = tuple(sorted(set().union(*folders.values())))
    if not names:
        raise InputError(f"data.dir: no class folder in {root}; it takes one folder of images per class")
    chosen = [
        (part, folder) for part in folders for name, folder in folders[part].items() if name in (classes or names)
    ]
    entries = [(part, names.index(folder.name), path) for part, folder in chosen for path in _entries(folder)]
    if skipped := [str(path.relative_to(root)) for _, _, path in entries if not _is_image(path)]:
        print(f"note: files in {root} that are not images and are left out: {len(skipped)} ({listed(skipped, 3)})")
    images = [entry for entry in entries if _is_image(entry[2])]

    def records(part: str) -> Records:
        paths = [path for p, _, path in images if p == part]
        labels = np.array([number for p, number, _ in images if p == part], np.int64)
        return Records(lambda: labels, lambda i: PIL.Image.open(paths[i]), lambda i: str(paths[i]))

    fingerprint = _fingerprint(root, [path for _, _, path in images])
    return Source(names, {part: records(part) for part in folders}, "RGB", fingerprint)


def _splits(root: Path) -> dict[str, Path]:
    """The folder of each split; without folders of splits `root` itself is `train`."""
    folders = _folders(root)
    names = [name for name in SPLIT_FOLDERS if name in folders and _holds_folders(folders[name])]
    if not names:
        return {"train": root}
    if "train" not in names:
        raise InputError(f"data.dir: {root} has the split {names[0]} but no train; add a folder named train")
    if {"val", "validation"} <= set(names):
        raise InputError(f"data.dir: {root} has both val and validation, which name the same split; keep one")
    if others := [name for name in folders if name not in names]:
        print(f"note: folders in {root} that are not splits and are left out: {len(others)} ({listed(others, 3)})")
    return {SPLIT_FOLDERS[name]: folders[name] for name in names}


def _holds_folders(folder: Path) -> bool:
    inner = _folders(folder)
    if inner and (images := [path for path in _entries(folder) if path.name not in inner and _is_image(path)]):
        what = f"{folder} holds both folders, like a split, and images, like a class, such as {images[0].name}"
        raise InputError(f"data.dir: {what}; move the folders or the images elsewhere")
    return bool(inner)


def _folders(root: Path) -> dict[str, Path]:
    # `stat` raises on a broken link, for which `is_dir` returns False: a class would be missing without an error.
    return {path.name: path for path in _entries(root) if stat.S_ISDIR(path.stat().st_mode)}


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return PIL.Image.registered_extensions().get(path.suffix.lower()) in PIL.Image.OPEN


def _fingerprint(root: Path, paths: Sequence[Path]) -> str:
    """Changes whenever a file changes, or its path below `root`, which names its split and class."""
    states = [(str(path.relative_to(root)), path.stat()) for path in sorted(paths)]
    # Two files that swap names may differ in nothing but the inode.
    identity = [(name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in states]
    return hashlib.sha256(repr(identity).encode()).hexdigest()


def _tensorflow_datasets(name: str, directory: str, **_: Any) -> Source:
    import tensorflow_datasets as tfds

    builder = builder_of(name, directory)
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict) or not {"image", "label"} <= set(features):
        raise InputError(f"data.name: {name!r} has no features named image and label; name an image classification set")
    image, label = features["image"], features["label"]
    if not isinstance(label, tfds.features.ClassLabel):
        raise InputError(f"data.name: the label of {name!r} is not a class; name an image classification set")
    if not isinstance(image, tfds.features.Image) or image.np_dtype not in (np.uint8, np.uint16):
        raise InputError(f"data.name: the image of {name!r} is {one_line(image)}; name a set of images of 8 or 16 bits")

    def records(part: str) -> Records:
        rows = builder.as_data_source(part, decoders={"image": tfds.decode.SkipDecoding()})

        def labels() -> np.ndarray:
            try:
                return np.fromiter((rows[i]["label"] for i in range(len(rows))), np.int64, len(rows))
            except Exception as error:  # readers may raise anything on a missing or damaged file
                what = f"{part} of {name!r} in {builder.data_dir} cannot be read ({one_line(error)})"
                raise InputError(f"data.dir: {what}; prepare it again") from error

        return Records(labels, lambda i: PIL.Image.open(io.BytesIO(rows[i]["image"])))

    try:
        splits = {part: records(part) for part in builder.info.splits if part in ("train", "test", "validation")}
    except NotImplementedError as error:  # files in a format that only TensorFlow reads
        what = f"{name!r} in {builder.data_dir} is in a format that needs TensorFlow ({one_line(error)})"
        raise InputError(f"data.dir: {what}; prepare it again with file_format='array_record'") from error
    folder = Path(builder.data_dir)
    fingerprint = _fingerprint(folder, list(filter(Path.is_file, folder.iterdir())))
    return Source(tuple(label.names), splits, "L" if image.shape[-1] == 1 else "RGB", fingerprint)


# By name, of the keywords `key` (for the source alone), `directory`, `classes` and `image_size` of `load`. All other
# names are those of TensorFlow Datasets.
SOURCES: Mapping[str, Callable[..., Source]] = {"digits": _digits, "noise": _noise, "folder": _folder}
