"""A folder of images as a source: one folder a class, below folders for the official splits where there are some."""

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sparring.data.sources import OFFICIAL, SPLIT_WORDS, LeftOut, Source, existing, files_of, heldout, some, told
from sparring.params.errors import InputError
from sparring.params.names import PARAMS_FILE
from sparring.params.sections import Data


@dataclass(frozen=True)
class _Folder:
    path: Path
    images: list[Path]
    folders: list["_Folder"]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def filled(self) -> list["_Folder"]:
        """The folders directly in this one that have images in or below them."""
        return [folder for folder in self.folders if folder.below()]

    def below(self) -> list[Path]:
        return sorted(self.images + [image for folder in self.folders for image in folder.below()])


def read(data: Data) -> Source:
    """The images below `data.path`, their classes the names of folders: numbers in their own order, then words.

    Raises InputError where there are no classes, or where it cannot be told which folders are the classes.
    """
    top = existing(data)
    if not top.is_dir():
        raise InputError(f"{PARAMS_FILE}: data.path is {top}, a file; source folder needs one folder a class below it")
    left_out: LeftOut = defaultdict(list)
    real = {os.path.realpath(path) for path, _, _ in os.walk(top)}
    whole = _scan(top, real, left_out, top)
    _check_not_empty(whole, left_out)
    parts = _classes_of_splits(_unwrapped(whole, set()), left_out, top)
    classes = sorted((folder.name for folder in parts["train"]), key=_in_natural_order)
    files: list[Path] = []
    label: list[int] = []
    kinds: list[str] = []
    for kind in OFFICIAL:
        for folder in sorted(parts.get(kind, []), key=lambda folder: _in_natural_order(folder.name)):
            images = folder.below()
            if not images and folder.name not in classes:
                continue
            if folder.name not in classes:
                raise InputError(f"{images[0]} is of class {folder.name}, which has no training images; it needs some")
            if data.group_pattern is None:
                _check_no_classes_inside(folder)
            files += images
            label += [classes.index(folder.name)] * len(images)
            kinds += [kind] * len(images)
    paths = [file.relative_to(top).as_posix() for file in files]
    remarks = _remarks(top, classes, left_out)
    official = heldout(np.array(kinds))
    return Source(str(top), np.array(label, np.int64), official, classes, paths, partial(files_of, files), remarks)


def _in_natural_order(name: str) -> tuple[bool, int, str]:
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def _scan(folder: Path, real: set[str], left_out: LeftOut, top: Path) -> _Folder:
    """What lies in and below a folder.

    real: the folders that are read without following a link; a link to one of them is left out, and so is the second
    link to any other.
    """
    known = Image.registered_extensions()
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder / entry.name
            below = path.relative_to(top).as_posix()
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                target = os.path.realpath(path)
                if entry.name.startswith("__"):
                    left_out["folders that start with __"].append(below)
                elif entry.is_symlink() and target in real:
                    left_out["links to folders that are read without them"].append(below)
                else:
                    real.add(target)
                    folders.append(_scan(path, real, left_out, top))
            elif not entry.is_file():
                left_out["links to nothing"].append(below)
            elif path.suffix.lower() in known:
                images.append(path)
            else:
                left_out["files without the suffix of an image"].append(below)
    return _Folder(folder, images, folders)


def _check_not_empty(whole: _Folder, left_out: LeftOut) -> None:
    if whole.filled:
        return
    inside = "images, but no class folders" if whole.images else "no images"
    beside = f" ({told(left_out)})" if left_out else ""
    raise InputError(
        f"{PARAMS_FILE}: data.path is {whole.path}, which has {inside}{beside}; it needs one folder a class, in it "
        f"images"
    )


def _unwrapped(folder: _Folder, classes: set[str]) -> _Folder:
    """The folder itself or, where all it has is one folder which has only folders, that one, and so on."""
    while not folder.images and len(folder.filled) == 1:
        inner = folder.filled[0]
        if inner.images or inner.name in classes or _kind(inner.name) not in (None, "train", _kind(folder.name)):
            break
        folder = inner
    return folder


