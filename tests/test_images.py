"""Reading one image: what `read_image` makes of every kind of file, and what it refuses."""

import base64
import importlib.util
import zlib

import numpy as np
import pytest
from PIL import Image

from basics.errors import InputError
from benchmarks import formats
from datasets import image_files
from datasets.folders import images_in
from datasets.images import read_image

QUADRANTS = {
    "top left": (200, 40, 40),
    "top right": (40, 200, 40),
    "bottom left": (40, 40, 200),
    "bottom right": (220, 220, 60),
}


def four_colors(width=80, height=80):
    """Return an image whose corners show which way up it is."""
    image = Image.new("RGB", (width, height))
    for place, color in QUADRANTS.items():
        box = (width // 2 if "right" in place else 0, height // 2 if "bottom" in place else 0)
        image.paste(color, (*box, box[0] + width // 2, box[1] + height // 2))
    return image


def corners(pixels):
    """Return the colors at the four corners, with the keys of QUADRANTS."""
    high, low = len(pixels) // 8, -len(pixels) // 8
    return {
        "top left": pixels[high, high],
        "top right": pixels[high, low],
        "bottom left": pixels[low, high],
        "bottom right": pixels[low, low],
    }


def assert_upright(pixels, tolerance):
    for place, color in corners(pixels).items():
        np.testing.assert_allclose(color.astype(int), QUADRANTS[place], atol=tolerance, err_msg=place)


# Orientation 1 is stored as it is.
STORED = {1: None, **formats.STORED}


@pytest.mark.parametrize("orientation", STORED)
def test_a_photo_is_rotated_as_its_exif_data_say(tmp_path, orientation):
    image = four_colors()
    if STORED[orientation] is not None:
        image = image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    assert_upright(read_image(tmp_path / "photo.jpg", 64), tolerance=12)


def test_a_large_photo_is_cropped_to_its_center_not_squeezed(tmp_path):
    image = Image.new("RGB", (4032, 3024), (250, 0, 250))
    image.paste(four_colors(3024, 3024), ((4032 - 3024) // 2, 0))
    image.save(tmp_path / "phone.jpg", quality=90)
    pixels = read_image(tmp_path / "phone.jpg", 64)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert_upright(pixels, tolerance=12)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_transparent_parts_become_white(tmp_path, mode):
    image = four_colors().convert("LA" if mode == "LA" else "RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 40, 80))  # the left half is invisible
    image.putalpha(alpha)
    if mode == "palette":
        image = image.quantize()
    image.save(tmp_path / "image.png")
    found = corners(read_image(tmp_path / "image.png", 64))
    np.testing.assert_allclose(found["top left"], 255, atol=2)
    np.testing.assert_allclose(found["bottom left"], 255, atol=2)
    assert found["top right"].max() < 230


def test_cmyk_becomes_rgb(tmp_path):
    four_colors().convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert_upright(read_image(tmp_path / "print.jpg", 64), tolerance=16)


def test_sixteen_bit_gray_is_scaled_not_cut_off(tmp_path):
    ramp = np.linspace(0, 65535, 80).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (80, 1))).save(tmp_path / "scan.png")
    pixels = read_image(tmp_path / "scan.png", 80)
    np.testing.assert_allclose(pixels[40, :, 0], ramp / 257, atol=1)


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_floating_point_tiffs_are_scaled_by_their_range(tmp_path, white):
    ramp = np.linspace(0, white, 80, dtype=np.float32)
    Image.fromarray(np.tile(ramp, (80, 1))).save(tmp_path / "float.tif")
    np.testing.assert_allclose(read_image(tmp_path / "float.tif", 80)[40, :, 1], ramp / white * 255, atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LAB"])
def test_every_other_mode_becomes_rgb(tmp_path, mode):
    image = four_colors() if mode == "LAB" else four_colors().convert(mode)
    if mode == "LAB":
        image = Image.merge("LAB", image.split())  # Pillow cannot convert RGB to LAB, but reads such files
    image.save(tmp_path / "image.tif")
    pixels = read_image(tmp_path / "image.tif", 64)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8 and np.ptp(pixels) > 50


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    four_colors().save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (80, 80))])
    assert_upright(read_image(tmp_path / "moving.gif", 64), tolerance=20)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000)])
def test_tiny_and_thin_images_are_scaled(tmp_path, size):
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "thin.png")
    np.testing.assert_array_equal(read_image(tmp_path / "thin.png", 64), np.full((64, 64, 3), (10, 200, 30)))


def test_an_image_of_the_right_size_is_not_changed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "seen.png")
    np.testing.assert_array_equal(read_image(tmp_path / "seen.png", 64), pixels)


