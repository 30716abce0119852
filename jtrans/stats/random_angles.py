"""The distribution of the angle between random directions."""

from typing import NamedTuple

import numpy as np
import scipy.integrate
import scipy.special


class RandomAngle(NamedTuple):
    """The folded angle between two independent, uniformly random directions in `dimension` dimensions, in degrees.

    The squared cosine follows Beta(1/2, (dimension - 1) / 2). All methods are exact except the last two, which are the
    approximations of BenShmuel (2022), Appendix A.
    """

    dimension: int

    def cdf(self, angle: np.ndarray | float) -> np.ndarray:
        """The probability of an angle of at most `angle` degrees, for angles in [0, 90]."""
        cosine = np.cos(np.deg2rad(angle))
        return scipy.special.betaincc(0.5, (self.dimension - 1) / 2, cosine**2)

    def quantile(self, probability: np.ndarray | float) -> np.ndarray:
        """The angle below which a random pair falls with the given probability, in degrees."""
        squared = scipy.special.betainccinv(0.5, (self.dimension - 1) / 2, probability)
        return np.rad2deg(np.arccos(np.sqrt(squared)))

    def mean(self) -> float:
        """The mean angle, in degrees: 89.18 for the 3,072 dimensions of a CIFAR image."""
        return scipy.integrate.quad(self.quantile, 0, 1)[0]

    def least(self, count: int, probability: float = 0.5) -> float:
        """The angle below which the least of `count` independent ones falls with the given probability, in degrees."""
        return float(self.quantile(-np.expm1(np.log1p(-probability) / count)))

    def typical(self) -> float:
        """The paper's typical angle, `arccos(1 / sqrt(dimension))`, from the mean of the squared cosine (Table 3)."""
        return float(np.rad2deg(np.arccos(1 / np.sqrt(self.dimension))))

    def markov_bound(self, angle: np.ndarray | float) -> np.ndarray:
        """The paper's upper bound on `cdf`: `1 / k^2` at `arccos(k / sqrt(dimension))` (Table 4), at most 1."""
        squared = self.dimension * np.cos(np.deg2rad(angle)) ** 2
        return 1 / np.maximum(squared, 1.0)


def random_angle(dimension: int) -> RandomAngle:
    """The exact distribution of the folded angle between two random directions.

    Raises:
      ValueError: fewer than 2 dimensions, where all directions are parallel.

    >>> angle = random_angle(3072)  # the dimension of a CIFAR image
    >>> round(angle.mean(), 2), round(float(angle.quantile(0.01)), 2)
    (89.18, 87.34)
    """
    if dimension < 2:
        raise ValueError(f"dimension: got {dimension}; it takes 2 or more")
    return RandomAngle(dimension)
