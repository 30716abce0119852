"""How well a source network's features and attacks serve on a target domain (Liang et al. 2021), a seed at a time.

The reference is a network trained on the target domain. Images are uint8 `[N, H, W, C]`.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jtrans import attacks, loops, metrics, scores, training, transfer
from jtrans.attacks import Attack
from jtrans.data import Split
from jtrans.models import Model, Variables

BATCH = 500  # images seen at a time
WEIGHT_DECAY = 1e-4  # of the new head, as in training


class Seen(NamedTuple):
    """What a network makes of images: logits `[N, K]` over its own classes, features `[N, F]`."""

    logits: np.ndarray
    features: np.ndarray


def see(model: Model, variables: Variables, images: np.ndarray) -> Seen:
    """The logits and the features of uint8 images, `BATCH` of them at a time."""

    @jax.jit
    def both(images: jax.Array) -> tuple[None, Seen]:
        x = training.pixels(images)
        return None, Seen(model.apply(variables, x), model.features(variables, x))

    return jax.device_get(loops.in_batches(both, BATCH, images, compiled=False)[1])


def knowledge(
    source: tuple[Seen, Seen], reference: Seen, labels: tuple[np.ndarray, np.ndarray], num_classes: int
) -> tuple[dict[str, float], np.ndarray]:
    """How much the source knows of the target domain: its head fitted again, and the usual scores.

    Args:
      source: what the source makes of the target's training and test images.
      reference: what the reference makes of the test images.
      labels: of the training and of the test images.

    Returns:
      By name: `transfer_loss` (nats) and `transfer_accuracy` of the new head on the test images; `logme`, `leep`,
      `h_score` by the training images; `cka` with the reference's features by the test images. And whether the new head
      gets each test image right, `[N]`.
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
    return found, (test.features @ head.weights + head.bias).argmax(1) == labels[1]


def adversarial(
    models: tuple[Model, Model],
    variables: tuple[Variables, Variables],
    test: Split,
    right: np.ndarray,
    known: Mapping[str, Attack | None],
    key: jax.Array,
) -> dict[str, float]:
    """How the source's attacks work on the reference, and the reference's on the source.

    As in the official code, each network is attacked at its own prediction, on images that the reference gets right.

    Args:
      models, variables: of source and reference.
      test: such images of the target domain, with their labels.
      right: `[N]`, whether the source with its new head gets them right.
      known: attacks by name; None for the linearised virtual attack.
      key: of the random starts.

    Returns:
      For each attack `NAME_tau1_S_T`, `_tau2_`, `_tau1tau2_`, the same from target to source (`T_S`), and for those of
      a finite size the shares of images that the source's attack makes the reference get wrong: `NAME_success`, of all
      of them (each of which it gets right), and `NAME_success_both`, of those that the source gets right too.
    """
    x = training.pixels(jnp.asarray(test.images))
    found: dict[str, float] = {}
    for name, attack in known.items():

        @partial(jax.jit, static_argnames="across")
        def taus(variables, x, across, attack=attack):
            f, g = (partial(model.apply, v) for model, v in zip(models, variables, strict=True))
            source, target = (f, g) if across == "S_T" else (g, f)
            return metrics.transferability(source, target, x, attack=attack, key=key if attack else None)

        for across in ("S_T", "T_S"):
            got = taus(variables, x, across)
            for measure in ("tau1", "tau2", "tau1_tau2"):
                found[f"{name}_{measure.replace('1_t', '1t')}_{across}"] = float(getattr(got, measure))
        if attack:
            source, reference = (partial(model.apply, v) for model, v in zip(models, variables, strict=True))
            moved = jax.jit(lambda x, f=source, attack=attack: attack(f, x, attacks.own_prediction(f, x), key))(x)
            wrong = np.asarray(reference(moved).argmax(1)) != test.labels
            of_all, _, of_both = attacks.success(wrong, np.ones_like(wrong), right).rate
            found |= {f"{name}_success": float(of_all), f"{name}_success_both": float(of_both)}
    return found
