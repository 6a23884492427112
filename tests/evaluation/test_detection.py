"""Detectors: known scores give known figures, the known ones are what their papers say, and an attacker who knows the
detector passes it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from conftest import measure
from sklearn.covariance import LedoitWolf
from staging import stage
from structures import words
from torch import Tensor, nn

from sparring import statistics, store
from sparring.attacks.pgd import pgd
from sparring.defences.train import train
from sparring.evaluation import adaptive as adaptive_attacks
from sparring.evaluation import detect, known_detectors
from sparring.layout import HERE
from sparring.models import classifier, networks
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import CLEAN
from sparring.report import render

STRUCTURES = {
    "ours": words("sampler", detector="detector"),
    "adv": words("sampler"),
}
CPU = torch.device("cpu")


# Figures from scores


def scores(clean: list[float], attacked: list[float], validation: list[float], seed: int = 0) -> pd.DataFrame:
    """Scores of one method: image i clean and under the attack `a`; `a` is noise's twin `b` as well."""

    def part(kind: str, attack: str, split: str, score: list[float]) -> pd.DataFrame:
        rows = pd.DataFrame({"index": np.arange(len(score)), "score": score, "label": 0, "prediction": np.nan})
        return rows.assign(method="m", split=split, seed=seed, kind=kind, attack=attack)

    return pd.concat(
        [
            part(CLEAN, CLEAN, "validation", validation),
            part(CLEAN, CLEAN, "test", clean),
            part("attack", "a", "test", attacked),
            part("attack", "b", "test", clean),
        ]
    )


def pairs(rows: pd.DataFrame, linf: list[float] | None = None, prediction: list[int] | None = None) -> pd.DataFrame:
    """Matched pairs of the attacks `a` and `b`, the latter being noise; image 0 was wrong before."""
    count = rows.loc[rows["split"] == "test", "index"].max() + 1
    stored = pd.DataFrame({"index": np.arange(count), "label": 0, "prediction": prediction or [1] * count})
    stored = stored.assign(split="test", linf=linf or [0.1] * count)
    source = pd.DataFrame({"split": "test", "index": np.arange(count), "correct": np.arange(count) > 0})
    both = pd.concat([stored.assign(attack="a"), stored.assign(attack="b", linf=0.1)])
    return statistics.matched(statistics.accuse(rows), both, source, ["b"])


def test_known_scores_give_known_figures() -> None:
    clean = [0.1, 0.2, 0.3, 0.4]
    validation = [*np.linspace(0, 0.29, 95), *np.linspace(0.5, 0.6, 5)]  # 0.29 accuses 5 of 100, 0.575 one
    table = statistics.separation(pairs(scores(clean, [0.15, 0.35, 0.58, 0.7], validation)))
    row = table.loc[("test", "a", "m")]
    assert row["auroc"] == pytest.approx((1 + 3 + 4 + 4) / 16)
    assert (row["tpr_05"], row["tpr_01"], row["images"]) == (0.75, 0.5, 4)
    assert row["auroc_low"] < row["auroc"] < row["auroc_high"] <= 1
    assert table.loc[("test", "b", "m"), "auroc"] == 0.5
    # Noise has a row of its own, and no part in that of all the others.
    assert table.loc[("test", statistics.ALL, "m"), "auroc"] == row["auroc"]
    false = statistics.false_positives(statistics.accuse(scores(clean, clean, validation)))
    assert false.loc[("test", CLEAN, "m"), ["fpr_05", "fpr_01", "images"]].tolist() == [0.5, 0, 4]
    # Without validation images the clean ones of the split set the threshold: at most 5 % of 40 are 2.
    ranks = list(np.arange(40.0))
    alone = statistics.false_positives(statistics.accuse(scores(ranks, ranks, [])))
    assert alone.loc[("test", CLEAN, "m"), ["fpr_05", "fpr_01"]].tolist() == [0.05, 0]


