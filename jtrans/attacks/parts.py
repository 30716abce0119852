"""The parts of iterative attacks: input transforms, a smoothing of the gradient, accumulators of gradients.

Keys are those `[N]` of the examples for one gradient, or None where the attack was given no key.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import directions, loops
from jtrans.attacks.balls import sums


class Scaled(NamedTuple):
    """Each example's vector, `[N, ...]`, times `exp(log_scale)`, `[N, 1, ...]`: gradients of a size beyond float32.

    The gradient of a confident network's cross entropy rounds to zero. Kept apart from its scale it does not, and it
    still counts by its size where gradients are added.
    """

    vector: jax.Array
    log_scale: jax.Array

    @classmethod
    def zero(cls, x: jax.Array) -> "Scaled":
        """Zeros shaped like `x`."""
        return cls(jnp.zeros_like(x), jnp.full_like(sums(x), jnp.finfo(x.dtype).min))

    def plus(self, other: "Scaled") -> "Scaled":
        """The sum."""
        larger = jnp.maximum(self.log_scale, other.log_scale)
        first, second = (part.vector * jnp.exp(part.log_scale - larger) for part in (self, other))
        return Scaled(first + second, larger)

    def times(self, factor: float) -> "Scaled":
        """The product with a number."""
        return self._replace(vector=factor * self.vector)


def total(count: int, term: Callable[[Any], Scaled], x: jax.Array) -> Scaled:
    """The sum of the terms 0 to `count - 1`, shaped like `x`. One at a time: together they may not fit in memory."""
    if count == 1:
        return term(0)
    add = lambda carry: (carry[0] + 1, carry[1].plus(term(carry[0])))
    return loops.repeat(count, add, (0, Scaled.zero(x)))[1]


def over_l1(gradient: jax.Array) -> jax.Array:
    """Each example's gradient over its L1 norm; zero where it is zero."""
    size = sums(jnp.abs(gradient))
    return gradient / jnp.where(size == 0, 1, size)


class Transform(NamedTuple):
    """An input transform: the losses of several views of the input are added.

    Attributes:
      views: how many.
      view: `(x, keys, i)`: view i of the inputs, shaped like `x`.
    """

    views: int
    view: Callable[[jax.Array, jax.Array | None, Any], jax.Array]


