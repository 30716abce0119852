"""How well a source network's features and attacks serve on a target domain (Liang et al. 2021): one seed of a source.

The reference is a network trained on the target domain. Images are uint8 `[N, H, W, C]`.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from jtrans import attacks, directions, jacobian, loops, metrics, scores, training, transfer
from jtrans.attacks import Attack
from jtrans.data import Split
from jtrans.jacobian import Function, SingularTriple
from jtrans.models import Model, Variables
from jtrans.transfer import Head

BATCH = 100  # images attacked at once
WEIGHT_DECAY = 1e-4  # of the new head, as in training
SCORES = ("transfer_loss", "transfer_accuracy", "logme", "leep", "h_score", "cka")


class Outputs(NamedTuple):
    """A network's logits `[N, K]` over the classes that it was trained on, and its features `[N, F]`."""

    logits: np.ndarray
    features: np.ndarray


def outputs(model: Model, variables: Variables, images: jax.Array) -> Outputs:
    """A network's outputs for images."""
    x = training.pixels(images)
    return Outputs(model.apply(variables, x), model.features(variables, x))


def lost(outputs: Outputs) -> str:
    """Why a network measures nothing: `diverged`, its outputs are not finite, or `dead`, the same for all images."""
    if not (np.isfinite(outputs.logits).all() and np.isfinite(outputs.features).all()):
        return "diverged"
    return "" if np.ptp(outputs.logits, axis=0).any() and np.ptp(outputs.features, axis=0).any() else "dead"


def refit(
    source: tuple[Outputs, Outputs], reference: Outputs, labels: tuple[np.ndarray, np.ndarray], num_classes: int
) -> tuple[dict[str, float], Head, str]:
    """The source's `SCORES` on the target domain, a head fitted to convergence, and why the source is `lost`.

    `source` and `labels` are those of the target's training and test images, `reference` of the test images. The loss
    (nats), the accuracy and `cka` (NaN where the reference is lost) are by the test images, the others by the training
    images. All numbers are NaN where the source is lost, or "not refitted": softmax regression does not converge.
    """
    train, test = source
    why, head = lost(train) or lost(test), None
    if not why:
        try:
            head = transfer.fit_softmax_head(train.features, labels[0], num_classes, weight_decay=WEIGHT_DECAY)
        except RuntimeError:
            why = "not refitted"
    if head is None:
        nothing = Head(np.full((train.features.shape[1], num_classes), np.nan), np.full(num_classes, np.nan))
        return dict.fromkeys(SCORES, math.nan), nothing, why
    values = (
        *transfer.classification(head, test.features, labels[1]),
        scores.logme(train.features, labels[0]),
        scores.leep(scipy.special.softmax(np.float64(train.logits), axis=1), labels[0]),
        scores.h_score(train.features, labels[0]),
        math.nan if lost(reference) else scores.linear_cka(test.features, reference.features),
    )
    return dict(zip(SCORES, values, strict=True)), head, ""


def head_step(
    model: Model, optimizer: optax.GradientTransformation, variables: Variables, head: Head, state: Any, batch: Split
) -> tuple[Head, Any]:
    """A new last layer and its optimizer's state after one step on a batch; the rest of the network stays as it is."""
    features = model.features(variables, training.pixels(batch.images))

    def loss(head: Head) -> jax.Array:
        logits = features @ head.weights + head.bias[None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(head), state, head)
    return optax.apply_updates(head, updates), state


class Perturbed(NamedTuple):
    """N images attacked on one network: by the virtual attack `triple.v`, and `[N, H, W, C]` by attacks by name."""

    triple: SingularTriple
    adversarial: dict[str, jax.Array]


def perturb(by_name: Mapping[str, Attack], network: Function, images: jax.Array, key: jax.Array) -> Perturbed:
    """Attack a network at images, away from its own prediction as in the official code; `key` is of random starts."""

    def batch(x: jax.Array, keys: jax.Array) -> tuple[None, Perturbed]:
        label = attacks.own_prediction(network, x)
        adversarial = {name: attack(network, x, label, keys) for name, attack in by_name.items()}
        return None, Perturbed(jacobian.top_singular_triple(network, x), adversarial)

    x, keys = training.pixels(images), directions.example_keys(key, len(images))
    with jax.default_matmul_precision("highest"):
        return loops.in_batches(batch, BATCH, x, keys)[1]


def transferability(
    networks: tuple[Function, Function], perturbed: tuple[Perturbed, Perturbed], images: jax.Array, labels: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """How attacks transfer between source and reference (Liang et al. 2021), at images that the reference gets right.

    For every attack `NAME_tau1_S_T`, `NAME_tau2_S_T`, `NAME_tau1tau2_S_T` and the same from target to source (`T_S`),
    0 to 1; and for each of finite size, made on the source, whether the reference is still `attacks.right`, `[N]`.
    """
    arrays = training.pixels(images), labels, *perturbed
    with jax.default_matmul_precision("highest"):
        changes, right = loops.in_batches(partial(_changes, networks), BATCH, *arrays)[1]
    taus = {}
    for name, ways in changes.items():
        best = {"S_T": ways["T_S"][0], "T_S": ways["S_T"][0]}  # of the attacked network, by its own attack
        for way, (own, across) in ways.items():
            values = metrics.taus(own, across, jnp.linalg.norm(best[way], axis=1))
            for measure, value in zip(("tau1", "tau2", "tau1tau2"), values[:3], strict=True):
                taus[f"{name}_{measure}_{way}"] = value
    return taus, right


def _changes(networks: tuple[Function, Function], x: jax.Array, labels: jax.Array, *perturbed: Perturbed) -> Any:
    """By attack and way the output changes `[N, K]` of the network attacked and of the other; the second as above."""
    clean = [f(x) for f in networks]
    changes: dict[str, dict[str, tuple[jax.Array, jax.Array]]] = {}
    for way, own, other in (("S_T", 0, 1), ("T_S", 1, 0)):
        (u, s, v, *_), adversarial = perturbed[own]
        pushed = jax.jvp(networks[other], (x,), (v,))[1]
        changes.setdefault("virtual", {})[way] = s[:, None] * u, pushed  # to first order
        for name, attacked in adversarial.items():
            moved = [networks[i](attacked) - clean[i] for i in (own, other)]
            changes.setdefault(name, {})[way] = moved[0], moved[1]
    right = {name: attacks.right(changes[name]["S_T"][1] + clean[1], labels) for name in perturbed[0].adversarial}
    return None, (changes, right)


def success(under_attack: Mapping[str, np.ndarray], right: np.ndarray) -> dict[str, float]:
    """`NAME_success`, the share of images that the reference gets wrong under an attack of `transferability`, and
    `NAME_success_both`, of those that the source with its new head gets right (`right`, `[N]`).
    """
    rates: dict[str, float] = {}
    for name, attacked in under_attack.items():
        of_all, _, of_both = attacks.success(attacked, np.ones_like(attacked), right).rate
        rates |= {f"{name}_success": float(of_all), f"{name}_success_both": float(of_both)}
    return rates
