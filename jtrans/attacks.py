"""Attacks: directions turned into bounded perturbed inputs.

An attack is a function `(f, x, y, key) -> adversarial x`, of a pure `f: [N, ...] -> [N, K]`, inputs `[N, ...]`, the
labels `[N]` to move away from (true ones, or `own_prediction`), and a key that is only needed for a random start (one,
or one for each example). Epsilon is in the units of `x`: [0, 1] pixels, where the network itself maps them to its own
range. What comes back is floats: rounding them to pixel values would undo part of the attack. Where the network gives
no direction (its gradient is zero or not finite), the input comes back as it is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import directions, loops
from jtrans.jacobian import Function

Attack = Callable[[Function, jax.Array, jax.Array, jax.Array | None], jax.Array]
Bounds = tuple[float, float] | None
# Success is counted among these images.
DENOMINATORS = ("all images", "those the target gets right", "those both networks get right")


class Success(NamedTuple):
    """How often attacks work, `[..., 3]`, among each of `DENOMINATORS`.

    Attributes:
      rate: the share of those images that the attacked network gets wrong under attack; NaN where there is none.
      count: how many images those are; those at which the attacked network's outputs are not finite are left out.
    """

    rate: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # in the place of the tuple's method, which nobody needs here


def right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether each label is predicted: `[N]`, 1 or 0, and NaN where the logits `[N, K]` are not finite."""
    predicted = (logits.argmax(-1) == labels).astype(jnp.float32)
    return jnp.where(jnp.isfinite(logits).all(-1), predicted, jnp.nan)


