"""The page of an audit: the same sections as a web page and as Markdown, and its numbers as JSON."""

import shutil
from pathlib import Path
from typing import Any

from sparring.audit import verdict as words
from sparring.audit.facts import Facts, mean_under_corruptions
from sparring.audit.sections import FIGURES, PageData, sections
from sparring.audit.verdict import Verdict
from sparring.report import page, publish
from sparring.report.table import number, with_interval


def write(out: Path, facts: Facts, verdict: Verdict, page_data: PageData) -> None:
    """Write index.html, audit.md, audit.json and figures/ into a folder; what else lies there stays."""
    with publish.replacing(out) as folder:
        folder.mkdir(parents=True)
        page_sections = sections(folder, facts, verdict, page_data)
        html = page.html(page_data.title, page_sections, folder / "vector")
        texts = {"index.html": html, "audit.md": page.markdown(page_data.title, page_sections, FIGURES)}
        texts["audit.json"] = publish.as_json(json_tree(facts, verdict, page_data), 6)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        shutil.rmtree(folder / "vector")  # the page has these figures inside


def json_tree(facts: Facts, verdict: Verdict, page_data: PageData) -> dict[str, Any]:
    """Return the content of audit.json, with NaN for what is not known."""
    images = facts.images
    return {
        "clean": facts.clean,
        "worst_case": facts.worst
        | {"norm": facts.norm, "eps": facts.eps, "autoattack": facts.autoattack, "unattacked": facts.unattacked},
        "attacks": facts.attacks.to_dict("records"),
        "curve": {
            "points": facts.curve.to_dict("records"),
            "median_least": facts.median_least,
            "median_least_l2": facts.median_length,
            "images": int(images["on_curve"].sum()),
        },
        "checks": facts.checks.to_dict("records"),
        "masked": verdict.masked,
        "corruptions": {"mean": mean_under_corruptions(facts.corruptions)}
        | {"by_strength": facts.corruptions.to_dict("records")},
        "calibration": facts.calibration,
        "classes": facts.by_class.to_dict("records"),
        "left_out": facts.left_out,
        "verdict": verdict.sentences,
        **page_data.facts,
    }


def one_line(facts: Facts, out: Path) -> str:
    """Return the last line that an audit prints."""
    worst = facts.worst
    accuracy = with_interval(worst["accuracy"], worst["ci_low"], worst["ci_high"])
    return (
        f"audit: robust accuracy {facts.at_most}{accuracy} within {words.threat_model(facts)}, "
        f"clean {number(facts.clean['accuracy'])}, {worst['images']:,} images: {out / 'index.html'}"
    )
