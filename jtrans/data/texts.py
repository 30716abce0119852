"""Data sets of texts: strings with labels; their words as token ids; the table of embeddings.

A text becomes a row of int32 ids, and each id a row of one frozen table that all networks share. So the input of a
network is an array `[N, L, E]`, where padding is zero.

What counts as a word is what scikit-learn's `CountVectorizer` takes for one: a run of two or more letters, digits or
underscores, in lower case. Punctuation, white space and single letters only separate words.
"""

import codecs
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jtrans import files
from jtrans.data import sets
from jtrans.data.sets import Dataset, Lexicon, Split
from jtrans.errors import InputError, listed, one_line

TEXT = "text"  # in place of the name of a TensorFlow Datasets set
FILES = {"train": "train.txt", "test": "test.txt"}  # of a folder
CLASSES_FILE = "classes.txt"
NOT_DOMAINS = (*FILES.values(), CLASSES_FILE)  # a folder with one of these is of one data set
PADDING, UNKNOWN = 0, 1  # token ids
SPECIAL = ("<pad>", "<unk>")  # in place of the words with these ids
FORM = "a whole number, a space and the text"


class Texts(NamedTuple):
    """Texts and their labels `[N]`, int32 in [0, K)."""

    texts: tuple[str, ...]
    labels: np.ndarray


class Corpus(NamedTuple):
    """Disjoint texts to train on and to measure on; `origin` says in words where the test texts come from."""

    train: Texts
    test: Texts
    class_names: tuple[str, ...]
    origin: str


class Vocabulary(NamedTuple):
    """The words that have an id of their own.

    Attributes:
      words: `[V]`, the word of each id; `SPECIAL` for padding and for unknown words, then by falling frequency.
      counts: `[V]`, int64, how often each id stands in the texts from which the vocabulary is made; 0 for padding.
    """

    words: tuple[str, ...]
    counts: np.ndarray


class Encoded(NamedTuple):
    """Texts as token ids.

    Attributes:
      ids: `[N, L]`, int32, `PADDING` after the last word.
      unknown: how many of these words are not in the vocabulary.
      cut: how many words more the texts have, after the first L.
    """

    ids: np.ndarray
    unknown: int
    cut: int


class Embeddings(NamedTuple):
    """`table`: `[V, E]`, float32, the vector of each id, zero for padding. `missing`: words that the file lacks."""

    table: np.ndarray
    missing: int


class Embedding(NamedTuple):
    """How texts become arrays `[N, L, E]`.

    Attributes:
      vocabulary: how many words have a vector of their own, the most frequent of the training texts of all classes.
      max_length: L, the words of a text that are kept, its first.
      size: E.
      path: a file of vectors, as in `embeddings`; empty: they are random.
      mean: added to each value.
      seed: of the random vectors, the same for all networks and runs unless another is given.
    """

    vocabulary: int = 10_000
    max_length: int = 32
    size: int = 64
    path: str = ""
    mean: float = 0.0
    seed: int = 0


def has(name: str, directory: str) -> bool:
    """Whether the named data set is one of texts; InputError if it is none at all."""
    if name in sets.NAMES:
        return name == TEXT
    import tensorflow_datasets as tfds

    features = sets.builder_of(name, directory).info.features
    is_dict = isinstance(features, tfds.features.FeaturesDict)
    return is_dict and "image" not in features and any(isinstance(f, tfds.features.Text) for f in features.values())


