"""Equal images go into one split and are counted, and so are official test images that equal training images."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encoded, folder, noise, prepare
from PIL import Image

from sparring import store
from sparring.data import splits
from sparring.params.names import SPLITS

REAL = os.environ.get("SPARRING_TEST_DATA")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shared(parts: dict[str, store.Images], *names: str) -> int:
    """Count the images that lie in more than one of the splits."""
    pictures = [{image.tobytes() for image in parts[name].image} for name in names or SPLITS]
    return sum(len(one & other) for i, one in enumerate(pictures) for other in pictures[:i])


def copies(top: str | Path, pictures: int, times: int, kinds: tuple[str, ...] = ("PNG",)) -> Path:
    """Write two classes of so many pictures, and each picture several times under other names."""
    for number, name in enumerate(("cat", "dog")):
        (Path(top) / name).mkdir(parents=True)
        for i in range(pictures):
            for copy in range(times):
                kind = kinds[copy % len(kinds)]
                content = encoded(noise(number * pictures + i), kind)
                (Path(top) / name / f"{copy}_{i:03}.{kind.lower()}").write_bytes(content)
    return Path(top)


DATA: dict[str, Any] = {"source": "folder", "path": "pictures"}


@pytest.mark.parametrize("kinds", [("PNG",), ("PNG", "BMP", "TIFF")])
def test_each_picture_there_three_times(kinds: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    copies("pictures", 50, 3, kinds)
    parts = prepare(**DATA, train=150, validation=30, test=60, heldout=60)
    assert shared(parts) == 0
    error = capsys.readouterr().err
    count = sum(len(part) for part in parts.values())
    assert f"of {count} images equal another one pixel for pixel" in error and "went into one split" in error
    assert len(parts["test"]) == len(parts["heldout"]) == 60 and len(parts["validation"]) == 30
    assert len(parts["train"]) >= 140  # the others are copies of test images, of which these had enough
    assert all((np.diff(part.index) > 0).all() for part in parts.values())
    again = prepare(**DATA, train=150, validation=30, test=60, heldout=60)
    assert all(np.array_equal(parts[name].image, again[name].image) for name in parts)


def test_a_small_part_of_many_copies() -> None:
    copies("pictures", 150, 3)
    parts = prepare(**DATA, train=100, validation=20, test=40, heldout=40)
    assert shared(parts) == 0
    assert [len(parts[name]) for name in SPLITS] == [100, 20, 40, 40]
    assert all(np.bincount(part.label).tolist() == [len(part) // 2] * 2 for part in parts.values())


def test_each_image_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copies("pictures", 150, 3)
    opened: list[str] = []
    real_open = Image.open

    def counted(file: Any) -> Image.Image:
        opened.append(str(file))
        return real_open(file)

    monkeypatch.setattr(Image, "open", counted)
    prepare(**DATA, train=600, validation=50, test=100, heldout=100)
    assert len(opened) == len(set(opened)) <= 900


def test_without_equal_images_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    folder("pictures", {"cat": 20, "dog": 20})
    prepare(**DATA)
    assert capsys.readouterr().err == ""


def test_equal_images_of_two_classes(capsys: pytest.CaptureFixture[str]) -> None:
    top = folder("pictures", {"cat": 20, "dog": 20})
    (top / "dog" / "000.png").write_bytes((top / "cat" / "000.png").read_bytes())
    parts = prepare(**DATA)
    assert shared(parts) == 0
    assert "1 pictures are there under more than one class (the first: classes cat, dog)" in capsys.readouterr().err


def test_official_test_images_that_equal_training_images(capsys: pytest.CaptureFixture[str]) -> None:
    folder("pictures/train", {"cat": 20, "dog": 20})
    folder("pictures/test", {"cat": 5, "dog": 5}, first=100)
    folder("other/test", {"cat": 3, "dog": 0}, first=0)
    for file in Path("other/test/cat").iterdir():
        (Path("pictures/test/cat") / file.name).write_bytes(file.read_bytes())
    parts = prepare(**DATA, train=28, heldout=10)
    assert len(parts["heldout"]) == 10 and shared(parts, "train", "validation", "test") == 0
    assert "3 of 10 official test images equal a training image pixel for pixel" in capsys.readouterr().err


def test_groups_that_share_an_image_are_one_group() -> None:
    top = folder("pictures", {"cat": 40, "dog": 40})
    for file in sorted(top.rglob("*.png")):
        file.rename(file.with_name(f"{int(file.stem) // 2}_{file.stem}.png"))
    first, second = top / "cat" / "0_000.png", top / "cat" / "7_014.png"
    second.write_bytes(first.read_bytes())
    owners = []
    for seed in range(6):
        parts = prepare(**DATA, group_pattern="([a-z]+/[0-9]+)_", train=40 + seed, validation=10, test=10, heldout=10)
        assert shared(parts) == 0
        files = {name: {row // 2 for row in part.index.tolist()} for name, part in parts.items()}
        owners += [name for name in files if files[name] & {0, 7}]
        assert len([name for name in files if files[name] & {0, 7}]) <= 1
    assert owners


labels = st.lists(st.integers(0, 4), min_size=1, max_size=200).map(np.array)
wishes = st.fixed_dictionaries({name: st.integers(int(name == "train"), 90) for name in SPLITS})


@settings(deadline=None, max_examples=60, derandomize=True)
@given(labels, wishes, st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_carving_equal_images(label: np.ndarray, wish: dict[str, int], times: int, seed: int, grouped: bool) -> None:
    equal = np.random.default_rng(seed).integers(0, -(-len(label) // times), len(label))
    groups = [str(row // 3) for row in range(len(label))] if grouped else None
    parts = splits.carve(label, wish, seed, groups, equal)
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows)
    assert not splits.share_images(parts, equal)
    assert all(len(part) <= wish[name] and (np.diff(part) > 0).all() for name, part in parts.items())
    if wish["train"] >= len(set(label)):
        assert set(label[parts["train"]]) == set(label)
    if groups is not None:
        owners = {(groups[row], name) for name, part in parts.items() for row in part}
        assert len(owners) == len({group for group, _ in owners})
    again = splits.carve(label, wish, seed, groups, equal)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_one_more_pair_moves_few_images() -> None:
    label, wish = np.arange(3000) % 10, {"train": 500, "validation": 50, "test": 200, "heldout": 100}
    equal = np.arange(3000)
    equal[1510] = 10
    before = splits.carve(label, wish, 0, None, equal)
    equal[2020] = 20
    after = splits.carve(label, wish, 0, None, equal)
    assert sum(len(np.setxor1d(before[name], after[name])) for name in wish) <= 12


@pytest.mark.skipif(not REAL, reason="SPARRING_TEST_DATA names no folder of real data sets")
@pytest.mark.slow
def test_gtsrb_has_eight_test_images_that_equal_training_images(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(Path(str(REAL)) / "gtsrb.parquet")
    sizes = {"train": 35000, "validation": 2000, "test": 2209, "heldout": 12630}
    parts = prepare(source="parquet", path=path, image_size=32, **sizes)
    assert "8 of 12,630 official test images equal a training image" in capsys.readouterr().err
    assert [len(parts[name]) for name in SPLITS] == list(sizes.values())
    row = pq.read_table(path, columns=["image"])["image"][int(parts["heldout"].index[0])]
    with Image.open(io.BytesIO(row["bytes"].as_py())) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), parts["heldout"].image[0])
