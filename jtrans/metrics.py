"""Measures of transfer between two networks, for use in notebooks and scripts.

A network is any pure function `f: [N, ...] -> [N, K]` whose output i depends on input i alone; source and target may
have different numbers of outputs. The source is the first argument. `batch_size` is the number of examples in memory at
once (None: chosen from the sizes), on which results do not depend, up to rounding. All measures except `success_matrix`
work under `jax.jit`, under `jax.vmap` over networks and, unless they use singular vectors, under `jax.grad`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import attacks, directions, jacobian, loops, transfer
from jtrans.attacks import Attack
from jtrans.jacobian import Function, SingularTriple

# Eigenvalues of the source's moments that are smaller, beside the largest, may be rounding errors: how large these are
# depends on sizes and on the machine. Every cutoff gives a map, so a bound from above, and the smallest bound counts.
CUTOFFS = tuple(np.finfo(np.float32).eps * 16.0 ** np.arange(4))


class Transferability(NamedTuple):
    """How well the source's attacks transfer to the target (Liang et al. 2021).

    Attributes:
      tau1: the effect of the source's attack on the target, divided by the effect of the target's own attack: the mean
        of `tau1_per_example`. In [0, 1] for the linearised attack.
      tau2: how well the two networks' output changes are aligned across inputs, in [0, 1].
      tau1_tau2: both combined: tau2 with each example weighted by its tau1.
      tau1_per_example: `[N]`; NaN where the source's attack has no effect on the source, the target's own attack has
        none on the target, or outputs are not finite. Such examples are left out of the other three.
    """

    tau1: jax.Array
    tau2: jax.Array
    tau1_tau2: jax.Array
    tau1_per_example: jax.Array


class SuccessMatrix(NamedTuple):
    """Success rates of attacks computed on S sources against T targets.

    Attributes:
      rate, count: `[S, T, 3]`, as in `attacks.Success`.
      unmoved: `[S]`, the number of images that the attack on each source left unchanged, as for a zero gradient.
    """

    rate: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # replaces `tuple.count`, which is not needed here
    unmoved: np.ndarray


def angles(u: jax.Array, v: jax.Array, *, fold: bool = True) -> jax.Array:
    """The angle between each pair of vectors, in degrees.

    Computed as `2 atan2(|a - b|, |a + b|)` of the unit vectors, which is accurate near 0, 90 and 180 degrees alike;
    the `arccos` of a float32 cosine has an error of 0.03 degrees near 0.

    Args:
      u, v: `[N, ...]`, the same shape.
      fold: return `min(angle, 180 - angle)`, in [0, 90] (BenShmuel 2022, section 3.1), instead of [0, 180].

    Returns:
      `[N]`; NaN where either vector is zero or not finite.

    Raises:
      ValueError: the shapes differ.

    >>> import jax.numpy as jnp
    >>> u, v = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[0.0, 2.0], [-1.0, 1.0]])
    >>> [round(float(angle), 3) for angle in angles(u, v)]
    [90.0, 45.0]
    >>> [round(float(angle), 3) for angle in angles(u, v, fold=False)]
    [90.0, 135.0]
    """
    if jnp.shape(u) != jnp.shape(v):
        raise ValueError(f"u and v: got shapes {jnp.shape(u)} and {jnp.shape(v)}; they must be the same")
    a, b = directions.normalize(jnp.asarray(u)), directions.normalize(jnp.asarray(v))
    difference, total = jnp.linalg.norm(a - b, axis=1), jnp.linalg.norm(a + b, axis=1)
    if fold:
        difference, total = jnp.minimum(difference, total), jnp.maximum(difference, total)
    return jnp.rad2deg(2 * jnp.arctan2(difference, total))


def transferability(
    f_source: Function,
    f_target: Function,
    x: jax.Array,
    *,
    attack: Attack | None = None,
    key: jax.Array | None = None,
    level: int = 0,
    batch_size: int | None = None,
) -> Transferability:
    """tau1, tau2 and their combination, for attacks from the source on the target.

    Without `attack`, the attack is linearised: its direction is the source's right singular vector at `level`, and a
    network's output change is its Jacobian times this vector. With `attack`, each network is attacked away from its own
    prediction, and the output change is a finite difference. The denominator of tau1 is always the effect of the
    target's own attack: its largest singular value, or its output change under the same attack computed on it.

    Args:
      f_source, f_target: `[N, ...] -> [N, K]`.
      x: `[N, ...]`; with an attack, in the units of its epsilon.
      attack: one of `jtrans.attacks`, or any `(f, x, y, key) -> adversarial x`; it gets a batch, and as `key` an array
        with one key per example (None without `key`).
      key: for an attack with a random start; example i uses `fold_in(key, i)`, for both networks.
      level: the source's singular vector, 0 for the largest singular value; only without `attack`.

    Raises:
      ValueError: `level` is given with an attack, or there is no such level; a random attack has no key.

    The source's attack, along the first input, changes the target by 1; the target's own, along the second, by 4:

    >>> import jax.numpy as jnp
    >>> source, target = (lambda x, row=row: x @ jnp.diag(jnp.array(row)) for row in ([3.0, 2.0], [1.0, 4.0]))
    >>> scores = transferability(source, target, jnp.ones((5, 2)))
    >>> round(float(scores.tau1), 3), round(float(scores.tau2), 3)
    (0.25, 1.0)
    """
    x = jnp.asarray(x)
    if attack is not None and level:
        raise ValueError(f"level: got {level} together with an attack; it is for the linearised attack only")
    size = batch_size or _batch_size(f_source, f_target, x)
    with jax.default_matmul_precision("highest"):
        if attack is None:
            linearised = loops.in_batches(_linearised_effects, size, x, networks=(f_source, f_target), level=level)
            return _from_moments(*linearised)
        keys = None if key is None else directions.example_keys(key, len(x))
        finite = partial(_finite_effects, f_source, f_target, attack)
        return _from_moments(*loops.in_batches(finite, size, x, keys))


def taus(own: jax.Array, across: jax.Array, best: jax.Array) -> Transferability:
    """As `transferability`, from the output changes that the attacks cause.

    Args:
      own: `[N, K_S]`, the source's output change under its own attack.
      across: `[N, K_T]`, the target's output change under the source's attack.
      best: `[N]`, the norm of the target's output change under its own attack.
    """
    return _from_moments(*_moments(own, across, best))


def success_matrix(
    sources: Sequence[Function],
    targets: Sequence[Function],
    x: jax.Array,
    y: jax.Array,
    attack: Attack,
    *,
    key: jax.Array | None = None,
    target_labels: jax.Array | None = None,
    keep: Callable[[int, jax.Array], None] | None = None,
    batch_size: int = 256,
) -> SuccessMatrix:
    """How often an attack computed on each source, away from the true labels, also succeeds on each target.

    Over each of `attacks.DENOMINATORS`: all images, those that the target classifies correctly without the attack,
    those that both do. Images at which outputs of the source or of the target are not finite are in none of them: a
    lost network makes no attack that could fail.

    Args:
      sources, targets: S and T functions `[N, ...] -> [N, K]` to logits; compiled ones (`jax.jit`) are faster.
      x, attack, key: as `transferability`, with the same errors; each attack is computed once per source.
      y: `[N]` integer labels in `[0, K)`.
      target_labels: `[N]`, for a targeted attack, which gets these labels in place of `y` and succeeds where the target
        predicts them.
      keep: called with the number of each source and its adversarial inputs `[N, ...]`.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    attacked_labels = y if target_labels is None else jnp.asarray(target_labels)
    keys = None if key is None else directions.example_keys(key, len(x))

    def predicts(labels: jax.Array, f: Function, x: jax.Array) -> np.ndarray:
        each = lambda x, labels: (None, attacks.right(f(x), labels))
        return np.asarray(loops.in_batches(each, batch_size, x, labels)[1])

    clean_target = np.array([predicts(y, f, x) for f in targets])
    shape = (len(sources), len(targets), len(attacks.DENOMINATORS))
    matrix = SuccessMatrix(np.empty(shape), np.empty(shape, int), np.empty(len(sources), int))
    for i, f in enumerate(sources):
        # A user-defined attack may return NaN.
        make = lambda x, y, keys, f=f: (None, attacks.where_finite(attack(f, x, y, keys), x))
        adversarial = loops.in_batches(make, batch_size, x, attacked_labels, keys)[1]
        if keep is not None:
            keep(i, adversarial)
        attacked = np.array([predicts(attacked_labels, g, adversarial) for g in targets])
        withstood = attacked if target_labels is None else 1 - attacked  # NaN stays NaN
        clean_source = predicts(y, f, x)
        withstood = np.where(np.isnan(clean_source), np.nan, withstood)
        matrix.rate[i], matrix.count[i] = attacks.success(withstood, clean_target, clean_source)
        matrix.unmoved[i] = (adversarial == x).reshape(len(x), -1).all(1).sum()
    return matrix


