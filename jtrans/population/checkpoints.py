"""Checkpoints of a run: written while it goes on, whole or not at all, and known to be good when they are read."""

import hashlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from jtrans import files
from jtrans.errors import InputError
from jtrans.population import devices

FOLDER = "checkpoints"
EXAMPLES = "examples"
KEPT = 2  # the newest, and the one before in case that is damaged
# The sums of a checkpoint, and what a killed process left of either. With the checkpoints themselves, which hold
# Orbax's METADATA, nothing else in the folder is ever removed.
OWN_NAME = re.compile(r"\d+\.sha256|\.\d+\.sha256\..*part|\d+\.orbax-checkpoint-tmp.*")
METADATA = "_CHECKPOINT_METADATA"

State = Mapping[str, Any]  # nested dictionaries of NumPy arrays


class Checkpoints:
    """The checkpoints of a work directory: the last two, and one that is being written.

    `checkpoints/STEP` is Orbax's. `checkpoints/STEP.sha256` holds the sums of its files, and of the files in
    `checkpoints/examples` up to that step, as `sha256sum -c` takes them in `checkpoints/STEP`; it is written last, so a
    checkpoint without it is none. The processes of a job call each method together, on a directory that all of them
    see.

    Raises:
      InputError: `checkpoints`, or what it would write there, is a link, which may lead to the folder of another run.
    """

    def __init__(self, workdir: Path):
        self.folder = workdir.resolve() / FOLDER
        inside = self.folder.iterdir() if self.folder.is_dir() else ()
        own = (
            path for path in inside if path.name == EXAMPLES or path.name.isdecimal() or OWN_NAME.fullmatch(path.name)
        )
        for path in (self.folder, *own):
            if path.is_symlink():
                raise InputError(f"--workdir: {path} is a link; remove it, or link the work directory as a whole")
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        self.example_sums: dict[str, str] = {}  # by name, of what this process has written or read

    def newest(self) -> int | None:
        """The step of the newest good checkpoint; a line on stderr for each that is damaged, which is none from now on.

        Raises:
          InputError: a damaged one cannot be set aside.
        """
        step = -1

        def look() -> None:
            nonlocal step
            for path in reversed(self._paths()):
                if self._is_good(path):
                    step = int(path.name)
                    return
                said = f"{path} is damaged and left out; its files are not those that were written"
                print(f"warning: {said}", file=sys.stderr)
                try:
                    path.with_suffix(".sha256").unlink()
                except OSError as error:
                    raise files.cannot_write(self.folder, error) from error

        devices.first_does(look)
        step = int(devices.from_first(np.array(step)))
        return None if step < 0 else step

    def load(self, step: int) -> State:
        """What was saved."""
        return ocp.load(self.folder / str(step))

    def save(self, step: int, state: State, examples: Iterable[int] = ()) -> None:
        """Begin to write a checkpoint, once the one before is written.

        Args:
          examples: the steps whose files, which `write_examples` wrote, belong to it.

        Raises:
          InputError: there is no room for it, or the one before could not be written.
        """
        self.wait()
        path = self.folder / str(step)

        def make_room() -> None:
            try:
                self.folder.mkdir(exist_ok=True)
                path.with_suffix(".sha256").unlink(missing_ok=True)
                needed, free = devices.num_bytes(state), shutil.disk_usage(self.folder).free
                if needed > free:  # said before Orbax finds out, which takes it pages
                    raise OSError(f"{needed / 2**20:.1f} MiB are needed, {free / 2**20:.1f} are free")
            except OSError as error:
                raise files.cannot_write(self.folder, error) from error

        devices.first_does(make_room)
        response = ocp.save_async(path, state, overwrite=True)
        self.writing = self.thread.submit(self._finish, path, response, [self._example(step) for step in examples])

    def write_examples(self, step: int, values: np.ndarray) -> None:
        """What was measured of each image after a step, in a file of its own, so that it is written once.

        Raises:
          InputError: it cannot be written.
        """
        name = self._example(step)

        def write() -> None:
            try:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise files.cannot_write(self.folder, error) from error
            content = io.BytesIO()
            np.save(content, values)
            files.write(self.folder / name, content.getvalue())
            self.example_sums[f"{step}.npy"] = hashlib.sha256(content.getvalue()).hexdigest()

        devices.first_does(write)

    def read_examples(self, step: int) -> np.ndarray:
        """What `write_examples` wrote."""
        return np.load(self.folder / self._example(step))

    def wait(self) -> None:
        """Until the last checkpoint is written.

        Raises:
          InputError: it cannot be.
        """
        if self.writing is not None:
            try:
                self.writing.result()
            except Exception as error:  # whatever a full disk makes of it
                raise files.cannot_write(self.folder, error) from error

    def _finish(self, path: Path, response: ocp.AsyncResponse, examples: Iterable[str]) -> None:
        response.result()
        if devices.is_first():
            sums = self._sums(path, [*_files(path), *(self.folder / name for name in examples)])
            files.write(path.with_suffix(".sha256"), sums.encode())
            newest = self._paths()[-KEPT:]
            for old in self.folder.iterdir():  # and what a killed process left
                is_checkpoint = old.name.isdecimal() and (old / METADATA).exists()
                if (is_checkpoint or OWN_NAME.fullmatch(old.name)) and old.with_suffix("") not in newest:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()

    def _paths(self) -> list[Path]:
        """The checkpoints that were written to their end, from the first step to the last."""
        complete = (path.with_suffix("") for path in self.folder.glob("*.sha256") if path.stem.isdecimal())
        return sorted(complete, key=lambda path: int(path.name))

    def _is_good(self, path: Path) -> bool:
        """Whether the checkpoint's files, and those of the examples that belong to it, are those that were written."""
        try:
            sums = path.with_suffix(".sha256").read_text()
            listed = (Path(os.path.normpath(path / line.partition("  ")[2])) for line in sums.splitlines())
            return self._sums(path, {*_files(path), *listed}) == sums
        except (OSError, ValueError):  # a file that is missing, or sums that are no text
            return False

    def _sums(self, path: Path, members: Iterable[Path]) -> str:
        """The SHA-256 sum of each file, a line each, with its name as seen from the checkpoint."""
        lines = []
        for file in sorted(members):
            digest = self.example_sums.get(file.name) if file.parent.name == EXAMPLES else None
            digest = digest or _digest(file)
            if file.parent.name == EXAMPLES:
                self.example_sums[file.name] = digest
            lines.append(f"{digest}  {file.relative_to(path, walk_up=True).as_posix()}\n")
        return "".join(lines)

    @staticmethod
    def _example(step: int) -> str:
        return f"{EXAMPLES}/{step}.npy"


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
