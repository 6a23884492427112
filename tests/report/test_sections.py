"""The numbers in the report's sections follow from the stored predictions."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import FIGURES, ROOT, leave_undrawn, make_project
from ruamel.yaml import YAML

from sparring import statistics, store
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import BASELINE, CLEAN
from sparring.report import render


def test_numbers_agree_with_the_predictions(rendered: Params) -> None:
    summary = json.loads(Path("reports/summary.json").read_text())
    assert summary["data"] == {"source": "made-up images", "classes": 4, "train": 60, "test": 90, "heldout": 60}
    text = Path("reports/report.md").read_text()
    assert "Classes, by the number of their output: 0 zero, 1 one, 2 two, 3 three." in text
    rows = pd.read_parquet("data/predictions/adv.parquet")
    right = rows["label"] == rows["prediction"]
    for split, tree in (("test", summary), ("heldout", summary["heldout"])):
        for attack in (CLEAN, *rendered.attacks, *rendered.unseen_attacks):
            of_attack = right[(rows["split"] == split) & (rows["attack"] == attack)]
            assert tree["per_attack"]["adv"][attack] == pytest.approx(of_attack.mean(), abs=1e-6)
        clean = store.read(Path(f"data/clean/{split}.parquet"))
        draw = statistics.draw_mixture(clean.index, clean.label, list(rendered.attacks), 0.5, rendered.seed, split)
        attack_of = dict(zip(draw["index"], draw["attack"], strict=True))
        in_mixture = (rows["split"] == split) & (rows["attack"] == rows["index"].map(attack_of))
        assert in_mixture.sum() == len(clean)
        entry = tree["mixture"]["adv"]
        assert entry["accuracy"] == pytest.approx(right[in_mixture].mean(), abs=1e-6)
        assert entry["ci_low"] < entry["accuracy"] < entry["ci_high"]
    metrics = json.loads(Path("reports/metrics.json").read_text())
    assert set(metrics["mixture"]) == {BASELINE, "adv", "ours"}
    assert set(metrics["detector"]) == {"ours"}
    assert metrics["detector"]["ours"]["auroc"] == round(summary["detector"]["ours"]["auroc"], 4)
    attacks = summary["attacks"]
    assert attacks["fgsm"]["images_per_second"] == 105
    assert attacks["bim"]["images_per_second"] is None
    assert attacks["pgd"]["unchanged"] == 9
    assert attacks["pgd"]["images"] == 90


def test_success_counts_only_images_that_were_right_before(rendered: Params) -> None:
    facts = json.loads(Path("reports/summary.json").read_text())["attacks"]["cw"]
    rows = pd.read_parquet("data/predictions/baseline.parquet")
    rows = rows[(rows["split"] == "test") & (rows["attack"] == CLEAN)].set_index("index")
    ways = {"success": "prediction", "success_float": "prediction_float", "success_rounded": "prediction_rounded"}
    stored = store.read(Path("data/adversarial/cw/test.parquet"), tuple(ways.values()))
    before = (rows["label"] == rows["prediction"]).loc[stored.index].to_numpy()
    for name, column in ways.items():
        after = stored.columns[column] == stored.label
        assert facts[name] == pytest.approx((before & ~after).sum() / before.sum(), abs=1e-6)


def test_tables_tell_what_the_figures_are(rendered: Params) -> None:
    table1 = Path("reports/tables/table1.md").read_text()
    assert table1.count("6/255") >= 2  # fgsm 0.025 and bim 0.026 are the same radius once stored
    assert "pgd (unseen)" in table1
    for name in ("table2", "table4"):
        text = Path(f"reports/tables/{name}.md").read_text()
        assert "transfer" in text
        assert "white-box" in text
        assert "made-up images" in text
        assert "0.8688" in text if name == "table2" else "0.8916" in text
    tidy = pd.read_csv("reports/tables/table4.csv")
    assert len(tidy) == 2 * 3 * 8
    assert tidy.loc[tidy["attack"] == "pgd", "paper"].isna().all()
    assert not tidy.loc[tidy["attack"] == "pgd", "seen"].any()
    plot = pd.read_csv("reports/figures/accuracy_by_attack.csv")
    assert list(plot.columns) == ["attack", "structure", "accuracy"]


def test_a_detector_without_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    monkeypatch.chdir(tmp_path)
    data = YAML(typ="safe").load(ROOT / "profiles" / "digits.yaml")["data"] | {"test": 0}
    render.render(make_project(data=data))
    table = pd.read_csv("reports/tables/detector_attacks.csv").set_index("split")
    assert table.loc["test", "auroc"].isna().all() and table.loc["heldout", "auroc"].notna().all()


def test_several_seeds_are_pooled(finished: Params, undrawn: None) -> None:
    path = Path("data/predictions/adv.parquet")
    rows = pd.read_parquet(path)
    pd.concat([rows, rows.assign(seed=1, prediction=rows["label"])]).to_parquet(path)
    render.render(finished)
    summary = json.loads(Path("reports/summary.json").read_text())
    clean = rows[(rows["split"] == "test") & (rows["attack"] == CLEAN)]
    pooled = (1 + (clean["label"] == clean["prediction"]).mean()) / 2
    assert summary["per_attack"]["adv"][CLEAN] == pytest.approx(pooled, abs=1e-6)
    table = Path("reports/tables/table4.md").read_text()
    assert "adv 2" in table and "trained once" not in Path("reports/report.md").read_text()
    sd = (1 - (clean["label"] == clean["prediction"]).mean()) / np.sqrt(2)
    assert f"{pooled:.3f} ± {sd:.3f} [" in table
    tidy = pd.read_csv("reports/tables/table2.csv").set_index(["split", "structure"])
    assert tidy.loc[("test", "adv"), "sd"] > 0 and np.isnan(tidy.loc[("test", "ours"), "sd"])
    assert summary["mixture"]["adv"]["sd"] == pytest.approx(tidy.loc[("test", "adv"), "sd"], abs=1e-5)


def test_mcnemar_stands_beside_tables_2_and_4(rendered: Params) -> None:
    first, second = (pd.read_parquet(f"data/predictions/{name}.parquet") for name in ("ours", "adv"))
    pairs = first.merge(second, on=["split", "attack", "index"])
    pairs = pairs[(pairs["split"] == "test") & (pairs["attack"] == "cw")]
    ours, adv = (pairs[f"label_{side}"] == pairs[f"prediction_{side}"] for side in "xy")
    table = pd.read_csv("reports/tables/table4_mcnemar.csv").set_index(["split", "attack", "structure", "other"])
    assert len(table) == 2 * (1 + len(rendered.attacks) + 1) * 3
    row = table.loc[("test", "cw", "ours", "adv")]
    more, less = int((ours & ~adv).sum()), int((adv & ~ours).sum())
    assert [row["more"], row["less"], row["images"]] == [more, less, 90]
    tail = sum(math.comb(more + less, count) for count in range(min(more, less) + 1)) / 2 ** (more + less)
    assert row["p"] == pytest.approx(min(1, 2 * tail), rel=1e-4)
    assert f"({more} : {less})" in Path("reports/tables/table4_mcnemar.md").read_text()
    assert len(pd.read_csv("reports/tables/table2_mcnemar.csv")) == 2 * 3
    summary = json.loads(Path("reports/summary.json").read_text())
    assert set(summary["differences"]) == {"adv minus baseline", "ours minus baseline", "ours minus adv"}


def test_mcnemar_compares_what_withstood_every_attack_image_by_image(rendered: Params) -> None:
    withstood = {}
    for structure in ("ours", "adv"):
        rows = pd.read_parquet(f"data/whitebox/{structure}.parquet")
        inside = rows[rows["l2"] <= 0.5]  # of these made-up rows only the clean ones
        withstood[structure] = (inside["label"] == inside["prediction"]).groupby(inside["index"]).all()
    table = pd.read_csv("reports/tables/whitebox_mcnemar.csv").set_index(["attack", "structure", "other"])
    row = table.loc[("worst case, L2 0.5", "ours", "adv")]
    more = int((withstood["ours"] & ~withstood["adv"]).sum())
    less = int((withstood["adv"] & ~withstood["ours"]).sum())
    assert [row["more"], row["less"], row["images"]] == [more, less, 50] and more + less
    text = Path("reports/tables/whitebox_mcnemar.md").read_text()
    assert f"({more} : {less})" in text and "Held-out" not in text


def test_corruptions_are_counted_by_strength_and_image(rendered: Params) -> None:
    table = pd.read_csv("reports/tables/corruptions.csv").set_index(["structure", "corruption", "strength"])
    assert len(table) == len(rendered.structures) * 31 and (table["images"] == 60).all()
    accuracies = table.loc["adv", ["accuracy", "ci_low", "ci_high"]]
    assert accuracies.loc[("noise", 1)].tolist() == pytest.approx([1, *statistics.wilson(60, 60)], rel=1e-5)
    assert accuracies.loc[("noise", 5)].tolist() == pytest.approx([59 / 60, *statistics.wilson(59, 60)], rel=1e-5)
    lines = Path("reports/tables/corruptions.md").read_text().splitlines()
    (mean,) = (line for line in lines if line.startswith("| noise") and line.count("|") == len(rendered.structures) + 2)
    assert f"{1 - 4 / 5 / 60:.3f}" in mean


def test_a_missing_corruption_is_one_line(finished: Params) -> None:
    path = Path("data/corruptions/adv.parquet")
    rows = pd.read_parquet(path)
    rows[(rows["corruption"] != "jpeg") | (rows["strength"] != 3)].to_parquet(path)
    with pytest.raises(InputError, match=r"adv\.parquet: seed 0, heldout, jpeg:3: 60 of 60 images have no prediction"):
        render.render(finished)
    path.unlink()
    with pytest.raises(InputError, match=r"data/corruptions/adv\.parquet is missing; `dvc repro` makes it"):
        render.render(finished)


def test_a_collapse_is_told_beside_its_curve(finished: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, pgd in (("adv", [np.nan, 0.3, np.nan, 0.02, np.nan]), ("ours", [0.1, 0.2, 0.2, 0.3, 0.3])):
        path = Path(f"data/history/{name}.csv")
        history = pd.read_csv(path).assign(pgd_accuracy=pgd, fgsm_accuracy=[0.2, 0.4, 0.5, 0.9, 0.9])
        history.to_csv(path, index=False)
    leave_undrawn(monkeypatch, set(FIGURES) - {"curves"})
    render.render(finished)
    page = Path("reports/report.md").read_text()
    assert page.count("has collapsed") == 1 and "**adv, epoch 4**: its training has collapsed" in page
    history = pd.read_csv("data/history/adv.csv")  # of two seeds, of which the mean would tell nothing
    healthy = history.assign(pgd_accuracy=0.3, fgsm_accuracy=0.4, seed=0)
    pd.concat([healthy, history.assign(seed=1)]).to_csv("data/history/adv.csv", index=False)
    render.render(finished)
    assert "**adv, seed 1, epoch 4**: its training has collapsed" in Path("reports/report.md").read_text()
    drawing = Path("reports/vector/curves.svg").read_text()
    assert "Under attack, validation images" in drawing
