"""Which digit, 0 to 5, does the hand show? A convolutional network with Keras's Functional API.

    python signs_functional.py                              train, test, save everything
    python signs_functional.py --data-dir FOLDER            the same on the .h5 files in FOLDER
    python signs_functional.py --predict hand.jpg           ask the trained model
    python signs_functional.py --dry-run                    does it work here? seconds

Data: SIGNS, 1,080 photographs to train on and 120 to test on, 64x64 RGB, six
classes; without its files, rendered SYNTHETIC pictures.
"""

import argparse
import sys
import time

import cnn_utils as utils
import runs

CLASSES = ("0", "1", "2", "3", "4", "5")


def build_model(classes=6):
    """Return the network: pixels 0-255 (batch, 64, 64, 3) in, a probability for each class (batch, 6) out.

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
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="digits")(x)
    return Model(inputs, outputs, name="signs_functional")


def change_a_little(pictures, seed):
    """Change a picture as the photographs of one set differ: mirrored, turned, moved, in a little other light."""
    import augmentation

    pictures = augmentation.move(pictures, seed, flip=True, rotation=15, shift=0.08, zoom=0.12)
    return augmentation.relight(pictures, seed, tone=0.2, contrast=0.1, brightness=0.05)


def change_a_lot(pictures, seed):
    """Change all that may change in a picture while the hand goes on showing its digit."""
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
    if arguments.seeds > 1:
        return runs.run_seeds(arguments)
    training = not (arguments.predict or arguments.export)
    device = utils.start_tensorflow(arguments.seed, arguments.mixed_precision and training, arguments.deterministic)
    import keras

    import trust
    from report import write_report

    utils.use_headless_figures(arguments.show)
    if not training:
        return use(arguments)

    # 2. Load the train and the test set; show one picture of each class.
    files = utils.find_data("signs", arguments.data, arguments.data_dir)
    print(files)
    train_x, train_y, test_x, test_y, classes = utils.load_signs_dataset(arguments.data, arguments.data_dir)
    names = utils.class_names(classes, CLASSES)
    if arguments.dry_run:
        arguments.epochs = 1
        train_x, train_y = utils.first_of_each_class(train_x, train_y, 8)
        test_x, test_y = utils.first_of_each_class(test_x, test_y, 4)
    settings = runs.run_settings("signs_functional", files, arguments)
    if arguments.resume and runs.is_finished(arguments.output_dir, settings):
        print(f"The run in {arguments.output_dir} is finished: there is nothing to go on with")
        return 0
    output = runs.prepare_output_dir(arguments.output_dir, settings, arguments.resume)
    utils.plot_examples(train_x, train_y, names, output / "examples.png", files.kind)

    # 3. Prepare. X stays 0-255: the model's first layer normalises it, here and in every later use.
    #    Y becomes one-hot rows, one column per digit: what categorical cross-entropy compares.
    utils.print_shapes("As loaded", train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    train_x, train_y, validation_x, validation_y = utils.split_validation(train_x, train_y, arguments.seed)
    more_x, more_y = train_x, train_y
    if files.kind == "real" and names == CLASSES and arguments.rendered:
        # Rendered hands differ in what the photographs share: the person, the wall, the light.
        more_x, more_y = utils.add_rendered(train_x, train_y, "signs", arguments.dry_run)
    more_y, train_y, validation_y, test_y = (utils.one_hot(y, len(names))
                                             for y in (more_y, train_y, validation_y, test_y))
    utils.print_shapes("As the model gets them", train_x=train_x, train_y=train_y,
                       **({} if more_x is train_x else {"with_rendered_x": more_x, "with_rendered_y": more_y}),
                       validation_x=validation_x, validation_y=validation_y, test_x=test_x, test_y=test_y)

    # 4. Build and compile the model, print its summary.
    #    Easy, hard, easy: a good start needs pictures like those of the set; then other walls and light, and rendered
    #    hands, teach what a hand is; at the end, with small steps, it is the set's own pictures that must be right.
    if names == CLASSES:
        plan = [(1 / 15, train_x, train_y, change_a_little), (1 / 5, more_x, more_y, change_a_lot),
                (1 / 2, train_x, train_y, change_a_lot), (7 / 30, train_x, train_y, change_a_little)]
    else:
        # Pictures of one's own, of nobody knows what: a wall behind a hand is not to be looked for.
        plan = [(1, train_x, train_y, change_a_little)]
    batches = utils.planned_batches(plan, arguments.epochs, arguments.batch_size, arguments.seed)
    # Keras wants epochs of one length: all steps are shared out evenly.
    steps = len(batches) // arguments.epochs
    model = build_model(len(names))
    # The step size falls along half a cosine to 0: big steps first, then the fine adjustment.
    schedule = keras.optimizers.schedules.CosineDecay(arguments.learning_rate, arguments.epochs * steps)
    model.compile(keras.optimizers.Adam(schedule), loss="categorical_crossentropy", metrics=["accuracy"])
    model.summary()

    # 5. Train with mini-batches. The validation split shows how it goes; the test set is not touched.
    started = time.perf_counter()
    utils.make_variables(model, train_y)
    history, interrupted = runs.fit(model, batches, output_dir=output, settings=settings, epochs=arguments.epochs,
                                     steps_per_epoch=steps, resume=arguments.resume,
                                     tensorboard=arguments.tensorboard,
                                     validation_data=utils.plain_batches(validation_x, validation_y, 64))
    train_seconds = time.perf_counter() - started
    utils.compute_in_float32(model)
    print(f"Trained for {train_seconds:.0f} s")
    #    How sure is it when it is right? The validation split tells; and how unlike its training pictures are these?
    temperature = trust.calibrate(model, validation_x, validation_y)
    familiar = trust.familiar_features(model, train_x, arguments.seed)
    usual = trust.usual_unlikeness(model, validation_x, familiar)
    runs.save_model(model, output / "model.keras", familiar=familiar,
                     notes={"classes": names, "data": files.kind, "dry_run": arguments.dry_run,
                            "temperature": temperature, "usual": usual})
    runs.save_history(history, output / "history.csv")

    # 6. Evaluate on the test set, save the figures.
    results = utils.evaluate(model, test_x, test_y, names)
    utils.plot_learning_curves(history, output / "learning_curves.png", files.kind)
    utils.plot_confusion_matrix(results, names, output / "confusion_matrix.png", files.kind)
    utils.plot_mistakes(test_x, results, names, output / "mistakes.png", files.kind)
    calibration = trust.plot_reliability(results, temperature, output / "reliability.png", files.kind)
    utils.save_metrics(output, settings, model, results, names=names, device=device, train_seconds=train_seconds,
                       calibration=calibration, interrupted=interrupted,
                       examples={"train": len(train_x), "rendered": len(more_x) - len(train_x),
                                 "validation": len(validation_x), "test": len(test_x)})
    write_report(output, model, results, train_x, test_x, sys.argv)
    if arguments.tensorboard:
        runs.log_figures(output)
    code = runs.finish(output, interrupted)
    if arguments.show:
        utils.show_figures()
    return code


def use(arguments):
    """7. Load the saved, already trained model and test it on new pictures, or export it; return the exit code."""
    import prediction

    model, notes = prediction.load_trained_model(arguments.output_dir, "signs_functional", CLASSES)
    if arguments.export:
        from export import export_model

        export_model(model, arguments.export, arguments.output_dir)
        return 0
    code = prediction.predict_images(model, notes, arguments.predict, arguments.output_dir, crop=arguments.crop,
                                tta=arguments.tta, explain=arguments.explain)
    if arguments.show:
        utils.show_figures()
    return code


if __name__ == "__main__":
    utils.run(main)
