"""These functions make a finished run of made-up results, all but the report, without a model or training."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from sparring import params as parameters
from sparring import store
from sparring.params import Params
from sparring.params.names import BASELINE, CLEAN, CORRUPTIONS, EVALUATED_SPLITS, KNOWN_DETECTORS, STRENGTHS
from sparring.report import by_attack, corruptions, detector, failures, gallery, making, mixture, overview, whitebox

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ["zero", "one", "two", "three"]
SHAPE = [8, 8, 3]
# Every figure of the report, by name, with the section that draws it.
FIGURES = {
    "overview": overview,
    "mixture": mixture,
    "accuracy_by_attack": by_attack,
    "gallery": gallery,
    "success": gallery,
    "confusion": failures,
    "failures": failures,
    "detector_roc": detector,
    "detector_roc_by_attack": detector,
    "curves": making,
    "whitebox_curve": whitebox,
    "corruptions": corruptions,
}
TABLES = ("table1", "table2", "table4", "table2_mcnemar", "table4_mcnemar", "summary", "claims", "paper", "detector")
TABLES += (
    "whitebox",
    "price",
    "whitebox_mcnemar",
    "checks",
    "corruptions",
    "detector_attacks",
    "detector_pairs",
    "detector_benign",
    "detector_joint",
)


def make_project(**changes: Any) -> Params:
    """Make a finished run in the current folder, all but the report."""
    values = YAML(typ="safe").load(ROOT / "profiles" / "digits.yaml")
    del values["structures"]["evolving"]
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
    """Write all that the report needs beside the clean images."""
    for attack in [*params.attacks, *params.unseen_attacks]:
        is_trained_on = attack in params.attacks
        for split in ("train", "test", "heldout") if is_trained_on else ("test", "heldout"):
            write_attack("adversarial" if is_trained_on else "unseen", attack, split, clean[split], params, generator)
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
    entry = {**params.attacks, **params.unseen_attacks}[attack]
    columns = {
        **{name: generator.integers(len(CLASSES), size=len(clean)) for name in entry.predictions},
        "l2": np.sqrt((change**2).sum(1)),
        "linf": np.abs(change).max(1, initial=0),
    }
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
    """Write right predictions, but for each structure's first image under noise, which is right at strength 1 only."""
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
    for kind, versions in kinds.items():
        for attack in versions:
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
    """Return all files of the report, by path."""
    return {str(path): path.read_bytes() for path in sorted(Path("reports").rglob("*")) if path.is_file()}


def leave_undrawn(patched: pytest.MonkeyPatch, names: Iterable[str]) -> None:
    """Let these figures be empty files, as drawing takes ten times as long as all the rest."""

    def empty(name: str, folder: Path, *_: Any) -> None:
        path = folder / "vector" / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        path.touch()

    for name in names:
        patched.setattr(FIGURES[name], f"draw_{name}", partial(empty, name))
