"""The package as a user installs it, into an environment that holds nothing else."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

EXECUTE = """
import sys, nbclient, nbformat
nbclient.NotebookClient(nbformat.read(sys.argv[1], 4), timeout=600).execute()
"""
ANGLES = ["--config=random_angles", "--config.num_seeds=2", "--config.dimensions=(3,10)", "--config.num_rare_pairs=200"]


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["dev", "oldest"])
def test_the_wheel_runs_the_command_and_the_notebooks_in_an_empty_environment(tmp_path, versions):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    run(sys.executable, "-m", "venv", str(tmp_path / "empty"))
    (wheel,) = tmp_path.glob("jtrans-*.whl")
    python, jtrans = (tmp_path / "empty" / "bin" / name for name in ("python", "jtrans"))
    pins = ROOT / "requirements" / f"{versions}.txt"
    run(python, "-m", "pip", "install", "--quiet", "-c", pins, wheel)
    assert str(tmp_path) in run(python, "-c", "import jtrans; print(jtrans.__file__)")
    assert list((tmp_path / "empty").glob("lib/*/site-packages/jtrans/py.typed"))

    assert "random_angles" in run(jtrans, "--help")
    assert "degrees" in run(jtrans, "random_angles", *ANGLES)
    assert (elsewhere / "runs" / "random_angles" / "summary.json").is_file()
    assert "1 run" in run(python, "-m", "jtrans.report", "runs")

    run(python, "-m", "pip", "install", "--quiet", "-c", pins, "nbclient", "ipykernel")
    for name in ("metrics", "early"):
        run(python, "-c", EXECUTE, str(ROOT / "notebooks" / f"{name}.ipynb"))
