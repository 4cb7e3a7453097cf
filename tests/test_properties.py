"""Whatever bytes a file holds, and whatever a folder is filled with: a result or an `InputError`, nothing else."""

import csv
import itertools
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from basics.errors import InputError, printable
from basics.files import csv_table
from benchmarks.fuzz import FEATURES, PIXELS, check, good_files, good_h5, good_images
from datasets.cache import open_cache
from datasets.hdf5 import load_h5
from datasets.images import read_image
from support.evaluation.calibration import calibration_error, fit_temperature
from support.evaluation.outputs import softmax
from support.training.transfer import read_features, record_type

EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
H5, IMAGES = list(good_h5()), list(good_images())
CACHES = [(reader, content) for reader in ("cache", "features") for content in good_files(reader)]


@st.composite
def damaged(draw, originals):
    """A good file with some bytes changed, and perhaps cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 12))):
        # Headers come first, and changes there reach more code.
        place = draw(st.one_of(st.integers(0, min(200, len(data) - 1)), st.integers(0, len(data) - 1)))
        data[place] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


@EXAMPLES
@given(data=st.one_of(damaged(H5), st.binary(max_size=300)))
def test_an_h5_file_is_read_or_refused(tmp_path, data):
    (tmp_path / "train.h5").write_bytes(data)
    try:
        x, y, classes = load_h5(tmp_path / "train.h5", "train")
    except InputError as error:
        assert str(tmp_path / "train.h5") in str(error) and "Download the file again" in str(error)
    else:
        assert x.shape == (len(y), 64, 64, 3) and x.dtype == np.uint8 and y.dtype == np.int64
        assert ((y >= 0) & (y < len(classes))).all()


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it repairs
@EXAMPLES
@given(data=st.one_of(damaged(IMAGES), st.binary(max_size=300)))
def test_an_image_is_read_or_refused(tmp_path, data):
    (tmp_path / "me.png").write_bytes(data)
    try:
        pixels = read_image(tmp_path / "me.png", 64)
    except InputError as error:
        assert str(error).startswith(f"{tmp_path / 'me.png'} ")
    else:
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8


@pytest.mark.filterwarnings("ignore")  # NumPy's, about headers of other versions
@EXAMPLES
@given(st.data())
def test_a_damaged_cache_is_used_or_computed_again(tmp_path, data):
    reader, content = data.draw(st.sampled_from(CACHES))
    (tmp_path / "cache.npy").write_bytes(data.draw(damaged([content])))
    check(reader, tmp_path / "cache.npy")


@pytest.mark.parametrize("shape", ["(10**9,)", "(9999999999999,)", "(2,)", "(1, 1)", "()", "(1,", "9" * 5000])
@pytest.mark.parametrize("reader", ["cache", "features"])
def test_a_cache_that_declares_another_size_than_it_has_is_computed_again(tmp_path, reader, shape):
    content = [*good_files(reader)][1]
    length = int.from_bytes(content[8:10], "little")
    header = re.sub(rb"'shape': \(1,\)", f"'shape': {shape}".encode(), content[10 : 10 + length])
    data = content[:8] + len(header).to_bytes(2, "little") + header + content[10 + length :]
    (tmp_path / "cache.npy").write_bytes(data)
    if reader == "cache":
        assert open_cache(tmp_path / "cache.npy", PIXELS) is None
    else:
        assert read_features(tmp_path / "cache.npy", record_type(FEATURES)) == {}


@EXAMPLES
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    crop=st.one_of(st.sampled_from(["center", "stretch"]), st.tuples(*[st.integers(0, 310)] * 2, st.integers(1, 310))),
)
def test_every_crop_gives_a_square_or_is_refused(tmp_path, width, height, crop):
    Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / "me.bmp")
    inside = isinstance(crop, str) or (crop[0] + crop[2] <= width and crop[1] + crop[2] <= height)
    try:
        pixels = read_image(tmp_path / "me.bmp", 64, crop)
    except InputError:
        assert not inside
    else:
        assert inside and (pixels == (10, 20, 30)).all() and pixels.shape == (64, 64, 3)


@EXAMPLES
@given(rows=st.lists(st.lists(st.floats(-60, 60), min_size=3, max_size=3), min_size=2, max_size=40), data=st.data())
def test_calibration_keeps_every_prediction_and_stays_finite(rows, data):
    logits = np.array(rows)
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(logits), max_size=len(logits))))
    temperature = fit_temperature(logits, labels)
    assert 0.1 <= temperature <= 10
    calibrated = softmax(logits / temperature)
    assert np.isfinite(calibrated).all() and np.allclose(calibrated.sum(axis=1), 1)
    clear = np.sort(logits, axis=1)
    clear = clear[:, 2] - clear[:, 1] > 1e-6
    assert (calibrated.argmax(axis=1) == logits.argmax(axis=1))[clear].all()
    assert 0 <= calibration_error(calibrated, labels) <= 1


# Any characters, also those that stand for the bytes of a name that is not UTF-8; and what spreadsheets run.
CELLS = st.text(st.characters()) | st.text("=+-@1,\"'\n\r\udcff", max_size=5)


@EXAMPLES
@given(rows=st.lists(st.lists(CELLS | st.integers() | st.floats(-1e9, 1e9), min_size=2, max_size=4), max_size=6))
def test_a_table_comes_back_as_it_was_written_without_formulas(tmp_path, rows):
    with csv_table(tmp_path / "table.csv") as write_row:
        for row in rows:
            write_row(row)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert [len(row) for row in found] == [len(row) for row in rows]
    for cell, value in zip(itertools.chain(*found), itertools.chain(*rows)):
        assert cell in (printable(str(value)), f"'{printable(str(value))}")
        assert cell[:1] not in ("=", "+", "-", "@") or re.fullmatch(r"[+-][\d.]+(e[+-]\d+)?", cell)
        assert isinstance(value, str) or float(cell) == value
