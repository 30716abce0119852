"""What a run logs to a tracker while it goes on; without a network."""

import json
import os
import signal
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from jtrans.experiments import early, sweep
from jtrans.harness import cli, experiment
from jtrans.population import devices

SMALL = [
    "--config.num_networks=2",
    "--config.num_steps=4",
    "--config.num_examples=20",
    "--config.data.image_size=8",
    "--config.widths.mlp_deep=(16, 8)",
    "--config.widths.mlp_shallow=(8,)",
]
ARRAYS = {"angle_degrees": "angle", "accuracy": "accuracy", "loss_nats": "loss"}


pytestmark = pytest.mark.usefixtures("without_figures")


def run(workdir, *arguments, of=early):
    return cli.run(of.EXPERIMENT, [f"{of.NAME}.py", "--config=digits", f"--workdir={workdir}", *SMALL, *arguments])


def assert_logged(history, workdir, steps=range(5)):
    """The history, `{step: {name: mean}}`, has all finite means of the run's arrays."""
    arrays = experiment.read(workdir).arrays["trajectory"]
    means = {name: np.ma.masked_invalid(arrays[of]).mean(0).filled(np.nan) for name, of in ARRAYS.items()}
    for i, step in enumerate(arrays["step"].tolist()):
        finite = {name: mean[i] for name, mean in means.items() if np.isfinite(mean[i])} if step in steps else {}
        assert history.get(step, {}) == pytest.approx(finite, rel=1e-4), step


def shown_by_tensorboard(folder):
    """The history in all event files; where a process began, TensorBoard hides what it was to write again."""
    from tensorboardX.proto import event_pb2

    events, history = [], {}
    for path in folder.iterdir():
        content = path.read_bytes()
        while content:  # a length, its checksum, an event, its checksum
            length = int.from_bytes(content[:8], "little")
            events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    for event in sorted(events, key=lambda event: event.wall_time):
        if event.HasField("session_log"):
            history = {step: means for step, means in history.items() if step < event.step}
        for value in event.summary.value:
            history.setdefault(event.step, {})[value.tag] = value.simple_value
    return history


