"""The report: reads what the other stages left in files, asks no model anything, and writes reports/.

It is a list of sections (`_sections`), from which report.md and index.html are rendered alike.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sparring.layout import HERE, Layout
from sparring.params import Params
from sparring.params.names import EVALUATED_SPLITS
from sparring.report import (
    by_attack,
    corruptions,
    detection,
    detector,
    escape,
    failures,
    gallery,
    making,
    mixture,
    overview,
    page,
    publish,
    read,
    reproduction,
    table,
    whitebox,
)
from sparring.report.figure import PICTURES
from sparring.report.page import Section
from sparring.report.paper import claims
from sparring.report.results import Results, gather
from sparring.report.table import Table


def render(params: Params, left_out: Mapping[str, str] | None = None, layout: Layout = HERE) -> None:
    """Write reports/ from the stored predictions, attacks, histories and timings, and print one line.

    left_out: which of `whitebox`, `detect` and `corruptions` are not read at all, and why, which the report says.
    Raises InputError where a file, or a part of it, is missing or does not fit the clean images. The old reports stay
    as they are until all new ones are made.
    """
    start = time.perf_counter()
    if left_out and "whitebox" in left_out:
        params = params.model_copy(update={"whitebox": params.whitebox.model_copy(update={"images": 0})})
    results = gather(params, layout, left_out or {})
    numbers = _numbers(results)
    with publish.replacing(layout.reports) as folder:
        (folder / "figures").mkdir(parents=True)
        sections = _sections(results, numbers, folder)
        for section in sections:
            for part in section.tables:
                table.save(part, folder / "tables", folder / "tex")
        summary = _summary(results, numbers)
        (folder / "summary.json").write_text(publish.as_json(summary, 6))
        (folder / "metrics.json").write_text(publish.as_json(_metrics(summary), 4))
        title = overview.title(results)
        for name, text in (
            ("report.md", page.markdown(escape.markdown(title), sections, PICTURES)),
            ("index.html", page.html(title, sections, folder / "vector")),
        ):
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    counts = [sum(len(getattr(section, kind)) for section in sections) for kind in ("tables", "figures")]
    seconds = time.perf_counter() - start
    print(f"report: {counts[0]} tables, {counts[1]} figures in {seconds:.1f} s", flush=True)


@dataclass(frozen=True)
class Numbers:
    """The tables and frames that sections are made from. Some are used by several sections."""

    mixture: Table
    by_attack: Table
    gallery: Table
    scores: detection.Scores | None
    scored: Sequence[Table]  # from detection.tables
    whitebox: whitebox.Numbers
    corruptions: Table | None
    histories: dict[str, pd.DataFrame]
    timings: Sequence[dict[str, Any]]


def _numbers(results: Results) -> Numbers:
    """Read and check all files, before anything is drawn, as drawing takes long. Return the tables made from them."""
    scores = detection.scores(results)
    return Numbers(
        scores=scores,
        whitebox=whitebox.numbers(results),
        corruptions=corruptions.table(results),
        histories=read.histories(results.params, results.layout),
        timings=read.timings(results.params, results.layout),
        mixture=mixture.table(results),
        by_attack=by_attack.table(results),
        gallery=gallery.table(results),
        scored=detection.tables(scores),
    )


def _sections(results: Results, numbers: Numbers, folder: Path) -> list[Section]:
    """Make the report's sections in their order, and draw their figures into its `folder`.

    A new section is one more entry here: `render` saves its tables and shows its figures.
    """
    both = numbers.mixture.tidy, numbers.by_attack.tidy
    aimed = numbers.whitebox
    stated = claims.claims(results.params, results.all_comparisons)
    reproduced, beside = reproduction.sections(results, stated, *both, aimed.worst, aimed.compared_in_worst)
    answers = overview.answers(results, *both, aimed.worst)
    return [
        overview.section(results, answers, numbers.timings, stated.tidy, folder),
        reproduced,
        mixture.section(results, numbers.mixture, folder),
        by_attack.section(results, numbers.by_attack, folder),
        *beside,
        whitebox.section(results, aimed, numbers.timings, folder),
        corruptions.section(results, numbers.corruptions, folder),
        gallery.section(results, numbers.gallery, folder),
        failures.section(results, folder),
        detector.section(results, numbers.scores, numbers.scored, folder),
        *making.sections(results, numbers.histories, numbers.timings, folder),
    ]


def _summary(results: Results, numbers: Numbers) -> dict[str, Any]:
    """Return the content of summary.json: all numbers of the test images and, under `heldout`, of the held-out ones."""
    clean = results.clean
    data = {"source": clean["train"].metadata["source"], "classes": len(results.classes)}
    data |= {split: len(images) for split, images in clean.items()}
    test, heldout = (_summary_of(results, numbers, split) for split in EVALUATED_SPLITS)
    aimed = whitebox.summary(numbers.whitebox.accuracy.tidy, numbers.whitebox.checks.tidy)
    return {"data": data, **test, "whitebox": aimed, "heldout": heldout}


def _summary_of(results: Results, numbers: Numbers, split: str) -> dict[str, Any]:
    on_mixture = detector.summary(results, numbers.scored, split)
    return {
        **mixture.summary(results, numbers.mixture.tidy, split),
        **by_attack.summary(numbers.by_attack.tidy, split),
        "detector": on_mixture.pop("detector"),
        **gallery.summary(results, numbers.timings, split),
        **on_mixture,
    }


def _metrics(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the content of metrics.json: the few numbers, of the test images, that `dvc exp show` shows."""
    return {
        "mixture": {name: entry["accuracy"] for name, entry in summary["mixture"].items()},
        "whitebox": {name: entry["worst_case"] for name, entry in summary["whitebox"].items()},
        "detector": {
            name: {key: entry[key] for key in ("accuracy", "auroc")} for name, entry in summary["detector"].items()
        },
    }
