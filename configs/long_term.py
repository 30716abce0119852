"""Long-term transferability (BenShmuel 2022, section 4.5, Figures 4 and 5): the learning rate alone decides the angle.

    python experiments/sweep.py --config=configs/long_term.py --config.data.dir=DIRECTORY \
        --sweep="optimizer.learning_rate=1e-4,1e-3"

DIRECTORY is a TFDS data directory that holds cifar10. Conv B on airplanes and automobiles, four networks per learning
rate, fifty epochs of 78 steps, measured after every epoch, with a checkpoint every five minutes. For an accelerator: on
2 cores it takes days. For Figures 15 and 16 add `--config.data.classes="('cat', 'dog')"`.
`configs/long_term_reduced.py` is a version for 2 cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import early
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/early.py`)."""
    config = defaults(early.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("airplane", "automobile")
    config.models = ("conv_b",)
    config.num_networks = 4
    config.num_steps = 3900
    config.measure_every = 78
    config.attack.epsilon = 8 / 255
    return config
