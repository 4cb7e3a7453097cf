"""The three scripts as their users run them: as commands, in a process of their own."""

import csv
import json
import re
import sys

import numpy as np
import pytest
from conftest import REAL, SHARED, run_code, run_script
from PIL import Image

SCRIPTS = {"happy_sequential": "happy", "signs_functional": "signs", "signs_resnet50": "signs"}
# Photographs lie beside the checkout on some machines only; synthetic images can be rendered everywhere.
SOURCES = ["synthetic"] + (["real"] if SHARED.is_dir() else [])
FIGURES = {"examples.png", "learning_curves.png", "confusion_matrix.png", "mistakes.png", "reliability.png"}

# The stages of a dry run and their epochs, with SYNTHETIC images beside photographs and without.
STAGES = {
    ("happy_sequential", "real"): [("strong augmentation", [1, 3]), ("weak augmentation", [4, 4])],
    ("happy_sequential", "synthetic"): [("strong augmentation", [1, 3]), ("weak augmentation", [4, 4])],
    ("signs_functional", "real"): [("strong augmentation", [1, 2]), ("weak augmentation", [3, 4])],
    ("signs_functional", "synthetic"): [("strong augmentation", [1, 2]), ("weak augmentation", [3, 4])],
    ("signs_resnet50", "real"): [
        ("SYNTHETIC images added", [1, 1]),
        ("strong augmentation", [2, 3]),
        ("weak augmentation", [4, 4]),
    ],
    ("signs_resnet50", "synthetic"): [("strong augmentation", [1, 3]), ("weak augmentation", [4, 4])],
}


@pytest.fixture(scope="module")
def dry_runs(tmp_path_factory):
    """Return a function that gives a script's dry run on a source: its output folder and process, run once."""
    done = {}

    def dry_run(script, source):
        if (script, source) not in done:
            folder = tmp_path_factory.mktemp(f"{script}_{source}")
            data = ["--data-dir", REAL[SCRIPTS[script]]] if source == "real" else ["--data", "synthetic"]
            # Started in another folder: nothing may depend on the working directory.
            done[script, source] = folder, run_script(script, "--dry-run", "--output-dir", folder, *data, cwd=folder)
        return done[script, source]

    return dry_run


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def read_history(folder):
    with open(folder / "history.csv") as file:
        return list(csv.DictReader(file))


def stages_of(folder):
    return [(stage["name"], stage["epochs"]) for stage in read_metrics(folder)["stages"]]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_goes_through_the_whole_script(dry_runs, script, source):
    folder, process = dry_runs(script, source)
    assert process.returncode == 0, process.stderr
    files = {"model.keras", "history.csv", "metrics.json", "mistakes.csv", "report.html"}
    assert {path.name for path in folder.iterdir()} == FIGURES | files

    metrics = read_metrics(folder)
    assert metrics["script"] == script and metrics["data"] == source and metrics["dry_run"] is True
    assert set(metrics["data_files"]) == {f"train_{SCRIPTS[script]}.h5", f"test_{SCRIPTS[script]}.h5"}
    assert metrics["epochs"] == 4 and metrics["seed"] == 1 and metrics["train_seconds"] > 0
    low, high = metrics["test_accuracy_interval"]
    assert 0 <= low <= metrics["test_accuracy"] <= high <= 1
    if script == "signs_resnet50":
        assert metrics["parameters"] == 23_600_006
    assert [set(row) >= {"epoch", "loss", "val_loss"} for row in read_history(folder)] == [True] * 4

    printed = process.stdout
    for line in (
        r"^Device: ",
        r"^Data: ",
        r"^As loaded",
        r"Total params",
        r"^Test loss:",
        r"interval .* to ",
        r"precision\s+recall",
        r"^Saved .*model.keras",
        r"^Saved .*metrics.json",
    ):
        assert re.search(line, printed, re.MULTILINE), f"{line} is not printed"
    # SYNTHETIC images may be added, or the weights come from them, which three lines say: photographs are never
    # called SYNTHETIC.
    added = ("Added ", "4 epochs of ", "Weights: ")
    said = [line for line in printed.splitlines() if "SYNTHETIC" in line and not line.startswith(added)]
    assert bool(said) == (source == "synthetic")
    assert process.stderr.replace("\r", "\n").strip() == "" or "Rendering" in process.stderr, process.stderr


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_goes_through_every_stage(dry_runs, script, source):
    folder, _ = dry_runs(script, source)
    assert stages_of(folder) == STAGES[script, source]
    mixed = script == "signs_functional" or (script == "signs_resnet50" and source == "real")
    assert (read_metrics(folder)["synthetic_examples"] > 0) == mixed


