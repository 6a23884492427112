"""`python -m sparring compare` on a repository with two commits, an experiment and a changed workspace."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sparring.params.errors import InputError
from sparring.report import compare


def git(*arguments: str) -> str:
    name = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *name, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def write(accuracy: float, ratio: float, structures: list[str]) -> None:
    """Write a report with these structures, all of whose accuracies on test images are `accuracy`."""
    Path("params.yaml").write_text(f"seed: 0\nsampler:\n  adv_ratio: {ratio}\n  weights: {{}}\n")
    Path("reports/tables").mkdir(parents=True, exist_ok=True)
    rows = [
        {"split": split, "structure": name, "attack": attack, "accuracy": value, "ci_low": value - 0.1}
        | {"ci_high": value + 0.1, "images": 40}
        for split, value in (("test", accuracy), ("heldout", accuracy / 2))
        for name in structures
        for attack in ("clean", "fgsm")
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv("reports/tables/table4.csv", index=False)
    frame[frame["attack"] == "clean"].assign(attack="mixture").to_csv("reports/tables/table2.csv", index=False)
    whitebox = frame[(frame["split"] == "test") & (frame["attack"] == "fgsm")].assign(attack="pgd", radius="Linf 8/255")
    if ratio == 0.75:  # a report of before there were such attacks
        Path("reports/tables/whitebox.csv").unlink()
    else:
        whitebox.to_csv("reports/tables/whitebox.csv", index=False)
    detector = {"ours": {"accuracy": accuracy, "auroc": accuracy, "tpr_at_fpr05": None}} if "ours" in structures else {}
    Path("reports/summary.json").write_text(json.dumps({"detector": detector, "heldout": {"detector": detector}}))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init", "-q", "-b", "main")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    git("add", "-A")
    git("commit", "-q", "-m", "empty")
    git("tag", "empty")
    write(0.5, 0.25, ["baseline", "adv"])
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    first = git("rev-parse", "HEAD")
    write(0.625, 0.75, ["baseline", "adv", "ours"])
    git("commit", "-q", "-a", "-m", "experiment")
    git("update-ref", f"refs/exps/{first[:2]}/{first[2:]}/tined-moss", "HEAD")
    git("reset", "-q", "--hard", first)
    write(0.75, 0.25, ["baseline", "ours"])
    return tmp_path


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sparring", "compare", *arguments], capture_output=True, text=True)


def test_revisions_stand_side_by_side(repository: Path) -> None:
    process = call("main", "tined-moss", "workspace", "--out", "compared")
    assert process.returncode == 0, process.stderr
    files = {path.name for path in Path("compared").iterdir()}
    assert files == {
        f"{name}.{kind}"
        for name in ("parameters", "table2", "table4", "whitebox", "detector")
        for kind in ("md", "csv", "tex")
    }
    captions = [
        "The parameters in which",
        "**Table 2.**",
        "**Table 4.**",
        "Accuracy under attacks",
        "The detector on the",
    ]
    places = [process.stdout.index(caption) for caption in captions]
    assert places == sorted(places)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in process.stdout.splitlines() if line[:1] == "|"]
    assert ["parameter", "main", "tined-moss", "workspace"] in rows
    assert ["sampler.adv_ratio", "0.25", "0.75", "0.25"] in rows
    assert not any(row[0] in ("seed", "sampler.weights") for row in rows)
    assert ["adv", "0.500 [0.400, 0.600]", "0.625 [0.525, 0.725]", "-"] in rows
    assert ["ours", "fgsm", "-", "0.312 [0.212, 0.412]", "0.375 [0.275, 0.475]"] in rows  # held-out
    assert ["ours", "pgd", "Linf 8/255", "-", "-", "0.750 [0.650, 0.850]"] in rows
    assert ["ours", "AUROC", "-", "0.625", "0.750"] in rows
    table = pd.read_csv("compared/table4.csv")
    assert list(table["revision"].unique()) == ["main", "tined-moss", "workspace"] and len(table) == 8 + 12 + 8


def test_equal_parameters_and_no_detector_are_said(repository: Path) -> None:
    write(0.5, 0.25, ["baseline"])
    process = call("main", "workspace", "main")
    assert "No parameter differs." in process.stdout and "No structure has a detector." in process.stdout


@pytest.mark.parametrize(
    ("revision", "says"),
    [
        (
            "tined-mos",
            r"tined-mos cannot be found \(.*\); use workspace, a commit, or a name that `dvc exp list --all`",
        ),
        ("empty", r"empty has no .*params\.yaml; `dvc repro` or `dvc exp run` makes it"),
        ("HEAD", r"HEAD has no .*reports/tables/table4\.csv; `dvc repro`"),
    ],
)
def test_a_revision_without_a_report_is_one_line(repository: Path, revision: str, says: str) -> None:
    git("rm", "-q", "--cached", "reports/tables/table4.csv")
    git("commit", "-q", "-m", "without a table")
    with pytest.raises(InputError, match=says) as caught:
        compare.compare(["workspace", revision])
    assert "\n" not in str(caught.value)


def test_a_bad_revision_ends_the_command_in_one_line(repository: Path) -> None:
    process = call("nowhere")
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr.startswith("error: nowhere cannot be found (") and process.stderr.count("\n") == 1
