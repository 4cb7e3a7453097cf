"""The things that `python -m benchmarks` times, each run alone: one process, one line of JSON.

    python -m benchmarks.sides course DATA          the course's recipe, from start to end
    python -m benchmarks.sides signs DATA           signs_functional.py, from start to end, with its defaults
    python -m benchmarks.sides resnet POLICY        training steps of our ResNet50
    python -m benchmarks.sides keras                the same network, compiled as Keras comes
    python -m benchmarks.sides torch TYPE           the same network in PyTorch
    python -m benchmarks.sides pipeline             pictures per second: the input pipeline, the training step
    python -m benchmarks.sides inference MODEL      pictures per second of a saved model: alone, in a batch

DATA is a folder with train_signs.h5 and test_signs.h5.
"""

import json
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np

import cnn_utils as utils
from benchmarks.stress import stress_sets

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, WARM = 16, 4         # training steps that are timed one by one; the first of them are not counted
BATCH, SIDE = 32, 64        # pictures in a training step, pixels


def watch(test_x, labels):
    """Return a Keras callback that notes time and test accuracy after every epoch, its own time left out."""
    import keras

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.begun, self.own, self.seconds, self.accuracy = time.perf_counter(), 0.0, [], []

        def on_epoch_end(self, epoch, logs=None):
            now = time.perf_counter()
            self.seconds.append(now - self.begun - self.own)
            outputs = np.concatenate([np.asarray(self.model(test_x[i:i + 120], training=False).numpy())
                                      for i in range(0, len(test_x), 120)])
            self.accuracy.append(float((outputs.argmax(axis=1) == labels).mean()))
            self.own += time.perf_counter() - now
    return Watch()


def course(folder, seed):
    """Two convolutions, 100 epochs, the test set as validation set: the recipe that most learners run."""
    import keras
    from keras import layers

    train_x, train_y, test_x, test_y, _ = utils.load_signs_dataset("real", folder)
    train_x, test_x = train_x / 255, test_x / 255
    keras.utils.set_random_seed(seed)
    inputs = layers.Input((SIDE, SIDE, 3))
    x = layers.ReLU()(layers.Conv2D(8, 4, padding="same")(inputs))
    x = layers.MaxPooling2D(8, padding="same")(x)
    x = layers.ReLU()(layers.Conv2D(16, 2, padding="same")(x))
    x = layers.Flatten()(layers.MaxPooling2D(4, padding="same")(x))
    model = keras.Model(inputs, layers.Dense(6, activation="softmax")(x))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    watcher = watch(test_x, test_y)
    model.fit(train_x, utils.one_hot(train_y, 6), epochs=100, batch_size=64, verbose=0,
              validation_data=(test_x, utils.one_hot(test_y, 6)), callbacks=[watcher])
    return {"accuracy": watcher.accuracy[-1], "seconds_by_epoch": watcher.seconds,
            "accuracy_by_epoch": watcher.accuracy, "watching_seconds": watcher.own}


def signs(folder, seed):
    """The script itself with its defaults, a watcher put beside the callback that writes history.csv."""
    import runpy

    import keras

    watchers = []
    _, _, test_x, test_y, _ = utils.load_signs_dataset("real", folder)
    fit = keras.Model.fit

    def watched_fit(model, *arguments, callbacks, **options):
        watchers.append(watch(test_x, test_y))
        return fit(model, *arguments, callbacks=[*callbacks, *watchers], **options)

    keras.Model.fit = watched_fit
    with tempfile.TemporaryDirectory() as output:
        sys.argv = ["signs_functional.py", "--data-dir", folder, "--seed", str(seed), "--output-dir", output]
        try:
            runpy.run_path(str(ROOT / "signs_functional.py"), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        watcher = watchers[0]
        metrics = json.loads((pathlib.Path(output) / "metrics.json").read_text())
        begun = time.perf_counter()
        model = keras.models.load_model(pathlib.Path(output) / "model.keras")
        harder = {name: float((model.predict(x, verbose=0).argmax(axis=1) == test_y).mean())
                  for name, x in stress_sets(test_x).items()}
        watcher.own += time.perf_counter() - begun
    return {"accuracy": metrics["test_accuracy"], "harder": harder, "seconds_by_epoch": watcher.seconds,
            "accuracy_by_epoch": watcher.accuracy, "watching_seconds": watcher.own}


def timed_fit(model, prepare):
    """Train on random pictures; return the seconds of the first step, and pictures per second after it.

    `prepare`: make the optimizer's and the metrics' variables first, as the scripts do; its time counts.
    """
    import keras

    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            times.append(time.perf_counter())

        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())

    x = np.random.default_rng(0).integers(0, 256, (STEPS * BATCH, SIDE, SIDE, 3), np.uint8)
    y = utils.one_hot(np.arange(len(x)) % 6, 6)
    started = time.perf_counter()
    if prepare:
        utils.make_variables(model, y)
    prepared = time.perf_counter() - started
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[Clock()])
    steps = np.diff(times)[::2]
    return {"first_seconds": prepared + steps[0], "images_per_second": BATCH / float(np.median(steps[WARM:]))}


