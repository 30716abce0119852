"""Seconds for each network and step, trained and measured: jtrans against the loop of a PyTorch user, in one run.

    python benchmarks/training.py [--pytorch_python PATH] [--json PATH] [--rows MODEL:NETWORKS:BATCH,...]

The PyTorch half runs in a process of its own under the interpreter at PATH, which needs PyTorch and NumPy alone. Both
start from the same weights, take the same batches, and must agree on the angles before anything is timed; then they
take turns, a step each. A step trains every network on one batch and measures its directions on 100 images.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jtrans import models, training
from jtrans.data import Split
from jtrans.harness import runtime
from jtrans.population import engine, observe

PEER = Path(__file__).with_name("pytorch_peer.py")
ROWS = ",".join(
    f"{model}:{networks}:{batch}"
    for model in ("mlp_deep", "conv_a", "conv_b", "resnet18")
    for networks, batch in ((8, 32), (8, 128), (16, 32))
)
SHAPE, CLASSES, NUM_TRAIN, NUM_TEST, LEARNING_RATE = (32, 32, 3), 2, 512, 100, 1e-3
AGREE = 0.5  # degrees after one step of Adam, which turns the sign of a rounding error into a whole step


def ceiling(size: int, rounds: int = 7) -> float:
    """Floating-point operations a second of one large matrix product."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[1:])


