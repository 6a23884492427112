"""Replace the files of a report all at once, when all new ones are written."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sparring.report.table import Table, save


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose entries replace those of the same names in `folder` when the block ends well.

    All else in `folder` stays. When the block raises, nothing in `folder` changes.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        folder.mkdir(parents=True, exist_ok=True)
        for new in sorted(temporary.iterdir()):
            old = folder / new.name
            if new.is_dir() and old.exists():
                old.rename(temporary / f"old-{new.name}")
            new.replace(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(table: Table, folder: Path) -> None:
    """Write a study's only table into `folder`."""
    with replacing(folder) as temporary:
        save(table, temporary, temporary / "tex")
    (folder / f"{table.name}.tex").unlink(missing_ok=True)  # an earlier version wrote it there


def as_json(tree: dict[str, Any], digits: int) -> str:
    """Return the text of a JSON file: numbers are rounded to so many digits, and nan and infinity become null."""
    return json.dumps(_json_value(tree, digits), indent=2, allow_nan=False) + "\n"


def _json_value(value: Any, digits: int) -> Any:
    """Turn NumPy's types, and containers of them, into JSON's own."""
    if isinstance(value, dict):
        return {str(key): _json_value(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(entry, digits) for entry in value]
    if isinstance(value, float | np.floating):
        return round(float(value), digits) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
