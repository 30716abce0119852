"""What controls early transferability (BenShmuel 2022, section 2.3): learning rate, batch size, optimizer.

    python experiments/control.py --config=configs/control.py --config.data.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10. Four networks (FC deep with half its widths) for each of 240
settings; 960 networks take eight minutes on 2 cores. Each optimizer and batch size has a file of results, from which a
stopped run resumes.
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
    config.num_networks = 4
    config.num_examples = 100
    config.learning_rates = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0, 3.0, 10.0)
    config.batch_sizes = (16, 32, 64, 128, 256, 1024)
    return config
