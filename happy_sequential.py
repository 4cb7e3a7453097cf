"""Is the person smiling? A convolutional network with Keras's Sequential API.

    python happy_sequential.py                           train, evaluate, save everything
    python happy_sequential.py --data-dir FOLDER         the same with the .h5 files in FOLDER
    python happy_sequential.py --predict me.jpg you.png  classify new images with the trained model
    python happy_sequential.py --dry-run                 check in seconds that everything works

Data: Happy House, 600 training and 150 test photographs, 64x64 RGB, 0 = not smiling,
1 = smiling; SYNTHETIC images if its files are not there.
"""

from basics.errors import run_main
from datasets import HAPPY
from support.cli import start_script

EPOCHS = 60  # about a thousand steps for Happy House
SYNTHETIC_EPOCHS = 30  # computer graphics vary less
BATCH_SIZE = 32  # larger batches would make fewer steps
LEARNING_RATE = 1e-3  # Adam's usual rate
LEAST_IMAGES = 540  # in an epoch, as in Happy House: a smaller set is shown several times

if __name__ == "__main__":
    # Starts Keras, so it comes before the imports; --help, --predict, --export, --seeds and --folds end here.
    args = start_script(
        __doc__,
        __file__,
        HAPPY,
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
from support.training.augmentation import color_jitter, random_affine


def build_model(classes=2, image_size=64):
    """Return the network: pixels 0-255 (batch, image_size, image_size, 3) in, probability of a smile (batch, 1) out.

    For more than two classes of your own, it returns one probability for each (batch, classes).
    """
    model = keras.Sequential(name="happy_sequential")
    model.add(layers.Input((image_size, image_size, 3), name="pixels"))
    model.add(layers.Rescaling(1 / 127.5, offset=-1, name="normalize"))
    # Each pooling halves height and width, from 64 to 4. The smaller maps are cheap enough for a second convolution,
    # which combines what the first one found; the last one sees eyes and mouth at once.
    add_block(model, "1", filters=16, pool=True)
    add_block(model, "2", filters=32, pool=True)
    add_block(model, "3a", filters=64, pool=False)
    add_block(model, "3b", filters=64, pool=True)
    add_block(model, "4a", filters=96, pool=False)
    add_block(model, "4b", filters=128, pool=True)
    add_block(model, "5", filters=128, pool=False)
    # Averaging each map finds a smile anywhere in the image, near or far.
    model.add(layers.GlobalAveragePooling2D(name="pool_all"))
    model.add(layers.Dropout(0.3, name="dropout"))
    # One output is enough for two classes: P(not smiling) = 1 - P(smiling).
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    # float32 in mixed precision as well: 16 bits would round the probabilities to two or three digits.
    model.add(layers.Dense(units, activation=activation, dtype="float32", name="prediction"))
    return model


def add_block(model, name, filters, pool):
    """Add convolution, pooling if wanted, batch normalization and ReLU."""
    # No bias: batch normalization adds one.
    model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{name}"))
    if pool:
        # Pooling first leaves a quarter of the numbers to normalize.
        model.add(layers.MaxPooling2D(2, name=f"pool{name}"))
    # Few steps: with Keras's momentum of 0.99, the moving mean and variance would lag behind.
    model.add(layers.BatchNormalization(axis=3, momentum=0.9, name=f"bn{name}"))
    model.add(layers.ReLU(name=f"relu{name}"))


def weak_augmentation(images, seed, flip=True):
    """Vary images a little: mirrored, rotated, shifted, zoomed, slightly different lighting."""
    images = random_affine(images, seed, flip=flip, rotation=15, shift=0.08, zoom=0.15)
    return color_jitter(images, seed, tone=0.3, contrast=0.15, brightness=0.1)


def strong_augmentation(images, seed, flip=True):
    """Vary everything that may vary while a smile stays a smile: distance, lighting, colors, camera."""
    images = random_affine(images, seed, flip=flip, rotation=20, shift=0.1, zoom=0.25)
    # A face against the light is dark, one in the sun is bright, and old photographs are gray.
    return color_jitter(images, seed, color=0.15, gray=0.2, tone=0.7, contrast=0.5, brightness=0.15, shadow=0.5)


def encode_labels(y, classes):
    """Turn labels (m,) into what the loss expects: a column for one sigmoid, one-hot rows for a softmax."""
    rows = utils.one_hot(y, classes)
    return rows[:, 1:] if classes == 2 else rows


def main(args):
    # 2. Load the training and the test set.
    data = utils.load_happy_dataset(
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

    # 3. Prepare: hold a tenth of the training set back for validation, mix in SYNTHETIC faces, encode the labels.
    #    The pixels stay 0-255: the model's first layer normalizes them, now and in every later use.
    train_x, train_y, validation_x, validation_y = data.split_validation(args.seed)
    mixed_x, mixed_y, synthetic = utils.mix_synthetic(
        data, train_x, train_y, wanted=args.mix_synthetic, dry_run=args.dry_run
    )
    train_y, mixed_y = encode_labels(train_y, classes), encode_labels(mixed_y, classes)
    validation_y, test_y = encode_labels(validation_y, classes), encode_labels(data.test_y, classes)
    utils.print_shapes("To train on", train_x=train_x, train_y=train_y)
    utils.print_shapes("To validate on", validation_x=validation_x, validation_y=validation_y)

    # 4. Build the model, load its initial weights, print its summary.
    model = build_model(classes, data.image_size)
    utils.load_initial_weights(model, args.weights)
    model.summary()

    # 5. Compile, and train with mini-batches. The validation split shows the progress; the test set is not touched.
    #    Strong augmentation makes up for the people and lighting a few hundred photographs lack; the last epochs, at a
    #    low learning rate, fit the real images.
    weak, strong = partial(weak_augmentation, flip=args.flip), partial(strong_augmentation, flip=args.flip)
    if args.weights == "random":  # an untrained network learns little from strong augmentation
        schedule = [  # epochs (scaled to --epochs), images, augmentation or None
            (30, (mixed_x, mixed_y), weak),
            (22, (mixed_x, mixed_y), strong),
            (8, (train_x, train_y), weak),
        ]
    else:  # a pre-trained one can start with it
        schedule = [
            (45, (mixed_x, mixed_y), strong),
            (15, (train_x, train_y), weak),
        ]  # fmt: skip
    images_per_epoch = len(train_x) if args.dry_run else max(LEAST_IMAGES, len(train_x))
    batches = utils.Batches(schedule, args.epochs, args.batch_size, args.seed, images_per_epoch)
    #    The learning rate warms up during the first epoch, because Adam does not know yet how large the gradients are.
    steps = batches.steps_per_epoch
    learning_rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, (args.epochs - 1) * steps), warmup_target=args.learning_rate, warmup_steps=steps
    )
    #    At the end, Keras replaces the weights by their moving average: single steps on few images are noisy.
    optimizer = keras.optimizers.Adam(learning_rate, use_ema=True, ema_momentum=0.98)
    #    Label smoothing stops rewarding full confidence (Szegedy et al., 2016, section 7).
    crossentropy = keras.losses.BinaryCrossentropy if classes == 2 else keras.losses.CategoricalCrossentropy
    model.compile(optimizer, loss=crossentropy(label_smoothing=0.1), metrics=["accuracy"])
    class_weight = utils.class_weights(train_y, data.class_names, args.class_weights)
    with run.training(model, batches):  # faster layers, checkpoints, --resume, Ctrl-C
        model.fit(
            batches.dataset(run.epochs_done, class_weight),
            validation_data=utils.evaluation_batches(validation_x, validation_y),
            epochs=args.epochs,
            initial_epoch=run.epochs_done,
            steps_per_epoch=steps,
            callbacks=run.callbacks,
            verbose=run.verbose,
            shuffle=False,  # the batches are shuffled already
        )
    model = run.finish_training(model)  # plain Keras layers again, in float32
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
    #    `model = keras.models.load_model("outputs/happy_sequential/model.keras")`. --predict takes photos of any size.
    images, labels = data.test_x[:1], data.test_y[:1]
    for probabilities, label in zip(utils.class_probabilities(model.predict(images, verbose=0)), labels):
        answer = probabilities.argmax()
        confidence = f"{probabilities[answer]:.1%}"
        print(f"\nTest image: predicted {data.class_names[answer]} ({confidence}), true {data.class_names[label]}")
    return run.say_what_next()  # and the exit code


if __name__ == "__main__":
    run_main(main, args)
