"""Leave one attack out: trained without it as if it had never been, and a table from the stored predictions."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import binomtest
from structures import words

from sparring import params, statistics
from sparring.defences.train import train
from sparring.evaluation import predict
from sparring.layout import HERE
from sparring.params import Params, variants
from sparring.params.errors import InputError
from sparring.report import leave_one_out

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {
    "training": {"epochs": 4, "batch_size": 20},
    "structures": {
        "adv": words("sampler"),
        "ours": words("sampler", detector="detector"),
        "plain": words("none"),
    },
}


@pytest.fixture
def settings(project: Path, tiny: Callable[..., Params], study: Callable[[str, Params], None]) -> Params:
    params = tiny(**CHANGES)
    study("leave_one_out", params)
    return params


def stage(name: str, *arguments: str) -> None:
    importlib.import_module(name).main(*arguments)


def everything() -> dict[Path, bytes]:
    files = (path for path in Path().rglob("*") if path.is_file() and "studies" not in path.parts)
    return {path: path.read_bytes() for path in files}


@pytest.mark.slow
def test_from_the_attacks_to_the_table(settings: Params) -> None:
    for name in ("adv", "ours"):
        train(settings, name)
        predict.evaluate(settings, name)
    before = everything()
    for attack in settings.attacks:
        stage("train_without", attack)
        stage("evaluate_without", attack)
    stage("write_differences")
    assert everything() == before  # the main pipeline's results stay
    assert {path.name for path in Path("studies/leave_one_out/rows/fgsm/models").iterdir()} == {"adv", "ours"}
    reports = Path("studies/leave_one_out/reports")
    assert {path.relative_to(reports).as_posix() for path in reports.rglob("*.*")} == {
        "leave_one_out.md",
        "leave_one_out.csv",
        "tex/leave_one_out.tex",
    }
    table = pd.read_csv("studies/leave_one_out/reports/leave_one_out.csv").set_index(["split", "attack", "structure"])
    assert len(table) == 2 * 3 * 2
    text = Path("studies/leave_one_out/reports/leave_one_out.md").read_text()
    for (split, attack, structure), fact in table.iterrows():
        right, clean = {}, {}
        for kind, folder in (("with", "data"), ("without", f"studies/leave_one_out/rows/{attack}/data")):
            rows = pd.read_parquet(f"{folder}/predictions/{structure}.parquet").set_index("index")
            rows = rows[rows["split"] == split]
            right[kind] = (rows["label"] == rows["prediction"])[rows["attack"] == attack]
            clean[kind] = (rows["label"] == rows["prediction"])[rows["attack"] == "clean"]
            assert fact[f"{kind}_accuracy"] == pytest.approx(right[kind].mean(), rel=1e-5)
            expected = statistics.wilson(right[kind].sum(), len(right[kind]))
            assert fact[[f"{kind}_low", f"{kind}_high"]].tolist() == pytest.approx(expected, rel=1e-5)
            assert fact["images"] == len(right[kind]) == (120 if split == "test" else 40)
        more, less = (right["without"] & ~right["with"]).sum(), (right["with"] & ~right["without"]).sum()
        assert (fact["more"], fact["less"]) == (more, less)
        assert fact["p"] == pytest.approx(binomtest(more, more + less).pvalue if more + less else 1, rel=1e-5)
        assert fact["difference"] == pytest.approx((more - less) / fact["images"], abs=1e-6)
        assert fact["clean"] == pytest.approx(clean["without"].mean() - clean["with"].mean(), abs=1e-6)
        assert f"{fact['clean']:.3f} [{fact['clean_low']:.3f}, {fact['clean_high']:.3f}]" in text
        assert f"{fact['without_accuracy']:.3f} [{fact['without_low']:.3f}, {fact['without_high']:.3f}]" in text
    assert (table["more"] + table["less"]).sum() > 0


def test_an_attack_left_out_is_as_if_it_had_never_been(settings: Params, tiny: Callable[..., Params]) -> None:
    stage("train_without", "fgsm")
    attacks = {"gaussian": {"std": 0.1}, "deepfool": {"steps": 3, "overshoot": 0.02}}
    never = tiny(**CHANGES, attacks=attacks)
    row = HERE.row("leave_one_out", "fgsm")
    for name in ("adv", "ours"):
        train(never, name)
        files = {path.name: path.read_bytes() for path in row.models(name).iterdir()}
        assert files == {path.name: path.read_bytes() for path in HERE.models(name).iterdir()}
    assert len(files) == 2


@pytest.mark.parametrize(
    ("changes", "attack", "says"),
    [
        ({}, "fgs", r"params\.yaml: attacks\.fgs is missing; there are gaussian, fgsm, deepfool"),
        ({"attacks": {"fgsm": {"eps": 0.05}}}, "fgsm", r"sampler draws no attack but fgsm; leaving it out leaves none"),
        (
            {"sampler": {"weights": {"gaussian": 0, "deepfool": 0}}},
            "fgsm",
            r"sampler draws no attack but fgsm; leaving it out leaves none",
        ),
        (
            {"structures": {"plain": words("none")}},
            "fgsm",
            "structures has none that trains on stored attacks",
        ),
    ],
)
def test_what_cannot_be_left_out_is_one_line(
    settings: Params,
    tiny: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict,
    attack: str,
    says: str,
) -> None:
    monkeypatch.setattr(params, "load", lambda: tiny(**CHANGES | changes))
    with pytest.raises(InputError, match=says) as caught:
        stage("train_without", attack)
    assert "\n" not in str(caught.value)


def test_who_begins_from_an_attack_cannot_be_trained_without_it(tiny: Callable[..., Params]) -> None:
    changes = {"evolving": {"start": "fgsm", "frame": "moving"}, "training": {"crop_area": [1.0, 1.0]}}
    settings = tiny(structures={"mixed": words("sampler", evolving="evolving")}, **changes)
    with pytest.raises(InputError, match=r"evolving.start is fgsm, so that structures .* use random"):
        variants.without(settings, "fgsm")
    assert "gaussian" not in variants.without(settings, "gaussian").attacks


def test_a_row_without_predictions_is_one_line_and_keeps_the_table(settings: Params) -> None:
    for name in ("adv", "ours"):
        train(settings, name)
        predict.evaluate(settings, name)
    Path("studies/leave_one_out/reports").mkdir(parents=True)
    Path("studies/leave_one_out/reports/leave_one_out.md").write_text("old")
    with pytest.raises(InputError, match=r"leave_one_out/rows/gaussian/data/predictions/adv\.parquet is missing;"):
        leave_one_out.write(settings)
    assert [path.read_text() for path in Path("studies/leave_one_out/reports").iterdir()] == ["old"]