def _kind(name: str) -> str | None:
    """The split that a folder's name tells, as `val` or `seg_train` do."""
    return next((SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS), None)


def _classes_of_splits(whole: _Folder, left_out: LeftOut, top: Path) -> dict[str, list[_Folder]]:
    """The class folders of each official split; all of them training images where there are no splits."""
    # A class may be called train: a folder of that name is a split only if its images lie in folders of their own.
    trains = _of_kind(whole, "train", [folder for folder in whole.filled if not folder.images])
    left_out["images in no class folder"] += [image.relative_to(top).as_posix() for image in whole.images]
    if not trains:
        return {"train": whole.folders}
    split = {"train": trains[0]}
    for kind in OFFICIAL[1:]:
        for folder in _of_kind(whole, kind, whole.filled):
            split[kind] = folder
    for folder in whole.filled:
        if folder in split.values():
            continue
        # As seg_pred/seg_pred/*.jpg: images to try a classifier on, of no class.
        unlabelled = folder.images or (len(folder.filled) == 1 and folder.filled[0].name == folder.name)
        if not unlabelled or any(inner.filled for inner in folder.filled):
            raise InputError(f"{folder.path} lies beside {trains[0].name}/ and is no split; call it test or validation")
        left_out["images in no class folder"] += [image.relative_to(top).as_posix() for image in folder.below()]
    parts: dict[str, list[_Folder]] = {}
    for kind, folder in split.items():
        classes = {each.name for each in parts.get("train", [])}
        inner = _unwrapped(folder, classes)
        _check_has_classes(inner, classes, trains[0])
        parts[kind] = inner.folders
    return parts


def _of_kind(whole: _Folder, kind: str, folders: list[_Folder]) -> list[_Folder]:
    """The one folder that is this split, if there is one: called by its very word, or else by a name that has it."""
    exact = [folder for folder in folders if SPLIT_WORDS.get(folder.name.lower()) == kind]
    chosen = exact or [folder for folder in folders if _kind(folder.name) == kind]
    if len(chosen) > 1:
        names = " and ".join(f"{folder.name}/" for folder in chosen)
        raise InputError(f"{whole.path} has {names}, which may all be the split {kind}; leave one of them there")
    return chosen


def _check_has_classes(split: _Folder, classes: set[str], train: _Folder) -> None:
    """Of a split with images; classes: those of the training images, none for these themselves."""
    flat = split
    if classes and len(split.filled) == 1 and split.filled[0].name not in classes:
        flat = split.filled[0]  # as val/images/*.jpg
    if not flat.images:
        return
    if classes:
        raise InputError(
            f"{flat.path} has {len(flat.images):,} images, but no folder a class, as {train.path} has; sort them into "
            f"folders named like their classes, or move {split.path} elsewhere"
        )
    raise InputError(f"{flat.images[0]} lies in no class; put it in a folder named like its class")


def _check_no_classes_inside(folder: _Folder) -> None:
    """A folder that has several folders, and no image beside them, may be a class, or have the classes in it."""
    inner = folder
    while not inner.images and len(inner.filled) == 1:
        inner = inner.filled[0]
    if not inner.images and inner.filled:
        names = some([each.name for each in inner.filled], 3)
        raise InputError(
            f"{inner.path} has no images, only folders ({names}), so it may be no class; name in data.path the folder "
            f"whose folders are the classes, or move the images up into the folder of their class"
        )


def _remarks(top: Path, classes: list[str], left_out: LeftOut) -> list[str]:
    remarks = [f"{top}: left out {told(left_out)}"] if any(left_out.values()) else []
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        spellings[name.casefold()].append(name)
    for names in spellings.values():
        if len(names) > 1:
            remarks.append(f"{top}: the classes {' and '.join(names)} differ in upper and lower case only")
    return remarks
