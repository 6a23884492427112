"""The page of an audit: the same sections as a web page and as Markdown, and its numbers as JSON."""

import shutil
from pathlib import Path
from typing import Any

from sparring.audit import verdict as words
from sparring.audit.facts import Facts, mean_under_corruptions
from sparring.audit.sections import FIGURES, Made, sections
from sparring.audit.verdict import Verdict
from sparring.report import page, publish
from sparring.report.table import number, with_interval


def write(out: Path, facts: Facts, verdict: Verdict, made: Made) -> None:
    """Write index.html, audit.md, audit.json and figures/ into a folder; what else lies there stays."""
    with publish.replacing(out) as folder:
        folder.mkdir(parents=True)
        shown = sections(folder, facts, verdict, made)
        html = page.html(made.title, shown, folder / "vector")
        texts = {"index.html": html, "audit.md": page.markdown(made.title, shown, FIGURES)}
        texts["audit.json"] = publish.as_json(tree(facts, verdict, made), 6)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        shutil.rmtree(folder / "vector")  # which the page has in it


def tree(facts: Facts, verdict: Verdict, made: Made) -> dict[str, Any]:
    """What audit.json holds, with NaN for what is not known."""
    images = facts.images
    return {
        "clean": facts.clean,
        "worst_case": facts.worst | {"norm": facts.norm, "eps": facts.eps, "autoattack": facts.autoattack},
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
        **made.facts,
    }


def one_line(facts: Facts, out: Path) -> str:
    """What is printed at the end."""
    worst = facts.worst
    shown = with_interval(worst["accuracy"], worst["ci_low"], worst["ci_high"])
    return (
        f"audit: robust accuracy {shown} within {words.ball(facts)}, clean {number(facts.clean['accuracy'])}, "
        f"{worst['images']:,} images: {out / 'index.html'}"
    )
