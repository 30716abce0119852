"""Files that users name, or that a run has left: read whole, or refused in one line."""

import zipfile
from pathlib import Path

import numpy as np

from jtrans.errors import InputError, one_line


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name.

    Raises:
      InputError: it is missing, damaged or no npz file, or holds something else than arrays of real numbers.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # which NumPy would take for a single array, or for a pickle
                raise ValueError("it is no zip archive, or was cut off")
            file.seek(0)
            arrays = dict(np.load(file))
    except Exception as error:  # whatever NumPy and zipfile make of it
        what = f"{str(path)!r} is no npz file that can be read ({one_line(error)[:200]})"
        raise InputError(f"{what}; it takes arrays of real numbers, as numpy.savez writes them") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            what = f"of {array.dtype}" if isinstance(array, np.ndarray) else "that is no array"
            raise InputError(f"{str(path)!r} holds {name!r} {what}; it takes arrays of real numbers")
    return arrays
