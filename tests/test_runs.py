"""Runs that are killed, stopped, spread over devices and processes; as a user meets them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, free_port, xla_flags
from orbax.checkpoint import v1 as ocp

from jtrans.experiments import early, random_angles
from jtrans.harness import cli, experiment, folder
from jtrans.population import devices, engine, observe

pytestmark = pytest.mark.usefixtures("without_figures")

SMALL = [
    "--config.num_networks=3",
    "--config.num_steps=6",
    "--config.num_examples=40",
    "--config.data.image_size=8",
    "--config.widths.mlp_deep=(32, 16)",
    "--config.widths.mlp_shallow=(32,)",
    "--config.checkpoint.steps=2",
]
CONFIG = f"--config={ROOT / 'configs' / 'digits.py'}"
COMMAND = [sys.executable, str(ROOT / "experiments" / "early.py"), CONFIG]


def run(workdir, *arguments):
    """In this process."""
    return cli.run(early.EXPERIMENT, ["early.py", CONFIG, f"--workdir={workdir}", *SMALL, *arguments])


def start(workdir, *arguments, devices=1, command=(*COMMAND, *SMALL), **options):
    """In a process of its own."""
    environment = {**os.environ, "XLA_FLAGS": xla_flags(devices)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*command, f"--workdir={workdir}", *arguments], env=environment, **options)


def arrays(workdir):
    with np.load(workdir / "trajectory.npz") as file:
        return {name: file[name] for name in file.files}


def assert_same_bits(one, other):
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory, without_figures):
    """A run from its beginning to its end, on four devices."""
    workdir = tmp_path_factory.mktemp("whole")
    assert run(workdir) == 0
    return workdir


MANY = ["--config.num_steps=400", "--config.measure_every=2"]


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A run of many steps, so that there is time to stop it, from its beginning to its end."""
    workdir = tmp_path_factory.mktemp("long")
    process = start(workdir, *MANY, "--config.checkpoint.steps=20")
    assert process.wait() == 0, process.stderr.read()
    return workdir


def test_a_larger_number_of_steps_resumes(whole, tmp_path, capsys):
    for steps in (3, 6):
        assert run(tmp_path, f"--config.num_steps={steps}") == 0
    assert "resuming from step 3" in capsys.readouterr().out
    assert_same_bits(tmp_path, whole)
    assert run(tmp_path, "--config.num_steps=5") == 2
    assert "num_steps (6 there, 5 here)" in capsys.readouterr().err


def test_steps_off_the_grid_are_forgotten_when_a_run_grows(tmp_path):
    for workdir, numbers in (("grown", (3, 6)), ("whole", (6,))):
        for steps in numbers:
            assert run(tmp_path / workdir, "--config.measure_every=2", f"--config.num_steps={steps}") == 0
    assert arrays(tmp_path / "grown")["step"].tolist() == [0, 2, 4, 6]
    assert_same_bits(tmp_path / "grown", tmp_path / "whole")


def test_a_finished_run_is_not_run_again(tmp_path, capsys):
    assert run(tmp_path) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert "holds the results of this config already" in said
    assert "while the accuracy was still at chance" in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_without_checkpoints_none_are_made(tmp_path):
    assert run(tmp_path, "--config.checkpoint.steps=0", "--config.checkpoint.seconds=0") == 0
    assert not (tmp_path / "checkpoints").exists()
    assert len(arrays(tmp_path)["step"]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_resume_and_resumes_to_the_same_bits(tmp_path, long, how):
    many = [*MANY, "--config.checkpoint.steps=0"]
    process = start(tmp_path / "run", *many)
    while "step 2:" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(how)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[0] == "stopping after this step"
    assert "which is saved; the same command resumes from there" in said.splitlines()[1]
    assert len(said.splitlines()) == 2
    again = start(tmp_path / "run", *many)
    out, _ = again.communicate()
    assert again.returncode == 0
    assert "resuming from step" in out
    assert_same_bits(tmp_path / "run", long)


def test_a_run_stopped_right_after_its_first_checkpoint(tmp_path, monkeypatch, whole):
    trajectories = engine.trajectories

    def stops(*arguments, **options):
        yield next(trajectories(*arguments, **options))
        while not (tmp_path / "checkpoints" / "0.sha256").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "trajectories", stops)
    assert run(tmp_path) == 130
    monkeypatch.undo()
    assert run(tmp_path) == 0
    assert arrays(tmp_path)["step"].tolist() == arrays(whole)["step"].tolist()


def interrupt_at(monkeypatch, stop):
    """As Ctrl-C after that step of a run in this process."""
    trajectories = engine.trajectories

    def interrupts(*arguments, **options):
        for step, *rest in trajectories(*arguments, **options):
            if step == stop:
                os.kill(os.getpid(), signal.SIGINT)
            yield step, *rest

    monkeypatch.setattr(engine, "trajectories", interrupts)