def test_unchanged_images_are_left_out_and_outcomes_kept_apart() -> None:
    rows = scores([0.0] * 6, [1, 0, 1, 1, 0, 1], [0.5] * 20)
    matched = pairs(rows, linf=[0.1, 0.1, 0.1, 0.0, 0.1, 0.1], prediction=[1, 1, 0, 1, 1, 0])
    table = statistics.separation(matched)
    assert table.loc[("test", "a", "m"), ["images", "tpr_05"]].tolist() == [5, pytest.approx(3 / 5)]
    assert table.loc[("test", "b", "m"), "images"] == 6
    right = statistics.pair_accuracy(matched).loc[("test", "a", "m")]
    assert right["images"].to_dict() == {"wrong before": 1, "succeeded": 2, "failed": 2}
    assert right["accuracy"].to_dict() == {"wrong before": 1, "succeeded": 0.5, "failed": 1}


def test_the_interval_of_the_area_agrees_with_a_slow_computation() -> None:
    generator = np.random.default_rng(0)
    runs = []
    for _ in range(2):
        clean = np.round(generator.normal(size=30), 1)  # with ties
        runs.append((clean, np.round(clean + generator.normal(0.8, 1, 30), 1)))
    matched = pd.concat([pairs(scores(list(c), list(a), [0.0], seed)) for seed, (c, a) in enumerate(runs)])
    area, low, high, sd = statistics.auroc(matched[matched["attack"] == "a"])

    def beats(a: float, c: float) -> float:
        return float(a > c) + 0.5 * (a == c)

    areas, pull = [], np.zeros(30)
    for clean, attacked in runs:
        table = np.array([[beats(a, c) for c in clean] for a in attacked])
        areas.append(table.mean())
        pull += (table.mean(1) + table.mean(0) - 2 * table.mean()) / 2
    assert area == pytest.approx(np.mean(areas)) and sd == pytest.approx(np.std(areas, ddof=1))
    half = 1.959963984540054 * np.sqrt((pull**2).sum() / (30 * 29))
    assert (low, high) == pytest.approx((area - half, area + half))


def test_joint_robustness_counts_images_that_are_right_or_accused() -> None:
    rows = scores([0.0] * 4, [0.0] * 4, [0.5] * 20)
    aimed = pd.DataFrame({"index": range(4), "label": 0, "prediction": [0, 0, 1, 1], "score": [0.9, 0.1, 0.9, 0.1]})
    aimed = aimed.assign(method="m", split="test", seed=0, kind="aimed", attack="adaptive")
    table = statistics.joint_robustness(statistics.accuse(pd.concat([rows, aimed])))
    assert table.loc[("test", "adaptive", "m"), ["right", "accused", "joint", "images"]].tolist() == [0.5, 0.5, 0.75, 4]


# The known detectors


def test_mahalanobis_agrees_with_a_slow_computation() -> None:
    generator = np.random.default_rng(1)
    label = generator.integers(3, size=50)
    features = [generator.normal(size=(50, width)) @ generator.normal(size=(width, width)) for width in (3, 5)]
    features[1][:, 2] = 0  # a dead channel
    new_features = [generator.normal(size=(7, width)) for width in (3, 5)]
    distances = known_detectors.mahalanobis(features, label)(new_features)
    assert distances.shape == (7, 2)
    for layer, (known, new) in enumerate(zip(features, new_features, strict=True)):
        means = {number: known[label == number].mean(0) for number in range(3)}
        centred = np.array([row - means[number] for row, number in zip(known, label, strict=True)])
        inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(centred).covariance_)
        wanted = [min((row - mean) @ inverse @ (row - mean) for mean in means.values()) for row in new]
        np.testing.assert_allclose(distances[:, layer], wanted, rtol=1e-6)


def test_squeezers() -> None:
    levels = np.array([0, 100, 130, 255], np.uint8).reshape(1, 2, 2, 1)
    assert known_detectors.fewer_bits(levels, bits=1).ravel().tolist() == [0, 0, 255, 255]
    assert known_detectors.fewer_bits(levels, bits=2).ravel().tolist() == [0, 85, 170, 255]
    speck = np.full((1, 5, 5, 3), 90, np.uint8)
    speck[0, 2, 2] = 255
    assert (known_detectors.median(speck, side=3) == 90).all()


