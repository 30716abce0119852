"""Sources, a reference, new last layers and attacks, on small data."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
import pandas
import PIL.Image
import pytest
import scipy.stats
from conftest import ROOT, free_port, xla_flags
from jax.tree_util import Partial

from jtrans import attacks, data, directions, metrics, models, stats, training, transfer
from jtrans.experiments import knowledge, matrix
from jtrans.experiments.knowledge import measures, sources, words
from jtrans.experiments.knowledge.figures import SHOWN
from jtrans.harness import cli, experiment, fields, folder
from jtrans.population import engine

SMALL = [
    "--config.sources=(('mlp_shallow',), ('mlp_deep',), ('lenet',))",
    # Of the same sizes, so that their programs are compiled once.
    "--config.widths.mlp_shallow=(32, 16)",
    "--config.widths.mlp_deep=(32, 16)",
    "--config.widths.lenet=(3, 4, 12, 8)",
    "--config.reference=mlp_shallow",
    "--config.num_networks=2",
    "--config.num_references=2",
    "--config.source.name=digits",
    "--config.source.classes=('0', '1', '2', '3', '4')",
    "--config.source.image_size=16",
    "--config.target.name=digits",
    "--config.target.classes=('5', '6', '7', '8', '9')",
    "--config.target.image_size=16",
    "--config.num_epochs=2",
    "--config.reference_epochs=3",
    "--config.refit_epochs=2",
    "--config.batch_size=32",
    "--config.num_examples=30",
    "--config.attack.steps=3",
]


def command(workdir, *arguments):
    # A tuple given twice would be added up.
    fields = {flag.partition("=")[0]: flag for flag in (*SMALL, *arguments)}
    config = workdir.parent / "config.py"
    config.write_text(
        "from jtrans.experiments import knowledge\nfrom jtrans.harness.fields import defaults\n\n\n"
        "def get_config():\n    config = defaults(knowledge.FIELDS)\n    config.sources = ()\n    return config\n"
    )
    return ["knowledge.py", f"--config={config}", f"--workdir={workdir}", *fields.values()]


def run(workdir, *arguments):
    return cli.run(knowledge.EXPERIMENT, command(workdir, *arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert run(workdir) == 0
    return workdir


def test_the_run_leaves_every_source_with_every_measure(finished, capsys):
    table = folder.read_table(finished / "knowledge.csv")
    assert table["source"].tolist() == ["mlp_shallow"] * 2 + ["mlp_deep"] * 2 + ["lenet"] * 2
    assert set(words.CAPTIONS) <= set(table)
    for name in ("pgd_liang_tau2_S_T", "virtual_tau1_T_S", "cka", "transfer_accuracy", "pgd_liang_success_T_S"):
        assert ((table[name] >= 0) & (table[name] <= 1.0001)).all(), name
    assert (table["transfer_accuracy"] > 0.3).all()  # of five digits, from features of five others
    assert (table["reference_accuracy"] > 0.35).all()
    summary = json.loads((finished / "summary.json").read_text())
    assert [row["source"] for row in summary["sources"]] == ["mlp_shallow", "mlp_deep", "lenet"]
    assert {row["measure"] for row in summary["correlations"]} == set(words.CAPTIONS)
    assert run(finished) == 0  # finished: told again
    assert "correlations with the transfer loss over 3 sources" in capsys.readouterr().out
    panels = knowledge.draw(experiment.read(finished))["figure"].axes
    assert all(axes.get_ylabel() == "transfer loss (nats)" for axes in panels[:-1])


MANY = (
    "--config.sources="
    + repr(tuple(("mlp_deep", c, 0.0, 0, i % 2) for i, c in enumerate(itertools.combinations("01234", 3)))),
    "--config.contrast=('0', '1', '2', '3', '4')",
    "--config.matrix=False",
    "--config.source.num_train=300",  # of as many images each, of digits that are not equally many
    "--config.num_epochs=1",
    "--config.reference=mlp_deep",
    "--config.strata=parity",
)


@pytest.fixture(scope="module")
def contrasted(tmp_path_factory):
    """Ten sources of one architecture on three of five digits, and two targets."""
    workdir = tmp_path_factory.mktemp("contrasted") / "run"
    assert run(workdir, *MANY) == 0
    return workdir


def told(change, seeds=3, sources=5, contrast=False, references=4):
    """Random measures of sources, changed; and of each its summary, line and panel's title; and all figures."""
    rng = np.random.default_rng(0)
    domains = ("target", "contrast")[: 1 + contrast]
    index = [(f"source {i}", domain, seed) for i in range(sources) for domain in domains for seed in range(seeds)]
    columns = dict(zip(("source", "domain", "seed"), map(list, zip(*index, strict=True)), strict=True))
    names = ("transfer_loss", "transfer_accuracy", "sgd_accuracy", *words.CAPTIONS)
    columns |= {"lost": [""] * len(index)} | {name: rng.random(len(index)) for name in names}
    columns["stratum"] = np.zeros(len(index), int)
    change(columns)
    table = pandas.DataFrame(columns)
    attacked = metrics.SuccessMatrix(rng.random((seeds, 1, 1, 3)), np.full((seeds, 1, 1, 3), 4), np.zeros((seeds, 1)))
    frames = {"knowledge": table, "matrix": matrix.table({"fgsm_liang": attacked}, ["source 0"])}
    summary = words.summarize(table, rng) | {"attacked": {d: {"images": 4, "references": [0.5]} for d in domains}}
    config, summary = fields.defaults(knowledge.FIELDS).to_dict(), folder.plain(summary)
    config |= {"strata": "parity", "num_references": references}
    results = experiment.Results(config, summary, frames, {})
    lines, figures = knowledge.tell(results).splitlines(), knowledge.draw(results)
    panels = figures["figure"].axes[:-1]
    titles = {name: axes.get_title() for name, axes in zip(SHOWN, panels, strict=True)}
    return (
        columns,
        figures,
        lambda name: (
            next(row for row in summary["correlations"] if row["measure"] == name),
            next(line for line in lines if line.startswith(words.CAPTIONS[name] + "  ")),
            titles.get(name, ""),
        ),
    )


