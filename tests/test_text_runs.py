"""Experiments on texts, as a user runs them on files, with the networks and measures that images have."""

import json
import os
import re
import runpy
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from conftest import ROOT, xla_flags

from jtrans import attacks, data, models, stats
from jtrans.errors import InputError
from jtrans.experiments import control, early, knowledge, matrix, penalty
from jtrans.experiments.reproduce import page
from jtrans.harness import cli, experiment, folder
from jtrans.population import observe, trajectory
from jtrans.training import Network

KEY = jax.random.key(0)
GOOD, BAD, OTHER = ("good", "fine", "great"), ("bad", "awful", "poor"), tuple(f"word{i}" for i in range(20))
EMBEDDING = data.Embedding(max_length=6, size=5)
CONFIG = f"--config={ROOT / 'configs' / 'text_early.py'}"
SMALL = [
    "--config.data.max_length=6",
    "--config.data.embedding_size=5",
    "--config.num_networks=3",
    "--config.num_steps=4",
    "--config.num_examples=20",
    "--config.batch_size=20",
]
WIDTHS = [
    "--config.widths.text_mean=(8,)",
    "--config.widths.text_cnn=(4, 4, 4)",
    "--config.widths.text_lstm=(5,)",
    "--config.widths.text_transformer=(8, 8)",
]


def lines(seed, count):
    """Texts of 1 to 9 words, one of which gives the label away."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        words = list(rng.choice(OTHER, rng.integers(9)))
        words.insert(rng.integers(len(words) + 1), rng.choice((BAD, GOOD)[i % 2]))
        yield f"{i % 2} {' '.join(words)}\n"


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of training and test texts."""
    path = tmp_path_factory.mktemp("texts")
    (path / "train.txt").write_text("".join(lines(0, 200)))
    (path / "test.txt").write_text("".join(lines(1, 60)))
    return path


def run(experiment_of, workdir, texts, *arguments, config=CONFIG):
    names = [config, f"--workdir={workdir}", f"--config.data.dir={texts}", *SMALL, *WIDTHS, *arguments]
    last = {name.partition("=")[0]: name for name in names}
    return cli.run(experiment_of, ["main.py", *last.values()])


def load(texts, **changes):
    return data.load("text", KEY, directory=str(texts), embedding=EMBEDDING._replace(**changes))


def looked_at(name, texts, count=3, **changes):
    """What networks do on all test texts, with how these are embedded."""
    dataset = load(texts, **changes)
    x = dataset.inputs.of(dataset.test.inputs)
    model = models.build(name, x.shape[1:], 2, inputs=dataset.inputs)
    networks = Network(jax.jit(jax.vmap(model.init))(jax.random.split(KEY, count)), None)
    return x, model, networks, jax.jit(partial(observe.observe, model))(networks, *dataset.test)


def test_ids_become_rows_of_the_table_and_padding_zero(texts):
    dataset = load(texts, mean=1.0)
    ids, x = dataset.test.inputs, np.asarray(dataset.inputs.of(dataset.test.inputs))
    assert (ids.dtype, ids.shape, x.shape) == (np.int32, (60, 6), (60, 6, 5))
    np.testing.assert_array_equal(x, dataset.lexicon.table[ids])
    np.testing.assert_array_equal((x != 0).any(-1), ids != 0)
    np.testing.assert_array_equal(dataset.inputs.support(x)[..., 0], ids != 0)
    assert 0 < (ids == 0).mean() < 1


@pytest.mark.parametrize("name", models.TEXT)
def test_directions_are_zero_at_padding_and_do_not_change_with_more_of_it(texts, name):
    x, _, _, seen = looked_at(name, texts, max_length=9)
    unit = np.asarray(seen.unit).reshape(3, *x.shape)
    padding = np.broadcast_to((x == 0).all(-1)[None, :, :, None], unit.shape)
    assert padding.any()
    assert (unit[padding] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(seen.unit, axis=-1), 1, rtol=1e-5)
    longer, *_, seen_longer = looked_at(name, texts, max_length=14)
    np.testing.assert_allclose(np.reshape(seen_longer.unit, (3, *longer.shape))[:, :, :9], unit, atol=1e-5)
    np.testing.assert_allclose(seen_longer.values["constant_share"], seen.values["constant_share"], atol=1e-5)


