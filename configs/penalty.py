"""Controlling transferability (code of Liang et al. 2021): a penalty on input gradients aligned with a surrogate's.

    python experiments/penalty.py --config=configs/penalty.py

Five FC shallow networks for each of seven coefficients, each with its own frozen surrogate, on handwritten digits; one
minute on 2 cores. Expect an angle of 19 degrees between networks and their surrogates without the penalty, and of 89
degrees with a coefficient of 1, which costs two percentage points of accuracy.
"""

from ml_collections import ConfigDict

from jtrans.experiments import penalty
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/penalty.py`)."""
    config = defaults(penalty.FIELDS)
    config.models, config.surrogate = ("mlp_shallow",), "mlp_shallow"
    config.num_networks = 5
    config.attack.epsilon = 0.1
    return config
