"""Do attacks transfer where knowledge transfers? Twelve sources that differ in how well they were trained.

    python experiments/knowledge.py --config=configs/noisy_sources.py \
        --config.source.dir=DIRECTORY --config.target.dir=DIRECTORY

All are small conv A networks on the ten classes of CIFAR-10, with four shares of wrong labels and three numbers of
epochs; the target are the 22 classes of tiny_imagenet22. DIRECTORY is a TFDS data directory that holds both sets. The
strata are the epochs: within one, only the wrong labels differ.

Cost: 24 sources and 4 references; about 10 minutes on 2 cores.
"""

from ml_collections import ConfigDict

from jtrans.experiments import knowledge
from jtrans.experiments.knowledge import sources
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/knowledge/`)."""
    config = defaults(knowledge.FIELDS)
    config.sources = sources.worsened("conv_a", (0.0, 0.2, 0.4, 0.6), (2, 4, 8))
    config.strata = "epochs of training"
    config.reference, config.widths.conv_a = "conv_a", (16, 16, 32, 32)
    config.num_networks, config.num_references = 2, 4
    config.source.name, config.target.name, config.matrix = "cifar10", "tiny_imagenet22", False
    config.source.pixel_range = config.target.pixel_range = (-1.0, 1.0)
    config.source.num_train = 10_000
    config.reference_epochs, config.refit_epochs = 20, 2
    config.num_examples = 200
    config.attack.steps = 20
    return config
