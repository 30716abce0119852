"""The knowledge paper (Liang et al. 2021) on images, reduced, and with the power to answer, into `docs/knowledge.md`.

    make knowledge DATA=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10 and tiny_imagenet22. About an hour on 2 cores; finished runs are
kept, and stopped runs resume.
"""

from ml_collections import ConfigDict

from jtrans.experiments import knowledge_paper
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/knowledge_paper.py`)."""
    return defaults(knowledge_paper.FIELDS)
