"""What is called a difference: few of identical methods, most real ones, in words that fit the number of trainings."""

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import inside
from finished_run import FIGURES, leave_undrawn, make_project
from scipy.stats import t

from sparring import statistics
from sparring.params import Params
from sparring.params.names import BASELINE, CLEAN
from sparring.report import leave_one_out, render, whitebox
from sparring.report.paper import claims as stated

ROOT = Path(__file__).resolve().parents[2]


def simulated(runs: int, trainings: int, images: int, sd: float, gap: float = 0.0) -> pd.DataFrame:
    """Compare two methods, one better by `gap`, in many experiments: a row of `paired_difference` each.

    Images differ in difficulty, two trainings disagree on many, and each training is better or worse on all images by
    a normal draw with this standard deviation.
    """
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(runs):
        chance = generator.uniform(0.1, 0.9 - gap, (1, images, 1))
        shift = generator.normal(0, sd, (2, 1, trainings))
        shift[0] += gap
        first, second = generator.random((2, images, trainings)) < chance + shift
        differences.append(statistics.paired_difference(first.astype(int) - second.astype(int)))
    return pd.DataFrame(differences)


def share(flags: pd.Series) -> float:
    return float(flags.mean())


@pytest.mark.parametrize("trainings", [2, 3, 5])
def test_identical_methods_seldom_differ(trainings: int) -> None:
    differences = simulated(runs=1200, trainings=trainings, images=2000, sd=0.018)
    by_images = (differences["image_low"] > 0) | (differences["image_high"] < 0)
    assert share(by_images) > 0.25  # what an interval over images alone would have called a difference
    assert share(differences["side"] != 0) < 0.08  # about 0.03, whose own standard error is 0.005
    outside = (differences["difference_low"] > 0) | (differences["difference_high"] < 0)
    assert (outside == (differences["side"] != 0)).all()


def test_one_training_of_identical_methods_seldom_differs() -> None:
    # Single trainings are apart by as much as the differences of cifar_small move.
    differences = simulated(runs=1200, trainings=1, images=2000, sd=statistics.SPREAD / np.sqrt(2))
    assert share(differences["side"] != 0) < 0.08
    assert (differences["difference_low"] == differences["image_low"]).all()
    assert (differences["difference_high"] == differences["image_high"]).all()
    assert not differences["equivalent"].any()  # one training cannot say so


def test_a_real_difference_is_seen() -> None:
    assert share(simulated(200, trainings=3, images=2000, sd=0.018, gap=0.15)["side"] == 1) > 0.9
    assert share(simulated(200, trainings=5, images=2000, sd=0.018, gap=0.06)["side"] == 1) > 0.7
    assert share(simulated(200, trainings=1, images=2000, sd=0.014, gap=0.12)["side"] == 1) > 0.9


def test_equivalence_is_said_of_equals_and_seldom_of_others() -> None:
    assert share(simulated(100, trainings=8, images=20_000, sd=0.002)["equivalent"]) > 0.9
    assert share(simulated(400, trainings=8, images=5000, sd=0.002, gap=0.01)["equivalent"]) < 0.05
    assert not simulated(200, trainings=3, images=2000, sd=0.018)["equivalent"].any()


def test_the_interval_over_trainings_has_known_values() -> None:
    gains = np.zeros((1000, 3), int)
    gains[:30, 0], gains[:50, 1], gains[:10, 2] = 1, 1, 1
    row = statistics.paired_difference(gains)
    assert row["difference"] == pytest.approx(0.03) and row["difference_sd"] == pytest.approx(0.02)
    alone = t.interval(0.95, 2, loc=0.03, scale=0.02 / np.sqrt(3))
    low, high = row["difference_low"], row["difference_high"]
    assert (0.03 - low) ** 2 == pytest.approx((0.03 - alone[0]) ** 2 + (0.03 - row["image_low"]) ** 2)
    assert (high - 0.03) ** 2 == pytest.approx((alone[1] - 0.03) ** 2 + (row["image_high"] - 0.03) ** 2)
    assert row["image_low"] > 0 > low and row["side"] == 0


