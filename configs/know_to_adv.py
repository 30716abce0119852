"""From knowledge to adversarial transferability (Liang et al. 2021): five mixtures of vehicles and animals.

    python experiments/knowledge.py --config=configs/know_to_adv.py

ResNet18 sources, each trained on four classes of CIFAR-10 with 0, 25, 50, 75 or 100 % animals; the reference is a
ResNet18 trained on STL-10's vehicles. Otherwise as `configs/adv_to_know.py`. For an accelerator;
`configs/know_to_adv_reduced.py` is a version for 2 cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import knowledge
from jtrans.harness.fields import defaults

MIXTURES = (
    ("airplane", "automobile", "ship", "truck"),
    ("bird", "automobile", "ship", "truck"),
    ("bird", "cat", "ship", "truck"),
    ("bird", "cat", "deer", "truck"),
    ("bird", "cat", "deer", "horse"),
)


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/knowledge/`)."""
    config = defaults(knowledge.FIELDS)
    config.sources = tuple(("resnet18", classes) for classes in MIXTURES)
    config.source.name, config.target.name = "cifar10", "stl10"
    config.source.pixel_range = config.target.pixel_range = (-1.0, 1.0)
    config.target.classes = ("airplane", "car", "ship", "truck")
    return config
