"""The checkpoint that a run saves after every epoch, and that --resume continues from."""

import json
import time

import h5py
import keras

from basics import errors, signals
from basics.files import atomic_write
from support.training import distribution


class Checkpoint(keras.callbacks.Callback):
    """Add each epoch to the history, a dict of lists, and save all that is needed to continue after it.

    Args:
        path: the file to write.
        settings: the run's settings, a JSON-serializable dict.
        history: dict of lists, to which every epoch is added.
        before_writing: function without arguments, called after the first step of a training.
        started: float, the time on `time.perf_counter` at which all training so far would have begun without a pause.
    """

    def __init__(self, path, settings, history, before_writing, started):
        super().__init__()
        self.path, self.settings, self.history, self.before_writing = path, settings, history, before_writing
        self.started = started

    def on_train_batch_end(self, batch, logs=None):
        self.before_writing()

    def on_epoch_end(self, epoch, logs=None):
        for metric, value in logs.items():
            self.history.setdefault(metric, []).append(float(value))
        if distribution.rank().process:
            return  # process 0 saves
        # Room is checked first: HDF5 reports a full disk in many lines of its own.
        size = sum(variable.numpy().nbytes for variable in [*self.model.variables, *self.model.optimizer.variables])
        with atomic_write(self.path, min_free_bytes=size + 1_000_000) as temporary, distribution.no_distribution():
            self.model.save_weights(temporary)
            rng_state = [variable.numpy().tolist() for variable in generators(self.model)]
            seconds = time.perf_counter() - self.started
            state = {"config": self.settings, "history": self.history, "rng_state": rng_state, "seconds": seconds}
            with h5py.File(temporary, "a") as file:
                file["state"] = json.dumps(state)
        errors.resumable = True


class TimeLeft(keras.callbacks.Callback):
    """Print, after the second epoch, how long the rest will take; the first one takes longer."""

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        self.first = getattr(self, "first", epoch)

    def on_epoch_end(self, epoch, logs=None):
        seconds = (time.perf_counter() - self.started) * (self.params["epochs"] - epoch - 1)
        if epoch == self.first + 1 and seconds > 20:
            minutes = round(seconds / 60)
            print(f"About {minutes} minute{'s' * (minutes > 1)} left" if minutes else "Less than a minute left")


class SignalCheck(keras.callbacks.Callback):
    """End a `fit` after Ctrl-C or SIGTERM, but only between two steps once an epoch has been learned.

    Otherwise, a checkpoint could lack the epoch that the history has. It has to be the first callback.
    """

    def on_epoch_end(self, epoch, logs=None):
        signals.hold()

    def on_epoch_begin(self, epoch, logs=None):
        signals.check()

    def on_train_batch_end(self, batch, logs=None):
        signals.check()

    def on_test_batch_end(self, batch, logs=None):
        signals.check()


class Interrupted(keras.callbacks.Callback):
    """End a `fit` before its first step, because Ctrl-C or SIGTERM ended an earlier one of the same run."""

    def on_train_begin(self, logs=None):
        raise KeyboardInterrupt


def generators(model):
    """Return the states of the dropout layers' generators, variables that Keras does not save with the weights."""
    return [variable for variable in model.variables if "seed_generator" in variable.path]
