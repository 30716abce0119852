"""Checkpoints of a run: written in the background, complete or not at all, and verified by checksums when read."""

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
KEPT = 2  # the newest, and the previous one in case the newest is damaged
# Names of checksum files, and of unfinished files that a killed process left. Besides these, only checkpoints (folders
# with Orbax's METADATA) are ever removed.
OWN_NAME = re.compile(r"\d+\.sha256|\.\d+\.sha256\..*part|\d+\.orbax-checkpoint-tmp.*")
METADATA = "_CHECKPOINT_METADATA"

State = Mapping[str, Any]  # nested dictionaries of NumPy arrays


class Checkpoints:
    """The checkpoints of a work directory: the last two, and one that is being written.

    `checkpoints/STEP` is written by Orbax. `checkpoints/STEP.sha256` holds the checksums of its files and of the files
    in `checkpoints/examples` up to that step, which `sha256sum -c`, run in `checkpoints/STEP`, verifies. It is written
    last: a checkpoint without it is incomplete. All processes of a job call each method together, on a directory that
    all of them see.

    Raises:
      InputError: `checkpoints`, or a file to be written there, is a link, which may point to the folder of another run.
    """

    def __init__(self, workdir: Path):
        self.folder = workdir.resolve() / FOLDER
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        written = (
            path for path in paths if path.name == EXAMPLES or path.name.isdecimal() or OWN_NAME.fullmatch(path.name)
        )
        for path in (self.folder, *written):
            if path.is_symlink():
                raise InputError(f"--workdir: {path} is a link; remove it, or link the work directory as a whole")
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        self.example_sums: dict[str, str] = {}  # by name, of files that this process wrote or read

    def newest(self) -> int | None:
        """The step of the newest intact checkpoint, or None; damaged ones are named on stderr and ignored from now on.

        Raises:
          InputError: the checksums of a damaged one cannot be removed.
        """
        step = -1

        def find() -> None:
            nonlocal step
            for path in reversed(self._paths()):
                if self._is_good(path):
                    step = int(path.name)
                    return
                problem = f"{path} is damaged and left out; its files are not those that were written"
                print(f"warning: {problem}", file=sys.stderr)
                try:
                    path.with_suffix(".sha256").unlink()
                except OSError as error:
                    raise files.cannot_write(self.folder, error) from error

        devices.first_does(find)
        step = int(devices.from_first(np.array(step)))
        return None if step < 0 else step

    def load(self, step: int) -> State:
        """The state that was saved at this step."""
        return ocp.load(self.folder / str(step))

    def save(self, step: int, state: State, examples: Iterable[int] = ()) -> None:
        """Start to write a checkpoint, after the previous one is complete.

        Args:
          examples: the steps whose files from `write_examples` belong to it.

        Raises:
          InputError: the disk has no room for it, or the previous one could not be written.
        """
        self.wait()
        path = self.folder / str(step)

        def make_room() -> None:
            try:
                self.folder.mkdir(exist_ok=True)
                path.with_suffix(".sha256").unlink(missing_ok=True)
                needed, free = devices.num_bytes(state), shutil.disk_usage(self.folder).free
                if needed > free:  # Orbax's own error would fill pages
                    raise OSError(f"{needed / 2**20:.1f} MiB are needed, {free / 2**20:.1f} are free")
            except OSError as error:
                raise files.cannot_write(self.folder, error) from error

        devices.first_does(make_room)
        response = ocp.save_async(path, state, overwrite=True)
        self.writing = self.thread.submit(self._finish, path, response, [self._example(step) for step in examples])

    def write_examples(self, step: int, values: np.ndarray) -> None:
        """Write the measurements of each image at a step to a separate file, so that each is written only once.

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
        """The values that `write_examples` wrote at this step."""
        return np.load(self.folder / self._example(step))

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
          InputError: it cannot be written.
        """
        if self.writing is not None:
            try:
                self.writing.result()
            except Exception as error:  # a full disk may raise anything
                raise files.cannot_write(self.folder, error) from error

    def _finish(self, path: Path, response: ocp.AsyncResponse, examples: Iterable[str]) -> None:
        response.result()
        if devices.is_first():
            sums = self._sums(path, [*_files(path), *(self.folder / name for name in examples)])
            files.write(path.with_suffix(".sha256"), sums.encode())
            newest = self._paths()[-KEPT:]
            for old in self.folder.iterdir():  # includes files that a killed process left
                is_checkpoint = old.name.isdecimal() and (old / METADATA).exists()
                if (is_checkpoint or OWN_NAME.fullmatch(old.name)) and old.with_suffix("") not in newest:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()

    def _paths(self) -> list[Path]:
        """The complete checkpoints, in the order of their steps."""
        complete = (path.with_suffix("") for path in self.folder.glob("*.sha256") if path.stem.isdecimal())
        return sorted(complete, key=lambda path: int(path.name))

    def _is_good(self, path: Path) -> bool:
        """Whether the checkpoint's files, including those of its examples, match their checksums."""
        try:
            sums = path.with_suffix(".sha256").read_text()
            listed = (Path(os.path.normpath(path / line.partition("  ")[2])) for line in sums.splitlines())
            return self._sums(path, {*_files(path), *listed}) == sums
        except (OSError, ValueError):  # a missing file, or checksums that are not text
            return False

    def _sums(self, path: Path, members: Iterable[Path]) -> str:
        """The SHA-256 checksum of each file, one per line, with its path relative to the checkpoint."""
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
