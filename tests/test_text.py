import collections
import re

import jax
import numpy as np
import pytest
import sklearn.datasets

from jtrans import data
from jtrans.data import texts as text_data
from jtrans.errors import InputError

KEY = jax.random.key(0)
NUMBERS = {2: "two", 5: "five", 7: "seven"}
TEXTS = ("the cat saw the dog", "A dog, a DOG!", "the bird sang")


def write_lines(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, of which label 1 comes first."""
    write_lines(tmp_path / "train.txt", "1 so good", "0 so bad", "1 very good indeed", "0 bad, very bad")
    write_lines(tmp_path / "test.txt", "0 not good", "1 not bad")
    return tmp_path


def words_of(a_text):
    """What counts as a word, written anew."""
    return re.findall(r"\w\w+", a_text.lower())


def test_a_folder_has_texts_to_train_on_and_to_measure_on(folder):
    corpus = text_data.corpus("text", str(folder))
    assert corpus.class_names == ("0", "1")
    assert corpus.train.texts == ("so good", "so bad", "very good indeed", "bad, very bad")
    assert corpus.train.labels.tolist() == [1, 0, 1, 0]
    assert corpus.train.labels.dtype == np.int32
    assert corpus.test.texts == ("not good", "not bad")
    assert corpus.test.labels.tolist() == [0, 1]
    assert corpus.origin == "the split 'test'"


def test_a_file_names_classes_which_are_numbered_in_the_order_given(folder):
    write_lines(folder / "classes.txt", "negative", "positive")
    assert text_data.corpus("text", str(folder)).class_names == ("negative", "positive")
    turned = data.load("text", KEY, directory=str(folder), classes=("positive", "negative"))
    assert turned.class_names == ("positive", "negative")
    assert turned.train.labels.tolist() == [0, 1, 0, 1]
    assert turned.test.labels.tolist() == [1, 0]


def test_labels_need_not_start_at_0_and_only_the_chosen_classes_are_kept(tmp_path):
    lines = [f"{label} text number {i} of {name}" for i in range(6) for label, name in NUMBERS.items()]
    path = write_lines(tmp_path / "some.txt", *lines)
    assert text_data.corpus("text", path).class_names == ("2", "5", "7")
    some = data.load("text", KEY, directory=path, classes=("7", "2"))
    for part in (some.train, some.test):
        of_texts = [some.lexicon.words[ids[ids > 0][-1]] for ids in part.inputs]
        assert [("seven", "two")[label] for label in part.labels] == of_texts
    assert len(some.train.labels) + len(some.test.labels) == 12
    every = data.load("text", KEY, directory=path)
    assert every.lexicon.words == some.lexicon.words  # ids mean the same, whatever the classes
    np.testing.assert_array_equal(every.lexicon.table, some.lexicon.table)


def test_of_one_file_the_same_share_is_held_out_as_of_images(tmp_path):
    digits = sklearn.datasets.load_digits()
    path = write_lines(tmp_path / "digits.txt", *(f"{label} image {i:04}" for i, label in enumerate(digits.target)))
    corpus, images = text_data.corpus("text", path), data.load("digits", KEY, image_size=8)
    assert corpus.origin == images.origin
    for of_texts, of_images in ((corpus.train, images.train), (corpus.test, images.test)):
        rows = np.array([int(a_text.split()[1]) for a_text in of_texts.texts])
        np.testing.assert_array_equal(of_texts.labels, of_images.labels)
        pixels = np.round(digits.images[rows] * (255 / 16))
        np.testing.assert_array_equal(of_images.inputs[..., 0], pixels)


def test_a_text_is_all_that_follows_the_first_space_in_any_alphabet(tmp_path):
    odd = ["0 1 2  three\ttabs", "1 ça va\u2028là \x85 ok", "0 кошка 猫猫", "1 windows\r"] * 5
    path = write_lines(tmp_path / "odd.txt", b"\xef\xbb\xbf" + odd[0].encode(), *odd[1:])
    corpus = text_data.corpus("text", path)
    assert set(corpus.train.texts) == {"1 2  three\ttabs", "ça va\u2028là \x85 ok", "кошка 猫猫", "windows"}


def test_a_text_without_a_word_is_left_out_and_counted(folder, capsys):
    write_lines(folder / "test.txt", "0 bad", "1 !", "1 good", "0 a : b")
    assert text_data.corpus("text", str(folder)).test.texts == ("bad", "good")
    (note,) = capsys.readouterr().out.splitlines()
    assert note == "note: 2 of 4 texts of test.txt have no word and are left out (line 2: '!', line 4: 'a : b')"


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("test.txt", ["0 good", b"1 caf\xe9"], r"test.txt, line 2: byte 6 of it is not UTF-8 \(.*\); save the file as"),
        ("train.txt", ["0 good", "1 "], r"train.txt, line 2: no text after the label; a line takes a whole number, a"),
        ("train.txt", ["0 good", "1", "1 bad"], "train.txt, line 2: no text after the label"),
        ("train.txt", ["0 good", "", "1 bad"], "train.txt, line 2: the label is ''; a line takes a whole number"),
        ("train.txt", ["good news"], "train.txt, line 1: the label is 'good'; a line takes a whole number"),
        ("train.txt", ["-1 good"], "train.txt, line 1: the label is '-1'"),
        ("train.txt", ["1.0 good"], "train.txt, line 1: the label is '1.0'"),
        ("train.txt", ["1234567890 good"], "train.txt, line 1: the label is '1234567890'"),
        ("test.txt", ["0 good", "2 bad"], "test.txt, line 2: label 2 is no class; the labels are 0, 1"),
        ("train.txt", ["0 good", "0 bad"], "test.txt, line 2: label 1 is no class; the labels are 0"),
        ("test.txt", ["0 good"], "class '1' has no text in the test texts, the split 'test'; leave it out"),
        ("test.txt", [], "test.txt, line 1: the label is ''"),
        ("classes.txt", ["bad"], "train.txt, line 1: label 1 is no class; the labels are 0"),
        ("classes.txt", ["bad", "good", "neutral"], "class 'neutral' has no text in train; leave it out or add texts"),
        ("classes.txt", ["bad", "bad"], "got bad, bad; each class may be named once"),
        ("classes.txt", ["bad", b"\xff"], "classes.txt, line 2: byte 1 of it is not UTF-8"),
    ],
)
def test_wrong_lines_are_named(folder, name, lines, message):
    write_lines(folder / name, *lines)
    with pytest.raises(InputError, match=message) as error:
        data.load("text", KEY, directory=str(folder))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("data.")


def test_files_that_are_absent_empty_or_of_one_class_are_named(folder, tmp_path):
    for name in ("train.txt", "test.txt"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(InputError, match=f"data.dir: no .*{name}; a folder takes train.txt and test.txt"):
            text_data.corpus("text", str(folder))
        (folder / name).write_bytes(b"")
        with pytest.raises(InputError, match=f"data.dir: .*{name} is empty"):
            text_data.corpus("text", str(folder))
        (folder / name).write_bytes(content)
    (folder / "classes.txt").mkdir()
    with pytest.raises(InputError, match=r"data.dir: .*classes.txt cannot be read \(Is a directory\)"):
        text_data.corpus("text", str(folder))
    for directory in ("", str(tmp_path / "nowhere")):
        with pytest.raises(InputError, match=r"data.dir: no file or folder .*; name a folder with train.txt and"):
            text_data.corpus("text", directory)
    path = write_lines(tmp_path / "one.txt", *["3 the same"] * 9)
    with pytest.raises(InputError, match=r"data.classes: got only 3; a classifier takes two or more classes"):
        text_data.corpus("text", path)
    path = write_lines(tmp_path / "few.txt", *["3 the same"] * 9, *["4 another"] * 4)
    with pytest.raises(InputError, match="class '4' has no text in the test texts, a fixed 1/5 of each class"):
        data.load("text", KEY, directory=path)
    with pytest.raises(InputError, match="unknown class '5'; the classes are 3, 4"):
        data.load("text", KEY, directory=path, classes=("3", "5"))


def write_tfds(root, splits, *, labels=("bad", "good"), keys=None, name="tiny", **more):
    """A TFDS set of texts: splits of rows with the feature `sentence`, `label` and more."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter

    directory = root / name / "1.0.0"
    directory.mkdir(parents=True)
    of = {"sentence": tfds.features.Text(), **more}
    # What writes the rows knows more labels than the set.
    row = tfds.features.FeaturesDict({**of, "label": tfds.features.ClassLabel(num_classes=9)})
    infos = []
    for part, rows in splits.items():
        path = tfds.core.ShardedFileTemplate(directory, dataset_name=name, split=part, filetype_suffix="array_record")
        writer = ArrayRecordWriter(str(path.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
        for example in rows:
            writer.write(row.serialize_example(example))
        writer.close()
        infos.append(tfds.core.SplitInfo(part, [len(rows)], 0, path))
    features = tfds.features.FeaturesDict({**of, "label": tfds.features.ClassLabel(names=list(labels))})
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=features, split_infos=infos, supervised_keys=keys, check_data=False
    )
    return directory


def rows(*pairs, **more):
    return [{"sentence": sentence, "label": label, **more} for sentence, label in pairs]


def test_a_tfds_set_is_read_without_tensorflow_and_texts_without_label_or_word_are_left_out(tmp_path, capsys):
    splits = {
        "train": rows(("so good", 1), ("naïve\nlines", 0), ("unlabelled", -1), ("!", 0), ("outside", 5)),
        "test": rows(("withheld one", -1), ("withheld two", -1)),
        "validation": rows(("bad", 0), ("good", 1)),
    }
    directory = write_tfds(tmp_path, splits)
    for where in (tmp_path, directory):
        corpus = text_data.corpus("tiny", str(where))
        assert corpus.class_names == ("bad", "good")
        assert corpus.train.texts == ("so good", "naïve\nlines")
        assert corpus.train.labels.tolist() == [1, 0]
        assert corpus.test.texts == ("bad", "good")
        assert corpus.origin == "the split 'validation'"
    assert capsys.readouterr().out.splitlines()[:3] == [
        "note: 1 of 5 texts of train have no word and are left out (example 3: '!')",
        "note: 2 of 4 texts of train have no label from 0 to 1 and are left out",
        "note: 2 of 2 texts of test have no label from 0 to 1 and are left out",
    ]


def test_of_several_texts_a_tfds_set_names_the_one_to_classify(tmp_path):
    features = pytest.importorskip("tensorflow_datasets").features
    splits = {"train": rows(*[("good", 1), ("bad", 0)] * 5, title="same title", idx=3)}
    more = {"title": features.Text(), "idx": features.Scalar(np.int32)}
    write_tfds(tmp_path / "named", splits, keys=("sentence", "label"), **more)
    corpus = text_data.corpus("tiny", str(tmp_path / "named"))
    assert set(zip(corpus.test.texts, corpus.test.labels.tolist(), strict=True)) == {("good", 1), ("bad", 0)}
    assert corpus.origin == "a fixed 1/5 of each class of the split 'train'"
    write_tfds(tmp_path / "not", splits, **more)
    with pytest.raises(InputError, match=r"data.name: 'tiny' has the features idx, label, sentence, title, of which t"):
        text_data.corpus("tiny", str(tmp_path / "not"))


def test_tfds_sets_that_are_none_of_texts_or_damaged_are_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    write_tfds(tmp_path / "untrained", {"test": rows(("good", 1))})
    with pytest.raises(InputError, match=r"data.name: the splits of 'tiny' are test; it takes a train"):
        text_data.corpus("tiny", str(tmp_path / "untrained"))
    write_tfds(tmp_path / "latin", {"train": rows(("good", 1), (b"caf\xe9", 0))})
    with pytest.raises(InputError, match=r"data.dir: train of 'tiny', example 1: byte 4 of it is not UTF-8"):
        text_data.corpus("tiny", str(tmp_path / "latin"))
    directory = write_tfds(tmp_path / "lost", {"train": rows(("good", 1), ("bad", 0))})
    (records,) = directory.glob("*array_record*")
    records.unlink()
    with pytest.raises(InputError, match=r"train of 'tiny' in .* cannot be read .*; prepare it again"):
        text_data.corpus("tiny", str(tmp_path / "lost"))


def test_the_vocabulary_is_that_of_a_count_by_hand():
    vocabulary = text_data.vocabulary(TEXTS, 3)
    assert vocabulary.words == ("<pad>", "<unk>", "dog", "the", "bird")
    assert vocabulary.counts.tolist() == [0, 3, 3, 3, 1]
    assert text_data.vocabulary(TEXTS, 100).words[2:] == ("dog", "the", "bird", "cat", "sang", "saw")


def test_frequencies_add_up_whatever_the_size():
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.zipf(1.5, size=20)) for _ in range(50)]
    counts = collections.Counter(word for a_text in texts for word in words_of(a_text))
    want = sorted(counts, key=lambda word: (-counts[word], word))
    for size in (1, 7, len(want), 10**6):
        vocabulary = text_data.vocabulary(texts, size)
        assert list(vocabulary.words[2:]) == want[:size]
        assert vocabulary.counts[2:].tolist() == [counts[word] for word in want[:size]]
        assert vocabulary.counts.sum() == counts.total()
        encoded = text_data.encode(texts, vocabulary, 20)
        assert np.bincount(encoded.ids.ravel(), minlength=len(vocabulary.words)).tolist()[1:] == (
            vocabulary.counts[1:].tolist()
        )
        assert encoded.unknown == vocabulary.counts[text_data.UNKNOWN]


