"""What a run leaves on disk: files that appear whole or not at all, and that are read without jtrans."""

import csv
import io
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from jtrans import settings
from jtrans.errors import InputError, one_line
from jtrans.findings import curves
from jtrans.population import Trajectory
from jtrans.training import Network

CONFIG, SUMMARY, NETWORKS = "config.json", "summary.json", "networks"
TRAJECTORY, TRAJECTORY_TABLE, SYNTHETIC_TABLE = "trajectory.npz", "trajectory.csv", "synthetic.csv"
RESULTS = (SUMMARY, NETWORKS, TRAJECTORY, TRAJECTORY_TABLE, SYNTHETIC_TABLE)


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Nothing, if this config's results can go to the work directory, which is made; called before any compute.

    Raises:
      InputError: it cannot be written, or holds the results of another config.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
        path = workdir / CONFIG
        if path.exists():
            _check_same(workdir, json.loads(path.read_text()), _plain(config))
        elif held := [name for name in RESULTS if (workdir / name).exists()]:
            raise InputError(f"--workdir: {workdir} holds {held[0]} but no {CONFIG}; name a directory of its own")
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"--workdir: {workdir} cannot be used ({one_line(error)}); name another") from error


def write_config(workdir: Path, config: ConfigDict) -> None:
    """`config.json`, written with the results: a run that failed leaves no claim on its work directory."""
    write_json(workdir / CONFIG, _plain(config))


def _plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(config.to_dict()))


def _check_same(workdir: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    old, new = settings.flat(there), settings.flat(here)
    differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if differing:
        listed = ", ".join(f"{name} ({old.get(name)} there, {new.get(name)} here)" for name in differing)
        raise InputError(f"--workdir: {workdir} holds a run of another config; {listed}; name another directory")


def write(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as partial:
        partial.write(content)
        partial.flush()
        os.fsync(partial.fileno())
    os.chmod(partial.name, 0o644)
    os.replace(partial.name, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; a number that JSON cannot hold (NaN, where there is no interval) becomes null."""

    def valid(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: valid(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [valid(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write(path, (json.dumps(valid(content), indent=2, allow_nan=False) + "\n").encode())


def write_trajectory(workdir: Path, trajectory: Trajectory) -> None:
    """`trajectory.npz`, the arrays, and `trajectory.csv`, a row a step."""
    arrays = {name: value for name, value in trajectory._asdict().items() if value is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write(workdir / TRAJECTORY, buffer.getvalue())

    over = curves(trajectory)
    columns = {"step": trajectory.step}
    for name, interval in over.items():
        columns |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    columns |= {f"accuracy_{m}": row for m, row in enumerate(trajectory.accuracy)}
    write_table(workdir / TRAJECTORY_TABLE, columns)


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """A CSV file with a header line."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    rows.writerows(zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True))
    write(path, text.getvalue().encode())


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file of numbers.

    Raises:
      InputError: the file is missing.
    """
    try:
        with path.open() as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"--workdir: {path.parent} holds no finished run ({one_line(error)})") from error
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def write_figure(workdir: Path, figure) -> None:
    """`figure.png` and `figure.svg`."""
    for suffix in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=150)
        write(workdir / f"figure.{suffix}", buffer.getvalue())


def write_networks(workdir: Path, networks: Sequence[Sequence[Network]]) -> None:
    """`networks/`: for each architecture, in order, the variables of all its networks, as an Orbax checkpoint."""
    whole = lambda *parts: np.concatenate(parts)
    variables = [jax.tree.map(whole, *(group.variables for group in groups)) for groups in networks]
    ocp.save((workdir / NETWORKS).resolve(), {str(i): v for i, v in enumerate(variables)}, overwrite=True)


def read(workdir: Path) -> tuple[dict[str, Any], Trajectory, dict[str, Any]]:
    """The config, the trajectory and the summary of a finished run.

    Raises:
      InputError: a file is missing.
    """
    try:
        with np.load(workdir / TRAJECTORY) as arrays:
            trajectory = Trajectory(**arrays)
        config, summary = (json.loads((workdir / name).read_text()) for name in (CONFIG, SUMMARY))
    except OSError as error:
        raise InputError(f"--workdir: {workdir} holds no finished run ({one_line(error)})") from error
    return config, trajectory, summary


def environment() -> dict[str, Any]:
    """What the numbers were made with: versions, devices, and the commit of the source where there is one."""
    versions = {name: metadata.version(name) for name in ("jtrans", "jax", "jaxlib", "flax", "optax", "numpy")}
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
