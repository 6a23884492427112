"""This module reads traffic signs, GTSRB and BelgiumTS, whose CSV files hold each image's class and region of interest.

An image is cut to its region. A region's right and bottom edges lie outside of it: only then is the border around the
sign at least five pixels wide on all four sides, as the authors say it is.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sparring.data.official import Tree, is_image
from sparring.data.sources import Region, Source, files_of
from sparring.params.errors import InputError, reason
from sparring.params.sections import Data

LABELS = "GT-final_test.csv"
REGION = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")
IMAGELESS = "lines of CSV files without their image"


@dataclass(frozen=True)
class _Sign:
    image: Region
    number: int  # of its class

    @property
    def group(self) -> str:
        """Return the part of the file's name before its last `_`, or the whole name where it has none."""
        stem = self.image.file.stem
        return stem.rpartition("_")[0] or stem


def gtsrb(data: Data) -> Source:
    """Read the official training and test images of GTSRB, or those in the folders that torchvision makes.

    Groups are tracks: photographs of one sign by a car that drives towards it, numbered anew in each class.
    Raises InputError for folders or CSV files that are missing or broken, and a test image of an untrained class.
    """
    tree = Tree.of(data, "GTSRB/Final_Training/Images, or Training as torchvision has it, with a folder per class")
    folders = [*tree.ending("final_training", "images"), *tree.ending("training")]
    train = _in_class_folders(tree, tree.only(_with_classes(tree, folders), "folder of training images"))
    test: list[_Sign] = []
    images = tree.ending("final_test", "images")
    if images:
        test = _in_one_folder(tree, tree.only(images, "folder of test images"))
    return _source(tree, train, test, lambda sign: f"{sign.number}/{sign.group}")


def belgium(data: Data) -> Source:
    """Read the official training and test images of the classification set of BelgiumTS.

    Groups are poles: all photographs of the signs of one pole, which may be of several classes.
    Raises InputError for folders or CSV files that are missing or broken, and a test image of an untrained class.
    """
    tree = Tree.of(data, "Training, with a folder per class, and beside it Testing")
    training = tree.only(_with_classes(tree, tree.ending("training")), "folder Training with a folder per class")
    train, test = _in_class_folders(tree, training), []
    testing = _with_classes(tree, tree.ending("testing"))
    if testing:
        test = _in_class_folders(tree, tree.only(testing, "folder Testing"))
    return _source(tree, train, test, lambda sign: sign.group)


def _source(tree: Tree, train: list[_Sign], test: list[_Sign], group: Callable[[_Sign], str]) -> Source:
    numbers = sorted({sign.number for sign in train})
    position = {number: index for index, number in enumerate(numbers)}
    for sign in test:
        if sign.number not in position:
            raise InputError(
                f"{sign.image.file} is of class {sign.number}, which has no training images; unpack the training "
                f"images again, or remove the test images of that class"
            )
    remarks = tree.remarks()
    gaps = [index for index, number in enumerate(numbers) if index != number]
    if gaps:
        remarks.append(
            f"{tree.top}: {numbers[-1] + 1 - len(numbers):,} class numbers below {numbers[-1]} have no training images "
            f"(the first: {gaps[0]}); the other classes keep their numbers as names"
        )
    if not test:
        remarks.append(f"{tree.top}: no official test images; the split heldout is carved from the training images")
    signs = train + test
    label = np.array([position[sign.number] for sign in signs], np.int64)
    is_heldout = np.arange(len(signs)) >= len(train)
    groups = [group(sign) for sign in train] + [""] * len(test)
    read = partial(files_of, [sign.image for sign in signs])
    return Source(str(tree.top), label, is_heldout, [str(number) for number in numbers], None, read, remarks, groups)


def _with_classes(tree: Tree, folders: list[Path]) -> list[Path]:
    return [folder for folder in folders if any(inner.name.isdecimal() for inner in tree.within(folder))]


