"""Every source of images, the splits, and each kind of bad input in one line."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from sparring import params, store
from sparring.data import prepare as datasets
from sparring.data import splits
from sparring.params.errors import InputError
from sparring.params.names import SPLITS

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = os.environ.get("SPARRING_TEST_DATA")
real_data = pytest.mark.skipif(not REAL, reason="SPARRING_TEST_DATA names no folder of real data sets")
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def values(**data: Any) -> dict[str, Any]:
    whole: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "profiles" / "digits.yaml")
    small = {"image_size": 8, "train": 20, "validation": 4, "test": 8, "heldout": 8}
    whole["data"] = {**whole["data"], **small, **data}
    return whole


def prepare(**data: Any) -> dict[str, store.Images]:
    datasets.prepare(params.validate(values(**data)))
    return {name: store.read(Path(f"data/clean/{name}.parquet")) for name in SPLITS}


def fails(match: str, **data: Any) -> None:
    """The input is refused in one line that has `match` in it, and no file is written."""
    with pytest.raises(InputError, match=match) as caught:
        datasets.prepare(params.validate(values(**data)))
    assert "\n" not in str(caught.value)
    assert not Path("data/clean").exists()


def png(level: int = 0, mode: str = "RGB", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, level).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def hf(path: str | Path, count: int = 40, classes: int = 2, first: int = 0, **columns: Any) -> Path:
    """A file in the Hugging Face layout: image i is plain grey of level first + i, its class i % classes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {
        "image": pa.array([{"bytes": png(first + i), "path": f"{i // 4}_{i}.png"} for i in range(count)], HF),
        "label": [i % classes for i in range(count)],
        **columns,
    }
    pq.write_table(pa.table({name: column for name, column in table.items() if column is not None}), path)
    return path


def folder(top: str | Path, classes: dict[str, int], first: int = 0) -> Path:
    for name, count in classes.items():
        (Path(top) / name).mkdir(parents=True)
        for i in range(count):
            (Path(top) / name / f"{i:03}.png").write_bytes(png(first + i))
    return Path(top)


def sizes(splits: dict[str, store.Images]) -> list[int]:
    return [len(splits[name]) for name in SPLITS]


def levels(images: store.Images) -> list[int]:
    return [int(level) for level in images.image[:, 0, 0, 0]]


# The splits


pools = st.lists(st.integers(0, 6), min_size=1, max_size=300).map(np.array)
wishes = st.fixed_dictionaries({name: st.integers(int(name == "train"), 120) for name in SPLITS})


@settings(deadline=None, max_examples=60, derandomize=True)
@given(pools, wishes, st.integers(0, 3))
def test_carving(label: np.ndarray, wish: dict[str, int], seed: int) -> None:
    parts = splits.carve(label, wish, seed)
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows) == min(sum(wish.values()), len(label))
    assert all((np.diff(part) > 0).all() for part in parts.values())
    scale = min(1.0, len(label) / sum(wish.values()))
    count = np.bincount(label)
    for name, part in parts.items():
        assert len(part) <= wish[name]
        assert abs(len(part) - wish[name] * scale) < 1
        share = np.bincount(label[part], minlength=len(count)) - count * len(part) / len(label)
        moved = len(count)  # at most this many places went to classes that had none in train
        assert np.abs(share).max() <= 2 + moved
    if len(parts["train"]) >= np.count_nonzero(count):
        assert set(label[parts["train"]]) == set(label)
    again = splits.carve(label, wish, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_classes_keep_their_shares() -> None:
    label = np.repeat(np.arange(5), [400, 300, 200, 90, 10])
    parts = splits.carve(label, {"train": 500, "validation": 50, "test": 200, "heldout": 100}, 0)
    for part in parts.values():
        share = np.bincount(label[part], minlength=5)
        assert np.abs(share - np.bincount(label) * len(part) / 1000).max() < 2


@settings(deadline=None, max_examples=60, derandomize=True)
@given(pools, wishes, st.integers(1, 8), st.integers(0, 3), st.booleans())
def test_groups_stay_together(label: np.ndarray, wish: dict[str, int], largest: int, seed: int, mixed: bool) -> None:
    label = label if mixed else np.sort(label)
    groups = [f"{0 if mixed else label[row]}/{row // largest}" for row in range(len(label))]
    parts = splits.carve(label, wish, seed, groups)
    owners: dict[str, set[str]] = {}
    for name, part in parts.items():
        assert len(part) <= wish[name]
        for row in part:
            owners.setdefault(groups[row], set()).add(name)
    assert all(len(owner) == 1 for owner in owners.values())
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows)
    if wish["train"] >= len(set(label)):
        assert set(label[parts["train"]]) == set(label)
    again = splits.carve(label, wish, seed, groups)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_another_seed_splits_otherwise() -> None:
    label = np.arange(200) % 4
    wish = {"train": 50, "test": 50}
    first, second = (splits.carve(label, wish, seed)["test"] for seed in (0, 1))
    assert not np.array_equal(first, second)


