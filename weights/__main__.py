"""Pre-train a small network: train it only on SYNTHETIC images, and save it in this folder.

Processors of the same kind give the same files, bit for bit; other kinds round differently.
"""

import argparse
import importlib
import io
import json
import pathlib
import tempfile
import zipfile

import h5py
import numpy as np

from basics.errors import run_main
from basics.files import atomic_write, sha256
from datasets import HAPPY, SIGNS
from datasets.hdf5 import load_h5
from datasets.loading import load_pretraining
from datasets.splits import split_validation, subset_per_class
from datasets.synthetic import render_dataset
from support.evaluation.outputs import one_hot

HERE = pathlib.Path(__file__).resolve().parent
SEED = 1


def copy_model(model, path):
    """Copy a `.keras` file without its optimizer and times, with float16 weights: small, and the same every time."""
    fix = "Make sure that its folder can be written to and has free space"
    with (
        zipfile.ZipFile(model) as source,
        atomic_write(path, fix=fix) as temporary,
        zipfile.ZipFile(temporary, "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "metadata.json":
                content = json.dumps({"keras_version": json.loads(content)["keras_version"]})
            elif name == "config.json":
                content = json.dumps({**json.loads(content), "compile_config": None})
            elif name == "model.weights.h5":
                content = _as_float16(content)
            target.writestr(zipfile.ZipInfo(name), content)


def _as_float16(content):
    """Return the bytes of a weights file without the optimizer and with float16 arrays; Keras reads them as float32."""
    half = io.BytesIO()
    with h5py.File(io.BytesIO(content), "r") as source, h5py.File(half, "w") as target:

        def copy(name, item):
            if name.startswith("optimizer"):
                return
            if isinstance(item, h5py.Dataset):
                target[name] = item[()].astype(np.float16)
            else:
                target.require_group(name).attrs.update(item.attrs)

        source.visititems(copy)
    return half.getvalue()


def write_checksums():
    """Write the SHA-256 of each file to SHA256SUMS, in the format of `sha256sum --check`."""
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(HERE.glob("*.keras"))]
    with atomic_write(HERE / "SHA256SUMS") as temporary:
        temporary.write_text("".join(lines), encoding="ascii")


def train_happy(script, dry_run):
    """Train the network of happy_sequential.py, first on the large wide set, then on a small one.

    Returns: model, train_x, validation_x, and validation_y encoded for the network.
    """
    import keras

    model = script.build_model()
    train_x, train_y, validation_x, validation_y = load_small_set(HAPPY, dry_run)
    wide_x, wide_y = load_pretraining(HAPPY, dry_run)
    wide, own = (wide_x, script.encode_labels(wide_y, 2)), (train_x, script.encode_labels(train_y, 2))
    weak, strong = script.weak_augmentation, script.strong_augmentation
    for schedule in ([(5, wide, weak), (15, wide, strong)], [(2, own, weak), (6, own, strong), (2, own, weak)]):
        batches = batches_of(schedule, dry_run)
        steps = batches.steps_per_epoch
        learning_rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, (batches.epochs - 1) * steps), warmup_target=1e-3, warmup_steps=steps
        )
        optimizer = keras.optimizers.Adam(learning_rate, use_ema=True, ema_momentum=0.98)
        model.compile(optimizer, loss=keras.losses.BinaryCrossentropy(label_smoothing=0.1))
        fit(model, batches)
    return model, train_x, validation_x, script.encode_labels(validation_y, 2)


def train_signs(script, dry_run):
    """Train the network of signs_functional.py, first on the large wide set, then on a small one.

    Returns: model, train_x, validation_x, and validation_y encoded for the network.
    """
    import keras

    model = script.build_model()
    train_x, train_y, validation_x, validation_y = load_small_set(SIGNS, dry_run)
    wide_x, wide_y = load_pretraining(SIGNS, dry_run)
    others_x, others_y = load_pretraining(SIGNS, dry_run, part="train")  # some show no digit
    mixed_x = np.concatenate([train_x] * script.COPIES + [others_x])
    mixed_y = np.concatenate([train_y] * script.COPIES + [others_y])
    wide, mixed = (wide_x, one_hot(wide_y, 6)), (mixed_x, one_hot(mixed_y, 6))
    weak, strong = script.weak_augmentation, script.strong_augmentation
    for schedule, images, rate in (
        ([(3, wide, weak), (10, wide, strong)], len(wide_x), 3e-3),
        ([(4, mixed, strong), (6, mixed, weak)], len(train_x), 1e-3),
    ):
        batches = batches_of(schedule, dry_run, images)
        learning_rate = keras.optimizers.schedules.CosineDecay(rate, batches.epochs * batches.steps_per_epoch)
        model.compile(keras.optimizers.Adam(learning_rate), loss="categorical_crossentropy")
        fit(model, batches)
    return model, train_x, validation_x, one_hot(validation_y, 6)


def load_small_set(task, dry_run):
    """Return as many images of strangers as the photographs have, split as `split_validation` does."""
    (path,) = render_dataset(f"{task.name}_wide", parts=("train",))
    x, y, _ = load_h5(path, "train")
    if dry_run:
        x, y = subset_per_class(x, y, 8)
    return split_validation(x, y, SEED)


def batches_of(schedule, dry_run, images=None):
    """Return the `Batches` of a schedule. An epoch has `images` images, by default as many as its last row."""
    from support.training.batches import Batches

    epochs = len(schedule) if dry_run else sum(epochs for epochs, _, _ in schedule)
    return Batches(schedule, epochs, 32, SEED, images or len(schedule[-1][1][0]))


def fit(model, batches):
    """Train a compiled model."""
    from support.training.fast_layers import accelerate, restore

    print(f"\n{batches}")
    accelerate(model)
    model.fit(
        batches.dataset(), epochs=batches.epochs, steps_per_epoch=batches.steps_per_epoch, shuffle=False, verbose=2
    )
    restore(model)


TRAINERS = {"happy_sequential": (HAPPY, train_happy), "signs_functional": (SIGNS, train_signs)}


def make_weights(script, path, dry_run=False):
    """Train the network of a script ("happy_sequential" or "signs_functional") on SYNTHETIC images and save it."""
    from support.startup import start_keras

    start_keras(SEED)
    from support.evaluation.calibration import calibrate
    from support.training.run import plain_float32, save_model

    task, train = TRAINERS[script]
    model, train_x, validation_x, validation_y = train(importlib.import_module(script), dry_run)
    plain_float32(model)
    temperature = calibrate(model, validation_x, validation_y)
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder, "model.keras")
        save_model(
            model,
            whole,
            temperature,
            train_x,
            validation_x,
            classes=task.class_names,
            data="synthetic",
            seed=SEED,
            dry_run=dry_run,
        )
        copy_model(whole, path)


def main(argv=None):
    parser = argparse.ArgumentParser("python -m weights", description=__doc__)
    parser.add_argument("script", choices=sorted(TRAINERS), help="the script whose network to train")
    parser.add_argument("--dry-run", action="store_true", help="only check that it works; weights/ stays as it is")
    args = parser.parse_args(argv)
    name = f"{args.script}.keras"
    if args.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            make_weights(args.script, pathlib.Path(folder, name), dry_run=True)
        return 0
    make_weights(args.script, HERE / name)
    write_checksums()
    print(f"Saved {HERE / name}, SHA-256 {sha256(HERE / name)}")
    return 0


if __name__ == "__main__":
    run_main(main)