def test_new_measures_are_in_every_file_and_survive_a_stop(tmp_path, monkeypatch, capsys):
    """One entry for a quantity of networks, and one for a quantity of pairs: npz, CSV, summary and checkpoints."""
    keeps = "--config.keep_examples"
    confidence = observe.NetworkMeasure(lambda seen: jax.nn.softmax(seen.logits).max(-1), lambda of: np.median(of, 1))
    monkeypatch.setitem(observe.NETWORK_MEASURES, "confidence", confidence)
    monkeypatch.setitem(observe.PAIR_MEASURES, "squared_cosine", observe.PairMeasure(jax.numpy.square))
    assert run(tmp_path / "whole", keeps) == 0
    assert "resuming" not in capsys.readouterr().out
    with monkeypatch.context() as patched:
        interrupt_at(patched, 3)
        assert run(tmp_path / "stopped", keeps) == 130
    saved = ocp.load(tmp_path / "stopped" / "checkpoints" / "3")["history"]
    assert saved["confidence"].shape == saved["squared_cosine"].shape == (3, 4)
    assert run(tmp_path / "stopped", keeps) == 0
    assert "resuming from step 3" in capsys.readouterr().out
    assert_same_bits(tmp_path / "stopped", tmp_path / "whole")
    table = lambda name: (tmp_path / name / "trajectory.csv").read_bytes()
    assert table("stopped") == table("whole")

    results = experiment.read(tmp_path / "whole")
    run_arrays, table = results.arrays["trajectory"], results.tables["trajectory"]
    for name in ("confidence", "squared_cosine"):
        assert run_arrays[name].shape == (3, 7)
        np.testing.assert_allclose(table[name], run_arrays[name].mean(0, dtype=np.float64))
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()
        for moment in ("before_training", "lowest_at_chance", "lowest", "last"):
            summarized = results.summary[moment]
            assert summarized[name]["mean"] == table[name][summarized["step"]]
    assert ((run_arrays["confidence"] > 1 / 10) & (run_arrays["confidence"] < 1)).all()
    squared = np.mean(np.cos(np.deg2rad(run_arrays["angle_examples"])) ** 2, axis=-1)
    np.testing.assert_allclose(run_arrays["squared_cosine"], squared, atol=1e-5)


def kill_at_random(workdir, count, *arguments):
    """Kill a run so many times, at moments of every kind once it is under way; then let it end."""
    moments, log = random.Random(count), workdir.with_suffix(".log")
    caught_writing = 0
    for kill in range(count + 1):
        with log.open("w") as out:
            process = start(workdir, *arguments, stdout=out, stderr=out)
        if kill == count:
            assert process.wait() == 0, log.read_text()
            return caught_writing
        while not ("step 0:" in log.read_text() or "resuming from step" in log.read_text()):
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        writing = kill % 2
        deadline = time.monotonic() + (10 if writing else moments.uniform(0, 1))
        while time.monotonic() < deadline and not (writing and list(workdir.glob("checkpoints/*tmp*"))):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05) if writing else 0)
        assert process.poll() is None
        process.kill()
        process.wait()
        names = {path.name for path in workdir.glob("checkpoints/*")}
        caught_writing += any(f"{name}.sha256" not in names for name in names if not name.endswith(".sha256"))
    return caught_writing


def assert_ended_alike(one, other):
    assert_same_bits(one, other)
    names = lambda workdir: {str(path.relative_to(workdir)) for path in workdir.rglob("*") if "state/" not in str(path)}
    assert names(one) == names(other)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path, long):
    kill_at_random(tmp_path / "killed", 1, *MANY, "--config.checkpoint.steps=20")
    assert_ended_alike(tmp_path / "killed", long)


@pytest.mark.slow
def test_a_run_killed_many_times_ends_with_the_same_bits(tmp_path):
    many = ["--config.num_steps=4000", "--config.measure_every=2", "--config.checkpoint.steps=20"]
    assert kill_at_random(tmp_path / "killed", 20, *many) > 0  # some while a checkpoint was written
    whole = start(tmp_path / "whole", *many)
    whole.communicate()
    assert_ended_alike(tmp_path / "killed", tmp_path / "whole")


def test_a_damaged_checkpoint_sends_the_run_back_to_the_one_before(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()  # as when killed before the results were written
    for path in (tmp_path / "run" / "checkpoints" / "6").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-10])
    assert run(tmp_path / "run") == 0
    out, err = capsys.readouterr()
    assert "resuming from step 4" in out
    assert len(err.splitlines()) == 1
    assert "checkpoints/6 is damaged and left out; its files are not those that were written" in err
    assert_same_bits(tmp_path / "run", whole)


