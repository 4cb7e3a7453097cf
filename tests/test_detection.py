"""--crop auto: hands and faces are found where they are, and nothing is found where there is nothing."""

import importlib.util
import types

import numpy as np
import pytest
from PIL import Image, ImageDraw

from basics.errors import InputError
from datasets.images import read_photo
from datasets.synthetic import render_images
from support.prediction import detection
from support.prediction.detection import face_finder, find_face, find_hand

needs_opencv = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed")


def intersection_over_union(one, other):
    """Return the overlap of two boxes (left, top, right, bottom), 0 to 1."""
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    overlap = max(0, width) * max(0, height)
    return overlap / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - overlap)


def on_a_wall(image, left, top, side, size=(640, 480)):
    """Return a photograph with a SYNTHETIC image at a place, in front of a wall of the color of its upper edge."""
    photo = Image.new("RGB", size, tuple(map(int, np.median(image[0], axis=0))))
    photo.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), (left, top))
    return photo


def squares(find):
    """Return a function for `read_photo` that finds the square of `find` or none."""

    def found(image, least):
        square = find(image)
        return [] if square is None else [square]

    return found


def crops(paths_and_boxes, find):
    """Return how well each crop agrees with the place where the image was put, 0 if nothing was found."""
    photos = [(read_photo(path, 64, "auto", squares(find)), box) for path, box in paths_and_boxes]
    return [intersection_over_union(photo.box, box) if photo.found else 0 for photo, box in photos]


def photographs(folder, name, count, seed, bottom):
    """Save SYNTHETIC images at random places in larger photographs; return their paths and places."""
    rng, saved = np.random.default_rng(seed), []
    for number, image in enumerate(render_images(name, count, seed)[0]):
        side = int(rng.integers(150, 330))
        left, top = int(rng.integers(0, 640 - side)), 480 - side if bottom else int(rng.integers(0, 480 - side))
        on_a_wall(image, left, top, side).save(folder / f"{number}.png")
        saved.append((folder / f"{number}.png", (left, top, left + side, top + side)))
    return saved


def test_synthetic_hands_are_found_in_larger_photographs(tmp_path):
    agreement = crops(photographs(tmp_path, "signs", 24, 301, bottom=True), find_hand)
    # Hands are larger in some SYNTHETIC images than in others, so a crop never agrees exactly.
    assert np.mean(agreement) > 0.6 and np.mean(np.array(agreement) > 0.4) > 0.9


def drawn_hand(turn):
    """Draw five fingers, a palm and a long arm; return it turned by quarters, and the hand's box without the arm."""
    image = Image.new("RGB", (400, 400), (190, 195, 200))
    draw, skin = ImageDraw.Draw(image), (205, 140, 105)
    draw.rectangle((178, 200, 222, 400), fill=skin)  # the arm
    draw.ellipse((160, 130, 240, 220), fill=skin)
    for x in (163, 184, 205, 226):
        draw.rectangle((x, 60, x + 13, 170), fill=skin)
    hand = np.zeros((400, 400), bool)
    hand[60:230, 160:241] = True
    rows, columns = np.nonzero(np.rot90(hand, turn))
    return np.rot90(np.asarray(image), turn), (columns.min(), rows.min(), columns.max(), rows.max())


@pytest.mark.parametrize("turn", range(4))
def test_the_arm_is_left_out_from_whichever_side_it_comes(turn):
    image, (left, top, right, bottom) = drawn_hand(turn)
    x, y, side = find_hand(image)
    assert side / detection.HAND_MARGIN == pytest.approx(max(right - left, bottom - top), rel=0.15)
    assert abs(x - (left + right) / 2) < 20 and abs(y - (top + bottom) / 2) < 25


def test_an_image_that_is_as_large_as_the_network_takes_stays_whole(tmp_path):
    for image in render_images("signs", 12, 302)[0]:
        Image.fromarray(image).save(tmp_path / "tight.png")
        photo = read_photo(tmp_path / "tight.png", 64, "auto", squares(find_hand))
        assert photo.found and photo.box == (0, 0, 64, 64)
        np.testing.assert_array_equal(photo.pixels, image)


def test_a_photograph_of_many_megapixels_is_cropped_in_its_own_pixels(tmp_path):
    image, (left, top, right, bottom) = drawn_hand(0)
    small, large = tmp_path / "small.png", tmp_path / "large.jpg"
    Image.fromarray(image).save(small)
    Image.fromarray(image).resize((3200, 3200), Image.Resampling.BICUBIC).save(large)
    one, other = (read_photo(path, 64, "auto", squares(find_hand)) for path in (small, large))
    assert max(other.overview.shape) == 400 and other.scale == 1 / 8
    assert intersection_over_union(one.box, [edge / 8 for edge in other.box]) > 0.9


def red_wall():
    image, _ = drawn_hand(0)
    wall = (image == (190, 195, 200)).all(axis=2)
    return np.where(wall[..., None], np.uint8([200, 95, 40]), image)


@pytest.mark.parametrize(
    "image",
    [
        np.full((300, 400, 3), 200, np.uint8),
        np.random.default_rng(0).integers(150, 160, (300, 400, 3), np.uint8),
        np.repeat(drawn_hand(0)[0][..., :1], 3, axis=2),
        red_wall(),
        np.zeros((1, 1, 3), np.uint8),
        np.uint8([[[255, 0, 0], [0, 0, 255]]]),
    ],
    ids=["a wall", "a noisy wall", "a gray hand", "a wall redder than skin", "one pixel", "two pixels"],
)
def test_nothing_is_found_where_skin_cannot_be_told_from_the_wall(image):
    assert find_hand(image) is None


def test_without_a_subject_the_center_is_used(tmp_path):
    Image.new("RGB", (300, 200), (90, 90, 90)).save(tmp_path / "wall.png")
    photo = read_photo(tmp_path / "wall.png", 64, "auto", squares(find_hand))
    assert not photo.found and photo.box == (50, 0, 250, 200)


@needs_opencv
def test_synthetic_faces_are_found_in_larger_photographs(tmp_path):
    agreement = crops(photographs(tmp_path, "happy", 24, 303, bottom=False), face_finder())
    # The crop is tighter than the SYNTHETIC images are, so 0.6 is about the best. OpenCV has learned from photographs,
    # and does not take every drawn face for one.
    assert np.mean(np.array(agreement) > 0.35) > 0.6


@needs_opencv
def test_no_face_is_found_in_a_wall():
    assert find_face(np.random.default_rng(0).integers(90, 120, (300, 400, 3), np.uint8)) is None


def test_a_missing_package_for_faces_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match='Finding faces needs cv2: pip install "opencv-python-headless>=4.14,<5"'):
        face_finder()


def test_an_opencv_without_detectors_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", types.SimpleNamespace(__version__="5.0.1"))
    with pytest.raises(InputError, match=r'OpenCV 5\.0\.1 comes without .*pip install "opencv-python-headless<5"'):
        detection._cascades.__wrapped__()
