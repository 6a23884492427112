"""Write the study of masked and padded features: the article's tables beside ours, the controls, and the findings."""

from pathlib import Path

import pandas as pd

from sparring.layout import HERE, Layout
from sparring.params.masking import Study
from sparring.params.names import CLEAN
from sparring.report import masking_curve, masking_tables
from sparring.report.differences import ASSUMED_SPREAD
from sparring.report.escape import markdown as escaped
from sparring.report.masking_facts import CW, Facts, gather, tidy_rows
from sparring.report.masking_tables import CW_TRAINING, DATASETS, title_of
from sparring.report.masking_words import sentences
from sparring.report.publish import replacing
from sparring.report.table import Table, levels, markdown, save

GTSRB, GTSRB_IMAGES = "gtsrb", 39_209  # its official training images


def write(study: Study, layout: Layout = HERE) -> None:
    """Write the tables, the figure, rows.csv and report.md from the rows that there are, and print one line."""
    facts = gather(study, layout)
    tables = [*masking_tables.article_tables(facts), masking_tables.controls(facts)]
    numbers = masking_curve.curve(facts)
    with replacing(layout.study_reports("mask_padding")) as folder:
        for table in tables:
            save(table, folder, folder / "tex")
        masking_curve.draw(facts, numbers, folder)
        _csv(numbers, folder / f"{masking_curve.NAME}.csv")
        _csv(tidy_rows(facts), folder / "rows.csv")
        (folder / "report.md").write_text(_page(facts, tables), encoding="utf-8", newline="\n")
    left_out = f"; {len(facts.missing_rows)} rows are not made yet" if facts.missing_rows else ""
    names = ", ".join(facts.measured_datasets) or "no data set"
    print(f"mask padding: {len(facts.rows):,} predictions of {names}{left_out}", flush=True)


def _csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def _page(facts: Facts, tables: list[Table]) -> str:
    """Write all of the study on one page, in Markdown."""
    curve = (
        f"![Accuracy under FGSM by its radius, transfer and white-box.](figures/{masking_curve.NAME}.png)\n\n"
        "Accuracy of the control nets under FGSM by its radius; above under images attacked against `none`, below "
        f"under attack itself. The numbers, with intervals: [{masking_curve.NAME}.csv]({masking_curve.NAME}.csv)."
    )
    links = ", ".join(f"[{table.name}.csv]({table.name}.csv)" for table in tables)
    parts = [
        "# Masked and padded features",
        "What the study is and what its words mean: [docs/mask_padding.md](../../../docs/mask_padding.md). Every "
        f"figure of the tables, one a row: {links}; every training by itself: [rows.csv](rows.csv).",
        "## What was reproduced, and what was not",
        *coverage(facts),
        *sentences(facts),
        "## How it was made",
        "\n".join(f"- {note}" for note in _notes(facts)),
        "## The curve over eps",
        curve,
        "## Tables",
        *(markdown(table).rstrip() for table in tables),
    ]
    return "\n\n".join(parts) + "\n"


def coverage(facts: Facts) -> list[str]:
    """Say what was measured, what is missing and what `beyond chance` means, in paragraphs of Markdown."""
    if not facts.measured_datasets:
        return _missing(facts)
    return [_measured(facts), *_missing(facts), *_chance(facts)]


def _measured(facts: Facts) -> str:
    parts = []
    for dataset in facts.measured_datasets:
        rows = facts.rows[(facts.rows["dataset"] == dataset) & (facts.rows["attack"] == CLEAN)]
        splits = sorted(rows["seed"].unique())
        images = rows.groupby("seed")["index"].nunique()
        suffix = " each" if len(splits) > 1 else ""
        words = f"{len(splits)} splits, seeds" if len(splits) > 1 else "one split, seed"
        parts.append(
            f"{title_of(DATASETS, dataset)} ({', '.join(facts.networks(dataset))}; {words} "
            f"{', '.join(map(str, splits))}; {images.max():,} test images{suffix})"
        )
    return f"**Measured.** {'; '.join(parts)}."


def _missing(facts: Facts) -> list[str]:
    paragraphs = []
    if facts.empty_datasets:
        names = " and ".join(title_of(DATASETS, name) for name in facts.empty_datasets)
        paragraphs.append(
            f"**Without data.** {names}: the files are not there, so the tables have the article's figures alone."
        )
    if facts.missing_rows:
        names = ", ".join(escaped(f"{dataset} {defence}") for dataset, defence in facts.missing_rows)
        paragraphs.append(f"**Not made yet.** {len(facts.missing_rows)} rows, which are left out: {names}.")
    return paragraphs


def _chance(facts: Facts) -> list[str]:
    trained_once = [title_of(DATASETS, name) for name in facts.measured_datasets if facts.splits[name] == 1]
    several_splits = [title_of(DATASETS, name) for name in facts.measured_datasets if facts.splits[name] > 1]
    text = (
        "Differences are paired, image by image, with 95 % intervals. *Beyond chance*: more than other images and "
        "another training would make together; an interval over images may leave out zero and not do."
    )
    if trained_once:
        text += (
            f" On {' and '.join(trained_once)} every net was trained once: intervals there cover other images and no "
            f"other training, and one training proves nothing about a method, only about these nets. {ASSUMED_SPREAD}"
        )
    if several_splits:
        text += f" On {' and '.join(several_splits)} they cover other images and, by the splits, other trainings."
    return [f"**Chance.** {text}"]


def _notes(facts: Facts) -> list[str]:
    """Say what a reader has to know of the parameters: images, steps and widths."""
    study = facts.study
    notes = [
        f"eps of FGSM, I-FGSM, R-FGSM and PGD is {levels(study.eps)}, for all nets and rows. It was chosen with "
        "`studies/mask_padding/calibrate.py`, which measures an undefended net under FGSM on validation images by the "
        "radius, as the whole level nearest to the article's 44.8 % of GTSRB's dnn1; the article states none."
    ]
    for name, dataset in study.datasets.items():
        data, count = dataset.data, len(dataset.seeds)
        share = f" of its {GTSRB_IMAGES:,}, {data.train / GTSRB_IMAGES:.0%}," if name == GTSRB else ""
        splits = f"{count} splits, each trained anew" if count > 1 else "one split"
        notes.append(
            f"{title_of(DATASETS, name)}: at most {data.train:,} training images{share} and {data.heldout:,} "
            f"test images, at {data.image_size} × {data.image_size} pixels; {splits}."
        )
    notes.append(
        f"White-box attacks meet at most {study.images:,} test images of each split; C&W has "
        f"{study.attacks[CW]['steps']} steps and one constant c, so a stronger C&W would leave less."
    )
    training = study.defences.get(CW_TRAINING)
    if training and training.train:
        notes.append(
            f"Training on C&W images has at most {training.train:,} training images of each data set, as each has to "
            "be attacked first; all other rows have all that are named above."
        )
    return notes + masking_tables.width_notes(study, study.networks)
