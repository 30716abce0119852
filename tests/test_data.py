import hashlib
import importlib.util
import io
import os
import struct

import jax
import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from jtrans import data
from jtrans.errors import InputError

KEY = jax.random.key(0)


def write_image(path, colour, size=(8, 6), mode="RGB", image_format=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size, colour).save(path, image_format)


def saved(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write_classes(root, suffix, content):
    """Two classes of five files each, all with the same bytes."""
    for c in ("cat", "dog"):
        (root / c).mkdir()
        for i in range(5):
            (root / c / f"{i}{suffix}").write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Two classes of plain-coloured PNGs: red 100 + i for cats, blue 100 + i for dogs."""
    for part, count in (("train", 10), ("test", 4)):
        for i in range(count):
            write_image(tmp_path / part / "cat" / f"{i}.png", (100 + i, 0, 0))
            write_image(tmp_path / part / "dog" / f"{i}.png", (0, 0, 100 + i))
    return tmp_path


def write_tfds(root, image, splits):
    """A TFDS set of the classes a and b, with the image feature `image`: splits of arrays and labels."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter

    directory = root / "tiny" / "1.0.0"
    directory.mkdir(parents=True)
    # What writes the rows knows more labels than the set, and takes images as bytes.
    row = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=9)})
    infos = []
    for part, (arrays, labels) in splits.items():
        name = tfds.core.ShardedFileTemplate(directory, dataset_name="tiny", split=part, filetype_suffix="array_record")
        writer = ArrayRecordWriter(str(name.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
        for array, number in zip(arrays, labels, strict=True):
            writer.write(row.serialize_example({"image": saved(PIL.Image.fromarray(array), "PNG"), "label": number}))
        writer.close()
        infos.append(tfds.core.SplitInfo(part, [len(labels)], 0, name))
    features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(names=["a", "b"])})
    tfds.folder_dataset.write_metadata(data_dir=directory, features=features, split_infos=infos, check_data=False)
    return directory


def greys(values, dtype=np.uint8):
    return [np.full((2, 2), value, dtype) for value in values]


def test_digits_are_scikit_learns_with_a_fixed_share_held_out():
    got = data.load("digits", KEY, image_size=8)
    assert got.class_names == tuple("0123456789")
    assert got.train.inputs.shape[1:] == (8, 8, 1)
    assert got.train.inputs.dtype == np.uint8
    everything = np.concatenate([got.train.inputs, got.test.inputs])
    want = np.round(sklearn.datasets.load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, everything)) == sorted(map(bytes, want))  # each image once: none in both, none lost
    assert len(got.test.labels) == pytest.approx(len(want) / 5, rel=0.02)
    assert "1/5" in got.origin
    again = data.load("digits", jax.random.key(1), image_size=8)
    np.testing.assert_array_equal(got.test.inputs, again.test.inputs)  # whatever the seed


def test_classes_are_numbered_in_the_order_given():
    got = data.load("digits", KEY, classes=("7", "3"), image_size=8)
    everything = sklearn.datasets.load_digits()
    sevens = {bytes(np.round(i * 255 / 16).astype(np.uint8)) for i in everything.images[everything.target == 7]}
    assert {bytes(image) in sevens for image in got.train.inputs[got.train.labels == 0]} == {True}
    assert {bytes(image) in sevens for image in got.train.inputs[got.train.labels == 1]} == {False}


def test_noise_is_uniform_balanced_and_drawn_from_its_key():
    got, again, other = (data.load("noise", key, image_size=8) for key in (KEY, KEY, jax.random.key(1)))
    assert got.class_names == ("a", "b")
    assert np.bincount(got.train.labels).tolist() == [5000, 5000]
    assert np.bincount(got.train.inputs.ravel(), minlength=256).std() < 5 * np.sqrt(got.train.inputs.size / 256)
    np.testing.assert_array_equal(got.train.inputs, again.train.inputs)
    assert (got.train.inputs != other.train.inputs).mean() > 0.99
    assert data.load("noise", KEY, classes=("x", "y", "z"), image_size=4).class_names == ("x", "y", "z")


