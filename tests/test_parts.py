"""Which folders are the parts of a data set and which its classes: layouts that public data sets come in."""

import os
import re
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basics.errors import InputError
from datasets.listing import scan
from datasets.parts import find_layout, role_of

ANIMALS = {"cat": 3, "dog": 2}


@pytest.fixture
def make(tmp_path):
    """Return a function that makes empty image files, {folder: count}, and returns the layout of the folder."""

    def layout(places, subfolders=False):
        for place, count in places.items():
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (tmp_path / place / f"{number}.png").touch()
        return find_layout(scan(tmp_path, None), subfolders)

    return layout


def counts(part):
    """Return how many images each class of a part has."""
    return part and {name: folder.count for name, folder in part.classes.items()}


def spread(*parts, classes=ANIMALS):
    return {f"{part}/{name}": count for part in parts for name, count in classes.items()}


def inside(*parts, classes=ANIMALS):
    return {f"{name}/{part}": count for part in parts for name, count in classes.items()}


# ------------------------------------------------------------------- which part is which

TRAIN_AND_TEST = [
    ("train", "test"),
    ("Train", "Test"),
    ("TRAIN", "TEST"),
    ("training", "testing"),
    ("training_set", "test_set"),
    ("train-set", "test-set"),
    ("training set", "test set"),
    ("trainset", "testset"),
    ("TrainingSet", "TestSet"),
    ("train_data", "test_data"),
    ("traindata", "testdata"),
    ("train_images", "test_images"),
    ("trainImages", "testImages"),
    ("images_train", "images_test"),
    ("seg_train", "seg_test"),
    ("seg_train/seg_train", "seg_test/seg_test"),
    ("training_set/training_set", "test_set/test_set"),
    ("train/images", "test/images"),
    ("rps", "rps-test-set"),
    ("cats_and_dogs_train_v2", "cats_and_dogs_test_v2"),
    ("training", "evaluation"),
    ("train", "eval"),
    ("train", "holdout"),
    ("train1", "test1"),
    ("01_train", "02_test"),
    ("train-20240101T1200Z-001/train", "test-20240101T1200Z-001/test"),
    ("fruits-360_Training", "fruits-360_Test"),
    ("Training Data", "Testing Data"),
    ("trainval", "test"),
]


@pytest.mark.parametrize("train, test", TRAIN_AND_TEST, ids=lambda name: name.replace("/", "-"))
def test_training_and_test_folders_are_told_by_what_repeats_in_them(make, tmp_path, train, test):
    layout = make({**spread(train), **spread(test, classes={"cat": 1, "dog": 4})})
    assert counts(layout.train) == ANIMALS and counts(layout.test) == {"cat": 1, "dog": 4}
    assert layout.train.path == tmp_path / train and layout.test.path == tmp_path / test
    assert layout.validation is None and layout.folds == [] and layout.left_out == []


@pytest.mark.parametrize(
    "name",
    "val valid validation Validation validation_set val_images valid-set dev VAL validation-horse-or-human".split(),
)
@pytest.mark.parametrize("with_test", [True, False])
def test_validation_folders_are_used_for_validation(make, name, with_test):
    layout = make({**spread("train"), **spread(name, classes={"cat": 4, "dog": 1}), **spread(*["test"] * with_test)})
    assert counts(layout.train) == ANIMALS and counts(layout.validation) == {"cat": 4, "dog": 1}
    assert counts(layout.test) == (ANIMALS if with_test else None) and layout.left_out == []


@pytest.mark.parametrize("wrapper", ["archive", "archive/data/images", "cats_vs_dogs", "cats_train"])
@pytest.mark.parametrize("parts", [("train", "val", "test"), ()])
def test_a_folder_around_everything_is_looked_through(make, tmp_path, wrapper, parts):
    places = spread(*parts) if parts else ANIMALS
    layout = make({f"{wrapper}/{place}": count for place, count in places.items()})
    assert counts(layout.train) == ANIMALS and bool(layout.test) == bool(parts)
    assert layout.train.path == tmp_path / wrapper / (parts[0] if parts else "")