def test_the_direction_and_constant_share_of_text_mean_are_those_of_numpy(texts):
    x, _, networks, seen = looked_at("text_mean", texts)
    mask = np.asarray((x != 0).any(-1))
    params = jax.tree.map(np.float64, networks.variables["params"]["MLP_0"])
    labels = load(texts).test.labels
    for i in range(3):
        (w1, b1), (w2, b2) = (
            (params[layer]["kernel"][i], params[layer]["bias"][i]) for layer in ("Dense_0", "Dense_1")
        )
        mean = np.float64(x).sum(1) / mask.sum(1, keepdims=True)
        hidden = mean @ w1.T + b1
        logits = np.maximum(hidden, 0) @ w2.T + b2
        sign = np.where(labels == 1, -1, 1)[:, None]  # of two classes: the margin, from the label to the other
        gradient = ((w2[1] - w2[0]) * (hidden > 0)) @ w1 * sign
        at_words = gradient[:, None] * mask[..., None]
        unit = at_words / np.linalg.norm(at_words, axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(np.reshape(seen.unit[i], x.shape), unit, atol=1e-5)
        right = (logits.argmax(1) == labels).astype(float)
        np.testing.assert_array_equal(seen.values["accuracy"][i], right)
    np.testing.assert_allclose(seen.values["constant_share"], 1, rtol=1e-5)


def test_the_law_of_random_angles_is_that_of_each_texts_own_dimensions():
    dimensions = np.array([10, 10, 40, 300])
    law = trajectory.random(dimensions)
    laws = [stats.random_angle(d) for d in (10, 40, 300)]
    assert law["mean_angle"] == pytest.approx(np.dot([0.5, 0.25, 0.25], [of.mean() for of in laws]))
    below = np.dot([0.5, 0.25, 0.25], [of.cdf(law["quantile_angle"]) for of in laws])
    assert below == pytest.approx(0.01)
    assert law["dimension"] == 90
    same = trajectory.random(np.array([40, 40]))
    assert (same["dimension"], same["quantile_angle"]) == (40, laws[1].quantile(0.01))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_leave_padding_alone_and_fill_the_ball_of_the_words(norm):
    x = jnp.ones((500, 4, 3)).at[:, 2:].set(0)
    flat = lambda x: x.sum((1, 2))[:, None] * jnp.array([[1.0, -1.0]])
    attack = attacks.iterative(0.5, 1, 0.0, norm=norm, random_start=True, bounds=None, support=data.sets.at_words)
    change = np.asarray(attack(flat, x, jnp.zeros(500, int), KEY) - x).reshape(500, 4, 3)
    assert (change[:, 2:] == 0).all()
    sizes = np.abs(change).max((1, 2)) if norm == "linf" else np.linalg.norm(change, axis=(1, 2))
    assert sizes.max() <= 0.5
    # Of the largest of 6 uniform values, and of the length of a uniform point of a ball in 6 dimensions, the 6th power
    # is uniform.
    assert np.mean((sizes / 0.5) ** 6) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_with_a_look_ahead_do_not_depend_on_padding(norm):
    x = jax.random.normal(KEY, (20, 4, 3))
    padded = jnp.pad(x, ((0, 0), (0, 5), (0, 0)))
    of_words = lambda x: jnp.where(data.sets.at_words(x), x, 0).sum(1)
    f = lambda x: jnp.tanh(of_words(x)) @ jnp.array([[3.0, -1.0], [-2.0, 0.5], [1.0, 1.0]])
    options = {"norm": norm, "bounds": None, "support": data.sets.at_words}
    attack = attacks.iterative(0.5, 4, 0.2, accumulator=attacks.nesterov(), **options)
    labels = f(x).argmax(1)
    np.testing.assert_allclose(attack(f, padded, labels)[:, :4], attack(f, x, labels), atol=1e-5)


@pytest.fixture(scope="module")
def finished(texts, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    assert run(early.EXPERIMENT, workdir, texts, "--config.save_networks") == 0
    return workdir


def test_an_early_run_on_texts_has_what_one_on_images_has(finished, capsys):
    results = experiment.read(finished)
    assert results.summary["input_shape"] == [6, 5]
    assert results.summary["random"]["dimension"] == 5  # one direction for all words
    angle = results.arrays["trajectory"]["angle"]
    assert angle.shape == (3, 5)
    assert np.isfinite(angle).all()
    np.testing.assert_allclose(results.arrays["trajectory"]["constant_share"], 1, rtol=1e-5)
    assert "20 test texts" in early.title([results])
    said = capsys.readouterr().out + early.tell(results)
    assert "of texts, cosine above 0" in said
    assert "a random direction 0." in said
    assert "image" not in early.tell(results)
    assert (results.tables["trajectory"]["success_own"] >= 0).all()


@pytest.mark.parametrize("names", [("text_cnn",), ("text_lstm", "text_transformer")], ids="-".join)
def test_each_architecture_and_mixed_pairs_run_early(texts, tmp_path, names):
    assert run(early.EXPERIMENT, tmp_path / "run", texts, f"--config.models={names}") == 0
    results = experiment.read(tmp_path / "run")
    words = np.minimum([len(line.split()) - 1 for line in (texts / "test.txt").read_text().splitlines()], 6)
    assert 5 <= results.summary["random"]["dimension"] <= 5 * words.max()
    assert np.isfinite(results.arrays["trajectory"]["angle"]).all()


def test_a_run_on_texts_resumes_to_the_same_bits(finished, texts, tmp_path):
    assert run(early.EXPERIMENT, tmp_path / "run", texts, "--config.num_steps=2", "--config.save_networks") == 0
    assert run(early.EXPERIMENT, tmp_path / "run", texts, "--config.save_networks") == 0
    one, other = (experiment.read(path).arrays["trajectory"] for path in (finished, tmp_path / "run"))
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


@pytest.mark.slow
def test_four_devices_give_what_one_gives_on_texts(finished, texts, tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "early.py"), CONFIG, f"--config.data.dir={texts}"]
    command += [*SMALL, *WIDTHS, f"--workdir={tmp_path / 'one'}", "--config.num_networks=4"]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert run(early.EXPERIMENT, tmp_path / "four", texts, "--config.num_networks=4") == 0
    one, four = (experiment.read(tmp_path / name).arrays["trajectory"] for name in ("one", "four"))
    np.testing.assert_allclose(four["angle"], one["angle"], atol=1e-3)


def test_control_and_penalty_take_texts(texts, tmp_path):
    classes = "--config.data.classes=()"
    grid = [
        classes,
        "--config.optimizers=('adam',)",
        "--config.batch_sizes=(20,)",
        "--config.learning_rates=(0.01, 0.1)",
    ]
    at = lambda name: f"--config={ROOT / 'configs' / name}"
    names = ["--config.data.name=text", "--config.models=('text_mean',)"]
    shared = [argument for argument in SMALL if "batch_size" not in argument]
    arguments = [*shared, *WIDTHS, *names, f"--config.data.dir={texts}"]
    settings = ["main.py", at("control.py"), f"--workdir={tmp_path / 'control'}", *arguments, *grid]
    assert cli.run(control.EXPERIMENT, settings) == 0
    assert len(experiment.read(tmp_path / "control").tables["control"]) == 2
    steps = ["--config.coefficients=(0.0, 1.0)", "--config.surrogate=text_cnn", "--config.batch_size=20"]
    settings = ["main.py", at("penalty.py"), f"--workdir={tmp_path / 'penalty'}", *arguments, *steps]
    assert cli.run(penalty.EXPERIMENT, settings) == 0
    assert np.isfinite(experiment.read(tmp_path / "penalty").tables["penalty"]["angle"]).all()


FLAGS = [
    ("--config.data.dir=", "data.dir: no file or folder ''; name a folder with train.txt and test.txt, or one file"),
    (
        "--config.models=('text_mean', 'mlp_deep')",
        "data.name: text has texts, and mlp_deep is a network of images; name the same kind",
    ),
    (
        "--config.data.name=digits",
        "data.name: digits has images, and text_mean is a network of texts; name the same kind",
    ),
    ("--config.data.subtract_mean", "data.subtract_mean: got True; texts have no pixels, so False"),
    ("--config.data.pixel_range=(-1.0, 1.0)", "data.pixel_range: got (-1.0, 1.0); texts have no pixels, so (0.0, 1.0)"),
    ("--config.data.max_length=1", "data.max_length: got 1; it takes a whole number, 2 or more"),
    ("--config.data.embeddings=nowhere.txt", "data.embeddings: nowhere.txt cannot be read"),
    ("--config.widths.text_transformer=(6, 8)", "widths.text_transformer: got (6, 8)"),
    ("--config.attack.epsilon=-1.0", "attack.epsilon: got -1.0; it takes a number, 0 or more"),
]


@pytest.mark.parametrize(("flag", "message"), FLAGS, ids=[flag for flag, _ in FLAGS])
def test_bad_settings_for_texts_are_one_line(texts, tmp_path, capsys, flag, message):
    assert run(early.EXPERIMENT, tmp_path / "run", texts, flag) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_decompose_takes_texts_of_full_length(texts, tmp_path, capsys):
    """All directions of `text_mean` are the same vector at all words, and so are the updates of its first layer."""
    config = f"--config={ROOT / 'configs' / 'decompose.py'}"
    settings = ["--config.data.name=text", "--config.data.classes=()", "--config.models=('text_mean',)"]
    settings += ["--config.steps=(0, 1)", "--config.ranks=(1, 4)", "--config.num_fit=2", "--config.fit_examples=20"]
    settings += [f"--config.data.dir={texts}", *(flag for flag in SMALL if "num_steps" not in flag), *WIDTHS]

    def decompose(*flags):
        last = {flag.partition("=")[0]: flag for flag in (config, *settings, *flags)}  # a tuple twice would be added up
        return cli.run(experiment.load("decompose"), ["main.py", *last.values()])

    assert decompose(f"--workdir={tmp_path / 'run'}", "--config.num_examples=16") == 0
    said = capsys.readouterr().out
    full = [int((split.inputs != 0).all(1).sum()) for split in load(texts)[:2]]
    assert f"{full[0]} and {full[1]} of the training and test texts have 6 words or more" in said
    assert "vectors that are the same at all words" in said
    results = experiment.read(tmp_path / "run")
    assert results.summary["random"]["dimension"] == 5
    share = results.tables["decompose"].set_index(["step", "subspace", "rank"])["share"]
    for step in (0, 1):
        assert share[step, "constant_colours", 5] == pytest.approx(1, abs=1e-5)
        assert 0 < share[step, "random", 4] < 0.6
        assert 0.8 < share[step, "gradients", 4] < 1  # of 5 dimensions
    enough = {row["subspace"] for row in results.summary["enough"]}
    assert "constant_colours" not in enough  # it leaves nothing
    assert enough > {"random", "gradients"}
    assert decompose(f"--workdir={tmp_path / 'all'}", "--config.num_examples=16", "--config.ranks=(1, 5)") == 2
    assert "ranks: got 5; the directions have 5 dimensions" in capsys.readouterr().err
    assert decompose(f"--workdir={tmp_path / 'long'}", "--config.data.max_length=5000") == 2
    assert "data.max_length: got 5000, with data.embedding_size 5; subspaces take" in capsys.readouterr().err
    assert decompose(f"--workdir={tmp_path / 'none'}", "--config.data.max_length=12") == 2
    assert "data.max_length: got 12; no train text of the class '0' has so many words" in capsys.readouterr().err
    assert decompose(f"--workdir={tmp_path / 'few'}", "--config.num_examples=60") == 2
    assert "num_examples: got 60; there are 16 with as many of each class, so at most 16" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["first_step", "causes"])
