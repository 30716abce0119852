"""The page: the claims, what lies beyond the paper, and the command, time and figure of every run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas

from jtrans import stats
from jtrans.experiments import causes
from jtrans.experiments.reproduce import claims, runs
from jtrans.harness import experiment, folder, tables
from jtrans.harness import figures as words
from jtrans.population import trajectory
from jtrans.population.trajectory import SUCCESS

PAGE, FIGURES, RESULTS = "reproduction.md", "reproduction", "reproduction/results"
TEXT = """# The early-transferability paper, reproduced

`make reproduce` writes this page from the results of the runs below, and from nothing else; \
[results](reproduction/results) has their configs and tables, and the trajectories. Where BenShmuel (2022), \
[arXiv 2206.04472](https://arxiv.org/abs/2206.04472), shows a pair of networks, these are populations: all pairs are \
measured, with 95 % intervals over networks. All runs took {minutes:.0f} minutes on {devices}. What is smaller than in \
the paper is marked as reduced. Angles are folded into [0, 90] degrees.

## Claims

{overview}

Each row names a range for the measured quantity. Alone, the claim *holds* where the whole 95 % interval lies in the \
range, and *does not hold* where the whole interval lies outside; otherwise it stays *open*. These are one-sided tests \
at 2.5 %; the second verdict is by their p-values adjusted for all rows of the table (Holm 1979). The accuracy is at \
chance within {points:.0f} points of it (for more than ten classes, within half of it). The step of the lowest angle \
at chance is chosen by each half of the networks for the other half, so that the choice does not bias the angle; fewer \
than 8 networks have no interval then. The note has both steps, and what all networks together show at their lowest. \
[coverage.md](coverage.md) has the coverage of every interval.

{claims}

## What the angle means for an attack

FGSM along another network's direction, along the attacked network's own, and along random signs: of the images that \
the attacked network classifies rightly, the share that the attack makes it get wrong [95 % interval].

{attacks}

## The first step, predicted

After one step the directions of two networks are nearly parallel or nearly opposite. [first_step.md](first_step.md) \
predicts which, and how nearly, from the mean image of each class in each network's first batch. A pair's sign is that \
of its cosines at most images. The table has the share of pairs whose sign is the predicted one, that by the sign of \
the excess alone, and the share of the sign that most pairs have. Angles in degrees, means [95 % interval]. Of the \
three pairs of classes only cats and dogs had been looked at when the predictions were made.

{first_step}

## What removes which phase

The same networks under one change at a time, at two steps named beforehand, means [95 % interval].

{causes}

## Directions without a small subspace

Mean angles in degrees [95 % interval] once a few directions are projected out, and the share of the directions' \
squared length that this takes out. The directions are random, of training images, or fitted on other networks than \
those measured, anew at each step. Each run has a row at its lowest angle at chance and one at \
its last step. The attacks, bounded in L2, are counted as above.

{decomposition}

## Runs

With {versions}.

{runs}
"""
KINDS = ("predicted", "measured")
ANGLES = {"folded": "angle", "signed": "signed_angle"}
WHOLE = ("nothing", 0)
# Subspaces that are projected out, by name and number of directions.
SUBSPACES = {
    WHOLE: "whole",
    ("random", 10): "off random directions, 10",
    ("random_images", 10): "off random mixtures of images, 10",
    ("constant_colours", 3): "off constant colours, 3",
    ("mean_image", 1): "off the mean image, 1",
    ("class_means", 1): "off the difference of class means, 1",
    ("training_images", 1): "off training images, 1",
    ("training_images", 10): "off training images, 10",
    ("gradients", 10): "off other networks' gradients, 10",
    ("updates", 1): "off other networks' updates, 1",
    ("updates", 10): "off other networks' updates, 10",
}


def text(listed: Sequence[runs.Run], table: pandas.DataFrame, workdir: Path) -> str:
    """The page in Markdown, of runs that are all finished in their folders in `workdir`, and of `claims.table`."""
    minutes = {run.name: seconds(workdir / run.name) / 60 for run in listed}
    environment = folder.read_summary(workdir / listed[0].name)
    rows = {"claims": _claims(table), "attacks": _attacks(workdir), "decomposition": _decompositions(workdir)}
    rows |= {"first_step": _first_steps(workdir), "causes": _causes(workdir)}
    return TEXT.format(
        minutes=sum(minutes.values()),
        devices=" and ".join(environment["devices"]),
        overview=overview(table),
        points=100 * trajectory.at_chance(0.5),
        **{name: markdown(each) for name, each in rows.items()},
        versions=", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        runs="\n\n".join(_section(run, minutes[run.name]) for run in listed),
    )


def seconds(path: Path) -> float:
    """How long the runs at or below a folder took, as their summaries say."""
    finished = (summary.parent for summary in sorted(path.rglob(folder.SUMMARY)))
    return sum(folder.read_summary(run)["seconds"] for run in finished if not experiment.maker(run).holds_runs)


def overview(table: pandas.DataFrame) -> str:
    """The claims as a list, each with its adjusted verdicts counted."""
    lines = []
    for number, claim in claims.CLAIMS.items():
        verdicts = table["adjusted"][table["claim"] == number]
        lines.append(f"{number}. {claim} *Rows: {len(verdicts)} ({claims.counted(verdicts) or 'not run'}).*")
    return "\n".join(lines)


def markdown(rows: Iterator[Mapping[str, str]]) -> str:
    """The rows as a table in Markdown."""
    table = pandas.DataFrame(rows)
    if table.empty:
        return "Not measured in these runs: `make reproduce-full`."
    lines = [list(table), ["---"] * table.shape[1], *table.itertuples(index=False, name=None)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _claims(table: pandas.DataFrame) -> Iterator[dict[str, str]]:
    """A row for each claim that a run measures; a run's name is a link to the heading of that name."""
    for row in table.itertuples():
        of_range, digits = (1, 1) if row.unit == "degrees" else (2, 3)
        bounds = {"mean": row.measured, "low": row.measured_low, "high": row.measured_high}
        measured = "-" if np.isnan(row.measured) else f"{stats.interval_text(bounds, digits)} {row.unit}".rstrip()
        measured += f" ({row.note})" * bool(row.note)
        yield {
            "claim": str(row.claim),
            "what is claimed": row.statement,
            "range": _range(row.range_low, row.range_high, of_range),
            "measured [95 % interval]": measured,
            "verdict": f"**{row.verdict}**",
            "adjusted": f"**{row.adjusted}**",
            "networks": row.networks,
            "command": f"[{row.run}](#{row.run.split('/')[0]})",
        }


def _range(low: float, high: float, digits: int) -> str:
    if np.isinf(low):
        return "-" if np.isinf(high) else f"at most {high:.{digits}f}"
    return f"at least {low:.{digits}f}" if np.isinf(high) else f"{low:.{digits}f} to {high:.{digits}f}"


def _attacks(workdir: Path) -> Iterator[dict[str, str]]:
    """FGSM from network to network, at the lowest angle at chance and at the end of each run."""
    finished = claims.finished(workdir, "case-*", "conv-b*", "vgg11", "data/*", "long-term*/*")
    for name, results in finished.items():
        for key, said in (("lowest_at_chance", "lowest angle at chance"), ("last", "last step")):
            moment = results.summary[key]
            yield {
                "run": name,
                "moment": f"{said}, step {moment['step']}",
                "folded angle, degrees": stats.interval_text(moment["angle"], 1),
                "signed angle, degrees": stats.interval_text(moment["signed_angle"], 1),
                "constant colour": stats.interval_text(moment["constant_share"], 2),
                "AUC": stats.interval_text(moment["auc"], 2),
                "accuracy": stats.interval_text(moment["accuracy"], 2),
                **{f"FGSM along {whose}": stats.interval_text(moment[rate], 2) for rate, whose in SUCCESS.items()},
            }


def _first_steps(workdir: Path) -> Iterator[dict[str, str]]:
    """Each setting of the first step: predicted and measured."""
    for results in claims.finished(workdir, "first-step-*").values():
        table, config = results.tables["first_step"], results.config
        for i, row in enumerate(table.itertuples()):
            cell = lambda name, digits, rows=table.iloc[[i]]: tables.cells(rows, name, digits)[0]
            yield {
                "networks": f"{config['num_networks']} {words.networks(config)}",
                "classes": " / ".join(config["data"]["classes"]),
                "optimizer, rate": f"{row.optimizer}, {row.learning_rate:g}",
                "sign predicted": cell("sign_predicted", 2),
                "by the rule": cell("sign_by_rule", 2),
                "most common": cell("sign_majority", 2),
                **{f"{n} angle, {kind}": cell(f"{kind}_{a}", 1) for n, a in ANGLES.items() for kind in KINDS},
                **{f"constant colour, {kind}": cell(f"{kind}_constant_share", 2) for kind in KINDS},
            }


def _causes(workdir: Path) -> Iterator[dict[str, str]]:
    """Each change at both steps."""
    for name, results in claims.finished(workdir, "causes*").items():
        for (step, change), rows in results.tables["causes"].groupby(["step", "change"], sort=False):
            labels = [causes.MEASURES[measure].replace("\n", " ") for measure in rows["measure"]]
            values = dict(zip(labels, tables.cells(rows, "value", 2), strict=True))
            yield {"run": name, "step": str(step), "change": causes.CHANGES[change].caption, **values}


def _decompositions(workdir: Path) -> Iterator[dict[str, str]]:
    """Each decomposition at the measured step of its lowest angle at chance, and at its last."""
    for name, results in claims.finished(workdir, "decompose-*").items():
        table = results.tables["decompose"]
        whole = table[table["subspace"] == WHOLE[0]]
        at_chance = trajectory.steps_at_chance(whole["accuracy"].to_numpy(), results.summary["chance"])
        lowest = whole["step"].iloc[np.nanargmin(whole["angle"].iloc[:at_chance])]
        for step in sorted({lowest, table["step"].max()}):
            rows = table[table["step"] == step].set_index(["subspace", "rank"])
            yield {
                "run": name,
                "step": str(step),
                "accuracy": _cell(rows, WHOLE, "accuracy", 3),
                **{title: _left(rows, subspace) for subspace, title in SUBSPACES.items()},
                "attack along whole": _cell(rows, WHOLE, "off", 2),
                "along what is left off 10 updates": _cell(rows, ("updates", 10), "off", 2),
                "along what they hold": _cell(rows, ("updates", 10), "inside", 2),
            }


def _cell(rows: pandas.DataFrame, subspace: tuple[str, int], name: str, digits: int) -> str:
    return tables.cells(rows.loc[[subspace]], name, digits)[0] if subspace in rows.index else "-"


def _left(rows: pandas.DataFrame, subspace: tuple[str, int]) -> str:
    """The angle left, and the share that was taken out."""
    angle = _cell(rows, subspace, "angle", 1)
    if subspace == WHOLE or subspace not in rows.index:  # nothing was taken out
        return angle
    return f"{angle}; {rows['share'][subspace]:.0%}"


def _section(run: runs.Run, minutes: float) -> str:
    """A run's heading, command and figures."""
    drawn = "\n\n".join(f"![{run.shows}]({FIGURES}/{name})" for name in figures(run))
    return f"### {run.name}\n\n{run.shows} {minutes:.1f} minutes.\n\n```\n{runs.shown(run)}\n```\n\n{drawn}"


def figures(run: runs.Run) -> dict[str, str]:
    """The files of a run's figures on the page, and the files in its folder that they are."""
    first, *rest = run.figures
    return {f"{run.name}.png": f"{first}.png"} | {f"{run.name}-{stem}.png": f"{stem}.png" for stem in rest}
