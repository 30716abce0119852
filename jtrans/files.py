"""Files that users name, or that a run has left: read whole, or refused in one line."""

import zipfile
from pathlib import Path

import numpy as np

from jtrans.errors import InputError, one_line


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name.

    Raises:
      InputError: it is missing, damaged or no npz file, or holds something else than arrays.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # which NumPy would take for a single array, or for a pickle
                raise ValueError("it is no zip archive, or was cut off")
            file.seek(0)
            arrays = dict(np.load(file))
        if others := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{others[0]!r} is no array")
    except Exception as error:  # whatever NumPy and zipfile make of it
        what = f"{str(path)!r} is no npz file that can be read ({one_line(error)[:200]})"
        raise InputError(f"{what}; it takes plain arrays, saved by numpy.savez") from error
    return arrays


def read_numbers(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name, all of them of real numbers.

    Raises:
      InputError: as `read_npz`, or an array holds something else.
    """
    arrays = read_npz(path)
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"{str(path)!r} holds {name!r} of {array.dtype}; it takes arrays of real numbers")
    return arrays
