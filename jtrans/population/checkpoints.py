"""Checkpoints of a run: written in the background, complete or not at all, and verified by checksums when read."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
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

    `checkpoints/STEP` is written by Orbax. It holds the first piece of the state; where there are more, `STEP/1`,
    `STEP/2` and so on hold one each. `checkpoints/STEP.sha256` holds the checksums of its files and of the files
    in `checkpoints/examples` up to that step, which `sha256sum -c`, run in `checkpoints/STEP`, verifies. It is written
    last: a checkpoint without it is incomplete. All processes of a job call each method together, on a directory that
    all of them see.

    Raises:
      InputError: something cannot be written (every method), or `checkpoints`, or a file to be written there, is a
        link, which may point to the folder of another run.
    """

    def __init__(self, workdir: Path):
        self.folder = workdir.resolve() / FOLDER
        self.examples = self.folder / EXAMPLES
        for path in (self.folder, *self.folder.glob("*")):
            is_ours = path in (self.folder, self.examples) or path.name.isdecimal() or OWN_NAME.fullmatch(path.name)
            if is_ours and path.is_symlink():
                raise InputError(f"--workdir: {path} is a link; remove it, or link the work directory as a whole")
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | ocp.AsyncResponse[None] | None = None
        self.example_sums: dict[Path, str] = {}  # of files that this process wrote or read

    def newest(self) -> int | None:
        """The step of the newest intact checkpoint, or None; damaged ones are named on stderr and then ignored."""
        step = np.array(-1)

        def find() -> None:
            for path in reversed(self._paths()):
                if self._is_good(path):
                    step[...] = int(path.name)
                    return
                problem = f"{path} is damaged and left out; its files are not those that were written"
                print(f"warning: {problem}", file=sys.stderr)
                with self._reported():
                    path.with_suffix(".sha256").unlink()

        devices.first_does(find)
        newest = int(devices.from_first(step))
        return None if newest < 0 else newest

    def load(self, step: int) -> Iterator[State]:
        """The pieces that were saved at this step, each read when asked for: the first one, the others in any order."""
        path = self.folder / str(step)
        return map(ocp.load, [path, *(piece for piece in path.iterdir() if piece.name.isdecimal())])

    def save(self, step: int, pieces: Iterable[State], num_bytes: int, examples: Iterable[int] = ()) -> None:
        """Start to write a checkpoint, with the examples of the given steps, after the previous one is complete.

        Each piece, of `num_bytes` in all, is begun when the one before is written: the last one is in the background.
        """
        self.wait()
        path = self.folder / str(step)

        def make_room() -> None:
            with self._reported():
                self.folder.mkdir(exist_ok=True)
                path.with_suffix(".sha256").unlink(missing_ok=True)
                free = shutil.disk_usage(self.folder).free
                if num_bytes > free:  # Orbax's own error would fill pages
                    raise OSError(f"{num_bytes / 2**20:.1f} MiB are needed, {free / 2**20:.1f} are free")

        devices.first_does(make_room)
        for i, piece in enumerate(pieces):
            self.wait()
            with _uncompressed():
                self.writing = ocp.save_async(path / str(i) if i else path, piece, overwrite=True)
        self.writing = self.thread.submit(self._finish, path, self.writing, [self._example(step) for step in examples])

    def write_examples(self, step: int, values: np.ndarray) -> None:
        """Write the measurements of each image at a step to a separate file, so that each is written only once."""

        def write() -> None:
            with self._reported():
                self.examples.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            np.save(content, values)
            files.write(self._example(step), content.getvalue())
            self.example_sums[self._example(step)] = hashlib.sha256(content.getvalue()).hexdigest()

        devices.first_does(write)

    def read_examples(self, step: int) -> np.ndarray:
        """The values that `write_examples` wrote at this step."""
        return np.load(self._example(step))

    def wait(self) -> None:
        """Wait until all that was begun is written."""
        with self._reported(Exception):  # a full disk may raise anything
            if self.writing is not None:
                self.writing.result()

    @contextlib.contextmanager
    def _reported(self, kind: type[Exception] = OSError) -> Iterator[None]:
        """Errors of this kind as InputError: the checkpoints cannot be written."""
        try:
            yield
        except kind as error:
            raise files.cannot_write(self.folder, error) from error

    def _finish(self, path: Path, response: ocp.AsyncResponse, examples: Iterable[Path]) -> None:
        response.result()
        if devices.is_first():
            files.write(path.with_suffix(".sha256"), self._sums(path, examples).encode())
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
            listed = [Path(os.path.normpath(path / line.partition("  ")[2])) for line in sums.splitlines()]
            return self._sums(path, listed) == sums
        except (OSError, ValueError):  # a missing file, or checksums that are not text
            return False

    def _sums(self, path: Path, others: Iterable[Path]) -> str:
        """The SHA-256 checksums of the checkpoint's files and of others: one per line, with the path relative to it."""
        lines = []
        for file in sorted({*others, *(file for file in path.rglob("*") if file.is_file())}):
            digest = self.example_sums.get(file) or _digest(file)
            if file.parent == self.examples:
                self.example_sums[file] = digest
            lines.append(f"{digest}  {file.relative_to(path, walk_up=True).as_posix()}\n")
        return "".join(lines)

    def _example(self, step: int) -> Path:
        return self.examples / f"{step}.npy"


def _uncompressed() -> ocp.Context:
    """Weights hardly get smaller (by a tenth at most), while compression takes three times the time of writing them."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
