"""The networks of both papers, by name, as pure functions.

Images are floats in [0, 1]; each network maps them to its own pixel range.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jtrans.models import modules
from jtrans.models.modules import Convolution

Variables = dict[str, Any]  # pytrees of arrays: `params`, which are trained, and with BatchNorm `batch_stats`

# Convolutions in sequence, each with a ReLU; then linear layers. Conv A and conv B: BenShmuel (2022), Appendix B.2.
# LeNet and AlexNet: the CIFAR versions of Liang et al. (2021). VGG11: Simonyan and Zisserman (2015), Table 1.
CONVOLUTIONAL: Mapping[str, tuple[Convolution, ...]] = {
    "conv_a": (Convolution(5, 2, 1),) * 4,
    "conv_b": (*[Convolution(3, 1, 1, True, pool) for pool in (False, True) * 3], Convolution(3, 1, 0, True, True)),
    "lenet": (Convolution(5, pool=True),) * 2,
    "alexnet": (
        Convolution(11, 4, 5, pool=True),
        Convolution(5, 1, 2, pool=True),
        *[Convolution(3, 1, 1, pool=pool) for pool in (False, False, True)],
    ),
    "vgg11": tuple(Convolution(3, 1, 1, pool=pool) for pool in (True, True, *(False, True) * 3)),
}
STEM = Convolution(3, 1, 1, batch_norm=True)  # of CIFAR
# Residual blocks in each of the four stages, and whether they are bottlenecks: He et al. (2016), with the CIFAR stem.
RESIDUAL = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}
# Sizes of the hidden layers, from the input on. For its fully-connected networks, BenShmuel (2022) gives them only in
# Figure 6, which is lost; here these networks have one and four hidden layers.
WIDTHS: Mapping[str, tuple[int, ...]] = {
    "mlp_shallow": (256,),
    "mlp_deep": (1024, 512, 256, 128),
    "fcnet": (1176, 400, 120, 84),
    "conv_a": (128, 128, 256, 256),
    "conv_b": (128, 128, 256, 256, 512, 512, 1024),
    "lenet": (6, 16, 120, 84),
    "alexnet": (64, 192, 384, 256, 256),
    "vgg11": (64, 128, 256, 256, 512, 512, 512, 512),
    "resnet18": (64, 128, 256, 512),
    "resnet50": (64, 128, 256, 512),
}
IMAGENET_SIZE = 224
IMAGENET_WIDTHS: Mapping[str, tuple[int, ...]] = {"vgg11": (*WIDTHS["vgg11"], 4096, 4096)}
INITIALIZERS = ("pytorch", "flax")
TRUNCATED_STD = 0.87962566  # of a standard normal distribution truncated at two standard deviations


class Model(NamedTuple):
    """A network as pure functions; images are `[N, H, W, C]` floats in [0, 1], logits `[N, K]`.

    Attributes:
      init: `key -> variables`.
      apply: `(variables, images) -> logits`, in evaluation mode: BatchNorm uses its running statistics, no dropout.
      train: `(variables, images, key) -> (logits, variables)`, in training mode: BatchNorm uses the batch's statistics
        and updates the running ones; the key draws the dropout, if there is any.
      calibrate: `(variables, images) -> variables` whose running statistics are exactly those of the images, so that
        `apply` then uses these batch statistics, as constants.
      features: `(variables, images) -> [N, F]`, the input of the last layer, in evaluation mode.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[[Variables, jax.Array], jax.Array]
    train: Callable[[Variables, jax.Array, jax.Array], tuple[jax.Array, Variables]]
    calibrate: Callable[[Variables, jax.Array], Variables]
    features: Callable[[Variables, jax.Array], jax.Array]


def _start(shapes: Mapping[tuple[str, ...], tuple[int, ...]], initializer: str, key: jax.Array) -> Variables:
    """A network's initial variables, from the shapes of its arrays by path.

    PyTorch draws a layer's weights and biases from `U(-1/sqrt(fan_in), 1/sqrt(fan_in))`. Flax's weights have a standard
    deviation of `1/sqrt(fan_in)`, sqrt(3) times larger, from a truncated normal distribution, and its biases are zero.
    """
    draw: Callable[..., jax.Array] = partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    if initializer == "flax":
        draw = lambda key, shape: jax.random.truncated_normal(key, -2, 2, shape) / TRUNCATED_STD
    # One draw, split into arrays: one draw per array takes ten times as long to compile.
    names = sorted(shapes)
    sizes = [math.prod(shapes[name]) for name in names]
    pieces = jax.lax.split(draw(key, (sum(sizes),)), sizes)

    def start(path: tuple[str, ...], piece: jax.Array) -> jax.Array:
        *layer, leaf = path
        if leaf in ("scale", "var"):
            return jnp.ones(shapes[path])
        kernel = shapes.get((*layer, "kernel"))  # BatchNorm has none
        if kernel is None or (leaf == "bias" and initializer == "flax"):
            return jnp.zeros(shapes[path])
        fan_in = kernel[1] if len(kernel) == 2 else math.prod(kernel[:-1])
        return piece.reshape(shapes[path]) / math.sqrt(fan_in)

    return unflatten_dict({path: start(path, piece) for path, piece in zip(names, pieces, strict=True)})


