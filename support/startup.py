"""The start of Keras and Matplotlib: quiet, seeded, on a device that works, without the user's settings for them."""

import contextlib
import functools
import importlib
import logging
import os
import pathlib
import sys

from basics import signals
from basics.errors import InputError, first_line, printable, require
from basics.files import CHOOSE, NO_LOCKS, keras_home, read_json
from support.training.distribution import JAX, join_processes

NAMES = {"tensorflow": "TensorFlow", "jax": "JAX"}

# NVIDIA's driver lists its devices here under Linux.
NVIDIA = pathlib.Path("/proc/driver/nvidia/gpus")

# What Keras computes with, unless its configuration file has other values.
KERAS_SETTINGS = {
    "backend": "tensorflow",
    "floatx": "float32",
    "epsilon": 1e-7,
    "image_data_format": "channels_last",
    "nnx_enabled": False,
}

# These cut a training short, or change what layers are made of.
KERAS_VARIABLES = "KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED"


def in_ipython():
    """Return whether this process is a notebook or an IPython shell, where figures are shown."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


@contextlib.contextmanager
def quiet_startup():
    """Keep the C++ startup messages of TensorFlow and JAX off standard error; print them if something fails.

    C++ writes straight to file descriptor 2, so the descriptor is redirected.
    """
    import tempfile  # imported here, so that --help stays fast

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for later messages too: failures raise exceptions anyway
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except Exception:
            caught.seek(0)
            with contextlib.suppress(OSError):  # nobody may be reading it
                os.write(stderr, caught.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def supports_bfloat16():
    """Return whether Linux lists bfloat16 among the processor's instructions; without them, 16 bits are slower.

    They are not used either if ONEDNN_MAX_CPU_ISA limits oneDNN to older instructions.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit not in ("", "DEFAULT", "ALL") and not any(name in limit for name in ("BF16", "FP16", "AMX", "AVX10")):
        return False
    try:
        return "bf16" in pathlib.Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def start_keras(seed, mixed_precision=None, deterministic=None, show=False, train=True, backend=None):
    """Import Keras and its backend quietly, seed every random generator, and print the device.

    For a training, the processes that the environment names join each other here; see `support.training.distribution`.

    Args:
        seed: int >= 0, for Python, NumPy and the backend.
        mixed_precision: bool; new layers compute in bfloat16 and keep their weights in float32 (Micikevicius et al.,
            "Mixed Precision Training", 2018). bfloat16 has the range of float32, so the loss needs no scaling. None:
            only where it is faster.
        deterministic: bool; every sum is computed in the same order each time. None: only on a CPU, where it costs next
            to nothing.
        show: bool; figures will be opened in windows.
        train: bool; False: a trained model is used, which needs no other processes.
        backend: str, "tensorflow" or "jax"; None: what KERAS_BACKEND names, or TensorFlow.

    Returns: the device in words, and the final values of `deterministic` and `mixed_precision`.
    Raises InputError: the backend is neither TensorFlow nor JAX, or the other processes cannot be joined.
    """
    if backend:
        os.environ["KERAS_BACKEND"] = backend
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend not in NAMES:
        raise InputError("KERAS_BACKEND must be tensorflow or jax", "Change or unset it", got=backend)
    if backend == "jax":
        require("jax", "KERAS_BACKEND=jax", JAX)
        if deterministic:  # JAX reads this when it starts; a CPU is deterministic without it
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    # TensorFlow leaves oneDNN off on processors without VNNI, BF16 or AMX instructions, where it is faster as well
    # (docs/speed.md).
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    start_matplotlib(show)  # first, because Keras imports it as well
    _import_keras(backend)
    import keras
    import tensorflow as tf

    if train:
        join_processes()
    gpus = _start_jax(tf) if backend == "jax" else _start_tensorflow(tf)
    keras.utils.set_random_seed(seed)
    deterministic = not gpus if deterministic is None else deterministic
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if mixed_precision is None:  # on CPUs, JAX is slower in 16 bits
        mixed_precision = bool(gpus) if backend == "jax" else supports_bfloat16()
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed_precision else "float32")
    if gpus:
        device = "GPU: " + ", ".join(gpus)
    else:
        device = f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    device += ", bfloat16 and float32" if mixed_precision else ", float32"
    print(f"Device: {device} ({_versions()}){', deterministic' if deterministic else ''}")
    if not gpus and NVIDIA.exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        package = {"tensorflow": "tensorflow[and-cuda]>=2.21,<2.22", "jax": JAX.replace("jax", "jax[cuda13]")}[backend]
        print(f"{NAMES[backend]} cannot use this machine's NVIDIA GPU: pip install '{package}'")
    return device, deterministic, mixed_precision


def _import_keras(backend):
    """Import Keras and TensorFlow, and let Keras compute as it does without the user's settings; name these."""
    ignored = _other_keras_settings(backend)
    # In this folder, Keras finds no configuration file, and writes none. It is only used while Keras is imported.
    environment = _environment(KERAS_HOME=os.devnull, KERAS_BACKEND=backend, **dict.fromkeys(KERAS_VARIABLES))
    with signals.held(), environment, quiet_startup():  # Ctrl-C in the middle of it may crash Python
        import keras
        import tensorflow  # noqa: F401
    if keras.config.backend() != backend:  # a notebook has imported it before
        problem = f"Keras already runs on {keras.config.backend()} here, not on {backend}"
        raise InputError(problem, "Restart the notebook's kernel")
    keras.config.set_floatx(KERAS_SETTINGS["floatx"])
    keras.config.set_epsilon(KERAS_SETTINGS["epsilon"])
    keras.config.set_image_data_format(KERAS_SETTINGS["image_data_format"])
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)
    for line in ignored:
        print(line)


