"""Networks of PyTorch as JAX functions: PyTorch computes, and every measure takes what `function` returns.

PyTorch is imported by `function` alone, and no dependency of jtrans. Where both libraries use one GPU, set
`XLA_PYTHON_CLIENT_PREALLOCATE=false` before JAX starts, or it takes three quarters of the memory for itself.
"""

import contextlib
import enum
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import host
from jtrans.errors import InputError, one_line
from jtrans.jacobian import Function

Channels = Sequence[float]  # one value for each channel, or one for all


def function(
    model: Any, *, mean: Channels | None = None, std: Channels | None = None, device: Any | None = None
) -> Function:
    """A network of PyTorch as a JAX function from images `[N, H, W, C]` in [0, 1] to logits `[N, K]`.

    Images are normalised, `(x - mean) / std`, and handed to the network as `[N, C, H, W]`; inputs with another number
    of axes, such as vectors `[N, D]`, in the order that they have. The network's output is a tensor or, as those of
    Hugging Face, has `logits`. PyTorch computes with the type of the network's weights, the results have that of `x`.

    The network itself is called each time, so it may be trained further; its flags and gradients stay as they are. In
    training mode, where dropout is random and BatchNorm mixes the examples, it is refused, not changed. Of the last
    backward pass the recorded activations are kept until the next pass.

    Args:
      model: a `torch.nn.Module` in evaluation mode.
      mean, std: of each channel in [0, 1], both or neither. None: those that timm names (`model.pretrained_cfg`), those
        of the published weights of torchvision that belong to the network's class and have as many parameters, else 0
        and 1. Networks that normalise images themselves, or were trained on [0, 1], take 0 and 1.
      device: where the network is moved to. None: it stays where it is.

    Raises:
      ValueError: in one line. `function` raises it for a model that is none, and for a mean without std; the returned
        function for a network in training mode, for inputs that the network cannot take, as images whose channels come
        first, for outputs other than `[N, K]`, and as `host.function`.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model: got {type(model).__name__}; it takes a torch.nn.Module")
    if (mean is None) != (std is None):
        raise InputError(f"mean, std: got {mean} and {std}; it takes both or neither")
    if mean is None or std is None:
        mean, std = _said_by_timm(model) or _said_by_torchvision(model) or ((0.0,), (1.0,))
    if device is not None:
        model.to(device)
    logits = functools.partial(_logits, model, tuple(mean), tuple(std))

    @functools.cache
    def of_shape(shape: tuple[int, ...]) -> Function:
        num_outputs = _num_outputs(model, logits, shape)
        forward, record, jvp = (functools.partial(run, logits) for run in (_forward, _record, _jvp))
        return host.recording(forward, record, jvp, num_outputs)

    def f(x: jax.Array) -> jax.Array:
        _check_mode(model)
        return of_shape(jnp.shape(x)[1:])(x)

    return f


Logits = Callable[[Any], Any]  # from inputs as `function` takes them to logits, both tensors on the CPU


def _logits(model: Any, mean: Channels, std: Channels, inputs: Any) -> Any:
    """The network's logits, where and with the type that it computes."""
    import torch

    _check_mode(model)
    channels = inputs.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            shape = tuple(inputs.shape[1:])
            raise InputError(
                f"{name}: got {len(values)} values; x of shape {shape} has {channels} channels, its last axis"
            )
    tensors = itertools.chain(model.parameters(), model.buffers())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), inputs)
    x = inputs.to(like.device, like.dtype)
    x = (x - x.new_tensor(mean)) / x.new_tensor(std)
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous()  # without a copy, `view` in the network would fail
    outputs = model(x)
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(f"model: returned {what}; it takes networks that return logits [N, K]")
    return logits.to(inputs)


def _forward(logits: Logits, x: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad(), _without_fast_path():
        return logits(torch.from_numpy(x)).numpy()


def _record(logits: Logits, x: np.ndarray) -> tuple[np.ndarray, host.Evaluate]:
    import torch

    inputs = torch.from_numpy(x).requires_grad_()
    with torch.enable_grad(), _without_fast_path():
        outputs = logits(inputs)

    def pull_back(cotangent: np.ndarray) -> np.ndarray:
        # Of the inputs alone: the gradients of parameters are neither computed nor changed.
        vector = torch.from_numpy(cotangent)
        return torch.autograd.grad(outputs, inputs, vector, retain_graph=True, materialize_grads=True)[0].numpy()

    return outputs.detach().numpy(), pull_back


def _jvp(logits: Logits, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    import torch
    from torch.autograd import forward_ad
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # Of the kernels of attention, the fused ones have no forward derivative.
    with torch.no_grad(), _without_fast_path(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        outputs = logits(forward_ad.make_dual(torch.from_numpy(x), torch.from_numpy(v)))
        values, tangent = forward_ad.unpack_dual(outputs)
        return (torch.zeros_like(values) if tangent is None else tangent).numpy()


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """`nn.MultiheadAttention` takes it, in evaluation mode, where it sees no derivative; it has none."""
    import torch

    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _num_outputs(model: Any, logits: Logits, shape: tuple[int, ...]) -> int:
    """K, from one input of zeros; InputError if the network cannot take it."""
    try:
        return _forward(logits, np.zeros((1, *shape), np.float32)).shape[1]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"x: {_mismatch(model, shape)} ({type(error).__name__}: {one_line(error)})") from error


def _mismatch(model: Any, shape: tuple[int, ...]) -> str:
    """Why a network cannot take an input of this shape."""
    import torch

    convolutions = (module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    channels = next((module.in_channels for module in convolutions), None)
    if channels and len(shape) == 3 and shape[-1] != channels:
        layout = f"[N, H, W, {channels}]"
        return f"got images of shape {shape}; the network takes {channels} channels, as the last axis: {layout}"
    return f"the network cannot take inputs of shape {shape}"


def _check_mode(model: Any) -> None:
    """InputError if any part of a network is in training mode."""
    for name, module in model.named_modules():
        if module.training:
            where = f"its {name}" if name else type(model).__name__
            raise InputError(f"model: {where} is in training mode; call model.eval() first")


def _said_by_timm(model: Any) -> tuple[Channels, Channels] | None:
    """The mean and standard deviation in the config that timm gives each of its networks."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return (config["mean"], config["std"]) if {"mean", "std"} <= set(config) else None


def _said_by_torchvision(model: Any) -> tuple[Channels, Channels] | None:
    """Those of the published weights of a class of torchvision that have as many parameters as the network."""
    module = type(model).__module__
    if not module.startswith("torchvision.models."):
        return None
    count = sum(parameter.numel() for parameter in model.parameters())
    kinds: Iterator[Iterable[Any]] = (
        kind for kind in vars(sys.modules[module]).values() if isinstance(kind, enum.EnumType)
    )
    # Beside weights there may be other enumerations, as of ways to interpolate.
    num_parameters = lambda weights: getattr(weights, "meta", {}).get("num_params")
    published = (weights for kind in kinds for weights in kind if num_parameters(weights) == count)
    preset = next((weights.transforms() for weights in published), None)
    return preset and (preset.mean, preset.std)
