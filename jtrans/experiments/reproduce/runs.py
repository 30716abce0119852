"""The runs that the page is made of, as commands."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jtrans.harness import experiment

SMALL_VGG11 = "--config.widths.vgg11=(64, 128, 256, 256, 512, 512, 512, 512)"
RATE_1E_2 = "--config.optimizer.learning_rate=1e-2"
SGD_10 = "--config.optimizer.name=sgd", "--config.optimizer.learning_rate=10"
CONV_A, CONV_B, FIT_4 = "--config.models=('conv_a',)", "--config.models=('conv_b',)", "--config.num_fit=4"
MANY_RANKS, FEW_RANKS = "--config.ranks=(1, 2, 5, 10, 20, 50, 100, 200, 400)", "--config.ranks=(1, 10, 100, 400)"
UP_TO_60 = "--config.steps=(0, 1, 2, 3, 5, 10, 20, 60)"
UP_TO_20, UP_TO_3 = "--config.steps=(0, 1, 2, 3, 5, 10, 20)", "--config.steps=(0, 1, 2, 3)"
# Convolutional networks are fewer than in `configs/`, as are the images that they are measured on.
FEW = "--config.num_networks=8", "--config.num_examples=100"
FEWER = "--config.num_networks=6", "--config.num_examples=100"
FEWEST = "--config.num_networks=4", "--config.num_examples=40"


class Run(NamedTuple):
    """One command.

    Attributes:
      name: of the folder that it fills.
      experiment, config: what runs.
      shows: what its figure shows.
      arguments: overrides of config fields, and further flags.
    """

    name: str
    experiment: str
    config: str
    shows: str
    arguments: Sequence[str] = ()


def listed(images_dir: str) -> list[Run]:
    """All of them. Convolutional networks take fewer steps than in `configs/`.

    Args:
      images_dir: a folder of photographs in two classes, or '' for none.
    """
    runs = [
        Run("random-angles", "random_angles", "random_angles", "Tables 3 and 4: the angles between random directions."),
        Run("updates", "updates", "updates", "Tables 1 and 2: how one step of SGD moves the first layer."),
        *(Run(f"case-{i}", "early", f"cases:{i}", f"Case {i} of Appendix C.") for i in range(1, 6)),
        _reduced("case-6", "cases:6", "Case 6 of Appendix C", *FEW, "--config.num_steps=6"),
        _reduced("case-7", "cases:7", "Case 7 of Appendix C", *FEWER, "--config.num_steps=4"),
        _reduced("case-8", "cases:8", "Case 8 of Appendix C", *FEW, "--config.num_steps=13"),
        _reduced("conv-b", "conv_b", "Figure 2", *FEW, "--config.num_steps=5"),
        Run(
            "data",
            "sweep",
            "cases:4",
            "Section 2.1: no learnable data is needed. The labels of noise images have no meaning, shuffled or not.",
            ("--config.num_steps=20", "--sweep=data.name='cifar10','noise' data.shuffle_labels=False,True"),
        ),
        Run("optimizers", "control", "optimizers", "Section 4.4: four optimizers over learning rates."),
        Run("control", "control", "control", "Section 2.3: what controls the effect."),
        _decompose("fc", "Section 2.4: directions without a small subspace, FC deep."),
        _decompose("fast", "A larger learning rate.", RATE_1E_2, UP_TO_20),
        _decompose("shallow", "FC shallow.", "--config.models=('mlp_shallow',)", RATE_1E_2, UP_TO_20),
        _decompose("noise", "Images of noise.", "--config.data.name=noise", UP_TO_60),
        _decompose("shuffled", "Shuffled labels.", "--config.data.shuffle_labels", UP_TO_60),
        _decompose("centred", "The mean image subtracted.", "--config.data.subtract_mean", UP_TO_60),
        _decompose("rmsprop", "RMSprop.", "--config.optimizer.name=rmsprop", UP_TO_20),
        _decompose("sgd", "SGD, at a learning rate where it shows the effect.", *SGD_10, UP_TO_20),
        _decompose("conv-a", "Conv A.", CONV_A, *FEW, FIT_4, UP_TO_20, MANY_RANKS),
        _decompose("conv-b", "Conv B.", CONV_B, *FEWEST, FIT_4, UP_TO_3, FEW_RANKS),
        Run(
            "long-term",
            "sweep",
            "long_term_reduced",
            "Section 4.5, Figures 4 and 5, reduced: long-term transferability under two learning rates.",
            ("--sweep=optimizer.learning_rate=1e-3,1e-2",),
        ),
    ]
    if images_dir:
        small = SMALL_VGG11, "--config.data.name=folder", "--config.data.classes=()", "--config.data.image_size=64"
        arguments = f"--config.data.dir={images_dir}", *small, *FEW, "--config.num_steps=4"
        shows = "Figure 3 and case 9, reduced: VGG11 on photographs of 64 pixels."
        runs.append(Run("vgg11", "early", "vgg11_imagenet", shows, arguments))
    return runs


def _reduced(name: str, config: str, shows: str, *arguments: str) -> Run:
    return Run(name, "early", config, f"{shows}, reduced.", arguments)


def _decompose(name: str, shows: str, *arguments: str) -> Run:
    return Run(f"decompose-{name}", "decompose", "decompose", shows, arguments)


def command(run: Run, data_dir: str, workdir: Path) -> list[str]:
    """The arguments of `python -m jtrans` for a run.

    Args:
      data_dir: the directory of its data, where it takes data and has none of its own.
      workdir: the folder of all runs.
    """
    arguments = [run.experiment, f"--config={run.config}", *run.arguments, f"--workdir={workdir / run.name}"]
    own_data = any(argument.startswith("--config.data.dir=") for argument in run.arguments)
    if "data.dir" in experiment.load(run.experiment).fields and not own_data:
        arguments.insert(2, f"--config.data.dir={data_dir}")
    return arguments


def shown(run: Run) -> str:
    """The command as the page shows it, without this machine's directories."""
    without = ["--config.data.dir=IMAGES" if "data.dir=" in argument else argument for argument in run.arguments]
    return line(command(run._replace(arguments=without), "DIRECTORY", Path("runs/reproduction")))


def line(arguments: Sequence[str]) -> str:
    """The arguments of `python -m jtrans` as a line for a shell."""
    return shlex.join(["python", "-m", "jtrans", *arguments])
