"""One change at a time: each change does what it says, and the plain setting is a run of `early`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT

from jtrans import data, models, training
from jtrans.data import Dataset, Split
from jtrans.experiments import causes, early
from jtrans.harness import cli, experiment
from jtrans.harness.fields import defaults

SMALL = [
    "--config.widths.mlp_deep=(16, 8)",
    "--config.num_networks=3",
    "--config.num_examples=20",
    "--config.data.name=digits",
    "--config.data.classes=('3', '8')",
    "--config.data.image_size=8",
    "--config.batch_size=32",
]


def run(slice_, config, workdir, *arguments):
    return cli.run(slice_, ["jtrans", f"--config={ROOT / 'configs' / config}", f"--workdir={workdir}", *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("causes") / "run"
    assert run(causes.EXPERIMENT, "causes.py", workdir, *SMALL, "--config.steps=(1, 3)") == 0
    return workdir


def test_without_a_change_it_is_a_run_of_early(finished, tmp_path):
    flags = ["--config.models=('mlp_deep',)", "--config.num_steps=3", "--config.attack.epsilon=0.0"]
    assert run(early.EXPERIMENT, "digits.py", tmp_path, *SMALL, *flags, "--config.optimizer.learning_rate=1e-3") == 0
    plain, there = experiment.read(finished).arrays["adam"], experiment.read(tmp_path).arrays["trajectory"]
    for name in plain:
        np.testing.assert_array_equal(plain[name], there[name], err_msg=name)


def test_the_table_holds_every_change_and_differences_of_the_same_networks(finished, capsys):
    results = experiment.read(finished)
    table = results.tables["causes"]
    assert set(table["change"]) == set(causes.CHANGES)
    row = table[(table["change"] == "centred") & (table["step"] == 3) & (table["measure"] == "auc")].iloc[0]
    each = results.arrays["centred"]["auc"][:, 3] - results.arrays["adam"]["auc"][:, 3]
    assert row["difference"] == pytest.approx(each.mean())
    first = table[(table["step"] == 1) & (table["change"].isin(["adam", "sign_sgd"]))]
    np.testing.assert_allclose(*(rows["value"].to_numpy() for _, rows in first.groupby("change")), rtol=1e-3)
    assert set(causes.draw(results)) == {"figure", "curves"}
    assert run(causes.EXPERIMENT, "causes.py", finished, *SMALL, "--config.steps=(1, 3)") == 0
    assert "step 3: means" in capsys.readouterr().out


def test_a_lost_network_is_left_out_and_counted(finished):
    arrays = experiment.read(finished).arrays
    lost = {name: values.astype(float) for name, values in arrays["sign_sgd"].items()}
    for name in ("loss", "accuracy", "auc", "constant_share"):
        lost[name][1, 3] = np.nan
    apart = ~(lost["pair"] == 1).any(1)
    for name in ("angle", "signed_angle", "agreement"):
        lost[name][~apart, 3] = np.nan
    table = causes.differences({"adam": arrays["adam"], "sign_sgd": lost}, (1, 3))
    rows = table[table["change"] == "sign_sgd"].set_index(["step", "measure"])
    assert rows.loc[1, "lost"].eq(0).all()
    assert rows.loc[3, "lost"].eq(1).all()
    each = arrays["sign_sgd"]["auc"][[0, 2], 3]
    assert rows.loc[(3, "auc"), "value"] == pytest.approx(each.mean())
    assert rows.loc[(3, "auc"), "difference"] == pytest.approx((each - arrays["adam"]["auc"][[0, 2], 3]).mean())
    assert rows.loc[(3, "angle"), "value"] == pytest.approx(arrays["sign_sgd"]["angle"][apart, 3].mean())


def setting(model="mlp_shallow", size=6):
    """A setting of random images, with correlated pixels and a mean."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(size * size * 3,) * 2)
    images = np.clip(128 + rng.normal(size=(400, size * size * 3)) @ mixing, 0, 255).astype(np.uint8)
    train = Split(images.reshape(-1, size, size, 3), np.arange(400) % 2)
    config = defaults(causes.FIELDS)
    config.models = (model,)
    return causes.Setting(config, Dataset(train, train, ("a", "b"), "nowhere"), Split(*(a[:50] for a in train)), {})


