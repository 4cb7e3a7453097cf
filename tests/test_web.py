"""The live page of --export web: what is refused, and, in a browser, that it answers as the command line does."""

import base64
import contextlib
import functools
import http.server
import json
import re
import threading

import keras
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from conftest import random_weights
from keras import layers
from PIL import Image

import cnn_utils as utils
import happy_sequential
import signs_functional
from datasets.hdf5 import load_h5
from datasets.images import read_image
from datasets.synthetic import render_dataset
from support.calibration import class_probabilities, features, logits
from support.errors import InputError
from support.export import export_model
from support.ood import feature_bank, knn_distance, ood_threshold
from support.predict import CONFIDENCE
from support.pretrained import weights_file
from support.web import MAX_BYTES, TOLERANCE

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

TRICKY = ("<b>cat</b>", "\"dog\" & 'fox'", "</script>{{ bird }}")


def every_layer(classes):
    """Return a network with every layer that the page knows, and every option."""
    return keras.Sequential(
        [
            layers.Input((64, 64, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 3, activation="relu", use_bias=False),
            layers.AveragePooling2D(2),
            layers.Conv2D(8, (2, 4), padding="same"),
            layers.BatchNormalization(scale=False),
            layers.ReLU(),
            layers.MaxPooling2D(3),
            layers.Conv2D(40, 1),
            layers.BatchNormalization(center=False),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(24, "relu", use_bias=False),
            layers.Dense(classes, "softmax"),
        ],
        name="every_layer",
    )


def synthetic_images(name):
    """Return the SYNTHETIC training and test images of "happy" or "signs"."""
    return [load_h5(path, part)[0] for path, part in zip(render_dataset(name), ("train", "test"))]


def random_model(model, images, spread):
    """Give a network random weights that make it sometimes sure, sometimes not: logits of a standard deviation."""
    rng = np.random.default_rng(3)
    for layer in model.layers:
        layer.set_weights(random_weights(layer, rng))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images.astype(np.float32), training=True)  # the averages of these images
    *_, head = model.layers
    kernel, bias = head.get_weights()
    found = features(model, images) @ kernel
    scale = spread / found.std(axis=0).mean()
    head.set_weights([kernel * scale, bias - scale * np.median(found, axis=0)])
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that exports the page of a network once: its path, the model, the metadata, 100 images."""

    @functools.cache
    def export(name):
        build, classes, data, dataset, spread = {
            "happy": (lambda: happy_sequential.build_model(), utils.HAPPY_CLASSES, "synthetic", "happy", 2),
            "trained": (None, utils.HAPPY_CLASSES, "synthetic", "happy", None),
            "own": (lambda: signs_functional.build_model(3), TRICKY, "folder", "signs", 1.5),
            "every layer": (lambda: every_layer(4), tuple("abcd"), "real", "signs", 1),
        }[name]
        train_x, test_x = synthetic_images(dataset)
        model = (
            random_model(build(), test_x, spread)
            if build
            else keras.models.load_model(weights_file("synthetic", "happy_sequential"))
        )
        bank = feature_bank(model, train_x[:200], seed=1)
        metadata = {"classes": list(classes), "data": data, "dry_run": False, "confidence": CONFIDENCE}
        metadata |= {"feature_bank": bank, "ood_threshold": ood_threshold(model, train_x[200:300], bank) * 0.9}
        folder = tmp_path_factory.mktemp("page")
        assert export_model(model, ["web"], folder, metadata)["web"] <= TOLERANCE
        return folder / "live.html", model, metadata, test_x[:100]

    return export


@pytest.fixture(scope="module")
def faces(exported):
    """Return a face that makes the happy network sure of a smile, and one that makes it sure of none."""
    _, model, metadata, images = exported("trained")
    found = features(model, images)
    usual = knn_distance(found, metadata["feature_bank"]) < metadata["ood_threshold"] - 0.03
    values = np.where(usual, logits(model, found)[:, 1], 0)
    assert values.max() > 2 and values.min() < -2
    return images[values.argmax()], images[values.argmin()]


@pytest.fixture(scope="module")
def browser(faces, tmp_path_factory):
    """Return a browser whose camera shows two SYNTHETIC faces in turn, three seconds each."""
    folder = tmp_path_factory.mktemp("browser")
    width, height, rate = 640, 480, 10
    with open(folder / "camera.y4m", "wb") as video:
        video.write(f"YUV4MPEG2 W{width} H{height} F{rate}:1 Ip A1:1 C420jpeg\n".encode())
        for face in faces:
            frame = Image.new("RGB", (width, height), "gray")
            frame.paste(Image.fromarray(face).resize((height, height), Image.Resampling.BICUBIC), (80, 0))
            y, *colours = frame.convert("YCbCr").split()
            planes = [y, *(colour.resize((width // 2, height // 2), Image.Resampling.BOX) for colour in colours)]
            # Video keeps brightness in 16-235 and colours in 16-240.
            planes = [plane.point(lambda v, top=top: 16 + v * top / 255) for plane, top in zip(planes, (219, 224, 224))]
            video.write((b"FRAME\n" + b"".join(plane.tobytes() for plane in planes)) * 3 * rate)
    browser = Browser(folder / "profile", f"--use-file-for-fake-video-capture={folder / 'camera.y4m'}")
    with contextlib.closing(browser):
        yield browser


@pytest.fixture
def requests(exported):
    """Serve the page of the happy network on this computer; return its address and the list of what is asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    serve = functools.partial(Handler, directory=exported("trained")[0].parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()


def allow_camera(browser, setting):
    browser.send("Browser.setPermission", permission={"name": "camera"}, setting=setting)


def set_offline(browser, offline):
    speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.send("Network.emulateNetworkConditions", offline=offline, **speed)


def classify(browser, images):
    """Return what the page's own function says about uint8 images (m, 64, 64, 3), a list of dicts."""
    data = base64.b64encode(images.tobytes()).decode()
    return browser.run(
        f"""(() => {{
            const bytes = Uint8Array.from(atob("{data}"), (character) => character.charCodeAt(0)), answers = [];
            for (let at = 0; at < bytes.length; at += 64 * 64 * 3) {{
                answers.push(classify(bytes.subarray(at, at + 64 * 64 * 3)));
            }}
            return answers;
        }})()"""
    )


def drop(browser, path):
    """Drop a file on the page."""
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
        browser.send("Input.dispatchDragEvent", type=kind, x=200, y=300, data=data)


SEEN = "Array.from(element('seen').getContext('2d').getImageData(0, 0, 64, 64).data)"


def rgb(values):
    return np.array(values, np.uint8).reshape(64, 64, 4)[..., :3]


# ------------------------------------------------------------------- the answers


@in_browser
@pytest.mark.parametrize("name", ["happy", "own", "every layer"])
def test_the_page_answers_as_the_command_line_does(exported, browser, name):
    path, model, metadata, images = exported(name)
    assert path.stat().st_size <= MAX_BYTES
    browser.open(path.as_uri())
    answers = classify(browser, images)
    probabilities = class_probabilities(model.predict_on_batch(images.astype(np.float32)))
    assert np.abs(np.array([answer["probabilities"] for answer in answers]) - probabilities).max() <= TOLERANCE
    distances = knn_distance(features(model, images), metadata["feature_bank"])
    assert np.abs(np.array([answer["distance"] for answer in answers]) - distances).max() < 0.02
    reasons = [" ".join(answer["reasons"]) for answer in answers]
    doubtful, unusual = probabilities.max(axis=1) < CONFIDENCE, distances > metadata["ood_threshold"]
    # At the thresholds themselves, either answer is right.
    clear = np.abs(probabilities.max(axis=1) - CONFIDENCE) > TOLERANCE
    assert [("below 70 %" in reason) for reason in np.array(reasons)[clear]] == doubtful[clear].tolist()
    clear = np.abs(distances - metadata["ood_threshold"]) > 0.02
    assert [("unlike" in reason) for reason in np.array(reasons)[clear]] == unusual[clear].tolist()
    assert 10 < doubtful.sum() < 90 and 0 < unusual.sum() < 90  # or the comparison would say nothing


@in_browser
@pytest.mark.parametrize("size", [(64, 64), (640, 480), (333, 501), (40, 50)], ids=str)
def test_a_dropped_file_is_cropped_and_scaled_as_the_command_line_does(exported, browser, tmp_path, size):
    path, model, _, images = exported("own")
    rng = np.random.default_rng(1)
    pixels = np.asarray(Image.fromarray(images[0]).resize(size, Image.Resampling.BICUBIC)).astype(int)
    pixels = np.clip(pixels + rng.integers(-40, 40, pixels.shape), 0, 255).astype(np.uint8)
    alpha = np.where(np.arange(size[0]) < size[0] / 3, 0, 255) * np.ones((size[1], 1))  # a third is transparent
    Image.fromarray(np.dstack([pixels, alpha.astype(np.uint8)])).save(tmp_path / "hand.png")
    browser.open(path.as_uri())
    drop(browser, tmp_path / "hand.png")
    browser.wait_for("!element('still').hidden")
    seen, expected = rgb(browser.run(SEEN)), read_image(tmp_path / "hand.png", 64)
    assert np.abs(seen.astype(int) - expected).max() <= 1
    probabilities = class_probabilities(model.predict_on_batch(expected[None].astype(np.float32)))
    shown = [float(text) / 100 for text in re.findall(r"(\d+) %", browser.text("#bars"))]
    assert np.abs(np.array(shown) - probabilities[0]).max() <= 0.006 + TOLERANCE


@in_browser
def test_a_photograph_from_a_phone_is_turned_upright(exported, browser, tmp_path):
    _, _, _, images = exported("own")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    hand = Image.fromarray(images[0]).resize((640, 640), Image.Resampling.BICUBIC)
    hand.crop((0, 80, 640, 560)).save(tmp_path / "hand.jpg", quality=95, exif=exif)
    browser.open(exported("own")[0].as_uri())
    drop(browser, tmp_path / "hand.jpg")
    browser.wait_for("!element('still').hidden")
    # Decoders round differently, by a step or two.
    assert np.abs(rgb(browser.run(SEEN)).astype(int) - read_image(tmp_path / "hand.jpg", 64)).max() <= 3


# --------------------------------------------------------------- the page itself


@in_browser
def test_the_door_opens_for_a_steady_smile_and_closes_again(exported, faces, requests, browser):
    address, asked = requests
    _, model, _, _ = exported("trained")
    allow_camera(browser, "granted")
    browser.open(f"{address}live.html")
    assert "SYNTHETIC" in browser.text("header")
    assert browser.run("house.getAttribute('aria-label')") == "The door is closed"
    set_offline(browser, True)
    browser.run("element('camera').focus()")
    for kind in ({"type": "keyDown", "text": "\r"}, {"type": "keyUp"}):
        browser.send("Input.dispatchKeyEvent", key="Enter", code="Enter", windowsVirtualKeyCode=13, **kind)
    browser.wait_for("house.classList.contains('open')")
    assert browser.run("house.getAttribute('aria-label')") == "The door is open"
    # The preview is a mirror; what the network sees is not. Both are read at once, before the next frame.
    assert browser.run("getComputedStyle(video).transform") == "matrix(-1, 0, 0, 1, 0, 0)"
    seen, shown = browser.run(f"[{SEEN}, element('bars').innerText]")
    differences = [np.abs(rgb(seen).astype(int) - face).mean() for face in (*faces, *(face[:, ::-1] for face in faces))]
    assert np.argmin(differences) in (0, 1) and min(differences) < 10
    smile = model.predict_on_batch(rgb(seen)[None].astype(np.float32))[0, 0]
    assert abs(float(re.search(r"(\d+) %$", shown.strip())[1]) / 100 - smile) <= 0.006 + TOLERANCE
    browser.wait_for("!house.classList.contains('open')")
    browser.wait_for("house.classList.contains('open')")
    browser.run("element('camera').click()")
    browser.wait_for("!house.classList.contains('open')")
    assert browser.run("video.hidden && stream === null") and "No image yet" in browser.text("#answer")
    set_offline(browser, False)
    assert asked == ["/live.html"]


@in_browser
def test_a_short_smile_does_not_open_the_door(exported, browser):
    browser.open(exported("trained")[0].as_uri())
    opened = """(async () => {
        let opened = false;
        for (let i = 0; i < 12; i++) {
            smiling(i % 2 === 0);
            await new Promise((resolve) => setTimeout(resolve, 100));
            opened ||= house.classList.contains("open");
        }
        return opened;
    })()"""
    assert browser.run(opened) is False


@in_browser
def test_nothing_can_be_asked_for(requests, browser):
    address, asked = requests
    set_offline(browser, False)
    browser.open(f"{address}live.html")
    tries = f"""(async () => {{
        const url = {json.dumps(address)} + "secret", tries = [];
        tries.push(await fetch(url).then(() => "fetched", () => "refused"));
        for (const [tag, from] of [["img", "src"], ["script", "src"], ["link", "href"], ["iframe", "src"]]) {{
            const part = document.createElement(tag);
            part.rel = "stylesheet";
            const end = new Promise((resolve) => {{
                part.onload = part.onerror = () => resolve();
                setTimeout(resolve, 500);
            }});
            part[from] = url;
            document.body.append(part);
            await end;
        }}
        navigator.sendBeacon(url, "secret");
        const script = document.createElement("script");
        script.textContent = "window.strange = true";
        document.body.append(script);
        tries.push(window.strange ?? "refused");
        return tries;
    }})()"""
    assert browser.run(tries) == ["refused", "refused"]
    assert asked == ["/live.html"]


@in_browser
def test_class_names_are_shown_as_they_are(exported, browser):
    path, _, _, images = exported("own")
    browser.open(path.as_uri())
    assert [browser.text(f"#bars li:nth-child({number + 1}) span") for number in range(3)] == list(TRICKY)
    assert ", ".join(TRICKY) in browser.text("header") and "SYNTHETIC" not in browser.text("body")
    assert browser.run("house") is None
    assert not [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


@in_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_cut_off_at_any_width(exported, browser, width):
    browser.open(exported("trained")[0].as_uri())
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=True)
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.send("Emulation.clearDeviceMetricsOverride")


# ------------------------------------------------------------------- the bad cases


@in_browser
def test_what_goes_wrong_is_said(exported, browser, tmp_path):
    browser.open(exported("trained")[0].as_uri())

    def message_after(action, word):
        browser.run("complain('')")
        action() if callable(action) else browser.run(action)
        browser.wait_for("!element('message').hidden")
        assert word in browser.text("#message")
        assert browser.text("#camera") == "Start camera" and browser.run("stream === null")

    allow_camera(browser, "denied")
    message_after("element('camera').click()", "refused")
    broken = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', '%s'); }"
    for name, word in ("NotFoundError", "No camera was found"), ("NotReadableError", "busy"), ("OddError", "OddError"):
        browser.run(broken % name)
        message_after("element('camera').click()", word)
    browser.run("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    message_after("element('camera').click()", "gives the page no camera")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty.png").touch()
    for name in ("notes.txt", "empty.png"):
        message_after(lambda name=name: drop(browser, tmp_path / name), f"{name} is not an image")
    message_after("document.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))", "not a file")


# --------------------------------------------------------------------- the export


def refused(model, tmp_path, **changes):
    metadata = {"classes": ["a", "b"], "data": "real", "dry_run": False, "confidence": CONFIDENCE}
    with pytest.raises(InputError, match="--export onnx.*Received: ") as error:
        export_model(model, ["saved_model", "web"], tmp_path, metadata | {"feature_bank": None} | changes)
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}
    return str(error.value)


