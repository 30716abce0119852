"""Every figure and claim of the early-transferability paper (BenShmuel 2022), into `docs/reproduction.md`.

    make reproduce DATA=DIRECTORY IMAGES=FOLDER
    make reproduce-full DATA=DIRECTORY IMAGES=FOLDER

DATA is a TFDS data directory that holds cifar10; IMAGES is a folder with two folders of photographs, one per class, for
VGG11, which is skipped without it. An hour and a quarter on 2 cores, and two and a half hours more for the long runs of
the second command. Finished runs are kept, and stopped runs resume.
"""

from ml_collections import ConfigDict

from jtrans.experiments import reproduce
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/reproduce/`)."""
    return defaults(reproduce.FIELDS)
