"""Which digit, 0 to 5, does the hand show? A ResNet50, built block by block.

    python signs_resnet50.py                                train, test, save everything
    python signs_resnet50.py --data-dir FOLDER              the same on the .h5 files in FOLDER
    python signs_resnet50.py --predict hand.jpg             ask the trained model
    python signs_resnet50.py --identity-blocks 2 3 5 3      one more block in stage 5: 53 layers
    python signs_resnet50.py --weights imagenet             start from weights that know photographs
    python signs_resnet50.py --weights FILE                 start from a model of your own
    python signs_resnet50.py --dry-run                      does it work here?

Data: SIGNS, 1,080 photographs to train on and 120 to test on, 64x64 RGB, six
classes; without its files, rendered SYNTHETIC pictures. The blocks and the
network are in resnet_utils.py, what --weights does is in pretrained.py.
"""

import argparse
import pathlib
import sys
import time

import cnn_utils as utils
import runs

CLASSES = ("0", "1", "2", "3", "4", "5")


def change_a_little(pictures, seed):
    """Change a picture as the photographs of one set differ: mirrored, turned, nearer or farther."""
    import augmentation

    return augmentation.move(pictures, seed, flip=True, rotation=15, shift=0.08, zoom=0.12)


def change_more(pictures, seed):
    """Change what may change in a picture while the hand goes on showing its digit."""
    import augmentation

    # A right hand becomes a left one, nearer or farther, a little aslant.
    pictures = augmentation.move(pictures, seed, flip=True, rotation=18, shift=0.1, zoom=0.15)
    # Another lamp, another exposure. Milder than in signs_functional.py: so deep a network learns more slowly.
    return augmentation.relight(pictures, seed, colour=0.05, tone=0.2, contrast=0.1, brightness=0.05)


def weights_source(text):
    """argparse type: "random", "imagenet", or the path of a file that exists."""
    if text in ("random", "imagenet"):
        return text
    path = pathlib.Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"expected random, imagenet or a file that exists. Received: {text!r}, "
                                         f"{'which is no file' if path.exists() else 'where there is nothing'}")
    return path


def main():
    parser = utils.command_line(__doc__, "signs_resnet50", epochs=30, batch_size=32, learning_rate=1e-3,
                                mixed_precision=utils.computes_bfloat16())
    parser.add_argument("--identity-blocks", nargs=4, type=utils.whole_number(0), default=[2, 3, 5, 2], metavar="N",
                        help="identity blocks in stages 2, 3, 4 and 5 (default: 2 3 5 2, the ResNet-50)")
    parser.add_argument("--weights", type=weights_source, default="random", metavar="WEIGHTS",
                        help="where the training starts: random (the default), imagenet, which Keras fetches once "
                             "(94 MB), or a .keras, .weights.h5 or .h5 file. From imagenet or a file, a fifth of the "
                             "epochs train the last layer only, the others all layers with a tenth of the step size")
    parser.add_argument("--rendered", action=argparse.BooleanOptionalAction, default=True,
                        help="the first fifth of the epochs with SYNTHETIC hands beside the photographs (default: yes)")
    arguments = parser.parse_args()
    fine_tune = arguments.weights != "random"
    if fine_tune and arguments.epochs < 2:
        parser.error("--weights: one epoch for the last layer and one for all layers are the least; expected "
                     f"--epochs of at least 2. Received: {arguments.epochs}")

    # 1. Libraries, shared functions, seed. Only now: --help and a mistyped option need no TensorFlow.
    if arguments.seeds > 1:
        return runs.run_seeds(arguments)
    training = not (arguments.predict or arguments.export)
    device = utils.start_tensorflow(arguments.seed, arguments.mixed_precision and training, arguments.deterministic)
    import keras
    import tensorflow as tf

    import trust
    from report import write_report
    from resnet_utils import ResNet50, fuse_updates

    # TensorFlow would rewrite the traced step for seconds before the first batch; its steps would be no faster.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    utils.use_headless_figures(arguments.show)
    if not training:
        return use(arguments)

    # 2. Load the train and the test set; show one picture of each class.
    files = utils.find_data("signs", arguments.data, arguments.data_dir)
    print(files)
    train_x, train_y, test_x, test_y, classes = utils.load_signs_dataset(arguments.data, arguments.data_dir)
    names = utils.class_names(classes, CLASSES)
    if arguments.dry_run:
        arguments.epochs = 2 if fine_tune else 1
        train_x, train_y = utils.first_of_each_class(train_x, train_y, 8)
        test_x, test_y = utils.first_of_each_class(test_x, test_y, 4)
    settings = runs.run_settings("signs_resnet50", files, arguments)
    if fine_tune:
        from pretrained import choose_trained, pretrained_weights

        # Read before an earlier run is moved aside: they may be missing, or not what they should be.
        weights = pretrained_weights(arguments.weights, len(names), arguments.identity_blocks)
        if arguments.weights != "imagenet":
            settings.update(weights=arguments.weights.name, weights_sha256=runs.sha256(arguments.weights))
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

    # 4. Build the model, print its summary.
    model = ResNet50(classes=len(names), identity_blocks=arguments.identity_blocks)
    model.summary()

    # 5. Compile, and train with mini-batches. The validation split shows how it goes; the test set is not touched.
    #    More and harder pictures first: at the end, with small steps, it is the set's own that must be right.
    plan = [(1 / 5, more_x, more_y, change_more), (7 / 15, train_x, train_y, change_more),
            (1 / 3, train_x, train_y, change_a_little)]
    batches = utils.planned_batches(plan, arguments.epochs, arguments.batch_size, arguments.seed)
    # Keras wants epochs of one length: all steps are shared out evenly.
    steps = len(batches) // arguments.epochs
    phases = [(arguments.epochs, arguments.learning_rate)]
    if fine_tune:
        # The last layer first, alone: while it knows nothing, its gradients would only spoil what the others know.
        # Then all, in smaller steps, for they are near a good place already.
        model.set_weights(weights)
        alone = max(1, arguments.epochs // 5)
        phases = [(alone, arguments.learning_rate), (arguments.epochs - alone, arguments.learning_rate / 10)]
        print(f"Epochs 1 to {alone} train the last layer only, the others all layers")
    done = 0
    started = time.perf_counter()
    for epochs, learning_rate in phases:
        if fine_tune:
            choose_trained(model, head_only=done == 0)
        # The step size rises over the first tenth of the training, for a deep network's first steps are its
        # roughest, and falls along half a cosine to 0.
        warmup = max(1, epochs * steps // 10)
        schedule = keras.optimizers.schedules.CosineDecay(0.0, max(1, epochs * steps - warmup), warmup_steps=warmup,
                                                          warmup_target=learning_rate)
        model.compile(fuse_updates(keras.optimizers.Adam(schedule)), loss="categorical_crossentropy",
                      metrics=["accuracy"])
        utils.make_variables(model, train_y)
        # One iterator for all epochs: to begin a new one takes seconds here in every epoch.
        history, interrupted = runs.fit(model, batches.skip(done * steps), output_dir=output, settings=settings,
                                         begin=done, epochs=done + epochs, steps_per_epoch=steps,
                                         resume=arguments.resume, tensorboard=arguments.tensorboard,
                                         validation_data=utils.plain_batches(validation_x, validation_y, 64))
        done += epochs
        if interrupted:
            break
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

    model, notes = prediction.load_trained_model(arguments.output_dir, "signs_resnet50", CLASSES, "ResNet50")
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
