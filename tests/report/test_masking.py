"""The report of masked and padded features, on made-up predictions whose figures can be counted by hand."""

import importlib
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from sparring import statistics
from sparring.layout import Layout
from sparring.mask_padding import COLUMNS, folder_of
from sparring.params.masking import DEFAULT_FILE, STUDY_FILE, Study, load_study
from sparring.report import masking, masking_words, paper
from sparring.report.masking_curve import curve
from sparring.report.masking_facts import Facts, gather, measures, tidy_rows
from sparring.report.masking_tables import article_lines, article_tables, controls
from sparring.report.table import levels

ROOT = Path(__file__).resolve().parents[2]
LINEARITY = ["dataset", "network", "defence", "seed", "index", "gradient_norm", "linearity_error"]
CLEAN, FGSM, PGD, CW = ("none", "clean"), ("transfer", "fgsm"), ("transfer", "pgd"), ("transfer", "cw")
OWN_FGSM, OWN_PGD, OWN_CW = ("white-box", "fgsm"), ("white-box", "pgd"), ("white-box", "cw")
Answers = Mapping[tuple[str, str], Sequence[bool]]  # attacker and attack → whether each image is right


@pytest.fixture
def study() -> Study:
    """Return the study with two data sets of signs and one of faces, and with few rows."""
    complete = load_study(ROOT / STUDY_FILE)
    defences = {name: complete.defences[name] for name in ("seed", "cw_training", "mask_20", "padding", "noise")}
    datasets = {name: complete.datasets[name] for name in ("gtsrb", "belgium", "orl")}
    return complete.model_copy(update={"defences": defences, "datasets": datasets, "curve": [8, 32]})


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path)


def share(right: float, images: int = 200) -> list[bool]:
    return [number < round(right * images) for number in range(images)]


def predictions(answers: Answers, l2: Mapping[tuple[str, str], Sequence[float]], labels: Sequence[int]) -> pd.DataFrame:
    """Make the rows of one net.  labels: of the images, whose indices are 100, 101, …"""
    parts = []
    for (attacker, attack), right in answers.items():
        label = np.array(labels)
        prediction = np.where(right, label, label + 1)
        rows = {"attacker": attacker, "attack": attack, "index": 100 + np.arange(len(label)), "label": label}
        lengths = np.array(l2.get((attacker, attack), np.zeros(len(label))), np.float32)
        parts.append(pd.DataFrame(rows | {"prediction": prediction, "l2": lengths, "linf": np.float32(0)}))
    return pd.concat(parts)


