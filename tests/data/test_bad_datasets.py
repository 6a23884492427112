"""Each kind of bad input is reported in one line, and leaves the files as they were."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from grey_images import HF, folder, hf, png
from images import fails, prepare, values
from PIL import Image
from ruamel.yaml import YAML
from staging import stage

from sparring import params, store
from sparring.data import prepare as datasets
from sparring.params.errors import InputError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
    result = stage("prepare")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert [entry.name for entry in old.parent.iterdir()] == ["train.parquet"] and old.read_text() == "as it was"


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
