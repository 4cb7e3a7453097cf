"""What `python -m benchmarks` compares: `python -m benchmarks.cases SEED CASE ...` runs one case and prints JSON."""

import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

import signs_functional
from benchmarks.stress import stress_sets
from datasets.hdf5 import load_h5
from datasets.synthetic import render_dataset
from support.curriculum import Curriculum, Stage
from support.errors import run_main
from support.startup import start_keras

BATCH, STEPS, WARMUP = 32, 24, 4  # the first four training steps do not count for the speed


def random_images(count, seed):
    """Return uint8 images (count, 64, 64, 3) and one-hot labels (count, 6)."""
    x = np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)
    return x, np.eye(6, dtype=np.float32)[np.arange(count) % 6]


def elapsed(function):
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def accuracy(model, x, labels):
    return float((model.predict(x, verbose=0).argmax(axis=1) == labels).mean())


def watch(test_x, labels):
    """Return a Keras callback, and the dict in which it notes time and test accuracy after each epoch."""
    import keras

    record = {"seconds_by_epoch": [], "accuracy_by_epoch": [], "watching_seconds": 0.0}

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            paused = time.perf_counter()
            record["seconds_by_epoch"].append(paused - self.started - record["watching_seconds"])
            record["accuracy_by_epoch"].append(accuracy(self.model, test_x, labels))
            record["watching_seconds"] += time.perf_counter() - paused

    return Watch(), record


def course(seed, folder):
    """Train as the course and most learners do: two convolutions, 100 epochs, the test set for validation."""
    import keras
    from keras import layers

    train_x, train_y, _ = load_h5(f"{folder}/train_signs.h5", "train")
    test_x, test_y, _ = load_h5(f"{folder}/test_signs.h5", "test")
    train_x, test_x = train_x / 255, test_x / 255
    keras.utils.set_random_seed(seed)
    inputs = layers.Input((64, 64, 3))
    x = layers.Conv2D(8, 4, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D(8, padding="same")(x)
    x = layers.Conv2D(16, 2, padding="same", activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D(4, padding="same")(x))
    model = keras.Model(inputs, layers.Dense(6, activation="softmax")(x))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    watcher, record = watch(test_x, test_y)
    options = {"validation_data": (test_x, np.eye(6)[test_y]), "callbacks": [watcher], "verbose": 0}
    model.fit(train_x, np.eye(6)[train_y], epochs=100, batch_size=64, **options)
    return {"accuracy": record["accuracy_by_epoch"][-1], **record}


def signs(seed, folder):
    """Run signs_functional.py with its defaults and one more callback."""
    import keras

    test_x, test_y, _ = load_h5(f"{folder}/test_signs.h5", "test")
    watcher, record = watch(test_x, test_y)
    fit = keras.Model.fit
    keras.Model.fit = lambda *args, callbacks, **options: fit(*args, callbacks=[*callbacks, watcher], **options)
    with tempfile.TemporaryDirectory() as output:
        sys.argv = ["signs_functional.py", "--data-dir", folder, "--seed", str(seed), "--output-dir", output]
        signs_functional.main()
        paused = time.perf_counter()
        result = accuracy(keras.models.load_model(f"{output}/model.keras"), test_x, test_y)
    record["watching_seconds"] += time.perf_counter() - paused
    return {"accuracy": result, **record}


def strangers(seed, folder, other):
    """Run signs_functional.py with its defaults; test its model on hands and conditions that it has not seen."""
    from support.predict import classify
    from support.trained_model import load_trained_model

    test_x, test_y, _ = load_h5(f"{folder}/test_signs.h5", "test")
    other_x, other_y, _ = load_h5(f"{other}/test_signs.h5", "test")
    no_digit_x, _, _ = load_h5(*render_dataset("signs_other", parts=("test",)), "test")
    with tempfile.TemporaryDirectory() as output:
        sys.argv = ["signs_functional.py", "--data-dir", folder, "--seed", str(seed), "--output-dir", output]
        signs_functional.main()
        model, metadata = load_trained_model(output, "signs_functional", ())
    result = {name: accuracy(model, x, test_y) for name, x in {"test": test_x, **stress_sets(test_x)}.items()}
    answers = classify(model, metadata, other_x)
    confidence = np.array([probabilities.max() for probabilities, _ in answers])
    right = np.array([probabilities.argmax() for probabilities, _ in answers]) == other_y
    sure = np.array([not reason for _, reason in answers])
    by_confidence = right[np.argsort(-confidence, kind="stable")]
    result |= {f"coverage {share}": by_confidence[: len(right) * share // 100].mean() for share in (100, 90, 80, 60)}
    result |= {"sure": sure.mean(), "sure and wrong": (sure & ~right).mean()}
    result["no digit: not sure"] = np.mean([bool(reason) for _, reason in classify(model, metadata, no_digit_x)])
    return {name: float(value) for name, value in result.items()}


def summary(seconds, building=0.0):
    """Return what is reported of the seconds of each training step; `building` is part of the first step.

    The fastest step counts: other programs can only make it slower.
    """
    return {"first_step_seconds": building + seconds[0], "images_per_second": BATCH / min(seconds[WARMUP:])}


def time_steps(model, seed, build=True):
    """Train on random images; `build`: create all variables before the first step, and count that as part of it."""
    import keras

    from support.run import build_variables

    x, y = random_images(STEPS * BATCH, seed)
    times = []
    events = {f"on_train_batch_{at}": lambda batch, logs: times.append(time.perf_counter()) for at in ("begin", "end")}
    building = elapsed(lambda: build_variables(model, y[:1])) if build else 0.0
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[keras.callbacks.LambdaCallback(**events)])
    return summary(np.diff(times)[::2], building)


def resnet(seed, setup):
    """Time the training steps of ResNet50; `setup`: "script", as in signs_resnet50.py, or Keras's "defaults"."""
    if setup == "script":
        start_keras(seed, rewrite_graph=False)
    import keras

    import resnet_utils
    from support.fused_adam import Adam

    if setup == "defaults":
        Adam, resnet_utils.BatchNormalization = keras.optimizers.Adam, keras.layers.BatchNormalization
        resnet_utils.Conv2D = keras.layers.Conv2D
    model = resnet_utils.ResNet50()
    schedule = keras.optimizers.schedules.CosineDecay(0.0, 900, warmup_steps=100, warmup_target=1e-3)
    model.compile(Adam(schedule), loss="categorical_crossentropy", metrics=["accuracy"])
    return time_steps(model, seed, build=setup == "script")


def pytorch(seed, precision):
    """Time the training steps of the same network in PyTorch on the CPU; `precision`: fp32 or bf16."""
    import torch
    from torch import nn

    def conv(channels, filters, kernel, stride=1, padding=0):
        return nn.Sequential(nn.Conv2d(channels, filters, kernel, stride, padding), nn.BatchNorm2d(filters))

    class Block(nn.Module):
        def __init__(self, channels, inner, stride):
            super().__init__()
            relu, last = nn.ReLU(inplace=True), conv(inner, 4 * inner, 1)
            self.body = nn.Sequential(conv(channels, inner, 1, stride), relu, conv(inner, inner, 3, 1, 1), relu, last)
            self.shortcut = conv(channels, 4 * inner, 1, stride) if channels != 4 * inner else nn.Identity()

        def forward(self, x):
            return nn.functional.relu(self.body(x) + self.shortcut(x), inplace=True)

    torch.manual_seed(seed)
    torch.set_num_threads(os.cpu_count())
    layers, channels = [conv(3, 64, 7, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)], 64
    for inner, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        layers += [Block(channels, inner, stride), *(Block(4 * inner, inner, 1) for _ in range(blocks - 1))]
        channels = 4 * inner
    model = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2048, 6))
    model = model.to(memory_format=torch.channels_last)
    assert sum(weight.numel() for weight in model.parameters()) == 23_546_886  # as many as our ResNet50 trains
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    images = torch.randn(BATCH, 3, 64, 64).to(memory_format=torch.channels_last)

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(model(images), torch.arange(BATCH) % 6)
        loss.backward()
        optimizer.step()

    return summary([elapsed(step) for _ in range(STEPS)])


