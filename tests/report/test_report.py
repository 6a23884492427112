"""The report, from synthetic stores and predictions: no model, no training."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from sparring import params as parameters
from sparring import statistics, store
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import BASELINE, CLEAN, CORRUPTIONS, EVALUATED_SPLITS, KNOWN_DETECTORS, STRENGTHS
from sparring.report import figures, render
from sparring.report.figures import PICTURES

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["zero", "one", "two", "three"]
SHAPE = [8, 8, 3]
FIGURES = ("mixture", "accuracy_by_attack", "gallery", "success", "confusion", "failures", "detector_roc", "curves")
FIGURES += ("whitebox_curve", "detector_roc_by_attack", "corruptions")
TABLES = ("table1", "table2", "table4", "table2_mcnemar", "table4_mcnemar", "summary", "claims", "paper", "detector")
TABLES += (
    "whitebox",
    "whitebox_mcnemar",
    "checks",
    "corruptions",
    "detector_attacks",
    "detector_pairs",
    "detector_benign",
    "detector_joint",
)


def make_project(**changes: Any) -> Params:
    """A finished run in the current folder, all but the report."""
    values = YAML(typ="safe").load(ROOT / "profiles" / "digits.yaml")
    values["unseen_attacks"] = {"pgd": {"method": "bim", "eps": 0.03, "step": 0.01, "first_step": 0.01, "steps": 3}}
    baseline = {BASELINE: values["structures"][BASELINE]}
    values |= changes
    values["structures"] = baseline | values["structures"]
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe").dump(values, file)
    params = parameters.load()
    generator = np.random.default_rng(0)
    rows = dict.fromkeys(("train", "validation", "test", "heldout"), 60) | {"test": 90}
    clean, start = {}, 0
    for split, count in rows.items():
        count = 0 if split == "validation" or getattr(params.data, split) == 0 else count
        index = np.sort(generator.permutation(count)) + start
        label = generator.integers(len(CLASSES), size=count)
        image = generator.integers(0, 256, size=(count, *SHAPE), dtype=np.uint8)
        clean[split] = store.Images(index, label, image)
        metadata = {"shape": SHAPE, "classes": CLASSES, "source": "made-up images"}
        store.write(Path(f"data/clean/{split}.parquet"), [clean[split]], metadata)
        start += count
    write_results(params, clean, generator)
    return params


def write_results(params: Params, clean: dict[str, store.Images], generator: np.random.Generator) -> None:
    """All that the report needs beside the clean images."""
    for attack in [*params.attacks, *params.unseen_attacks]:
        seen = attack in params.attacks
        for split in ("train", "test", "heldout") if seen else ("test", "heldout"):
            write_attack("adversarial" if seen else "unseen", attack, split, clean[split], params, generator)
    for structure in params.structures:
        write_predictions(structure, params, clean, generator)
        write_whitebox(structure, params, clean["test"], generator)
    write_corruptions(params, clean["heldout"])
    for structure in params.structures:
        if params.structures[structure].detector != "none":
            write_detection(structure, params, clean, generator)
    Path("data/history").mkdir()
    for name in ("pretrained", *params.structures):
        write_history(name, params)
    Path("data/timings").mkdir(exist_ok=True)
    timing = {
        "stage": "attack@fgsm",
        "seconds": 2.0,
        "images": 210,
        "images_per_second": 105.0,
        "hardware": "a machine",
    }
    timing |= {"device": "cpu", "precision": "float32", "torch": "2"}
    Path("data/timings/attack-fgsm.json").write_text(json.dumps(timing))


def write_attack(
    folder: str, attack: str, split: str, clean: store.Images, params: Params, generator: np.random.Generator
) -> None:
    noise = generator.integers(-6, 7, size=clean.image.shape)
    noise[::10] = 0
    image = np.clip(clean.image.astype(int) + noise, 0, 255).astype(np.uint8)
    change = (image.astype(np.float32) - clean.image).reshape(len(clean), int(np.prod(SHAPE))) / 255
    columns = {
        **{
            name: generator.integers(len(CLASSES), size=len(clean))
            for name in ("prediction", "prediction_float", "prediction_rounded")
        },
        "l2": np.sqrt((change**2).sum(1)),
        "linf": np.abs(change).max(1, initial=0),
    }
    entry = {**params.attacks, **params.unseen_attacks}[attack]
    metadata = {
        "shape": SHAPE,
        "classes": CLASSES,
        "source": "made-up images",
        "attack": attack,
        "method": entry.method,
    }
    metadata |= {"arguments": entry.arguments, "source_model": "0"}
    images = store.Images(clean.index, clean.label, image, columns)
    store.write(Path(f"data/{folder}/{attack}/{split}.parquet"), [images], metadata)


def write_corruptions(params: Params, clean: store.Images) -> None:
    """Of each structure, the first image under the first corruption is right at strength 1 only; all else is right."""
    kinds = [("clean", 0), *((name, strength) for name in CORRUPTIONS for strength in STRENGTHS)]
    rows = [
        {"index": index, "split": "heldout", "seed": 0, "corruption": name, "strength": strength, "label": label}
        | {"prediction": label + (name == "noise" and strength > 1 and place == 0), "confidence": np.float32(0.9)}
        for name, strength in kinds
        for place, (index, label) in enumerate(zip(clean.index, clean.label, strict=True))
    ]
    columns = ["index", "split", "seed", "corruption", "strength", "label", "prediction", "confidence"]
    Path("data/corruptions").mkdir()
    for structure in params.structures:
        pd.DataFrame(rows, columns=columns).to_parquet(f"data/corruptions/{structure}.parquet", index=False)


def write_predictions(
    structure: str, params: Params, clean: dict[str, store.Images], generator: np.random.Generator
) -> None:
    detector = structure in params.structures and params.structures[structure].detector != "none"
    frames = []
    for split in EVALUATED_SPLITS:
        for attack in (CLEAN, *params.attacks, *params.unseen_attacks):
            images = clean[split]
            right = generator.random(len(images)) < 0.7
            score = generator.random(len(images)) * 0.7 + (0.0 if attack == CLEAN else 0.3)
            frame = pd.DataFrame({"index": images.index, "label": images.label})
            frame["prediction"] = np.where(right, images.label, (images.label + 1) % len(CLASSES))
            frame["confidence"] = np.float32(0.9)
            frame["detector_score"] = score.astype(np.float32) if detector else np.full(len(images), np.nan, np.float32)
            frames.append(frame.assign(split=split, seed=0, attack=attack))
    path = Path(f"data/predictions/{structure}.parquet")
    path.parent.mkdir(exist_ok=True)
    rows = pd.concat(frames).sample(frac=1, random_state=0)  # an order of its own: the report must join by index
    rows.to_parquet(path, index=False)


def write_whitebox(structure: str, params: Params, test: store.Images, generator: np.random.Generator) -> None:
    counts = {CLEAN: params.whitebox.images} | {name: count for name, (_, count) in params.whitebox.runs.items()}
    frames = []
    for attack, count in counts.items():
        frame = pd.DataFrame({"index": test.index[:count], "label": test.label[:count]})
        right = generator.random(len(frame)) < (0.7 if attack == CLEAN else 0.4)
        right &= not attack.startswith("eps=128")
        frame["prediction"] = np.where(right, frame["label"], (frame["label"] + 1) % len(CLASSES))
        frame["l2"], frame["linf"] = np.float32(attack != CLEAN), np.float32(0.02 * (attack != CLEAN))
        frames.append(frame.assign(seed=0, attack=attack))
    path = Path(f"data/whitebox/{structure}.parquet")
    path.parent.mkdir(exist_ok=True)
    pd.concat(frames).sample(frac=1, random_state=0).to_parquet(path, index=False)


def write_detection(
    structure: str, params: Params, clean: dict[str, store.Images], generator: np.random.Generator
) -> None:
    kinds = {CLEAN: [CLEAN], "attack": [*params.attacks, *params.unseen_attacks]}
    kinds |= {"benign": ["blur", "jpeg"], "aimed": ["none", "unaware", "adaptive"]}
    clean = {split: clean[split] for split in EVALUATED_SPLITS}
    frames = []
    for kind, attacks in kinds.items():
        for attack in attacks:
            for split, images in clean.items():
                frame = pd.DataFrame({"index": images.index, "label": images.label})
                for column in ("detector", *KNOWN_DETECTORS):
                    known = kind == "aimed" and column in KNOWN_DETECTORS
                    frame[column] = np.nan if known else generator.normal(float(kind == "attack"), 1, len(images))
                frame["prediction"] = images.label if kind == "aimed" else np.nan
                frames.append(frame.assign(split=split, seed=0, kind=kind, attack=attack))
    rows = pd.concat(frames).sample(frac=1, random_state=0)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    fitted = {"bits": 4, "median": 2, "fit": 30, "split": "validation", "gaussians": 30}
    path = Path(f"data/detection/{structure}.parquet")
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata({store.METADATA_KEY: json.dumps(fitted)}), path)


def write_history(name: str, params: Params) -> None:
    epoch = np.arange(5)
    slope = 1 / (epoch + 2 + len(name) / 10)
    history = pd.DataFrame(
        {"epoch": epoch, "loss": 2 * slope, "accuracy": 1 - slope, "validation_accuracy": 0.9 - slope}
    )
    if name in params.structures and params.structures[name].detector != "none":
        history["classification_loss"] = history["matching_loss"] = history["detector_loss"] = slope
        history["detector_accuracy"] = 1 - slope
    else:
        history["validation_accuracy"] = np.nan  # as without validation images
    history.to_csv(f"data/history/{name}.csv", index=False)


def everything() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path("reports").rglob("*")) if path.is_file()}


def leave_undrawn(patched: pytest.MonkeyPatch, names: Iterable[str]) -> None:
    """Let these figures be empty files."""

    def empty(name: str, folder: Path, *_: Any) -> None:
        path = folder / "vector" / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        path.touch()

    for name in names:
        patched.setattr(render.figures, name, partial(empty, name))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of numbers: drawing takes ten times as long as all the rest."""
    leave_undrawn(monkeypatch, FIGURES)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    return make_project()