def load(name: str, *, directory: str, classes: Sequence[str], embedding: Embedding) -> Dataset:
    """Texts by name, as `data.load` says, as token ids."""
    every = corpus(name, directory)
    words = vocabulary(every.train.texts, embedding.vocabulary)
    train, test = (encode(part.texts, words, embedding.max_length) for part in (every.train, every.test))
    key = jax.random.key(embedding.seed)
    table, missing = embeddings(words, embedding.size, key, path=embedding.path, mean=embedding.mean)
    for part, encoded in (("training", train), ("test", test)):
        total = np.count_nonzero(encoded.ids)
        what = f"{encoded.unknown} of {total} words of the {part} texts are unknown"
        print(f"note: {what}; {encoded.cut} words after the first {embedding.max_length} of a text are left out")
    if embedding.path:
        print(f"note: {missing} of {len(table) - len(SPECIAL)} words of the vocabulary are not in {embedding.path}")
    lexicon = Lexicon(words.words, table)
    splits = Split(train.ids, every.train.labels), Split(test.ids, every.test.labels)
    whole = Dataset(*splits, every.class_names, every.origin, lexicon.inputs(), lexicon)
    dataset = sets.of_classes(whole, classes, "data.classes")
    for filled, labels in (("train", dataset.train.labels), (f"the test texts, {every.origin}", dataset.test.labels)):
        if absent := [c for k, c in enumerate(dataset.class_names) if k not in labels]:
            raise InputError(f"data.classes: class {absent[0]!r} has no text in {filled}; leave it out or add texts")
    return dataset


def corpus(name: str, directory: str = "") -> Corpus:
    """The named set of texts, as `data.load` says."""
    read = _files if name == TEXT else partial(_tensorflow_datasets, name)
    class_names, parts = read(directory)
    sets.check_classes(class_names, class_names)
    train = parts["train"]
    if not train.texts:
        raise InputError("data.dir: no training text has a word; a word is a run of two or more letters or digits")
    for part in ("test", "validation"):
        # A test split whose labels are withheld has no text of any class.
        if part in parts and parts[part].texts:
            return Corpus(train, parts[part], class_names, f"the split {part!r}")
    train, test = _held_out(train)
    return Corpus(train, test, class_names, f"a fixed 1/{sets.TEST_SHARE} of each class of the split 'train'")


def vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """The `size` most frequent words of the texts, or all of fewer; of equally frequent ones the first by alphabet.

    Raises:
      ValueError: no text has a word.
    """
    vectorizer = _vectorizer()
    counts = np.asarray(vectorizer.fit_transform(texts).sum(axis=0, dtype=np.int64)).ravel()
    order = np.argsort(-counts, kind="stable")  # the vectorizer's words stand in alphabetical order
    kept, rest = np.split(counts[order], [size])
    words = vectorizer.get_feature_names_out()[order[:size]]
    return Vocabulary((*SPECIAL, *words.tolist()), np.concatenate([[0, rest.sum()], kept]))


def encode(texts: Sequence[str], vocabulary: Vocabulary, max_length: int) -> Encoded:
    """The first `max_length` words of each text as ids, with `PADDING` after them up to that length.

    Raises:
      InputError: a text has no word at all.
    """
    id_of = {word: i for i, word in enumerate(vocabulary.words)}
    ids, cut, words_of = np.full((len(texts), max_length), PADDING, np.int32), 0, _vectorizer().build_analyzer()
    for i, text in enumerate(texts):
        words = words_of(text)
        if not words:
            what = f"text {i + 1} of {len(texts)} has no word ({text[:60]!r})"
            raise InputError(f"data.dir: {what}; a word is a run of two or more letters or digits: remove that text")
        kept = [id_of.get(word, UNKNOWN) for word in words[:max_length]]
        ids[i, : len(kept)] = kept
        cut += len(words) - len(kept)
    return Encoded(ids, int((ids == UNKNOWN).sum()), cut)