def test_shuffled_labels_keep_the_images_and_the_counts():
    plain, shuffled = (data.load("digits", KEY, image_size=8, shuffle_labels=s) for s in (False, True))
    for a, b in ((plain.train, shuffled.train), (plain.test, shuffled.test)):
        np.testing.assert_array_equal(a.inputs, b.inputs)
        assert np.bincount(a.labels).tolist() == np.bincount(b.labels).tolist()
        assert (a.labels == b.labels).mean() == pytest.approx(0.1, abs=0.06)


def test_a_folder_is_read_by_class_and_split(folder):
    got = data.load("folder", KEY, directory=str(folder), image_size=6)
    assert got.class_names == ("cat", "dog")
    assert got.train.inputs.shape == (20, 6, 6, 3)
    assert set(got.train.inputs[got.train.labels == 0][:, 0, 0, 0].tolist()) == set(range(100, 110))
    assert not got.train.inputs[got.train.labels == 1][..., 0].any()
    assert len(got.test.labels) == 8
    assert got.origin == "the split 'test'"


def test_a_folder_without_splits_holds_out_a_fixed_fifth_of_each_class(folder):
    got = data.load("folder", KEY, directory=str(folder / "train"), image_size=6)
    assert np.bincount(got.train.labels).tolist() == [8, 8]
    assert np.bincount(got.test.labels).tolist() == [2, 2]
    held, kept = (set(map(bytes, split.inputs)) for split in (got.test, got.train))
    assert len(held | kept) == 20


def test_images_are_scaled_to_cover_the_square_and_cropped_at_the_centre(tmp_path):
    stripes = np.zeros((4, 12, 3), np.uint8)
    stripes[:, 4:8] = 255  # white in the middle third, which is the centre square
    for c in ("a", "b"):
        for i in range(5):
            (tmp_path / c).mkdir(exist_ok=True)
            PIL.Image.fromarray(stripes).save(tmp_path / c / f"{i}.png")
    got = data.load("folder", KEY, directory=str(tmp_path), image_size=4)
    assert (got.train.inputs == 255).all()


def test_decoded_images_are_cached_and_read_again_only_when_they_change(folder, monkeypatch):
    first = data.load("folder", KEY, directory=str(folder), image_size=6)
    opened = []
    original = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda source: opened.append(source) or original(source))
    again = data.load("folder", KEY, directory=str(folder), image_size=6)
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    assert not opened
    write_image(folder / "train" / "cat" / "new.png", (7, 0, 0))
    assert len(data.load("folder", KEY, directory=str(folder), image_size=6).train.labels) == 21
    assert opened


def test_a_damaged_cache_is_made_again(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("JTRANS_CACHE", str(tmp_path / "cache"))
    first = data.load("folder", KEY, directory=str(folder), image_size=6)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    again = data.load("folder", KEY, directory=str(folder), image_size=6)
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(("module", "version"), [(PIL, "__version__"), (data.images, "CACHE_VERSION")])
def test_images_are_decoded_again_by_another_version(folder, monkeypatch, module, version):
    data.load("folder", KEY, directory=str(folder), image_size=6)
    opened = []
    original = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda source: opened.append(source) or original(source))
    monkeypatch.setattr(module, version, "another")
    data.load("folder", KEY, directory=str(folder), image_size=6)
    assert len(opened) == 28


def test_links_moved_between_classes_or_splits_are_read_again(folder, tmp_path):
    farm = tmp_path / "farm"
    for path in folder.glob("*/*/*.png"):
        link = farm / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)

    def labels_by_red():
        train = data.load("folder", KEY, directory=str(farm), image_size=6).train
        return dict(zip(train.inputs[:, 0, 0, 0].tolist(), train.labels.tolist(), strict=True))

    # The links stay in the same order among all, with the same targets.
    assert labels_by_red()[109] == 0
    (farm / "train" / "cat" / "9.png").rename(farm / "train" / "dog" / "!9.png")
    assert labels_by_red()[109] == 1
    (farm / "train" / "cat" / "0.png").rename(farm / "test" / "dog" / "z.png")
    assert 100 not in labels_by_red()


