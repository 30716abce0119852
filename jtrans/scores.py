"""Transferability scores that need no attack, to compare with tau1 and tau2.

All are computed from a source network's features `[N, F]` or predictions on N images of the target domain, in float64
NumPy; `labels` are `[N]` integers from 0 to K - 1. A larger score predicts better transfer. ValueError is raised if the
features or predictions are not finite, or if the labels are not one per row of them, or all of one class. `interval`
shows how much a score varies with the examples, `difference` how much two scores differ.
"""

import warnings
from collections.abc import Callable

import jax
import numpy as np
import scipy.optimize

from jtrans.stats import Estimate, Interval


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """LogME: the log evidence of a linear Gaussian model of the labels, per example (You et al. 2021).

    The indicator of each class is modelled as N(0, s2 (I + F F^T / ratio)); the evidence is maximised over s2 and
    ratio, then averaged over the classes: any real number, in nats. For features that are all zero it is the evidence
    of white noise.
    """
    features, indicators = _finite("features", features), _indicators(labels, len(features))
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    squares, projected = singular**2, np.square(left.T @ indicators)  # [R], [R, K]
    residual = np.maximum(np.square(indicators).sum(0) - projected.sum(0), 0.0)
    count = len(features)

    def evidence(log_ratio: np.ndarray, k: int) -> np.ndarray:
        eigenvalues = 1 + squares / np.exp(log_ratio)[..., None]
        variance = ((projected[:, k] / eigenvalues).sum(-1) + residual[k]) / count
        return -(count * (np.log(2 * np.pi * variance) + 1) + np.log(eigenvalues).sum(-1)) / 2

    # The evidence may have several maxima: find the highest on a grid, then refine it.
    grid = np.log(squares.max() or 1.0) + np.linspace(-30, 30, 121)  # zero features: the same evidence for all ratios
    evidences = []
    for k in range(indicators.shape[1]):
        peak = grid[np.argmax(evidence(grid, k))]
        loss = lambda log_ratio, k=k: -evidence(log_ratio, k)
        optimum = scipy.optimize.minimize_scalar(loss, bounds=(peak - 0.5, peak + 0.5), method="bounded")
        evidences.append(-optimum.fun / count)
    return float(np.mean(evidences))


def leep(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """LEEP: the mean log likelihood of the labels, predicted from the source's classes (Nguyen et al. 2020).

    In nats, at most 0. The `probabilities` `[N, Z]` are those that the source predicts for its own Z classes.
    ValueError is raised also if a row of them is not a distribution.
    """
    probabilities, indicators = _finite("probabilities", probabilities), _indicators(labels, len(probabilities))
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1, atol=1e-2):
        raise ValueError("probabilities: got a row with negative values or a sum other than 1; pass softmax outputs")
    joint = indicators.T @ probabilities  # [K, Z], times N
    of_class = joint / np.maximum(joint.sum(0), np.finfo(float).tiny)  # P(label | source's class)
    return float(np.log((probabilities @ of_class.T * indicators).sum(1)).mean())


def n_leep(
    features: np.ndarray, labels: np.ndarray, key: jax.Array, *, energy: float = 0.8, per_class: int = 5
) -> float:
    """N-LEEP: LEEP from a Gaussian mixture of the features in the place of the source's classes (Li et al. 2021).

    The features are reduced to the first principal components that hold the share `energy` of their variance. A mixture
    of `per_class` Gaussians for each class, every one with a covariance matrix of its own, is fitted to them, and LEEP
    takes the posterior probabilities of the Gaussians for each example. In nats, at most 0; it does not depend on the
    scale of the features. The mixture is scikit-learn's: expectation maximisation to a local optimum, from clusters by
    k-means whose random start is drawn from `key`.

    Raises:
      ValueError: `energy` is not above 0 and at most 1, or there are fewer examples than Gaussians.
    """
    import sklearn.exceptions  # takes half a second, so only for this score
    import sklearn.mixture

    features, indicators = _finite("features", features), _indicators(labels, len(features))
    if not 0 < energy <= 1:
        raise ValueError(f"energy: got {energy}; it takes a share of the variance, above 0 and at most 1")
    count = per_class * indicators.shape[1]
    if len(features) < count:
        raise ValueError(
            f"features: got {len(features)} examples; a mixture of {count} Gaussians takes as many or more"
        )
    principal = _principal(features)
    share = np.cumsum(principal.var(0))
    principal = principal[:, : np.searchsorted(share, energy * share[-1]) + 1]
    principal /= principal[:, 0].std() or 1.0  # scikit-learn adds 1e-6 to all variances
    mixture = sklearn.mixture.GaussianMixture(count, random_state=_seed(key))
    with warnings.catch_warnings():  # fewer distinct examples than Gaussians leave some of these equal
        warnings.filterwarnings("ignore", "Number of distinct clusters", sklearn.exceptions.ConvergenceWarning)
        return leep(mixture.fit(principal).predict_proba(principal), labels)


