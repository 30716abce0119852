"""The first step, predicted from class means: exact where a class has one image, by the rule where all have."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import PIL.Image
import pytest
from conftest import ROOT

from jtrans import data, models, training
from jtrans.experiments import first_step
from jtrans.harness import cli, experiment
from jtrans.population import engine

SMALL = [
    "--config.models=('mlp_shallow',)",
    "--config.widths.mlp_shallow=(64,)",
    "--config.num_networks=6",
    "--config.num_examples=10",
    "--config.data.name=folder",
    "--config.data.classes=()",
    "--config.data.image_size=8",
    "--config.batch_size=16",
    "--config.learning_rates=(1e-3, 1.0)",
]


def run(workdir, images, *arguments):
    flags = [f"--config={ROOT / 'configs' / 'first_step.py'}", f"--workdir={workdir}", *SMALL, *arguments]
    return cli.run(first_step.EXPERIMENT, ["first_step.py", f"--config.data.dir={images}", *flags])


def folder(path, pictures):
    """Twenty training images of each class, all the given one, and five noisy ones for the test."""
    rng = np.random.default_rng(0)
    for name, picture in pictures.items():
        noisy = [np.clip(picture + rng.integers(-40, 41, picture.shape), 0, 255) for _ in range(5)]
        for split, images in (("train", [picture] * 20), ("test", noisy)):
            (path / split / name).mkdir(parents=True)
            for i, image in enumerate(images):
                PIL.Image.fromarray(image.astype(np.uint8)).save(path / split / name / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(1).integers(60, 200, (2, 8, 8, 3))


@pytest.fixture(scope="module")
def one_image_a_class(tmp_path_factory, pictures):
    """The images, and what a run on them found."""
    path = tmp_path_factory.mktemp("one_image_a_class")
    images = folder(path / "images", dict(zip("ab", pictures, strict=True)))
    assert run(path / "run", images, "--config.optimizers=('adam', 'sgd')") == 0
    return images, experiment.read(path / "run")


def test_a_class_of_one_image_is_predicted_exactly(one_image_a_class):
    _, results = one_image_a_class
    assert "share of pairs whose sign is the predicted one" in first_step.tell(results)
    table = results.tables["first_step"]
    assert table[["optimizer", "learning_rate"]].to_numpy().tolist() == [
        ["adam", 1e-3],
        ["adam", 1.0],
        ["sgd", 1e-3],
        ["sgd", 1.0],
    ]
    assert (table["sign_predicted"] == 1).all()
    # Rounding decides the sign of the few gradients that are nearly zero, and Adam's step is the sign.
    assert (table["own_angle"] < 2).all()
    for name in ("angle", "signed_angle"):
        np.testing.assert_allclose(table[f"predicted_{name}"], table[f"measured_{name}"], atol=0.5)
    assert {"adam-0.001", "sgd-1.0"} < results.arrays.keys()
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in first_step.draw(results)["figure"].axes)


def test_where_all_images_are_one_the_rule_gives_every_sign_and_adam_a_constant_colour(tmp_path, pictures):
    images = folder(tmp_path / "images", dict.fromkeys("ab", pictures[0]))
    assert run(tmp_path / "run", images) == 0
    table = experiment.read(tmp_path / "run").tables["first_step"].set_index("learning_rate")
    assert table["sign_by_rule"][1.0] == 1
    assert table["measured_constant_share"][1.0] > 0.99
    assert table["measured_constant_share"][1e-3] < 0.5


def test_the_excess_agrees_with_float64(one_image_a_class):
    images, results = one_image_a_class
    excess = results.arrays["adam-1.0"]["excess"]
    keys = engine.keys(0)
    train = data.load("folder", keys.data, directory=str(images), image_size=8).train
    model = models.build("mlp_shallow", (8, 8, 3), 2, widths=(64,))
    orders, inits = (engine.network_keys(key, 1, 6)[0] for key in (keys.order, keys.init))
    for m in range(6):
        batch = np.asarray(training.epoch_order(orders[m], 0, 40))[:16]
        dense = jax.jit(model.init)(inits[m])["params"]
        (w1, b1), (w2, b2) = ([np.float64(dense[f"Dense_{i}"][part]) for part in ("kernel", "bias")] for i in (0, 1))
        x = np.float64(train.inputs[batch]).transpose(0, 3, 1, 2).reshape(16, -1) / 255
        z = np.maximum(x @ w1.T + b1, 0) @ w2.T + b2
        probability = 1 / (1 + np.exp(z[:, 0] - z[:, 1]))
        assert excess[m] == pytest.approx((probability - train.labels[batch]).mean(), abs=1e-6)


def test_the_class_means_of_a_batch_without_one_class_are_the_mean_of_the_other():
    model = models.build("mlp_shallow", (4, 4, 3), 2, widths=(8,))
    variables = jax.jit(model.init)(jax.random.key(0))
    images, key = jax.random.uniform(jax.random.key(1), (6, 4, 4, 3)), jax.random.key(2)
    loss, _ = first_step.of_the_class_means(model, variables, images, jnp.ones(6, int), key)
    alone, _ = training.cross_entropy(model, variables, images.mean(0, keepdims=True), jnp.ones(1, int), key)
    assert loss == pytest.approx(float(alone), rel=1e-6)


def test_other_than_two_classes_is_one_line(tmp_path, capsys):
    flags = ["--config.data.name=digits", "--config.data.dir="]
    assert run(tmp_path / "run", "", *flags) == 2
    assert "data.classes: got (), 10 classes; this experiment takes two" in capsys.readouterr().err


@pytest.mark.slow
def test_the_committed_predictions_are_the_programs(shared_data, tmp_path):
    flags = ["--config.models=('mlp_shallow',)", "--config.data.classes=('deer', 'horse')"]
    flags += ["--config=first_step", f"--config.data.dir={shared_data / 'tfds'}", f"--workdir={tmp_path / 'run'}"]
    assert cli.run(first_step.EXPERIMENT, ["first_step.py", *flags]) == 0
    results = experiment.read(tmp_path / "run")
    committed = pandas.read_csv(ROOT / "docs" / "first_step" / "predictions.csv")
    committed = committed[(committed["model"] == "mlp_shallow") & (committed["classes"] == "deer/horse")]
    for rate in (1e-4, 1e-3, 1e-2):
        rows = committed[(committed["optimizer"] == "adam") & (committed["learning_rate"] == rate)]
        arrays = results.arrays[f"adam-{rate}"]
        assert rows[["first", "second"]].to_numpy().tolist() == arrays["pair"].tolist()
        np.testing.assert_allclose(arrays["predicted_signed_angle"], rows["signed_angle"], atol=1)
