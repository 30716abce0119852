"""A work directory: claimed by one run at a time, its files written whole or not at all, and read back."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from jtrans import files
from jtrans.errors import InputError, one_line
from jtrans.harness import fields, runtime
from jtrans.models import Variables
from jtrans.population import checkpoints, devices

CONFIG, SUMMARY, NETWORKS, LOCK = "config.json", "summary.json", "networks", ".lock"
EXPERIMENT = "experiment"  # the key of `config.json` that says which experiment made the folder
RESULT_SUFFIXES = {".csv", ".npz", ".png", ".svg"}
PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.part")  # a file of `files.write` that a killed process left
ORBAX = {"state", "_CHECKPOINT_METADATA", "commit_success.txt", "orbax.checkpoint"}  # the parts of a saved checkpoint
LONGEST_NAME = 120  # bytes of a directory's name; file systems take 255
CSV: dict[str, Any] = {"index": False, "na_rep": "nan", "lineterminator": "\n"}
NEW_FOLDER = "name another directory"


def folder_name(label: str) -> str:
    """A directory's name for any label; different labels have different names.

    A plain name stays as it is. `/`, `\\`, `%`, a leading dot and unprintable characters are percent-encoded in UTF-8.
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
def claimed(workdir: Path, experiment: str, config: ConfigDict, grows: str = "") -> Iterator[bool]:
    """The work directory, created and checked before any compute, and kept from other runs meanwhile.

    Yields whether the results of this very config are already there. The field `grows` may be larger than in those.

    Raises:
      InputError: the directory cannot be written, another run is using it, or it holds something else. In a job of
        several processes the first raises it, and the others end without a word.
    """
    with contextlib.ExitStack() as stack:
        finished = False

        def claim() -> None:
            nonlocal finished
            stack.callback(os.close, _lock(workdir))
            with _usable(workdir):
                _check(workdir, experiment, config, grows)
                for path in workdir.iterdir():
                    if PARTIAL.fullmatch(path.name):
                        path.unlink()
                finished = is_finished(workdir, config)

        devices.first_does(claim)
        yield bool(devices.from_first(np.array(finished)))


def shared(workdir: Path, experiment: str) -> None:
    """Create a work directory whose subfolders are runs of their own; InputError if another experiment, or something
    else, made it.
    """
    with _usable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / CONFIG).exists():
            _read_claim(workdir, experiment)
        else:
            _check_empty(workdir)


def check(workdir: Path, experiment: str, config: ConfigDict, grows: str = "") -> None:
    """Check, before any compute, that a work directory, if it is there, is free or this run's; else InputError."""
    if workdir.is_dir():
        with _usable(workdir):
            _check(workdir, experiment, config, grows)


def _lock(workdir: Path) -> int:
    """The open lock file, whose lock the system takes back when the process ends, however it ends."""
    with _usable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        # For writing, without which NFS grants no lock.
        opened = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(opened)
        raise InputError(f"--workdir: another run is using {workdir}; wait for its end, or name another") from error
    except OSError as error:
        print(f"warning: {workdir} cannot be locked ({one_line(error)}); keep other runs out of it", file=sys.stderr)
    return opened


@contextlib.contextmanager
def _usable(workdir: Path) -> Iterator[None]:
    """Turns the system's errors into one line that names the work directory."""
    try:
        yield
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--workdir: {workdir} cannot be used ({one_line(error)}); name another") from error


def _check(workdir: Path, experiment: str, config: ConfigDict, grows: str) -> None:
    """Check that whatever is in the directory is this run's."""
    if (workdir / CONFIG).exists():
        old, new = fields.flat(_read_claim(workdir, experiment)), fields.flat(plain(config.to_dict()))
        differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if grows in differing and isinstance(old.get(grows), int) and old[grows] < new[grows]:
            differing.remove(grows)
        if differing:
            listed = ", ".join(f"{name} ({old.get(name)} there, {new.get(name)} here)" for name in differing)
            raise InputError(f"--workdir: {workdir} holds a run of another config; {listed}; {NEW_FOLDER}")
    else:
        _check_empty(workdir)
    networks = workdir / NETWORKS
    others = [path.name for path in networks.iterdir() if not _is_ours(path)] if networks.is_dir() else []
    if networks.is_symlink() or others:  # what a save would delete
        what = f"holds {min(others)}, which jtrans did not write" if others else "is a link"
        raise InputError(f"--workdir: {networks} {what}; move it elsewhere, or {NEW_FOLDER}")


def _check_empty(workdir: Path) -> None:
    """Check that a directory that is no run's has nothing that a run would overwrite or remove."""
    held = [p.name for p in workdir.iterdir() if p.suffix in RESULT_SUFFIXES or p.name in (SUMMARY, NETWORKS)]
    saved = [path.name for path in (workdir / checkpoints.FOLDER).glob("*") if path.name.isdecimal()]
    held += [f"{checkpoints.FOLDER}/{name}" for name in saved]
    if held:
        raise InputError(f"--workdir: {workdir} holds {min(held)} but no {CONFIG}; name a directory of its own")


def _is_ours(path: Path) -> bool:
    """Whether a path in `networks` is a part of saved networks, or the work directory of a stage."""
    return path.name in ORBAX or (path / CONFIG).exists() or (path / LOCK).exists()


def _read_claim(workdir: Path, experiment: str) -> dict[str, Any]:
    """The config that the directory holds, without the experiment's name; InputError if it is another experiment's."""
    config = json.loads((workdir / CONFIG).read_text())
    if not isinstance(config, dict) or EXPERIMENT not in config:
        what = f"{workdir / CONFIG} names no experiment (an earlier version of jtrans, or another program, wrote it)"
        raise InputError(f"--workdir: {what}; name a directory of its own")
    if (there := config.pop(EXPERIMENT)) != experiment:
        raise InputError(f"--workdir: {workdir} holds a run of {there}, not of {experiment}; {NEW_FOLDER}")
    return config


