"""The synthetic experiment: adversarial and knowledge transferability while the source drifts away from the target.

    python experiments/synthetic.py --config=configs/synthetic.py

Ten problems with the official constants, each with its own target and sources of three widths; two minutes on 2 cores.
To measure a given problem instead, add `--config.problem=PATH.npz` (see the docstring of `load` in the experiment): for
the published one this gives all six of its tables, widths 50, 100 and 200 at levels 0 and 1.
Expect tau1 from the source to the target and tau2 at level 0 to fall, and the transfer loss and the gradient matching
distance to rise, with increasing drift.
"""

from ml_collections import ConfigDict

from jtrans.experiments import synthetic
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings, all at their defaults (`jtrans/experiments/synthetic/`)."""
    return defaults(synthetic.FIELDS)