def embeddings(vocabulary: Vocabulary, size: int, key: jax.Array, *, path: str = "", mean: float = 0.0) -> Embeddings:
    """A vector of `size` values for each id of the vocabulary, drawn from a normal distribution or read from a file.

    In each dimension the vectors are shifted and scaled to mean 0 and variance 1 over the words of the training texts
    (Miyato et al. 2017, arXiv 1605.07725, equation 1): with the frequency f_i of each id, v_i becomes
    `(v_i - sum_j f_j v_j) / sqrt(sum_j f_j (v_j - sum_k f_k v_k)^2)`. Then `mean` is added to each value, except for
    padding, which stays exactly 0.

    A word that the file lacks gets a random vector, with the mean and variance of those that it has; so does the vector
    of unknown words. If a file names a word twice, the first vector counts.

    Args:
      size: E.
      key: draws the random vectors.
      path: an npz file with `words` `[n]` and `vectors` `[n, E]`, or a text file as GloVe's: a word and E numbers a
        line, with spaces between them. Empty: all vectors are random.
      mean: added to each value.

    Raises:
      InputError: the file cannot be read, holds no such vectors or none of the words, or has another size; all vectors
        are the same in one dimension.
    """
    vectors = np.asarray(jax.random.normal(key, (len(vocabulary.words), size)), np.float64)
    missing = 0
    if path:
        found = _vectors(path, vocabulary, size)
        ids = np.array(list(found))
        vectors[ids] = _standardized(np.stack(list(found.values())), vocabulary.counts[ids])
        missing = len(vectors) - len(SPECIAL) - len(ids)
    table = (_standardized(vectors, vocabulary.counts) + mean).astype(np.float32)
    table[PADDING] = 0
    return Embeddings(table, missing)