@pytest.mark.parametrize("parts", [("train", "test"), ("Training", "Validation", "Test"), ("train", "val")])
def test_parts_may_lie_inside_the_classes(make, parts):
    layout = make(inside(*parts))
    found = {role_of(part): part for part in parts}
    for role in ("train", "validation", "test"):
        assert counts(getattr(layout, role)) == (ANIMALS if role in found else None)


def test_a_part_with_a_single_class_and_classes_with_subfolders_are_understood(make):
    layout = make({**spread("train"), "test/cat": 2})
    assert counts(layout.test) == {"cat": 2}


def test_a_part_whose_single_class_has_subfolders_is_understood(make):
    layout = make({"train/cat/a": 1, "train/cat/b": 2, "train/dog": 2, "test/cat/c": 2, "test/cat/d": 3})
    assert counts(layout.train) == {"cat": 3, "dog": 2} and counts(layout.test) == {"cat": 5}


def test_names_of_classes_may_differ_in_case_and_in_accents(make):
    layout = make({"rps/Caf\u00e9": 1, "rps/Bar": 2, "rps-test-set/Cafe\u0301": 2, "rps-test-set/bar": 1})
    assert counts(layout.train) == {"Caf\u00e9": 1, "Bar": 2} and counts(layout.test) == {"Cafe\u0301": 2, "bar": 1}


def test_test_images_beside_the_classes_are_told_from_them(make, tmp_path):
    layout = make({**ANIMALS, **spread("test"), **spread("val")})
    assert counts(layout.train) == counts(layout.test) == counts(layout.validation) == ANIMALS
    assert layout.train.path == tmp_path


def test_training_images_may_have_the_name_of_the_set(make):
    layout = make({**spread("horse-or-human"), **spread("validation-horse-or-human")})
    assert counts(layout.train) == counts(layout.validation) == ANIMALS and layout.test is None


def test_folds_are_in_the_order_of_their_numbers(make):
    layout = make({f"fold{number}/{name}": number for number in (10, 2, 1) for name in ANIMALS})
    assert layout.train is None and [counts(part)["cat"] for part in layout.folds] == [1, 2, 10]


@pytest.mark.parametrize(
    "names", ["fold1 fold2", "Fold_0 Fold_1", "fold-01 fold-02", "k-fold 1,k-fold 2", "1_fold 2_fold"]
)
def test_folds_of_many_names_are_found(make, names):
    names = names.split("," if "," in names else " ")
    layout = make({**spread(*names), **spread("test")})
    assert len(layout.folds) == 2 and counts(layout.folds[0]) == counts(layout.test) == ANIMALS


# ------------------------------------------------------------------- classes, whatever their names

CLASSES = {
    "plain": {"cat": 1, "dog": 2},
    "a class called train": {"bus": 1, "car": 2, "train": 2},
    "a class called train with a subfolder": {"bus": 1, "car": 2, "train/night": 2, "train": 1},
    "two classes, one called train": {"bus": 1, "train": 2},
    "valid and invalid": {"valid": 1, "invalid": 2},
    "valid, invalid and unknown": {"valid": 1, "invalid": 2, "unknown": 1},
    "test and control": {"test": 1, "control": 2},
    "names with a word for a part": {"test_tube": 1, "training_shoe": 2, "eval_board": 1},
    "the same, with different subfolders": {
        "test_tube/glass": 1,
        "test_tube/plastic": 1,
        "training_shoe/a": 2,
        "cup": 1,
    },
    "digits": {str(digit): 1 for digit in range(10)},
    "fold as a word": {"folded": 1, "unfolded": 2, "scaffold": 1},
    "other subfolders in each class": {"cat/siamese": 1, "cat/persian": 1, "dog/poodle": 1, "dog/beagle": 1},
    "one subfolder in all classes": {"cat/images": 1, "dog/images": 2},
    "one name of many repeats": {"cat/a": 1, "cat/b": 1, "cat/other": 1, "dog/c": 1, "dog/d": 1, "dog/other": 1},
    "images beside subfolders": {"cat": 1, "cat/more": 1, "dog": 2},
    "names that differ in case": {"cat": 1, "Cat": 2, "CAT": 3},
}