def first_update(make, model="mlp_shallow", size=6):
    """A network's first update by an optimizer, and its gradient."""
    given = setting(model, size)
    built = models.build(model, given.test.inputs.shape[1:], 2)
    variables = jax.jit(built.init)(jax.random.key(0))
    x, y = data.PIXELS.of(jnp.asarray(given.test.inputs)), jnp.asarray(given.test.labels)
    loss = lambda params: training.cross_entropy(built, {**variables, "params": params}, x, y, jax.random.key(1))[0]
    optimizer = make(given)

    @jax.jit
    def first(params):
        gradient = jax.grad(loss)(params)
        return optimizer.update(gradient, optimizer.init(params), params)[0], gradient

    return first(variables["params"])


def test_matched_sgd_steps_along_the_gradient_as_far_as_its_signs():
    update, gradient = first_update(causes.matched_sgd)
    signs, _ = first_update(causes.sign_sgd)
    assert optax.global_norm(update) == pytest.approx(float(optax.global_norm(signs)), rel=1e-5)
    flat, along = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (update, gradient))
    assert flat @ along / np.linalg.norm(flat) / np.linalg.norm(along) == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize(("model", "size"), [("mlp_shallow", 6), ("lenet", 16)])
def test_the_projected_first_layer_does_not_answer_to_a_constant_colour(model, size):
    update, _ = first_update(causes.without_constant_colours, model, size)
    layer, convolution = models.first_layer(model)
    kernel = np.float64(update[layer]["kernel"])
    colours = kernel.sum((0, 1)) if convolution else kernel.reshape(len(kernel), 3, -1).sum(-1)
    np.testing.assert_allclose(colours, 0, atol=1e-6)
    assert np.abs(kernel).max() > 1e-4


def test_the_frozen_bias_alone_does_not_move():
    update, _ = first_update(causes.frozen_bias)
    last = models.last_layer({"params": update})
    assert (last["bias"] == 0).all()
    assert np.abs(last["kernel"]).max() > 1e-4
    assert np.abs(update["Dense_0"]["bias"]).max() > 1e-4


def test_whitened_images_have_no_mean_and_one_variance_in_every_direction():
    given = setting()
    rows = given.dataset.train.inputs.reshape(400, -1).astype(float)
    white = causes.whiten(given).dataset.train.inputs.reshape(400, -1)
    variance = np.linalg.eigvalsh(np.cov(white, rowvar=False))
    np.testing.assert_allclose(white.mean(0), 0, atol=0.05)
    typical = np.trace(np.cov(rows, rowvar=False)) / rows.shape[1]
    large = np.linalg.eigvalsh(np.cov(rows, rowvar=False)) > causes.FLOOR * typical
    np.testing.assert_allclose(variance[large.sum() * -1 :], typical, rtol=0.01)


def test_balanced_batches_have_as_many_images_of_each_class():
    order = partial(training.balanced_order, num_examples=30, num_classes=3)
    first, second = (np.asarray(order(jax.random.key(0), epoch)) for epoch in (0, 1))
    assert sorted(first) == list(range(30))
    assert (first[:12] % 3).tolist() == [0, 1, 2] * 4
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.changes=('centred',)"], "changes: got ('centred',); it takes adam"),
        (["--config.data.pixel_range=(-1.0, 1.0)"], "data.pixel_range: got (-1.0, 1.0)"),
        (["--config.data.subtract_mean"], "data.subtract_mean: got True"),
        (["--config.data.image_size=65"], "data.image_size: got 65; whitening (without it, leave"),
        (["--config.batch_size=33"], "batch_size: got 33; class-balanced batches take a multiple of the 2 classes"),
        (["--config.batch_size=286"], "batch_size: got 286; class-balanced batches take"),
        (["--config.data.num_train=1", "--config.batch_size=1"], "got 1 images, all the same; whitening takes several"),
    ],
)
def test_a_setting_that_a_change_cannot_take_is_one_line(tmp_path, capsys, flags, message):
    assert run(causes.EXPERIMENT, "causes.py", tmp_path / "run", *_merged(flags)) == 2
    assert message in capsys.readouterr().err


def _merged(flags):
    """`SMALL` with these flags in the place of its own."""
    return list({flag.partition("=")[0]: flag for flag in (*SMALL, *flags)}.values())
