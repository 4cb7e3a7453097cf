"""The cache of decoded images: nothing is decoded twice, nothing stale or half written is used, memory stays flat."""

import argparse
import os
import shutil

import numpy as np
import pytest
from conftest import run_code
from PIL import Image

from basics.errors import InputError
from datasets import cache, folders
from datasets.images import read_image
from support import seeds


@pytest.fixture
def mine(tmp_path):
    """A folder of two classes, twelve images each, all of them different."""
    for number in range(24):
        path = tmp_path / "mine" / ("blue" if number % 2 else "amber") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 70), (number, 200 - number, 7)).save(path)
    return tmp_path / "mine"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded, in a list that the test may clear."""
    names = []

    def read(path, size):
        names.append(os.path.basename(path))
        return read_image(path, size)

    monkeypatch.setattr(folders, "read_image", read)
    return names


def load(folder, cache_dir):
    """Load a folder; return its images by file name, from training and test set."""
    train_x, _, test_x, _, _ = folders.load_folder(folder, cache_dir=cache_dir)
    return {os.path.basename(path): image for x in (train_x, test_x) for path, image in zip(x.paths, x[:])}


def expected(folder):
    return {path.name: read_image(path, 64) for path in sorted(folder.rglob("*.png"))}


def assert_same(found, images):
    assert set(found) == set(images)
    for name, image in images.items():
        np.testing.assert_array_equal(found[name], image)


def test_images_are_decoded_once_and_not_again_in_the_next_run(mine, tmp_path, decoded):
    for run in range(3):
        assert_same(load(mine, tmp_path / "cache"), expected(mine))
        assert len(decoded) == len(set(decoded)) == 24, f"run {run}"
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_without_a_cache_the_files_are_read_whenever_they_are_needed(mine, decoded):
    assert_same(load(mine, None), expected(mine))
    assert len(decoded) == 48


def test_cached_images_are_indexed_like_an_array(mine, tmp_path):
    x = folders.load_folder(mine, cache_dir=tmp_path / "cache")[0]
    array = np.stack([read_image(path, 64) for path in x.paths])
    part = x.take(np.array([5, 1, 2]), axis=0).take(np.array([2, 0]))
    assert part.paths.tolist() == x.paths[[2, 5]].tolist() and part.shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(part[:], array[[2, 5]])
    for index in (3, np.int64(-1), slice(2, 9, 3), slice(0, 0), np.arange(len(x)) % 2 == 0, np.array([4, 4, 0])):
        assert x[index].dtype == np.uint8 and type(x[index]) is np.ndarray
        np.testing.assert_array_equal(x[index], array[index])


def test_only_what_has_changed_is_decoded_again(mine, tmp_path, decoded):
    load(mine, tmp_path / "cache")
    decoded.clear()
    changed = mine / "amber" / "04.png"
    before = changed.stat()
    Image.new("RGB", (90, 70), (99, 98, 97)).save(changed)
    os.utime(changed, ns=(before.st_mtime_ns, before.st_mtime_ns + 1))  # as large as before, a moment later
    Image.new("RGB", (300, 200), "white").save(mine / "blue" / "new.png")
    (mine / "blue" / "05.png").unlink()
    assert_same(load(mine, tmp_path / "cache"), expected(mine))
    assert sorted(decoded) == ["04.png", "new.png"]
    decoded.clear()
    assert_same(load(mine, tmp_path / "cache"), expected(mine))
    assert decoded == [] and len(list((tmp_path / "cache").iterdir())) == 1


def test_train_and_test_folders_and_several_folders_have_their_own_caches(mine, tmp_path, decoded):
    shutil.copytree(mine, tmp_path / "both" / "train")
    shutil.copytree(mine, tmp_path / "both" / "test")
    for _ in range(2):
        load(mine, tmp_path / "cache")
        load(tmp_path / "both", tmp_path / "cache")
    assert len(decoded) == 72 and len(list((tmp_path / "cache").iterdir())) == 3


def test_an_unreadable_file_is_named_in_every_run_and_does_not_spoil_the_cache(mine, tmp_path, decoded, capsys):
    (mine / "blue" / "03.png").write_text("not an image")
    for first in (True, False):
        decoded.clear()
        found = load(mine, tmp_path / "cache")
        assert len(found) == 23 and "03.png" not in found
        assert "03.png" in capsys.readouterr().err
        assert len(decoded) == 24 if first else decoded == ["03.png"]
    Image.new("RGB", (9, 9), "red").save(mine / "blue" / "03.png")
    assert_same(load(mine, tmp_path / "cache"), expected(mine))


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "array"])
def test_a_damaged_cache_is_made_again(mine, tmp_path, decoded, damage):
    load(mine, tmp_path / "cache")
    decoded.clear()
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    if damage == "array":
        np.save(path, np.zeros((24, 64, 64, 3), np.uint8))
    else:
        path.write_bytes({"cut": whole[:-1], "empty": b"", "other": b"\x00" * len(whole)}[damage])
    assert_same(load(mine, tmp_path / "cache"), expected(mine))
    assert len(decoded) == 24 and path.read_bytes() == whole


KILLED = """
import os
from datasets import folders
from datasets.images import read_image