def test_parts_that_were_left_out_are_said_and_not_read(project: Params, undrawn: None) -> None:
    parts = {"whitebox": "whitebox", "detect": "detection", "corruptions": "corruptions"}
    for left_out in ({"detect": "no time"}, dict.fromkeys(parts, "no|time")):
        for part in left_out:
            shutil.rmtree(Path("data", parts[part]), ignore_errors=True)
        render.render(project, left_out)
        text = Path("reports/report.md").read_text()
        assert text.count("Left out of this run: no") == len(left_out)
        assert all(part in text.partition("**Left out of this run**")[2].splitlines()[0] for part in left_out)
        summary = json.loads(Path("reports/summary.json").read_text())
        assert set(summary["mixture"]) == {"baseline", "adv", "ours"} and summary["detector"]["ours"]["auroc"] > 0
        assert bool(summary["whitebox"]) == ("whitebox" not in left_out) and "joint" not in summary


def test_numbers_agree_with_the_predictions(project: Params, undrawn: None) -> None:
    render.render(project)
    summary = json.loads(Path("reports/summary.json").read_text())
    assert summary["data"] == {"source": "made-up images", "classes": 4, "train": 60, "test": 90, "heldout": 60}
    text = Path("reports/report.md").read_text()
    assert "Classes, by the number of their output: 0 zero, 1 one, 2 two, 3 three." in text
    rows = pd.read_parquet("data/predictions/adv.parquet")
    right = rows["label"] == rows["prediction"]
    for split, tree in (("test", summary), ("heldout", summary["heldout"])):
        for attack in (CLEAN, *project.attacks, *project.unseen_attacks):
            of_attack = right[(rows["split"] == split) & (rows["attack"] == attack)]
            assert tree["per_attack"]["adv"][attack] == pytest.approx(of_attack.mean(), abs=1e-6)
        clean = store.read(Path(f"data/clean/{split}.parquet"))
        draw = statistics.draw_mixture(clean.index, clean.label, list(project.attacks), 0.5, project.seed, split)
        shown = dict(zip(draw["index"], draw["attack"], strict=True))
        picked = (rows["split"] == split) & (rows["attack"] == rows["index"].map(shown))
        assert picked.sum() == len(clean)
        entry = tree["mixture"]["adv"]
        assert entry["accuracy"] == pytest.approx(right[picked].mean(), abs=1e-6)
        assert entry["ci_low"] < entry["accuracy"] < entry["ci_high"]
    metrics = json.loads(Path("reports/metrics.json").read_text())
    assert set(metrics["mixture"]) == {BASELINE, "adv", "ours"}
    assert set(metrics["detector"]) == {"ours"}
    assert metrics["detector"]["ours"]["auroc"] == round(summary["detector"]["ours"]["auroc"], 4)
    attacks = summary["attacks"]
    assert attacks["fgsm"]["images_per_second"] == 105
    assert attacks["bim"]["images_per_second"] is None
    assert attacks["pgd"]["unchanged"] == 9
    assert attacks["pgd"]["images"] == 90