def test_squeezing_separates_what_a_squeezer_undoes() -> None:
    class Brightest(nn.Module):
        """Two classes: whether any pixel is bright. A speck changes it, and a median takes the speck away."""

        def forward(self, images: Tensor) -> Tensor:
            bright = 20 * (images.flatten(1).amax(1) - 0.7)
            return torch.stack([-bright, bright], 1)

    generator = np.random.default_rng(2)
    clean = generator.integers(60, 120, size=(20, 8, 8, 3), dtype=np.uint8)
    attacked = clean.copy()
    attacked[:, 4, 4] = 240
    all_images = np.concatenate([clean, attacked])
    squeezers = [
        lambda images, bits=bits: known_detectors.fewer_bits(images, bits=bits) for bits in known_detectors.BITS
    ]
    squeezers += [lambda images, side=side: known_detectors.median(images, side=side) for side in known_detectors.SIDES]
    plain = classifier.predict(Brightest(), all_images, 7, CPU)
    distances = known_detectors.squeezing_distances(Brightest(), all_images, plain, squeezers, 7, CPU)
    assert distances.shape == (40, 9) and (distances >= 0).all() and (distances <= 2).all()
    adversarial = np.arange(40) >= 20
    assert distances[adversarial, -1].min() > 1.5 > 0.1 > distances[~adversarial, -1].max()
    bits, side = known_detectors.choose_squeezers(distances, adversarial)
    best = distances[:, [bits - 1, 7 + side - 2]].max(1)
    assert best[adversarial].min() > best[~adversarial].max()


# Who aims at the detector


def test_the_adaptive_attack_fools_and_is_not_seen(net: ResNet, digits: store.Images) -> None:
    def roughness(images: Tensor) -> Tensor:
        """A detector that finds what steps of gradients' signs leave behind."""
        return 1000 * (images - F.avg_pool2d(images, 3, 1, 1)).square().mean((1, 2, 3))

    images = classifier.to_images(digits.image[:60], CPU)
    labels = torch.from_numpy(digits.label[:60])
    frozen = networks.frozen(net)
    starts = torch.randn((60, 2, *images.shape[1:]), generator=torch.Generator().manual_seed(0))
    budget = {"eps": 0.1, "steps": 15}
    single = {"step": adaptive_attacks.step_length(**budget), "norm": "linf", "restarts": 1, "loss": "cross_entropy"}
    unaware = pgd(frozen, images, labels, **budget, **single, starts=starts)
    adaptive = adaptive_attacks.adaptive(frozen, images, labels, score=roughness, **budget, starts=starts)
    assert (adaptive - images).abs().max() <= 0.1 + 1e-6
    assert adaptive.min() >= 0 and adaptive.max() <= 1
    right = {
        name: frozen(attacked).argmax(1) == labels for name, attacked in (("unaware", unaware), ("adaptive", adaptive))
    }
    fooled = ~right["unaware"] & ~right["adaptive"]
    assert fooled.sum() > 20 and right["adaptive"].sum() <= right["unaware"].sum() + 2
    assert (roughness(adaptive) < roughness(unaware))[fooled].float().mean() > 0.9
    threshold = roughness(images).quantile(0.95)
    robust = {"unaware": right["unaware"] | (roughness(unaware) > threshold)}
    robust["adaptive"] = right["adaptive"] | (roughness(adaptive) > threshold)
    assert robust["adaptive"].float().mean() < robust["unaware"].float().mean() - 0.1
    # An image that is wrong and unseen as it is stays what it is, unless a better one is found.
    smooth = adaptive_attacks.adaptive(frozen, images, 9 - labels, score=roughness, **budget, starts=starts)
    wrong = frozen(images).argmax(1) != 9 - labels
    assert (roughness(smooth) <= roughness(images) + 1e-5)[wrong].all()


# The stage


