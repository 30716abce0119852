"""Seconds of a ResNet18's logits and input gradients through `jtrans.torch` against PyTorch alone, taking turns.

    python benchmarks/bridge.py [--batch=64] [--size=224] [--rounds=7] [--json=PATH]

Needs PyTorch and torchvision (`make torch` makes such an environment, .venv-torch). Both must agree before anything is
timed; the gradient is that of the cross entropy with respect to the images. The target is a ratio of 1.15 at most.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchvision

import jtrans.torch
from jtrans import directions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    x = np.random.default_rng(0).uniform(size=(arguments.batch, arguments.size, arguments.size, 3)).astype(np.float32)
    y = np.arange(arguments.batch)
    f, ours, labels = jtrans.torch.function(model, mean=(0,), std=(1,)), jnp.asarray(x), jnp.asarray(y)
    theirs, their_labels = torch.from_numpy(x).movedim(-1, 1).contiguous(), torch.from_numpy(y)

    def logits_alone() -> torch.Tensor:
        with torch.no_grad():
            return model(theirs)

    def gradient_alone() -> torch.Tensor:
        images = theirs.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(images), their_labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]

    pairs = {
        "logits": (lambda: f(ours).block_until_ready(), logits_alone),
        "gradient": (lambda: directions.loss_gradient(f, ours, labels).block_until_ready(), gradient_alone),
    }
    np.testing.assert_allclose(f(ours), logits_alone(), atol=1e-4)
    cosine = torch.nn.functional.cosine_similarity(
        torch.tensor(np.asarray(pairs["gradient"][0]())).movedim(-1, 1).flatten(1), gradient_alone().flatten(1)
    )
    assert cosine.min() > 0.9999, cosine

    table = {}
    for name, pair in pairs.items():
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(arguments.rounds):
            for run, of_run in zip(pair, seconds, strict=True):
                started = time.perf_counter()
                run()
                of_run.append(time.perf_counter() - started)
        ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
        table[name] = {
            "jtrans": statistics.median(seconds[0]),
            "pytorch": statistics.median(seconds[1]),
            "ratio": ratio,
        }
        print(f"{name:9} {table[name]['jtrans']:8.3f} s, alone {table[name]['pytorch']:8.3f} s, ratio {ratio:.3f}")
    if arguments.json:
        what = {"batch": arguments.batch, "size": arguments.size, "threads": torch.get_num_threads()}
        arguments.json.write_text(json.dumps({**what, "versions": [jax.__version__, torch.__version__], **table}))


if __name__ == "__main__":
    main()
