"""The image experiments and the synthetic one of Liang et al. (2021), in one page, beside the published numbers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import files, stats
from jtrans.experiments import reproduce, synthetic
from jtrans.experiments.knowledge import words
from jtrans.experiments.reproduce import page, runs
from jtrans.harness import experiment
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, text

NAME = "knowledge_paper"
PAGE, FIGURES, RESULTS = "knowledge.md", "knowledge", "knowledge/results"

FIELDS: Mapping[str, Field] = {
    "data_dir": text("", "a TFDS data directory, or '' for the default", "what holds cifar10 and tiny_imagenet22"),
    "docs": text("docs", "a directory", "where the page is written", empty=False),
}


class Run(NamedTuple):
    """One command: an experiment with a shipped config."""

    name: str  # of its config, and of the folder that it fills
    experiment: str
    shows: str

    def command(self, data_dir: str, workdir: Path) -> list[str]:
        """The arguments of `python -m jtrans`."""
        sections = ("source", "target") if self.experiment == "knowledge" else ()
        directories = [f"--config.{section}.dir={data_dir}" for section in sections]
        return [self.experiment, f"--config={self.name}", *directories, f"--workdir={workdir / self.name}"]


RUNS = (
    Run("many_sources", "knowledge", "Twenty-four sources on four classes of CIFAR-10 each, two targets."),
    Run("noisy_sources", "knowledge", "Twelve sources with wrong labels and few epochs."),
    Run("adv_to_know_reduced", "knowledge", "The first experiment, reduced: four architectures."),
    Run("know_to_adv_reduced", "knowledge", "The second experiment, reduced: five mixtures of vehicles and animals."),
    Run("synthetic", "synthetic", "The synthetic experiment: sources that drift away from their target."),
)

# Liang et al. (2021): accuracy after the transfer of knowledge to STL-10 in %, tau1, and what the released code prints
# of tau2 and of both: squares.
FIRST = {
    "fcnet": (28.30, 0.346, 0.189, 0.0258),
    "lenet": (45.65, 0.324, 0.215, 0.0254),
    "alexnet": (55.09, 0.337, 0.205, 0.0268),
    "resnet18": (76.60, 0.538, 0.244, 0.0707),
    "resnet50": (77.92, 0.614, 0.234, 0.0899),
}
# Of the bar chart, read by eye: animals among the source's classes in %, adversarial transferability, accuracy.
SECOND = ((100, 0.34, 0.54), (75, 0.31, 0.54), (50, 0.42, 0.67), (25, 0.50, 0.77), (0, 0.65, 0.83))

TEXT = """# The knowledge paper, reproduced

