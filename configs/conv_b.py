"""Early transferability of a convolutional network: conv B on CIFAR-10's cats and dogs (BenShmuel 2022, Figure 2).

    python experiments/early.py --config=configs/conv_b.py --config.data.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10. The paper does not state the learning rate and batch size.
Eight networks, 28 pairs; eight minutes on 2 cores. Expect angles of 89.1 degrees before training, 75 after the first
step and 47 after the second, while the accuracy is at chance.
"""

from ml_collections import ConfigDict

from jtrans.experiments import early
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/early.py`)."""
    config = defaults(early.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("cat", "dog")
    config.models = ("conv_b",)
    config.num_networks = 8
    config.num_examples = 100
    config.num_steps = 20
    config.attack.epsilon = 8 / 255
    return config