def convolutions(seed, *case):
    """Run a case of training steps with oneDNN's log; return the share of the convolutions in the time of a step.

    Matrix products count as convolutions: all but those of the last layer, less than 1 %, are 1x1 convolutions.
    """
    # One operation at a time, or TensorFlow's overlapping ones would count twice.
    environment = os.environ | {"ONEDNN_VERBOSE": "profile_exec", "TF_NUM_INTEROP_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.cases", str(seed), *case]
    log = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    executed = [line.split(",") for line in log if line.startswith("onednn_verbose") and ",exec," in line]
    times = [float(fields[-1]) for fields in executed if {"convolution", "matmul"} & set(fields[4:6])]
    seconds = np.reshape(times, (STEPS, -1)).sum(axis=1)[WARMUP:] / 1000  # the log is in milliseconds
    return {"share": min(seconds) * json.loads(log[-1])["images_per_second"] / BATCH}


def pipeline(seed):
    """Measure the images per second of signs_functional.py's strong augmentation and of its training step."""
    start_keras(seed)
    model = signs_functional.build_model()
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    training = time_steps(model, seed)["images_per_second"]
    x, y = random_images(2048, seed)
    stage = Stage("strong augmentation", 1, x, y, signs_functional.strong_augmentation)
    batches = Curriculum([stage], 1, BATCH, seed, len(x)).dataset()
    list(batches.take(8))  # the first batches are slower
    return {"pipeline": len(x) / elapsed(lambda: sum(1 for _ in batches)), "training": training}


def inference(seed, path):
    """Measure the images per second of a saved model: one by one in two ways, and in batches of 64."""
    import keras

    model = keras.models.load_model(path)
    x, _ = random_images(256, seed)
    # `predict` sets up a data pipeline for each call; `predict_on_batch` only calls the traced network.
    calls = {"predict": lambda batch: model.predict(batch, verbose=0), "predict_on_batch": model.predict_on_batch}
    batches = [x[start : start + 64] for start in range(0, len(x), 64)]
    speeds = {}
    for name, call in calls.items():
        call(x[:1])  # the first prediction of each shape is slower
        speeds[name] = 32 / elapsed(lambda call=call: [call(x[i : i + 1]) for i in range(32)])
    model.predict_on_batch(batches[0])
    return speeds | {"batches": len(x) / elapsed(lambda: [model.predict_on_batch(batch) for batch in batches])}


if __name__ == "__main__":
    seed, case, *arguments = sys.argv[1:]
    run_main(lambda: print(json.dumps(globals()[case](int(seed), *arguments)), flush=True))