def test_the_summary_says_who_is_weaker_than_the_baseline_when_aimed_at(project: Params, undrawn: None) -> None:
    def told(wrong: list[str]) -> str:
        for name in project.structures:
            path = Path(f"data/whitebox/{name}.parquet")
            rows = pd.read_parquet(path)
            rows.assign(prediction=(rows["label"] + (name in wrong)) % 4).to_parquet(path)
        render.render(project)
        lines = Path("reports/report.md").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("- Attackers who aim at each structure itself"))
        return line

    line = told([])
    assert all(f"{name} 1.000 [" in line for name in project.structures) and "lower" not in line
    line = told(["adv"])
    assert "adv 0.000 [" in line and line.endswith(
        "]; in this one training lower than baseline beyond chance, whatever they gain above: adv."
    )
    path = Path("data/whitebox/ours.parquet")
    rows = pd.read_parquet(path)
    one = rows["index"] == rows["index"].min()
    rows.assign(prediction=(rows["label"] + one) % 4).to_parquet(path)
    render.render(project)
    assert "ours 0.980 [" in Path("reports/report.md").read_text()
    assert "beyond chance, whatever they gain above: adv." in Path("reports/report.md").read_text()


def test_success_counts_only_images_that_were_right_before(project: Params, undrawn: None) -> None:
    render.render(project)
    facts = json.loads(Path("reports/summary.json").read_text())["attacks"]["cw"]
    rows = pd.read_parquet("data/predictions/baseline.parquet")
    rows = rows[(rows["split"] == "test") & (rows["attack"] == CLEAN)].set_index("index")
    ways = {"success": "prediction", "success_float": "prediction_float", "success_rounded": "prediction_rounded"}
    stored = store.read(Path("data/adversarial/cw/test.parquet"), tuple(ways.values()))
    before = (rows["label"] == rows["prediction"]).loc[stored.index].to_numpy()
    for name, column in ways.items():
        after = stored.columns[column] == stored.label
        assert facts[name] == pytest.approx((before & ~after).sum() / before.sum(), abs=1e-6)


