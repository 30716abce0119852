"""How well a source network's features and attacks serve on a target domain (Liang et al. 2021), a seed at a time.

The reference is a network trained on the target domain. Images are uint8 `[N, H, W, C]`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from jtrans import attacks, directions, loops, metrics, models, scores, training, transfer
from jtrans.attacks import Attack
from jtrans.jacobian import Function
from jtrans.metrics import Transferability
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


def refit(
    source: tuple[Seen, Seen], reference: Seen, labels: tuple[np.ndarray, np.ndarray], num_classes: int
) -> tuple[dict[str, float], Head]:
    """The source with a new head for the target domain, and how much it knows of that domain: this, and usual scores.

    Args:
      source: what the source makes of the target's training and test images.
      reference: what the reference makes of the test images.
      labels: of the training and of the test images.

    Returns:
      By name: `transfer_loss` (nats) and `transfer_accuracy` of the new head on the test images; `logme`, `leep`,
      `h_score` by the training images; `cka` with the reference's features by the test images. And the head, fitted to
      convergence.
    """
    train, test = source
    head = transfer.fit_softmax_head(train.features, labels[0], num_classes, weight_decay=WEIGHT_DECAY)
    loss, accuracy = transfer.classification(head, test.features, labels[1])
    found = {
        "transfer_loss": loss,
        "transfer_accuracy": accuracy,
        "logme": scores.logme(train.features, labels[0]),
        "leep": scores.leep(scipy.special.softmax(np.float64(train.logits), axis=1), labels[0]),
        "h_score": scores.h_score(train.features, labels[0]),
        "cka": scores.linear_cka(test.features, reference.features),
    }
    return found, head


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


def virtual(source: Function, reference: Function, images: jax.Array) -> dict[str, jax.Array]:
    """How the linearised virtual attack goes over, both ways: `virtual_tau1_S_T` and the others of `adversarial`."""
    x = training.pixels(images)
    return _named(
        "virtual", metrics.transferability(source, reference, x), metrics.transferability(reference, source, x)
    )


def adversarial(
    source: Function,
    reference: Function,
    known: Mapping[str, Attack],
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """How the source's attacks work on the reference, and the reference's on the source.

    As in the official code, each network is attacked at its own prediction, on images that the reference gets right.

    Args:
      source, reference: the networks, `[N, H, W, C]` in [0, 1] to logits, each of its own classes.
      known: attacks of a finite size by name.
      images, labels: such images of the target domain.
      key: of the random starts.

    Returns:
      For each attack `NAME_tau1_S_T`, `NAME_tau2_S_T`, `NAME_tau1tau2_S_T` and the same from target to source (`T_S`).
      And by its name whether the reference gets each image wrong under the source's attack, `[N]`.
    """
    x, keys = training.pixels(images), directions.example_keys(key, len(images))
    taus: dict[str, jax.Array] = {}
    wrong: dict[str, jax.Array] = {}
    for name, attack in known.items():
        changes = partial(_changes, source, reference, attack)
        with jax.default_matmul_precision("highest"):
            _, (moved, wrong[name]) = loops.in_batches(changes, BATCH, x, labels, keys, compiled=False)
        (own_s, across_t), (own_t, across_s) = moved
        best_s, best_t = (jnp.linalg.norm(own, axis=1) for own in (own_s, own_t))
        taus |= _named(name, metrics.taus(own_s, across_t, best_t), metrics.taus(own_t, across_s, best_s))
    return taus, wrong


def _named(attack: str, to_target: Transferability, to_source: Transferability) -> dict[str, jax.Array]:
    return {
        f"{attack}_{measure}_{across}": value
        for across, got in (("S_T", to_target), ("T_S", to_source))
        for measure, value in zip(("tau1", "tau2", "tau1tau2"), got[:3], strict=True)
    }


def _changes(source: Function, reference: Function, attack: Attack, x: jax.Array, labels: jax.Array, keys: jax.Array):
    """Each network's attack, made once for both ways: how it moves its own outputs and the other's.

    Returns:
      None, for nothing to add up, and `((own [N, K_S], other [N, K_T]) of the source's attack, (own, other) of the
      reference's)` with whether the reference gets each image wrong under the source's.
    """
    clean = source(x), reference(x)
    from_source, from_reference = (
        attack(f, x, out.argmax(1), keys) for f, out in zip((source, reference), clean, strict=True)
    )
    under = reference(from_source)
    moved = (
        (source(from_source) - clean[0], under - clean[1]),
        (reference(from_reference) - clean[1], source(from_reference) - clean[0]),
    )
    return None, (moved, under.argmax(1) != labels)


def success(wrong: Mapping[str, np.ndarray], right: np.ndarray) -> dict[str, float]:
    """How often the source's attacks work on images that the reference gets right.

    Args:
      wrong: by attack, as `adversarial` gives it.
      right: `[N]`, whether the source with its new head gets them right.

    Returns:
      For each attack `NAME_success`, the share of all the images, and `NAME_success_both`, of those that the source
      gets right too.
    """
    found: dict[str, float] = {}
    for name, errors in wrong.items():
        of_all, _, of_both = attacks.success(errors, np.ones_like(errors), right).rate
        found |= {f"{name}_success": float(of_all), f"{name}_success_both": float(of_both)}
    return found
