import csv
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, free_port

from jtrans.experiments import early, random_angles, sweep
from jtrans.experiments.sweep import headlines
from jtrans.harness import cli, cluster, experiment
from jtrans.population import engine
from jtrans.stats import Interval

pytestmark = pytest.mark.usefixtures("without_figures")

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


def test_what_is_wrong_with_any_setting_is_said_before_one_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(early, "side_by_side", None)
    assert run(tmp_path, "--sweep=num_examples=20,5000") == 2  # what the data do not have
    assert "num_examples: got 5000" in capsys.readouterr().err
    there = tmp_path / "batch_size=64"
    there.mkdir()
    (there / "mine.csv").write_text("1")
    assert run(tmp_path, "--sweep=batch_size=32,64") == 2
    assert f"--workdir: {there} holds mine.csv but no config.json" in capsys.readouterr().err
    assert run(tmp_path / "12:30", "--sweep=seed=0,1", "--slurm=local") == 2
    assert "12:30 has a colon, so --slurm does not take it" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_text("{}")
    assert run(tmp_path / "mine", "--sweep=seed=0,1") == 2
    assert "mine holds summary.json but no config.json" in capsys.readouterr().err
    assert (tmp_path / "mine" / "summary.json").read_text() == "{}"


def test_the_mean_image_is_that_of_the_settings_own_data(tmp_path):
    noise = ["--config.data.name=noise", "--config.data.subtract_mean", "--config.num_steps=1"]
    assert run(tmp_path / "sweep", "--sweep=seed=0,1", *noise) == 0
    flags = ["--config=digits", f"--workdir={tmp_path / 'alone'}", *SMALL, *noise, "--config.seed=1"]
    assert cli.run(early.EXPERIMENT, ["early.py", *flags]) == 0
    angles = [
        experiment.read(folder).arrays["trajectory"]["angle"]
        for folder in (tmp_path / "alone", tmp_path / "sweep" / "seed=1")
    ]
    np.testing.assert_allclose(*angles, atol=1e-4)


def test_lines_that_hold_for_some_settings_alone_are_not_drawn(tmp_path):
    assert run(tmp_path, "--sweep=data.image_size=8,16") == 0
    results = experiment.read(tmp_path)
    assert results.summary["common"]["random"] is None  # of other dimensions
    assert results.summary["common"]["chance"] == 0.1
    (figure,) = sweep.draw(results).values()
    said = [text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()]
    assert any("chance" in text for text in said)
    assert not any("random" in text for text in said)


def job(workdir, *arguments):
    """A sweep as a job of two processes on this machine: their statuses, and what each said."""
    port = free_port()
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
        (["--sweep=seed=0", "--experiment=erly"], "experiment: got 'erly'; did you mean early?"),
        (
            ["--sweep=seed=0", "--experiment=reproduce"],
            "got 'reproduce', which has no number to compare; it takes causes",
        ),
        (["--sweep=seed=0", "--experiment=control"], "unknown config field; did you mean"),
        (["--sweep=seed=0", "--slurm=partition"], "--slurm: got 'partition'; it takes NAME=VALUE"),
        (["--sweep=seed=0", "--slurm=time=60 time=6"], "--slurm: got 'time=6'; it takes NAME=VALUE"),
        (["--sweep=seed=0", "--slurm=time=1:00:00"], "--slurm: got time=1:00:00; it takes whole minutes"),
        (["--sweep=seed=0", "--slurm=setup='a"], "a quote is not closed"),
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


ANGLES = [
    "--config.num_seeds=2",
    "--config.dimensions=(3,)",
    "--config.num_pairs=20",
    "--config.dimension=9",
    "--config.num_rare_pairs=50",
]


def angles(workdir, *arguments):
    line = ["sweep.py", "--config=random_angles", f"--workdir={workdir}", *ANGLES, "--experiment=random_angles"]
    return cli.run(sweep.EXPERIMENT, [*line, *arguments])