def test_writes_every_file_the_same_bytes_twice_and_nothing_where_it_fails(
    project: Params, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    render.render(project)
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
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert everything() == first
    for out in (capsys.readouterr().out, done.stdout):
        assert out.startswith("report: 18 tables, 11 figures in ") and out.count("\n") == 1
    assert not list(Path.cwd().glob(".reports*"))
    page = first["reports/report.md"].decode()
    links = [part.partition(")")[0] for part in page.split("](")[1:]]
    assert sorted(links) == sorted(f"figures/{name}.png" for name in PICTURES)
    assert page.count("\n*Figure in `index.html`:* ") == len(FIGURES) - len(PICTURES)
    assert "*Figure in `index.html`:* Training, by epoch." in page

    Path("reports/mine.txt").write_text("kept")
    before = everything()
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(render.figures, "curves", lambda *_: 1 / 0)
        render.render(project)
    Path("data/predictions/adv.parquet").unlink()
    failed = subprocess.run(script, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr == "error: data/predictions/adv.parquet is missing; `dvc repro` makes it\n"
    assert everything() == before
    assert not list(Path.cwd().glob(".reports*"))


def test_pictures_have_a_palette_and_few_bytes(project: Params) -> None:
    render.render(project)
    for name in PICTURES:
        path = Path(f"reports/figures/{name}.png")
        assert path.stat().st_size <= 150_000 and Image.open(path).mode == "P", name


def test_a_picture_too_large_gets_fewer_colours_and_then_fewer_pixels() -> None:
    generator = np.random.default_rng(0)
    for side, kept in ((200, True), (500, False)):
        noise = Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8))
        content = figures.small_png(noise)
        picture = Image.open(io.BytesIO(content))
        assert len(content) <= 150_000 and content == figures.small_png(noise)
        assert (picture.size == noise.size) == kept
        assert len(picture.getcolors()) >= 30
    grid = Image.fromarray(np.kron(generator.integers(0, 256, (10, 10, 3)), np.ones((40, 40, 1))).astype(np.uint8))
    picture = Image.open(io.BytesIO(figures.small_png(grid)))
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - np.asarray(grid)).max() <= 1  # 100 colours: all fit


