"""A trained model and pictures of one's own: what step 7 of the scripts does.

    load_trained_model      the model and its notes, or why the file is none
    read_image              any picture as the models want it
    predict_images          what each picture shows, or that it cannot be said
"""

import contextlib
import json
import os
import pathlib
import stat
import sys
import zipfile

import numpy as np

import cnn_utils as utils
from datasets import kind_of_file
from runs import InputError, prepare_output_dir, unfinished

# Below this probability an answer is "not sure": of such answers, more than three in ten would be wrong.
SURE = 0.7

# A stranger's network is built before its weights are read: one that would not fit into memory is refused unbuilt.
# The scripts' widest layer has 2,048 features, and ResNet50 with the optimizer's state 300 MB.
WIDEST = 4096
LARGEST_FILE = 2**30


def load_trained_model(output_dir, script, names, network=None):
    """Load the model that an earlier run of the script has saved, whoever gives it to us.

    Keras's safe mode loads it, which runs no code from the file; nothing is unpickled.

    Args:
        output_dir: folder of that run.
        script: str, the script's name without ".py".
        names: the class names, for a model that does not hold its own.
        network: str, the name of the script's network, if it is not the script's.

    Returns:
        The Keras model, and its notes, a dict: see `save_model`; `familiar` is
        one of them, None where a model brings no notes.

    Raises:
        InputError: there is no model, or the file is none.
    """
    import keras

    path = pathlib.Path(output_dir) / "model.keras"
    if not os.path.exists(path):
        raise InputError(f"There is no trained model yet: expected {path}. Train one first with `python {script}.py`, "
                         f"or name the folder of an earlier run with --output-dir. Received: no such file")
    network = network or script
    expected = (f"{path} must be a model saved by {script}.py; train it again, or name the folder of another run with "
                f"--output-dir. Received: ")
    kind = model_kind(path)
    if kind:
        raise InputError(expected + kind)
    try:
        model = keras.models.load_model(path, safe_mode=True)
    except Exception as error:      # Keras raises many kinds, from zip errors to missing layers
        reason = (str(error).splitlines() or [""])[0][:300]
        if "Lambda" in str(error):
            reason = "the network holds code of its own (a Lambda layer), which is not run"
        raise InputError(f"{expected}{type(error).__name__}: {reason}") from None
    takes, gives, whole = (getattr(model, name, None) for name in ("input_shape", "output_shape", "layers"))
    if (model.name != network or takes != (None, *utils.PICTURE_SHAPE) or not isinstance(gives, tuple)
            or len(gives) != 2 or not isinstance(whole[-1], keras.layers.Dense)):
        raise InputError(f"{expected}a network of another architecture, {utils.printable(model.name)!r} from {takes} "
                         f"to {gives}, where {network!r} from {(None, *utils.PICTURE_SHAPE)} was expected")
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise InputError(f"{expected}weights that are not finite numbers")
    notes = {"classes": names, "data": "unknown", "dry_run": False, "temperature": 1.0, "familiar": None}
    try:
        notes.update(read_notes(path, model.layers[-1].input.shape[-1]))
    except Exception as error:
        raise InputError(f"{expected}notes on the classes that are damaged ({type(error).__name__}: "
                         f"{(str(error).splitlines() or [''])[0][:200]})") from None
    outputs = max(2, model.output_shape[-1])
    if len(notes["classes"]) != outputs:
        raise InputError(f"{path} must have one output for each of {len(notes['classes'])} classes; train it again. "
                         f"Received: a model with {model.output_shape[-1]}")
    trained_on = {"synthetic": "SYNTHETIC pictures, not photographs", "real": "real photographs",
                  "folder": f"your own pictures of {', '.join(notes['classes'])}"}
    print(f"Model: {path}, trained on {trained_on.get(notes['data'], 'unknown data')}"
          + (", but by a --dry-run: it has learnt next to nothing" if notes["dry_run"] else ""))
    return model, notes


def model_kind(path):
    """Say what a file is that no `.keras` file of Keras 3 can be; "" if it may be one."""
    import h5py

    try:
        if not os.path.isfile(path):
            return "a folder" if os.path.isdir(path) else "neither a file nor a folder"
        with open(path, "rb") as file:
            kind = kind_of_file(file.read(64)).replace("an HDF5 file:", "a .keras file:")
        if kind == "a zip archive":
            with zipfile.ZipFile(path) as archive:
                if not {"config.json", "metadata.json", "model.weights.h5"} <= set(archive.namelist()):
                    return "a zip archive that holds no Keras model"
                size = sum(member.file_size for member in archive.infolist())
                if size > LARGEST_FILE:
                    return f"an archive of {size:,} bytes when unpacked"
                version = str(json.loads(archive.read("metadata.json")).get("keras_version"))
                if not version.startswith("3."):
                    return f"a model of Keras {version}, where Keras 3 was expected"
                widest = largest_number(json.loads(archive.read("config.json"))["config"].get("layers", []))
                return "" if widest <= WIDEST else f"another architecture, with {widest:,} features in one layer"
        if kind == "an HDF5 file":
            with h5py.File(path, "r") as file:
                version = file.attrs.get("keras_version")
                if "model_config" in file.attrs:
                    return f"a model in an HDF5 file, of Keras {version}, where a .keras file of Keras 3 was expected"
                return "an HDF5 file, weights or data, where a .keras file was expected"
    except zipfile.BadZipFile as error:
        return f"a damaged .keras file ({error})"
    except OSError as error:
        return f"a file that cannot be read ({error.strerror or error})" if path.is_file() else "a folder"
    except Exception as error:      # of a damaged archive, zlib and json have their own
        return f"a damaged .keras file ({error})"
    return kind


