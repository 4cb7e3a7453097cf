"""The panel "Teach me" of the live page: two new gestures of SYNTHETIC hands, in a browser with a fake camera."""

import base64
import contextlib
import functools
import json
import time
import zipfile

import numpy as np
import pytest
from browser import BROWSER_MARKS, Browser
from PIL import Image, ImageDraw

from datasets import SIGNS
from datasets.folders import load_folder
from datasets.synthetic import hands, moments, render_images
from support.export.live_page import render_live_page
from support.prediction.trained_model import load_trained_model

pytestmark = BROWSER_MARKS

GESTURES = ("thumbs-up", "call me")
SITTING = 2
RATE = 4  # frames a second
TAUGHT, OTHERS = 30, 30  # moments of each gesture that the camera shows, and other ones
SECONDS = 60  # for which it shows each gesture
LEVELS = (60, 160)  # a square in the corner has the gray level of the gesture


@pytest.fixture(scope="module")
def frames():
    """Return what the camera shows of each gesture, and other moments: lists of lists of images."""
    with pytest.MonkeyPatch.context() as patch:
        for digit, gesture in enumerate(GESTURES, 100):
            patch.setitem(hands.POSES, digit, (hands.NO_DIGIT_POSES[gesture],))
        return [
            [[render_frame(digit, number, *size) for number in numbers] for digit in range(100, 100 + len(GESTURES))]
            # A search of smaller images takes less time.
            for numbers, size in ((range(TAUGHT), (320, 240)), (range(TAUGHT, TAUGHT + OTHERS), (128, 96)))
        ]