def read(path, size):
    if path.name == "20.png":
        os._exit(9)
    return read_image(path, size)

folders.read_image = read
folders.load_folder(sys.argv[1], cache_dir=sys.argv[2])
"""


def test_a_killed_run_leaves_no_cache_that_looks_whole(mine, tmp_path, decoded):
    assert run_code(KILLED, mine, tmp_path / "cache").returncode == 9
    (half,) = (tmp_path / "cache").iterdir()
    assert half.name.startswith("unfinished_")
    assert_same(load(mine, tmp_path / "cache"), expected(mine))
    assert len(decoded) == 24 and half.exists()  # its writer might still be running
    os.utime(half, (1e9, 1e9))
    (mine / "blue" / "01.png").unlink()
    Image.new("RGB", (9, 9), "red").save(mine / "blue" / "25.png")
    load(mine, tmp_path / "cache")
    assert not half.exists() and len(list((tmp_path / "cache").iterdir())) == 1


def test_ctrl_c_leaves_nothing(mine, tmp_path, monkeypatch):
    def read(path, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "read_image", read)
    with pytest.raises(KeyboardInterrupt):
        load(mine, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_room_or_permission_the_run_goes_on_without_a_cache(mine, tmp_path, decoded, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert_same(load(mine, tmp_path / "file" / "cache"), expected(mine))
    assert capsys.readouterr().out.count("Images are not cached, so every epoch decodes them again") == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: argparse.Namespace(free=1_000_000))
    (mine / "blue" / "03.png").write_text("not an image")
    decoded.clear()
    assert len(load(mine, tmp_path / "cache")) == 23
    printed = capsys.readouterr()
    assert "cannot be saved: No space left on device. Choose another folder with --cache-dir" in printed.out
    assert "03.png" in printed.err
    assert len(decoded) == 24 + 23 and list((tmp_path / "cache").iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_does_not_end_the_run(mine, tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    assert_same(load(mine, tmp_path / "cache"), expected(mine))
    assert "No space left on device" in capsys.readouterr().out


def test_a_cache_inside_the_folder_would_become_a_class(mine, capsys):
    assert_same(load(mine, mine / "cache"), expected(mine))
    assert "lies in their folder" in capsys.readouterr().out and not (mine / "cache").exists()


def test_a_run_keeps_its_images_when_another_run_replaces_the_cache(mine, tmp_path):
    x = folders.load_folder(mine, cache_dir=tmp_path / "cache")[0]
    before = x[:]
    for path in mine.rglob("1*.png"):
        path.unlink()
    load(mine, tmp_path / "cache")
    np.testing.assert_array_equal(x[:], before)


MEMORY = """
import pathlib, resource
import numpy as np
from datasets.cache import read_all
from datasets.folders import ImageFiles

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

images = [np.full((64, 64, 3), number, np.uint8) for number in range(256)]
paths = [f"/nowhere/{number}.jpg" for number in range(6000)]
path = pathlib.Path(sys.argv[1], "cache.npy")
def read(path):
    return images[int(path[9:-4]) % 256]

read_all(paths[:64], read, path)
before = peak()
for _ in range(2):  # filled and found again
    cache, rows, faults = read_all(paths, read, path)
x = ImageFiles(paths, cache, rows)
total = sum(int(x[start : start + 64][:, 9, 9, 1].sum()) for start in range(0, 6000, 64))
assert total == sum(number % 256 for number in range(6000)) and not any(faults)
print(path.stat().st_size / 2**20, peak() - before)
"""


def test_memory_does_not_grow_with_the_cache(tmp_path):
    process = run_code(MEMORY, tmp_path)
    assert process.returncode == 0, process.stderr
    size, grown = map(float, process.stdout.split())
    # What is decoded at once is 12 MB; a map of all images would add the size of the file.
    assert size > 70 and grown < 35


def test_all_seeds_and_folds_share_one_cache(tmp_path, monkeypatch):
    from support.cli import ScriptParser

    commands = []

    class Process:
        returncode = 0

        def __init__(self, command):
            commands.append(command)
            raise InputError("stopped here")

    monkeypatch.setattr(seeds.subprocess, "Popen", Process)
    parser = ScriptParser("", "script", epochs=1, batch_size=1, learning_rate=1)
    for option in ("--seeds", "--folds"):
        args = parser.parse_args([option, "2", "--output-dir", str(tmp_path)])
        with pytest.raises(InputError, match="stopped here"):
            (seeds.run_seeds if option == "--seeds" else seeds.run_folds)(args)
    for command, kind in zip(commands, ("seed", "fold")):
        given = vars(parser.parse_args(command[command.index("--seeds") :]))
        assert given["cache_dir"] == tmp_path / "cache" and given["output_dir"] == tmp_path / f"{kind}_1"
