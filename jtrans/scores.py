"""Transferability scores that need no attack, to compare with tau1 and tau2.

All are computed from a source network's features `[N, F]` or predictions on N images of the target domain, in float64
NumPy; `labels` are `[N]` integers from 0 to K - 1. A larger score predicts better transfer. ValueError is raised if the
features or predictions are not finite, or if the labels are not one per row of them, or all of one class.
"""

import numpy as np
import scipy.optimize


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

    def evidence(log_ratio: float, k: int) -> float:
        eigenvalues = 1 + squares / np.exp(log_ratio)
        variance = ((projected[:, k] / eigenvalues).sum() + residual[k]) / count
        return -(count * (np.log(2 * np.pi * variance) + 1) + np.log(eigenvalues).sum()) / 2

    # The evidence may have several maxima: find the highest on a grid, then refine it.
    grid = np.log(squares.max() or 1.0) + np.linspace(-30, 30, 121)  # zero features: the same evidence for all ratios
    evidences = []
    for k in range(indicators.shape[1]):
        peak = grid[np.argmax([evidence(log_ratio, k) for log_ratio in grid])]
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


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """H-score: `tr(cov(F)^+ cov(E[F | label]))`, how well the labels explain the features (Bao et al. 2019).

    In [0, K - 1]; 0 if the features are the same for every example.
    """
    features, indicators = _finite("features", features), _indicators(labels, len(features))
    features = features[:, np.ptp(features, axis=0) > 0]  # a centred constant would leave rounding errors
    # In coordinates along the principal components, scaled to unit length, the covariance of all features is I.
    left, singular, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
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
