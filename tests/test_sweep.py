import csv
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from jtrans.experiments import early, sweep
from jtrans.harness import cli, experiment
from jtrans.population import engine

SMALL = [
    "--config.num_networks=2",
    "--config.num_steps=2",
    "--config.num_examples=20",
    "--config.data.image_size=8",
    "--config.widths.mlp_deep=(16, 8)",
]


def run(workdir, *arguments):
    return cli.run(sweep.EXPERIMENT, ["sweep.py", "--config=digits", f"--workdir={workdir}", *SMALL, *arguments])


def names(workdir):
    return sorted(path.name for path in workdir.iterdir() if path.is_dir())


def test_settings_in_shards_are_finished_once_and_come_together_in_a_table(tmp_path, capsys):
    varied = "--sweep=optimizer.learning_rate=1e-3,1 seed=0,1"
    assert run(tmp_path, varied, "--shard=1/3") == 0
    said = capsys.readouterr().out
    assert "1 of 4 settings are finished" in said
    first = tmp_path / "optimizer.learning_rate=0.001,seed=1"
    assert names(tmp_path) == [first.name]
    assert len(list(csv.DictReader((tmp_path / "sweep.csv").open()))) == 1
    before = (first / "trajectory.npz").stat().st_mtime_ns

    assert run(tmp_path, varied) == 0
    said = capsys.readouterr().out
    assert "4 of 4 settings are finished" in said
    assert (first / "trajectory.npz").stat().st_mtime_ns == before
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert (tmp_path / "sweep.png").exists()
    assert (tmp_path / "sweep.svg").exists()
    assert [(float(r["optimizer.learning_rate"]), r["seed"]) for r in rows] == [
        (0.001, "0"),
        (0.001, "1"),
        (1.0, "0"),  # a whole number where a float is wanted
        (1.0, "1"),
    ]
    for r in rows:
        workdir = (
            tmp_path / f"optimizer.learning_rate={r['optimizer.learning_rate'].removesuffix('.0')},seed={r['seed']}"
        )
        lowest = experiment.read(workdir).summary["lowest_at_chance"]
        for name in ("angle", "accuracy"):
            assert float(r[name]) == lowest[name]["mean"]
        assert int(r["step"]) == lowest["step"]
    results = experiment.read(tmp_path)
    assert sweep.tell(results) in said
    (figure,) = sweep.draw(results).values()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "optimizer.learning_rate=0.001,seed=1 (1 pair)" in labels

    (first / "summary.json").write_text("{")
    capsys.readouterr()
    assert run(tmp_path, varied, "--shard=0/4") == 2  # its own setting is another
    assert f"sweep.py: error: --workdir: {first / 'summary.json'} cannot be read" in capsys.readouterr().err


def test_architectures_can_vary(tmp_path):
    assert run(tmp_path, "--sweep=models=('mlp_shallow',),('mlp_deep','mlp_shallow')") == 0
    assert names(tmp_path) == ["models=(mlp_deep, mlp_shallow)", "models=(mlp_shallow,)"]


def test_values_that_differ_in_a_slash_alone_have_directories_of_their_own(tmp_path):
    assert run(tmp_path, "--sweep=data.dir='/x/a','/x_a'") == 0  # the digits need no directory
    folders = [tmp_path / name for name in names(tmp_path)]
    assert sorted(experiment.read(folder).config["data"]["dir"] for folder in folders) == ["/x/a", "/x_a"]
    assert [row["data.dir"] for row in csv.DictReader((tmp_path / "sweep.csv").open())] == ["/x/a", "/x_a"]


