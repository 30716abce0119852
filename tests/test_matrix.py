import csv
import itertools
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import scipy.optimize
import scipy.stats
from conftest import ROOT

from jtrans import attacks, data, metrics, models
from jtrans.experiments import early, matrix
from jtrans.harness import cli, experiment, folder
from jtrans.harness.fields import defaults

SIZES = ["--config.data.image_size=8", "--config.num_examples=40"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trained = tmp_path_factory.mktemp("trained")
    flags = ["--config.num_networks=2", "--config.num_steps=40", "--config.save_networks", "--config.measure_every=40"]
    flags += ["--config.widths.mlp_deep=(32, 16)", "--config.attack.epsilon=0.0", *SIZES]
    flags.append(f"--workdir={trained / 'run'}")
    assert cli.run(early.EXPERIMENT, ["early.py", f"--config={ROOT / 'configs' / 'digits.py'}", *flags]) == 0
    # A state dict of another architecture, as a PyTorch user saves it.
    model = models.build("mlp_shallow", (8, 8, 1), 10, widths=(24,))
    layers = model.init(jax.random.key(5))["params"]
    arrays = {
        f"{2 * i}.{theirs}": np.asarray(layer[ours])
        for i, layer in enumerate(layers.values())
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    }
    np.savez(trained / "theirs.npz", **arrays)
    return trained


def share_interval(rates):
    """Wilson's interval of the mean of rates, as many trials as its standard error says, and Student's quantile."""
    share, error = rates.mean(), scipy.stats.sem(rates)
    trials = share * (1 - share) / error**2
    quantile = scipy.stats.t.ppf(0.975, len(rates) - 1)
    beyond = lambda p: (share - p) ** 2 - quantile**2 * p * (1 - p) / trials
    return scipy.optimize.brentq(beyond, 0, share, xtol=1e-14), scipy.optimize.brentq(beyond, share, 1, xtol=1e-14)


@pytest.mark.parametrize("seeds", [None, 4])
def test_the_table_has_a_row_for_each_attack_source_and_target(seeds):
    rng = np.random.default_rng(0)
    names, lead = ["a", "long name"], () if seeds is None else (seeds,)
    count = rng.integers(5, 20, size=(2, *lead, 2, 2, 3))
    successes = rng.integers(count + 1)
    unmoved = rng.integers(5, size=(2, *lead, 2))
    matrices = {
        name: metrics.SuccessMatrix(successes[i] / count[i], count[i], unmoved[i])
        for i, name in enumerate(("fgsm", "virtual"))
    }
    table = matrix.table(matrices, names)
    ends = ("", "_low", "_high", "_count")
    columns = [name + end for name in matrix.RATES for end in ends]
    assert table.columns.tolist() == ["attack", "source", "target", "unmoved", *columns]
    rows = itertools.product(enumerate(matrices), enumerate(names), enumerate(names))
    for row, ((a, attack), (s, source), (t, target)) in enumerate(rows):
        assert [table[name][row] for name in ("attack", "source", "target")] == [attack, source, target]
        assert table["unmoved"][row] == unmoved[a, ..., s].mean()
        for k, name in enumerate(matrix.RATES):
            of, among = successes[a, ..., s, t, k], count[a, ..., s, t, k]
            if seeds is None:
                interval = scipy.stats.binomtest(of, among).proportion_ci(method="wilson")
            else:
                interval = share_interval(of / among)
            want = [np.mean(of / among), *interval, np.mean(among)]
            np.testing.assert_allclose([table[name + end][row] for end in ends], want, rtol=1e-9, atol=1e-12)


def change_summary(run_folder, **fields):
    """Fields of a run's summary, changed, or left out where None."""
    path = run_folder / "summary.json"
    summary = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in summary.items() if value is not None}))


def refused(workdir, capsys, entries, *arguments):
    """The one line with which the entries are refused."""
    assert run(workdir, entries, *arguments) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    return err


