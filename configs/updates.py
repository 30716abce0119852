"""Update vectors after one SGD step (BenShmuel 2022, Tables 1 and 2), on CIFAR-10's cats and dogs.

    python experiments/updates.py --config=configs/updates.py --config.data.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10. Sixteen shallow and sixteen deep networks, each with its own
batch, instead of the paper's one pair of each kind; half a minute on 2 cores. Random directions are 89.2 degrees apart.
Expect angles between update vectors of 42 to 57 degrees within a network and 52 to 58 between networks, and of 29 to 42
degrees between update vectors and adversarial directions after the large step.
"""

from ml_collections import ConfigDict

from jtrans.experiments import updates
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/updates.py`)."""
    config = defaults(updates.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("cat", "dog")
    return config
