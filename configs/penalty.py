"""Controlling transferability (the code of Liang et al. 2021): input gradients kept away from a frozen surrogate's.

    python experiments/penalty.py --config=configs/penalty.py

Five FC shallow networks for each of seven coefficients, each against a surrogate of its own, on handwritten digits; a
minute on 2 cores. Without the penalty networks stand at 19 degrees to their surrogates, with a coefficient of 1 at 89,
which costs two points of accuracy.
"""

from ml_collections import ConfigDict

from jtrans.experiments import penalty
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; the fields not named here have their defaults (`jtrans/experiments/penalty.py`)."""
    config = defaults(penalty.FIELDS)
    config.models, config.surrogate = ("mlp_shallow",), "mlp_shallow"
    config.num_networks = 5
    config.attack.epsilon = 0.1
    return config
