"""Adversarial and knowledge transferability, reduced for 2 cores: four sources, from CIFAR-10 to Tiny ImageNet.

    python experiments/knowledge.py --config=configs/adv_to_know_reduced.py \
        --config.source.dir=DIRECTORY --config.target.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10 and tiny_imagenet22, 22 classes of Tiny ImageNet, of which the
twelve vehicles are used; `--config.target.name` and `--config.target.classes` select another set. Three seeds, two
epochs on 4,000 images, a ResNet18 with an eighth of its widths as a source and as the reference, of which there are
three, attacks with 20 steps.

Cost: about 12 minutes on 2 cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import knowledge
from jtrans.experiments.knowledge import sources
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/knowledge/`)."""
    config = defaults(knowledge.FIELDS)
    config.sources = tuple((name,) for name in ("fcnet", "lenet", "alexnet", "resnet18"))
    config.widths.resnet18 = (8, 16, 32, 64)
    config.num_networks, config.num_references = 3, 3
    config.source.name, config.target.name = "cifar10", "tiny_imagenet22"
    config.target.classes = sources.VEHICLES
    config.source.pixel_range = config.target.pixel_range = (-1.0, 1.0)
    config.source.num_train = 4_000
    config.num_epochs, config.reference_epochs, config.refit_epochs = 2, 3, 1
    config.num_examples, config.matrix = 100, False
    config.attack.steps = 20
    return config
