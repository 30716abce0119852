"""What a run leaves on disk: files that appear whole or not at all, and that are read without jtrans."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from jtrans import __version__, devices, files, settings
from jtrans.errors import InputError, one_line
from jtrans.models import Variables
from jtrans.population import Trajectory
from jtrans.stats import Interval

CONFIG, SUMMARY, NETWORKS, LOCK = "config.json", "summary.json", "networks", ".lock"
TRAJECTORY, TRAJECTORY_TABLE, SYNTHETIC_TABLE = "trajectory.npz", "trajectory.csv", "synthetic.csv"
CONTROL_TABLE, DECOMPOSE_TABLE, UPDATES_TABLE = "control.csv", "decompose.csv", "updates.csv"
TYPICAL_TABLE, UNLIKELY_TABLE = "typical.csv", "unlikely.csv"
KNOWLEDGE_TABLE, MATRIX_TABLE, PENALTY_TABLE = "knowledge.csv", "matrix.csv", "penalty.csv"
TABLES = (
    TRAJECTORY_TABLE,
    SYNTHETIC_TABLE,
    CONTROL_TABLE,
    DECOMPOSE_TABLE,
    UPDATES_TABLE,
    TYPICAL_TABLE,
    KNOWLEDGE_TABLE,
    MATRIX_TABLE,
    PENALTY_TABLE,
)
FIGURES = tuple(f"{name}.{suffix}" for name in ("figure", "matrix") for suffix in ("png", "svg"))
RESULTS = (SUMMARY, NETWORKS, TRAJECTORY, *TABLES, *FIGURES)
PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.part")  # a file of `write` that a killed process left
ORBAX = {"state", "_CHECKPOINT_METADATA", "commit_success.txt", "orbax.checkpoint"}  # what a saved checkpoint holds
LONGEST_NAME = 120  # bytes of a directory's name; file systems take 255


def folder_name(label: str) -> str:
    """A directory's name for any label; different labels have different names.

    A plain name stays as it is. `/`, `\\`, `%`, a leading dot and what cannot be printed are percent-encoded in UTF-8.
    A name of more than `LONGEST_NAME` bytes is cut, and ends in a hash of the label.
    """

    def encoded(character: str) -> str:
        return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))

    name = "".join(encoded(c) if c in "/\\%" or not c.isprintable() else c for c in label)
    name = encoded(".") + name[1:] if name.startswith(".") else name
    # In an encoded label two hexadecimal digits follow each `%`, so none is equal to a name made here.
    if len(name.encode()) > LONGEST_NAME:
        ending = "%-" + hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:20]
        name = name.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending
    return name or "%empty"


@contextlib.contextmanager
def claimed(workdir: Path, config: ConfigDict, grows: str = "") -> Iterator[bool]:
    """The work directory, made and checked before any compute, and kept from other runs meanwhile.

    Args:
      grows: the field that may be larger than in the results that are there, where the experiment resumes from them.

    Yields:
      Whether the results of this very config are there already.

    Raises:
      InputError: it cannot be written, is another run's at the moment, or holds what another config left. In a job of
        several processes the first finds that out, and the others end without a word.
    """
    with contextlib.ExitStack() as stack:
        finished = False

        def claim() -> None:
            nonlocal finished
            stack.callback(os.close, _lock(workdir))
            finished = _check(workdir, config, grows)

        devices.first_does(claim)
        yield bool(devices.from_first(np.array(finished)))


def ensure(workdir: Path, config: ConfigDict, measure: Callable[[ConfigDict, Path], None]) -> None:
    """The results of this very config, by `measure(config, workdir)` where they are not there yet.

    Raises:
      InputError: as `claimed`, or what `measure` raises.
    """
    with claimed(workdir, config) as finished:
        if not finished:
            measure(config, workdir)


def _lock(workdir: Path) -> int:
    """The open lock file, whose lock the system takes back when the process ends, however it ends.

    It is opened for writing, without which NFS grants no lock.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        opened = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"--workdir: {workdir} cannot be used ({one_line(error)}); name another") from error
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(opened)
        raise InputError(f"--workdir: another run is using {workdir}; wait for its end, or name another") from error
    except OSError as error:
        print(f"warning: {workdir} cannot be locked ({one_line(error)}); keep other runs out of it", file=sys.stderr)
    return opened


