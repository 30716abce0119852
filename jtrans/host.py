"""Networks of any framework on the host, NumPy in and NumPy out, as JAX functions that every measure takes.

The framework computes, and JAX differentiates through it: the Jacobian's products with vectors are linear operations
whose transposes are each other, so forward and reverse derivatives of every order of composition come from one pair.
Where JAX maps over examples, the mapped axes are folded into the batch: the host always gets whole batches. Where it
maps over vectors at the same inputs, as for the rows of a Jacobian, the host gets one batch of vectors after another,
and computes the outputs once.

On the host nothing of JAX may be used: it can wait for itself forever (jax-ml/jax#24255).
"""

import dataclasses
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import util
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jtrans.errors import InputError, one_line
from jtrans.jacobian import Function

Evaluate = Callable[[np.ndarray], np.ndarray]
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
Record = Callable[[np.ndarray], tuple[np.ndarray, Evaluate]]


def function(forward: Evaluate, vjp: Product, jvp: Product | None, num_outputs: int) -> Function:
    """A network on the host as a JAX function `[N, ...] -> [N, K]`, for every measure, under `jit`, `vmap` and `grad`.

    The arrays on the host are float32, or float64 under `jax.enable_x64`; results take the type of `x`. What the
    functions read besides their arguments, such as weights, may change between calls: compiled programs call them
    anew. There are no second derivatives.

    Args:
      forward: from inputs `x` `[N, ...]` to outputs `[N, K]`, where output i depends on input i alone.
      vjp: from `x` and a cotangent `u` `[N, K]` to `J^T u` `[N, ...]`, for each example's Jacobian J.
      jvp: from `x` and a tangent `v` `[N, ...]` to `J v` `[N, K]`. None: the rows of J, from K VJPs, are multiplied
        with `v`, and kept for the next `v` at the same `x`.
      num_outputs: K.

    Raises:
      ValueError: from the returned function, for an `x` that is no array of floats, and in one line if one of the
        functions raises, or returns another shape or an array of JAX. Compiled by the caller's own `jit`, JAX raises
        an error whose last line is that line.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> w = np.array([[1.0, 2.0], [0.0, 3.0]], np.float32)
    >>> f = function(lambda x: np.tanh(x @ w), lambda x, u: u * (1 - np.tanh(x @ w) ** 2) @ w.T, None, 2)
    >>> jax.grad(lambda x: f(x)[:, 1].sum())(jnp.zeros((1, 2))).tolist()
    [[2.0, 3.0]]
    """
    return recording(forward, lambda x: (forward(x), partial(vjp, x)), jvp, num_outputs)


def recording(forward: Evaluate, record: Record, jvp: Product | None, num_outputs: int) -> Function:
    """As `function`, for a framework whose backward pass needs what its forward pass recorded.

    Args:
      record: from `x` to the outputs and a function from cotangents `u` to `J^T u`, which may hold the recorded pass.
        The last one is kept for the cotangents that follow, in the whole process one: until the next pass.
      forward, jvp, num_outputs: as in `function`; `forward` is called where no derivative is wanted.
    """
    network = _Network(forward, record, jvp, num_outputs)

    def f(x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"x: got {x.dtype} of shape {x.shape}; it takes floats [N, ...]")
        return _forward.bind(x, network=network, axes=0, recorded=False)

    return f


_numbers: Iterator[int] = itertools.count()
_last: "weakref.WeakKeyDictionary[_Network, _Pass]" = weakref.WeakKeyDictionary()  # of the network that made it
_one_at_a_time = threading.RLock()  # frameworks have settings of the whole process


@dataclasses.dataclass
class _Pass:
    """What a network recorded for inputs `[N, ...]`, and its Jacobians `[N, K, D]`, if they were wanted."""

    x: np.ndarray
    pull_back: Evaluate
    rows: np.ndarray | None = None


