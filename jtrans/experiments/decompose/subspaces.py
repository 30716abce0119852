"""Small subspaces of the inputs' space: which they are, and how they are fitted to rows of numbers.

A subspace is an orthonormal basis `[K, D]`, its most important directions first. It is fitted on other networks and
other examples than those measured.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import scipy.fft
import scipy.linalg
from flax.traverse_util import flatten_dict

from jtrans import directions, models
from jtrans.data import Dataset
from jtrans.models import Variables
from jtrans.models.text import KERNELS

NOTHING = "nothing"  # the subspace of no directions
WHOLE = ("mean_image", "constant_colours", "class_means")  # subspaces that are taken out whole, at no other rank
DEPENDENT = 1e-4  # of a row's length: what is left of it outside the rows before is rounding
BLOCK = 1000  # rows of a Gram matrix that are in memory at once


def leading(rows: np.ndarray, count: int, *, center: np.ndarray | float = 0.0) -> np.ndarray:
    """The first right singular vectors `[K, D]` of the rows, float32: K is `count`, or where fewer, the rows or D.

    Args:
      rows: `[R, D]`, numbers of any kind, taken as they are but for the center; those that are zero or not finite are
        left out.
      center: what is subtracted, as the rows' mean; `[D]`, or `[R, D]`, from each row its own.
    """
    rows, dimension = np.asarray(rows), rows.shape[1]
    centers = np.broadcast_to(center, rows.shape)
    starts = range(0, len(rows), BLOCK)
    blocks = lambda: (_usable(rows[i : i + BLOCK], centers[i : i + BLOCK]) for i in starts)
    used = sum(map(len, blocks()))
    if used == 0:
        return np.zeros((0, dimension), np.float32)
    scale = max(np.abs(block).max(initial=0) for block in blocks())
    scaled = (block / scale for block in blocks())  # products of very long or very short rows leave float32
    count = min(count, used, dimension)
    # The smaller of two Gram matrices: of the rows, or else of the values, which blocks of rows add up to.
    if used <= dimension:
        whole = np.fromiter(itertools.chain.from_iterable(scaled), (np.float32, dimension), used)
        basis = _leading_of_gram(whole @ whole.T, count) @ whole
        # Those of small singular values are no longer at right angles in float32.
        return np.ascontiguousarray(np.linalg.qr(basis.T)[0].T)
    gram = np.zeros((dimension, dimension), np.float32)
    for block in scaled:
        gram += block.T @ block
    return _leading_of_gram(gram, count)


def _usable(rows: np.ndarray, center: np.ndarray) -> np.ndarray:
    """The rows less the center in float32, without those that are zero or not finite."""
    centered = np.subtract(rows, center, dtype=np.float32)
    return centered[np.isfinite(centered).all(1) & centered.any(1)]


def _leading_of_gram(gram: np.ndarray, count: int) -> np.ndarray:
    """The eigenvectors `[count, D]` of a Gram matrix's largest eigenvalues, which overwrite the matrix."""
    # Its transpose is in Fortran's order, which LAPACK takes without a copy.
    _, vectors = scipy.linalg.eigh(gram.T, subset_by_index=(len(gram) - count, len(gram) - 1), overwrite_a=True)
    return np.ascontiguousarray(vectors.T[::-1])


