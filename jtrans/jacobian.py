"""The Jacobian of a function at each input, and its singular triples.

Batch first: `f: [N, ...] -> [N, K]` is any pure function whose output i depends on input i alone. All products have the
highest matmul precision, including those inside `f`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matfree import decomp, eig

from jtrans import loops

Function = Callable[[jax.Array], jax.Array]

# Up to this K all rows of the Jacobian are computed, one pass each. The Krylov steps, two passes each, cost the same.
DENSE_OUTPUTS = 96
KRYLOV_STEPS = 48
# Jacobian entries in memory at once. On a CPU 16 MiB, near the size of its caches, were the fastest of 4 to 256 MiB;
# accelerators need larger batches.
BATCH_VALUES = {"cpu": 2**22}
BATCH_VALUES_ELSEWHERE = 2**26


class SingularTriple(NamedTuple):
    """One singular triple of each example's Jacobian J: `J v = s u` and `J^T u = s v`.

    Attributes:
      u: `[N, K]`, the left singular vector, unit length. The sign of the pair (u, v) is arbitrary.
      s: `[N]`, the singular value, 0 or more. Where it is 0, `u` and `v` are NaN.
      v: `[N, ...]`, the right singular vector, shaped like the input, unit length.
      residual: `[N]`, `max(|J v - s u|, |J^T u - s v|)`: J has a singular value within this distance of `s`. NaN where
        `u` and `v` are.
    """

    u: jax.Array
    s: jax.Array
    v: jax.Array
    residual: jax.Array


def output_size(f: Function, x: jax.Array) -> int:
    """K, without running `f`; raises ValueError if `f` does not return `[N, K]`."""
    shape = jax.eval_shape(lambda x: f(x), x).shape  # a new lambda, since JAX caches shapes by function object
    if len(shape) != 2 or shape[0] != len(x):
        raise ValueError(f"f: returned shape {shape} for {len(x)} inputs; it must return [{len(x)}, K]")
    return shape[1]


def batch_size_for(entries: int) -> int:
    """How many examples to process at once, if each has this many Jacobian entries in total."""
    return max(1, BATCH_VALUES.get(jax.default_backend(), BATCH_VALUES_ELSEWHERE) // entries)


def jacobian(f: Function, x: jax.Array) -> jax.Array:
    """All rows of each example's Jacobian, `[N, K, D]` for D input values, by one backward pass per output."""
    # vmap over examples, not over outputs: three times faster on a CPU, with the same products.
    with jax.default_matmul_precision("highest"):
        rows = jax.vmap(jax.jacrev(lambda one: f(one[None])[0]))(x)
    return rows.reshape(*rows.shape[:2], -1)


def top_singular_triple(f: Function, x: jax.Array, *, level: int = 0) -> SingularTriple:
    """The singular triple of the Jacobian at each input; level 0 is the largest singular value.

    The right singular vector is the virtual adversarial attack in the limit of small perturbations (Liang et al. 2021):
    level 0 is the strongest, level 1 the strongest orthogonal to it, and so on.

    Up to `DENSE_OUTPUTS` outputs the triple is exact to rounding, from the K x K Gram matrix of the rows: the error of
    a small singular value `s` is about `1e-7 s_0^2 / s`. Beyond, it comes from a Krylov space of `KRYLOV_STEPS` steps,
    and the residual shows how far it converged. Where neighbouring singular values agree to within the residual, their
    vectors are not unique: `v` is then a unit vector in their joint space, and `|J v|` still equals `s` to within the
    residual. A Krylov space finds a repeated value only once, so levels above 0 may skip the repeats. Any number of
    examples `[N, ...]` is processed, in batches of bounded memory.

    Raises:
      ValueError: `f` does not return `[N, K]`, or there is no such level: at most `min(K, D) - 1` for D input values.
    """
    outputs, values = output_size(f, x), int(np.prod(x.shape[1:]))
    last = min(outputs, values) - 1
    if not 0 <= level <= last:
        raise ValueError(f"level: got {level}; a Jacobian of {outputs} x {values} has levels 0 to {last}")
    dense = outputs <= DENSE_OUTPUTS
    size = batch_size_for(outputs * values if dense else (KRYLOV_STEPS + level) * (outputs + 2 * values))
    return loops.in_batches(_triples, size, x, networks=(f,), level=level, dense=dense)[1]


