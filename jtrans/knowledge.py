"""How well a source network's features and attacks serve on a target domain (Liang et al. 2021), a seed at a time.

The reference is a network trained on the target domain. Images are uint8 `[N, H, W, C]`.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from jtrans import attacks, directions, jacobian, loops, metrics, models, scores, training, transfer
from jtrans.attacks import Attack
from jtrans.jacobian import Function, SingularTriple
from jtrans.models import Model, Variables
from jtrans.transfer import Head

BATCH = 100  # images attacked at a time
WEIGHT_DECAY = 1e-4  # of the new head, as in training


class Seen(NamedTuple):
    """What a network makes of images: logits `[N, K]` over its own classes, features `[N, F]`."""

    logits: np.ndarray
    features: np.ndarray


def see(model: Model, variables: Variables, images: jax.Array) -> Seen:
    """The logits and the features of uint8 images."""
    x = training.pixels(images)
    return Seen(model.apply(variables, x), model.features(variables, x))


def lost(seen: Seen) -> str:
    """Why a network measures nothing: `diverged`, its outputs are not finite, or `dead`, the same for all images."""
    if not (np.isfinite(seen.logits).all() and np.isfinite(seen.features).all()):
        return "diverged"
    return "" if np.ptp(seen.logits, axis=0).any() and np.ptp(seen.features, axis=0).any() else "dead"


def refit(
    source: tuple[Seen, Seen], reference: Seen, labels: tuple[np.ndarray, np.ndarray], num_classes: int
) -> tuple[dict[str, float], Head, str]:
    """The source with a new head for the target domain, and how much it knows of that domain: this, and usual scores.

    Args:
      source: what the source makes of the target's training and test images.
      reference: what the reference makes of the test images.
      labels: of the training and of the test images.

    Returns:
      By name: `transfer_loss` (nats) and `transfer_accuracy` of the new head on the test images; `logme`, `leep`,
      `h_score` by the training images; `cka` with the reference's features by the test images, NaN where the reference
      is `lost`. The head, fitted to convergence. And why the source is `lost`, or "not refitted" where softmax
      regression does not converge; all of the rest is NaN then.
    """
    train, test = source
    why, head = lost(train) or lost(test), None
    if not why:
        try:
            head = transfer.fit_softmax_head(train.features, labels[0], num_classes, weight_decay=WEIGHT_DECAY)
        except RuntimeError:
            why = "not refitted"
    if head is None:
        names = ("transfer_loss", "transfer_accuracy", "logme", "leep", "h_score", "cka")
        nothing = Head(np.full((train.features.shape[1], num_classes), np.nan), np.full(num_classes, np.nan))
        return dict.fromkeys(names, math.nan), nothing, why
    loss, accuracy = transfer.classification(head, test.features, labels[1])
    found = {
        "transfer_loss": loss,
        "transfer_accuracy": accuracy,
        "logme": scores.logme(train.features, labels[0]),
        "leep": scores.leep(scipy.special.softmax(np.float64(train.logits), axis=1), labels[0]),
        "h_score": scores.h_score(train.features, labels[0]),
        "cka": math.nan if lost(reference) else scores.linear_cka(test.features, reference.features),
    }
    return found, head, ""


def with_head(variables: Variables, head: Head) -> Variables:
    """The network with a new head in the place of its last layer: it tells the target's classes apart."""
    return models.with_last_layer(variables, jnp.float32(head.weights.T), jnp.float32(head.bias))


def head_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    variables: Variables,
    head: Head,
    state: Any,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[Head, Any]:
    """A new last layer and its optimizer's state after one step on a batch; the rest of the network stays as it is.

    Args:
      images: uint8 `[B, H, W, C]`.
      labels: `[B]`, of the target domain.
    """
    features = model.features(variables, training.pixels(images))

    def loss(head: Head) -> jax.Array:
        logits = features @ head.weights + head.bias[None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(head), state, head)
    return optax.apply_updates(head, updates), state


