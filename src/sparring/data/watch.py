"""This module notices changes in a user's images since `prepare` read them, as DVC does not watch `data.path`."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sparring.data.sources import existing_path, location
from sparring.layout import HERE, PARTIAL, Layout, main_repository, replacing
from sparring.params.sections import READ_FROM_PATH, Data

THREADS = 4
REMEMBERED = "watch{}.json"  # the file in PARTIAL with the digests of files that were read before

Stamp = tuple[int, int, int]  # size and times of a file: what does not change unless its content may have


def watch(data: Data, layout: Layout = HERE) -> None:
    """Write the number and size of the files that `data.path` names, and a digest of contents and paths.

    The facts go to data/source.json. A file is read again only if its size or times have changed. For a source that
    does not read `data.path` only its name is written, as its content is fixed. Raises InputError where there is no
    such path.
    """
    facts: dict[str, object] = {"source": data.source}
    if data.source in READ_FROM_PATH:
        facts |= _facts(existing_path(data))
    _write(facts, layout.source)


def watch_path(path_setting: str | None, target: Path) -> None:
    """Write the facts that `watch` writes on another path of params.yaml to `target`, a .json file of a unique name.

    For a path that does not exist this writes that it is absent, and for None no facts.
    """
    facts: dict[str, object] = {"path": path_setting}
    if path_setting is not None:
        top = location(path_setting)
        facts |= _facts(top, f"-{target.stem}") if top.exists() else {"absent": True}
    _write(facts, target)


def _write(facts: dict[str, object], target: Path) -> None:
    with replacing(target) as path:
        path.write_text(json.dumps(facts, indent=2) + "\n")


def _facts(top: Path, suffix: str = "") -> dict[str, object]:
    """Return number, size and digest of the files below a path.  suffix: of REMEMBERED, unique for each path."""
    digests_file = main_repository() / PARTIAL / REMEMBERED.format(suffix)
    earlier = _read(digests_file)
    stamps = {str(path): _stamp(path) for path in _files(top)}
    changed = [path for path, stamp in stamps.items() if path not in earlier or earlier[path][0] != stamp]
    with ThreadPoolExecutor(THREADS) as pool:
        read = dict(zip(changed, pool.map(_digest, changed), strict=True))
    digests = {path: read.get(path) or earlier[path][1] for path in stamps}
    with replacing(digests_file) as temporary:
        temporary.write_text(json.dumps({path: [stamps[path], digests[path]] for path in stamps}))
    print(f"watch: {len(stamps):,} files, of which {len(changed):,} are new or have changed", flush=True)
    whole = hashlib.sha256()
    for path, digest in digests.items():
        whole.update(f"{os.path.relpath(path, top)}\0{digest}\0".encode(errors="surrogateescape"))
    return {"files": len(stamps), "bytes": sum(stamp[0] for stamp in stamps.values()), "digest": whole.hexdigest()}


def _files(top: Path) -> Iterator[Path]:
    """Yield every file below a folder, or the file itself, in the order of names: none twice, and no hidden one."""
    if top.is_file():
        yield top
        return
    visited = set()
    for folder, inner, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # by a link, perhaps to a folder above
            inner.clear()
            continue
        visited.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        paths = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        return {name: (tuple(stamp), digest) for name, (stamp, digest) in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # There is no file yet, or it was cut short.
        return {}
