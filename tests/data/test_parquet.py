"""Parquet files are read: these tests check what their numbers mean, and files that cannot be read as images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encoded, fails, noise, prepare

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(path: str, label: list[int], names: list[str] | None = None, first: int = 0, **columns: Any) -> Path:
    """Write a file in the Hugging Face layout, with a different picture in each row and class names in its metadata."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(noise(first + i)), "path": f"a/b/{first + i}.png"} for i in range(len(label))]
    content = pa.table({"image": pa.array(images, HF), "label": label, **columns})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        content = content.replace_schema_metadata(metadata)
    pq.write_table(content, path)
    return Path(path)


DATA: dict[str, Any] = {"source": "parquet", "path": "set"}


def test_the_same_names_in_another_order() -> None:
    table("set/test.parquet", [0, 1, 1, 2] * 3, ["dog", "emu", "cat"], first=100)
    table("set/train.parquet", [0, 1, 2] * 20, ["cat", "dog", "emu"])
    parts = prepare(**DATA, heldout=12)
    names = parts["train"].metadata["classes"]
    for name, first, by_label in (("heldout", 100, ["dog", "emu", "emu", "cat"]), ("train", 0, ["cat", "dog", "emu"])):
        of_picture = {noise(first + i).tobytes(): by_label[i % len(by_label)] for i in range(60)}
        class_names = [names[label] for label in parts[name].label]
        assert class_names == [of_picture[image.tobytes()] for image in parts[name].image]
    assert set(names) == {"cat", "dog", "emu"}


def test_other_names() -> None:
    table("set/a.parquet", [0, 1] * 20, ["cat", "dog"])
    table("set/b.parquet", [0, 1] * 20, ["cat", "emu"], first=50)
    fails("b.parquet has other class names than .*a.parquet: only one of them has dog, emu", **DATA)
    table("set/b.parquet", [0, 1] * 20, ["cat", "dog", "emu"], first=50)
    fails("only one of them has emu", **DATA)
    table("set/b.parquet", [0, 5] * 20, ["dog", "cat"], first=50)
    fails("b.parquet has the label 5; the last of its 2 classes is 1", **DATA)


def test_one_name_for_two_classes() -> None:
    table("set/a.parquet", [0, 1, 2] * 20, ["cat", "dog", "cat"])
    fails("a.parquet calls two classes cat", **DATA)


def test_names_in_some_files_only(capsys: pytest.CaptureFixture[str]) -> None:
    table("set/a.parquet", [0, 1] * 20, ["cat", "dog"])
    table("set/b.parquet", [0, 1] * 20, first=50)
    assert prepare(**DATA)["train"].metadata["classes"] == ["cat", "dog"]
    assert "b.parquet: no class names; its labels are read as those of set/a.parquet" in (
        capsys.readouterr().err.replace(f"{Path.cwd()}/", "")
    )


def test_labels_in_other_columns() -> None:
    table("set/a.parquet", [0, 1] * 20)
    other = pq.read_table("set/a.parquet").rename_columns(["image", "size"])
    pq.write_table(other, "set/b.parquet")
    fails("a.parquet has its label in column label, .*b.parquet in size", **DATA)


def test_paths_without_bytes() -> None:
    images = pa.array([{"bytes": None, "path": f"cats/{i}.png"} for i in range(40)], HF)
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 20}), "set.parquet")
    fails(
        r"set.parquet has only the paths of its images: image.bytes is null in every row; write the bytes",
        source="parquet",
        path="set.parquet",
    )


def test_some_rows_without_bytes() -> None:
    images = [{"bytes": encoded(noise(i)) if i not in (3, 5) else None, "path": f"{i}.png"} for i in range(40)]
    pq.write_table(pa.table({"image": pa.array(images, HF), "label": [0, 1] * 20}), "set.parquet")
    fails(r"2 images cannot be used; .*row 3, .*row 5: has no image \(null\)", source="parquet", path="set.parquet")


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view(), pa.binary()])
@pytest.mark.parametrize("in_struct", [False, True])
def test_kinds_of_binary(kind: pa.DataType, in_struct: bool) -> None:
    content = [encoded(noise(i)) for i in range(40)]
    images = pa.array(content, kind)
    if in_struct:
        images = pa.StructArray.from_arrays([images, pa.array([None] * 40, pa.string())], ["bytes", "path"])
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 20}), "set.parquet")
    train = prepare(source="parquet", path="set.parquet")["train"]
    assert all(np.array_equal(pixels, noise(int(row))) for row, pixels in zip(train.index, train.image, strict=True))


def test_groups_of_nested_paths() -> None:
    table("set.parquet", [0, 1] * 20)
    parts = prepare(source="parquet", path="set.parquet", group_pattern="a/b/([0-9]+)[.]png")
    assert len(parts["train"]) == 20
