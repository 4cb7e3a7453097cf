"""How far answers can be trusted: calibration, likeness, explanations, and the notes that travel with a model."""

import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

import cnn_utils as utils
import happy_sequential
import prediction
import runs
import signs_functional
import trust


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)


@pytest.fixture(params=[happy_sequential, signs_functional], ids=lambda script: script.__name__)
def model(request):
    keras.utils.set_random_seed(1)
    return request.param.build_model()


def noisy_answers(temperature, count=4000, classes=4):
    """Logits whose labels are drawn with the probabilities they stand for, then made too sure or too unsure."""
    rng = np.random.default_rng(3)
    sums = rng.normal(0, 2, (count, classes))
    labels = (trust.softmax(sums).cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return temperature * sums, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature):
    sums, labels = noisy_answers(temperature)
    assert trust.fit_temperature(sums, labels) == pytest.approx(temperature, rel=0.06)


def test_calibration_makes_the_stated_probabilities_truer():
    sums, labels = noisy_answers(3.0)
    before = trust.softmax(sums)
    after = trust.softmax(sums / trust.fit_temperature(sums, labels))
    assert trust.calibration_error(before, labels) > 0.15 > 0.03 > trust.calibration_error(after, labels)


def test_a_few_answers_make_nobody_certain_and_nobody_hopeless():
    sums = np.tile([[6.0, 0.0, 0.0]], (10, 1))
    all_right = trust.fit_temperature(sums, np.zeros(10, int))
    assert 0.5 < all_right < 2 and 0.9 < trust.softmax(sums[:1] / all_right).max() < 0.999
    mostly_wrong = trust.fit_temperature(sums, np.array([0, 1, 2, 1, 2, 1, 2, 1, 2, 1]))
    assert 2 < mostly_wrong < 5


def test_the_calibration_error_is_what_a_hand_count_gives():
    probabilities = np.array([[.95, .05], [.93, .07], [.35, .65], [.38, .62]])
    labels = np.array([0, 1, 1, 1])
    # Two answers of 0.94 on average, half of them right; two of 0.635, both right.
    assert trust.calibration_error(probabilities, labels) == pytest.approx((0.44 + 0.365) / 2)
    counts, said, right = trust.reliability(probabilities, labels)
    assert counts.tolist() == [0] * 6 + [2, 0, 0, 2]
    assert said[9] == pytest.approx(0.94) and right[9] == 0.5 and right[6] == 1 and np.isnan(said[0])


def test_the_temperature_becomes_a_part_of_the_model(model, pictures):
    labels = np.random.default_rng(1).integers(0, 2, 30)
    y = labels[:, None] if model.output_shape[-1] == 1 else utils.one_hot(labels, 6)
    before = utils.class_probabilities(model.predict_on_batch(pictures))
    temperature = trust.calibrate(model, pictures, y)
    after = utils.class_probabilities(model.predict_on_batch(pictures))
    assert temperature != pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(trust.undo_temperature(after, temperature), before, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))


def test_features_and_logits_give_the_models_own_answer(model, pictures):
    answers = trust.softmax(trust.logits(model, trust.features(model, pictures)))
    np.testing.assert_allclose(answers, utils.class_probabilities(model.predict_on_batch(pictures)), atol=1e-5)


def test_what_is_like_no_training_picture_is_found():
    rng = np.random.default_rng(0)
    kind = np.abs(rng.normal(1, 0.1, (200, 50)))
    familiar = trust.directions(kind).astype(np.float16)
    more = np.abs(rng.normal(1, 0.1, (20, 50)))
    other = np.abs(rng.normal(0, 1, (20, 50)))
    assert trust.unlikeness(other, familiar).min() > 5 * trust.unlikeness(more, familiar).max()
    # Ten copies of one picture are needed before that picture itself counts as seen.
    assert trust.unlikeness(other, np.vstack([familiar, *[trust.directions(other[:1])] * 9]))[0] > 0.05
    assert trust.unlikeness(other, np.vstack([familiar, *[trust.directions(other[:1])] * 10]))[0] < 0.001