def run(workdir, entries, *arguments):
    flags = [f"--config={ROOT / 'configs' / 'matrix.py'}", f"--workdir={workdir}", f"--config.networks={entries!r}"]
    widths = "--config.widths.mlp_shallow=(24,)"
    return cli.run(matrix.EXPERIMENT, ["matrix.py", *flags, *SIZES, widths, *arguments])


def test_the_matrix_of_saved_and_of_pytorchs_networks(trained, tmp_path, capsys):
    entries = (str(trained / "run"), f"mlp_shallow={trained / 'theirs.npz'}")
    assert run(tmp_path, entries, "--config.attack.epsilon=0.2", "--config.attack.steps=3") == 0
    assert "pgd: errors in % of the images" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "matrix.csv").open()))
    names = ["run/mlp_deep-0", "run/mlp_deep-1", "theirs/mlp_shallow"]
    assert len(rows) == 4 * 9
    assert list(dict.fromkeys(row["source"] for row in rows)) == names
    for row in rows:
        if row["target_right_count"] != "0":
            assert float(row["target_right_low"]) <= float(row["target_right"]) <= float(row["target_right_high"])
    own = [row for row in rows if row["attack"] == "pgd" and row["source"] == row["target"] == names[0]]
    assert float(own[0]["target_right"]) > 0.5

    # One entry by hand: FGSM from the first network on the second.
    saved = folder.read_networks(trained / "run")[0]
    model = models.build("mlp_deep", (8, 8, 1), 10, widths=(32, 16))
    first, second = (partial(model.apply, jax.tree.map(lambda leaf, i=i: leaf[i], saved)) for i in range(2))
    test = data.balanced(data.load("digits", jax.random.key(0), image_size=8).test, 40, "num_examples")
    x = jnp.asarray(test.images, jnp.float32) / 255
    moved = attacks.fgsm(0.2)(first, x, test.labels)
    right, wrong = second(x).argmax(1) == test.labels, second(moved).argmax(1) != test.labels
    (row,) = [r for r in rows if (r["attack"], r["source"], r["target"]) == ("fgsm", names[0], names[1])]
    assert float(row["target_right"]) == pytest.approx(float(wrong[right].mean()))
    assert int(row["target_right_count"]) == int(right.sum())

    panels = matrix.draw(experiment.read(tmp_path))["figure"].axes
    assert [axes.get_title() for axes in panels[:4]] == ["fgsm", "pgd", "mi_fgsm", "virtual"]


def test_networks_of_one_name_are_told_apart_by_the_folders_above(trained, tmp_path):
    entries = [tmp_path / name for name in ("a/run", "b/run", "b/seed=0")]
    for entry in entries:
        shutil.copytree(trained / "run", entry)
    few = ["--config.num_examples=10", "--config.attacks=('fgsm',)"]
    assert run(tmp_path / "matrix", tuple(map(str, entries)), *few) == 0
    table = folder.read_table(tmp_path / "matrix" / "matrix.csv")
    names = [f"{label}/mlp_deep-{i}" for label in ("a/run", "b/run", "seed=0") for i in range(2)]
    assert list(dict.fromkeys(table["source"].tolist())) == names
    assert len(table) == len(names) ** 2


