"""Data parallelism: each device computes a part of every batch, and all of them apply the same gradient.

--distribute uses all devices of one machine, with `tf.distribute.MirroredStrategy` on TensorFlow and
`keras.distribution.DataParallel` on JAX. Several machines need JAX: the same command runs on each of them, under Slurm
or Open MPI, or with the environment variables of `keras.distribution.initialize`. The process of rank 0 prints and
saves.
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

from basics import errors
from basics.errors import LOST, InputError, first_line

JAX = "jax>=0.10,<0.13"

VARIABLES = tuple(f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID"))

# Seconds that the processes wait for each other at the start, and after which a silent one counts as lost.
JOIN_TIMEOUT = 120
HEARTBEAT_TIMEOUT = 25

# JAX's C++ code prints one of these before it aborts a process that has lost another one.
ABORT_MESSAGES = re.compile(rb"JAX distributed service detected fatal errors|instance of 'gloo::")


class Rank(NamedTuple):
    """The rank of this process, the number of processes, and the devices of each."""

    process: int = 0  # the rank, counted from 0
    processes: int = 1
    devices: int = 1

    @property
    def distributed(self):
        return self.processes * self.devices > 1


def several_processes():
    """Return whether the environment describes several processes that train together."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    return os.environ.get(VARIABLES[1]) != "1" and (tasks != "1" or any(name in os.environ for name in VARIABLES))


def join_processes():
    """Join the other processes if the environment describes several. From then on, only rank 0 prints.

    Raises InputError: the environment variables do not fit together, or the backend is not JAX.
    """
    if not several_processes():
        return
    import keras

    backend = keras.config.backend()
    if backend != "jax":
        alone = f"{VARIABLES[1]}=1 to train in this process alone"
        fix = f'Set KERAS_BACKEND=jax (pip install "{JAX}"), or {alone}'
        raise InputError("Training in several processes needs JAX", fix, got=f"KERAS_BACKEND={backend}")
    address, count, rank_number = _read_variables()
    if rank_number == 0:
        _check_port(address)
    _filter_messages()
    import jax

    print(f"Waiting up to {JOIN_TIMEOUT} seconds for the other processes", flush=True)
    try:
        jax.distributed.initialize(
            address,
            count,
            rank_number,
            initialization_timeout=JOIN_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        fix = f"Set {', '.join(VARIABLES)} in each process, or start them with srun or mpirun (Open MPI 4)"
        raise InputError(f"The processes cannot join each other: {first_line(error)}", fix) from None
    atexit.register(_abort)
    print(f"Process {jax.process_index()} of {jax.process_count()}: process 0 prints and saves the results", flush=True)
    _barrier()
    if jax.process_index():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def _read_variables():
    """Return address, number of processes and rank as the environment gives them, or three None if it does not.

    Raises InputError: they do not fit together.
    """
    values = [os.environ.get(name) for name in VARIABLES]
    if not any(values):
        return None, None, None  # JAX asks Slurm or Open MPI
    address, count, rank_number = (value or "" for value in values)
    numbers_fit = count.isdecimal() and rank_number.isdecimal() and int(rank_number) < int(count)
    if not (numbers_fit and re.fullmatch(r"[^,]+:\d+(,.*)?", address)):
        found = ", ".join(f"{name}={value or 'not set'}" for name, value in zip(VARIABLES, values))
        fix = "Set all three: host:port of process 0, the number N of processes, and the number of this one, 0 to N - 1"
        raise InputError("The environment variables of the processes do not fit together", fix, got=found)
    return address.split(",")[0], int(count), int(rank_number)


def _check_port(address):
    """Raise an InputError unless this process can listen on its port; JAX would crash."""
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        problem = f"Process 0 cannot listen on port {port} of {VARIABLES[0]}: {error}"
        raise InputError(problem, "Set another port in all processes") from None


def _filter_messages():
    """Send standard error through another process, which replaces JAX's abort message with a readable line.

    JAX aborts a process that has lost the others from a thread in C++, so no exception could be caught here.
    """
    reader = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        cwd=pathlib.Path(__file__).resolve().parents[2],
        start_new_session=True,
    )
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()


def _barrier():
    """Wait for the other processes, and hide what the C++ code prints on standard output when it connects to them."""
    from jax.experimental import multihost_utils

    sys.stdout.flush()
    stdout = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    multihost_utils.sync_global_devices("start")
    os.dup2(stdout, 1)
    os.close(nothing)
    os.close(stdout)


