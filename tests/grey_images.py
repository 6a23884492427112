"""These functions make data sets of plain grey images, each identified by its level, and show what is read of them."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sparring import store
from sparring.params.names import SPLITS

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(level: int = 0, mode: str = "RGB", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, level).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def hf(path: str | Path, count: int = 40, classes: int = 2, first: int = 0, **columns: Any) -> Path:
    """Write a file in the Hugging Face layout: image i is plain grey of level first + i, its class i % classes."""
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
