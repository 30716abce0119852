import csv

import pytest
import sweep
from conftest import ROOT

from jtrans import cli, results

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
    assert (tmp_path / "figure.png").exists()
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


def test_architectures_can_vary(tmp_path):
    assert run(tmp_path, "--sweep=models=('mlp_shallow',),('mlp_deep','mlp_shallow')") == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "models=(mlp_deep, mlp_shallow)",
        "models=(mlp_shallow,)",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--sweep: got ''"),
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
    assert cli.run(sweep.main, ["sweep.py", "--help"], sweep.OPTIONS) == 0
    said = capsys.readouterr().out
    assert "--sweep" in said
    assert "--coordinator" in said