def _module(name: str, widths: Sequence[int], num_classes: int) -> Callable[..., nn.Module]:
    """The constructor of the named network's module, which takes `mode` and `headless`."""
    if name in RESIDUAL:
        return partial(modules.Residual, *RESIDUAL[name], widths, num_classes)
    if name not in CONVOLUTIONAL:
        return partial(modules.MLP, widths, num_classes)
    plan = CONVOLUTIONAL[name]
    module = partial(modules.Convolutional, plan, widths, num_classes)
    # torchvision's head; without hidden linear layers, the usual head for CIFAR.
    return partial(module, average=7 if len(widths) > len(plan) else 1, dropout=0.5) if name == "vgg11" else module


def last_layer(variables: Variables) -> dict[str, jax.Array]:
    """The kernel `[K, F]` and the bias `[K]` of the last layer, which maps features to logits."""
    flat, path = _last_layer(variables)
    return {leaf: flat[*path, leaf] for leaf in ("kernel", "bias")}


def with_last_layer(variables: Variables, kernel: jax.Array, bias: jax.Array) -> Variables:
    """The network with its last layer replaced; `kernel` has one row per class."""
    flat, path = _last_layer(variables)
    return unflatten_dict({**flat, (*path, "kernel"): kernel, (*path, "bias"): bias})


def _last_layer(variables: Variables) -> tuple[dict[tuple[str, ...], jax.Array], tuple[str, ...]]:
    """The arrays by path, and the path of the last linear layer; all linear layers are in the same module."""
    flat = flatten_dict(variables)
    linear = {path[:-1] for path in flat if path[-2].startswith("Dense_")}
    return flat, max(linear, key=lambda path: int(path[-1].removeprefix("Dense_")))


def first_layer(name: str) -> tuple[str, Convolution | None]:
    """The name of the named network's first layer in `params`, and its convolution, or None if it is linear."""
    if name in RESIDUAL:
        return "Conv_0", STEM
    return ("Conv_0", CONVOLUTIONAL[name][0]) if name in CONVOLUTIONAL else ("Dense_0", None)


def takes_widths(name: str, widths: Sequence[int]) -> bool:
    """Whether the named network can have this number of widths."""
    if name in RESIDUAL:
        return len(widths) == len(WIDTHS[name])
    return len(widths) >= len(CONVOLUTIONAL.get(name, (None,)))


def build(
    name: str,
    image_shape: Sequence[int],
    num_classes: int,
    *,
    widths: Sequence[int] | None = None,
    initializer: str = "pytorch",
    pixel_range: tuple[float, float] = (0.0, 1.0),
    mean_image: np.ndarray | None = None,
) -> Model:
    """The named architecture as pure functions.

    Args:
      name: a name in `WIDTHS`: `mlp_shallow`, `mlp_deep`, `conv_a` and `conv_b` are those of BenShmuel (2022), Appendix
        B; `fcnet`, `lenet` and `alexnet` those of Liang et al. (2021) for CIFAR; `resnet18` and `resnet50` have the
        CIFAR stem; `vgg11` has torchvision's two hidden linear layers, or none.
      image_shape: `(height, width, channels)`.
      num_classes: K, the number of logits.
      widths: sizes of the hidden layers, from the input on: of the fully-connected layers, of the convolutions (and of
        hidden linear layers after them), or of a residual network's four stages. None: `WIDTHS[name]`, and for `vgg11`
        on images of 224 pixels or more `IMAGENET_WIDTHS`.
      initializer: the library whose default initialisation is used, `pytorch` (as in the papers) or `flax`.
      pixel_range: the values to which the network maps pixels 0 and 1 before its first layer.
      mean_image: `[H, W, C]` in [0, 1], subtracted from every image before that; None: nothing.

    Raises:
      ValueError: the name or initializer is unknown; there are too few widths or (if the number is fixed) too many.
        `init` raises it for images too small for the network.
    """
    if name not in WIDTHS:
        raise ValueError(f"name: got {name!r}; the models are {', '.join(WIDTHS)}")
    if initializer not in INITIALIZERS:
        raise ValueError(f"initializer: got {initializer!r}; it takes {' or '.join(INITIALIZERS)}")
    if widths is None:
        widths = (IMAGENET_WIDTHS if min(image_shape[:2]) >= IMAGENET_SIZE else WIDTHS).get(name, WIDTHS[name])
    if not takes_widths(name, widths):
        raise ValueError(f"widths: got {len(widths)} sizes; {name} takes as many as {WIDTHS[name]}")
    module = _module(name, tuple(widths), num_classes)
    low, high = pixel_range
    subtracted = 0.0 if mean_image is None else jnp.asarray(mean_image, jnp.float32)[None]

    def init(key: jax.Array) -> Variables:
        abstract = jax.eval_shape(module().init, key, jnp.zeros((1, *image_shape)))
        return _start({path: leaf.shape for path, leaf in flatten_dict(abstract).items()}, initializer, key)

    def run(mode: str, variables: Variables, images: jax.Array, headless: bool = False, **options: Any) -> Any:
        in_range = low + (high - low) * (images - subtracted)
        return module(mode=mode, headless=headless).apply(variables, in_range, **options)

    def train(variables: Variables, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Variables]:
        logits, updated = run("train", variables, images, rngs={"dropout": key}, mutable=["batch_stats"])
        return logits, {**variables, **updated}

    def calibrate(variables: Variables, images: jax.Array) -> Variables:
        return {**variables, **run("calibrate", variables, images, mutable=["batch_stats"])[1]}

    return Model(init, partial(run, "apply"), train, calibrate, partial(run, "apply", headless=True))


