"""The main job as a user runs it, in this process where that is enough."""

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT

from jtrans import stats
from jtrans.experiments import early
from jtrans.harness import cli, experiment, folder, runtime
from jtrans.harness.experiment import Results
from jtrans.population import trajectory

SMALL = [
    "--config.num_networks=3",
    "--config.num_steps=4",
    "--config.num_examples=40",
    "--config.data.image_size=8",
    "--config.widths.mlp_deep=(32, 16)",
    "--config.widths.mlp_shallow=(32,)",
]
DIGITS = ROOT / "configs" / "digits.py"


def run(workdir, *arguments, config=DIGITS):
    return cli.run(early.EXPERIMENT, ["early.py", f"--config={config}", f"--workdir={workdir}", *arguments])


def arrays(workdir):
    return experiment.read(workdir).arrays["trajectory"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    assert run(workdir, *SMALL) == 0
    return workdir


def figure(workdir):
    return early.draw(experiment.read(workdir))["figure"]


def test_a_run_leaves_the_files_that_the_docs_name(finished):
    names = {"config.json", "trajectory.npz", "trajectory.csv", "summary.json", "figure.png", "figure.svg"}
    assert {path.name for path in finished.iterdir()} == names | {"checkpoints", ".lock"}
    with np.load(finished / "trajectory.npz") as file:
        shapes = {name: file[name].shape for name in file.files}
    assert shapes == {
        "step": (5,),
        "pair": (3, 2),
        "angle": (3, 5),
        "signed_angle": (3, 5),
        "agreement": (3, 5),
        "constant_share": (3, 5),
        "auc": (3, 5),
        "accuracy": (3, 5),
        "loss": (3, 5),
        "model": (3,),
        "undirected": (3, 5),
        "num_examples": (),
        "success": (3, 5, 3, 3),
    }
    page = (ROOT / "docs" / "files.md").read_text()
    assert all(f"`{name}" in page for name in names)
    table = page.partition("## trajectory.npz")[2].partition("\n\nWhere `pair` is a sample")[0]
    listed = dict(re.findall(r"\| `(\w+)` \| `?(\[?[MPTN0-9, ]*\]?)`? \|", table))
    sizes = {"M": 3, "P": 3, "T": 5}
    assert listed.keys() == {*shapes, "angle_examples"}
    for name, shape in shapes.items():
        assert shape == tuple(sizes.get(size) or int(size) for size in re.findall(r"[MPT0-9]+", listed[name])), name
    assert PIL.Image.open(finished / "figure.png").size[0] > 900
    xml.etree.ElementTree.parse(finished / "figure.svg")


def test_a_run_of_other_values_compiles_nothing(finished, tmp_path, lowerings):
    before = lowerings()
    values = "--config.seed=1", "--config.optimizer.learning_rate=0.02", "--config.attack.epsilon=0.2"
    assert run(tmp_path, *SMALL, *values) == 0
    assert lowerings() == before


def test_the_table_holds_the_means_and_intervals_of_the_arrays(finished):
    run_arrays = arrays(finished)
    rows = list(csv.DictReader((finished / "trajectory.csv").open()))
    interval = stats.pair_mean_ci(run_arrays["angle"], run_arrays["pair"], run_arrays["model"])
    loss = stats.mean_ci(run_arrays["loss"])
    for t, row in enumerate(rows):
        assert int(row["step"]) == t
        assert float(row["angle"]) == pytest.approx(run_arrays["angle"][:, t].mean())
        assert float(row["angle_low"]) == interval.low[t] <= float(row["angle"]) <= float(row["angle_high"])
        assert float(row["accuracy_2"]) == run_arrays["accuracy"][2, t]
        assert [float(row[name]) for name in ("loss", "loss_low", "loss_high")] == [bound[t] for bound in loss]
        assert float(row["undirected"]) == run_arrays["undirected"][:, t].mean()


def test_the_summary_says_what_was_found_and_with_what(finished):
    config, summary, *_ = experiment.read(finished)
    assert config["num_networks"] == 3
    angle = arrays(finished)["angle"].mean(0)
    assert summary["random"]["dimension"] == 64
    assert summary["random"]["mean_angle"] == stats.random_angle(64).mean()
    assert summary["before_training"]["angle"]["mean"] == pytest.approx(angle[0])
    assert summary["lowest"]["step"] == angle.argmin()
    assert summary["undirected"] == 0
    assert summary["last"]["loss"]["mean"] == pytest.approx(arrays(finished)["loss"][:, -1].mean())
    assert summary["directions"] == 3 * 5 * 40
    assert set(summary["versions"]) >= {"jax", "flax", "numpy"}
    assert set(summary) >= {"devices", "seconds", "git_commit", "batch_overlap"}


def test_the_figure_can_be_read_without_the_paper(finished):
    angles, shares, accuracies, attacked = figure(finished).axes
    assert "degrees" in angles.get_ylabel()
    assert attacked.get_xlabel() == "optimizer steps"
    assert "accuracy" in accuracies.get_ylabel()
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (angles, shares)]
    assert labels[0][:2] == ["signed angle, mean of 3 pairs (thin: all)", "folded angle, mean of 3 pairs"]
    assert labels[0][2:] == ["95 % interval", "random directions, mean", "random directions, 1% quantile"]
    assert labels[1] == ["of a direction, the same everywhere", "of images, cosine above 0", "95 % intervals"]
    assert "adam" in angles.get_title()


