"""The Jacobian of a function at each input, and its singular triples.

Batch first: `f: [N, ...] -> [N, K]` is any pure function whose example i depends on input i alone. All products are at
the highest matmul precision, those inside `f` included.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matfree import decomp, eig

from jtrans import loops

Function = Callable[[jax.Array], jax.Array]

# Up to here all K rows of the Jacobian are computed, a pass each. A Krylov space takes two passes a step: as many.
DENSE_OUTPUTS = 96
KRYLOV_STEPS = 48
# Jacobian entries in memory at once. On a CPU 16 MiB stay near its caches and were the fastest of 4 to 256 MiB; an
# accelerator wants larger work.
BATCH_VALUES = {"cpu": 2**22}
BATCH_VALUES_ELSEWHERE = 2**26


class SingularTriple(NamedTuple):
    """One singular triple of each example's Jacobian J: `J v = s u` and `J^T u = s v`.

    Attributes:
      u: `[N, K]`, the left singular vector, unit length.
      s: `[N]`, the singular value, 0 or more.
      v: `[N, ...]`, the right singular vector, shaped like the input, unit length.
      residual: `[N]`, `max(|J v - s u|, |J^T u - s v|)`: some singular value of J lies this near to `s`.

    The sign of the pair (u, v) is arbitrary. Where `s` is 0, `u` and `v` are NaN.
    """

    u: jax.Array
    s: jax.Array
    v: jax.Array
    residual: jax.Array


def output_size(f: Function, x: jax.Array) -> int:
    """K, without running `f`.

    Raises:
      ValueError: `f` does not give `[N, K]`.
    """
    shape = jax.eval_shape(lambda x: f(x), x).shape  # of a new function, since JAX keeps the shapes of the same one
    if len(shape) != 2 or shape[0] != len(x):
        raise ValueError(f"f: gave shape {shape} for {len(x)} inputs; it must give [{len(x)}, K]")
    return shape[1]


def batch_size_for(entries: int) -> int:
    """How many examples to take at once, where one example has so many Jacobian entries in all."""
    return max(1, BATCH_VALUES.get(jax.default_backend(), BATCH_VALUES_ELSEWHERE) // entries)


def jacobian(f: Function, x: jax.Array) -> jax.Array:
    """All rows of each example's Jacobian, by one backward pass an output.

    Args:
      f: `[N, ...] -> [N, K]`.
      x: `[N, ...]`.

    Returns:
      `[N, K, D]`, D the number of input values.
    """
    # An example at a time under vmap, not an output at a time: three times faster on a CPU, with the same products.
    with jax.default_matmul_precision("highest"):
        rows = jax.vmap(jax.jacrev(lambda one: f(one[None])[0]))(x)
    return rows.reshape(*rows.shape[:2], -1)


def top_singular_triple(f: Function, x: jax.Array, *, level: int = 0) -> SingularTriple:
    """The singular triple of the Jacobian at each input, the largest singular value first.

    The right singular vector is the virtual adversarial attack in the limit of small perturbations (Liang et al. 2021):
    level 0 the strongest, level 1 the strongest perpendicular to it, and so on.

    Up to `DENSE_OUTPUTS` outputs it is exact to rounding, from the K x K Gram matrix of the rows; for a value far below
    the largest that means an error of about `1e-7 s_0^2 / s`. Beyond, it comes from a Krylov space of
    `KRYLOV_STEPS`, and the residual tells how far it converged. Where neighbouring singular values agree to within the
    residual, their vectors are not determined: what is given then is a unit vector `v` in their joint space, with
    `|J v|` as large as promised. A Krylov space meets an exactly repeated value only once, so levels above 0 may skip
    the repeats.

    Args:
      f: `[N, ...] -> [N, K]`.
      x: `[N, ...]`, any number of examples: they are taken in batches of bounded memory.
      level: 0 for the largest singular value, at most `min(K, D) - 1`.

    Raises:
      ValueError: `f` does not give `[N, K]`, or there is no such level.
    """
    outputs, values = output_size(f, x), int(np.prod(x.shape[1:]))
    if not 0 <= level < min(outputs, values):
        raise ValueError(
            f"level: got {level}; a Jacobian of {outputs} x {values} has levels 0 to {min(outputs, values) - 1}"
        )
    dense = outputs <= DENSE_OUTPUTS
    entries = outputs * values if dense else (KRYLOV_STEPS + level) * (outputs + 2 * values)

    size = batch_size_for(entries)
    return loops.in_batches(_triples, size, x, networks=(f,), level=level, dense=dense)[1]


def _triples(f: Function, x: jax.Array, *, level: int, dense: bool) -> tuple[None, SingularTriple]:
    triple = triple_of(jacobian(f, x), level) if dense else _krylov_triple(f, x, level)
    return None, triple._replace(v=triple.v.reshape(x.shape))


def triple_of(matrices: jax.Array, level: int = 0) -> SingularTriple:
    """The singular triple of each matrix `[N, K, D]`, through the K x K Gram matrix; `v` is `[N, D]`."""
    # Entries of 1e-20 would vanish from the Gram matrix: scale each matrix to a largest entry of 1.
    scale = jnp.max(jnp.abs(matrices), axis=(1, 2), keepdims=True)
    matrices = matrices / jnp.where(scale == 0, 1, scale)
    with jax.default_matmul_precision("highest"):
        gram = jnp.einsum("nkd,nld->nkl", matrices, matrices)
        u = jnp.linalg.eigh(gram)[1][:, :, -1 - level]
        return _triple(
            u, jnp.einsum("nkd,nk->nd", matrices, u), lambda v: jnp.einsum("nkd,nd->nk", matrices, v), scale[:, 0, 0]
        )


def _triple(
    u: jax.Array, pulled: jax.Array, push: Callable[[jax.Array], jax.Array], scale: jax.Array
) -> SingularTriple:
    """The triple from `u`, `J^T u` and a way to apply J, all of J divided by its scale."""
    s = jnp.linalg.norm(pulled, axis=1)
    v = pulled / s[:, None]
    u = jnp.where(s[:, None] == 0, jnp.nan, u)
    residual = jnp.linalg.norm(push(v) - s[:, None] * u, axis=1)
    return SingularTriple(u, s * scale, v, residual * scale)


def _krylov_triple(f: Function, x: jax.Array, level: int) -> SingularTriple:
    """By Golub-Kahan bidiagonalisation with full reorthogonalisation (matfree), an example at a time under `vmap`."""

    def one(x: jax.Array) -> SingularTriple:
        single = lambda flat: f(flat.reshape(1, *x.shape))[0]
        flat = x.reshape(-1)
        _, push = jax.linearize(single, flat)
        pull = jax.linear_transpose(push, flat)
        # Any start that is no singular vector will do; a fixed one keeps the result a function of its arguments.
        start = jnp.array(np.random.default_rng(0).normal(size=flat.size), flat.dtype)
        response = push(start)
        scale = jnp.max(jnp.abs(response))
        safe = jnp.where(scale == 0, 1, scale)
        # The Krylov space of a Jacobian of low rank ends early, in 0 / 0. A small identity below the rows of J keeps it
        # going, with the same right singular vectors in the same order.
        padded = lambda v: (push(v) / safe, 0.01 * v)
        steps = min(KRYLOV_STEPS + level, response.size, flat.size)
        _, _, v = eig.svd_partial(decomp.bidiag(steps))(padded, start)
        # A space that ended early repeats its first vectors: keep what is perpendicular to the levels before.
        basis = jnp.linalg.qr(v[: level + 1].T)[0]
        pushed = jax.vmap(push, 1)(basis[:, jnp.array([0, level])]) / safe
        length = jnp.linalg.norm(pushed, axis=1)
        vanishes = (scale == 0) | (length[1] <= 1e-6 * length[0])  # nothing there but rounding
        u = jnp.where(vanishes, 0, pushed[1] / length[1])[None]
        triple = _triple(u, pull(u[0])[0][None] / safe, lambda v: (push(v[0]) / safe)[None], safe[None])
        return jax.tree.map(lambda a: a[0], triple)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(x)
