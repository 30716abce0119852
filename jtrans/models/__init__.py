"""The networks of both papers, by name, as pure functions.

Images are floats in [0, 1]; each network maps them to its own pixel range. Texts are embedded: each word is a vector,
and padding is zeros.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jtrans.data import EMBEDDED, PIXELS, Inputs
from jtrans.models import modules, text
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
# The networks of texts; all others are of images.
TEXT: Mapping[str, Callable[..., nn.Module]] = {
    "text_mean": text.TextMean,
    "text_cnn": text.TextCNN,
    "text_lstm": text.TextLSTM,
    "text_transformer": text.TextTransformer,
}
SAME_AT_WORDS = ("text_mean",)  # networks whose input gradient is the same at every word
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
    "text_mean": (128,),
    "text_cnn": (64, 64, 64),
    "text_lstm": (64,),
    "text_transformer": (64, 128, 128),
}
IMAGENET_SIZE = 224
IMAGENET_WIDTHS: Mapping[str, tuple[int, ...]] = {"vgg11": (*WIDTHS["vgg11"], 4096, 4096)}
INITIALIZERS = ("pytorch", "flax")
TRUNCATED_STD = 0.87962566  # of a standard normal distribution truncated at two standard deviations


class Model(NamedTuple):
    """A network as pure functions; logits are `[N, K]`.

    Images are `[N, H, W, C]` floats in [0, 1]. In their place a network of texts takes `[N, L, E]` floats: L words of a
    text, embedded in E dimensions. A position whose vector is exactly zero is padding: logits do not depend on how
    much of it follows the last word, and no derivative moves it.

    Attributes:
      init: `key -> variables`.
      apply: `(variables, images) -> logits`, in evaluation mode: BatchNorm uses its running statistics, no dropout.
      train: `(variables, images, key) -> (logits, variables)`, in training mode: BatchNorm uses the batch's statistics
        and updates the running ones; the key draws the dropout, if there is any.
      calibrate: `(variables, images) -> variables` whose running statistics are exactly those of the images, so that
        `apply` then uses these batch statistics, as constants.
      features: `(variables, images) -> [N, F]`, the input of the last layer, in evaluation mode.
      inputs: how it takes what a data set stores.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[[Variables, jax.Array], jax.Array]
    train: Callable[[Variables, jax.Array, jax.Array], tuple[jax.Array, Variables]]
    calibrate: Callable[[Variables, jax.Array], Variables]
    features: Callable[[Variables, jax.Array], jax.Array]
    inputs: Inputs = PIXELS


def _start(shapes: Mapping[tuple[str, ...], tuple[int, ...]], initializer: str, key: jax.Array) -> Variables:
    """A network's initial variables, from the shapes of its arrays by path.

    PyTorch draws a layer's weights and biases from `U(-1/sqrt(fan_in), 1/sqrt(fan_in))`. Flax's weights have a standard
    deviation of `1/sqrt(fan_in)`, sqrt(3) times larger, from a truncated normal distribution, and its biases are zero.
    For all arrays of an LSTM the fan-in is the size of its state, as in PyTorch, also in Flax's distribution. Attention
    has biases of zero in both, and in PyTorch the joint weights of query, key and value are drawn by the rule of Glorot
    and Bengio (2010): from `U(-b, b)` with `b = sqrt(6 / (fan_in + fan_out))`.
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
        kernel = shapes.get((*layer, "kernel"))  # normalisations have none
        if kernel is None or (leaf == "bias" and (initializer == "flax" or layer[-1] in ("in_proj", "out_proj"))):
            return jnp.zeros(shapes[path])
        fan_in: float = kernel[1] if len(kernel) == 2 else math.prod(kernel[:-1])
        if layer[-1] == "in_proj" and initializer == "pytorch":
            fan_in = sum(kernel) / 6
        return piece.reshape(shapes[path]) / math.sqrt(fan_in)

    return unflatten_dict({path: start(path, piece) for path, piece in zip(names, pieces, strict=True)})


def _module(name: str, widths: Sequence[int], num_classes: int) -> Callable[..., nn.Module]:
    """The constructor of the named network's module, which takes `mode` and `headless`."""
    if name in TEXT:
        return partial(TEXT[name], widths, num_classes)
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
    """The name of the named network's first layer in `params`, and its convolution, or None if it is linear.

    Raises ValueError for networks of texts, whose first layer acts on each word, or on a few words.
    """
    if name in TEXT:
        of_images = ", ".join(other for other in WIDTHS if other not in TEXT)
        raise ValueError(f"name: got {name!r}, a network of texts; it takes one of images: {of_images}")
    if name in RESIDUAL:
        return "Conv_0", STEM
    return ("Conv_0", CONVOLUTIONAL[name][0]) if name in CONVOLUTIONAL else ("Dense_0", None)