def truncated_jpeg(path):
    four_colors(600, 600).save(path, quality=90)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda path: None, "does not exist. Check the name"),
        (lambda path: path.write_bytes(b""), "is an empty file. Use a JPEG, PNG, WebP or TIFF file"),
        (lambda path: path.write_text("not an image"), "is not an image that can be read. Use a JPEG"),
        (lambda path: path.mkdir(), "is a folder, not an image"),
        (truncated_jpeg, "is damaged: "),
    ],
)
def test_what_is_not_an_image_is_refused_with_the_reason(tmp_path, make, reason):
    path = tmp_path / "me.jpg"
    make(path)
    with pytest.raises(InputError) as error:
        read_image(path, 64)
    assert str(error.value).startswith(f"{path} {reason}")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (3000, 3000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(InputError, match="has too many pixels .got .*9000000 pixels.*Scale it down"):
        read_image(tmp_path / "bomb.png", 64)


def test_an_image_with_damaged_exif_data_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    four_colors().save(tmp_path / "photo.jpg", exif=exif, quality=95)
    data = (tmp_path / "photo.jpg").read_bytes()
    begin = data.index(b"Exif\0\0") + 6
    (tmp_path / "photo.jpg").write_bytes(data[:begin] + b"\xff" * 20 + data[begin + 20 :])
    assert_upright(read_image(tmp_path / "photo.jpg", 64), tolerance=12)


@pytest.mark.parametrize(
    "crop, places", [("stretch", list(QUADRANTS)), ((0, 0, 40), ["top left"] * 4), ((80, 0, 40), ["top right"] * 4)]
)
def test_the_crop_can_be_chosen(tmp_path, crop, places):
    four_colors(160, 80).save(tmp_path / "wide.png")
    found = corners(read_image(tmp_path / "wide.png", 64, crop))
    for color, place in zip(found.values(), places):
        np.testing.assert_allclose(color.astype(int), QUADRANTS[place], atol=2)


def test_a_crop_outside_the_image_is_refused(tmp_path):
    four_colors(160, 80).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match="within .*wide.png, which has 160 x 80 pixels .got 100,0,70"):
        read_image(tmp_path / "wide.png", 64, (100, 0, 70))


# Four colors as a HEIC image of 64 x 64 pixels, compressed, because no package that this project uses can write one.
HEIC = (
    "eNpjYGCQSSupLMhIzUxmAILczDRDEDs3MzGNgYExLDe1JJEBAhQzUnKKoGyGgszkEgY0oJSZkw82xMWBgREIgYCxCkIDgQMQK2dm"
    "5qWBeSBRUSAnlQnKyyhLNgQx+QoyS3LhSq5lFhQVAOntmQXJ+UC6AqjMmZEZJDQBrEjuA8Ofvz9+MDDwMycAdUg4MPIw/v8PUsAM"
    "UsEMQnK7mBwSgZLaToyMaDILFBpZp73y1FyXxyTFwwESOgEiOBySgOrZXRgPFm1QAjlcODk/pygvOacCKMzLwNYAFBLJLC5IRfIb"
    "CAsUZFZkggSYOTiApjGIZxbkwoIPGCIsjUzMLECmR25KIij0bDQY13M+ULQsjf//J9P+/+9f/Iq/WSXT59VpL5r//dX6/x8/q3P+"
    "/7HBhf1T0cb6dw+Nlf9/WhZZv+Ri0+8pJxsAlMtixw=="
)


def test_a_heic_photo_is_read_or_the_missing_package_named(tmp_path, monkeypatch):
    (tmp_path / "phone.heic").write_bytes(zlib.decompress(base64.b64decode(HEIC)))
    assert images_in(tmp_path) == [tmp_path / "phone.heic"]
    if importlib.util.find_spec("pi_heif") is not None:
        assert_upright(read_image(tmp_path / "phone.heic", 64), tolerance=12)
        (tmp_path / "damaged.heic").write_bytes((tmp_path / "phone.heic").read_bytes()[:300])
        with pytest.raises(InputError, match="damaged.heic is damaged: "):
            read_image(tmp_path / "damaged.heic", 64)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match='phone.heic: a HEIC image needs pi_heif: pip install "pi-heif>=1.4,<2"'):
        read_image(tmp_path / "phone.heic", 64)


def test_an_image_that_does_not_fit_into_memory_is_not_called_damaged(tmp_path, monkeypatch):
    four_colors().save(tmp_path / "large.png")

    def refused(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(image_files, "open_png", refused)
    with pytest.raises(InputError, match="large.png has too many pixels .got MemoryError.. Scale it down"):
        read_image(tmp_path / "large.png", 64)
