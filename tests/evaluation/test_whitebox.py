"""White-box evaluation: attacks aimed at a structure itself, and what the report makes of their rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchattacks
from conftest import PGD
from hypothesis import given, settings
from hypothesis import strategies as st
from staging import stage
from structures import words
from torch import Tensor, nn

from sparring import statistics, store
from sparring.attacks import generation
from sparring.evaluation import whitebox
from sparring.layout import HERE, PARTIAL
from sparring.models import classifier, model_files, networks
from sparring.models.classifier import Classifier
from sparring.models.detector import TransformerDetector
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import AUTOATTACK, BASELINE, CLEAN, MORE_STEPS, SQUARE
from sparring.report import checks
from sparring.report import whitebox as robustness

ALONE: dict[str, Any] = {"adv": words("sampler")}


def rows_of(params: Params, structure: str) -> pd.DataFrame:
    whitebox.attack_structure(params, structure)
    rows = pd.read_parquet(HERE.whitebox(structure))
    return rows.assign(structure=structure, correct=rows["prediction"] == rows["label"])


def no_transfer() -> pd.DataFrame:
    return pd.DataFrame(columns=["structure", "seed", "index", "attack", "correct"])


# The stage


def test_rows_are_those_of_attacks_on_that_very_net(project: Path, tiny: Callable[..., Params], net: ResNet) -> None:
    params = tiny(whitebox={"autoattack": {"images": 6, "eps": 0.1}})
    rows = rows_of(params, BASELINE)
    assert list(rows.columns[:10]) == whitebox.COLUMNS
    counts = {CLEAN: 24, "fgsm": 24, "pgd": 24, "pgd_l2": 24, "cw": 24, AUTOATTACK: 6, MORE_STEPS: 12, SQUARE: 12}
    assert rows["attack"].value_counts(sort=False).to_dict() == counts | {"eps=8/255": 12, "eps=255/255": 12}
    assert not rows.duplicated(["attack", "index"]).any()
    under = {name: part.set_index("index") for name, part in rows.groupby("attack")}
    clean = under[CLEAN]
    assert clean["label"].value_counts().between(2, 3).all() and clean["label"].nunique() == 10
    wrong = clean.index[~clean["correct"]]
    assert len(wrong) < 12
    for name, part in under.items():
        assert not part.loc[part.index.intersection(wrong), ["correct", "l2", "linf"]].to_numpy().any()
        attack = None if name == CLEAN else params.whitebox.runs[str(name)][0]
        if attack is not None and attack.linf is not None:
            assert (part["linf"] <= attack.linf + 1e-6).all()
            assert part["linf"].max() > 0 or name == SQUARE  # which leaves what it cannot fool as it was
        if attack is not None and attack.l2 is not None:
            assert (part["l2"] <= 0.5 + 1e-6).all() and part["l2"].max() > 0.4

    test = store.read(HERE.clean / "test.parquet")
    right = test[np.flatnonzero(np.isin(test.index, clean.index[clean["correct"]]))]
    images, labels = classifier.to_images(right.image, torch.device("cpu")).contiguous(), torch.from_numpy(right.label)

    def predicted(attack: torchattacks.attack.Attack) -> np.ndarray:
        attacked = (attack(images, labels) * 255).round() / 255
        with torch.no_grad():
            return net(attacked).argmax(1).numpy()

    eps = params.whitebox.attacks["pgd"].linf
    ours = under["fgsm"].loc[right.index, "prediction"]
    assert (predicted(torchattacks.FGSM(net, eps=eps)) == ours).mean() > 0.95
    torch.manual_seed(0)
    slow = predicted(torchattacks.PGD(net, eps=eps, alpha=eps / 4, steps=40)) == right.label
    assert abs(slow.mean() - under[MORE_STEPS]["correct"].mean()) < 0.25
    assert abs(slow.mean() - under["pgd"].loc[right.index, "correct"].mean()) < 0.15
    assert under["pgd"]["correct"].mean() < clean["correct"].mean() - 0.2


def test_each_seed_of_a_structure_is_attacked_and_its_detector_asked(
    project: Path, tiny: Callable[..., Params], net: ResNet
) -> None:
    params = tiny(
        seeds=[3, 4],
        whitebox={"attacks": {"pgd": PGD | {"eps": 0.05, "step": 0.02}}},
        structures={"ours": words("sampler", detector="detector")},
    )
    torch.manual_seed(0)
    detector = TransformerDetector(params.detector, classifier.map_shapes(net, 16))
    for seed in params.seeds:
        model_files.save_model(net, HERE.model("ours", seed), {})
        model_files.save_model(detector, HERE.detector("ours", seed), {})
        with torch.no_grad():
            net.fc.weight.mul_(torch.linspace(0.5, 2, 10)[:, None])
    rows, base = rows_of(params, "ours"), rows_of(params, BASELINE)
    first, second = (rows[rows["seed"] == seed].reset_index() for seed in params.seeds)
    # The net of the first seed is the pretrained net: the same attacks make the same images of it.
    for column in ("index", "attack", "prediction", "l2", "linf"):
        assert first[column].equals(base[column])
    assert (second["prediction"] != first["prediction"]).any()
    assert rows["detector_score"].between(0, 1).all() and base["detector_score"].isna().all()


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny(store={"shard_size": 10, "batch_size": 10})
    path = HERE.whitebox(BASELINE)
    calls, attacked = [], generation.attacked

    def counted(*arguments: Any, **more: Any) -> store.Images:
        calls.append(arguments)
        if len(calls) == limit:
            raise KeyboardInterrupt
        return attacked(*arguments, **more)

    monkeypatch.setattr(generation, "attacked", counted)
    limit = 0
    whitebox.attack_structure(params, BASELINE)
    wanted, total = path.read_bytes(), len(calls)
    assert total > 15 and not list(PARTIAL.iterdir())
    path.unlink()
    calls.clear()
    limit = 8
    with pytest.raises(KeyboardInterrupt):
        whitebox.attack_structure(params, BASELINE)
    assert not path.exists()
    calls.clear()
    limit = 0
    whitebox.attack_structure(params, BASELINE)
    assert len(calls) == total - 7
    assert path.read_bytes() == wanted and not list(PARTIAL.iterdir())
    whitebox.attack_structure(tiny(store={"shard_size": 10, "batch_size": 10}, whitebox={"images": 0}), BASELINE)
    assert len(pd.read_parquet(path)) == 0


def test_the_stage_script_and_its_bad_input(project: Path, tiny: Callable[..., Params]) -> None:
    done = stage("whitebox", BASELINE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("whitebox@baseline: 168 predictions of the attacked structure in ")
    assert done.stdout.count("\n") == 1
    with pytest.raises(InputError, match=r"structures\.advv is missing; there are baseline, adv, ours"):
        whitebox.attack_structure(tiny(), "advv")
    with pytest.raises(InputError, match=r"models/adv/0\.safetensors is missing; `dvc repro` makes it"):
        whitebox.attack_structure(tiny(), "adv")
    assert [file.name for file in HERE.whitebox("baseline").parent.iterdir()] == ["baseline.parquet"]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 9), data=st.data())
def test_every_beginning_of_the_draw_has_the_classes_in_their_shares(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    label = np.repeat(np.arange(len(sizes)), sizes)  # one class after the other, as in a folder of images
    order = whitebox.draw(np.arange(len(label)) + 7, label, seed)
    assert sorted(order) == list(range(len(label)))
    count = data.draw(st.integers(0, len(label)))
    for own, size in enumerate(sizes):
        share = size / len(label)
        assert abs((label[order[:count]] == own).sum() - count * share) <= 1 + share * len(sizes) / 2


# What is known beforehand


class Brightness(Classifier):
    """Light or dark: logits ± 100 (mean − 0.5). masked: the same answers, without a gradient."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.scale = nn.Parameter(torch.tensor(100.0))

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        return {"layer1": images}

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        images = maps["layer1"]
        seen = images.detach() + 0 * images if self.masked else images
        excess = self.scale * (seen.mean((1, 2, 3)) - 0.5)
        return torch.stack([-excess, excess], 1)