@pytest.mark.parametrize("places", CLASSES.values(), ids=CLASSES)
def test_classes_are_classes_whatever_their_names(make, places):
    layout = make(places)
    expected = {}
    for place, count in places.items():
        name = place.split("/")[0]
        expected[name] = expected.get(name, 0) + count
    assert counts(layout.train) == expected
    assert layout.test is layout.validation is None and layout.left_out == []


def test_subfolders_that_repeat_below_classes_are_allowed_where_they_are_groups(make):
    places = {f"{name}/{person}": 2 for name in ("calm", "smiling") for person in ("anna", "ben", "cleo")}
    assert counts(make(places, subfolders=True).train) == {"calm": 6, "smiling": 6}
    with pytest.raises(
        InputError, match="calm and smiling in .* have the same subfolders .anna, ben, cleo.*--group-by"
    ):
        make(places)


def test_a_class_called_train_may_have_the_subfolders_of_the_others_where_these_are_groups(make):
    places = {f"{name}/{scene}": 1 for name in ("bus", "car", "train") for scene in ("day", "night")}
    assert counts(make(places, subfolders=True).train) == {"bus": 2, "car": 2, "train": 2}
    with pytest.raises(
        InputError, match="bus and car in .* have the same subfolders as train, but the names of no part"
    ):
        make(places)


# ------------------------------------------------------------------- what is left out, and named