def test_sources_without_a_value_are_left_out_of_the_correlation_and_named():
    def change(table):
        table["logme"][[0, 3, 4, 5]] = np.nan  # one value of the first source, all of the second
        table["leep"][:9] = np.nan
        table["gbc"][:] = 7

    table, _, of = told(change)
    row, line, title = of("logme")
    assert (row["left_out"], row["missing"]) == (["source 1"], 4)
    of_seeds = [np.where(np.isnan(table["logme"]), np.nan, table[name]) for name in ("logme", "transfer_loss")]
    means = [np.nanmean(values.reshape(5, 3)[[0, 2, 3, 4]], axis=1) for values in of_seeds]
    assert row["pearson"]["mean"] == pytest.approx(np.corrcoef(*means)[0, 1])
    for text in (line, title):
        assert text.endswith("(4 values missing; without 1: source 1)")
    row, line, title = of("leep")
    assert row["left_out"] == ["source 0", "source 1", "source 2"]
    for text in (line, title):
        assert "fewer than 3 sources have values" in text
        assert "(9 values missing; without 3: source 0, source 1, source 2)" in text
    row, line, title = of("gbc")
    assert row["left_out"] == []
    assert line.endswith("the same for every source")
    assert title == "the same for every source"
    assert [row[kind] for row in (row, of("leep")[0]) for kind in ("pearson", "spearman")] == [None] * 4
    row, line, title = of("cka")
    assert row["missing"] == 0
    assert "missing" not in line + title


def test_a_transfer_loss_that_is_the_same_for_every_source_is_told_as_such():
    *_, of = told(lambda table: table["transfer_loss"].fill(0.1))
    _, line, title = of("cka")
    assert line.endswith("the transfer loss is the same for every source")
    assert title == "the transfer loss is the same for every source"


