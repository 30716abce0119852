"""Early transferability on handwritten digits: real images, offline.

    python experiments/early.py --config=configs/digits.py
    jtrans early --config=digits

Sixteen deep fully-connected networks, 120 pairs; half a minute on 2 cores.
Expect a folded angle of 88.6 degrees before training and about 37 after the first step, where the signed angle is about
55 and 63 % of a direction is constant colour; the accuracy stays at 0.10 for about five steps. The folded angle then
rises to about 70, and both fall together as the networks learn.
"""

from ml_collections import ConfigDict

from jtrans.experiments import early
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/early.py`)."""
    config = defaults(early.FIELDS)
    config.data.name = "digits"
    config.models = ("mlp_deep",)
    config.optimizer.learning_rate = 1e-2
    config.batch_size = 128
    config.num_steps = 60
    config.attack.epsilon = 0.1
    return config
