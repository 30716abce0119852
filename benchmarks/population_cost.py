"""What a run of M networks costs: each part's seconds and share of the run, and the peak memory of the process.

    python benchmarks/population_cost.py [--networks=64,256,512] [--steps=49] [--repeats=5]

FC shallow on the digits of configs/digits.py, measured before training and after every step, without attacks. It is
the experiment `early` itself with a clock on its parts; each M has a process of its own, one after the other. The table
is Markdown: medians and ranges over the steps but the first two, which compile, and over repeats of what a run does
once.
"""

import argparse
import json
import math
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import jax

from jtrans import files
from jtrans.experiments import early
from jtrans.harness import experiment, folder, runtime
from jtrans.population import devices, engine, trajectory

CONFIG = Path(__file__).parents[1] / "configs" / "digits.py"
PROGRAMS = {"training": ("epoch_order", "_one_step"), "directions": ("_look",), "comparison": ("_compare",)}
ONCE = {
    "intervals": ((trajectory, "curves"),),
    "npz and CSV files": ((files, "write_npz"), (folder, "write_table")),
    "figure": ((early, "draw"), (folder, "drawn")),
    "batch overlap": ((engine, "batch_overlap"),),
}


def clock_programs(seconds: dict[str, float]) -> None:
    """From now on each program waits for its result, and its seconds are added to those of the function's name."""
    make = devices.program

    def program(f, *arguments, **options):
        run, name = make(f, *arguments, **options), getattr(f, "func", f).__name__

        def clocked(*arguments):
            started = time.perf_counter()
            result = jax.block_until_ready(run(*arguments))
            seconds[name] += time.perf_counter() - started
            return result

        return clocked

    devices.program = program


def clock_steps(seconds: dict[str, list[float]]) -> None:
    """From now on a trajectory's steps leave the seconds of their parts; what no program takes is the host's."""
    make, of_programs = engine.trajectories, defaultdict(float)
    clock_programs(of_programs)

    def clocked(*arguments, **options):
        run = make(*arguments, **options)
        while True:
            of_programs.clear()
            started = time.perf_counter()
            step = next(run, None)
            whole = time.perf_counter() - started
            if step is None:
                return
            for part, names in PROGRAMS.items():
                seconds[part].append(sum(of_programs[name] for name in names))
            seconds["to the host"].append(whole - sum(of_programs.values()))
            yield step

    engine.trajectories = clocked


def clock_calls(module, name: str, repeats: int, seconds: list[float]) -> None:
    """From now on that function of a module runs so many times at each call, and leaves the seconds of each."""
    function = getattr(module, name)

    def clocked(*arguments):
        for _ in range(repeats):
            started = time.perf_counter()
            result = function(*arguments)
            seconds.append(time.perf_counter() - started)
        return result

    setattr(module, name, clocked)


def measure(networks: int, steps: int, repeats: int) -> dict[str, str]:
    """A column of the table, from a run in this process."""
    runtime.prepare()
    load = os.getloadavg()[0]
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.models, config.num_networks, config.num_steps = ("mlp_shallow",), networks, steps
    config.attack.epsilon = config.checkpoint.seconds = 0.0
    each_step, calls = defaultdict(list), defaultdict(list)
    clock_steps(each_step)
    for module, name in sum(ONCE.values(), ()):
        clock_calls(module, name, repeats, calls[name])
    with tempfile.TemporaryDirectory() as workdir:
        experiment.run(early.EXPERIMENT._replace(figures=early.draw), config, workdir)
    peak_bytes, _ = devices.memory()

    seconds = {part: taken[2:] for part, taken in each_step.items()}
    for part, of in ONCE.items():
        # Of each function that many seconds at each of its calls.
        seconds[part] = [sum(sum(calls[name][i::repeats]) for _, name in of) for i in range(repeats)]
    median = {part: statistics.median(taken) for part, taken in seconds.items()}
    of_run = {part: median[part] * (len(each_step[part]) if part in each_step else 1) for part in seconds}
    cells = {
        f"{part}, {'each step' if part in each_step else 'once'}": (
            f"{median[part]:.2g} ({min(taken):.2g} to {max(taken):.2g}); {of_run[part] / sum(of_run.values()):.1%}"
        )
        for part, taken in seconds.items()
    }
    memory = {"peak memory, GiB": f"{peak_bytes / 2**30:.2f}", "load before": f"{load:.1f}"}
    return {"pairs": f"{math.comb(networks, 2):,}", **cells, **memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="64,256,512")
    parser.add_argument("--steps", type=int, default=49, help="of training, each measured")
    parser.add_argument("--repeats", type=int, default=5, help="of what a run does once")
    parser.add_argument("--column", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.column:
        print(json.dumps(measure(int(options.networks), options.steps, options.repeats)))
        return
    columns = {}
    for networks in options.networks.split(","):
        flags = [f"--networks={networks}", f"--steps={options.steps}", f"--repeats={options.repeats}", "--column"]
        done = subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.PIPE, text=True)
        columns[networks] = json.loads(done.stdout.splitlines()[-1])
    print(f"{len(os.sched_getaffinity(0))} threads, {options.steps + 1} measured steps.", end=" ")
    print("Seconds: median (range); share of a run without compiling.\n")
    print("\n".join(f"| {' | '.join(row)} |" for row in [("M", *columns), ["---"] * (len(columns) + 1)]))
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(column[name] for column in columns.values())} |")


if __name__ == "__main__":
    main()