LEFT_OUT = {
    "images to predict, without classes": (
        {**spread("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred": 5},
        "seg_pred with 5 images: it has no subfolders for the classes",
    ),
    "unsorted test images": (
        {**spread("train"), "test": 4},
        "test with 4 images: it has no subfolders for the classes",
    ),
    "samples": ({**spread("train"), "samples": 1}, "samples with 1 image: it has no subfolders"),
    "another part": ({**spread("train", "test"), **spread("extra")}, "extra with 5 images: it is not clear which part"),
    "images beside an unsorted part": (
        {**spread("rps", "rps-test-set"), "rps-validation": 3},
        "rps-validation with 3 images: it has no subfolders for the classes",
    ),
    "test images in a folder in a folder": (
        {**spread("asl_alphabet_train/asl_alphabet_train"), "asl_alphabet_test/asl_alphabet_test": 4},
        "asl_alphabet_test with 4 images: it has no subfolders for the classes",
    ),
    "unsorted validation images in a subfolder": (
        {**spread("train"), "val/images": 4},
        "val with 4 images: it has no subfolders for the classes",
    ),
    "examples beside a data set": (
        {**{f"Dataset/{name}": count for name, count in ANIMALS.items()}, "Examples": 3},
        "Examples with 3 images: it lies beside Dataset",
    ),
    "unlabeled images beside labeled ones": (
        {**{f"labeled/{name}": count for name, count in ANIMALS.items()}, "unlabeled": 3},
        "unlabeled with 3 images: it lies beside labeled",
    ),
    "images to predict": ({**spread("train"), "predict": 2}, "predict with 2 images: it has no subfolders"),
    "a data set in folders beside another folder": (
        {
            **spread("two-master/two-master/images/TRAIN", "two-master/two-master/images/TEST"),
            "one-master/JPEGImages": 3,
        },
        "one-master with 3 images: it lies beside two-master",
    ),
    "the data set once more": (
        {**spread("train", "test"), **spread("chest_xray/train", "chest_xray/test")},
        "chest_xray with 10 images: it is not clear which part it is",
    ),
    "a copy of the classes": (
        {**ANIMALS, **spread("cell_images")},
        "cell_images with 5 images: it repeats the folders beside it, cat and dog",
    ),
    "the classes beside their parts": (
        {**spread("train", "test"), "cat": 2},
        "cat with 2 images: it has no subfolders",
    ),
    "beside a data set": (
        {**spread("set/train", "set/test"), "samples": 2},
        "samples with 2 images: it lies beside set, which is a data set of its own",
    ),
    "no images": ({**ANIMALS, "notes": 0}, "notes has no images"),
    "no images of a class": ({**spread("train", "test"), "train/cow": 0}, "cow has no images"),
}


@pytest.mark.parametrize("places, words", LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_is_left_out_is_named_and_counted(make, places, words):
    layout = make(places)
    assert counts(layout.train) == ANIMALS
    assert len([note for note in layout.left_out if re.search(words, note)]) == len(layout.left_out) == 1


def test_images_beside_the_classes_are_named(make, tmp_path):
    layout = make({"": 2, "train": 1, **spread("train", "test"), "test": 7})
    first, second, third = sorted(layout.left_out)
    assert first == f"1 image lies in {tmp_path}/train, beside the folders: 0.png"
    assert second == f"2 images lie in {tmp_path}, beside the folders: 0.png, 1.png"
    assert third.endswith("0.png, 1.png, 2.png, 3.png, 4.png, and 2 more") and third.startswith("7 images lie in")


# ------------------------------------------------------------------- what is refused

REFUSED = {
    "nothing": ({}, "There are no images to train on in [^:]*$"),
    "one class": ({"cat": 2}, "only its subfolder cat has images"),
    "one class in a folder": ({"data/cat": 2}, "only its subfolder data/cat has images"),
    "images without classes": ({"": 3}, "its images are not in subfolders that name their classes"),
    "test images only": (spread("test"), "only its subfolder test has images"),
    "validation and test images": (spread("val", "test"), "val and test would be for validation or tests"),
    "dev and eval": (spread("dev", "eval"), "dev and eval would be"),
    "unsorted parts": (
        {"train": 3, "test": 2},
        "test and train in .* hold images, but no subfolders for at least two classes",
    ),
    "unsorted parts, Kaggle": ({"train": 3, "test1": 2}, "test1 and train in .* hold images, but no subfolders"),
    "unsorted, three": ({"train": 3, "val": 2, "test": 2}, "test, train and val in .* hold images"),
    "unsorted training images": ({"train": 3, **spread("test")}, "train has images, but no subfolders for at least"),
    "unsorted test images beside classes": (
        {**ANIMALS, "test": 3},
        "test holds images, but no subfolders .* If test is a",
    ),
    "parts of unknown names": (spread("a", "b"), "a and b in .* have the same subfolders .cat, dog.. If these are the"),
    "Japanese parts": (spread("訓練", "評価"), "have the same subfolders"),
    "most classes repeat": (
        {f"{part}/{name}": 1 for part in ("a", "b") for name in ("x", "y", "z", part)},
        "have the same subfolders .x, y, z.",
    ),
    "two training sets": (
        spread("train", "training", "test"),
        "train and training in .* would all be the training images",
    ),
    "two test sets": (
        spread("Training", "PublicTest", "PrivateTest"),
        "PrivateTest and PublicTest in .* all be the test",
    ),
    "two validation sets": (spread("train", "val", "dev"), "dev and val in .* would all be the validation images"),
    "train and more of it": (
        spread("train", "extra"),
        "extra in .* has the same subfolders as train, but the name of no",
    ),
    "several candidates": (spread("a", "b", "test"), "not clear which of a and b in .* holds the training images"),
    "folds and train": (spread("fold1", "fold2", "train"), "has both train and folds: fold1 and fold2"),
    "folds with parts": (
        spread("fold1/train", "fold1/test", "fold2/train", "fold2/test"),
        "fold1 and fold2 in .* are data sets of their own, each with test and train. Name one of them",
    ),
    "several data sets": (
        spread("one/train", "one/test", "two/train", "two/test"),
        "one and two in .* are data sets of their own",
    ),
    "parts of a name, unsorted": (
        {"asl_train": 2, "asl_test": 2},
        "asl_test and asl_train in .* hold images, but no sub",
    ),
    "parts in the names of classes": (
        {"real": 1, "fake": 2, "test_real": 1, "test_fake": 1},
        "test_fake and test_real in .* look like parts of the classes beside them",
    ),
    "parts in the names of all classes": (
        {"train_cat": 1, "train_dog": 1, "test_cat": 1, "test_dog": 1},
        "test_cat and",
    ),
    "unlabeled images beside classes": ({**ANIMALS, "unlabeled": 3}, "unlabeled holds images, but no subfolders"),
    "unsorted and unlabeled": (
        {"train": 2, "unlabeled": 3},
        "train and unlabeled in .* hold images, but no subfolders",
    ),
    "YOLO": (
        {"train/images": 2, "val/images": 2},
        "train and val in .* hold images, but no subfolders for at least two",
    ),
    "variants of one set": (
        {f"{kind}/{name}": 1 for kind in ("color", "grayscale", "segmented") for name in ("leaf", "rust")},
        "color and grayscale in .* same subfolders .leaf, rust.. .*or name one of them with --data-dir",
    ),
    "parts inside one class only": (
        {"cat/train": 2, "cat/test": 2, "dog": 3},
        "test and train in .*/cat look like parts, but not all folders beside it have them",
    ),
    "train may be a class": (
        {"bus": 1, "car": 1, "train/steam": 1, "train/diesel": 1},
        "not clear whether train in .* is a class, or holds the training images",
    ),
    "no training images inside the classes": (inside("val", "test"), "its classes have no folder called train"),
}


@pytest.mark.parametrize("places, words", REFUSED.values(), ids=REFUSED)
def test_what_is_not_clear_is_refused_with_advice(make, places, words):
    with pytest.raises(InputError, match=words) as error:
        make(places)
    assert ". " in str(error.value)  # what to do


# ------------------------------------------------------------------- whatever the layout

NAMES = "train test val fold1 fold2 cat dog images a b seg_train unlabeled test_cat".split()
PLACES = st.lists(st.sampled_from(NAMES), max_size=3).map("/".join)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(places=st.dictionaries(PLACES, st.integers(0, 3), max_size=9), subfolders=st.booleans())
def test_every_image_is_used_once_or_named_or_the_folder_is_refused(tmp_path, places, subfolders):
    with tempfile.TemporaryDirectory(dir=tmp_path) as root:
        for place, count in places.items():
            os.makedirs(f"{root}/{place}", exist_ok=True)
            for number in range(count):
                open(f"{root}/{place}/{number}.png", "w").close()
        found = scan(root, None)
        try:
            layout = find_layout(found, subfolders)
        except InputError as error:
            assert root in str(error)
            return
        parts = [layout.train, layout.validation, layout.test, *layout.folds]
        used = [path for part in parts if part for folder in part.classes.values() for path in folder.paths()]
        assert len(set(used)) == len(used)
        for path in set(found.paths()) - set(used):
            beside = f" in {path.parent}, beside the folders"
            named = [f"{folder} with " for folder in path.parents]
            assert any(words in note for note in layout.left_out for words in (beside, *named)), path


# ------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name, role",
    [
        ("train", "train"),
        ("Validation", "validation"),
        ("test-set", "test"),
        ("x_train_final", "train"),
        ("fold3", "fold"),
        ("trainers", None),
        ("contest", None),
        ("latest", None),
        ("interval", None),
        ("medieval", None),
        ("device", None),
        ("restraint", None),
        ("train_test", None),
        ("train_val", "train"),
        ("scaffold1", None),
        ("", None),
        ("2024", None),
    ],
)
def test_names_stand_for_parts_only_as_words(name, role):
    assert role_of(name) == role


def test_links_to_parts_and_classes_are_followed(make, tmp_path):
    make({"store/a": 3, "store/b": 2, "store/c": 1})
    root = tmp_path / "linked"
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
        os.symlink(tmp_path / "store" / "a", root / part / "cat")
        os.symlink(tmp_path / "store" / "b", root / part / "dog")
    os.symlink(tmp_path, root / "up")
    layout = find_layout(scan(root, None))
    assert counts(layout.train) == counts(layout.test) == ANIMALS and layout.left_out == []