def test_files_of_an_earlier_layout_do_not_survive(project: Params, undrawn: None) -> None:
    earlier = ("figures/curves.png", "figures/curves.svg", "figures/gallery.svg", "tables/table2.tex", "tables/old.md")
    for name in earlier:
        path = Path("reports", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    Path("data/history/adv.csv").rename("adv.csv")
    with pytest.raises(InputError, match="is missing"):
        render.render(project)
    assert all(Path("reports", name).read_text() == "old" for name in earlier)
    Path("adv.csv").rename("data/history/adv.csv")
    render.render(project)
    assert not any(Path("reports", name).exists() for name in earlier)
    assert Path("reports/vector/curves.svg").exists() and Path("reports/tex/table2.tex").exists()


def test_tables_tell_what_the_figures_are(project: Params, undrawn: None) -> None:
    render.render(project)
    table1 = Path("reports/tables/table1.md").read_text()
    assert table1.count("6/255") >= 2  # fgsm 0.025 and bim 0.026 are the same radius once stored
    assert "pgd (unseen)" in table1
    for name in ("table2", "table4"):
        text = Path(f"reports/tables/{name}.md").read_text()
        assert "transfer" in text
        assert "white-box" in text
        assert "made-up images" in text
        assert "0.8688" in text if name == "table2" else "0.8916" in text
    tidy = pd.read_csv("reports/tables/table4.csv")
    assert len(tidy) == 2 * 3 * 8
    assert tidy.loc[tidy["attack"] == "pgd", "paper"].isna().all()
    assert not tidy.loc[tidy["attack"] == "pgd", "seen"].any()
    plot = pd.read_csv("reports/figures/accuracy_by_attack.csv")
    assert list(plot.columns) == ["attack", "structure", "accuracy"]


def test_without_detector_or_timings_or_heldout_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = YAML(typ="safe").load(ROOT / "profiles" / "digits.yaml")["data"] | {"heldout": 0}
    params = make_project(data=data, structures={"adv": {"opponents": "sampler", "detector": "none"}})
    Path("data/timings/attack-fgsm.json").unlink()
    render.render(params)
    summary = json.loads(Path("reports/summary.json").read_text())
    assert summary["detector"] == {}
    assert summary["heldout"]["mixture"]["adv"]["accuracy"] is None
    assert summary["attacks"]["fgsm"]["images_per_second"] is None
    assert not Path("reports/vector/detector_roc.svg").exists()


def test_controls_stand_beside_the_papers_structures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.chdir(tmp_path)
    opponents = {"adv": "sampler", "classical": "fixed", "fast": "online_fgsm", "madry": "online_pgd"}
    structures = {name: {"opponents": word, "detector": "none"} for name, word in opponents.items()}
    render.render(make_project(structures=structures))
    table = pd.read_csv("reports/tables/table2.csv")
    assert set(table["structure"]) == {BASELINE, *opponents} and table["accuracy"].notna().all()
    assert set(pd.read_csv("reports/tables/table4.csv")["structure"]) == {BASELINE, *opponents}
    page = Path("reports/report.md").read_text()
    assert "trained on them (fast, madry: on attacks made on the fly instead) for" in page
    for other in ("classical", "fast", "madry"):
        assert page.count(f"- adv minus {other}: ") == 2 and f"{other} minus adv" not in page
    assert "- online_pgd: eps 0.025, step 0.00625, steps 7\n" in page


def test_no_structures_and_no_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = YAML(typ="safe").load(ROOT / "profiles" / "digits.yaml")["data"] | {"test": 0}
    render.render(make_project(data=data, structures={}))
    assert json.loads(Path("reports/metrics.json").read_text()) == {
        "mixture": {BASELINE: None},
        "whitebox": {},
        "detector": {},
    }
    assert "No white-box attack was run" in Path("reports/report.md").read_text()


def test_a_detector_without_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    monkeypatch.chdir(tmp_path)
    data = YAML(typ="safe").load(ROOT / "profiles" / "digits.yaml")["data"] | {"test": 0}
    render.render(make_project(data=data))
    found = pd.read_csv("reports/tables/detector_attacks.csv").set_index("split")
    assert found.loc["test", "auroc"].isna().all() and found.loc["heldout", "auroc"].notna().all()


def test_several_seeds_are_pooled(project: Params, undrawn: None) -> None:
    path = Path("data/predictions/adv.parquet")
    rows = pd.read_parquet(path)
    pd.concat([rows, rows.assign(seed=1, prediction=rows["label"])]).to_parquet(path)
    render.render(project)
    summary = json.loads(Path("reports/summary.json").read_text())
    once = rows[(rows["split"] == "test") & (rows["attack"] == CLEAN)]
    pooled = (1 + (once["label"] == once["prediction"]).mean()) / 2
    assert summary["per_attack"]["adv"][CLEAN] == pytest.approx(pooled, abs=1e-6)
    table = Path("reports/tables/table4.md").read_text()
    assert "adv 2" in table and "trained once" not in Path("reports/report.md").read_text()
    sd = (1 - (once["label"] == once["prediction"]).mean()) / np.sqrt(2)
    assert f"{pooled:.3f} ± {sd:.3f} [" in table
    tidy = pd.read_csv("reports/tables/table2.csv").set_index(["split", "structure"])
    assert tidy.loc[("test", "adv"), "sd"] > 0 and np.isnan(tidy.loc[("test", "ours"), "sd"])
    assert summary["mixture"]["adv"]["sd"] == pytest.approx(tidy.loc[("test", "adv"), "sd"], abs=1e-5)


def rewrite(structure: str, right: bool) -> None:
    """Let a structure classify everything right, or everything wrong."""
    path = Path(f"data/predictions/{structure}.parquet")
    rows = pd.read_parquet(path)
    rows.assign(prediction=rows["label"] if right else (rows["label"] + 1) % len(CLASSES)).to_parquet(path)


def test_the_papers_claims_are_judged_by_the_numbers(project: Params, undrawn: None) -> None:
    for structure, right in ((BASELINE, False), ("adv", True), ("ours", False)):
        rewrite(structure, right)
    render.render(project)
    claims = pd.read_csv("reports/tables/claims.csv").set_index(["split", "attack", "structure", "other"])
    assert len(claims) == 2 * (2 + len(project.attacks)) * 3
    for split in EVALUATED_SPLITS:
        verdicts = claims.loc[(split, "mixture"), "verdict"]
        assert verdicts[("adv", BASELINE)] == "on the paper's side"
        assert verdicts[("ours", BASELINE)] == "not told apart"
        assert verdicts[("ours", "adv")] == "on the other side"
        # The paper's adv loses there.
        assert claims.loc[(split, CLEAN, "adv", BASELINE), "verdict"] == "on the other side"
    assert claims.loc[("test", "mixture", "adv", BASELINE), ["paper", "difference"]].tolist() == [0.1686, 1]
    page = Path("reports/report.md").read_text()
    beats = "that adv beats baseline on the mixture (paper +0.169; here +1.000 ["
    assert f"In this one training on the paper's side: {beats}" in page
    assert "In this one training not told apart: that ours beats baseline on the mixture" in page
    assert (
        "In this one training on the other side: that ours beats adv on the mixture (paper +0.022; here -1.000" in page
    )
    assert "single attacks, in this one training on test images: 6 on the paper's side, 7 not told apart, 8 on" in page
    assert "Each structure was trained once, so nothing is reproduced or contradicted here: " in page
    assert "## The paper's claims, in one training\n" in page
    assert not re.search("reproduced(?! or contradicted here)|contradicted(?! here)", page, re.IGNORECASE)
    assert "On another data set the paper's figures are for orientation only." in page
    assert (
        "On test images, our interval over images contains 0 of the 24 accuracies in the paper's Tables 2 and 4; "
        in page
    )


def test_the_papers_figures_stand_beside_ours(project: Params, undrawn: None) -> None:
    render.render(project)
    beside = pd.read_csv("reports/tables/paper.csv")
    assert len(beside) == 2 * 3 * (1 + 1 + len(project.attacks))
    assert beside["minus_paper"].to_numpy() == pytest.approx(
        (beside["accuracy"] - beside["paper"]).to_numpy(), abs=1e-5
    )
    within = (beside["ci_low"] <= beside["paper"]) & (beside["paper"] <= beside["ci_high"])
    assert (beside["within"] == within).all() and within.any() and not within.all()
    published = beside.set_index(["split", "structure", "attack"])["paper"]
    assert published[("test", "ours", "mixture")] == 0.8688 and published[("heldout", "adv", "cw")] == 0.7736


def test_mcnemar_stands_beside_tables_2_and_4(project: Params, undrawn: None) -> None:
    render.render(project)
    first, second = (pd.read_parquet(f"data/predictions/{name}.parquet") for name in ("ours", "adv"))
    both = first.merge(second, on=["split", "attack", "index"])
    both = both[(both["split"] == "test") & (both["attack"] == "cw")]
    ours, adv = (both[f"label_{side}"] == both[f"prediction_{side}"] for side in "xy")
    found = pd.read_csv("reports/tables/table4_mcnemar.csv").set_index(["split", "attack", "structure", "other"])
    assert len(found) == 2 * (1 + len(project.attacks) + 1) * 3
    row = found.loc[("test", "cw", "ours", "adv")]
    more, less = int((ours & ~adv).sum()), int((adv & ~ours).sum())
    assert [row["more"], row["less"], row["images"]] == [more, less, 90]
    tail = sum(math.comb(more + less, count) for count in range(min(more, less) + 1)) / 2 ** (more + less)
    assert row["p"] == pytest.approx(min(1, 2 * tail), rel=1e-4)
    assert f"({more} : {less})" in Path("reports/tables/table4_mcnemar.md").read_text()
    assert len(pd.read_csv("reports/tables/table2_mcnemar.csv")) == 2 * 3
    summary = json.loads(Path("reports/summary.json").read_text())
    assert set(summary["differences"]) == {"adv minus baseline", "ours minus baseline", "ours minus adv"}


def test_mcnemar_compares_what_withstood_every_attack_image_by_image(project: Params, undrawn: None) -> None:
    render.render(project)
    withstood = {}
    for structure in ("ours", "adv"):
        rows = pd.read_parquet(f"data/whitebox/{structure}.parquet")
        inside = rows[rows["l2"] <= 0.5]  # of these made-up rows only the clean ones
        withstood[structure] = (inside["label"] == inside["prediction"]).groupby(inside["index"]).all()
    found = pd.read_csv("reports/tables/whitebox_mcnemar.csv").set_index(["attack", "structure", "other"])
    row = found.loc[("worst case, L2 0.5", "ours", "adv")]
    more = int((withstood["ours"] & ~withstood["adv"]).sum())
    less = int((withstood["adv"] & ~withstood["ours"]).sum())
    assert [row["more"], row["less"], row["images"]] == [more, less, 50] and more + less
    shown = Path("reports/tables/whitebox_mcnemar.md").read_text()
    assert f"({more} : {less})" in shown and "Held-out" not in shown


def test_without_the_papers_structures_nothing_is_said_to_be_reproduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.chdir(tmp_path)
    render.render(make_project(structures={"classical": {"opponents": "fixed", "detector": "none"}}))
    page = Path("reports/report.md").read_text()
    assert "none of its claims was tried" in page and "Reproduced:" not in page and "trained once" not in page


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
def test_bad_input_is_one_line_and_keeps_the_old_report(project: Params, spoil: Any, says: str) -> None:
    Path("reports").mkdir()
    Path("reports/metrics.json").write_text("old")
    before = everything()
    spoil()
    with pytest.raises(InputError, match=says) as caught:
        render.render(project)
    assert "\n" not in str(caught.value)
    assert "dvc repro" in str(caught.value)
    assert everything() == before


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), max_size=120),
    attacks=st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=7, unique=True),
    percent=st.integers(0, 100),
    seed=st.integers(0, 2**32),
)
def test_mixture_is_even_overall_and_within_classes(
    labels: list[int], attacks: list[str], percent: int, seed: int
) -> None:
    label = np.array(labels, np.int64)
    index = np.arange(len(label)) * 3 + 5
    draw = statistics.draw_mixture(index, label, attacks, percent / 100, seed, "test")
    assert sorted(draw["index"]) == list(index)
    shown = draw.set_index("index")["attack"].loc[index].to_numpy()
    for group in [np.ones(len(label), bool), *(label == value for value in range(5))]:
        counts = Counter(shown[group])
        attacked = sum(counts[name] for name in attacks)
        assert attacked + counts[CLEAN] == group.sum()
        assert abs(100 * attacked - percent * group.sum()) < 100  # the exact share, rounded up or down
        assert max(counts[name] for name in attacks) - min(counts[name] for name in attacks) <= 1
    order = np.random.default_rng(0).permutation(len(label))
    again = statistics.draw_mixture(index[order], label[order], attacks[::-1], percent / 100, seed, "test")
    pd.testing.assert_frame_equal(again, draw)