def takes_widths(name: str, widths: Sequence[int]) -> bool:
    """Whether the named network can have this number of widths, and its attention, if there is any, the first."""
    if name in RESIDUAL:
        return len(widths) == len(WIDTHS[name])
    if name == "text_transformer":
        return len(widths) > 1 and widths[0] % text.HEADS == 0
    convolutions = text.KERNELS if name == "text_cnn" else CONVOLUTIONAL.get(name, (None,))
    return len(widths) >= len(convolutions)


def _wanted_widths(name: str) -> str:
    """In words, the widths that the named network takes."""
    shared = f", the first a multiple of {text.HEADS}" if name == "text_transformer" else ""
    return f"{name} takes as many as {WIDTHS[name]}{shared}"


def build(
    name: str,
    image_shape: Sequence[int],
    num_classes: int,
    *,
    widths: Sequence[int] | None = None,
    initializer: str = "pytorch",
    pixel_range: tuple[float, float] = (0.0, 1.0),
    mean_image: np.ndarray | None = None,
    inputs: Inputs | None = None,
) -> Model:
    """The named architecture as pure functions.

    Args:
      name: a name in `WIDTHS`: `mlp_shallow`, `mlp_deep`, `conv_a` and `conv_b` are those of BenShmuel (2022), Appendix
        B; `fcnet`, `lenet` and `alexnet` those of Liang et al. (2021) for CIFAR; `resnet18` and `resnet50` have the
        CIFAR stem; `vgg11` has torchvision's two hidden linear layers, or none. Those in `TEXT` are of texts:
        `text_mean`, `text_cnn` (Kim 2014), `text_lstm` and `text_transformer` (pre-norm).
      image_shape: `(height, width, channels)`; for texts `(length, embedding)`, the shape L x E of an embedded text.
      num_classes: K, the number of logits.
      widths: sizes of the hidden layers, from the input on: of the fully-connected layers, of the convolutions (and of
        hidden linear layers after them), or of a residual network's four stages; of an LSTM's state, then of hidden
        linear layers; of a transformer's vectors, a multiple of four, then of each layer's hidden layer. None:
        `WIDTHS[name]`, and for `vgg11` on images of 224 pixels or more `IMAGENET_WIDTHS`.
      initializer: the library whose default initialisation is used, `pytorch` (as in the papers) or `flax`.
      pixel_range: the values to which the network maps pixels 0 and 1 before its first layer; not for texts.
      mean_image: `[H, W, C]` in [0, 1], subtracted from every image before that; None: nothing. Not for texts.
      inputs: how it takes what a data set stores. None: images as `data.PIXELS`, and texts that are embedded already.

    Raises:
      ValueError: the name or initializer is unknown; the shape is of images for a network of texts, or the other way
        round; there are too few widths or (if the number is fixed) too many, or a first one that attention cannot
        share among its heads; texts with a pixel range or a mean image. `init` raises it for images too small for the
        network.
    """
    if name not in WIDTHS:
        raise ValueError(f"name: got {name!r}; the models are {', '.join(WIDTHS)}")
    if initializer not in INITIALIZERS:
        raise ValueError(f"initializer: got {initializer!r}; it takes {' or '.join(INITIALIZERS)}")
    of_texts = name in TEXT
    axes = ("length", "embedding") if of_texts else ("height", "width", "channels")
    if len(image_shape) != len(axes):
        raise ValueError(f"image_shape: got {tuple(image_shape)}; {name} takes ({', '.join(axes)})")
    if of_texts and (mean_image is not None or tuple(pixel_range) != (0.0, 1.0)):
        what = "a mean image" if mean_image is not None else f"the range {tuple(pixel_range)}"
        raise ValueError(f"pixel_range, mean_image: got {what}; {name} has no pixels, so it takes neither")
    if widths is None:
        widths = (IMAGENET_WIDTHS if min(image_shape[:2]) >= IMAGENET_SIZE else WIDTHS).get(name, WIDTHS[name])
    if not takes_widths(name, widths):
        raise ValueError(f"widths: got {tuple(widths)}; {_wanted_widths(name)}")
    inputs = inputs or (EMBEDDED if of_texts else PIXELS)
    settings = name, tuple(image_shape), num_classes, tuple(widths), initializer, tuple(pixel_range), inputs
    return _same(*settings) if mean_image is None else _build(*settings, mean_image)