@pytest.fixture
def bright(project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Any]:
    """Runs the stage on a Brightness whose images lie a known number of levels from its boundary at 127.5."""
    levels = np.array([3] * 8 + [20] * 2 + [60] * 2) - 0.5
    distances = np.concatenate([levels, -levels])
    image = np.broadcast_to((127.5 + distances)[:, None, None, None], (24, 16, 16, 3)).astype(np.uint8)
    label = (distances > 0).astype(np.int64)
    metadata = {"shape": [16, 16, 3], "classes": ["dark", "light"], "source": "made-up images"}
    store.write(HERE.clean / "test.parquet", [store.Images(np.arange(24), label, image)], metadata)
    params = tiny(
        structures={},
        whitebox={
            "checks": {"images": 24, "steps": 10, "queries": 150},
            "curve": {"images": 24, "eps": [2, 8, 32, 128]},
        },
    )

    def run(masked: bool) -> tuple[Params, pd.DataFrame]:
        monkeypatch.setattr(networks, "load", lambda *_: Brightness(masked))
        return params, rows_of(params, BASELINE)

    return run


def test_a_linear_net_falls_at_the_radius_of_its_margin(bright: Callable[[bool], Any]) -> None:
    params, rows = bright(False)
    line = checks.curve(params, rows)
    assert line["eps"].tolist() == [0, 2, 8, 32, 128] and (line["images"] == 24).all()
    # 16 images lie 2.5 levels from the boundary, 4 lie 19.5 and 4 lie 59.5.
    np.testing.assert_allclose(line["accuracy"], [1, 1, 8 / 24, 4 / 24, 0])
    np.testing.assert_allclose(line["success"], [0, 0, 16 / 24, 20 / 24, 1])
    table = checks.verdicts(params, rows, no_transfer())
    assert table["passed"].tolist()[1:] == [True] * (len(table) - 1)
    assert checks.warnings(table) == []


