"""Long-term transferability, reduced for 2 cores: conv B with an eighth of its widths, 2,000 training images.

    python experiments/sweep.py --config=configs/long_term_reduced.py --config.data.dir=DIRECTORY \
        --sweep="optimizer.learning_rate=1e-3,1e-2"

DIRECTORY is a TFDS data directory that holds cifar10. Thirty epochs of 15 steps. Expect early transferability for the
larger learning rate, and none for the smaller.
"""

from ml_collections import ConfigDict

from jtrans.experiments import early
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/early.py`)."""
    config = defaults(early.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("airplane", "automobile")
    config.data.num_train = 2000
    config.models = ("conv_b",)
    config.widths.conv_b = (16, 16, 32, 32, 64, 64, 128)
    config.num_networks = 4
    config.num_examples = 100
    config.num_steps = 450
    config.measure_every = 15
    config.attack.epsilon = 8 / 255
    return config
