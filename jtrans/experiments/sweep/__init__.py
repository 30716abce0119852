"""A sweep: an experiment, early transferability or another, under many settings, each a run in its own directory."""

import contextlib
import hashlib
import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import files
from jtrans.errors import InputError, listed
from jtrans.experiments import early
from jtrans.experiments.sweep import headlines
from jtrans.experiments.sweep.settings import parse, read_shard, settings
from jtrans.harness import cluster, fields, folder, tables
from jtrans.harness import experiment as experiments
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field
from jtrans.population import devices
from jtrans.stats import Interval

NAME = "sweep"
FIELDS = early.FIELDS
OPTIONS = {
    "sweep": "the fields that vary: --sweep='optimizer.learning_rate=1e-3,1e-2 seed=0,1,2' makes six settings",
    "shard": "of this many parts, only this one: --shard=0/4 to --shard=3/4, side by side",
    "experiment": "what runs under each setting, by its name (default: early)",
    "slurm": "a job for each setting that is not finished, with these options of sbatch (time in minutes): "
    "--slurm='partition=gpu time=60 gpus_per_node=1'; --slurm=local: a process of this machine's CPU",
}
JOBS = "slurm"  # the folder of what jobs run, and of what they say
MOST_IDS = 10  # of jobs that are said
VERDICTS = {"True": "yes", "False": "no"}


def check(
    config: ConfigDict,
    sweep: str | None = None,
    shard: str | None = None,
    experiment: str | None = None,
    slurm: str | None = None,
) -> None:
    """Check every setting, and the flags."""
    settings(config, sweep or "", chosen(experiment))
    read_shard(shard)
    if slurm is not None:
        cluster.executor(slurm, Path())


def chosen(name: str | None) -> Experiment:
    """The experiment of that name, or early's; InputError if there is none, or none that comes down to a number."""
    found = experiments.load(name or early.NAME)
    if found.headline is None:
        known = [other for other in experiments.names() if experiments.load(other).headline]
        raise InputError(f"experiment: got {name!r}, which has no number to compare; it takes {', '.join(known)}")
    return found


def fields_under(experiment: str | None = None, **options: str | None) -> Mapping[str, Field]:
    """The fields of the experiment that is swept."""
    return chosen(experiment).fields


def measure(
    config: ConfigDict,
    workdir: Path,
    sweep: str | None = None,
    shard: str | None = None,
    experiment: str | None = None,
    slurm: str | None = None,
) -> Results:
    """Run the settings of the shard, or submit them, and put together all that are finished."""
    swept = chosen(experiment)
    devices.first_does(partial(check_folder, workdir, swept))
    cases = settings(config, sweep or "", swept)
    part, parts = read_shard(shard)
    of_shard = {workdir / case: of_case for case, of_case in list(cases.items())[part::parts]}
    for path, of_case in of_shard.items():
        devices.first_does(partial(folder.check, path, swept.name, of_case, swept.resumable))
    if slurm is not None:
        devices.first_does(partial(submit, swept, of_shard, slurm, workdir / JOBS))
    elif swept.name == early.NAME:
        run_early(of_shard)
    else:
        for path, of_case in of_shard.items():
            print(f"\n{path.name}", flush=True)
            experiments.run(swept, of_case, path)
    gather = partial(together, config, workdir, list(parse(sweep or "")), swept)
    found: list[Results] = []
    devices.first_does(lambda: found.append(gather(cases)))
    return found[0] if found else gather({})  # the other processes of a job may have no access to the files


def check_folder(workdir: Path, swept: Experiment) -> None:
    """InputError if the directory holds a sweep of another experiment."""
    if (workdir / folder.SUMMARY).exists():
        there = folder.read_summary(workdir).get("experiment", early.NAME)
        if there != swept.name:
            what = f"holds a sweep of {there}, not of {swept.name}; {folder.NEW_FOLDER}"
            raise InputError(f"--workdir: {workdir} {what}")


def submit(swept: Experiment, cases: Mapping[Path, ConfigDict], options: str, jobs: Path) -> None:
    """Submit a job for each setting that is not finished, by its directory: the command that runs it alone."""
    if ":" in str(jobs.resolve()):  # after which --config takes an argument
        raise InputError(f"--workdir: {jobs.resolve().parent} has a colon, so --slurm does not take it; name another")
    waiting = {path: config for path, config in cases.items() if not folder.is_finished(path, config)}
    if not waiting:
        print("no jobs submitted: every setting is finished")
        return
    jobs.mkdir(parents=True, exist_ok=True)
    python = [sys.executable, "-m", "jtrans", swept.name]
    files_of = {path: config_file(jobs, config) for path, config in waiting.items()}
    commands = [[*python, f"--config={file}", f"--workdir={path.resolve()}"] for path, file in files_of.items()]
    ids = cluster.submit(cluster.executor(options, jobs), commands)
    print(f"jobs submitted: {listed(ids, MOST_IDS)}\nlogs: {jobs}")
    print("once they have ended, the same command without --slurm makes the table of all settings", flush=True)


def config_file(jobs: Path, config: ConfigDict) -> Path:
    """The config as a file of Python, which `--config` takes, under a name of its own."""
    head = "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
    content = f"{head}    return ConfigDict({config.to_dict()!r})\n"
    path = jobs.resolve() / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.py"
    files.write(path, content.encode())
    return path


