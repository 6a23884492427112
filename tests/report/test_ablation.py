"""Table 3: its rows are trained beside the main results, and its figures follow from the stored predictions."""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from sparring import statistics, store
from sparring.defences.train import train
from sparring.layout import HERE
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.variants import ABLATION_FILE, load_rows
from sparring.report import paper, table3
from sparring.report.table import with_interval

ROOT = Path(__file__).resolve().parents[2]
ROWS = """
rows:
  low_050_2: {input: low, adv_ratio: 0.5, layers: 2}
  full_025_1: {input: full, adv_ratio: 0.25, layers: 1}
"""


@pytest.fixture
def settings(project: Path, tiny: Callable[..., Params], study: Callable[[str, Params], None]) -> Params:
    """Return the parameters of a project with two rows; its stages read the same from params.yaml."""
    params = tiny(training={"epochs": 2, "batch_size": 50}, mixture={"adv_ratio": 0.4})
    Path("studies/table3").mkdir(parents=True)
    Path("studies/table3/params.yaml").write_text(ROWS)
    study("table3", params)
    return params


def stage(name: str, *arguments: str) -> None:
    importlib.import_module(name).main(*arguments)


def everything() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and "studies" not in path.parts}


def test_from_rows_to_the_table(settings: Params) -> None:
    before = everything()
    rows = load_rows()
    for name in rows:
        stage("train_row", name)
        stage("evaluate_row", name)
    Path("studies/table3/reports").mkdir()
    Path("studies/table3/reports/table3.tex").write_text("of an earlier layout")
    stage("write_table")
    assert everything() == before  # the main pipeline's results stay
    reports = Path("studies/table3/reports")
    files = {file.relative_to(reports).as_posix(): file.read_text() for file in reports.rglob("*.*")}
    assert files.keys() == {"table3.md", "table3.csv", "tex/table3.tex"}
    table = pd.read_csv("studies/table3/reports/table3.csv").set_index(["split", "row", "mixture"])
    assert len(table) == 2 * 2 * 2
    assert table.loc[("test", "low_050_2", "own"), ["paper_detector_accuracy", "paper"]].tolist() == [0.735, 0.8694]
    assert "0.7350" in files["table3.md"] and "0.8694" in files["table3.md"]
    for (split, name, mixture), fact in table.iterrows():
        share = rows[name].adv_ratio if mixture == "own" else 0.4
        assert fact["mixture_ratio"] == share
        predictions = pd.read_parquet(f"studies/table3/rows/{name}/data/predictions/ours.parquet")
        clean = store.read(HERE.clean / f"{split}.parquet", ())
        draw = statistics.draw_mixture(clean.index, clean.label, list(settings.attacks), share, 0, split)
        mixture_rows = predictions[predictions["split"] == split].merge(draw, on=["index", "attack"])
        linf = {}
        for attack in settings.attacks:
            images = store.read(HERE.adversarial / attack / f"{split}.parquet", ("linf",))
            linf |= {(attack, index): value for index, value in zip(images.index, images.columns["linf"], strict=True)}
        keys = zip(mixture_rows["attack"], mixture_rows["index"], strict=True)
        adversarial = np.array([linf.get(key, 0) > 0 for key in keys])
        detected = (mixture_rows["detector_score"] > 0.5) == adversarial
        right = mixture_rows["prediction"] == mixture_rows["label"]
        assert fact["images"] == len(mixture_rows) == len(clean)
        expected = {
            "majority": max(adversarial.mean(), 1 - adversarial.mean()),
            "auroc": roc_auc_score(adversarial, mixture_rows["detector_score"]),
            "detector_accuracy": detected.mean(),
            "accuracy": right.mean(),
        }
        expected |= dict(
            zip(("detector_low", "detector_high"), statistics.wilson(detected.sum(), len(clean)), strict=True)
        )
        expected |= dict(zip(("ci_low", "ci_high"), statistics.wilson(right.sum(), len(clean)), strict=True))
        for key, value in expected.items():
            assert fact[key] == pytest.approx(value, rel=1e-5), (split, name, mixture, key)
    cell = with_interval(*table.loc[("test", "full_025_1", "fixed"), ["accuracy", "ci_low", "ci_high"]])
    assert cell in files["table3.md"] and cell in files["tex/table3.tex"]
    assert "had a standard deviation of 0.020" in files["table3.md"]  # how far two rows of one training are apart
    own_mixtures = table.xs("own", level="mixture").loc["test"]
    assert (own_mixtures.loc["low_050_2"] != own_mixtures.loc["full_025_1"]).any()


def test_a_row_with_the_main_settings_is_ours_to_the_bit(settings: Params) -> None:
    stage("train_row", "low_050_2")
    train(settings, "ours")
    main = {path.name: path.read_bytes() for path in Path("models/ours").iterdir()}
    row = {path.name: path.read_bytes() for path in Path("studies/table3/rows/low_050_2/models/ours").iterdir()}
    assert row == main and len(row) == 2
    stage("train_row", "full_025_1")
    other = {path.name: path.read_bytes() for path in Path("studies/table3/rows/full_025_1/models/ours").iterdir()}
    assert all(other[name] != main[name] for name in main)


def test_the_rows_here_are_the_papers() -> None:
    rows = [tuple(row.model_dump().values()) for row in load_rows(ROOT / ABLATION_FILE).values()]
    published = paper.ablation()
    assert rows == list(published[["input", "adv_ratio", "layers"]].itertuples(index=False, name=None))
    assert len(rows) == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rows: {}", r"studies/table3/params\.yaml: rows is {}; it needs 1 entries"),
        ("rows: {a: {input: low, adv_ratio: 2, layers: 1}}", r"rows\.a\.adv_ratio is 2; it is a share, so 0 to 1"),
        ("rows: {a: {input: low, adv_ratio: 1, layer: 1}}", r"rows\.a\.layer is not a key; did you mean layers\?"),
        ("rows: {a.b: {input: low, adv_ratio: 1, layers: 1}}", r"rows\.a\.b cannot be a name here"),
        ("rows: {b: {input: low, adv_ratio: 0.5, layers: 1}}", r"rows\.a is missing; there are b$"),
        (
            "rows: {a: {input: low, adv_ratio: 1.0, layers: 1}}",
            r"rows\.a does not go with params\.yaml: sampler\.range is 0\.1; adv_ratio 1\.0 ± range must stay within 0",
        ),
    ],
)
def test_bad_rows_are_one_line(settings: Params, text: str, says: str) -> None:
    Path("studies/table3/params.yaml").write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        stage("train_row", "a")
    assert "\n" not in str(caught.value)


def test_a_row_without_predictions_is_one_line_and_keeps_the_table(settings: Params) -> None:
    Path("studies/table3/reports").mkdir()
    Path("studies/table3/reports/table3.md").write_text("old")
    with pytest.raises(InputError, match=r"studies/table3/rows/low_050_2/data/predictions/ours\.parquet is missing;"):
        table3.write(settings, load_rows())
    assert [path.read_text() for path in Path("studies/table3/reports").iterdir()] == ["old"]