def test_mixture_differs_by_seed_and_split() -> None:
    index, label = np.arange(100), np.arange(100) % 10
    draws = [
        tuple(
            statistics.draw_mixture(index, label, ["a", "b"], 0.5, seed, split).set_index("index").loc[index, "attack"]
        )
        for seed, split in ((0, "test"), (1, "test"), (0, "heldout"))
    ]
    assert len(set(draws)) == 3


@settings(deadline=None)
@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_agrees_with_its_formula(n: int, share: float) -> None:
    successes = round(n * share)
    low, high = statistics.wilson(successes, n)
    z, rate = 1.959963984540054, successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    assert low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert high == pytest.approx(min(centre + half, 1), abs=1e-9)
    assert 0 <= low <= rate <= high <= 1


def test_wilson_of_nothing() -> None:
    assert np.isnan(statistics.wilson(0, 0)).all()


def test_paired_difference_agrees_with_bonett_and_price() -> None:
    ours = np.repeat([1, 1, 0, 0], [40, 15, 5, 30]).astype(bool)
    theirs = np.repeat([1, 0, 1, 0], [40, 15, 5, 30]).astype(bool)
    rows = pd.concat(
        pd.DataFrame({"split": "test", "structure": name, "seed": 0, "index": range(90), "correct": correct})
        for name, correct in (("ours", ours), ("theirs", theirs))
    )
    compared = statistics.comparisons(rows, ["ours", "theirs", "absent"], ["split"])
    difference, low, high = compared.loc[("test", "ours", "theirs"), list(DIFFERENCE)]
    gain, loss = 16 / 92, 6 / 92
    half = 1.959963984540054 * np.sqrt((gain + loss - (gain - loss) ** 2) / 92)
    assert difference == pytest.approx(10 / 90)
    assert (low, high) == pytest.approx((gain - loss - half, gain - loss + half))
    assert compared.loc[("test", "ours", "absent"), list(DIFFERENCE)].isna().all()


