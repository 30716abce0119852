import json
import shutil
import subprocess

import numpy as np
import pytest

from jtrans.errors import InputError
from jtrans.population import checkpoints
from jtrans.population.checkpoints import Checkpoints


def state(step):
    rng = np.random.default_rng(step)
    weights = rng.normal(size=(3, 40, 5)).astype(np.float32)
    networks = {"0": {"variables": {"kernel": weights}, "optimizer_state": {"0": {}, "1": {"count": np.full(3, step)}}}}
    return {"networks": networks, "history": {"step": np.arange(step), "angle": np.full((3, step), np.nan)}}


def same(got, step):
    want = state(step)
    np.testing.assert_array_equal(
        got["networks"]["0"]["variables"]["kernel"], want["networks"]["0"]["variables"]["kernel"]
    )
    np.testing.assert_array_equal(got["history"]["angle"], want["history"]["angle"])
    assert got["networks"]["0"]["optimizer_state"]["1"]["count"].tolist() == [step] * 3


def save(saves, step, **options):
    """In two pieces."""
    saves.save(step, iter([state(step), {"networks": {"0": np.array([step])}}]), 0, **options)


@pytest.fixture
def two(tmp_path):
    """A work directory with good checkpoints of steps 4 and 6."""
    saves = Checkpoints(tmp_path)
    for step in (2, 4, 6):
        save(saves, step)
    saves.wait()
    return tmp_path


def test_the_newest_comes_back_and_two_are_kept(two):
    assert sorted(path.name for path in (two / "checkpoints").iterdir()) == ["4", "4.sha256", "6", "6.sha256"]
    assert Checkpoints(two).newest() == 6
    first, second = Checkpoints(two).load(6)
    same(first, 6)
    assert second["networks"]["0"].tolist() == [6]


def test_nothing_saved_is_nothing_found(tmp_path):
    assert Checkpoints(tmp_path).newest() is None
    assert not list(tmp_path.iterdir())


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_checkpoint_without_one_of_its_pieces_is_not_used(two, capfd):
    shutil.rmtree(two / "checkpoints" / "6" / "1")
    assert Checkpoints(two).newest() == 4
    assert "6 is damaged and left out" in capfd.readouterr().err


