"""What `python -m benchmarks` compares: `python -m benchmarks.cases SEED CASE ...` runs one case and prints JSON."""

import importlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time

import numpy as np

import signs_functional
from basics.errors import run_main
from benchmarks.course import signs_network
from benchmarks.stress import stress_sets
from datasets import HAPPY, SIGNS
from datasets.hdf5 import load_h5
from datasets.synthetic import render_dataset
from support.cli import ROOT
from support.startup import start_keras
from support.training.batches import Batches

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


def run_script(script, *arguments):
    """Run a script in this process, as its user does."""
    sys.argv = [f"{script}.py", *arguments]
    runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")


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

    train_x, train_y, _ = load_h5(f"{folder}/train_signs.h5", "train")
    test_x, test_y, _ = load_h5(f"{folder}/test_signs.h5", "test")
    train_x, test_x = train_x / 255, test_x / 255
    keras.utils.set_random_seed(seed)
    model = signs_network()
    watcher, record = watch(test_x, test_y)
    options = {"validation_data": (test_x, test_y), "callbacks": [watcher], "verbose": 0}
    model.fit(train_x, train_y, epochs=100, batch_size=64, **options)
    return {"accuracy": record["accuracy_by_epoch"][-1], **record}


def signs(seed, folder):
    """Run signs_functional.py with its defaults and one more callback."""
    import keras

    test_x, test_y, _ = load_h5(f"{folder}/test_signs.h5", "test")
    watcher, record = watch(test_x, test_y)
    fit = keras.Model.fit
    keras.Model.fit = lambda *args, callbacks, **options: fit(*args, callbacks=[*callbacks, watcher], **options)
    with tempfile.TemporaryDirectory() as output:
        run_script("signs_functional", "--data-dir", folder, "--seed", str(seed), "--output-dir", output)
        paused = time.perf_counter()
        result = accuracy(keras.models.load_model(f"{output}/model.keras"), test_x, test_y)
    record["watching_seconds"] += time.perf_counter() - paused
    return {"accuracy": result, **record}


def trained(script, task, seed, folder, model, others=()):
    """Return the model in the file `model`, or that of a run of the script if this is "", and its metadata.

    `others`: names of networks that the file may hold as well.
    """
    from support.prediction.trained_model import load_trained_model

    with tempfile.TemporaryDirectory() as output:
        if not model:
            run_script(script, "--data-dir", folder, "--seed", str(seed), "--output-dir", output)
        return load_trained_model(output, script, task, weights=model or None, others=others)


def strangers(seed, folder, other, model=""):
    """Test signs_functional.py, or a model in a file, on hands, conditions and whole photographs it has not seen."""
    from support.evaluation.results import certainty
    from support.prediction.answers import classify

    test_x, test_y, _ = load_h5(f"{folder}/test_signs.h5", "test")
    other_x, other_y, _ = load_h5(f"{other}/test_signs.h5", "test")
    no_digit_x, _, _ = load_h5(*render_dataset("signs_other", parts=("test",)), "test")
    model, metadata = trained("signs_functional", SIGNS, seed, folder, model, others=("ResNet50",))
    result = {name: accuracy(model, x, test_y) for name, x in {"test": test_x, **stress_sets(test_x)}.items()}
    answers = classify(model, metadata, other_x[:, None])
    probabilities, _, distances = map(np.array, zip(*answers))
    found = certainty(probabilities, other_y, distances, metadata.not_sure_below, metadata.ood_threshold)
    result |= {f"coverage {row['percent']}": 1 - row["wrong"] / row["answers"] for row in found["coverage"]}
    result |= {"sure": found["sure"]["answers"] / len(other_y), "sure and wrong": found["sure"]["wrong"] / len(other_y)}
    answers = classify(model, metadata, no_digit_x[:, None])
    result["no digit: not sure"] = np.mean([bool(answer.reason) for answer in answers])
    result |= whole_photographs(model, metadata, pathlib.Path(other, "frames"))
    return {name: float(value) for name, value in result.items()}


