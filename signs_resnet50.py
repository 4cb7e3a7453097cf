"""Which digit, 0 to 5, does the hand show? A ResNet50, built block by block in resnet_utils.py.

    python signs_resnet50.py                             train, evaluate, save everything
    python signs_resnet50.py --data-dir FOLDER           the same with the .h5 files in FOLDER
    python signs_resnet50.py --predict hand.jpg          test the trained model on a new image
    python signs_resnet50.py --identity-blocks 2 3 5 3   one more block in stage 5: 53 layers
    python signs_resnet50.py --weights imagenet          start from ImageNet's weights, or from a FILE of your own
    python signs_resnet50.py --dry-run                   check that everything works

Data: SIGNS, as in signs_functional.py; SYNTHETIC images if its files are not there.
"""

from datasets import SIGNS_CLASSES
from support import cli
from support.errors import run_main


def weak_augmentation(images, seed):
    """Vary images as much as the photographs of one set vary: mirrored, rotated, nearer or farther."""
    from support.augmentation import random_affine

    return random_affine(images, seed, flip=True, rotation=15, shift=0.08, zoom=0.12)


def strong_augmentation(images, seed):
    """Vary the light as well. Milder than in signs_functional.py, because so deep a network learns more slowly."""
    from support.augmentation import color_jitter, random_affine

    images = random_affine(images, seed, flip=True, rotation=18, shift=0.1, zoom=0.15)
    return color_jitter(images, seed, color=0.05, tone=0.2, contrast=0.1, brightness=0.05)


def parse_args():
    defaults = {"epochs": 26, "batch_size": 32, "learning_rate": 2e-3, "weights": ("random", "imagenet")}
    parser = cli.ScriptParser(__doc__, "signs_resnet50", **defaults)
    blocks = "identity blocks in stages 2, 3, 4 and 5 (default: 2 3 5 2, the ResNet-50)"
    add = parser.add_argument
    add("--identity-blocks", nargs=4, type=cli.integer(0), default=[2, 3, 5, 2], metavar="N", help=blocks)
    args = parser.parse_args()
    if args.weights != "random" and args.epochs < 2:
        parser.error(f"--weights trains the last layer first: expected --epochs of at least 2. Received: {args.epochs}")
    return args


def main():
    args = parse_args()
    if args.seeds > 1 or args.folds > 1:
        return cli.run_several(args)
    if args.predict:  # step 7, with a model that is trained already
        return cli.predict(args, "signs_resnet50", SIGNS_CLASSES, network="ResNet50")

    # 1. Libraries, device and seed. Imported only now, so that --help answers at once.
    #    Rewriting the graph of so many layers would delay the first batch by seconds and gain nothing.
    device = cli.start_keras(args, rewrite_graph=False)
    import keras

    import cnn_utils as utils
    from resnet_utils import ResNet50
    from support.fused_adam import Adam  # Keras's formula, in fewer operations
    from support.pretrained import set_trainable

    if args.export:  # the trained model, for other programs
        return utils.export(args, "signs_resnet50", SIGNS_CLASSES, network="ResNet50")

    # 2. Load the training and test sets.
    data = utils.load_signs_dataset(args.data, args.data_dir, args.dry_run, args.fold, args.cache_dir)

    # 3. Prepare. The pixels stay 0-255: the model's first layer normalises them, now and in every later use.
    #    The labels become one-hot rows, one column per class, as categorical cross-entropy expects them.
    train_x, train_y, validation_x, validation_y = utils.split_validation(data.train_x, data.train_y, args.seed)
    mix = args.mix_synthetic and data.class_names == SIGNS_CLASSES and data.kind == "real"
    mixed_x, mixed_y = utils.add_synthetic("signs", train_x, train_y, args.dry_run) if mix else (train_x, train_y)
    train_y, mixed_y, validation_y, test_y = (
        utils.one_hot(y, len(data.class_names)) for y in (train_y, mixed_y, validation_y, data.test_y)
    )
    utils.print_shapes("To train on", train_x=train_x, train_y=train_y, mixed_x=mixed_x, mixed_y=mixed_y)
    utils.print_shapes("To validate on", validation_x=validation_x, validation_y=validation_y)

    # 4. Build the model, print its summary.
    model = ResNet50(classes=len(data.class_names), identity_blocks=args.identity_blocks)
    if args.weights != "random":
        utils.load_pretrained(model, args.weights)
    model.summary()
    run = utils.Run("signs_resnet50", args, data, device)  # after --weights, which may be refused
    if run.finished:
        return 0
    utils.plot_examples(data.train_x, data.train_y, data.class_names, run.folder / "examples.png", data.kind)

    # 5. Compile, and train with mini-batches. The validation split shows the progress; the test set is not touched.
    stages = [
        utils.Stage("strong augmentation", 9 if mix else 18, train_x, train_y, strong_augmentation),
        utils.Stage("weak augmentation", 8, train_x, train_y, weak_augmentation),
    ]
    if mix:
        stages.insert(0, utils.Stage("SYNTHETIC images added", 9, mixed_x, mixed_y, strong_augmentation))
    phases = [(stages, args.epochs, args.learning_rate, len(train_x))]
    if args.pretrain:
        x, y = utils.load_pretraining("signs", data.class_names, args.dry_run)
        pretraining = [utils.Stage("SYNTHETIC images only", 1, x, y, strong_augmentation)]
        phases.insert(0, (pretraining, 2, args.learning_rate, len(x)))
    if args.weights != "random":
        #    The new last layer first, alone: its first gradients would spoil what the other layers know.
        alone = max(1, args.epochs // 5)
        rates = args.learning_rate, args.learning_rate / 10
        phases = [(stages, n, rate, len(train_x)) for n, rate in zip((alone, args.epochs - alone), rates)]
    class_weight = utils.class_weights(train_y, data.class_names) if args.class_weights else None
    for number, (stages, epochs, learning_rate, images_per_epoch) in enumerate(phases):
        set_trainable(model, head_only=args.weights != "random" and number == 0)
        curriculum = utils.Curriculum(stages, epochs, args.batch_size, args.seed, images_per_epoch)
        #    A deep network's first steps are its roughest, so the learning rate warms up over a tenth of them.
        steps = epochs * curriculum.steps_per_epoch
        warmup = max(1, steps // 10)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warmup), warmup_steps=warmup, warmup_target=learning_rate
        )
        model.compile(Adam(schedule), loss="categorical_crossentropy", metrics=["accuracy"])
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
