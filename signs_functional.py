"""Which digit, 0 to 5, does the hand show? A convolutional network with Keras's Functional API.

    python signs_functional.py                           train, evaluate, save everything
    python signs_functional.py --data-dir FOLDER         the same with the .h5 files in FOLDER
    python signs_functional.py --predict hand.jpg        classify a new image with the trained model
    python signs_functional.py --dry-run                 check in seconds that everything works

Data: SIGNS, 1,080 training and 120 test photographs, 64x64 RGB, six classes;
SYNTHETIC images if its files are not there.
"""

from basics.errors import run_main
from datasets import SIGNS
from support.cli import start_script

EPOCHS = 40  # some 1,200 steps for SIGNS
SYNTHETIC_EPOCHS = 15  # computer graphics vary less
BATCH_SIZE = 32  # larger batches would make fewer steps
LEARNING_RATE = 3e-3  # three times Adam's usual rate: batch normalization allows larger steps
COPIES = 4  # how often each photograph is used, so that photographs outnumber the SYNTHETIC hands
LEAST_IMAGES = 1024  # in an epoch of classes of your own: a smaller set is shown several times

if __name__ == "__main__":
    # Starts Keras, so it comes before the imports; --help, --predict, --export, --seeds and --folds end here.
    args = start_script(
        __doc__,
        __file__,
        SIGNS,
        epochs=EPOCHS,
        synthetic_epochs=SYNTHETIC_EPOCHS,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        weights=("synthetic", "random", "lite0"),
    )

# 1. Import the libraries.
from functools import partial

import keras
from keras import layers

import cnn_utils as utils
from support.training.augmentation import color_jitter, random_affine, replace_background


def build_model(classes=6, image_size=64):
    """Return the network: pixels 0-255 (batch, image_size, image_size, 3) in, class probabilities (batch, classes) out.

    Each layer is called on the output of the one before, so `x` can be inspected, branched or
    joined at any line, which a Sequential model does not allow.
    """
    inputs = layers.Input((image_size, image_size, 3), name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="normalize")(inputs)
    # Height and width are halved five times, from 64 to 2, and the number of features grows.
    for number, filters in enumerate((24, 48, 96, 128, 192), start=1):
        # No bias: batch normalization adds one.
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        # Pooling first leaves a quarter of the numbers to normalize.
        x = layers.MaxPooling2D(2, name=f"pool{number}")(x)
        # Few steps: with Keras's momentum of 0.99, the moving mean and variance would lag behind.
        x = layers.BatchNormalization(axis=3, momentum=0.9, name=f"bn{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
    if image_size > 64:
        # A larger image leaves a larger map: the means of its four quarters, which overlap if the side is odd, are 2x2
        # positions again.
        side = x.shape[1]
        x = layers.AveragePooling2D(side - side // 2, strides=side // 2, name="quarters")(x)
    # Flatten keeps the position: a finger to the left of the palm differs from one to its right.
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.3, name="dropout")(x)
    # float32 in mixed precision as well: 16 bits would round the probabilities to two or three digits.
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="digits")(x)
    return keras.Model(inputs, outputs, name="signs_functional")


def weak_augmentation(images, seed, flip=True):
    """Vary images a little, like the photographs of one set: mirrored, rotated, shifted, zoomed, other lighting."""
    images = random_affine(images, seed, flip=flip, rotation=15, shift=0.08, zoom=0.12)
    return color_jitter(images, seed, tone=0.2, contrast=0.1, brightness=0.05)


def strong_augmentation(images, seed, flip=True):
    """Vary everything that may vary while the hand still shows its digit: people, backgrounds, lamps, cameras."""
    images = replace_background(images, seed, fraction=0.2)
    images = random_affine(images, seed, flip=flip, rotation=25, shift=0.12, zoom=0.2)
    return color_jitter(images, seed, color=0.12, gray=0.1, tone=0.4, contrast=0.25, brightness=0.15, shadow=0.3)


def crop_augmentation(images, seed, flip=True):
    """Show things of any kind at other places and distances, often cut off by the edge, in other light."""
    images = random_affine(images, seed, flip=flip, rotation=10, shift=0.2, zoom=0.5)
    return color_jitter(images, seed, color=0.12, gray=0.15, tone=0.4, contrast=0.25, brightness=0.15)