def gradient_matching_distance(
    f_source: Function, f_target: Function, x: jax.Array, *, batch_size: int | None = None
) -> jax.Array:
    """How far the target's Jacobian is from a fixed linear map of the source's: 0 or more, in the target's units.

    `min_A sqrt(E_x |J_T(x) - A J_S(x)|_F^2)`, Liang et al. (2021). A first pass over the examples gives the best A, a
    second the distance: computed as a difference of moments, a small distance would be lost to rounding.
    """
    x = jnp.asarray(x)
    batch_size = batch_size or _batch_size(f_source, f_target, x)
    with jax.default_matmul_precision("highest"):
        batches = partial(loops.in_batches, networks=(f_source, f_target))
        scales = tuple(map(transfer.power_of_two, batches(_jacobian_sizes, batch_size, x)[1]))
        moments, _ = batches(_of_scaled, batch_size, x, whole=(scales,), total=_matching_moments)
        matrices = _matching_matrices(moments)
        residuals, _ = batches(_of_scaled, batch_size, x, whole=(scales, matrices), total=_matching_residuals)
        return scales[1] * jnp.sqrt(residuals.min() / len(x))


def jacobian_matching_distance(source: jax.Array, target: jax.Array) -> jax.Array:
    """`gradient_matching_distance` from given Jacobians `[N, K_S, D]` and `[N, K_T, D]`."""
    with jax.default_matmul_precision("highest"):
        target_scale = transfer.power_of_two(target)
        source, target = source / transfer.power_of_two(source), target / target_scale
        matrices = _matching_matrices(_matching_moments(source, target))
        return target_scale * jnp.sqrt(_matching_residuals(matrices, source, target).min() / len(source))