def test_a_checkpoint_whose_last_piece_cannot_be_made_is_not_used(two):
    def pieces():
        yield state(8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Checkpoints(two).save(8, pieces(), 0)
    saves = Checkpoints(two)
    assert saves.newest() == 6
    save(saves, 10)
    saves.wait()
    assert not (two / "checkpoints" / "8").exists()


def test_a_checkpoint_that_the_disk_cannot_hold_is_not_begun(two):
    with pytest.raises(InputError, match="MiB are needed"):
        Checkpoints(two).save(8, [state(8)], 2**60)
    assert not (two / "checkpoints" / "8").exists()


def test_pieces_are_asked_for_one_by_one(tmp_path):
    """No more are in memory than the one that is written and the next."""
    folder = tmp_path / "checkpoints" / "1"

    def pieces():
        yield state(1)
        yield {"a": np.ones(3)}
        assert (folder / "_CHECKPOINT_METADATA").exists()  # the first is complete
        yield {"a": np.ones(3)}
        assert (folder / "1" / "_CHECKPOINT_METADATA").exists()

    saves = Checkpoints(tmp_path)
    saves.save(1, pieces(), 0)
    saves.wait()
    assert saves.newest() == 1
    assert len(list(saves.load(1))) == 3


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_whatever_file_is_damaged_a_good_state_comes_back(two, tmp_path_factory, capfd, how):
    names = sorted(p.relative_to(two) for p in (two / "checkpoints").rglob("*") if p.is_file())
    names = [name for name in names if name.parts[1].startswith("6")]
    assert len(names) > 5
    for name in names:
        copy = tmp_path_factory.mktemp("damaged") / "run"
        shutil.copytree(two, copy)
        if how == "missing":
            (copy / name).unlink()
        elif (copy / name).stat().st_size:
            damage(copy / name, how)
        else:
            continue
        capfd.readouterr()
        assert Checkpoints(copy).newest() == 4, name
        lines = capfd.readouterr().err.splitlines()
        if (how, name.suffix) == ("missing", ".sha256"):
            assert not lines  # it was not written to its end
        else:
            assert len(lines) == 1
            assert "6 is damaged and left out; its files are not those that were written" in lines[0]
        saves = Checkpoints(copy)
        save(saves, 6)  # the damaged one makes way
        saves.wait()
        assert Checkpoints(copy).newest() == 6


def test_where_all_are_damaged_none_is_found(two, capfd):
    for path in (two / "checkpoints").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            damage(path, "flipped")
    assert Checkpoints(two).newest() is None
    assert len(capfd.readouterr().err.splitlines()) == 2


def test_what_a_killed_process_left_is_no_checkpoint_and_goes(two):
    for name in ("8.orbax-checkpoint-tmp", "8"):
        (two / "checkpoints" / name / "state").mkdir(parents=True)
        (two / "checkpoints" / name / "_CHECKPOINT_METADATA").write_text("")
    (two / "checkpoints" / ".8.sha256.0123abcd.part").write_text("")
    saves = Checkpoints(two)
    assert saves.newest() == 6
    save(saves, 8)
    saves.wait()
    assert sorted(path.name for path in (two / "checkpoints").iterdir()) == ["6", "6.sha256", "8", "8.sha256"]


def test_what_others_keep_in_the_folder_stays(two):
    folder = two / "checkpoints"
    (folder / "mine").mkdir()
    (folder / "2024").mkdir()
    for name in ("notes.txt", "mine/4.npz", "best-6", ".hidden", "6.bak", "2024/thesis.txt", ".5"):
        (folder / name).write_text("mine")
    (two / "elsewhere").mkdir()
    (folder / "link").symlink_to(two / "elsewhere")
    saves = Checkpoints(two)
    save(saves, 8)
    saves.wait()
    others = {"mine", "notes.txt", "best-6", ".hidden", "6.bak", "link", "2024", ".5"}
    assert {path.name for path in folder.iterdir()} == others | {"6", "6.sha256", "8", "8.sha256"}
    assert (folder / "mine" / "4.npz").read_text() == "mine"


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/8", "checkpoints/8.sha256", "checkpoints/examples"])
def test_links_in_the_place_of_what_is_written_are_refused(tmp_path, name):
    (tmp_path / "scratch").mkdir()
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "scratch")
    with pytest.raises(InputError, match=f"{path.name} is a link"):
        Checkpoints(tmp_path / "run")


def test_a_damaged_checkpoint_is_not_one_of_the_two_that_are_kept(two, capfd):
    damage(two / "checkpoints" / "6" / "_CHECKPOINT_METADATA", "flipped")
    saves = Checkpoints(two)
    assert saves.newest() == 4
    assert "6 is damaged" in capfd.readouterr().err
    save(saves, 8)
    saves.wait()
    assert {path.name for path in (two / "checkpoints").iterdir()} == {"4", "4.sha256", "8", "8.sha256"}
    assert Checkpoints(two).newest() == 8
    assert not capfd.readouterr().err


def test_what_was_measured_of_each_image_is_written_once_and_checked(two, capfd):
    saves, values = Checkpoints(two), np.random.default_rng(0).random((3, 5), np.float32)
    for step in (0, 8):
        saves.write_examples(step, values + step)
    written = (two / "checkpoints" / "examples" / "0.npy").stat().st_mtime_ns
    save(saves, 8, examples=(0, 8))
    saves.wait()
    again = Checkpoints(two)
    assert again.newest() == 8
    np.testing.assert_array_equal(again.read_examples(8), values + 8)
    assert (two / "checkpoints" / "examples" / "0.npy").stat().st_mtime_ns == written
    sums = subprocess.run(["sha256sum", "--check", "--quiet", "../8.sha256"], cwd=two / "checkpoints" / "8")
    assert sums.returncode == 0
    damage(two / "checkpoints" / "examples" / "0.npy", "flipped")
    assert Checkpoints(two).newest() == 6
    assert "8 is damaged" in capfd.readouterr().err


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / checkpoints.FOLDER).write_text("")
    with pytest.raises(InputError, match="checkpoints cannot be written"):
        save(Checkpoints(tmp_path), 1)


def test_orbax_reads_them_without_jtrans(two):
    from orbax.checkpoint import v1 as ocp

    got = ocp.load(two / "checkpoints" / "6")
    same(got, 6)
    assert json.loads((two / "checkpoints" / "6" / "_CHECKPOINT_METADATA").read_text())
