"""Early transferability on ImageNet: VGG11 on goldfish and great white sharks (BenShmuel 2022, Figure 3 and case 9).

    python experiments/early.py --config=configs/vgg11_imagenet.py --config.data.dir=DIRECTORY

DIRECTORY is a TFDS data directory that holds imagenet2012, whose archives must be downloaded by hand (see
tensorflow.org/datasets/catalog/imagenet2012). The paper does not state the learning rate and batch size.
For an accelerator: each network has 129 million parameters.
"""

from ml_collections import ConfigDict

from jtrans import models
from jtrans.experiments import early
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/early.py`)."""
    config = defaults(early.FIELDS)
    config.data.name = "imagenet2012"
    config.data.classes = ("n01443537", "n01484850")
    config.data.image_size = models.IMAGENET_SIZE
    config.models = ("vgg11",)
    config.widths.vgg11 = models.IMAGENET_WIDTHS["vgg11"]
    config.num_networks = 8
    config.num_examples = 100
    config.batch_size = 32
    config.num_steps = 20
    config.attack.epsilon = 8 / 255
    return config
