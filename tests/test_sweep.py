import csv

import pytest
import sweep
from conftest import ROOT

from jtrans import cli, early, results

SMALL = [
    "--config.num_networks=2",
    "--config.num_steps=2",
    "--config.num_examples=20",
    "--config.data.image_size=8",
    "--config.widths.mlp_deep=(16, 8)",
]


def run(workdir, *arguments):
    flags = [f"--config={ROOT / 'configs' / 'digits.py'}", f"--workdir={workdir}", *SMALL, *arguments]
    return cli.run(sweep.main, ["sweep.py", *flags], sweep.OPTIONS)


def test_settings_in_shards_are_finished_once_and_come_together_in_a_table(tmp_path, capsys):
    varied = "--sweep=optimizer.learning_rate=1e-3,1 seed=0,1"
    assert run(tmp_path, varied, "--shard=1/3") == 0
    said = capsys.readouterr().out
    assert "1 of 4 settings are finished" in said
    first = tmp_path / "optimizer.learning_rate=0.001,seed=1"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [first.name]
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
        _, _, summary = results.read(workdir)
        assert float(r["angle_mean"]) == summary["lowest_at_chance"]["angle"]["mean"]

    (first / "summary.json").write_text("{")
    capsys.readouterr()
    assert run(tmp_path, varied, "--shard=0/4") == 2  # its own setting is another
    assert f"sweep.py: error: --workdir: {first / 'summary.json'} cannot be read" in capsys.readouterr().err


def test_architectures_can_vary(tmp_path):
    assert run(tmp_path, "--sweep=models=('mlp_shallow',),('mlp_deep','mlp_shallow')") == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "models=(mlp_deep, mlp_shallow)",
        "models=(mlp_shallow,)",
    ]


def test_the_sweep_of_a_run_keeps_the_runs_own_figure(tmp_path):
    """Both in one work directory, as by default; and values that differ in `/` alone have directories of their own."""
    flags = [f"--config={ROOT / 'configs' / 'digits.py'}", f"--workdir={tmp_path}", *SMALL]
    assert cli.run(early.run, ["early.py", *flags]) == 0
    figure = (tmp_path / "figure.png").read_bytes()
    assert run(tmp_path, "--sweep=data.dir='/x/a','/x_a'") == 0  # the digits need no directory
    assert (tmp_path / "figure.png").read_bytes() == figure
    folders = [path for path in tmp_path.iterdir() if path.name.startswith("data.dir=")]
    assert sorted(results.read_config(folder)["data"]["dir"] for folder in folders) == ["/x/a", "/x_a"]
    assert [row["data.dir"] for row in csv.DictReader((tmp_path / "sweep.csv").open())] == ["/x/a", "/x_a"]


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
    assert cli.run(sweep.main, ["sweep.py", "--help"], sweep.OPTIONS, several=True) == 0
    said = capsys.readouterr().out
    assert "--sweep" in said
    assert "--coordinator" in said
