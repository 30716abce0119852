from functools import partial

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from jtrans import scores

KEY = jax.random.key(0)


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


@pytest.mark.parametrize(
    "score", [scores.logme, scores.leep, scores.h_score, scores.gbc, partial(scores.n_leep, key=KEY)]
)
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
    ("score", "name"),
    [
        (scores.logme, "features"),
        (scores.leep, "probabilities"),
        (partial(scores.n_leep, key=KEY), "features"),
        (scores.gbc, "features"),
        (scores.h_score, "features"),
    ],
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
    for score in (scores.logme, scores.h_score, scores.gbc):
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


def step(x, posterior):
    """The posteriors `[N, C]` under the C Gaussians of x `[N, D]` that follow from the last, and the log likelihood."""
    weights, ridge = posterior.mean(0), 1e-6 * np.eye(x.shape[1])
    means = [np.average(x, axis=0, weights=p) for p in posterior.T]
    covariances = [np.cov(x.T, aweights=p, bias=True) + ridge for p in posterior.T]
    gaussians = zip(weights, means, covariances, strict=True)
    density = np.stack([w * scipy.stats.multivariate_normal(m, c).pdf(x) for w, m, c in gaussians], axis=1)
    return density / density.sum(1, keepdims=True), np.log(density.sum(1)).mean()


def expectation_maximisation(x, start):
    """The posteriors of a mixture that is fitted until the log likelihood grows by less than 1e-3 in a step."""
    before, (posterior, now) = -np.inf, step(x, start)
    while abs(now - before) >= 1e-3:
        before, (posterior, now) = now, step(x, posterior)
    return step(x, posterior)[0]


def two_means(x):
    """Which of two clusters each row belongs to, one-hot, where k-means ends."""
    centres = x[[x[:, 0].argmin(), x[:, 0].argmax()]]
    for _ in range(100):
        nearest = np.square(x[:, None] - centres).sum(2).argmin(1)
        centres = np.stack([x[nearest == c].mean(0) for c in range(2)])
    return np.eye(2)[nearest]


def test_n_leep_is_the_leep_of_a_mixture_fitted_in_numpy():
    features, labels = problem(count=80, width=6, classes=2, signal=1.5)
    centred = features - features.mean(0)
    variance, axes = np.linalg.eigh(centred.T @ centred)
    variance, axes = variance[::-1], axes[:, ::-1]
    few = 1 + np.flatnonzero(np.cumsum(variance) / variance.sum() >= 0.6)[0]
    assert 1 < few < 6
    x = centred @ axes[:, :few] / np.sqrt(variance[0] / 80)
    posterior = expectation_maximisation(x, two_means(x))
    assert np.sort(posterior, axis=1)[:, 0].max() > 0.05  # no hard clusters
    got = scores.n_leep(features, labels, KEY, energy=0.6, per_class=1)
    assert got == pytest.approx(scores.leep(posterior, labels), abs=1e-6)


def test_n_leep_of_chosen_clusters():
    """Three far clusters and three labels: what is left to guess is how a cluster's examples divide over labels."""
    rng, cluster = np.random.default_rng(0), np.repeat(np.arange(3), 20)
    features = 100.0 * np.eye(3)[cluster] + rng.normal(size=(60, 3))
    labels = np.where(np.arange(60) % 4 == 0, (cluster + 1) % 3, cluster)
    want = 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    assert scores.n_leep(features, labels, KEY, per_class=1) == pytest.approx(want, abs=1e-6)
    # Four clusters, and the label shows only in the direction with 14 % of the variance.
    where = np.array([[-2.5, -1.0], [-2.5, 1.0], [2.5, -1.0], [2.5, 1.0]])[np.arange(60) % 4]
    features, labels = where + 0.01 * rng.normal(size=(60, 2)), np.arange(60) % 2
    assert scores.n_leep(features, labels, KEY, energy=0.8, per_class=1) == pytest.approx(np.log(0.5), abs=1e-6)
    assert scores.n_leep(features, labels, KEY, energy=0.9, per_class=2) == pytest.approx(0, abs=1e-6)


def test_n_leep_of_features_turned_scaled_and_the_same_for_all():
    features, labels = problem(count=90, width=4)
    score, turned = scores.n_leep(features, labels, KEY), np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    assert np.log(1 / 3) < score < 0
    for scale in (1e-9, 1e9):
        assert scores.n_leep(scale * features @ turned + scale, labels, KEY) == pytest.approx(score, abs=1e-6)
    assert scores.n_leep(np.full((90, 4), 0.1), labels, KEY) == pytest.approx(np.log(1 / 3))  # the entropy