# ------------------------------------------------- synthetic images beside photographs


@pytest.fixture
def small_real_set(tmp_path, write_h5):
    """A folder with two files of random pixels that pass for photographs: four images of each class and two."""
    folder = tmp_path / "data"
    folder.mkdir()
    for part, count in (("train", 24), ("test", 12)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)
        write_h5(folder / f"{part}_signs.h5", part, x=pixels, y=np.arange(count) % 6)
    return folder


COUNTED = """
import atexit, collections, h5py, pathlib
import cnn_utils, datasets.hdf5

calls = collections.Counter()

def counted(name):
    function = getattr(cnn_utils, name)
    def count(*arguments, **options):
        calls[name, *(pathlib.Path(value).name for value in arguments if ".h5" in str(value))] += 1
        return function(*arguments, **options)
    setattr(cnn_utils, name, count)

counted("find_data"), counted("load_h5"), counted("sha256")
atexit.register(lambda: print("calls:", sorted(calls.items())))
import signs_functional
signs_functional.main()
"""


def test_data_are_found_and_read_once_and_synthetic_images_are_added(small_real_set, tmp_path):
    """On any machine: what passes for photographs is trained on in all stages."""
    out = tmp_path / "out"
    process = run_code(COUNTED, "--dry-run", "--data-dir", small_real_set, "--output-dir", out)
    assert process.returncode == 0, process.stderr
    calls = [("find_data",), ("load_h5", "test_signs.h5"), ("load_h5", "train_signs.h5")]
    calls += [("sha256", "test_signs.h5"), ("sha256", "train_signs.h5")]
    counts = {call: 1 for call in calls}
    counts["load_h5", "train_signs_and_others.h5"] = 1  # the SYNTHETIC images
    assert f"calls: {sorted(counts.items())}" in process.stdout
    assert "Added 56 SYNTHETIC images to the 18 of the set" in process.stdout
    assert read_metrics(out)["synthetic_examples"] == 56 and read_metrics(out)["examples_per_epoch"] == 18
    assert stages_of(out) == STAGES["signs_functional", "real"]
    assert len(read_history(out)) == 4


def test_the_earlier_name_of_no_mix_synthetic_still_works(small_real_set, tmp_path):
    """Fewer epochs than stages as well: N epochs are N rows of the history."""
    arguments = ["--epochs", 1, "--no-rendered", "--weights", "random"]
    arguments += ["--data-dir", small_real_set, "--output-dir", tmp_path / "out"]
    process = run_script("signs_functional", *arguments)
    assert process.returncode == 0 and "SYNTHETIC" not in process.stdout, process.stderr
    metrics = read_metrics(tmp_path / "out")
    assert metrics["mix_synthetic"] is False and metrics["synthetic_examples"] == 0
    assert [row["epoch"] for row in read_history(tmp_path / "out")] == ["1"]
    assert stages_of(tmp_path / "out") == [("weak augmentation", [1, 1])]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs photographs")
