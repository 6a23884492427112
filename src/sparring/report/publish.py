"""A report's files take the place of the old ones all at once, when all of them are made."""

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
    """A temporary folder whose files take the place of those in `folder` when the block ends well.

    What else lies in `folder` stays.
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
    """Write the one table of a study."""
    with replacing(folder) as temporary:
        save(table, temporary, temporary / "tex")
    (folder / f"{table.name}.tex").unlink(missing_ok=True)  # where it was before there was the folder tex


def as_json(tree: dict[str, Any], digits: int) -> str:
    """A tree of numbers as the text of a JSON file: rounded, and null for what is not known or not finite."""
    return json.dumps(_plain(tree, digits), indent=2, allow_nan=False) + "\n"


def _plain(value: Any, digits: int) -> Any:
    """JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, digits) for entry in value]
    if isinstance(value, float | np.floating):
        return round(float(value), digits) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