class Peer:
    """The PyTorch process, from its start to its first answer on."""

    def __init__(self, python: str, style: str, directory: Path, model: str, networks: int, batch: int):
        rng = np.random.default_rng(0)
        self.directory = directory
        images = lambda count: rng.integers(256, size=(count, *SHAPE), dtype=np.uint8)
        self.train = Split(images(NUM_TRAIN), rng.integers(CLASSES, size=NUM_TRAIN))
        self.test = Split(images(NUM_TEST), rng.integers(CLASSES, size=NUM_TEST))
        np.savez(
            directory / "data.npz",
            train_images=np.float32(self.train.inputs) / np.float32(255),
            train_labels=self.train.labels,
            test_images=np.float32(self.test.inputs) / np.float32(255),
            test_labels=self.test.labels,
        )
        job = {"model": model, "networks": networks, "batch": batch, "classes": CLASSES, "style": style}
        job |= {"learning_rate": LEARNING_RATE, "threads": len(os.sched_getaffinity(0))}
        job["device"] = "cpu" if jax.default_backend() == "cpu" else "cuda"
        (directory / "job.json").write_text(json.dumps(job))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([python, PEER, "train", directory], **pipes)
        self.operations, self.first_layer = json.loads(self.process.stdout.readline())

    def step(self) -> float:
        """The seconds of one step of all networks."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def networks(self, model: str, optimizer) -> training.Network:
        """Its networks as they were before the first step, `[M, ...]`."""
        with np.load(self.directory / "before.npz") as arrays:
            names = sorted({int(name.split("/")[0]) for name in arrays})
            states = [{k.split("/")[1]: arrays[k] for k in arrays if int(k.split("/")[0]) == i} for i in names]
        variables = [models.from_pytorch(model, state) for state in states]
        networks = [training.Network(v, optimizer.init(v["params"])) for v in variables]
        whole = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
        return training.with_learning_rate(whole, jnp.full(len(networks), LEARNING_RATE))


def check(peer: Peer, model, name: str, optimizer, batch: int, size: int) -> None:
    """Check that one step from the same weights on the same batch gives the same angles."""
    images, labels = peer.train.inputs[:batch], peer.train.labels[:batch]
    step = jax.jit(jax.vmap(partial(training.train_step, model, optimizer), (0, None, None, None)))
    look = jax.jit(partial(observe.observe, model))
    networks = peer.networks(name, optimizer)
    count = len(jax.tree.leaves(networks)[0])
    groups = [jax.tree.map(lambda leaf, i=i: leaf[i : i + size], networks) for i in range(0, count, size)]
    unit = [look(step(group, images, labels, jax.random.key(0)), *peer.test).unit for group in groups]
    first, second = np.triu_indices(count, 1)
    unit = np.concatenate(unit).astype(np.float64)
    angle = np.rad2deg(np.arccos(np.abs((unit[first] * unit[second]).sum(-1)))).mean(-1)
    apart = float(np.abs(angle - np.load(peer.directory / "angle.npy")[first, second]).max())
    if not apart < AGREE:
        raise SystemExit(f"{name}: angles differ by {apart:.3f} degrees after one step; nothing was timed")
    print(f"{name}: angles agree to {apart:.4f} degrees after one step", file=sys.stderr, flush=True)


def measure(python: str, style: str, rounds: int, peak: float, name: str, networks: int, batch: int) -> dict:
    """One row of the table."""
    model = models.build(name, SHAPE, CLASSES)
    optimizer = training.adjustable("adam")
    with tempfile.TemporaryDirectory() as directory:
        peer = Peer(python, style, Path(directory), name, networks, batch)
        population = engine.build(
            models=[model],
            optimizer=optimizer,
            keys=engine.keys(0),
            train=peer.train,
            test=peer.test,
            num_networks=networks,
            batch_size=batch,
        )
        peer.step()
        with jax.default_matmul_precision("highest"):  # on a GPU TF32 is the default, too coarse for a comparison
            check(peer, model, name, optimizer, batch, population.placements[0].size)
        groups = engine.split(population, [peer.networks(name, optimizer)])
        run = engine.trajectory(population, groups, 10**6)
        ours, theirs = [], []
        for number in range(rounds + 2):  # the first two compile
            started = time.perf_counter()
            next(run)
            if number >= 2:
                ours.append((time.perf_counter() - started) / networks * 1e3)
                theirs.append(peer.step() / networks * 1e3)
        peer.process.kill()
        peer.process.wait()
    ours_ms, pytorch_ms = statistics.median(ours), statistics.median(theirs)
    # Training goes forward and back to weights and inputs (not to the images), the measurement forward and back.
    operations = batch * (3 * peer.operations - peer.first_layer) + NUM_TEST * 2 * peer.operations
    return {
        "model": name,
        "networks": networks,
        "batch": batch,
        "ours_ms": ours_ms,
        "pytorch_ms": pytorch_ms,
        "ratio": pytorch_ms / ours_ms,
        # A loop over pairs trains two networks for each; a population of M gets M (M - 1) / 2 pairs from M.
        "pairs_ratio": pytorch_ms / ours_ms * (networks - 1),
        "ceiling_share": operations / (ours_ms / 1e3) / peak,
        "ours_range_ms": [min(ours), max(ours)],
        "pytorch_range_ms": [min(theirs), max(theirs)],
        "pairs_per_second": (networks - 1) / 2 / (ours_ms / 1e3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pytorch_python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--pytorch_style", choices=("loop", "vmap"), default="loop", help="vmap: by torch.func")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--rows", default=ROWS, help=f"default: {ROWS}")
    parser.add_argument("--rounds", type=int, default=5, help="steps timed on either side; the median counts")
    parser.add_argument("--product", type=int, default=4096, help="rows of the matrices whose product is the ceiling")
    options = parser.parse_args()
    runtime.prepare()
    peak = ceiling(options.product)
    threads = len(os.sched_getaffinity(0))
    print(f"{threads} threads; a matrix product of {options.product} runs at {peak / 1e9:.0f} GFLOP/s")
    columns = ("ours_ms", "pytorch_ms", "ratio", "pairs_ratio", "ceiling_share", "pairs_per_second")
    print(f"{'model':10}{'networks':>9}{'batch':>6}" + "".join(f"{name:>17}" for name in columns))
    rows = []
    for row in options.rows.split(","):
        name, networks, batch = row.split(":")
        rows.append(
            measure(
                options.pytorch_python, options.pytorch_style, options.rounds, peak, name, int(networks), int(batch)
            )
        )
        print(f"{name:10}{networks:>9}{batch:>6}" + "".join(f"{rows[-1][c]:17.2f}" for c in columns), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
