"""Adversarial and knowledge transferability of five architectures (Liang et al. 2021), from CIFAR-10 to STL-10.

    python experiments/knowledge.py --config=configs/adv_to_know.py

Sources of each architecture, trained on all of CIFAR-10, and a ResNet18 on STL-10 as the reference. TFDS downloads both
sets the first time (`pip install jtrans[prepare]`). Training follows the paper: SGD with a cosine schedule over 100
epochs, random crops and flips, pixels in [-1, 1]. Attacks have epsilon 0.1 for pixels in [0, 1]. For an accelerator:
29 networks, 100 epochs each. `configs/adv_to_know_reduced.py` is a version for 2 cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import knowledge
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/knowledge/`)."""
    config = defaults(knowledge.FIELDS)
    config.sources = tuple((name,) for name in ("fcnet", "lenet", "alexnet", "resnet18", "resnet50"))
    config.source.name, config.target.name = "cifar10", "stl10"
    config.source.pixel_range = config.target.pixel_range = (-1.0, 1.0)
    return config
