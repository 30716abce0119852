"""Every figure and claim of the early-transferability paper (BenShmuel 2022), into `docs/reproduction.md`.

    make reproduce DATA=DIRECTORY IMAGES=FOLDER

DATA is a TFDS data directory that holds cifar10; IMAGES a folder of photographs in two classes, each a folder of its
own, for VGG11 (left out, so is VGG11). Seventy minutes on 2 cores; finished runs are kept, and the same command resumes
after a stop.
"""

from ml_collections import ConfigDict

from jtrans.experiments import reproduce
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; the fields not named here have their defaults (`jtrans/experiments/reproduce/`)."""
    return defaults(reproduce.FIELDS)
