"""What is measured of networks and of pairs, against float64 and closed forms."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from scipy.special import logsumexp

from jtrans import data, stats
from jtrans.experiments import early
from jtrans.harness import cli, experiment, folder
from jtrans.population import engine, observe


def area(odds, labels):
    """The mean over ordered pairs of classes of P(odds of the first's image > of the second's), ties one half."""
    areas = []
    for a, b in itertools.permutations(sorted(set(labels.tolist())), 2):
        first, second = odds[labels == a, a], odds[labels == b, a]
        areas.append(np.mean([(x > y) + (x == y) / 2 for x in first for y in second]))
    return np.mean(areas)


def auc(logits, labels):
    """Of one network, as a run measures it."""
    seen = observe.Seen(jnp.ones((len(labels), 1)), jnp.float32(logits), jnp.asarray(labels))
    return observe.auc(np.asarray(observe.labelled_odds(seen))[None])[0]


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_area_under_the_roc_curve_is_the_share_of_pairs_in_order(num_classes):
    rng = np.random.default_rng(num_classes)
    logits = np.float32(rng.integers(9, size=(60, 2)) / 16 if num_classes == 2 else rng.normal(size=(60, num_classes)))
    labels = rng.integers(num_classes, size=60)
    labels[labels == 2] = 0  # a class may have no image
    others = [np.delete(np.float64(logits), k, axis=1) for k in range(num_classes)]
    odds = np.stack([logits[:, k] - logsumexp(other, axis=1) for k, other in enumerate(others)], axis=1)
    assert auc(logits, labels) == pytest.approx(area(odds, labels), abs=1e-12)


def test_a_tie_counts_one_half():
    margin, labels = np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1])
    assert auc(np.stack([0 * margin, margin], axis=1), labels) == (1 + 1 + 0.5 + 1) / 4


def test_the_area_does_not_depend_on_a_bias_nor_on_saturated_probabilities():
    labels = np.arange(40) % 2
    every_image_gets_class_1 = np.stack([np.zeros(40), 1e4 + labels], axis=1)
    assert auc(every_image_gets_class_1, labels) == 1.0
    assert auc(np.zeros((40, 2)), labels) == 0.5


def test_the_area_is_nan_without_a_finite_loss_or_a_second_class():
    labels = np.arange(6) % 2
    lost = np.ones((6, 2))
    lost[2] = np.inf
    assert np.isnan(auc(lost, labels))
    assert np.isnan(auc(np.ones((6, 2)), 0 * labels))


def test_the_constant_share_of_a_colour_is_one_and_of_the_rest_zero():
    rng = np.random.default_rng(0)
    colour = np.broadcast_to([3.0, -4.0, 0.5], (20, 3))
    rest = rng.normal(size=(20, 3))
    rest -= rest.mean(0)
    colour, rest = (each.ravel() / np.linalg.norm(each) for each in (colour, rest))
    unit = np.stack([colour, rest, 0.6 * colour + 0.8 * rest, np.full(60, np.nan)])
    share = observe.constant_share(observe.Seen(jnp.float32(unit), jnp.ones((4, 2)), jnp.zeros(4, int), channels=3))
    np.testing.assert_allclose(share, [1, 0, 0.36, np.nan], atol=1e-6)
    assert observe.mean_of_directions(np.asarray(share)[None]) == pytest.approx([1.36 / 3])


@pytest.mark.parametrize("classes", [(), ("3", "8")])
def test_measures_of_saved_networks_agree_with_float64(tmp_path, classes):
    flags = ["--config.models=('mlp_shallow',)", "--config.widths.mlp_shallow=(4,)", "--config.data.image_size=8"]
    flags += ["--config.num_networks=3", "--config.num_steps=3", "--config.num_examples=40", "--config.save_networks"]
    flags += [f"--config.data.classes={classes}"] if classes else []
    config = f"--config={ROOT / 'configs' / 'digits.py'}"
    assert cli.run(early.EXPERIMENT, ["early", config, f"--workdir={tmp_path}", *flags]) == 0
    results = experiment.read(tmp_path)
    dataset = data.load("digits", engine.keys(results.config["seed"]).data, classes=classes, image_size=8)
    test = data.balanced(dataset.test, 40, "num_examples")
    (variables,) = folder.read_networks(tmp_path)
    x = np.float64(test.inputs).reshape(40, -1) / 255
    unit, odds = zip(*(by_hand(variables["params"], m, x, test.labels) for m in range(3)), strict=True)
    run = results.arrays["trajectory"]
    for m in range(3):
        assert run["auc"][m, -1] == pytest.approx(area(odds[m], test.labels), abs=1e-6)
        assert run["constant_share"][m, -1] == pytest.approx(np.nanmean(unit[m].mean(1) ** 2 * 64), abs=1e-6)
        assert run["undirected"][m, -1] == np.isnan(unit[m][:, 0]).sum()
    for p, (a, b) in enumerate(run["pair"]):
        cosine = (unit[a] * unit[b]).sum(1)
        cosine = cosine[~np.isnan(cosine)]
        assert run["signed_angle"][p, -1] == pytest.approx(np.rad2deg(np.arccos(cosine)).mean(), abs=1e-3)
        assert run["agreement"][p, -1] == pytest.approx(np.mean(cosine > 0), abs=1e-6)
    interval = stats.pair_mean_ci(run["signed_angle"], run["pair"], run["model"])
    np.testing.assert_allclose(results.tables["trajectory"]["signed_angle_low"], interval.low)


def by_hand(params, m, x, labels):
    """Unit input gradients of the loss, NaN where it is zero, and log-odds, of network m at flat images, in float64."""
    (w1, b1), (w2, b2) = ([np.float64(params[f"Dense_{i}"][part][m]) for part in ("kernel", "bias")] for i in (0, 1))
    hidden = x @ w1.T + b1
    logits = np.maximum(hidden, 0) @ w2.T + b2
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = ((p - np.eye(p.shape[1])[labels]) @ w2 * (hidden > 0)) @ w1
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    return gradient / np.where(length == 0, np.nan, length), np.log(p / (1 - p))


def test_the_sign_of_a_cosine_is_kept():
    cosine = jnp.array([[0.5, 0.2], [-0.5, 0.2], [-0.5, -0.1], [np.nan, 0.3]])
    np.testing.assert_array_equal(observe.agrees(cosine), [[1, 1], [0, 1], [0, 0], [np.nan, 1]])
    np.testing.assert_allclose(observe.signed(cosine[:3, 0]), [60, 120, 120], rtol=1e-6)
