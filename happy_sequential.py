"""Is the person smiling? A convolutional network with Keras's Sequential API.

    python happy_sequential.py                           train, evaluate, save everything
    python happy_sequential.py --data-dir FOLDER         the same with the .h5 files in FOLDER
    python happy_sequential.py --predict me.jpg you.png  test the trained model on new images
    python happy_sequential.py --dry-run                 check in seconds that everything works

Data: Happy House, 600 training and 150 test photographs, 64x64 RGB, 0 = not smiling,
1 = smiling; SYNTHETIC images if its files are not there.
"""

from datasets import HAPPY_CLASSES
from support import cli
from support.errors import run_main


def build_model(classes=2):
    """Return the network: pixels 0-255 (batch, 64, 64, 3) in, probability of a smile (batch, 1) out."""
    from keras import Sequential, layers

    from support.fused_batch_norm import BatchNormalization  # Keras's formula, in one operation

    model = Sequential(name="happy_sequential")
    model.add(layers.Input((64, 64, 3), name="pixels"))
    model.add(layers.Rescaling(1 / 127.5, offset=-1, name="normalise"))
    # Height and width are halved four times, from 64 to 4. The smaller maps are cheap enough for a second convolution,
    # which combines what the first one found; the last one sees eyes and mouth at once.
    for name, filters, pool in (
        ("1", 16, True), ("2", 32, True), ("3a", 64, False), ("3b", 64, True),
        ("4a", 96, False), ("4b", 128, True), ("5", 128, False),
    ):  # fmt: skip
        # The batch normalisation adds a bias of its own.
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{name}"))
        if pool:
            # Pooling first leaves a quarter of the numbers to normalise.
            model.add(layers.MaxPooling2D(2, name=f"pool{name}"))
        # With so few steps per epoch, Keras's momentum of 0.99 would lag behind.
        model.add(BatchNormalization(axis=3, momentum=0.9, name=f"bn{name}"))
        model.add(layers.ReLU(name=f"relu{name}"))
    # With the mean of each map, a smile counts wherever it is, in a portrait or in a photo from farther away.
    model.add(layers.GlobalAveragePooling2D(name="pool_all"))
    model.add(layers.Dropout(0.3, name="dropout"))
    if classes == 2:
        # One number is enough: the other class has the rest of the probability.
        model.add(layers.Dense(1, activation="sigmoid", dtype="float32", name="prediction"))
    else:
        model.add(layers.Dense(classes, activation="softmax", dtype="float32", name="prediction"))
    return model


def weak_augmentation(images, seed):
    """Vary images a little: mirrored, rotated, shifted, zoomed, slightly relit."""
    from support.augmentation import color_jitter, random_affine

    images = random_affine(images, seed, flip=True, rotation=15, shift=0.08, zoom=0.15)
    return color_jitter(images, seed, tone=0.3, contrast=0.15, brightness=0.1)


def strong_augmentation(images, seed):
    """Vary everything that may vary while a smile stays a smile: distance, light, colours, camera."""
    from support.augmentation import color_jitter, random_affine

    images = random_affine(images, seed, flip=True, rotation=20, shift=0.1, zoom=0.25)
    # A face against the light is dark, one in the sun is bright, and old photographs are grey.
    return color_jitter(images, seed, color=0.15, gray=0.2, tone=0.7, contrast=0.5, brightness=0.15, shadow=0.5)