def test_attacks_are_reported_with_the_angle(finished, capsys):
    assert run(finished, *SMALL) == 0
    assert "that FGSM changes at step" in capsys.readouterr().out
    rows = list(csv.DictReader((finished / "trajectory.csv").open()))
    for t, row in enumerate(rows):
        rates = arrays(finished)["success"][:, t, 0, 1]
        assert float(row["success_transferred"]) == pytest.approx(np.nanmean(rates))
    *_, panel = figure(finished).axes
    assert "FGSM, epsilon 0.1" in panel.get_ylabel()
    assert len(panel.get_legend().get_texts()) == 4


def test_fewer_training_images_without_their_mean_in_many_epochs(tmp_path, capsys):
    fewer = ["--config.data.num_train=100", "--config.data.subtract_mean"]
    assert run(tmp_path, *SMALL, *fewer, "--config.batch_size=50", "--config.num_steps=20") == 0
    assert "digits: 100 training images of 10 classes" in capsys.readouterr().out
    assert experiment.read(tmp_path).summary["steps_per_epoch"] == 2
    axes = figure(tmp_path).axes
    assert "100 training images" in axes[0].get_title()
    assert axes[-1].get_xlabel() == "epochs"
    assert axes[0].get_lines()[0].get_xdata().max() == 10
    assert run(tmp_path / "more", *SMALL, "--config.data.num_train=3000") == 2
    assert "data.num_train: got 3000; there are " in capsys.readouterr().err


def test_a_single_pair_has_no_interval_in_any_file(tmp_path):
    assert run(tmp_path, *SMALL, "--config.num_networks=2") == 0
    assert json.loads((tmp_path / "summary.json").read_text())["before_training"]["angle"]["low"] is None
    labels = [text.get_text() for text in figure(tmp_path).axes[0].get_legend().get_texts()]
    assert "95 % interval" not in labels
    assert labels[1] == "folded angle, mean of 1 pair"


def test_a_run_again_gives_the_same_bytes(finished, tmp_path):
    assert run(tmp_path, *SMALL) == 0
    assert (tmp_path / "trajectory.npz").read_bytes() == (finished / "trajectory.npz").read_bytes()


def test_two_architectures_kept_examples_and_saved_networks(tmp_path):
    from orbax.checkpoint import v1 as ocp

    models = "--config.models=('mlp_shallow', 'mlp_deep')"
    assert run(tmp_path, *SMALL, models, "--config.keep_examples", "--config.save_networks") == 0
    run_arrays = arrays(tmp_path)
    assert run_arrays["angle_examples"].shape == (9, 5, 40)
    np.testing.assert_allclose(run_arrays["angle_examples"].mean(-1, dtype=np.float64), run_arrays["angle"])
    saved = ocp.load(tmp_path / "networks")
    assert saved["0"]["params"]["Dense_0"]["kernel"].shape == (3, 32, 64)
    labels = [text.get_text() for text in figure(tmp_path).axes[2].get_legend().get_texts()]
    assert labels[0].startswith("mlp_shallow, accuracy, mean of 3")