def write(
    study: Study,
    layout: Layout,
    dataset: str,
    defence: str,
    answers: Answers | None,
    l2: Mapping[tuple[str, str], Sequence[float]] | None = None,
    labels: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    flat: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Write a row of the control net; without `answers` one that has no images."""
    network = study.datasets[dataset].controls[0]
    net = {"dataset": dataset, "network": network, "defence": defence}
    rows, local = pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=LINEARITY)
    if answers is not None:
        images = len(next(iter(answers.values())))
        one = predictions(answers, l2 or {}, labels or [0] * images)
        rows = pd.concat([one.assign(**net, seed=seed) for seed in seeds])[COLUMNS]
        spread = np.linspace(-0.1, 0.1, 20)
        columns = {"index": 100 + np.arange(20), "gradient_norm": flat[0] + spread, "linearity_error": flat[1] + spread}
        local = pd.concat([pd.DataFrame(columns).assign(**net, seed=seed) for seed in seeds])[LINEARITY]
    folder = folder_of(layout, dataset, defence)
    folder.mkdir(parents=True)
    rows.to_parquet(folder / "predictions.parquet", index=False)
    local.to_parquet(folder / "linearity.parquet", index=False)


def wilson(right: int, images: int) -> tuple[float, float]:
    """Compute the interval by Wilson's formula of 1927, without scipy."""
    z, p = 1.959963984540054, right / images
    middle = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(p * (1 - p) / images + z * z / (4 * images**2))
    return middle - half, middle + half


def words(facts: Facts, start: str) -> str:
    """Return the one paragraph that begins so; empty where there is none."""
    paragraphs = [
        text for text in [*masking.coverage(facts), *masking_words.sentences(facts)] if text.startswith(f"**{start}")
    ]
    assert len(paragraphs) <= 1
    return paragraphs[0] if paragraphs else ""


def test_accuracies_of_uneven_classes(study: Study, layout: Layout) -> None:
    answers = {CLEAN: [True] * 8 + [False] * 2, FGSM: [True] * 4 + [False] * 4 + [True, False]}
    write(study, layout, "gtsrb", "none", answers, labels=[0] * 8 + [1] * 2)
    rows = gather(study, layout).measured.loc["gtsrb", "dnn1", "none"]
    clean, fgsm = rows.loc[CLEAN], rows.loc[FGSM]
    assert clean[["accuracy", "ci_low", "ci_high"]].tolist() == pytest.approx([0.8, *wilson(8, 10)])
    assert (clean["images"], clean["trainings"], clean["balanced_accuracy"]) == (10, 1, 0.5)
    assert fgsm[["accuracy", "ci_low", "ci_high"]].tolist() == pytest.approx([0.5, *wilson(5, 10)])
    assert fgsm["balanced_accuracy"] == pytest.approx((4 / 8 + 1 / 2) / 2)
    assert math.isnan(clean["sd"]) and math.isnan(fgsm["l2_median"]) and math.isnan(fgsm["fooled"])


def test_cw_by_the_length_of_its_changes(study: Study, layout: Layout) -> None:
    clean = [False, True, True, True, True, True]
    answers = {CLEAN: clean, OWN_CW: [False] * 5 + [True], CW: [True, False, True, True, True, False]}
    l2 = {OWN_CW: [0, 0.05, 0.25, 0.7, 2.0, 0.3], CW: [0.05, 0.05, 0.2, 0.2, 0.2, 0.75]}
    write(study, layout, "gtsrb", "mask_20", answers, l2)
    rows = gather(study, layout).measured.loc["gtsrb", "dnn1", "mask_20"]
    own = {0.1: 4, 0.25: 3, 0.5: 3, 1.0: 2}  # the first is wrong when clean, the last is never fooled
    transfer = {0.1: 4, 0.25: 4, 0.5: 4, 1.0: 3}  # the first turns right by the attack, and counts as wrong
    for attacker, counts in (("white-box", own), ("transfer", transfer)):
        for radius, right in counts.items():
            row = rows.loc[(attacker, f"cw_l2_{radius:g}")]
            assert row[["accuracy", "ci_low", "ci_high"]].tolist() == pytest.approx([right / 6, *wilson(right, 6)])
    assert rows.loc[OWN_CW, "accuracy"] == pytest.approx(1 / 6)
    # Of the five that are right when clean: 0.05, 0.25, 0.7, 2 and, never fooled, infinity.
    assert rows.loc[OWN_CW, ["fooled", "l2_median"]].tolist() == pytest.approx([0.8, 0.7])
    assert math.isnan(rows.loc[CW, "l2_median"]) and math.isnan(rows.loc[CW, "fooled"])
    assert rows.loc[CW, "accuracy"] == pytest.approx(4 / 6)


def test_a_net_that_cw_hardly_fools_has_an_infinite_median(study: Study, layout: Layout) -> None:
    answers = {CLEAN: [True] * 4 + [False], OWN_CW: [False, True, True, True, False]}  # its one success is a short one
    write(study, layout, "gtsrb", "mask_20", answers, {OWN_CW: [0.1, 0, 0, 0, 0]})
    answers = {CLEAN: [True] * 5, OWN_CW: [False] * 5}
    write(study, layout, "gtsrb", "none", answers, {OWN_CW: [0.2, 0.3, 0.4, 0.5, 0.6]})
    facts = gather(study, layout)
    assert facts.measured.loc[("gtsrb", "dnn1", "mask_20", *OWN_CW), "l2_median"] == math.inf
    text = words(facts, "GTSRB, dnn1: mask_20.")
    assert "C&W fools a share of 0.250 (median L2 length infinite), and of the undefended net's 1.000 (" in text
    wide = controls(facts).wide["GTSRB: C&W by the length of its changes"].set_index(["defence", "figures"])
    assert wide.loc[("mask_20", "white-box"), ["fooled", "median L2"]].tolist() == ["0.250", "infinite"]
    assert wide.loc[("none", "white-box"), ["fooled", "median L2"]].tolist() == ["1.000", "0.400"]
    assert wide.loc[("none", "transfer"), ["fooled", "median L2"]].tolist() == ["-", "-"]
    masking.write(study, layout)
    table = pd.read_csv(layout.study_reports("mask_padding") / "mask_padding_controls.csv", keep_default_na=False)
    masked = table[(table["defence"] == "mask_20") & (table["attacker"] == "white-box") & (table["attack"] == "cw")]
    assert masked[["fooled", "l2_median"]].to_numpy().tolist() == [["0.25", "inf"]]


def test_several_splits_have_a_spread_and_an_image_counts_once(study: Study, layout: Layout) -> None:
    write(study, layout, "orl", "none", {CLEAN: share(0.9, 10)}, seeds=(0, 1))
    folder = folder_of(layout, "orl", "none")
    rows = pd.read_parquet(folder / "predictions.parquet")
    second = rows["seed"] == 1
    rows.loc[second, "index"] += 5  # five images are in both splits
    rows.loc[second & (rows["index"] > 108), "prediction"] = 1  # of ten, four right
    rows.to_parquet(folder / "predictions.parquet", index=False)
    facts = gather(study, layout)
    row = facts.measured.loc[("orl", "mtcnn", "none", *CLEAN)]
    assert row["accuracy"] == pytest.approx((0.9 + 0.4) / 2)
    assert row["sd"] == pytest.approx(np.std([0.9, 0.4], ddof=1))
    assert (row["images"], row["trainings"]) == (15, 2)
    assert row[["ci_low", "ci_high"]].tolist() == pytest.approx(wilson(round(0.65 * 15), 15))
    per_split = tidy_rows(facts)
    assert per_split["accuracy"].tolist() == [0.9, 0.4] and per_split["images"].tolist() == [10, 10]
    assert "ORL (mtcnn; 2 splits, seeds 0, 1; 10 test images each)" in words(facts, "Measured")
    assert "by the splits" in words(facts, "Chance") and "trained once" not in words(facts, "Chance")


def test_differences_over_splits_hold_for_other_trainings(study: Study, layout: Layout) -> None:
    for defence, right in (("mask_20", 0.8), ("seed", 0.5)):
        write(study, layout, "orl", defence, {CLEAN: share(1), FGSM: share(right)}, seeds=(0, 1, 2))
    conditions = [(name, *FGSM) for name in ("mask_20", "seed")]
    calm = gather(study, layout).difference("orl", "mtcnn", *conditions)
    assert calm and calm["difference"] == pytest.approx(0.3) and calm["side"] == 1 and calm["trainings"] == 3
    gains = np.array(share(0.8), float) - np.array(share(0.5), float)  # three splits of the same images add none
    assert calm["difference_high"] == pytest.approx(statistics.paired_difference(gains[:, None])["image_high"])
    folder = folder_of(layout, "orl", "mask_20")
    rows = pd.read_parquet(folder / "predictions.parquet")
    rows.loc[(rows["seed"] == 2) & (rows["attack"] == "fgsm"), "prediction"] = 1  # one training goes wrong
    rows.to_parquet(folder / "predictions.parquet", index=False)
    apart = gather(study, layout).difference("orl", "mtcnn", *conditions)
    assert apart and apart["difference"] == pytest.approx((0.3 + 0.3 - 0.5) / 3)
    assert apart["side"] == 0 and apart["difference_low"] < -0.5 < calm["difference_low"]


def test_the_articles_figures_stand_beside_ours(study: Study, layout: Layout) -> None:
    answers = {CLEAN: share(1), FGSM: share(0.7), OWN_FGSM: share(0.2)}
    for dataset in ("gtsrb", "orl"):
        for defence in ("none", *study.defences):
            write(study, layout, dataset, defence, answers)
    write(study, layout, "belgium", "none", None)
    tables = {table.name: table for table in article_tables(gather(study, layout))}
    assert list(tables) == [f"mask_padding_table{number}" for number in (3, 4, 5, 6)]
    key = ["dataset", "network", "defence", "attacker", "attack"]
    fourth = tables["mask_padding_table4"].tidy.set_index(key)
    ours = fourth.loc[("gtsrb", "dnn1", "cw_training", *FGSM)]
    assert (ours["accuracy"], ours["article"], ours["images"]) == (0.7, 0.84, 200)
    assert ours["eps"] == pytest.approx(study.eps)
    assert math.isnan(fourth.loc[("gtsrb", "dnn1", "cw_training", *OWN_FGSM), "article"])
    assert fourth.loc[("gtsrb", "dnn1", "cw_training", *CLEAN), "article"] == pytest.approx(0.985)
    for table in tables.values():  # without these two the transfer columns mean nothing
        assert {"none", "seed"} <= set(table.wide["GTSRB"]["defence"])
    wide = tables["mask_padding_table4"].wide["GTSRB"].set_index(["network", "defence", "figures"])
    assert wide.loc[("dnn1", "cw_training", "article"), "FGSM"] == "0.8400"
    assert wide.loc[("dnn1", "cw_training", "transfer"), "FGSM"].startswith("0.700 [0.6")
    assert wide.loc[("dnn1", "cw_training", "white-box"), "FGSM"].startswith("0.200 [0.1")
    assert wide.loc[("dnn1", "cw_training", "transfer"), "clean"].startswith("1.000 [0.9")
    assert wide.loc[("dnn1", "cw_training", "white-box"), "clean"] == ""  # it is the same, one line above
    assert wide.loc[("dnn2", "cw_training", "ours"), "FGSM"] == "-"  # of which there are no predictions
    for figures, cell in (("article", "-"), ("transfer", "1.000"), ("white-box", "")):
        assert wide.loc[("dnn1", "cw_training", figures), ["gradient norm", "linearity error"]].tolist() == [cell] * 2
    assert ours[["gradient_norm", "linearity_error"]].tolist() == pytest.approx([1, 1])
    for name, table in tables.items():  # facenet is of all but Table 5, whose faces are mtcnn's alone
        assert any("facenet has 0.25 of the width" in note for note in table.notes) == (name[-1] != "5")
    absent = tables["mask_padding_table4"].wide["BelgiumTS"]
    assert absent.loc[absent["figures"] == "article", "FGSM"].tolist() == ["0.8005", "0.8100", "0.8300", "0.7100"]
    assert (absent.loc[absent["figures"] == "ours", ["clean", "FGSM", "C&W"]] == "-").all(axis=None)
    assert "BelgiumTS: C&W by the length of its changes" not in tables["mask_padding_table4"].wide


def test_what_the_article_does_not_state_is_said(study: Study, layout: Layout) -> None:
    for dataset in ("gtsrb", "orl"):
        for defence in ("none", *study.defences):
            write(study, layout, dataset, defence, {CLEAN: share(1)})
    _, _, fifth, sixth = article_tables(gather(study, layout))
    masks = fifth.wide["GTSRB"].set_index(["network", "defence"])["figures"]
    assert "article (network unstated)" in masks.loc[("dnn1", "mask_20")].tolist()
    assert "article" in fifth.wide["ORL"]["figures"].tolist()
    padded = sixth.wide["ORL"].set_index(["network", "defence"])["figures"]
    assert padded.loc[("mtcnn", "padding")].tolist()[0] == "article (data set unstated)"
    lines = article_lines(study)
    signs = lines[(lines["table"] == 5) & (lines["dataset"] == "gtsrb")]
    assert set(signs["article_network"]) == {"unstated"} and set(signs["network"]) == {"dnn1"}


def test_the_articles_tables_are_complete() -> None:
    published = paper.masking()
    counts = published.groupby("table").size().to_dict()
    assert counts == {3: 12 * 3, 4: 12 * 5, 5: 8 * 5, 6: 6 * 3}
    assert published["article"].between(0, 1).all()
    line = published[(published["table"] == 5) & (published["dataset"] == "orl") & (published["mask_percent"] == 30)]
    assert line.set_index("attack")["article"].to_dict() == pytest.approx(
        {"clean": 0.9809, "fgsm": 0.91, "ifgsm": 0.9001, "rfgsm": 0.9005, "cw": 0.905}
    )


def test_controls_tell_how_flat_a_net_is(study: Study, layout: Layout) -> None:
    write(study, layout, "gtsrb", "none", {CLEAN: share(1), OWN_PGD: share(0.1)}, flat=(2.0, 0.5))
    write(study, layout, "gtsrb", "noise", {CLEAN: share(1), OWN_PGD: share(0.3)}, flat=(1.25, 0.25))
    table = controls(gather(study, layout))
    wide = table.wide["GTSRB"].set_index(["defence", "figures"])
    assert wide.loc[("none", "transfer"), ["gradient norm", "linearity error"]].tolist() == ["2.000", "0.500"]
    assert wide.loc[("noise", "transfer"), ["gradient norm", "linearity error"]].tolist() == ["1.250", "0.250"]
    assert wide.loc[("noise", "white-box"), "PGD"].startswith("0.300 [")
    assert wide.loc[("mask_20", "ours"), "PGD"] == "-"
    tidy = table.tidy.set_index(["defence", "attacker", "attack"])
    assert tidy.loc[("noise", *CLEAN), "gradient_norm"] == pytest.approx(1.25)


def test_flatness_over_splits_has_the_trainings_spread(study: Study, layout: Layout) -> None:
    for defence in ("none", "padding"):
        write(study, layout, "orl", defence, {CLEAN: share(1)}, seeds=(0, 1, 2), flat=(0.5, 0.5))
    path = folder_of(layout, "orl", "padding") / "linearity.parquet"
    local = pd.read_parquet(path)
    local["gradient_norm"] -= local["seed"] * 0.1  # 0, 0.1 and 0.2 smaller, which does for no other training
    local["linearity_error"] -= 0.1
    local.to_parquet(path, index=False)
    facts = gather(study, layout)
    wide = controls(facts).wide["ORL"].set_index(["defence", "figures"])
    assert wide.loc[("padding", "transfer"), "gradient norm"] == "0.400 ± 0.100"
    text = words(facts, "ORL, mtcnn: padding.")
    assert "around test images: its mean gradient norm cannot be told from the undefended net's (-0.100 [-0.3" in text
    assert "its mean linearity error is smaller than the undefended net's (-0.100 [-0.100, -0.100])." in text


@pytest.mark.parametrize(
    ("mask", "seed", "says"),
    [(0.8, 0.5, "beats it under FGSM (+0.300 ["), (0.5, 0.8, "falls behind it under FGSM (-0.300 [")],
)
def test_the_mask_is_measured_against_a_mere_reseed(
    study: Study, layout: Layout, mask: float, seed: float, says: str
) -> None:
    for defence, right in (("none", 0.1), ("seed", seed), ("mask_20", mask)):
        answers = {CLEAN: share(1), FGSM: share(right), OWN_FGSM: share(0.1), PGD: share(0.6), OWN_PGD: share(0.1)}
        write(study, layout, "gtsrb", defence, answers)
    facts = gather(study, layout)
    text = words(facts, "GTSRB, dnn1: mask_20.")
    assert f"reseeded undefended net, it {says}" in text.replace("cannot be told from it under PGD; ", "")
    assert "beside the undefended net that was attacked, it beats it under FGSM" in text
    assert "attacked itself, it cannot be told from it under FGSM, PGD." in text
    assert "It keeps 0.100 [" in text
    above, below = (1, 0) if mask > seed else (0, 1)
    assert f"another seed in {above} of 2, and below it in {below};" in words(facts, "The claim that a net")
    assert "proves nothing about a method" in words(facts, "Chance")


def test_masks_are_measured_against_one_that_hides_nothing(study: Study, layout: Layout) -> None:
    complete = load_study(ROOT / STUDY_FILE)
    study = study.model_copy(update={"defences": study.defences | {"mask_0": complete.defences["mask_0"]}})
    for defence, right in (("none", 0.1), ("seed", 0.3), ("mask_0", 0.8), ("mask_20", 0.6)):
        write(study, layout, "gtsrb", defence, {CLEAN: share(1), FGSM: share(right)})
    facts = gather(study, layout)
    claim = words(facts, "The claim that a net trained")
    assert "another seed in 1 of 1, and below it in 0; under transfer it is above the net whose" in claim
    assert "hides nothing (mask_0) in 0 of 1, and below it in 1." in claim
    text = words(facts, "GTSRB, dnn1: mask_20.")
    assert "hides nothing (mask_0), it falls behind it under FGSM (-0.200 [" in text
    tables = article_tables(facts)
    assert all("mask_0" in table.wide["GTSRB"]["defence"].tolist() for table in tables)


@pytest.mark.parametrize(
    ("norms", "says"),
    [
        ((0.9, 0.8, 0.7), "falls with every step of the share, in all by -0.200 [-0.200, -0.200]; mean linearity"),
        ((0.7, 0.8, 0.9), "rises with every step of the share, in all by +0.200 [+0.200, +0.200]; mean linearity"),
        ((0.9, 0.7, 0.8), "neither falls nor rises with every step of the share, in all by -0.100 ["),
    ],
)
def test_whether_nets_become_flatter_as_the_share_rises(
    study: Study, layout: Layout, norms: tuple[float, float, float], says: str
) -> None:
    complete = load_study(ROOT / STUDY_FILE)
    masks = {name: complete.defences[name] for name in ("mask_40", "mask_0", "mask_20")}
    study = study.model_copy(update={"defences": masks})
    write(study, layout, "gtsrb", "none", {CLEAN: share(1)}, flat=(1.0, 1.0))
    for defence, norm in zip(("mask_0", "mask_20", "mask_40"), norms, strict=True):
        write(study, layout, "gtsrb", defence, {CLEAN: share(1)}, flat=(norm, 1.0))
    text = words(gather(study, layout), "The claim that a net becomes flatter")
    cells = ", ".join(f"mask_{share} {norm:.3f}" for share, norm in zip((0, 20, 40), norms, strict=True))
    assert f"GTSRB, dnn1: mean gradient norm none 1.000, {cells}, which {says}" in text


def test_a_difference_within_chance_is_none(study: Study, layout: Layout) -> None:
    for defence, right in (("seed", 0.5), ("mask_20", 0.52)):
        write(study, layout, "gtsrb", defence, {CLEAN: share(1), FGSM: share(right)})
    text = words(gather(study, layout), "GTSRB, dnn1: mask_20.")
    assert "beside the reseeded undefended net, it cannot be told from it under FGSM." in text


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ((0.5, 0.5), "Flatter around test images (by intervals over images alone): its mean gradient norm is smaller"),
        ((1.5, 1.5), "Steeper around test images (by intervals over images alone): its mean gradient norm is larger"),
        ((0.5, 1.5), "Not shown to be flatter around test images"),
        ((1.0, 1.0), "gradient norm cannot be told from the undefended net's (+0.000 [+0.000, +0.000])"),
    ],
)
def test_whether_the_net_became_flatter(study: Study, layout: Layout, flat: tuple[float, float], says: str) -> None:
    write(study, layout, "gtsrb", "none", {CLEAN: share(1)})
    write(study, layout, "gtsrb", "padding", {CLEAN: share(1)}, flat=flat)
    assert says in words(gather(study, layout), "GTSRB, dnn1: padding.")


