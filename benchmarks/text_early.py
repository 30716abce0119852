"""Early transferability on texts: every network, with embeddings of mean 0 and of mean 1, on sets of texts.

    python benchmarks/text_early.py FILE... [--workdir=runs/text] [--docs=docs/text]

Each FILE has a text a line, LABEL TEXT. The runs, of `configs/text_early.py`, are kept and resumed. What the page
docs/text.md shows of them is written to early.csv and two figures in `--docs`; `--page` prints its tables from there.
"""

import argparse
import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas

from jtrans import stats
from jtrans.experiments.reproduce import page
from jtrans.harness import experiment
from jtrans.population.trajectory import FALL

ROOT = Path(__file__).parent.parent
MEANS = (0.0, 1.0)
NETWORKS = (("text_mean",), ("text_cnn",), ("text_lstm",), ("text_transformer",), ("text_mean", "text_cnn"))
STEPS = (0, 1, 2, 5, 10, 20, 40, 60)
MEASURES = {"angle": 1, "signed_angle": 1, "agreement": 2, "one_sign": 2, "constant_share": 2, "auc": 2, "accuracy": 2}
IN_FIGURES = ("text_cnn",)  # of the first set
NEAR = 5.0  # degrees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--workdir", type=Path, default=Path("runs/text"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "text")
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if not arguments.page:
        frames = []
        for file, mean, names in itertools.product(arguments.files, MEANS, NETWORKS):
            workdir = arguments.workdir / f"{file.stem}-{mean:g}-{'-'.join(names)}"
            run(file, mean, names, workdir)
            frames.append(moments(workdir).assign(texts=file.stem, embedding_mean=mean, networks=" and ".join(names)))
            if file == arguments.files[0] and names == IN_FIGURES:
                arguments.docs.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(workdir / "figure.png", arguments.docs / f"mean-{mean:g}.png")
        pandas.concat(frames).to_csv(arguments.docs / "early.csv", index=False)
    results = pandas.read_csv(arguments.docs / "early.csv")
    print(f"{page.markdown(shown(results))}\n\n{page.markdown(predicted(results))}")


def run(file: Path, mean: float, names: tuple[str, ...], workdir: Path) -> None:
    settings = {"data.dir": file, "data.embedding_mean": mean, "models": names}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "jtrans", "early", "--config=text_early", *flags, f"--workdir={workdir}"]
    print(" ".join(map(str, command)), flush=True)
    subprocess.run(command, check=True)


def moments(workdir: Path) -> pandas.DataFrame:
    """Of a run, the measures at `STEPS` with their intervals, the mean of random angles, and by how much the signed
    angle is above the folded one at most, of all steps at which that is `NEAR` degrees below random.
    """
    results = experiment.read(workdir)
    table = results.tables["trajectory"]
    columns = [f"{name}{bound}" for name in MEASURES for bound in ("", "_low", "_high")]
    random = results.summary["random"]["mean_angle"]
    fallen = table[table["angle"] <= random - NEAR]
    apart = (fallen["signed_angle"] - fallen["angle"]).max()
    return table[table["step"].isin(STEPS)][["step", *columns]].assign(random=random, apart=apart)


def at(results: pandas.DataFrame, texts: str, mean: float, networks: str, step: int) -> pandas.Series:
    of = results.query("texts == @texts and embedding_mean == @mean and networks == @networks and step == @step")
    return of.iloc[0]


def cell(row: pandas.Series, name: str) -> str:
    interval = {key: row[f"{name}{bound}"] for key, bound in (("mean", ""), ("low", "_low"), ("high", "_high"))}
    return stats.interval_text(interval, MEASURES[name])


def cases(results: pandas.DataFrame) -> Iterator[tuple[str, float, str]]:
    for key, _ in results.groupby(["texts", "embedding_mean", "networks"], sort=False):
        yield key