@pytest.mark.parametrize("seeds", [1, 2])
def test_intervals_are_shown_where_there_are_several_seeds(seeds):
    _, figures, _ = told(lambda table: None, seeds)
    across, up = (
        [segment for c in axes.collections for segment in c.get_segments()] for axes in figures["figure"].axes[:2]
    )
    assert (len(across) > 0) == (len(up) > 0) == (seeds > 1)
    assert figures["matrix"].get_suptitle().endswith("test images" + "; ±: 95 % interval over 2 seeds" * (seeds > 1))
    labels = [text.get_text() for text in figures["figure"].axes[-1].get_legend().get_texts()]
    assert ("95 % interval, 2 seeds,\nspread pooled over sources" in labels) == (seeds > 1)


def test_the_matrix_has_as_many_seeds_as_there_are_references():
    _, figures, _ = told(lambda table: None, seeds=3, references=2)
    assert figures["matrix"].get_suptitle().endswith("; ±: 95 % interval over 2 seeds")


def test_sources_without_strata_have_no_panel_of_them(finished):
    shown = knowledge.draw(experiment.read(finished))["figure"].axes
    assert [axes.get_xlabel() for axes in shown[-2:]] == ["accuracy of the source", ""]  # the last has the legend


def test_lost_sources_have_rows_that_say_so_and_the_others_go_on(finished, tmp_path, capsys):
    """One diverges and one dies, in training on the disk; everything after it is made again."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for name in ("knowledge.csv", "matrix.csv", "summary.json"):
        (workdir / name).unlink()
    # The second seed of the one diverges, both of the other die or grow beyond what a head can be fitted to.
    seed = lambda leaf, values: np.reshape(values, (-1, *[1] * (leaf.ndim - 1))).astype(leaf.dtype)
    spoil = {
        "mlp_deep": lambda leaf: leaf * seed(leaf, [1, np.nan]),
        "lenet": lambda leaf: leaf * seed(leaf, [0, 1e3]),
    }
    for name, change in spoil.items():
        (variables,) = folder.read_networks(workdir / "networks" / name)
        folder.write_networks(workdir / "networks" / name, [jax.tree.map(change, variables)])
        shutil.rmtree(workdir / "refitted" / name)
        (workdir / "attacked" / f"{name}.csv").unlink()
    assert run(workdir) == 0
    said = capsys.readouterr().out
    assert "mlp_deep, seed 1: diverged; it is left out" in said
    assert "left out: mlp_deep, seed 1 (diverged); lenet, seed 0 (dead); lenet, seed 1 (not refitted)" in said
    table, before = (folder.read_table(path / "knowledge.csv") for path in (workdir, finished))
    assert table["lost"].tolist() == ["", "", "", "diverged", "dead", "not refitted"]
    for name in set(words.OF_TARGET) | {"transfer_loss", "sgd_loss"}:
        assert np.isnan(table[name][3:]).all(), name
        np.testing.assert_array_equal(table[name][:3], before[name][:3], err_msg=name)
    matrix = folder.read_table(workdir / "matrix.csv")
    attacked_by = lambda source, target: (matrix["source"] == source) & (matrix["target"] == target)
    assert (matrix["unmoved"][attacked_by("lenet", "reference")] == 30).all()
    assert (matrix["unmoved"][attacked_by("mlp_deep", "reference")] == 15).all()  # of one seed in two
    assert (matrix["all_images_count"][attacked_by("mlp_deep", "reference")] == 15).all()
    assert (matrix["all_images_count"][attacked_by("lenet", "reference")] == 0).all()
    columns = [name for name in matrix if name in (*attacks.DENOMINATORS, "all_images")]
    assert columns
    assert matrix[columns][attacked_by("lenet", "reference")].isna().all(axis=None)
    # The one seed that is left of it, and none of what does not predict.
    assert (matrix["all_images_count"][attacked_by("reference", "mlp_deep")] == 15).all()
    assert (matrix["all_images_count"][attacked_by("reference", "lenet")] == 0).all()


def test_a_lost_reference_is_left_out_and_named(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for path in (
        *(workdir / name for name in ("knowledge.csv", "matrix.csv", "summary.json")),
        *workdir.glob("attacked/*"),
    ):
        path.unlink()
    shutil.rmtree(workdir / "refitted")
    (variables,) = folder.read_networks(workdir / "networks" / "reference")
    second = lambda leaf: np.where(np.arange(2).reshape(-1, *[1] * (leaf.ndim - 1)) == 1, np.nan, leaf)
    folder.write_networks(workdir / "networks" / "reference", [jax.tree.map(second, variables)])
    assert run(workdir) == 0
    said = capsys.readouterr().out
    assert "target, reference 1: diverged; it is left out" in said
    assert "accuracy of the references 0." in said
    assert ", lost\n" in said
    table, before = (folder.read_table(path / "knowledge.csv") for path in (workdir, finished))
    for name in ("lost", "transfer_loss", "transfer_accuracy", "logme", "leep", "h_score", "gbc", "sgd_loss"):
        np.testing.assert_array_equal(table[name], before[name], err_msg=name)
    for name in words.OF_TARGET:  # by the one reference that is left
        assert np.isfinite(table[name]).all(), name
    assert (table["pgd_liang_tau1_S_T"] != before["pgd_liang_tau1_S_T"]).all()
    matrix, whole = (folder.read_table(path / "matrix.csv") for path in (workdir, finished))
    among = (matrix["source"] != "reference") & (matrix["target"] != "reference")
    np.testing.assert_array_equal(matrix["target_right"][among], whole["target_right"][among])


@pytest.mark.slow
def test_class_names_of_any_kind_and_length_stay_in_the_work_directory(tmp_path):
    rng, names = np.random.default_rng(0), [f"{c * 70}.." for c in "abcde"]
    for c in names:
        (tmp_path / "images" / c).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "images" / c / f"{i}.png")
    mixtures = (tuple(names), tuple(names[:4]), tuple(names[1:]))
    listed = tuple(("mlp_shallow", classes) for classes in mixtures)
    flags = [f"--config.sources={listed!r}", "--config.num_examples=10"]
    flags += ["--config.source.classes=()", "--config.target.classes=()", "--config.batch_size=8"]
    flags += [f"--config.{s}.{k}" for s in ("source", "target") for k in ("name=folder", f"dir={tmp_path / 'images'}")]
    assert run(tmp_path / "run", *flags) == 0
    assert len(list((tmp_path / "run" / "networks").iterdir())) == 4
    table = folder.read_table(tmp_path / "run" / "knowledge.csv")
    assert set(table["source"].tolist()) == {"+".join(mixture) for mixture in mixtures}


@pytest.mark.slow
def test_a_run_killed_at_every_stage_ends_with_the_same_numbers(contrasted, tmp_path):
    """SIGKILL as soon as a stage leaves its first file: in training, trained, refitted, attacked, told."""
    workdir = tmp_path / "run"
    line = [sys.executable, str(ROOT / "experiments" / "knowledge.py"), *command(workdir, *MANY)[1:]]
    for stage in (
        "networks/reference/checkpoints",
        "contrast/networks/reference/networks",
        "networks/0+1+2/networks",
        "networks/0+1+2/summary.json",
        "refitted/0+1+2/networks",
        "contrast/refitted/0+1+3/summary.json",
        "attacked/0+1+3.csv",
        "contrast/attacked/2+3+4.csv",
        "knowledge.csv",
    ):
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (workdir / stage).exists():
                assert process.poll() is None, stage
                time.sleep(0.01)
            process.kill()
    trained = (workdir / "networks" / "0+1+3" / "summary.json").stat().st_mtime_ns
    assert subprocess.run(line).returncode == 0
    assert (workdir / "networks" / "0+1+3" / "summary.json").stat().st_mtime_ns == trained
    assert (workdir / "knowledge.csv").read_bytes() == (contrasted / "knowledge.csv").read_bytes()


@pytest.mark.slow
def test_a_job_of_two_processes_gives_what_one_gives(finished, tmp_path):
    """It makes all stages of one source, and finds those of the others."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for path in ("networks/lenet", "refitted/lenet"):
        shutil.rmtree(workdir / path)
    for name in ("knowledge.csv", "matrix.csv", "summary.json", "attacked/lenet.csv"):
        (workdir / name).unlink()
    port = free_port()
    line = [sys.executable, str(ROOT / "experiments" / "knowledge.py"), *command(workdir)[1:]]
    line += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"XLA_FLAGS": xla_flags(1)}
    job = [subprocess.Popen([*line, f"--process_id={i}"], env=environment, **options) for i in range(2)]
    said = [process.communicate()[0] for process in job]
    assert [process.returncode for process in job] == [0, 0], said
    assert "lenet: attacked on the target" in said[0]
    assert "mlp_deep: attacked" not in said[0]
    for name in ("knowledge.csv", "matrix.csv"):
        table, whole = (folder.read_table(path / name) for path in (workdir, finished))
        pandas.testing.assert_frame_equal(table, whole, rtol=1e-3)