def test_tensorboard_shows_every_step_of_a_run_also_after_it_resumed(tmp_path):
    for steps in (2, 4):
        assert run(tmp_path, "--config.tracker=tensorboard", f"--config.num_steps={steps}") == 0
    assert_logged(shown_by_tensorboard(tmp_path / "tensorboard"), tmp_path)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The real wandb, as where there is no network."""
    variables = {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false"}
    folders = {name: str(tmp_path / name) for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR")}
    for name, value in {**variables, **folders}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    import wandb

    yield
    wandb.teardown()


def records(content, block=32768):
    """The records in a log of LevelDB's format, after wandb's header."""
    at, record = 7, b""
    while at < len(content):
        if (left := block - at % block) < 7:  # padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record, at = record + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def read_wandb(folder):
    """The config and the history in the file that wandb uploads later."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    config, history = {}, {}
    for content in records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        row = {"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        if row:
            history[row["_step"]] = {name: value for name, value in row.items() if not name.startswith("_")}
    return config, history


def test_wandb_offline_has_the_config_and_every_step_and_goes_on_in_the_same_run(tmp_path, offline):
    workdir = tmp_path / "run"
    for steps in (2, 4):
        assert run(workdir, "--config.tracker=wandb", f"--config.num_steps={steps}") == 0
    first, last = sorted(workdir.glob("wandb/offline-run-*"))
    identity = lambda folder: folder.name.split("-")[3]
    assert identity(first) == identity(last)
    assert_logged(read_wandb(first)[1], workdir, range(3))
    config, history = read_wandb(last)
    assert_logged(history, workdir)  # all of it, since an upload replaces what an earlier one brought
    assert config["num_steps"] == 4
    assert config["optimizer"]["name"] == experiment.read(workdir).config["optimizer"]["name"]


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place, whose `runs` keep what they were given."""

    class Run:
        def __init__(self, **options):
            self.options, self.history, self.exit_codes, self.step = options, {}, [], fake.step
            self.beside = sum(not each.exit_codes for each in fake.runs)
            fake.runs.append(self)

        def log(self, means, step):
            assert not self.exit_codes
            fake.failing()
            self.history[step] = dict(means)
            if step == fake.interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)

        def finish(self, exit_code=0):
            self.exit_codes.append(exit_code)

    fake = SimpleNamespace(
        init=Run, Error=type("Error", (Exception,), {}), runs=[], step=0, interrupt_at=None, failing=lambda: None
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_run_that_was_stopped_goes_on_in_the_same_wandb_run(tmp_path, wandb):
    wandb.interrupt_at = 2
    assert run(tmp_path / "run", "--config.tracker=wandb") == 130
    wandb.interrupt_at, wandb.step = None, 3
    assert run(tmp_path / "run", "--config.tracker=wandb") == 0
    stopped, resumed = wandb.runs
    assert stopped.options["id"] == resumed.options["id"]
    assert [each.options["resume"] for each in wandb.runs] == [None, "allow"]
    assert [each.exit_codes for each in wandb.runs] == [[1], [0]]
    assert_logged(stopped.history, tmp_path / "run", range(3))
    assert_logged(resumed.history, tmp_path / "run", (3, 4))  # wandb has the others


def test_runs_side_by_side_have_a_wandb_run_each_and_no_nan(tmp_path, wandb):
    varied = "--sweep=optimizer.learning_rate=1e-3,1e30"  # at the second all networks are lost
    assert run(tmp_path, varied, "--config.optimizer.name=sgd", "--config.tracker=wandb", of=sweep) == 0
    assert [each.beside for each in wandb.runs] == [0, 1]
    assert len({each.options["id"] for each in wandb.runs}) == 2
    for each, rate in zip(wandb.runs, (1e-3, 1e30), strict=True):
        workdir = tmp_path / f"optimizer.learning_rate={rate}"
        assert each.options["dir"] == workdir
        assert each.options["name"] == workdir.name
        assert each.options["reinit"] == "create_new"
        assert each.options["config"]["optimizer"]["learning_rate"] == rate
        assert each.exit_codes == [0]
        assert_logged(each.history, workdir)
    assert not wandb.runs[1].history[4]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_fails_is_warned_of_once_and_the_run_goes_on(tmp_path, wandb, monkeypatch, capsys, name):
    from tensorboardX.event_file_writer import EventsWriter

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    wandb.failing = full
    monkeypatch.setattr(EventsWriter, "flush", full)  # from the first step on
    assert run(tmp_path, f"--config.tracker={name}") == 0
    said = capsys.readouterr().err
    what = f"{name} has nothing from step 0 on ([Errno 28] No space left on device); the run goes on"
    assert said.count("warning: tracker: ") == said.count(what) == 1


def test_a_file_in_the_place_of_the_trackers_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("mine")
    assert run(tmp_path, "--config.tracker=tensorboard") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "tensorboard") in line
    assert (tmp_path / "tensorboard").read_text() == "mine"


def test_only_the_first_process_of_a_job_logs(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr(devices, "is_first", lambda: False)
    assert run(tmp_path, "--config.tracker=wandb", "--config.checkpoint.seconds=0") == 0
    assert not wandb.runs


def test_without_an_account_one_line_says_what_would_do(tmp_path, wandb, capsys):
    def init(**options):
        raise wandb.Error("no API key\nconfigured")

    wandb.init = init
    assert run(tmp_path, "--config.tracker=wandb") == 2
    what = "which does not start (no API key configured); wandb login, or WANDB_MODE=offline, would do"
    assert capsys.readouterr().err == f"early.py: error: tracker: got 'wandb', {what}\n"


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_library_that_is_missing_is_one_line_before_anything_runs(tmp_path, monkeypatch, capsys, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert run(tmp_path / "run", f"--config.tracker={name}") == 2
    what = f"tracker: got '{name}'; it takes pip install 'jtrans[{name}]'"
    assert capsys.readouterr().err == f"early.py: error: {what}\n"
    assert not (tmp_path / "run").exists()


def test_no_library_is_imported_where_none_is_asked_for(tmp_path, monkeypatch):
    for module in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it would fail
    assert run(tmp_path) == 0


def test_the_field_says_what_it_takes(tmp_path, capsys):
    takes = "'' for none, or one of tensorboard, wandb"
    assert run(tmp_path, "--help") == 0
    assert f"({takes})\n" in capsys.readouterr().out
    assert run(tmp_path, "--config.tracker=comet") == 2
    assert f"tracker: got 'comet'; it takes {takes}\n" in capsys.readouterr().err
    assert run(tmp_path, "--config.tensorboard") == 2  # as it was called before
    said = capsys.readouterr().err
    assert "tensorboard: unknown config field; it takes " in said
    assert "tracker" in said
