"""The image store is a Parquet file with one row per image, which is read without a copy.

Its columns are `index` (row in the source data set), `label` and `image` (fixed_size_binary of height × width ×
channel, in levels from 0 to 255: uint8, or float16 where `store.dtype` says so; the column's width distinguishes them).
An adversarial store adds the source model's `prediction` (on the stored image), `prediction_float` and
`prediction_rounded` (on the image as the attack left it, and after mere rounding), and `l2` and `linf` (norms of stored
minus clean image, in [0, 1] units). The file's metadata (key `sparring`, JSON) holds shape, classes and origin.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparring.layout import replacing
from sparring.params.errors import InputError, reason

METADATA_KEY = b"sparring"
COLUMN_TYPES = {
    "index": pa.int64(),
    "label": pa.int32(),
    "prediction": pa.int32(),
    "prediction_float": pa.int32(),
    "prediction_rounded": pa.int32(),
    "l2": pa.float32(),
    "linf": pa.float32(),
    "seconds": pa.float32(),
}


@dataclass(frozen=True)
class Images:
    """These are N rows of a store.

    index, label: (N,) int64.  image: (N, H, W, C) uint8 or float16, in levels from 0 to 255.
    columns: the other columns by name, (N,) each.  metadata: that of the file.
    """

    index: np.ndarray
    label: np.ndarray
    image: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> "Images":
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Images(self.index[rows], self.label[rows], self.image[rows], columns, self.metadata)


def write(path: Path, shards: Iterable[Images], metadata: dict[str, Any]) -> int:
    """Write shards, each as a row group, so that memory holds one at a time. Returns the number of rows.

    metadata: must hold `shape` [height, width, channels]; all of it is stored as JSON with sorted keys.
    The file appears under its name only when it is complete. Raises ValueError where there is no shard.
    """
    size = int(np.prod(metadata["shape"]))
    schema, rows = None, 0
    with replacing(path) as temporary:
        writer = None
        try:
            for shard in shards:
                columns: dict[str, pa.Array] = {
                    "index": pa.array(shard.index, COLUMN_TYPES["index"]),
                    "label": pa.array(shard.label, COLUMN_TYPES["label"]),
                    "image": _binary(shard.image, size),
                }
                columns |= {name: pa.array(value, COLUMN_TYPES[name]) for name, value in shard.columns.items()}
                table = pa.table(columns)
                if writer is None:
                    schema = table.schema.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
                    writer = pq.ParquetWriter(temporary, schema, use_dictionary=False, compression="lz4")
                writer.write_table(table.cast(schema), row_group_size=max(len(shard), 1))
                rows += len(shard)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise ValueError("a store needs at least one shard, which may be empty")
    return rows


def _binary(image: np.ndarray, size: int) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(image))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size * image.itemsize), len(image), [None, buffer])


def in_shards(images: Images, size: int) -> Iterator[Images]:
    """Yield slices of at most `size` rows; one empty slice where there are no rows."""
    for start in range(0, max(len(images), 1), size):
        yield images[start : start + size]


def is_store(path: Path) -> bool:
    """Tell whether a file is a store, and not another Parquet file or none."""
    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def joined(parts: Sequence[Images]) -> Images:
    """Concatenate the rows of one store or more, in their order. The first one decides columns and metadata."""
    index, label, image = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("index", "label", "image")
    )
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Images(index, label, image, columns, parts[0].metadata)


def read(path: Path, columns: tuple[str, ...] | None = None) -> Images:
    """Read a store. `columns` names what to read beside index and label; without `image` in it, `image` is (0, …).

    Raises InputError for a file that is missing, is not Parquet, or is not a store.
    """
    names = None if columns is None else ["index", "label", *columns]
    with _input_errors(path):
        schema = pq.read_schema(path)
        metadata = _metadata(path, schema)
        table = pq.read_table(path, columns=names, memory_map=True, partitioning=None)
    height, width, channels = metadata["shape"]
    image = np.empty((0, height, width, channels), np.uint8)
    if "image" in table.column_names:
        dtype = _dtype(schema, metadata)
        image = image.astype(dtype)
        chunks = [_pixels(chunk, (height, width, channels), dtype) for chunk in table["image"].chunks]
        image = chunks[0] if len(chunks) == 1 else np.concatenate([image, *chunks])
    others = [name for name in table.column_names if name not in ("index", "label", "image")]
    return Images(
        table["index"].to_numpy(),
        table["label"].to_numpy().astype(np.int64),
        image,
        {name: table[name].to_numpy() for name in others},
        metadata,
    )


class RowGroups:
    """A store's images, which are read one row group at a time.

    rows, starts: for each row group, the number of its images and the row of the first one.
    shape: (height, width, channels).  dtype: uint8 or float16.
    Raises InputError as `store.read` does.
    """

    def __init__(self, path: Path) -> None:
        with _input_errors(path):
            self._file = pq.ParquetFile(path, memory_map=True)
            schema = self._file.schema_arrow
            metadata = _metadata(path, schema)
            parquet = self._file.metadata
            self.rows = np.array([parquet.row_group(number).num_rows for number in range(parquet.num_row_groups)], int)
        self.starts = np.cumsum(self.rows) - self.rows
        height, width, channels = metadata["shape"]
        self.path, self.shape, self.dtype = path, (height, width, channels), _dtype(schema, metadata)

    def read(self, number: int) -> np.ndarray:
        """Read the images (N, H, W, C) of one row group."""
        with _input_errors(self.path):
            (chunk,) = self._file.read_row_group(number, columns=["image"], use_threads=False)["image"].chunks
        return _pixels(chunk, self.shape, self.dtype)


def mean_colour(path: Path) -> tuple[float, ...]:
    """Return the mean of a store's images by channel, in [0, 1]. Raises InputError as `read` does."""
    groups = RowGroups(path)
    total = np.zeros(groups.shape[2])
    for number in range(len(groups.rows)):
        total += groups.read(number).sum((0, 1, 2), dtype=np.float64)
    pixels = int(groups.rows.sum()) * groups.shape[0] * groups.shape[1]
    return tuple((total / 255 / max(pixels, 1)).tolist())


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    """Turn an error of reading the file into InputError."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; `dvc repro` makes it") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); delete it and run `dvc repro`") from error


def _metadata(path: Path, schema: pa.Schema) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None or not {"index", "label"} <= set(schema.names):
        raise InputError(f"{path} is not a store of Sparring (no metadata or columns of one); run `dvc repro`")
    metadata: dict[str, Any] = json.loads(raw)
    return metadata


def _dtype(schema: pa.Schema, metadata: dict[str, Any]) -> type:
    return np.uint8 if schema.field("image").type.byte_width == np.prod(metadata["shape"]) else np.float16


def _pixels(chunk: pa.Array, shape: tuple[int, int, int], dtype: type) -> np.ndarray:
    size = int(np.prod(shape))
    flat: np.ndarray = np.frombuffer(chunk.buffers()[1], dtype, len(chunk) * size, chunk.offset * chunk.type.byte_width)
    return flat.reshape(len(chunk), *shape)


def check_rows(clean: Images, other: Images, path: Path) -> None:
    """Raise InputError unless `other`, read from `path`, has the rows of `clean` in their order, and its classes."""
    if len(other) != len(clean):
        raise InputError(f"{path} holds {len(other)} rows, the clean set {len(clean)}; delete it and run `dvc repro`")
    differing = np.flatnonzero((other.index != clean.index) | (other.label != clean.label))
    if len(differing):
        row = int(differing[0])
        raise InputError(
            f"{path}: row {row} has index {other.index[row]} and label {other.label[row]}, the clean set "
            f"{clean.index[row]} and {clean.label[row]}; delete it and run `dvc repro`"
        )
    for number, names in enumerate(zip(*(store.metadata.get("classes", []) for store in (other, clean)), strict=False)):
        if names[0] != names[1]:
            raise InputError(
                f"{path}: class {number} is {names[0]}, in the clean set {names[1]}; delete it and run `dvc repro`"
            )


def check_source(images: Images, digest: str, path: Path) -> None:
    """Raise InputError unless the adversarial store was made against the model whose tensors have this digest."""
    source_digest = images.metadata.get("source_model")
    if source_digest != digest:
        raise InputError(f"{path} was made against model {source_digest}, not {digest}; delete it and run `dvc repro`")
