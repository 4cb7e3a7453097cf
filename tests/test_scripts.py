"""The three scripts as their users run them: as commands, in a process of their own."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import REAL, ROOT, SCRIPTS, SHARED, run_code, run_script
from PIL import Image

from datasets.loading import DRY_RUN_IMAGES
from datasets.synthetic import render_dataset

# For tests that train: ResNet50 takes a minute.
TRAINED = [pytest.param(script, marks=[pytest.mark.slow] * (script == "signs_resnet50")) for script in SCRIPTS]
# Photographs lie beside the checkout on some machines only; synthetic images can be rendered everywhere.
SOURCES = ["synthetic"] + ([pytest.param("real", marks=pytest.mark.slow)] if SHARED.is_dir() else [])
FIGURES = {
    *("examples.png", "augmented.png", "learning_curves.png", "confusion_matrix.png", "mistakes.png"),
    "reliability.png",
}

# The schedule of a dry run, with SYNTHETIC images mixed into photographs and without.
STRONG, WEAK = "strong augmentation", "weak augmentation"
SCHEDULES = {
    ("happy_sequential", "real"): [(f"{STRONG}, 30 images", [1, 3]), (f"{WEAK}, 14 images", [4, 4])],
    ("happy_sequential", "synthetic"): [(WEAK, [1, 2]), (STRONG, [3, 3]), (WEAK, [4, 4])],
    ("signs_functional", "real"): [(STRONG, [1, 2]), (WEAK, [3, 4])],
    ("signs_functional", "synthetic"): [(STRONG, [1, 2]), (WEAK, [3, 4])],
    ("signs_resnet50", "real"): [(WEAK, [1, 1]), (STRONG, [2, 3]), (WEAK, [4, 4])],
    ("signs_resnet50", "synthetic"): [(WEAK, [1, 1]), (STRONG, [2, 3]), (WEAK, [4, 4])],
}


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def read_history(folder):
    with open(folder / "history.csv") as file:
        return list(csv.DictReader(file))


def schedule_of(folder):
    return [(row["name"], row["epochs"]) for row in read_metrics(folder)["training"]["schedule"]]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("script", TRAINED)
def test_dry_run_goes_through_the_whole_script(dry_run, script, source):
    folder, process = dry_run(script, source)
    assert process.returncode == 0, process.stderr
    files = {"model.keras", "history.csv", "metrics.json", "mistakes.csv", "report.html"}
    assert {path.name for path in folder.iterdir()} == FIGURES | files

    metrics = read_metrics(folder)
    config, training, results = (metrics[part] for part in ("settings", "training", "results"))
    assert config["script"] == script and config["data"] == source and config["dry_run"] is True
    files = {name.replace("_8.h5", ".h5") for name in config["data_files"]}  # unless all images were rendered before
    assert files == {f"train_{SCRIPTS[script]}.h5", f"test_{SCRIPTS[script]}.h5"}
    assert config["epochs"] == 4 and config["seed"] == 1 and training["seconds"] > 0
    low, high = results["test_accuracy_interval"]
    assert 0 <= low <= results["test_accuracy"] <= high <= 1
    if script == "signs_resnet50":
        assert training["parameters"] == 23_600_006
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
        r"^Test image: predicted .* true ",
        rf"^Saved in {re.escape(str(folder))}\. Look at these next:$",
        r"^  report\.html  .* open it in a browser$",
    ):
        assert re.search(line, printed, re.MULTILINE), f"{line} is not printed"
    # SYNTHETIC images may be mixed in, or the weights come from them, which two lines say: photographs are never
    # called SYNTHETIC.
    mixed = ("Mixed ", "Weights: ")
    said = [line for line in printed.splitlines() if "SYNTHETIC" in line and not line.startswith(mixed)]
    assert bool(said) == (source == "synthetic")
    assert process.stderr.replace("\r", "\n").strip() == "" or "Rendering" in process.stderr, process.stderr


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("script", TRAINED)
def test_a_dry_run_goes_through_the_whole_schedule(dry_run, script, source):
    folder, _ = dry_run(script, source)
    assert schedule_of(folder) == SCHEDULES[script, source]
    assert (read_metrics(folder)["training"]["synthetic_examples"] > 0) == (source == "real")


# ------------------------------------------------------------------------ the lesson


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_reads_as_keras(script):
    """What a student looks for stands on the page, and Keras at its top."""
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    for call in ("compile", "fit", "evaluate", "predict"):
        assert f"model.{call}(" in source
    top = source.splitlines()[:40]
    assert "import keras" in top and "from keras import layers" in top
    steps = re.findall(r"^ *# (\d)\. ", source, re.MULTILINE)
    assert steps == list("1234567")


def test_networks_are_built_from_kerass_own_layers():
    import happy_sequential
    import signs_functional
    import signs_resnet50

    for script in (happy_sequential, signs_functional, signs_resnet50):
        for layer in script.build_model().layers:
            assert type(layer).__module__.startswith("keras."), layer.name


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
import atexit, collections, runpy, pathlib
from datasets import loading

calls = collections.Counter()

def counted(name):
    function = getattr(loading, name)
    def count(*arguments, **options):
        calls[name, *(pathlib.Path(value).name for value in arguments if ".h5" in str(value))] += 1
        return function(*arguments, **options)
    setattr(loading, name, count)

counted("find_data"), counted("load_h5"), counted("sha256")
atexit.register(lambda: print("calls:", sorted(calls.items())))
runpy.run_path(SCRIPT, run_name="__main__")
"""


