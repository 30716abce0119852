"""The runs that the page is made of, as commands."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jtrans.harness import experiment

SMALL_VGG11 = "--config.widths.vgg11=(64, 128, 256, 256, 512, 512, 512, 512)"
RATE_1E_2, FIT_4 = "--config.optimizer.learning_rate=1e-2", "--config.num_fit=4"
SGD_10 = "--config.optimizer.name=sgd", "--config.optimizer.learning_rate=10"
FEW_RANKS = "--config.ranks=(1, 10, 100)"
UP_TO_60 = "--config.steps=(0, 1, 2, 3, 5, 10, 20, 60)"
UP_TO_20, UP_TO_3 = "--config.steps=(0, 1, 2, 3, 5, 10, 20)", "--config.steps=(0, 1, 2, 3)"
# Convolutional networks are fewer than in `configs/`, as are their steps and the images that they are measured on.
FEW = "--config.num_networks=8", "--config.num_examples=100"
FEWEST = "--config.num_networks=4", "--config.num_examples=40"
NO_DATA = "Section 2.1: no learnable data is needed. The labels of noise images have no meaning, shuffled or not."
DATA_SETS = "--sweep=data.name='cifar10','noise' data.shuffle_labels=False,True"
# What the page shows of a run, by file stem.
SWEEP, CURVES, ALL_OF_DECOMPOSE = ("sweep",), ("figure", "curves"), ("figure", "matched", "lasting")
CLASS_PAIRS = ("cat", "dog"), ("deer", "horse"), ("automobile", "truck")
# Other widths, at rates that have the same product with the root of the width.
WIDTHS = {
    "64": ("--config.widths.mlp_shallow=(64,)", "--config.learning_rates=(2e-4, 2e-3, 2e-2)"),
    "1024": ("--config.widths.mlp_shallow=(1024,)", "--config.learning_rates=(5e-5, 5e-4, 5e-3)"),
}
OTHERS = "--config.optimizers=('rmsprop', 'sgd')", "--config.learning_rates=(1e-4, 1e-3, 1.0, 10.0)"
CONVOLUTIONAL = "--config.num_networks=8", "--config.learning_rates=(1e-3, 1e-2)"
FEW_CONVOLUTIONAL = "--config.num_networks=4", "--config.num_examples=40", "--config.learning_rates=(1e-3, 1e-2)"
STEPS_13, STEPS_5, BATCH = "--config.num_steps=13", "--config.num_steps=5", "--config.batch_statistics"
EIGHT, TWELVE = "--config.num_networks=8", ("--config.num_networks=12", "--config.num_examples=100", STEPS_13)
EVERY_STEP = "--config.num_steps=30", "--config.measure_every=1"
CATS_DOGS = "--config.data.classes=('cat', 'dog')"
FAST_CAUSES = "--config.learning_rate=1e-2", "--config.steps=(1, 60)"
LONG_TERM = "Section 4.5, Figures 4 and 5, reduced: long-term transferability under two learning rates."


class Run(NamedTuple):
    """One command."""

    name: str  # of the folder that it fills
    experiment: str
    config: str
    shows: str  # what its figure shows
    arguments: Sequence[str] = ()  # overrides of config fields, and further flags
    figures: Sequence[str] = ("figure",)  # by file stem, those that the page shows


def listed(images_dir: str, full: bool = False) -> list[Run]:
    """All but the long ones; with these if `full`. `images_dir`: a folder of photographs in two classes; '': none."""
    runs = [
        Run("random-angles", "random_angles", "random_angles", "Tables 3 and 4: the angles between random directions."),
        Run("updates", "updates", "updates", "Tables 1 and 2: how one step of SGD moves the first layer."),
        *(Run(f"case-{i}", "early", f"cases:{i}", f"Case {i} of Appendix C.") for i in range(1, 6)),
        Run("case-6", "early", "cases:6", "Case 6 of Appendix C, reduced.", (*FEW, "--config.num_steps=6")),
        Run("case-7", "early", "cases:7", "Case 7 of Appendix C, reduced.", (*FEW, "--config.num_steps=4")),
        Run("case-8", "early", "cases:8", "Case 8 of Appendix C, reduced.", (*FEW, STEPS_13)),
        Run("conv-b", "early", "conv_b", "Figure 2, reduced.", (*FEW, STEPS_5)),
        Run("data", "sweep", "cases:4", NO_DATA, ("--config.num_steps=20", DATA_SETS), SWEEP),
        Run("optimizers", "control", "optimizers", "Section 4.4: four optimizers over learning rates."),
        Run("control", "control", "control", "Section 2.3: what controls the effect."),
        _decompose("fc", "Section 2.4: directions without a small subspace, FC deep.", figures=ALL_OF_DECOMPOSE),
        _decompose("fast", "A larger learning rate.", RATE_1E_2, UP_TO_20, figures=ALL_OF_DECOMPOSE),
        _decompose("shallow", "FC shallow.", "--config.models=('mlp_shallow',)", RATE_1E_2, UP_TO_20),
        _decompose("noise", "Images of noise.", "--config.data.name=noise", UP_TO_60),
        _decompose("shuffled", "Shuffled labels.", "--config.data.shuffle_labels", UP_TO_60),
        _decompose("centred", "The mean image subtracted.", "--config.data.subtract_mean", UP_TO_60),
        _decompose("rmsprop", "RMSprop.", "--config.optimizer.name=rmsprop", UP_TO_20),
        _decompose("sgd", "SGD, at a learning rate where it shows the effect.", *SGD_10, UP_TO_20),
        _decompose("conv-a", "Conv A.", "--config.models=('conv_a',)", *FEW, FIT_4, UP_TO_20, FEW_RANKS),
        _decompose("conv-b", "Conv B.", "--config.models=('conv_b',)", *FEWEST, FIT_4, UP_TO_3, FEW_RANKS),
        _long_term("", "4 networks of each rate."),
    ]
    if images_dir:
        small = SMALL_VGG11, "--config.data.image_size=64", *FEW, "--config.num_steps=4"
        runs.append(_photographs("vgg11", "Figure 3 and case 9, reduced: VGG11 on 64 pixels.", images_dir, *small))
    return runs + _long(images_dir) * full


def _long(images_dir: str) -> list[Run]:
    """What takes longer: more networks, more architectures, and what lies beyond the paper."""
    runs = [
        Run("case-5-more", "early", "cases:5", "Case 5 of Appendix C, 32 networks.", ("--config.num_networks=32",)),
        Run("case-8-more", "early", "cases:8", "Case 8 of Appendix C, 12 networks.", TWELVE),
        Run("case-8-batch", "early", "cases:8", "Case 8 by batch statistics.", (*TWELVE, BATCH)),
        Run("conv-b-batch", "early", "conv_b", "Figure 2 by batch statistics.", (*FEW, STEPS_5, BATCH)),
        *(_start(name) for name in ("fcnet", "lenet", "alexnet", "vgg11", "resnet50")),
        *(_first_step(model, classes) for model in ("mlp_shallow", "mlp_deep") for classes in CLASS_PAIRS),
        *(_first_step("mlp_shallow", CLASS_PAIRS[0], *flags, name=f"-{name}") for name, flags in WIDTHS.items()),
        _first_step("mlp_shallow", CLASS_PAIRS[1], *OTHERS, name="-others"),
        *(_first_step("conv_a", classes, *CONVOLUTIONAL) for classes in CLASS_PAIRS),
        *(_first_step(name, CLASS_PAIRS[0], *FEW_CONVOLUTIONAL) for name in ("conv_b", "resnet18")),
        Run("causes", "causes", "causes", "One change at a time, at a learning rate of 0.001.", (), CURVES),
        Run("causes-fast", "causes", "causes", "The same at a learning rate of 0.01.", FAST_CAUSES, CURVES),
        _long_term("-more", "8 networks of each rate.", EIGHT),
        _long_term("-cat-dog", "Figures 15 and 16: cats and dogs.", EIGHT, CATS_DOGS),
        _long_term("-early", "The first steps of the same networks.", EIGHT, *EVERY_STEP),
        _long_term("-early-cat-dog", "The first steps, cats and dogs.", EIGHT, *EVERY_STEP, CATS_DOGS),
    ]
    if images_dir:
        size = "--config.num_networks=2", "--config.batch_size=8", "--config.num_examples=8", "--config.num_steps=4"
        shows = "Case 9: the whole VGG11 on photographs enlarged to 224 pixels."
        runs.append(_photographs("case-9", shows, images_dir, *size))
    return runs


def _photographs(name: str, shows: str, images_dir: str, *arguments: str) -> Run:
    data = "--config.data.name=folder", "--config.data.classes=()"
    return Run(name, "early", "vgg11_imagenet", shows, (f"--config.data.dir={images_dir}", *data, *arguments))


def _start(name: str) -> Run:
    """Networks of an architecture before training, and after a step."""
    arguments = f"--config.models=('{name}',)", *FEWEST, "--config.num_steps=1"
    return Run(f"start-{name}", "early", "cases:1", f"{name} before training.", arguments)


def _long_term(name: str, shows: str, *arguments: str) -> Run:
    sweep = "--sweep=optimizer.learning_rate=1e-3,1e-2"
    return Run(f"long-term{name}", "sweep", "long_term_reduced", f"{LONG_TERM} {shows}", (*arguments, sweep), SWEEP)


def _first_step(model: str, classes: tuple[str, str], *arguments: str, name: str = "") -> Run:
    chosen = f"--config.models=('{model}',)", f"--config.data.classes={classes}"
    shows = f"The first step, predicted and measured: {model}{name}, {' and '.join(classes)}."
    return Run(
        f"first-step-{model}-{'-'.join(classes)}{name}", "first_step", "first_step", shows, (*chosen, *arguments)
    )


def _decompose(name: str, shows: str, *arguments: str, figures: Sequence[str] = ("figure",)) -> Run:
    return Run(f"decompose-{name}", "decompose", "decompose", shows, arguments, figures)


def command(run: Run, data_dir: str, workdir: Path) -> list[str]:
    """The arguments of `python -m jtrans` for a run in `workdir`; `data_dir` is for those without their own data."""
    arguments = [run.experiment, f"--config={run.config}", *run.arguments, f"--workdir={workdir / run.name}"]
    if "data.dir" in experiment.load(run.experiment).fields and "--config.data.dir=" not in "".join(run.arguments):
        arguments.insert(2, f"--config.data.dir={data_dir}")
    return arguments


def shown(run: Run) -> str:
    """The command as the page shows it, without this machine's directories."""
    without = ["--config.data.dir=IMAGES" if "data.dir=" in argument else argument for argument in run.arguments]
    return line(command(run._replace(arguments=without), "DIRECTORY", Path("runs/reproduction")))


def line(arguments: Sequence[str]) -> str:
    """The arguments of `python -m jtrans` as a line for a shell."""
    return shlex.join(["python", "-m", "jtrans", *arguments])
