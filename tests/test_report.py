"""The page of any runs: whole, in one file, and right about what it holds."""

import base64
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest
from conftest import ROOT

from jtrans import experiments, report
from jtrans.experiments import early
from jtrans.harness import cli, experiment, folder
from jtrans.harness.fields import defaults

SMALL = ["--config.num_networks=3", "--config.num_steps=2", "--config.num_examples=20", "--config.data.image_size=8"]
SMALL += ["--config.widths.mlp_deep=(16, 8)", "--config.batch_size=32"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("first", 0), ("second <&>", 1)):
        flags = [f"--config={ROOT / 'configs' / 'digits.py'}", f"--config.seed={seed}", f"--workdir={folder / name}"]
        assert cli.run(early.EXPERIMENT, ["early.py", *flags, *SMALL]) == 0
    return folder


class Page(HTMLParser):
    """What a page shows and links to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.text, self.cells, self.open, self.viewport = [], [], "", [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        own = dict(attributes)
        self.links += [own[name] for name in ("src", "href") if name in own]
        if tag == "img":
            self.images.append(own)
        if own.get("name") == "viewport":
            self.viewport = own["content"]

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] == ["td"]:
            self.cells.append(data)


def test_the_page_holds_everything_and_loads_nothing(runs, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert report.main([str(runs), f"--out={out}"]) == 0
    assert "2 runs" in capsys.readouterr().out
    text = out.read_text()
    page = Page(text)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert page.viewport == "width=device-width, initial-scale=1"  # a phone shows it at its own width
    assert "img { max-width: 100%" in text
    assert page.text.count("second <&>") == 2  # the link and the heading; names are escaped
    assert str(runs) not in text
    # Both runs in one figure, then the figure of each, byte for byte.
    assert [image["alt"] for image in page.images] == [
        "2 runs in one figure",
        "figure of first",
        "figure of second <&>",
    ]
    own = [base64.b64decode(image["src"].partition(",")[2]) for image in page.images]
    assert own[1] == (runs / "first" / "figure.png").read_bytes()
    assert own[0][:4] == b"\x89PNG"
    assert early.EXPERIMENT.tell(experiment.read(runs / "first")) in page.text
    summary = json.loads((runs / "first" / "summary.json").read_text())
    for value in (summary["versions"]["jax"], "optimizer.learning_rate", "data.image_size"):
        assert value in page.cells
    table = folder.read_table(runs / "first" / "trajectory.csv")
    assert f"{table['angle'][1]:.6g}" in page.cells
    (csv,) = [link for link in page.links if link.startswith("data:text/csv")][:1]
    assert base64.b64decode(csv.partition(",")[2]) == (runs / "first" / "trajectory.csv").read_bytes()


def test_one_run_needs_no_contents(runs, tmp_path):
    assert report.main([str(runs / "first"), str(runs / "first"), f"--out={tmp_path / 'r.html'}"]) == 0
    assert len(Page((tmp_path / "r.html").read_text()).images) == 1


TOY = """
'''A toy that <holds> runs.'''

import pandas
from matplotlib.figure import Figure

from jtrans.harness import fields
from jtrans.harness.experiment import Experiment, Results

FIELDS = {"seed": fields.seed()}


def measure(config, workdir):
    table = pandas.DataFrame({"<i>name": ['"a" & <b>', "nan"], "value": [1 / 3, float("nan")], "count": [2**60, 0]})
    return Results(config, {"words": "1 < 2 & </pre><img src=x>"}, {"toy": table}, {})


def draw(results):
    figure = Figure()
    figure.subplots().plot([0, 1])
    return {"toy": figure}


EXPERIMENT = Experiment("toy", FIELDS, measure, lambda results: results.summary["words"], draw, holds_runs=True)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An experiment that is found by its module's name, as those of jtrans are."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "toy.py").write_text(TOY)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path / "modules")])
    yield experiment.load("toy")
    del sys.modules["jtrans.experiments.toy"], experiments.toy


def test_a_folder_of_runs_is_shown_and_so_are_the_runs_in_it_each_as_its_experiment_tells_it(runs, tmp_path, toy):
    experiment.run(toy, defaults(toy.fields), tmp_path / "all")
    shutil.copytree(runs / "first", tmp_path / "all" / "case")
    # The networks that a run trains for itself: a run like any other, without a figure.
    shutil.copytree(runs / "first", tmp_path / "all" / "case" / "networks" / "stage")
    (tmp_path / "all" / "case" / "networks" / "stage" / "figure.png").unlink()
    assert report.main([str(tmp_path / "all"), f"--out={tmp_path / 'r.html'}"]) == 0
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert re.findall("<h2>(.*)</h2>", text) == ["all", "all/case"]
    assert [image["alt"] for image in page.images] == ["toy of all", "figure of case"]
    assert "A toy that <holds> runs." in page.text
    assert "1 < 2 & </pre><img src=x>" in page.text
    for cell in ('"a" & <b>', "0.333333", "nan", str(2**60)):
        assert cell in page.cells
    assert "<i>name" in page.text