def test_taus_and_success_agree_with_float64(finished):
    """PGD and everything after it in NumPy, for one trained source and reference, from the same random start."""
    config = json.loads((finished / "config.json").read_text())
    of = {name: folder.read_networks(finished / "networks" / name)[0] for name in ("mlp_deep", "reference")}
    layers = {
        name: [
            {k: np.float64(a[1]) for k, a in layer.items()}
            for _, layer in sorted(jax.device_get(variables)["params"].items())
        ]
        for name, variables in of.items()
    }

    def forward(name, x):
        kept = []
        for layer in layers[name]:
            kept.append(x)
            x = x @ layer["kernel"].T + layer["bias"]
            x = np.maximum(x, 0) if layer is not layers[name][-1] else x
        return x, kept

    def gradient(name, x, y):
        logits, kept = forward(name, x)
        p = np.exp(logits - logits.max(1, keepdims=True))
        back = p / p.sum(1, keepdims=True) - np.eye(5)[y]
        for layer, inside in zip(layers[name][::-1], kept[::-1], strict=True):
            back = (back @ layer["kernel"]) * ((inside > 0) if inside is not kept[0] else 1)
        return back

    images = np.random.default_rng(0).integers(256, size=(12, 16, 16, 1), dtype=np.uint8)
    x, epsilon, key = images.reshape(12, -1) / 255, config["attack"]["epsilon"], jax.random.key(7)
    keys = directions.example_keys(key, 12)
    noise = jax.vmap(lambda k: jax.random.uniform(k, (16, 16, 1), minval=-1, maxval=1))(keys).reshape(12, -1)

    def pgd(name, steps, size):
        y = forward(name, x)[0].argmax(1)
        moved = np.clip(x + epsilon * np.float64(noise), 0, 1)
        for _ in range(steps):
            moved = moved + size * np.sign(gradient(name, moved, y))
            moved = np.clip(np.clip(moved, x - epsilon, x + epsilon), 0, 1)
        return moved

    names, right = ("mlp_deep", "reference"), np.arange(12) % 4 > 0
    adversarial = {name: pgd(name, 3, 5 * epsilon / 3) for name in names}
    change = lambda measured, attacked: (forward(measured, adversarial[attacked])[0] - forward(measured, x)[0])[right]
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    want = {}
    for way, (attacked, measured) in (("S_T", names), ("T_S", names[::-1])):
        own, across, best = change(attacked, attacked), change(measured, attacked), change(measured, measured)
        ratio = np.linalg.norm(across, axis=1) / np.linalg.norm(best, axis=1)
        want[f"pgd_liang_tau1_{way}"] = ratio.mean()
        want[f"pgd_liang_tau2_{way}"] = np.linalg.norm(unit(own).T @ unit(across) / 9)
        want[f"pgd_liang_tau1tau2_{way}"] = np.linalg.norm((ratio[:, None] * unit(own)).T @ unit(across) / 9)
    apply = jax.jit(models.build("mlp_deep", (16, 16, 1), 5, widths=(32, 16)).apply)  # that of the reference too
    functions = tuple(Partial(apply, jax.tree.map(lambda leaf: leaf[1], of[name])) for name in names)
    attack = {"pgd_liang": attacks.pgd(epsilon, 3, 5 * epsilon / 3)}
    perturb, compare = jax.jit(partial(measures.perturb, attack)), jax.jit(measures.transferability)
    x = images / np.float32(255)
    perturbed = tuple(perturb(f, x, key) for f in functions)
    taus, under_attack = jax.device_get(compare(functions, perturbed, x, right))
    for name, value in want.items():
        assert taus[name] == pytest.approx(value, abs=1e-4), name
    x32 = x[right]
    for way, pair in (("S_T", functions), ("T_S", functions[::-1])):
        linearised = metrics.transferability(*pair, x32)
        for measure, value in zip(("tau1", "tau2", "tau1tau2"), linearised[:3], strict=True):
            assert taus[f"virtual_{measure}_{way}"] == pytest.approx(float(value), abs=1e-5)
    np.testing.assert_allclose(under_attack["pgd_liang"], forward("reference", adversarial["mlp_deep"])[0], atol=1e-3)