def _check(workdir: Path, config: ConfigDict, grows: str) -> bool:
    """Whether the config's results are there."""
    try:
        path = workdir / CONFIG
        if path.exists():
            there = json.loads(path.read_text())
            if not isinstance(there, dict):
                raise InputError(f"--workdir: {path} is no run's config; name a directory of its own")
            _check_same(workdir, there, _plain(config), grows)
        elif held := [name for name in RESULTS if (workdir / name).exists()]:
            raise InputError(f"--workdir: {workdir} holds {held[0]} but no {CONFIG}; name a directory of its own")
        networks = workdir / NETWORKS
        others = [path.name for path in networks.iterdir() if not _is_own(path)] if networks.is_dir() else []
        if networks.is_symlink() or others:  # what a save would delete
            what = f"holds {min(others)}, which jtrans did not write" if others else "is a link"
            raise InputError(f"--workdir: {networks} {what}; move it elsewhere, or name another directory")
        for path in workdir.iterdir():
            if PARTIAL.fullmatch(path.name):
                path.unlink()
        return is_finished(workdir, config)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"--workdir: {workdir} cannot be used ({one_line(error)}); name another") from error


def _is_own(path: Path) -> bool:
    """Whether a path in `networks` is a part of a saved checkpoint, or the work directory of a stage."""
    return path.name in ORBAX or (path / CONFIG).exists() or (path / LOCK).exists()


def is_finished(workdir: Path, config: ConfigDict) -> bool:
    """Whether the results of this very config are there.

    Raises:
      InputError: the summary is damaged.
    """
    try:
        return (workdir / SUMMARY).exists() and read_summary(workdir).get("config") == _plain(config)
    except InputError as error:
        raise InputError(f"--workdir: {error}") from error


def write_config(workdir: Path, config: ConfigDict) -> None:
    """`config.json`, written with the first checkpoint or result: a run that failed before leaves no claim."""
    write_json(workdir / CONFIG, _plain(config))


def _plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(config.to_dict()))


def _check_same(workdir: Path, there: Mapping[str, Any], here: Mapping[str, Any], grows: str) -> None:
    old, new = settings.flat(there), settings.flat(here)
    differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if grows in differing and isinstance(old.get(grows), int) and old[grows] < new[grows]:
        differing.remove(grows)
    if differing:
        listed = ", ".join(f"{name} ({old.get(name)} there, {new.get(name)} here)" for name in differing)
        raise InputError(f"--workdir: {workdir} holds a run of another config; {listed}; name another directory")


def check_digest(path: Path, there: str, here: str) -> None:
    """Nothing, if what stands at `path` was made from the same images, by `data.digest`.

    Raises:
      InputError: it was made from others, or by an earlier version of jtrans, which did not keep their digest.
    """
    if there != here:
        what = f"SHA-256 {there[:12]}... there, {here[:12]}... now" if there else "it does not say which"
        raise InputError(
            f"--workdir: {path} was made from other images ({what}); put them back, or name another directory"
        )