def diverse_inputs(probability: float = 0.5, resize: float = 330 / 299) -> Transform:
    """Diverse inputs (DI): images `[N, H, W, C]` enlarged at random and padded with zeros (Xie et al. 2019).

    With this probability an image is enlarged to a random size, from its own (299 in the paper) up to, but not
    including, `resize` times its own (330), and placed at random in a frame of zeros of that largest size. Since a
    network takes images of one size, the frame is reduced to it, as in later implementations. Like them it interpolates
    bilinearly, without antialiasing, where the authors' code takes the nearest pixel. Each image has draws of its own
    for each gradient.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability: got {probability}; it takes 0 to 1")
    if resize <= 1:
        raise ValueError(f"resize: got {resize}; it takes more than 1")

    def view(x: jax.Array, keys: jax.Array | None, i: Any) -> jax.Array:
        height, width = _image_size(x, "diverse_inputs")
        draws = jax.vmap(lambda k: jax.random.uniform(k, (4,), x.dtype))(directions.example_keys(keys, len(x)))
        transformed, enlargement, top, left = draws.T
        rows, columns = (_diverse(n, resize, enlargement, place) for n, place in ((height, top), (width, left)))
        diverse = jnp.einsum("nhi,nijc,nwj->nhwc", rows, x, columns, precision="highest")
        return jnp.where((transformed < probability).reshape(-1, 1, 1, 1), diverse, x)

    return Transform(1, view)


def scale_copies(views: int = 5) -> Transform:
    """Scale invariance (SI): the inputs divided by 1, 2, 4 and so on (Lin et al. 2020)."""
    if views < 1:
        raise ValueError(f"views: got {views}; it takes 1 or more")
    return Transform(views, lambda x, keys, i: x / (1 << i))


def gaussian_smoothing(size: int = 15) -> Callable[[jax.Array], jax.Array]:
    """Translation invariance (TI): the gradient of images `[N, H, W, C]` convolved with a Gaussian (Dong et al. 2019).

    The kernel has `size` x `size` values, an odd number, and ends at three standard deviations; beyond the image the
    gradient is taken to be zero. The paper has 15 for images of 299 x 299; Lin et al. (2020) have 7.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size: got {size}; it takes an odd number, 1 or more")
    kernel = np.exp(-(np.linspace(-3, 3, size) ** 2) / 2)
    kernel /= kernel.sum()

    def smooth(gradient: jax.Array) -> jax.Array:
        # The kernel is separable: products with banded matrices, as convolutions in loops are slow on a CPU.
        banded = lambda n: sum(weight * np.eye(n, k=k) for k, weight in enumerate(kernel, -(size // 2)))
        rows, columns = (jnp.asarray(banded(n), gradient.dtype) for n in _image_size(gradient, "gaussian_smoothing"))
        return jnp.einsum("hi,nijc,wj->nhwc", rows, gradient, columns, precision="highest")

    return smooth


Near = Callable[[int, float], Scaled]


class Accumulator(NamedTuple):
    """What makes the direction of a step of the gradients so far.

    Attributes:
      start: `(x)`: its memory before the first step.
      ahead: `(memory)`: how far ahead of the adversarial inputs the gradient is taken, 1 being a step.
      update: `(memory, here, near)`: the memory and the direction, from the gradient here, and from `near(count,
        radius)`, the mean gradient at that many random points within `radius` times epsilon of the adversarial inputs.
    """

    start: Callable[[jax.Array], Any]
    ahead: Callable[[Any], Any]
    update: Callable[[Any, Scaled, Near], tuple[Any, jax.Array]]


LAST_GRADIENT = Accumulator(lambda x: None, lambda memory: 0.0, lambda memory, here, near: (None, here.vector))


def momentum(decay: float = 1.0) -> Accumulator:
    """Momentum (MI): `decay` times the last direction plus the gradient over its L1 norm (Dong et al. 2018, eq. 6)."""

    def update(direction: jax.Array, here: Scaled, near: Near) -> tuple[jax.Array, jax.Array]:
        direction = decay * direction + over_l1(here.vector)
        return direction, direction

    return Accumulator(jnp.zeros_like, lambda direction: 0.0, update)


def nesterov(decay: float = 1.0) -> Accumulator:
    """Nesterov's accelerated gradient (NI): momentum, with the gradient taken ahead (Lin et al. 2020).

    It looks `decay` times the last direction ahead, where a first gradient of equal absolute values would be one step.
    So it is in the authors' code, which divides gradients by their mean absolute value: by the L1 norm, which the paper
    writes, the look-ahead would vanish.
    """
    return momentum(decay)._replace(ahead=lambda direction: decay * direction)


def variance_tuned(accumulator: Accumulator, count: int = 20, radius: float = 1.5) -> Accumulator:
    """Variance tuning: VMI of `momentum`, VNI of `nesterov` (Wang and He 2021, Algorithm 1).

    At each step the mean of `count` gradients at random points within `radius` times epsilon of the adversarial inputs,
    minus the gradient, is kept and added to the next step's gradient.
    """
    if count < 1:
        raise ValueError(f"count: got {count}; it takes 1 or more")
    if radius < 0:
        raise ValueError(f"radius: got {radius}; it takes 0 or more")

    def update(memory: Any, here: Scaled, near: Near) -> tuple[Any, jax.Array]:
        inner, variance = memory
        inner, direction = accumulator.update(inner, here.plus(variance), near)
        return (inner, near(count, radius).plus(here.times(-1))), direction

    return Accumulator(
        lambda x: (accumulator.start(x), Scaled.zero(x)), lambda memory: accumulator.ahead(memory[0]), update
    )


def _image_size(x: jax.Array, part: str) -> tuple[int, int]:
    if x.ndim != 4:
        raise ValueError(f"x: got shape {x.shape}; {part} takes images [N, H, W, C]")
    _, height, width, _ = x.shape
    return height, width


def _diverse(size: int, resize: float, enlargement: jax.Array, place: jax.Array) -> jax.Array:
    """`[N, size, size]`: what `diverse_inputs` does to each image along one axis, from draws `[N]` in [0, 1)."""
    frame = max(size + 1, round(size * resize))
    enlarged = size + jnp.floor(enlargement * (frame - size))
    offset = jnp.floor(place * (frame - enlarged + 1))
    position = jnp.arange(frame)[None] - offset[:, None]
    inside = (position >= 0) & (position < enlarged[:, None])
    enlarge = inside[..., None] * _bilinear((position + 0.5) * (size / enlarged)[:, None] - 0.5, size)
    reduce = _bilinear((jnp.arange(size) + 0.5) * (frame / size) - 0.5, frame)
    return jnp.einsum("if,nfj->nij", reduce, enlarge, precision="highest")


def _bilinear(position: jax.Array, size: int) -> jax.Array:
    """`[..., size]`: the weights of `size` pixels in the value at a position `[...]`; beyond them, the last pixel's."""
    pixel = jnp.arange(size).reshape(*[1] * position.ndim, -1)
    return jnp.maximum(1 - jnp.abs(jnp.clip(position, 0, size - 1)[..., None] - pixel), 0)
