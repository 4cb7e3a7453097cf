"""Tell the parts of a data set (training, validation, test, folds) from its classes, both of which are folders.

Parts have the same subfolders, the classes; classes have images. The names of the parts only say which is which.
"""

import collections
import itertools
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from basics.errors import InputError, printable
from datasets.listing import NAMED, Folder, listed, other_files

# What the parts are called, whole or as a word of the name: seg_train, rps-test-set, TrainingData.
WORDS = {
    "train": "train training trains trn trainval".split(),
    "validation": "val valid validation validating validate vali dev devel development".split(),
    "test": "test testing tests tst eval evaluation evaluate holdout heldout".split(),
    "unlabeled": "unlabeled unlabelled pred predict prediction predictions inference".split(),  # never used
}
USED = "train", "validation", "test"
ROLE_OF = {word: role for role, words in WORDS.items() for word in words}

# Words beside these that say nothing.
FILLERS = """set sets data dataset datasets image images img imgs photo photos pic pics picture pictures folder
    labeled labelled""".split()
_FUSED = re.compile(rf"({'|'.join(sorted(ROLE_OF, key=len, reverse=True))})({'|'.join(FILLERS)})")

# A folder of images with one of these names beside classes is hardly a class. "valid" may be one, beside "invalid".
NO_CLASS = {"test", "validation", "val", "testing", "unlabeled", "unlabelled"}

HOW = "Call the folders train, validation (if there is one) and test, each with one subfolder for each class"


class NoClasses(InputError):
    """There are no images to train on. `names` are those of the subfolders with images."""

    def __init__(self, problem, names=()):
        super().__init__(problem, "It must hold one subfolder of images for each class, at least two")
        self.problem, self.names = problem, names


class Part(NamedTuple):
    """A part of a data set, or all of it."""

    path: Path  # of the folder that its classes are in; for a message
    classes: dict  # name -> `Folder`


class Layout(NamedTuple):
    """What is where in a folder of images."""

    train: Part | None  # None: there are folds
    validation: Part | None
    test: Part | None
    folds: list  # of `Part`, in the order of their numbers
    left_out: list  # of sentences: what is not used, and why


class _Name(NamedTuple):
    """What the name of a folder says."""

    role: str | None  # a key of WORDS, or "fold"
    exact: bool  # whether it consists of nothing but words for that
    rest: tuple  # of its other words


class _Kid(NamedTuple):
    """A folder that may be a part or a class."""

    folder: Folder
    part: Part | None  # what it holds if it is a part; None: it has no subfolders that may be classes
    name: _Name

    @property
    def role(self):
        return self.name.role


def find_layout(root, subfolders=False):
    """Return the `Layout` of a folder of images.

    Args:
        root: `Folder`.
        subfolders: bool, whether the classes are known to have subfolders, which may have the same names.

    Raises NoClasses: nothing to train on.
    Raises InputError: it is not clear what is a part and what is a class.
    """
    notes, empty = [], []
    folder = root
    while len(folder.filled) == 1 and folder.filled[0].filled:  # a folder around everything, as in many archives
        if role_of(folder.filled[0].name) in ("validation", "test"):
            break
        notes += _loose(folder)
        empty += _empty(folder)
        folder = folder.filled[0]
    if len(folder.filled) < 2:
        _refuse_no_classes(root, folder)
    kids = _kids(folder)
    layout = (
        _parts_in_classes(folder)
        or _named_parts(folder, kids, subfolders)
        or _data_set_beside_others(kids, subfolders)
        or _only_classes(folder, kids, subfolders)
    )
    notes += _loose(folder) + layout.left_out
    for sub in empty + _empty(folder):
        role = role_of(sub.name)
        if role in ("validation", "test") and getattr(layout, role) is None:
            # Refused when it is read: whoever makes a folder for the test images expects it to be used.
            layout = layout._replace(**{role: Part(sub.path, {})})
        else:
            notes.append(_without_images(sub))
    return layout._replace(left_out=notes)


# ------------------------------------------------------------------- names


def role_of(name):
    """Return the part that a folder's name stands for: a key of WORDS, "fold" or None."""
    return _read_name(name).role


def _read_name(name):
    """Return the `_Name` of a folder."""
    if _fold_number(name) is not None:
        return _Name("fold", True, ())
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    words = [match[1] if (match := _FUSED.fullmatch(word)) else word for word in words]
    roles = {ROLE_OF[word] for word in words if word in ROLE_OF}
    if roles == {"train", "validation"}:
        roles = {"train"}  # to be split into both
    rest = tuple(word for word in words if word not in ROLE_OF and word not in FILLERS)
    return _Name(roles.pop() if len(roles) == 1 else None, bool(words) and not rest, rest)