def updates(
    name: str, shape: Sequence[int], before: Sequence[np.ndarray], after: Sequence[np.ndarray], count: int
) -> np.ndarray:
    """The directions among inputs `[K, D]` in which networks' first layers have moved most: `leading` of the rows.

    The rows are the filters' updates, a row for each place where a filter acts, with zeros at all values that it does
    not see there. Where the filters act on each word alone, every direction among a word's values comes as often as
    there are words, equally long: first the same at all words, then with its size a cosine over the words.

    Args:
      name: the architecture.
      shape: that of an input, `(height, width, channels)` or `(length, embedding)`.
      before, after: `first_kernels` of M networks.
    """
    seen, dimension = list(_seen(name, shape).values()), math.prod(shape)
    if np.array_equal(np.sort(seen[0], axis=None), np.arange(dimension)):  # each value is seen at one place
        (places,) = seen
        over_places = scipy.fft.dct(np.eye(len(places)), axis=0, norm="ortho")  # the first is constant
        over_places = over_places[: 1 if name in models.SAME_AT_WORDS else count]
        of_filters = leading(_rows(after)[0], math.ceil(count / len(over_places)), center=_rows(before)[0])
        basis = np.einsum("jp,iv->ijpv", over_places.astype(np.float32), of_filters).reshape(-1, dimension)
        return basis[:count, places.ravel().argsort()]
    filters = [_usable(*both) for both in zip(_rows(after), _rows(before), strict=True)]
    if (scale := max(np.abs(rows).max(initial=0) for rows in filters)) == 0:
        return np.zeros((0, dimension), np.float32)
    gram = np.zeros((dimension, dimension), np.float32)
    for rows, places in zip(filters, seen, strict=True):
        rows = rows / scale  # products of very long or very short ones leave float32
        of_filters = rows.T @ rows
        for numbers in places:
            inside = numbers >= 0
            gram[np.ix_(numbers[inside], numbers[inside])] += of_filters[np.ix_(inside, inside)]
    return _leading_of_gram(gram, min(count, dimension))


def first_kernels(name: str, shape: Sequence[int], variables: Variables) -> list[np.ndarray]:
    """The kernels of the first layer of M networks, on the host: linear `[M, F, V]`, convolutions `[M, ..., C, F]`."""
    flat = flatten_dict(variables["params"])
    return [np.asarray(flat[path]) for path in _seen(name, shape)]


