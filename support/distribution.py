"""Training on several devices: each computes a part of every batch, and all apply the same gradient (data parallelism).

--distribute uses all devices of one machine: `tf.distribute.MirroredStrategy` on TensorFlow,
`keras.distribution.DataParallel` on JAX. Several machines need JAX: the same command runs on each, with the environment
variables that `keras.distribution.initialize` reads, or under Slurm or Open MPI. Process 0 prints and saves.
"""

import atexit
import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
from typing import NamedTuple

from support import errors
from support.errors import LOST, InputError

JAX = "jax>=0.10,<0.11"

VARIABLES = tuple(f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID"))

# Seconds: how long the processes wait for each other at the start, and until a silent one counts as lost.
JOIN_TIMEOUT, HEARTBEAT_TIMEOUT = 120, 25

# What C++ code writes before it ends this process because another one is lost.
LAST_WORDS = re.compile(rb"JAX distributed service detected fatal errors|instance of 'gloo::")


class Place(NamedTuple):
    """Where this process stands: its number, the number of processes, and the number of devices in each."""

    process: int = 0
    processes: int = 1
    devices: int = 1

    @property
    def distributed(self):
        return self.processes * self.devices > 1


def several_processes():
    """Return whether the environment names several processes that train together."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    return os.environ.get(VARIABLES[1]) != "1" and (tasks != "1" or any(name in os.environ for name in VARIABLES))


def join_processes():
    """Join the other processes if the environment names several. From here on, only process 0 prints.

    Raises InputError: the variables do not fit together, or the backend is not JAX.
    """
    if not several_processes():
        return
    import keras

    if keras.config.backend() != "jax":
        expected = f'Several processes need JAX: set KERAS_BACKEND=jax (pip install "{JAX}")'
        raise InputError(f"{expected}. Received: KERAS_BACKEND={keras.config.backend()}")
    address, count, number = given = [os.environ.get(name) for name in VARIABLES]
    if any(given):
        fits = all(given) and count.isdecimal() and number.isdecimal() and int(number) < int(count)
        if not (fits and re.fullmatch(r"[^,]+:\d+(,.*)?", address)):
            expected = "host:port of process 0, the number N of processes, and the number of this one, 0 to N - 1"
            found = ", ".join(f"{name}={value or 'not set'}" for name, value in zip(VARIABLES, given))
            raise InputError(f"Set all three variables: {expected}. Received: {found}")
        address, count, number = address.split(",")[0], int(count), int(number)
        if number == 0:  # if JAX cannot listen there, it crashes
            try:
                socket.create_server(("", int(address.rpartition(":")[2]))).close()
            except (OSError, OverflowError) as error:
                expected = "Process 0 needs a free port: set another one in all processes"
                raise InputError(f"{expected}. Received: {VARIABLES[0]}={address} ({error})") from None
    # JAX ends a process that has lost the others from a thread of its own, in C++: no exception could be caught here.
    options = {"stdin": subprocess.PIPE, "cwd": pathlib.Path(__file__).resolve().parents[1]}
    reader = subprocess.Popen([sys.executable, "-m", __name__], start_new_session=True, **options)
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    import jax

    print(f"Waiting for the other processes, up to {JOIN_TIMEOUT} seconds", flush=True)
    timeouts = {"initialization_timeout": JOIN_TIMEOUT, "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT}
    try:
        jax.distributed.initialize(address, count, number, **timeouts)
    except (ValueError, RuntimeError) as error:
        expected = (
            f"Several processes: set {', '.join(VARIABLES)} in each, or start them with srun or mpirun (Open MPI 4)"
        )
        raise InputError(f"{expected}. Received: {str(error).splitlines()[0]}") from None
    atexit.register(_abandon)
    number, count = jax.process_index(), jax.process_count()
    print(f"Process {number} of {count}: process 0 prints and saves the results", flush=True)
    _meet()
    if number:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def _meet():
    """Connect to the other processes, which C++ code announces on standard output."""
    from jax.experimental import multihost_utils

    sys.stdout.flush()
    stdout, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    multihost_utils.sync_global_devices("start")
    os.dup2(stdout, 1)
    os.close(nothing)
    os.close(stdout)


def start(distribute, batch_size):
    """Distribute all models built from now on, if that is asked for or there are several processes.

    Args:
        distribute: bool, use all devices of this machine.
        batch_size: int, the images in a batch, of all devices together.

    Returns: the number of devices, of all processes together.
    Raises InputError: the batch cannot be shared out equally.
    """
    import keras

    if keras.config.backend() == "jax":
        import jax

        count = jax.device_count() if distribute or jax.process_count() > 1 else 1
        if count > 1:
            keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    else:
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        count = len(devices) if distribute else 1
        if count > 1:
            strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
            tf.distribute.experimental_set_strategy(strategy)
    if batch_size % count:
        expected = f"--batch-size must be a multiple of the number of devices, {count}, which share each batch equally"
        raise InputError(f"{expected}. Received: {batch_size}")
    return count


def output_folder(folder):
    """Return the folder for results: the one given in process 0, a temporary one in the others."""
    if place().process == 0:
        return folder
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    return pathlib.Path(temporary.name)


def place():
    """Return the `Place` of this process among those that train a model together."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        distributed = keras.distribution.distribution() is not None
        return Place(jax.process_index(), jax.process_count(), jax.local_device_count()) if distributed else Place()
    import tensorflow as tf

    return Place(devices=tf.distribute.get_strategy().num_replicas_in_sync)


def whole_batches():
    """Return whether every batch must be full: devices share it equally, and JAX compiles the step for one size."""
    import keras

    return keras.config.backend() == "jax" or place().distributed


def share(value):
    """Return what process 0 calls with, JSON-serialisable, in every process."""
    return json.loads(_share_bytes(json.dumps(value).encode()))


def share_file(path):
    """Copy a file of process 0, if it has one, to the same path of each other process."""
    here, where = pathlib.Path(path), place()
    if where.processes > 1 and share(here.is_file()):
        content = _share_bytes(here.read_bytes() if where.process == 0 else b"")
        if where.process:
            here.write_bytes(content)


def _share_bytes(content):
    """Return the bytes that process 0 calls with in every process."""
    if place().processes == 1:
        return content
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(content))))
    content = np.resize(np.frombuffer(content or b"0", np.uint8), size)
    return np.asarray(multihost_utils.broadcast_one_to_all(content)).astype(np.uint8).tobytes()


