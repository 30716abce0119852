"""`benchmarks/gpu.sh` on a CPU."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, xla_flags
from PIL import Image


def write_images(directory):
    """A folder of images in two classes."""
    rng = np.random.default_rng(0)
    for name in ("fish", "sharks"):
        (directory / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(directory / name / f"{i}.png")


def write_sampler(path):
    """What stands for nvidia-smi."""
    path.write_text('#!/bin/sh\n[ "$1" = -L ] && exit 9\nwhile :; do echo 90; sleep 0.1; done\n')
    path.chmod(0o755)


@pytest.mark.slow
def test_every_part_of_the_gpu_script_runs_and_what_fails_is_named(request, tmp_path):
    path, out = request.config.getoption("--pytorch_python"), tmp_path / "out"
    has_pytorch = subprocess.run([path, "-c", "import torch"], capture_output=True).returncode == 0
    write_images(tmp_path / "images")
    write_sampler(tmp_path / "nvidia-smi")
    command = [ROOT / "benchmarks" / "gpu.sh", "--small", out, path, tmp_path / "images"]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1), "PYTHON": sys.executable}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)

    needs_pytorch = ["versions_pytorch", "training", "training_vmap"]
    assert run.returncode == (not has_pytorch)
    assert run.stderr == ("" if has_pytorch else f"failed: {' '.join(needs_pytorch)}\n")
    told = {path.stem: path.read_text() for path in out.glob("*.txt")}
    assert '"jaxlib": ' in told["versions"]
    if has_pytorch:
        assert {path.name for path in out.glob("*.json")} == {"training.json", "training_vmap.json"}
    assert "| conv_a, 4 | xla |" in told["convolutions"]
    # A CPU has one precision.
    assert [line for line in told["precision"].splitlines() if line.startswith("| mlp_deep |")] == [
        f"| mlp_deep | {step} | 0.00000 | 0.00000 |" for step in range(3)
    ]
    assert "angles differ by 0.00000 degrees" in told["placement_mlp_deep"]
    assert "busy 90 % of the time (90 to 90 % in" in told["busy_mlp_deep"]
    assert "steps/s" in told["digits"]
    assert "steps/s" in told["vgg11"]


def test_the_gpu_script_says_how_it_is_used():
    run = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "OUT PYTORCH_PYTHON" in run.stderr