class _Network:
    """What the host computes for inputs `[N, ...]`; equal to itself alone."""

    def __init__(self, forward: Evaluate, record: Record, jvp: Product | None, num_outputs: int):
        self.forward, self.record, self.jvp, self.num_outputs = forward, record, jvp, num_outputs
        self.number = next(_numbers)

    def __repr__(self) -> str:
        return f"host-{self.number}"  # not an address, which may be another network's later: `loops` compares programs

    def outputs(self, x: np.ndarray, recorded: bool) -> np.ndarray:
        """`[N, K]`; recorded, for the `pull` that follows."""
        _last.clear()  # before, so that two passes are never in memory
        if recorded:
            outputs, pull_back = _call("forward", self.record, x)
            _last[self] = _Pass(x, pull_back)
        else:
            outputs = _call("forward", self.forward, x)
        return _checked("forward", outputs, (len(x), self.num_outputs), x.dtype)

    def push(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """`J v`, `[N, K]`."""
        if self.jvp is not None:
            return _checked("jvp", _call("jvp", self.jvp, x, v), (len(x), self.num_outputs), x.dtype)
        recorded = self.recorded(x)
        if recorded.rows is None:
            units = np.eye(self.num_outputs, dtype=x.dtype)[:, None].repeat(len(x), 1)
            recorded.rows = np.stack([self.pull(x, unit).reshape(len(x), -1) for unit in units], 1)
        return (recorded.rows @ v.reshape(len(x), -1, 1))[..., 0]

    def pull(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        """`J^T u`, `[N, ...]`."""
        return _checked("vjp", _call("vjp", self.recorded(x).pull_back, u), x.shape, x.dtype)

    def recorded(self, x: np.ndarray) -> _Pass:
        """The last pass, if it was this network's at these inputs, or a new one."""
        if self not in _last or not np.array_equal(_last[self].x, x):
            self.outputs(x, recorded=True)
        return _last[self]


# Else JAX's cache of shapes holds every network that was ever traced, as it does the functions of its own callbacks.
getattr(util, "weakref_cache_key_types", set()).add(_Network)


def _call(name: str, function: Callable, *arrays: np.ndarray) -> Any:
    """What a host function returns; InputError in one line if it raises."""
    try:
        return function(*arrays)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: raised {type(error).__name__}: {one_line(error)}") from error


def _checked(name: str, result: Any, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """A result of the host as an array of this type; InputError if it is of another shape."""
    if isinstance(result, jax.Array):
        raise InputError(f"{name}: returned an array of JAX; on the host it takes NumPy alone (jax-ml/jax#24255)")
    if np.shape(result) != tuple(shape):
        raise InputError(f"{name}: returned shape {np.shape(result)}; it must return {tuple(shape)}")
    return np.asarray(result, dtype)


# The operations that JAX sees. Each array has `axes` leading axes over which JAX has mapped, of size 1 where it has not
# mapped this array, then that of the N examples.


def _outputs(x: np.ndarray, *, network: _Network, axes: int, recorded: bool) -> np.ndarray:
    """`[*axes, N, K]`."""
    outputs = network.outputs(_folded(x, axes), recorded)
    return outputs.reshape(*x.shape[: axes + 1], -1)


def _products(
    name: str, x: np.ndarray, outputs: np.ndarray, vectors: np.ndarray, *, network: _Network, axes: int
) -> np.ndarray:
    """Each example's Jacobian, or its transpose, times vectors: `[*axes, N, ...]`."""
    inputs = _folded(x, axes)
    sizes = np.broadcast_shapes(x.shape[:axes], vectors.shape[:axes])
    vectors = np.broadcast_to(vectors, sizes + vectors.shape[axes:])
    # One batch after another over the axes of the vectors alone: folded, the host would compute the same outputs again.
    looped = [axis for axis in range(axes) if x.shape[axis] == 1]
    first = np.moveaxis(vectors, looped, range(len(looped)))
    batches = first.reshape(-1, len(inputs), *vectors.shape[axes + 1 :])
    products = np.stack([getattr(network, name)(inputs, np.array(batch, order="C")) for batch in batches])
    unfolded = products.reshape(*first.shape[: axes + 1], *products.shape[2:])
    return np.moveaxis(unfolded, range(len(looped)), looped)


def _folded(x: np.ndarray, axes: int) -> np.ndarray:
    return x.reshape(math.prod(x.shape[: axes + 1]), *x.shape[axes + 1 :])


def _primitive(name: str, run: Callable[..., np.ndarray], shape: Callable[..., tuple[int, ...]]) -> Primitive:
    """An operation that the host runs; `shape` gives that of its result from the shapes of its arrays."""
    primitive = Primitive(f"host_{name}")

    def on_host(*arrays: Any, **params: Any) -> np.ndarray:
        # Copies, since XLA uses the memory of its own again; before the lock, since they may wait for another program.
        copies = [np.array(array) for array in arrays]
        with _one_at_a_time:
            return run(*copies, **params)

    def lower(context: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        # Not `jax.pure_callback`, which puts the arrays on a device again, and so uses JAX on the host. As bytes, since
        # JAX would round float64 where only the caller's thread has `jax.enable_x64`.
        (result,) = context.avals_out
        as_bytes = jax.core.ShapedArray((*result.shape, result.dtype.itemsize), jnp.uint8)
        values, _, _ = mlir.emit_python_callback(
            context.replace(avals_out=[as_bytes]),
            lambda *arrays: (on_host(*arrays, **params)[..., None].view(np.uint8),),
            None,
            operands,
            context.avals_in,
            [as_bytes],
            has_side_effect=False,
            returns_token=False,
        )
        from_bytes = mlir.lower_fun(partial(jax.lax.bitcast_convert_type, new_dtype=result.dtype), False)
        return from_bytes(context.replace(avals_in=[as_bytes]), *values)

    def batch(arrays: Sequence[jax.Array], mapped: Sequence[int | None], *, axes: int, **params: Any):
        arrays = [a[None] if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, mapped, strict=True)]
        return primitive.bind(*arrays, axes=axes + 1, **params), 0

    def abstract(x: Any, *others: Any, **params: Any) -> jax.core.ShapedArray:
        return jax.core.ShapedArray(shape(x.shape, *(other.shape for other in others), **params), x.dtype)

    primitive.def_impl(lambda *arrays, **params: jnp.array(on_host(*arrays, **params)))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, lower, cacheable=False)
    return primitive


def _shape_of_outputs(x, *, network: _Network, axes: int, recorded: bool) -> tuple[int, ...]:
    return *x[: axes + 1], network.num_outputs


def _shape_of_pushed(x, outputs, vectors, *, network: _Network, axes: int) -> tuple[int, ...]:
    return *np.broadcast_shapes(x[:axes], vectors[:axes]), x[axes], network.num_outputs


def _shape_of_pulled(x, outputs, vectors, *, network: _Network, axes: int) -> tuple[int, ...]:
    return *np.broadcast_shapes(x[:axes], vectors[:axes]), *x[axes:]


_forward = _primitive("forward", _outputs, _shape_of_outputs)
# Both take the outputs too, so that no compiler leaves out the pass that recorded them.
_push = _primitive("push", partial(_products, "push"), _shape_of_pushed)
_pull = _primitive("pull", partial(_products, "pull"), _shape_of_pulled)


def _jvp_of_forward(primals, tangents, *, network: _Network, axes: int, recorded: bool):
    (x,), (tangent,) = primals, tangents
    outputs = _forward.bind(x, network=network, axes=axes, recorded=True)
    return outputs, _push.bind(x, outputs, tangent, network=network, axes=axes)


def _jvp_of_products(primitive: Primitive, primals, tangents, **params: Any):
    *at, vectors = primals
    *moved, tangent = tangents
    if not all(isinstance(t, ad.Zero) for t in moved):
        raise InputError("f: a function of the host has first derivatives alone; got a second derivative to compute")
    return primitive.bind(*at, vectors, **params), primitive.bind(*at, tangent, **params)


def _transpose_of_products(other: Primitive, cotangent, x, outputs, vectors, *, network: _Network, axes: int):
    if isinstance(cotangent, ad.Zero):
        return None, None, ad.Zero(vectors.aval)
    product = other.bind(x, outputs, cotangent, network=network, axes=axes)
    repeated = [axis for axis in range(axes) if vectors.aval.shape[axis] < product.shape[axis]]
    return None, None, product.sum(repeated, keepdims=True)


ad.primitive_jvps[_forward] = _jvp_of_forward
for _one, _other in ((_push, _pull), (_pull, _push)):
    ad.primitive_jvps[_one] = partial(_jvp_of_products, _one)
    ad.primitive_transposes[_one] = partial(_transpose_of_products, _other)
