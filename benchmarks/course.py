"""Train the plain networks of the course, to see how easy a data set is.

    python -m benchmarks.course happy                    on the SYNTHETIC faces
    python -m benchmarks.course signs --data-dir FOLDER  on photographs

The networks are those of the course's exercises on Happy House and SIGNS: one or two convolutions, pixels from 0 to 1,
no augmentation, the last epoch's weights. The SYNTHETIC sets should be as easy for them as the photographs.
"""

import argparse

import numpy as np

from basics.errors import run_main
from datasets import HAPPY, SIGNS
from datasets.hdf5 import load_h5
from datasets.loading import find_data
from support.cli import existing_folder, integer

TASKS = {"happy": HAPPY, "signs": SIGNS}


def happy_network():
    """Return the compiled network of the exercise on Happy House: one convolution and a sigmoid."""
    import keras
    from keras import layers

    model = keras.Sequential()
    model.add(layers.Input((64, 64, 3)))
    model.add(layers.ZeroPadding2D(3))
    model.add(layers.Conv2D(32, 7))
    model.add(layers.BatchNormalization(axis=3))
    model.add(layers.ReLU())
    model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dense(1, activation="sigmoid"))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


def signs_network():
    """Return the compiled network of the exercise on SIGNS: two convolutions and a softmax."""
    import keras
    from keras import layers

    inputs = layers.Input((64, 64, 3))
    x = layers.Conv2D(8, 4, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D(8, padding="same")(x)
    x = layers.Conv2D(16, 2, padding="same", activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D(4, padding="same")(x))
    model = keras.Model(inputs, layers.Dense(6, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def course_accuracy(name, train, test, seed):
    """Train the course's network for "happy" or "signs"; return its accuracy on the test set.

    `train`, `test`: pixels 0-255 (m, 64, 64, 3) and labels (m,).
    """
    import keras

    keras.utils.set_random_seed(seed)
    if name == "happy":
        model, epochs, batch_size = happy_network(), 30, 16
    else:
        model, epochs, batch_size = signs_network(), 100, 64
    train_x, train_y = train
    test_x, test_y = test
    model.fit(train_x / np.float32(255), train_y, epochs=epochs, batch_size=batch_size, verbose=0)
    _, accuracy = model.evaluate(test_x / np.float32(255), test_y, verbose=0)
    return accuracy


def main(argv=None):
    parser = argparse.ArgumentParser(
        "python -m benchmarks.course", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(TASKS), help="the data set, and with it the network")
    parser.add_argument("--data-dir", type=existing_folder, metavar="FOLDER", help="folder with the two .h5 files")
    parser.add_argument(
        "--seeds", type=integer(1), default=5, metavar="N", help="train with the seeds 1 to N (%(default)s)"
    )
    args = parser.parse_args(argv)
    source = find_data(TASKS[args.name], "auto" if args.data_dir else "synthetic", args.data_dir)
    print(source)
    train, test = load_h5(source.train, "train")[:2], load_h5(source.test, "test")[:2]
    accuracies = []
    for seed in range(1, args.seeds + 1):
        accuracies.append(course_accuracy(args.name, train, test, seed))
        print(f"seed {seed}: test accuracy {accuracies[-1]:.1%}", flush=True)
    print(f"mean: {np.mean(accuracies):.1%}")


if __name__ == "__main__":
    run_main(main)
