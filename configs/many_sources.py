"""Do attacks transfer where knowledge transfers? Twenty-four sources of one architecture, and two target domains.

    python experiments/knowledge.py --config=configs/many_sources.py \
        --config.source.dir=DIRECTORY --config.target.dir=DIRECTORY

Each source is a small conv A (BenShmuel 2022, Appendix B) trained on four classes of CIFAR-10 drawn at random, with 0
to 4 vehicles among them. The targets are the vehicles and the animals of tiny_imagenet22, 22 classes of Tiny ImageNet;
DIRECTORY is a TFDS data directory that holds both sets. What is correlated over the sources is the difference between
the two targets, of each measure with the transfer loss: how good a source is for both cancels. Permutations within
strata, sources with the same number of vehicles, tell whether a measure sees more than that number. `docs/power.md` has
the power of such a design.

Cost: 48 sources and 8 references; about 20 minutes on 2 cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import knowledge
from jtrans.experiments.knowledge import sources
from jtrans.harness.fields import defaults

SOURCE_VEHICLES = ("airplane", "automobile", "ship", "truck")
SOURCE_ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
# How many sources have so many vehicles among their four classes.
COUNTS = {0: 3, 1: 7, 2: 7, 3: 6, 4: 1}


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/knowledge/`)."""
    config = defaults(knowledge.FIELDS)
    config.sources = sources.drawn(1, "conv_a", (SOURCE_VEHICLES, SOURCE_ANIMALS), COUNTS)
    config.strata = "vehicles among the classes of the source"
    config.reference, config.widths.conv_a = "conv_a", (16, 16, 32, 32)
    config.num_networks, config.num_references = 2, 4
    config.source.name, config.target.name = "cifar10", "tiny_imagenet22"
    config.target.classes, config.contrast, config.matrix = sources.VEHICLES, sources.ANIMALS, False
    config.source.num_train = 8_000
    config.source.pixel_range = config.target.pixel_range = (-1.0, 1.0)
    config.num_epochs, config.reference_epochs, config.refit_epochs = 6, 20, 2
    config.num_examples = 200
    config.attack.steps = 20
    return config
