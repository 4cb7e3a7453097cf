"""Which digit, 0 to 5, does the hand show? A convolutional network with Keras's Functional API.

    python signs_functional.py                           train, evaluate, save everything
    python signs_functional.py --data-dir FOLDER         the same with the .h5 files in FOLDER
    python signs_functional.py --predict hand.jpg        test the trained model on a new image
    python signs_functional.py --dry-run                 check in seconds that everything works

Data: SIGNS, 1,080 training and 120 test photographs, 64x64 RGB, six classes;
SYNTHETIC images if its files are not there.
"""

from datasets import SIGNS_CLASSES
from support import cli
from support.errors import run_main


def build_model(classes=6):
    """Return the network: pixels 0-255 (batch, 64, 64, 3) in, class probabilities (batch, classes) out.

    Each layer is called on the output of the one before, so `x` can be inspected, branched or
    joined at any line, which a Sequential model does not allow.
    """
    from keras import Model, layers

    inputs = layers.Input((64, 64, 3), name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="normalise")(inputs)
    # Height and width are halved five times, from 64 to 2, and the number of features grows.
    for number, filters in enumerate((24, 48, 96, 128, 192), 1):
        # The batch normalisation adds a bias of its own.
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        # Pooling first leaves a quarter of the numbers to normalise.
        x = layers.MaxPooling2D(2, name=f"pool{number}")(x)
        # With so few steps per epoch, Keras's momentum of 0.99 would lag behind.
        x = layers.BatchNormalization(axis=3, momentum=0.9, name=f"bn{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
    # Flatten keeps the position: a finger left of the palm is not one right of it.
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.3, name="dropout")(x)
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="digits")(x)
    return Model(inputs, outputs, name="signs_functional")


def weak_augmentation(images, seed):
    """Vary images as much as the photographs of one set vary: mirrored, rotated, shifted, slightly relit."""
    from support.augmentation import color_jitter, random_affine

    images = random_affine(images, seed, flip=True, rotation=15, shift=0.08, zoom=0.12)
    return color_jitter(images, seed, tone=0.2, contrast=0.1, brightness=0.05)


def strong_augmentation(images, seed):
    """Vary everything that may vary while the hand still shows its digit: other people, walls, lamps, cameras."""
    from support.augmentation import color_jitter, random_affine, replace_background

    images = replace_background(images, seed, share=0.2)
    images = random_affine(images, seed, flip=True, rotation=25, shift=0.12, zoom=0.2)
    return color_jitter(images, seed, color=0.12, gray=0.1, tone=0.4, contrast=0.25, brightness=0.15, shadow=0.3)


def main():
    weights = "synthetic", "random"
    defaults = {"epochs": 40, "batch_size": 32, "learning_rate": 3e-3, "weights": weights}
    args = cli.ScriptParser(__doc__, "signs_functional", **defaults).parse_args()
    if args.seeds > 1 or args.folds > 1:
        return cli.run_several(args)
    if args.predict:  # step 7, with a model that is trained already
        return cli.predict(args, "signs_functional", SIGNS_CLASSES)

    # 1. Libraries, device and seed. Imported only now, so that --help answers at once.
    device = cli.start_keras(args)
    import keras

    import cnn_utils as utils

    if args.export:  # the trained model, for other programs
        return utils.export(args, "signs_functional", SIGNS_CLASSES)

    # 2. Load the training and test sets; plot one image of each class.
    data = utils.load_signs_dataset(args.data, args.data_dir, args.dry_run, args.fold, args.cache_dir)
    run = utils.Run("signs_functional", args, data, device)
    if run.finished:
        return 0
    utils.plot_examples(data.train_x, data.train_y, data.class_names, run.folder / "examples.png", data.kind)

    # 3. Prepare. The pixels stay 0-255: the model's first layer normalises them, now and in every later use.
    #    The labels become one-hot rows, one column per class, as categorical cross-entropy expects them.
    train_x, train_y, validation_x, validation_y = utils.split_validation(data.train_x, data.train_y, args.seed)
    hands = data.class_names == SIGNS_CLASSES
    mix = args.mix_synthetic and hands and data.kind != "folder"
    mixed_x, mixed_y = utils.add_synthetic("signs", train_x, train_y, args.dry_run, 4) if mix else (train_x, train_y)
    train_y, mixed_y, validation_y, test_y = (
        utils.one_hot(y, len(data.class_names)) for y in (train_y, mixed_y, validation_y, data.test_y)
    )
    utils.print_shapes("To train on", train_x=train_x, train_y=train_y, mixed_x=mixed_x, mixed_y=mixed_y)
    utils.print_shapes("To validate on", validation_x=validation_x, validation_y=validation_y)

    # 4. Build the model, load its weights unless they are to be random, print its summary.
    model = build_model(len(data.class_names))
    if args.weights != "random":
        utils.load_pretrained(model, args.weights)
    initial = model.get_weights()
    model.summary()

    # 5. Compile, and train with mini-batches. The validation split shows the progress; the test set is not touched.
    #    Other people, walls and light come from strong augmentation and from SYNTHETIC hands, some of which show no
    #    digit; at the end, with small steps, the images are little changed. The numbers are shares of the training.
    stages = [
        utils.Stage("strong augmentation", 2, mixed_x, mixed_y, strong_augmentation),
        utils.Stage("weak augmentation", 3, mixed_x, mixed_y, weak_augmentation),
    ]
    if not hands:  # images of your own may have no wall to replace: weak augmentation in all epochs
        stages = stages[-1:]
    phases = [(stages, args.epochs, args.learning_rate, len(train_x))]
    if args.pretrain:
        x, y = utils.load_pretraining("signs", data.class_names, args.dry_run)
        pretraining = [
            utils.Stage("SYNTHETIC images only, weak", 1, x, y, weak_augmentation),
            utils.Stage("SYNTHETIC images only, strong", 4, x, y, strong_augmentation),
        ]
        phases.insert(0, (pretraining, 20, 3e-3, len(x)))
    class_weight = utils.class_weights(train_y, data.class_names) if args.class_weights else None
    for stages, epochs, learning_rate, images_per_epoch in phases:
        curriculum = utils.Curriculum(stages, epochs, args.batch_size, args.seed, images_per_epoch)
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * curriculum.steps_per_epoch)
        model.compile(keras.optimizers.Adam(schedule), loss="categorical_crossentropy", metrics=["accuracy"])
        run.fit(model, curriculum, utils.evaluation_dataset(validation_x, validation_y), class_weight)
    if hands and args.weights != "random":
        #    A quarter of the initial weights keeps what the photographs do not show (Wortsman et al., "Robust
        #    Fine-Tuning of Zero-Shot Models", 2022, section 3).
        model.set_weights([0.25 * before + 0.75 * after for before, after in zip(initial, model.get_weights())])
    model = run.save_model(model, train_x, validation_x, validation_y)

    # 6. Evaluate on the test set, plot and save the results.
    results = utils.evaluate(model, data.test_x, test_y, data.class_names)
    utils.plot_learning_curves(run.history, run, run.folder / "learning_curves.png", data.kind)
    utils.plot_confusion_matrix(results, data.class_names, run.folder / "confusion_matrix.png", data.kind)
    utils.plot_mistakes(data.test_x, results, data.class_names, run.folder / "mistakes.png", data.kind)
    return run.finish(model, results, train_x, synthetic=len(mixed_x) - 4 * len(train_x) if mix else 0)


if __name__ == "__main__":
    run_main(main)