def largest_number(settings):
    """Return the largest whole number in the settings of a network's layers: lists and dicts, as JSON has them."""
    if isinstance(settings, dict):
        # These are no sizes: numbers of objects, and shapes that follow from the sizes.
        settings = [value for key, value in settings.items() if key not in ("seed", "shared_object_id", "build_config")]
    if isinstance(settings, list):
        return max(map(largest_number, settings), default=0)
    return settings if isinstance(settings, int) else 0


def read_notes(path, width):
    """Return what `runs.save_model` put beside the network, a dict; {} if there is nothing.

    Args:
        path: a `.keras` file.
        width: int, how many numbers the network's last layer gets.
    """
    with zipfile.ZipFile(path) as archive:
        if not {"notes.json", "familiar.npy"} <= set(archive.namelist()):
            return {}
        notes = json.loads(archive.read("notes.json"))
        with archive.open("familiar.npy") as file:
            notes["familiar"] = np.load(file, allow_pickle=False)
    if not (isinstance(notes["classes"], list) and all(isinstance(name, str) for name in notes["classes"])
            and isinstance(notes["data"], str) and isinstance(notes["temperature"], float | int)
            and isinstance(notes["usual"], float | int) and notes["familiar"].dtype.kind == "f"
            and notes["familiar"].shape[1:] == (width,) and len(notes["familiar"])
            and np.isfinite(notes["familiar"]).all()):
        raise ValueError("they are not of the kind that a training saves")
    notes["classes"] = [utils.printable(name) for name in notes["classes"]]
    return notes


def read_image(path, size, crop="center"):
    """Read any picture as the models want it.

    Turned as the camera's EXIF note says, transparency laid on white, every
    mode brought to 8-bit RGB, the largest centred square cut out and scaled:
    squeezed, a hand is no hand of the training set.

    Args:
        path: file in any format that Pillow reads; of several frames, the first.
        size: int, side of the result in pixels.
        crop: "center"; "stretch": all of the picture, squeezed into a square; or
            (left, top, side) of a square, in pixels of the upright picture.

    Returns:
        uint8 array (size, size, 3), RGB.

    Raises:
        InputError: there is no such file, or it is no picture that can be read,
            or the square does not lie within it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = pathlib.Path(path)
    expected = "expected a picture (JPEG, PNG, WebP, TIFF, ...)"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path}: {expected}. Received: {'a folder' if path.is_dir() else 'a device or a pipe'}")
        with Image.open(path, formats=readers()) as image:
            image.load()
            # A damaged note of the camera's harms no pixel: the picture is taken as it lies.
            with contextlib.suppress(Exception):
                image = ImageOps.exif_transpose(image)
            box = square(image.size, crop)
            if box is None:
                raise InputError(f"{path}: expected a --crop that lies within the picture of {image.width} x "
                                 f"{image.height} pixels. Received: {','.join(map(str, crop))}")
            image = scale(image, box, size)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: {expected}; check the name. Received: no such file") from None
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            head = file.read(12)
        kind = ("an empty file" if not head else "a HEIC picture: convert it to JPEG" if head[4:11] == b"ftyphei"
                else "a file that is no picture")
        raise InputError(f"{path}: {expected}. Received: {kind}") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {expected} of a usual size; scale it down. Received: {error}") from None
    except Exception as error:      # Pillow's readers raise nearly every kind for one damaged byte or another
        reason = f"a damaged picture ({error})"
        if getattr(error, "errno", None):       # the system's own, not Pillow's
            reason = "a folder" if os.path.isdir(path) else f"a file that cannot be opened ({error.strerror})"
        raise InputError(f"{path}: {expected} that can be read to its end. Received: {reason}") from None
    return np.asarray(image)


def readers():
    """Return the names of Pillow's readers but the one that hands the file to another program, Ghostscript."""
    from PIL import Image

    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def square(size, crop):
    """Return the part of a picture to look at as (left, top, right, bottom), or None if it lies outside.

    Args:
        size: (width, height) in pixels.
        crop: see `read_image`.
    """
    width, height = size
    if crop == "stretch":
        return 0, 0, width, height
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
    else:
        left, top, side = crop
    return (left, top, left + side, top + side) if left + side <= width and top + side <= height else None


