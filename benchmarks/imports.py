"""How long `import jtrans.metrics` takes against `import jax` alone, each in a fresh process, in turn.

python benchmarks/imports.py
"""

import statistics
import subprocess
import sys

REPEATS = 15


def seconds(module: str) -> float:
    """One import, in a process of its own."""
    code = f"import time; begun = time.perf_counter(); import {module}; print(time.perf_counter() - begun)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


pairs = [(seconds("jax"), seconds("jtrans.metrics")) for _ in range(REPEATS)]
ratios = sorted(ours / theirs for theirs, ours in pairs)
jax, metrics = (statistics.median(times) for times in zip(*pairs, strict=True))
spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
print(f"jax {jax:.2f} s, jtrans.metrics {metrics:.2f} s; ratio {spread}")