def test_trainings_that_agree_by_chance_are_no_proof_on_few_images() -> None:
    gains = np.zeros((50, 3), int)
    gains[0] = 1
    row = statistics.paired_difference(gains)
    assert row["difference_sd"] == 0 and row["side"] == 0 and row["difference_low"] < 0


def test_trainings_are_paired_by_seed_and_all_meet_the_one_of_the_baseline() -> None:
    right = {("a", 0): [1, 1, 1, 0], ("a", 1): [1, 0, 0, 0], ("b", 1): [0, 0, 0, 0], ("b", 0): [1, 1, 0, 0]}
    right[BASELINE, 7] = [0, 0, 0, 1]
    rows = pd.concat(
        pd.DataFrame({"structure": name, "seed": seed, "index": range(4), "correct": np.array(values, bool)})
        for (name, seed), values in right.items()
    ).assign(split="test")
    table = statistics.comparisons(rows, ["a", "b", BASELINE], ["split"]).loc["test"]
    assert table.loc[("a", "b"), "difference"] == 0.25 and table.loc[("a", "b"), "difference_sd"] == 0  # 1/4 both times
    of_baseline = table.loc[("a", BASELINE)]
    assert of_baseline["difference"] == 0.25 and of_baseline["trainings"] == 2  # 2/4 and 0
    assert of_baseline["difference_sd"] == pytest.approx(np.std([0.5, 0], ddof=1))
    assert table.loc[(BASELINE, "a"), "difference_low"] == pytest.approx(-of_baseline["difference_high"])


