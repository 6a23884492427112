"""This module reads two data sets of faces, ORL and Yale, in which each person is a class."""

import re
from collections import defaultdict
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from sparring.data.official import Tree, is_image
from sparring.data.sources import Source, files_of
from sparring.params.errors import InputError
from sparring.params.sections import Data

ORL_PERSON = re.compile(r"s(\d+)", re.IGNORECASE)
YALE_IMAGE = re.compile(r"subject *(\d+)[._ ]", re.IGNORECASE)


def orl(data: Data) -> Source:
    """Read the ORL (AT&T) database of faces, which has no official test set.

    Raises InputError where there is no folder s1 with images, or the same person twice.
    """
    tree = Tree.of(data, "a folder a person, s1, s2 and so on, in it 1.pgm, 2.pgm and so on")
    persons = [folder for folder, names in tree.files.items() if _is_person(folder, names)]
    top = tree.only(sorted({folder.parent for folder in persons}), "folder with the folders s1, s2 and so on")
    folder_of: dict[int, Path] = {}
    for folder in persons:
        person = _person_number(ORL_PERSON, folder.name)
        first_folder = folder_of.setdefault(person, folder)
        if first_folder != folder:
            raise InputError(f"{first_folder} and {folder} are both of person {person}; leave one of them there")
    for other in [folder for folder in tree.within(top) if folder not in persons]:
        tree.leave_out("folders that are not called s1, s2 and so on, or have no image", other)
    images: list[tuple[str, Path]] = []
    for _, folder in sorted(folder_of.items()):
        names = [name for name in tree.files[folder] if is_image(name)]
        images += [(folder.name, folder / name) for name in sorted(names, key=_by_numbers)]
        tree.leave_out_others(folder, [name for name in tree.files[folder] if name not in names])
    return _source(tree, images, [])


def yale(data: Data) -> Source:
    """Read the Yale face database without its copies of images. It has no official test set.

    The original files have no suffix that tells their format; the name of a person is `subject` and a number.
    Raises InputError where there are no such files, or in two folders.
    """
    tree = Tree.of(data, "files like subject01.normal, with or without .gif, .pgm or .png after that")
    folders = [folder for folder, names in tree.files.items() if any(map(YALE_IMAGE.match, names))]
    folder = tree.only(folders, "folder with files like subject01.normal")
    names = [name for name in tree.files[folder] if YALE_IMAGE.match(name)]
    tree.leave_out_others(folder, [name for name in tree.files[folder] if name not in names])
    names.sort(key=lambda name: (_person_number(YALE_IMAGE, name), name.lower()))
    labelled = [(f"subject{_person_number(YALE_IMAGE, name):02}", folder / name) for name in names]
    images, copies = _without_copies(labelled)
    if not copies:
        return _source(tree, images, [])
    equal = ", ".join(f"{copy.name} = {first.name}" for copy, first in copies)
    remark = f"{folder}: left out {len(copies):,} images that equal another one of the same person pixel for pixel"
    return _source(tree, images, [f"{remark} ({equal})"])


def _source(tree: Tree, images: list[tuple[str, Path]], remarks: list[str]) -> Source:
    """Make a source of images, given as class and file, sorted by class."""
    classes = list(dict.fromkeys(name for name, _ in images))
    class_number = {name: number for number, name in enumerate(classes)}
    label = np.array([class_number[name] for name, _ in images], np.int64)
    files = [file for _, file in images]
    paths = [file.relative_to(tree.top).as_posix() for file in files]
    heldout = np.zeros(len(files), bool)
    return Source(str(tree.top), label, heldout, classes, paths, partial(files_of, files), tree.remarks() + remarks)


def _is_person(folder: Path, names: list[str]) -> bool:
    return bool(ORL_PERSON.fullmatch(folder.name)) and any(map(is_image, names))


def _person_number(pattern: re.Pattern[str], name: str) -> int:
    match = pattern.match(name)
    return int(match[1]) if match else 0


def _by_numbers(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts numbers within names as numbers."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def _without_copies(images: list[tuple[str, Path]]) -> tuple[list[tuple[str, Path]], list[tuple[Path, Path]]]:
    """Return the images without copies, and the copies, each with the file that it copies.

    A copy equals an earlier image of its class, pixel for pixel at full size. Equal images of two classes stay, as it
    cannot be known which label is wrong.
    """
    originals, copies = [], []
    first_files: dict[str, dict[object, Path]] = defaultdict(dict)
    for name, file in images:
        pixels = _pixels(file)
        if first_files[name].setdefault(pixels, file) == file:
            originals.append((name, file))
        else:
            copies.append((file, first_files[name][pixels]))
    return originals, copies


def _pixels(file: Path) -> object:
    """Return a key that is the same for images that are equal pixel for pixel; a broken file has one of its own."""
    try:
        with Image.open(file) as image:
            return image.size, blake2b(image.convert("RGB").tobytes(), digest_size=16).digest()
    except Exception:  # whatever it is: it is reported when the image is read for its split
        return file
