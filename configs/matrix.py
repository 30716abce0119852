"""The success of every attack from each network on each: for networks saved by jtrans, or taken from PyTorch.

    python experiments/matrix.py --config=configs/matrix.py --config.networks="('runs/mine', 'lenet=lenet.npz')"

A run's folder stands for all networks that it saved (`--config.save_networks`, or `networks/LABEL` in a folder of
`knowledge.py`); ARCHITECTURE=FILE.npz is a PyTorch state dict, saved by `numpy.savez(FILE, **arrays)`, whose widths and
pixel range are this config's. The images are scikit-learn's digits unless `data` says otherwise; all networks must have
been trained on the same classes, in that order, at that image size.
"""

from ml_collections import ConfigDict

from jtrans.experiments import matrix
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; the fields not named here have their defaults (`jtrans/experiments/matrix.py`)."""
    return defaults(matrix.FIELDS)