def test_class_folders_that_swap_names_are_read_again(tmp_path):
    cat, dog, aside = (tmp_path / "data" / name for name in ("cat", "dog", ".aside"))
    for i in range(5):
        write_image(cat / f"{i}.bmp", (255, 0, 0))
        write_image(dog / f"{i}.bmp", (0, 0, 255))
    for path in tmp_path.rglob("*.bmp"):
        os.utime(path, (0, 0))  # the same size and time for all, as out of an archive

    def red(label):
        train = data.load("folder", KEY, directory=str(tmp_path / "data"), image_size=6).train
        return np.unique(train.inputs[train.labels == label][..., 0]).tolist()

    assert (red(0), red(1)) == ([255], [0])
    cat.rename(aside)
    dog.rename(cat)
    aside.rename(dog)
    assert (red(0), red(1)) == ([0], [255])


def test_a_cache_that_cannot_be_written_is_left_clean(folder, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "cache"
    monkeypatch.setenv("JTRANS_CACHE", str(cache))
    first = data.load("folder", KEY, directory=str(folder), image_size=6)
    (written,) = cache.iterdir()
    written.unlink()
    (written / "in the way").mkdir(parents=True)  # no file can take this name
    again = data.load("folder", KEY, directory=str(folder), image_size=6)
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    assert "note: decoded images are not cached" in capsys.readouterr().out
    assert list(cache.iterdir()) == [written]


def digest_by_hand(dataset):
    """The same SHA-256 out of one string of bytes, element by element."""
    text = repr(dataset.class_names).encode()
    for array in (*dataset.train, *dataset.test):
        text += repr((str(array.dtype), array.shape)).encode()
        text += b"".join(int(v).to_bytes(array.dtype.itemsize, "little", signed=True) for v in array.astype(int).flat)
    return hashlib.sha256(text).hexdigest()


def test_the_digest_is_of_values_shapes_types_and_names_not_of_layout():
    images = np.random.default_rng(0).integers(128, size=(3, 2, 4, 1), dtype=np.uint8)
    split = data.Split(images, np.array([0, 1, 300], np.int32))
    dataset = data.Dataset(split, data.Split(images[:1], split.labels[:1]), ("cat", "dog"), "somewhere")
    digest = data.digest(dataset)
    assert digest == digest_by_hand(dataset)
    strided = np.asfortranarray(np.repeat(images, 2, axis=2))[:, :, ::2]
    for same in (split._replace(inputs=strided), split._replace(labels=split.labels.astype(">i4"))):
        assert data.digest(dataset._replace(train=same, origin="elsewhere")) == digest
    changed = images.copy()
    changed[2, 1, 3, 0] += 1
    others = [
        dataset._replace(train=split._replace(inputs=changed)),
        dataset._replace(train=split._replace(inputs=images.reshape(3, 4, 2, 1))),
        dataset._replace(train=split._replace(inputs=images.view(np.int8))),
        dataset._replace(train=split._replace(labels=split.labels[::-1])),
        dataset._replace(train=dataset.test, test=dataset.train),
        dataset._replace(class_names=("cat", "fox")),
    ]
    assert len({digest, *map(data.digest, others)}) == 7


def test_only_the_chosen_classes_are_decoded(folder):
    write_image(folder / "train" / "eel" / "0.png", (1, 1, 1))
    write_image(folder / "test" / "eel" / "0.png", (1, 1, 1))
    (folder / "train" / "eel" / "1.png").write_bytes(b"no image")
    (folder / "test" / "eel" / "1.png").symlink_to("nowhere")
    assert len(data.load("folder", KEY, directory=str(folder), classes=("cat", "dog")).train.labels) == 20
    (folder / "test" / "eel" / "1.png").unlink()
    with pytest.raises(InputError, match=r"eel/1\.png of train does not decode"):
        data.load("folder", KEY, directory=str(folder), classes=("cat", "eel"))


def test_a_truncated_image_is_named(folder):
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    (folder / "train" / "dog" / "broken.jpeg").write_bytes(saved(PIL.Image.fromarray(pixels), "JPEG")[:400])
    with pytest.raises(InputError, match=r"dog/broken\.jpeg of train does not decode"):
        data.load("folder", KEY, directory=str(folder))


def tiff(pixels, bits, zero=1, sample=1):
    """A TIFF of 2 pixels a row; `zero` 1: zero is black, 0: white; `sample` 1: unsigned, 2: signed, 3: float."""
    height = len(pixels) * 4 // bits
    facts = {256: 2, 257: height, 258: bits, 259: 1, 262: zero, 273: 122, 277: 1, 279: len(pixels), 339: sample}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in facts.items())
    return b"II*\0" + struct.pack("<IH", 8, len(facts)) + entries + bytes(4) + pixels


