"""Every figure and table of the early-transferability paper from scratch, and its claims in one page."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jtrans import claims, cli, findings, results, settings
from jtrans.errors import InputError, Interrupted

ROOT = Path(__file__).parent.parent
PAGE, FIGURES = "reproduction.md", "reproduction"
TITLE = "# The early-transferability paper, reproduced"
INTRODUCTION = (
    "Written by `make reproduce` from what the runs below leave, and by nothing else. Where BenShmuel (2022), "
    "[arXiv 2206.04472](https://arxiv.org/abs/2206.04472), shows a pair of networks, these are populations, all pairs "
    "measured, with 95 % intervals over networks. All runs took {total}; what is smaller than in the paper is named as "
    "reduced. Angles are folded into [0, 90] degrees."
)
SELECTION = (
    "At chance is within {points:.0f} points of chance (within half of chance for more than ten classes); the lowest "
    "angle is that of the step where the mean is lowest among those before the accuracy leaves chance, and its "
    "interval is the one there."
)
ATTACKS = (
    "## What the angle means for an attack\n\nFGSM along another network's direction, along the attacked one's own, "
    "and along random signs: of the images that it gets right, the share it then gets wrong [95 % interval]."
)
DECOMPOSITION = (
    "## Taking the early part out\n\nMean angles in degrees [95 % interval] once a few directions are projected out: "
    "drawn at random, of the training images, or fitted on other networks than those measured. For each run a line at "
    "the lowest angle at chance and one at the last step. The attacks, bounded in L2, are counted as above."
)
INTERRUPTED = 130  # the status of a run that was asked to stop
SMALL_VGG11 = "--config.widths.vgg11=(64, 128, 256, 256, 512, 512, 512, 512)"
UP_TO_60 = "--config.steps=(0, 1, 2, 3, 5, 10, 20, 60)"
UP_TO_20 = "--config.steps=(0, 1, 2, 3, 5, 10, 20)"
FEW_RANKS = "--config.ranks=(1, 10, 100, 400)"
MANY_RANKS = "--config.ranks=(1, 2, 5, 10, 20, 50, 100, 200, 400)"


class Run(NamedTuple):
    """One command: the folder that it fills, its main, its config, overrides and flags, and what its figure shows."""

    name: str
    script: str
    config: str
    arguments: Sequence[str]
    shows: str


def runs(images_dir: str) -> list[Run]:
    """All of them. Convolutional networks are fewer, and take fewer steps, than in `configs/`.

    Args:
      images_dir: a folder of photographs in two classes, or '' for none.
    """
    few = ["--config.num_networks=8", "--config.num_examples=100"]
    fewer = ["--config.num_networks=6", "--config.num_examples=100"]
    least = ["--config.num_networks=4", "--config.num_examples=40"]
    decompose = "decompose", "decompose"
    listed = [
        Run("random-angles", "random_angles", "random_angles", [], "Tables 3 and 4: how near random directions come."),
        Run("updates", "updates", "updates", [], "Tables 1 and 2: how one step of SGD moves the first layer."),
        *[Run(f"case-{i}", "early", f"cases:{i}", [], f"Case {i} of Appendix C.") for i in range(1, 6)],
        Run("case-6", "early", "cases:6", [*few, "--config.num_steps=6"], "Case 6 of Appendix C, reduced."),
        Run("case-7", "early", "cases:7", [*fewer, "--config.num_steps=4"], "Case 7 of Appendix C, reduced."),
        Run("case-8", "early", "cases:8", [*few, "--config.num_steps=13"], "Case 8 of Appendix C, reduced."),
        Run("conv-b", "early", "conv_b", [*few, "--config.num_steps=5"], "Figure 2, reduced."),
        Run(
            "data",
            "sweep",
            "cases:4",
            ["--config.num_steps=20", "--sweep=data.name='cifar10','noise' data.shuffle_labels=False,True"],
            "Section 2.1: no learnable data is needed. Noise images have labels without meaning, shuffled or not.",
        ),
        Run("optimizers", "control", "optimizers", [], "Section 4.4: four optimizers over learning rates."),
        Run("control", "control", "control", [], "Section 2.3: what controls the effect."),
        Run("decompose-fc", *decompose, [], "Section 2.4: taking the early part out, FC deep."),
        Run(
            "decompose-fast", *decompose, ["--config.optimizer.learning_rate=1e-2", UP_TO_20], "A larger learning rate."
        ),
        Run(
            "decompose-shallow",
            *decompose,
            ["--config.models=('mlp_shallow',)", "--config.optimizer.learning_rate=1e-2", UP_TO_20],
            "FC shallow.",
        ),
        Run("decompose-noise", *decompose, ["--config.data.name=noise", UP_TO_60], "Images of noise."),
        Run("decompose-shuffled", *decompose, ["--config.data.shuffle_labels", UP_TO_60], "Shuffled labels."),
        Run("decompose-centred", *decompose, ["--config.data.subtract_mean", UP_TO_60], "The mean image subtracted."),
        Run("decompose-rmsprop", *decompose, ["--config.optimizer.name=rmsprop", UP_TO_20], "RMSprop."),
        Run(
            "decompose-sgd",
            *decompose,
            ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=10", UP_TO_20],
            "SGD, at a learning rate where it shows the effect.",
        ),
        Run(
            "decompose-conv-a",
            *decompose,
            ["--config.models=('conv_a',)", *few, "--config.num_fit=4", UP_TO_20, MANY_RANKS],
            "Conv A.",
        ),
        Run(
            "decompose-conv-b",
            *decompose,
            ["--config.models=('conv_b',)", *least, "--config.num_fit=4", "--config.steps=(0, 1, 2, 3)", FEW_RANKS],
            "Conv B.",
        ),
        Run(
            "long-term",
            "sweep",
            "long_term_reduced",
            ["--sweep=optimizer.learning_rate=1e-3,1e-2"],
            "Section 4.5, Figures 4 and 5, reduced: long-term transferability under two learning rates.",
        ),
    ]
    if images_dir:
        small = [SMALL_VGG11, "--config.data.name=folder", "--config.data.classes=()", "--config.data.image_size=64"]
        shows = "Figure 3 and case 9, reduced: VGG11 on photographs of 64 pixels."
        arguments = [f"--config.data.dir={images_dir}", *small, *few, "--config.num_steps=4"]
        listed.append(Run("vgg11", "early", "vgg11_imagenet", arguments, shows))
    return listed


def command(run: Run, data_dir: str, workdir: Path) -> list[str]:
    """The command line of a run, from the root of the repository."""
    name, _, argument = run.config.partition(":")
    config = f"--config=configs/{name}.py" + (f":{argument}" if argument else "")
    own_data = run.script == "random_angles" or any("data.dir=" in argument for argument in run.arguments)
    data = [] if own_data else [f"--config.data.dir={data_dir}"]
    return [f"experiments/{run.script}.py", config, *data, *run.arguments, f"--workdir={workdir / run.name}"]


def main(config: ConfigDict, workdir: Path) -> None:
    """Every run that is not finished, one after another, and the page of claims and figures."""
    settings.check(config, settings.REPRODUCE)
    listed = runs(config.images_dir)
    for i, run in enumerate(listed):
        line = command(run, config.data_dir, workdir.resolve())
        print(f"\n[{i + 1} of {len(listed)}] {run.name}: python {shlex.join(line)}", flush=True)
        status = subprocess.run([sys.executable, *line], cwd=ROOT).returncode
        if status == INTERRUPTED:
            raise Interrupted(f"interrupted in {run.name}; the same command goes on from there")
        if status:
            raise InputError(f"{run.name}: ended with status {status}, as it says above; what is finished is kept")
    docs = Path(config.docs)
    (docs / FIGURES).mkdir(parents=True, exist_ok=True)
    for run in listed:
        figure = "sweep.png" if run.script == "sweep" else "figure.png"
        shutil.copyfile(workdir / run.name / figure, docs / FIGURES / f"{run.name}.png")
    rows = claims.rows(workdir)
    results.write(docs / PAGE, page(listed, rows, workdir).encode())
    verdicts = [row.verdict for row in rows]
    counts = ", ".join(f"{verdict}: {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts))
    print(f"\n{len(rows)} rows of claims ({counts}): {docs / PAGE}")


def page(listed: Sequence[Run], rows: Sequence[claims.Row], workdir: Path) -> str:
    """The claims, what lies beyond the paper, and every run's command, time and figure."""
    seconds = {run.name: sum(map(duration, sorted((workdir / run.name).rglob(results.SUMMARY)))) for run in listed}
    environment = results.read_summary(workdir / listed[0].name)
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    total = f"{sum(seconds.values()) / 60:.0f} minutes on {' and '.join(environment['devices'])}"
    parts = [
        TITLE,
        INTRODUCTION.format(total=total),
        f"## Claims\n\n{claims.overview(rows)}",
        f"{claims.RULE} {SELECTION.format(points=100 * findings.at_chance(0.5))}",
        claims.claims_table(rows),
        ATTACKS,
        claims.attacks_table(workdir),
        DECOMPOSITION,
        claims.decomposition_table(workdir),
        f"## Runs\n\nWith {versions}.",
    ]
    for run in listed:
        line = shlex.join(command(run._replace(arguments=shown(run)), "DIRECTORY", Path("runs/reproduction")))
        parts.append(
            f"### {run.name}\n\n{run.shows} {seconds[run.name] / 60:.1f} minutes.\n\n```\npython {line}\n```\n\n"
            f"![{run.shows}]({FIGURES}/{run.name}.png)"
        )
    return "\n\n".join(parts) + "\n"


def shown(run: Run) -> list[str]:
    """The arguments without this machine's directories."""
    return ["--config.data.dir=IMAGES" if "data.dir=" in argument else argument for argument in run.arguments]


def duration(summary: Path) -> float:
    """The seconds that a run took, as its summary says."""
    seconds = results.read_summary(summary.parent)["seconds"]
    return sum(seconds.values()) if isinstance(seconds, dict) else seconds


if __name__ == "__main__":
    sys.exit(cli.run(main))
