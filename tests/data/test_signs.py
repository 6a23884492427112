"""GTSRB and BelgiumTS are read in their official layouts: classes, regions of interest, tracks, and odd CSV files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import encoded, fails, noise, prepare
from PIL import Image
from torchvision.datasets import GTSRB

from sparring.params.names import SPLITS

HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
BOX = (2, 3, 10, 11)  # of images of 12×12: what is left has the size at which images are stored
TRAINING, TEST = Path("GTSRB/Final_Training/Images"), Path("GTSRB/Final_Test/Images")
DATA: dict[str, Any] = {"source": "gtsrb", "path": "GTSRB"}
BELGIUM: dict[str, Any] = {"source": "belgium", "path": "signs"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def seed_of(number: int, name: str) -> int:
    """Return the seed of a picture: a different one for each class and name."""
    return number * 10**9 + int(name.partition(".")[0].replace("_", ""))


def write(folder: Path, number: int, names: list[str]) -> list[str]:
    """Write images of 12×12 pixels of a class, and return their lines for the CSV file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(encoded(noise(seed_of(number, name), (12, 12)), "PPM"))
    return [f"{name};12;12;{';'.join(map(str, BOX))};{number}" for name in names]


def table(file: Path, lines: list[str], header: str = HEADER, end: str = "\n", start: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((start + end.join([header, *lines, ""])).encode())


def class_folder(top: Path, number: int, tracks: dict[int, int], **options: str) -> Path:
    """Write a class with so many frames of each track."""
    folder = top / f"{number:05}"
    names = [f"{track:05}_{frame:05}.ppm" for track, frames in tracks.items() for frame in range(frames)]
    table(folder / f"GT-{number:05}.csv", write(folder, number, names), **options)
    return folder


def official(classes: tuple[int, ...] = (0, 1, 2), test: int = 4, training: Path = TRAINING, **options: str) -> None:
    """Write some tracks of each class, and so many test images of each in the folder of the official archives."""
    for number in classes:
        class_folder(training, number, {0: 12, 1: 5, 2: 1, 3: 9, 7: 6}, **options)
    lines: list[str] = []
    for number in classes:
        lines += write(TEST, number, [f"{900 + 10 * number + i:05}.ppm" for i in range(test)])
    table(TEST / "GT-final_test.csv", lines, **options)


def cut(seed: int) -> bytes:
    left, top, right, bottom = BOX
    return np.asarray(noise(seed, (12, 12)))[top:bottom, left:right].tobytes()


def test_classes_regions_and_the_official_test_set() -> None:
    official()
    parts = prepare(**DATA, train=60, heldout=12)
    assert parts["train"].metadata["classes"] == ["0", "1", "2"]
    assert parts["train"].metadata["source"] == "gtsrb"
    heldout = parts["heldout"]
    wanted = [(number, cut(seed_of(number, f"{900 + 10 * number + i}"))) for number in range(3) for i in range(4)]
    assert [(int(label), image.tobytes()) for label, image in zip(heldout.label, heldout.image, strict=True)] == wanted
    assert heldout.index.tolist() == list(range(99, 111))


@pytest.mark.parametrize("source", ["gtsrb", "belgium"])
def test_no_track_is_torn_apart(source: str) -> None:
    training = Path(source, "Training")
    shape = {0: 30, 1: 7, 2: 1, 3: 30, 4: 2, 9: 13, 10: 5, 11: 3}
    for number in range(3):
        class_folder(training, number, shape)
    track_of = {
        cut(seed_of(number, f"{track:05}_{frame:05}")): track if source == "belgium" else (number, track)
        for number in range(3)
        for track, frames in shape.items()
        for frame in range(frames)
    }
    for train in range(60, 160, 20):  # each another draw
        parts = prepare(source=source, path=source, train=train, validation=20, test=40, heldout=40)
        owners = {(track_of[image.tobytes()], name) for name in SPLITS for image in parts[name].image}
        assert len(owners) == len({track for track, _ in owners})
        assert all(len(parts[name]) for name in SPLITS)


def test_a_group_pattern_is_refused() -> None:
    official()
    fails(r"data.group_pattern is \(a\).; .*GTSRB has its groups already, .* set it to", **DATA, group_pattern="(a).")


@pytest.mark.parametrize("path", [".", "GTSRB", "GTSRB/Final_Training", "GTSRB/Final_Training/Images"])
def test_any_folder_above_the_images(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    official()
    Path("__MACOSX", TRAINING, "00000").mkdir(parents=True)
    parts = prepare(source="gtsrb", path=path)
    without = "no official test images; the split heldout is carved from the training images"
    assert (without in capsys.readouterr().err) == ("Final_Training" in path)
    assert (parts["heldout"].index.min() >= 99) == ("Final_Training" not in path)


@pytest.mark.parametrize("where", ["GTSRB/GT-final_test.csv", "GTSRB/GTSRB_Final_Test_GT/gt-FINAL_test.CSV"])
def test_labels_of_the_test_images_in_another_folder(where: str) -> None:
    official()
    Path(where).parent.mkdir(exist_ok=True)
    (TEST / "GT-final_test.csv").rename(where)
    table(TEST / "GT-final_test.test.csv", ["00900.ppm;12;12;2;2;10;10"], header=HEADER.removesuffix(";ClassId"))
    assert len(prepare(**DATA, heldout=12)["heldout"]) == 12


def test_labels_of_the_test_images_are_missing() -> None:
    official()
    (TEST / "GT-final_test.csv").rename(TEST / "GT-final_test.test.csv")
    fails(
        "Final_Test/Images has test images, but .*GTSRB has no GT-final_test.csv .*unpack GTSRB_Final_Test_GT", **DATA
    )


def test_as_torchvision_has_it() -> None:
    training, test = Path("gtsrb/GTSRB/Training"), Path("gtsrb/GTSRB/Final_Test/Images")
    official(training=training)
    test.parent.mkdir()
    TEST.rename(test)
    (test / "GT-final_test.csv").rename("gtsrb/GT-final_test.csv")
    parts = prepare(source="gtsrb", path=".", train=200, validation=0, test=0, heldout=12)
    for name, split in (("train", "train"), ("heldout", "test")):
        left, top, right, bottom = BOX
        theirs = [
            (label, np.asarray(image)[top:bottom, left:right].tobytes()) for image, label in GTSRB(".", split=split)
        ]
        ours = zip(parts[name].label.tolist(), (image.tobytes() for image in parts[name].image), strict=True)
        assert len(theirs) in (99, 12) and sorted(ours) == sorted(theirs)


def test_two_copies_of_the_training_images() -> None:
    official()
    official(training=Path("GTSRB/Training"))
    fails("more than one folder of training images .*leave one of them there", **DATA)


def test_a_wrong_path() -> None:
    Path("GTSRB").mkdir()
    fails("params.yaml: data.path is .*GTSRB, which has no folder of training images; it needs GTSRB/Final_Tr", **DATA)
    Path("file").write_text("")
    fails(
        "data.path is .*file, a file; source belgium needs Training, with a folder per class",
        **BELGIUM | {"path": "file"},
    )
    fails("data.path is nowhere; there is no .*nowhere", source="gtsrb", path="nowhere")


# CSV files


@pytest.mark.parametrize(
    "options",
    [{"end": "\r\n"}, {"start": "\ufeff"}, {"header": HEADER + "\r", "start": "\ufeff"}],
    ids=["Windows", "byte order mark", "both, mixed"],
)
def test_csv_files_of_other_systems(options: dict[str, str]) -> None:
    official()
    plain = prepare(**DATA, train=60)
    official(**options)
    other = prepare(**DATA, train=60)
    assert all(np.array_equal(plain[name].image, other[name].image) for name in SPLITS)


def test_suffixes_in_upper_case(capsys: pytest.CaptureFixture[str]) -> None:
    official()
    for file in [*TRAINING.rglob("*.ppm"), *TEST.rglob("*.ppm")]:
        file.rename(file.with_suffix(".PPM"))
    assert len(prepare(**DATA, heldout=12)["heldout"]) == 12
    assert "left out" not in capsys.readouterr().err


FIRST = "00000_00000.ppm;12;12;2;3;10;11;0"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            HEADER,
            HEADER.replace("Roi.X1", "X1"),
            "GT-00000.csv has no column Roi.X1; its first line should be Filename;",
        ),
        (
            FIRST,
            FIRST[:-1] + "1",
            "GT-00000.csv: line 2: ClassId is 1, but the folder is 00000; mend the line, or move 0",
        ),
        (FIRST, FIRST[:-1] + "x", "line 2: ClassId is x; it should be a whole number"),
        (FIRST, FIRST[:-2], "line 2: ClassId is empty; it should be a whole number"),
        (FIRST, FIRST.replace(";2;3;", ";-2;3;"), "line 2: Roi.X1 is -2; it should be 0 or more"),
        (
            FIRST,
            FIRST.replace(";2;3;", ";10;3;"),
            "line 2: the region of interest is empty, from 10, 3 to 10, 11; mend",
        ),
        (
            FIRST,
            FIRST.replace(";10;11;", ";13;11;"),
            r"00000_00000.ppm has 12 × 12 pixels, and its region of interest \(2, 3, 13, 11\) reaches beyond; mend",
        ),
        (FIRST, f"{FIRST}\n{FIRST.replace(';2;3;', ';1;3;')}", "line 3: 00000_00000.ppm has another line, with other"),
    ],
)
def test_broken_lines(old: str, new: str, problem: str) -> None:
    official()
    file = TRAINING / "00000" / "GT-00000.csv"
    file.write_text(file.read_text().replace(old, new))
    fails(problem, **DATA, train=99, validation=0, test=0)


