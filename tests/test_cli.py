"""The `jtrans` command: its help, what it takes for a config, and what it says of input that it cannot use."""

import json
import runpy
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from jtrans.experiments import early, random_angles
from jtrans.harness import cli, experiment, runtime

TINY = "--config.num_seeds=2 --config.dimensions=(3,10) --config.num_pairs=5 --config.dimension=9"
TINY += " --config.num_rare_pairs=20"


@pytest.fixture
def jtrans(monkeypatch, tmp_path, capsys):
    """The command, run in an empty directory of this process: its exit status, and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "prepare", lambda: None)  # which would hold for the tests after this one too

    def run(line):
        monkeypatch.setattr(sys, "argv", ["jtrans", *shlex.split(line)])
        return cli.main(), *capsys.readouterr()

    return run


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_the_help_lists_every_experiment_with_what_it_shows(jtrans, line):
    status, out, err = jtrans(line)
    assert (status, err) == (0, "")
    listed = dict(text.strip().split(maxsplit=1) for text in out.split("\n\n")[2].splitlines())
    assert listed.keys() == set(experiment.names())
    assert listed["early"] == early.__doc__.splitlines()[0]


@pytest.mark.parametrize("slice_", [early, random_angles])
def test_the_help_of_an_experiment_lists_every_field_with_its_default_and_what_it_takes(jtrans, slice_):
    status, out, err = jtrans(f"{slice_.EXPERIMENT.name} --help")
    assert (status, err) == (0, "")
    assert slice_.__doc__.splitlines()[0] in out
    lines = out.splitlines()
    for name, field in slice_.FIELDS.items():
        assert f"  --config.{name}={field.default!r}  {field.means} ({field.takes})" in lines
    (configs,) = [line for line in lines if line.startswith("Configs: ")]
    assert configs.removeprefix("Configs: ").split(", ") == sorted(path.stem for path in ROOT.glob("configs/*.py"))


@pytest.mark.parametrize("config", ["cases:4", f"{ROOT}/configs/cases.py:4", "configs/cases.py:4"])
def test_a_config_is_a_name_or_a_path_with_an_argument_after_a_colon(jtrans, monkeypatch, config):
    monkeypatch.chdir(ROOT)
    status, out, err = jtrans(f"early --config={config} --config.seed=7 --help")
    assert (status, err) == (0, "")
    assert f"Fields of {config}" in out
    assert "--config.models=('mlp_shallow', 'mlp_deep')" in out
    assert "--config.seed=7" in out


OWN = """
from jtrans.experiments import random_angles
from jtrans.harness.fields import defaults

def get_config(seed="0"):
    config = defaults(random_angles.FIELDS)
    config.seed = int(seed)
    return config
"""


@pytest.mark.parametrize(
    ("config", "workdir", "seed"),
    [("random_angles", "random_angles", 0), ("own.py:5", "own-5", 5)],
)
def test_a_run_goes_to_a_directory_of_the_configs_name(jtrans, tmp_path, config, workdir, seed):
    (tmp_path / "own.py").write_text(OWN)
    status, out, err = jtrans(f"random_angles --config={config} {TINY}")
    assert (status, err) == (0, "")
    assert f"results: runs/{workdir}" in out
    written = json.loads((tmp_path / "runs" / workdir / "config.json").read_text())
    assert (written["experiment"], written["seed"], written["num_pairs"]) == ("random_angles", seed, 5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("erly --config=digits", "experiment: got 'erly'; did you mean early?"),
        ("--config=digits", "experiment: got '--config=digits'; it takes "),
        ("early", "--config: got ''; it takes "),
        ("early --config=digit", "--config: got 'digit'; did you mean digits?"),
        ("early --config=digit --help", "--config: got 'digit'; did you mean digits?"),
        ("early --config=digits.py", "--config: got 'digits.py', and there is no such file"),
        ("early --config=empty.py", "does not load (AttributeError: "),
        ("early --config=cases:9", "error: --config: no case '9'; the cases are 1, 2, 3, 4, 5, 6, 7, 8"),
        ("early --config=digits:1", "does not load (TypeError: "),
        (
            "early --config=digits --config.num_networs=3",
            "num_networs: unknown config field; did you mean num_networks?",
        ),
        ("early --config=digits --config.num_networks=few", "num_networks"),
        ("early --config=digits --config.num_networks=0", "num_networks: got 0; it takes a whole number, 1 or more"),
        ("random_angles --config=digits", "attack.epsilon: unknown config field; it takes seed, num_seeds, "),
        ("early --config=digits --sweep=seed=0", "argument '--sweep=seed=0': not known; it takes --config, --workdir"),
        ("early --config=digits digits", "argument 'digits': not known; it takes --config, --workdir"),
        ("early --config=digits --process_id=first", "process_id"),
        ("early --config=digits --process_id=0", "--coordinator: missing; --coordinator, --num_processes and"),
        (
            "early --config=digits --coordinator=127.0.0.1:1",
            "error: --num_processes: missing; --coordinator, --num_processes and --process_id go together\n",
        ),
        ("early --config=digits --workdir=empty.py", "--workdir: empty.py cannot be used"),
    ],
)
def test_input_that_cannot_be_used_is_one_line(jtrans, tmp_path, line, message):
    (tmp_path / "empty.py").write_text("")
    status, out, err = jtrans(line)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("jtrans")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_a_gpu_that_jax_does_not_see_is_one_line_before_the_run(jtrans, unseen_gpu):
    status, out, err = jtrans(f"random_angles --config=random_angles {TINY}")
    assert (status, err) == (0, f"jtrans random_angles: warning: {unseen_gpu}\n")
    assert "results: runs/random_angles" in out


def test_the_package_is_the_command_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jtrans", "random_angle"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("jtrans", run_name="__main__")
    refused = "jtrans: error: experiment: got 'random_angle'; did you mean random_angles?\n"
    assert (stop.value.code, *capsys.readouterr()) == (2, "", refused)
    # And in a process of its own.
    line = [sys.executable, "-m", "jtrans", "random_angles", "--config=random_angles", *shlex.split(TINY)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "runs" / "random_angles" / "summary.json").is_file()