def _build(
    name: str,
    image_shape: tuple[int, ...],
    num_classes: int,
    widths: tuple[int, ...],
    initializer: str,
    pixel_range: tuple[float, float],
    inputs: Inputs,
    mean_image: np.ndarray | None = None,
) -> Model:
    """`build`, of arguments that are checked."""
    of_texts, module = name in TEXT, _module(name, widths, num_classes)
    low, high = pixel_range
    subtracted = 0.0 if mean_image is None else jnp.asarray(mean_image, jnp.float32)[None]

    def arguments(x: jax.Array) -> tuple[jax.Array, ...]:
        return (x, (x != 0).any(-1)) if of_texts else (low + (high - low) * (x - subtracted),)

    def init(key: jax.Array) -> Variables:
        abstract = jax.eval_shape(lambda key, x: module().init(key, *arguments(x)), key, jnp.zeros((1, *image_shape)))
        return _start({path: leaf.shape for path, leaf in flatten_dict(abstract).items()}, initializer, key)

    def run(mode: str, variables: Variables, x: jax.Array, headless: bool = False, **options: Any) -> Any:
        return module(mode=mode, headless=headless).apply(variables, *arguments(x), **options)

    def train(variables: Variables, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Variables]:
        logits, updated = run("train", variables, images, rngs={"dropout": key}, mutable=["batch_stats"])
        return logits, {**variables, **updated}

    def calibrate(variables: Variables, images: jax.Array) -> Variables:
        return {**variables, **run("calibrate", variables, images, mutable=["batch_stats"])[1]}

    return Model(
        init,
        partial(run, "apply"),
        train,
        calibrate,
        partial(run, "apply", headless=True),
        inputs,
    )


_same = lru_cache(16)(_build)  # the same object for the same settings, which compiled programs know it by


