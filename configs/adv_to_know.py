"""Adversarial and knowledge transferability of five architectures (Liang et al. 2021), from CIFAR-10 to STL-10.

    python experiments/knowledge.py --config=configs/adv_to_know.py

Sources of each architecture on all of CIFAR-10, a ResNet18 on STL-10 as the reference; TFDS fetches both sets the first
time (`pip install jtrans[prepare]`). The paper's recipe: SGD along a cosine over 100 epochs, crops and flips, pixels in
[-1, 1]; attacks with epsilon 0.1 in units of pixels in [0, 1]. For an accelerator: 100 epochs of 30 networks.
`configs/adv_to_know_reduced.py` is the form for 2 cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import knowledge
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; the fields not named here have their defaults (`jtrans/experiments/knowledge.py`)."""
    config = defaults(knowledge.FIELDS)
    config.models = ("fcnet", "lenet", "alexnet", "resnet18", "resnet50")
    config.source.name, config.target.name = "cifar10", "stl10"
    config.source.pixel_range = config.target.pixel_range = (-1.0, 1.0)
    return config
