"""Checkpoints of a run: written while it goes on, whole or not at all, and known to be good when they are read."""

import hashlib
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from jtrans import devices, results

FOLDER = "checkpoints"
KEPT = 2  # the newest, and the one before in case that is damaged

State = Mapping[str, Any]  # nested dictionaries of NumPy arrays


class Checkpoints:
    """The checkpoints of a work directory: the last two, and one that is being written.

    `checkpoints/STEP` is Orbax's, `checkpoints/STEP.sha256` is what its files held when it was written; it is written
    last, so a checkpoint without it is none. The processes of a job call each method together, on a directory that all
    of them see.
    """

    def __init__(self, workdir: Path):
        self.folder = (workdir / FOLDER).resolve()
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def newest(self) -> int | None:
        """The step of the newest good checkpoint; a line on stderr for each that is damaged."""
        step = -1
        for path in reversed(self._paths()) if devices.is_first() else ():
            if path.with_suffix(".sha256").read_bytes() == _sums(path).encode():
                step = int(path.name)
                break
            print(
                f"warning: {path} is damaged and left out; its files are not those that were written", file=sys.stderr
            )
        step = int(devices.from_first(np.array(step)))
        return None if step < 0 else step

    def load(self, step: int) -> State:
        """What was saved."""
        return ocp.load(self.folder / str(step))

    def save(self, step: int, state: State) -> None:
        """Begin to write a checkpoint, once the one before is written.

        Raises:
          InputError: there is no room for it, or the one before could not be written.
        """
        self.wait()
        path, error = self.folder / str(step), None
        if devices.is_first():
            try:
                self.folder.mkdir(exist_ok=True)
                path.with_suffix(".sha256").unlink(missing_ok=True)
                needed, free = devices.num_bytes(state), shutil.disk_usage(self.folder).free
                if needed > free:  # said before Orbax finds out, which takes it pages
                    raise OSError(f"{needed / 2**20:.1f} MiB are needed, {free / 2**20:.1f} are free")
            except OSError as found:
                error = results.cannot_write(self.folder, found)
        if devices.from_first(np.array(error is not None)):
            raise error or SystemExit(2)
        response = ocp.save_async(path, state, overwrite=True)
        self.writing = self.thread.submit(self._finish, path, response)

    def wait(self) -> None:
        """Until the last checkpoint is written.

        Raises:
          InputError: it cannot be.
        """
        if self.writing is not None:
            try:
                self.writing.result()
            except Exception as error:  # whatever a full disk makes of it
                raise results.cannot_write(self.folder, error) from error

    def _finish(self, path: Path, response: ocp.AsyncResponse) -> None:
        response.result()
        if devices.is_first():
            results.write(path.with_suffix(".sha256"), _sums(path).encode())
            good = self._paths()[-KEPT:]
            for old in self.folder.iterdir():  # and what a killed process left
                if old.with_suffix("") not in good:
                    old.unlink() if old.is_file() else shutil.rmtree(old)

    def _paths(self) -> list[Path]:
        """The checkpoints that were written to their end, from the first step to the last."""
        found = (path.with_suffix("") for path in self.folder.glob("[0-9]*.sha256"))
        return sorted(found, key=lambda path: int(path.name))


def _sums(path: Path) -> str:
    """The SHA-256 sum of each file of a checkpoint, a line each."""
    lines = []
    for file in sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb") as content:
                lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {file.relative_to(path)}\n")
    return "".join(lines)
