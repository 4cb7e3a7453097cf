"""The SYNTHETIC sets: the same bytes every time, the schema of the photographs, as easy as these, and not trivial."""

import errno
import functools
import hashlib
import importlib
import itertools
import os
import threading

import h5py
import numpy as np
import pytest
from conftest import run_code
from PIL import Image

from basics.errors import InputError
from benchmarks.course import course_accuracy
from datasets import synthetic
from datasets.hdf5 import is_synthetic, load_h5
from datasets.loading import load_happy_dataset, load_signs_dataset
from datasets.synthetic import faces, hands, moments, rendering
from datasets.synthetic.__main__ import main
from support.evaluation.outputs import one_hot
from support.startup import supports_bfloat16

SIZES = {"happy": (600, 150, 2), "signs": (1080, 120, 6)}

# The mean gray of the quarters of the first images. Networks were trained on these sets, so they must stay as they are.
WIDE = {
    ("happy_wide", "train"): [[96, 114, 90, 194], [121, 120, 93, 77], [58, 57, 55, 53], [44, 36, 49, 40]],
    ("happy_wide", "pretrain"): [[103, 141, 93, 149], [74, 83, 70, 93], [116, 142, 96, 136], [110, 145, 98, 105]],
    ("signs_wide", "train"): [[243, 208, 241, 141], [173, 162, 131, 194], [254, 231, 242, 149], [196, 201, 148, 193]],
    ("signs_and_others", "train"): [[116, 113, 105, 107], [96, 115, 100, 130], [207, 192, 187, 106]],
    ("signs_and_others", "more"): [[130, 151, 127, 153], [188, 144, 106, 195], [149, 111, 138, 148]],
    ("signs_and_others", "pretrain"): [[237, 201, 242, 180], [165, 151, 151, 149], [100, 102, 81, 104]],
    ("signs_other", "test"): [[244, 236, 228, 176], [227, 202, 202, 177], [58, 61, 59, 55]],
}


@pytest.fixture
def small_recipes(monkeypatch):
    """Twelve training and six test images in each set."""
    for name, (module, function, classes, parts) in synthetic.RECIPES.items():
        small = {part: (12 if part == "train" else 6, seed) for part, (_, seed) in parts.items()}
        monkeypatch.setitem(synthetic.RECIPES, name, (module, function, classes, small))


@pytest.mark.parametrize("name", SIZES)
def test_rendering_twice_gives_the_same_bytes(tmp_path, small_recipes, name):
    hashes = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        files = synthetic.render_dataset(name, folder)
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert hashes[0] == hashes[1] and hashes[0][0] != hashes[0][1]


def test_files_are_kept_until_the_renderer_changes(tmp_path, small_recipes):
    train, _ = synthetic.render_dataset("signs", tmp_path)
    good, made = train.read_bytes(), train.stat().st_mtime_ns
    synthetic.render_dataset("signs", tmp_path)
    assert train.stat().st_mtime_ns == made
    with h5py.File(train, "r+") as file:
        file.attrs["renderer"] = "another renderer"
    synthetic.render_dataset("signs", tmp_path)
    assert train.read_bytes() == good and train.stat().st_mtime_ns != made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test_signs.h5", "train_signs.h5"]


def test_the_command_renders_and_saves_sheets(tmp_path, small_recipes, monkeypatch, capsys):
    monkeypatch.setattr(synthetic, "writable_folder", lambda: tmp_path)
    main(["signs", "--sheet", str(tmp_path / "sheets")])
    assert capsys.readouterr().out.count("SYNTHETIC") == 1
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "synthetic_signs.png"))
    assert sheet.shape[2] == 3 and sheet.shape[0] > 6 * 100
    assert np.ptp(sheet[:24]) > 100 and np.ptp(sheet[24:]) > 100  # the title and the images


def test_rendering_in_the_background_keeps_to_the_folder_and_to_itself(tmp_path, monkeypatch, capsys):
    """Keras has another home while it is imported, so the folder is chosen before."""
    chosen_by, arguments, done = [], [], threading.Event()

    def failing(*given):
        arguments.append(given)
        done.set()
        raise OSError("another program needs all processes")

    monkeypatch.setattr(synthetic, "writable_folder", lambda: chosen_by.append(threading.current_thread()) or tmp_path)
    monkeypatch.setattr(synthetic, "_render_missing", failing)
    synthetic.start_rendering("happy")
    assert done.wait(10)
    with synthetic.RENDERING:
        assert arguments == [("happy", tmp_path)] and chosen_by == [threading.main_thread()]
    assert capsys.readouterr().err == ""


