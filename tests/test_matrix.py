import csv
import importlib
import itertools
import json
import shutil
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import PIL.Image
import pytest
import scipy.optimize
import scipy.stats
from conftest import ROOT
from ml_collections import ConfigDict

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


def wilson(share, error, freedom):
    """Wilson's interval of a share, as many trials as its standard error says, and Student's quantile."""
    trials = share * (1 - share) / error**2
    quantile = scipy.stats.t.ppf(0.975, freedom)
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
                interval = wilson(np.mean(of / among), scipy.stats.sem(of / among), seeds - 1)
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
    x = jnp.asarray(test.inputs, jnp.float32) / 255
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


def test_networks_of_several_runs_share_their_programs(trained, tmp_path):
    config = defaults(matrix.FIELDS)
    config.networks = (str(trained / "run"), str(shutil.copytree(trained / "run", tmp_path / "copy")))
    networks = matrix.read_all(config, data.load("digits", jax.random.key(0), image_size=8))
    assert [network.kind for network in networks] == ["run/mlp_deep"] * 2 + ["copy/mlp_deep"] * 2
    assert len({jax.tree.structure(network.function) for network in networks}) == 1


@pytest.mark.parametrize(
    ("entries", "labels"),
    [
        (("run", "x/other"), ("run", "other")),
        (("a/run", "b/run", "b/other"), ("a/run", "b/run", "other")),
        (("a/x/run", "b/x/run"), ("a/x/run", "b/x/run")),
        (("x/run", "a/x/run", "run"), ("{here}/x/run", "a/x/run", "{here}/run")),
        (("lenet=a/net.npz", "conv_a=b/net.npz", "lenet=net.v1.npz"), ("a/net", "b/net", "net.v1")),
        (("net", "lenet=net.npz"), ("net", "net")),  # what follows tells them apart: net/mlp_deep-0, net/lenet
        (("timm:vit=a/w.pth", "torchvision:vit=b/w.pt"), ("a/w", "b/w")),
        (("mine:first", "mine:second", "x/run"), ("first", "second", "run")),
        (("mine:net", "my.own:net", "x/net"), ("mine/net", "own/net", "x/net")),
        (("mine:net", "mine/net"), ("mine/net", "{here}/mine/net")),  # as long as the other's tail
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
        (("vgg12=x.npz",), "networks: got 'vgg12=x.npz'; no architecture vgg12; did you mean vgg11?"),
        (("torchvison:resnet18=x.pth",), "no library torchvison; did you mean torchvision?"),
        (("timm:resnet18",), "networks: got 'timm:resnet18'; it takes a file of weights too, as timm:resnet18=weights"),
        (("mine:a", "mine:a"), "networks: got 'mine:a' and 'mine:a', which are the same; it takes each once"),
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
        ({"input_shape": [8, 8, 3]}, "was trained on images of shape [8, 8, 3]; these have shape [8, 8, 1]"),
        ({"class_names": None}, "has no class_names in its summary.json: made by an earlier version of jtrans; run it"),
        ({"input_shape": None}, "has no input_shape in its summary.json: made by an earlier version of jtrans; run it"),
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
    return matrix.heat_maps(table, 0.1, defaults(matrix.FIELDS).data.to_dict(), over="images")


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
    assert ("white: the target gets none of the images right" in figure.get_suptitle()) == (count > 24)


SIZE, EPSILON = 8, 8.5 / 255
OWN = """
import numpy as np

def weights(seed, classes=5):
    return np.random.default_rng(seed).normal(size=(192, classes)).astype(np.float32)

def linear(*arguments):
    w = weights(*arguments)
    return lambda x: x.reshape(len(x), -1) @ w

def first(): return linear(0)
def second(): return linear(1)
def third(): return linear(2)
def wide(): return linear(3, 7)
def flat(): return lambda x: x.sum((1, 2, 3))
def nothing(): return None
def broken(): raise RuntimeError("no weights\\nhere")
def for_larger(): return lambda x: x.reshape(len(x), -1) @ np.ones((768, 5), np.float32)
"""


def own_weights(seed):
    return np.random.default_rng(seed).normal(size=(192, 5)).astype(np.float32)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module of linear networks, and a table of 12 images, each of which one network gets right."""
    (tmp_path / "own_networks.py").write_text(OWN)
    (tmp_path / "needs_more.py").write_text("import no_such_package")
    rng = np.random.default_rng(0)
    (tmp_path / "table" / "images").mkdir(parents=True)
    rows = ["filename,label,targeted_label"]
    for i, pixels in enumerate(rng.integers(256, size=(12, SIZE, SIZE, 3), dtype=np.uint8)):
        PIL.Image.fromarray(pixels).save(tmp_path / "table" / "images" / f"{i}.png")
        label = (pixels.ravel() / 255 @ own_weights(i % 3)).argmax()
        rows.append(f"{i}.png,{label},{(label + 1 + i % 3) % 5}")
    (tmp_path / "table" / "labels.csv").write_text("\n".join(rows))
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_table(workdir, entries, *arguments):
    flags = ["--config.data.name=table", "--config.data.dir=table", "--config.num_examples=12"]
    flags += ["--config.attacks=('fgsm',)", f"--config.attack.epsilon={EPSILON}"]
    return run(workdir, entries, *flags, *arguments)


def by_hand(source, targets, x, labels, target_labels=None, levels=None):
    """FGSM on a linear network in float64, and the successes and their number for each target and denominator."""
    logits = x @ source
    softmax = np.exp(logits - logits.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    aim = labels if target_labels is None else target_labels
    gradient = (softmax - np.eye(5)[aim]) @ source.T
    step = EPSILON if levels is None else levels / 255
    adversarial = np.clip(x + (1 if target_labels is None else -1) * step * np.sign(gradient), 0, 1)
    cells = []
    for target in targets:
        predicted = (adversarial @ target).argmax(1)
        success = predicted != labels if target_labels is None else predicted == target_labels
        clean = (x @ target).argmax(1) == labels
        sets = np.ones(len(x), bool), clean, clean & (logits.argmax(1) == labels)
        cells.append([(int(success[among].sum()), int(among.sum())) for among in sets])
    return adversarial, cells


@pytest.mark.parametrize(("form", "targeted", "rounded"), [("png", False, True), ("float", True, False)])
def test_attacks_on_a_table_are_those_by_hand(own, capsys, form, targeted, rounded):
    names = ["first", "second", "third"]
    flags = [f"--config.attack.targeted={targeted}", f"--config.attack.round_8bit={rounded}"]
    entries = tuple(f"own_networks:{name}" for name in names)
    assert of_table("out", entries, *flags, "--config.ensemble", f"--config.keep_images={form}") == 0
    words = ("target labels predicted" if targeted else "errors") + " in % of the images that the target gets right"
    assert words in capsys.readouterr().out

    pixels = np.stack([np.asarray(PIL.Image.open(own / "table" / "images" / f"{i}.png")) for i in range(12)])
    x, rows = pixels.reshape(12, -1) / 255, folder.read_table(own / "table" / "labels.csv")
    labels, target_labels = rows["label"].to_numpy(), rows["targeted_label"].to_numpy() if targeted else None
    weights = [own_weights(seed) for seed in range(3)]
    attack = partial(by_hand, x=x, labels=labels, target_labels=target_labels, levels=8 if rounded else None)
    wanted = {name: attack(w, weights) for name, w in zip(names, weights, strict=True)}
    of_others = []
    for i, name in enumerate(names):
        adversarial, cells = attack(np.mean(weights[:i] + weights[i + 1 :], 0, np.float64), weights[i : i + 1])
        wanted[f"all but {name}"] = adversarial, None
        of_others += cells

    table = folder.read_table(own / "out" / "matrix.csv")
    assert table["source"].tolist() == [name for name in (*names, "all others") for _ in names]
    assert table["target"].tolist() == 4 * names
    cells = [cell for name in names for cell in wanted[name][1]] + of_others
    for row, cell in enumerate(cells):
        for rate, (successes, count) in zip(matrix.RATES, cell, strict=True):
            assert table[f"{rate}_count"][row] == count
            if count:
                interval = scipy.stats.binomtest(successes, count).proportion_ci(method="wilson")
                got = [table[f"{rate}{end}"][row] for end in ("", "_low", "_high")]
                np.testing.assert_allclose(got, [successes / count, *interval], atol=1e-12)

    for name, (adversarial, _) in wanted.items():
        kept = own / "out" / "images" / "fgsm" / name
        assert len(list(kept.iterdir())) == 12
        for i in range(12):
            if form == "png":
                image = np.asarray(PIL.Image.open(kept / f"{i}.png"))
                np.testing.assert_array_equal(image.ravel(), np.rint(255 * adversarial[i]))
            else:
                image = np.load(kept / f"{i}.npy")
                assert image.dtype == np.float32
                assert image.shape == (SIZE, SIZE, 3)
                np.testing.assert_allclose(image.ravel(), adversarial[i], atol=1e-6)


def test_pngs_of_images_that_are_not_rounded_stay_in_the_ball(own):
    assert of_table("out", ("own_networks:first",), "--config.keep_images=png") == 0
    for path in (own / "out" / "images" / "fgsm" / "first").iterdir():
        clean = np.asarray(PIL.Image.open(own / "table" / "images" / path.name)).astype(int)
        assert np.abs(np.asarray(PIL.Image.open(path)) - clean).max() == 8


@pytest.mark.parametrize(
    ("entries", "flags", "message"),
    [
        (("own_network:first",), (), "networks: own_network:first: no module own_network; did you mean own_networks?"),
        (("own_networks:fist",), (), "own_networks:fist: own_networks has no function fist; did you mean first?"),
        (("needs_more:net",), (), "needs_more:net fails for images of shape (8, 8, 3) (ModuleNotFoundError: No module"),
        (("own_networks:broken",), (), "(RuntimeError: no weights here)"),
        (("own_networks:nothing",), (), "own_networks:nothing fails for images of shape (8, 8, 3) (TypeError: "),
        (("own_networks:for_larger",), (), "own_networks:for_larger fails for images of shape (8, 8, 3) ("),
        (
            ("own_networks:flat",),
            (),
            "own_networks:flat returns shape (2,) for images of shape (2, 8, 8, 3); a network",
        ),
        (
            ("own_networks:first", "own_networks:wide"),
            (),
            "wide tells 7 classes apart, first 5; it takes networks of the",
        ),
        (
            ("own_networks:first",),
            ("--config.ensemble",),
            "ensemble: got True and only the network first; it takes two",
        ),
        (("own_networks:first",), ("--config.data.classes=('0', '1')",), "data.classes: got ('0', '1'); a table is"),
        (("own_networks:first",), ("--config.data.name=digits", "--config.attack.targeted"), "so data.name=table"),
        (
            ("own_networks:first",),
            ("--config.attack.targeted", "--config.attacks=('pgd', 'virtual')"),
            "attacks: got virtual, which ignores labels",
        ),
        (
            ("own_networks:first",),
            ("--config.keep_images=jpg",),
            "keep_images: got 'jpg'; it takes '' for none, or one of float, png",
        ),
    ],
)
def test_bad_input_with_a_table_is_one_line_before_any_attack(own, capsys, monkeypatch, entries, flags, message):
    monkeypatch.setattr(matrix.metrics, "success_matrix", None)
    assert of_table("out", entries, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_labels_beyond_the_networks_and_missing_targets_are_refused(own, capsys):
    csv_file = own / "table" / "labels.csv"
    csv_file.write_text("filename,label\n0.png,1\n1.png,5\n")
    assert of_table("out", ("own_networks:first",), "--config.num_examples=2") == 2
    assert "line 3 (1.png): label is 5; the networks tell 5 classes apart, so it takes 0 to" in capsys.readouterr().err
    assert of_table("out", ("own_networks:first",), "--config.num_examples=2", "--config.attack.targeted") == 2
    assert "labels.csv in table has no column targeted_label; add it, or" in capsys.readouterr().err


HOST = """
from functools import partial
import numpy as np
from jtrans import host

W = np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)
calls = 0

def forward(x, most):
    global calls
    calls += 1
    if calls > most:
        raise RuntimeError("the GPU is\\nlost")
    return x.reshape(len(x), -1) @ W

def vjp(x, u):
    return (u @ W.T).reshape(x.shape)

def healthy(): return host.function(partial(forward, most=1e6), vjp, None, 5)
def loses(): return host.function(partial(forward, most=4), vjp, None, 5)
"""


def test_a_network_on_the_host_is_attacked_and_one_that_raises_is_named(own, capsys):
    pytest.importorskip("jtrans.host")
    (own / "on_host.py").write_text(HOST)
    assert of_table("out", ("own_networks:first", "on_host:healthy")) == 0
    table = folder.read_table(own / "out" / "matrix.csv")  # of the same weights
    for name in matrix.RATES:
        assert len(set(table[name])) == 1
        assert table[name][0] > 0
    assert of_table("lost", ("on_host:loses",)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: the GPU is lost" in line


def of_library(own, library, name):
    """A small network of torchvision or timm, its weights in a file."""
    torch, module = (pytest.importorskip(name) for name in ("torch", library))
    torch.manual_seed(0)
    build = module.create_model if library == "timm" else module.models.get_model
    model = build(name, num_classes=5).eval()
    torch.save(model.state_dict(), own / "weights.pth")
    return torch, model


@pytest.mark.parametrize(
    ("library", "name", "mean", "std"),
    [
        ("torchvision", "shufflenet_v2_x0_5", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("timm", "test_resnet.r160_in1k", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_a_network_of_a_library_computes_what_pytorch_does(own, library, name, mean, std):
    torch, model = of_library(own, library, name)
    (network,) = matrix.read_all(
        ConfigDict({"networks": (f"{library}:{name}=weights.pth",)}),
        data.Dataset(None, data.Split(np.zeros((1, 64, 64, 3)), None), (), ""),
    )
    assert (network.name, network.num_classes) == (f"weights/{name}", 5)
    x = np.random.default_rng(0).uniform(size=(3, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.tensor(((x - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(network.function(jnp.array(x)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("torchvision:resnet19=weights.pth", "torchvision has no resnet19; did you mean resnet18?"),
        ("torchvision:shufflenet_v2_x0_5=none.pth", "none.pth holds no state dict ("),
        ("torchvision:shufflenet_v2_x0_5=own_networks.py", "own_networks.py holds no state dict ("),
        ("torchvision:resnet18=weights.pth", "Error(s) in loading state_dict for ResNet: Missing key(s)"),
    ],
)
def test_a_wrong_network_of_torchvision_is_named_in_one_line(own, capsys, entry, message):
    of_library(own, "torchvision", "shufflenet_v2_x0_5")
    assert of_table("out", (entry,)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_library_that_is_not_installed_is_named(own, capsys):
    if importlib.util.find_spec("timm"):
        pytest.skip("timm is here")
    assert of_table("out", ("timm:resnet18=weights.pth",)) == 2
    assert (
        "timm:resnet18=weights.pth: it takes timm (No module named 'timm'); pip install timm" in capsys.readouterr().err
    )


def test_kinds_of_networks_have_intervals_over_their_seeds():
    rng = np.random.default_rng(0)
    kinds = ["a", "a", "a", "b", "b", "b", "b", "given"]
    rate, count = rng.uniform(0.2, 0.8, size=(8, 8, 3)), rng.integers(10, 20, size=(8, 8, 3))
    unmoved = rng.integers(5, size=8)
    table = matrix.of_kinds({"pgd": metrics.SuccessMatrix(rate, count, unmoved)}, kinds)
    members = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in ("a", "b", "given")}
    for row, (source, target) in enumerate(itertools.product(members, members)):
        assert [table[name][row] for name in ("attack", "source", "target")] == ["pgd", source, target]
        pairs = [(i, j) for i in members[source] for j in members[target] if i != j]
        got = np.array([[table[f"{name}{end}"][row] for end in ("", "_low", "_high")] for name in matrix.RATES])
        if not pairs:
            assert np.isnan(got).all()
            continue
        assert table["unmoved"][row] == pytest.approx(np.mean([unmoved[i] for i, _ in pairs]))
        assert table["both_right_count"][row] == pytest.approx(np.mean([count[*p, 2] for p in pairs]))
        for k, (mean, low, high) in enumerate(got):
            values = {p: rate[*p, k] for p in pairs}
            assert mean == pytest.approx(np.mean(list(values.values())))
            parts, freedoms = [], []  # of the variance, from each kind that has several networks
            for kind in sorted({source, target} - {"given"}):
                n = len(members[kind])
                without = [np.mean([v for p, v in values.items() if i not in p]) for i in members[kind]]
                parts.append((n - 1) * np.var(without))
                freedoms.append(n - 1)
            freedom = sum(parts) ** 2 / sum(v**2 / f for v, f in zip(parts, freedoms, strict=True))
            np.testing.assert_allclose([low, high], wilson(mean, np.sqrt(sum(parts)), freedom), rtol=1e-9)
