import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from jtrans import scores


def problem(count=60, width=5, classes=3, signal=1.0):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    return rng.normal(size=(count, width)) + signal * rng.normal(size=(classes, width))[labels], labels


def log_evidence(features, y, alpha, beta):
    """The log density of y under a Gaussian prior of precision alpha on the weights and noise of precision beta."""
    covariance = np.eye(len(y)) / beta + features @ features.T / alpha
    return scipy.stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y) / len(y)


@pytest.mark.parametrize("signal", [1.0, 4.0])
@pytest.mark.parametrize("width", [5, 30])
def test_logme_is_the_largest_evidence(width, signal):
    features, labels = problem(width=width, signal=signal)
    want = []
    for k in range(3):
        lost = lambda logs, k=k: -log_evidence(features, (labels == k) * 1.0, *np.exp(logs))
        starts = [(a, b) for a in (-2, 2, 6, 20) for b in (0, 3)]
        found = [scipy.optimize.minimize(lost, s, method="Nelder-Mead", bounds=[(-6, 25), (-6, 8)]) for s in starts]
        want.append(-min(f.fun for f in found))
    assert scores.logme(features, labels) == pytest.approx(np.mean(want), abs=1e-5)


def test_logme_of_more_features_than_examples_and_of_redundant_ones():
    features, labels = problem(count=20, width=40)
    assert np.isfinite(scores.logme(features, labels))
    # A copy of every feature is a prior twice as wide, which the evidence undoes.
    twice = scores.logme(np.c_[features, features], labels)
    assert twice == pytest.approx(scores.logme(features, labels), abs=1e-6)


def test_leep_of_chosen_predictions():
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert scores.leep(np.eye(3)[labels], labels) == pytest.approx(0, abs=1e-12)
    renamed = np.eye(5)[np.array([4, 1, 0])[labels]]  # other names, and classes that never come
    assert scores.leep(renamed, labels) == pytest.approx(0, abs=1e-12)
    assert scores.leep(np.full((6, 4), 0.25), labels) == pytest.approx(-np.log(3))  # knows nothing: the entropy
    # Two source classes for three labels: the one that stands for two of them leaves a coin toss.
    halves = np.eye(2)[np.array([0, 0, 1])[labels]]
    assert scores.leep(halves, labels) == pytest.approx(2 / 3 * np.log(0.5))


def test_leep_by_its_definition():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(4), size=30), rng.integers(3, size=30)
    want = []
    for theta, label in zip(probabilities, labels, strict=True):
        total = 0
        for z in range(4):
            of_label = probabilities[labels == label, z].sum() / probabilities[:, z].sum()
            total += of_label * theta[z]
        want.append(np.log(total))
    assert scores.leep(probabilities, labels) == pytest.approx(np.mean(want))


def test_h_score_by_its_definition():
    features, labels = problem()
    means = np.stack([features[labels == k].mean(0) for k in range(3)])[labels]
    want = np.trace(np.linalg.inv(np.cov(features.T, bias=True)) @ np.cov(means.T, bias=True))
    assert scores.h_score(features, labels) == pytest.approx(want)
    assert scores.h_score(np.c_[features, features @ np.ones((5, 2))], labels) == pytest.approx(want)  # redundant ones


def test_h_score_of_chosen_features():
    labels = np.arange(60) % 4
    assert scores.h_score(np.eye(4)[labels], labels) == pytest.approx(3)  # K - 1: all that there is to know
    balanced = np.tile(np.repeat([[1.0], [-1.0]], 4, 0), (8, 1))[:60]  # of no account to the label
    balanced, labels = balanced[:56], labels[:56]
    assert scores.h_score(balanced, labels) == pytest.approx(0, abs=1e-12)


def test_linear_cka_by_kernels_and_of_chosen_features():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)), rng.normal(size=(20, 9))
    centre = np.eye(20) - 1 / 20
    k, m = (centre @ f @ f.T @ centre for f in (x, y))
    want = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert scores.linear_cka(x, y) == pytest.approx(want)
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert scores.linear_cka(x, 3 * x @ turned + 7) == pytest.approx(1)
    first, second = np.zeros((4, 1)), np.zeros((4, 1))
    first[:2], second[::2] = 1, 1
    assert scores.linear_cka(first, second) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("score", [scores.logme, scores.leep, scores.h_score])
def test_wrong_labels_are_named(score):
    with pytest.raises(ValueError, match=r"labels: got the shape \(3,\); 4 examples take \(4,\)"):
        score(np.ones((4, 2)), np.arange(3))
    with pytest.raises(ValueError, match="two classes or more"):
        score(np.ones((4, 2)), np.ones(4, int))


def test_features_that_cannot_be_aligned_are_named():
    with pytest.raises(ValueError, match="second: got 3 examples; first has 4"):
        scores.linear_cka(np.ones((4, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="the same for every example"):
        scores.linear_cka(np.ones((4, 2)), np.eye(4))


@pytest.mark.parametrize(
    ("score", "name"), [(scores.logme, "features"), (scores.leep, "probabilities"), (scores.h_score, "features")]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(score, name, value):
    with pytest.raises(ValueError, match=f"{name}: got NaN or infinite values; all must be finite"):
        score(np.array([[0.5, 0.5], [value, 0.5]]), np.arange(2))
    with pytest.raises(ValueError, match="second: got NaN or infinite values"):
        scores.linear_cka(np.eye(2), np.array([[1, value], [0, 1]]))


def test_features_that_say_nothing():
    labels = np.arange(60) % 3
    # The best Gaussian of variance 1/3 for each indicator: no feature explains any of it.
    want = -(np.log(2 * np.pi / 3) + 1) / 2
    assert scores.logme(np.zeros((60, 4)), labels) == pytest.approx(want)
    for value in (0.0, 0.1):  # whose mean over 60 rows is not 0.1 in floating point
        assert scores.h_score(np.full((60, 4), value), labels) == 0
        with pytest.raises(ValueError, match="the same for every example"):
            scores.linear_cka(np.full((60, 4), value), np.eye(60))


def test_a_class_without_examples_changes_nothing():
    features, labels = problem()
    for score in (scores.logme, scores.h_score):
        assert score(features, labels * 2) == pytest.approx(score(features, labels))


def test_leep_takes_zero_probabilities_but_no_rows_that_are_no_distribution():
    labels = np.array([0, 0, 1, 1])
    # The second source class stands for one image of the first class and two of the second; the third for none.
    probabilities = np.eye(3)[[0, 1, 1, 1]]
    want = (np.log(1) + np.log(1 / 3) + 2 * np.log(2 / 3)) / 4
    assert scores.leep(probabilities, labels) == pytest.approx(want)
    for row in ([0.0, 0.0, 0.0], [-1.0, 2.0, 0.0]):
        with pytest.raises(ValueError, match="probabilities: got a row with negative values or a sum other than 1"):
            scores.leep(np.array([row, *probabilities[1:]]), labels)