def test_a_command_that_ends_stops_rendering_in_the_background(tmp_path):
    code = f"from datasets import synthetic\nsynthetic.start_rendering('happy_wide', folder={str(tmp_path)!r})\nexit(3)"
    assert run_code(code).returncode == 3 and not list(tmp_path.iterdir())


def test_a_damaged_file_is_rendered_again(tmp_path, small_recipes):
    train, _ = synthetic.render_dataset("happy", tmp_path)
    good = train.read_bytes()
    train.write_bytes(good[:1000])
    synthetic.render_dataset("happy", tmp_path)
    assert train.read_bytes() == good


def test_a_full_disk_is_reported_and_leaves_no_file(tmp_path, small_recipes, monkeypatch):
    def full(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="train_happy.h5 cannot be saved: No space left.*bytes of free space"):
        synthetic.render_dataset("happy", tmp_path)
    assert not list(tmp_path.iterdir())


def test_each_image_has_its_own_random_generator():
    images, labels = synthetic.render_images("signs", 6, seed=5)
    again, _ = synthetic.render_images("signs", 6, seed=5)
    other, _ = synthetic.render_images("signs", 6, seed=6)
    np.testing.assert_array_equal(images, again)
    assert len({image.tobytes() for image in np.concatenate([images, other])}) == 12
    assert sorted(labels) == [0, 1, 2, 3, 4, 5]


def test_each_pose_of_a_digit_shows_that_many_fingers():
    for digit, poses in [*hands.POSES.items(), *hands.RARE_POSES.items()]:
        assert {len(pose.extended) + (pose.thumb == "out") for pose in poses} == {digit}
        assert sum(pose.probability for pose in poses) == pytest.approx(1)
    assert {pose.extended for pose in hands.POSES[3]} == {("index", "middle"), ("index", "middle", "ring")}
    assert {pose.thumb for pose in hands.POSES[4]} == {"across", "out"}


ALL_POSES = [*itertools.chain(*hands.POSES.values(), *hands.RARE_POSES.values()), *hands.NO_DIGIT_POSES.values()]


@pytest.mark.parametrize("pose", ALL_POSES)
def test_extended_fingers_are_straight_and_the_others_bent(pose):
    rng = np.random.default_rng(8)
    for _ in range(50):
        fingers = []
        for name, angles in zip(hands.FINGERS, hands.sample_finger_angles(pose, False, rng), strict=True):
            joints, _ = hands.finger_joints(hands.KNUCKLES[name], hands.PHALANGES[name], *angles)
            stretch = np.linalg.norm(joints[3] - joints[0]) / sum(hands.PHALANGES[name])
            if name in pose.extended or pose.thumb != "meets":  # with the tips at the thumb they are neither
                assert stretch > 0.85 if name in pose.extended else stretch < 0.75
            fingers.append(joints)
        thumb = hands.sample_thumb_joints(pose, fingers, rng)
        # Centimeters: an open thumb leaves the palm, which is 5 wide; another one does not.
        assert (thumb[3][0] > 2.65) if pose.thumb == "out" else (thumb[3][0] < 5)
        if pose.thumb == "meets":
            assert np.linalg.norm(thumb[3] - fingers[0][3]) < 4