`make knowledge` writes this page from the results of the runs below, and from nothing else; \
[results](knowledge/results) has their configs and tables. Liang et al. (2021), \
[arXiv 2006.14512](https://arxiv.org/abs/2006.14512), claim that attacks transfer between two networks where knowledge \
does. A *source* network gets a new last layer for a target domain; its loss there is the transfer loss. A *reference* \
is trained on the target domain. In the paper's first experiment the reference is attacked and the source measured \
under that attack (tau with the suffix T to S), in its second the source is attacked and the reference measured. All \
runs took {minutes:.0f} minutes on {devices}.

## The hypotheses

Fixed before the runs: over the sources, tau1 and tau2 of PGD, in both directions, have a rank correlation below 0 \
with the transfer loss. The four p-values, of two-sided permutation tests over sources, are adjusted together (Holm \
1979): a hypothesis *holds* where its adjusted p-value is at most {level:g} and the correlation below 0, *does not \
hold* where that is above 0, and is *open* otherwise. All other rows are for comparison and are not adjusted. \
[power.md](power.md) has the power of these tests, and how often they err.

## Twenty-four sources

Each source learns four classes of CIFAR-10, drawn at random. What is correlated is the difference of every measure \
between two targets, twelve vehicles and ten animals of Tiny ImageNet, with the difference of the transfer loss, so \
that how good a source is for both cancels. The share of vehicles among a source's classes drives both: within \
strata, sources with as many vehicles are exchanged alone. "Given accuracy" is the partial rank correlation given \
the accuracy of the source on its own classes.

{many_found}

{many_sources}

{many_figure}

## Twelve sources, trained well and badly

All learn the ten classes of CIFAR-10, with up to 60 % wrong labels, in 2 to 8 epochs. Within strata, sources of as \
many epochs are exchanged.

{noisy_found}

{noisy_sources}

{noisy_figure}

## The first experiment: the reference is attacked, the source measured

The published numbers, from CIFAR-10 to STL-10, beside the reduced form, from a part of CIFAR-10 to twelve vehicles of \
Tiny ImageNet, means [95 % interval over three seeds]. Where the released code prints squares, so does this table. \
By ranks, the five published sources give p-values of 0.23 for tau1, 0.13 for tau2 and 0.083 for both.

{first}

{first_correlations}

{first_figure}

## The second experiment: the source is attacked, the reference measured

The published numbers are read by eye from a bar chart.

{second}

{second_correlations}

{second_figure}

## The synthetic experiment

Over {num_problems} generated problems: each measure without drift and at the largest, and its rank correlation with \
the scale of the drift, means [95 % interval over problems].

{synthetic}

{synthetic_figure}

## Runs

With {versions}.

{runs}
"""


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    reproduce.check_page(NAME, config)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Make every run that is not finished, and write the page."""
    docs = Path(config.docs)
    reproduce.make([(run.name, run.command(config.data_dir, workdir)) for run in RUNS])
    (docs / FIGURES).mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        files.write(docs / FIGURES / f"{run.name}.png", (workdir / run.name / "figure.png").read_bytes())
        reproduce.publish_run(workdir / run.name, docs / RESULTS / run.name)
    files.write(docs / PAGE, written(workdir).encode())
    found = {run.name: verdicts(experiment.read(workdir / run.name)) for run in RUNS if run.experiment == "knowledge"}
    return Results(config, {"verdicts": found}, {}, {})


def written(workdir: Path) -> str:
    """The page in Markdown, of runs that are all finished in their folders in `workdir`."""
    results = {run.name: experiment.read(workdir / run.name) for run in RUNS}
    minutes = {name: of.summary["seconds"] / 60 for name, of in results.items()}
    environment = results["many_sources"].summary
    correlations = {name: page.markdown(_correlations(of)) for name, of in results.items() if name != "synthetic"}
    figure_of = {run.name: f"![{run.shows}]({FIGURES}/{run.name}.png)" for run in RUNS}
    return TEXT.format(
        minutes=sum(minutes.values()),
        devices=" and ".join(environment["devices"]),
        level=words.LEVEL,
        many_found=conclusion(results["many_sources"]),
        many_sources=correlations["many_sources"],
        many_figure=figure_of["many_sources"],
        noisy_found=conclusion(results["noisy_sources"]),
        noisy_sources=correlations["noisy_sources"],
        noisy_figure=figure_of["noisy_sources"],
        first=page.markdown(_first(results["adv_to_know_reduced"])),
        first_correlations=correlations["adv_to_know_reduced"],
        first_figure=figure_of["adv_to_know_reduced"],
        second=page.markdown(_second(results["know_to_adv_reduced"])),
        second_correlations=correlations["know_to_adv_reduced"],
        second_figure=figure_of["know_to_adv_reduced"],
        num_problems=results["synthetic"].summary["num_seeds"],
        synthetic=page.markdown(_synthetic(results["synthetic"])),
        synthetic_figure=figure_of["synthetic"],
        versions=", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        runs="\n\n".join(_section(run, minutes[run.name]) for run in RUNS),
    )


def verdicts(results: Results) -> dict[str, str]:
    """The verdict on each hypothesis."""
    rows = {row["measure"]: row for row in results.summary["correlations"]}
    return {name: words.VERDICTS[rows[name]["holds"]] for name in words.PRIMARY}


def conclusion(results: Results) -> str:
    """What the run says of the hypotheses, beside what scores that need no attack say."""
    rows = {row["measure"]: row for row in results.summary["correlations"]}
    primary = [rows[name] for name in words.PRIMARY]
    counted = {verdict: sum(row["holds"] is key for row in primary) for key, verdict in words.VERDICTS.items()}
    plural = lambda verdict: verdict.replace("holds", "hold").replace("does", "do")
    said = ", ".join(f"{n} {verdict if n == 1 else plural(verdict)}" for verdict, n in counted.items() if n)
    adjusted = [row["adjusted_within_strata"] for row in primary]
    within = sum(p_value is not None and p_value <= words.LEVEL for p_value in adjusted)
    cheap = _largest([rows[name] for name in ("logme", "leep", "h_score", "gbc", "cka")])
    return (
        f"Of the four hypotheses: {said}; within strata, {within} of them have an adjusted p-value of at most "
        f"{words.LEVEL:g}. The largest rank correlation of a tau is {_largest(primary)}; of a score that needs no "
        f"attack, {cheap}."
    )


def _largest(rows: Sequence[Mapping[str, Any]]) -> str:
    """The correlation that is farthest from 0, in words."""
    measured = [row for row in rows if row["spearman"] is not None]
    if not measured:
        return "not defined"
    row = max(measured, key=lambda row: abs(row["spearman"]["mean"]))
    within = row["within_strata"]
    of_strata = "" if within is None else f", within strata p {words.p_text(within['p_value'])}"
    caption, p_value = words.CAPTIONS[row["measure"]], words.p_text(row["spearman"]["p_value"])
    return f"{stats.interval_text(row['spearman'], 2)} ({caption}; p {p_value}{of_strata})"


def _correlations(results: Results) -> Iterator[dict[str, str]]:
    columns = words.columns(results.summary["correlations"])
    titles = {"": "note"}
    yield from (
        {titles.get(name, name): cell for name, cell in zip(columns, cells, strict=True)}
        for cells in zip(*columns.values(), strict=True)
    )


def _first(results: Results) -> Iterator[dict[str, str]]:
    """The published table, and ours beside it."""
    rows = {row["source"]: row["target"] for row in results.summary["sources"]}
    for name, (accuracy, tau1, tau2, both) in FIRST.items():
        ours = rows.get(name)
        yield {
            "source": name,
            "accuracy, published": f"{accuracy / 100:.3f}",
            "ours": "" if ours is None else stats.interval_text(ours["transfer_accuracy"], 3),
            "tau1, published": f"{tau1:.3f}",
            "ours, tau1": _cell(ours, "pgd_liang_tau1_T_S"),
            "tau2 squared, published": f"{tau2:.3f}",
            "ours, tau2 squared": _cell(ours, "pgd_liang_tau2_T_S", squared=True),
            "both squared, published": f"{both:.4f}",
            "ours, both squared": _cell(ours, "pgd_liang_tau1tau2_T_S", squared=True),
        }


def _second(results: Results) -> Iterator[dict[str, str]]:
    """The published bars, and ours beside them: sources by the number of animals among their four classes."""
    rows = [row["target"] for row in results.summary["sources"]]  # from 0 % animals on
    for (animals, transferability, accuracy), ours in zip(SECOND, reversed(rows), strict=True):
        yield {
            "animals": f"{animals} %",
            "accuracy, published": f"{accuracy:.2f}",
            "ours": stats.interval_text(ours["transfer_accuracy"], 3),
            "adversarial transferability, published": f"{transferability:.2f}",
            "ours, tau1": _cell(ours, "pgd_liang_tau1_S_T"),
            "ours, tau2": _cell(ours, "pgd_liang_tau2_S_T"),
        }


def _cell(row: Mapping[str, Any] | None, name: str, *, squared: bool = False) -> str:
    """An interval over seeds in words; that of the square of a quantity of at least 0."""
    if row is None:
        return ""
    values = {key: row[name][key] for key in ("mean", "low", "high")}
    if squared:
        values = {key: None if value is None else max(value, 0) ** 2 for key, value in values.items()}
    return stats.interval_text(values, 3)


def _synthetic(results: Results) -> Iterator[dict[str, str]]:
    for row in results.summary["rows"]:
        yield {
            "width": str(row["width"]),
            "singular vector": str(row["level"]),
            "measure": synthetic.MEASURES[row["measure"]],
            "no drift": stats.interval_text(row["first"], 3),
            "largest drift": stats.interval_text(row["last"], 3),
            "rank correlation with the drift": stats.interval_text(row["spearman"], 2),
        }


def _section(run: Run, minutes: float) -> str:
    """A run's heading and command."""
    line = runs.line(run.command("DIRECTORY", Path("runs/knowledge")))
    return f"### {run.name}\n\n{run.shows} {minutes:.1f} minutes.\n\n```\n{line}\n```"


def tell(results: Results) -> str:
    """The verdicts, and where the page is."""
    lines = [
        f"{name}: {', '.join(f'{m} {v}' for m, v in of.items())}" for name, of in results.summary["verdicts"].items()
    ]
    return "\n".join([*lines, str(Path(results.config["docs"]) / PAGE)])


def draw(results: Results) -> dict[str, Figure]:
    """No figure of its own: the page shows those of the runs."""
    return {}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, holds_runs=True)
