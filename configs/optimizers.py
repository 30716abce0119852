"""The four optimizers over a range of learning rates (BenShmuel 2022, section 4.4), 16 networks per setting.

    python experiments/control.py --config=configs/optimizers.py --config.data.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10. FC deep with half its widths.
"""

from ml_collections import ConfigDict

from jtrans.experiments import control
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/control.py`)."""
    config = defaults(control.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("cat", "dog")
    config.widths.mlp_deep = (512, 256, 128, 64)
    config.num_examples = 100
    config.learning_rates = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
    return config
