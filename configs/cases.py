"""The cases of BenShmuel (2022), Table 5, on CIFAR-10's cats and dogs, 16 networks for the paper's one pair.

    python experiments/early.py --config=configs/cases.py:1 --config.data.dir=DIRECTORY

takes a case from 1 to 8; DIRECTORY is a TFDS data directory that holds cifar10 (left out: TFDS's default one, where
the set is downloaded and prepared the first time, which takes `pip install jtrans[prepare]`).
Fifty steps of cases 1 to 5 take 0.8, 1.3, 0.2, 0.8 and 1.6 minutes on 2 cores, and decoding cats and dogs ten seconds
the first time. Expect 89.2 degrees before training. Cases 1, 3 and 4 then fall by 42, 41 and 55 degrees while the
accuracy is within 0.05 of chance; case 5 falls by 13, and case 2 by 2.5, since its large batches teach something in a
few steps.

The convolutional cases 6 to 8 are for an accelerator. Reduced by `--config.num_networks=8 --config.num_steps=20
--config.num_examples=100` (case 7: 4 networks of each, 15 steps), they take four to ten minutes on 2 cores. Expect 58
degrees after the first step of case 6 and 73 after that of case 7; case 8 starts at 86 and falls to 74 at step 12.
"""

from ml_collections import ConfigDict

from jtrans.errors import InputError
from jtrans.experiments import early
from jtrans.harness.fields import defaults

CASES = {  # models, learning rate, batch size
    "1": (("mlp_deep",), 1e-3, 128),
    "2": (("mlp_deep",), 1e-4, 1024),
    "3": (("mlp_shallow",), 1e-2, 128),
    "4": (("mlp_shallow", "mlp_deep"), 1e-2, 128),
    "5": (("mlp_shallow", "mlp_deep"), 1e-3, 1024),
    "6": (("conv_a",), 1e-3, 1024),
    "7": (("conv_b", "conv_a"), 1e-3, 128),
    "8": (("resnet18",), 1e-3, 16),
}


def get_config(case: str = "1") -> ConfigDict:
    """The settings of one case; the fields not named here have their defaults (`jtrans/experiments/early.py`).

    Raises:
      InputError: there is no such case.
    """
    if case not in CASES:
        raise InputError(f"--config: no case {case!r}; the cases are {', '.join(CASES)}")
    config = defaults(early.FIELDS)
    config.data.name = "cifar10"
    config.data.classes = ("cat", "dog")
    config.models, config.optimizer.learning_rate, config.batch_size = CASES[case]
    config.attack.epsilon = 8 / 255
    return config