def test_a_hand_that_shows_no_digit():
    images, kinds = synthetic.render_images("signs_other", len(hands.NO_DIGITS), seed=5)
    assert sorted(kinds) == list(range(len(hands.NO_DIGITS))) == list(range(synthetic.RECIPES["signs_other"][2]))
    assert len({image.tobytes() for image in images}) == len(images)
    # None of these is how a digit is shown: other fingers, or the same ones crossed or seen from the tip.
    digits = {pose[1:] for pose in itertools.chain(*hands.POSES.values(), *hands.RARE_POSES.values())}
    same = {kind for kind, pose in hands.NO_DIGIT_POSES.items() if pose[1:] in digits}
    assert same == {"crossed fingers", "pointing at the camera"}
    # The seventh label of the set to learn from stands for any of them.
    assert synthetic.RECIPES["signs_and_others"][2] == len(hands.POSES) + 1
    any_kind = hands.render_hand(6, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    np.testing.assert_array_equal(any_kind, hands.render_no_digit(rng.integers(len(hands.NO_DIGITS)), rng))


@pytest.mark.parametrize("name", SIZES)
def test_the_sets_have_the_schema_and_sizes_of_the_photographs(name):
    train, test, classes = SIZES[name]
    load = {"happy": load_happy_dataset, "signs": load_signs_dataset}[name]
    data = load("synthetic")
    assert data.train_x.shape == (train, 64, 64, 3) and data.test_x.shape == (test, 64, 64, 3)
    for part, path in (("train", data.source.train), ("test", data.source.test)):
        assert load_h5(path, part)[2].tolist() == list(range(classes))
        assert is_synthetic(path)
    assert set(np.bincount(data.train_y)) == {train // classes} and set(np.bincount(data.test_y)) == {test // classes}
    assert len({image.tobytes() for image in np.concatenate([data.train_x, data.test_x])}) == train + test
    # No image is blank or of one color, and the classes do not come in blocks.
    assert data.train_x.reshape(train, -1).std(axis=1).min() > 8
    assert np.count_nonzero(np.diff(data.train_y)) > train / 4


def test_a_smile_is_wider_and_richer_in_contrast_than_other_mouths():
    u, v = rendering.pixel_grid(faces.MAP_SPAN, faces.MAP_SIZE)
    v = v + faces.MAP_MIDDLE
    width, teeth, contrast = ([[], []] for _ in range(3))
    for seed in range(60):
        for smiling in (0, 1):
            rng = np.random.default_rng(seed)
            person = faces.sample_person(rng)
            expression = faces.sample_expression(smiling, rng)
            _, albedo = faces.paint_face(person, expression, rng)
            mouth = (np.abs(u) < 3) & (np.abs(v - faces.MOUTH_V) < 1.5)
            width[smiling].append(expression["half_width"])
            teeth[smiling].append(faces.mouth_shape(u, v, person, expression)[2].sum())
            # Relative to the skin, whose color differs more between people than any expression changes it.
            contrast[smiling].append(albedo[1][mouth].std() / person["skin"][1])
    assert np.mean(width[1]) > 1.3 * np.mean(width[0])
    assert np.mean(teeth[1]) > 4 * np.mean(teeth[0]) > 0
    assert np.median(contrast[1]) > 1.4 * np.median(contrast[0])


def test_faces_are_near_and_far():
    views = [faces.sample_view(np.random.default_rng(seed)) for seed in range(400)]
    widths = np.array([view["width"] for view in views])
    # A head is about 16 cm wide: below 22 cm it fills the image, above 31 cm the shoulders are in it.
    assert 0.35 < np.mean(widths < 22) < 0.6
    assert 0.15 < np.mean(widths > 31) < 0.35
    # The mouth never leaves the image.
    below = [faces.MOUTH_V + view["center"][1] + view["width"] / 2 for view in views]
    assert min(below) > 1


@pytest.mark.parametrize("name, part", WIDE)
def test_the_wide_sets_stay_as_they_are(name, part):
    count, seed = synthetic.RECIPES[name][3][part]
    labels = np.random.default_rng(seed).permutation(np.arange(count) % synthetic.RECIPES[name][2])
    for index, expected in enumerate(WIDE[name, part]):
        image = synthetic.render_image((name, labels[index], seed, index))
        quarters = image.reshape(2, 32, 2, 32, 3).mean((1, 3, 4)).ravel()
        np.testing.assert_allclose(quarters, expected, atol=0.6)  # another processor rounds differently


@pytest.mark.parametrize("name", SIZES)
def test_each_sitting_shows_every_class(name):
    (count, seed), classes = synthetic.RECIPES[name][3]["train"], synthetic.RECIPES[name][2]
    labels = np.random.default_rng(seed).permutation(np.arange(count) % classes)
    for number in range(moments.SITTINGS):
        shown = np.bincount(labels[number :: moments.SITTINGS], minlength=classes)
        assert shown.min() > 0.25 * shown.mean()


def test_training_and_test_show_the_same_people():
    sittings = np.arange(3 * moments.SITTINGS) % moments.SITTINGS
    train, _ = synthetic.render_images("happy", len(sittings), seed=1)
    test, _ = synthetic.render_images("happy", moments.SITTINGS, seed=2)
    assert len({image.tobytes() for image in np.concatenate([train, test])}) == 4 * moments.SITTINGS
    distances = ((test[:, None].astype(float) - train) ** 2).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(sittings[distances.argmin(axis=1)], np.arange(len(test)))


def test_left_and_right_hands_are_shown_before_light_walls():
    images, _ = synthetic.render_images("signs", moments.SITTINGS, seed=1)
    # The brightest eighth of each image is wall.
    walls = np.quantile(images.mean(axis=3), 0.875, axis=(1, 2))
    assert walls.min() > 170 and np.ptp(walls) < 40
    assert {moments.hand_sitting(number).mirror for number in range(moments.SITTINGS)} == {-1, 1}


# The course's networks reach 92 to 97% on Happy House, and about 73% on SIGNS. With faces, the weights after one of the
# last epochs may be bad (batch normalization lags behind), so the mean of three seeds counts.
@pytest.mark.slow
@pytest.mark.parametrize("name, seeds, least, most", [("happy", 3, 0.88, 1.0), ("signs", 1, 0.66, 0.8)])
def test_the_easy_sets_are_as_easy_as_the_photographs_for_the_networks_of_the_course(name, seeds, least, most):
    train, test = (load_h5(path, part)[:2] for path, part in zip(synthetic.render_dataset(name), ("train", "test")))
    accuracies = [course_accuracy(name, train, test, seed) for seed in range(1, seeds + 1)]
    assert least <= np.mean(accuracies) <= most, accuracies


def train_and_evaluate(model, loss, optimizer, epochs, batches, x, y):
    """Train on `Batches`; return the accuracy on x and y."""
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
    steps = batches.steps_per_epoch
    model.fit(batches.dataset(), epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0)
    return model.evaluate(x, y, verbose=0)[1]


# Smiles are learned late, after dozens of epochs, and only with the script's own augmentation. Hands are learned faster
# than in their script if they are only mirrored, in small batches and with a high learning rate.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, script, epochs, batch_size, learning_rate",
    [("happy", "happy_sequential", 100, 32, 1e-3), ("signs", "signs_functional", 14, 16, 2e-3)],
)
def test_a_linear_classifier_stays_below_the_convnet_on_wide_sets(name, script, epochs, batch_size, learning_rate):
    import keras

    from support.training.augmentation import random_affine
    from support.training.batches import Batches

    script = importlib.import_module(script)
    keras.utils.set_random_seed(1)
    if supports_bfloat16():
        keras.mixed_precision.set_global_policy("mixed_bfloat16")  # faster, as in the scripts
    (train_x, train_y, _), (test_x, test_y, classes) = (
        load_h5(path, part) for path, part in zip(synthetic.render_dataset(f"{name}_wide"), ("train", "test"))
    )
    convnet = script.build_model()
    if name == "happy":
        loss, train_y, test_y = "binary_crossentropy", train_y.reshape(-1, 1), test_y.reshape(-1, 1)
    else:
        train_y, test_y = (one_hot(y, len(classes)) for y in (train_y, test_y))
        loss = "categorical_crossentropy"
    activation = "sigmoid" if name == "happy" else "softmax"
    linear = keras.Sequential(
        [
            keras.layers.Input((64, 64, 3)),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
            keras.layers.Flatten(),
            keras.layers.Dense(convnet.output_shape[1], activation=activation),
        ]
    )

    def batches(augment, epochs, batch_size):
        return Batches([(epochs, (train_x, train_y), augment)], epochs, batch_size, 1, len(train_x))

    plain = batches(random_affine, 20, 32)
    augment = script.weak_augmentation if name == "happy" else functools.partial(random_affine, flip=True)
    augmented = batches(augment, epochs, batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * augmented.steps_per_epoch)
    adam = keras.optimizers.Adam(schedule, use_ema=name == "happy", ema_momentum=0.98)
    linear_accuracy = train_and_evaluate(linear, loss, keras.optimizers.Adam(1e-4), 20, plain, test_x, test_y)
    convnet_accuracy = train_and_evaluate(convnet, loss, adam, epochs, augmented, test_x, test_y)
    print(f"\nSYNTHETIC {name}: linear {linear_accuracy:.3f}, convnet {convnet_accuracy:.3f}")
    assert linear_accuracy <= convnet_accuracy - 0.15
