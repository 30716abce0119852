"""Files: written atomically, and read completely or refused with a one-line error; the cache folder."""

import contextlib
import io
import os
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jtrans.errors import InputError, one_line


def cache() -> Path:
    """The folder for decoded images and compiled programs: `$JTRANS_CACHE`, or `~/.cache/jtrans`."""
    return Path(os.environ.get("JTRANS_CACHE", Path.home() / ".cache" / "jtrans"))


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: it appears complete or not at all; InputError if it cannot be written."""
    # A unique name, since another process may write the same file at the same time; the last one replaces it.
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
    """The error for a file that cannot be written in a work directory."""
    what = f"{path} cannot be written ({one_line(error)[:200]})"
    return InputError(f"--workdir: {what}; existing files are intact: make room, and run the same command again")


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to one compressed npz file, as `write` does."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write(path, buffer.getvalue())


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name; InputError if it is missing, damaged, or holds anything but arrays."""
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # NumPy would read it as a single array or a pickle
                raise ValueError("it is no zip archive, or was cut off")
            file.seek(0)
            arrays = dict(np.load(file))
        if others := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{others[0]!r} is not an array")
    except Exception as error:  # NumPy and zipfile may raise anything on a damaged file
        what = f"{str(path)!r} is no npz file that can be read ({one_line(error)[:200]})"
        raise InputError(f"{what}; it takes plain arrays, saved by numpy.savez") from error
    return arrays


def read_numbers(path: Path | str) -> dict[str, np.ndarray]:
    """As `read_npz`; InputError also for an array of anything but real numbers."""
    arrays = read_npz(path)
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"{str(path)!r} holds {name!r} of {array.dtype}; it takes arrays of real numbers")
    return arrays