def _in_class_folders(tree: Tree, folder: Path) -> list[_Sign]:
    """Return the images in folders that are named by the number of their class, each with a CSV file in it."""
    signs = []
    for inner in tree.within(folder):
        if not inner.name.isdecimal():
            tree.leave_out("folders whose name is no class number", inner)
            continue
        number = int(inner.name)
        names = tree.files[inner]
        tables = [name for name in names if name.lower() == f"gt-{inner.name}.csv"]
        if not tables:
            if not any(is_image(name) for name in names):
                continue
            raise InputError(
                f"{inner} has no GT-{inner.name}.csv, which has the regions of its images; unpack the archive again"
            )
        for line, sign in _listed(tree, inner / tables[0], inner):
            if sign.number != number:
                raise InputError(
                    f"{inner / tables[0]}: line {line}: ClassId is {sign.number}, but the folder is {inner.name}; mend "
                    f"the line, or move {sign.image.file.name} to the folder of its class"
                )
            signs.append(sign)
    return sorted(signs, key=lambda sign: (sign.number, sign.image.file.name))


def _in_one_folder(tree: Tree, folder: Path) -> list[_Sign]:
    """Return the images of GTSRB's test set, whose classes come in an archive of their own."""
    tables = [inner / name for inner, names in tree.files.items() for name in names if name.lower() == LABELS.lower()]
    if not tables:
        raise InputError(
            f"{folder} has test images, but {tree.top} has no {LABELS} with their classes (GT-final_test.test.csv has "
            f"none); unpack GTSRB_Final_Test_GT.zip there"
        )
    signs = [sign for _, sign in _listed(tree, tree.only(tables, f"file {LABELS}"), folder)]
    return sorted(signs, key=lambda sign: sign.image.file.name)


def _listed(tree: Tree, table: Path, folder: Path) -> Iterator[tuple[int, _Sign]]:
    """Yield the images in a folder that a CSV file lists, each with its line. Note the others for a warning."""
    # Names are compared in lower case: some programs write .PPM where the CSV file has .ppm.
    file_names = {name.lower(): name for name in tree.files[folder]}
    listed: dict[str, tuple[tuple[int, int, int, int], int]] = {}
    for line, name, box, number in _lines(table):
        key = name.lower()
        if key not in file_names:
            tree.left_out[IMAGELESS].append(f"{table.relative_to(tree.top)}: {name}")
        elif key not in listed:
            listed[key] = box, number
            yield line, _Sign(Region(folder / file_names[key], box), number)
        elif listed[key] != (box, number):
            raise InputError(f"{table}: line {line}: {name} has another line, with other values; remove one")
    unlisted = [name for key, name in file_names.items() if key not in listed]
    images = [folder / name for name in unlisted if is_image(name)]
    if images and not listed:
        raise InputError(f"{table} has no line for {images[0].name}, nor for any other image there; fetch it again")
    tree.leave_out("images without their line in a CSV file", *images)
    other_names = [name for name in unlisted if not is_image(name) and not name.lower().startswith("gt-")]
    tree.leave_out_others(folder, other_names)


def _lines(table: Path) -> Iterator[tuple[int, str, tuple[int, int, int, int], int]]:
    """Yield line, file name, region and class number of each image in a CSV file."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter=";", skipinitialspace=True)
            absent = [name for name in ("Filename", *REGION, "ClassId") if name not in (rows.fieldnames or [])]
            if absent:
                raise InputError(
                    f"{table} has no column {', '.join(absent)}; its first line should be Filename;Width;Height;"
                    f"{';'.join(REGION)};ClassId"
                )
            for row in rows:
                yield rows.line_num, *_values(row, f"{table}: line {rows.line_num}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{table} is no CSV file, or a broken one ({reason(error)}); fetch it again") from error


def _values(row: dict[str, str | None], where: str) -> tuple[str, tuple[int, int, int, int], int]:
    """Return file name, region and class number of a row of a CSV file."""
    numbers = {}
    for name in (*REGION, "ClassId"):
        try:
            numbers[name] = int(row[name] or "")
        except ValueError as error:
            raise InputError(f"{where}: {name} is {row[name] or 'empty'}; it should be a whole number") from error
        if numbers[name] < 0:
            raise InputError(f"{where}: {name} is {numbers[name]}; it should be 0 or more")
    left, top, right, bottom = (numbers[name] for name in REGION)
    if left >= right or top >= bottom:
        raise InputError(
            f"{where}: the region of interest is empty, from {left}, {top} to {right}, {bottom}; mend the line"
        )
    return str(row["Filename"]), (left, top, right, bottom), numbers["ClassId"]
