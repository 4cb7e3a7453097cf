"""TensorFlow's start: quiet, seeded, and on a device that works."""

import contextlib
import os
import pathlib
import sys

# NVIDIA's driver lists its devices here under Linux.
NVIDIA = pathlib.Path("/proc/driver/nvidia/gpus")


@contextlib.contextmanager
def quiet_startup():
    """Keep TensorFlow's C++ start-up messages off standard error.

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


def start_tensorflow(seed, mixed_precision=False, deterministic=None, show=False, rewrite_graph=True):
    """Import TensorFlow quietly, seed every random generator, print the device in one line.

    Args:
        seed: int >= 0, for Python, NumPy and TensorFlow.
        mixed_precision: bool; new layers compute in bfloat16 and keep their weights in float32 (Micikevicius et al.,
            "Mixed Precision Training", 2018). bfloat16 has the range of float32, so the loss needs no scaling.
        deterministic: bool; every sum is taken in the same order each time. None: on a CPU, where it costs next to
            nothing, but not on a GPU.
        show: bool; figures are opened in windows later, so a display is needed.
        rewrite_graph: bool; TensorFlow optimises the graphs it traces, before their first step.

    Returns: the device in words, and whether the run is deterministic.
    """
    with quiet_startup():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        fault = gpus and _gpu_fault(tf)
    if fault:
        print(f"The GPU cannot be used; continuing on the CPU. Received: {fault}", file=sys.stderr)
        sys.stderr.flush()
        # TensorFlow cannot release a device it has used, so the same command starts again without it.
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.execv(sys.executable, sys.orig_argv)
    if not show:
        import matplotlib

        matplotlib.use("Agg")
    tf.keras.utils.set_random_seed(seed)
    deterministic = not gpus if deterministic is None else deterministic
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not rewrite_graph})
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed_precision else "float32")
    if gpus:
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
        device = "GPU: " + ", ".join(names)
    else:
        device = f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    device += ", bfloat16 and float32" if mixed_precision else ", float32"
    noted = ", deterministic" if deterministic else ""
    print(f"Device: {device} (TensorFlow {tf.__version__}, Keras {tf.keras.__version__}){noted}")
    if not gpus and NVIDIA.exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        print("TensorFlow does not find this machine's NVIDIA GPU: pip install 'tensorflow[and-cuda]>=2.21,<2.22'")
    return device, deterministic


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
