"""A report's files take the place of the old ones all at once, when all of them are made."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