def test_texts_are_cut_or_padded_at_the_end_and_what_is_lost_is_counted():
    vocabulary = text_data.vocabulary(TEXTS, 3)
    whole = text_data.encode([*TEXTS, "none known"], vocabulary, 9)
    assert whole.ids.dtype == np.int32
    assert whole.ids[:, :5].tolist() == [[3, 1, 1, 3, 2], [2, 2, 0, 0, 0], [3, 4, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert not whole.ids[:, 5:].any()
    assert (whole.unknown, whole.cut) == (5, 0)
    for length in range(1, 9):
        short = text_data.encode([*TEXTS, "none known"], vocabulary, length)
        np.testing.assert_array_equal(short.ids, whole.ids[:, :length])
        assert short.unknown == (short.ids == text_data.UNKNOWN).sum()
        assert short.cut == (whole.ids[:, length:] != text_data.PADDING).sum()


def test_a_text_without_any_word_has_no_ids():
    with pytest.raises(
        InputError, match=r"data.dir: text 2 of 2 has no word \('a !'\); a word is a run of two or more"
    ):
        text_data.encode(["fine text", "a !"], text_data.vocabulary(TEXTS, 3), 4)


def of_all_words(table, texts, vocabulary):
    """The vectors of all words of the texts, `[number of words, E]`."""
    ids = text_data.encode(texts, vocabulary, 100).ids
    return np.float64(table[ids[ids != text_data.PADDING]])


@pytest.mark.parametrize("mean", [0.0, 1.0, -0.3])
@pytest.mark.parametrize("size", [3, 6])
def test_embeddings_have_mean_and_variance_over_the_words_of_the_texts(size, mean):
    vocabulary = text_data.vocabulary(TEXTS, size)
    table, missing = text_data.embeddings(vocabulary, 4, KEY, mean=mean)
    assert table.shape == (size + 2, 4)
    assert table.dtype == np.float32
    assert missing == 0
    words = of_all_words(table, TEXTS, vocabulary)
    np.testing.assert_allclose(words.mean(0), mean, atol=1e-6)
    np.testing.assert_allclose(words.var(0), 1, atol=1e-6)
    assert not table[text_data.PADDING].any()
    # Miyato et al. (2017), equation 1, on the same draws.
    draws, frequency = np.float64(jax.random.normal(KEY, table.shape)), vocabulary.counts / vocabulary.counts.sum()
    expected = sum(f * v for f, v in zip(frequency, draws, strict=True))
    variance = sum(f * (v - expected) ** 2 for f, v in zip(frequency, draws, strict=True))
    np.testing.assert_allclose(table[1:], (draws - expected)[1:] / np.sqrt(variance) + mean, atol=1e-6)
    assert (table[1:] != text_data.embeddings(vocabulary, 4, jax.random.key(1), mean=mean).table[1:]).all()


def glove(path, vectors):
    return write_lines(path, *(f"{word} {' '.join(map(repr, map(float, v)))}" for word, v in vectors))


def npz(path, vectors):
    words, rows = zip(*vectors, strict=True)
    np.savez(path, words=np.array(words), vectors=np.float32(rows))
    return str(path)


FILES = {"vectors.txt": glove, "vectors.npz": npz}


@pytest.mark.parametrize("name", FILES)
def test_embeddings_of_a_file_are_normalised_by_frequency(tmp_path, name):
    vocabulary = text_data.vocabulary(TEXTS, 100)
    rng = np.random.default_rng(0)
    vectors = dict(zip(vocabulary.words[2:], rng.normal(3, 0.1, size=(6, 4)).astype(np.float32), strict=True))
    others = [("New York", rng.normal(size=4)), ("Dog", rng.normal(size=4)), ("dog", rng.normal(size=4))]
    path = FILES[name](tmp_path / name, [*vectors.items(), *others])
    table, missing = text_data.embeddings(vocabulary, 4, KEY, path=path)
    assert missing == 0
    words = np.float64([vectors[word] for a_text in TEXTS for word in words_of(a_text)])
    want = (np.float64(list(vectors.values())) - words.mean(0)) / words.std(0)
    np.testing.assert_allclose(table[2:], want, atol=1e-5)
    assert not table[text_data.PADDING].any()


@pytest.mark.parametrize("name", FILES)
def test_words_that_a_file_lacks_are_drawn_at_the_scale_of_the_others_and_counted(tmp_path, name):
    texts = [" ".join(f"w{i}" for i in range(start, 400)) for start in (0, 200)]
    vocabulary = text_data.vocabulary(texts, 350)
    rng = np.random.default_rng(0)
    vectors = [(f"w{i}", rng.normal(7, 0.01, size=4)) for i in range(0, 400, 2)]
    table, missing = text_data.embeddings(vocabulary, 4, KEY, path=FILES[name](tmp_path / name, vectors), mean=0.5)
    has = np.array([word in dict(vectors) for word in vocabulary.words])
    assert missing == 350 - has.sum()
    for part in (table[has], table[2:][~has[2:]]):
        assert part.mean(0) == pytest.approx(0.5, abs=0.3)
        assert part.std(0) == pytest.approx(1, abs=0.2)
    other, _ = text_data.embeddings(vocabulary, 4, jax.random.key(1), path=str(tmp_path / name), mean=0.5)
    slope = (other[has] - other[has].mean(0)) / (table[has] - table[has].mean(0))
    np.testing.assert_allclose(slope, np.broadcast_to(slope[0], slope.shape), rtol=0.02)  # one scale in each dimension
    assert (other[1:][~has[1:]] != table[1:][~has[1:]]).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "absent.txt cannot be read (No such file or directory)"),
        ("empty.txt", b"", "empty.txt is empty"),
        ("short.txt", b"dog 1\ncat 2\n", "short.txt, line 1 has 1 numbers after its word; data.embedding_size is 2"),
        ("long.txt", b"dog 1 2 3\ncat 2 1 4\n", "long.txt, line 1 has 3 numbers after its word; data.embedding_size"),
        ("cut.txt", b"dog 1 2\ncat 2", "cut.txt, line 2 has 1 numbers after its word"),
        ("words.txt", b"dog 1 2\ncat 1 x\n", "words.txt, line 2: could not convert string to float: 'x'; it takes"),
        ("nan.txt", b"dog 1 2\ncat 1 nan\n", "nan.txt, line 2: the vector of 'cat' is not finite"),
        ("latin.txt", b"dog 1 2\ncaf\xe9 1 2\n", "latin.txt, line 2: byte 4 of it is not UTF-8"),
        ("foreign.txt", b"chien 1 2\n", "foreign.txt has none of the 6 words, such as dog, the, bird, ... (6 in all)"),
        ("alone.txt", b"dog 1 2\n", "all 1 vectors have one value in dimension 1; variance 1 takes at least two"),
        ("flat.txt", b"dog 1 2\ncat 2 2\n", "all 2 vectors have one value in dimension 2"),
        ("damaged.npz", b"PK", "'{}/damaged.npz' is no npz file that can be read"),
        ("lacks.npz", {"words": np.array(["dog"])}, "lacks.npz has words <U3 (1,); it takes words, n strings, and"),
        (
            "size.npz",
            {"words": np.array(["dog", "cat"]), "vectors": np.ones((2, 3))},
            "vectors float64 (2, 3); it takes words, n strings, and vectors, n x 2 numbers (data.embedding_size)",
        ),
        (
            "bytes.npz",
            {"words": np.array([b"dog", b"cat"]), "vectors": np.ones((2, 2))},
            "bytes.npz has words |S3 (2,), vectors",
        ),
    ],
)
def test_files_of_embeddings_that_cannot_be_used_are_named(tmp_path, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        np.savez(tmp_path / name, **content)
    with pytest.raises(InputError) as error:
        text_data.embeddings(text_data.vocabulary(TEXTS, 100), 2, KEY, path=str(tmp_path / name))
    assert str(error.value).startswith("data.embeddings: ")
    assert message.format(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mr.txt", "snippets/movies.txt"])
def test_real_texts_become_ids_and_embeddings(shared_data, name):
    path = shared_data / "text" / name
    corpus = text_data.corpus("text", str(path))
    lines = path.read_bytes().decode().split("\n")[:-1]
    assert sorted([*corpus.train.texts, *corpus.test.texts]) == sorted(line[2:].strip() for line in lines)
    assert len(corpus.test.texts) == pytest.approx(len(lines) / 5, abs=2)
    labels = np.concatenate([corpus.train.labels, corpus.test.labels])
    assert labels.mean() == pytest.approx(np.mean([line[0] == "1" for line in lines]))
    vocabulary = text_data.vocabulary(corpus.train.texts, 1000)
    assert vocabulary.words[2] == "the"
    encoded = text_data.encode(corpus.test.texts, vocabulary, 32)
    for ids, a_text in zip(encoded.ids, corpus.test.texts, strict=True):
        words = words_of(a_text)
        assert (ids != text_data.PADDING).sum() == min(len(words), 32)
        for i, word in zip(ids, words, strict=False):
            assert vocabulary.words[i] in (word, "<unk>")
    table, _ = text_data.embeddings(vocabulary, 8, KEY)
    words = of_all_words(table, corpus.train.texts, vocabulary)
    np.testing.assert_allclose(words.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(words.var(0), 1, atol=1e-5)