# The sources


def test_digits() -> None:
    splits = prepare(source="digits", image_size=32, train=1000, validation=50, test=370, heldout=370)
    assert sizes(splits) == [1000, 50, 370, 370]
    train = splits["train"]
    assert train.image.shape == (1000, 32, 32, 3)
    assert train.image.max() == 255 and train.image.min() == 0
    assert train.metadata == {
        "shape": [32, 32, 3],
        "classes": [str(digit) for digit in range(10)],
        "source": "digits",
        "split": "train",
    }
    index = np.concatenate([part.index for part in splits.values()])
    assert len(np.unique(index)) == 1790 and index.max() < 1797
    assert all((np.diff(part.index) > 0).all() for part in splits.values())


def test_same_inputs_same_bytes() -> None:
    prepare(source="digits")
    first = {path.name: path.read_bytes() for path in Path("data/clean").iterdir()}
    prepare(source="digits")
    assert {path.name: path.read_bytes() for path in Path("data/clean").iterdir()} == first
    assert sorted(first) == sorted(f"{name}.parquet" for name in SPLITS)
    assert json.loads(Path("data/timings/prepare.json").read_text())["images"] == 40


def test_empty_split_is_a_file_without_rows() -> None:
    splits = prepare(source="digits", validation=0)
    assert splits["validation"].image.shape == (0, 8, 8, 3)


class FakeCIFAR10:
    """As large as a test needs: the class that torchvision has, without its download."""

    url = "https://example.org/cifar.tar.gz"

    def __init__(self, root: str, train: bool, download: bool) -> None:
        assert download
        count, first = (30, 0) if train else (10, 30)
        self.classes = ["airplane", "automobile"]
        self.targets = [i % 2 for i in range(count)]
        levels = np.arange(first, first + count, dtype=np.uint8)
        self.data = np.broadcast_to(levels[:, None, None, None], (count, 32, 32, 3)).copy()


def test_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCIFAR10)
    splits = prepare(source="cifar10", image_size=32, train=18)
    assert sizes(splits) == [18, 4, 8, 8]
    assert all(levels(part) == part.index.tolist() for part in splits.values())
    assert splits["heldout"].index.min() >= 30 > splits["train"].index.max()
    assert splits["test"].metadata["classes"] == ["airplane", "automobile"]


@pytest.mark.parametrize("error", [RuntimeError("File not found or corrupted."), OSError("no network\nat all")])
def test_cifar10_without_download(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Offline(FakeCIFAR10):
        def __init__(self, **_: Any) -> None:
            raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Offline)
    fails("example.org.*data/downloads.*data.source parquet", source="cifar10")


def test_parquet_with_official_test() -> None:
    hf("set/data/train-00000-of-00002.parquet", 20)
    hf("set/data/train-00001-of-00002.parquet", 20, first=20)
    hf("set/data/test-00000-of-00001.parquet", 10, first=40)
    splits = prepare(source="parquet", path="set")
    assert sizes(splits) == [20, 4, 8, 8]
    assert all(levels(part) == part.index.tolist() for part in splits.values())
    assert splits["heldout"].index.min() >= 40 > splits["test"].index.max()


