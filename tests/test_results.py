"""Directory names for any label."""

import itertools

from jtrans import results


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