def test_success_is_of_the_images_that_the_reference_gets_right_or_both():
    logits = lambda predicted: np.eye(3)[predicted] * 2
    labels, right = np.array([0, 1, 2, 0, 1, 2]), np.array([True, True, True, True, False, True])
    source, reference = logits([0, 0, 2, 0, 1, 0]), logits([0, 1, 2, 0, 0, 2])
    attacked = logits([1, 0, 2, 0, 0, 1])
    assert measures.success(attacked, (source, reference), labels, right) == (
        pytest.approx(3 / 5),
        pytest.approx(1 / 3),
    )


def test_the_matrix_is_of_the_networks_with_new_heads(finished):
    """Its rows against attacks made by hand; without one, a network has the errors that its test accuracy leaves."""
    table = folder.read_table(finished / "matrix.csv")
    names = ["mlp_shallow", "mlp_deep", "lenet", "reference"]
    assert list(dict.fromkeys(table["source"].tolist())) == names
    assert len(table["source"]) == 2 * 16
    config = json.loads((finished / "config.json").read_text())
    section = config["target"]
    target = data.load("digits", engine.keys(0).data, classes=section["classes"], image_size=16)
    test = data.balanced(target.test, 30, "num_examples")
    x = np.float32(test.inputs) / 255
    build = partial(models.build, image_shape=(16, 16, 1), num_classes=5)
    widths = {"mlp_deep": (32, 16), "lenet": (3, 4, 12, 8)}
    apply_of = {name: jax.jit(build(name, widths=sizes).apply) for name, sizes in widths.items()}
    attack = jax.jit(attacks.fgsm(config["attack"]["epsilon"], random_start=True))
    rates, counts = [], []
    for seed in range(2):
        f, g = (
            Partial(apply, jax.tree.map(lambda leaf, i=seed: leaf[i], read(finished / "refitted" / name)))
            for name, apply in apply_of.items()
        )
        moved = attack(f, x, test.labels, jax.random.fold_in(engine.keys(0).attack, seed))
        right = [np.asarray(h(x).argmax(1)) == test.labels for h in (f, g)]
        wrong = np.asarray(g(moved).argmax(1)) != test.labels
        rates.append([wrong.mean(), wrong[right[1]].mean(), wrong[right[0] & right[1]].mean()])
        counts.append(right[1].sum())
    (row,) = np.flatnonzero(
        (table["attack"] == "fgsm_liang") & (table["source"] == "mlp_deep") & (table["target"] == "lenet")
    )
    found = [table[name][row] for name in matrix.RATES]
    np.testing.assert_allclose(found, np.mean(rates, axis=0), atol=1e-6)
    assert table["target_right_count"][row] == np.mean(counts)
    assert (table["all_images_low"] <= table["all_images"]).all()


