"""The synthetic experiment: transferability, adversarial and of knowledge, as a source drifts away from its target.

    python experiments/synthetic.py --config=configs/synthetic.py

Ten problems, each with its own target and sources of three widths; a minute on 2 cores.
`--config.problem=PATH.npz` measures a given problem instead; `jtrans.experiments.synthetic.problem.load` lists its
arrays.
Expect tau1 and tau2 to fall and the transfer loss and the gradient matching distance to rise with the drift.
"""

from ml_collections import ConfigDict

from jtrans.experiments import synthetic
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings, all at their defaults (`jtrans/experiments/synthetic/`)."""
    return defaults(synthetic.FIELDS)