def test_convolutional_networks_in_groups_by_batch_statistics(shorten, tmp_path, capsys):
    shorten("conv_b", 2)
    flags = ["--config.models=('conv_b', 'mlp_shallow')", "--config.widths.mlp_shallow=(8,)"]
    flags += ["--config.widths.conv_b=(4, 4)", "--config.data.image_size=16", "--config.num_networks=2"]
    flags += ["--config.num_steps=2", "--config.num_examples=20", "--config.batch_size=8", "--config.group_size=1"]
    assert run(tmp_path / "running", *flags, "--config.attack.epsilon=0.0", "--config.save_networks") == 0
    assert "conv_b: 2 networks, 1 at once" in capsys.readouterr().out
    assert run(tmp_path / "batch", *flags, "--config.attack.epsilon=1e-7", "--config.batch_statistics") == 0
    running, batch = (arrays(tmp_path / name)["angle"] for name in ("running", "batch"))
    assert running.shape == (4, 3)
    assert np.isfinite(running[:, -1]).all()  # so narrow a network may begin without any direction
    assert not np.allclose(running[:, -1], batch[:, -1])
    assert folder.read_networks(tmp_path / "running")[0]["batch_stats"]
    # Attacked predictions go by the statistics of the clean ones.
    of_right_images = arrays(tmp_path / "batch")["success"][..., 1:]  # of those that are classified rightly
    assert np.nanmax(of_right_images) == 0


@pytest.mark.parametrize("name", ["noise", "digits"])
def test_data_without_meaning_runs(tmp_path, name):
    assert run(tmp_path, *SMALL, f"--config.data.name={name}", "--config.data.shuffle_labels") == 0


def test_what_was_found_is_said_in_words(capsys, tmp_path):
    assert run(tmp_path, *SMALL) == 0
    text = capsys.readouterr().out
    assert "step 0: angle" in text  # a line, since there is no terminal
    assert "before training" in text
    assert "of random pairs have an angle below this" in text
    assert "arly transferability" in text


def moments(angle, accuracy, classes=2):
    """The summary of a run of two networks."""
    angle, accuracy = np.array(angle), np.array(accuracy)
    steps = len(angle)
    run_arrays = {
        "step": np.arange(steps),
        "pair": np.array([[0, 1]]),
        "angle": angle[None],
        "accuracy": np.broadcast_to(accuracy, (2, steps)),
        "loss": np.ones((2, steps)),
        "model": np.zeros(2, int),
        "undirected": np.zeros((2, steps), int),
        "num_examples": np.array(10),
    }
    return trajectory.summarize(run_arrays, trajectory.curves(run_arrays), 3072, classes)


def words(summary):
    return early.tell(Results({}, summary, {}, {}))


def test_the_findings_follow_their_rules():
    summary = moments([89, 88, 87, 60, 50, 40], [0.5, 0.52, 0.5, 0.54, 0.7, 0.5])
    assert summary["first_below_random"]["step"] == 2
    assert summary["lowest_at_chance"]["step"] == 3  # step 5 is at chance again, after it was left
    assert summary["lowest"]["step"] == 5
    assert summary["early_transferability"]
    never = moments([89, 89, 60], [0.5, 0.6, 0.9])
    assert never["lowest_at_chance"]["step"] in (0, 1)
    assert not never["early_transferability"]
    assert "No early transferability" in words(never)
    assert moments([89, 89], [0.5, 0.5])["first_below_random"] is None
    assert "never" in words(moments([89, 89], [0.5, 0.5]))
    assert "Early transferability" in words(summary)


@pytest.mark.parametrize(("networks", "accuracy"), [(slice(0, 8, 2), 0.9), (3, np.nan)], ids=["learned", "lost"])
def test_the_selected_step_is_chosen_by_the_other_half_while_that_is_at_chance(networks, accuracy):
    rng = np.random.default_rng(0)
    pair, steps = np.stack(np.triu_indices(8, 1), 1), 6
    run_arrays = {
        "step": 10 * np.arange(steps),
        "pair": pair,
        "angle": rng.uniform(60, 80, (len(pair), steps)),
        "accuracy": np.full((8, steps), 0.5),
        "loss": np.ones((8, steps)),
        "model": np.zeros(8, int),
        "undirected": np.zeros((8, steps), int),
        "num_examples": np.array(10),
    }
    run_arrays["accuracy"][networks, 3:] = accuracy
    selected = trajectory.summarize(run_arrays, trajectory.curves(run_arrays), 3072, 2)["selected"]
    even, odd = ((pair % 2 == remainder).all(axis=1) for remainder in (0, 1))
    curves = [run_arrays["angle"][half].mean(0)[:3] for half in (even, odd)]  # no half is measured off chance
    chosen = [np.argmin(curve) for curve in curves]
    assert selected["steps"] == [10 * step for step in chosen]
    assert selected["mean"] == pytest.approx((curves[1][chosen[0]] + curves[0][chosen[1]]) / 2)
    assert selected["low"] < selected["mean"] < selected["high"]