def start(distribute, batch_size):
    """Distribute all models built from now on, if that is wanted or there are several processes.

    Args:
        distribute: bool, use all devices of this machine.
        batch_size: int, the images in a batch, on all devices together.

    Returns: the number of devices of all processes together.
    Raises InputError: the devices cannot get equal parts of a batch.
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
        problem = f"--batch-size {batch_size} cannot be split equally among {count} devices"
        raise InputError(problem, f"Use a multiple of {count}")
    return count


def output_folder(folder):
    """Return the folder for results: the one given for rank 0, a temporary one for the other processes."""
    if rank().process == 0:
        return folder
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    return pathlib.Path(temporary.name)


def rank():
    """Return the `Rank` of this process among those that train together."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        distributed = keras.distribution.distribution() is not None
        return Rank(jax.process_index(), jax.process_count(), jax.local_device_count()) if distributed else Rank()
    import tensorflow as tf

    return Rank(devices=tf.distribute.get_strategy().num_replicas_in_sync)


def whole_batches():
    """Return whether every batch must be full: devices need equal parts, and JAX compiles the step for one size."""
    import keras

    return keras.config.backend() == "jax" or rank().distributed


def broadcast(value):
    """Return in every process the value that rank 0 passes, JSON-serializable."""
    return json.loads(_broadcast_bytes(json.dumps(value).encode()))


def broadcast_file(path):
    """Copy a file of rank 0, if it has one, to the same path in the other processes."""
    path = pathlib.Path(path)
    process, processes, _ = rank()
    if processes > 1 and broadcast(path.is_file()):
        content = _broadcast_bytes(path.read_bytes() if process == 0 else b"")
        if process:
            path.write_bytes(content)


def _broadcast_bytes(content):
    """Return in every process the bytes that rank 0 passes."""
    if rank().processes == 1:
        return content
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(content))))
    content = np.resize(np.frombuffer(content or b"0", np.uint8), size)
    return np.asarray(multihost_utils.broadcast_one_to_all(content)).astype(np.uint8).tobytes()


def check_same(config):
    """Raise an InputError that names the differences unless a run's settings, a dict, are those of rank 0."""
    first = broadcast(config)
    config = json.loads(json.dumps(config))  # as it comes from the other process, with lists for tuples
    differences = [
        f"{key} is {config.get(key)}, not {value}" for key, value in first.items() if config.get(key) != value
    ]
    if differences:
        problem = f"Process {rank().process} has other settings than process 0: {'; '.join(differences)}"
        raise InputError(problem, "Start all processes with the same command and the same data")


@contextlib.contextmanager
def no_distribution():
    """Let one process save a model: Keras creates variables for that, which would wait for the other processes."""
    import keras

    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def teardown(model):
    """Return a trained model on one device, as if it had never been distributed; all processes but rank 0 end here."""
    import keras

    here = rank()
    if not here.distributed:
        return model
    weights = model.get_weights()
    if keras.config.backend() == "jax":
        keras.distribution.set_distribution(None)
    else:
        import tensorflow as tf

        tf.distribute.experimental_set_strategy(None)
    if here.processes > 1:
        import jax

        jax.distributed.shutdown()  # waits for the other processes
        atexit.unregister(_abort)
    if here.process:
        sys.exit()
    alone = keras.models.clone_model(model)
    synchronize(alone)
    alone.set_weights(weights)
    alone.compile_from_config(model.get_compile_config())
    return alone


def synchronize(model):
    """Let batch normalization use the statistics of the whole batch, not of each device's part; JAX always does."""
    import keras

    several = rank().distributed and keras.config.backend() == "tensorflow"
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = several


def _abort():
    """End a failed process at once: JAX would first wait for the others, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(errors.exit_code)


def _copy_messages():
    """Copy standard input to standard error, replacing JAX's C++ abort message with one readable line."""
    printed = False
    for line in sys.stdin.buffer:
        printed = printed or LOST.encode() in line
        if ABORT_MESSAGES.search(line):
            reason = line.rpartition(b"absl::Status: ")[2].decode(errors="replace").strip().split(". ")[0][:200]
            if not printed:
                print(f"\nerror: {LOST} (got {reason})", file=sys.stderr, flush=True)
            for _ in sys.stdin.buffer:
                pass
        elif not re.match(rb"[IWEF]\d{4} |WARNING: All log messages before absl|\t \[\[\{\{node", line):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


if __name__ == "__main__":
    _copy_messages()