def _triples(f: Function, x: jax.Array, *, level: int, dense: bool) -> tuple[None, SingularTriple]:
    triple = triple_of(jacobian(f, x), level) if dense else _krylov_triple(f, x, level)
    return None, triple._replace(v=triple.v.reshape(x.shape))


def triple_of(matrices: jax.Array, level: int = 0) -> SingularTriple:
    """The singular triple of each matrix `[N, K, D]`, from the K x K Gram matrix; `v` is `[N, D]`."""
    # Entries of 1e-20 would underflow in the Gram matrix: scale the largest entry of each matrix to 1.
    scale = jnp.max(jnp.abs(matrices), axis=(1, 2), keepdims=True)
    matrices = matrices / jnp.where(scale == 0, 1, scale)
    with jax.default_matmul_precision("highest"):
        gram = jnp.einsum("nkd,nld->nkl", matrices, matrices)
        u = jnp.linalg.eigh(gram)[1][:, :, -1 - level]
        push = lambda v: jnp.einsum("nkd,nd->nk", matrices, v)
        return _triple(u, jnp.einsum("nkd,nk->nd", matrices, u), push, scale[:, 0, 0])


def _triple(u: jax.Array, pulled: jax.Array, push: Function, scale: jax.Array) -> SingularTriple:
    """The triple from `u`, `J^T u` and a function that applies J, where J is divided by `scale`."""
    s = jnp.linalg.norm(pulled, axis=1)
    v = pulled / s[:, None]
    u = jnp.where(s[:, None] == 0, jnp.nan, u)
    residual = jnp.linalg.norm(push(v) - s[:, None] * u, axis=1)
    return SingularTriple(u, s * scale, v, residual * scale)


def _krylov_triple(f: Function, x: jax.Array, level: int) -> SingularTriple:
    """By Golub-Kahan bidiagonalisation with full reorthogonalisation (matfree), vmapped over examples."""

    def one(x: jax.Array) -> SingularTriple:
        single = lambda flat: f(flat.reshape(1, *x.shape))[0]
        flat = x.reshape(-1)
        _, push = jax.linearize(single, flat)
        pull = jax.linear_transpose(push, flat)
        # Any start that is not a singular vector works; a fixed one makes the result deterministic.
        start = jnp.array(np.random.default_rng(0).normal(size=flat.size), flat.dtype)
        response = push(start)
        scale = jnp.max(jnp.abs(response))
        safe_scale = jnp.where(scale == 0, 1, scale)
        # The Krylov space of a low-rank Jacobian ends early, in 0 / 0. A small identity below the rows of J prevents
        # that, and leaves the right singular vectors and their order unchanged.
        padded = lambda v: (push(v) / safe_scale, 0.01 * v)
        steps = min(KRYLOV_STEPS + level, response.size, flat.size)
        _, _, v = eig.svd_partial(decomp.bidiag(steps))(padded, start)
        # A space that ended early repeats its first vectors: keep the part orthogonal to the lower levels.
        basis = jnp.linalg.qr(v[: level + 1].T)[0]
        pushed = jax.vmap(push, 1)(basis[:, jnp.array([0, level])]) / safe_scale
        length = jnp.linalg.norm(pushed, axis=1)
        vanishes = (scale == 0) | (length[1] <= 1e-6 * length[0])  # only rounding errors are left
        u = jnp.where(vanishes, 0, pushed[1] / length[1])[None]
        pulled = pull(u[0])[0][None] / safe_scale
        triple = _triple(u, pulled, lambda v: (push(v[0]) / safe_scale)[None], safe_scale[None])
        return jax.tree.map(lambda a: a[0], triple)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(x)
