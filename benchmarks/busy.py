"""The share of time in which the GPU computes while networks train and are measured, as nvidia-smi has it.

python benchmarks/busy.py [--model=mlp_deep] [--networks=64] [--batch=128] [--seconds=10]
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator

import populations

from jtrans.harness import runtime
from jtrans.population import engine

QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100")


def main() -> None:
    parser = populations.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    runtime.prepare()
    population = populations.on_noise(options.model, options.networks, options.batch)
    run = engine.trajectory(population, engine.initialize(population), 10**6)
    next(run)
    next(run)
    count = 0
    with sampled() as percent:
        started = time.perf_counter()
        while (seconds := time.perf_counter() - started) < options.seconds:
            next(run)
            count += 1
    print(f"{options.model}, {options.networks} networks: {count / seconds:.2f} steps/s")
    if percent:
        share, low, high = statistics.mean(percent), min(percent), max(percent)
        print(f"busy {share:.0f} % of the time ({low} to {high} % in {len(percent)} samples)")
    else:
        print("how busy the device is was not measured: there is no nvidia-smi, or it does not say")


@contextlib.contextmanager
def sampled() -> Iterator[list[int]]:
    """A list that afterwards has the percentages that nvidia-smi gave meanwhile, of all GPUs that are visible."""
    percent: list[int] = []
    if not shutil.which(QUERY[0]):
        yield percent
        return
    visible = [f"--id={ids}"] if (ids := os.environ.get("CUDA_VISIBLE_DEVICES")) else []
    with subprocess.Popen([*QUERY, *visible], stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield percent
        finally:
            sampler.terminate()
        percent += [int(word) for word in sampler.stdout.read().split() if word.isdigit()]


if __name__ == "__main__":
    main()
