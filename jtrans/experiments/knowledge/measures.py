"""How well a source network's features and attacks serve on a target domain (Liang et al. 2021): one seed of a source.

The reference is a network trained on the target domain.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from jtrans import attacks, directions, jacobian, loops, metrics, scores, transfer
from jtrans.attacks import Attack
from jtrans.data import Split
from jtrans.jacobian import Function
from jtrans.models import Model, Variables
from jtrans.transfer import Head

BATCH = 100  # images attacked at once
WEIGHT_DECAY = 1e-4  # of the new head, as in training
SCORES = ("transfer_loss", "transfer_accuracy", "logme", "leep", "h_score", "gbc", "cka")
VIRTUAL = "virtual"
TAUS = ("tau1", "tau2", "tau1tau2")
# Who is attacked and who is measured under that attack, by their numbers: the source is 0, the reference 1.
WAYS = {"S_T": (0, 1), "T_S": (1, 0)}


class Outputs(NamedTuple):
    """A network's logits `[N, K]` over the classes that it was trained on, and its features `[N, F]`."""

    logits: np.ndarray
    features: np.ndarray


def outputs(model: Model, variables: Variables, images: jax.Array) -> Outputs:
    """A network's outputs for images."""
    x = model.inputs.of(images)
    return Outputs(model.apply(variables, x), model.features(variables, x))


def lost(outputs: Outputs) -> str:
    """Why a network measures nothing: `diverged`, its outputs are not finite, or `dead`, the same for all images."""
    if not (np.isfinite(outputs.logits).all() and np.isfinite(outputs.features).all()):
        return "diverged"
    return "" if np.ptp(outputs.logits, axis=0).any() and np.ptp(outputs.features, axis=0).any() else "dead"


def refit(
    source: tuple[Outputs, Outputs],
    references: Sequence[Outputs],
    labels: tuple[np.ndarray, np.ndarray],
    num_classes: int,
) -> tuple[dict[str, float], Head, str]:
    """The source's `SCORES` on the target domain, a head fitted to convergence, and why the source is `lost`.

    `source` and `labels` are those of the target's training and test images, `references` of the test images. The loss
    (nats), the accuracy and `cka` (the mean over references that are not lost) are by the test images, the others by
    the training images. All numbers are NaN where the source is lost, or "not refitted": softmax regression does not
    converge.
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
        scores.gbc(train.features, labels[0]),
        float(np.mean([scores.linear_cka(test.features, each.features) for each in references if not lost(each)])),
    )
    return dict(zip(SCORES, values, strict=True)), head, ""


def head_step(
    model: Model, optimizer: optax.GradientTransformation, variables: Variables, head: Head, state: Any, batch: Split
) -> tuple[Head, Any]:
    """A new last layer and its optimizer's state after one step on a batch; the rest of the network stays as it is."""
    features = model.features(variables, model.inputs.of(batch.inputs))

    def loss(head: Head) -> jax.Array:
        logits = features @ head.weights + head.bias[None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(head), state, head)
    return optax.apply_updates(head, updates), state


class Perturbed(NamedTuple):
    """N examples attacked on one network.

    Attributes:
      clean: `[N, K]`, its outputs without an attack.
      direction: `[N, ...]`, the virtual attack.
      adversarial: `[N, ...]` by attacks of finite size, by name.
      change: `[N, K]`, how each attack changes the network's outputs; the virtual attack to first order.
    """

    clean: jax.Array
    direction: jax.Array
    adversarial: dict[str, jax.Array]
    change: dict[str, jax.Array]


def perturb(by_name: Mapping[str, Attack], network: Function, x: jax.Array, key: jax.Array) -> Perturbed:
    """Attack a network at `x`, away from its own prediction as in the official code; `key` is of random starts."""

    def batch(x: jax.Array, keys: jax.Array) -> tuple[None, Perturbed]:
        clean, triple = network(x), jacobian.top_singular_triple(network, x)
        label = clean.argmax(-1)
        adversarial = {name: attack(network, x, label, keys) for name, attack in by_name.items()}
        change = {name: network(attacked) - clean for name, attacked in adversarial.items()}
        return None, Perturbed(clean, triple.v, adversarial, {VIRTUAL: triple.s[:, None] * triple.u, **change})

    keys = directions.example_keys(key, len(x))
    with jax.default_matmul_precision("highest"):
        return loops.in_batches(batch, BATCH, x, keys)[1]


def transferability(
    networks: tuple[Function, Function], perturbed: tuple[Perturbed, Perturbed], x: jax.Array, right: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """How attacks transfer between source and reference (Liang et al. 2021).

    For every attack `NAME_tau1_S_T`, `NAME_tau2_S_T`, `NAME_tau1tau2_S_T` (the source is attacked, the reference
    measured) and the same from target to source (`T_S`: the reference is attacked, the source measured), over the
    images that the reference gets `right [N]`: tau2 from 0 to 1, tau1 of the virtual attack too, that of others may be
    larger; and for each attack of finite size the reference's outputs `[N, K]`
    under the attack on the source.
    """
    across: dict[tuple[str, str], jax.Array] = {}
    under_attack: dict[str, jax.Array] = {}
    for way, (attacked, measured) in WAYS.items():
        f, (clean, *_), attack = networks[measured], perturbed[measured], perturbed[attacked]
        with jax.default_matmul_precision("highest"):
            push = lambda x, v, f=f: (None, jax.jvp(f, (x,), (v,))[1])
            across[VIRTUAL, way] = loops.in_batches(push, BATCH, x, attack.direction)[1]
            for name, adversarial in attack.adversarial.items():
                logits = loops.in_batches(lambda x, f=f: (None, f(x)), BATCH, adversarial)[1]
                across[name, way] = logits - clean
                under_attack |= {name: logits} if measured == 1 else {}
    taus = {}
    for (name, way), change in across.items():
        attacked, measured = WAYS[way]
        best = jnp.linalg.norm(perturbed[measured].change[name], axis=1)
        # Where the outputs are NaN, the image is in no mean.
        counted = jnp.where(right[:, None], change, jnp.nan)
        of_images = metrics.taus(perturbed[attacked].change[name], counted, best)
        for measure, value in zip(TAUS, of_images[: len(TAUS)], strict=True):
            taus[f"{name}_{measure}_{way}"] = value
    return taus, under_attack


def success(
    attacked: np.ndarray, clean: tuple[np.ndarray, np.ndarray], labels: np.ndarray, right: np.ndarray
) -> tuple[float, float]:
    """The share of images that a network gets wrong under an attack on the other: of those that the reference gets
    `right [N]` without attack, and of those that both do.

    Args:
      attacked: `[N, K]`, the network's logits under the attack.
      clean: `[N, K]` each, the source's logits, by its new last layer, and the reference's.
    """
    correct = [np.asarray(attacks.right(logits, labels)) for logits in (attacked, *clean)]
    under_attack, source, reference = (np.where(right, of_images, np.nan) for of_images in correct)
    of_all, _, of_both = attacks.success(under_attack, reference, source).rate
    return float(of_all), float(of_both)