def test_parquet_with_split_column() -> None:
    split = ["test", "train", "train", "validation"] * 15
    splits = prepare(source="parquet", path=str(hf("all.parquet", 60, split=split)), heldout=15)
    assert sizes(splits) == [20, 4, 8, 15]
    assert all(level % 4 == 0 for level in levels(splits["heldout"]))
    assert levels(splits["heldout"]) == [4 * i for i in range(15)]
    assert splits["heldout"].index.tolist() == list(range(45, 60))  # rows of the test set come after all others


def test_parquet_validation_is_held_out_without_test() -> None:
    hf("set/train/0.parquet", 40)
    hf("set/valid/0.parquet", 10, first=40)
    splits = prepare(source="parquet", path="set")
    assert sizes(splits) == [20, 4, 8, 8]
    assert splits["heldout"].index.min() >= 40


def test_parquet_split_column_that_tells_nothing() -> None:
    assert sizes(prepare(source="parquet", path=str(hf("x.parquet", split=["all"] * 40)))) == [20, 4, 8, 8]
    hf("set/train.parquet", 40, split=["easy"] * 40)
    hf("set/test.parquet", 20, split=["hard"] * 20, first=40)
    assert prepare(source="parquet", path="set")["heldout"].index.min() >= 40


def test_parquet_columns_under_other_names() -> None:
    images = [png(i) for i in range(40)]
    extra = {"image": None, "label": None, "picture": pa.array(images, pa.large_binary())}
    hf("x.parquet", 40, **extra, kind=pa.array([i % 2 for i in range(40)], pa.uint8()), note=["x"] * 40)
    splits = prepare(source="parquet", path="x.parquet")
    assert all(levels(part) == part.index.tolist() for part in splits.values())


def test_parquet_class_names() -> None:
    table = pq.read_table(hf("x.parquet"))
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), "x.parquet")
    assert prepare(source="parquet", path="x.parquet")["train"].metadata["classes"] == ["cat", "dog"]


def test_parquet_small_row_groups() -> None:
    pq.write_table(pq.read_table(hf("x.parquet", 200)), "x.parquet", row_group_size=7)
    splits = prepare(source="parquet", path="x.parquet", train=120)
    assert all(levels(part) == part.index.tolist() for part in splits.values())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_image_modes(mode: str) -> None:
    if mode == "I;16":
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(buffer, "PNG")
        encoded = buffer.getvalue()
    else:
        encoded = png(255, mode, kind="TIFF" if mode == "CMYK" else "PNG")
    images = pa.array([{"bytes": encoded, "path": None}] * 40, HF)
    hf("x.parquet", image=images)
    assert (prepare(source="parquet", path="x.parquet")["train"].image == 255).all()


def test_images_are_resized() -> None:
    images = pa.array([{"bytes": png(i, size=(20 + i, 11)), "path": None} for i in range(40)], HF)
    hf("x.parquet", image=images)
    splits = prepare(source="parquet", path="x.parquet", image_size=16)
    assert splits["train"].image.shape == (20, 16, 16, 3)
    assert (splits["train"].image == splits["train"].index[:, None, None, None]).all()


def test_folder() -> None:
    folder("pictures", {"cat": 30, "dog": 30})
    (Path("pictures/cat/notes.txt")).write_text("no image")
    (Path("pictures/.hidden")).mkdir()
    splits = prepare(source="folder", path="pictures")
    assert sizes(splits) == [20, 4, 8, 8]
    train = splits["train"]
    assert train.metadata["classes"] == ["cat", "dog"]
    assert np.bincount(train.label).tolist() == [10, 10]
    assert levels(train) == (train.index % 30).tolist()


