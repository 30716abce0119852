"""Attacks: adversarial directions turned into bounded perturbations of inputs.

An attack is a function `(f, x, y, key) -> adversarial x` of a pure function `f: [N, ...] -> [N, K]`, inputs `[N, ...]`,
labels `[N]`, and a key, or one key per example, which only random attacks need. It moves away from the labels (true
labels, or `own_prediction`) or, if it is targeted, towards them. Epsilon is in the units of `x`: for images pixels in
[0, 1], which the network itself normalises. Adversarial inputs are floats: rounding them to 8-bit pixels undoes part of
the attack (`round_8bit`). Where the gradient is zero or not finite, the input is returned unchanged.

All attacks but the virtual one are one loop, `iterative`, composed of parts: input transforms (`diverse_inputs`,
`scale_copies`), a smoothing of the gradient (`gaussian_smoothing`), and an accumulator of gradients (`momentum`,
`nesterov`, `variance_tuned`). `BY_NAME` has those that the literature compares. `ensemble` makes one source of several
networks. `jtrans.attacks.words` has those that substitute words of texts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import directions, loops
from jtrans.attacks.balls import BALLS, Bounds, Support, sums, support_of
from jtrans.attacks.parts import (
    LAST_GRADIENT,
    Accumulator,
    Scaled,
    Transform,
    diverse_inputs,
    gaussian_smoothing,
    momentum,
    nesterov,
    over_l1,
    scale_copies,
    total,
    variance_tuned,
)
from jtrans.attacks.words import hotflip, random_words
from jtrans.jacobian import Function

Attack = Callable[[Function, jax.Array, jax.Array, jax.Array | None], jax.Array]
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
    """The share of correctly classified images that an attack flips (NaN if none), from `right`'s `[..., N]`."""
    counted = (clean == 1) & ~jnp.isnan(attacked)
    return (counted & (attacked == 0)).sum(-1) / counted.sum(-1)


def own_prediction(f: Function, x: jax.Array) -> jax.Array:
    """The class `[N]` that `f` predicts for each input."""
    return f(x).argmax(-1)


def where_finite(vectors: jax.Array, otherwise: jax.Array | int = 0) -> jax.Array:
    """The vectors `[N, ...]`, with `otherwise` in place of each that is not finite and so has no direction."""
    return jnp.where(jnp.isfinite(vectors).all(axis=tuple(range(1, vectors.ndim)), keepdims=True), vectors, otherwise)


def fgsm(epsilon: float, *, random_start: bool = False, **options: Any) -> Attack:
    """The fast gradient sign method (Goodfellow et al. 2015): one step of PGD, of size epsilon.

    Options as `iterative`; Liang et al. (2021) use a random start.

    >>> import jax.numpy as jnp
    >>> x, y = jnp.array([[0.25, 0.75]]), jnp.array([0])
    >>> fgsm(0.125)(lambda x: x, x, y).tolist()
    [[0.125, 0.875]]
    """
    return iterative(epsilon, 1, epsilon, random_start=random_start, **options)


def pgd(epsilon: float, steps: int, step_size: float, *, random_start: bool = True, **options: Any) -> Attack:
    """Projected gradient ascent on the cross entropy (Madry et al. 2018). Options as `iterative`."""
    return iterative(epsilon, steps, step_size, random_start=random_start, **options)


def mi_fgsm(epsilon: float, steps: int, step_size: float, *, decay: float = 1.0, **options: Any) -> Attack:
    """Momentum iterative FGSM (Dong et al. 2018), without a random start. Options as `iterative`."""
    return iterative(epsilon, steps, step_size, accumulator=momentum(decay), **options)


def virtual(epsilon: float, *, level: int = 0, bounds: Bounds = None) -> Attack:
    """The virtual adversarial attack (Liang et al. 2021): a step of epsilon along the Jacobian's right singular vector.

    The labels are ignored. The sign of the vector is arbitrary. Epsilon is the L2 length of the perturbation, in the
    units of the input; `level` is 0 for the largest singular value; `bounds` as `iterative`.
    """

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        v = where_finite(directions.singular_vector(f, x, level=level))
        adversarial = BALLS["l2"].project(x + epsilon * v, x, epsilon, bounds)
        return jnp.where(sums(jnp.abs(v)) > 0, adversarial, x)

    return attack