def test_a_network_that_is_too_large_is_refused(tmp_path):
    inputs = layers.Input((64, 64, 3))
    model = keras.Model(inputs, layers.Dense(100, "softmax")(layers.Flatten()(inputs)), name="signs_resnet50")
    assert "at most 1.5 MB" in refused(model, tmp_path) and "4.9 MB of weights" in refused(model, tmp_path)
    # The network fits, the feature bank beside it does not.
    model = keras.Sequential([layers.Input((64, 64, 3)), layers.Flatten(), layers.Dense(30, "softmax")])
    bank = {"feature_bank": np.eye(2000, 12288, dtype=np.float16), "ood_threshold": 0.5}
    assert "at most 1.5 MB" in refused(model, tmp_path, **bank)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(3, 3, strides=2, name="odd"),
        layers.Conv2D(3, 3, activation="tanh", name="odd"),
        layers.ReLU(max_value=6, name="odd"),
        layers.MaxPooling2D(3, strides=2, name="odd"),
        layers.LeakyReLU(name="odd"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_are_refused_by_name(layer, tmp_path):
    chain = [layers.Input((64, 64, 3)), layer, layers.GlobalAveragePooling2D(), layers.Dense(2, "softmax")]
    assert f"'odd' ({type(layer).__name__}" in refused(keras.Sequential(chain), tmp_path)


def test_branches_and_outputs_that_are_no_probabilities_are_refused(tmp_path):
    inputs = layers.Input((64, 64, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Add(name="sum")([layers.Conv2D(3, 1)(x), x])
    outputs = layers.Dense(2, "softmax")(layers.GlobalAveragePooling2D()(x))
    assert "'sum' (Add)" in refused(keras.Model(inputs, outputs), tmp_path)
    chain = [layers.Input((64, 64, 3)), layers.GlobalAveragePooling2D(), layers.Dense(2, name="last")]
    assert "'last' without sigmoid or softmax" in refused(keras.Sequential(chain), tmp_path)


def test_weights_that_do_not_fit_into_16_bits_are_refused(tmp_path):
    chain = [layers.Input((64, 64, 3)), layers.GlobalAveragePooling2D(), layers.Dense(2, "softmax")]
    model = keras.Sequential(chain)
    model.set_weights([np.full((3, 2), 1e6), np.zeros(2)])
    assert "float16 weights must give the outputs" in refused(model, tmp_path)


def test_class_names_are_escaped_and_only_the_page_s_own_script_may_run(exported):
    path, _, _, _ = exported("own")
    page = path.read_text(encoding="utf-8")
    assert "<b>cat" not in page and page.count("</script>") == 2
    assert "default-src 'none'; connect-src 'none'" in page and "unsafe" not in page.partition("<script")[0]