def test_a_sweep_and_a_run_do_not_share_a_directory(tmp_path, capsys):
    flags = ["--config=digits", f"--workdir={tmp_path / 'run'}", *SMALL]
    assert cli.run(early.EXPERIMENT, ["early.py", *flags]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert run(tmp_path / "run", "--sweep=seed=0") == 2
    assert "holds a run of early, not of sweep" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before

    assert run(tmp_path / "sweep", "--sweep=seed=0,1", "--shard=2/3") == 0  # a part without a setting
    assert "0 of 2 settings are finished" in capsys.readouterr().out
    left = {path.name for path in (tmp_path / "sweep").iterdir()}
    assert left == {"config.json", "summary.json"}
    assert cli.run(early.EXPERIMENT, ["early.py", "--config=digits", f"--workdir={tmp_path / 'sweep'}", *SMALL]) == 2
    assert "holds a run of sweep, not of early" in capsys.readouterr().err


def job(workdir, *arguments):
    """A sweep as a job of two processes on this machine: their statuses, and what each said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, str(ROOT / "experiments" / "sweep.py"), "--config=digits", f"--workdir={workdir}", *SMALL]
    line += [*arguments, f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([*line, f"--process_id={i}"], env=environment, **options) for i in range(2)]
    said = [process.communicate() for process in processes]
    return [process.returncode for process in processes], said


@pytest.mark.slow
def test_a_job_of_several_processes_reports_once_and_ends_as_one(tmp_path):
    statuses, said = job(tmp_path, "--sweep=seed=0,1")
    assert statuses == [0, 0], said
    assert "2 of 2 settings are finished" in said[0][0]
    assert all(line.startswith("[Gloo]") for line in said[1][0].splitlines())
    assert [row["seed"] for row in csv.DictReader((tmp_path / "sweep.csv").open())] == ["0", "1"]
    (tmp_path / "seed=1" / "summary.json").write_text("{")
    statuses, said = job(tmp_path, "--sweep=seed=0,1", "--shard=0/2")
    assert statuses == [2, 2], said
    assert "summary.json cannot be read" in said[0][1]
    assert "Traceback" not in said[0][1] + said[1][1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--sweep: got ''"),
        (["--sweep=seed=0 seed=1"], "--sweep: got seed twice; it takes each field once"),
        (["--sweep=seed=0,1,0"], "--sweep: got 'seed=0,1,0', where 0 is repeated"),
        (["--sweep=optimizer.learning_rate=1,1.0"], "where 1.0 is repeated"),  # the same setting
        (["--sweep=data.dir=\"it's\",'its'"], "which share the directory data.dir=its; leave one out"),
        (["--sweep=seed={[]:0}"], "--sweep: got 'seed={[]:0}'; it takes FIELD=VALUE,VALUE"),
        (["--sweep=seed=0,one"], "--sweep: got 'seed=0,one'; it takes FIELD=VALUE,VALUE"),
        (["--sweep=sed=0"], "sed: unknown config field; did you mean seed?"),
        (["--sweep=seed=0,-1"], "seed: got -1; it takes a whole number"),
        (["--sweep=optimizer.name=1"], "optimizer.name: got 1"),
        (["--sweep=seed=0", "--shard=2/2"], "--shard: got '2/2'; it takes I/N"),
        (["--sweep=seed=0", "--shards=0/2"], "not known; it takes --config, --workdir, --sweep, --shard"),
    ],
)
def test_bad_sweeps_are_one_line_before_anything_runs(tmp_path, capsys, flags, message):
    assert run(tmp_path / "run", *flags) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert message in err
    assert out == ""
    assert not (tmp_path / "run").exists()


def test_the_help_names_its_flags(capsys):
    assert cli.run(sweep.EXPERIMENT, ["sweep.py", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--sweep" in said
    assert "--coordinator" in said


VARIED = "--sweep=seed=0,1 data.shuffle_labels=False,True"


def test_settings_that_differ_in_values_run_side_by_side_as_they_do_one_by_one(tmp_path, monkeypatch):
    taken = []
    together = early.side_by_side
    monkeypatch.setattr(early, "side_by_side", lambda settings: taken.append(len(settings)) or together(settings))
    assert run(tmp_path / "together", VARIED) == 0
    assert taken == [4]
    monkeypatch.setattr(engine.Population, "side_by_side", 1)
    assert run(tmp_path / "alone", VARIED) == 0
    assert taken == [4] + [1] * 4
    for name in names(tmp_path / "alone"):
        alone, beside = (experiment.read(tmp_path / folder / name) for folder in ("alone", "together"))
        assert alone.config == beside.config
        assert alone.summary["data_sha256"] == beside.summary["data_sha256"]
        for array, values in alone.arrays["trajectory"].items():
            beside_it = beside.arrays["trajectory"][array]
            np.testing.assert_allclose(beside_it, values, rtol=1e-4, atol=2e-3, err_msg=f"{name} {array}")


def test_settings_side_by_side_resume_from_their_checkpoints(tmp_path):
    saved = "--config.checkpoint.steps=1"
    assert run(tmp_path / "once", "--sweep=seed=0,1", "--config.num_steps=4") == 0
    assert run(tmp_path / "twice", "--sweep=seed=0", "--config.num_steps=2", saved) == 0
    assert run(tmp_path / "twice", "--sweep=seed=0,1", "--config.num_steps=4", saved) == 0  # one is at its start
    for name in names(tmp_path / "once"):
        once, twice = (experiment.read(tmp_path / folder / name) for folder in ("once", "twice"))
        for array, values in once.arrays["trajectory"].items():
            np.testing.assert_allclose(twice.arrays["trajectory"][array], values, rtol=1e-4, atol=2e-3, err_msg=array)


def test_settings_that_differ_in_values_share_their_programs(tmp_path, lowerings):
    """They compile nothing, in a process that has made such a sweep before."""
    counts = []
    for rates, values in {"1e-3,1": "seed=0 attack.epsilon=0.1", "1e-2,0.1": "seed=1 attack.epsilon=0.2"}.items():
        before = lowerings()
        varied = f"--sweep=optimizer.learning_rate={rates} {values}"
        assert run(tmp_path / rates, varied, "--config.attack.epsilon=0.1", "--config.num_networks=3") == 0
        counts.append(lowerings() - before)
    assert counts[0] > 0 == counts[1]
