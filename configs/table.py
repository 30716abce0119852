"""Attacks between any networks on a table of images, as transfer attacks are compared on 1,000 images of ImageNet.

    python experiments/matrix.py --config=configs/table.py --config.data.dir=DIR --config.networks="( \
        'torchvision:resnet18=resnet18.pth', 'timm:swin_tiny_patch4_window7_224=swin.pth', 'my_networks:vit')"

DIR holds `labels.csv` (the columns `filename`, `label` and, for targeted attacks, `targeted_label`) and the folder
`images`, as TransferAttack lays them out. Networks are named as in `configs/matrix.py`; all take images of one size,
`--config.data.image_size`. Adversarial images are judged as 8-bit pixels, and kept with `--config.keep_images=png`.

Cost: six small networks, 200 images of 32 pixels and all eight attacks take 35 minutes on 2 cores, most of it the 21
gradients a step of VMI. With M networks each attack takes M times the gradients of one network and, for the row of all
others together, M (M - 1) more. DI, TI, NI and MI take one gradient a step, SI five, VMI 21.

Expect: a network's own attacks succeed almost always; between networks that are less alike those with transforms (DI,
TI, SI) succeed more often than PGD. The attack on all others together is the steadiest, not always the strongest: by
the mean of the logits the networks with the largest logits count most.
"""

from ml_collections import ConfigDict

from jtrans.experiments import matrix
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/matrix.py`)."""
    config = defaults(matrix.FIELDS)
    config.data.name, config.data.image_size, config.num_examples = "table", 224, 1000
    config.attacks = ("pgd", "mi_fgsm", "di_fgsm", "ti_fgsm", "ni_fgsm", "si_ni_fgsm", "vmi_fgsm", "si_ni_ti_di_fgsm")
    config.attack.epsilon, config.attack.steps, config.attack.round_8bit = 16 / 255, 10, True
    config.ensemble = True
    return config