def rows(workdir):
    with (workdir / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_any_experiment_is_swept_by_what_it_comes_down_to(tmp_path, capsys):
    workdir, varied, name = tmp_path / "sweep", "--sweep=dimension=5,500", "smallest angle of all pairs (degrees)"
    assert angles(workdir, varied, "--shard=1/2") == 0
    assert "1 of 2 settings are finished" in capsys.readouterr().out
    assert angles(workdir, varied) == 0
    said = capsys.readouterr().out
    assert "2 of 2 settings are finished" in said
    assert said.count("holds the results of this config already") == 1
    assert [row["dimension"] for row in rows(workdir)] == ["5", "500"]
    for row in rows(workdir):
        least = experiment.read(workdir / f"dimension={row['dimension']}").summary["least"]
        assert [float(row[name + bound]) for bound in ("", "_low", "_high")] == [least[b] for b in Interval._fields]
    line = ["random_angles.py", "--config=random_angles", f"--workdir={tmp_path / 'alone'}", *ANGLES]
    assert cli.run(random_angles.EXPERIMENT, [*line, "--config.dimension=500"]) == 0
    for file in ("config.json", "typical.csv", "unlikely.csv"):
        assert (workdir / "dimension=500" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()

    results = experiment.read(workdir)
    assert sweep.tell(results) in said
    (figure,) = sweep.draw(results).values()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["5", "500"]
    assert " ".join(axes.get_xlabel().split()) == name
    (bars,) = axes.containers
    np.testing.assert_array_equal(bars.lines[0].get_xdata(), [float(row[name]) for row in rows(workdir)])
    assert (workdir / "sweep.png").exists()

    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert run(workdir, "--sweep=seed=0") == 2
    err = capsys.readouterr().err
    assert err.splitlines() == [
        f"sweep.py: error: --workdir: {workdir} holds a sweep of random_angles, not of early; name another directory"
    ]
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_the_help_lists_the_fields_of_the_experiment_that_is_swept(capsys):
    assert cli.run(sweep.EXPERIMENT, ["sweep.py", "--experiment=random_angles", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--config.num_rare_pairs=20000" in said
    assert "--config.group_size" not in said


def test_numbers_without_an_interval_and_settings_without_a_number_are_empty_cells(tmp_path):
    of_settings = [{"a (share)": 0.5}, {"a (share)": Interval(0.25, 0.0, 0.5), "b (degrees)": Interval(9.0, 8.0, 10.0)}]
    frame = headlines.table({"seed": ["0", "1"], "x": ["p", "q"]}, of_settings)
    assert list(frame) == [
        "seed",
        "x",
        *(f"{n}{b}" for n in ("a (share)", "b (degrees)") for b in ("", "_low", "_high")),
    ]
    expected = [[0.5, *[math.nan] * 5], [0.25, 0, 0.5, 9, 8, 10]]
    np.testing.assert_array_equal(frame.iloc[:, 2:].to_numpy(float), expected)
    said = headlines.tell(frame)
    assert "0.250 [0.000, 0.500]" in said
    assert "9.0 [8.0, 10.0]" in said
    assert len(headlines.draw(frame, "toy").axes) == 2


def test_slurm_takes_an_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert angles(tmp_path / "run", "--sweep=seed=0", "--slurm=local") == 2
    assert capsys.readouterr().err == "sweep.py: error: --slurm: it takes pip install jtrans[slurm]\n"
    assert not (tmp_path / "run").exists()


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def are_finished(workdir, count):
    def finished():
        failed = [path.read_text() for path in workdir.glob("slurm/*.err") if "Traceback" in path.read_text()]
        assert not failed
        return len(list(workdir.glob("*/summary.json"))) == count

    wait_for(finished)


@pytest.mark.slow
def test_jobs_of_this_machine_make_what_the_plain_sweep_makes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    varied = "--sweep=seed=0,1"
    assert angles(tmp_path / "plain", varied) == 0
    capsys.readouterr()
    jobs = tmp_path / "jobs"
    assert angles(jobs, varied, "--slurm=local") == 0
    said = capsys.readouterr().out
    (ids,) = [line.removeprefix("jobs submitted: ").split(", ") for line in said.splitlines() if "submitted" in line]
    assert len(set(ids)) == 2
    assert f"logs: {jobs / 'slurm'}" in said
    assert all(list((jobs / "slurm").glob(f"{i}_*")) for i in ids)
    are_finished(jobs, 2)
    assert angles(jobs, varied, "--slurm=local") == 0
    said = capsys.readouterr().out
    assert "no jobs submitted: every setting is finished" in said
    assert "2 of 2 settings are finished" in said
    for file in ("sweep.csv", "seed=0/unlikely.csv", "seed=1/unlikely.csv", "seed=1/config.json"):
        assert (jobs / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


SAVES = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "started").touch()
while True:
    time.sleep(0.01)
"""


def test_a_job_that_goes_back_to_the_queue_has_saved(tmp_path):
    job = cluster.Command([sys.executable, "-c", SAVES, str(tmp_path)])
    failed = []

    def call():
        try:
            job()
        except subprocess.CalledProcessError as error:
            failed.append(error.returncode)

    thread = threading.Thread(target=call)
    thread.start()
    wait_for((tmp_path / "started").exists)
    os.kill(job.pid, signal.SIGUSR2)  # some clusters send it to all processes of a job
    again = job.checkpoint()
    assert (tmp_path / "saved").exists()
    assert again.function.arguments == job.arguments
    thread.join(10)
    assert failed == [130]


# As much of Slurm as is needed: each task of an array is a process of its own, in the environment that Slurm gives.
SBATCH = """#!/bin/bash
for argument; do case $argument in
  --array=*) array=${argument#*=} ;;
  --wrap=*) script=${argument#*=} ;;
  *) script=$(cat "$argument"); array=$(sed -n 's/^#SBATCH --array=//p' "$argument") ;;
esac; done
array=${array%\\%*}
export SLURM_JOB_ID=17 SLURM_ARRAY_JOB_ID=17 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
export SLURM_JOB_NUM_NODES=1 SLURM_STEP_NUM_TASKS=1 SLURM_JOB_NODELIST=node1 SLURM_STEP_NODELIST=node1 SLURM_STEP_ID=0
for task in $(seq "${array%-*}" "${array#*-}"); do
  SCRIPT=$script SLURM_ARRAY_TASK_ID=$task bash -c "$script" >> "$SLURM_LOGS/$task" 2>&1 &
done
echo "Submitted batch job 17"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == --output || $1 == --error ]] && shift; shift; done
echo $$ > "$SLURM_LOGS/pid-$SLURM_ARRAY_TASK_ID"
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" > "$SLURM_LOGS/scontrol"
pid=$(cat "$SLURM_LOGS/pid-$SLURM_ARRAY_TASK_ID")
(while kill -0 $pid; do sleep 0.1; done
sbatch --array=$SLURM_ARRAY_TASK_ID-$SLURM_ARRAY_TASK_ID --wrap="$SCRIPT") > /dev/null 2>&1 &
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster of this machine: the folder of what its tasks say."""
    folder, logs = tmp_path / "bin", tmp_path / "logs"
    logs.mkdir()
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_LOGS", str(logs))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return logs


def test_options_that_slurm_does_not_have_are_one_line(tmp_path, slurm, capsys):
    assert angles(tmp_path / "run", "--sweep=seed=0,1", "--slurm=partion=gpu time=60") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "--slurm: got 'partion=gpu time=60'; Unavailable parameter(s): ['partion']" in err
    assert not (tmp_path / "run").exists()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition: gpus' >&2\nexit 1\n")
    assert angles(tmp_path / "run", "--sweep=seed=0,1", "--slurm=partition=gpus") == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "nothing was submitted" in err
    assert "invalid partition: gpus" in err


@pytest.mark.slow
def test_an_array_of_shards_leaves_the_table_of_all_settings(tmp_path, slurm):
    flags = ["--config=random_angles", "--experiment=random_angles", "--sweep=seed=0,1,2", *ANGLES]
    command = shlex.join([sys.executable, "-m", "jtrans", "sweep", *flags, f"--workdir={tmp_path / 'run'}"])
    line = ["sbatch", "--array=0-1", f"--wrap={command} --shard=$SLURM_ARRAY_TASK_ID/2"]
    subprocess.run(line, check=True)
    are_finished(tmp_path / "run", 3)
    wait_for(lambda: all("results:" in (slurm / task).read_text().splitlines()[-1] for task in "01"))
    assert "Traceback" not in (slurm / "0").read_text() + (slurm / "1").read_text()
    assert angles(tmp_path / "run", "--sweep=seed=0,1,2") == 0
    assert [row["seed"] for row in rows(tmp_path / "run")] == ["0", "1", "2"]


@pytest.mark.slow
def test_a_job_whose_time_is_over_resumes_when_it_is_its_turn_again(tmp_path, slurm, capsys):
    flags = ["--sweep=seed=0,1", "--config.num_steps=3000", "--config.measure_every=10"]
    workdir = tmp_path / "run"
    assert run(workdir, *flags, "--slurm=partition=gpu time=60") == 0
    assert "jobs submitted: 17_0, 17_1\n" in capsys.readouterr().out
    (script,) = (path.read_text() for path in (workdir / "slurm").glob("*_submission.sh"))
    assert "#SBATCH --partition=gpu\n" in script
    assert "#SBATCH --time=60\n" in script
    log = slurm / "0"
    wait_for(lambda: log.exists() and "step 100:" in log.read_text())
    os.kill(int((slurm / "pid-0").read_text()), signal.SIGUSR2)
    are_finished(workdir, 2)
    said = log.read_text()
    assert "is saved" in said
    assert "resuming from step" in said
    assert (slurm / "scontrol").read_text() == "requeue 17_0\n"
    assert run(tmp_path / "plain", *flags, "--shard=0/2") == 0
    resumed, plain = (experiment.read(path / "seed=0") for path in (workdir, tmp_path / "plain"))
    assert resumed.config == plain.config
    for name, values in plain.arrays["trajectory"].items():
        np.testing.assert_array_equal(resumed.arrays["trajectory"][name], values, err_msg=name)
