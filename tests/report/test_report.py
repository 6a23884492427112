"""The report as a whole: its files, what may be missing, and what must not be."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from finished_run import FIGURES, ROOT, TABLES, everything, leave_undrawn, make_project
from ruamel.yaml import YAML
from structures import words

from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import BASELINE
from sparring.report import making, render
from sparring.report.figure import PICTURES


def test_parts_that_were_left_out_are_said_and_not_read(finished: Params, undrawn: None) -> None:
    parts = {"whitebox": "whitebox", "detect": "detection", "corruptions": "corruptions"}
    for left_out in ({"detect": "no time"}, dict.fromkeys(parts, "no|time")):
        for part in left_out:
            shutil.rmtree(Path("data", parts[part]), ignore_errors=True)
        render.render(finished, left_out)
        text = Path("reports/report.md").read_text()
        assert text.count("Left out of this run: no") == len(left_out)
        assert all(part in text.partition("**Left out of this run**")[2].splitlines()[0] for part in left_out)
        summary = json.loads(Path("reports/summary.json").read_text())
        assert set(summary["mixture"]) == {"baseline", "adv", "ours"} and summary["detector"]["ours"]["auroc"] > 0
        assert bool(summary["whitebox"]) == ("whitebox" not in left_out) and "joint" not in summary


def test_writes_every_file_the_same_bytes_twice_and_nothing_where_it_fails(
    finished: Params, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    render.render(finished)
    first = everything()
    names = {name.removeprefix("reports/") for name in first}
    assert names == {
        *("metrics.json", "summary.json", "report.md", "index.html"),
        *("figures/accuracy_by_attack.csv", "figures/whitebox_curve.csv"),
        *(f"tables/{name}.{ending}" for name in (*TABLES, "timings") for ending in ("md", "csv")),
        *(f"tex/{name}.tex" for name in (*TABLES, "timings")),
        *(f"figures/{name}.png" for name in PICTURES),
        *(f"vector/{name}.svg" for name in FIGURES),
    }
    shutil.rmtree("reports")
    script = [sys.executable, str(ROOT / "stages" / "report.py")]
    process = subprocess.run(script, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert everything() == first
    for out in (capsys.readouterr().out, process.stdout):
        assert out.startswith("report: 19 tables, 12 figures in ") and out.count("\n") == 1
    assert not list(Path.cwd().glob(".reports*"))
    page = first["reports/report.md"].decode()
    links = [part.partition(")")[0] for part in page.split("](")[1:]]
    assert sorted(links) == sorted(f"figures/{name}.png" for name in PICTURES)
    assert page.count("\n*Figure in `index.html`:* ") == len(FIGURES) - len(PICTURES)
    assert "*Figure in `index.html`:* Training, by epoch." in page

    Path("reports/mine.txt").write_text("kept")
    before = everything()
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        leave_undrawn(patched, {*FIGURES} - {"curves"})
        patched.setattr(making, "draw_curves", lambda *_: 1 / 0)
        render.render(finished)
    Path("data/predictions/adv.parquet").unlink()
    failed = subprocess.run(script, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr == "error: data/predictions/adv.parquet is missing; `dvc repro` makes it\n"
    assert everything() == before
    assert not list(Path.cwd().glob(".reports*"))


def test_files_of_an_earlier_layout_do_not_survive(finished: Params, undrawn: None) -> None:
    earlier = ("figures/curves.png", "figures/curves.svg", "figures/gallery.svg", "tables/table2.tex", "tables/old.md")
    for name in earlier:
        path = Path("reports", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    Path("data/history/adv.csv").rename("adv.csv")
    with pytest.raises(InputError, match="is missing"):
        render.render(finished)
    assert all(Path("reports", name).read_text() == "old" for name in earlier)
    Path("adv.csv").rename("data/history/adv.csv")
    render.render(finished)
    assert not any(Path("reports", name).exists() for name in earlier)
    assert Path("reports/vector/curves.svg").exists() and Path("reports/tex/table2.tex").exists()


def test_without_detector_or_timings_or_heldout_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.chdir(tmp_path)
    data = YAML(typ="safe").load(ROOT / "profiles" / "digits.yaml")["data"] | {"heldout": 0}
    params = make_project(
        data=data,
        structures={"adv": words("sampler")},
    )
    Path("data/timings/attack-fgsm.json").unlink()
    render.render(params)
    summary = json.loads(Path("reports/summary.json").read_text())
    assert summary["detector"] == {}
    assert summary["heldout"]["mixture"]["adv"]["accuracy"] is None
    assert summary["attacks"]["fgsm"]["images_per_second"] is None
    assert not Path("reports/vector/detector_roc.svg").exists()


def test_no_structures_and_no_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    monkeypatch.chdir(tmp_path)
    data = YAML(typ="safe").load(ROOT / "profiles" / "digits.yaml")["data"] | {"test": 0}
    render.render(make_project(data=data, structures={}))
    assert json.loads(Path("reports/metrics.json").read_text()) == {
        "mixture": {BASELINE: None},
        "whitebox": {},
        "detector": {},
    }
    assert "No white-box attack was run" in Path("reports/report.md").read_text()


def spoil_attack() -> None:
    rows = pd.read_parquet("data/predictions/ours.parquet")
    rows[rows["attack"] != "nst"].to_parquet("data/predictions/ours.parquet")


def spoil_row() -> None:
    rows = pd.read_parquet("data/predictions/ours.parquet")
    rows.drop(rows.index[rows["split"] == "test"][0]).to_parquet("data/predictions/ours.parquet")


def spoil_label() -> None:
    rows = pd.read_parquet("data/predictions/ours.parquet")
    rows.assign(label=rows["label"] + 1).to_parquet("data/predictions/ours.parquet")


def spoil_score() -> None:
    rows = pd.read_parquet("data/predictions/ours.parquet")
    rows.assign(detector_score=np.float32("nan")).to_parquet("data/predictions/ours.parquet")


def spoil_whitebox() -> None:
    rows = pd.read_parquet("data/whitebox/ours.parquet")
    rows[rows["attack"] != "pgd_8"].to_parquet("data/whitebox/ours.parquet")


def spoil_whitebox_label() -> None:
    rows = pd.read_parquet("data/whitebox/ours.parquet")
    rows.assign(label=rows["label"] + 1).to_parquet("data/whitebox/ours.parquet")


def spoil_column() -> None:
    pd.read_parquet("data/predictions/ours.parquet").drop(columns="seed").to_parquet("data/predictions/ours.parquet")


def spoil_scores() -> None:
    path = Path("data/detection/ours.parquet")
    table = pq.read_table(path)
    pq.write_table(table.filter(pc.not_equal(table["attack"], "fgsm")), path)


def spoil_store() -> None:
    Path("data/clean/test.parquet").replace("data/adversarial/fgsm/heldout.parquet")
    Path("data/clean/heldout.parquet").replace("data/clean/test.parquet")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_attack, "nst: 90 of 90 images have no prediction"),
        (spoil_row, "1 of 90 images have no prediction"),
        (spoil_label, "labels of test differ"),
        (spoil_score, "rows without detector_score"),
        (spoil_column, "data/predictions/ours.parquet cannot be read"),
        (spoil_store, "is missing"),
        (spoil_whitebox, "data/whitebox/ours.parquet: seed 0, pgd_8: 0 images, not 50; run"),
        (spoil_whitebox_label, "data/whitebox/ours.parquet: labels differ"),
        (lambda: Path("data/whitebox/adv.parquet").unlink(), "data/whitebox/adv.parquet is missing"),
        (lambda: Path("data/whitebox/adv.parquet").write_text("no"), "data/whitebox/adv.parquet cannot be read"),
        (lambda: Path("data/predictions/ours.parquet").unlink(), "data/predictions/ours.parquet is missing"),
        (lambda: Path("data/predictions/ours.parquet").write_text("no"), "ours.parquet cannot be read"),
        (spoil_scores, "data/detection/ours.parquet: seed 0, test, fgsm: 90 of 90 images have no prediction"),
        (lambda: Path("data/detection/ours.parquet").unlink(), "data/detection/ours.parquet is missing"),
        (lambda: Path("data/detection/ours.parquet").write_text("no"), "data/detection/ours.parquet cannot be read"),
        (lambda: Path("data/history/adv.csv").unlink(), "data/history/adv.csv is missing"),
        (lambda: Path("data/history/adv.csv").write_text(""), "data/history/adv.csv cannot be read"),
        (lambda: Path("data/history/adv.csv").write_text("epoch\n1\n"), "has no column loss"),
        (lambda: Path("data/timings/attack-fgsm.json").write_text("{"), "is not a timing"),
    ],
)
def test_bad_input_is_one_line_and_keeps_the_old_report(finished: Params, spoil: Any, says: str) -> None:
    Path("reports").mkdir()
    Path("reports/metrics.json").write_text("old")
    before = everything()
    spoil()
    with pytest.raises(InputError, match=says) as caught:
        render.render(finished)
    assert "\n" not in str(caught.value)
    assert "dvc repro" in str(caught.value)
    assert everything() == before