def test_chance_is_narrow_where_there_are_many_classes():
    assert [trajectory.at_chance(1 / k) for k in (2, 10, 20, 100)] == [0.05, 0.05, 0.025, 0.005]
    summary = moments([89, 60, 50], [0.01, 0.014, 0.06], classes=100)
    assert summary["lowest_at_chance"]["step"] == 1
    assert "(0.010 +- 0.005)" in words(summary)


def test_what_is_nan_is_neither_at_chance_nor_low():
    gone = moments([89, 80, np.nan], [0.5, 0.5, np.nan])
    assert gone["lowest_at_chance"]["step"] == 1
    one_lost = moments([89, 60, 50], [[0.5, 0.5, 0.5], [0.5, np.nan, np.nan]])
    assert one_lost["lowest_at_chance"]["accuracy"]["mean"] == 0.5
    for accuracy in ([0.5, 0.9, 0.9], [0.5, 0.5, 0.9]):
        undirected = moments([np.nan, np.nan, 60], accuracy)
        assert undirected["early_transferability"] is None
        assert "No network had a direction while the accuracy was still at chance" in words(undirected)


def test_a_random_start_off_chance_is_not_learning():
    """Ten networks may begin at an accuracy above chance by luck; the steps after that still count."""
    assert moments([89, 60, 50], [0.6, 0.5, 0.5])["lowest_at_chance"]["step"] == 2


