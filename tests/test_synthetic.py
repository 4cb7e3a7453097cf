"""The SYNTHETIC sets: the same bytes every time, the schema of the photographs, and not trivial."""

import errno
import functools
import hashlib
import os

import h5py
import numpy as np
import pytest
from PIL import Image

import augmentation
import cnn_utils as utils
from datasets import synthetic

SIZES = {"happy": (600, 150, 2), "signs": (1080, 120, 6)}


@pytest.fixture
def small_recipes(monkeypatch):
    """Twelve training and six test pictures of each set."""
    for name, (module, function, classes, parts) in synthetic.RECIPES.items():
        small = {part: (12 if part == "train" else 6, seed) for part, (_, seed) in parts.items()}
        monkeypatch.setitem(synthetic.RECIPES, name, (module, function, classes, small))


@pytest.mark.parametrize("name", SIZES)
def test_a_second_rendering_gives_the_same_bytes(tmp_path, small_recipes, name):
    hashes = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in
                       synthetic.render_dataset(name, folder)])
    assert hashes[0] == hashes[1] and hashes[0][0] != hashes[0][1]


def test_files_are_kept_until_the_renderer_changes(tmp_path, small_recipes, monkeypatch):
    train, _ = synthetic.render_dataset("signs", tmp_path)
    made = train.stat().st_mtime_ns
    synthetic.render_dataset("signs", tmp_path)
    assert train.stat().st_mtime_ns == made
    monkeypatch.setattr(synthetic, "fingerprint", lambda module: "another renderer")
    synthetic.render_dataset("signs", tmp_path)
    assert train.stat().st_mtime_ns != made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test_signs.h5", "train_signs.h5"]


def test_the_command_renders_and_saves_sheets(tmp_path, small_recipes, monkeypatch, capsys):
    monkeypatch.setattr(synthetic, "writable_folder", lambda: tmp_path)
    synthetic.main(["signs", "--sheet", str(tmp_path / "sheets")])
    assert capsys.readouterr().out.count("SYNTHETIC") == 1
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "synthetic_signs.png"))
    assert sheet.shape[2] == 3 and sheet.shape[0] > 6 * 100
    assert np.ptp(sheet[:24]) > 100 and np.ptp(sheet[24:]) > 100      # the title and the pictures


def test_a_damaged_file_is_rendered_again(tmp_path, small_recipes):
    train, _ = synthetic.render_dataset("happy", tmp_path)
    good = train.read_bytes()
    train.write_bytes(good[:1000])
    synthetic.render_dataset("happy", tmp_path)
    assert train.read_bytes() == good


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, small_recipes, monkeypatch):
    def full(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(utils.InputError, match="train_happy.h5 cannot be written: .* Received: No space left"):
        synthetic.render_dataset("happy", tmp_path)
    assert not list(tmp_path.iterdir())


def test_each_picture_has_random_numbers_of_its_own():
    few, labels = synthetic.render_pictures("signs", 6, seed=5)
    again, _ = synthetic.render_pictures("signs", 6, seed=5)
    other, _ = synthetic.render_pictures("signs", 6, seed=6)
    np.testing.assert_array_equal(few, again)
    assert len({picture.tobytes() for picture in np.concatenate([few, other])}) == 12
    assert sorted(labels) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", SIZES)
def test_the_sets_have_the_schema_and_sizes_of_the_photographs(name):
    train, test, classes = SIZES[name]
    load = {"happy": utils.load_happy_dataset, "signs": utils.load_signs_dataset}[name]
    train_x, train_y, test_x, test_y, listed = load("synthetic")
    assert train_x.shape == (train, 64, 64, 3) and test_x.shape == (test, 64, 64, 3)
    assert listed.tolist() == list(range(classes))
    assert set(np.bincount(train_y)) == {train // classes} and set(np.bincount(test_y)) == {test // classes}
    assert len({picture.tobytes() for picture in np.concatenate([train_x, test_x])}) == train + test
    # No picture is blank, none is of one colour, and the classes do not come in blocks.
    assert train_x.reshape(train, -1).std(axis=1).min() > 8
    assert np.count_nonzero(np.diff(train_y)) > train / 4
    with h5py.File(utils.find_data(name, "synthetic").train) as file:
        assert file.attrs["data"] == "SYNTHETIC"


def accuracy(model, loss, optimizer, epochs, batches, x, y):
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
    model.fit(batches, shuffle=False, epochs=epochs, verbose=0)
    return model.evaluate(x, y, verbose=0)[1]


# Smiles are learnt late, after dozens of epochs, and by the script's own recipe only. For hands, pictures that are
# mirrored only, small batches and large steps do sooner what their recipe does.
@pytest.mark.parametrize("name, script, epochs, batch_size, learning_rate",
                         [("happy", "happy_sequential", 100, 32, 1e-3), ("signs", "signs_functional", 6, 16, 2e-3)])
def test_a_linear_classifier_stays_well_below_the_convnet(name, script, epochs, batch_size, learning_rate):
    import keras

    script = __import__(script)
    keras.utils.set_random_seed(1)
    if utils.computes_bfloat16():
        keras.mixed_precision.set_global_policy("mixed_bfloat16")       # faster, as in the scripts
    train_x, train_y, test_x, test_y, classes = utils.load_files(utils.find_data(name, "synthetic"), SIZES[name][2])
    convnet = script.build_model()
    if convnet.output_shape[1] == 1:
        loss, train_y, test_y = "binary_crossentropy", train_y.reshape(-1, 1), test_y.reshape(-1, 1)
    else:
        loss, train_y, test_y = "categorical_crossentropy", *(utils.one_hot(y, len(classes)) for y in (train_y, test_y))
    linear = keras.Sequential([keras.layers.Input((64, 64, 3)), keras.layers.Rescaling(1 / 127.5, offset=-1),
                               keras.layers.Flatten(),
                               keras.layers.Dense(convnet.output_shape[1],
                                                  activation="sigmoid" if len(classes) == 2 else "softmax")])
    plain = utils.training_batches(train_x, train_y, 32, 1, augmentation.move)
    change = script.augment if name == "happy" else functools.partial(augmentation.move, flip=True)
    changed = utils.training_batches(train_x, train_y, batch_size, 1, change)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(changed))
    adam = keras.optimizers.Adam(schedule, use_ema=name == "happy", ema_momentum=0.98)
    of_linear = accuracy(linear, loss, keras.optimizers.Adam(1e-4), 20, plain, test_x, test_y)
    of_convnet = accuracy(convnet, loss, adam, epochs, changed, test_x, test_y)
    print(f"\nSYNTHETIC {name}: linear {of_linear:.3f}, convnet {of_convnet:.3f}")
    assert of_linear <= of_convnet - 0.15
