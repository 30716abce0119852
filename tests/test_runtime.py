"""What a process sets up, in processes of its own."""

import os
import subprocess
import sys

import jax
import pytest
from conftest import ROOT

from jtrans.errors import InputError
from jtrans.harness import runtime

SMALL = [
    "--config.num_networks=2",
    "--config.num_steps=2",
    "--config.num_examples=20",
    "--config.data.image_size=8",
    "--config.widths.mlp_deep=(8,)",
]


def test_a_second_run_compiles_nothing(tmp_path):
    """Whatever is compiled is kept; so a run that keeps nothing new has compiled nothing new."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment["JTRANS_CACHE"] = str(tmp_path / "cache")
    line = [
        sys.executable,
        str(ROOT / "experiments" / "early.py"),
        f"--config={ROOT / 'configs' / 'digits.py'}",
        *SMALL,
    ]
    programs = []
    for number in range(2):
        done = subprocess.run([*line, f"--workdir={tmp_path / str(number)}"], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        programs.append({path.name for path in (tmp_path / "cache" / "programs").rglob("*-cache")})
    assert len(programs[0]) > 10
    assert programs[0] == programs[1]


def test_what_was_not_used_for_longest_goes_where_programs_take_too_much(tmp_path):
    (tmp_path / "0.1").mkdir()
    for number, age in enumerate((30, 10, 40, 20)):
        path = tmp_path / ("0.1" if number % 2 else "") / f"{number}-cache"
        path.write_bytes(b"x" * 100)
        os.utime(path, (1e9 - age, 1e9))
    (tmp_path / "mine.txt").write_bytes(b"x" * 1000)
    for most, left in ((400, {"0", "1", "2", "3"}), (250, {"1", "3"}), (0, set())):
        runtime.prune(tmp_path, most)
        assert {path.name.removesuffix("-cache") for path in tmp_path.rglob("*-cache")} == left
    assert (tmp_path / "mine.txt").exists()
    runtime.prune(tmp_path / "nowhere", 0)


def test_only_a_gpu_that_is_there_and_that_jax_does_not_see_is_named(monkeypatch, tmp_path, unseen_gpu):
    with pytest.raises(InputError) as error:
        runtime.check_gpu()
    assert str(error.value) == unseen_gpu
    with monkeypatch.context() as seen:
        seen.setattr(jax, "default_backend", lambda: "gpu")
        runtime.check_gpu()
    jax.config.update("jax_platforms", "cpu")  # as JAX_PLATFORMS=cpu
    runtime.check_gpu()
    jax.config.update("jax_platforms", None)
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho No devices found.\n")
    runtime.check_gpu()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setattr(runtime, "DRIVER_SECONDS", 0.2)
    runtime.check_gpu()
    monkeypatch.setenv("PATH", str(tmp_path))  # no such program
    runtime.check_gpu()
