"""The checkpoint that a run saves after every epoch, and that --resume continues from."""

import json

import h5py
import keras

from support import distribution
from support.files import atomic_write


class Checkpoint(keras.callbacks.Callback):
    """Add each epoch to the history, a dict of lists, and save all that is needed to continue after it.

    `config` is the run's settings, a JSON-serialisable dict.
    """

    def __init__(self, path, config, history):
        super().__init__()
        self.path, self.config, self.history = path, config, history

    def on_epoch_end(self, epoch, logs=None):
        for metric, value in logs.items():
            self.history.setdefault(metric, []).append(float(value))
        if distribution.place().process:
            return  # process 0 saves
        # Room is checked first: HDF5 reports a full disk in many lines of its own.
        size = sum(variable.numpy().nbytes for variable in [*self.model.variables, *self.model.optimizer.variables])
        with atomic_write(self.path, min_free_bytes=size + 1_000_000) as temporary, distribution.paused():
            self.model.save_weights(temporary)
            rng_state = [variable.numpy().tolist() for variable in generators(self.model)]
            state = {"config": self.config, "history": self.history, "rng_state": rng_state}
            with h5py.File(temporary, "a") as file:
                file["state"] = json.dumps(state)


def generators(model):
    """Return the states of the dropout layers' generators, variables that Keras does not save with the weights."""
    return [variable for variable in model.variables if "seed_generator" in variable.path]