@pytest.mark.slow
def test_data_are_found_and_read_once_and_synthetic_images_are_mixed_in(small_real_set, tmp_path):
    """On any machine: what passes for photographs is trained on in the whole schedule."""
    out = tmp_path / "out"
    code = COUNTED.replace("SCRIPT", repr(str(ROOT / "signs_functional.py")))
    process = run_code(code, "--dry-run", "--data-dir", small_real_set, "--output-dir", out)
    assert process.returncode == 0, process.stderr
    calls = [("find_data",), ("load_h5", "test_signs.h5"), ("load_h5", "train_signs.h5")]
    calls += [("sha256", "test_signs.h5"), ("sha256", "train_signs.h5")]
    counts = {call: 1 for call in calls}
    (mixed,) = render_dataset("signs_and_others", parts=("train",), few=DRY_RUN_IMAGES)
    counts["load_h5", mixed.name] = 1  # the SYNTHETIC images
    assert f"calls: {sorted(counts.items())}" in process.stdout
    assert "Mixed 56 SYNTHETIC images with the 18 photographs, each of them used 4 times" in process.stdout
    training = read_metrics(out)["training"]
    assert training["synthetic_examples"] == 56 and training["examples_per_epoch"] == 18
    assert schedule_of(out) == SCHEDULES["signs_functional", "real"]
    assert len(read_history(out)) == 4


@pytest.mark.slow
def test_few_photographs_are_not_mixed_and_fewer_epochs_than_rows_are_trained(small_real_set, tmp_path):
    arguments = ["--epochs", 1, "--weights", "random", "--data-dir", small_real_set, "--output-dir", tmp_path / "out"]
    process = run_script("signs_functional", *arguments)
    assert process.returncode == 0 and "SYNTHETIC" not in process.stdout, process.stderr
    assert read_metrics(tmp_path / "out")["training"]["synthetic_examples"] == 0
    assert [row["epoch"] for row in read_history(tmp_path / "out")] == ["1"]
    assert schedule_of(tmp_path / "out") == [("weak augmentation", [1, 1])]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs photographs")
@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_synthetic_images_are_mixed_into_photographs_unless_they_are_unwanted(dry_run, tmp_path, script):
    folder, process = dry_run(script, "real")
    count = read_metrics(folder)["training"]["synthetic_examples"]
    assert count > 0 and f"Mixed {count} SYNTHETIC images with the " in process.stdout
    arguments = ["--dry-run", "--no-mix-synthetic", "--weights", "random"]
    arguments += ["--data-dir", REAL[SCRIPTS[script]], "--output-dir", tmp_path]
    without = run_script(script, *arguments)
    assert without.returncode == 0 and "SYNTHETIC" not in without.stdout
    assert read_metrics(tmp_path)["training"]["synthetic_examples"] == 0