def test_broken_and_missing_csv_files() -> None:
    official()
    file = TRAINING / "00001" / "GT-00001.csv"
    file.write_bytes(b"\xff\xfe\x00Filename")
    fails("GT-00001.csv is no CSV file, or a broken one .*; fetch it again", **DATA)
    file.write_text((TRAINING / "00000" / "GT-00000.csv").read_text().replace(".ppm", ".png"))
    fails("GT-00001.csv has no line for 00000_00000.ppm, nor for any other image there; fetch it again", **DATA)
    file.write_text("")
    fails("GT-00001.csv has no column Filename, Roi.X1, .*; its first line should be", **DATA)
    file.unlink()
    fails("00001 has no GT-00001.csv, which has the regions of its images; unpack the archive again", **DATA)


def test_what_is_left_out_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    official()
    folder = TRAINING / "00001"
    (folder / "00007_00005.ppm").unlink()
    write(folder, 1, ["00050_00000.ppm"])
    for name in ("Thumbs.db", ".DS_Store", "._00000_00000.ppm", "notes.doc"):
        (folder / name).write_bytes(b"no image")
    (TRAINING / "Readme-Images.txt").write_text("about the images")
    (TRAINING / "more").mkdir()
    parts = prepare(**DATA, train=200, validation=0, test=0, heldout=12)
    assert len(parts["train"]) == 98
    warnings = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(warnings) == 1
    assert warnings[0].endswith(
        "GTSRB: left out 1 lines of CSV files without their image (Final_Training/Images/00001/GT-00001.csv: "
        "00007_00005.ppm), 1 images without their line in a CSV file (Final_Training/Images/00001/00050_00000.ppm), "
        "1 files that are none of its images (Final_Training/Images/00001/notes.doc), "
        "1 folders whose name is no class number (Final_Training/Images/more)"
    )


