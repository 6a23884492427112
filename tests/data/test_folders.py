"""Folders are classes: these tests check which are read, in what order, what is left out, and what is ambiguous."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import encoded, fails, folder, noise, prepare


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


DATA: dict[str, Any] = {"source": "folder", "path": "pictures"}


def classes(**data: Any) -> list[str]:
    names: list[str] = prepare(**{**DATA, **data})["train"].metadata["classes"]
    return names


def loose(top: str | Path, count: int, first: int = 900) -> Path:
    """Write images directly into a folder."""
    Path(top).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (Path(top) / f"{i:03}.png").write_bytes(encoded(noise(first + i)))
    return Path(top)


# Order and names


def test_numbers_in_their_own_order(capsys: pytest.CaptureFixture[str]) -> None:
    folder("pictures", {str(number): 4 for number in range(12)})
    parts = prepare(**DATA)
    assert parts["train"].metadata["classes"] == [str(number) for number in range(12)]
    for number in range(12):
        pictures = {noise(4 * number + i).tobytes() for i in range(4)}
        class_images = {image.tobytes() for part in parts.values() for image in part.image[part.label == number]}
        assert class_images and class_images <= pictures
    assert "a classifier's outputs are 0 to 11" in capsys.readouterr().out


def test_numbers_before_words_and_leading_zeros() -> None:
    folder("pictures", {"b": 10, "10": 10, "9": 10, "007": 10, "A": 10})
    assert classes() == ["007", "9", "10", "A", "b"]


def test_many_classes_are_told_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    folder("pictures", {f"c{number:02}": 2 for number in range(20)})
    prepare(**DATA)
    assert "are 0 c00, 1 c01, 2 c02, 3 c03, 4 c04, 5 c05, 6 c06, 7 c07, 8 c08, 9 c09, …, 19 c19\n" in (
        capsys.readouterr().out
    )


def test_classes_that_differ_in_case_only(capsys: pytest.CaptureFixture[str]) -> None:
    folder("pictures", {"Cat": 20, "cat": 20, "dog": 20})
    assert classes() == ["Cat", "cat", "dog"]
    assert "the classes Cat and cat differ in upper and lower case only" in capsys.readouterr().err


# Splits


def test_split_folders_within_folders_of_their_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    folder("pictures/seg_train/seg_train", {"sea": 20, "street": 20})
    folder("pictures/seg_test/seg_test", {"sea": 5, "street": 5}, first=100)
    loose("pictures/seg_pred/seg_pred", 7)
    parts = prepare(**DATA)
    assert parts["train"].metadata["classes"] == ["sea", "street"]
    assert parts["heldout"].index.min() >= 40
    assert "7 images in no class folder (seg_pred/seg_pred/000.png, " in capsys.readouterr().err


def test_splits_further_down() -> None:
    folder("pictures/archive/Final_Training/Images", {"00000": 20, "00001": 20})
    folder("pictures/archive/Final_Test/Images", {"00000": 5, "00001": 5}, first=100)
    parts = prepare(**DATA)
    assert parts["train"].metadata["classes"] == ["00000", "00001"]
    assert parts["heldout"].index.min() >= 40


def test_a_folder_around_the_classes() -> None:
    folder("pictures/flowers", {"rose": 20, "tulip": 20})
    assert classes() == ["rose", "tulip"]


def test_images_in_one_folder_of_each_class() -> None:
    for number, name in enumerate(("n01", "n02")):
        loose(f"pictures/train/{name}/images", 20, first=100 * number)
        (Path("pictures/train") / name / "boxes.txt").write_text("0 0 1 1")
    assert classes() == ["n01", "n02"]


@pytest.mark.parametrize("where", ["val/images", "val"])
def test_validation_images_without_classes(where: str) -> None:
    for number, name in enumerate(("n01", "n02")):
        loose(f"pictures/train/{name}/images", 20, first=100 * number)
    loose(f"pictures/{where}", 9)
    fails(f"pictures/{where} has 9 images, but no folder per class, as .*pictures/train has; sort them", **DATA)


def test_two_folders_that_may_be_one_split() -> None:
    folder("pictures/train_a", {"cat": 20, "dog": 20})
    folder("pictures/train_b", {"cat": 20, "dog": 20})
    fails("train_a/ and train_b/, which may all be the split train", **DATA)


def test_the_very_word_is_the_split() -> None:
    folder("pictures/train", {"cat": 20, "dog": 20})
    folder("pictures/train_masks", {"cat": 20, "dog": 20})
    fails("train_masks lies beside train/ and is no split", **DATA)


def test_a_class_that_holds_only_folders() -> None:
    folder("pictures/cat", {"persian": 10, "siamese": 10})
    folder("pictures/dog", {"poodle": 10, "corgi": 10}, first=50)
    fails(r"pictures/cat has no images, only folders \(persian, siamese\), so it may be no class", **DATA)
    folder("pictures/cow/cow", {"brown": 10, "black": 10}, first=90)
    fails(r"pictures/cat has no images", **DATA)
    pattern = "^([a-z]+/[a-z]+)/"  # A group pattern says what the folders within a class are.
    assert classes(group_pattern=pattern, train=40) == ["cat", "cow", "dog"]


# What is left out


def test_links_to_a_parent(capsys: pytest.CaptureFixture[str]) -> None:
    top = folder("pictures", {"cat": 20, "dog": 20})
    (top / "cat" / "loop").symlink_to(top.resolve())
    (top / "dog" / "a_link").symlink_to((top / "cat").resolve())
    parts = prepare(**DATA, train=40)
    assert sum(len(part) for part in parts.values()) == 40
    assert "2 links to folders that are read without them (cat/loop, dog/a_link)" in capsys.readouterr().err


def test_links_to_other_places_are_followed() -> None:
    folder("elsewhere", {"cat": 20, "dog": 20})
    Path("pictures").mkdir()
    for name in ("cat", "dog"):
        (Path("pictures") / name).symlink_to(Path("elsewhere", name).resolve())
    assert classes() == ["cat", "dog"]


def test_what_is_left_out_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    top = folder("pictures", {"cat": 20, "dog": 20, "__MACOSX": 3, ".cache": 3})
    (top / "cat" / "019.png").rename(top / "cat" / "019")
    (top / "dog" / "notes.txt").write_text("no image")
    (top / "dog" / "020.png").symlink_to("nowhere.png")
    loose(top, 2)
    parts = prepare(**DATA, train=40)
    assert sum(len(part) for part in parts.values()) == 39
    error = capsys.readouterr().err
    assert "2 files without the suffix of an image (cat/019, dog/notes.txt)" in error
    assert "1 folders that start with __ (__MACOSX)" in error
    assert "1 links to nothing (dog/020.png)" in error
    assert "2 images in no class folder (000.png, 001.png)" in error
    assert error.count("left out") == 1


def test_no_image_has_a_suffix() -> None:
    top = folder("pictures", {"cat": 20, "dog": 20})
    for file in sorted(top.rglob("*.png")):
        file.rename(file.with_suffix(""))
    fails(r"no images \(40 files without the suffix of an image \(cat/000, cat/001, cat/002 and 37 more\)\)", **DATA)


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder("pictures", {"cat": 20, "dog": 20})
    Path("project").mkdir()
    monkeypatch.chdir("project")
    assert classes(path="~/pictures") == ["cat", "dog"]


def test_home_folder_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fails(f"data.path is ~/nothing; there is no {tmp_path}/nothing", source="folder", path="~/nothing")
    fails("data.path is ~nobody_at_all/x; there is no such home", source="parquet", path="~nobody_at_all/x")


def test_rows_count_official_training_images_first() -> None:
    folder("pictures/test", {"2": 5, "10": 5}, first=100)
    folder("pictures/train", {"2": 20, "10": 20})
    parts = prepare(**DATA, heldout=10)
    assert parts["heldout"].index.tolist() == list(range(40, 50))
    assert parts["heldout"].label.tolist() == [0] * 5 + [1] * 5
    assert np.array_equal(parts["heldout"].image[0], np.asarray(noise(100)))