def from_pytorch(name: str, state_dict: Mapping[str, Any]) -> Variables:
    """A PyTorch network's weights as float32 variables of the named architecture.

    Layers are matched by their order in the state dict (the order in which PyTorch modules are created), not by name;
    torchvision's classes and the usual CIFAR implementations have the required order.

    Args:
      name: as in `build`; its `apply` takes the returned variables and images of the size the network was trained on.
      state_dict: PyTorch's names to arrays, as `{k: v.numpy() for k, v in network.state_dict().items()}`.

    Raises:
      ValueError: the name is unknown, or the number or shapes of the layers do not match the architecture.
    """
    if name not in WIDTHS:
        raise ValueError(f"name: got {name!r}; the models are {', '.join(WIDTHS)}")
    arrays_of: dict[str, dict[str, np.ndarray]] = {}
    for full, array in state_dict.items():
        module, _, leaf = full.rpartition(".")
        if leaf != "num_batches_tracked":
            arrays_of.setdefault(module, {})[leaf] = np.asarray(array, np.float32)
    torch_layers = [(module, _translate(leaves)) for module, leaves in arrays_of.items()]
    flax_layers = _layers(name, [leaves["weight"].shape for leaves in arrays_of.values() if "weight" in leaves])
    if len(torch_layers) != len(flax_layers):
        raise ValueError(f"state_dict: got {len(torch_layers)} layers with weights; {name} has {len(flax_layers)}")
    variables, before_linear = {}, True
    for (module, arrays), (path, shapes) in zip(torch_layers, flax_layers, strict=True):
        if "bias" in shapes:
            arrays.setdefault("bias", np.zeros(shapes["bias"], np.float32))
        torch_shapes = {leaf: array.shape for leaf, array in arrays.items()}
        # The input size of the first linear layer depends on the image size.
        if before_linear and "kernel" in shapes and len(torch_shapes.get("kernel", ())) == 2:
            shapes, before_linear = {**shapes, "kernel": (shapes["kernel"][0], torch_shapes["kernel"][1])}, False
        if torch_shapes != shapes:
            where = "/".join(path)
            raise ValueError(f"state_dict: {module!r} holds {torch_shapes}; {name} has {shapes} there ({where})")
        for leaf, array in arrays.items():
            collection = "batch_stats" if leaf in ("mean", "var") else "params"
            variables[(collection, *path, leaf)] = jnp.asarray(array)
    return unflatten_dict(variables)


def _translate(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One PyTorch module's arrays, with Flax names and axes."""
    names = {"running_mean": "mean", "running_var": "var", "weight": "scale" if "running_mean" in leaves else "kernel"}
    axes = lambda array: np.moveaxis(array, (1, 0), (-2, -1)) if array.ndim == 4 else array  # to [kh, kw, C, F]
    return {names.get(leaf, leaf): axes(array) for leaf, array in leaves.items()}


def _layers(name: str, weights: Sequence[tuple[int, ...]]) -> list[tuple[tuple[str, ...], dict[str, tuple[int, ...]]]]:
    """The path and array shapes of each layer, in order, for a network with weights of these shapes."""
    weights = [shape for shape in weights if len(shape) > 1]
    if not weights or not all(map(all, weights)):
        raise ValueError(f"state_dict: it holds no weights, or empty ones; {name} has weights in each layer")
    sizes = [shape[0] for shape in weights]
    widths = [width * sizes[0] // WIDTHS[name][0] for width in WIDTHS[name]] if name in RESIDUAL else sizes[:-1]
    side = 32 if len(weights[0]) == 4 else 1
    init = _module(name, tuple(widths), sizes[-1])().init
    shapes_of: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}

    def record(*arguments: jax.Array) -> None:
        # Inside the traced function the dictionaries have the order of creation; JAX returns them sorted.
        for (_, *path, leaf), array in flatten_dict(init(*arguments)).items():
            shapes_of.setdefault(tuple(path), {})[leaf] = array.shape

    if not takes_widths(name, widths):
        raise ValueError(f"state_dict: got {len(weights)} layers with weights; {name} has {len(WIDTHS[name]) + 1}")
    jax.eval_shape(record, jax.random.key(0), jnp.zeros((1, side, side, weights[0][1])))
    return list(shapes_of.items())