def render_frame(digit, number, width, height):
    """Return a moment of one SYNTHETIC hand in front of a camera."""
    habit = number % moments.HABITS
    hand = moments.render_hand(digit, np.random.default_rng([24, number]), SITTING + habit * moments.SITTINGS)
    frame = Image.new("RGB", (width, height), tuple(map(int, np.median(hand[0], axis=0))))
    hand = Image.fromarray(hand).resize((height, height), Image.Resampling.BICUBIC)
    frame.paste(hand, ((width - height) // 2, 0))
    ImageDraw.Draw(frame).rectangle((0, 0, width // 20, width // 20), (LEVELS[digit - 100],) * 3)
    return frame


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the live page of the hand network that comes with the project."""
    folder = tmp_path_factory.mktemp("page")
    model, metadata = load_trained_model(folder, "signs_functional", SIGNS, weights="synthetic")
    text, _ = render_live_page(model, metadata, render_images("signs", 6, 1)[0].astype(np.float32))
    (folder / "live.html").write_text(text, encoding="utf-8")
    return folder / "live.html"


@pytest.fixture(scope="module")
def browser(frames, tmp_path_factory):
    """Return a browser whose camera shows the gestures in turn."""
    folder = tmp_path_factory.mktemp("browser")
    with open(folder / "camera.y4m", "wb") as video:
        video.write(f"YUV4MPEG2 W320 H240 F{RATE}:1 Ip A1:1 C420jpeg\n".encode())
        for scene in frames[0]:
            for number in range(RATE * SECONDS):
                y, *colors = scene[number % len(scene)].convert("YCbCr").split()
                colors = [color.resize((160, 120), Image.Resampling.BOX) for color in colors]
                planes = [y.point(lambda v: 16 + v * 219 / 255)]  # video keeps brightness in 16-235
                planes += [color.point(lambda v: 16 + v * 224 / 255) for color in colors]
                video.write(b"FRAME\n" + b"".join(plane.tobytes() for plane in planes))
    browser = Browser(folder / "profile", f"--use-file-for-fake-video-capture={folder / 'camera.y4m'}")
    with contextlib.closing(browser):
        browser.send("Browser.setPermission", permission={"name": "camera"}, setting="granted")
        yield browser


def key(browser, kind, name="Enter"):
    text = {"text": "\r" if name == "Enter" else " "} if kind == "keyDown" else {}
    code = {"Enter": 13, " ": 32}[name]
    browser.send("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code, **text)


def middle(browser, selector):
    """Return the middle of an element in the window, where a mouse or a finger can press it."""
    browser.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{ block: 'center' }})")
    box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
    return browser.run(f"(({{ x, y, width, height }}) => [x + width / 2, y + height / 2])({box})")


def add_class(browser, name):
    """Type a name and press Enter."""
    browser.run("element('teach').open = true")
    browser.run("element('name').select()")
    browser.send("Input.insertText", text=name)
    key(browser, "keyDown")
    key(browser, "keyUp")


def counts(browser):
    return browser.run("taught.map(({ name, samples }) => [name, samples.length])")


# Whether the last frame that the page looked at shows a gesture, from the gray level in its corner.
SHOWS = "Math.abs(work.getImageData(4, 4, 1, 1).data[1] - %d) < 20"


@pytest.fixture(scope="module")
def taught(page, browser):
    """Return a browser with the page, after two gestures were taught: with the mouse, and with the keyboard."""
    browser.send("Emulation.setDeviceMetricsOverride", width=1200, height=1200, deviceScaleFactor=1, mobile=False)
    browser.open(page.as_uri())
    add_class(browser, GESTURES[0])
    browser.run("element('camera').click()")
    browser.wait_for("seen !== null")
    x, y = middle(browser, "#taught li:first-child .hold")
    assert browser.run(SHOWS % LEVELS[0])
    mouse = functools.partial(browser.send, "Input.dispatchMouseEvent", x=x, y=y, button="left", clickCount=1)
    mouse(type="mousePressed")
    browser.wait_for("held === null", 60)  # after 20 samples
    mouse(type="mouseReleased")
    add_class(browser, GESTURES[1])
    assert browser.run(SHOWS % LEVELS[0])  # or the machine is too slow for the camera
    browser.wait_for(SHOWS % LEVELS[1], 60)
    key(browser, "keyDown", " ")  # the new button has the focus
    browser.wait_for("held === null", 60)
    key(browser, "keyUp", " ")
    assert browser.run(SHOWS % LEVELS[1])
    browser.run("element('camera').click()")
    yield browser


def answers(browser, images):
    """Return the page's answers for images of any size: the class, whether it is sure, and all probabilities."""
    found = []
    for image in images:
        data = base64.b64encode(np.asarray(image.convert("RGBA")).tobytes()).decode()
        width, height = image.size
        answer = browser.run(
            f"""(async () => {{
                const image = new ImageData(new Uint8ClampedArray(decodeBytes("{data}")), {width}, {height});
                await lookAt(await createImageBitmap(image), {width}, {height});
                const {{ answer, pixels }} = seen, {{ label, reasons, probabilities }} = withTaught(answer, pixels);
                return [classes[label], reasons.length === 0, probabilities];
            }})()"""
        )
        found.append(answer)
    return found


def test_two_new_gestures_are_told_apart_at_other_moments(taught, frames):
    assert counts(taught) == [[gesture, 20] for gesture in GESTURES]
    assert taught.run("classes") == [*SIGNS.class_names, *GESTURES]
    right, sure = [], []
    for gesture, images in zip(GESTURES, frames[1]):
        for name, is_sure, probabilities in answers(taught, images):
            right.append(name == gesture)
            sure.append(is_sure)
            assert abs(sum(probabilities) - 1) < 1e-6
    print(f"{len(right)} other moments: {np.mean(right):.1%} right, {np.mean(sure):.1%} sure")
    assert np.mean(right) >= 0.95
    assert taught.text("#label") in (GESTURES[1], "not sure")


def test_the_network_s_own_classes_stay(taught):
    images, labels = render_images("signs", 48, 909)
    frames = [Image.fromarray(image) for image in images]
    names = [name for name, *_ in answers(taught, frames)]
    right = np.mean([name == SIGNS.class_names[label] for name, label in zip(names, labels)])
    print(f"{right:.1%} of {len(names)} SYNTHETIC digits right")
    assert right >= 0.85


def download(browser, button, folder):
    """Press a button and return the path of the file that the page saves."""
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.run(f"element('{button}').click()")
    end = time.monotonic() + 60
    while not (files := [path for path in folder.iterdir() if path.suffix in (".json", ".zip")]):
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.1)
    return files[0]


def load(browser, path):
    """Choose a saved file."""
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    node = browser.send("DOM.querySelector", nodeId=root, selector="#saved")["nodeId"]
    browser.run("element('teach').open = true, tell('')")
    browser.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    browser.wait_for("!['', 'Loading …'].includes(element('told').textContent)", 60)


def test_a_saved_file_brings_the_same_answers_back(taught, page, frames, tmp_path):
    before = answers(taught, frames[1][0][:5] + frames[1][1][:5])
    path = download(taught, "save", tmp_path)
    taught.open(page.as_uri())
    assert counts(taught) == [] and taught.run("element('save').disabled")
    load(taught, path)
    assert counts(taught) == [[gesture, 20] for gesture in GESTURES]
    assert answers(taught, frames[1][0][:5] + frames[1][1][:5]) == before


def test_a_file_that_the_panel_did_not_save_is_refused_and_changes_nothing(taught, tmp_path):
    before = counts(taught)
    good = json.loads(taught.run("savedText()"))
    other_names = [{**good["classes"][0], "name": name} for name in ("a", "A")]
    wrong = {
        "text": ("hello", "not a file that this panel saved"),
        "list": ("[1]", "not a file that this panel saved"),
        "null": ("null", "not a file that this panel saved"),
        "size": (json.dumps(good | {"size": 96, "classes": []}), "96 × 96 pixels"),
        "short": (json.dumps(good | {"classes": [{"name": "a", "samples": ["AAAA"]}]}), "not a file that this panel"),
        "twice": (json.dumps(good | {"classes": other_names}), "not a file that this panel saved"),
        "known": (json.dumps(good | {"classes": [{"name": "5", "samples": []}]}), "a class 5 already"),
    }
    for name, (text, words) in wrong.items():
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
        load(taught, tmp_path / f"{name}.json")
        assert words in taught.text("#told"), name
        assert counts(taught) == before


def test_the_zip_is_a_folder_of_images_for_training(taught, tmp_path, capsys):
    path = download(taught, "download", tmp_path)
    samples = taught.run("taught.map(({ samples }) => samples.map(({ pixels }) => Array.from(pixels)))")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        names = [f"{gesture}/{number:03}.png" for gesture in GESTURES for number in range(1, 21)]
        assert archive.namelist() == names
        archive.extractall(tmp_path / "samples")
    for gesture, wanted in zip(GESTURES, samples):
        for number, pixels in enumerate(wanted, 1):
            with Image.open(tmp_path / "samples" / gesture / f"{number:03}.png") as image:
                assert np.array_equal(np.asarray(image.convert("RGB")).ravel(), pixels)
    train_x, train_y, test_x, test_y, class_names = load_folder(tmp_path / "samples")
    assert class_names == tuple(sorted(GESTURES)) and len(train_x) + len(test_x) == 40
    assert set(test_y.tolist()) == {0, 1}


def test_names_that_would_be_no_class_are_refused(taught):
    before = counts(taught)
    refused = {" ": "Type the name", "5": "5 already", "THUMBS-UP": "already", "test set": "Choose another"}
    for name, words in refused.items():
        add_class(taught, name)
        assert words in taught.text("#told"), name
        assert counts(taught) == before
    for name in ("<b>a/b</b>", "con", ".x."):
        add_class(taught, name)
        taught.run("taught.at(-1).samples.push(taught[0].samples[0])")
    assert taught.text("#taught li:nth-child(3) .hold") == "<b>a/b</b>"
    paths = taught.run("sampleFiles().then((files) => files.map(({ path }) => path))")
    assert {path.split("/")[0] for path in paths} == {*GESTURES, "_b_a_b__b_", "con_", "_x_"}
    for _ in range(3):
        taught.run("document.querySelector('#taught li:last-child .remove').click()")
    assert counts(taught) == before


def test_a_finger_can_hold_a_button_and_an_image_is_one_sample(taught, frames):
    taught.send("Emulation.setTouchEmulationEnabled", enabled=True)
    taught.send("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    assert taught.run("document.documentElement.scrollWidth") <= 390
    add_class(taught, "mine")
    x, y = middle(taught, "#taught li:last-child .hold")
    touch = functools.partial(taught.send, "Input.dispatchTouchEvent")
    taught.run("display(element('hint'))")
    touch(type="touchStart", touchPoints=[{"x": x, "y": y}])
    touch(type="touchEnd", touchPoints=[])
    assert "Start the camera or choose" in taught.text("#told")
    answers(taught, frames[1][0][:1])
    touch(type="touchStart", touchPoints=[{"x": x, "y": y}])
    touch(type="touchEnd", touchPoints=[])
    assert counts(taught)[-1] == ["mine", 1]
    taught.run("display(element('hint')), element('camera').click()")
    taught.wait_for("seen !== null", 60)
    x, y = middle(taught, "#taught li:last-child .hold")
    touch(type="touchStart", touchPoints=[{"x": x, "y": y}])
    taught.wait_for("taught.at(-1).samples.length >= 3", 60)
    touch(type="touchEnd", touchPoints=[])
    assert taught.run("held === null") and 3 <= counts(taught)[-1][1] < 21
    taught.run("element('camera').click()")
    taught.run("document.querySelector('#taught li:last-child .remove').click()")
    taught.send("Emulation.setTouchEmulationEnabled", enabled=False)
    taught.send("Emulation.clearDeviceMetricsOverride")


def test_without_the_network_s_own_classes_two_are_needed(taught):
    taught.run("element('own').click()")
    assert taught.run("classes") == list(GESTURES)
    taught.run("document.querySelector('#taught li:last-child .remove').click()")
    assert taught.run("classes") == list(SIGNS.class_names) and "second class" in taught.text("#told")
    taught.run("element('own').click()")
    assert taught.run("classes") == [*SIGNS.class_names, GESTURES[0]]
    wrong = [event for event in taught.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert not wrong