def main(args):
    # 2. Load the training and the test set.
    data = utils.load_signs_dataset(
        args.data,
        args.data_dir,
        dry_run=args.dry_run,
        fold=args.fold,
        cache_dir=args.cache_dir,
        group_by=args.group_by,
        none=args.none,
        image_size=args.image_size,
    )
    classes = len(data.class_names)
    run = utils.Run(args, data)

    # 3. Prepare: hold a tenth of the training set back for validation, mix in SYNTHETIC hands (some show no digit), and
    #    turn the labels into one-hot rows, one column per class; "no digit" becomes 1/6 for each.
    #    The pixels stay 0-255: the model's first layer normalizes them, now and in every later use.
    train_x, train_y, validation_x, validation_y = data.split_validation(args.seed)
    mixed_x, mixed_y, synthetic = utils.mix_synthetic(
        data, train_x, train_y, copies=COPIES, wanted=args.mix_synthetic, dry_run=args.dry_run
    )
    train_y, mixed_y = utils.one_hot(train_y, classes), utils.one_hot(mixed_y, classes)
    validation_y, test_y = utils.one_hot(validation_y, classes), utils.one_hot(data.test_y, classes)
    utils.print_shapes("To train on", train_x=train_x, train_y=train_y)
    utils.print_shapes("To validate on", validation_x=validation_x, validation_y=validation_y)

    # 4. Build the model, load its initial weights, print its summary.
    model = build_model(classes, data.image_size)
    utils.load_initial_weights(model, args.weights)
    initial_weights = model.get_weights()
    model.summary()

    # 5. Compile, and train with mini-batches. The validation split shows the progress; the test set is not touched.
    #    Strong augmentation and SYNTHETIC hands show other people, backgrounds and lighting; the last epochs, at a low
    #    learning rate, change the images little.
    weak, strong = partial(weak_augmentation, flip=args.flip), partial(strong_augmentation, flip=args.flip)
    images_per_epoch, weight_decay = len(train_x), None
    if data.shows_task:  # the digits, not classes of your own
        schedule = [  # epochs (scaled to --epochs), images, augmentation or None
            (16, (mixed_x, mixed_y), strong),
            (24, (mixed_x, mixed_y), weak),
        ]
    else:
        #    Images of your own may have no background to replace. Large changes and a strong weight decay keep the
        #    network from learning a few hundred of them by heart (Brigato and Mougiakakou, "No Data Augmentation?
        #    Alternative Regularizations for Effective Training on Small Datasets", 2023).
        schedule = [(40, (train_x, train_y), partial(crop_augmentation, flip=args.flip))]
        if not args.dry_run:
            images_per_epoch = max(LEAST_IMAGES, len(train_x))
        weight_decay = 1.5  # times the learning rate: the fraction of each weight that every step takes away
    batches = utils.Batches(schedule, args.epochs, args.batch_size, args.seed, images_per_epoch)
    learning_rate = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.epochs * batches.steps_per_epoch)
    optimizer = keras.optimizers.Adam(learning_rate, weight_decay=weight_decay)
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    class_weight = utils.class_weights(train_y, data.class_names, args.class_weights)
    with run.training(model, batches):  # faster layers, checkpoints, --resume, Ctrl-C
        model.fit(
            batches.dataset(run.epochs_done, class_weight),
            validation_data=utils.evaluation_batches(validation_x, validation_y),
            epochs=args.epochs,
            initial_epoch=run.epochs_done,
            steps_per_epoch=batches.steps_per_epoch,
            callbacks=run.callbacks,
            verbose=run.verbose,
            shuffle=False,  # the batches are shuffled already
        )
    model = run.finish_training(model)  # plain Keras layers again, in float32
    if data.shows_task and args.weights != "random":
        #    Mixing in a quarter of the initial weights keeps what pre-training taught (Wortsman et al., "Robust
        #    Fine-Tuning of Zero-Shot Models", 2022, section 3).
        model.set_weights([0.25 * before + 0.75 * after for before, after in zip(initial_weights, model.get_weights())])
    #    Calibrate: divide the last layer's weights, so that of answers given with 90% about nine in ten are right.
    temperature = utils.calibrate(model, validation_x, validation_y)
    run.save_model(model, temperature, train_x, validation_x)  # model.keras and history.csv

    # 6. Evaluate on the test set, only now; plot and save the results.
    test_batches = utils.evaluation_batches(data.test_x, test_y)
    loss, accuracy = model.evaluate(test_batches)
    outputs = model.predict(test_batches, verbose=0)
    results = utils.measure(outputs, test_y, data.class_names, loss)
    utils.plot_examples(data.train_x, data.train_y, data.class_names, run.folder / "examples.png", data.kind)
    utils.plot_augmented(train_x[0], schedule, args.seed, run.folder / "augmented.png", data.kind)
    utils.plot_learning_curves(run.history, run, run.folder / "learning_curves.png", data.kind)
    utils.plot_confusion_matrix(results, data.class_names, run.folder / "confusion_matrix.png", data.kind)
    utils.plot_mistakes(data.test_x, results, data.class_names, run.folder / "mistakes.png", data.kind)
    utils.plot_reliability(results, temperature, run.folder / "reliability.png", data.kind)
    #    metrics.json, mistakes.csv and report.html
    run.save_results(model, results, train_x, temperature=temperature, class_weight=class_weight, synthetic=synthetic)

    # 7. Classify new images: RGB, 0-255, of the network's size. In a program of your own, begin with
    #    `model = keras.models.load_model("outputs/signs_functional/model.keras")`. --predict takes photos of any size.
    images, labels = data.test_x[:1], data.test_y[:1]
    for probabilities, label in zip(model.predict(images, verbose=0), labels):
        answer = probabilities.argmax()
        confidence = f"{probabilities[answer]:.1%}"
        print(f"\nTest image: predicted {data.class_names[answer]} ({confidence}), true {data.class_names[label]}")
    return run.say_what_next()  # and the exit code


if __name__ == "__main__":
    run_main(main, args)