def suffix_as_id(value):
    return value if isinstance(value, str) else ""


WIDE = np.array([[129, 1000], [32768, 65535]], np.uint16)
GREY = np.floor(WIDE / 65535 * 255 + 0.5)[..., None].repeat(3, axis=-1)
COLOURS = np.array([[[10, 20, 30], [255, 0, 0]], [[40, 80, 120], [0, 255, 7]]], np.uint8)
BLACK = np.array([[0, 255], [51, 0]], np.uint8)  # of CMYK; opacity elsewhere
PALETTE = PIL.Image.fromarray(np.array([[3, 2], [1, 0]], np.uint8))
PALETTE.putpalette(COLOURS[::-1, ::-1].tobytes())
INKS = [PIL.Image.fromarray(plane) for plane in (*np.moveaxis(COLOURS, -1, 0), BLACK)]


@pytest.mark.parametrize(
    ("suffix", "content", "pixels"),
    [
        (".png", saved(PIL.Image.fromarray(WIDE), "PNG"), GREY),
        (".tif", tiff(WIDE.astype("<u2").tobytes(), 16), GREY),
        (".tif", saved(PIL.Image.fromarray(WIDE.astype(">u2")), "TIFF"), GREY),
        (".pgm", b"P5 2 2 65535\n" + WIDE.astype(">u2").tobytes(), GREY),
        (".jp2", saved(PIL.Image.fromarray(WIDE), "JPEG2000"), GREY),
        (".pnm", b"P6 2 2 65535\n" + (COLOURS * np.uint16(257)).astype(">u2").tobytes(), COLOURS),
        (".tiff", saved(PIL.Image.fromarray(WIDE > 1000), "TIFF"), 255 * (WIDE > 1000)[..., None]),
        (".png", saved(PALETTE, "PNG", transparency=2), COLOURS),
        (".png", saved(PIL.Image.merge("RGBA", INKS), "PNG"), COLOURS),
        (".png", saved(PIL.Image.merge("LA", INKS[2:]), "PNG"), COLOURS[..., 2:].repeat(3, axis=-1)),
        (
            ".tif",
            saved(PIL.Image.merge("CMYK", INKS), "TIFF"),
            np.round((255.0 - COLOURS) * (255 - BLACK[..., None]) / 255),
        ),
    ],
    ids=suffix_as_id,
)
def test_images_of_every_mode_have_the_colours_their_file_stores(tmp_path, suffix, content, pixels):
    write_classes(tmp_path, suffix, content)
    images = data.load("folder", KEY, directory=str(tmp_path), image_size=2).train.inputs
    np.testing.assert_array_equal(images, np.broadcast_to(pixels, (8, 2, 2, 3)))


