"""Directory names for any label; a run's files that are missing or damaged."""

import itertools
from functools import partial

import numpy as np
import pytest

from jtrans import results
from jtrans.errors import InputError


def test_every_label_has_a_directory_of_its_own(tmp_path):
    alphabet = ["/", "\\", "%", ".", "\n", "\0", "\x85", "\u202e", "\ud800", "é", "2F", "a"]
    labels = {"".join(some) for count in range(4) for some in itertools.product(alphabet, repeat=count)}
    long = ["a" * 300, "a" * 299 + "b", "/" * 300, "é" * 100, "a" + "é" * 100, "." * 300]
    labels |= {*long, *map(results.folder_name, [*labels, *long])}  # nor do a label and another's name meet
    names = {label: results.folder_name(label) for label in labels}
    assert len(set(names.values())) == len(labels)
    for name in names.values():
        (tmp_path / name).mkdir()
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert len(name.encode()) <= results.LONGEST_NAME
        assert name.isprintable()
        assert not name.startswith(".")
    assert len(list(tmp_path.iterdir())) == len(labels)


def test_plain_labels_are_their_own_names():
    plain = (
        "resnet18",
        "cat+dog",
        "data.name=noise,data.shuffle_labels=False",
        "models=(mlp_deep, lenet)",
        "猫",
        "a" * 120,
    )
    for label in plain:
        assert results.folder_name(label) == label


def test_a_table_comes_back(tmp_path):
    columns = {"name": np.array(["a, b", 'say "x"']), "value": np.array([1.5, np.nan])}
    results.write_table(tmp_path / "table.csv", columns)
    table = results.read_table(tmp_path / "table.csv")
    assert table["name"].tolist() == columns["name"].tolist()
    np.testing.assert_array_equal(table["value"], columns["value"])


READERS = {
    "summary.json": results.read,
    "config.json": results.read_config,
    "trajectory.npz": lambda folder: results.read_arrays(folder / "trajectory.npz"),
    "table.csv": lambda folder: results.read_table(folder / "table.csv"),
    "networks": results.read_networks,
}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        *[(name, None, "") for name in READERS],
        *[(name, b"", "") for name in READERS],
        *[(name, b"\xff\xfe\0words", "") for name in READERS],
        ("summary.json", b'{"a": 1', "Expecting"),
        ("summary.json", b"[1]", "it holds no JSON object"),
        ("config.json", b"null", "it holds no JSON object"),
        ("table.csv", b"a,b\n", "it has no rows"),
        ("table.csv", b"a,b\n1,2\n3", "its rows differ in length"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named_in_one_line(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        READERS[name](tmp_path)
    assert str(tmp_path / name) in str(error.value)
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_trajectory_that_is_cut_off_or_another_file(tmp_path):
    save = partial(np.savez, tmp_path / "trajectory.npz")
    save(step=np.arange(3), angle=np.ones((1, 3)))
    with pytest.raises(InputError, match="it has no array 'accuracy'"):
        results.read_arrays(tmp_path / "trajectory.npz")
    save(step=np.arange(3000))
    whole = (tmp_path / "trajectory.npz").read_bytes()
    (tmp_path / "trajectory.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="no zip archive, or was cut off"):
        results.read_arrays(tmp_path / "trajectory.npz")