def _rows(kernels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The filters `[M * F, V]` of each of the kernels."""
    filters_first = [k if k.ndim == 3 else np.moveaxis(k, -1, 1) for k in kernels]
    return [k.reshape(k.shape[0] * k.shape[1], -1) for k in filters_first]


def _seen(name: str, shape: Sequence[int]) -> dict[tuple[str, ...], np.ndarray]:
    """Which values of an input the filters of the named network's first layer see, by the paths of their kernels.

    `[P, V]` for filters of V weights that act at P places: the values' numbers in the flattened input, in the order of
    a filter's weights; -1 in the padding. Filters that act on the mean of all words act at each with the same weights.
    """
    inner = np.arange(math.prod(shape)).reshape(shape)
    if name == "text_mean":
        return {("MLP_0", "Dense_0", "kernel"): inner}
    if name == "text_cnn":
        return {(f"Conv1d_{i}", "kernel"): _windows(inner, (k,), k - 1, 1) for i, k in enumerate(KERNELS)}
    if name in models.TEXT:
        return {("LSTM_0", "word_kernel") if name == "text_lstm" else ("projection", "kernel"): inner}
    layer, convolution = models.first_layer(name)
    if convolution is None:
        return {(layer, "kernel"): np.moveaxis(inner, -1, 0).reshape(1, -1)}
    side = convolution.kernel
    return {(layer, "kernel"): _windows(inner, (side, side), convolution.padding, convolution.stride)}


def _windows(inner: np.ndarray, kernel: tuple[int, ...], padding: int, stride: int) -> np.ndarray:
    """What a kernel sees of `inner` `[..., C]` at each place, `[P, V]`; -1 in the padding."""
    padded = np.pad(inner, [(padding, padding)] * len(kernel) + [(0, 0)], constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (*kernel, inner.shape[-1]))
    windows = windows[(slice(None, None, stride),) * len(kernel)]
    return windows.reshape(-1, math.prod(kernel) * inner.shape[-1])


def of_examples(dataset: Dataset, key: jax.Array, count: int, *, subtract_mean: bool) -> dict[str, np.ndarray]:
    """The subspaces that need no network, by name; of `count` directions at most, but for those of `WHOLE`.

    Those of training examples are of these as networks see them, texts embedded, images without their mean if
    `subtract_mean`. That holds for `random_images` too, since the update of a fully-connected first layer is a mixture
    of images with their mean.
    """
    inputs, labels = dataset.train
    if dataset.lexicon:  # images stay uint8, in a quarter of the memory: their scale changes no direction
        inputs = dataset.lexicon.table[inputs]
    rows = inputs.reshape(len(inputs), -1)
    mean = rows.mean(0, keepdims=True, dtype=np.float32)
    center = mean if subtract_mean else 0.0  # networks see another scale, which changes no direction
    noise = directions.random(key, np.zeros((count, rows.shape[1]), np.float32))
    weights = directions.random(jax.random.fold_in(key, count), np.zeros((count, len(rows)), np.float32))
    return {
        "random": leading(noise, count),
        "random_images": orthonormal(mixtures(rows, np.asarray(weights), center=center)),
        "mean_image": leading(mean, 1),
        "constant_colours": constant_colours(inputs.shape[1:]),
        "class_means": class_means(rows, labels),
        "training_images": leading(rows, count, center=center),
    }


def mixtures(rows: np.ndarray, weights: np.ndarray, *, center: np.ndarray | float = 0.0) -> np.ndarray:
    """Mixtures `[K, D]` of the rows `[R, D]` less the center, `weights [K, R]` of each row.

    By weights of normal noise, they are normal noise with the second moments of the rows: with the covariance of images
    where the center is their mean.
    """
    starts = range(0, len(rows), BLOCK)
    blocks = (np.subtract(rows[i : i + BLOCK], center, dtype=np.float32) for i in starts)
    return sum(weights[:, i : i + BLOCK] @ block for i, block in zip(starts, blocks, strict=True))


def orthonormal(rows: np.ndarray) -> np.ndarray:
    """A basis, float32, whose first k directions span the first k rows; rows that depend on those before add none."""
    basis = np.zeros((0, rows.shape[1]))
    for row in rows.astype(np.float64):
        off = row - row @ basis.T @ basis
        off -= off @ basis.T @ basis  # once more, against rounding
        if (length := np.linalg.norm(off)) > DEPENDENT * np.linalg.norm(row):
            basis = np.concatenate([basis, off[None] / length])
    return basis.astype(np.float32)


def constant_colours(shape: Sequence[int]) -> np.ndarray:
    """The input of each channel that has one value everywhere, `[C, D]`, of inputs of a shape `(..., C)`."""
    positions = math.prod(shape[:-1])
    return np.tile(np.eye(shape[-1], dtype=np.float32), positions) / np.float32(math.sqrt(positions))


def class_means(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The differences between the means of K classes, `[K - 1, D]`, or fewer where some depend on the others."""
    means = np.stack([rows[labels == label].mean(0, dtype=np.float64) for label in np.unique(labels)])
    return orthonormal(means[1:] - means[0])


def padded(basis: np.ndarray, count: int) -> np.ndarray:
    """The basis with rows of zeros, which take nothing out, up to `count` rows: bases of one shape for one program."""
    return np.pad(basis, ((0, count - len(basis)), (0, 0)))


def ranked(subspaces: Mapping[str, np.ndarray], ranks: Sequence[int]) -> Iterator[tuple[str, int, np.ndarray]]:
    """The name, the number of directions and the basis, all of one shape, of nothing and of each subspace.

    Each subspace at each of the ranks that it has; those of `WHOLE` whole.
    """
    count = max(ranks[-1], *map(len, subspaces.values()))
    yield NOTHING, 0, padded(next(iter(subspaces.values()))[:0], count)
    for name, basis in subspaces.items():
        for rank in (len(basis),) if name in WHOLE else ranks:
            if 0 < rank <= len(basis):
                yield name, rank, padded(basis[:rank], count)