def whole_photographs(model, metadata, folder):
    """Count the answers for photographs whose names begin with a digit, 3_2.jpg, by what looks for the hand in them."""
    from datasets.images import read_photo
    from support.prediction.answers import classify
    from support.prediction.detection import alone, find_hand
    from support.prediction.search import searcher

    search = searcher(model, metadata.feature_bank, metadata.ood_threshold, find_hand)
    finders = {"color": alone(find_hand), "search": search}
    paths, result = sorted(folder.glob("[0-9]*.jpg")), {}
    for finder, find in finders.items() if paths else ():
        photos = [read_photo(path, model.input_shape[1], "auto", find) for path in paths]
        answers = classify(model, metadata, [photo.views for photo in photos])
        right = [
            metadata.classes[answer.probabilities.argmax()] == path.name[0] for answer, path in zip(answers, paths)
        ]
        sure = [not answer.reason for answer in answers]
        result |= {
            f"{finder}: right and sure": np.sum(np.logical_and(sure, right)),
            f"{finder}: not sure": len(paths) - np.sum(sure),
            f"{finder}: wrong and sure": np.sum(np.logical_and(sure, np.logical_not(right))),
        }
    return result


def smiles(seed, folder, model=""):
    """Test happy_sequential.py on the test photographs in a folder; without a model, train it on the others."""
    x, y, _ = load_h5(f"{folder}/test_happy.h5", "test")
    model, _ = trained("happy_sequential", HAPPY, seed, folder, model)
    return {"accuracy": float(((model.predict(x, verbose=0)[:, 0] > 0.5) == y).mean())}


def summary(seconds, building=0.0):
    """Return what is reported of the seconds of each training step; `building` is part of the first step.

    The fastest step counts: other programs can only make it slower.
    """
    return {"first_step_seconds": building + seconds[0], "images_per_second": BATCH / min(seconds[WARMUP:])}


def time_steps(model, seed, build=True):
    """Train on random images; `build`: create all variables before the first step, and count that as part of it."""
    import keras

    from support.training.run import build_variables

    x, y = random_images(STEPS * BATCH, seed)
    times = []
    events = {f"on_train_batch_{at}": lambda batch, logs: times.append(time.perf_counter()) for at in ("begin", "end")}
    building = elapsed(lambda: build_variables(model, y[:1])) if build else 0.0
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[keras.callbacks.LambdaCallback(**events)])
    return summary(np.diff(times)[::2], building)


def steps(seed, script, onednn):
    """Time training steps and predictions of a script's network, with TF_ENABLE_ONEDNN_OPTS "1" or "0"."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = onednn
    start_keras(seed)
    import keras

    from support.training.fast_layers import accelerate

    model = importlib.import_module(script).build_model(6)
    model.compile(keras.optimizers.Adam(1e-3), loss="categorical_crossentropy", metrics=["accuracy"])
    accelerate(model)
    result = time_steps(model, seed)
    x, _ = random_images(64, seed)
    model.predict_on_batch(x)
    result["predictions_per_second"] = 64 / min(elapsed(lambda: model.predict_on_batch(x)) for _ in range(8))
    return result


def resnet(seed, setup):
    """Time the training steps of ResNet50; `setup`: "script", as in signs_resnet50.py, or Keras's "defaults"."""
    if setup == "script":
        start_keras(seed)
    import keras

    import resnet_utils
    from support.training.fast_layers import accelerate

    model = resnet_utils.ResNet50()
    schedule = keras.optimizers.schedules.CosineDecay(0.0, 900, warmup_steps=100, warmup_target=1e-3)
    model.compile(keras.optimizers.Adam(schedule), loss="categorical_crossentropy", metrics=["accuracy"])
    if setup == "script":
        accelerate(model)
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
    batches = Batches([(1, (x, y), signs_functional.strong_augmentation)], 1, BATCH, seed, len(x)).dataset()
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
