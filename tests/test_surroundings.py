"""What the user's machine has for other programs changes no result: settings, variables, folders, fonts, disks."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types

import h5py
import numpy as np
import pytest
from conftest import ROOT, run_code, run_script
from PIL import Image

from basics.errors import InputError
from basics.files import atomic_write, keras_home
from support import cli, startup
from support.training.run_folder import claim

SETTINGS = {"floatx": "float32", "epsilon": 1e-07, "backend": "tensorflow", "image_data_format": "channels_last"}


def run(command, cwd=None, **environment):
    """Run a command, a list, with environment variables; None unsets one."""
    changed = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=cwd, env=changed, capture_output=True, text=True, timeout=200)


# --------------------------------------------------------------------------------- Keras

OTHERS = {
    "theano": ({"backend": "theano"}, "backend theano"),
    "torch": ({"backend": "torch"}, "backend torch"),
    "jax": ({"backend": "jax"}, "backend jax; for JAX, set KERAS_BACKEND=jax"),
    "channels_first": ({"image_data_format": "channels_first"}, "image_data_format channels_first"),
    "th": ({"image_data_format": "th"}, "image_data_format th"),
    "float16": ({"floatx": "float16"}, "floatx float16"),
    "float64": ({"floatx": "float64"}, "floatx float64"),
    "epsilon": ({"epsilon": 1}, "epsilon 1"),
    "all": ({"backend": "th", "floatx": "x", "nnx_enabled": True}, "backend th, floatx x, nnx_enabled True"),
}


def write_settings(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "keras.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("kind", OTHERS)
def test_settings_of_keras_that_are_not_used_are_named(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    change, named = OTHERS[kind]
    write_settings(tmp_path, SETTINGS | change)
    (line,) = startup._other_keras_settings("tensorflow")
    assert line == f"Settings in {tmp_path / 'keras.json'} are not used: {named}"


@pytest.mark.parametrize("content", [SETTINGS, {}, "", "{", "[1]", "\x00", {"image_dim_ordering": "tf"}])
def test_other_settings_of_keras_are_not_worth_a_line(tmp_path, monkeypatch, content):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    write_settings(tmp_path, content)
    assert [*startup._other_keras_settings("tensorflow")] == []
    write_settings(tmp_path, SETTINGS | {"backend": "jax"})
    assert [*startup._other_keras_settings("jax")] == []  # that is the one in use
    (tmp_path / "keras.json").unlink()
    os.mkfifo(tmp_path / "keras.json")
    assert [*startup._other_keras_settings("tensorflow")] == []


SHOW_KERAS = """
from support.startup import start_keras
start_keras(1)
import keras, os
config = keras.config
print(config.backend(), config.floatx(), config.epsilon(), config.image_data_format(), config.max_epochs())
print(keras.layers.Conv2D(3, 3).data_format, os.environ.get("KERAS_HOME"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [{name: "wrong" for name in SETTINGS}, {"floatx": "float64", "epsilon": 0.1}, "[1]"]
)
def test_keras_computes_as_without_its_configuration_file(tmp_path, monkeypatch, content):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in startup.KERAS_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KERAS_BACKEND", "")
    write_settings(tmp_path, content)
    process = run_code(SHOW_KERAS)
    lines = process.stdout.splitlines()
    expected = ["tensorflow float32 1e-07 channels_last None", f"channels_last {tmp_path}"]
    assert process.returncode == 0 and lines[-2:] == expected, process.stderr
    named = "Environment variables that are not used: KERAS_MAX_EPOCHS, KERAS_MAX_STEPS_PER_EPOCH, KERAS_NNX_ENABLED"
    assert named in lines and ("Settings in " in process.stdout) == isinstance(content, dict)
    assert [path.name for path in tmp_path.iterdir()] == ["keras.json"]  # and Keras has not changed it
    assert (tmp_path / "keras.json").read_text() == (content if isinstance(content, str) else json.dumps(content))


def test_a_notebook_in_which_keras_runs_on_something_else_has_to_start_again(monkeypatch):
    import keras

    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(InputError, match="Keras already runs on torch here, not on tensorflow. Restart"):
        startup.start_keras(1)


# Everything at once, in a run that is compared with one on a clean machine.
HOSTILE = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONWARNINGS": "error",
    "PYTHONOPTIMIZE": "2",
    "COLUMNS": "20",
    "TERM": "dumb",
    "PYTHONHASHSEED": "7",
    "OMP_NUM_THREADS": "many",
    "CUDA_VISIBLE_DEVICES": "none of them",
    "TMPDIR": "/nowhere",
    "LC_ALL": "POSIX",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONUTF8": "0",
    "http_proxy": "nothing://",
    "KERAS_MAX_EPOCHS": "1",
}

