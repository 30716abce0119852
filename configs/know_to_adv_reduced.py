"""From knowledge to adversarial transferability, reduced for 2 cores: five mixtures of CIFAR-10 to Tiny ImageNet.

    python experiments/knowledge.py --config=configs/know_to_adv_reduced.py \
        --config.source.dir=DIRECTORY --config.target.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds cifar10 and tiny_imagenet22, 22 classes of Tiny ImageNet, of which the
twelve vehicles are used; any other set can be named. Three seeds, ResNet18 with an eighth of its widths, one epoch on
4,000 images of each mixture, three references, attacks with 20 steps.

Cost: about 11 minutes on 2 cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import knowledge
from jtrans.experiments.knowledge import sources
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
    config.widths.resnet18 = (8, 16, 32, 64)
    config.num_networks, config.num_references = 3, 3
    config.source.name, config.target.name = "cifar10", "tiny_imagenet22"
    config.target.classes = sources.VEHICLES
    config.source.pixel_range = config.target.pixel_range = (-1.0, 1.0)
    config.source.num_train = 4_000
    config.num_epochs, config.reference_epochs, config.refit_epochs = 1, 3, 1
    config.num_examples, config.matrix = 100, False
    config.attack.steps = 20
    return config