def main():
    weights = "synthetic", "random"
    defaults = {"epochs": 60, "batch_size": 32, "learning_rate": 1e-3, "weights": weights}
    args = cli.ScriptParser(__doc__, "happy_sequential", **defaults).parse_args()
    if args.seeds > 1 or args.folds > 1:
        return cli.run_several(args)
    if args.predict:  # step 7, with a model that is trained already
        return cli.predict(args, "happy_sequential", HAPPY_CLASSES)

    # 1. Libraries, device and seed. Imported only now, so that --help answers at once.
    device = cli.start_keras(args)
    import keras

    import cnn_utils as utils

    if args.export:  # the trained model, for other programs
        return utils.export(args, "happy_sequential", HAPPY_CLASSES)

    # 2. Load the training and test sets; plot one image of each class.
    data = utils.load_happy_dataset(args.data, args.data_dir, args.dry_run, args.fold, args.cache_dir)
    run = utils.Run("happy_sequential", args, data, device)
    if run.finished:
        return 0
    utils.plot_examples(data.train_x, data.train_y, data.class_names, run.folder / "examples.png", data.kind)

    # 3. Prepare. The pixels stay 0-255: the model's first layer normalises them, now and in every later use.
    #    The labels become a column, as binary cross-entropy expects them, or one-hot rows if there are more classes.
    train_x, train_y, validation_x, validation_y = utils.split_validation(data.train_x, data.train_y, args.seed)
    #    SYNTHETIC faces help only beside at least as many photographs; beside few, they make the network worse.
    mix = args.mix_synthetic and data.class_names == HAPPY_CLASSES and data.kind == "real" and len(train_x) >= 600
    mixed_x, mixed_y = utils.add_synthetic("happy", train_x, train_y, args.dry_run) if mix else (train_x, train_y)
    binary = len(data.class_names) == 2
    train_y, mixed_y, validation_y, test_y = (
        y.reshape(-1, 1).astype("float32") if binary else utils.one_hot(y, len(data.class_names))
        for y in (train_y, mixed_y, validation_y, data.test_y)
    )
    utils.print_shapes("To train on", train_x=train_x, train_y=train_y, mixed_x=mixed_x, mixed_y=mixed_y)
    utils.print_shapes("To validate on", validation_x=validation_x, validation_y=validation_y)

    # 4. Build the model, load its weights unless they are to be random, print its summary.
    model = build_model(len(data.class_names))
    if args.weights != "random":
        utils.load_pretrained(model, args.weights)
    model.summary()

    # 5. Compile, and train with mini-batches. The validation split shows the progress; the test set is not touched.
    #    Strong augmentation stands in for people and light that a few hundred photographs do not show; at the end,
    #    small steps fit the network to the set's own images. The numbers are shares of the training.
    stages = [
        utils.Stage("strong augmentation", 3, mixed_x, mixed_y, strong_augmentation),
        utils.Stage("weak augmentation", 1, train_x, train_y, weak_augmentation),
    ]
    if args.weights == "random":  # strongly changed images teach an untrained network little
        share = 1 if args.pretrain else 4
        stages.insert(0, utils.Stage("weak augmentation", share, mixed_x, mixed_y, weak_augmentation))
    #    A hundred images need as many steps as five hundred.
    images_per_epoch = len(train_x) if args.dry_run else max(540, len(train_x))
    phases = [(stages, args.epochs, args.learning_rate, images_per_epoch)]
    if args.pretrain:
        x, y = utils.load_pretraining("happy", data.class_names, args.dry_run)
        pretraining = [
            utils.Stage("SYNTHETIC images only, weak", 1, x, y, weak_augmentation),
            utils.Stage("SYNTHETIC images only, strong", 3, x, y, strong_augmentation),
        ]
        phases.insert(0, (pretraining, 20, 1e-3, len(x)))
    #    Label smoothing takes away the reward for full confidence (Szegedy et al., 2016, section 7).
    losses = keras.losses
    loss = (losses.BinaryCrossentropy if binary else losses.CategoricalCrossentropy)(label_smoothing=0.1)
    class_weight = utils.class_weights(train_y, data.class_names) if args.class_weights else None
    for stages, epochs, learning_rate, images_per_epoch in phases:
        curriculum = utils.Curriculum(stages, epochs, args.batch_size, args.seed, images_per_epoch)
        steps = curriculum.steps_per_epoch
        #    The first epoch begins with small steps: Adam does not know yet how large the gradients are.
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, (epochs - 1) * steps), warmup_target=learning_rate, warmup_steps=steps
        )
        #    At the end, Keras replaces the weights by their moving average: single steps on few images are noisy.
        optimizer = keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=0.98)
        model.compile(optimizer, loss=loss, metrics=["accuracy"])
        run.fit(model, curriculum, utils.evaluation_dataset(validation_x, validation_y), class_weight)
    model = run.save_model(model, train_x, validation_x, validation_y)

    # 6. Evaluate on the test set, plot and save the results.
    results = utils.evaluate(model, data.test_x, test_y, data.class_names)
    utils.plot_learning_curves(run.history, run, run.folder / "learning_curves.png", data.kind)
    utils.plot_confusion_matrix(results, data.class_names, run.folder / "confusion_matrix.png", data.kind)
    utils.plot_mistakes(data.test_x, results, data.class_names, run.folder / "mistakes.png", data.kind)
    return run.finish(model, results, train_x, synthetic=len(mixed_x) - len(train_x))


if __name__ == "__main__":
    run_main(main)