def test_experiments_on_pixels_refuse_texts(texts, tmp_path, capsys, name):
    settings = ["--config.data.name=text", f"--config.data.dir={texts}", "--config.models=('text_mean',)"]
    command = ["main.py", f"--config={ROOT / 'configs' / f'{name}.py'}", f"--workdir={tmp_path / 'run'}", *settings]
    assert cli.run(experiment.load(name), command) == 2
    assert "models: got text_mean, a network of texts" in capsys.readouterr().err


def test_texts_without_a_word_to_train_on_are_one_line(tmp_path):
    (tmp_path / "some.txt").write_text("0 a\n1 b\n" * 9)
    with pytest.raises(InputError, match=r"data.dir: no training text has a word"):
        data.load("text", KEY, directory=str(tmp_path / "some.txt"))


def test_sources_of_texts_and_of_images_together_are_refused_before_training(texts, tmp_path, capsys):
    command = ["main.py", f"--config={ROOT / 'configs' / 'text_knowledge.py'}", f"--workdir={tmp_path / 'run'}"]
    sources = "--config.sources=(('text_mean',), ('text_cnn',), ('lenet',))"
    assert cli.run(knowledge.EXPERIMENT, [*command, sources]) == 2
    assert "sources: got text_cnn of texts and lenet of images" in capsys.readouterr().err