def _standardized(vectors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Vectors `[n, E]` with mean 0 and variance 1 in each dimension, by how often each occurs."""
    frequency = counts / counts.sum()
    centered = vectors - frequency @ vectors
    variance = frequency @ np.square(centered)
    # Rounding alone may leave a little.
    if len(constant := np.flatnonzero(variance <= 1e-12 * np.square(vectors).max(axis=0))):
        what = f"all {np.count_nonzero(counts)} vectors have one value in dimension {constant[0] + 1}"
        raise InputError(f"data.embeddings: {what}; variance 1 takes at least two different words")
    return centered / np.sqrt(variance)


def _vectors(path: str, vocabulary: Vocabulary, size: int) -> dict[int, np.ndarray]:
    """The file's vectors of the vocabulary's words, by id."""
    id_of = {word: i for i, word in enumerate(vocabulary.words) if i >= len(SPECIAL)}
    found: dict[int, np.ndarray] = {}
    rows = _npz_vectors(path, size) if path.endswith(".npz") else _glove_vectors(path, size, id_of)
    for where, word, vector in rows:
        if word not in id_of:
            continue
        if not np.isfinite(vector).all():
            raise InputError(f"data.embeddings: {where}: the vector of {word!r} is not finite; it takes numbers")
        found.setdefault(id_of[word], vector)
    if not found:
        what = f"{path} has none of the {len(id_of)} words, such as {listed(tuple(id_of), 3)}"
        raise InputError(f"data.embeddings: {what}; it takes vectors of words in lower case")
    return found


def _npz_vectors(path: str, size: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Where each vector stands in the file, its word, and the vector."""
    try:
        arrays = files.read_npz(path)
    except InputError as error:
        raise InputError(f"data.embeddings: {error}") from error
    words, vectors = (arrays.get(name, np.empty(0)) for name in ("words", "vectors"))
    if words.dtype.kind != "U" or vectors.dtype.kind not in "iuf" or vectors.shape != (*words.shape, size):
        has = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        takes = f"words, n strings, and vectors, n x {size} numbers (data.embedding_size)"
        raise InputError(f"data.embeddings: {path} has {has}; it takes {takes}")
    for i, (word, vector) in enumerate(zip(words.tolist(), vectors, strict=True)):
        yield f"{path}, row {i}", word, vector


def _glove_vectors(path: str, size: int, wanted: Mapping[str, int]) -> Iterator[tuple[str, str, np.ndarray]]:
    """As `_npz_vectors`, of the wanted words alone."""
    for i, line in enumerate(_lines(Path(path), "data.embeddings")):
        where = f"{path}, line {i + 1}"
        word, *numbers = _decoded(line, where, "data.embeddings").rsplit(" ", size)  # a word may hold spaces
        if len(numbers) < size or (i == 0 and " " in word):
            what = f"{where} has {line.count(b' ')} numbers after its word"
            raise InputError(f"data.embeddings: {what}; data.embedding_size is {size}: set that to the file's")
        if word in wanted:
            try:
                yield where, word, np.array(numbers, np.float64)
            except ValueError as error:
                raise InputError(f"data.embeddings: {where}: {one_line(error)}; it takes numbers") from error


def _vectorizer():
    from sklearn.feature_extraction.text import CountVectorizer  # takes a second, so only where there are texts

    return CountVectorizer()


def _taken(texts: Texts, chosen: np.ndarray) -> Texts:
    """The texts where `chosen` `[N]` is True."""
    return Texts(tuple(itertools.compress(texts.texts, chosen)), texts.labels[chosen])


def _held_out(texts: Texts) -> tuple[Texts, Texts]:
    """All texts but a fixed share of each class, and that share: the same that `data.load` holds out of images."""
    members = [np.flatnonzero(texts.labels == k) for k in np.unique(texts.labels)]
    held_out = np.isin(np.arange(len(texts.labels)), np.concatenate(sets.held_out(members)[0]))
    return _taken(texts, ~held_out), _taken(texts, held_out)


def _with_words(texts: Texts, part: str, places: Sequence[str]) -> Texts:
    """The texts of a part that have a word; `places` says where each stands."""
    words_of = _vectorizer().build_analyzer()
    has_words = np.array([bool(words_of(text)) for text in texts.texts], bool)
    if len(wordless := np.flatnonzero(~has_words)):
        named = listed([f"{places[i]}: {texts.texts[i][:20]!r}" for i in wordless.tolist()], 3)
        print(f"note: {len(wordless)} of {len(has_words)} texts of {part} have no word and are left out ({named})")
    return _taken(texts, has_words)


def _files(directory: str) -> tuple[tuple[str, ...], dict[str, Texts]]:
    """The classes' names, and the texts of each split with their numbers among these."""
    root = Path(directory)
    if not directory or not root.exists():
        what = f"no file or folder {directory!r}"
        raise InputError(f"data.dir: {what}; name a folder with {' and '.join(FILES.values())}, or one file of texts")
    if not root.is_dir():
        return _numbered(root, {"train": root})
    if (domains := sorted(root.glob("*.txt"))) and not any((root / name).exists() for name in NOT_DOMAINS):
        return _domains(domains)
    paths = {part: root / name for part, name in FILES.items()}
    if absent := [path for path in paths.values() if not path.exists()]:
        raise InputError(f"data.dir: no {absent[0]}; a folder takes {' and '.join(FILES.values())}")
    return _numbered(root, paths)


def _domains(paths: Sequence[Path]) -> tuple[tuple[str, ...], dict[str, Texts]]:
    """As `_files`, of a folder of domains: their classes together, and no test texts."""
    each = [(path.stem, *_numbered(path, {"train": path})) for path in paths]
    names = [f"{domain}:{name}" for domain, of_domain, _ in each for name in of_domain]
    labels = [names.index(f"{domain}:{of_domain[0]}") + parts["train"].labels for domain, of_domain, parts in each]
    texts = tuple(itertools.chain.from_iterable(parts["train"].texts for _, _, parts in each))
    return tuple(names), {"train": Texts(texts, np.concatenate(labels))}


def _numbered(root: Path, paths: Mapping[str, Path]) -> tuple[tuple[str, ...], dict[str, Texts]]:
    """As `_files`, of these files of each split, with the names of the classes in `root` if it has them."""
    rows = {part: _rows(path) for part, path in paths.items()}
    names = {label: str(label) for label, _ in sorted(rows["train"])}
    if (names_file := root / CLASSES_FILE).exists():
        lines = enumerate(_lines(names_file))
        names = {i: _decoded(line, f"{names_file}, line {i + 1}").strip() for i, line in lines}
    number = {label: k for k, label in enumerate(names)}
    parts = {}
    for part, path in paths.items():
        labels, texts = zip(*rows[part], strict=True)
        places = [f"line {i + 1}" for i in range(len(texts))]
        if unknown := [i for i, label in enumerate(labels) if label not in number]:
            what = f"{path}, {places[unknown[0]]}: label {labels[unknown[0]]} is no class"
            raise InputError(f"data.dir: {what}; the labels are {listed(list(map(str, number)), 20)}")
        all_texts = Texts(texts, np.array([number[label] for label in labels], np.int32))
        parts[part] = _with_words(all_texts, path.name, places)
    return tuple(names.values()), parts


def _rows(path: Path) -> list[tuple[int, str]]:
    """The label and the text of each line."""
    return [_row(line, f"{path}, line {i + 1}") for i, line in enumerate(_lines(path))]


def _row(line: bytes, where: str) -> tuple[int, str]:
    label, _, text = _decoded(line, where).partition(" ")
    if not (label.isdecimal() and len(label) < 10):
        raise InputError(f"data.dir: {where}: the label is {label[:20]!r}; a line takes {FORM}")
    if not text.strip():
        raise InputError(f"data.dir: {where}: no text after the label; a line takes {FORM}")
    return int(label), text.strip()


def _lines(path: Path, field: str = "data.dir") -> list[bytes]:
    """The lines of a file that has some."""
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise InputError(f"{field}: {path} cannot be read ({error.strerror}); name one that can") from error
    lines = lines if lines[-1] else lines[:-1]
    if not lines:
        raise InputError(f"{field}: {path} is empty; it takes one or more lines")
    return lines


def _decoded(line: bytes, where: str, field: str = "data.dir") -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        what = f"{where}: byte {error.start + 1} of it is not UTF-8 ({error.reason})"
        raise InputError(f"{field}: {what}; save the file as UTF-8") from error


def _tensorflow_datasets(name: str, directory: str) -> tuple[tuple[str, ...], dict[str, Texts]]:
    """As `_files`, of a prepared data set."""
    builder = sets.builder_of(name, directory)
    feature, class_names = _feature(builder.info, name)

    def read(part: str) -> Texts:
        try:
            rows = builder.as_data_source(part)
            examples = [rows[i] for i in range(len(rows))]
            encoded, labels = [row[feature] for row in examples], np.array([row["label"] for row in examples], np.int32)
        except NotImplementedError as error:  # files in a format that only TensorFlow reads
            what = f"{name!r} in {builder.data_dir} is in a format that needs TensorFlow ({one_line(error)})"
            raise InputError(f"data.dir: {what}; prepare it again with file_format='array_record'") from error
        except Exception as error:  # readers may raise anything on a missing or damaged file
            what = f"{part} of {name!r} in {builder.data_dir} cannot be read ({one_line(error)})"
            raise InputError(f"data.dir: {what}; prepare it again") from error
        places = [f"example {i}" for i in range(len(rows))]
        where = [f"{part} of {name!r}, {place}" for place in places]
        texts = tuple(map(_decoded, encoded, where))
        all_texts = _with_words(Texts(texts, labels), part, places)
        with_label = (all_texts.labels >= 0) & (all_texts.labels < len(class_names))
        if outside := np.count_nonzero(~with_label):
            which = f"have no label from 0 to {len(class_names) - 1} and are left out"
            print(f"note: {outside} of {len(with_label)} texts of {part} {which}")
        return _taken(all_texts, with_label)

    splits = [part for part in ("train", "test", "validation") if part in builder.info.splits]
    if "train" not in splits:
        raise InputError(f"data.name: the splits of {name!r} are {', '.join(builder.info.splits)}; it takes a train")
    return class_names, {part: read(part) for part in splits}


def _feature(info, name: str) -> tuple[str, tuple[str, ...]]:
    """The name of the feature that holds the text, and those of the classes.

    Of several texts it is the one that the data set names as the input of its classification, as AG's News does with
    the description beside a title.
    """
    import tensorflow_datasets as tfds

    is_dict = isinstance(info.features, tfds.features.FeaturesDict)
    features = dict(sorted(info.features.items())) if is_dict else {}  # read from a file, they come in any order
    texts = [key for key, value in features.items() if isinstance(value, tfds.features.Text) and value.shape == ()]
    inputs = [key for key in texts if key in (info.supervised_keys or ())] or texts
    if len(inputs) != 1 or not isinstance(features.get("label"), tfds.features.ClassLabel):
        of_them = f"{', '.join(features) or 'none'}, of which texts {', '.join(texts) or 'none'}"
        raise InputError(f"data.name: {name!r} has the features {of_them}; name a set with one text and a class, label")
    return inputs[0], tuple(features["label"].names)
