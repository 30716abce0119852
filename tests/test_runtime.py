"""What a process sets up, in processes of its own."""

import os
import subprocess
import sys

from conftest import ROOT

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
    assert list((tmp_path / "cache" / "programs").rglob("*-atime"))  # JAX's marks of what was used when, for its bound