@pytest.mark.parametrize(
    ("suffix", "content", "reason"),
    [
        (".tif", tiff(np.ones(4, "<f4").tobytes(), 32, sample=3), "mode 'F'"),
        (".tif", tiff(np.ones(4, "<i4").tobytes(), 32, sample=2), "mode 'I'"),
        (".tif", tiff(np.ones(4, "<i2").tobytes(), 16, sample=2), "mode 'I'"),
        (".tif", tiff(WIDE.astype("<u2").tobytes(), 16, zero=0), "mode 'I;16'"),
        (".tif", tiff(bytes(6), 12), "mode 'I;16'"),
        (".pfm", b"Pf 2 2 -1.0\n" + np.ones(4, "<f4").tobytes(), "mode 'F'"),
        (".png", b"", "cannot identify"),
        (".ppm", b"P6 0 0 255\n", "cannot identify"),
        (".dds", b"DDS " + struct.pack("<4I", 124, 0, 2, 2).ljust(124, b"\0"), "pixel format"),
    ],
    ids=suffix_as_id,
)
def test_images_without_a_known_range_or_damaged_are_refused(tmp_path, suffix, content, reason):
    write_classes(tmp_path, suffix, content)
    with pytest.raises(InputError) as error:
        data.load("folder", KEY, directory=str(tmp_path), image_size=2)
    message = str(error.value)
    assert f"{tmp_path}/" in message
    assert reason in message
    assert message.endswith("; replace it with an 8-bit image, or remove it")
    assert "\n" not in message


def test_every_format_that_pillow_reads_is_read_and_other_files_are_counted(tmp_path, capsys):
    suffixes = {".jfif": "JPEG", ".JPE": "JPEG", ".pgm": "PPM", ".sgi": "SGI", ".tga": "TGA"}
    if ".avif" in PIL.Image.registered_extensions():  # from Pillow 11.3 on
        suffixes[".avif"] = "AVIF"
    for c in ("cat", "dog"):
        write_image(tmp_path / "train" / c / "0.png", 0)
        for suffix, image_format in suffixes.items():
            write_image(tmp_path / "test" / c / f"a{suffix}", (200, 0, 0), image_format=image_format)
        for name in (".DS_Store", "._a.png"):
            (tmp_path / "test" / c / name).write_bytes(b"hidden")
    assert len(data.load("folder", KEY, directory=str(tmp_path)).test.labels) == 2 * len(suffixes)
    assert not capsys.readouterr().out
    (tmp_path / "test" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / "made.pdf").write_text("Pillow writes these, and reads none")
    data.load("folder", KEY, directory=str(tmp_path))
    (note,) = capsys.readouterr().out.splitlines()
    assert note.endswith("left out: 2 (train/cat/made.pdf, test/dog/notes.txt)")


@pytest.mark.parametrize("name", ["val", "validation"])
def test_validation_has_two_names(folder, capsys, name):
    (folder / "test").rename(folder / name)
    (folder / "labels").mkdir()
    dataset = data.load("folder", KEY, directory=str(folder), image_size=6)
    assert dataset.origin == "the split 'validation'"
    assert len(dataset.test.labels) == 8
    assert "not splits and are left out: 1 (labels)" in capsys.readouterr().out


def test_split_names_are_classes_where_they_hold_images(folder):
    for name in ("train", "test", "car"):
        for i in range(5):
            write_image(folder / "train" / name / f"{i}.png", (50, 50, 50))
    dataset = data.load("folder", KEY, directory=str(folder / "train"), image_size=6)
    assert dataset.class_names == ("car", "cat", "dog", "test", "train")
    assert np.bincount(dataset.train.labels).tolist() == [4, 8, 8, 4, 4]
    inside = data.load("folder", KEY, directory=str(folder), classes=("cat", "dog"), image_size=6)
    assert inside.origin == "the split 'test'"