def _fold_number(name):
    """Return the number in the name of a fold, or None."""
    match = re.fullmatch(r"k?[-_ ]?fold[-_ ]*(\d+)|(\d+)[-_ ]*fold", name.lower())
    return int(match[1] or match[2]) if match else None


def same_name(name):
    """Return what is equal for names that differ only in case, or in how a letter with an accent is stored."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def _comparable(folders):
    return {same_name(folder.name) for folder in folders}


# ------------------------------------------------------------------- what is inside


def _levels(folder):
    """Yield a folder and those around whose subfolders it is the only one, down to where they branch."""
    while folder.filled:
        yield folder
        if len(folder.filled) > 1 or folder.images:
            return
        folder = folder.filled[0]


def _kids(folder):
    """Return the subfolders with images as `_Kid`s."""
    branches = {
        kid: set().union(*(_comparable(level.filled) for level in _levels(kid) if len(level.filled) > 1))
        for kid in folder.filled
    }
    counts = collections.Counter(name for names in branches.values() for name in names)
    kids = []
    for kid, names in branches.items():
        known = {name for name, count in counts.items() if count > (name in names)}  # in another one
        kids.append(_Kid(kid, _as_part(kid, known), _read_name(kid.name)))
    return kids


def _as_part(folder, known=frozenset()):
    """Return a folder as a `Part`: its classes are the subfolders at the level that has most of the known names.

    None if it has no subfolders, or but one of an unknown name.
    """
    levels = list(_levels(folder))
    if not levels:
        return None
    level = max(reversed(levels), key=lambda level: len(_comparable(level.filled) & known))
    if len(level.filled) == 1 and not _comparable(level.filled) & known:
        return None  # seg_pred/seg_pred/*.jpg
    return Part(level.path, {sub.name: sub for sub in level.filled})


def _common(one, other):
    """Return the comparable names that two parts share, if these are most of their classes; else an empty set."""
    first, second = (_comparable(part.classes.values()) for part in (one, other))
    common = first & second
    least = min(len(first), len(second))
    return common if len(common) >= min(2, least) and 2 * len(common) >= least else set()


def _repeats(part, kids):
    """Return the kids that have the same subfolders as a part."""
    return [kid for kid in kids if kid.part and kid.part is not part and _common(kid.part, part)]


def _is_data_set(folder):
    """Return whether a folder has a part for training with classes that another of its parts has too."""
    folder = list(_levels(folder))[-1] if folder.filled and not folder.images else folder
    parts = {sub: _as_part(sub) for sub in folder.filled if role_of(sub.name)}
    branched = [part for part in parts.values() if part and len(part.classes) > 1]
    trained = any(role_of(sub.name) == "train" and part for sub, part in parts.items())
    return trained and any(_common(*pair) for pair in itertools.combinations(branched, 2))


# ------------------------------------------------------------------- what is left out


def _loose(folder):
    """Return a list of a sentence about images that lie beside the folders of the classes, or of none."""
    if not folder.images:
        return []
    kind = "image lies" if len(folder.images) == 1 else "images lie"
    names = listed(path.name for path in folder.images)
    return [f"{len(folder.images):,} {kind} in {folder.path}, beside the folders: {names}"]


def _empty(folder):
    return [sub for sub in folder.folders if not sub.count]


def _without_images(folder):
    found = other_files([folder])
    return f"{folder.path} has no images{f', but {found}' if found else ''}"


def _beside_classes(kid):
    """Return sentences about what lies in a part beside the folders of its classes."""
    notes = []
    for level in _levels(kid.folder):
        if kid.part.path.is_relative_to(level.path):
            notes += _loose(level) + list(map(_without_images, _empty(level)))
    return notes


def _unused(kid, why):
    count = kid.folder.count
    return f"{kid.folder.path} with {count:,} image{'s' * (count != 1)}: {why}"


def _names(kids):
    """Return the names of folders as text: "a, b and c"."""
    names = [kid.folder.name if isinstance(kid, _Kid) else kid.name for kid in kids]
    if len(names) > NAMED:
        return listed(names)
    return " and ".join(filter(None, [listed(names[:-1]), printable(names[-1])]))


# ------------------------------------------------------------------- the layouts


def _refuse_no_classes(root, folder):
    """Raise NoClasses about a folder with fewer than two subfolders of images."""
    nothing = f"There are no images to train on in {root.path}"
    names = [kid.name for kid in folder.filled]
    if names:  # one class, or only a test set
        raise NoClasses(
            f"{nothing}: only its subfolder {folder.filled[0].path.relative_to(root.path)} has images", names
        )
    if folder.images:
        raise NoClasses(f"{nothing}: its images are not in subfolders that name their classes")
    raise NoClasses(nothing)


def _parts_in_classes(folder):
    """Return the layout of folders that have the parts inside the classes, cat/train and cat/test; None for others."""
    classes = folder.filled
    if not all(kid.filled and all(role_of(sub.name) for sub in kid.filled) for kid in classes):
        return None
    roles = {role_of(kid.name) for kid in classes}
    if roles - {None, "fold"}:
        return None  # training_set/training_set and test_set/test_set
    if roles == {"fold"} or any(map(_is_data_set, classes)):
        problem = (
            f"{_names(classes)} in {folder.path} are data sets of their own, each with {_names(classes[0].filled)}"
        )
        raise InputError(problem, f"Name one of them, for example {classes[0].path}")
    found = {role: {} for role in USED}
    places = {}
    notes = []
    for kid in classes:
        notes += _loose(kid)
        for sub in kid.filled:
            role = role_of(sub.name)
            if role not in found or kid.name in found[role]:
                raise InputError(f"It is not clear which part of a data set {sub.path} is", HOW)
            found[role][kid.name] = sub
            places.setdefault(role, folder.path / "*" / sub.name)
    if len(found["train"]) < 2:
        problem = f"There are no images to train on in {folder.path}: its classes have no folder called train"
        raise InputError(problem, HOW)
    parts = {role: Part(places[role], classes) if classes else None for role, classes in found.items()}
    return Layout(**parts, folds=[], left_out=notes)


def _named_parts(folder, kids, subfolders):
    """Return the layout of folders of which some are called train, test or the like; None if they are no parts."""
    named = {role: [kid for kid in kids if kid.part and kid.role == role] for role in (*USED, "fold")}
    if len(named["fold"]) == 1:
        named["fold"] = []
    parts = [kid for role in named.values() for kid in role]
    leaves = [kid for kid in kids if not kid.part]
    unnamed = [kid for kid in kids if kid.part and kid not in parts]
    outside = Part(folder.path, {kid.folder.name: kid.folder for kid in leaves if not kid.role})
    if not any(_is_certain(kid, kids, outside) for kid in parts):
        return None
    for role, found in named.items():
        if len(found) > 1 and role != "fold":
            what = "training" if role == "train" else role
            problem = f"{_names(found)} in {folder.path} would all be the {what} images"
            raise InputError(problem, f"Merge them, or move all but one elsewhere. {HOW}")
    train, validation, test = (next(iter(named[role]), None) for role in USED)
    if train and named["fold"]:
        problem = f"{folder.path} has both {train.folder.name} and folds: {_names(named['fold'])}"
        raise InputError(problem, "Move one or the other elsewhere")
    repeated = _repeats(parts[0].part, unnamed)
    used = list(parts)
    classes = train and train.part
    if train and not (validation or test):
        if repeated and subfolders:
            return None  # train may be a class, beside bus and car
        _check_only_train(folder, train, repeated, unnamed, outside)
    elif not (train or named["fold"]):
        if len(repeated) == 1:  # rps beside rps-test-set
            classes = repeated[0].part
            used += repeated
        elif not repeated and _common(parts[0].part, outside):  # cat and dog beside test/cat and test/dog
            classes = outside
            used += [kid for kid in leaves if not kid.role]
        else:
            _refuse_no_training(folder, parts, repeated, leaves)
    notes = [note for kid in used if kid.part for note in _beside_classes(kid)]
    for kid in kids:
        if kid not in used:
            why = "it is not clear which part it is" if kid.part else "it has no subfolders for the classes"
            notes.append(_unused(kid, why))
    folds = [kid.part for kid in sorted(named["fold"], key=lambda kid: _fold_number(kid.folder.name))]
    return Layout(classes, validation and validation.part, test and test.part, folds, notes)


def _is_certain(kid, kids, outside):
    """Return whether a folder with the name of a part is one: by all of its name, or by what others have in common."""
    twins = [other for other in kids if other.name.rest == kid.name.rest and other.role not in (None, kid.role)]
    return bool(kid.name.exact or twins or _repeats(kid.part, kids) or _common(kid.part, outside))


def _refuse_no_training(folder, parts, repeated, leaves):
    """Raise an InputError about a folder with validation or test images whose training images cannot be told."""
    if repeated:
        problem = f"It is not clear which of {_names(repeated)} in {folder.path} holds the training images"
        raise InputError(problem, HOW)
    unsorted = [kid for kid in leaves if kid.role == "train"]
    if unsorted:
        raise InputError(f"{unsorted[0].folder.path} has images, but no subfolders for at least two classes", HOW)
    problem = f"There are no images to train on in {folder.path}: {_names(parts)} would be for validation or tests"
    raise InputError(problem, "Add a folder called train, with the same subfolders")


def _check_only_train(folder, train, repeated, unnamed, outside):
    """Raise an InputError if a folder called train beside others may be a class, or others may be the test images."""
    name = train.folder.name
    if repeated:
        verb, noun = ("has", "name") if len(repeated) == 1 else ("have", "names")
        same = f"{verb} the same subfolders as {name}, but the {noun} of no part"
        fix = f"{HOW}. If {name} is a class as well, add --group-by folder"
        raise InputError(f"{_names(repeated)} in {folder.path} {same}", fix)
    if unnamed or len(outside.classes) > 1 and not _common(train.part, outside):
        problem = f"It is not clear whether {name} in {folder.path} is a class, or holds the training images"
        raise InputError(problem, f"If it is a class, give it another name. Otherwise: {HOW[0].lower()}{HOW[1:]}")


def _data_set_beside_others(kids, subfolders):
    """Return the layout of the one folder that is a data set of its own, beside others that are not used; else None."""
    found = [kid for kid in kids if not kid.role and _is_data_set(kid.folder)]
    branched = [kid for kid in kids if kid.part]
    if not found and len(branched) == 1 and branched[0].name == _read_name("dataset"):
        found = branched  # dataset/0, dataset/1, ... beside examples
    if len(found) != 1:
        return None
    layout = find_layout(found[0].folder, subfolders)
    beside = f"it lies beside {found[0].folder.name}, which is a data set of its own"
    return layout._replace(left_out=[_unused(kid, beside) for kid in kids if kid is not found[0]] + layout.left_out)


def _only_classes(folder, kids, subfolders):
    """Return the layout of a folder whose subfolders are the classes."""
    leaves = [kid for kid in kids if not kid.part]
    # The images of Malaria, for example, come with a second copy of all classes inside the folder.
    plain = Part(folder.path, {kid.folder.name: kid.folder for kid in leaves})
    copies = [kid for kid in kids if kid.part and len(leaves) > 1 and len(_common(kid.part, plain)) > 1]
    notes = [_unused(kid, f"it repeats the folders beside it, {_names(kid.part.classes.values())}") for kid in copies]
    kids = [kid for kid in kids if kid not in copies]
    if not subfolders:
        _check_repeated(folder, [kid for kid in kids if kid.part])
    _check_names(folder, kids)
    return Layout(Part(folder.path, {kid.folder.name: kid.folder for kid in kids}), None, None, [], notes)


def _check_repeated(folder, kids):
    """Raise an InputError if two folders have the same subfolders: either they or these are the classes."""
    counts = collections.Counter(name for kid in kids for name in _comparable(kid.part.classes.values()))
    kids = [kid for kid in kids if any(counts[same_name(name)] > 1 for name in kid.part.classes)]
    for one, other in itertools.combinations(kids, 2):
        common = _common(one.part, other.part)
        if len(common) > 1:
            names = listed(name for name in one.part.classes if same_name(name) in common)
            both = f"{one.folder.name} and {other.folder.name}"
            problem = f"{both} in {folder.path} have the same subfolders ({names})"
            fix = f"If these are the classes, call {both} train and test, or name one of them with --data-dir"
            raise InputError(problem, f"{fix}. If {both} are classes, add --group-by folder")


def _check_names(folder, kids):
    """Raise an InputError if what would be classes has the names of parts: each of them shows several classes."""
    for kid in kids:
        roles = [sub for sub in kid.folder.filled if role_of(sub.name)]
        if len({role_of(sub.name) for sub in roles}) > 1:
            problem = f"{_names(roles)} in {kid.folder.path} look like parts, but not all folders beside it have them"
            raise InputError(problem, HOW)
    parts = [kid for kid in kids if not kid.part and kid.role]
    names = {kid.name.rest for kid in kids if not kid.role}
    doubles = [kid for kid in parts if kid.name.rest in names]
    if len(doubles) > 1:
        problem = f"{_names(doubles)} in {folder.path} look like parts of the classes beside them"
        raise InputError(problem, HOW)
    for kid in parts:
        twins = [other for other in parts if other.name.rest == kid.name.rest and other.role != kid.role]
        if twins:
            problem = (
                f"{_names([kid, *twins])} in {folder.path} hold images, but no subfolders for at least two classes"
            )
            raise InputError(problem, HOW)
        name = kid.folder.name
        if name.lower() in NO_CLASS and len(kids) > 2:
            problem = f"{kid.folder.path} holds images, but no subfolders for their classes"
            fix = f"If {name} is a class, give it another name. Otherwise move it elsewhere, or sort its images"
            raise InputError(problem, f"{fix} into subfolders for the classes")