def write(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
      InputError: it cannot be written.
    """
    # A name of its own: others may write a file of this name at the same time, of which one then stays.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def cannot_write(path: Path, error: Exception) -> InputError:
    """The error for a work directory that cannot take a file any more."""
    what = f"{path} cannot be written ({one_line(error)[:200]})"
    return InputError(f"--workdir: {what}; nothing that was there is lost: make room, and run the same command again")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; a number that JSON cannot hold (NaN, where there is no interval) becomes null."""

    def valid(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: valid(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [valid(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write(path, (json.dumps(valid(content), indent=2, allow_nan=False) + "\n").encode())


def write_trajectory(workdir: Path, trajectory: Trajectory, over: Mapping[str, Interval]) -> None:
    """`trajectory.npz`, the arrays, and `trajectory.csv`, a row a step, with `findings.curves` of the trajectory."""
    write_arrays(workdir / TRAJECTORY, trajectory)
    columns = {"step": trajectory.step}
    for name, interval in over.items():
        columns |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    columns |= {f"accuracy_{m}": row for m, row in enumerate(trajectory.accuracy)}
    write_table(workdir / TRAJECTORY_TABLE, columns)


def write_arrays(path: Path, trajectory: Trajectory, **more: np.ndarray) -> None:
    """The arrays of a trajectory, and more beside them, as one npz file."""
    arrays = {name: value for name, value in trajectory._asdict().items() if value is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, **more)
    write(path, buffer.getvalue())


def read_arrays(path: Path) -> tuple[Trajectory, dict[str, np.ndarray]]:
    """What `write_arrays` wrote: the trajectory, and what stands beside it.

    Raises:
      InputError: the file is missing or damaged, or holds no trajectory.
    """
    arrays = files.read_npz(path)
    fields = {name: arrays.pop(name) for name in Trajectory._fields if name in arrays}
    if missing := Trajectory._fields - Trajectory._field_defaults.keys() - fields.keys():
        raise _unreadable(path, f"it has no array {min(missing)!r}")
    return Trajectory(**fields), arrays


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """A CSV file with a header line."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    rows.writerows(zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True))
    write(path, text.getvalue().encode())


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file: of numbers, or else of text.

    Raises:
      InputError: the file is missing or damaged, or has no rows.
    """
    try:
        with path.open(newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error
    if len(lines) < 2:
        raise _unreadable(path, "it has no rows")
    header, *rows = lines
    if any(len(row) != len(header) for row in rows):
        raise _unreadable(path, "its rows differ in length")
    return {name: _column(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}


def _column(texts: Sequence[str]) -> np.ndarray:
    try:
        return np.array(texts, float)
    except ValueError:
        return np.array(texts)


def write_figure(workdir: Path, figure: Figure, name: str = "figure") -> None:
    """`NAME.png` and `NAME.svg`."""
    for suffix in ("png", "svg"):
        write(workdir / f"{name}.{suffix}", drawn(figure, suffix))


def drawn(figure: Figure, suffix: str) -> bytes:
    """The file of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=150)
    return buffer.getvalue()


def write_networks(workdir: Path, networks: Sequence[Variables]) -> None:
    """`networks/`: for each architecture, in order, the variables of all its networks, as an Orbax checkpoint.

    All processes of a job call it, for each of which Orbax waits; the first writes.

    Raises:
      InputError: it cannot be written.
    """
    path = workdir / NETWORKS
    if others := sorted({entry.name for entry in path.iterdir()} - ORBAX) if path.is_dir() else []:
        raise cannot_write(path, OSError(f"it holds {others[0]}, which is not a part of saved networks"))
    try:
        # From NumPy: what JAX holds would have to be restored to the same devices.
        plain = {str(i): v for i, v in enumerate(jax.device_get(networks))}
        ocp.save((workdir / NETWORKS).resolve(), plain, overwrite=True)
    except Exception as error:  # whatever a full disk makes of it
        raise cannot_write(workdir / NETWORKS, error) from error


def read_networks(workdir: Path) -> list[Variables]:
    """What `write_networks` wrote.

    Raises:
      InputError: it is missing, or damaged.
    """
    try:
        networks = ocp.load((workdir / NETWORKS).resolve())
        return [networks[name] for name in sorted(networks)]
    except Exception as error:  # whatever Orbax makes of it
        raise _unreadable(workdir / NETWORKS, error) from error


def write_summary(workdir: Path, config: ConfigDict, summary: Mapping[str, Any]) -> None:
    """`summary.json`, what was found and with what. The last file of a run: that it is there says that all are."""
    write_json(workdir / SUMMARY, {**summary, **environment(), "config": _plain(config)})


def read_summary(workdir: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
      InputError: there is none, or it is damaged.
    """
    return _read_json(workdir / SUMMARY)


def read_config(workdir: Path) -> dict[str, Any]:
    """The config of a run, as JSON has it: tuples are lists.

    Raises:
      InputError: there is none, or it is damaged.
    """
    return _read_json(workdir / CONFIG)


def read(workdir: Path) -> tuple[dict[str, Any], Trajectory, dict[str, Any]]:
    """The config, the trajectory and the summary of a finished run.

    Raises:
      InputError: a file is missing or damaged.
    """
    summary = read_summary(workdir)  # the last file of a run: where it is missing, the run is not finished
    trajectory, _ = read_arrays(workdir / TRAJECTORY)
    return read_config(workdir), trajectory, summary


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise _unreadable(path, "it holds no JSON object")
    return content


def _unreadable(path: Path, reason: object) -> InputError:
    """The error for a file of a run that is missing or damaged."""
    what = f"{path} cannot be read ({one_line(reason)[:200]})"
    return InputError(f"{what}; name the folder of a finished run, or run it again in a new folder")


def environment() -> dict[str, Any]:
    """What the numbers were made with: versions, devices, and the commit of the source where there is one."""
    # A checkout that is not installed has no metadata of its own.
    versions = {"jtrans": __version__}
    versions |= {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    devices = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return {"versions": versions, "devices": devices, "git_commit": _commit()}


def _commit() -> str | None:
    """The commit of this source, with `-dirty` where it was changed; None outside a repository of its own."""
    source = Path(__file__)
    git = partial(subprocess.run, capture_output=True, text=True, check=True, cwd=source.parent)
    try:
        git(["git", "ls-files", "--error-unmatch", source.name])  # a repository around an installation is not ours
        return git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