def test_ten_views_are_the_picture_its_corners_and_their_mirror_images():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:4, :4] = 255       # the upper left corner, within the six rows and columns that are cut off elsewhere
    views = trust.views(picture)
    assert views.shape == (10, 64, 64, 3) and views.dtype == np.uint8
    np.testing.assert_array_equal(views[0], picture)
    np.testing.assert_array_equal(views[5:], views[:5, :, ::-1])
    assert [bool(view.any()) for view in views[:5]] == [True, True, False, False, False]


def test_grad_cam_finds_the_place_that_speaks_for_a_class():
    # A network that answers 1 by how bright the upper left is, and 0 by how bright the lower right is.
    inputs = keras.layers.Input((16, 16, 3))
    maps = keras.layers.AveragePooling2D(4)(inputs)
    flat = keras.layers.Flatten()(keras.layers.ReLU()(maps))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(flat))
    kernel = np.zeros((4, 4, 3, 2), np.float32)
    kernel[:2, :2, :, 1] = kernel[2:, 2:, :, 0] = 1
    model.layers[-1].set_weights([kernel.reshape(48, 2), np.zeros(2)])
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:8, :8] = 200
    heat = trust.grad_cam(model, picture, 1)
    assert heat.shape == (4, 4) and heat[:2, :2].min() == 1 and heat[2:].max() == heat[:, 2:].max() == 0


@pytest.mark.parametrize("label", [0, 1])
def test_grad_cam_works_on_each_network_as_it_was_saved(model, pictures, tmp_path, label):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    heat = trust.grad_cam(loaded, pictures[0], label)
    assert heat.shape == (4, 4) and heat.min() >= 0 and (heat.max() == 1 or not heat.any())
    assert prediction.heat_over(loaded, pictures[0], label).shape == (256, 256, 3)


def test_notes_travel_inside_the_model_file(model, pictures, tmp_path):
    classes = ["cat", "dög"] if model.output_shape[-1] == 1 else list("abcdef")
    familiar = trust.familiar_features(model, pictures, seed=1)
    notes = {"classes": classes, "data": "folder", "dry_run": False, "temperature": 1.5, "usual": 0.3}
    runs.save_model(model, tmp_path / "model.keras", notes, familiar)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    loaded, found = prediction.load_trained_model(tmp_path, model.name, ("x", "y"))
    np.testing.assert_array_equal(found.pop("familiar"), familiar)
    assert found == notes
    np.testing.assert_allclose(loaded.predict_on_batch(pictures), model.predict_on_batch(pictures), atol=1e-5)
    assert zipfile.ZipFile(tmp_path / "model.keras").testzip() is None


def test_a_model_without_notes_answers_with_the_usual_names(model, tmp_path):
    model.save(tmp_path / "model.keras")
    names = ("no", "yes") if model.output_shape[-1] == 1 else signs_functional.CLASSES
    assert prediction.load_trained_model(tmp_path, model.name, names)[1]["classes"] == names
    with pytest.raises(utils.InputError, match="one output for each of 3 classes.*Received: a model with"):
        prediction.load_trained_model(tmp_path, model.name, ("a", "b", "c"))


def told(capsys, tmp_path, model, pictures, usual, **options):
    notes = {"classes": tuple("abcdef"), "data": "real", "usual": usual,
             "familiar": trust.familiar_features(model, pictures, 1)}
    Image.fromarray(pictures[0]).save(tmp_path / "one.png")
    utils.use_headless_figures(show=False)
    assert prediction.predict_images(model, notes, [tmp_path / "one.png"], tmp_path / "out", **options) == 0
    return capsys.readouterr().out


def test_an_unlike_picture_and_a_low_probability_are_not_guessed_at(capsys, tmp_path, pictures):
    keras.utils.set_random_seed(1)
    model = signs_functional.build_model()
    printed = told(capsys, tmp_path, model, pictures, usual=2.0)
    assert "one.png: not sure, less than 70%; at best " in printed
    assert "one.png: not sure, less than 70% and unlike the pictures" in told(capsys, tmp_path, model, pictures, -1.0)
    head = model.layers[-1]
    kernel, bias = head.get_weights()
    head.set_weights([kernel, np.array([0, 0, 50, 0, 0, 0])])
    assert "one.png: c (100.0%); what the model saw" in told(capsys, tmp_path, model, pictures, 2.0, tta=True,
                                                              explain=True)
    assert (tmp_path / "out" / "predictions" / "explanations.png").exists()