def test_from_the_stage_to_the_report(project: Path, tiny: Callable[..., Params]) -> None:
    changes = {"training": {"epochs": 2, "batch_size": 50}, "structures": STRUCTURES, "seeds": [0, 1]}
    settings = tiny(**changes)
    for name in STRUCTURES:
        train(settings, name)
    measure(settings)
    path = HERE.detection("ours")
    rows = pd.read_parquet(path)
    assert pq.read_schema(path).names == detect.SCHEMA.names
    assert len(pd.read_parquet(HERE.detection("adv"))) == 0
    counts = rows[rows["seed"] == 1].groupby(["split", "kind"]).size().to_dict()
    wanted = {("validation", CLEAN): 20}
    for split, count in (("test", 120), ("heldout", 40)):
        wanted |= {(split, CLEAN): count, (split, "attack"): 4 * count, (split, "benign"): 3 * count}
        wanted |= {(split, "aimed"): 30}
    assert counts == wanted
    # On stored images the score is that of data/predictions, as a logit.
    stored = rows[rows["kind"].isin([CLEAN, "attack"])]
    both = stored.merge(pd.read_parquet(HERE.predictions("ours")), on=["split", "attack", "seed", "index"])
    assert len(both) == 2 * 160 * 5
    np.testing.assert_allclose(1 / (1 + np.exp(-both["detector"])), both["detector_score"], atol=1e-5)
    # The known detectors know nothing of the structure, so its seeds change nothing.
    columns = ["split", "kind", "attack", "index", "mahalanobis", "squeezing"]
    first, second = (stored.loc[stored["seed"] == seed, columns].reset_index(drop=True) for seed in (0, 1))
    assert first.equals(second) and first.notna().all(axis=None)
    aimed = rows[rows["kind"] == "aimed"]
    assert aimed["prediction"].notna().all() and rows.loc[rows["kind"] != "aimed", "prediction"].isna().all()
    before = path.read_bytes()
    detect.detect(settings, "ours")
    assert path.read_bytes() == before
    render.render(settings)
    table = pd.read_csv("reports/tables/detector_attacks.csv")
    assert set(table["method"]) == {"ours", "mahalanobis", "squeezing"}
    assert set(table["attack"]) == {*settings.attacks, *settings.unseen_attacks, statistics.ALL}
    assert table.loc[table["attack"] != statistics.ALL, "auroc"].between(0, 1).all()
    page = Path("reports/report.md").read_text()
    assert "sees both" in page and "gaussian (noise)" in page


def test_a_structure_without_a_detector_and_bad_input_by_the_script(project: Path) -> None:
    done = stage("detect", "adv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("detect@adv: it has no detector\n")
    rows = pd.read_parquet(HERE.detection("adv"))
    assert len(rows) == 0 and list(rows.columns) == detect.SCHEMA.names
    failed = stage("detect", "ours")
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr == "error: models/ours/0.safetensors is missing; `dvc repro` makes it\n"
    assert not HERE.detection("ours").exists()


def test_known_detectors_are_fitted_on_validation_images_or_else_on_training_images(
    project: Path, tiny: Callable[..., Params]
) -> None:
    settings = tiny(training={"epochs": 1, "batch_size": 50}, structures=STRUCTURES)
    train(settings, "ours")

    def fitted() -> dict[str, Any]:
        detect.detect(settings, "ours")
        facts = json.loads(pq.read_schema(HERE.detection("ours")).metadata[store.METADATA_KEY])
        return {key: facts[key] for key in ("split", "fit", "gaussians")}

    assert fitted() == {"split": "validation", "fit": 20, "gaussians": 300}
    for folder in (HERE.clean, *(HERE.adversarial / attack for attack in settings.attacks)):
        images = store.read(folder / "validation.parquet")
        store.write(folder / "validation.parquet", [images[:0]], images.metadata)
    assert fitted() == {"split": "train", "fit": 30, "gaussians": 270}


def test_missing_and_foreign_files_are_one_line(project: Path, tiny: Callable[..., Params]) -> None:
    settings = tiny(training={"epochs": 1, "batch_size": 50}, structures=STRUCTURES)
    with pytest.raises(InputError, match=r"structures\.our is missing; there are baseline, ours, adv"):
        detect.detect(settings, "our")
    train(settings, "ours")
    moved = HERE.adversarial / "fgsm"
    shutil.move(moved, "elsewhere")
    with pytest.raises(InputError, match=r"fgsm/validation\.parquet is missing; `dvc repro` makes it"):
        detect.detect(settings, "ours")
    shutil.move("elsewhere", moved)
    images = store.read(moved / "test.parquet")
    store.write(moved / "test.parquet", [images], images.metadata | {"source_model": "another"})
    with pytest.raises(InputError, match=r"fgsm/test\.parquet was made against model another") as caught:
        detect.detect(settings, "ours")
    assert "\n" not in str(caught.value)
    for attack in settings.attacks:  # as if no attack had changed anything
        path = HERE.adversarial / attack / "validation.parquet"
        images = store.read(path)
        images.columns["linf"] = np.zeros(len(images), np.float32)
        store.write(path, [images], images.metadata)
    with pytest.raises(InputError, match=r"data\.validation is 20; no attack changed any of the 20 images"):
        detect.detect(settings, "ours")
