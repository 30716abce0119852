"""Removing a small subspace from adversarial directions: is early transferability inside it, and do attacks need it?

    python experiments/decompose.py --config=configs/decompose.py --config.data.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10. FC deep with half its widths: 16 networks are measured, and the
subspaces are fitted on 8 others.

`figure` shows every subspace, those of other networks refitted at every step; `matched` compares subspaces where they
take out the same share of the directions; `lasting` takes the subspace fitted at each step out of the directions at
every other, which shows whether it is the same one throughout.
"""

from ml_collections import ConfigDict

from jtrans.experiments import decompose
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/decompose/`)."""
    config = defaults(decompose.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("cat", "dog")
    config.widths.mlp_deep = (512, 256, 128, 64)
    config.num_examples = 100
    config.steps = (0, 1, 2, 3, 5, 10, 20, 60, 240)
    return config
