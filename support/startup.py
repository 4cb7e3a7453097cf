"""The start of Keras and its backend: quiet, seeded, and on a device that works."""

import contextlib
import importlib
import os
import pathlib
import sys

from support.distribution import JAX, join_processes
from support.errors import InputError, require

NAMES = {"tensorflow": "TensorFlow", "jax": "JAX"}

# NVIDIA's driver lists its devices here under Linux.
NVIDIA = pathlib.Path("/proc/driver/nvidia/gpus")


@contextlib.contextmanager
def quiet_startup():
    """Keep the C++ start-up messages of TensorFlow and JAX off standard error.

    They go straight to file descriptor 2, so the descriptor is redirected. If the import fails, they are printed.
    """
    import tempfile  # imported here, so that --help stays fast

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # later as well: what fails raises an exception anyway
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except Exception:
            caught.seek(0)
            os.write(stderr, caught.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def supports_bfloat16():
    """Return whether the processor has bfloat16 instructions, as Linux lists them; without them 16 bits are slower."""
    try:
        return "bf16" in pathlib.Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def start_keras(seed, mixed_precision=None, deterministic=None, show=False, rewrite_graph=True, train=True):
    """Import Keras and its backend quietly, seed every random generator, print the device in one line.

    To train, processes that the environment names join each other here; see `support.distribution`.

    Args:
        seed: int >= 0, for Python, NumPy and the backend.
        mixed_precision: bool; new layers compute in bfloat16 and keep their weights in float32 (Micikevicius et al.,
            "Mixed Precision Training", 2018). bfloat16 has the range of float32, so the loss needs no scaling. None:
            where it is faster.
        deterministic: bool; every sum is taken in the same order each time. None: on a CPU, where it costs next to
            nothing, but not on a GPU.
        show: bool; figures are opened in windows later, so a display is needed.
        rewrite_graph: bool; TensorFlow optimises the graphs it traces, before their first step.
        train: bool; a trained model needs no other process.

    Returns: the device in words, and the settled values of `deterministic` and `mixed_precision`.
    Raises InputError: the backend is neither TensorFlow nor JAX, or the other processes cannot be joined.
    """
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend not in NAMES:
        raise InputError(f"KERAS_BACKEND must be tensorflow or jax. Received: {backend}")
    if backend == "jax":
        require("jax", "KERAS_BACKEND=jax", JAX)
        if deterministic:  # read when JAX starts; a CPU is deterministic without it
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    with quiet_startup():
        import keras
        import tensorflow as tf
    if train:
        join_processes()
    backend = keras.config.backend()  # a file of Keras's may name it as well
    gpus = _start_jax(tf) if backend == "jax" else _start_tensorflow(tf, rewrite_graph)
    if not show:
        import matplotlib

        matplotlib.use("Agg")
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
    noted = ", deterministic" if deterministic else ""
    print(f"Device: {device} ({_versions()}){noted}")
    if not gpus and NVIDIA.exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        package = {"tensorflow": "tensorflow[and-cuda]>=2.21,<2.22", "jax": JAX.replace("jax", "jax[cuda13]")}[backend]
        print(f"{NAMES[backend]} does not find this machine's NVIDIA GPU: pip install '{package}'")
    return device, deterministic, mixed_precision


def _start_tensorflow(tf, rewrite_graph):
    """Settle TensorFlow's options; return the names of its GPUs, none if they cannot be used."""
    with quiet_startup():
        gpus = tf.config.list_physical_devices("GPU")
        fault = gpus and _gpu_fault(tf)
    if fault:
        print(f"The GPU cannot be used; continuing on the CPU. Received: {fault}", file=sys.stderr)
        sys.stderr.flush()
        # TensorFlow cannot release a device it has used, so the same command starts again without it.
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.execv(sys.executable, sys.orig_argv)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not rewrite_graph})
    return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]


def _start_jax(tf):
    """Leave all GPUs to JAX, as TensorFlow only prepares the batches; return the names of this process's GPUs."""
    import jax

    tf.config.set_visible_devices([], "GPU")
    with quiet_startup():
        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]


def _versions():
    """Return the versions of Keras and of the backend, which says how the numbers were computed."""
    import keras

    backend = importlib.import_module(keras.config.backend())
    return f"{NAMES[backend.__name__]} {backend.__version__}, Keras {keras.__version__}"


def _gpu_fault(tf):
    """Return why the first GPU cannot compute a convolution, in one line, or "" if it can.

    A GPU may be listed and still fail: mismatched drivers, or memory held by another program.
    """
    try:
        with tf.device("/GPU:0"):
            tf.nn.conv2d(tf.ones([1, 8, 8, 1]), tf.ones([3, 3, 1, 1]), 1, "SAME").numpy()
    except (tf.errors.OpError, RuntimeError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ""