def shown(results: pandas.DataFrame) -> Iterator[dict[str, str]]:
    """The table of all runs: what there is at step 1, and what learning has made of it."""
    for texts, mean, networks in cases(results):
        first, tenth, last = (at(results, texts, mean, networks, step) for step in (1, 10, STEPS[-1]))
        yield {
            "texts": texts,
            "mean": f"{mean:g}",
            "networks": networks,
            "random": f"{first['random']:.1f}",
            "step 1: folded angle": cell(first, "angle"),
            "signed": cell(first, "signed_angle"),
            "pairs of one sign": cell(first, "one_sign"),
            "same at all words": cell(first, "constant_share"),
            "step 10: folded": cell(tenth, "angle"),
            "signed, 10": cell(tenth, "signed_angle"),
            "cosines above 0": cell(tenth, "agreement"),
            "AUC": cell(tenth, "auc"),
            f"step {STEPS[-1]}: folded": cell(last, "angle"),
            f"AUC, {STEPS[-1]}": cell(last, "auc"),
        }


def side(low: float, high: float, bound: float, below: bool) -> str:
    """Whether an interval lies on the predicted side of a bound: yes, no or open."""
    if low <= bound <= high:
        return "open"
    return "yes" if (high < bound) == below else "no"


def overlap(row: pandas.Series, other: pandas.Series, one: str, two: str) -> str:
    """`one` where the intervals of two folded angles overlap, else `two`."""
    return one if max(row["angle_low"], other["angle_low"]) <= min(row["angle_high"], other["angle_high"]) else two


def predicted(results: pandas.DataFrame) -> Iterator[dict[str, str]]:
    """Each prediction of angles, where it was measured, and whether it came.

    Predictions 4 of the transformer and 5 name no bound: the intervals of the angles decide.
    """
    for texts, mean, networks in cases(results):
        row = lambda step, case=(texts, mean, networks): at(results, *case, step)
        first = row(1)
        falls = first["angle_low"], first["angle_high"], first["random"] - FALL
        place = {"texts": texts, "mean": f"{mean:g}", "networks": networks}
        text = f"step 1: folded angle {cell(first, 'angle')}"
        if mean == 0:
            yield {"prediction": "1", **place, "measured": text, "came": side(*falls, below=False)}
            if not math.isnan(first["apart"]):
                came = "yes" if first["apart"] <= NEAR else "no"
                text = f"signed less folded, at most {first['apart']:.1f} degrees"
                yield {"prediction": "1", **place, "measured": text, "came": came}
            if step := {"text_mean": 10, "text_cnn": 40}.get(networks):
                then = row(step)
                text = f"step {step}: {cell(then, 'agreement')} of cosines above 0"
                came = side(then["agreement_low"], then["agreement_high"], 0.95, below=False)
                yield {"prediction": "2", **place, "measured": text, "came": came}
                came = side(then["auc_low"], then["auc_high"], 0.5, below=False)
                yield {"prediction": "2", **place, "measured": f"step {step}: AUC {cell(then, 'auc')}", "came": came}
            continue
        words = [at(results, texts, mean, name, 1) for name in ("text_mean", "text_cnn")]
        weaker = max(words, key=lambda of: of["angle"])
        number = {"text_mean": "3", "text_cnn": "3", "text_mean and text_cnn": "5"}.get(networks, "4")
        came = side(*falls, below=True)
        if networks == "text_transformer":  # less than those
            came = overlap(first, weaker, "open", "yes" if first["angle"] > weaker["angle"] else "no")
        if number == "5":
            came = overlap(first, weaker, "yes", "no")
        yield {"prediction": number, **place, "measured": text, "came": came}
        if number == "3":
            low, high = first["signed_angle_low"], first["signed_angle_high"]
            inside, outside = max(90 - low, high - 90) <= 2 * NEAR, max(low - 90, 90 - high) > 2 * NEAR
            came = "yes" if inside else "no" if outside else "open"
            text = f"step 1: signed angle {cell(first, 'signed_angle')}"
            yield {"prediction": "3", **place, "measured": text, "came": came}
            text = f"step 1: {cell(first, 'one_sign')} of pairs of one sign"
            came = side(first["one_sign_low"], first["one_sign_high"], 0.5, below=False)
            yield {"prediction": "3", **place, "measured": text, "came": came}


if __name__ == "__main__":
    main()