@pytest.mark.parametrize(("fgsm", "counts"), [(0.5, (1, 0)), (0.99, (0, 1)), (0.75, (0, 0))])
def test_whether_training_on_cw_images_carries_over(
    study: Study, layout: Layout, fgsm: float, counts: tuple[int, int]
) -> None:
    write(study, layout, "gtsrb", "cw_training", {CLEAN: share(1), CW: share(0.75), FGSM: share(fgsm)})
    write(study, layout, "gtsrb", "seed", {CLEAN: share(1), CW: share(0.9), FGSM: share(0.6)})
    text = words(gather(study, layout), "The claim that training on C&W images")
    average = f"the mean difference is {0.75 - fgsm:+.3f}."
    assert f"beyond chance in {counts[0]}, lower in {counts[1]}; {average}" in text
    assert "trained on no attack, it is higher in 1 of 1, lower in 0; the mean difference is +0.300." in text
    gains = (1, 0) if fgsm > 0.6 else (0, 1)
    assert f"beyond chance in {gains[0]} of 1, below it in {gains[1]}." in text


def test_the_mask_beside_other_trainings(study: Study, layout: Layout) -> None:
    complete = load_study(ROOT / STUDY_FILE)
    study = study.model_copy(update={"defences": study.defences | {"pgd_training": complete.defences["pgd_training"]}})
    for defence, right in (("mask_20", 0.3), ("noise", 0.1), ("pgd_training", 0.7)):
        write(study, layout, "gtsrb", defence, {CLEAN: share(1), OWN_PGD: share(right)})
    text = words(gather(study, layout), "GTSRB, dnn1: mask_20 beside other trainings, under PGD.")
    assert "Attacked itself it beats noise (+0.200 [" in text
    assert "falls behind pgd_training (-0.400 [" in text