def test_folder_with_official_splits() -> None:
    folder("pictures/train", {"cat": 20, "dog": 20})
    folder("pictures/val", {"cat": 5, "dog": 5}, first=100)
    folder("pictures/test", {"cat": 5, "dog": 5}, first=200)
    splits = prepare(source="folder", path="pictures", train=38)
    assert sizes(splits) == [38, 4, 8, 8]
    assert min(levels(splits["heldout"])) >= 200
    assert any(100 <= level < 200 for level in levels(splits["train"]))


def test_folder_with_a_class_called_train() -> None:
    folder("pictures", {"bus": 30, "train": 30})
    assert prepare(source="folder", path="pictures")["train"].metadata["classes"] == ["bus", "train"]


def test_groups() -> None:
    splits = prepare(source="parquet", path=str(hf("x.parquet", 80)), group_pattern="^(.*)_")
    assert sizes(splits) == [20, 4, 8, 8]
    owners = {(row // 4, name) for name, part in splits.items() for row in part.index.tolist()}
    assert len(owners) == len({group for group, _ in owners})


def test_path_is_found_from_a_queued_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf("x.parquet")
    (tmp_path / ".dvc" / "tmp" / "exps" / "copy").mkdir(parents=True)
    (tmp_path / ".dvc" / "config").touch()
    monkeypatch.chdir(tmp_path / ".dvc" / "tmp" / "exps" / "copy")
    assert sizes(prepare(source="parquet", path="x.parquet")) == [20, 4, 8, 8]


# Warnings


def test_small_set_shrinks(capsys: pytest.CaptureFixture[str]) -> None:
    splits = prepare(source="parquet", path=str(hf("x.parquet", 20)))
    assert sizes(splits) == [10, 2, 4, 4]
    assert "warning: " in (error := capsys.readouterr().err)
    assert "20 training images, not the 40 asked for" in error and "train 10 of 20" in error


def test_small_official_test_set(capsys: pytest.CaptureFixture[str]) -> None:
    hf("set/train.parquet", 60)
    hf("set/test.parquet", 4)
    assert sizes(prepare(source="parquet", path="set")) == [20, 4, 8, 4]
    assert "4 test images, not the 8 asked for" in capsys.readouterr().err


def test_class_without_test_images(capsys: pytest.CaptureFixture[str]) -> None:
    folder("pictures", {"cat": 60, "dog": 1})
    splits = prepare(source="folder", path="pictures")
    assert 1 in splits["train"].label
    assert "no image of class dog in split test" in capsys.readouterr().err


def test_groups_too_large_for_a_split(capsys: pytest.CaptureFixture[str]) -> None:
    splits = prepare(
        source="parquet", path=str(hf("x.parquet", label=[i // 20 for i in range(40)])), group_pattern="()"
    )
    assert sizes(splits)[1:] == [0, 0, 0]
    assert "data.test is 8, but the split is empty" in capsys.readouterr().err


# Bad input


def test_missing_path() -> None:
    fails("data.path is nowhere; there is no", source="parquet", path="nowhere")
    fails("data.path is nowhere; there is no", source="folder", path="nowhere")


def test_empty_folders() -> None:
    Path("empty").mkdir()
    fails("no .parquet file", source="parquet", path="empty")
    fails("no images", source="folder", path="empty")
    Path("empty/loose.png").write_bytes(png())
    fails("images, but no class folders", source="folder", path="empty")
    fails("a file; source folder needs", source="folder", path="empty/loose.png")


def test_broken_parquet() -> None:
    whole = hf("set/b.parquet").read_bytes()
    hf("set/a.parquet")
    for content in (whole[:-100], whole[: len(whole) // 2], b"not parquet at all", b""):
        Path("set/b.parquet").write_bytes(content)
        fails("set/b.parquet is no Parquet file", source="parquet", path="set")
    Path("set/b.parquet").write_bytes(whole[:200] + bytes(200) + whole[400:])
    fails("set/b.parquet", source="parquet", path="set", train=80)


def test_missing_columns() -> None:
    fails("no image column.*label: int64", source="parquet", path=str(hf("a.parquet", image=None)))
    fails("no label column.*image: struct", source="parquet", path=str(hf("b.parquet", label=None)))
    fails("label is string; it must", source="parquet", path=str(hf("c.parquet", label=["cat"] * 40)))
    two: dict[str, Any] = {"fine_label": [0, 1] * 20, "coarse_label": [0, 1] * 20}
    fails("fine_label, coarse_label", source="parquet", path=str(hf("d.parquet", label=None, **two)))


def test_bad_labels() -> None:
    label = [0, 1] * 20
    fails(
        "row 3: column label is null", source="parquet", path=str(hf("a.parquet", label=[*label[:3], None, *label[4:]]))
    )
    fails("row 5: column label is -1", source="parquet", path=str(hf("b.parquet", label=[*label[:5], -1, *label[6:]])))
    fails("no training image of class 1", source="parquet", path=str(hf("c.parquet", label=[0, 2] * 20)))
    fails("no training image of class 0", source="parquet", path=str(hf("d.parquet", label=[1, 2] * 20)))
    fails("one class only", source="parquet", path=str(hf("e.parquet", label=[0] * 40)))
    hf("f/train.parquet")
    hf("f/test.parquet", label=[0, 5] * 20)
    fails("the label 5", source="parquet", path="f")


@pytest.mark.parametrize("label", [[0, 3], [0, 1]])
def test_labels_and_class_names(label: list[int]) -> None:
    table = pq.read_table(hf("x.parquet", label=label * 20))
    features = {"label": {"names": ["cat", "dog", "emu"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), "x.parquet")
    fails("the label 3" if 3 in label else "no training image of class emu", source="parquet", path="x.parquet")


@pytest.mark.parametrize(
    ("encoded", "match"),
    [
        (None, "no image .null."),
        (b"", "no readable image"),
        (b"GIF89a", "no readable image"),
        (png(3, size=(64, 64))[:80], "no readable image"),
        (png(3, "L", (64, 64), "JPEG")[:300], "no readable image"),
    ],
)
def test_broken_image(encoded: bytes | None, match: str) -> None:
    images = [{"bytes": encoded if i == 17 else png(i), "path": f"{i}.png"} for i in range(40)]
    fails(f"x.parquet: row 17.*{match}", source="parquet", path=str(hf("x.parquet", image=pa.array(images, HF))))


@pytest.mark.parametrize("side", [7200, 10_000, 14_000])  # ours, Pillow's warning, Pillow's error
def test_decompression_bomb(side: int) -> None:
    top = folder("pictures", {"cat": 20, "dog": 20})
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    (top / "dog" / "007.png").write_bytes(bomb.getvalue())
    fails("dog/007.png has more than 50 million pixels", source="folder", path="pictures")


def test_bad_folders() -> None:
    folder("a/train", {"cat": 30, "dog": 30})
    folder("a/test", {"cat": 30, "emu": 30})
    fails("emu/000.png is of class emu, which has no training images", source="folder", path="a")
    folder("b/train", {"cat": 30, "dog": 30})
    folder("b/extra", {"cat": 30})
    fails("b/extra lies beside train/ and is no split", source="folder", path="b")
    folder("c", {"cat": 30, "dog": 30, "emu": 0})
    fails("no training image of class emu", source="folder", path="c")
    folder("d", {"cat": 40})
    fails("one class only .cat.", source="folder", path="d")


def test_no_rows_and_no_training_rows() -> None:
    fails(
        "holds no images",
        source="parquet",
        path=str(hf("none.parquet", 0, image=pa.array([], HF), label=pa.array([], "int64"))),
    )
    fails("no training images", source="parquet", path=str(hf("test.parquet")))
    hf("set/train.parquet")
    hf("set/more.parquet")
    fails("no file name or split column places", source="parquet", path="set")


def test_bad_groups() -> None:
    fails("no group in the path 0_0.png", source="parquet", path=str(hf("x.parquet")), group_pattern="^(a+)")
    fails("have no paths", source="digits", group_pattern="^(a+)")


def test_fewer_training_images_than_classes() -> None:
    fails("data.train is 1; that leaves", source="digits", train=1)


@pytest.mark.parametrize("kind", ["missing", "bomb"])
def test_the_stage_fails_in_one_line(kind: str) -> None:
    path = Path("x.parquet")
    if kind != "missing":
        bomb = png(0, "1", (10_000, 10_000))
        hf(path, image=pa.array([{"bytes": bomb if i == 3 else png(i), "path": None} for i in range(40)], HF))
    with Path("params.yaml").open("w") as file:
        YAML().dump(values(source="parquet", path=str(path)), file)
    old = Path("data/clean/train.parquet")
    old.parent.mkdir(parents=True)
    old.write_text("as it was")
    script = REPOSITORY / "stages" / "prepare.py"
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1
    assert [each.name for each in old.parent.iterdir()] == ["train.parquet"] and old.read_text() == "as it was"


def test_a_failed_write_leaves_the_old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(source="digits")
    before = {path.name: path.read_bytes() for path in Path("data/clean").iterdir()}
    write = store.write

    def full(path: Path, *rest: Any) -> int:
        if path.name == "test.parquet":
            raise InputError("the disk is full")
        return write(path, *rest)

    monkeypatch.setattr(store, "write", full)
    with pytest.raises(InputError):
        datasets.prepare(params.validate({**values(source="digits"), "seed": 1}))
    assert {path.name: path.read_bytes() for path in Path("data/clean").iterdir()} == before
    assert sorted(path.name for path in Path("data").iterdir()) == ["clean", "timings"]


# Real images


@real_data
def test_orl() -> None:
    path = str(Path(str(REAL)) / "orl.parquet")
    splits = prepare(source="parquet", path=path, image_size=32, train=240, validation=40, test=80, heldout=40)
    assert sizes(splits) == [240, 40, 80, 40]
    for name, each in (("train", 6), ("validation", 1), ("test", 2), ("heldout", 1)):
        assert (np.bincount(splits[name].label, minlength=40) == each).all()
    assert 90 < splits["train"].image.mean() < 130


@real_data
def test_gtsrb_tracks() -> None:
    path = str(Path(str(REAL)) / "gtsrb.parquet")
    asked = {"train": 1000, "validation": 100, "test": 370, "heldout": 300}
    splits = prepare(source="parquet", path=path, image_size=32, group_pattern="^(.*)_", **asked)
    assert sizes(splits) == list(asked.values())
    with pq.ParquetFile(path) as file:
        table = file.read(["image.path", "label", "split"]).flatten()
    assert table["split"].to_pylist()[:39209] == ["train"] * 39209  # so the index is the row of the file
    paths = table["image.path"].to_pylist()
    tracks = {name: {paths[row].rsplit("_", 1)[0] for row in part.index} for name, part in splits.items()}
    assert not tracks["train"] & tracks["validation"]
    assert not tracks["train"] & tracks["test"]
    assert not tracks["validation"] & tracks["test"]
    label = table["label"].to_numpy()
    assert all((label[part.index] == part.label).all() for part in splits.values())
    assert splits["heldout"].index.min() >= 39209


@real_data
def test_cifar10_as_parquet() -> None:
    path = str(Path(str(REAL)) / "cifar10")
    splits = prepare(source="parquet", path=path, image_size=32, train=1000, validation=50, test=500, heldout=500)
    assert sizes(splits) == [1000, 50, 500, 500]
    assert splits["heldout"].index.min() >= 50_000 > splits["test"].index.max()
    assert (np.bincount(splits["train"].label) == 100).all()
    table = pq.read_table(Path(path) / "train.parquet")
    row = int(splits["train"].index[0])
    with Image.open(io.BytesIO(table["image"][row]["bytes"].as_py())) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), splits["train"].image[0])