@pytest.mark.parametrize("script", ["signs_functional", "signs_resnet50"])
def test_synthetic_images_are_added_to_photographs_and_reported(dry_runs, tmp_path, script):
    folder, process = dry_runs(script, "real")
    assert "Added 56 SYNTHETIC images to the " in process.stdout
    assert read_metrics(folder)["synthetic_examples"] == 56
    arguments = ["--dry-run", "--no-mix-synthetic", "--weights", "random"]
    arguments += ["--data-dir", REAL[SCRIPTS[script]], "--output-dir", tmp_path]
    without = run_script(script, *arguments)
    assert without.returncode == 0 and "SYNTHETIC" not in without.stdout
    assert read_metrics(tmp_path)["synthetic_examples"] == 0
    assert stages_of(tmp_path) == STAGES[script, "synthetic"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs photographs")
def test_synthetic_faces_are_left_out_beside_few_photographs(dry_runs):
    folder, process = dry_runs("happy_sequential", "real")
    assert "Added" not in process.stdout and read_metrics(folder)["synthetic_examples"] == 0


# --------------------------------------------------------------- precision and seeds


@pytest.mark.parametrize(
    "switch, words", [("--mixed-precision", "bfloat16 and float32"), ("--no-mixed-precision", "float32")]
)
def test_mixed_precision_is_reported_and_the_saved_model_is_float32(switch, words, tmp_path):
    import keras

    process = run_script("signs_functional", "--dry-run", "--data", "synthetic", switch, "--output-dir", tmp_path)
    assert process.returncode == 0, process.stderr
    device = next(line for line in process.stdout.splitlines() if line.startswith("Device: "))
    assert f", {words} (TensorFlow" in device
    model = keras.models.load_model(tmp_path / "model.keras")
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert read_metrics(tmp_path)["mixed_precision"] == (switch == "--mixed-precision")


def test_several_seeds_are_several_single_runs_and_fix_the_result(dry_runs, tmp_path):
    arguments = ["--dry-run", "--data", "synthetic", "--seeds", 2, "--output-dir", tmp_path]
    process = run_script("signs_functional", *arguments)
    assert process.returncode == 0, process.stderr
    single = {seed: read_metrics(tmp_path / f"seed_{seed}") for seed in "12"}
    assert {seed: metrics["seed"] for seed, metrics in single.items()} == {"1": 1, "2": 2}
    summary = json.loads((tmp_path / "seeds.json").read_text())
    assert summary["test_accuracy"] == {seed: metrics["test_accuracy"] for seed, metrics in single.items()}
    mean = r"^Mean \d+\.\d+%, standard deviation .*, 95 % interval of the mean "
    assert re.search(mean, process.stdout, re.MULTILINE)
    # The same seed gives the same result, another one another; sums over threads may differ in their last digits.
    expected = first_losses(dry_runs("signs_functional", "synthetic")[0])
    assert first_losses(tmp_path / "seed_1") == pytest.approx(expected, rel=1e-4)
    assert first_losses(tmp_path / "seed_2") != pytest.approx(expected, rel=1e-4)


def test_folds_are_several_single_runs_that_test_every_training_image_once(small_real_set, tmp_path):
    arguments = ["--epochs", 1, "--no-mix-synthetic", "--data-dir", small_real_set, "--output-dir"]
    process = run_script("signs_functional", *arguments, tmp_path / "out", "--folds", 2)
    assert process.returncode == 0, process.stderr
    single = {fold: read_metrics(tmp_path / "out" / f"fold_{fold}") for fold in "12"}
    assert [metrics["fold"] for metrics in single.values()] == ["1/2", "2/2"]
    for metrics in single.values():  # two of the four images of each class; one of the others is validated on
        assert [entry["examples"] for entry in metrics["classes"]] == [2] * 6
        assert (metrics["train_examples"], metrics["validation_examples"], metrics["test_examples"]) == (6, 6, 12)
    summary = json.loads((tmp_path / "out" / "folds.json").read_text())
    assert summary["test_accuracy"] == {fold: metrics["test_accuracy"] for fold, metrics in single.items()}
    with open(tmp_path / "out" / "folds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["fold"], row["images"]) for row in rows] == [("1", "12"), ("2", "12")]
    assert [float(row["accuracy"]) for row in rows] == list(summary["test_accuracy"].values())
    assert re.search(r"^fold  images  right  accuracy  balanced accuracy\n   1      12 ", process.stdout, re.MULTILINE)
    assert re.search(
        r"^Mean \d+\.\d+%, standard deviation .*, 95 % interval of the mean ", process.stdout, re.MULTILINE
    )
    assert re.search(r"^Together: \d+ of 24 right, .*; 95 % interval ", process.stdout, re.MULTILINE)
    assert f"Fold 1 of 2: 12 of 24 images to test on, the others to train on; {small_real_set}/test_" in process.stdout
    # One fold is repeated by hand, bit for bit.
    again = run_script("signs_functional", *arguments, tmp_path / "again", "--fold", "2/2")
    assert again.returncode == 0, again.stderr
    repeated = read_metrics(tmp_path / "again")
    assert {**repeated, "train_seconds": 0} == {**single["2"], "train_seconds": 0}


@pytest.mark.parametrize(
    "options, words",
    [
        (["--folds", 3, "--predict", "me.jpg"], "--folds is for training.*Received: --folds 3 and --predict"),
        (["--folds", 3, "--export", "onnx"], "--folds is for training.*Received: --folds 3 and --export"),
        (["--folds", 3, "--seeds", 2], "Received: --seeds 2 --folds 3"),
        (["--folds", 3, "--fold", "1/3"], "Received: --folds 3 --fold 1/3"),
        (["--folds", 5], "5 folds need at least 5 images of each class.*Received: a class of 4"),
        (["--fold", "4/3"], "expected I/K, such as 2/5.*Received: '4/3'"),
        (["--fold", "0/3"], "Received: '0/3'"),
        (["--fold", "1/1"], "Received: '1/1'"),
    ],
)
def test_folds_that_make_no_sense_are_refused(small_real_set, tmp_path, options, words):
    process = run_script("signs_functional", "--data-dir", small_real_set, "--output-dir", tmp_path / "out", *options)
    assert process.returncode == 2 and re.search(words, process.stderr) and "Traceback" not in process.stderr


def first_losses(folder):
    row = read_history(folder)[0]
    return [float(row["loss"]), float(row["val_loss"])]


def test_several_seeds_of_a_prediction_are_refused(tmp_path):
    process = run_script("signs_functional", "--seeds", 3, "--predict", "me.jpg", "--output-dir", tmp_path)
    assert process.returncode == 2 and "Received: --seeds 3 and --predict" in process.stderr
    assert process.stderr.count("\n") == 1


# ------------------------------------------------------------------ the trained model


@pytest.mark.parametrize("script", SCRIPTS)
def test_predict_answers_and_shows_what_the_model_saw(dry_runs, script, tmp_path):
    folder, _ = dry_runs(script, "synthetic")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    images = [tmp_path / "mine.png", broken, tmp_path / "absent.png", tmp_path / "mine.png"]
    process = run_script(script, "--output-dir", folder, "--predict", *images)
    assert process.returncode == 1  # two could not be read ...
    assert f"error: {broken}: " in process.stderr and "absent.png: " in process.stderr
    # ... the others were answered: a network of four epochs must not be sure about noise.
    answers = re.findall(r"mine\.png: not sure, .*; best guess (.+?) \((\d+\.\d)%\);", process.stdout)
    assert len(answers) == 2 and answers[0] == answers[1]
    assert "SYNTHETIC" in process.stdout and "Epoch" not in process.stdout
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "predictions" / "01_mine.png")), pixels)
    assert (folder / "predictions" / "predictions.png").exists()


