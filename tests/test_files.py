"""npz files that are none, or that are damaged."""

import zipfile

import numpy as np
import pytest

from jtrans import files
from jtrans.errors import InputError

ARRAYS = {"a": np.arange(3000.0).reshape(3, 1000), "b": np.array([True, False]), "c": np.arange(4, dtype=np.uint8)}


def test_the_arrays_come_back(tmp_path):
    words = {"words": np.array(["two", "words"])}
    for read, written in ((files.read_numbers, ARRAYS), (files.read_npz, ARRAYS | words)):
        np.savez_compressed(tmp_path / "whole.npz", **written)
        arrays = read(tmp_path / "whole.npz")
        assert arrays.keys() == written.keys()
        for name, array in written.items():
            np.testing.assert_array_equal(arrays[name], array)


def single(path):
    np.save(path, ARRAYS["a"])
    path.with_suffix(".npz.npy").rename(path)


def cut(path):
    np.savez(path, **ARRAYS)
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    np.savez(path, **ARRAYS)
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)


def no_arrays(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "words")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.touch(), "no zip archive, or was cut off"),
        (lambda path: path.write_text("words\n" * 100), "no zip archive, or was cut off"),
        (single, "no zip archive, or was cut off"),
        (cut, "no zip archive, or was cut off"),
        (flipped, "Bad CRC-32"),
        (no_arrays, "'a.txt' is not an array"),
        (lambda path: np.savez(path, a=np.array(["words"])), "holds 'a' of <U5; it takes arrays of real numbers"),
        (lambda path: np.savez(path, a=np.array([1j])), "holds 'a' of complex128; it takes arrays of real numbers"),
        (lambda path: np.savez(path, a=np.array([None])), "Object arrays cannot be loaded"),
    ],
)
def test_what_is_no_npz_file_of_numbers_is_one_line(tmp_path, make, message):
    path = tmp_path / "arrays.npz"
    make(path)
    with pytest.raises(InputError) as error:
        files.read_numbers(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