def iterative(
    epsilon: float,
    steps: int,
    step_size: float,
    *,
    transforms: Sequence[Transform] = (),
    smoothing: Callable[[jax.Array], jax.Array] | None = None,
    accumulator: Accumulator = LAST_GRADIENT,
    norm: str = "linf",
    targeted: bool = False,
    random_start: bool = False,
    bounds: Bounds = (0, 1),
    support: Support = None,
) -> Attack:
    """Projected gradient ascent on the cross entropy, exactly in ball and bounds despite rounding.

    Args:
      epsilon, steps, step_size: the ball's radius, the number of steps and their length, in the units of the input.
      transforms: of the inputs, one after the other, before the network sees them.
      smoothing: of the gradient `[N, ...]`, a linear map.
      accumulator: makes the direction of a step; without one it is the gradient.
      norm: `linf` (steps along the sign of the direction) or `l2` (along the direction).
      targeted: the labels are those to move towards: the cross entropy is descended.
      random_start: start at a uniformly random point of the ball, not at `x`; example i uses `fold_in(key, i)`. What
        else is random folds the step into that.
      bounds: the range of valid inputs; None: unbounded.
      support: from `x` to Booleans that broadcast to its shape, the values at which random draws may change it; None:
        all. Gradients change no others where the network ignores these.

    Raises:
      ValueError: the norm is unknown or epsilon negative. The attack raises it where it is random and has no key, and
        where a part takes images and `x` are none.

    The diverse inputs of Xie et al. (2019), with momentum, as they are compared:

    >>> dim = iterative(16 / 255, 10, 1.6 / 255, transforms=[diverse_inputs()], accumulator=momentum())
    """
    if norm not in BALLS:
        raise ValueError(f"norm: got {norm!r}; it takes {' or '.join(BALLS)}")
    if epsilon < 0:
        raise ValueError(f"epsilon: got {epsilon}; it takes 0 or more")
    ball = BALLS[norm]

    def attack(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        keys = None if key is None else directions.example_keys(key, len(x))
        start = ball.project(x + epsilon * ball.offsets(keys, x, support), x, epsilon, bounds) if random_start else x
        reach = step_size * ball.flat(sums(support_of(x, support)))

        def gradient(point: jax.Array, keys: jax.Array | None) -> Scaled:
            vector, log_scale = _loss_gradient(f, point, y, transforms, keys)
            vector = vector if smoothing is None else smoothing(vector)
            log_scale = jnp.where(jnp.isfinite(log_scale), log_scale, jnp.finfo(x.dtype).min)
            return Scaled(where_finite(vector), log_scale).times(-1 if targeted else 1)

        def step(carry: tuple[Any, jax.Array, Any, jax.Array]) -> tuple[Any, jax.Array, Any, jax.Array]:
            number, adversarial, memory, has_gradient = carry

            def near(count: int, radius: float) -> Scaled:
                keys_near = _fold_in(keys, 2 * number + 1)

                def at(i: Any) -> Scaled:
                    offsets = ball.offsets(_fold_in(keys_near, 2 * i), x, support)
                    return gradient(adversarial + radius * epsilon * offsets, _fold_in(keys_near, 2 * i + 1))

                return total(count, at, x).times(1 / count)

            here = gradient(adversarial + reach * accumulator.ahead(memory), _fold_in(keys, 2 * number))
            memory, direction = accumulator.update(memory, here, near)
            adversarial = ball.project(adversarial + step_size * ball.along(direction), x, epsilon, bounds)
            return number + 1, adversarial, memory, has_gradient | (sums(jnp.abs(here.vector)) > 0)

        carry = 0, start, accumulator.start(x), jnp.zeros_like(sums(x), bool)
        _, adversarial, _, has_gradient = loops.repeat(steps, step, carry)
        return jnp.where(has_gradient, adversarial, x)  # a random start without any gradient step is not an attack

    return attack


def round_8bit(attack: Attack) -> Attack:
    """The attack, with its results rounded to 8-bit pixels: multiples of 1/255.

    Each value is rounded towards that of the clean image, which has 8-bit pixels itself. So no value moves further from
    its own, and adversarial images stay in any ball and bounds. Of perturbations below 1/255 nothing is left.
    """

    def rounded(f: Function, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        levels = 255 * (attack(f, x, y, key) - x)
        levels = jnp.trunc(levels + 1e-4 * jnp.sign(levels))  # what rounding has taken from a whole level is given back
        return jnp.where(levels == 0, x, (jnp.round(255 * x) + levels) / 255)

    return rounded


@partial(jax.tree_util.register_dataclass, data_fields=["functions"], meta_fields=["of"])
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """What `ensemble` makes: a function to the mean of the logits `[N, K]` of its networks, and a source of attacks."""

    functions: tuple[Function, ...]
    of: str

    def __call__(self, x: jax.Array) -> jax.Array:
        logits = [f(x) for f in self.functions]
        if len(classes := {array.shape[-1] for array in logits}) > 1:
            raise ValueError(f"functions: got networks of {sorted(classes)} classes; an ensemble takes equal numbers")
        return functools.reduce(jnp.add, logits) / len(logits)


def ensemble(functions: Sequence[Function], of: str = "logits") -> Ensemble:
    """Several networks as one source of attacks, which as a function gives the mean of their logits.

    Args:
      functions: `[N, ...] -> [N, K]` each, of the same classes.
      of: what iterative attacks take the mean of. `logits`: the cross entropy of the mean logits, the best in Dong et
        al. (2018). `losses`: the mean of the networks' cross entropies, also compared there. `gradients`: the mean of
        the gradients of these, each over its L1 norm, so that at every image all networks count alike.
        Where one network's gradient is not finite, they leave the input unchanged.

    Raises:
      ValueError: there are no functions, or `of` is none of these. The ensemble raises it if numbers of classes differ.
    """
    means = ("logits", "losses", "gradients")
    if not functions:
        raise ValueError("functions: got none; an ensemble takes one or more")
    if of not in means:
        raise ValueError(f"of: got {of!r}; it takes {', '.join(means)}")
    return Ensemble(tuple(functions), of)


def _loss_gradient(
    f: Function, x: jax.Array, y: jax.Array, transforms: Sequence[Transform], keys: jax.Array | None
) -> Scaled:
    """The gradient of the cross entropy, added up over the views of the transforms and the networks of an ensemble."""

    def view(x: jax.Array, i: Any) -> jax.Array:
        for transform in transforms:
            i, of_transform = divmod(i, transform.views)
            x = transform.view(x, keys, of_transform)
        return x

    def of_view(f: Function, i: Any) -> Scaled:
        logits, pull_back = jax.vjp(lambda x: f(view(x, i)), x)
        (vector,) = pull_back(directions.loss_cotangent(logits, y))
        log_scale = directions.log_other_probability(logits, y).astype(x.dtype)
        return Scaled(vector, log_scale.reshape(-1, *[1] * (x.ndim - 1)))

    networks = f.functions if isinstance(f, Ensemble) and f.of != "logits" else (f,)
    views = math.prod(transform.views for transform in transforms)
    gradients = [total(views, partial(of_view, network), x) for network in networks]
    if isinstance(f, Ensemble) and f.of == "gradients":
        gradients = [Scaled(over_l1(vector), jnp.zeros_like(log_scale)) for vector, log_scale in gradients]
    return functools.reduce(Scaled.plus, gradients)


_folded = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))  # called eagerly, `vmap` alone takes milliseconds


