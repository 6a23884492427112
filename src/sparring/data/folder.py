"""This module reads images that lie in one folder per class, and those in folders of the official splits, if any."""

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sparring.data.sources import (
    OFFICIAL,
    SPLIT_WORDS,
    LeftOut,
    Source,
    describe,
    existing_path,
    files_of,
    heldout_rows,
    some,
)
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
        """Return the folders directly in this one that have images in or below them."""
        return [folder for folder in self.folders if folder.below()]

    def below(self) -> list[Path]:
        """Return all images in and below the folder, sorted."""
        return sorted(self.images + [image for folder in self.folders for image in folder.below()])


def read(data: Data) -> Source:
    """Read the images below `data.path`. The classes are the names of folders: numbers in their own order, then words.

    Raises InputError where there are no classes, or where it is ambiguous which folders are the classes.
    """
    top = existing_path(data)
    if not top.is_dir():
        raise InputError(f"{PARAMS_FILE}: data.path is {top}, a file; source folder needs a folder per class below it")
    left_out: LeftOut = defaultdict(list)
    real = {os.path.realpath(path) for path, _, _ in os.walk(top)}
    whole = _scan(top, real, left_out, top)
    _check_not_empty(whole, left_out)
    parts = _classes_of_splits(_unwrapped(whole, set()), left_out, top)
    classes = sorted((folder.name for folder in parts["train"]), key=_natural_order)
    files: list[Path] = []
    label: list[int] = []
    kinds: list[str] = []
    for kind in OFFICIAL:
        for folder in sorted(parts.get(kind, []), key=lambda folder: _natural_order(folder.name)):
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
    official = heldout_rows(np.array(kinds))
    return Source(str(top), np.array(label, np.int64), official, classes, paths, partial(files_of, files), remarks)


def _natural_order(name: str) -> tuple[bool, int, str]:
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def _scan(folder: Path, real: set[str], left_out: LeftOut, top: Path) -> _Folder:
    """List the images in and below a folder, and add what is no image to `left_out`.

    real: the real paths of all folders that are read. A link to one of them is left out.
    """
    suffixes = Image.registered_extensions()
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder / entry.name
            relative = path.relative_to(top).as_posix()
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                target = os.path.realpath(path)
                if entry.name.startswith("__"):
                    left_out["folders that start with __"].append(relative)
                elif entry.is_symlink() and target in real:
                    left_out["links to folders that are read without them"].append(relative)
                else:
                    real.add(target)
                    folders.append(_scan(path, real, left_out, top))
            elif not entry.is_file():
                left_out["links to nothing"].append(relative)
            elif path.suffix.lower() in suffixes:
                images.append(path)
            else:
                left_out["files without the suffix of an image"].append(relative)
    return _Folder(folder, images, folders)


def _check_not_empty(whole: _Folder, left_out: LeftOut) -> None:
    if whole.filled:
        return
    inside = "images, but no class folders" if whole.images else "no images"
    beside = f" ({describe(left_out)})" if left_out else ""
    raise InputError(
        f"{PARAMS_FILE}: data.path is {whole.path}, which has {inside}{beside}; it needs one folder per class, in it "
        f"images"
    )


def _unwrapped(folder: _Folder, classes: set[str]) -> _Folder:
    """Go down from a folder while all it has is one folder, which has only folders, and return the last one.

    Stop before a folder whose name is one of `classes`, or names another split than this one or `train`.
    """
    while not folder.images and len(folder.filled) == 1:
        inner = folder.filled[0]
        if inner.images or inner.name in classes or _kind(inner.name) not in (None, "train", _kind(folder.name)):
            break
        folder = inner
    return folder


def _kind(name: str) -> str | None:
    """Return the split that a folder's name names, as `val` or `seg_train` do; None where it names none."""
    return next((SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS), None)


def _classes_of_splits(whole: _Folder, left_out: LeftOut, top: Path) -> dict[str, list[_Folder]]:
    """Return the class folders of each official split. Without official splits, all class folders are `train`'s."""
    # A class may be called train: a folder of that name is a split only if its images lie in folders of their own.
    trains = _of_kind(whole, "train", [folder for folder in whole.filled if not folder.images])
    left_out["images in no class folder"] += [image.relative_to(top).as_posix() for image in whole.images]
    if not trains:
        return {"train": whole.folders}
    split_folders = {"train": trains[0]}
    for kind in OFFICIAL[1:]:
        for folder in _of_kind(whole, kind, whole.filled):
            split_folders[kind] = folder
    for folder in whole.filled:
        if folder in split_folders.values():
            continue
        # As seg_pred/seg_pred/*.jpg: images to try a classifier on, of no class.
        is_unlabelled = folder.images or (len(folder.filled) == 1 and folder.filled[0].name == folder.name)
        if not is_unlabelled or any(inner.filled for inner in folder.filled):
            raise InputError(f"{folder.path} lies beside {trains[0].name}/ and is no split; call it test or validation")
        left_out["images in no class folder"] += [image.relative_to(top).as_posix() for image in folder.below()]
    parts: dict[str, list[_Folder]] = {}
    for kind, folder in split_folders.items():
        classes = {class_folder.name for class_folder in parts.get("train", [])}
        inner = _unwrapped(folder, classes)
        _check_has_classes(inner, classes, trains[0])
        parts[kind] = inner.folders
    return parts


def _of_kind(whole: _Folder, kind: str, folders: list[_Folder]) -> list[_Folder]:
    """Return, in a list, the one folder of this split, or none: one called just `train`, say, before `seg_train`.

    Raises InputError for more than one.
    """
    exact_matches = [folder for folder in folders if SPLIT_WORDS.get(folder.name.lower()) == kind]
    matching = exact_matches or [folder for folder in folders if _kind(folder.name) == kind]
    if len(matching) > 1:
        names = " and ".join(f"{folder.name}/" for folder in matching)
        raise InputError(f"{whole.path} has {names}, which may all be the split {kind}; leave one of them there")
    return matching


def _check_has_classes(split: _Folder, classes: set[str], train: _Folder) -> None:
    """Raise InputError where a split's images lie in no class folders.

    classes: those of the training images, or none where `split` holds these themselves.
    """
    holder = split
    if classes and len(split.filled) == 1 and split.filled[0].name not in classes:
        holder = split.filled[0]  # as val/images/*.jpg
    if not holder.images:
        return
    if classes:
        raise InputError(
            f"{holder.path} has {len(holder.images):,} images, but no folder per class, as {train.path} has; sort them "
            f"into folders named like their classes, or move {split.path} elsewhere"
        )
    raise InputError(f"{holder.images[0]} lies in no class; put it in a folder named like its class")


def _check_no_classes_inside(folder: _Folder) -> None:
    """Raise InputError where a class folder has folders and no images: these folders may be the classes."""
    inner = folder
    while not inner.images and len(inner.filled) == 1:
        inner = inner.filled[0]
    if not inner.images and inner.filled:
        names = some([child.name for child in inner.filled], 3)
        raise InputError(
            f"{inner.path} has no images, only folders ({names}), so it may be no class; name in data.path the folder "
            f"whose folders are the classes, or move the images up into the folder of their class"
        )


def _remarks(top: Path, classes: list[str], left_out: LeftOut) -> list[str]:
    remarks = [f"{top}: left out {describe(left_out)}"] if any(left_out.values()) else []
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        spellings[name.casefold()].append(name)
    for names in spellings.values():
        if len(names) > 1:
            remarks.append(f"{top}: the classes {' and '.join(names)} differ in upper and lower case only")
    return remarks