def test_the_assumed_spread_is_that_of_the_trainings_of_cifar_small() -> None:
    text = (ROOT / "docs/results/cifar_small/seeds.md").read_text()
    lines = re.findall(r"^\| (\w+), (test|held-out) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    accuracy = {(name, split): np.array(values, float) for name, split, *values in lines}
    assert len(accuracy) == 6
    variances = [
        (accuracy[first, split] - accuracy[second, split]).var(ddof=1)
        for split in ("test", "held-out")
        for first, second in itertools.combinations(("adv", "ours", "classical"), 2)
    ]
    assert round(float(np.sqrt(np.mean(variances))), 3) == statistics.SPREAD


# The report's words.


def replace_predictions(folder: str, structure: str, *shares: float) -> None:
    """Replace a structure's predictions: the trainings, seeds 0, 1, …, are right in these shares of the rows."""
    path = Path(f"data/{folder}/{structure}.parquet")
    rows = pd.read_parquet(path).sort_values(["attack", "index"])
    place = np.random.default_rng(5).permutation(len(rows))
    parts = [
        rows.assign(seed=seed, prediction=(rows["label"] + (place >= share_right * len(rows))) % 4)
        for seed, share_right in enumerate(shares)
    ]
    pd.concat(parts).to_parquet(path)


@contextmanager
def project(folder: Path) -> Iterator[Params]:
    """Make a finished run to work in, all but the report, whose figures are not drawn."""
    with inside(folder), pytest.MonkeyPatch.context() as patched:
        leave_undrawn(patched, FIGURES)
        yield make_project()


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return a report's folder, and how often worst cases were computed.

    All three trainings of adv are good on stored attacks and bad when aimed at themselves; of ours two are good and one
    is bad. On held-out images one of adv is bad.
    """
    folder, calls = tmp_path_factory.mktemp("several"), []
    worst_cases = whitebox.worst_cases
    with project(folder) as params, pytest.MonkeyPatch.context() as patched:
        patched.setattr(whitebox, "worst_cases", lambda *arguments: calls.append(1) or worst_cases(*arguments))
        replace_predictions("predictions", BASELINE, 0.1)
        replace_predictions("predictions", "adv", 0.9, 0.88, 0.92)
        replace_predictions("predictions", "ours", 0.95, 0.3, 0.9)
        path = Path("data/predictions/adv.parquet")
        rows = pd.read_parquet(path)
        bad = (rows["split"] == "heldout") & (rows["seed"] == 1)
        rows.assign(prediction=rows["prediction"].where(~bad, (rows["label"] + 1) % 4)).to_parquet(path)
        replace_predictions("whitebox", BASELINE, 1.0)
        replace_predictions("whitebox", "adv", 0.0, 0.0, 0.05)
        replace_predictions("whitebox", "ours", 1.0, 1.0, 0.0)
        render.render(params)
    return folder / "reports", len(calls)


def test_several_trainings_are_judged_by_their_spread(several: tuple[Path, int]) -> None:
    reports, _ = several
    claims = pd.read_csv(reports / "tables" / "claims.csv").set_index(["attack", "split", "structure", "other"])
    verdicts = claims["verdict"].sort_index()
    assert verdicts["mixture", "test", "adv", BASELINE] == "reproduced"
    assert verdicts["mixture", "test", "ours", "adv"] == verdicts["mixture", "test", "ours", BASELINE] == "not shown"
    assert verdicts[CLEAN, "test", "adv", BASELINE] == "contradicted"  # the paper's adv loses there
    tests = pd.read_csv(reports / "tables" / "table2_mcnemar.csv").set_index(["split", "structure", "other"])
    assert tests.loc[("test", "ours", BASELINE), "p"] < 1e-6  # images alone are sure of it
    page = (reports / "report.md").read_text()
    assert "## What was reproduced, and what was not\n" in page and "in this one training" not in page.lower()
    assert "Not shown: that ours beats baseline on the mixture" in page
    assert re.search(r"- adv minus baseline: \+0\.\d+ \[\+0\.\d+, \+\d\.\d+\]; beyond chance\n", page)
    assert re.search(r"- ours minus adv: -0\.\d+ \[-\d\.\d+, \+\d\.\d+\]; not told apart\n", page)
    difference = json.loads((reports / "summary.json").read_text())["differences"]["ours minus baseline"]
    assert difference["trainings"] == 3 and difference["side"] == 0 and difference["image_low"] > 0


def test_tables_of_several_trainings_have_the_interval_over_them(several: tuple[Path, int]) -> None:
    tables = several[0] / "tables"
    table2 = pd.read_csv(tables / "table2.csv").set_index(["split", "structure"])
    assert table2.loc[("test", "ours"), "difference_low"] < 0 < table2.loc[("test", "adv"), "difference_low"]
    assert "Student's t-interval over the 3 trainings" in (tables / "table2.md").read_text()
    shown = (tables / "table2_mcnemar.md").read_text().splitlines()
    stars = {line.split("|")[1].strip(): line.count(r" \* ") for line in shown if line.startswith("| ")}
    assert stars["adv, baseline"] == 1 and stars["ours, baseline"] == stars["ours, adv"] == 0


def test_verdicts_that_differ_by_split_are_each_said(several: tuple[Path, int]) -> None:
    page = (several[0] / "report.md").read_text()
    (line,) = (line for line in page.splitlines() if "Not the same on test" in line)
    claim = "Not the same on test and on held-out images: that adv beats baseline on the mixture (paper +0.169; here +"
    assert claim in line
    assert "on test images, reproduced and +" in line and "on held-out images, not shown" in line


def test_worst_cases_are_judged_by_the_spread_too_and_made_once(several: tuple[Path, int]) -> None:
    reports, count = several
    page = (reports / "report.md").read_text()
    assert ". Beyond chance worse than baseline: adv; not told apart from baseline: ours.\n" in page
    assert count == 1


def test_the_summary_of_one_training_says_what_the_spread_is(tmp_path: Path) -> None:
    with project(tmp_path) as params:
        for structure, right in ((BASELINE, 0.1), ("adv", 0.9), ("ours", 0.92)):
            replace_predictions("predictions", structure, right)
        render.render(params)
    page = (tmp_path / "reports" / "report.md").read_text()
    summary = page.partition("## The paper's claims, in one training\n")[0]
    assert re.search(r"- adv minus baseline: \+0.*\]; in this one training beyond chance\n", summary)
    assert re.search(r"- ours minus adv: .*\]; in this one training not told apart\n", summary)
    assert "had a standard deviation of 0.020 (docs/results/cifar_small/seeds.md)" in summary
    assert "over images alone" in (tmp_path / "reports" / "tables" / "table2.md").read_text()


@pytest.mark.parametrize("trainings", [1, 3])
def test_leave_one_out_is_judged_by_the_spread(tmp_path: Path, trainings: int) -> None:
    """Trained without FGSM and under it, adv is worse each time, and ours is worse or better by turns."""
    with project(tmp_path) as params:
        for structure, without in (("adv", (0.2, 0.25, 0.2)), ("ours", (0.72, 0.3, 0.95))):
            replace_predictions("predictions", structure, *(0.8, 0.79, 0.81)[:trainings])
            original = Path(f"data/predictions/{structure}.parquet").read_bytes()
            for attack in params.attacks:
                row = Path(f"studies/leave_one_out/rows/{attack}/data/predictions/{structure}.parquet")
                row.parent.mkdir(parents=True, exist_ok=True)
                row.write_bytes(original)
            rows = pd.read_parquet(f"data/predictions/{structure}.parquet")
            place = rows.groupby(["seed", "split", "attack"]).cumcount() / 60
            wrong = (rows["attack"] == "fgsm") & (place > np.array(without)[rows["seed"]])
            rows = rows.assign(prediction=np.where(rows["attack"] == "fgsm", rows["label"] + wrong, rows["prediction"]))
            rows.to_parquet(f"studies/leave_one_out/rows/fgsm/data/predictions/{structure}.parquet")
        leave_one_out.write(params)
    folder = tmp_path / "studies" / "leave_one_out" / "reports"
    table = pd.read_csv(folder / "leave_one_out.csv").set_index(["split", "attack", "structure"]).sort_index()
    adv, ours = (table.loc[("heldout", "fgsm", name)] for name in ("adv", "ours"))
    assert adv["difference_side"] == -1 and adv["difference_high"] < 0 and adv["clean"] == adv["clean_side"] == 0
    assert ours["difference_side"] == 0 and (adv["trainings"], ours["trainings"]) == (trainings, trainings)
    assert (table.loc[("heldout", "bim")][["difference", "difference_side", "more", "less"]] == 0).all(axis=None)
    text = (folder / "leave_one_out.md").read_text()
    (line,) = (line for line in text.partition("*Held-out")[2].splitlines() if re.match(r"\| fgsm +\| adv", line))
    cells = line.split("|")
    assert cells[5].strip().endswith(r"] \*") and not cells[7].strip().endswith("*")
    if trainings == 1:
        assert "over images alone" in text and "had a standard deviation of 0.020" in text
    else:
        assert ours["difference_low"] < 0 < ours["difference_high"]
        assert "Student's t-interval over the 3 trainings" in text and "trainings of the profile" not in text


def test_an_interval_within_a_point_is_said_to_be() -> None:
    claim = {"attack": "mixture", "structure": "ours", "other": "adv", "paper": 0.0224, "verdict": "not shown"}
    claim |= {"difference": 0.001, "difference_low": -0.004, "difference_high": 0.006, "equivalent": 1, "trainings": 8}
    claims = pd.DataFrame([claim | {"split": split} for split in ("test", "heldout")])
    (sentence,) = stated.in_words(claims)
    assert sentence == (
        "Not shown: that ours beats adv on the mixture (paper +0.022; here +0.001 [-0.004, +0.006] on test images, "
        "within ±1 point and +0.001 [-0.004, +0.006] on held-out images, within ±1 point)."
    )