def gbc(features: np.ndarray, labels: np.ndarray, *, components: int = 64, diagonal: bool = False) -> float:
    """GBC: minus the overlap of the classes as Gaussians, over all pairs of different classes (Pándy et al. 2022).

    Each class is a Gaussian of the first `components` principal components of the features. The overlap of two is the
    Bhattacharyya coefficient, `exp(-D_B)`, from 0 to 1; each pair counts in both orders, so the score lies in
    [-K (K - 1), 0]. It does not depend on the scale of the features. Covariance matrices are multiples of the identity,
    or with `diagonal` any diagonal ones. (The official code's distance between multiples of the identity has the
    logarithms of one dimension only, not of all, and its variances are at least 1e-4.)

    Raises:
      ValueError: a class has one example only, or `components` is less than 1.
    """
    features, indicators = _finite("features", features), _indicators(labels, len(features))
    counts = indicators.sum(0)
    if components < 1:
        raise ValueError(f"components: got {components}; it takes 1 or more")
    if counts.min() < 2:
        raise ValueError("labels: got a class of one example; a Gaussian takes two or more")
    principal = _principal(features)[:, :components]
    means = indicators.T @ principal / counts[:, None]  # [K, C]
    variances = np.stack([principal[of_class == 1].var(0) for of_class in indicators.T])
    if not diagonal:
        variances = np.broadcast_to(variances.mean(1, keepdims=True), variances.shape)
    # The least variance, of rounding errors: two classes that are points overlap in the same place, and only there.
    limits = np.finfo(float)
    variances = np.maximum(variances, max(limits.eps * principal.var(0).max(), limits.tiny))
    overlap = 0.0
    for k, (mean, variance) in enumerate(zip(means, variances, strict=True), 1):  # each class, with all that follow
        average = (variance + variances[k:]) / 2
        apart = np.square(mean - means[k:]) / average / 4
        unlike = np.log(average) - (np.log(variance) + np.log(variances[k:])) / 2
        overlap += np.exp(-(apart + unlike).sum(1) / 2).sum()
    return float(-2 * overlap)


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """H-score: `tr(cov(F)^+ cov(E[F | label]))`, how well the labels explain the features (Bao et al. 2019).

    In [0, K - 1]; 0 if the features are the same for every example.
    """
    features, indicators = _finite("features", features), _indicators(labels, len(features))
    # In coordinates along the principal components, scaled to unit length, the covariance of all features is I.
    left, singular, _ = np.linalg.svd(_centred(features), full_matrices=False)
    left = left[:, singular > singular.max(initial=0) * max(features.shape) * np.finfo(float).eps]
    return float((np.square(indicators.T @ left).sum(1) / indicators.sum(0)).sum())


