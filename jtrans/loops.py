"""Loops that run in Python on concrete arrays, and inside the compiled program where they are traced.

Two ways, because either alone fails: a compiled loop makes a convolution on a CPU 30 times slower than the same call
from Python (jax-ml/jax#12868), and a Python loop under `jit` is unrolled, so that neither its memory nor its compile
time is bounded.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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
    function: Callable[..., tuple[Any, Any]], batch_size: int, *arrays: Any, compiled: bool = True
) -> tuple[Any, Any]:
    """A function of N examples, on `batch_size` of them at a time.

    Args:
      function: `arrays -> (total, each)`, pytrees: `total` is a sum over the examples, `each` has one row an example.
      batch_size: at most so many examples are in memory at once.
      arrays: pytrees of arrays with the leading axis N.
      compiled: compile the function where several batches share it; not for one that `repeat`s, which would be traced.

    Returns:
      `(total, each)` of all N examples; the same, but for rounding, whatever the batch size.
    """
    count = len(jax.tree.leaves(arrays)[0])
    if count <= batch_size:
        return function(*arrays)
    whole = count - count % batch_size
    part = lambda start, stop: jax.tree.map(lambda a: a[start:stop], arrays)
    if is_traced(arrays):
        batches = jax.tree.map(lambda a: a[:whole].reshape(-1, batch_size, *a.shape[1:]), arrays)
        _, (totals, rows) = jax.lax.scan(lambda _, batch: (None, function(*batch)), None, batches)
        total = jax.tree.map(lambda t: t.sum(0), totals)
        parts = [(total, jax.tree.map(lambda r: r.reshape(whole, *r.shape[2:]), rows))]
        parts += [function(*part(whole, count))] if whole < count else []
    else:
        function = jax.jit(function) if compiled else function
        starts = range(0, count, batch_size)
        # Waiting for each batch keeps one of them in memory, where dispatch would run ahead.
        parts = [jax.block_until_ready(function(*part(s, min(s + batch_size, count)))) for s in starts]
    totals, rows = zip(*parts, strict=True)
    return jax.tree.map(lambda *t: sum(t), *totals), jax.tree.map(lambda *r: jnp.concatenate(r), *rows)


def unstack(tree: Any) -> list[Any]:
    """The members `[...]` of a pytree of arrays `[M, ...]`, as of networks trained side by side."""
    count = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]
