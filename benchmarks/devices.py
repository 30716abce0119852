"""Steps a second on several emulated devices against one, on the same cores, taking turns.

python benchmarks/devices.py [--devices=2] [--model=mlp_deep] [--networks=16] [--batch=128] [--rounds=5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

STEPS = 20


def serve(options: argparse.Namespace) -> None:
    """In a process of its own: the seconds of so many steps, for each line that comes in."""
    from populations import on_noise

    from jtrans.harness import runtime
    from jtrans.population import engine

    runtime.prepare()
    population = on_noise(options.model, options.networks, options.batch)
    run = engine.trajectory(population, engine.initialize(population), 10**6)
    next(run)
    next(run)
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(options.steps):
            next(run)
        print(time.perf_counter() - started, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--model", default="mlp_deep")
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    workers = {}
    for count in (1, options.devices):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        command = [sys.executable, __file__, *sys.argv[1:], "--serve"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers[count] = subprocess.Popen(command, env=environment, **pipes)
    seconds = {count: [] for count in workers}
    for number in range(options.rounds + 1):  # the first warms up
        for count, worker in workers.items():
            worker.stdin.write("\n")
            worker.stdin.flush()
            taken = float(worker.stdout.readline())
            if number:
                seconds[count].append(taken)
    for worker in workers.values():
        worker.kill()
    for count, taken in seconds.items():
        each = [options.steps / t for t in taken]
        print(f"{count} devices: {statistics.median(each):.2f} steps/s ({min(each):.2f} to {max(each):.2f})")
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[options.devices])
    print(f"{options.devices} devices have {ratio:.2f} of the throughput of 1")


if __name__ == "__main__":
    main()