def linear_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear centred kernel alignment of two networks' features on the same examples (Kornblith et al. 2019).

    From `[N, F]` and `[N, G]` a number in [0, 1]; 1 if one is the other rotated and scaled. ValueError is raised if the
    numbers of rows differ, or one is not finite or has no variance.
    """
    if len(first) != len(second):
        raise ValueError(f"second: got {len(second)} examples; first has {len(first)}")
    first, second = _finite("first", first), _finite("second", second)
    if not (np.ptp(first, axis=0).any() and np.ptp(second, axis=0).any()):
        raise ValueError("features: they are the same for every example; CKA takes features that vary")
    first, second = (x - x.mean(0) for x in (first, second))
    size = lambda a, b: np.linalg.norm(a.T @ b)
    return float(size(first, second) ** 2 / (size(first, first) * size(second, second)))


def interval(
    score: Callable[[np.ndarray, np.ndarray], float],
    source: np.ndarray,
    target: np.ndarray,
    key: jax.Array,
    *,
    resamples: int = 200,
) -> Interval:
    """A score with its 95 % interval: how much it varies with the examples, by a bootstrap over them.

    It covers the mean of the score over data sets of other examples, as many of each class as here. It does not cover
    other seeds of the source, nor the score of endless examples, which is far from that mean where there are few
    examples for each feature. The interval is Student's, from the score and the standard deviation of the scores of
    the bootstrap samples, for N - K degrees of freedom (N - 1 without labels). The percentiles of these scores would
    not do: the repeated examples shift all of them, often beyond the score itself. `docs/coverage.md` has the coverage,
    which is too low with ten examples of each class or fewer.

    >>> features, labels = np.random.default_rng(0).normal(size=(90, 2)), np.arange(90) % 3
    >>> h, low, high = interval(h_score, features, labels, jax.random.key(0))
    >>> bool(low < h < high)
    True

    Args:
      score: any function of `source` and `target`, such as `logme`, or `partial(n_leep, key=key)`.
      source: `[N, ...]`, the features or predictions of the source.
      target: `[N]` labels, of which each bootstrap sample has as many of each class; or `[N, G]`, the features of
        another network, for `linear_cka`.
      key: draws the samples; the same key, the same samples.
      resamples: how many bootstrap samples, 2 or more; the score is computed for each.

    Returns:
      The score, which stands in the field `mean`, and the bounds; NaN where no class has two examples.

    Raises:
      ValueError: the numbers of examples differ, there are too few bootstrap samples, or `score` refuses one.
    """
    source = _paired("source", source, target)
    return _bootstrap(lambda rows, target: score(source[rows], target), target, key, resamples)


def difference(
    score: Callable[[np.ndarray, np.ndarray], float],
    first: np.ndarray,
    second: np.ndarray,
    target: np.ndarray,
    key: jax.Array,
    *,
    resamples: int = 200,
) -> Interval:
    """How much larger the score of the first source is than that of the second, with its 95 % interval.

    Both are scored on the same examples, in every bootstrap sample too, so what is easy or hard for both does not widen
    the interval: it may exclude 0 where the intervals of the two scores overlap. All else is as in `interval`.

    Args:
      score: any function of a source and `target`.
      first, second: `[N, ...]`, the features or predictions of two sources for the same examples.
      target: `[N]` labels, or `[N, G]` features.
      key: draws the bootstrap samples.
      resamples: how many, 2 or more; two scores are computed for each.

    Raises:
      ValueError: as `interval`.
    """
    first, second = _paired("first", first, target), _paired("second", second, target)
    of_rows = lambda rows, target: score(first[rows], target) - score(second[rows], target)
    return _bootstrap(of_rows, target, key, resamples)


def _paired(name: str, rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rows; raises ValueError if they are not one for each example of the target."""
    rows = np.asarray(rows)
    if len(rows) != len(target):
        raise ValueError(f"{name}: got {len(rows)} examples; target has {len(target)}")
    return rows


def _bootstrap(
    score: Callable[[np.ndarray, np.ndarray], float], target: np.ndarray, key: jax.Array, resamples: int
) -> Interval:
    """The interval of a score of some rows of the source, and of the target's rows with them."""
    if resamples < 2:
        raise ValueError(f"resamples: got {resamples}; a standard deviation takes 2 or more")
    target, rng = np.asarray(target), np.random.default_rng(_seed(key))
    group = target if target.ndim == 1 else np.zeros(len(target), int)
    members = [np.flatnonzero(group == label) for label in np.unique(group)]
    samples = (np.concatenate([rng.choice(rows, len(rows)) for rows in members]) for _ in range(resamples))
    whole, freedom = score(np.arange(len(target)), target), len(target) - len(members)
    of_samples = [score(rows, target[rows]) for rows in samples]
    # Samples of n examples vary by (n - 1) / n too little: their squares are about their own mean.
    error = np.std(of_samples, ddof=1) * np.sqrt(len(target) / freedom) if freedom else np.nan
    return Estimate(whole, error, freedom).interval()


def _seed(key: jax.Array) -> int:
    """The seed of a random generator outside JAX."""
    if key is None:
        raise ValueError("key: got None; random draws take a key, such as jax.random.key(0)")
    return int(jax.random.bits(key, dtype=np.uint32))


def _centred(features: np.ndarray) -> np.ndarray:
    """The features less their means; exactly 0 where one is the same for every example."""
    return np.where(np.ptp(features, axis=0) > 0, features - features.mean(0), 0.0)


def _principal(features: np.ndarray) -> np.ndarray:
    """The features along their principal components, those of most variance first."""
    left, singular, _ = np.linalg.svd(_centred(features), full_matrices=False)
    return left * singular


def _finite(name: str, rows: np.ndarray) -> np.ndarray:
    """The rows in float64; raises ValueError if they are not finite."""
    rows = np.asarray(rows, np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(f"{name}: got NaN or infinite values; all must be finite")
    return rows


def _indicators(labels: np.ndarray, count: int) -> np.ndarray:
    """One column per class that has examples, `[N, K]`: 1 where the label is that class, else 0."""
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"labels: got the shape {labels.shape}; {count} examples take {(count,)}")
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"labels: got class {classes[0]} only; a score takes two classes or more")
    return (labels[:, None] == classes).astype(np.float64)