def test_other_embeddings_are_other_data(texts):
    plain, again, other, mean = load(texts), load(texts), load(texts, seed=1), load(texts, mean=1.0)
    assert data.digest(plain) == data.digest(again)
    assert len({data.digest(dataset) for dataset in (plain, other, mean)}) == 3
    shuffled = data.load("text", KEY, directory=str(texts), embedding=EMBEDDING, shuffle_labels=True)
    assert data.digest(shuffled) != data.digest(plain)
    np.testing.assert_array_equal(shuffled.test.inputs, plain.test.inputs)


def test_a_folder_of_domains_has_their_classes(tmp_path):
    for name, labels in {"news": (3, 7), "films": (0, 1)}.items():
        (tmp_path / f"{name}.txt").write_text(
            "".join(f"{label} {name} text {i}\n" for i in range(10) for label in labels)
        )
    dataset = data.load("text", KEY, directory=str(tmp_path), embedding=EMBEDDING)
    assert dataset.class_names == ("films:0", "films:1", "news:3", "news:7")
    words = dataset.lexicon.words
    for part in (dataset.train, dataset.test):
        for ids, label in zip(part.inputs, part.labels, strict=True):
            assert dataset.class_names[label].startswith(words[ids[0]])
    some = data.load("text", KEY, directory=str(tmp_path), embedding=EMBEDDING, classes=("news:7", "films:1"))
    assert some.lexicon.words == words
    assert len(some.train.labels) == len(dataset.train.labels) // 2


