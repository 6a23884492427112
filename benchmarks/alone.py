"""Measures the rows of both benchmarks, each in its own process."""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pandas as pd


def rows(measure: Callable[..., dict[str, Any]], calls: dict[str, tuple[object, ...]]) -> pd.DataFrame:
    """Return what `measure` returns for each of the calls {name: arguments}. Each runs in a process of its own, so that
    none inherits another's memory and caches. A call that fails or is killed is left out, and standard error says why.
    """
    measured = []
    for name, arguments in calls.items():
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                row = process.submit(measure, *arguments).result()
        except Exception as error:  # a library may fail in any way; that must not end the others' run
            reason = " ".join(str(error).split())[:150]
            print(f"{name} left out: {type(error).__name__}: {reason}", file=sys.stderr, flush=True)
            continue
        print(f"{name}: {row['images_per_second']} images/s", file=sys.stderr, flush=True)
        measured.append(row)
    if not measured:
        sys.exit("error: nothing could be measured")
    return pd.DataFrame(measured)