def is_finished(workdir: Path, config: ConfigDict) -> bool:
    """Whether the results of this very config are there; InputError if the summary is damaged."""
    try:
        return (workdir / SUMMARY).exists() and read_summary(workdir).get("config") == plain(config.to_dict())
    except InputError as error:
        raise InputError(f"--workdir: {error}") from error


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as JSON gives it back: names are text, tuples and arrays are lists, and NaN is None."""

    def valid(value: Any) -> Any:
        value = value.tolist() if hasattr(value, "tolist") else value  # arrays, and the numbers of NumPy and JAX
        if isinstance(value, Mapping):
            return {name: valid(v) for name, v in value.items()}
        if isinstance(value, list | tuple):
            return [valid(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.loads(json.dumps(valid(content)))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, the content as `plain`."""
    files.write(path, (json.dumps(plain(content), indent=2, allow_nan=False) + "\n").encode())


def write_config(workdir: Path, experiment: str, config: ConfigDict) -> None:
    """Write `config.json`; with the first checkpoint or result, so that a run that failed before leaves no claim."""
    write_json(workdir / CONFIG, {EXPERIMENT: experiment, **config.to_dict()})


def complete(summary: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
    """The findings with the environment and the config: what `summary.json` holds."""
    return plain({**summary, **runtime.environment(), "config": config.to_dict()})


def write_summary(workdir: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`, a run's last file: its presence says that all are there."""
    write_json(workdir / SUMMARY, summary)


def read_config(workdir: Path) -> dict[str, Any]:
    """The config of a run and, under `EXPERIMENT`, the experiment's name; InputError if they cannot be read."""
    config = _read_json(workdir / CONFIG)
    if EXPERIMENT not in config:
        raise _unreadable(workdir / CONFIG, "it names no experiment: an earlier version of jtrans wrote it")
    return config


def read_summary(workdir: Path) -> dict[str, Any]:
    """The summary of a finished run; InputError if there is none, or it is damaged."""
    return _read_json(workdir / SUMMARY)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return content


def write_table(path: Path, table: pandas.DataFrame) -> None:
    """Write a CSV file with a header line; floats in full precision, NaN as `nan`."""
    files.write(path, table.to_csv(**CSV).encode())


def read_table(path: Path) -> pandas.DataFrame:
    """What `write_table` wrote; each column is of True and False, else of whole numbers, of floats, or of text.

    Raises InputError if the file is missing or damaged, or has no rows.
    """
    try:
        return _table(path.read_bytes().decode())
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from error


def plain_table(table: pandas.DataFrame) -> pandas.DataFrame:
    """The table as `read_table` gives it back."""
    return _table(table.to_csv(**CSV))


def _table(text: str) -> pandas.DataFrame:
    header, *rows = [line for line in csv.reader(io.StringIO(text, newline="")) if line] or [[]]
    if not rows:
        raise ValueError("it has no rows")
    if any(len(row) != len(header) for row in rows):  # pandas would fill them up
        raise ValueError("its rows differ in length")
    return pandas.DataFrame(rows, columns=header).apply(_typed)


def _typed(column: pandas.Series) -> pandas.Series:
    if column.isin(["True", "False"]).all():
        return column == "True"
    for kind in (int, float):
        with contextlib.suppress(ValueError, OverflowError):
            return column.astype(kind)
    return column


def drawn(figure: Figure, suffix: str) -> bytes:
    """The content of a figure's file, `png` or `svg`; sets the figure to 150 dots per inch."""
    # Not `savefig`, which draws everything once more, unseen, to find a layout that drawing finds anyway.
    canvas = {"png": FigureCanvasAgg, "svg": FigureCanvasSVG}[suffix](figure)
    buffer = io.BytesIO()
    figure.set_dpi(150)
    getattr(canvas, f"print_{suffix}")(buffer)
    return buffer.getvalue()


def write_networks(workdir: Path, networks: Sequence[Variables]) -> None:
    """Write `networks/`: for each architecture, in order, the variables of all its networks, as an Orbax checkpoint.

    All processes of a job call it together, since Orbax waits for each; the first writes, or raises InputError.
    """
    path = workdir / NETWORKS
    if others := sorted({entry.name for entry in path.iterdir()} - ORBAX) if path.is_dir() else []:
        raise files.cannot_write(path, OSError(f"it holds {others[0]}, which is not a part of saved networks"))
    try:
        # From NumPy: arrays of JAX could only be restored to the same devices.
        host = {str(i): variables for i, variables in enumerate(jax.device_get(networks))}
        ocp.save(path.resolve(), host, overwrite=True)
    except Exception as error:  # whatever a full disk makes of it
        raise files.cannot_write(path, error) from error


def read_networks(workdir: Path) -> list[Variables]:
    """What `write_networks` wrote; raises InputError if it is missing or damaged."""
    try:
        networks = ocp.load((workdir / NETWORKS).resolve())
        return [networks[name] for name in sorted(networks)]
    except Exception as error:  # whatever Orbax makes of it
        raise _unreadable(workdir / NETWORKS, error) from error


def _unreadable(path: Path, reason: object) -> InputError:
    """The error for a file of a run that is missing or damaged."""
    what = f"{path} cannot be read ({one_line(reason)[:200]})"
    return InputError(f"{what}; name the folder of a finished run, or run it again in a new folder")
