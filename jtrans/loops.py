"""Loops that run in Python on concrete arrays, and inside the compiled program where they are traced.

Two ways, because either alone fails: a compiled loop makes a convolution on a CPU 30 times slower than the same call
from Python (jax-ml/jax#12868), and a Python loop under `jit` is unrolled, so that neither its memory nor its compile
time is bounded.
"""

import hashlib
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def is_traced(tree: Any) -> bool:
    """Whether some leaf stands for an array that is not known yet (inside `jit`, `vmap` or `grad`)."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def repeat(count: int, body: Callable[[Any], Any], carry: Any) -> Any:
    """`carry` after `count` calls of `body`."""
    if is_traced(carry):
        return jax.lax.fori_loop(0, count, lambda _, c: body(c), carry)
    for _ in range(count):
        carry = body(carry)
    return carry


def in_batches(
    function: Callable[..., tuple[Any, Any]],
    batch_size: int,
    *arrays: Any,
    networks: Sequence[Callable[[jax.Array], jax.Array]] | None = None,
    whole: Sequence[Any] = (),
    **static: Hashable,
) -> tuple[Any, Any]:
    """A function of N examples, on `batch_size` of them at a time.

    Args:
      function: `(*networks, *whole, *arrays, **static) -> (total, each)`, pytrees: `total` is a sum over the examples,
        `each` has one row an example.
      batch_size: at most so many examples are in memory at once.
      arrays: pytrees of arrays with the leading axis N, the first of them an array.
      networks: pure functions of the first array. Where they are named, `function` is compiled, once for the same
        objects (a bound method is a new one each time it is named); None for one that `repeat`s, which would be traced.
      whole: pytrees of arrays that every batch takes as they are.
      static: whatever else `function` depends on.

    Returns:
      `(total, each)` of all N examples; the same, but for rounding, whatever the batch size.

    Raises:
      ValueError: there are no examples.
    """
    count = len(jax.tree.leaves(arrays)[0])
    if count == 0:
        raise ValueError("x: got no examples; it takes one or more")
    step: Callable = partial(function, *(networks or ()), *whole, **static)
    part = lambda start, stop: jax.tree.map(lambda a: a[start:stop], arrays)
    if is_traced((arrays, whole)):
        if count <= batch_size:
            return step(*arrays)
        full = count - count % batch_size
        batches = jax.tree.map(lambda a: a[:full].reshape(-1, batch_size, *a.shape[1:]), arrays)
        _, (totals, rows) = jax.lax.scan(lambda _, batch: (None, step(*batch)), None, batches)
        total = jax.tree.map(lambda t: t.sum(0), totals)
        parts = [(total, jax.tree.map(lambda r: r.reshape(full, *r.shape[2:]), rows))]
        parts += [step(*part(full, count))] if full < count else []
    else:
        if networks is not None:
            step = partial(_compiled(function, networks, static, (*whole, *part(0, batch_size))), *whole)
        starts = range(0, count, batch_size)
        # Waiting for each batch keeps one of them in memory, where dispatch would run ahead.
        parts = [jax.block_until_ready(step(*part(s, min(s + batch_size, count)))) for s in starts]
    totals, rows = zip(*parts, strict=True)
    return jax.tree.map(lambda *t: sum(t), *totals), jax.tree.map(lambda *r: jnp.concatenate(r), *rows)


def unstack(tree: Any) -> list[Any]:
    """The members `[...]` of a pytree of arrays `[M, ...]`, as of networks trained side by side."""
    count = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


class _Program(NamedTuple):
    """A compiled function of networks, with the operations and the constants that it was compiled from."""

    run: Callable
    text: str
    marks: list[Any]


# The latest, by function, static arguments, shapes and the networks' identities; one goes with the first of its
# networks, whose arrays it holds.
_programs: OrderedDict[Hashable, _Program] = OrderedDict()
PROGRAMS = 8


def _compiled(
    function: Callable, networks: Sequence[Callable], static: Mapping[str, Hashable], arguments: Sequence[Any]
) -> Callable:
    """`function` of these networks as a compiled program: the one that is there, while it still computes the same.

    A network may have been changed in place, as by training: all is traced each time, which takes far less than
    compiling.
    """
    # By a new function, since JAX keeps the traces of the same one.
    traced = jax.make_jaxpr(lambda *arguments: function(*networks, *arguments, **static))(*arguments)
    text = re.sub("0x[0-9a-f]+", "", str(traced.jaxpr))  # where a function stands in memory says nothing
    constants = list(_constants(traced))
    if is_traced(constants):  # a network that is itself being transformed
        return partial(function, *networks, **static)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(arguments))
    key = function, tuple(static.items()), tuple(map(id, networks)), shapes
    program = _programs.get(key)
    if program and program.text == text and _are_same(program.marks, constants):
        _programs.move_to_end(key)
        return program.run
    try:
        references = [weakref.ref(f, lambda _: _programs.pop(key, None)) for f in networks]
    except TypeError:  # an object without weak references, whose end would not be noticed
        return jax.jit(partial(function, *networks, **static))
    run = jax.jit(lambda *arguments: function(*(reference() for reference in references), *arguments, **static))
    if "callback" not in text:  # what the host computes cannot be seen to have changed
        _programs[key] = _Program(run, text, list(map(_mark, constants)))
        while len(_programs) > PROGRAMS:
            _programs.popitem(last=False)
    return run


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The constants of a traced program, those of the programs in it included."""
    yield from getattr(jaxpr, "consts", ())
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _constants(inner)


def _mark(constant: Any) -> Any:
    """What tells a constant from others, without keeping it alive: one of JAX's arrays never changes."""
    if isinstance(constant, jax.Array):
        return weakref.ref(constant)
    array = np.asarray(constant)
    return array.shape, array.dtype, hashlib.sha256(np.ascontiguousarray(array)).digest()


def _are_same(marks: Sequence[Any], constants: Sequence[Any]) -> bool:
    """Whether these are the constants that were marked."""

    def is_same(mark: Any, constant: Any) -> bool:
        if isinstance(mark, weakref.ref):
            return mark() is constant
        return not isinstance(constant, jax.Array) and mark == _mark(constant)

    return len(marks) == len(constants) and all(map(is_same, marks, constants))