# Classes


def test_numbers_of_classes_with_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    official(classes=(0, 2, 10))
    parts = prepare(**DATA, train=60, heldout=12)
    assert parts["train"].metadata["classes"] == ["0", "2", "10"]
    assert set(parts["heldout"].label) == {0, 1, 2}
    assert "8 class numbers below 10 have no training images (the first: 1); the other classes keep their" in (
        capsys.readouterr().err
    )


def test_a_test_image_of_an_untrained_class() -> None:
    official()
    for file in (TRAINING / "00001").iterdir():
        file.unlink()
    fails("00910.ppm is of class 1, which has no training images; unpack the training images again, or remove", **DATA)


def test_images_without_a_track_are_alone() -> None:
    for number in range(2):
        folder = Path("GTSRB/Training") / f"{number:05}"
        table(folder / f"GT-{number:05}.csv", write(folder, number, [f"{i:05}.ppm" for i in range(20)]))
    parts = prepare(**DATA, train=20)
    assert [len(parts[name]) for name in SPLITS] == [20, 4, 8, 8]


# BelgiumTS


def test_archives_with_folders_around_them(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        class_folder(Path("signs/BelgiumTSC_Training/Training"), number, {number * 100 + pole: 3 for pole in range(9)})
    testing = Path("signs/BelgiumTSC_Testing/Testing")
    class_folder(testing, 0, {500: 3})
    class_folder(testing, 1, {})
    class_folder(testing, 2, {501: 2})
    parts = prepare(**BELGIUM, train=50, heldout=20)
    assert parts["heldout"].label.tolist() == [0, 0, 0, 2, 2]
    assert "signs: no image of class 1 in split heldout" in capsys.readouterr().err


def test_testing_without_class_folders_and_nothing_for_training() -> None:
    class_folder(Path("signs/Testing"), 0, {500: 3})
    Path("signs/Training").mkdir()
    fails("signs, which has no folder Training with a folder per class; it needs Training", **BELGIUM)


def test_png_images_are_read_too() -> None:
    official()
    for file in TRAINING.rglob("*.ppm"):
        Image.open(file).save(file.with_suffix(".png"))
        file.unlink()
    for file in TRAINING.rglob("GT-*.csv"):
        file.write_text(file.read_text().replace(".ppm", ".png"))
    assert len(prepare(**DATA)["train"]) == 20