def bad_config(tmp_path, text, name="bad.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


def changed(**fields):
    """A config file whose fields, of any type, are the defaults but for those given (None: left out)."""
    return f"""
from ml_collections import ConfigDict
from jtrans.experiments import early
from jtrans.harness.fields import defaults

def get_config():
    fields = {{**defaults(early.FIELDS).to_dict(), **{fields!r}}}
    return ConfigDict({{name: value for name, value in fields.items() if value is not None}})
"""


FLAGS = [
    ("--config.models=('mlp_dep',)", "models: got ('mlp_dep',); it takes one or two of mlp_shallow, mlp_deep"),
    ("--config.models=('conv_a',) --config.data.image_size=8", "data.image_size: got 8, too small for conv_a"),
    ("--config.widths.resnet18=(8, 8)", "widths.resnet18: got (8, 8); it takes a tuple of whole numbers"),
    ("--config.widths.conv_b=(8, 8)", "widths.conv_b: got (8, 8)"),
    ("--config.group_size=-1", "group_size: got -1; it takes a whole number, 0 or more"),
    ("--config.models=('mlp_deep', 'mlp_deep', 'mlp_deep')", "one or two of"),
    ("--config.data.classes=('3',)", "data.classes: got only 3"),
    ("--config.data.classes=('3', 'three')", "data.classes: unknown class 'three'"),
    ("--config.num_steps=-5", "num_steps: got -5; it takes a whole number, 1 or more"),
    ("--config.num_steps=ten", "config.num_steps"),
    ("--config.num_networks=1", "num_networks: got 1; pairs"),
    ("--config.batch_size=5000", "batch_size: got 5000; the training examples are 1442"),
    ("--config.num_examples=5000", "num_examples: got 5000"),
    ("--config.data.image_size=1", "data.image_size: got 1; directions take images of 2 values or more"),
    ("--config.measure_every=0", "measure_every: got 0"),
    ("--config.optimizer.name=adamw", "optimizer.name: got 'adamw'; it takes one of adam, rmsprop, sgd, momentum"),
    ("--config.optimizer.learning_rate=-1", "optimizer.learning_rate: got -1.0; it takes a number above 0"),
    ("--config.optimizer.learning_rate=nan", "optimizer.learning_rate: got nan"),
    ("--config.initializer=xavier", "initializer: got 'xavier'; it takes one of pytorch, flax"),
    ("--config.widths.mlp_deep=(0,)", "widths.mlp_deep: got (0,)"),
    ("--config.data.image_size=0", "data.image_size: got 0"),
    ("--config.data.pixel_range=(1, 0)", "data.pixel_range: got (1, 0)"),
    ("--config.data.name=folder", "data.dir: no directory ''"),
    ("--config.data.name=cifar11", "data.name: 'cifar11' is none of"),
    ("--config.data.dir=nowhere --config.data.name=cifar10", "data.dir: no directory 'nowhere'"),
    ("--config.num_setps=3", "num_setps: unknown config field; did you mean num_steps?"),
    ("--config.optimiser.name=sgd", "optimiser.name: unknown config field; did you mean optimizer.name?"),
    ("--config.seed=-1", "seed: got -1"),
    ("--worksdir=x", "worksdir"),
    ("extra", "argument 'extra'"),
]


@pytest.mark.parametrize(("flags", "message"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_a_bad_setting_is_one_line_and_status_2(tmp_path, capsys, flags, message):
    flags = flags.split(" --")
    assert run(tmp_path / "run", flags[0], *(f"--{flag}" for flag in flags[1:])) == 2
    assert_one_line(capsys, message)


def assert_one_line(capsys, message):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("early.py: error: ")
    assert err.count("\n") == 1
    assert message in err


CONFIGS = [
    ("def get_config(:\n", "does not load (SyntaxError"),
    ("import nothing_of_that_name\n", "does not load (ModuleNotFoundError"),
    ("x = 1\n", "does not load (AttributeError"),
    ("def get_config():\n    return {'seed': 0}\n", "no ml_collections.ConfigDict"),
    (changed(learning_rate=1), "learning_rate: unknown config field; did you mean optimizer.learning_rate?"),
    (changed(seed=None), "seed: missing from the config"),
    (changed(models="mlp_deep"), "models: got 'mlp_deep'; it takes one or two of"),
    (changed(num_steps=2.5), "num_steps: got 2.5"),
    (changed(keep_examples=1), "keep_examples: got 1; it takes True or False"),
    (changed() + "\n\nget_config().seed = 'x'\n", "field 'seed'"),
]


@pytest.mark.parametrize(("text", "message"), CONFIGS, ids=[message for _, message in CONFIGS])
def test_a_bad_config_file_is_one_line_and_status_2(tmp_path, capsys, text, message):
    assert run(tmp_path / "run", config=bad_config(tmp_path, text)) == 2
    assert_one_line(capsys, message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("nowhere.py", "--config: got 'nowhere.py', and there is no such file"),
        ("", "--config: got ''; it takes"),
        (".", "--config: got '.'; it takes"),
        ("digit", "--config: got 'digit'; did you mean digits?"),
        (str(ROOT / "README.md"), "FILE.py"),
    ],
)
def test_a_config_that_is_no_python_file_is_named(tmp_path, capsys, config, message):
    assert run(tmp_path / "run", config=config) == 2
    assert_one_line(capsys, message)


def test_a_config_that_comes_with_jtrans_is_known_by_its_name(tmp_path, finished):
    assert run(tmp_path, *SMALL, config="digits") == 0
    assert (tmp_path / "config.json").read_bytes() == (finished / "config.json").read_bytes()


def test_an_unknown_case_is_named(tmp_path, capsys):
    assert run(tmp_path / "run", config=f"{ROOT / 'configs' / 'cases.py'}:99") == 2
    assert_one_line(capsys, "no case '99'; the cases are 1, 2")


def test_a_corrupt_image_is_named(tmp_path, capsys):
    for c in ("cat", "dog"):
        (tmp_path / "images" / c).mkdir(parents=True)
        (tmp_path / "images" / c / "0.png").write_bytes(b"no image")
    flags = ["--config.data.name=folder", f"--config.data.dir={tmp_path / 'images'}"]
    assert run(tmp_path / "run", *flags) == 2
    assert "error: data." in capsys.readouterr().err


def test_a_workdir_of_another_config_is_refused_and_kept(finished, capsys):
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    assert run(finished, *SMALL, "--config.seed=1", "--config.optimizer.name=sgd") == 2
    assert_one_line(capsys, "optimizer.name (adam there, sgd here), seed (0 there, 1 here)")
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_a_run_that_failed_leaves_no_claim_on_its_workdir(tmp_path):
    assert run(tmp_path, *SMALL, "--config.data.classes=('0', 'zero')") == 2
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert run(tmp_path, *SMALL) == 0


def test_a_workdir_that_cannot_be_used_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == 2
    assert_one_line(capsys, "--workdir")
    (tmp_path / "other").mkdir()
    for content in (b"[]", b"null", b"{", b'{"mine": 1}', b"\xff\xfe"):
        (tmp_path / "other" / "config.json").write_bytes(content)
        assert run(tmp_path / "other") == 2
        assert_one_line(capsys, "--workdir")
        assert (tmp_path / "other" / "config.json").read_bytes() == content
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert run(tmp_path / "run") == 2
    assert_one_line(capsys, "holds summary.json but no config.json")


def test_networks_that_jtrans_did_not_write_are_not_deleted(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    networks = tmp_path / "run" / "networks"
    networks.mkdir()
    (networks / "mine.npz").write_text("mine")
    assert run(tmp_path / "run", *SMALL, "--config.num_steps=5") == 2
    assert_one_line(capsys, "networks holds mine.npz, which jtrans did not write")
    shutil.rmtree(networks)
    networks.symlink_to(tmp_path)
    assert run(tmp_path / "run", *SMALL, "--config.num_steps=5") == 2
    assert_one_line(capsys, "networks is a link")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "figure.png").write_text("mine")
    assert run(tmp_path / "other", *SMALL) == 2
    assert_one_line(capsys, "holds figure.png but no config.json")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EBADF])