def test_a_folder_of_an_earlier_version_is_refused(runs, tmp_path, capsys):
    old = shutil.copytree(runs / "first", tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    del config["experiment"]
    (old / "config.json").write_text(json.dumps(config))
    line = refused(capsys, [str(old), f"--out={tmp_path / 'r.html'}"])
    assert str(old) in line
    assert "an earlier version of jtrans wrote it" in line


def test_runs_of_other_images_are_not_drawn_together(runs, tmp_path):
    other = shutil.copytree(runs / "first", tmp_path / "other")
    summary = json.loads((other / "summary.json").read_text())
    summary["random"]["dimension"] = 3072
    (other / "summary.json").write_text(json.dumps(summary))
    assert report.main([str(runs / "first"), str(other), f"--out={tmp_path / 'r.html'}"]) == 0
    alts = [image["alt"] for image in Page((tmp_path / "r.html").read_text()).images]
    assert alts == ["figure of first", "figure of other"]


def test_runs_of_the_same_name_are_told_apart_by_their_folders_and_nothing_above_them_is_shown(runs, tmp_path):
    for label in ("a/first", "b/c/first"):
        shutil.copytree(runs / "first", tmp_path / "private" / label)
    changed = tmp_path / "private" / "a" / "first" / "summary.json"
    summary = json.loads(changed.read_text())
    summary["config"] |= {"more": [["/private/x.npz"], "lenet=/private/b=c.npz", "lenet=x.npz"]}
    summary["config"]["data"]["dir"] = "/private/images"
    changed.write_text(json.dumps(summary))
    assert report.main([str(tmp_path / "private"), f"--out={tmp_path / 'r.html'}"]) == 0
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert page.images[0]["alt"] == "2 runs in one figure"
    for label in ("a/first", "b/c/first"):
        assert text.count(f">{label}<") == 2
    assert "private" not in text
    assert "…/images" in page.cells
    assert '[["…/x.npz"], "lenet=…/b=c.npz", "lenet=x.npz"]' in page.cells


DAMAGES = {
    "summary.json": ["", "{", "[]", "{}", '{"random": null}', '{"files": 3}', '{"files": ["lost.csv"]}'],
    "config.json": ["", "null", "{}", '{"experiment": "erly"}', '{"experiment": null}'],
    "trajectory.csv": ["", "step,angle\n", "step,angle\n1,2\n3"],
    "trajectory.npz": ["", "words", None],
}


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, contents in DAMAGES.items() for c in contents])
def test_one_damaged_folder_among_several_is_named(runs, tmp_path, capsys, name, content):
    damaged = shutil.copytree(runs / "first", tmp_path / "damaged")
    if content is None:
        whole = (damaged / name).read_bytes()
        (damaged / name).write_bytes(whole[: len(whole) // 2])
    else:
        (damaged / name).write_text(content)
    for folders in ([str(runs), str(damaged)], [str(damaged)]):
        assert str(damaged) in refused(capsys, [*folders, f"--out={tmp_path / 'r.html'}"])
    assert not (tmp_path / "r.html").exists()


def refused(capsys, arguments):
    """The one line with which the arguments are refused."""
    with pytest.raises(SystemExit) as stop:
        report.main(arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert len(err.splitlines()) == 1
    return err


def test_the_page_takes_the_place_of_a_regular_file_alone(runs, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is no regular file" in refused(capsys, [str(runs), f"--out={tmp_path / 'pipe'}"])
    (tmp_path / "page.html").write_text("before")
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    assert report.main([str(runs), f"--out={tmp_path / 'link.html'}"]) == 0
    assert (tmp_path / "link.html").is_symlink()
    assert "jtrans" in (tmp_path / "page.html").read_text()


def test_bad_input_is_one_line(tmp_path, capsys, runs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "nowhere: no finished run is there"),
        ([], "the following arguments are required: folders"),
        ([str(runs), f"--out={tmp_path / 'no' / 'r.html'}"], f"there is no directory {tmp_path / 'no'}"),
        ([str(runs), "--out=."], "--out: . is a directory; name a file, as report.html"),
        ([str(runs), f"--out={'a' * 300}"], f"--out: {tmp_path / ('a' * 300)} cannot be written"),
        (["a" * 300], f"{'a' * 300}: no finished run is there"),
    ):
        assert message in refused(capsys, arguments)
