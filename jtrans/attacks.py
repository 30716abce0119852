"""Attacks: adversarial directions turned into bounded perturbations of inputs.

An attack is a function `(f, x, y, key) -> adversarial x` of a pure function `f: [N, ...] -> [N, K]`, inputs `[N, ...]`,
the labels `[N]` to move away from (true labels, or `own_prediction`), and a key, or one key per example, which only a
random start needs. Epsilon is in the units of `x`: for images pixels in [0, 1], which the network itself normalises.
Adversarial inputs are floats: rounding them to 8-bit pixels would undo part of the attack. Where the gradient is zero
or not finite, the input is returned unchanged.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import directions, loops
from jtrans.jacobian import Function

Attack = Callable[[Function, jax.Array, jax.Array, jax.Array | None], jax.Array]
Bounds = tuple[float, float] | None
# The sets of images over which success rates are computed.
DENOMINATORS = ("all images", "those the target gets right", "those both networks get right")


class Success(NamedTuple):
    """Success rates of attacks, `[..., 3]`, over each set of images in `DENOMINATORS`.

    Attributes:
      rate: the share of these images that the attacked network misclassifies under attack; NaN if there are none.
      count: the number of these images; images at which the attacked network's outputs are not finite are left out.
    """

    rate: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # replaces `tuple.count`, which is not needed here


def right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`[N]`: 1 where the label is predicted, else 0; NaN where the logits `[N, K]` are not finite."""
    predicted = (logits.argmax(-1) == labels).astype(jnp.float32)
    return jnp.where(jnp.isfinite(logits).all(-1), predicted, jnp.nan)