def test_a_class_folder_may_be_a_link(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (folder / "train" / "cat").rename(elsewhere)
    (folder / "train" / "cat").symlink_to(elsewhere)
    dataset = data.load("folder", KEY, directory=str(folder / "train"), image_size=6)
    assert dataset.class_names == ("cat", "dog")
    assert np.bincount(dataset.train.labels).tolist() == [8, 8]


def link_nowhere(path):
    path.symlink_to(path.parent / "nowhere")


def link_to_itself(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "where", "message"),
    [
        (link_nowhere, "train/cat/x.png", r"train/cat/x\.png cannot be read \(No such file"),
        (link_to_itself, "train/cat/x.png", r"train/cat/x\.png cannot be read \(Too many levels"),
        (link_nowhere, "train/eel", r"train/eel cannot be read \(No such file"),
        (link_nowhere, "val", r"val cannot be read \(No such file"),
        (lambda path: write_image(path, 0), "train/x.png", r"train holds both folders.* such as x\.png; move"),
        (lambda path: (path / "cat").mkdir(parents=True), "val", "has both val and validation"),
        (lambda path: (path.parent / "train").rename(path), "other", "has the split test but no train"),
    ],
)
def test_folders_that_cannot_be_read_or_understood_are_named(folder, make, where, message):
    if "both" in message:
        (folder / "test").rename(folder / "validation")
    make(folder / where)
    with pytest.raises(InputError, match=message):
        data.load("folder", KEY, directory=str(folder))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"classes": ("3", "eleven")}, "unknown class 'eleven'; the classes are 0, 1"),
        ("digits", {"classes": ("3",)}, "got only 3; a classifier takes two"),
        ("digits", {"classes": ("3", "3")}, "each class may be named once"),
        ("folder", {"directory": "nowhere"}, "no directory 'nowhere'"),
        ("folder", {}, "no directory ''"),
        ("cifar10", {"directory": "nowhere"}, "no directory 'nowhere'"),
        ("cifar99", {}, "'cifar99' is none of digits, noise, folder"),
        ("CIFAR-10", {}, "data.name: got 'CIFAR-10'; "),
        ("my data", {}, "data.name: got 'my data'; "),
        ("cifar10:9.9.9", {}, "data.name: got 'cifar10:9.9.9'; "),
    ],
)
def test_what_cannot_be_loaded_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        data.load(name, KEY, **options)


def test_an_empty_folder_and_an_empty_class_are_named(tmp_path):
    with pytest.raises(InputError, match="no class folder"):
        data.load("folder", KEY, directory=str(tmp_path))
    write_image(tmp_path / "cat" / "0.png", 0, mode="L")
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputError, match="class 'dog' has no image in train"):
        data.load("folder", KEY, directory=str(tmp_path))