DIFFERENCE = ("difference", "difference_low", "difference_high")


def compared(**right: list[int]) -> pd.DataFrame:
    """Structures against each other, and against one without predictions, on the same images: of each the images, by
    number of right trainings of two."""
    frames = [
        pd.DataFrame({"structure": name, "index": range(len(counts)), "seed": seed, "correct": np.array(counts) > seed})
        for name, counts in right.items()
        for seed in (0, 1)
    ]
    rows = pd.concat(frames, ignore_index=True).assign(split="test")
    return statistics.comparisons(rows, [*right, "absent"], ["split"]).loc["test"]


def test_mcnemar_has_known_values() -> None:
    a = [2] * 10 + [0] * 2 + [2] * 30
    found = compared(a=a, b=[0] * 10 + [2] * 2 + [2] * 30, same=a)[["more", "less", "p"]]
    more, less, p = found.loc[("a", "b")]
    assert (more, less) == (10, 2)
    assert p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert found.loc[("b", "a")].tolist() == [2, 10, p]
    assert found.loc[("a", "same")].tolist() == [0, 0, 1.0]
    assert np.isnan(found.loc[("a", "absent"), "p"])


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_mcnemar_counts_an_image_for_the_one_with_more_right_trainings(counts: list[tuple[int, int]]) -> None:
    found = compared(a=[count for count, _ in counts], b=[count for _, count in counts])
    more, less = found.loc[("a", "b"), ["more", "less"]].astype(int)
    p = found.loc[("a", "b"), "p"]
    assert more == sum(first > second for first, second in counts)
    assert less == sum(first < second for first, second in counts)
    n = more + less
    assert p == pytest.approx(min(1, 2 * sum(math.comb(n, k) for k in range(min(more, less) + 1)) / 2**n))
    assert found.loc[("b", "a"), ["more", "less", "p"]].tolist() == [less, more, p]
    difference, low, high = found.loc[("a", "b"), list(DIFFERENCE)]
    assert difference == pytest.approx(np.mean([first - second for first, second in counts]) / 2)
    assert found.loc[("b", "a"), list(DIFFERENCE)].tolist() == pytest.approx([-difference, -high, -low])