def gaussian_overlap(first, second, diagonal):
    """The Bhattacharyya coefficient of two samples as Gaussians, by determinants and inverses."""
    spread = lambda x: np.diag(x.var(0)) if diagonal else np.eye(x.shape[1]) * x.var(0).mean()
    a, b, gap = spread(first), spread(second), first.mean(0) - second.mean(0)
    mean = (a + b) / 2
    determinants = np.linalg.det(mean) / np.sqrt(np.linalg.det(a) * np.linalg.det(b))
    return np.exp(-(gap @ np.linalg.inv(mean) @ gap) / 8 - np.log(determinants) / 2)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("width", "components"), [(5, 64), (5, 2), (70, 64)])
def test_gbc_by_its_definition(width, components, diagonal):
    features, labels = problem(count=90, width=width, signal=0.3)
    features *= np.where(labels == 1, 2, 1)[:, None]
    centred = features - features.mean(0)
    x = centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :components]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    want = -sum(gaussian_overlap(x[labels == i], x[labels == j], diagonal) for i, j in pairs)
    got = scores.gbc(features, labels, components=components, diagonal=diagonal)
    assert got == pytest.approx(want, rel=1e-9)
    assert -6 < got < 0
    if components == 64:
        assert scores.gbc(features, labels, diagonal=diagonal) == got


def test_gbc_is_the_integral_of_the_root_of_the_product_of_densities():
    x = np.array([-1.0, 1.0, 0.0, 4.0, 8.0])  # means 0 and 4, standard deviations 1 (of two) and sqrt(32 / 3)
    labels = np.array([0, 0, 1, 1, 1])
    p, q = (scipy.stats.norm(x[labels == k].mean(), x[labels == k].std()).pdf for k in range(2))
    overlap = scipy.integrate.quad(lambda t: np.sqrt(p(t) * q(t)), -30, 30)[0]
    for diagonal in (False, True):
        assert scores.gbc(x[:, None], labels, diagonal=diagonal) == pytest.approx(-2 * overlap, rel=1e-6)


@pytest.mark.parametrize("diagonal", [False, True])
def test_gbc_of_classes_that_are_points(diagonal):
    labels = np.repeat(np.arange(3), 4)
    of_classes = lambda *points: np.array(points)[labels]
    score = lambda features: scores.gbc(features, labels, diagonal=diagonal)
    assert score(of_classes([0.1, 0.3], [0.7, 0.3], [0.2, 0.9])) == pytest.approx(0, abs=1e-6)  # all apart
    assert score(of_classes([0.1, 0.3], [0.7, 0.9], [0.7, 0.9])) == pytest.approx(-2, abs=1e-6)  # two in one place
    assert score(np.full((12, 2), 0.1)) == -6
    for scale in (1e-9, 1e9):
        features = problem(count=12)[0]
        assert score(scale * features + scale) == pytest.approx(score(features), rel=1e-6)


def mean_of(x, y):
    return x.mean()


def test_the_interval_of_a_mean_is_students():
    """One sample, and one of each class where the labels say so: their spread within classes counts, not between."""
    rng = np.random.default_rng(0)
    x = rng.lognormal(size=40)
    got = scores.interval(mean_of, x, np.zeros((40, 1)), KEY, resamples=4000)
    want = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert got.mean == x.mean()
    np.testing.assert_allclose(got[1:], want, atol=0.05 * (want[1] - want[0]) / 2)

    labels = np.repeat(np.arange(8), 5)
    x += 10 * labels
    within = np.sqrt(sum(x[labels == k].var(ddof=1) for k in range(8)) / 8)
    margin = scipy.stats.t.ppf(0.975, 40 - 8) * within / np.sqrt(40)
    got = scores.interval(mean_of, x, labels, KEY, resamples=4000)
    np.testing.assert_allclose([got.mean - got.low, got.high - got.mean], margin, rtol=0.05)


def test_bootstrap_samples_have_as_many_of_each_class_and_the_same_rows_of_both():
    labels, seen = np.array([2, 0, 0, 5, 5, 5]), []

    def record(x, y):
        np.testing.assert_array_equal(labels[x], y)
        seen.append((tuple(sorted(y)), tuple(x)))
        return 0.0

    scores.interval(record, np.arange(6), labels, KEY, resamples=50)
    assert {counts for counts, _ in seen} == {(0, 0, 2, 5, 5, 5)}
    assert seen[0][1] == (0, 1, 2, 3, 4, 5)  # the score itself
    assert len({rows for _, rows in seen}) > 20


def test_intervals_follow_from_the_key():
    features, labels = problem()
    of = lambda key, score=scores.h_score: scores.interval(score, features, labels, key, resamples=20)
    assert of(KEY) == of(jax.random.PRNGKey(0))
    assert of(KEY).mean == of(jax.random.key(1)).mean
    assert of(KEY).low != of(jax.random.key(1)).low


@pytest.mark.parametrize(
    "score", [scores.logme, scores.h_score, scores.gbc, partial(scores.n_leep, key=jax.random.key(0))]
)
def test_every_score_of_features_has_an_interval(score):
    features, labels = problem()
    got = scores.interval(score, features, labels, KEY, resamples=10)
    assert got.mean == score(features, labels)
    assert got.low < got.mean < got.high