@pytest.mark.parametrize(
    ("entries", "labels"),
    [
        (("run", "x/other"), ("run", "other")),
        (("a/run", "b/run", "b/other"), ("a/run", "b/run", "other")),
        (("a/x/run", "b/x/run"), ("a/x/run", "b/x/run")),
        (("x/run", "a/x/run", "run"), ("{here}/x/run", "a/x/run", "{here}/run")),
        (("lenet=a/net.npz", "conv_a=b/net.npz", "lenet=net.v1.npz"), ("a/net", "b/net", "net.v1")),
        (("net", "lenet=net.npz"), ("net", "net")),  # what follows tells them apart: net/mlp_deep-0, net/lenet
    ],
)
def test_labels_are_the_shortest_that_differ(tmp_path, monkeypatch, entries, labels):
    monkeypatch.chdir(tmp_path)
    labels = tuple(label.format(here=tmp_path.name) for label in labels)
    assert tuple(matrix.labels(entries).values()) == labels


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((), "networks: got (); it takes a tuple of run folders"),
        (("nowhere",), "networks: nowhere is no run's folder"),
        (("vgg12=x.npz",), "networks: got 'vgg12=x.npz'; the architectures are mlp_shallow"),
        (("lenet=x.npz",), "networks: lenet=x.npz cannot be read"),
        (("x", "x"), "networks: got 'x' and 'x', which are the same; it takes each once"),
        (("x", "./y/../x"), "networks: got 'x' and './y/../x', which are the same"),
        (("lenet=x.npz", "lenet=./x.npz"), "networks: got 'lenet=x.npz' and 'lenet=./x.npz', which are the same"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, entries, message):
    assert message in refused(tmp_path, capsys, entries)


def test_a_mean_image_cannot_be_subtracted(trained, tmp_path, capsys):
    entry = f"mlp_shallow={trained / 'theirs.npz'}"
    message = refused(tmp_path, capsys, (entry,), "--config.data.subtract_mean")
    assert "data.subtract_mean: got True; saved networks hold no mean image to subtract, so False" in message


@pytest.mark.parametrize("name", ["run", "theirs"])
def test_networks_of_other_classes_are_refused(trained, tmp_path, capsys, name):
    entry = {"run": str(trained / "run"), "theirs": f"mlp_shallow={trained / 'theirs.npz'}"}[name]
    message = refused(tmp_path, capsys, (entry,), "--config.data.classes=('1', '2')")
    assert f"networks: {entry} tells 10 classes apart; the images have 2 classes" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": list("0123456798")}, "its class 8 is '9', where the images have '8'"),
        ({"image_shape": [8, 8, 3]}, "was trained on images of shape [8, 8, 3]; these have shape [8, 8, 1]"),
        ({"class_names": None}, "has no class_names in its summary.json: made by an earlier version of jtrans; run it"),
        ({"image_shape": None}, "has no image_shape in its summary.json: made by an earlier version of jtrans; run it"),
    ],
)
def test_a_run_on_other_images_is_refused_before_any_attack(trained, tmp_path, capsys, monkeypatch, fields, message):
    run_folder = shutil.copytree(trained / "run", tmp_path / "run")
    change_summary(run_folder, **fields)
    monkeypatch.setattr(matrix.metrics, "success_matrix", None)
    assert message in refused(tmp_path / "matrix", capsys, (str(run_folder),))


def only_config(content):
    return lambda path: [shutil.rmtree(path), path.mkdir(), (path / "config.json").write_text(content)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (only_config('{"model_type": "bert"}'), "config.json cannot be read (it names no experiment"),
        (only_config('{"experiment": "control", "models": ["mlp_deep"]}'), "holds no saved networks; name a run with"),
        (only_config('{"experiment": "x", "models": 3, "widths": null, "data": "x"}'), "holds no saved networks"),
        (only_config("[1, 2]"), "config.json cannot be read (it holds no JSON object)"),
        (only_config("{"), "config.json cannot be read (Expecting"),
        (lambda path: shutil.rmtree(path / "networks"), "holds no saved networks"),  # as of a control run
        (lambda path: (path / "summary.json").write_text("{"), "summary.json cannot be read (Expecting"),
        (lambda path: (path / "summary.json").unlink(), "summary.json cannot be read ([Errno 2]"),
        (lambda path: [shutil.rmtree(path / "networks"), (path / "networks").mkdir()], "networks cannot be read"),
    ],
)
def test_a_folder_without_networks_is_named_in_one_line(trained, tmp_path, capsys, damage, message):
    run_folder = shutil.copytree(trained / "run", tmp_path / "run")
    damage(run_folder)
    err = refused(tmp_path / "matrix", capsys, (str(run_folder),))
    assert f"networks: {run_folder}" in err
    assert message in err