def function_matching_distance(
    f_source: Function, f_target: Function, x: jax.Array, *, batch_size: int | None = None
) -> jax.Array:
    """How far the target is from an affine map of the source's outputs: 0 or more, in the units of its outputs.

    `min_(A, b) sqrt(E_x |f_T(x) - A f_S(x) - b|^2)`, Liang et al. (2021).
    """
    x = jnp.asarray(x)
    with jax.default_matmul_precision("highest"):
        size = batch_size or _batch_size(f_source, f_target, x)
        _, (source, target) = loops.in_batches(_outputs, size, x, networks=(f_source, f_target))
    return transfer.transfer_loss(source, target)


def _batch_size(f_source: Function, f_target: Function, x: jax.Array) -> int:
    outputs = jacobian.output_size(f_source, x) + jacobian.output_size(f_target, x)
    return jacobian.batch_size_for(outputs * int(np.prod(x.shape[1:])))


def _outputs(f_source: Function, f_target: Function, x: jax.Array):
    return None, (f_source(x), f_target(x))


def _linearised_effects(f_source: Function, f_target: Function, x: jax.Array, *, level: int):
    source: SingularTriple = jacobian.top_singular_triple(f_source, x, level=level)
    target_best = jacobian.top_singular_triple(f_target, x).s
    _, target_change = jax.jvp(f_target, (x,), (source.v,))
    return _moments(source.s[:, None] * source.u, target_change, target_best)


