"""The official synthetic table (ten scales, both directions, every measure): a whole process, against NumPy.

    python benchmarks/synthetic.py --problem=PATH.npz [--width=100] [--json=PATH]

The peer is the same table from batched `numpy.linalg.svd` on analytic Jacobians, float32, no compilation, in this run.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np


def ours(path: str, width: int) -> None:
    """The table by jtrans, in this process; prints the seconds of the first and of a second computation."""
    import jax

    from jtrans.experiments.synthetic import problem

    x, y, _, target, sources = problem.load(path)
    measure = jax.jit(jax.vmap(partial(problem.measure, level=0), (None, 0, None, None)))
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        table = jax.device_get(measure(target, sources[width], x, y))
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "table": {name: column.tolist() for name, column in table.items()}}))


def peer(path: str, width: int) -> dict[str, list[float]]:
    """The table by NumPy."""
    file = np.load(path)
    x, y = file["X"], file["Y"]
    parts = ("W1", "b1", "W2", "b2")

    def evaluate(w1, b1, w2, b2):
        hidden = 1 / (1 + np.exp(-(x @ w1.T + b1.ravel())))
        jacobian = (w2[None] * (hidden * (1 - hidden))[:, None]) @ w1
        u, s, vt = np.linalg.svd(jacobian, full_matrices=False)
        return hidden, hidden @ w2.T + b2.ravel(), jacobian, s[:, :1] * u[:, :, 0], s[:, 0], vt[:, 0]

    def taus(one, other):
        own, across = one[3], np.einsum("nkd,nd->nk", other[2], one[5])
        length = np.linalg.norm(across, axis=1)
        ratio = length / other[4]
        unit, towards = own / np.linalg.norm(own, axis=1, keepdims=True), across / length[:, None]
        alike = np.linalg.norm(unit.T @ towards) / len(x)
        return ratio.mean(), alike, np.linalg.norm((ratio[:, None] * unit).T @ towards) / len(x)

    def rms(error):
        return np.sqrt((error**2).sum(1).mean())

    target = evaluate(*(file[f"target_{part}"] for part in parts))
    rows = []
    for s in range(len(file["scales"])):
        source = evaluate(*(file[f"source{width}_{part}"][s] for part in parts))
        flat = [np.moveaxis(network[2], 1, 0).reshape(y.shape[1], -1) for network in (source, target)]
        matrix = flat[1] @ flat[0].T @ np.linalg.pinv(flat[0] @ flat[0].T)
        design = np.c_[source[0], np.ones(len(x), np.float32)]
        refit = design @ np.linalg.lstsq(design, y, rcond=None)[0]
        distance = np.sqrt(((flat[1] - matrix @ flat[0]) ** 2).sum() / len(x))
        rows.append((*taus(source, target), *taus(target, source), rms(refit - y), rms(target[1] - y), distance))
    names = [f"{n}_{d}" for d in ("S_T", "T_S") for n in ("tau1", "tau2", "tau1tau2")]
    names += ["transfer_loss_S", "loss_T", "gradient_matching_distance"]
    return {name: list(map(float, column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", required=True)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only_ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_ours:
        ours(options.problem, options.width)
        return
    command = [sys.executable, __file__, "--only_ours", f"--problem={options.problem}", f"--width={options.width}"]
    whole, compiled, numpy_seconds = [], [], []
    for _ in range(options.runs):
        started = time.perf_counter()
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        whole.append(time.perf_counter() - started - done["seconds"][1])
        compiled.append(done["seconds"][1])
        started = time.perf_counter()
        want = peer(options.problem, options.width)
        numpy_seconds.append(time.perf_counter() - started)
    worst = max(np.abs(np.subtract(done["table"][name], want[name])).max() for name in want)
    medians = {
        "whole_process_s": float(np.median(whole)),
        "once_compiled_s": float(np.median(compiled)),
        "numpy_s": float(np.median(numpy_seconds)),
        "ratio_once_compiled": float(np.median(numpy_seconds) / np.median(compiled)),
        "largest_difference": float(worst),
    }
    for name, value in medians.items():
        print(f"{name:22} {value:.3g}")
    print(f"medians of {options.runs} runs; whole process: {min(whole):.2f} to {max(whole):.2f} s")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
