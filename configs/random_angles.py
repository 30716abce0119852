"""The angles between random directions (BenShmuel 2022, Appendix A, Tables 3 and 4), sampled and exact.

    python experiments/random_angles.py --config=configs/random_angles.py

Ten seeds; one minute on 2 cores. Expect an exact mean 0.2 degrees above the paper's typical angle, probabilities far
below Markov's bound, and a smallest angle of about 85.7 degrees among 20,000 pairs in 3,072 dimensions.
"""

from ml_collections import ConfigDict

from jtrans.experiments import random_angles
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings, all at their defaults (`jtrans/experiments/random_angles.py`)."""
    return defaults(random_angles.FIELDS)
