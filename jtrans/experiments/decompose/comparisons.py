"""Subspaces compared where they remove the same share, and those fitted at one step with the directions at another."""

from collections.abc import Mapping

import jax
import numpy as np

from jtrans.experiments.decompose import removal, subspaces
from jtrans.experiments.decompose.removal import Left
from jtrans.experiments.decompose.subspaces import NOTHING

MATCHED = ("random_images", "training_images", "gradients", "updates")
UNCHANGED = ("constant_colours", "class_means", "training_images")  # by no training

Directions = Mapping[int, np.ndarray]  # by step, unit directions `[M, n, D]`
Bases = Mapping[int, Mapping[str, np.ndarray]]  # by step, the subspaces by name, `[K, D]` each


def matched(directions: Directions, bases: Bases, rank: int) -> dict[tuple[int, str, int], Left]:
    """Each subspace of `MATCHED` with so many directions that it removes the share nearest to that of `rank` updates.

    By step, subspace and rank, which is any from 1 to as many as the subspace has. Where the updates have fewer
    directions, or where no network has a direction, the step has `NOTHING` alone.
    """
    left, shares = jax.jit(removal.left), jax.jit(removal.shares)
    most = max(len(of_step[name]) for of_step in bases.values() for name in MATCHED)
    rows = {}
    for step, host in directions.items():
        unit, of_step = jax.device_put(host), {name: bases[step][name] for name in MATCHED}
        removed = {
            name: jax.device_get(shares(unit, subspaces.padded(basis, most)))[: len(basis)]
            for name, basis in of_step.items()
        }
        target = removed["updates"][rank - 1] if len(removed["updates"]) >= rank else np.nan
        for name, count in {NOTHING: 0, **nearest(removed, target)}.items():
            basis = subspaces.padded(of_step.get(name, of_step["updates"])[:count], most)
            rows[step, name, count] = jax.device_get(left(unit, basis))
    return rows


def nearest(removed: Mapping[str, np.ndarray], target: float) -> dict[str, int]:
    """How many directions of each subspace remove the share nearest to the target; nothing where that is NaN.

    Args:
      removed: by subspace `[K]`, the shares that its first 1, 2, ..., K directions remove.
    """
    if np.isnan(target):
        return {}
    return {name: int(np.abs(shares - target).argmin()) + 1 for name, shares in removed.items() if len(shares)}


def lasting(directions: Directions, bases: Bases, rank: int) -> dict[tuple[int, int, str, int], Left]:
    """The first `rank` updates fitted at each step, taken out of the directions at each step.

    By the step of the fit, that of the directions, subspace and rank. At the fit step 0 are the subspaces that no
    training changes: `NOTHING` and those of `UNCHANGED`. A fit of fewer directions is left out.
    """
    left = jax.jit(removal.left)
    fitted = {(0, NOTHING): bases[0]["training_images"][:0]} | {(0, name): bases[0][name] for name in UNCHANGED}
    fitted |= {
        (step, "updates"): of_step["updates"] for step, of_step in bases.items() if len(of_step["updates"]) >= rank
    }
    rows = {}
    for step, host in directions.items():
        unit = jax.device_put(host)
        for (fit_step, name), basis in fitted.items():
            taken = basis if name in subspaces.WHOLE else basis[:rank]
            rows[fit_step, step, name, len(taken)] = jax.device_get(left(unit, taken))
    return rows
