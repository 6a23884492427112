"""Packs a run of benchmarks/full_size.py into one archive, with the GPU's use and the packages' versions."""

import json
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path

import pandas as pd

LIMIT = 16_000_000  # bytes of the archive
QUERY = ["--query-gpu=timestamp,utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--loop-ms=500"]
# These files are packed, the most important first. Files that do not fit are named in left_behind.txt.
PACKED = (
    *("plan.json", "rates.json", "benchmark.json", "machine.json", "gpu_by_part.csv", "run/params.yaml"),
    *("run/reports/*.json", "run/reports/report.md", "run/reports/tables", "run/data/timings", "run/data/history"),
    *("tasks", "run/data/predictions", "run/data/whitebox", "run/reports/index.html", "run/reports/figures/*.png"),
    *("run/data/detection", "run/data/corruptions", "gpu.csv"),
)


@contextmanager
def gpu_use(path: Path) -> Iterator[None]:
    """In the block, write twice a second the time, utilisation in per cent and memory in MiB; nothing without a GPU."""
    if shutil.which("nvidia-smi") is None:
        yield
        return
    with path.open("a") as file, subprocess.Popen(["nvidia-smi", *QUERY], stdout=file) as watching:
        try:
            yield
        finally:
            watching.terminate()


def by_part(use: Path, tasks: Path) -> pd.DataFrame:
    """Return the GPU's mean and largest utilisation (per cent) and largest memory (MiB) while each task ran.

    use: as written by `gpu_use`.  tasks: the folder with `<task>.json`, {"began", "ended"} in seconds since 1970.
    """
    rows = pd.read_csv(use, names=["time", "utilisation", "memory"], skipinitialspace=True)
    seconds = [datetime.strptime(text, "%Y/%m/%d %H:%M:%S.%f").timestamp() for text in rows["time"]]
    uses = []
    for path in sorted(tasks.glob("*.json")):
        times = json.loads(path.read_text())
        within = rows[[times["began"] <= moment <= times["ended"] for moment in seconds]]
        use_then = {"mean_use": within["utilisation"].mean(), "largest_use": within["utilisation"].max()}
        facts = {"task": path.stem, "seconds": times["ended"] - times["began"], **use_then}
        uses.append(facts | {"largest_memory": within["memory"].max()})
    return pd.DataFrame(uses).round(1)


def pack(out: Path) -> Path:
    """Write `out`/full_size.tar.gz, smaller than LIMIT, and print how large it is."""
    packages = {distribution.metadata["Name"]: distribution.version for distribution in distributions()}
    facts = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": dict(sorted(packages.items())),
    }
    (out / "machine.json").write_text(json.dumps(facts, indent=1) + "\n")
    if (out / "gpu.csv").exists():
        by_part(out / "gpu.csv", out / "tasks").to_csv(out / "gpu_by_part.csv", index=False)
    archive, behind = out / "full_size.tar.gz", out / "left_behind.txt"
    behind.unlink(missing_ok=True)
    files = [file for pattern in PACKED for file in _files(out, pattern)]
    # Packed, a byte takes about a byte at most, but each file adds its name and 512 bytes.
    size = 0
    packed: list[Path] = []
    left_out: list[Path] = []
    for file in files:
        size += file.stat().st_size + 1024
        (packed if size < LIMIT else left_out).append(file)
    if left_out:
        behind.write_text("".join(f"{file.relative_to(out)}\n" for file in left_out))
        packed.append(behind)
    with tarfile.open(archive, "w:gz") as tar:
        for file in packed:
            tar.add(file, Path("full_size") / file.relative_to(out))
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB, {len(packed)} files", flush=True)
    return archive


def _files(out: Path, pattern: str) -> Iterator[Path]:
    for path in sorted(out.glob(pattern)):
        yield from sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]