def resnet(policy):
    """The training steps of signs_resnet50.py, compiled as it compiles them."""
    import keras
    import tensorflow as tf

    from resnet_utils import ResNet50, fuse_updates

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    keras.mixed_precision.set_global_policy(policy)
    model = ResNet50()
    model.compile(fuse_updates(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, 1000))),
                  loss="categorical_crossentropy", metrics=["accuracy"])
    return timed_fit(model, prepare=True)


def keras_():
    """The same network with Keras's defaults throughout."""
    import keras

    from resnet_utils import ResNet50

    model = ResNet50()
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, 1000)),
                  loss="categorical_crossentropy", metrics=["accuracy"])
    return timed_fit(model, prepare=False)


def torch_(kind):
    """The same network in PyTorch, channels last, its fused Adam; `kind` is fp32 or bf16 (autocast)."""
    import torch
    from torch import nn

    torch.set_num_threads(os.cpu_count())

    class Block(nn.Module):
        def __init__(self, channels, inner, outer, stride):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(channels, inner, 1, stride), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
                nn.Conv2d(inner, inner, 3, 1, 1), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
                nn.Conv2d(inner, outer, 1), nn.BatchNorm2d(outer))
            self.shortcut = nn.Identity() if channels == outer else nn.Sequential(
                nn.Conv2d(channels, outer, 1, stride), nn.BatchNorm2d(outer))

        def forward(self, x):
            return nn.functional.relu(self.body(x) + self.shortcut(x), inplace=True)

    parts = [nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    channels = 64
    for inner, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(blocks):
            parts.append(Block(channels, inner, 4 * inner, 1 if number else stride))
            channels = 4 * inner
    model = nn.Sequential(*parts, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2048, 6))
    model = model.to(memory_format=torch.channels_last)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters != 23_546_886:        # those of our ResNet50 that are trained
        raise SystemExit(f"Not the same network: {parameters} parameters")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    pictures = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 6
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            loss = nn.functional.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return {"first_seconds": seconds[0], "images_per_second": BATCH / float(np.median(seconds[WARM:]))}


def pipeline():
    """How many pictures a second the input pipeline of signs_functional.py delivers, and how many its model takes."""
    import signs_functional

    utils.start_tensorflow(1, utils.computes_bfloat16())
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2048, SIDE, SIDE, 3), np.uint8)
    y = utils.one_hot(np.arange(len(x)) % 6, 6)
    batches = utils.training_batches(x, y, BATCH, 1, signs_functional.change_a_lot)
    model = signs_functional.build_model()
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    step = timed_fit(model, prepare=True)["images_per_second"]
    for _ in batches.take(8):
        pass
    started = time.perf_counter()
    for _ in batches:
        pass
    return {"pipeline": len(x) / (time.perf_counter() - started), "step": step}


def inference(path):
    """Pictures per second of a saved model: one at a time, and 256 in batches of 64."""
    import keras

    model = keras.models.load_model(path)
    pictures = np.random.default_rng(0).integers(0, 256, (256, SIDE, SIDE, 3), np.uint8)
    model.predict(pictures[:1], verbose=0)
    model.predict(pictures, batch_size=64, verbose=0)
    started = time.perf_counter()
    for picture in pictures[:32]:
        model.predict(picture[np.newaxis], verbose=0)
    one = 32 / (time.perf_counter() - started)
    started = time.perf_counter()
    model.predict(pictures, batch_size=64, verbose=0)
    return {"one": one, "batch": len(pictures) / (time.perf_counter() - started)}


SIDES = {"course": course, "signs": signs, "resnet": resnet, "keras": keras_, "torch": torch_,
         "pipeline": pipeline, "inference": inference}

if __name__ == "__main__":
    name, *values = sys.argv[1:]
    result = SIDES[name](*(int(value) if value.isdigit() else value for value in values))
    # ru_maxrss is in KiB on Linux.
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))
