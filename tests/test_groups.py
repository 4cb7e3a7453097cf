"""Groups of images, and splits that keep them together."""

import re

import numpy as np
import pytest
from conftest import REAL, SHARED
from PIL import Image

from basics.errors import InputError
from datasets import SIGNS, groups, loading
from datasets.folders import load_folder, load_parts
from datasets.groups import find_groups, near_duplicate_groups
from datasets.hdf5 import load_h5
from datasets.splits import split_fold, split_indices, split_validation, stratified_folds
from support.evaluation.near_duplicates import find_near_duplicates


def scenes(count, seed=0):
    """Return images of different scenes, uint8 (count, 64, 64, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def frames(scene, count):
    """Return images of one scene: shifted by up to two pixels, darker and noisy."""
    rng = np.random.default_rng(count)
    padded = np.pad(scene, ((2, 2), (2, 2), (0, 0)), "edge").astype(float)
    images = []
    for _ in range(count):
        down, right = rng.integers(0, 5, 2)
        image = padded[down : down + 64, right : right + 64] * rng.uniform(0.8, 1) + rng.normal(0, 3, scene.shape)
        images.append(image.clip(0, 255).astype(np.uint8))
    return np.stack(images)


def same_groups(one, other):
    return len(set(zip(one, other))) == len(set(one)) == len(set(other))


# ------------------------------------------------------------------- near-duplicates


def test_frames_of_a_scene_are_one_group_and_other_scenes_are_not():
    x = np.concatenate([scenes(5), *(frames(scene, 6) for scene in scenes(4))])
    expected = [0, 1, 2, 3, 4] + [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    order = np.random.default_rng(1).permutation(len(x))
    assert same_groups(near_duplicate_groups(x[order]), np.array(expected)[order])


def test_groups_span_chunks_and_are_linked_over_others(monkeypatch):
    monkeypatch.setattr(groups, "CHUNK", 4)
    scene = scenes(1)[0]
    # Each frame is two pixels away from the next, so the first and the last are no near-duplicates of each other.
    wide = np.pad(scene, ((0, 0), (0, 40), (0, 0)), "wrap")
    moving = np.stack([wide[:, 2 * step : 2 * step + 64] for step in range(20)])
    assert not find_near_duplicates(moving[:1], moving[-1:]).found.any()
    found = near_duplicate_groups(np.concatenate([moving, scenes(3, seed=5)]))
    assert same_groups(found, [0] * 20 + [1, 2, 3])


def test_the_groups_are_those_of_the_measure_in_the_report():
    x = np.concatenate([scenes(60), scenes(60, seed=3) // 3 + scenes(60) // 2])
    found = near_duplicate_groups(x)
    for label in np.unique(found)[:20]:
        inside, outside = x[found == label], x[found != label]
        assert not find_near_duplicates(outside, inside).found.any()
        assert not find_near_duplicates(inside, outside).found.any()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs photographs")
def test_photographs_of_different_people_are_not_grouped_and_bursts_of_hands_are():
    x, y, _ = load_h5(REAL["signs"] / "train_signs.h5", "train")
    found = near_duplicate_groups(x)
    sizes = np.bincount(found)
    assert len(x) * 0.75 < len(sizes) < len(x) * 0.9 and sizes.max() < 20
    assert all(len(set(y[found == label])) == 1 for label in range(len(sizes)))
    x, _, _ = load_h5(REAL["happy"] / "train_happy.h5", "train")
    assert len(np.unique(near_duplicate_groups(x))) == len(x)


def test_more_images_than_can_be_compared_stand_alone_and_that_is_said(monkeypatch):
    monkeypatch.setattr(groups, "MOST_COMPARED", 3)
    found, line = find_groups(scenes(4), ["a"] * 4, np.zeros(4, int), ("a",), ["."] * 4, "near-duplicates")
    assert found is None and "of more than 3 images, near-duplicates are not looked for" in line


def test_the_line_tells_how_many_groups_there_are():
    x, y = np.concatenate([scenes(4), frames(scenes(1)[0], 3)]), np.array([0, 0, 1, 1, 0, 0, 0])
    found, line = find_groups(x, [""] * 7, y, ("a", "b"), [""] * 7, "near-duplicates")
    assert len(np.unique(found)) == 4 and line.startswith("Groups: 7 images in 4 groups, near-duplicates share one")
    assert "the largest has 4" in line and "except" not in line
    assert find_groups(x[:4], [""] * 4, y[:4], ("a", "b"), [""] * 4, "near-duplicates")[1] == (
        "Groups: 4, as no two images are near-duplicates"
    )
    _, line = find_groups(x[[0, 4, 5, 2, 3]], [""] * 5, y[[0, 4, 5, 2, 3]], ("a", "b"), [""] * 5, "near-duplicates")
    assert line.endswith("except where a class has no other: a. Its results will flatter")
    assert find_groups(x, [""] * 7, y, ("a", "b"), [""] * 7, "none") == (None, "")


# ------------------------------------------------------------------- groups by name


@pytest.mark.parametrize(
    "name, prefix",
    [
        ("cat_video3_0001.jpg", "cat_video3_"),
        ("cat_video3_0001_small.jpg", "cat_video3_"),
        ("video3-frame12.jpeg", "video3-frame"),
        ("clip (12).png", "clip ("),
        ("clip.0012.png", "clip."),
        ("2024-05-01 10.11.12.jpg", "2024-05-01 10.11."),
        ("frame.jpg", "frame"),
        ("0001.jpg", ""),
        ("猫3_7.png", "猫3_"),
    ],
)
def test_the_prefix_ends_before_the_last_number(name, prefix):
    assert groups._prefix(f"/data/cat/{name}", "/data/cat") == prefix


def by_name(names, by):
    """Return the groups of files named "class/...", and the line about them."""
    labels = sorted({name.split("/")[0] for name in names})
    y = np.array([labels.index(name.split("/")[0]) for name in names])
    folders = [f"/d/{name.split('/')[0]}" for name in names]
    return find_groups(None, [f"/d/{name}" for name in names], y, tuple(labels), folders, by)


def test_groups_by_prefix_and_by_subfolder():
    names = [f"{label}/v{video}_{frame}.jpg" for label in "ab" for video in (1, 2, 3) for frame in range(4)]
    found, line = by_name(names, "prefix")
    assert same_groups(found, [name.split("_")[0][2:] for name in names])  # v1 of both classes is one video
    assert line.startswith("Groups: 24 images in 3 groups, one for each beginning of a file name; the largest has 8")
    names = ["a/x/1.jpg", "a/x/deep/2.jpg", "a/y/1.jpg", "a/1.jpg", "a/2.jpg", "b/x/1.jpg", "b/3.jpg"]
    found, line = by_name(names, "folder")
    assert same_groups(found, ["x", "x", "y", 1, 2, "x", 3])
    assert line.startswith("Groups: 7 images in 5 groups, one for each subfolder of the classes; the largest has 3")


@pytest.mark.parametrize(
    "names, by, words",
    [
        (["a/1_cat.jpg", "a/2_cat.jpg", "b/x1.jpg", "b/y1.jpg"], "prefix", "puts all 2 images of a into one group"),
        ([f"a/IMG_{n}.jpg" for n in range(9)] + ["b/u1.jpg", "b/v1.jpg"], "prefix", "puts all 9 images of a into one"),
        (["a/x.jpg", "a/y.jpg", "b/u.jpg", "b/v.jpg"], "prefix", "finds no groups: no two names are the same"),
        (["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"], "folder", "finds no groups: the classes have no subfolders"),
        (["a/s/1.jpg", "a/s/2.jpg", "b/s/1.jpg", "b/t/1.jpg"], "folder", "puts all 2 images of a into one group"),
    ],
)
def test_names_that_make_no_groups_are_refused(names, by, words):
    with pytest.raises(InputError, match=f"^--group-by {by} {words}.*Drop it|^--group-by {by} {words}.*drop it"):
        by_name(names, by)


# ------------------------------------------------------------------- splits


def grouped_set(seed, classes=4, most=6):
    """Return labels and groups of a random set: some groups have images of two classes."""
    rng = np.random.default_rng(seed)
    y, numbers = [], []
    for number in range(80):
        label, size = rng.integers(classes), rng.integers(1, most + 1)
        y += [label] * size
        if rng.random() < 0.1:
            y[-1] = (label + 1) % classes
        numbers += [number] * size
    order = rng.permutation(len(y))
    return np.array(y)[order], np.array(numbers)[order]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.5])
def test_a_split_keeps_groups_together_and_classes_in_proportion(seed, fraction):
    y, numbers = grouped_set(seed)
    train, held_out = split_indices(y, seed, fraction, numbers)
    assert sorted([*train, *held_out]) == list(range(len(y)))
    assert not set(numbers[train]) & set(numbers[held_out])
    wanted = fraction * np.bincount(y)
    assert (np.abs(np.bincount(y[held_out]) - wanted) <= 6).all() and set(y[held_out]) == set(y[train]) == set(y)
    assert np.array_equal(split_indices(y, seed, fraction, numbers)[1], held_out)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("seed", range(4))
def test_folds_keep_groups_together_and_are_alike(seed, count):
    y, numbers = grouped_set(seed)
    folds = stratified_folds(y, count, numbers)
    assert all(len(set(folds[numbers == number])) == 1 for number in numbers)
    assert np.ptp(np.bincount(folds, minlength=count)) <= 8 and len(set(folds)) == count
    for fold in range(count):
        assert set(y[folds != fold]) == set(y)
    assert np.array_equal(stratified_folds(y, count, numbers), folds)


def test_groups_of_one_image_are_split_as_images_without_groups():
    y = np.random.default_rng(2).integers(0, 3, 100)
    alone = np.random.default_rng(3).permutation(100)
    for one, other in zip(split_indices(y, 4, 0.15), split_indices(y, 4, 0.15, alone)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(stratified_folds(y, 5), stratified_folds(y, 5, alone))


@pytest.mark.parametrize(
    "y, numbers, expected",
    [
        # The first class is one group, which is split; the second has a large and a small one.
        ([0] * 10 + [1] * 10, [0] * 10 + [1] * 9 + [2], {"split": {0}, "held": [2, 1]}),
        # Two groups that are both larger than wanted: the smaller one is held back.
        ([0] * 10 + [1] * 10, [0] * 6 + [1] * 4 + list(range(2, 12)), {"split": set(), "held": [4, 2]}),
        # One group of everything.
        ([0] * 6 + [1] * 7, [0] * 13, {"split": {0}, "held": [1, 1]}),
        # Three images of a class.
        ([0] * 3 + [1] * 3, [0, 0, 1, 2, 3, 3], {"split": set(), "held": [1, 1]}),
        # Each class shares its groups with the next.
        ([0, 1] * 3 + [1, 2] * 3 + [2, 0] * 3, [0] * 6 + [1] * 6 + [2] * 6, None),
    ],
)
def test_every_class_stays_in_both_parts_whatever_its_groups(y, numbers, expected):
    y, numbers = np.array(y), np.array(numbers)
    train, held_out = split_indices(y, 1, 0.15, numbers)
    assert set(y[train]) == set(y[held_out]) == set(y) and np.bincount(y[train]).min() >= 2
    if expected:
        assert set(numbers[train]) & set(numbers[held_out]) == expected["split"]
        assert np.bincount(y[held_out]).tolist() == expected["held"]
    for count in (2, 3):
        folds = stratified_folds(y, count, numbers)
        for fold in range(count):
            left = np.bincount(y[folds != fold], minlength=y.max() + 1)
            assert left.min() >= min(2, np.bincount(y).min() - 2)


def test_split_validation_takes_groups(capsys):
    x, y, numbers = np.arange(40), np.arange(40) % 2, np.arange(40) // 4
    train, train_y, validation, validation_y = split_validation(x, y, 1, 0.2, numbers)
    assert not set(train // 4) & set(validation // 4) and len(validation) in (4, 8, 12)
    np.testing.assert_array_equal([*train_y, *validation_y], [*train % 2, *validation % 2])


def test_more_folds_than_groups_are_refused():
    y, numbers = np.arange(24) % 2, np.repeat([0, 1, 2], 8)
    with pytest.raises(InputError, match="5 folds need at least 5 groups of images .got 3 groups.. Use fewer folds"):
        split_fold(np.arange(24), y, "1/5", groups=numbers)


# ------------------------------------------------------------------- a folder


def write_videos(folder, videos=8, count=5):
    """Write frames of different videos of two classes; the names tell which."""
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for video, scene in enumerate(scenes(videos, seed=len(label) if label == "cat" else 9)):
            for number, image in enumerate(frames(scene, count)):
                Image.fromarray(image).save(folder / label / f"{label}_{video}_{number:04d}.png")
    return folder


def video_of(path):
    return re.search(r"(\w+)_\d+\.png", path)[1]


def test_frames_of_a_video_are_on_one_side_of_every_split(tmp_path, capsys):
    folder = write_videos(tmp_path / "videos")
    for group_by in (None, "prefix", "near-duplicates"):
        own = load_parts(folder, group_by=group_by)
        assert not set(map(video_of, own.train_x.paths)) & set(map(video_of, own.test_x.paths))
        assert np.bincount(own.test_y).tolist() == [5, 5] and len(np.unique(own.groups)) == 14
        assert "Groups: 80 images in 16 groups" in capsys.readouterr().out
    assert find_near_duplicates(own.train_x[:], own.test_x[:]).found.sum() == 0
    data = loading.load_dataset(SIGNS, "auto", folder)
    for seed in range(3):
        train_x, _, validation_x, validation_y = data.split_validation(seed)
        assert not set(map(video_of, train_x.paths)) & set(map(video_of, validation_x.paths))
        assert np.bincount(validation_y).tolist() == [5, 5]
    alone = load_parts(folder, group_by="none")
    assert alone.groups is None and set(map(video_of, alone.train_x.paths)) & set(map(video_of, alone.test_x.paths))


def test_folds_of_a_folder_keep_videos_together_and_hold_every_image_once(tmp_path):
    folder = write_videos(tmp_path / "videos")
    tested = []
    for number in (1, 2, 3, 4):
        own = load_parts(folder, f"{number}/4")
        videos = set(map(video_of, own.test_x.paths))
        assert len(videos) == 4 and not videos & set(map(video_of, own.train_x.paths))
        assert len(own.groups) == len(own.train_x)
        tested += own.test_x.paths.tolist()
    assert len(set(tested)) == len(tested) == 80


def test_subfolders_of_a_class_are_groups_on_request(tmp_path):
    for label in ("calm", "smiling"):
        for number, person in enumerate(("anna", "ben", "cleo", "dora", "emil")):
            (tmp_path / label / person).mkdir(parents=True)
            for index, scene in enumerate(scenes(4, seed=number + 10 * len(label))):
                Image.fromarray(scene).save(tmp_path / label / person / f"{index}.png")
    own = load_parts(tmp_path, group_by="folder")
    people = [{path.split("/")[-2] for path in x.paths} for x in (own.train_x, own.test_x)]
    assert people[0] | people[1] == {"anna", "ben", "cleo", "dora", "emil"} and not people[0] & people[1]
    assert own.class_names == ("calm", "smiling") and set(own.test_y) == {0, 1}


def test_groups_make_the_validation_split_although_there_is_a_test_folder(tmp_path, capsys):
    write_videos(tmp_path / "set" / "train")
    write_videos(tmp_path / "set" / "test", videos=2, count=2)
    own = load_parts(tmp_path / "set")
    assert len(own.groups) == 80 and len(np.unique(own.groups)) == 16 and len(own.test_x) == 8
    write_videos(tmp_path / "set" / "val", videos=2, count=2)
    capsys.readouterr()
    own = load_parts(tmp_path / "set", group_by="prefix")
    assert own.groups is None and len(own.validation_x) == 8
    assert "--group-by prefix changes nothing" in capsys.readouterr().out


def test_a_set_of_similar_images_is_split_image_by_image_and_that_is_said(tmp_path, capsys):
    for label, seed in (("cat", 1), ("dog", 2)):
        (tmp_path / label).mkdir()
        for number, image in enumerate(frames(scenes(1, seed)[0], 12)):
            Image.fromarray(image).save(tmp_path / label / f"{number}.png")
    data = loading.load_dataset(SIGNS, "auto", tmp_path)
    assert np.bincount(data.test_y).tolist() == [2, 2]
    _, _, _, validation_y = data.split_validation(1)
    assert np.bincount(validation_y).tolist() == [1, 1]
    printed = capsys.readouterr().out
    assert "Groups: 24 images in 2 groups" in printed and "except where a class has no other: cat, dog" in printed
    assert "Groups: 2 had to be split for validation" in printed
    assert "Groups: 2 had to be split for testing, because a class would have too few images on one side\n" in printed


def test_folds_that_split_a_group_are_named(tmp_path, capsys):
    y, numbers = np.repeat([0, 1], 12), np.array([0] * 11 + [1] + [2] * 6 + [3] * 6)
    split_fold(np.arange(24), y, "1/2", groups=numbers)
    assert "Groups: 1 had to be split for testing, because a class would" in capsys.readouterr().out
    split_fold(np.arange(24), y, "1/2", groups=np.arange(24) // 2)
    assert "Groups" not in capsys.readouterr().out
    split_fold(np.arange(24), y, "1/2", groups=np.arange(24) // 2, folds=np.arange(24) % 2)
    assert "Groups: 12 had to be split for testing, because the folds are your own\n" in capsys.readouterr().out


def test_subfolders_of_a_class_in_a_folder_of_the_same_name_are_groups(tmp_path):
    for name in ("cat", "dog"):
        for person in range(4):
            (tmp_path / name / name / f"p{person}").mkdir(parents=True)
            for number, image in enumerate(scenes(3, person + 10 * (name == "dog"))):
                Image.fromarray(image).save(tmp_path / name / name / f"p{person}" / f"{number}.png")
    own = load_parts(tmp_path, group_by="folder")
    people = [{path.split("/")[-2] for path in x.paths} for x in (own.train_x, own.test_x)]
    assert people[0] | people[1] == {"p0", "p1", "p2", "p3"} and not people[0] & people[1]


def test_images_are_decoded_once_more_for_groups_only_from_the_cache(tmp_path, monkeypatch):
    from datasets import folders

    folder = write_videos(tmp_path / "videos", videos=3, count=2)
    read = folders.read_image
    decoded = []
    monkeypatch.setattr(folders, "read_image", lambda path, size: decoded.append(path) or read(path, size))
    load_folder(folder)
    assert len(decoded) == 12
    load_folder(folder, cache_dir=tmp_path / "cache")
    assert len(decoded) == 24
    load_folder(folder, cache_dir=tmp_path / "cache")
    assert len(decoded) == 24


def test_photographs_in_h5_files_are_split_as_before_and_take_no_groups(tmp_path, write_h5):
    for part in ("train", "test"):
        write_h5(tmp_path / f"{part}_signs.h5", part)
    data = loading.load_dataset(SIGNS, "real", tmp_path)
    assert data.groups is None and data.validation_x is None
    for one, other in zip(data.split_validation(3), split_validation(data.train_x, data.train_y, 3)):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match="--group-by prefix is for folders of your own images"):
        loading.load_dataset(SIGNS, "real", tmp_path, group_by="prefix")