def scale(image, box, size):
    """Bring a part of a Pillow image of any mode to `size` x `size` pixels of 8-bit RGB."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # 16 bits (or more) of grey: Pillow would cut off at 255 instead of scaling. Made small first: a file of a
        # few bytes may declare many millions of such pixels.
        # White is 65535, but floating-point pictures may also count to 1 or to 255.
        white = 65535
        if image.mode == "F":
            if not np.isfinite(np.asarray(image)).all():
                raise ValueError("pixels that are no finite numbers")
            white = next((top for top in (1, 255) if image.getextrema()[1] <= top), 65535)
        else:
            image = image.convert("I").convert("F")
        grey = np.nan_to_num(np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box)))
        return Image.fromarray(np.clip(grey * (255 / white), 0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, box)


def predict_images(model, notes, paths, output_dir, *, crop="center", tta=False, explain=False):
    """Say what each picture shows, or that it cannot be said; save exactly what the model saw.

    Args:
        model: Keras model from raw pixels (m, size, size, 3), 0-255, to probabilities.
        notes: dict from `load_trained_model`.
        paths: the picture files.
        output_dir: folder; the pictures go into its sub-folder `predictions`.
        crop: see `read_image`.
        tta: bool, average the answers for ten views of each picture.
        explain: bool, save what spoke for each answer, too.

    Returns:
        int, exit code: 0, or 1 if a file could not be read (the others are still predicted).
    """
    from PIL import Image

    pictures, readable = [], []
    for path in paths:
        try:
            pictures.append(read_image(path, model.input_shape[1], crop))
            readable.append(path)
        except InputError as error:
            print(f"error: {utils.printable(str(error))}", file=sys.stderr)
    if pictures:
        folder = prepare_output_dir(pathlib.Path(output_dir) / "predictions")
        captions, explained = [], []
        for number, (path, picture, (row, doubt)) in enumerate(zip(readable, pictures,
                                                                   answers(model, notes, pictures, tta)), 1):
            said = f"{notes['classes'][row.argmax()]} ({row.max():.1%})"
            name = utils.printable(path.name)
            # Numbered: two folders may hold one name. Cut: a name has 255 bytes at most.
            seen = folder / f"{number:02d}_{utils.printable(path.stem).encode()[:100].decode(errors='ignore')}.png"
            with unfinished(seen) as aside:
                Image.fromarray(picture).save(aside)
            name = name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"
            captions.append(f"{name}\n" + (f"not sure: {said}" if doubt else said))
            print(f"{utils.printable(str(path))}: " + (f"not sure, {doubt}; at best {said}" if doubt else said)
                  + f"; what the model saw: {seen}")
            if explain:
                explained.append(heat_over(model, picture, row.argmax()))
        title = "What the model saw, and its answer"
        if notes["data"] == "synthetic":
            title = "What the model, trained on SYNTHETIC pictures, saw and answered"
        # The photos are the user's: they are not to be marked as synthetic.
        utils.draw_pictures(pictures, captions, title, folder / "predictions.png", "real")
        if explain:
            utils.draw_pictures(explained, captions, "What spoke for the answer: the brighter, the more",
                          folder / "explanations.png", "real")
    return 1 if len(readable) < len(paths) else 0


def answers(model, notes, pictures, tta=False):
    """Return for each picture (size, size, 3) the probabilities (k,) and why they are in doubt: "" if they are not."""
    import trust

    views = [trust.views(picture) if tta else picture[None] for picture in pictures]
    seen = trust.features(model, np.concatenate(views))
    rows = trust.softmax(trust.logits(model, seen)).reshape(len(pictures), len(views[0]), -1).mean(axis=1)
    doubts = [[f"less than {SURE:.0%}"] if row.max() < SURE else [] for row in rows]
    if notes["familiar"] is not None:
        # The first of the views is the picture itself.
        for doubt, distance in zip(doubts, trust.unlikeness(seen[::len(views[0])], notes["familiar"])):
            if distance > notes["usual"]:
                doubt.append(f"unlike the pictures it was trained on (distance {distance:.2f}, usual up to "
                             f"{notes['usual']:.2f})")
    return [(row, " and ".join(doubt)) for row, doubt in zip(rows, doubts)]


def heat_over(model, picture, label):
    """Lay what speaks for a class over the picture (size, size, 3), dimmed and grey: uint8, four times as large."""
    import matplotlib
    from PIL import Image

    import trust

    side = 4 * len(picture)
    heat = Image.fromarray(trust.grad_cam(model, picture, label).astype(np.float32))
    heat = np.clip(np.asarray(heat.resize((side, side), Image.Resampling.BICUBIC)), 0, 1)[..., None]
    grey = Image.fromarray(picture).convert("L").convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    glow = matplotlib.colormaps["inferno"](heat[..., 0])[..., :3] * 255
    return (0.55 * np.asarray(grey) + 0.45 * glow).astype(np.uint8)