def test_a_file_system_that_grants_no_lock_is_said(tmp_path, capsys, monkeypatch, code):
    """As NFS does for a file that is open for reading alone (EBADF), or without its lock service (ENOLCK)."""

    def flock(opened, operation):
        reading = fcntl.fcntl(opened, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if code == errno.ENOLCK or reading:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert run(tmp_path, *SMALL) == 0
    said = capsys.readouterr().err
    assert ("cannot be locked (" in said) == (code == errno.ENOLCK)


def test_a_run_does_not_resume_on_other_images(tmp_path, capsys):
    images = tmp_path / "images"
    rng = np.random.default_rng(0)
    for c in ("cat", "dog"):
        (images / c).mkdir(parents=True)
        for i in range(10):
            PIL.Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(images / c / f"{i}.png")
    flags = [*SMALL, "--config.data.name=folder", f"--config.data.dir={images}", "--config.batch_size=8"]
    flags += ["--config.num_examples=4"]
    assert run(tmp_path / "run", *flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["class_names"], summary["input_shape"]) == (["cat", "dog"], [8, 8, 3])
    PIL.Image.new("RGB", (8, 8)).save(images / "cat" / "3.png")
    capsys.readouterr()
    assert run(tmp_path / "run", *flags, "--config.num_steps=6") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"was made from other data (SHA-256 {summary['data_sha256'][:12]}... there" in said
    PIL.Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(images / "cat" / "3.png")


def test_a_checkout_that_is_not_installed_runs_to_its_end(tmp_path, monkeypatch):
    version = runtime.metadata.version

    def installed(name):
        if name == "jtrans":
            raise runtime.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(runtime.metadata, "version", installed)
    assert run(tmp_path, *SMALL) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["versions"]["jtrans"]


def test_the_command_line_itself(capsys):
    """In a process of its own: status 2, one line, no traceback; and in this one the help."""
    script = [sys.executable, str(ROOT / "experiments" / "early.py")]
    bad = subprocess.run([*script, f"--config={DIGITS}", "--config.num_steps=0"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "early.py: error: num_steps: got 0; it takes a whole number, 1 or more\n"
    assert cli.run(early.EXPERIMENT, ["early.py"]) == 2
    assert cli.run(early.EXPERIMENT, ["early.py", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--config.FIELD" in text
    assert "adversarial directions" in text


@pytest.mark.slow
def test_every_case_runs_on_cifar10(shared_data, tmp_path):
    for case in "12345":
        size = ["--config.num_steps=1", "--config.num_networks=2", f"--config.data.dir={shared_data / 'tfds'}"]
        assert run(tmp_path / case, *size, config=f"{ROOT / 'configs' / 'cases.py'}:{case}") == 0
        assert abs(arrays(tmp_path / case)["angle"][:, 0].mean() - 89.2) < 1