def together(
    config: ConfigDict, workdir: Path, varied: Sequence[str], swept: Experiment, cases: Mapping[str, ConfigDict]
) -> Results:
    """The results with a row for each finished setting; those of early with its curves too."""
    finished = {case: of_case for case, of_case in cases.items() if folder.is_finished(workdir / case, of_case)}
    summary = {"experiment": swept.name, "num_settings": len(cases), "num_finished": len(finished)}
    if not finished:
        return Results(config, summary, {}, {})
    values = {field: [str(fields.flat(of_case)[field]) for of_case in finished.values()] for field in varied}
    runs = (experiments.read(workdir / case) for case in finished)
    if swept.name != early.NAME:
        assert swept.headline is not None  # as `chosen` has it
        return Results(config, summary, {NAME: headlines.table(values, list(map(swept.headline, runs)))}, {})
    summaries = [folder.read_summary(workdir / case) for case in finished]
    curves, common = early.combine(dict(itertools.islice(zip(finished, runs, strict=True), early.MOST_CURVES)))
    frames = {NAME: table(values, summaries), "curves": curves}
    return Results(config, {**summary, "common": common}, frames, {})


def run_early(cases: Mapping[Path, ConfigDict]) -> None:
    """Settings of early by their directories: those that the same programs run side by side."""
    alike: dict[str, dict[Path, ConfigDict]] = {}
    for path, config in cases.items():
        alike.setdefault(repr(shapes(config)), {})[path] = config
    firsts = [next(iter(each.values())) for each in alike.values()]
    of_data = {repr((each.data, each.num_examples, each.batch_size)): each for each in firsts}
    if len(of_data) > 1:  # what one of them does not have is said before any is trained
        for config in of_data.values():
            early.load(config)
    for each in alike.values():
        run(each)


def shapes(config: ConfigDict) -> dict[str, Any]:
    """What settings have in common that the same programs run: all but values."""
    # The mean image is a part of the networks, and depends on what chooses the training images.
    varying = early.VALUES if not config.data.subtract_mean else set(early.VALUES) - {"seed", "data.shuffle_labels"}
    rest = {field: value for field, value in fields.flat(config).items() if field not in varying}
    return rest | {"is_attacked": config.attack.epsilon > 0}


def run(cases: Mapping[Path, ConfigDict]) -> None:
    """Settings that differ in values alone, by their directories: as many side by side as the devices hold."""
    with contextlib.ExitStack() as claims:
        waiting = []
        for workdir, config in cases.items():
            if claims.enter_context(experiments.claimed(early.EXPERIMENT, config, workdir)):
                print(f"{workdir} holds the results of this config already", flush=True)
            else:
                waiting.append((workdir, config))
        while waiting:
            started = time.monotonic()
            first = prepare(*waiting[0])
            batches = math.ceil(len(waiting) / first.population.side_by_side)
            count = math.ceil(len(waiting) / batches)  # as equal as possible: of each size there is a program
            batch, waiting = waiting[:count], waiting[count:]
            measured = early.side_by_side([first, *itertools.starmap(prepare, batch[1:])])
            seconds = time.monotonic() - started
            for (workdir, config), of_setting in zip(batch, measured, strict=True):
                results = experiments.write(early.EXPERIMENT, config, workdir, of_setting, seconds)
                experiments.say(early.EXPERIMENT, workdir, results)


def prepare(workdir: Path, config: ConfigDict) -> early.Setting:
    """A setting, ready for training."""
    print(f"\n{workdir.name}", flush=True)
    return early.prepare(config, workdir)


def table(values: Mapping[str, Sequence[str]], summaries: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Of early: for each finished setting the fields that vary, and its lowest angle while at chance."""
    lowest = pandas.json_normalize([summary["lowest_at_chance"] for summary in summaries])
    interval = lambda name: Interval(*(lowest[f"{name}.{bound}"].to_numpy(float) for bound in Interval._fields))
    intervals = tables.interval_columns({name: interval(name) for name in ("angle", "accuracy")})
    shows = [summary["early_transferability"] for summary in summaries]  # None where no angle was measured at chance
    return pandas.DataFrame({**values, "step": lowest["step"], **intervals, "early_transferability": shows})


def tell(results: Results) -> str:
    """The table, and how many of the settings are finished."""
    counted = f"{results.summary['num_finished']} of {results.summary['num_settings']} settings are finished"
    if NAME not in results.tables:
        return counted
    frame = results.tables[NAME]
    if "curves" not in results.tables:
        return f"{headlines.tell(frame)}\n\n{counted}"
    columns = {
        **frame.loc[:, :"step"],
        "lowest angle at chance, degrees [95 %]": tables.cells(frame, "angle", 1),
        "accuracy [95 %]": tables.cells(frame, "accuracy", 3),
        "early transferability": frame["early_transferability"].astype(str).map(VERDICTS).fillna("-"),
    }
    return f"{tables.text(columns)}\n\n{counted}"


def draw(results: Results) -> dict[str, Figure]:
    """The first finished settings in one figure."""
    if not results.tables:
        return {}
    if "curves" not in results.tables:
        return {NAME: headlines.draw(results.tables[NAME], results.summary["experiment"])}
    return {NAME: early.overlay(results.tables["curves"], results.summary["common"])}


EXPERIMENT = Experiment(
    NAME, FIELDS, measure, tell, draw, check, options=OPTIONS, holds_runs=True, fields_under=fields_under
)
