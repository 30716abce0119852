"""The networks of both papers, by name, as pairs of pure functions.

Images come in as floats in [0, 1]; the network itself maps them to its pixel range.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Variables = Any  # a pytree of arrays

# Hidden widths. The paper's Figure 6, which listed its own, is lost: one hidden layer, and four.
WIDTHS: Mapping[str, tuple[int, ...]] = {"mlp_shallow": (256,), "mlp_deep": (1024, 512, 256, 128)}
INITIALIZERS = ("pytorch", "flax")


class Model(NamedTuple):
    """A network as pure functions.

    init: `key -> variables`.
    apply: `(variables, images [N, H, W, C] floats in [0, 1]) -> logits [N, K]`.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[[Variables, jax.Array], jax.Array]


def _within(bound: float) -> nn.initializers.Initializer:
    """Uniform in [-bound, bound]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
    """A fully-connected layer with the default initialisation of PyTorch or of Flax.

    PyTorch draws weights and biases from `U(-1/sqrt(fan_in), 1/sqrt(fan_in))`. Flax's weights are sqrt(3) times
    larger, and its biases are zero.
    """

    features: int
    initializer: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.initializer == "flax":
            return nn.Dense(self.features)(x)
        uniform = _within(1 / math.sqrt(x.shape[-1]))
        return nn.Dense(self.features, kernel_init=uniform, bias_init=uniform)(x)


class MLP(nn.Module):
    """Fully-connected layers of the given hidden widths, each followed by a ReLU, and a linear layer to the logits."""

    widths: Sequence[int]
    num_classes: int
    initializer: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(Dense(width, self.initializer)(x))
        return Dense(self.num_classes, self.initializer)(x)


def build(
    name: str,
    image_shape: Sequence[int],
    num_classes: int,
    *,
    widths: Sequence[int] | None = None,
    initializer: str = "pytorch",
    pixel_range: tuple[float, float] = (0.0, 1.0),
) -> Model:
    """The named architecture as pure functions.

    Args:
      name: `mlp_shallow` or `mlp_deep`, the fully-connected networks of BenShmuel (2022), Appendix B.1.
      image_shape: `(height, width, channels)`.
      num_classes: K, the number of logits.
      widths: hidden widths, from the input on; `WIDTHS[name]` when None.
      initializer: whose defaults the weights start from, `pytorch` (as in the papers) or `flax`.
      pixel_range: what the network maps pixels 0 and 1 to before its first layer.

    Raises:
      ValueError: an unknown name or initializer.
    """
    if name not in WIDTHS:
        raise ValueError(f"name: got {name!r}; the models are {', '.join(WIDTHS)}")
    if initializer not in INITIALIZERS:
        raise ValueError(f"initializer: got {initializer!r}; it takes {' or '.join(INITIALIZERS)}")
    module = MLP(tuple(widths or WIDTHS[name]), num_classes, initializer)
    low, high = pixel_range

    def init(key: jax.Array) -> Variables:
        return module.init(key, jnp.zeros((1, *image_shape)))

    def apply(variables: Variables, images: jax.Array) -> jax.Array:
        return module.apply(variables, low + (high - low) * images)

    return Model(init, apply)
