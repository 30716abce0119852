"""The page of any runs: whole, in one file, and right about what it holds."""

import base64
import json
import shutil
from html.parser import HTMLParser

import pytest
from conftest import ROOT

from jtrans import cli, early, report, results

SMALL = ["--config.num_networks=3", "--config.num_steps=2", "--config.num_examples=20", "--config.data.image_size=8"]
SMALL += ["--config.widths.mlp_deep=(16, 8)", "--config.batch_size=32"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("first", 0), ("second <&>", 1)):
        flags = [f"--config={ROOT / 'configs' / 'digits.py'}", f"--config.seed={seed}", f"--workdir={folder / name}"]
        assert cli.run(early.run, ["early.py", *flags, *SMALL]) == 0
    return folder


class Page(HTMLParser):
    """What a page shows and links to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.text, self.cells, self.open = [], [], "", [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        own = dict(attributes)
        self.links += [own[name] for name in ("src", "href") if name in own]
        if tag == "img":
            self.images.append(own)

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
    assert str(runs / "second <&>") in page.text  # names are escaped
    # Both runs in one figure, then the figure of each, byte for byte.
    assert [image["alt"] for image in page.images] == [
        "2 runs in one figure",
        "figure of first",
        "figure of second <&>",
    ]
    own = [base64.b64decode(image["src"].partition(",")[2]) for image in page.images]
    assert own[1] == (runs / "first" / "figure.png").read_bytes()
    assert own[0][:4] == b"\x89PNG"
    assert report.tell(runs / "first") in page.text
    summary = json.loads((runs / "first" / "summary.json").read_text())
    for value in (summary["versions"]["jax"], "optimizer.learning_rate", "data.image_size"):
        assert value in page.cells
    table = results.read_table(runs / "first" / "trajectory.csv")
    assert f"{table['angle'][1]:.6g}" in page.cells
    (csv,) = [link for link in page.links if link.startswith("data:text/csv")][:1]
    assert base64.b64decode(csv.partition(",")[2]) == (runs / "first" / "trajectory.csv").read_bytes()


def test_one_run_needs_no_contents(runs, tmp_path):
    assert report.main([str(runs / "first"), str(runs / "first"), f"--out={tmp_path / 'r.html'}"]) == 0
    assert len(Page((tmp_path / "r.html").read_text()).images) == 1


def test_runs_of_the_same_name_are_told_apart(runs, tmp_path):
    again = shutil.copytree(runs / "first", tmp_path / "first")
    assert report.main([str(runs / "first"), str(again), f"--out={tmp_path / 'r.html'}"]) == 0
    assert Page((tmp_path / "r.html").read_text()).images[0]["alt"] == "2 runs in one figure"


def test_bad_input_is_one_line(tmp_path, capsys, runs):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("figure.png", "trajectory.csv", "config.json", "trajectory.npz"):
        (broken / name).write_bytes((runs / "first" / name).read_bytes())
    (broken / "summary.json").write_text("{}")
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "nowhere: no finished run is there"),
        ([], "the following arguments are required: folders"),
        ([str(broken)], "another version of jtrans made it"),
        ([str(runs), f"--out={tmp_path / 'no' / 'r.html'}"], "r.html cannot be written"),
    ):
        with pytest.raises(SystemExit) as stop:
            report.main(arguments)
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert len(err.splitlines()) == 1
        assert message in err
