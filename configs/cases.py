"""The cases of BenShmuel (2022), Table 5, on CIFAR-10's cats and dogs, with 16 networks instead of the paper's pair.

    python experiments/early.py --config=configs/cases.py:1 --config.data.dir=DIRECTORY
    jtrans early --config=cases:1 --config.data.dir=DIRECTORY

The cases are 1 to 8. DIRECTORY is a TFDS data directory that holds cifar10. Without it TFDS uses its default directory,
where it downloads and prepares the set the first time (`pip install jtrans[prepare]`).
Fifty steps of cases 1 to 5 take 0.8, 1.3, 0.2, 0.8 and 1.6 minutes on 2 cores; decoding the images takes ten seconds
the first time. Expect an angle of 89.2 degrees before training. While the accuracy is within 0.05 of chance, the angle
falls by 42, 41 and 55 degrees in cases 1, 3 and 4, by 13 in case 5, and by only 2.5 in case 2, where the large batches
raise the accuracy within a few steps.

The convolutional cases 6 to 8 are for an accelerator. With `--config.num_networks=8 --config.num_steps=20
--config.num_examples=100` (case 7: 4 networks of each architecture, 15 steps), they take four to ten minutes on 2
cores. Expect 58 degrees after the first step of case 6 and 73 after that of case 7; case 8 starts at 86 and falls to 74
at step 12.
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
    """The settings of one case; all other fields have their defaults (`jtrans/experiments/early.py`).

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
