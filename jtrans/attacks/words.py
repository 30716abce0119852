"""Attacks on words: some words of a text are substituted, and every other stays as it is.

A text is an array `[L, E]` of rows of one table `[V, E]` that all networks share. As in `data.texts`, row 0 is padding
and the only one of zeros, row 1 stands for unknown words, and from row 2 on each has a word. Padding is neither
substituted nor put in, and what is put in is a word of the table. So an adversarial text is again a text of as many
words, which can be read: `ids` and `marked` print it.

To a network two words with equal vectors are one word.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import directions, jacobian, loops
from jtrans.jacobian import Function

if TYPE_CHECKING:  # so that the package can import this module
    from jtrans.attacks import Attack

PADDING, FIRST_WORD = 0, 2  # rows of a table


def hotflip(table: np.ndarray, num_words: int, *, targeted: bool = False) -> "Attack":
    """Greedy first-order substitutions of words (Ebrahimi et al. 2018, arXiv 1712.06751).

    One word after another is substituted, where the cross entropy grows most to first order: by `g_i . (e_w - e_i)`,
    for the gradient `g_i` at position i of the text as it is by then, the vector `e_i` there and that of another word,
    `e_w`. No word is substituted twice, none where that is not above 0 or the gradient not finite. The paper's beam
    search, its insertions and deletions and its constraints that keep the meaning are left out. An ensemble is attacked
    by its mean logits.

    Args:
      table: `[V, E]`, as above.
      num_words: the largest number of words to substitute in a text.
      targeted: the labels are those to move towards: the cross entropy is descended.

    Raises:
      ValueError: the table has fewer than two words, or zeros in another row than 0; `num_words` is negative. The
        attack raises it where `x` is not `[N, L, E]`.

    The label's logit is the first value of the first word, and falls most with the third word of the table:

    >>> import jax.numpy as jnp
    >>> table = jnp.array([[0.0, 0.0], [1.0, 1.0], [3.0, 1.0], [2.0, 1.0], [-1.0, 1.0]])
    >>> hotflip(table, 1)(lambda x: x[:, 0], table[jnp.array([[2, 3, 0]])], jnp.array([0]))[0].tolist()
    [[-1.0, 1.0], [2.0, 1.0], [0.0, 0.0]]
    """
    rows = _words(table, num_words)

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        words, is_word = _like(rows, x), (x != 0).any(-1)

        def step(adversarial: jax.Array) -> jax.Array:
            # Unit vectors, since only the direction counts; NaN, which is not above 0, where there is none.
            gradient = directions.normalize(directions.loss_gradient(f, adversarial, y)).reshape(x.shape)
            gradient = -gradient if targeted else gradient
            best = words[_largest_products(words, gradient)]
            gain = (gradient * (best - adversarial)).sum(-1)  # exactly 0 where the best word stands there already
            gain = jnp.where(is_word & (adversarial == x).all(-1), gain, 0)
            is_largest = jnp.arange(x.shape[1])[None] == gain.argmax(1)[:, None]
            return jnp.where((is_largest & (gain > 0))[..., None], best, adversarial)

        return loops.repeat(min(num_words, x.shape[1]), step, x)

    return attack


def random_words(table: np.ndarray, num_words: int) -> "Attack":
    """The baseline of `hotflip`: random words of a text, each substituted by another one, uniformly random.

    It substitutes `num_words` words, or all of fewer, and needs a key: example i draws from `fold_in(key, i)`, and what
    it draws does not depend on the padding. Arguments and errors as of `hotflip`; ValueError without a key.
    """
    rows = _words(table, num_words)

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        words, is_word = _like(rows, x), (x != 0).any(-1)
        keys = directions.example_keys(key, len(x))
        rank, word, distance = _draws(keys, x.shape[1], len(words))
        # The second word, where the first stands there already, leaves all others equally likely.
        word = jnp.where((words[word] == x).all(-1), (word + distance) % len(words), word)
        place = jnp.where(is_word, rank, jnp.inf).argsort(1).argsort(1)
        return jnp.where((is_word & (place < num_words))[..., None], words[word], x)

    return attack


def ids(table: np.ndarray, x: jax.Array) -> np.ndarray:
    """The ids `[N, L]`, int32, of embedded texts `[N, L, E]`: the first row of the table that is equal.

    Raises:
      ValueError: a row of `x` is no row of the table.
    """
    # Adding 0 makes -0 a 0, since bytes are compared; float64 holds every value of both arrays.
    rows, vectors = (np.asarray(array, np.float64) + 0 for array in (table, x))
    id_of = {row.tobytes(): i for i, row in reversed(list(enumerate(rows)))}
    found = np.array([[id_of.get(row.tobytes(), -1) for row in text] for text in vectors], np.int32)
    if (found < 0).any():
        text, position = np.argwhere(found < 0)[0]
        raise ValueError(f"x: row {position} of text {text} is no row of the table; it takes texts that it embeds")
    return found


def marked(before: np.ndarray, after: np.ndarray, words: Sequence[str]) -> list[str]:
    """Attacked texts in words, `[old -> new]` where a word was substituted, without padding.

    Args:
      before, after: ids `[N, L]`.
      words: the word of each id.

    >>> marked([[3, 2, 0]], [[3, 4, 0]], ("<pad>", "<unk>", "good", "so", "bad"))
    ['so [good -> bad]']
    """
    before, after = np.asarray(before), np.asarray(after)
    if before.shape != after.shape:
        raise ValueError(f"before and after: got shapes {before.shape} and {after.shape}; they must be the same")
    shown = lambda old, new: words[old] if old == new else f"[{words[old]} -> {words[new]}]"
    pairs = (zip(*text, strict=True) for text in zip(before.tolist(), after.tolist(), strict=True))
    return [" ".join(shown(old, new) for old, new in text if old != PADDING) for text in pairs]


def _words(table: np.ndarray, num_words: int) -> np.ndarray:
    """The rows of a table that have a word; ValueError as of `hotflip`."""
    if num_words < 0:
        raise ValueError(f"num_words: got {num_words}; it takes 0 or more")
    table = np.asarray(table)
    if table.ndim != 2 or len(table) < FIRST_WORD + 2:
        raise ValueError(f"table: got shape {table.shape}; it takes [V, E], two rows and then two or more words")
    if (zero := np.flatnonzero(~table.any(axis=1)).tolist()) != [PADDING]:
        raise ValueError(f"table: rows {zero} are zero; row {PADDING} is padding, and must be the only one")
    return table[FIRST_WORD:]


def _like(rows: np.ndarray, x: jax.Array) -> jax.Array:
    """The rows, of the type of `x`; ValueError if `x` cannot be texts of such rows."""
    if x.ndim != 3 or x.shape[2] != rows.shape[1]:
        raise ValueError(f"x: got shape {x.shape}; it takes embedded texts [N, L, {rows.shape[1]}]")
    return jnp.asarray(rows, x.dtype)


@partial(jax.jit, static_argnums=(1, 2))
def _draws(keys: jax.Array, length: int, num_words: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each position, `[N, L]`: a rank among all, the number of a word, the distance to the number of another."""

    def draw(key: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        of_rank, of_word, of_distance = jax.random.split(jax.random.fold_in(key, position), 3)
        number = jax.random.randint(of_word, (), 0, num_words)
        return jax.random.uniform(of_rank), number, jax.random.randint(of_distance, (), 1, num_words)

    return jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(keys, jnp.arange(length))


def _largest_products(words: jax.Array, gradient: jax.Array) -> jax.Array:
    """The number of the word whose product with the gradient `[N, L, E]` is largest, at each position `[N, L]`.

    Position by position in batches: all products together, `[N, L, V]`, would be gigabytes.
    """
    largest = lambda words, rows: (None, jnp.matmul(rows, words.T, precision="highest").argmax(1))
    flat = gradient.reshape(-1, gradient.shape[2])
    _, numbers = loops.in_batches(largest, jacobian.batch_size_for(len(words)), flat, whole=(words,))
    return numbers.reshape(gradient.shape[:2])