def read(path):
    return folder.read_networks(path)[0]


def test_the_networks_of_a_run_are_attacked_by_matrix(finished, tmp_path):
    """Hardly moved, those with new last layers err as often as the run says; those before tell other classes apart."""
    table = folder.read_table(finished / "knowledge.csv")
    entries = tuple(str(finished / "refitted" / name) for name in ("mlp_deep", "lenet"))
    flags = ["--config.data.classes=('5', '6', '7', '8', '9')", "--config.data.image_size=16"]
    flags += ["--config.num_examples=170", "--config.attack.epsilon=1e-9", "--config.attacks=('fgsm',)"]
    command = ["matrix.py", f"--config={ROOT / 'configs' / 'matrix.py'}", *flags]
    assert cli.run(matrix.EXPERIMENT, [*command, f"--workdir={tmp_path / 'm'}", f"--config.networks={entries!r}"]) == 0
    rates = folder.read_table(tmp_path / "m" / "matrix.csv")
    assert rates["target"][:4].tolist() == [f"{n}/{n}-{i}" for n in ("mlp_deep", "lenet") for i in range(2)]
    accuracy = table["transfer_accuracy"][2:].to_numpy()
    np.testing.assert_allclose(1 - rates["all_images"][:4], accuracy, atol=7 / 170)  # 7 more images are counted there
    entry = (str(finished / "networks" / "lenet"),)
    assert cli.run(matrix.EXPERIMENT, [*command, f"--workdir={tmp_path / 'n'}", f"--config.networks={entry!r}"]) == 2


