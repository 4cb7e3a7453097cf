"""Which digit, 0 to 5, does the hand show? A ResNet50, built block by block in resnet_utils.py.

    python signs_resnet50.py                             train, evaluate, save everything
    python signs_resnet50.py --data-dir FOLDER           the same with the .h5 files in FOLDER
    python signs_resnet50.py --predict hand.jpg          classify a new image with the trained model
    python signs_resnet50.py --identity-blocks 2 3 5 3   one more block in stage 5: 53 layers
    python signs_resnet50.py --weights imagenet          transfer learning from ImageNet's weights, or from a FILE
    python signs_resnet50.py --weights lite0             the same with a smaller network that knows ImageNet
    python signs_resnet50.py --dry-run                   check that everything works

Data: SIGNS, as in signs_functional.py; SYNTHETIC images if its files are not there.
"""

from basics.errors import run_main
from datasets import SIGNS
from support.cli import integer, start_script

EPOCHS = 84  # some 2,600 steps for SIGNS, each far slower than those of the small networks
SYNTHETIC_EPOCHS = 26  # computer graphics vary less
TRANSFER_EPOCHS = 10  # of the last layer alone, from weights that know images: a few seconds
BATCH_SIZE = 32  # larger batches would make fewer steps
LEARNING_RATE = 2e-3  # as large as 50 layers bear after a warm-up
COPIES = 4  # how often each photograph is used, so that they are a third of the images beside 6,000 SYNTHETIC hands
IDENTITY_BLOCKS = (2, 3, 5, 2)  # in stages 2, 3, 4 and 5, after the first block of each: the ResNet-50

if __name__ == "__main__":
    # Starts Keras, so it comes before the imports; --help, --predict, --export, --seeds and --folds end here.
    blocks = "identity blocks in stages 2, 3, 4 and 5 (default: 2 3 5 2, the ResNet-50)"
    identity_blocks = {"nargs": 4, "type": integer(0), "default": list(IDENTITY_BLOCKS), "metavar": "N", "help": blocks}
    args = start_script(
        __doc__, __file__, SIGNS, network="ResNet50", epochs=EPOCHS, synthetic_epochs=SYNTHETIC_EPOCHS,
        transfer_epochs=TRANSFER_EPOCHS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE,
        weights=("random", "imagenet", "lite0"), options={"--identity-blocks": identity_blocks},
    )  # fmt: skip

# 1. Import the libraries.
from functools import partial

import keras
from keras import layers

import cnn_utils as utils
from resnet_utils import residual_stages
from support.training.augmentation import color_jitter, random_affine, replace_background

# For transfer learning.
FEATURES_PER_EPOCH = 3200  # as many steps for 40 images as for 4,000
LAST_STAGE = ("conv5_", "stage7_", "head", "predictions")  # names of layers: of ResNet50, and of EfficientNet-Lite0


def build_model(classes=6, identity_blocks=IDENTITY_BLOCKS, image_size=64, imagenet=False):
    """Return the network: pixels 0-255 (batch, image_size, image_size, 3) in, probabilities (batch, classes) out.

    `imagenet`: bool; prepare the pixels as ImageNet's weights expect them.
    """
    inputs = layers.Input((image_size, image_size, 3), name="pixels")
    # All layers with weights but the last, block by block: 64x64 pixels become 2x2 positions of 2,048 features,
    # 224x224 become 7x7. Their average leaves 2,048 numbers.
    x = residual_stages(inputs, identity_blocks, imagenet)
    x = layers.AveragePooling2D(x.shape[1:3], name="avg_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    # float32 in mixed precision as well: 16 bits would round the probabilities to two or three digits.
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="predictions")(x)
    return keras.Model(inputs, outputs, name="ResNet50")


def weak_augmentation(images, seed, flip=True):
    """Vary images a little, like the photographs of one set: mirrored, rotated, nearer or farther."""
    return random_affine(images, seed, flip=flip, rotation=15, shift=0.08, zoom=0.12)


def strong_augmentation(images, seed, flip=True, background=0.2):
    """Vary walls and lighting as well. Milder than in signs_functional.py: so deep a network learns more slowly."""
    images = replace_background(images, seed, fraction=background)
    images = random_affine(images, seed, flip=flip, rotation=18, shift=0.1, zoom=0.15)
    return color_jitter(images, seed, color=0.05, tone=0.2, contrast=0.1, brightness=0.05)


