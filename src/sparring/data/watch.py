"""Whether a user's images are still those that `prepare` read: DVC does not look at what `data.path` names."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sparring.data.sources import existing, location
from sparring.layout import HERE, PARTIAL, Layout, main_repository, replacing
from sparring.params.sections import READ_FROM_PATH, Data

THREADS = 4
REMEMBERED = "watch{}.json"  # in PARTIAL: digests of the files that were read before

Stamp = tuple[int, int, int]  # size and times of a file: what does not change unless its content may have


def watch(data: Data, layout: Layout = HERE) -> None:
    """Write data/source.json: number, size and digest of the files that `data.path` names, of their contents and paths.

    A file is read again only if its size or times have changed. The other sources have nothing to watch: their content
    is fixed. Raises InputError where there is no such path.
    """
    facts: dict[str, object] = {"source": data.source}
    if data.source in READ_FROM_PATH:
        facts |= _facts(existing(data))
    _write(facts, layout.source)


def watch_path(named: str | None, target: Path) -> None:
    """Write the same of the files that `named` names, as `data.path` does, to `target`, a .json of a name of its own;
    of a path that is not there, that it is absent, and of None nothing but that."""
    facts: dict[str, object] = {"path": named}
    if named is not None:
        top = location(named)
        facts |= _facts(top, f"-{target.stem}") if top.exists() else {"absent": True}
    _write(facts, target)


def _write(facts: dict[str, object], target: Path) -> None:
    with replacing(target) as path:
        path.write_text(json.dumps(facts, indent=2) + "\n")


def _facts(top: Path, which: str = "") -> dict[str, object]:
    """which: of the files that remember digests, one for each path that is watched."""
    remembered = main_repository() / PARTIAL / REMEMBERED.format(which)
    before = _read(remembered)
    stamps = {str(path): _stamp(path) for path in _files(top)}
    unknown = [path for path, stamp in stamps.items() if path not in before or before[path][0] != stamp]
    with ThreadPoolExecutor(THREADS) as pool:
        read = dict(zip(unknown, pool.map(_digest, unknown), strict=True))
    digests = {path: read.get(path) or before[path][1] for path in stamps}
    with replacing(remembered) as temporary:
        temporary.write_text(json.dumps({path: [stamps[path], digests[path]] for path in stamps}))
    print(f"watch: {len(stamps):,} files, of which {len(unknown):,} are new or have changed", flush=True)
    whole = hashlib.sha256()
    for path, digest in digests.items():
        whole.update(f"{os.path.relpath(path, top)}\0{digest}\0".encode(errors="surrogateescape"))
    return {"files": len(stamps), "bytes": sum(stamp[0] for stamp in stamps.values()), "digest": whole.hexdigest()}


def _files(top: Path) -> Iterator[Path]:
    """Every file below a folder, or the file itself, in the order of their names; none twice, and no hidden one."""
    if top.is_file():
        yield top
        return
    visited = set()
    for folder, below, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # by a link, perhaps to a folder above
            below.clear()
            continue
        visited.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
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
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or cut short
        return {}