def test_with_a_contrast_differences_are_correlated(contrasted, capsys):
    table, summary = folder.read_table(contrasted / "knowledge.csv"), folder.read_summary(contrasted)
    assert table["domain"].value_counts().to_dict() == {"target": 20, "contrast": 20}
    of = lambda name: table.groupby(["domain", "source"], sort=False)[name].mean()
    difference = lambda name: of(name)["target"] - of(name)["contrast"]
    rows = {row["measure"]: row for row in summary["correlations"]}
    for name in ("pgd_liang_tau1_T_S", "leep"):
        want = scipy.stats.spearmanr(difference(name), difference("transfer_loss")).statistic
        assert rows[name]["spearman"]["mean"] == pytest.approx(want)
    want = scipy.stats.spearmanr(of("source_accuracy")["target"], difference("transfer_loss")).statistic
    assert rows["source_accuracy"]["spearman"]["mean"] == pytest.approx(want)
    assert {name for name, row in rows.items() if "holds" in row} == {*words.PRIMARY}
    p_values = [rows[name]["spearman"]["p_value"] for name in words.PRIMARY]
    assert [rows[name]["adjusted"] for name in words.PRIMARY] == pytest.approx(stats.holm(np.array(p_values)))
    assert run(contrasted, *MANY) == 0  # told again
    said = capsys.readouterr().out
    assert "differences, target less contrast" in said
    assert "strata: parity" in said
    # On the contrast, whose digits the sources learn, the loss is smaller than on others.
    assert difference("transfer_loss").mean() > 0.1


@pytest.mark.slow
def test_sources_of_one_architecture_share_their_programs(contrasted, tmp_path, lowerings):
    """Six of them compile no more than three, in a process that has made such a run before."""
    counts = []
    for number in (3, 6):
        listed = tuple(("mlp_deep", classes) for classes in list(itertools.combinations("01234", 3))[:number])
        before = lowerings()
        assert run(tmp_path / str(number), *MANY, f"--config.sources={listed!r}") == 0
        counts.append(lowerings() - before)
    assert counts[0] == counts[1] < 60


def test_drawn_sources_are_stratified_and_differ():
    groups = ("airplane", "ship", "truck"), ("bird", "cat", "deer", "dog")
    listed = sources.drawn(0, "lenet", groups, {0: 1, 1: 6, 2: 9})
    assert len({source.classes for source in listed}) == 16
    for source in listed:
        assert len(set(source.classes)) == 4
        assert len({*source.classes} & {*groups[0]}) == source.stratum
        assert {*source.classes} <= {*groups[0], *groups[1]}
    assert listed == sources.drawn(0, "lenet", groups, {0: 1, 1: 6, 2: 9})
    assert listed != sources.drawn(1, "lenet", groups, {0: 1, 1: 6, 2: 9})
    with pytest.raises(ValueError, match="counts: got 5 sources with 3 of the first group; 4 differ"):
        sources.drawn(0, "lenet", groups, {3: 5})


