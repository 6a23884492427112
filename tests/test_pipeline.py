"""The pipeline is tested as its users run it: a fresh clone, `dvc repro`, and the stages that each change runs.

The tests of this file share one clone with all stages up to date; one that changes more than it can put back works on a
copy of it.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clones import ATTACKS, DOWNSTREAM, EVALUATIONS, STRUCTURES, TINY, profile, ran, run
from PIL import Image


@pytest.fixture
def copy(clone: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "sparring"
    shutil.copytree(clone, folder, symlinks=True)
    return folder


def test_a_fresh_clone_ends_in_tables_figures_and_metrics(clone: Path) -> None:
    reports = clone / "reports"
    for table in ("table1", "table2", "table4", "whitebox", "checks", "corruptions", "detector_joint"):
        for path in (f"tables/{table}.md", f"tables/{table}.csv", f"tex/{table}.tex"):
            assert (reports / path).stat().st_size > 0
    for figure in ("gallery", "curves", "accuracy_by_attack", "whitebox_curve", "corruptions"):
        assert (reports / "vector" / f"{figure}.svg").read_bytes().startswith(b"<?xml")
    assert (reports / "figures" / "gallery.png").read_bytes().startswith(b"\x89PNG")
    assert (reports / "index.html").stat().st_size < 3_000_000
    metrics = json.loads((reports / "metrics.json").read_text())
    assert set(metrics["mixture"]) == set(STRUCTURES)
    assert set(metrics["detector"]["ours"]) == {"accuracy", "auroc"}
    summary = json.loads((reports / "summary.json").read_text())
    assert set(summary["per_attack"]["ours"]) == {"clean", *ATTACKS}
    assert summary["data"] == {"source": "digits", "classes": 10, "train": 120, "test": 40, "heldout": 40}
    rows = pd.read_parquet(clone / "data/predictions/ours.parquet")
    assert len(rows) == 2 * 40 * (1 + len(ATTACKS))
    assert not rows.duplicated(["index", "split", "attack", "seed"]).any()
    assert rows["detector_score"].between(0, 1).all()
    attacked = pd.read_parquet(clone / "data/whitebox/ours.parquet")
    assert len(attacked) == 10 * 9 + 5 * 4 and attacked["detector_score"].between(0, 1).all()
    assert set(metrics["whitebox"]) == set(STRUCTURES)


def test_nothing_runs_twice(clone: Path) -> None:
    assert ran(run(clone, "dvc", "repro")) == set()


def test_new_images_in_a_users_folder_are_prepared(copy: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(20):
        path = copy / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    profile(copy, *TINY, "data.source=folder", "data.path=images")
    assert ran(run(copy, "dvc", "repro", "prepare")) == {"prepare"}
    assert "prepare" not in json.loads(run(copy, "dvc", "status", "--json", "prepare"))
    shutil.copy(copy / "images/a/0.png", copy / "images/a/new.png")
    assert ran(run(copy, "dvc", "repro", "prepare")) == {"prepare"}


UNSEEN = "unseen_attacks.pgd={method: torchattacks.PGD, eps: 0.03, steps: 2}"


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("attacks.bim.steps=3", {"attack@bim", *(f"train@{name}" for name in STRUCTURES), *EVALUATIONS}),
        ("sampler.adv_ratio=0.25", {"train@ours"}),
        ("detector.beta=0.5", {"train@ours", "evaluate@ours", "whitebox@ours", "detect@ours"}),
        ("seeds=[0, 1]", {f"train@{name}" for name in STRUCTURES}),
        ("mixture.adv_ratio=0.25", set()),
        ("whitebox.images=8", {f"whitebox@{name}" for name in STRUCTURES}),
        (UNSEEN, {"attack_unseen@pgd", *EVALUATIONS}),
    ],
)
def test_a_parameter_changes_the_stages_that_use_it_alone(clone: Path, setting: str, stages: set[str]) -> None:
    """The stages are the first ones. The next test, which is slow, shows the stages that follow from their results."""
    before = (clone / "params.yaml").read_text()
    profile(clone, *TINY, setting)
    try:
        changed = json.loads(run(clone, "dvc", "status", "--json", "dvc.yaml"))
    finally:
        (clone / "params.yaml").write_text(before)
    assert changed.keys() == stages | {"report", "watch"}  # the report prints all parameters, and `watch` always runs


@pytest.mark.slow
def test_an_attack_argument_and_an_unseen_attack_run_what_follows(copy: Path) -> None:
    profile(copy, *TINY, "attacks.bim.steps=3", UNSEEN)
    output = run(copy, "dvc", "repro")
    assert ran(output) == {"attack@bim", "attack_unseen@pgd", *DOWNSTREAM}
    # This is no terminal, so each stage prints a closing line and no bar.
    lines = [line for line in output.splitlines() if line.startswith("evaluate@ours:")]
    assert len(lines) == 1 and "images/s" in lines[0]
    assert "━" not in output
    assert {path.name for path in (copy / "data/unseen/pgd").iterdir()} == {"test.parquet", "heldout.parquet"}
    assert "pgd" in (copy / "reports/tables/table4.md").read_text()
    profile(copy, *TINY)
    shutil.rmtree(copy / "data/unseen/pgd")
    assert ran(run(copy, "dvc", "repro")) <= {"report"}  # the rest was there before, in the run cache


@pytest.mark.slow
def test_rows_made_two_at_a_time_are_all_that_table_3_needs(copy: Path) -> None:
    venv, rows = copy / ".venv", copy / "studies/table3/params.yaml"
    venv.symlink_to(sys.prefix)
    rows.write_text(
        "rows:\n  one: {input: low, adv_ratio: 0.5, layers: 1}\n  two: {input: full, adv_ratio: 0.75, layers: 1}\n"
    )
    output = run(copy, "make", "--assume-old=.venv/.installed", "table3", "JOBS=2")
    stages = {f"studies/table3/dvc.yaml:{stage}@{row}" for stage in ("train", "evaluate") for row in ("one", "two")}
    assert ran(output) == stages | {"studies/table3/dvc.yaml:report"}
    assert ran(run(copy, "dvc", "repro", "studies/table3/dvc.yaml")) == set()
    assert (copy / "studies/table3/reports/table3.md").read_text().count("| full ") == 2  # test and held-out images


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("sampler.adv_ratio: 1.4", "sampler.adv_ratio is 1.4; it is a share, so 0 to 1"),
        ("attacks: {pgd: {method: torchattacks.PGD, epz: 1}}", "epz is not an argument"),
        ("attacks: {nothing: {}}", "there is no such attack"),
    ],
)
def test_bad_parameters_stop_the_first_stage_before_any_work(clone: Path, setting: str, problem: str) -> None:
    before = (clone / "params.yaml").read_text()
    files = {path: path.stat().st_mtime_ns for path in (clone / "data").rglob("*.parquet")}
    key, _, value = setting.partition(": ")
    section, _, name = key.partition(".")
    pattern = rf"(?ms)^{section}:.*?(?=^\S)" if not name else rf"(?m)^  {name}: \S+"
    text, count = re.subn(pattern, f"{key}: {value}\n" if not name else f"  {name}: {value}", before, count=1)
    assert count == 1
    try:
        (clone / "params.yaml").write_text(text)
        process = subprocess.run(
            [sys.executable, "stages/prepare.py"], cwd=clone, capture_output=True, text=True, timeout=120
        )
    finally:
        (clone / "params.yaml").write_text(before)
    assert process.returncode == 1
    assert process.stdout == ""
    assert len(process.stderr.strip().splitlines()) == 1 and process.stderr.startswith("error: params.yaml: ")
    assert problem in process.stderr
    assert files == {path: path.stat().st_mtime_ns for path in (clone / "data").rglob("*.parquet")}
