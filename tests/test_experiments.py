"""`dvc exp` and `dvc plots` are tested in a clone of their own, in parallel with the tests of the pipeline."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from clones import STRUCTURES, ran, run


def test_an_experiment_runs_what_its_parameter_changes(clone: Path) -> None:
    output = run(clone, "dvc", "exp", "run", "-S", "whitebox.images=8", "-n", "fewer")
    assert ran(output) == {*(f"whitebox@{name}" for name in STRUCTURES), "report"}
    run(clone, "git", "checkout", "-q", ".")
    run(clone, "dvc", "checkout", "-q", "-f", "dvc.yaml")  # Table 3 was not made in this clone


def test_two_revisions_are_compared_by_parameters_and_plots(clone: Path) -> None:
    """That experiment and what it started from."""
    differ = json.loads(run(clone, "dvc", "params", "diff", "--json", "HEAD", "fewer"))
    assert {name: (values["old"], values["new"]) for name, values in differ["params.yaml"].items()} == {
        "whitebox.images": (10, 8)
    }
    assert "failed" not in run(clone, "dvc", "plots", "diff", "HEAD", "fewer", "-o", "plots")
    text = (clone / "plots/index.html").read_text()
    for title in ("data/history/ours.csv", "accuracy on test images", "accuracy under white-box PGD", "gallery.png"):
        assert title in text
    # The templates of .dvc/plots: a column a structure, and the mean over the seeds.
    assert text.count('"column": {"field": "structure"') == 2 and '"aggregate": "mean"' in text
    shutil.rmtree(clone / "plots")


@pytest.mark.slow
def test_a_queued_sweep_works_and_is_shown(clone: Path) -> None:
    run(clone, "dvc", "exp", "run", "--queue", "-S", "mixture.adv_ratio=0.25,0.75")
    output = run(clone, "dvc", "exp", "run", "--run-all")
    assert "Failed" not in output
    table_file = clone / "shown.csv"
    table_file.write_text(run(clone, "dvc", "exp", "show", "--csv"))
    table = pd.read_csv(table_file)
    table_file.unlink()
    ratios = table.loc[table["State"].isna() | (table["State"] == "Success"), "mixture.adv_ratio"]
    assert {0.25, 0.5, 0.75} <= set(ratios)
    metrics = [column for column in table.columns if column.startswith(("mixture.", "detector.ours."))]
    assert {"mixture.baseline", "mixture.ours", "detector.ours.auroc"} <= set(metrics)


@pytest.mark.slow
def test_the_tables_of_experiments_stand_side_by_side(clone: Path) -> None:
    """The experiments are those of the sweep above."""
    names = run(clone, "dvc", "exp", "list", "--name-only", "--all").split()
    call = [sys.executable, "-m", "sparring", "compare", "HEAD", *names, "--out", "compared"]
    output = run(clone, *call)
    differ = pd.read_csv(clone / "compared/parameters.csv").set_index("parameter")
    assert {"0.25", "0.75"} <= set(differ.loc["mixture.adv_ratio", names].astype(str))
    assert "| structure" in output
    shutil.rmtree(clone / "compared")


def test_plots_can_be_shown(clone: Path) -> None:
    page = run(clone, "dvc", "plots", "show", "-o", "plots")
    assert "index.html" in page
    text = (clone / "plots/index.html").read_text()
    assert "gallery" in text and "ours.csv" in text
    shutil.rmtree(clone / "plots")
