"""Every figure and claim of the early-transferability paper (BenShmuel 2022) from scratch, in one page."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import files
from jtrans.errors import InputError, Interrupted
from jtrans.experiments.reproduce import claims, page, runs
from jtrans.harness import experiment, folder
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, text, yes_no

NAME = "reproduce"
INTERRUPTED = 130  # the status of an interrupted run

FIELDS: Mapping[str, Field] = {
    "data_dir": text("", "a TFDS data directory, or '' for the default", "what holds cifar10"),
    "images_dir": text("", "a folder, or '' for none", "photographs in two classes"),
    "full": yes_no(False, "the long runs too"),
    "docs": text("docs", "a directory", "where the page is written", empty=False),
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    check_page(NAME, config)


def check_page(name: str, config: ConfigDict) -> None:
    """Check, for the experiment of that name, that this is one process, and that the page can have its directory."""
    if jax.process_count() > 1:
        raise InputError(f"--num_processes: {name} starts one process after another by itself; start it once")
    if Path(config.docs).exists() and not Path(config.docs).is_dir():
        raise InputError(f"docs: got {config.docs!r}, which is no directory; name one, as 'docs'")


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Make every run that is not finished, hold the claims to what they measured, and write the page."""
    listed, docs = runs.listed(config.images_dir, config.full), Path(config.docs)
    make([(run.name, runs.command(run, config.data_dir, workdir)) for run in listed])
    # Long runs that were made before are on the page too.
    listed = [
        run for run in runs.listed(config.images_dir, full=True) if (workdir / run.name / folder.SUMMARY).exists()
    ]
    table = claims.table(workdir)
    (docs / page.FIGURES).mkdir(parents=True, exist_ok=True)
    for run in listed:
        for name, drawn in page.figures(run).items():
            files.write(docs / page.FIGURES / name, (workdir / run.name / drawn).read_bytes())
        publish(workdir / run.name, docs / page.RESULTS / run.name)
    files.write(docs / page.PAGE, page.text(listed, table, workdir).encode())
    return Results(config, {"verdicts": table["adjusted"].value_counts(sort=False).to_dict()}, {"claims": table}, {})


def make(commands: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Make every run that is not finished, given by its name and the arguments of `python -m jtrans`.

    Raises:
      Interrupted: a run was interrupted.
      InputError: a run failed.
    """
    for i, (name, arguments) in enumerate(commands):
        print(f"\n[{i + 1} of {len(commands)}] {name}: {runs.line(arguments)}", flush=True)
        status = subprocess.run([sys.executable, "-m", "jtrans", *arguments]).returncode
        if status == INTERRUPTED:
            raise Interrupted(f"interrupted in {name}; the same command resumes")
        if status:
            raise InputError(f"{name}: ended with status {status}, as it says above; finished parts are kept")


def publish(made: Path, published: Path) -> None:
    """Copy the results of a run, and of those in its folder, as `publish_run`."""
    for summary_file in sorted(made.rglob(folder.SUMMARY)):
        publish_run(summary_file.parent, published / summary_file.parent.relative_to(made))


def publish_run(source: Path, target: Path) -> None:
    """Copy the results of one run, without figures and without this machine's directories.

    Of arrays those alone that the page needs, the trajectories of early's runs: others take megabytes.
    """
    target.mkdir(parents=True, exist_ok=True)
    config, summary = folder.read_config(source), folder.read_summary(source)
    for section in (*config.values(), *summary["config"].values()):
        if isinstance(section, dict):
            section.pop("dir", None)
    with_arrays = experiment.maker(source).name == "early"
    named = summary.get(experiment.FILES, ())
    summary[experiment.FILES] = [name for name in named if with_arrays or not name.endswith(".npz")]
    folder.write_json(target / folder.CONFIG, config)
    for name in summary[experiment.FILES]:
        files.write(target / name, (source / name).read_bytes())
    folder.write_summary(target, summary)


def tell(results: Results) -> str:
    """The adjusted verdicts counted, and where the page is."""
    verdicts = results.tables["claims"]["adjusted"]
    return f"{len(verdicts)} rows of claims ({claims.counted(verdicts)}): {Path(results.config['docs']) / page.PAGE}"


def draw(results: Results) -> dict[str, Figure]:
    """No figure of its own: the page shows those of the runs."""
    return {}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, holds_runs=True)