def test_how_many_of_the_articles_figures_ours_reach(study: Study, layout: Layout) -> None:
    answers = {CLEAN: share(1), FGSM: share(0.91), PGD: share(0.1), CW: share(0.5)}
    write(study, layout, "gtsrb", "mask_20", answers)  # the article has .912 and .903
    text = words(gather(study, layout), "The claim of near 90 %")
    assert "reached in 1 of the 2 of our figures" in text
    assert "contains theirs in 1, lies below it in 1 and above it in 0." in text


def test_rows_csv_has_a_row_a_training_attack_and_attacker(study: Study, layout: Layout) -> None:
    answers = {
        CLEAN: share(0.9),
        FGSM: share(0.5),
        OWN_FGSM: share(0.2),
        CW: share(0.4),
        ("transfer", "fgsm_32"): share(0),
    }
    write(study, layout, "gtsrb", "none", answers, flat=(2.0, 0.5))
    masking.write(study, layout)
    table = pd.read_csv(layout.study_reports("mask_padding") / "rows.csv", keep_default_na=False, na_values=[""])
    assert list(table) == [
        *("dataset", "network", "defence", "seed", "attack", "attacker", "eps", "images"),
        *("accuracy", "ci_low", "ci_high", "balanced_accuracy", "gradient_norm", "linearity_error"),
    ]
    assert len(table) == 5  # and none of C&W at a radius
    rows = table.set_index(["attack", "attacker"])
    assert rows["accuracy"].to_dict() == {
        ("clean", "none"): 0.9,
        ("fgsm", "transfer"): 0.5,
        ("fgsm", "white-box"): 0.2,
        ("cw", "transfer"): 0.4,
        ("fgsm_32", "transfer"): 0,
    }
    assert rows.loc[CLEAN[::-1], ["gradient_norm", "linearity_error"]].tolist() == [2, 0.5]
    assert rows["gradient_norm"].notna().sum() == rows["linearity_error"].notna().sum() == 1
    assert rows["eps"].isna().tolist() == [attack in ("clean", "cw") for attack, _ in rows.index]
    assert rows.loc[("fgsm", "transfer"), "eps"] == pytest.approx(study.eps, rel=1e-5)
    assert rows.loc[("fgsm_32", "transfer"), "eps"] == pytest.approx(32 / 255, rel=1e-5)
    assert rows.loc[("fgsm", "white-box"), ["ci_low", "ci_high"]].tolist() == pytest.approx(wilson(40, 200), rel=1e-5)


