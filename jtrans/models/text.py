"""The networks of texts as Flax modules, each equal to PyTorch's layers of the same names.

Embedded texts are `x` `[N, L, E]`, and `mask` `[N, L]` is True where there is a word. Nothing depends on `x` at other
positions, where the gradient is exactly 0, nor on how many of them follow the last word.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtrans.models import layers
from jtrans.models.modules import MLP, Dense, zeros

KERNELS = (3, 4, 5)  # words under the convolutions of Kim (2014), section 3.1
HEADS = 4


def words_alone(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The vectors of words, and zeros elsewhere."""
    return jnp.where(mask[..., None], x, 0)


def mean_of_words(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the words of a text, `[N, E]`; of a text without words 0."""
    return words_alone(x, mask).sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)


def at_each_position(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """A layer that takes `[N, C]`, applied to `[N, L, C]`."""
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


class TextMean(nn.Module):
    """The mean over words, then fully-connected layers."""

    widths: Sequence[int]
    num_classes: int
    mode: str = "apply"
    headless: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        return MLP(self.widths, self.num_classes, self.mode, headless=self.headless)(mean_of_words(x, mask))


class Conv1d(nn.Module):
    """A convolution along a text, at every window that reaches into it: `[N, L, E]` to `[N, L + kernel - 1, F]`."""

    features: int
    kernel: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", zeros, (self.kernel, x.shape[-1], self.features))
        padded = jnp.pad(x, ((0, 0), (self.kernel - 1,) * 2, (0, 0)))
        convolved = layers.convolve(padded[:, :, None], kernel[:, None])[:, :, 0]  # as an image of one column
        return convolved + self.param("bias", zeros, (self.features,))[None, None]


class TextCNN(nn.Module):
    """Convolutions of `KERNELS` words side by side, the maximum of each feature over the text, a ReLU (Kim 2014).

    The first three widths are those of the convolutions; further ones are of hidden linear layers. As in Kim's code,
    windows reach over both ends of a text; those that hold no word do not count. His dropout and his bound on the last
    layer's weights are left out.
    """

    widths: Sequence[int]
    num_classes: int
    mode: str = "apply"
    headless: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x, features = words_alone(x, mask), []
        for width, kernel in zip(self.widths, KERNELS, strict=False):
            y = Conv1d(width, kernel)(x)
            shifted = [jnp.pad(mask, ((0, 0), (i, kernel - 1 - i))) for i in range(kernel)]
            holds_word = functools.reduce(operator.or_, shifted)
            features.append(nn.relu(jnp.where(holds_word[..., None], y, -jnp.inf).max(1)))
        hidden = self.widths[len(KERNELS) :]
        return MLP(hidden, self.num_classes, self.mode, headless=self.headless)(jnp.concatenate(features, axis=1))


class LSTM(nn.Module):
    """The state `[N, H]` of an LSTM after the last word.

    The gates are in PyTorch's order: input, forget, cell, output. The biases, of the words and of the state, are added;
    as in PyTorch there are two, since one would take half the step in training.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        # All arrays of the layer start by the fan-in of the one named `kernel`, in PyTorch H.
        kernel = self.param("kernel", zeros, (4 * self.features, self.features))
        of_words = self.param("word_kernel", zeros, (4 * self.features, x.shape[-1]))
        bias = self.param("bias", zeros, (2, 4 * self.features))
        from_words = jnp.einsum("nlc,fc->lnf", x, of_words) + bias.sum(0)[None, None]

        def step(state: tuple[jax.Array, jax.Array], word: tuple[jax.Array, jax.Array]):
            (hidden, cell), (from_word, is_word) = state, word
            gates = from_word + jnp.einsum("nc,fc->nf", hidden, kernel)
            put_in, keep, candidate, put_out = jnp.split(gates, 4, axis=1)
            next_cell = nn.sigmoid(keep) * cell + nn.sigmoid(put_in) * jnp.tanh(candidate)
            next_hidden = nn.sigmoid(put_out) * jnp.tanh(next_cell)
            after = lambda new, old: jnp.where(is_word[:, None], new, old)
            return (after(next_hidden, hidden), after(next_cell, cell)), None

        start = jnp.zeros((len(x), self.features), from_words.dtype)
        (hidden, _), _ = jax.lax.scan(step, (start, start), (from_words, mask.T))
        return hidden


class TextLSTM(nn.Module):
    """An LSTM's state after the last word; the first width is the state's, further ones are of hidden linear layers."""

    widths: Sequence[int]
    num_classes: int
    mode: str = "apply"
    headless: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        state = LSTM(self.widths[0])(words_alone(x, mask), mask)
        return MLP(self.widths[1:], self.num_classes, self.mode, headless=self.headless)(state)


def positions(length: int, width: int) -> np.ndarray:
    """Sines and cosines of each position, `[length, width]` (Vaswani et al. 2017, section 3.5); `width` is even."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, width)


layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)  # PyTorch's


class Attention(nn.Module):
    """Self-attention of `HEADS` heads to the words alone (Vaswani et al. 2017)."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        joint = at_each_position(Dense(3 * x.shape[-1], name="in_proj"), x)
        by_head = joint.reshape(*x.shape[:2], 3, HEADS, -1)
        query, key, value = (by_head[:, :, i] for i in range(3))
        attended = nn.dot_product_attention(query, key, value, mask=mask[:, None, None])
        return at_each_position(Dense(x.shape[-1], name="out_proj"), attended.reshape(x.shape))


class TransformerLayer(nn.Module):
    """Self-attention, then two fully-connected layers at each position, each on top of layer normalisation and added.

    That order is called pre-norm (Xiong et al. 2020, arXiv 2002.04745), in PyTorch `norm_first`.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + Attention()(layer_norm()(x), mask)
        y = nn.relu(at_each_position(Dense(self.hidden, name="linear1"), layer_norm()(x)))
        return x + at_each_position(Dense(x.shape[-1], name="linear2"), y)


class TextTransformer(nn.Module):
    """Words projected to the first width and added to `positions`, pre-norm layers, the mean over words.

    There is a layer for each further width, which is that of its hidden layer; the first is a multiple of `HEADS`. The
    last linear layer takes the mean of what a last layer normalisation gives.
    """

    widths: Sequence[int]
    num_classes: int
    mode: str = "apply"
    headless: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        width, *hidden = self.widths
        x = at_each_position(Dense(width, name="projection"), words_alone(x, mask))
        x = x + jnp.asarray(positions(x.shape[1], width), x.dtype)[None]
        for size in hidden:
            x = TransformerLayer(size)(x, mask)
        features = mean_of_words(layer_norm()(x), mask)
        return MLP((), self.num_classes, self.mode, headless=self.headless)(features)