def test_worsened_sources_have_their_epochs_as_strata():
    listed = sources.worsened("lenet", (0.0, 0.5), (1, 4))
    assert sources.labels(listed) == [
        "noise 0-1 epochs",
        "noise 0.5-1 epochs",
        "noise 0-4 epochs",
        "noise 0.5-4 epochs",
    ]
    assert [source.stratum for source in listed] == [1, 1, 4, 4]


def test_label_noise_changes_the_share_asked_for_and_never_to_the_same_class():
    train = data.Split(np.zeros((1000, 1, 1, 1), np.uint8), np.arange(1000, dtype=np.int32) % 4)
    noisy = sources.with_label_noise(train, 4, 0.3, jax.random.key(0))
    changed = noisy.labels != train.labels
    assert changed.sum() == 300
    assert noisy.labels.dtype == np.int32
    offsets = np.bincount((noisy.labels - train.labels)[changed] % 4, minlength=4)
    assert offsets[0] == 0
    assert scipy.stats.chisquare(offsets[1:]).pvalue > 1e-3


def test_a_head_trained_by_sgd_comes_to_the_minimum():
    """Full batches without augmentation are gradient descent; weight decay takes in the bias, as PyTorch's does."""
    model = models.build("mlp_shallow", (8, 8, 1), 5, widths=(12,))
    variables = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(60, 8, 8, 1), dtype=np.uint8), np.arange(60) % 3
    features = np.float64(measures.outputs(model, variables, images).features)
    optimizer = training.cosine_sgd(1.0, 3000, weight_decay=1e-2)
    head = transfer.Head(np.zeros((12, 3), np.float32), np.zeros(3, np.float32))
    state, step = optimizer.init(head), jax.jit(partial(measures.head_step, model, optimizer))
    for _ in range(3000):
        head, state = step(variables, head, state, data.Split(images, labels))
    weights, bias = (np.float64(part) for part in head)
    p = np.exp(features @ weights + bias)
    error = (p / p.sum(1, keepdims=True) - np.eye(3)[labels]) / 60
    np.testing.assert_allclose(features.T @ error + 1e-2 * weights, 0, atol=1e-4)
    np.testing.assert_allclose(error.sum(0) + 1e-2 * bias, 0, atol=1e-4)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.sources=(('lenet',),)", "sources: got 1; correlations take 3 or more"),
        (
            "--config.sources=(('lenet', (), 1.5),)",
            "sources: got (('lenet', (), 1.5),); it takes a tuple of (architecture",
        ),
        ("--config.contrast=('0', '1')", "matrix: got True with a contrast"),
        ("--config.contrast=('5', '1') --config.matrix=False", "contrast: got '5', which is a class of the target"),
        ("--config.target.image_size=20", "target.image_size: got 20; source.image_size is 16"),
        ("--config.reference=vgg11", "target.image_size: got 16, too small for vgg11"),
        ("--config.target.classes=('5', 'x')", "unknown class 'x'"),
        ("--config.batch_size=5000", "batch_size: got 5000; reference has"),
        (
            "--config.target.num_train=7 --config.batch_size=4",
            "target.num_train: got 7; of class 7 are 1 training examples used; it takes 2",
        ),
        (
            "--config.source.name=noise --config.source.classes=('0', '1')",
            "its inputs have the shape (16, 16, 1), and those of noise (16, 16, 3)",
        ),
        (
            "--config.sources=(('mlp_deep', ('a+b', 'c')), ('mlp_deep', ('a', 'b+c')), ('mlp_deep',))",
            "sources: two of them would both be called 'a+b+c'; they must differ",
        ),
        ("--config.attack.epsilon=2.0", "attack.epsilon: got 2.0; of images it takes 1 at most, the range of a pixel"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flag, message):
    assert run(tmp_path / "run", *flag.replace(" --", "\n--").split("\n")) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