def _fold_in(keys: jax.Array | None, number: Any) -> jax.Array | None:
    return None if keys is None else _folded(keys, number)


def _composed(**parts: Any) -> Callable[..., Attack]:
    return lambda epsilon, steps, dimension, **options: iterative(epsilon, steps, epsilon / steps, **parts, **options)


def _virtual(
    epsilon: float, steps: int, dimension: int, *, norm: str = "linf", bounds: Bounds = (0, 1), support: Support = None
) -> Attack:
    """The virtual attack, as long as the longest change in the ball; outside of the support it has no component."""
    return virtual(epsilon * math.sqrt(dimension) if norm == "linf" else epsilon, bounds=bounds)


# The attacks by config name, built from epsilon, the number of steps and the input dimension; all but the virtual one
# also take the options of `iterative`, such as `targeted`. `NAME_liang` are the variants in the official code of Liang
# et al. (2021). The virtual attack has the same L2 length as FGSM. From `mi_fgsm` on they are as compared on transfer:
# with momentum and steps of `epsilon / steps`. So `di_fgsm` is M-DI2-FGSM, or DIM, and `ti_fgsm` is TI-MI-FGSM, or TIM.
# `si_ni_ti_di_fgsm` is SI-NI-TI-DIM, the strongest of Lin et al. (2020).
BY_NAME: dict[str, Callable[..., Attack]] = {
    "fgsm": lambda epsilon, steps, dimension, **options: fgsm(epsilon, **options),
    "pgd": lambda epsilon, steps, dimension, **options: pgd(epsilon, steps, 2.5 * epsilon / steps, **options),
    "fgsm_liang": lambda epsilon, steps, dimension, **options: fgsm(epsilon, random_start=True, **options),
    "pgd_liang": lambda epsilon, steps, dimension, **options: pgd(epsilon, steps, 5 * epsilon / steps, **options),
    "virtual": _virtual,
    "mi_fgsm": _composed(accumulator=momentum()),
    "di_fgsm": _composed(accumulator=momentum(), transforms=(diverse_inputs(),)),
    "ti_fgsm": _composed(accumulator=momentum(), smoothing=gaussian_smoothing()),
    "ni_fgsm": _composed(accumulator=nesterov()),
    "si_ni_fgsm": _composed(accumulator=nesterov(), transforms=(scale_copies(),)),
    "vmi_fgsm": _composed(accumulator=variance_tuned(momentum())),
    "vni_fgsm": _composed(accumulator=variance_tuned(nesterov())),
    "si_ni_ti_di_fgsm": _composed(
        accumulator=nesterov(), transforms=(diverse_inputs(), scale_copies()), smoothing=gaussian_smoothing(7)
    ),
}
ON_IMAGES = ("di_fgsm", "ti_fgsm", "si_ni_ti_di_fgsm")  # those that resize or smooth images
# Attacks on words by config name, built from the table of embeddings and the number of words substituted at most.
ON_WORDS: dict[str, Callable[[np.ndarray, int], Attack]] = {"hotflip": hotflip, "random_words": random_words}
