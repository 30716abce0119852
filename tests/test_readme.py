"""Every command block of the README runs as printed, in order, in a fresh clone; every Python block runs."""

import re
import subprocess

import pytest
from conftest import ROOT

BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_blocks_run(code):
    exec(code, {})


@pytest.mark.slow
def test_command_blocks_run_in_a_fresh_clone(tmp_path):
    clone = tmp_path / "jtrans"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    commands = [code for language, code in BLOCKS if language == "bash"]
    assert len(commands) >= 3
    for code in commands:
        done = subprocess.run(["bash", "-euc", code], cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (clone / "runs" / "digits" / "figure.png").is_file()
    assert (clone / "runs" / "mine" / "figure.png").is_file()
