"""Rows that are written to a store come back, here and in other readers, and a failed write changes nothing."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring import store
from sparring.models import classifier
from sparring.params.errors import InputError
from sparring.store import Images

ADVERSARIAL = ("prediction", "l2", "linf")


def images(count: int, shape: tuple[int, int, int] = (4, 3, 3), first: int = 0, columns: bool = False) -> Images:
    """Make random rows whose values differ from their neighbours'."""
    chance = np.random.default_rng([count, first])
    extra: dict[str, np.ndarray] = {
        "prediction": chance.integers(0, 10, count),
        "l2": chance.random(count, np.float32),
        "linf": chance.random(count, np.float32),
    }
    return Images(
        first + 3 * np.arange(count),
        chance.integers(0, 10, count),
        chance.integers(0, 256, (count, *shape), np.uint8),
        extra if columns else {},
    )


def metadata(shape: tuple[int, int, int] = (4, 3, 3), **more: Any) -> dict[str, Any]:
    return {"shape": list(shape), "classes": ["a", "ß"], **more}


def same(actual: Images, wanted: Images) -> None:
    for values, expected in ((actual.index, wanted.index), (actual.label, wanted.label), (actual.image, wanted.image)):
        np.testing.assert_array_equal(values, expected)
    assert actual.image.dtype == wanted.image.dtype
    assert actual.index.dtype == actual.label.dtype == np.int64
    assert actual.columns.keys() == wanted.columns.keys()
    for name, column in wanted.columns.items():
        np.testing.assert_array_equal(actual.columns[name], column)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a store of 10 rows in shards of 4, 4 and 2, and return its path."""
    path = tmp_path / "rows.parquet"
    store.write(path, store.in_shards(images(10, columns=True), 4), metadata(source="made up"))
    return path


shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(shapes, st.lists(st.integers(0, 9), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_round_trip(shape: tuple[int, int, int], sizes: list[int], columns: bool, halves: bool) -> None:
    shards = [images(size, shape, 100 * number, columns) for number, size in enumerate(sizes)]
    if halves:
        shards = [replace(shard, image=(shard.image / 2).astype(np.float16)) for shard in shards]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "below" / "rows.parquet"
        assert store.write(path, iter(shards), metadata(shape)) == sum(sizes)
        stored = store.read(path)
        assert len(stored) == sum(sizes)
        assert stored.metadata == metadata(shape)
        start = 0
        for shard in shards:
            same(stored[start : start + len(shard)], shard)
            start += len(shard)
        assert pq.ParquetFile(path).metadata.num_rows == sum(sizes)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 20), st.integers(1, 25))
def test_shards_cover_every_row_once(count: int, size: int) -> None:
    whole = images(count, columns=True)
    shards = list(store.in_shards(whole, size))
    assert np.concatenate([shard.index for shard in shards]).tolist() == whole.index.tolist()
    assert np.concatenate([shard.columns["l2"] for shard in shards]).tolist() == whole.columns["l2"].tolist()
    assert all(len(shard) == size for shard in shards[:-1]) and len(shards[-1]) <= size
    assert len(shards) == max(1, -(-count // size))


def test_one_row_group_is_read_as_a_view(tmp_path: Path) -> None:
    store.write(tmp_path / "one.parquet", [images(10)], metadata())
    pixels = store.read(tmp_path / "one.parquet").image
    base: Any = pixels
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    assert isinstance(base, pa.Buffer), "the pixels are a copy, not Arrow's own memory"
    assert np.shares_memory(pixels[2:5], pixels)
    tensor = classifier.to_images(pixels, torch.device("cpu"))
    assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_a_chunk_that_begins_inside_its_buffer_gives_its_own_rows(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    wanted = images(10, columns=True)
    table = pq.read_table(file)
    sliced = pa.concat_tables([table.slice(2, 3), table.slice(7, 2)])
    monkeypatch.setattr(pq, "read_table", lambda *args, **kwargs: sliced)
    same(store.read(file), wanted[[2, 3, 4, 7, 8]])
    monkeypatch.setattr(pq, "read_table", lambda *args, **kwargs: table.combine_chunks().slice(6, 3))
    same(store.read(file), wanted[6:9])


def test_rows_are_chosen_by_slice_mask_and_numbers(file: Path) -> None:
    stored, wanted = store.read(file), images(10, columns=True)
    odd = wanted.index % 2 == 1
    for rows in (slice(3, 9), odd, np.array([7, 0, 7])):
        part = stored[rows]
        same(part, wanted[rows])
        assert part.metadata == stored.metadata
    np.testing.assert_array_equal(stored[odd].image, images(10, columns=True).image[1::2])


def test_only_asked_columns_are_read(file: Path) -> None:
    wanted = images(10, columns=True)
    stored = store.read(file, ("linf",))
    assert stored.columns.keys() == {"linf"} and stored.image.shape == (0, 4, 3, 3)
    np.testing.assert_array_equal(stored.columns["linf"], wanted.columns["linf"])
    stored = store.read(file, ("image",))
    assert not stored.columns
    np.testing.assert_array_equal(stored.image, wanted.image)


# The file as others see it


def test_a_shard_is_a_row_group(file: Path) -> None:
    parquet = pq.ParquetFile(file).metadata
    assert [parquet.row_group(number).num_rows for number in range(parquet.num_row_groups)] == [4, 4, 2]


def test_schema(file: Path) -> None:
    schema = pq.read_schema(file)
    assert {field.name: field.type for field in schema} == {
        "index": pa.int64(),
        "label": pa.int32(),
        "image": pa.binary(36),
        "prediction": pa.int32(),
        "l2": pa.float32(),
        "linf": pa.float32(),
    }
    assert pa.types.is_fixed_size_binary(schema.field("image").type)
    assert json.loads(schema.metadata[b"sparring"]) == metadata(source="made up")
    parquet = pq.ParquetFile(file).metadata
    for group in range(parquet.num_row_groups):
        for number in range(parquet.num_columns):
            column = parquet.row_group(group).column(number)
            assert not column.has_dictionary_page and not any("DICT" in name for name in column.encodings)


def test_bytes_are_the_same_on_rewriting(file: Path) -> None:
    before = file.read_bytes()
    shards = store.in_shards(images(10, columns=True), 4)
    backwards = dict(reversed(metadata(source="made up").items()))
    store.write(file, shards, backwards)
    assert file.read_bytes() == before
    store.write(file, store.in_shards(images(10, columns=True), 4), metadata(source="another"))
    assert file.read_bytes() != before


def test_others_read_it_without_us(file: Path) -> None:
    wanted = images(10, columns=True)
    pixels = [image.tobytes() for image in wanted.image]
    query = f"SELECT \"index\", label, image, l2 FROM '{file}' WHERE label >= 5"
    in_pandas = pd.read_parquet(file)
    in_polars = polars.read_parquet(file)
    in_duckdb = duckdb.connect().execute(query).fetchall()
    assert in_pandas["image"].tolist() == in_polars["image"].to_list() == pixels
    for name, column in {"index": wanted.index, "label": wanted.label, **wanted.columns}.items():
        assert in_pandas[name].tolist() == in_polars[name].to_list() == column.tolist()
    large = wanted[wanted.label >= 5]
    rows = zip(large.index.tolist(), large.label.tolist(), large.image, large.columns["l2"].tolist(), strict=True)
    assert in_duckdb == [(index, label, image.tobytes(), l2) for index, label, image, l2 in rows]
    assert len(in_duckdb) not in (0, 10)


# Failures


def fails(match: str, call: Any, *arguments: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)


def breaks_off() -> Iterator[Images]:
    yield images(5)
    raise RuntimeError("no more")


def test_a_generator_that_fails_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(RuntimeError, match="no more"):
        store.write(file, breaks_off(), metadata())
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_generator_that_fails_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no more"):
        store.write(tmp_path / "new.parquet", breaks_off(), metadata())
    assert os.listdir(tmp_path) == []


def test_nothing_to_write_is_refused(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(ValueError, match="at least one shard"):
        store.write(file, [], metadata())
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_in_the_second_shard_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    before = file.read_bytes()
    write_table, calls = pq.ParquetWriter.write_table, []

    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(code, os.strerror(code))
        write_table(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    fails("rows.parquet: the disk is full", store.write, file, store.in_shards(images(10), 4), metadata())
    assert len(calls) == 2
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("count", [10, 3000])  # the first fills no buffer, so that only closing the file fails
def test_a_truly_full_disk_is_one_line(file: Path, count: int) -> None:
    before = file.read_bytes()
    # The temporary file that write() makes beside the store becomes the device that is always full.
    file.with_name(f".{file.name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    fails("rows.parquet: the disk is full", store.write, file, [images(count)], metadata())
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_another_failure_to_write_is_not_called_a_full_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", denied)
    with pytest.raises(PermissionError):
        store.write(file, [images(5)], metadata())
    assert os.listdir(file.parent) == [file.name]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    fails(r"gone\.parquet is missing; `dvc repro` makes it", store.read, tmp_path / "gone.parquet")


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_a_truncated_file_is_one_line(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    fails(r"rows\.parquet cannot be read \(.+\); delete it", store.read, file)


def test_a_folder_instead_of_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").mkdir()
    fails("rows.parquet", store.read, tmp_path / "rows.parquet")


@pytest.mark.parametrize("columns", [None, ("image",)])
def test_parquet_that_is_no_store_is_one_line(tmp_path: Path, columns: tuple[str, ...] | None) -> None:
    pd.DataFrame({"x": [1, 2]}).to_parquet(tmp_path / "other.parquet")
    fails("other.parquet (is not a store of Sparring|cannot be read)", store.read, tmp_path / "other.parquet", columns)


def test_rows_that_agree_pass(file: Path) -> None:
    store.check_rows(images(10), store.read(file), file)


def test_rows_that_differ_are_one_line(file: Path) -> None:
    clean = images(10)
    fails("rows.parquet holds 10 rows, the clean set 9;", store.check_rows, clean[:9], store.read(file), file)
    moved = clean[[0, 1, 3, 2, *range(4, 10)]]
    fails(r"row 2 has index 6 .* the clean set 9 ", store.check_rows, moved, store.read(file), file)
    label = clean.label.copy()
    label[7] += 1
    renamed = Images(clean.index, label, clean.image)
    wanted = f"row 7 has index 21 and label {label[7] - 1}, the clean set 21 and {label[7]};"
    fails(wanted, store.check_rows, renamed, store.read(file), file)


def test_a_store_of_another_model_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    store.write(path, [images(3)], metadata(source_model="abc"))
    store.check_source(store.read(path), "abc", path)
    fails("rows.parquet was made against model abc, not abd;", store.check_source, store.read(path), "abd", path)
    store.write(path, [images(3)], metadata())
    fails("made against model None, not abc;", store.check_source, store.read(path), "abc", path)