def test_a_set_that_is_absent_asks_for_tensorflow_where_there_is_none(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is here")
    with pytest.raises(InputError, match=r"'stl10' is not in .* needs TensorFlow; install jtrans\[prepare\]"):
        data.load("stl10", KEY, directory=str(tmp_path))


def test_common_examples_are_equal_in_every_value_whatever_their_labels():
    inputs = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    changed = inputs[1] + np.uint8([[0, 0], [0, 1]])
    train = data.Split(inputs[:3], np.array([0, 1, 0]))
    test = data.Split(np.stack([inputs[2], changed, inputs[4], inputs[2]]), np.ones(4))
    assert data.common(train, test) == 2
    assert data.common(train, train) == 3
    assert data.common(train, data.Split(inputs[3:], np.zeros(3))) == 0


def test_balanced_takes_the_classes_in_turn():
    labels = np.array([0, 0, 0, 1, 2, 2, 1], np.int32)
    split = data.Split(np.arange(7, dtype=np.uint8)[:, None, None, None], labels)
    assert data.balanced(split, 6, "data.num_train").labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.balanced(split, 4, "data.num_train").inputs.ravel().tolist() == [0, 3, 4, 1]
    with pytest.raises(InputError, match=r"data.num_train: got 7; there are 6 "):
        data.balanced(split, 7, "data.num_train")


def test_prepared_tfds_sets_are_read_by_name_or_directory_without_tensorflow(shared_data):
    tfds_dir = shared_data / "tfds"
    named = data.load("tiny_imagenet22", KEY, directory=str(tfds_dir), image_size=16)
    path = next((tfds_dir / "tiny_imagenet22").iterdir())
    direct = data.load("tiny_imagenet22", KEY, directory=str(path), image_size=16)
    assert len(named.class_names) == 22
    assert named.origin == "the split 'validation'"
    assert np.bincount(named.train.labels).tolist() == [500] * 22
    np.testing.assert_array_equal(named.test.inputs, direct.test.inputs)
    with pytest.raises(InputError, match="holds 'tiny_imagenet22'; use that name"):
        data.load("cifar10", KEY, directory=str(path))


@pytest.mark.slow
def test_chosen_classes_of_a_prepared_set_are_those_of_a_full_decode(shared_data):
    import tensorflow_datasets as tfds

    tfds_dir = shared_data / "tfds"
    got = data.load("cifar10", KEY, directory=str(tfds_dir), classes=("cat", "dog"))
    assert got.train.inputs.shape == (10_000, 32, 32, 3)
    builder = tfds.builder_from_directory(next((tfds_dir / "cifar10").iterdir()))
    rows = [row for row in builder.as_data_source("test") if row["label"] in (3, 5)]
    np.testing.assert_array_equal(got.test.inputs, np.stack([row["image"] for row in rows]))
    np.testing.assert_array_equal(got.test.labels, [row["label"] == 5 for row in rows])


def test_tfds_images_of_16_bits_are_scaled_and_unlabelled_ones_left_out_and_counted(tmp_path, capsys):
    features = pytest.importorskip("tensorflow_datasets").features
    values = [0, 127, 129, 1000, 32768, 65535]
    train = greys(values, np.uint16), [0, 1, 0, 1, -1, 5]
    write_tfds(
        tmp_path,
        features.Image(shape=(2, 2, 1), dtype=np.uint16),
        {
            "train": train,
            "test": (greys([1, 2], np.uint16), [-1, -1]),
            "validation": (greys([257, 514], np.uint16), [0, 1]),
        },
    )
    tiny = data.load("tiny", KEY, directory=str(tmp_path), image_size=2)
    assert tiny.train.inputs.shape == (4, 2, 2, 1)
    assert tiny.train.inputs[:, 0, 0, 0].tolist() == [0, 0, 1, 4]
    assert tiny.test.inputs[:, 0, 0, 0].tolist() == [1, 2]
    assert tiny.origin == "the split 'validation'"
    notes = capsys.readouterr().out.splitlines()
    assert [" ".join(note.split()[:7]) for note in notes] == [
        "note: 2 of 6 images of train",
        "note: 2 of 2 images of test",
    ]


def test_tfds_sets_of_floats_or_without_their_files_are_refused(tmp_path):
    features = pytest.importorskip("tensorflow_datasets").features
    floats = [np.zeros((2, 2, 4), np.uint8)] * 10, [0, 1] * 5  # so TFDS keeps them: four bytes, as four channels
    write_tfds(tmp_path / "floats", features.Image(shape=(2, 2, 1), dtype=np.float32), {"train": floats})
    with pytest.raises(InputError, match=r"image of 'tiny' is .*float32.*; name a set of images of 8 or 16 bits"):
        data.load("tiny", KEY, directory=str(tmp_path / "floats"))
    plain = {"train": (greys(range(10)), [0, 1] * 5)}
    directory = write_tfds(tmp_path / "lost", features.Image(shape=(2, 2, 1)), plain)
    (records,) = directory.glob("*array_record*")
    records.unlink()
    with pytest.raises(InputError, match=r"train of 'tiny' in .* cannot be read .*; prepare it again"):
        data.load("tiny", KEY, directory=str(tmp_path / "lost"))


TABLE = """\ufefffilename, label,targeted_label,note
c.png, 0, 7,red
a.png,999,2,"green, light"
b.png,5,0,blue

d.jpg,5,1,grey
"""


def write_table(root, text=TABLE):
    for name, colour in (("a.png", (0, 9, 0)), ("b.png", (0, 0, 9)), ("c.png", (9, 0, 0)), ("d.jpg", (50, 50, 50))):
        write_image(root / "images" / name, colour, size=(8, 8) if name < "c" else (12, 9))
    (root / "labels.csv").write_text(text)
    return str(root)


def test_a_table_is_read_in_the_order_of_its_rows(tmp_path):
    table = data.table(write_table(tmp_path), 4, image_size=8)
    assert table.file_names == ("c.png", "a.png", "b.png", "d.jpg")
    assert table.split.inputs.shape == (4, 8, 8, 3)
    colours = [[9, 0, 0], [0, 9, 0], [0, 0, 9], [50, 50, 50]]
    np.testing.assert_array_equal(table.split.inputs, np.broadcast_to(np.array(colours)[:, None, None], (4, 8, 8, 3)))
    assert table.split.labels.tolist() == [0, 999, 5, 5]
    assert table.target_labels.tolist() == [7, 2, 0, 1]
    assert [row.rpartition(", ")[2] for row in table.rows] == [
        *("line 2 (c.png)", "line 3 (a.png)", "line 4 (b.png)", "line 6 (d.jpg)")
    ]
    first = data.table(str(tmp_path), 2, image_size=8)
    np.testing.assert_array_equal(first.split.inputs, table.split.inputs[:2])
    assert first.target_labels.tolist() == [7, 2]
    without = data.table(write_table(tmp_path, "label,filename\n3,a.png\n"), 1, image_size=8)
    assert without.target_labels is None
    data.check_labels(without, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,label\na.png,1\nz.png,1\n", "line 3 (z.png): no file of that name in {root}/images; add it, or rem"),
        ("filename,label\n../labels.csv,1\n", "line 2 (../labels.csv): no file of that name in {root}/images; add it"),
        ("filename,label\na.png,1.0\n", "line 2 (a.png): label is '1.0'; it takes a whole number, 0 or more"),
        ("filename,label\na.png,-1\n", "line 2 (a.png): label is '-1'; it takes a whole number, 0 or more"),
        ("filename,label\na.png\n", "line 2 (a.png): label is ''; it takes a whole number"),
        ("filename,label,targeted_label\na.png,1,\n", "line 2 (a.png): targeted_label is ''; it takes a whole number"),
        (
            "filename,label,targeted_label\na.png,1,1\n",
            "line 2 (a.png): targeted_label is 1, which is the label itself",
        ),
        (
            "filename,label\na.png,1\nb.png,1\na.png,2\n",
            "line 4 (a.png): a name that {root}/labels.csv, line 2 (a.png)",
        ),
        ("filename,label\na.png,1\na.jpg,1\n", "line 3 (a.jpg): a name that {root}/labels.csv, line 2 (a.png) has"),
        (
            "ImageId,TrueLabel\na,1\n",
            "has the columns ImageId, TrueLabel, and no filename; it takes filename, label and",
        ),
        ("", "has the columns none, and no filename"),
        ("filename,label\n", "has no rows; it takes one for each image"),
        ("filename,label\na.png,1\n", "num_examples: got 2; the table has 1 rows, so at most 1"),
        ("filename,label\na.png,1\ne.png,2\n", "{root}/images/e.png of labels.csv does not decode (cannot identify"),
    ],
)
def test_a_wrong_row_of_a_table_is_named_in_one_line(tmp_path, text, message):
    write_table(tmp_path, text)
    (tmp_path / "images" / "e.png").write_text("words")
    (tmp_path / "images" / "a.jpg").touch()
    with pytest.raises(InputError) as raised:
        data.table(str(tmp_path), 2, image_size=8)
    assert message.format(root=tmp_path) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b'"\0'])
def test_a_table_that_cannot_be_read_is_named_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"^data.dir: .*labels.csv (cannot be read \(|has the columns )"):
        data.table(str(tmp_path), 2)


def test_labels_that_the_networks_do_not_tell_apart_are_named(tmp_path):
    table = data.table(write_table(tmp_path), 4, image_size=8)
    data.check_labels(table, 1000)
    message = r"line 3 \(a.png\): label is 999; the networks tell 999 classes apart, so it takes 0 to 998"
    with pytest.raises(InputError, match=message):
        data.check_labels(table, 999)
    low = table._replace(split=table.split._replace(labels=np.zeros(4, np.int32)))
    with pytest.raises(InputError, match=r"line 2 \(c.png\): targeted_label is 7; .* so it takes 0 to 6"):
        data.check_labels(low, 7)


def test_a_table_has_nothing_to_train_on(tmp_path):
    with pytest.raises(InputError, match=r"data.name: got .table., which has images to attack and none to train on"):
        data.load("table", KEY, directory=write_table(tmp_path))
