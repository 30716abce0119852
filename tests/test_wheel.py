"""The package as a user installs it, into an environment that holds nothing else."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["dev", "oldest"])
def test_the_wheel_runs_the_notebooks_in_an_empty_environment(tmp_path, versions):
    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    run(sys.executable, "-m", "venv", "empty")
    (wheel,) = tmp_path.glob("jtrans-*.whl")
    python = tmp_path / "empty" / "bin" / "python"
    pins = ROOT / "requirements" / f"{versions}.txt"
    run(python, "-m", "pip", "install", "--quiet", "-c", pins, f"{wheel}[notebook]", "nbclient", "ipykernel")
    assert str(tmp_path) in run(python, "-c", "import jtrans; print(jtrans.__file__)")
    assert list((tmp_path / "empty").glob("lib/*/site-packages/jtrans/py.typed"))
    for name in ("metrics", "early"):
        notebook = ROOT / "notebooks" / f"{name}.ipynb"
        run(
            python,
            "-c",
            "import sys, nbclient, nbformat; "
            "nbclient.NotebookClient(nbformat.read(sys.argv[1], 4), timeout=600).execute()",
            str(notebook),
        )
