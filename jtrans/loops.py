"""Loops that run in Python on concrete arrays, and as compiled loops on traced ones.

Neither form alone is enough: a compiled loop makes a convolution on a CPU 30 times slower than the same call from
Python (jax-ml/jax#12868), and a Python loop under `jit` is unrolled, so its memory and compile time grow without bound.
"""

import contextlib
import hashlib
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer, as inside `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def repeat(count: int, body: Callable[[Any], Any], carry: Any) -> Any:
    """`carry` after `count` calls of `body`."""
    if is_traced(carry):
        return jax.lax.fori_loop(0, count, lambda _, c: body(c), carry)
    for _ in range(count):
        carry = body(carry)
    return carry


def alone(function: Callable) -> Callable:
    """The function, whose arguments and results are pytrees of arrays, such that `vmap` over an axis of length 1 calls
    it as it is.

    XLA transposes whole kernels for the gradients of a batch of one network, which takes longer than the products. The
    result cannot be differentiated in reverse mode.
    """
    function = jax.jit(function)  # traced once, however often it is batched
    called = jax.custom_batching.custom_vmap(function)

    @called.def_vmap
    def batched(size: int, are_batched: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        if size != 1:
            axes = jax.tree.map(lambda batched: 0 if batched else None, are_batched)
            results = jax.vmap(function, tuple(axes))(*arguments)
        else:
            one = jax.tree.map(lambda leaf, batched: leaf[0] if batched else leaf, arguments, tuple(are_batched))
            results = jax.tree.map(lambda leaf: leaf[None], called(*one))
        return results, jax.tree.map(lambda _: True, results)

    return called


def in_batches(
    function: Callable[..., tuple[Any, Any]],
    batch_size: int,
    *arrays: Any,
    networks: Sequence[Callable[[jax.Array], jax.Array]] | None = None,
    whole: Sequence[Any] = (),
    **static: Hashable,
) -> tuple[Any, Any]:
    """Apply a function of N examples in batches; up to rounding, the batch size does not matter.

    Args:
      function: `(*networks, *whole, *arrays, **static) -> (total, each)`, pytrees: `total` is a sum over the examples,
        `each` has one row per example.
      batch_size: the largest number of examples in memory at once.
      arrays: pytrees of arrays with the leading axis N, above 0 (else ValueError); the first is an array.
      networks: pure functions of the first array. If given, `function` is compiled, once for the same function objects
        (each access to a bound method makes a new object). None if `function` calls `repeat`, which would be traced.
      whole: pytrees of arrays that are passed to every batch unsplit.
    """
    if not (count := len(jax.tree.leaves(arrays)[0])):
        raise ValueError("x: got no examples; it takes one or more")
    step: Callable = partial(function, *(networks or ()), *whole, **static)
    batch_of = lambda start, stop: jax.tree.map(lambda a: a[start:stop], arrays)
    if is_traced((arrays, whole)):
        if count <= batch_size:
            return step(*arrays)
        full = count - count % batch_size
        batches = jax.tree.map(lambda a: a[:full].reshape(-1, batch_size, *a.shape[1:]), arrays)
        _, (totals, rows) = jax.lax.scan(lambda _, batch: (None, step(*batch)), None, batches)
        total = jax.tree.map(lambda t: t.sum(0), totals)
        results = [(total, jax.tree.map(lambda r: r.reshape(full, *r.shape[2:]), rows))]
        results += [step(*batch_of(full, count))] if full < count else []
    else:
        if networks is not None:
            step = partial(_compiled(function, networks, static, (*whole, *batch_of(0, batch_size))), *whole)
        starts = range(0, count, batch_size)
        # Asynchronous dispatch would hold several batches in memory; waiting for each keeps one.
        with _errors_of_callbacks():
            results = [jax.block_until_ready(step(*batch_of(s, min(s + batch_size, count)))) for s in starts]
    totals, rows = zip(*results, strict=True)
    return jax.tree.map(lambda *t: sum(t), *totals), jax.tree.map(lambda *r: jnp.concatenate(r), *rows)


@contextlib.contextmanager
def _errors_of_callbacks() -> Iterator[None]:
    """Turns the error of a compiled program that called Python, whose text is a whole traceback, into its last line."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # which of them depends on when JAX notices it
        before, _, last_line = str(error).rstrip().rpartition("\n")
        if "Traceback (most recent call last)" not in before:
            raise
        raise ValueError(re.sub(r"^[\w.]*InputError: ", "", last_line)) from error


def unstack(tree: Any) -> list[Any]:
    """The M members `[...]` of a pytree of arrays `[M, ...]`, such as networks trained together."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(len(jax.tree.leaves(tree)[0]))]


# The most recent compiled functions of networks, each with the program text and the marks of the constants that it was
# compiled from, by function, static arguments, networks' ids and shapes. A program holds its networks' arrays, so it is
# dropped when one of these networks is deleted.
_programs: OrderedDict[Hashable, tuple[Callable, str, list[Any]]] = OrderedDict()
PROGRAMS = 8


def _compiled(
    function: Callable, networks: Sequence[Callable], static: Mapping[str, Hashable], arguments: Sequence[Any]
) -> Callable:
    """`function` of these networks as a compiled program, from the cache while that still computes the same.

    A network may have been changed in place, for example by training, so every call traces it: that takes far less
    time than compiling.
    """
    # A new lambda each time, since JAX caches traces by function object.
    traced = jax.make_jaxpr(lambda *arguments: function(*networks, *arguments, **static))(*arguments)
    text = re.sub("0x[0-9a-f]+", "", str(traced.jaxpr))  # without memory addresses
    constants = list(_constants(traced))
    if is_traced(constants):  # a network that is itself being traced
        return partial(function, *networks, **static)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(arguments))
    key = function, tuple(static.items()), tuple(map(id, networks)), shapes
    run, compiled_text, marks = _programs.get(key, (None, "", []))
    if run and compiled_text == text and _are_same(marks, constants):
        _programs.move_to_end(key)
        return run
    try:
        references = [weakref.ref(f, lambda _: _programs.pop(key, None)) for f in networks]
    except TypeError:  # no weak references: its deletion would go unnoticed
        return jax.jit(partial(function, *networks, **static))
    run = jax.jit(lambda *arguments: function(*(reference() for reference in references), *arguments, **static))
    # A change of what the host computes would go unnoticed, except by `jtrans.host`, whose networks print a number.
    if "callback" not in text:
        _programs[key] = run, text, list(map(_mark, constants))
        while len(_programs) > PROGRAMS:
            _programs.popitem(last=False)
    return run


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The constants of a traced program and of its inner programs."""
    yield from getattr(jaxpr, "consts", ())
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _constants(inner)


def _mark(constant: Any) -> Any:
    """What identifies a constant without keeping it alive; for a JAX array, which is immutable, a weak reference."""
    if isinstance(constant, jax.Array):
        return weakref.ref(constant)
    array = np.asarray(constant)
    return array.shape, array.dtype, hashlib.sha256(np.ascontiguousarray(array)).digest()


def _are_same(marks: Sequence[Any], constants: Sequence[Any]) -> bool:
    """Whether the marks are those of these constants."""
    is_same = lambda mark, array: mark() is array if isinstance(mark, weakref.ref) else mark == _mark(array)
    return len(marks) == len(constants) and all(map(is_same, marks, constants))