def test_predict_without_a_model_says_how_to_get_one(tmp_path):
    process = run_script("signs_resnet50", "--output-dir", tmp_path, "--predict", "me.jpg")
    assert process.returncode == 2 and "python signs_resnet50.py" in process.stderr


@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_the_small_networks_answer_before_any_training(tmp_path, script):
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "gray.png")
    process = run_script(script, "--output-dir", tmp_path, "--predict", tmp_path / "gray.png")
    assert process.returncode == 0, process.stderr
    assert re.search(r"no trained model in .*\nModel: .*weights.*, trained on SYNTHETIC images only", process.stdout)
    assert "gray.png: " in process.stdout and (tmp_path / "predictions" / "predictions.csv").exists()


# -------------------------------------------------------------------- the command line


def test_the_described_variant_is_one_option_away(tmp_path, monkeypatch):
    import resnet_utils
    import signs_resnet50

    class Built(Exception):
        """Ends the script where it builds: what is built is tested in test_resnet.py."""

    def build(**options):
        raise Built(options)

    monkeypatch.setattr(resnet_utils, "ResNet50", build)
    arguments = ["--dry-run", "--data", "synthetic", "--output-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["signs_resnet50.py", *arguments, "--identity-blocks", "2", "3", "5", "3"])
    with pytest.raises(Built) as built:
        signs_resnet50.main()
    assert built.value.args[0] == {"classes": 6, "identity_blocks": [2, 3, 5, 3]}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "many"], "'many'"),
        (["--batch-size", "-1"], "--batch-size"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--seed", "-3"], "--seed"),
        (["--seed", 2**32], "--seed"),
        (["--data", "imaginary"], "'imaginary'"),
        (["--data-dir", "no/such/folder"], "'no/such/folder'"),
        (["--epoch", "3"], "--epoch"),
        (["--predict"], "--predict"),
        (["--seeds", "0"], "--seeds"),
        (["--crop", "middle"], "'middle'"),
        (["--crop", "0,0,0"], "'0,0,0'"),
    ],
)
def test_a_wrong_argument_is_named(script, arguments, named):
    process = run_script(script, *arguments)
    assert process.returncode == 2
    assert named in process.stderr.splitlines()[-1] and "Traceback" not in process.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script):
    code = (
        f"import atexit, {script}\n"
        "heavy = {'tensorflow', 'keras', 'matplotlib', 'h5py', 'numpy', 'scipy', 'PIL'}\n"
        "atexit.register(lambda: print('loaded:', heavy & set(sys.modules)))\n"
        f"{script}.main()"
    )
    process = run_code(code, "--help")
    assert process.returncode == 0 and "usage: " in process.stdout and "loaded: set()" in process.stdout
    assert "--mix-synthetic" in process.stdout and "--rendered" not in process.stdout
    assert "an epoch is " in " ".join(process.stdout.split())


def test_missing_data_is_one_line_and_code_2(tmp_path):
    process = run_script("signs_functional", "--data", "real", "--data-dir", tmp_path, "--output-dir", tmp_path)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1 and "train_signs.h5 and test_signs.h5 missing" in process.stderr