# --------------------------------------------------------------- precision and seeds


@pytest.mark.slow
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
    assert read_metrics(tmp_path)["settings"]["mixed_precision"] == (switch == "--mixed-precision")


@pytest.mark.slow
def test_several_seeds_are_several_single_runs_and_fix_the_result(dry_run, tmp_path):
    arguments = ["--dry-run", "--data", "synthetic", "--seeds", 2, "--output-dir", tmp_path]
    process = run_script("signs_functional", *arguments)
    assert process.returncode == 0, process.stderr
    single = {seed: read_metrics(tmp_path / f"seed_{seed}") for seed in "12"}
    assert {seed: metrics["settings"]["seed"] for seed, metrics in single.items()} == {"1": 1, "2": 2}
    summary = json.loads((tmp_path / "seeds.json").read_text())
    assert summary["test_accuracy"] == {seed: metrics["results"]["test_accuracy"] for seed, metrics in single.items()}
    mean = r"^Mean \d+\.\d+%, (standard deviation .*, 95% interval of the mean |.*the seeds agree)"
    assert re.search(mean, process.stdout, re.MULTILINE)
    # The same seed gives the same result, another one another; sums over threads may differ in their last digits.
    expected = first_losses(dry_run("signs_functional")[0])
    assert first_losses(tmp_path / "seed_1") == pytest.approx(expected, rel=1e-4)
    assert first_losses(tmp_path / "seed_2") != pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_folds_are_several_single_runs_that_test_every_training_image_once(small_real_set, tmp_path):
    arguments = ["--epochs", 1, "--no-mix-synthetic", "--data-dir", small_real_set, "--output-dir"]
    process = run_script("signs_functional", *arguments, tmp_path / "out", "--folds", 2)
    assert process.returncode == 0, process.stderr
    single = {fold: read_metrics(tmp_path / "out" / f"fold_{fold}") for fold in "12"}
    assert [metrics["settings"]["fold"] for metrics in single.values()] == ["1/2", "2/2"]
    for metrics in single.values():  # two of the four images of each class; one of the others is validated on
        training, results = metrics["training"], metrics["results"]
        assert [entry["examples"] for entry in results["classes"]] == [2] * 6
        assert (training["train_examples"], training["validation_examples"]) == (6, 6)
        assert results["test_examples"] == 12
    summary = json.loads((tmp_path / "out" / "folds.json").read_text())
    assert summary["test_accuracy"] == {fold: metrics["results"]["test_accuracy"] for fold, metrics in single.items()}
    with open(tmp_path / "out" / "folds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["fold"], row["images"]) for row in rows] == [("1", "12"), ("2", "12")]
    assert [float(row["accuracy"]) for row in rows] == list(summary["test_accuracy"].values())
    assert re.search(r"^fold  images  right  accuracy  balanced accuracy\n   1      12 ", process.stdout, re.MULTILINE)
    assert re.search(r"^Mean \d+\.\d+%, standard deviation .*, 95% interval of the mean ", process.stdout, re.MULTILINE)
    assert re.search(r"^Together: \d+ of 24 right, .*; 95% interval ", process.stdout, re.MULTILINE)
    assert f"Fold 1 of 2: testing on 12 of 24 images, training on the others; {small_real_set}/test_" in process.stdout
    # One fold is repeated by hand, bit for bit.
    again = run_script("signs_functional", *arguments, tmp_path / "again", "--fold", "2/2")
    assert again.returncode == 0, again.stderr
    repeated = read_metrics(tmp_path / "again")
    assert repeated["results"] == single["2"]["results"] and repeated["settings"] == single["2"]["settings"]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--folds", 3, "--predict", "me.jpg"], "--folds trains, --predict uses a trained model. Drop one"),
        (["--folds", 3, "--export", "onnx"], "--folds trains, --export uses a trained model. Drop one"),
        (["--folds", 3, "--seeds", 2], "--seeds 2 and --folds 3 cannot be combined"),
        (["--folds", 3, "--fold", "1/3"], "--folds 3 and --fold 1/3 cannot be combined"),
        pytest.param(["--folds", 5], "5 folds need at least 5 images of each class", marks=pytest.mark.slow),
        (["--fold", "4/3"], "must be I/K, such as 2/5.*got '4/3'"),
        (["--fold", "0/3"], "got '0/3'"),
        (["--fold", "1/1"], "got '1/1'"),
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
    assert process.returncode == 2 and "--seeds trains, --predict uses a trained model" in process.stderr
    assert process.stderr.count("\n") == 1


# ------------------------------------------------------------------ the trained model


@pytest.mark.parametrize("script", TRAINED)
def test_predict_answers_and_shows_what_the_model_saw(dry_run, script, tmp_path):
    folder = shutil.copytree(dry_run(script)[0], tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    images = [tmp_path / "mine.png", broken, tmp_path / "absent.png", tmp_path / "mine.png"]
    process = run_script(script, "--output-dir", folder, "--predict", *images)
    assert process.returncode == 1  # two could not be read ...
    assert f"error: {broken} is not an image" in process.stderr and "absent.png does not exist" in process.stderr
    # ... the others were answered: a network of four epochs must not be sure about noise.
    answers = re.findall(r"^mine\.png  not sure  (.+)\? (\d+\.\d)%  ", process.stdout, re.MULTILINE)
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
    assert "\ngray.png  " in process.stdout and (tmp_path / "predictions" / "predictions.csv").exists()


# -------------------------------------------------------------------- the command line


@pytest.mark.slow
def test_the_described_variant_is_one_option_away(tmp_path):
    code = (
        "import resnet_utils, runpy\n"
        "def build(pixels, blocks, imagenet):\n"
        "    raise SystemExit(f'built: {pixels.shape}, {blocks}')\n"  # what is built is tested in test_resnet.py
        "resnet_utils.residual_stages = build\n"
        f"runpy.run_path({str(ROOT / 'signs_resnet50.py')!r}, run_name='__main__')"
    )
    arguments = ["--dry-run", "--data", "synthetic", "--output-dir", tmp_path, "--identity-blocks", 2, 3, 5, 3]
    process = run_code(code, *arguments)
    assert "built: (None, 64, 64, 3), [2, 3, 5, 3]" in process.stderr


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
        (["--predict", ""], "--predict: must not be empty"),
        (["--data-dir", ""], "--data-dir: must not be empty"),
        (["--output-dir", ""], "--output-dir: must not be empty"),
    ],
)
def test_a_wrong_argument_is_named(script, arguments, named):
    process = run_script(script, *arguments)
    assert process.returncode == 2
    assert named in process.stderr.splitlines()[-1] and "Traceback" not in process.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script):
    code = (
        "import atexit, runpy\n"
        "heavy = {'tensorflow', 'keras', 'matplotlib', 'h5py', 'numpy', 'scipy', 'PIL'}\n"
        "atexit.register(lambda: print('loaded:', heavy & set(sys.modules)))\n"
        f"runpy.run_path({str(ROOT / script)!r} + '.py', run_name='__main__')"
    )
    process = run_code(code, "--help")
    assert process.returncode == 0 and "usage: " in process.stdout and "loaded: set()" in process.stdout
    assert "--mix-synthetic" in process.stdout