def test_the_top_folder_of_a_knowledge_run_is_refused(trained, tmp_path, capsys):
    """Its config has architectures and widths but no `data`, and its `networks/` holds folders of runs."""
    config = {"experiment": "knowledge", **defaults(matrix.FIELDS).to_dict(), "models": ["mlp_deep"]}
    del config["data"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copytree(trained / "run", tmp_path / "networks" / "mlp_deep")
    message = refused(tmp_path / "matrix", capsys, (str(tmp_path),))
    assert "holds no saved networks; name a run with --config.save_networks, or a folder in networks/" in message


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.touch(), "is no npz file that can be read"),
        (lambda path: path.write_text("words"), "is no npz file that can be read"),
        (lambda path: np.savez(path, **{"0.weight": np.array(["x"])}), "holds '0.weight' of <U1"),
        (lambda path: np.savez(path, **{"0.weight": np.ones((10, 64))}), "got 1 layers with weights"),
    ],
)
def test_a_file_that_is_no_state_dict_is_named_in_one_line(tmp_path, capsys, write, message):
    path = tmp_path / "theirs.npz"
    write(path)
    err = refused(tmp_path / "matrix", capsys, (f"mlp_shallow={path}",))
    assert f"networks: mlp_shallow={path} cannot be read" in err
    assert message in err


def test_a_state_dict_for_other_images_is_refused_before_any_attack(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(matrix.metrics, "success_matrix", None)
    message = refused(tmp_path, capsys, (f"mlp_shallow={trained / 'theirs.npz'}",), "--config.data.image_size=16")
    assert "holds arrays of other shapes than mlp_shallow of widths (24,) for images of shape (16, 16, 1)" in message


def success_table(count, attacks=("fgsm", "pgd")):
    """Made-up rates of so many networks, where the last is never right."""
    names = np.array([f"run/mlp_deep-{i}" for i in range(count)])
    rates = np.random.default_rng(0).uniform(size=(len(attacks), count, count))
    rates[:, :, -1] = np.nan
    columns = {"attack": np.repeat(attacks, count**2), "source": np.tile(np.repeat(names, count), len(attacks))}
    columns |= {"target": np.tile(names, count * len(attacks)), "all_images_count": np.full(rates.size, 200)}
    columns |= {f"target_right{bound}": rates.ravel() for bound in ("", "_low", "_high")}
    return rates, pandas.DataFrame(columns)


def heat_maps(table):
    return matrix.heat_maps(table, 0.1, defaults(matrix.FIELDS).data.to_dict())


@pytest.mark.parametrize("count", [6, 24, 25, 100])
def test_the_figure_of_many_networks_is_a_heat_map_of_one_size(count):
    rates, table = success_table(count)
    figure = heat_maps(table)
    panels = figure.axes[:2]
    for axes, rate in zip(panels, rates, strict=True):
        np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), 100 * rate)
        labels = [label.get_text() for label in axes.get_xticklabels()]
        named = dict(zip(axes.get_xticks().tolist(), labels, strict=True))
        assert all(name == f"run/mlp_deep-{tick}" for tick, name in named.items())
        texts = {text.get_text().partition("\n")[0]: text.get_color() for text in axes.texts}
        if count <= 24:
            assert len(named) == count
            assert len(axes.texts) == count**2
            assert texts["-"] == "k"  # on white
        else:
            assert len(named) in range(5, 9)
            assert not axes.texts
    if count > 24:
        smallest = heat_maps(success_table(25)[1])
        np.testing.assert_array_equal(figure.get_size_inches(), smallest.get_size_inches())
        assert max(figure.get_size_inches()) < 15
    assert ("±" in figure.get_suptitle()) == (count <= 24)
    assert ("white: the target gets no image right" in figure.get_suptitle()) == (count > 24)