def _other_keras_settings(backend):
    """Return one line for the configuration file, and one for the environment variables, that would change Keras."""
    lines = []
    path = keras_home() / "keras.json"
    # A file that cannot be read changes nothing.
    found = read_json(path) if path.is_file() else None
    usual = {**KERAS_SETTINGS, "backend": backend}
    if others := [f"{name} {found[name]}" for name in usual if found and found.get(name, usual[name]) != usual[name]]:
        hint = "; for JAX, set KERAS_BACKEND=jax" if found.get("backend") == "jax" else ""
        lines.append(f"Settings in {path} are not used: {', '.join(others)}{hint}")
    if names := [name for name in KERAS_VARIABLES if name in os.environ]:
        lines.append(f"Environment variables that are not used: {', '.join(names)}")
    return map(printable, lines)


@contextlib.contextmanager
def _environment(**variables):
    """Set environment variables in a `with` block; None unsets one."""
    before = {name: os.environ.get(name) for name in variables}
    _set_environment(variables)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(variables):
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@functools.cache
def start_matplotlib(show):
    """Import Matplotlib so that figures are saved without a display, and name the user's settings that are not used.

    In a notebook, Matplotlib shows figures by itself.

    `show`: bool; figures will be opened in windows.
    """
    if in_ipython():
        return
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns about its own cache
    backend = os.environ.pop("MPLBACKEND", "")
    try:
        with _environment(MATPLOTLIBRC=os.devnull):
            import matplotlib
    except (OSError, ValueError) as error:
        problem = f"Matplotlib cannot be imported: {first_line(error)}"
        raise InputError(problem, "Remove or repair the file matplotlibrc, if there is one in this folder") from None
    if not show:
        matplotlib.use("Agg")
    elif backend:
        _choose_display(backend)
    path = pathlib.Path(matplotlib.matplotlib_fname()).absolute()
    if not path.is_relative_to(matplotlib.get_data_path()):
        print(f"The figures have a style of their own: {printable(str(path))} is not used")


def _choose_display(backend):
    """Open figures with the backend that MPLBACKEND names, or as Matplotlib does if that cannot be used."""
    import matplotlib.pyplot as plt

    try:
        if "inline" in backend:
            raise ImportError("it shows figures in notebooks")
        plt.switch_backend(backend)
    except Exception as error:  # a module of the user may stand behind it
        print(f"MPLBACKEND={printable(backend)} is not used: {printable(first_line(error))}")


def find_temporary_folder(folder):
    """Let temporary files go to `folder`, a `pathlib.Path`, if no other place can be written to."""
    import tempfile

    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"Nothing can be saved in {folder}: {error.strerror}"
            raise InputError(problem, CHOOSE) from None
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder.resolve())
        print(f"No folder for temporary files can be written to, so they go to {printable(str(folder))}")


def allow_missing_locks(*folders):
    """Let HDF5 do without locks if a folder, a `pathlib.Path`, is on a network disk that has none."""
    for folder in folders:
        folder = folder.absolute()
        while not folder.is_dir():
            folder = folder.parent
        if "HDF5_USE_FILE_LOCKING" not in os.environ and not _has_locks(folder):
            os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"  # read when h5py is imported
            print(f"The disk of {printable(str(folder))} cannot lock files: do not write to it from two runs at once")


def _has_locks(folder):
    """Return whether files in a folder can be locked, or whether that cannot be found out."""
    import tempfile

    try:
        import fcntl
    except ImportError:  # Windows
        return True
    files = [path for path in folder.glob("*.h5") if path.is_file()]
    try:
        # Where nothing can be written, a data file may be there.
        with open(files[0], "rb") if files else tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    return True


def _start_tensorflow(tf):
    """Return the names of TensorFlow's GPUs; start again on the CPU if they cannot be used."""
    with quiet_startup():
        gpus = tf.config.list_physical_devices("GPU")
        fault = gpus and _gpu_fault(tf)
    if fault:
        if in_ipython():  # which would end with it
            raise InputError(f"The GPU cannot be used: {fault}", "Set CUDA_VISIBLE_DEVICES=-1 and restart the kernel")
        print(f"The GPU cannot be used; continuing on the CPU ({fault})", file=sys.stderr)
        sys.stderr.flush()
        # TensorFlow cannot release a device it has used, so the command starts again without it.
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.execv(sys.executable, sys.orig_argv)
    return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]


def _start_jax(tf):
    """Leave all GPUs to JAX, because TensorFlow only prepares the batches; return the names of this process's GPUs."""
    import jax

    tf.config.set_visible_devices([], "GPU")
    with quiet_startup():
        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]


def _versions():
    """Return the names and versions of the backend and of Keras."""
    import keras

    backend = importlib.import_module(keras.config.backend())
    return f"{NAMES[backend.__name__]} {backend.__version__}, Keras {keras.__version__}"


def _gpu_fault(tf):
    """Return why the first GPU cannot compute a convolution, in one line, or "" if it can.

    A listed GPU may still fail: its driver is of another version, or another program holds its memory.
    """
    try:
        with tf.device("/GPU:0"):
            tf.nn.conv2d(tf.ones([1, 8, 8, 1]), tf.ones([3, 3, 1, 1]), 1, "SAME").numpy()
    except (tf.errors.OpError, RuntimeError) as error:
        return first_line(error)
    return ""