def from_pytorch(name: str, state_dict: Mapping[str, Any]) -> Variables:
    """A PyTorch network's weights as float32 variables of the named architecture.

    Layers are matched by their order in the state dict (the order in which PyTorch modules are created), not by name;
    torchvision's classes and the usual CIFAR implementations have the required order. For texts the layers are
    `nn.Conv1d`, `nn.LSTM` of one layer and `nn.TransformerEncoderLayer` with `norm_first`, in the order of the widths,
    a transformer's between an `nn.Linear` of the words and an `nn.LayerNorm`; then the linear layers. Normalisations
    are matched apart from the others.

    Args:
      name: as in `build`; its `apply` takes the returned variables and images of the size the network was trained on.
      state_dict: PyTorch's names to arrays, as `{k: v.numpy() for k, v in network.state_dict().items()}`; for texts
        without the table of embeddings, since texts are embedded before.

    Raises:
      ValueError: the name is unknown, or the number or shapes of the layers do not match the architecture, or a network
        of texts comes with a table of embeddings.
    """
    if name not in WIDTHS:
        raise ValueError(f"name: got {name!r}; the models are {', '.join(WIDTHS)}")
    arrays_of: dict[str, dict[str, np.ndarray]] = {}
    for full, array in state_dict.items():
        module, _, leaf = full.rpartition(".")
        if leaf != "num_batches_tracked":
            arrays_of.setdefault(module, {})[leaf] = np.asarray(array, np.float32)
    for module, leaves in arrays_of.items():
        if name in TEXT and list(leaves) == ["weight"] and "embed" in module.rpartition(".")[2]:
            what = f"got {module!r}, a table of embeddings; {name} takes embedded texts, so leave it out"
            raise ValueError(f"state_dict: {what}")
    torch_layers = [(module, _translate(leaves)) for module, leaves in arrays_of.items()]
    flax_layers = _layers(name, [arrays for _, arrays in torch_layers])
    if len(torch_layers) != len(flax_layers):
        raise ValueError(f"state_dict: got {len(torch_layers)} layers with weights; {name} has {len(flax_layers)}")
    if name in TEXT:  # PyTorch's transformers create their normalisations last, those here where they are called
        is_normalisation = lambda layer: "scale" in layer[1]
        torch_layers.sort(key=is_normalisation)
        flax_layers.sort(key=is_normalisation)
    variables, before_linear = {}, name not in TEXT
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
    arrays = dict(leaves)
    if {"bias_ih_l0", "bias_hh_l0"} <= arrays.keys():
        arrays["bias"] = np.stack([arrays.pop("bias_ih_l0"), arrays.pop("bias_hh_l0")])
    names = {
        "weight": "scale" if np.ndim(arrays.get("weight")) < 2 else "kernel",
        "running_mean": "mean",
        "running_var": "var",
        "weight_hh_l0": "kernel",
        "weight_ih_l0": "word_kernel",
        "in_proj_weight": "kernel",
        "in_proj_bias": "bias",
    }
    # Of a convolution to [kh, kw, C, F], or [k, C, F] along a text.
    axes = lambda array: np.moveaxis(array, (1, 0), (-2, -1)) if array.ndim > 2 else array
    return {names.get(leaf, leaf): axes(array) for leaf, array in arrays.items()}


def _layers(
    name: str, torch_arrays: Sequence[Mapping[str, np.ndarray]]
) -> list[tuple[tuple[str, ...], dict[str, tuple[int, ...]]]]:
    """The path and array shapes of each layer, in order, for a network with these translated arrays of each layer."""
    kernels = [arrays["kernel"].shape for arrays in torch_arrays if "kernel" in arrays]
    weights = [array.shape for arrays in torch_arrays for leaf, array in arrays.items() if "kernel" in leaf]
    if not kernels or not all(len(shape) > 1 and all(shape) for shape in weights):
        raise ValueError(f"state_dict: it holds no weights, or empty ones; {name} has weights in each layer")
    widths, num_classes = _sizes(name, kernels)
    if not takes_widths(name, widths):
        what = f"got {len(kernels)} layers with weights, of widths {tuple(widths)}"
        raise ValueError(f"state_dict: {what}; {_wanted_widths(name)}")
    first = weights[0]
    inputs = first[1] if len(first) == 2 else first[-2]
    sides = (1,) if name in TEXT else (32, 32) if len(first) == 4 else (1, 1)
    x = jnp.zeros((1, *sides, inputs))
    arguments = (x, x.any(-1)) if name in TEXT else (x,)
    init = _module(name, tuple(widths), num_classes)().init
    shapes_of: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}

    def record(*arguments: jax.Array) -> None:
        # Inside the traced function the dictionaries have the order of creation; JAX returns them sorted.
        for (_, *path, leaf), array in flatten_dict(init(*arguments)).items():
            shapes_of.setdefault(tuple(path), {})[leaf] = array.shape

    jax.eval_shape(record, jax.random.key(0), *arguments)
    return list(shapes_of.items())


def _sizes(name: str, kernels: Sequence[tuple[int, ...]]) -> tuple[list[int], int]:
    """The widths and the number of classes of a network whose layers have kernels of these shapes."""
    sizes = [shape[0] if len(shape) == 2 else shape[-1] for shape in kernels]
    widths = sizes[:-1]
    if name in RESIDUAL:
        widths = [width * sizes[0] // WIDTHS[name][0] for width in WIDTHS[name]]
    elif name == "text_lstm":
        widths = [kernels[0][1], *sizes[1:-1]]  # the first kernel maps the state to four gates
    elif name == "text_transformer":
        widths = [sizes[0], *sizes[3:-1:4]]  # a layer has the kernels `in_proj`, `out_proj`, `linear1` and `linear2`
    return widths, sizes[-1]
