"""Is the person smiling? A convolutional network with Keras's Sequential API.

    python happy_sequential.py                              train, test, save everything
    python happy_sequential.py --data-dir FOLDER            the same on the .h5 files in FOLDER
    python happy_sequential.py --predict me.jpg you.png     ask the trained model
    python happy_sequential.py --dry-run                    does it work here? seconds

Data: Happy House, 600 photographs to train on and 150 to test on, 64x64 RGB,
0 = not smiling, 1 = smiling; without its files, rendered SYNTHETIC pictures.
"""

import argparse
import sys
import time

import cnn_utils as utils
import runs

CLASSES = ("not smiling", "smiling")


def build_model(classes=2):
    """Return the network: pixels 0-255 (batch, 64, 64, 3) in, probability of a smile (batch, 1) out.

    Six rounds of convolution, batch normalisation and ReLU; four of them halve
    height and width, and look at fewer, larger, more telling things.
    """
    from keras import Sequential, layers

    model = Sequential(name="happy_sequential")
    model.add(layers.Input((64, 64, 3), name="pixels"))
    model.add(layers.Rescaling(1 / 127.5, offset=-1, name="normalise"))
    # Height and width are halved four times, 64 to 4. On the smaller pictures there is time for a second
    # convolution, which combines what the first one found.
    for name, filters, halve in (("1", 16, True), ("2", 32, True), ("3a", 64, False), ("3b", 64, True),
                                 ("4a", 128, False), ("4b", 128, True)):
        # No bias: the batch normalisation behind it adds one of its own.
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{name}"))
        if halve:
            # Before the normalisation: what follows then has a quarter of the numbers to work on.
            model.add(layers.MaxPooling2D(2, name=f"pool{name}"))
        # 0.9 rather than Keras's 0.99: of so few steps per epoch, the averages must keep up.
        model.add(layers.BatchNormalization(axis=3, momentum=0.9, name=f"bn{name}"))
        model.add(layers.ReLU(name=f"relu{name}"))
    model.add(layers.Flatten(name="flatten"))
    # 2,048 numbers for one answer: half of them are hidden in turn, so that none is relied upon.
    model.add(layers.Dropout(0.5, name="dropout"))
    if classes == 2:
        # One number says it all: what is not one class is the other.
        model.add(layers.Dense(1, activation="sigmoid", dtype="float32", name="smiling"))
    else:
        model.add(layers.Dense(classes, activation="softmax", dtype="float32", name="classes"))
    return model


def augment(pictures, seed):
    """What may change in a picture while a smile stays a smile."""
    import augmentation

    pictures = augmentation.move(pictures, seed, flip=True, rotation=15, shift=0.08, zoom=0.15)
    # A face against the light is dark, one in the sun is bright.
    return augmentation.relight(pictures, seed, tone=0.5, contrast=0.2, brightness=0.1)


def main():
    parser = utils.command_line(__doc__, "happy_sequential", epochs=100, batch_size=32, learning_rate=1e-3,
                                mixed_precision=utils.computes_bfloat16())
    parser.add_argument("--rendered", action=argparse.BooleanOptionalAction, default=True,
                        help="the first three tenths of the epochs with SYNTHETIC faces beside the photographs "
                             "(default: yes)")
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
    files = utils.find_data("happy", arguments.data, arguments.data_dir)
    print(files)
    train_x, train_y, test_x, test_y, classes = utils.load_happy_dataset(arguments.data, arguments.data_dir)
    names = utils.class_names(classes, CLASSES)
    if arguments.dry_run:
        arguments.epochs = 1
        train_x, train_y = utils.first_of_each_class(train_x, train_y, 8)
        test_x, test_y = utils.first_of_each_class(test_x, test_y, 4)
    settings = runs.run_settings("happy_sequential", files, arguments)
    if arguments.resume and runs.is_finished(arguments.output_dir, settings):
        print(f"The run in {arguments.output_dir} is finished: there is nothing to go on with")
        return 0
    output = runs.prepare_output_dir(arguments.output_dir, settings, arguments.resume)
    utils.plot_examples(train_x, train_y, names, output / "examples.png", files.kind)

    # 3. Prepare. X stays 0-255: the model's first layer normalises it, here and in every later use.
    #    Y becomes a column, one probability for each picture: what binary cross-entropy compares.
    utils.print_shapes("As loaded", train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    train_x, train_y, validation_x, validation_y = utils.split_validation(train_x, train_y, arguments.seed)
    more_x, more_y = train_x, train_y
    if files.kind == "real" and names == CLASSES and arguments.rendered:
        # Rendered faces are of other people in other light, and a few hundred photographs show few of both.
        more_x, more_y = utils.add_rendered(train_x, train_y, "happy", arguments.dry_run)
    if len(names) == 2:
        more_y, train_y, validation_y, test_y = (y.reshape(-1, 1).astype("float32")
                                                 for y in (more_y, train_y, validation_y, test_y))
    else:
        # Pictures of one's own, of more classes than two: one column for each, as in signs_functional.py.
        more_y, train_y, validation_y, test_y = (utils.one_hot(y, len(names))
                                                 for y in (more_y, train_y, validation_y, test_y))
    utils.print_shapes("As the model gets them", train_x=train_x, train_y=train_y,
                       **({} if more_x is train_x else {"with_rendered_x": more_x, "with_rendered_y": more_y}),
                       validation_x=validation_x, validation_y=validation_y, test_x=test_x, test_y=test_y)

    # 4. Build and compile the model, print its summary.
    plan = [(1, train_x, train_y, augment)]
    if more_x is not train_x:
        # First, what a smile is at all; then it is the set's own pictures that must be right.
        plan = [(3 / 10, more_x, more_y, augment), (7 / 10, train_x, train_y, augment)]
    # From a hundred pictures a network needs as many steps as from five hundred.
    batches = utils.planned_batches(plan, arguments.epochs, arguments.batch_size, arguments.seed,
                                    least=0 if arguments.dry_run else 540)
    # Keras wants epochs of one length: all steps are shared out evenly.
    steps = len(batches) // arguments.epochs
    model = build_model(len(names))
    # The step size falls along half a cosine to 0: big steps first, then the fine adjustment.
    schedule = keras.optimizers.schedules.CosineDecay(arguments.learning_rate, arguments.epochs * steps)
    # The running average of the weights is kept, not the last step's: from 540 pictures, single steps are noisy.
    # Keras puts it in when `fit` ends; the progress bar and the curves are those of the weights as they are trained.
    optimizer = keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=0.98)
    # Aiming at 0.05 and 0.95 instead of 0 and 1 takes away the reward for being sure of every last picture.
    loss = (keras.losses.BinaryCrossentropy if len(names) == 2 else keras.losses.CategoricalCrossentropy)(
        label_smoothing=0.1)
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
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

    model, notes = prediction.load_trained_model(arguments.output_dir, "happy_sequential", CLASSES)
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
