"""Success rates of every attack from each network on every network, saved by jtrans or taken from PyTorch.

    python experiments/matrix.py --config=configs/matrix.py --config.networks="('runs/mine', 'lenet=lenet.npz')"

A run's folder stands for all networks saved in it (`--config.save_networks`, or `networks/LABEL` in a folder of
`knowledge.py`). ARCHITECTURE=FILE.npz is a PyTorch state dict, saved by `numpy.savez(FILE, **arrays)`; its widths and
pixel range are fields of this config. The images are scikit-learn's digits, unless the `data` fields name others. All
networks must have been trained on the same classes, in the same order, at the same image size.
"""

from ml_collections import ConfigDict

from jtrans.experiments import matrix
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/matrix.py`)."""
    return defaults(matrix.FIELDS)
