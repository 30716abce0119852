"""The first step of training, predicted from the mean image of each batch and measured: the sign of every pair.

    python experiments/first_step.py --config=configs/first_step.py --config.data.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10. Sixteen networks, FC deep, Adam at three learning rates; half a
minute on two cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import first_step
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/first_step.py`)."""
    config = defaults(first_step.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("cat", "dog")
    config.num_examples = 100
    return config
