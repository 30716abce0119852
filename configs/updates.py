"""Update vectors after one SGD step (BenShmuel 2022, Tables 1 and 2), on CIFAR-10's cats and dogs.

    python experiments/updates.py --config=configs/updates.py --config.data.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10. Sixteen shallow and sixteen deep networks, each on a batch of its
own, where the paper shows one pair of each kind; half a minute on 2 cores. Expect angles between update vectors of 42
to 57 degrees within networks and of 52 to 58 between them, and of 29 to 42 degrees to the adversarial directions after
the large step, where random directions have 89.2.
"""

from ml_collections import ConfigDict

from jtrans.experiments import updates
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; the fields not named here have their defaults (`jtrans/experiments/updates.py`)."""
    config = defaults(updates.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("cat", "dog")
    return config
