"""The layers and networks as Flax modules, in the order of the corresponding PyTorch modules.

Images are `[N, H, W, C]`; they are flattened as in PyTorch, channels first.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtrans.models import layers

zeros = nn.initializers.zeros  # modules only declare their arrays; `models._start` initialises them


class Dense(nn.Module):
    """A fully-connected layer; its kernel is `[F, C]`, which for small batches is faster to read than `[C, F]`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", zeros, (self.features, x.shape[-1]))
        return jnp.einsum("nc,fc->nf", x, kernel) + self.param("bias", zeros, (self.features,))[None]


class Conv(nn.Module):
    """A convolution with a square kernel."""

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        x = layers.convolve(x, self.param("kernel", zeros, shape), stride=self.stride, padding=self.padding)
        return x + self.param("bias", zeros, (self.features,))[None, None, None] if self.use_bias else x


class BatchNorm(nn.Module):
    """Batch normalisation as in PyTorch, with an unbiased running variance.

    The mode `apply` uses the running statistics; `train` the batch's, and moves the running ones a tenth of the way to
    them; `calibrate` the batch's, which become the running ones.
    """

    mode: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        scale, bias = self.param("scale", zeros, shape), self.param("bias", zeros, shape)
        running_mean, running_var = (self.variable("batch_stats", name, jnp.zeros, shape) for name in ("mean", "var"))
        if self.mode == "apply" or self.is_initializing():
            mean, var = running_mean.value, running_var.value
        else:
            mean = x.mean((0, 1, 2))
            var = jnp.square(x - mean[None, None, None]).mean((0, 1, 2))
            count = math.prod(x.shape[:-1])
            rate, new_var = (1.0, var) if self.mode == "calibrate" else (0.1, var * count / max(count - 1, 1))
            running_mean.value += rate * (mean - running_mean.value)
            running_var.value += rate * (new_var - running_var.value)
        factor = scale * jax.lax.rsqrt(var + 1e-5)
        return x * factor[None, None, None] + (bias - mean * factor)[None, None, None]


class MLP(nn.Module):
    """Fully-connected layers of the given widths, each with a ReLU, then a linear layer to the logits."""

    widths: Sequence[int]
    num_classes: int
    mode: str = "apply"
    dropout: float = 0.0  # after each ReLU, when training
    headless: bool = False  # return the input of the last layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # [N, C H W]
        for width in self.widths:
            x = nn.Dropout(self.dropout, deterministic=self.mode != "train")(nn.relu(Dense(width)(x)))
        return x if self.headless else Dense(self.num_classes)(x)


class Convolution(NamedTuple):
    """One convolution of a `CONVOLUTIONAL` network, and the layers that follow it."""

    kernel: int
    stride: int = 1
    padding: int = 0
    batch_norm: bool = False
    pool: bool = False  # a 2 x 2 max-pool after the ReLU


class Convolutional(nn.Module):
    """The convolutions of `plan`, each with a ReLU, then linear layers; further widths are of hidden linear layers."""

    plan: Sequence[Convolution]
    widths: Sequence[int]
    num_classes: int
    mode: str = "apply"
    average: int = 0  # average pooling to this many pixels per side before the linear layers; 0: none
    dropout: float = 0.0
    headless: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width, (kernel, stride, padding, batch_norm, pool) in zip(self.widths, self.plan, strict=False):
            x = Conv(width, kernel, stride, padding)(x)
            x = nn.relu(BatchNorm(self.mode)(x) if batch_norm else x)
            x = layers.max_pool(x) if pool else x
        x = layers.average_pool(x, self.average) if self.average else x
        return MLP(self.widths[len(self.plan) :], self.num_classes, self.mode, self.dropout, self.headless)(x)


class Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or a bottleneck of 1 x 1, 3 x 3 and 1 x 1 to four times the width."""

    width: int
    stride: int
    bottleneck: bool
    mode: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, norm = partial(Conv, use_bias=False), partial(BatchNorm, self.mode)
        features = 4 * self.width if self.bottleneck else self.width
        y = nn.relu(norm()(conv(self.width, 1)(x))) if self.bottleneck else x
        y = nn.relu(norm()(conv(self.width, 3, stride=self.stride, padding=1)(y)))
        y = norm()(conv(features, 1)(y) if self.bottleneck else conv(features, 3, padding=1)(y))
        if self.stride > 1 or x.shape[-1] != features:
            x = norm()(conv(features, 1, stride=self.stride)(x))
        return nn.relu(y + x)


class Residual(nn.Module):
    """A 3 x 3 stem, stages of residual blocks, global average pooling, a linear layer."""

    counts: Sequence[int]  # blocks in each stage
    bottleneck: bool
    widths: Sequence[int]
    num_classes: int
    mode: str = "apply"
    headless: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(BatchNorm(self.mode)(Conv(self.widths[0], 3, padding=1, use_bias=False)(x)))
        for stage, (width, count) in enumerate(zip(self.widths, self.counts, strict=True)):
            for i in range(count):
                x = Block(width, 2 if stage and not i else 1, self.bottleneck, self.mode)(x)
        x = x.mean((1, 2))
        return x if self.headless else Dense(self.num_classes)(x)