def warmup_then_cosine(peak, steps):
    """Return the learning rate by step: it rises to its peak, because a deep network's first steps are its roughest."""
    warmup = max(1, steps // 10)
    return keras.optimizers.schedules.CosineDecay(0.0, max(1, steps - warmup), warmup_steps=warmup, warmup_target=peak)


def build_last_layer(features, classes, weight_decay):
    """Return the last layer as a network of its own: features (batch, features) in, probabilities (batch, classes) out.

    `weight_decay` pulls its weights to zero: a few images do not tell which of two thousand features matter.
    """
    regularizer = keras.regularizers.L2(weight_decay)
    inputs = layers.Input((features,), name="features")
    outputs = layers.Dense(
        classes, activation="softmax", kernel_initializer="zeros", kernel_regularizer=regularizer, dtype="float32"
    )(inputs)
    return keras.Model(inputs, outputs, name="last_layer")


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
    wanted = args.mix_synthetic and args.weights == "random"
    mixed_x, mixed_y, synthetic = utils.mix_synthetic(
        data, train_x, train_y, copies=COPIES, many=True, wanted=wanted, dry_run=args.dry_run
    )
    train_y, mixed_y = utils.one_hot(train_y, classes), utils.one_hot(mixed_y, classes)
    validation_y, test_y = utils.one_hot(validation_y, classes), utils.one_hot(data.test_y, classes)
    utils.print_shapes("To train on", train_x=train_x, train_y=train_y)
    utils.print_shapes("To validate on", validation_x=validation_x, validation_y=validation_y)

    # 4. Build the model, load its initial weights, print its summary.
    if args.weights == "lite0":
        model = utils.build_lite0(train_x.shape[1:], classes)
    else:
        imagenet = utils.takes_imagenet_pixels(args.weights)
        model = build_model(classes, args.identity_blocks, data.image_size, imagenet)
    utils.load_initial_weights(model, args.weights)
    model.summary()

    # 5. Compile, and train with mini-batches. The validation split shows the progress; the test set is not touched.
    class_weight = utils.class_weights(train_y, data.class_names, args.class_weights)
    weak = partial(weak_augmentation, flip=args.flip)
    # Images of your own may have no background to replace.
    strong = partial(strong_augmentation, flip=args.flip, background=0.2 if data.shows_task else 0)
    if args.weights == "random":
        #    SYNTHETIC hands and strong augmentation show other people, walls and lighting. An untrained deep network
        #    learns little from strong augmentation, so it comes second; the last epochs, at a low learning rate, change
        #    the images little.
        schedule = [  # epochs (scaled to --epochs), images, augmentation or None
            (16, (mixed_x, mixed_y), weak),
            (40, (mixed_x, mixed_y), strong),
            (28, (mixed_x, mixed_y), weak),
        ]
        first_epoch, epochs, peak = 0, args.epochs, args.learning_rate
    else:
        #    Transfer learning. What the network has learned from other images stays: all layers but the last are
        #    frozen. What they make of an image, its features, is computed once, and for its mirror image.
        features, features_y = utils.frozen_features(model, train_x, train_y, args.cache_dir, mirrored=args.flip)
        validation = utils.frozen_features(model, validation_x, validation_y, args.cache_dir)
        groups = data.training_groups(args.seed)
        weight_decay = utils.choose_weight_decay(features[: len(train_x)], train_y, groups, class_weight)
        last_layer = build_last_layer(features.shape[1], classes, weight_decay)
        batches = utils.Batches(
            [(1, (features, features_y), None)], args.epochs, args.batch_size, args.seed, FEATURES_PER_EPOCH
        )
        #    One layer alone has one best solution, and gradient descent finds it. Long features need short steps.
        peak = 20 / (features**2).sum(axis=1).mean()
        learning_rate = warmup_then_cosine(peak, args.epochs * batches.steps_per_epoch)
        optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
        last_layer.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
        with run.training(last_layer, batches):  # checkpoints, --resume, Ctrl-C
            last_layer.fit(
                batches.dataset(run.epochs_done, class_weight),
                validation_data=utils.evaluation_batches(*validation),
                epochs=args.epochs,
                initial_epoch=run.epochs_done,
                steps_per_epoch=batches.steps_per_epoch,
                callbacks=run.callbacks,
                verbose=run.verbose,
                shuffle=False,  # the batches are shuffled already
            )
        model.layers[-1].set_weights(last_layer.layers[-1].get_weights())
        #    Fine-tuning, if --fine-tune asks for it: the last stage learns as well, in steps so small that it forgets
        #    little. The statistics of batch normalization stay: those of a million images are better than ours.
        for layer in model.layers:
            layer.trainable = layer.name.startswith(LAST_STAGE) and not layer.name.endswith("_bn")
        schedule = [(1, (train_x, train_y), weak)]
        first_epoch, epochs, peak = args.epochs, args.fine_tune, args.learning_rate / 20
    batches = utils.Batches(schedule, epochs, args.batch_size, args.seed, len(train_x), first_epoch=first_epoch)
    learning_rate = warmup_then_cosine(peak, epochs * batches.steps_per_epoch)
    model.compile(keras.optimizers.Adam(learning_rate), loss="categorical_crossentropy", metrics=["accuracy"])
    if epochs:
        with run.training(model, batches):  # faster layers, checkpoints, --resume, Ctrl-C
            model.fit(
                batches.dataset(run.epochs_done, class_weight),
                validation_data=utils.evaluation_batches(validation_x, validation_y),
                epochs=first_epoch + epochs,
                initial_epoch=run.epochs_done,
                steps_per_epoch=batches.steps_per_epoch,
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
    if epochs:
        utils.plot_augmented(train_x[0], schedule, args.seed, run.folder / "augmented.png", data.kind)
    utils.plot_learning_curves(run.history, run, run.folder / "learning_curves.png", data.kind)
    utils.plot_confusion_matrix(results, data.class_names, run.folder / "confusion_matrix.png", data.kind)
    utils.plot_mistakes(data.test_x, results, data.class_names, run.folder / "mistakes.png", data.kind)
    utils.plot_reliability(results, temperature, run.folder / "reliability.png", data.kind)
    #    metrics.json, mistakes.csv and report.html
    run.save_results(model, results, train_x, temperature=temperature, class_weight=class_weight, synthetic=synthetic)

    # 7. Classify new images: RGB, 0-255, of the network's size. In a program of your own, begin with
    #    `model = keras.models.load_model("outputs/signs_resnet50/model.keras")`. --predict takes photos of any size.
    images, labels = data.test_x[:1], data.test_y[:1]
    for probabilities, label in zip(model.predict(images, verbose=0), labels):
        answer = probabilities.argmax()
        confidence = f"{probabilities[answer]:.1%}"
        print(f"\nTest image: predicted {data.class_names[answer]} ({confidence}), true {data.class_names[label]}")
    return run.say_what_next()  # and the exit code


if __name__ == "__main__":
    run_main(main, args)