def check_same(config):
    """Raise an InputError that names the differences unless a run's settings are those of process 0."""
    first = share(config)
    config = json.loads(json.dumps(config))  # as it comes from the other process, with lists for tuples
    changed = [f"{key} {config.get(key)}, not {first.get(key)}" for key in first if config.get(key) != first.get(key)]
    if changed:
        expected = "All processes of a run need the same command and the same data"
        raise InputError(f"{expected}. Received: process {place().process} with {'; '.join(changed)}")


@contextlib.contextmanager
def paused():
    """Let one process save a model: Keras creates variables for that, which would wait for the other processes."""
    import keras

    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def leave(model):
    """Return a trained model on one device, as if it had never been distributed; other processes than 0 end here."""
    import keras

    where = place()
    if not where.distributed:
        return model
    weights = model.get_weights()
    if keras.config.backend() == "jax":
        keras.distribution.set_distribution(None)
    else:
        import tensorflow as tf

        tf.distribute.experimental_set_strategy(None)
    if where.processes > 1:
        import jax

        jax.distributed.shutdown()  # waits until all are here
        atexit.unregister(_abandon)
    if where.process:
        sys.exit()
    alone = keras.models.clone_model(model)
    synchronize(alone)
    alone.set_weights(weights)
    alone.compile_from_config(model.get_compile_config())
    return alone


def synchronize(model):
    """Let batch normalisation use the statistics of the whole batch, not of each device's part; JAX always does."""
    import keras

    several = place().distributed and keras.config.backend() == "tensorflow"
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = several


def _abandon():
    """End a failed process at once: JAX would first wait for the others, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(errors.exit_code)


def _copy_messages():
    """Copy standard input to standard error, with a line of ours for what JAX writes in C++ when it ends a process."""
    told = False
    for line in sys.stdin.buffer:
        told = told or LOST.encode() in line
        if LAST_WORDS.search(line):
            reason = line.rpartition(b"absl::Status: ")[2].decode(errors="replace").strip().split(". ")[0][:200]
            if not told:
                print(f"\nerror: {LOST}{reason}", file=sys.stderr, flush=True)
            for _ in sys.stdin.buffer:
                pass
        elif not re.match(rb"[IWEF]\d{4} |WARNING: All log messages before absl|\t \[\[\{\{node", line):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


if __name__ == "__main__":
    _copy_messages()