def test_detector_metrics() -> None:
    score = np.array([0.1, 0.4, 0.6, 0.9])
    perfect = statistics.detector_metrics(np.array([False, False, True, True]), score)
    assert perfect == {"accuracy": 1.0, "majority": 0.5, "auroc": 1.0, "tpr_at_fpr05": 1.0}
    mixed = statistics.detector_metrics(np.array([False, True, False, True]), score)
    assert mixed == {"accuracy": 0.5, "majority": 0.5, "auroc": 0.75, "tpr_at_fpr05": 0.5}
    one_class = statistics.detector_metrics(np.zeros(4, bool), score)
    assert one_class == {"accuracy": 0.5, "majority": 1.0, "auroc": None, "tpr_at_fpr05": None}
    assert set(statistics.detector_metrics(np.zeros(0, bool), np.zeros(0)).values()) == {None}


def test_unchanged_images_count_as_clean_for_the_detector() -> None:
    mixture = pd.DataFrame({"split": "test", "attack": ["a", "a", CLEAN], "index": [7, 8, 9]})
    stored = pd.DataFrame({"split": "test", "attack": "a", "index": [9, 8, 7], "linf": [0.1, 0.0, 0.1]})
    assert list(statistics.detector_rows(mixture, stored)["adversarial"]) == [True, False, False]


def test_corruptions_are_counted_by_strength_and_image(project: Params, undrawn: None) -> None:
    render.render(project)
    table = pd.read_csv("reports/tables/corruptions.csv").set_index(["structure", "corruption", "strength"])
    assert len(table) == len(project.structures) * 31 and (table["images"] == 60).all()
    found = table.loc["adv", ["accuracy", "ci_low", "ci_high"]]
    assert found.loc[("noise", 1)].tolist() == pytest.approx([1, *statistics.wilson(60, 60)], rel=1e-5)
    assert found.loc[("noise", 5)].tolist() == pytest.approx([59 / 60, *statistics.wilson(59, 60)], rel=1e-5)
    lines = Path("reports/tables/corruptions.md").read_text().splitlines()
    (mean,) = (line for line in lines if line.startswith("| noise") and line.count("|") == len(project.structures) + 2)
    assert f"{1 - 4 / 5 / 60:.3f}" in mean


def test_a_missing_corruption_is_one_line(project: Params) -> None:
    path = Path("data/corruptions/adv.parquet")
    rows = pd.read_parquet(path)
    rows[(rows["corruption"] != "jpeg") | (rows["strength"] != 3)].to_parquet(path)
    with pytest.raises(InputError, match=r"adv\.parquet: seed 0, heldout, jpeg:3: 60 of 60 images have no prediction"):
        render.render(project)
    path.unlink()
    with pytest.raises(InputError, match=r"data/corruptions/adv\.parquet is missing; `dvc repro` makes it"):
        render.render(project)