def test_the_curve_begins_with_clean_images(study: Study, layout: Layout) -> None:
    answers = {CLEAN: share(0.9)} | {
        (who, f"fgsm_{level}"): share(0.5) for who in ("transfer", "white-box") for level in (8, 32)
    }
    for defence in ("none", "noise"):
        write(study, layout, "gtsrb", defence, answers)
    path = folder_of(layout, "gtsrb", "none") / "predictions.parquet"
    rows = pd.read_parquet(path)
    pd.concat([rows, rows.assign(network="dnn2", prediction=9)]).to_parquet(path, index=False)  # is no control net
    numbers = curve(gather(study, layout))
    assert set(numbers["defence"]) == {"none"}  # noise is not among those drawn
    for attacker in ("transfer", "white-box"):
        own = numbers[numbers["attacker"] == attacker]
        assert list(zip(own["level"], own["accuracy"], strict=True)) == [(0, 0.9), (8, 0.5), (32, 0.5)]
    masking.write(study, layout)
    picture = layout.study_reports("mask_padding") / "figures/mask_padding_curve.png"
    assert picture.stat().st_size <= 150_000 and Image.open(picture).mode == "P"


def test_rows_that_are_not_made_are_named_and_the_rest_is_told(
    study: Study, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    for defence in ("none", "seed", "padding"):
        write(study, layout, "gtsrb", defence, {CLEAN: share(1), FGSM: share(0.5)})
    for defence in ("none", *study.defences):
        write(study, layout, "belgium", defence, None)
    masking.write(study, layout)
    assert capsys.readouterr().out.endswith("; 9 rows are not made yet\n")
    page = (layout.study_reports("mask_padding") / "report.md").read_text()
    assert (
        "**Not made yet.** 9 rows, which are left out: gtsrb cw_training, gtsrb mask_20, gtsrb noise, orl none," in page
    )
    assert "**Without data.** BelgiumTS: " in page
    assert "does not carry over" not in page and "GTSRB, dnn1: mask_20" not in page
    assert "GTSRB, dnn1: padding" in page


def test_the_stage_writes_what_the_pipeline_says_even_of_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(STUDY_FILE).parent.mkdir(parents=True)
    Path("profiles").mkdir()
    for name in (STUDY_FILE, DEFAULT_FILE):
        shutil.copy(ROOT / name, name)
    for folder in ("stages", "studies/mask_padding"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    importlib.import_module("write_tables").main()
    outs = YAML(typ="safe").load(ROOT / "studies/mask_padding/dvc.yaml")["stages"]["report"]["outs"]
    outputs = {out if isinstance(out, str) else next(iter(out)) for out in outs}
    files = {path.as_posix() for path in Path("studies/mask_padding/reports").iterdir()}
    assert files == outputs
    page = Path("studies/mask_padding/reports/report.md").read_text()
    assert "Nothing was measured yet" in page and "| 0.4480" in page
    assert (
        f"PGD is {levels(load_study().eps)}, for" in page
        and "5,000 training images" in page
        and "C&W has 30 steps" in page
    )
    assert "13,000 training images of its 39,209, 33%," in page and "facenet has 0.25 of the width" in page


def test_measures_of_no_rows_have_their_columns(study: Study, layout: Layout) -> None:
    facts = gather(study, layout)
    table = measures(facts.rows, ["dataset", "network"])
    assert table.empty and {"accuracy", "balanced_accuracy", "fooled", "l2_median"} <= set(table)
    assert masking_words.sentences(facts)[-1].startswith("Nothing was measured yet")