def _finite_effects(f_source: Function, f_target: Function, attack: Attack, x: jax.Array, keys: jax.Array | None):
    source, target = f_source(x), f_target(x)
    from_source = attack(f_source, x, source.argmax(-1), keys)
    from_target = attack(f_target, x, target.argmax(-1), keys)
    source_change, target_change = f_source(from_source) - source, f_target(from_source) - target
    return _moments(source_change, target_change, jnp.linalg.norm(f_target(from_target) - target, axis=1))


def _moments(source_change: jax.Array, target_change: jax.Array, target_best: jax.Array):
    """The sums over examples from which the taus follow, and tau1 of each example."""
    effect = jnp.linalg.norm(target_change, axis=1)
    finite = jnp.isfinite(source_change).all(1) & jnp.isfinite(effect) & jnp.isfinite(target_best)
    defined = finite & (jnp.linalg.norm(source_change, axis=1) > 0) & (target_best > 0)
    tau1 = jnp.where(defined, effect / jnp.where(defined, target_best, 1), jnp.nan)
    source = jnp.where(defined[:, None], directions.normalize(source_change), 0)
    # Without an effect on the target there is no direction to align: the example adds 0 to the alignment.
    target = jnp.where((defined & (effect > 0))[:, None], directions.normalize(target_change), 0)
    weight = jnp.where(defined, tau1, 0)
    alignment = jnp.einsum("nk,nl->kl", source, target, precision="highest")
    weighted = jnp.einsum("n,nk,nl->kl", weight, source, target, precision="highest")
    return (defined.sum(), weight.sum(), alignment, weighted), tau1


def _from_moments(moments, tau1: jax.Array) -> Transferability:
    count, tau1_sum, alignment, weighted = moments
    tau2, tau1_tau2 = jnp.linalg.norm(alignment / count), jnp.linalg.norm(weighted / count)
    return Transferability(tau1_sum / count, tau2, tau1_tau2, tau1)


def _jacobian_sizes(f_source: Function, f_target: Function, x: jax.Array):
    """The scales of each example's two Jacobians, to a few powers of two, by one backward pass each: two of `[N]`."""

    def size(f: Function) -> jax.Array:
        outputs, pull_back = jax.vjp(f, x)
        weights = np.random.default_rng(0).normal(size=outputs.shape[1])  # random, so that outputs do not cancel
        (gradient,) = pull_back(jnp.broadcast_to(jnp.asarray(weights, outputs.dtype), outputs.shape))
        return jnp.abs(gradient).reshape(len(x), -1).max(1)

    return None, (size(f_source), size(f_target))


def _of_scaled(f_source: Function, f_target: Function, scales: Sequence[jax.Array], *rest: jax.Array, total: Callable):
    """A total over the examples, the last argument, from what comes before them and the two scaled Jacobians."""
    *whole, x = rest
    jacobians = [jacobian.jacobian(f, x) / scale for f, scale in zip((f_source, f_target), scales, strict=True)]
    return total(*whole, *jacobians), None


def _matching_moments(source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Products per example, then their sum: one contraction over both axes would first transpose the Jacobians.
    across, gram = (jnp.einsum("nkd,nld->nkl", left, source).sum(0) for left in (target, source))
    return across, gram


def _matching_matrices(moments: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`E[J_T J_S^T] (E[J_S J_S^T])^+` by each of `CUTOFFS`, `[len(CUTOFFS), K_T, K_S]`."""
    across, gram = moments
    # Scale the source's outputs to equal size, so that `pinv` does not cut small ones off as rounding errors.
    size = jnp.sqrt(jnp.diagonal(gram))
    inverse = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)[None]
    pinv = partial(jnp.linalg.pinv, gram * inverse * inverse.T, hermitian=True)
    return jnp.stack([(across * inverse) @ pinv(rtol=rtol) * inverse for rtol in CUTOFFS])


def _matching_residuals(matrices: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    residual = lambda matrix: jnp.sum((target - jnp.einsum("kl,nld->nkd", matrix, source)) ** 2)
    return jax.lax.map(residual, matrices)  # one after the other, which takes the memory of one
