"""What causes early transferability: the same networks under one change at a time, and which phase it removes.

    python experiments/causes.py --config=configs/causes.py --config.data.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10. Sixteen networks, FC deep with half its widths, Adam at 0.001;
five minutes on two cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import causes
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/causes.py`)."""
    config = defaults(causes.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("cat", "dog")
    config.widths.mlp_deep = (512, 256, 128, 64)
    config.num_examples = 100
    return config