def test_a_typo_is_one_word_away_from_its_option(tmp_path):
    process = run_script("happy_sequential", "--epoch", 3)
    assert process.returncode == 2 and process.stderr.splitlines() == [
        "usage: happy_sequential.py [options]",
        "happy_sequential.py: error: unknown option --epoch: did you mean --epochs?",
    ]
    Image.new("RGB", (8, 8)).save(tmp_path / "me.png")
    process = run_script("happy_sequential", tmp_path / "me.png")
    assert process.returncode == 2 and f"use --predict {tmp_path / 'me.png'}" in process.stderr


def test_the_version_is_printed():
    process = run_script("happy_sequential", "--version")
    assert process.returncode == 0 and re.fullmatch(r"happy_sequential\.py \d+\.\d+\n", process.stdout)


def test_a_dry_run_has_a_folder_of_its_own():
    from support.cli import ROOT as root
    from support.cli import ScriptParser

    parser = ScriptParser("", "tiny", epochs=3, batch_size=8, learning_rate=0.01)
    assert parser.parse_args([]).output_dir == root / "outputs" / "tiny"
    assert parser.parse_args(["--dry-run"]).output_dir == root / "outputs" / "dry_run" / "tiny"
    assert parser.parse_args(["--dry-run", "--output-dir", "mine"]).output_dir.name == "mine"


