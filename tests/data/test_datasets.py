"""Every source of images is read, with its warnings for the user, and so are real images."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from grey_images import HF, folder, hf, levels, png, sizes
from images import fails, prepare
from PIL import Image

from sparring.params.names import SPLITS

REAL = os.environ.get("SPARRING_TEST_DATA")
real_data = pytest.mark.skipif(not REAL, reason="SPARRING_TEST_DATA names no folder of real data sets")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
    """This class is as torchvision's, without a download and as large as a test needs."""

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


@real_data
def test_orl() -> None:
    path = str(Path(str(REAL)) / "orl.parquet")
    splits = prepare(source="parquet", path=path, image_size=32, train=240, validation=40, test=80, heldout=40)
    assert sizes(splits) == [240, 40, 80, 40]
    for name, count in (("train", 6), ("validation", 1), ("test", 2), ("heldout", 1)):
        assert (np.bincount(splits[name].label, minlength=40) == count).all()
    assert 90 < splits["train"].image.mean() < 130


@real_data
def test_gtsrb_tracks() -> None:
    path = str(Path(str(REAL)) / "gtsrb.parquet")
    split_sizes = {"train": 1000, "validation": 100, "test": 370, "heldout": 300}
    splits = prepare(source="parquet", path=path, image_size=32, group_pattern="^(.*)_", **split_sizes)
    assert sizes(splits) == list(split_sizes.values())
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