def test_an_interval_of_cka_and_of_leep():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50, 4))
    got = scores.interval(scores.linear_cka, x, x + y, KEY)
    assert got.low < scores.linear_cka(x, x + y) == got.mean < got.high
    got = scores.interval(scores.leep, rng.dirichlet(np.ones(4), size=50), np.arange(50) % 3, KEY)
    assert got.low < got.mean < got.high


def test_intervals_cover_the_mean_score_of_other_examples():
    classes, labels = np.random.default_rng(0).normal(size=(3, 4)) / 2, np.arange(60) % 3
    draw = lambda seed: classes[labels] + np.random.default_rng(seed).normal(size=(60, 4))
    truth = np.mean([scores.h_score(draw(1000 + i), labels) for i in range(500)])
    of = lambda i: scores.interval(scores.h_score, draw(i), labels, jax.random.key(i), resamples=40)
    covered = np.mean([low <= truth <= high for _, low, high in map(of, range(150))])
    assert 0.9 < covered < 1  # 0.95 less three standard errors, or somewhat more than 0.95


@pytest.mark.slow
def test_intervals_of_n_leep_cover_its_mean_and_are_not_much_wider_than_needed():
    """The other scores are on the page on coverage."""
    score, labels = partial(scores.n_leep, key=KEY, per_class=2), np.arange(60) % 2
    classes = np.random.default_rng(0).normal(size=(2, 2))
    draw = lambda seed: classes[labels] + np.random.default_rng(seed).normal(size=(60, 2))
    others = [score(draw(1000 + i), labels) for i in range(100)]
    of = lambda i: scores.interval(score, draw(i), labels, jax.random.key(i), resamples=30)
    _, low, high = np.transpose([of(i) for i in range(40)])
    assert ((low <= np.mean(others)) & (np.mean(others) <= high)).mean() > 0.85  # 0.95 less three standard errors
    assert np.median(high - low) < 1.6 * 2 * 1.96 * np.std(others)


def test_a_difference_of_two_sources_on_the_same_examples():
    features, labels = problem(signal=0.5)
    better = features + 0.3 * np.eye(5)[labels]
    scored = [scores.interval(scores.h_score, x, labels, KEY) for x in (better, features)]
    got = scores.difference(scores.h_score, better, features, labels, KEY)
    assert got.mean == scored[0].mean - scored[1].mean > 0
    assert got.low > 0  # it is real
    assert scored[0].low < scored[1].high  # which the two intervals do not tell
    other = scores.difference(scores.h_score, features, better, labels, KEY)
    np.testing.assert_allclose(other, [-got.mean, -got.high, -got.low])
    turned = features @ np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    np.testing.assert_allclose(scores.difference(scores.h_score, features, turned, labels, KEY), 0, atol=1e-9)


def test_a_difference_of_means_is_that_of_the_paired_test():
    x, y = np.random.default_rng(0).normal(size=(2, 40)) + 5 * np.random.default_rng(1).normal(size=40)
    got = scores.difference(mean_of, x, y, np.zeros((40, 1)), KEY, resamples=4000)
    want = scipy.stats.ttest_rel(x, y).confidence_interval(0.95)
    np.testing.assert_allclose(got[1:], want, atol=0.05 * (want[1] - want[0]) / 2)


def test_wrong_settings_of_scores_and_intervals_are_named():
    features, labels = problem()
    with pytest.raises(ValueError, match=r"energy: got 0; it takes a share"):
        scores.n_leep(features, labels, KEY, energy=0)
    with pytest.raises(ValueError, match="got 14 examples; a mixture of 15 Gaussians"):
        scores.n_leep(features[:14], labels[:14], KEY)
    with pytest.raises(ValueError, match="components: got 0; it takes 1 or more"):
        scores.gbc(features, labels, components=0)
    with pytest.raises(ValueError, match="labels: got a class of one example; a Gaussian takes two or more"):
        scores.gbc(features[:4], np.array([0, 0, 1, 1]) + np.array([0, 0, 0, 1]))
    with pytest.raises(ValueError, match="source: got 59 examples; target has 60"):
        scores.interval(scores.h_score, features[1:], labels, KEY)
    with pytest.raises(ValueError, match="second: got 59 examples; target has 60"):
        scores.difference(scores.h_score, features, features[1:], labels, KEY)
    with pytest.raises(ValueError, match="resamples: got 1; a standard deviation takes 2 or more"):
        scores.interval(scores.h_score, features, labels, KEY, resamples=1)
    for random in (partial(scores.n_leep, features), partial(scores.interval, scores.h_score, features)):
        with pytest.raises(ValueError, match="key: got None"):
            random(labels, key=None)


def test_one_example_of_each_class_has_no_interval():
    got = scores.interval(scores.h_score, np.eye(4), np.arange(4), KEY, resamples=2)
    assert got.mean == scores.h_score(np.eye(4), np.arange(4))
    assert np.isnan(got[1:]).all()
