"""Scores of transfer that need no attack: what a user would compare tau1 and tau2 with.

All go by a source network's features or predictions on the target domain's images, in float64 NumPy, and are larger
where the source should transfer better.
"""

import numpy as np
import scipy.optimize


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """LogME: the log evidence of a linear Gaussian model of the labels, per example (You et al. 2021).

    Each class's indicator y has the law N(0, s2 (I + F F^T / ratio)); the evidence is the largest over both, the mean
    over the classes. Features that are all zero explain nothing: the evidence is that of white noise.

    Args:
      features: `[N, F]`.
      labels: `[N]` integers from 0 to K - 1.

    Returns:
      Nats; any real number.

    Raises:
      ValueError: `features` are not finite; `labels` are not one for each row of `features`, or of a single class.
    """
    features, indicators = _finite("features", features), _indicators(labels, len(features))
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    squares, inside = singular**2, np.square(left.T @ indicators)  # [R], [R, K]
    outside = np.maximum(np.square(indicators).sum(0) - inside.sum(0), 0.0)
    count = len(features)

    def evidence(log_ratio: float, k: int) -> float:
        grown = 1 + squares / np.exp(log_ratio)
        variance = ((inside[:, k] / grown).sum() + outside[k]) / count
        return -(count * (np.log(2 * np.pi * variance) + 1) + np.log(grown).sum()) / 2

    # The evidence may have several peaks: a grid finds the highest, which is then climbed.
    middle = np.log(squares.max() or 1.0)  # for zero features all ratios give the same evidence
    grid = middle + np.linspace(-30, 30, 121)
    best = []
    for k in range(indicators.shape[1]):
        peak = grid[np.argmax([evidence(log_ratio, k) for log_ratio in grid])]
        climbed = scipy.optimize.minimize_scalar(
            lambda log_ratio, k=k: -evidence(log_ratio, k), bounds=(peak - 0.5, peak + 0.5), method="bounded"
        )
        best.append(-climbed.fun / count)
    return float(np.mean(best))


def leep(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """LEEP: the mean log likelihood of the labels under the source's classes, relabelled (Nguyen et al. 2020).

    Args:
      probabilities: `[N, Z]`, the source network's, over its own classes, on the target's images.
      labels: `[N]` integers from 0 to K - 1.

    Returns:
      Nats, 0 at most.

    Raises:
      ValueError: as `logme`, or a row of `probabilities` is no distribution.
    """
    probabilities, indicators = _finite("probabilities", probabilities), _indicators(labels, len(probabilities))
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1, atol=1e-2):
        raise ValueError("probabilities: got a row with negative values or another sum than 1; a softmax gives neither")
    joint = indicators.T @ probabilities  # [K, Z], over N
    of_class = joint / np.maximum(joint.sum(0), np.finfo(float).tiny)  # P(label | source's class)
    return float(np.log((probabilities @ of_class.T * indicators).sum(1)).mean())


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """H-score: `tr(cov(F)^+ cov(E[F | label]))`, how well the labels explain the features (Bao et al. 2019).

    Args:
      features: `[N, F]`.
      labels: `[N]` integers from 0 to K - 1.

    Returns:
      From 0 to K - 1; 0 where the features are the same for every example.

    Raises:
      ValueError: as `logme`.
    """
    features, indicators = _finite("features", features), _indicators(labels, len(features))
    features = features[:, np.ptp(features, axis=0) > 0]  # centred, a constant would leave its mean's rounding
    # Along the features' principal directions, each at length 1, the covariance of all is the identity.
    left, singular, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    left = left[:, singular > singular.max(initial=0) * max(features.shape) * np.finfo(float).eps]
    return float((np.square(indicators.T @ left).sum(1) / indicators.sum(0)).sum())


def linear_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear centred kernel alignment of two networks' features on the same examples (Kornblith et al. 2019).

    Args:
      first, second: `[N, F]` and `[N, G]`.

    Returns:
      From 0 to 1; 1 where one is the other turned and scaled.

    Raises:
      ValueError: they have different numbers of rows; one is not finite, or has no variance.
    """
    if len(first) != len(second):
        raise ValueError(f"second: got {len(second)} examples; first has {len(first)}")
    first, second = _finite("first", first), _finite("second", second)
    if not (np.ptp(first, axis=0).any() and np.ptp(second, axis=0).any()):
        raise ValueError("features: they are the same for every example, so nothing can be aligned")
    first, second = (x - x.mean(0) for x in (first, second))
    across, own, other = (np.linalg.norm(a.T @ b) for a, b in ((first, second), (first, first), (second, second)))
    return float(across**2 / (own * other))


def _finite(name: str, rows: np.ndarray) -> np.ndarray:
    """The rows in float64."""
    rows = np.asarray(rows, np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(f"{name}: got NaN or infinite values; all must be finite")
    return rows


def _indicators(labels: np.ndarray, count: int) -> np.ndarray:
    """A column for each class that has examples, `[N, K]`: 1 where the label is that class, else 0."""
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"labels: got the shape {labels.shape}; {count} examples take {(count,)}")
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"labels: got {classes[0]} alone; a score takes two classes or more")
    return (labels[:, None] == classes).astype(np.float64)