def test_masked_gradients_fail_the_checks_that_find_them(bright: Callable[[bool], Any]) -> None:
    params, rows = bright(True)
    passed = checks.verdicts(params, rows, no_transfer()).set_index("check")["passed"]
    assert not passed["black box does not beat white box"] and not passed[checks.UNBOUNDED]
    assert passed["more steps do not help much"]
    table = checks.verdicts(params, rows, no_transfer())
    (line,) = checks.warnings(table)
    assert line.startswith("**Warning: gradients may be masked.** baseline still classifies a share of ")
    accuracy = robustness.accuracies(params, rows, robustness.worst_cases(params, rows))
    assert robustness.summary(accuracy, table)[BASELINE]["failed_checks"] == (
        "black box does not beat white box, without a bound nothing is left"
    )
    cells = checks.table(params, table).wide[""].set_index("check")["baseline"]
    assert cells["black box does not beat white box"].startswith("FAIL: ")


def test_transfer_that_beats_white_box_fails(tiny: Callable[..., Params]) -> None:
    params = tiny(structures=ALONE, attacks={"bim": {"eps": 0.05, "step": 0.02, "first_step": 0.02, "steps": 3}})
    index = np.arange(24)

    def rows_under(structure: str, **correct: Any) -> pd.DataFrame:
        parts = [
            pd.DataFrame({"index": index, "attack": name, "correct": value, "label": 0, "l2": 1.0, "linf": 0.04})
            for name, value in correct.items()
        ]
        return pd.concat(parts).assign(structure=structure, seed=0)

    def verdict(stored: np.ndarray) -> Any:
        rows = rows_under("adv", clean=True, pgd=index < 12, fgsm=index < 12, more_steps=index < 12, square=index < 18)
        stored_rows = rows_under("adv", clean=index < 20, bim=stored)
        table = checks.verdicts(params, rows, stored_rows)
        table = table[(table["check"] == "white-box beats transfer") & (table["structure"] == "adv")]
        (cell,) = table.to_dict("records")
        assert cell["compared"] == "pgd, stored bim, Linf 12/255" and cell["images"] == 24
        return cell

    assert verdict(index >= 0)["against"] == pytest.approx(20 / 24) and verdict(index >= 0)["passed"] is True
    assert verdict(index < 11)["passed"] is True  # one image is no evidence
    assert verdict(index < 3)["passed"] is False


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_the_worst_case_is_the_least_over_all_attacks_within_the_radius(tiny: Callable[..., Params], seed: int) -> None:
    params = tiny(structures={})
    generator = np.random.default_rng(seed)
    names = [CLEAN, *params.whitebox.runs]
    rows = pd.DataFrame([(name, image, 0) for name in names for image in range(6)], columns=["attack", "index", "seed"])
    rows["structure"], rows["correct"] = BASELINE, generator.random(len(rows)) < 0.7
    rows["linf"] = generator.integers(0, 20, len(rows)) / 255 * (rows["attack"] != CLEAN)
    rows["l2"] = generator.random(len(rows)) * (rows["attack"] != CLEAN)
    accuracy = robustness.accuracies(params, rows, robustness.worst_cases(params, rows))
    by_radius = accuracy.set_index(["attack", "radius"])["accuracy"]
    inside = {"Linf 12/255": rows["linf"] * 255 < 12.5, "L2 0.5": rows["l2"] <= 0.5}
    inside[robustness.ANY] = inside["Linf 12/255"] | inside["L2 0.5"]
    for radius, within in inside.items():
        alive = [
            all(rows["correct"][place] for place in rows.index[(rows["index"] == image) & within]) for image in range(6)
        ]
        assert by_radius[robustness.WORST, radius] == pytest.approx(np.mean(alive))
        assert (
            by_radius[robustness.WORST, robustness.ANY] <= by_radius[robustness.WORST, radius] <= by_radius[CLEAN, ""]
        )
    wilson = statistics.wilson(round(6 * by_radius[CLEAN, ""]), 6)
    first = accuracy.iloc[0]
    assert (first["ci_low"], first["ci_high"]) == pytest.approx(wilson)