def test_two_runs_in_one_workdir(tmp_path, capsys):
    first = start(tmp_path, "--config.num_steps=4000")
    while "step 1:" not in first.stdout.readline():
        assert first.poll() is None
    assert run(tmp_path, "--config.num_steps=4000") == 2
    first.kill()
    first.communicate()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"early.py: error: --workdir: another run is using {tmp_path}; wait for its end, or name another\n"


def in_a_small_disk(script, *arguments):
    """A shell script in a file system of its own, where the machine lets us mount one."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode:
        pytest.skip("no permission to mount a file system")
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, arguments)]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(4)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_is_lost(whole, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "kept").mkdir()
    script = """
        disk=$1 kept=$2; shift 2
        mount -t tmpfs -o size=4m tmpfs $disk || exit 99
        "$@" --workdir=$disk/run --config.num_steps=2 >$kept/first 2>&1 || exit 98
        cat /dev/zero >$disk/filler 2>/dev/null; truncate -s -30000 $disk/filler
        "$@" --workdir=$disk/run; status=$?
        cp -a $disk/run $kept
        exit $status
    """
    done = in_a_small_disk(script, tmp_path / "disk", tmp_path / "kept", *COMMAND, *SMALL)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "make room, and run the same command again" in done.stderr
    assert arrays(tmp_path / "kept" / "run")["step"].tolist() == [0, 1, 2]
    assert experiment.read(tmp_path / "kept" / "run").summary["last"]["step"] == 2
    again = start(tmp_path / "kept" / "run", devices=4)
    assert "resuming from step 2" in again.communicate()[0]
    assert_same_bits(tmp_path / "kept" / "run", whole)


def test_a_workdir_that_is_read_only_is_one_line(tmp_path):
    (tmp_path / "disk").mkdir()
    script = 'disk=$1; shift; mount -t tmpfs -o ro tmpfs $disk || exit 99; "$@" --workdir=$disk/run'
    done = in_a_small_disk(script, tmp_path / "disk", *COMMAND, *SMALL)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Read-only file system" in done.stderr


def test_a_network_that_is_lost_is_named_and_the_others_go_on(tmp_path, capsys):
    lost = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e30"]
    assert run(tmp_path / "all", *lost) == 0
    said = capsys.readouterr().out
    assert "network 0: its loss is not finite at step" in said
    assert "networks whose loss is not finite: 0 (from step" in said
    summary, run_arrays = experiment.read(tmp_path / "all").summary, arrays(tmp_path / "all")
    assert [one["network"] for one in summary["non_finite"]] == [0, 1, 2]
    for one in summary["non_finite"]:
        row = np.isfinite(run_arrays["loss"][one["network"]])
        assert one["step"] == run_arrays["step"][np.flatnonzero(~row)[0]]
    np.testing.assert_array_equal(np.isnan(run_arrays["accuracy"]), ~np.isfinite(run_arrays["loss"]))
    # All are lost after some steps, and no step after that is at chance.
    lost_from = max(one["step"] for one in summary["non_finite"])
    assert summary["lowest_at_chance"]["step"] < lost_from


def test_each_images_angles_are_written_once_and_resumed(tmp_path):
    keeps = "--config.keep_examples"
    for steps in (3, 6):
        assert run(tmp_path / "grown", keeps, f"--config.num_steps={steps}") == 0
    assert run(tmp_path / "whole", keeps) == 0
    assert arrays(tmp_path / "grown")["angle_examples"].shape == (3, 7, 40)
    assert_same_bits(tmp_path / "grown", tmp_path / "whole")
    saved = ocp.load(tmp_path / "whole" / "checkpoints" / "6")["history"]
    assert "angle_examples" not in saved
    files = sorted(path.name for path in (tmp_path / "whole" / "checkpoints" / "examples").iterdir())
    assert files == [f"{step}.npy" for step in range(7)]


def test_ctrl_c_in_the_last_step_throws_nothing_away(tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 6)
    assert run(tmp_path, "--config.checkpoint.steps=0", "--config.checkpoint.seconds=0") == 0
    assert arrays(tmp_path)["step"][-1] == 6


def difference(one, other):
    return {name: np.abs(arrays(one)[name] - arrays(other)[name]).max() for name in ("angle", "loss", "accuracy")}


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_so_many_devices_give_what_four_give(whole, tmp_path, count):
    process = start(tmp_path, devices=count)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert (f"3 networks, {-(-3 // count)} at once on each of {count} cpu devices" in out) == (count > 1)
    assert difference(tmp_path, whole)["angle"] < 1e-3


def job(workdir, count, *arguments, others=None, **options):
    """A job of several processes on this machine; `others`, where they differ, is the work directory of all but one."""
    port = free_port()
    flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    workdirs = [workdir, *[others or workdir] * (count - 1)]
    return [start(path, *flags, f"--process_id={i}", *arguments, **options) for i, path in enumerate(workdirs)]


@pytest.mark.parametrize(
    ("count", "each", "stops"),
    [(2, 1, (6,)), *(pytest.param(*job, (3, 6), marks=pytest.mark.slow) for job in ((2, 1), (3, 2)))],
)
def test_several_processes_give_what_one_gives(whole, tmp_path, count, each, stops):
    """Also stopped on the way, and resumed; with the networks saved."""
    for steps in stops:
        processes = job(tmp_path, count, f"--config.num_steps={steps}", "--config.save_networks", devices=each)
        said = [process.communicate() for process in processes]
        assert [process.returncode for process in processes] == [0] * count, said
    assert ("resuming from step 3" in said[0][0]) == (len(stops) > 1)
    for out, _ in said[1:]:  # the first process speaks for all
        assert all(line.startswith("[Gloo]") for line in out.splitlines())
    assert difference(tmp_path, whole)["angle"] < 1e-3
    assert json.loads((tmp_path / "summary.json").read_text())["devices"]
    assert folder.read_networks(tmp_path)[0]["params"]["Dense_0"]["kernel"].shape == (3, 32, 64)


def test_a_job_refuses_as_one(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    processes = job(tmp_path, 2)
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "holds summary.json but no config.json" in said[0]
    assert "Traceback" not in said[0] + said[1]


@pytest.mark.slow
def test_a_signal_to_any_process_stops_the_job(tmp_path):
    processes = job(tmp_path, 2, "--config.num_steps=4000", "--config.checkpoint.steps=0")
    while "step 5:" not in processes[0].stdout.readline():
        assert processes[0].poll() is None
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [130, 130], said
    assert "which is saved; the same command resumes from there" in said[0]


FAILS = """
import sys
from jtrans.population import devices