def test_a_run_does_not_resume_with_other_embeddings(finished, texts, capsys):
    changed = texts / "train.txt"
    before = changed.read_text()
    try:
        changed.write_text(before + "1 good newword newword newword\n")
        assert run(early.EXPERIMENT, finished, texts, "--config.num_steps=6", "--config.save_networks") == 2
    finally:
        changed.write_text(before)
    assert "was made from other data" in capsys.readouterr().err


def attack_each_other(finished, texts, workdir, *arguments):
    command = ["main.py", f"--config={ROOT / 'configs' / 'matrix.py'}", f"--workdir={workdir}", *SMALL[:2], WIDTHS[0]]
    settings = ["--config.data.name=text", f"--config.data.dir={texts}", f"--config.networks=('{finished}',)"]
    last = {name.partition("=")[0]: name for name in [*command, *settings, "--config.num_examples=20", *arguments]}
    return cli.run(matrix.EXPERIMENT, list(last.values()))


def test_the_networks_of_a_run_attack_each_other_along_embeddings_and_by_words(finished, texts, tmp_path, capsys):
    names = ("pgd", "virtual", "hotflip", "random_words")
    options = [f"--config.attacks={names}", "--config.attack.epsilon=3.0", "--config.attack.words=2"]
    assert attack_each_other(finished, texts, tmp_path / "run", *options, "--config.ensemble") == 0
    table = folder.read_table(tmp_path / "run" / "matrix.csv")
    assert len(table) == len(names) * (9 + 3)
    assert table["target_right"].between(0, 1).all()
    read = folder.read_table(tmp_path / "run" / "texts.csv")
    assert len(read) == 2 * (3 + 3) * 20
    for source in ("text_mean-0", "text_mean-1", "text_mean-2"):
        of_source = read["source"].str.endswith(source)
        assert (of_source & ~read["source"].str.startswith("all but ")).any()
        assert (of_source & read["source"].str.startswith("all but ")).any()
    # The words that are not marked, and the old ones of those that are, are the texts that were attacked.
    before = [line.split()[1:7] for line in (texts / "test.txt").read_text().splitlines()[:20]]
    for number, text in zip(read["number"], read["text"], strict=True):
        changed = re.findall(r"\[(\S+) -> (\S+)\]", text)
        assert len(changed) <= 2
        assert all(old != new for old, new in changed)
        assert re.sub(r"\[(\S+) -> \S+\]", r"\1", text).split() == before[number]
    assert re.search(r"hotflip on \S+text_mean-0, [01]: .*\[\S+ -> \S+\]", capsys.readouterr().out)