@pytest.mark.slow
def test_missing_data_is_one_line_and_code_2(tmp_path):
    process = run_script("signs_functional", "--data", "real", "--data-dir", tmp_path, "--output-dir", tmp_path)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1 and f"There are no images to train on in {tmp_path}" in process.stderr


# ----------------------------------------------------- an option that is refused changes nothing


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the results of a run with other settings than any that follows."""
    folder = tmp_path_factory.mktemp("finished")
    settings = {"script": "signs_functional", "epochs": 99}
    (folder / "metrics.json").write_text(json.dumps({"settings": settings, "training": {"interrupted": False}}))
    for name in ("model.keras", "history.csv", "examples.png", "report.html"):
        (folder / name).write_text("an hour's work")
    return folder


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_inputs(folder):
    """Write files that are refused as weights or data."""
    (folder / "bad.keras").write_text("not a model")
    (folder / "empty").mkdir()
    (folder / "one" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "one" / "cat" / "1.png")


REFUSED = {
    "weights that are damaged": ["--weights", "bad.keras"],
    "weights that do not exist": ["--weights", "no_such.keras"],
    "weights of another script": ["--weights", "imagenet"],
    "data that do not exist": ["--data-dir", "no_such"],
    "a folder without images": ["--data-dir", "empty"],
    "a folder of one class": ["--data-dir", "one"],
    "photographs that are SYNTHETIC": ["--data", "real", "--data-dir", "synthetic"],
    "an unknown option": ["--epoch", "3"],
    "a learning rate of nothing": ["--learning-rate", "0"],
    "too many folds": ["--data", "synthetic", "--fold", "900/1000"],
    "folds and seeds": ["--folds", "3", "--seeds", "3"],
    "a batch size that devices cannot share": ["--batch-size", "0"],
    "a format that does not exist": ["--export", "word"],
    "a prediction of nothing": ["--predict", "no_such.jpg"],
    "a backend of another kind": ["--data", "synthetic"],
}
# Noticed with the data, after Keras was imported, which takes seconds.
LATE = {"a folder without images", "a folder of one class", "photographs that are SYNTHETIC", "too many folds"}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in LATE)) for kind in REFUSED])
def test_an_option_that_is_refused_leaves_the_finished_model_where_it_was(finished, tmp_path, monkeypatch, kind):
    write_inputs(tmp_path)
    if "SYNTHETIC" in kind:
        (tmp_path / "synthetic").symlink_to(ROOT / "datasets" / "synthetic")
    if "backend" in kind:
        monkeypatch.setenv("KERAS_BACKEND", "torch")
    before = snapshot(finished)
    process = run_script("signs_functional", *REFUSED[kind], "--output-dir", finished, cwd=tmp_path)
    assert process.returncode in (1, 2), process.stdout
    assert "Traceback" not in process.stderr and "error: " in process.stderr
    assert snapshot(finished) == before


@pytest.mark.slow
def test_a_resumed_run_of_other_settings_leaves_the_checkpoint_where_it_was(finished, tmp_path):
    before = snapshot(finished)
    process = run_script("signs_functional", "--resume", "--weights", ROOT / "README.md", "--output-dir", finished)
    assert process.returncode == 2 and "README.md" in process.stderr and snapshot(finished) == before