HOSTILE_RC = """
text.usetex: True
font.family: Comic Sans MS
font.size: 30
font.style: italic
savefig.dpi: 20
savefig.bbox: tight
savefig.transparent: True
figure.autolayout: True
axes.facecolor: black
image.origin: lower
image.interpolation: bicubic
lines.linewidth: 9
path.sketch: 1, 100, 2
backend: TkAgg
not a line of this format
"""


@pytest.fixture
def hostile_home(tmp_path):
    """Return environment variables of a machine that is set up for everything but this project."""
    home = tmp_path / "home"
    (home / ".config" / "matplotlib").mkdir(parents=True)
    (home / ".config" / "matplotlib" / "matplotlibrc").write_text(HOSTILE_RC)
    write_settings(home / ".keras", {name: "wrong" for name in SETTINGS})
    return {"HOME": str(home), "KERAS_HOME": None, "MATPLOTLIBRC": None, "MPLCONFIGDIR": None, **HOSTILE}


def result_files(folder):
    """Return the content of a run's figures and its metrics without times."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return [metrics["results"], *(path.read_bytes() for path in sorted(folder.glob("*.png")))]


@pytest.mark.slow
def test_a_run_gives_the_same_results_and_figures_on_a_machine_of_odd_settings(dry_run, tmp_path, hostile_home):
    command = [ROOT / "happy_sequential.py", "--dry-run", "--data", "synthetic", "--output-dir"]
    folder, clean = dry_run("happy_sequential")
    hostile = run([*command, tmp_path / "hostile"], **hostile_home)
    assert clean.returncode == hostile.returncode == 0, hostile.stderr
    assert result_files(folder) == result_files(tmp_path / "hostile")
    assert "not used" not in clean.stdout and len(list((tmp_path / "hostile").glob("*.png"))) == 6
    home = hostile_home["HOME"]
    for line in (
        "Warnings are no errors here, whatever PYTHONWARNINGS or -W says",
        f"Settings in {home}/.keras/keras.json are not used: backend wrong, floatx wrong, epsilon wrong, ",
        "Environment variables that are not used: KERAS_MAX_EPOCHS",
        f"The figures have a style of their own: {home}/.config/matplotlib/matplotlibrc is not used",
    ):
        assert hostile.stdout.count(f"\n{line}") + hostile.stdout.startswith(line) == 1, hostile.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def answers(folder):
    saved = folder / "predictions"
    return [(saved / name).read_bytes() for name in ("predictions.csv", "predictions.png")]


def test_predictions_and_their_figure_are_the_same_too(tmp_path, photos, hostile_home):
    command = [ROOT / "signs_functional.py", "--predict", photos, "--output-dir"]
    clean, hostile = run([*command, tmp_path / "clean"]), run([*command, tmp_path / "hostile"], **hostile_home)
    assert clean.returncode == hostile.returncode == 0, hostile.stderr
    assert answers(tmp_path / "clean") == answers(tmp_path / "hostile")
    assert hostile.stdout.count("The figures have a style of their own") == 1


# ---------------------------------------------------------------------------- Matplotlib


def test_a_style_of_the_user_is_back_after_a_figure(tmp_path):
    import matplotlib.pyplot as plt

    from support.evaluation import figures

    image = np.zeros((1, 64, 64, 3), np.uint8)
    figures.image_grid(image, ["a name"], "Title", tmp_path / "usual.png", "real")
    width = figures.text_width("another name")
    figures.text_width.cache_clear()
    changes = {"font.size": 30, "savefig.bbox": "tight", "text.usetex": True, "font.style": "italic"}
    with plt.rc_context({**changes, "axes.facecolor": "black", "savefig.dpi": 20}):
        figures.image_grid(image, ["a name"], "Title", tmp_path / "changed.png", "real")
        assert figures.text_width("another name") == width
        assert plt.rcParams["font.size"] == 30 and plt.rcParams["text.usetex"] is True
    assert (tmp_path / "changed.png").read_bytes() == (tmp_path / "usual.png").read_bytes()


@pytest.mark.parametrize("where", ["file", "folder", "working folder"])
def test_a_matplotlibrc_that_cannot_be_read_costs_no_answer(tmp_path, photos, where):
    rc = tmp_path / "matplotlibrc"
    rc.write_bytes(b"\xff\xfe")
    place = {"file": rc, "folder": tmp_path}.get(where)
    command = [ROOT / "signs_functional.py", "--predict", photos, "--output-dir", tmp_path / "out"]
    process = run(command, cwd=tmp_path if where == "working folder" else None, MATPLOTLIBRC=place and str(place))
    assert "Traceback" not in process.stderr
    if where == "working folder":
        assert process.returncode == 2 and "Remove or repair the file matplotlibrc" in process.stderr
    else:
        assert process.returncode == 0 and f"{rc} is not used" in process.stdout


@pytest.mark.parametrize(
    "backend, reason",
    [
        ("module://matplotlib_inline.backend_inline", "it shows figures in notebooks"),
        ("module://nowhere.to.be.found", "No module named 'nowhere'"),
        ("garbage", "backend_garbage"),
    ],
)
def test_a_display_that_cannot_be_used_is_named(monkeypatch, capsys, backend, reason):
    monkeypatch.setenv("MPLBACKEND", backend)
    startup.start_matplotlib.cache_clear()
    startup.start_matplotlib(show=True)
    printed = capsys.readouterr().out
    assert printed.startswith(f"MPLBACKEND={backend} is not used: ") and reason in printed


@pytest.fixture
def ipython(monkeypatch):
    """Let this process look like a notebook."""
    import matplotlib.pyplot  # noqa: F401  first, because it would ask IPython for more

    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=object))
    startup.start_matplotlib.cache_clear()
    yield
    startup.start_matplotlib.cache_clear()


def test_a_notebook_keeps_its_way_to_show_figures(ipython, monkeypatch, capsys):
    import matplotlib

    used = []
    monkeypatch.setattr(matplotlib, "use", used.append)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    startup.start_matplotlib(show=False)
    assert used == [] and os.environ["MPLBACKEND"].startswith("module://") and capsys.readouterr().out == ""


def test_a_notebook_shows_the_figures_without_being_asked(ipython, monkeypatch, photos, tmp_path):
    from datasets import SIGNS
    from support.evaluation import figures

    shown = []
    monkeypatch.setattr(figures, "show_figures", lambda: shown.append(True))
    arguments = ["signs_functional.py", "--predict", str(photos), "--output-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.start_script("", arguments[0], SIGNS, epochs=1, batch_size=1, learning_rate=0.1)
    assert ended.value.code == 0 and shown == [True]


def test_a_notebook_does_not_start_again_without_its_gpu(ipython, monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(startup, "_gpu_fault", lambda tf: "cuDNN: version mismatch")
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("this would end the kernel"))
    with pytest.raises(InputError, match="The GPU cannot be used: cuDNN: version mismatch. .*restart the kernel"):
        startup.start_keras(1)


@pytest.mark.slow
def test_a_cell_of_a_notebook_shows_every_figure(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # which the other tests set
    script = f"%run {ROOT / 'happy_sequential.py'} --dry-run --output-dir {tmp_path}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(script)])
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert (tmp_path / "report.html").exists()


# ------------------------------------------------------------------------------- folders


@pytest.fixture
def no_temporary_folder(monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", none)
    monkeypatch.delenv("TMPDIR", raising=False)


def test_temporary_files_go_to_the_output_folder_if_there_is_no_other(no_temporary_folder, tmp_path, capsys):
    startup.find_temporary_folder(tmp_path / "new" / "out")
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path / "new" / "out")
    assert capsys.readouterr().out == (
        f"No folder for temporary files can be written to, so they go to {tmp_path / 'new' / 'out'}\n"
    )
    os.environ.pop("TMPDIR")


def test_an_output_folder_that_cannot_be_made_is_named(no_temporary_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Nothing can be saved in .*file/out: Not a directory. Choose another folder"):
        startup.find_temporary_folder(tmp_path / "file" / "out")


def test_other_commands_name_the_variable(no_temporary_folder, capsys):
    from basics.errors import run_main

    with pytest.raises(SystemExit) as ended:
        run_main(tempfile.mkdtemp)
    assert ended.value.code == 2 and "Set the environment variable TMPDIR to one\n" in capsys.readouterr().err


def test_a_user_without_a_home_has_a_folder_for_keras(monkeypatch):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user that the system does not know
    assert keras_home() == pathlib.Path("/tmp/.keras")


# --------------------------------------------------------------------------------- locks


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def no_locks(request, monkeypatch):
    import fcntl

    def refused(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)


def test_a_disk_without_locks_is_named_and_used(no_locks, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    startup.allow_missing_locks(tmp_path / "new" / "out", tmp_path / "data")
    assert capsys.readouterr().out == (
        f"The disk of {tmp_path} cannot lock files: do not write to it from two runs at once\n"
    )
    assert os.environ.pop("HDF5_USE_FILE_LOCKING") == "FALSE"
    assert claim(tmp_path / "new" / "out") == tmp_path / "new" / "out"  # and nobody else is said to use it
    assert os.listdir(tmp_path / "new" / "out") == [] and os.listdir(tmp_path / "data") == []


def test_a_disk_with_locks_is_not(monkeypatch, tmp_path, capsys, write_h5):
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    path = write_h5(tmp_path / "train_signs.h5")
    with h5py.File(path, "r+"):  # a file in use is another matter
        startup.allow_missing_locks(tmp_path)
    assert "HDF5_USE_FILE_LOCKING" not in os.environ and capsys.readouterr().out == ""


def test_a_file_that_cannot_be_written_without_locks_is_explained(tmp_path):
    reason = "Unable to synchronously create file (unable to lock file, errno = 37, error message = 'No locks ...')"
    with pytest.raises(InputError, match="cannot lock files. Set the environment variable HDF5_USE_FILE_LOCKING"):
        with atomic_write(tmp_path / "out.h5"):
            raise OSError(37, reason)


# ------------------------------------------------------------------------ Python's own path


def test_a_file_of_the_user_in_place_of_a_package_is_named(tmp_path):
    (tmp_path / "keras.py").write_text("raise RuntimeError")
    process = run([ROOT / "signs_functional.py", "--predict", "me.jpg"], PYTHONPATH=str(tmp_path))
    assert process.returncode == 2 and process.stderr == (
        f"error: Python finds {tmp_path / 'keras.py'} in place of keras. Rename that file, or unset PYTHONPATH\n"
    )


def test_the_projects_own_folders_come_before_the_users(tmp_path, photos):
    for name in ("datasets", "support", "basics", "weights"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "cnn_utils.py").write_text("raise RuntimeError")
    command = [ROOT / "signs_functional.py", "--predict", photos, "--output-dir", tmp_path / "out"]
    process = run(command, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert process.returncode == 0, process.stderr


def test_warnings_are_errors_only_where_they_were_asked_to_be(monkeypatch, capsys):
    import warnings

    monkeypatch.setattr(sys, "warnoptions", ["default", "error::DeprecationWarning"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cli.check_environment()
        warnings.warn("of a package", DeprecationWarning, stacklevel=1)
    assert "Warnings are no errors here" in capsys.readouterr().out
    monkeypatch.setattr(sys, "warnoptions", ["default", "ignore"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cli.check_environment()
        with pytest.raises(UserWarning):
            warnings.warn("of a test", stacklevel=1)
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------- options that are ignored


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--predict", "a.jpg", "--epochs", "3"], "--epochs has no effect with --predict, which uses a trained model"),
        (["--predict", "a.jpg", "--data-dir", "."], "--data-dir has no effect"),
        (["--predict", "a.jpg", "--resume"], "--resume has no effect"),
        (["--export", "web", "--tta"], "--tta has no effect with --export"),
        (["--export", "web", "--no-mix-synthetic"], "--mix-synthetic has no effect"),
        (["--data", "synthetic", "--data-dir", "."], "--data synthetic uses no images of --data-dir"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments, words):
    parser = cli.ScriptParser("", "tiny", epochs=60, batch_size=8, learning_rate=0.01, weights=("synthetic", "random"))
    with pytest.raises(InputError, match=words):
        parser.parse_args(arguments)


def test_options_that_are_used_are_not_refused():
    parser = cli.ScriptParser("", "tiny", epochs=60, batch_size=8, learning_rate=0.01)
    parser.parse_args("--predict a.jpg --tta --explain --show --crop center --dry-run --seed 3 --debug".split())
    parser.parse_args("--export litert --data-dir . --cache-dir x --output-dir y --data auto".split())
    for words, epochs in (["--dry-run"], cli.DRY_RUN_EPOCHS), (["--dry-run", "--epochs", "2"], 2), ([], 60):
        args = parser.parse_args(words)
        parser.settle_defaults(args, synthetic=False)
        assert args.epochs == epochs


@pytest.mark.slow
def test_a_script_that_trains_names_what_only_predict_uses(tmp_path):
    process = run_script("signs_functional", "--explain", "--data", "real", "--data-dir", tmp_path)
    assert "--explain has no effect without --predict\n" in process.stdout
