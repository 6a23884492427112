"""The opening of the report: what it says of the figures, and of the article's claims."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from finished_run import CLASSES, make_project
from structures import words

from sparring.params import Params
from sparring.params.names import BASELINE, CLEAN, EVALUATED_SPLITS
from sparring.report import overview, render


def test_each_question_is_answered_in_a_sentence(finished: Params, undrawn: None) -> None:
    def answer(wrong: list[str]) -> str:
        for name in finished.structures:
            path = Path(f"data/whitebox/{name}.parquet")
            rows = pd.read_parquet(path)
            rows.assign(prediction=(rows["label"] + (name in wrong)) % 4).to_parquet(path)
        render.render(finished)
        lines = Path("reports/report.md").read_text().splitlines()
        (line,) = (
            line for line in lines if line.startswith("- **How robust against an attacker who aims at the net?**")
        )
        return line

    line = answer([])
    assert line.endswith(
        "Right on 50 test images in the worst of all attacks on each net: baseline 1.000, adv 1.000, ours 1.000. "
        "In this one training not told apart from baseline: adv, ours."
    )
    line = answer(["adv"])
    assert line.endswith(
        "adv 0.000, ours 1.000. In this one training beyond chance worse than baseline: adv; "
        "not told apart from baseline: ours."
    )
    page = Path("reports/report.md").read_text()
    assert page.startswith(
        "# made-up images, a ResNet of 1 + 1 + 1 + 1 blocks and width 8: how accurate, and how robust\n"
    )
    for name, split in (("baseline", "test"), ("adv", "test")):
        rows = pd.read_parquet(f"data/predictions/{name}.parquet")
        clean = rows[(rows["split"] == split) & (rows["attack"] == CLEAN)]
        share = (clean["label"] == clean["prediction"]).mean()
        (line,) = (line for line in page.splitlines() if line.startswith("- **How accurate?**"))
        assert f"{name} {share:.3f}" in line
    assert "**What did it cost?** The stored attacks, made once, 2 s; all stages 2 s, on a machine." in page
    assert (
        "- **Does the paper hold?** Of its differences between structures on the mixture (3), in this one training "
        in page
    )


def test_controls_stand_beside_the_papers_structures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.chdir(tmp_path)
    opponents = {"adv": "sampler", "classical": "fixed", "fast": "online_fgsm", "madry": "online_pgd"}
    opponents |= {"clean": "none"}
    structures = {name: words(word) for name, word in opponents.items()}
    render.render(make_project(structures=structures))
    table = pd.read_csv("reports/tables/table2.csv")
    assert set(table["structure"]) == {BASELINE, *opponents} and table["accuracy"].notna().all()
    assert set(pd.read_csv("reports/tables/table4.csv")["structure"]) == {BASELINE, *opponents}
    page = Path("reports/report.md").read_text()
    assert "trained on them (fast, madry: on attacks made on the fly instead; clean: on clean images alone) for" in page
    for other in ("classical", "fast", "madry"):
        assert page.count(f"- adv minus {other}: ") == 2 and f"{other} minus adv" not in page
    assert "- online_pgd: eps 0.025, step 0.00625, steps 7, noise 1.0\n" in page


@pytest.mark.parametrize(
    ("data", "classes", "begins"),
    [
        ({"source": "folder", "path": "pictures/my_images"}, ["cat", "frog"], "my_images (cat, frog), a ResNet of "),
        ({"source": "parquet", "path": "cifar"}, list("abcdefghij"), "cifar, a ResNet of "),
        ({"source": "digits", "path": None}, ["0", "1"], "digits, a ResNet of "),
    ],
)
def test_the_title_names_the_data(
    data: dict[str, Any], classes: list[str], begins: str, tiny: Callable[..., Params]
) -> None:
    images = SimpleNamespace(metadata={"source": data["source"]})
    results: Any = SimpleNamespace(clean={"train": images}, classes=classes, params=tiny(data=data))
    assert overview.title(results).startswith(begins)


def replace_predictions(structure: str, right: bool) -> None:
    """Replace a structure's predictions by ones that are all right, or all wrong."""
    path = Path(f"data/predictions/{structure}.parquet")
    rows = pd.read_parquet(path)
    rows.assign(prediction=rows["label"] if right else (rows["label"] + 1) % len(CLASSES)).to_parquet(path)