def success(attacked: np.ndarray, clean_target: np.ndarray, clean_source: np.ndarray) -> Success:
    """Success rates of attacks on N images, from outputs of `right`, each `[..., N]`.

    Args:
      attacked: of the attacked network, the target, for the adversarial images.
      clean_target, clean_source: of the target, and of the source of the attack, for the clean images.
    """
    attacked, target, source = np.broadcast_arrays(attacked, clean_target, clean_source)
    finite = ~np.isnan(attacked) & ~np.isnan(target)
    counted = finite[..., None, :] & np.stack([finite, target == 1, (target == 1) & (source == 1)], axis=-2)
    count = counted.sum(-1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as documented
        return Success(((attacked == 0)[..., None, :] & counted).sum(-1) / count, count)


def flipped(attacked: jax.Array, clean: jax.Array) -> jax.Array:
    """The share of correctly classified images that an attack flips (NaN if none), from `right`'s outputs `[..., N]`."""
    counted = (clean == 1) & ~jnp.isnan(attacked)
    return (counted & (attacked == 0)).sum(-1) / counted.sum(-1)


def own_prediction(f: Function, x: jax.Array) -> jax.Array:
    """The class `[N]` that `f` predicts for each input."""
    return f(x).argmax(-1)


def where_finite(vectors: jax.Array, otherwise: jax.Array | int = 0) -> jax.Array:
    """The vectors `[N, ...]`, with `otherwise` in place of each that is not finite and so has no direction."""
    return jnp.where(jnp.isfinite(vectors).all(axis=tuple(range(1, vectors.ndim)), keepdims=True), vectors, otherwise)


def fgsm(epsilon: float, *, random_start: bool = False, bounds: Bounds = (0, 1)) -> Attack:
    """The fast gradient sign method (Goodfellow et al. 2015): one step of L-inf PGD, of size epsilon.

    Arguments as `pgd`; Liang et al. (2021) use a random start.

    >>> import jax.numpy as jnp
    >>> x, y = jnp.array([[0.25, 0.75]]), jnp.array([0])
    >>> fgsm(0.125)(lambda x: x, x, y).tolist()
    [[0.125, 0.875]]
    """
    return pgd(epsilon, 1, epsilon, random_start=random_start, bounds=bounds)


def pgd(
    epsilon: float,
    steps: int,
    step_size: float,
    *,
    norm: str = "linf",
    random_start: bool = True,
    bounds: Bounds = (0, 1),
) -> Attack:
    """Projected gradient ascent on the cross entropy (Madry et al. 2018), exactly in ball and bounds despite rounding.

    Args:
      epsilon, steps, step_size: the ball's radius, the number of steps and their length, in the units of the input.
      norm: `linf` (steps along the sign of the gradient) or `l2` (along the gradient).
      random_start: start at a uniformly random point of the ball, not at `x`; example i uses `fold_in(key, i)`.
      bounds: the range of valid inputs; None: unbounded.

    Raises:
      ValueError: the norm is unknown or epsilon negative. The attack raises it for a random start without a key.
    """
    if norm not in _BALLS:
        raise ValueError(f"norm: got {norm!r}; it takes {' or '.join(_BALLS)}")
    if epsilon < 0:
        raise ValueError(f"epsilon: got {epsilon}; it takes 0 or more")
    project, random_offset, step_direction = _BALLS[norm]

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        start = x
        if random_start:
            keys = directions.example_keys(key, len(x))
            offset = jax.vmap(lambda k: random_offset(k, x.shape[1:], x.dtype))(keys)
            start = project(x + epsilon * offset, x, epsilon, bounds)

        def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            adversarial, has_gradient = carry
            gradient = where_finite(directions.loss_gradient(f, adversarial, y))
            stepped = adversarial + step_size * step_direction(gradient)
            return project(stepped, x, epsilon, bounds), has_gradient | (_sums(jnp.abs(gradient)) > 0)

        adversarial, has_gradient = loops.repeat(steps, step, (start, jnp.zeros_like(_sums(x), bool)))
        return jnp.where(has_gradient, adversarial, x)  # a random start without any gradient step is not an attack

    return attack


def mi_fgsm(epsilon: float, steps: int, step_size: float, *, decay: float = 1.0, bounds: Bounds = (0, 1)) -> Attack:
    """Momentum iterative FGSM in L-inf (Dong et al. 2018), without a random start.

    The momentum is `decay` times the previous momentum plus the gradient divided by its L1 norm; steps follow its sign.
    Other arguments as `pgd`.
    """

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            adversarial, momentum = carry
            gradient = where_finite(directions.loss_gradient(f, adversarial, y))
            size = _sums(jnp.abs(gradient))
            momentum = decay * momentum + gradient / jnp.where(size == 0, 1, size)
            return _project_linf(adversarial + step_size * jnp.sign(momentum), x, epsilon, bounds), momentum

        adversarial, momentum = loops.repeat(steps, step, (x, jnp.zeros_like(x)))
        return jnp.where(_sums(jnp.abs(momentum)) > 0, adversarial, x)

    return attack


def virtual(epsilon: float, *, level: int = 0, bounds: Bounds = None) -> Attack:
    """The virtual adversarial attack (Liang et al. 2021): a step of epsilon along the Jacobian's right singular vector.

    The labels are ignored. The sign of the vector is arbitrary. Epsilon is the L2 length of the perturbation, in the
    units of the input; `level` is 0 for the largest singular value; `bounds` as `pgd`.
    """

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        v = where_finite(directions.singular_vector(f, x, level=level))
        adversarial = _project_l2(x + epsilon * v, x, epsilon, bounds)
        return jnp.where(_sums(jnp.abs(v)) > 0, adversarial, x)

    return attack


# The attacks by config name, built from epsilon, the number of steps and the input dimension. `NAME_liang` are the
# variants in the official code of Liang et al. (2021). The virtual attack has the same L2 length as FGSM.
BY_NAME: dict[str, Callable[[float, int, int], Attack]] = {
    "fgsm": lambda epsilon, steps, dimension: fgsm(epsilon),
    "pgd": lambda epsilon, steps, dimension: pgd(epsilon, steps, 2.5 * epsilon / steps),
    "fgsm_liang": lambda epsilon, steps, dimension: fgsm(epsilon, random_start=True),
    "pgd_liang": lambda epsilon, steps, dimension: pgd(epsilon, steps, 5 * epsilon / steps),
    "mi_fgsm": lambda epsilon, steps, dimension: mi_fgsm(epsilon, steps, epsilon / steps),
    "virtual": lambda epsilon, steps, dimension: virtual(epsilon * math.sqrt(dimension), bounds=(0, 1)),
}


def _within(x: jax.Array, bounds: Bounds) -> jax.Array:
    return x if bounds is None else jnp.clip(x, *bounds)


def _project_linf(adversarial: jax.Array, x: jax.Array, epsilon: float, bounds: Bounds) -> jax.Array:
    """Project onto the L-inf ball around x, exact to the last bit: `x +- epsilon` is rounded towards x."""
    radius = np.asarray(epsilon, x.dtype)
    radius = radius if radius <= epsilon else np.nextafter(radius, np.asarray(0, x.dtype))
    high, low = (jnp.where(_rounded_out(x, r), jnp.nextafter(x + r, x), x + r) for r in (radius, -radius))
    return _within(jnp.clip(adversarial, low, high), bounds)


def _rounded_out(x: jax.Array, r: np.ndarray) -> jax.Array:
    """Whether `x + r` was rounded away from x: the sign of its rounding error, exact by Knuth's two-sum."""
    total = x + r
    rounded_r = total - x
    error = (x - (total - rounded_r)) + (r - rounded_r)
    return error * np.sign(r) < 0


def _project_l2(adversarial: jax.Array, x: jax.Array, epsilon: float, bounds: Bounds) -> jax.Array:
    """Project onto the L2 ball around x; the radius leaves room for the rounding of `x + delta` in every value."""
    delta = adversarial - x
    size = np.prod(x.shape[1:])
    largest = jnp.max(jnp.abs(x)) + epsilon
    radius = jnp.maximum(epsilon * (1 - 1e-6) - np.sqrt(size) * jnp.finfo(x.dtype).eps * largest / 2, 0)
    length = jnp.sqrt(_sums(delta**2))
    return _within(x + delta * jnp.minimum(1, radius / jnp.where(length == 0, 1, length)), bounds)


def _uniform_in_ball(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    direction, radius = jax.random.split(key)
    normal = jax.random.normal(direction, shape, dtype)
    return normal / jnp.linalg.norm(normal.reshape(-1)) * jax.random.uniform(radius, (), dtype) ** (1 / np.prod(shape))


def _along_gradient(gradient: jax.Array) -> jax.Array:
    unit = directions.normalize(gradient).reshape(gradient.shape)
    return jnp.where(gradient == 0, 0, unit)  # a zero gradient gives a zero step, not NaN


def _sums(x: jax.Array) -> jax.Array:
    """The sum of each example's values, `[N, 1, ...]` with the axes of `x`."""
    return x.reshape(len(x), -1).sum(1).reshape(-1, *[1] * (x.ndim - 1))


_BALLS: dict[str, tuple[Callable, Callable, Callable]] = {
    "linf": (_project_linf, partial(jax.random.uniform, minval=-1, maxval=1), jnp.sign),
    "l2": (_project_l2, _uniform_in_ball, _along_gradient),
}