class Attacked(NamedTuple):
    """A network's own attacks on N images.

    Attributes:
      triple: the virtual attack `v [N, H, W, C]`, and how far it moves the outputs, to first order.
      adversarial: by the name of each attack of finite size, the images `[N, H, W, C]` that it makes.
    """

    triple: SingularTriple
    adversarial: dict[str, jax.Array]


def attacked(known: Mapping[str, Attack], network: Function, images: jax.Array, key: jax.Array) -> Attacked:
    """The network attacked by the virtual attack and by the others, at its own prediction as in the official code.

    Args:
      known: attacks of finite size by name.
      network: `[N, H, W, C]` in [0, 1] to logits.
      key: of the random starts.
    """

    def batch(x: jax.Array, keys: jax.Array) -> tuple[None, Attacked]:
        label = attacks.own_prediction(network, x)
        made = {name: attack(network, x, label, keys) for name, attack in known.items()}
        return None, Attacked(jacobian.top_singular_triple(network, x), made)

    x, keys = training.pixels(images), directions.example_keys(key, len(images))
    with jax.default_matmul_precision("highest"):
        return loops.in_batches(batch, BATCH, x, keys)[1]


def adversarial(
    source: Function,
    reference: Function,
    by_source: Attacked,
    by_reference: Attacked,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """How the source's attacks work on the reference, and the reference's on the source.

    Args:
      source, reference: the networks, `[N, H, W, C]` in [0, 1] to logits, each of its own classes.
      by_source, by_reference: each attacked on these images.
      images, labels: of the target domain, such as the reference gets right.

    Returns:
      For the virtual and every other attack `NAME_tau1_S_T`, `NAME_tau2_S_T`, `NAME_tau1tau2_S_T` and the same from
      target to source (`T_S`). And by the name of each attack of finite size whether the reference gets each image
      right under the source's, `[N]`, as `attacks.right` gives it.
    """

    def batch(x: jax.Array, labels: jax.Array, s: Attacked, t: Attacked):
        push = lambda f, v: jax.jvp(f, (x,), (v,))[1]
        clean = source(x), reference(x)
        moved = {"virtual": ((_outputs(s), push(reference, s.triple.v)), (_outputs(t), push(source, t.triple.v)))}
        right = {}
        for name in s.adversarial:
            under = [
                [f(made.adversarial[name]) - out for f, out in zip((source, reference), clean, strict=True)]
                for made in (s, t)
            ]
            (own_s, across_t), (across_s, own_t) = under
            moved[name] = (own_s, across_t), (own_t, across_s)
            right[name] = attacks.right(across_t + clean[1], labels)
        return None, (moved, right)

    with jax.default_matmul_precision("highest"):
        moved, right = loops.in_batches(batch, BATCH, training.pixels(images), labels, by_source, by_reference)[1]
    taus = {}
    for name, (from_source, from_reference) in moved.items():
        best = [jnp.linalg.norm(own, axis=1) for own, _ in (from_reference, from_source)]
        both = zip(("S_T", "T_S"), (from_source, from_reference), best, strict=True)
        for across, (own, other), of_target in both:
            got = metrics.taus(own, other, of_target)
            for measure, value in zip(("tau1", "tau2", "tau1tau2"), got[:3], strict=True):
                taus[f"{name}_{measure}_{across}"] = value
    return taus, right


def _outputs(own: Attacked) -> jax.Array:
    """How the virtual attack moves its own network's outputs, to first order."""
    return own.triple.s[:, None] * own.triple.u


def success(attacked: Mapping[str, np.ndarray], right: np.ndarray) -> dict[str, float]:
    """How often the source's attacks work on images that the reference gets right.

    Args:
      attacked: by attack, whether the reference gets each image right under it, as `adversarial` gives it.
      right: `[N]`, whether the source with its new head gets the clean images right.

    Returns:
      For each attack `NAME_success`, the share of all the images, and `NAME_success_both`, of those that the source
      gets right too.
    """
    rates: dict[str, float] = {}
    for name, under_attack in attacked.items():
        of_all, _, of_both = attacks.success(under_attack, np.ones_like(under_attack), right).rate
        rates |= {f"{name}_success": float(of_all), f"{name}_success_both": float(of_both)}
    return rates