def success(attacked: np.ndarray, clean_target: np.ndarray, clean_source: np.ndarray) -> Success:
    """How often attacks work, from what the networks make of N images, each `[..., N]` as `right` gives it.

    Args:
      attacked: whether the attacked network, the target, still gives the label of the adversarial image.
      clean_target, clean_source: whether it, and the network that the attack was made on, give that of the clean image.
    """
    attacked, target, source = np.broadcast_arrays(attacked, clean_target, clean_source)
    finite = ~np.isnan(attacked) & ~np.isnan(target)
    counted = finite[..., None, :] & np.stack([finite, target == 1, (target == 1) & (source == 1)], axis=-2)
    count = counted.sum(-1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant
        return Success(((attacked == 0)[..., None, :] & counted).sum(-1) / count, count)


def flipped(attacked: jax.Array, clean: jax.Array) -> jax.Array:
    """The share of the images that a network gets right which it then gets wrong; NaN where there is none.

    Args:
      attacked, clean: `[..., N]` as `right` gives them, of the adversarial and of the clean images.
    """
    counted = (clean == 1) & ~jnp.isnan(attacked)
    return (counted & (attacked == 0)).sum(-1) / counted.sum(-1)


def own_prediction(f: Function, x: jax.Array) -> jax.Array:
    """The class `[N]` that `f` gives each input."""
    return f(x).argmax(-1)


def fgsm(epsilon: float, *, random_start: bool = False, bounds: Bounds = (0, 1)) -> Attack:
    """The fast gradient sign method (Goodfellow et al. 2015): one step of L-inf PGD, of size epsilon.

    Args:
      epsilon: the largest change of an input value, in the units of the input.
      random_start: begin at a uniformly random point of the ball (as Liang et al. 2021 do), not at `x`.
      bounds: the range of valid inputs; None for no such range.

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
    """Projected gradient ascent on the cross entropy (Madry et al. 2018).

    The result lies in the ball and in the bounds exactly, rounding included.

    Args:
      epsilon: the ball's radius, in the units of the input.
      steps: the number of steps.
      step_size: the length of each, in the same units.
      norm: `linf` (steps along the sign of the gradient) or `l2` (along the gradient).
      random_start: begin at a uniformly random point of the ball, example i's from `fold_in(key, i)`.
      bounds: the range of valid inputs; None for no such range.

    Raises:
      ValueError: an unknown norm, a negative epsilon; and when it runs, a random start without a key.
    """
    if norm not in _BALLS:
        raise ValueError(f"norm: got {norm!r}; it takes {' or '.join(_BALLS)}")
    if epsilon < 0:
        raise ValueError(f"epsilon: got {epsilon}; it takes 0 or more")
    project, draw, along = _BALLS[norm]

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        start = x
        if random_start:
            offset = jax.vmap(lambda k: draw(k, x.shape[1:], x.dtype))(directions.example_keys(key, len(x)))
            start = project(x + epsilon * offset, x, epsilon, bounds)

        def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            adversarial, directed = carry
            gradient = _finite(directions.loss_gradient(f, adversarial, y))
            ahead = adversarial + step_size * along(gradient)
            return project(ahead, x, epsilon, bounds), directed | (_sums(jnp.abs(gradient)) > 0)

        adversarial, directed = loops.repeat(steps, step, (start, jnp.zeros(len(x), bool)))
        # A random start alone is no attack.
        return jnp.where(_per_example(directed, x), adversarial, x)

    return attack


def mi_fgsm(epsilon: float, steps: int, step_size: float, *, decay: float = 1.0, bounds: Bounds = (0, 1)) -> Attack:
    """Momentum iterative FGSM in L-inf (Dong et al. 2018), without a random start.

    Each gradient is divided by its L1 norm, added to `decay` times the sum before, and the step goes along the sign.

    Args:
      epsilon, steps, step_size, bounds: as `pgd`.
      decay: the share of the earlier gradients that is kept.
    """

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            adversarial, momentum = carry
            gradient = _finite(directions.loss_gradient(f, adversarial, y))
            momentum = decay * momentum + gradient / _per_example(_nonzero(_sums(jnp.abs(gradient))), gradient)
            return _project_linf(adversarial + step_size * jnp.sign(momentum), x, epsilon, bounds), momentum

        adversarial, momentum = loops.repeat(steps, step, (x, jnp.zeros_like(x)))
        return jnp.where(_per_example(_sums(jnp.abs(momentum)) > 0, x), adversarial, x)

    return attack


def virtual(epsilon: float, *, level: int = 0, bounds: Bounds = None) -> Attack:
    """The virtual adversarial attack (Liang et al. 2021): epsilon along the Jacobian's right singular vector.

    It takes no account of the labels. The vector's sign is arbitrary.

    Args:
      epsilon: the L2 length of the perturbation, in the units of the input.
      level: 0 for the largest singular value.
      bounds: the range of valid inputs; None for no such range.
    """

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        v = _finite(directions.singular_vector(f, x, level=level))
        adversarial = _project_l2(x + epsilon * v, x, epsilon, bounds)
        return jnp.where(_per_example(_sums(jnp.abs(v)) > 0, x), adversarial, x)

    return attack


# By the name in a config, made from epsilon, the number of steps and the number of values of an input. `NAME_liang` are
# the forms in the official code of Liang et al. (2021). The virtual attack has FGSM's length in L2.
BY_NAME: dict[str, Callable[[float, int, int], Attack]] = {
    "fgsm": lambda epsilon, steps, dimension: fgsm(epsilon),
    "pgd": lambda epsilon, steps, dimension: pgd(epsilon, steps, 2.5 * epsilon / steps),
    "fgsm_liang": lambda epsilon, steps, dimension: fgsm(epsilon, random_start=True),
    "pgd_liang": lambda epsilon, steps, dimension: pgd(epsilon, steps, 5 * epsilon / steps),
    "mi_fgsm": lambda epsilon, steps, dimension: mi_fgsm(epsilon, steps, epsilon / steps),
    "virtual": lambda epsilon, steps, dimension: virtual(epsilon * math.sqrt(dimension), bounds=(0, 1)),
}


def _finite(vectors: jax.Array) -> jax.Array:
    """Each example's vector; zero in the place of one that is not finite, which has no direction."""
    return jnp.where(jnp.isfinite(vectors).all(axis=tuple(range(1, vectors.ndim)), keepdims=True), vectors, 0)


def _within(x: jax.Array, bounds: Bounds) -> jax.Array:
    return x if bounds is None else jnp.clip(x, *bounds)


def _project_linf(adversarial: jax.Array, x: jax.Array, epsilon: float, bounds: Bounds) -> jax.Array:
    """Into the ball around x, to the last bit: `x +- epsilon` is rounded towards x."""
    radius = np.asarray(epsilon, x.dtype)
    radius = radius if radius <= epsilon else np.nextafter(radius, np.asarray(0, x.dtype))
    high, low = (jnp.where(_rounded_out(x, r), jnp.nextafter(x + r, x), x + r) for r in (radius, -radius))
    return _within(jnp.clip(adversarial, low, high), bounds)


def _rounded_out(x: jax.Array, r: np.ndarray) -> jax.Array:
    """Whether `x + r` was rounded away from x: the sign of its rounding error, which Knuth's two-sum gives exactly."""
    total = x + r
    back = total - x
    error = (x - (total - back)) + (r - back)
    return error * np.sign(r) < 0


def _project_l2(adversarial: jax.Array, x: jax.Array, epsilon: float, bounds: Bounds) -> jax.Array:
    """Into the ball around x; the radius leaves room for the rounding of `x + delta` in every input value."""
    delta = adversarial - x
    size = np.prod(x.shape[1:])
    largest = jnp.max(jnp.abs(x)) + epsilon
    radius = jnp.maximum(epsilon * (1 - 1e-6) - np.sqrt(size) * jnp.finfo(x.dtype).eps * largest / 2, 0)
    length = jnp.sqrt(_sums(delta**2))
    delta = delta * _per_example(jnp.minimum(1, radius / _nonzero(length)), x)
    return _within(x + delta, bounds)


def _uniform_in_cube(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -1, 1)


def _uniform_in_ball(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    direction, radius = jax.random.split(key)
    normal = jax.random.normal(direction, shape, dtype)
    return normal / jnp.linalg.norm(normal.reshape(-1)) * jax.random.uniform(radius, (), dtype) ** (1 / np.prod(shape))


def _along_gradient(gradient: jax.Array) -> jax.Array:
    unit = directions.normalize(gradient).reshape(gradient.shape)
    return jnp.where(gradient == 0, 0, unit)  # where there is no gradient there is no step, rather than NaN


def _sums(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1).sum(1)


def _nonzero(x: jax.Array) -> jax.Array:
    """1 in place of 0, for a division whose numerator is 0 too."""
    return jnp.where(x == 0, 1, x)


def _per_example(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape(-1, *[1] * (like.ndim - 1))


_BALLS = {
    "linf": (_project_linf, _uniform_in_cube, jnp.sign),
    "l2": (_project_l2, _uniform_in_ball, _along_gradient),
}
