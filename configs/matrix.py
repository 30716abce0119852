"""Success rates of every attack from each network on every network, saved by jtrans or taken from PyTorch.

    python experiments/matrix.py --config=configs/matrix.py --config.networks="('runs/mine', 'lenet=lenet.npz')"

A run's folder stands for all networks saved in it (`--config.save_networks`, or `networks/LABEL` in a folder of
`knowledge.py`). ARCHITECTURE=FILE.npz is a PyTorch state dict, saved by `numpy.savez(FILE, **arrays)`; its widths and
pixel range are fields of this config. MODULE:FUNCTION is a Python function without arguments that returns a network, a
function from images `[N, H, W, C]` in [0, 1] to logits `[N, K]`; the module may lie in the current directory.
`torchvision:NAME=FILE` and `timm:NAME=FILE` are networks that PyTorch computes, with the library's own normalisation;
FILE is what `torch.save(model.state_dict(), FILE)` wrote.

The images are scikit-learn's digits, unless the `data` fields name others. All networks must have been trained on the
same classes, in the same order, at the same image size. `--config.ensemble` also attacks each network from all others
together. Several networks of one run and architecture differ in their seeds: `kinds.csv` has the means over them.
"""

from ml_collections import ConfigDict

from jtrans.experiments import matrix
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/matrix.py`)."""
    return defaults(matrix.FIELDS)