MATRIX = [
    ("--config.keep_images=png", "keep_images: got 'png'; text has texts, which have no pixels"),
    ("--config.attack.round_8bit", "attack.round_8bit: got True; text has texts, which have no pixels"),
    ("--config.attacks=('ti_fgsm',)", "attacks: got ti_fgsm, which takes images; text has texts"),
    ("--config.data.vocabulary=1", "data.vocabulary: got 1; attacks on words take 2 words or more"),
    ("--config.data.embedding_seed=1", "was trained with other words or embeddings; name the same texts and data."),
]


@pytest.mark.parametrize(("flag", "message"), MATRIX, ids=[flag for flag, _ in MATRIX])
def test_what_only_images_have_is_refused_for_texts(finished, texts, tmp_path, capsys, flag, message):
    options = ["--config.attacks=('hotflip',)", "--config.attack.epsilon=3.0", flag]
    assert attack_each_other(finished, texts, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err


def test_attacks_on_words_are_refused_for_images(tmp_path, capsys):
    command = ["main.py", f"--config={ROOT / 'configs' / 'matrix.py'}", f"--workdir={tmp_path / 'run'}"]
    (tmp_path / "net.py").write_text("")
    settings = ["--config.data.name=digits", "--config.networks=('net:f',)", "--config.attacks=('hotflip',)"]
    assert cli.run(matrix.EXPERIMENT, [*command, *settings]) == 2
    assert "attacks: got hotflip, which takes texts; digits has images" in capsys.readouterr().err


@pytest.mark.slow
def test_knowledge_takes_texts(texts, tmp_path, capsys):
    sources = "(('text_mean', ()), ('text_cnn', ()), ('text_lstm', ()))"
    domains = [
        f"--config.{section}.{name}"
        for section in ("source", "target")
        for name in ("name=text", f"dir={texts}", "max_length=6", "embedding_size=5")
    ]
    command = ["main.py", f"--config={ROOT / 'configs' / 'adv_to_know_reduced.py'}", f"--workdir={tmp_path / 'run'}"]
    settings = [f"--config.sources={sources}", "--config.reference=text_mean", "--config.augment=False"]
    small = [
        f"--config.{name}"
        for name in (
            "num_networks=2",
            "source.num_train=0",
            "num_references=1",
            "num_epochs=4",
            "reference_epochs=4",
            "refit_epochs=1",
            "batch_size=20",
            "num_examples=30",
            "attack.steps=3",
            "attack.epsilon=2.0",
            "matrix=True",
            "learning_rate=0.05",
        )
    ]
    pixels = [
        f"--config.{section}.{name}"
        for section in ("source", "target")
        for name in ("pixel_range=(0.0, 1.0)", "classes=()")
    ]
    assert cli.run(knowledge.EXPERIMENT, [*command, *domains, *settings, *small, *pixels, *WIDTHS]) == 0
    table = folder.read_table(tmp_path / "run" / "knowledge.csv")
    assert table["pgd_liang_tau1_S_T"].between(0, 1.5).all()
    train, test = ([line.split()[1:7] for line in (texts / f"{name}.txt").open()] for name in ("train", "test"))
    repeated = sum(words in train for words in test)
    assert 0 < repeated < len(test)
    told = capsys.readouterr().out
    assert f"note: {repeated} of the 60 test texts are training texts too" in told
    labels = list(table["source"].unique())
    assert folder.read_summary(tmp_path / "run")["test_in_training"] == dict.fromkeys(labels, repeated)
    assert ", by source: " + ", ".join(f"{label} {repeated}" for label in labels) in told


def test_the_tables_of_the_page_are_those_of_its_results():
    script, text = runpy.run_path(str(ROOT / "benchmarks" / "text_early.py")), (ROOT / "docs" / "text.md").read_text()
    table = pandas.read_csv(ROOT / "docs" / "text" / "early.csv")
    for rows in (script["shown"], script["predicted"]):
        assert page.markdown(rows(table)) in text


@pytest.mark.parametrize("target", ["amazon", "movies"])
def test_what_the_page_says_of_knowledge_is_that_of_its_results(target):
    script, text = (
        runpy.run_path(str(ROOT / "benchmarks" / "text_knowledge.py")),
        (ROOT / "docs" / "text.md").read_text(),
    )
    results = json.loads((ROOT / "docs" / "text" / f"knowledge-{target}.json").read_text())
    assert page.markdown(script["shown"](results)) in text
    assert script["leaked"](results) in text
    assert script["transferred"](results) in text
