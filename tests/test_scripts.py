"""The three scripts as their users run them: as commands, in a process of their own."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import REAL, ROOT, SHARED, run_script
from PIL import Image

SCRIPTS = {"happy_sequential": "happy", "signs_functional": "signs", "signs_resnet50": "signs"}
# The photographs lie beside the checkout on some machines only; rendered pictures are everywhere.
SOURCES = ["synthetic"] + (["real"] if SHARED.is_dir() else [])
FIGURES = {"examples.png", "learning_curves.png", "confusion_matrix.png", "mistakes.png", "reliability.png"}


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


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_goes_the_whole_path(dry_runs, script, source):
    folder, process = dry_runs(script, source)
    assert process.returncode == 0, process.stderr
    files = {"model.keras", "history.csv", "metrics.json", "report.html"}
    assert {path.name for path in folder.iterdir()} == FIGURES | files

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["script"] == script and metrics["data"] == source and metrics["dry_run"] is True
    assert set(metrics["data_files"]) == {f"train_{SCRIPTS[script]}.h5", f"test_{SCRIPTS[script]}.h5"}
    assert metrics["epochs"] == 1 and metrics["seed"] == 1 and metrics["train_seconds"] > 0
    low, high = metrics["test_accuracy_interval"]
    assert 0 <= low <= metrics["test_accuracy"] <= high <= 1
    if script == "signs_resnet50":
        assert metrics["parameters"] == 23_600_006
    with open(folder / "history.csv") as file:
        assert [set(row) >= {"epoch", "loss", "val_loss"} for row in csv.DictReader(file)] == [True]

    printed = process.stdout
    for line in (r"^Device: ", r"^Data: ", r"^As loaded", r"Total params", r"^Test loss:", r"interval .* to ",
                 r"precision\s+recall", r"^Saved .*model.keras", r"^Saved .*metrics.json"):
        assert re.search(line, printed, re.MULTILINE), f"{line} is not printed"
    # Rendered hands may be added to photographs; then one line says so, and nothing else is called SYNTHETIC.
    said = [line for line in printed.splitlines() if "SYNTHETIC" in line and not line.startswith("Added ")]
    assert bool(said) == (source == "synthetic")
    assert process.stderr.replace("\r", "\n").strip() == "" or "Rendering" in process.stderr, process.stderr


@pytest.mark.parametrize("switch, words", [("--mixed-precision", "bfloat16 and float32"),
                                           ("--no-mixed-precision", "float32")])
def test_mixed_precision_is_said_and_the_saved_model_is_float32(switch, words, tmp_path):
    import keras

    process = run_script("signs_functional", "--dry-run", "--data", "synthetic", switch, "--output-dir", tmp_path)
    assert process.returncode == 0, process.stderr
    device = next(line for line in process.stdout.splitlines() if line.startswith("Device: "))
    assert f", {words} (TensorFlow" in device
    model = keras.models.load_model(tmp_path / "model.keras")
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert json.loads((tmp_path / "metrics.json").read_text())["mixed_precision"] == (switch == "--mixed-precision")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs photographs")
@pytest.mark.parametrize("script, count", [("happy_sequential", 16), ("signs_functional", 48), ("signs_resnet50", 48)])
def test_rendered_pictures_are_added_to_photographs_and_said(dry_runs, tmp_path, script, count):
    folder, process = dry_runs(script, "real")
    assert f"Added {count} SYNTHETIC pictures to the " in process.stdout
    assert json.loads((folder / "metrics.json").read_text())["rendered_examples"] == count
    without = run_script(script, "--dry-run", "--no-rendered", "--data-dir", REAL[script.partition("_")[0]],
                         "--output-dir", tmp_path)
    assert without.returncode == 0 and "SYNTHETIC" not in without.stdout


def test_several_seeds_are_several_single_runs(dry_runs, tmp_path):
    process = run_script("signs_functional", "--dry-run", "--data", "synthetic", "--seeds", 2, "--output-dir", tmp_path)
    assert process.returncode == 0, process.stderr
    assert first_losses(tmp_path / "seed_1") == pytest.approx(
        first_losses(dry_runs("signs_functional", "synthetic")[0]), rel=1e-4)
    summary = json.loads((tmp_path / "seeds.json").read_text())
    single = {seed: json.loads((tmp_path / f"seed_{seed}" / "metrics.json").read_text()) for seed in "12"}
    assert {seed: metrics["seed"] for seed, metrics in single.items()} == {"1": 1, "2": 2}
    assert summary["test_accuracy"] == {seed: metrics["test_accuracy"] for seed, metrics in single.items()}
    assert re.search(r"^Mean \d+\.\d+%, standard deviation .*, 95 % interval of the mean ", process.stdout,
                     re.MULTILINE)


def first_losses(folder):
    with open(folder / "history.csv") as file:
        row = next(csv.DictReader(file))
    return [float(row["loss"]), float(row["val_loss"])]


def test_the_same_seed_gives_the_same_result(dry_runs, tmp_path):
    first = first_losses(dry_runs("signs_functional", "synthetic")[0])
    for seed in (1, 2):
        run_script("signs_functional", "--dry-run", "--data", "synthetic", "--seed", seed, "--output-dir", tmp_path)
        # Sums over threads may differ in their last digits.
        assert (first_losses(tmp_path) == pytest.approx(first, rel=1e-4)) == (seed == 1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_predict_answers_and_shows_what_the_model_saw(dry_runs, script, tmp_path):
    folder, _ = dry_runs(script, "synthetic")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    process = run_script(script, "--output-dir", folder, "--predict", tmp_path / "mine.png", broken,
                         tmp_path / "absent.png", tmp_path / "mine.png")
    assert process.returncode == 1      # two could not be read ...
    assert f"error: {broken}: " in process.stderr and "absent.png: " in process.stderr
    # ... the others were answered: a network of one epoch must not be sure of noise.
    answers = re.findall(r"mine\.png: not sure, less than 70%.*; at best (.+?) \((\d+\.\d)%\);", process.stdout)
    assert len(answers) == 2 and answers[0] == answers[1]
    assert "SYNTHETIC" in process.stdout and "Epoch" not in process.stdout
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "predictions" / "01_mine.png")), pixels)
    assert (folder / "predictions" / "predictions.png").exists()


def test_the_described_variant_is_one_option_away(tmp_path, monkeypatch):
    import resnet_utils
    import signs_resnet50

    class Built(Exception):
        """Ends the script where it builds: what is built is tested in test_resnet.py."""

    def build(**options):
        raise Built(options)

    monkeypatch.setattr(resnet_utils, "ResNet50", build)
    monkeypatch.setattr(sys, "argv", ["signs_resnet50.py", "--dry-run", "--data", "synthetic", "--output-dir",
                                      str(tmp_path), "--identity-blocks", "2", "3", "5", "3"])
    with pytest.raises(Built) as built:
        signs_resnet50.main()
    assert built.value.args[0] == {"classes": 6, "identity_blocks": [2, 3, 5, 3]}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments, named", [
    (["--epochs", "0"], "--epochs"), (["--epochs", "many"], "'many'"), (["--batch-size", "-1"], "--batch-size"),
    (["--learning-rate", "nan"], "--learning-rate"), (["--seed", "-3"], "--seed"), (["--seed", 2**32], "--seed"),
    (["--data", "imaginary"], "'imaginary'"), (["--data-dir", "no/such/folder"], "'no/such/folder'"),
    (["--epoch", "3"], "--epoch"), (["--predict"], "--predict"), (["--seeds", "0"], "--seeds"),
    (["--crop", "middle"], "'middle'"), (["--crop", "0,0,0"], "'0,0,0'"),
])
def test_a_wrong_argument_is_named(script, arguments, named):
    process = run_script(script, *arguments)
    assert process.returncode == 2
    assert named in process.stderr.splitlines()[-1] and "Traceback" not in process.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_tensorflow(script):
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['{script}.py', '--help']\n"
            f"import atexit, {script}\n"
            "heavy = {'tensorflow', 'keras', 'matplotlib', 'h5py'}\n"
            "atexit.register(lambda: print('loaded:', heavy & set(sys.modules)))\n"
            f"{script}.main()")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0 and "usage: " in process.stdout and "loaded: set()" in process.stdout


def test_several_seeds_of_a_prediction_are_refused(tmp_path):
    process = run_script("signs_functional", "--seeds", 3, "--predict", "me.jpg", "--output-dir", tmp_path)
    assert process.returncode == 2 and "Received: --seeds 3 and --predict" in process.stderr
    assert process.stderr.count("\n") == 1


def test_missing_data_is_one_line_and_code_2(tmp_path):
    process = run_script("signs_functional", "--data", "real", "--data-dir", tmp_path, "--output-dir", tmp_path)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1 and "train_signs.h5 and test_signs.h5 missing" in process.stderr


def test_predict_without_a_model_says_how_to_get_one(tmp_path):
    process = run_script("happy_sequential", "--output-dir", tmp_path, "--predict", "me.jpg")
    assert process.returncode == 2 and "python happy_sequential.py" in process.stderr
