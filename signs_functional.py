"""Which digit, 0 to 5, does the hand show? A convolutional network with Keras's Functional API.

    python signs_functional.py                              train, test, save everything
    python signs_functional.py --data-dir FOLDER            the same on the .h5 files in FOLDER
    python signs_functional.py --predict hand.jpg           ask the trained model
    python signs_functional.py --dry-run                    does it work here? seconds

Data: SIGNS, 1,080 photographs to train on and 120 to test on, 64x64 RGB, six
classes; without its files, rendered SYNTHETIC pictures.
"""

import argparse
import math
import time

import cnn_utils as utils

CLASSES = ("0", "1", "2", "3", "4", "5")


def build_model():
    """Return the network: pixels 0-255 (batch, 64, 64, 3) in, six probabilities (batch, 6) out.

    Each layer is called on the output of the one before: what `x` is at any
    line can be looked at, branched or joined, which a Sequential cannot.
    """
    from keras import Model, layers

    inputs = layers.Input((64, 64, 3), name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="normalise")(inputs)
    # Height and width are halved four times, 64 to 4; the number of features grows.
    for number, filters in enumerate((24, 48, 96, 128), 1):
        # No bias: the batch normalisation behind it adds one of its own.
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        # Pooling comes first: what follows then has a quarter of the numbers to work on.
        x = layers.MaxPooling2D(2, name=f"pool{number}")(x)
        # 0.9 rather than Keras's 0.99: of so few steps per epoch, the averages must keep up.
        x = layers.BatchNormalization(axis=3, momentum=0.9, name=f"bn{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
    # Flatten keeps where a feature was seen: a finger left of the palm is not one right of it.
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.3, name="dropout")(x)
    outputs = layers.Dense(len(CLASSES), activation="softmax", dtype="float32", name="digits")(x)
    return Model(inputs, outputs, name="signs_functional")


def augment(pictures, seed):
    """What may change in a picture while the hand goes on showing its digit."""
    import augmentation

    # Other people, walls, lamps and cameras: the photographs show few of them.
    pictures = augmentation.rewall(pictures, seed, share=0.2)
    # A right hand becomes a left one, nearer or farther, a little aslant.
    pictures = augmentation.move(pictures, seed, flip=True, rotation=18, shift=0.1, zoom=0.15)
    return augmentation.relight(pictures, seed, colour=0.1, grey=0.1, tone=0.4, contrast=0.15, brightness=0.1,
                                shadow=0.25)


def main():
    parser = utils.command_line(__doc__, "signs_functional", epochs=60, batch_size=32, learning_rate=3e-3,
                                mixed_precision=utils.computes_bfloat16())
    parser.add_argument("--rendered", action=argparse.BooleanOptionalAction, default=True,
                        help="a fifth of the epochs with SYNTHETIC hands beside the photographs (default: yes)")
    arguments = parser.parse_args()

    # 1. Libraries, shared functions, seed. Only now: --help and a mistyped option need no TensorFlow.
    device = utils.start_tensorflow(arguments.seed, arguments.mixed_precision and not arguments.predict)
    import keras

    utils.use_headless_figures(arguments.show)
    if arguments.predict:
        return predict(arguments)

    # 2. Load the train and the test set; show one picture of each class.
    files = utils.find_data("signs", arguments.data, arguments.data_dir)
    print(files)
    train_x, train_y, test_x, test_y, _ = utils.load_signs_dataset(arguments.data, arguments.data_dir)
    if arguments.dry_run:
        arguments.epochs = 1
        train_x, train_y = utils.first_of_each_class(train_x, train_y, 8)
        test_x, test_y = utils.first_of_each_class(test_x, test_y, 4)
    settings = utils.run_settings("signs_functional", files, arguments)
    output = utils.prepare_output_dir(arguments.output_dir, settings)
    utils.plot_examples(train_x, train_y, CLASSES, output / "examples.png", files.kind)

    # 3. Prepare. X stays 0-255: the model's first layer normalises it, here and in every later use.
    #    Y becomes one-hot rows, one column per digit: what categorical cross-entropy compares.
    utils.print_shapes("As loaded", train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    train_x, train_y, validation_x, validation_y = utils.split_validation(train_x, train_y, arguments.seed)
    first_x, first_y = train_x, train_y
    if files.kind == "real" and arguments.rendered:
        # Rendered hands differ in what the photographs share: the person, the wall, the light.
        first_x, first_y = utils.add_rendered(train_x, train_y, "signs", arguments.dry_run)
    first_y, train_y, validation_y, test_y = (utils.one_hot(y, len(CLASSES))
                                              for y in (first_y, train_y, validation_y, test_y))
    utils.print_shapes("As the model gets them", first_x=first_x, first_y=first_y, train_x=train_x,
                       train_y=train_y, validation_x=validation_x, validation_y=validation_y, test_x=test_x,
                       test_y=test_y)

    # 4. Build and compile the model, print its summary.
    #    A fifth of the epochs with the rendered hands, which teach what hands have in common; then without.
    first, then = (utils.training_batches(x, y, arguments.batch_size, arguments.seed, augment)
                   for x, y in ((first_x, first_y), (train_x, train_y)))
    with_rendered = math.ceil(arguments.epochs / 5)
    batches = first.repeat(with_rendered).concatenate(then.repeat(arguments.epochs - with_rendered))
    # Keras wants epochs of one length: all steps are shared out evenly.
    steps = len(batches) // arguments.epochs
    model = build_model()
    # The step size falls along half a cosine to 0: big steps first, then the fine adjustment.
    schedule = keras.optimizers.schedules.CosineDecay(arguments.learning_rate, arguments.epochs * steps)
    model.compile(keras.optimizers.Adam(schedule), loss="categorical_crossentropy", metrics=["accuracy"])
    model.summary()

    # 5. Train with mini-batches. The validation split shows how it goes; the test set is not touched.
    started = time.perf_counter()
    utils.make_variables(model, train_y)
    history = model.fit(batches, shuffle=False, epochs=arguments.epochs, steps_per_epoch=steps,
                        validation_data=(validation_x, validation_y),
                        callbacks=[keras.callbacks.CSVLogger(output / "history.csv")]).history
    train_seconds = time.perf_counter() - started
    utils.compute_in_float32(model)
    model.save(output / "model.keras")
    print(f"Trained for {train_seconds:.0f} s\nSaved {output / 'model.keras'}\nSaved {output / 'history.csv'}")

    # 6. Evaluate on the test set, save the figures.
    results = utils.evaluate(model, test_x, test_y, CLASSES)
    utils.plot_learning_curves(history, output / "learning_curves.png", files.kind)
    utils.plot_confusion_matrix(results, CLASSES, output / "confusion_matrix.png", files.kind)
    utils.plot_mistakes(test_x, results, CLASSES, output / "mistakes.png", files.kind)
    utils.save_metrics(output, settings, model, results, names=CLASSES, device=device, train_seconds=train_seconds,
                       examples={"train": len(train_x), "rendered": len(first_x) - len(train_x),
                                 "validation": len(validation_x), "test": len(test_x)})
    if arguments.show:
        utils.show_figures()
    return 0


def predict(arguments):
    """7. Load the saved, already trained model and test it on new pictures; return the exit code."""
    model, kind = utils.load_trained_model(arguments.output_dir, "signs_functional")
    code = utils.predict_images(model, arguments.predict, CLASSES, arguments.output_dir, kind)
    if arguments.show:
        utils.show_figures()
    return code


if __name__ == "__main__":
    utils.run(main)