def fail():
    raise ValueError("no room")

devices.connect(sys.argv[1], 2, int(sys.argv[2]))
try:
    devices.first_does(fail)
except ValueError as error:
    sys.exit(str(error))
"""


def test_what_fails_in_the_first_process_ends_the_others():
    address = f"127.0.0.1:{free_port()}"
    line = [sys.executable, "-c", FAILS, address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([*line, str(i)], env=environment, stderr=subprocess.PIPE, text=True) for i in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 2], said
    assert "no room" in said[0]
    assert "Traceback" not in said[0] + said[1]


@pytest.mark.slow
def test_any_experiment_runs_as_a_job_whose_first_process_writes(tmp_path):
    small = ["--config.num_seeds=2", "--config.dimensions=(3, 10)", "--config.num_pairs=50", "--config.dimension=10"]
    alone = [f"--config={ROOT / 'configs' / 'random_angles.py'}", *small, "--config.num_rare_pairs=100"]
    assert cli.run(random_angles.EXPERIMENT, ["random_angles.py", f"--workdir={tmp_path / 'alone'}", *alone]) == 0
    command = [sys.executable, str(ROOT / "experiments" / "random_angles.py"), *alone]
    for attempt, others in (("measured", tmp_path / "nothing"), ("told", None)):
        processes = job(tmp_path / "job", 2, command=command, others=others)
        said = [process.communicate() for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        assert ("holds the results of this config already" in said[0][0]) == (attempt == "told")
        assert "The smallest of 100 angles in 10 dimensions" in said[0][0]
        assert all(line.startswith("[Gloo]") for line in said[1][0].splitlines())
    for name in ("config.json", "typical.csv", "unlikely.csv"):
        assert (tmp_path / "job" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not (tmp_path / "nothing").exists()


def test_ctrl_c_before_any_step_says_what_becomes_of_the_run(tmp_path, capsys):
    def interrupted(config, workdir):
        raise KeyboardInterrupt

    stopped = early.EXPERIMENT._replace(measure=interrupted)
    assert cli.run(stopped, ["early.py", CONFIG, f"--workdir={tmp_path}"]) == 130
    assert capsys.readouterr().err == "early.py: interrupted; finished parts are kept; the same command resumes\n"


def test_half_a_job_is_refused(tmp_path):
    process = start(tmp_path, "--coordinator=127.0.0.1:1")
    assert process.communicate()[1] == (
        "early.py: error: --num_processes: missing; --coordinator, --num_processes and --process_id go together\n"
    )
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("environment", "joins"),
    [({}, False), ({"SLURM_STEP_NUM_TASKS": "1"}, False), ({"SLURM_STEP_NUM_TASKS": "2"}, True)],
)
def test_a_launchers_job_is_joined_where_it_has_several_tasks(monkeypatch, environment, joins):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    devices.connect()
    assert calls == [(None, None, None)] * joins