def test_the_papers_claims_are_judged_by_the_numbers(finished: Params, undrawn: None) -> None:
    for structure, right in ((BASELINE, False), ("adv", True), ("ours", False)):
        replace_predictions(structure, right)
    render.render(finished)
    claims = pd.read_csv("reports/tables/claims.csv").set_index(["split", "attack", "structure", "other"])
    assert len(claims) == 2 * (2 + len(finished.attacks)) * 3
    for split in EVALUATED_SPLITS:
        verdicts = claims.loc[(split, "mixture"), "verdict"]
        assert verdicts[("adv", BASELINE)] == "on the paper's side"
        assert verdicts[("ours", BASELINE)] == "not told apart"
        assert verdicts[("ours", "adv")] == "on the other side"
        # The paper's adv loses there.
        assert claims.loc[(split, CLEAN, "adv", BASELINE), "verdict"] == "on the other side"
    assert claims.loc[("test", "mixture", "adv", BASELINE), ["paper", "difference"]].tolist() == [0.1686, 1]
    page = Path("reports/report.md").read_text()
    beats = "that adv beats baseline on the mixture (paper +0.169; here +1.000 ["
    assert f"In this one training on the paper's side: {beats}" in page
    assert "In this one training not told apart: that ours beats baseline on the mixture" in page
    assert (
        "In this one training on the other side: that ours beats adv on the mixture (paper +0.022; here -1.000" in page
    )
    assert "single attacks, in this one training on test images: 6 on the paper's side, 7 not told apart, 8 on" in page
    assert "Each structure was trained once, so nothing is reproduced or contradicted here: " in page
    assert "## The paper's claims, in one training\n" in page
    assert not re.search("reproduced(?! or contradicted here)|contradicted(?! here)", page, re.IGNORECASE)
    assert "On another data set the paper's figures are for orientation only." in page
    assert (
        "On test images, our interval over images contains 0 of the 24 accuracies in the paper's Tables 2 and 4; "
        in page
    )


def test_the_papers_figures_stand_beside_ours(rendered: Params) -> None:
    beside = pd.read_csv("reports/tables/paper.csv")
    assert len(beside) == 2 * 3 * (1 + 1 + len(rendered.attacks))
    assert beside["minus_paper"].to_numpy() == pytest.approx(
        (beside["accuracy"] - beside["paper"]).to_numpy(), abs=1e-5
    )
    within = (beside["ci_low"] <= beside["paper"]) & (beside["paper"] <= beside["ci_high"])
    assert (beside["within"] == within).all() and within.any() and not within.all()
    published = beside.set_index(["split", "structure", "attack"])["paper"]
    assert published[("test", "ours", "mixture")] == 0.8688 and published[("heldout", "adv", "cw")] == 0.7736


def test_without_the_papers_structures_nothing_is_said_to_be_reproduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.chdir(tmp_path)
    render.render(make_project(structures={"classical": words("fixed")}))
    page = Path("reports/report.md").read_text()
    assert "none of its claims was tried" in page and "Reproduced:" not in page and "trained once" not in page


def test_it_says_who_withstands_an_attacker_who_aims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.chdir(tmp_path)
    structures = {"adv": words("sampler"), "follows": words("evolving"), "both": words("fixed", evolving="evolving")}
    settings = make_project(structures=structures)
    shares = {BASELINE: 0.0, "adv": 0.0, "follows": 0.8, "both": 0.3}
    for name, share in shares.items():
        path = Path(f"data/whitebox/{name}.parquet")
        rows = pd.read_parquet(path)
        images = sorted(rows["index"].unique())
        right = rows["index"].isin(images[: round(share * len(images))]) | (rows["attack"] == "clean")
        rows["prediction"] = np.where(right, rows["label"], (rows["label"] + 1) % len(CLASSES))
        rows.to_parquet(path, index=False)
    render.render(settings)
    text = " ".join(Path("reports/report.md").read_text().split())
    assert "where guessing gets 0.250 and baseline 0.000 [" in text
    assert "such an attacker is withstood by follows 0.800" in text
    assert (
        "; not withstood by adv 0.000" in text
        and "; withstood no better, beyond chance, than by guessing or baseline by both 0.300" in text
    )
    assert "follows minus adv +0.800" in text and "both minus adv +0.300" in text and "both minus follows" not in text
    table = pd.read_csv("reports/tables/price.csv").set_index("structure")
    assert table.loc["follows", "worst_case_accuracy"] == pytest.approx(0.8, abs=0.02)
    assert table.loc["both", "opponents"] == "fixed, evolving" and (table["clean_accuracy"] == 1).all()
    glance = pd.read_csv("reports/tables/summary.csv").set_index("structure")
    assert glance.loc["follows", "attacks aimed at it (worst case)"].startswith("0.80")
