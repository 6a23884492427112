"""This study trains nets with evolving opponents, and with known methods, and then attacks them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sparring.attacks import generation
from sparring.data import prepare
from sparring.defences.train import train
from sparring.evaluation import predict, whitebox
from sparring.layout import HERE, Layout, replacing
from sparring.params.evolving import REFERENCE, Study, net_params
from sparring.params.names import AUTOATTACK, BASELINE, CLEAN, EVALUATED_SPLITS
from sparring.training.pretrain import pretrain

STUDY = "evolving"
SPLIT = "test"
COLUMNS = ["training", "method", "eps", "seed", "images", "epochs", "clean", "pgd50", "autoattack", "stored", "seconds"]
COLUMNS += ["passes_per_image", "processor", "tested", "shown"]


def make_source(study: Study, layout: Layout = HERE) -> None:
    """Prepare the images, train the source net of the stored attacks, and make these attacks."""
    params, place = net_params(study), _source(layout)
    prepare.prepare(params, place)
    pretrain(params, place)
    for attack in params.attacks:
        generation.attack_splits(params, attack, place, ["train", *EVALUATED_SPLITS])
    train(params, BASELINE, place)


def make_row(study: Study, name: str, layout: Layout = HERE) -> None:
    """Train a net, attack it, and write its row and its history. Raises InputError where there is no such training."""
    params, training = net_params(study, name), study.trainings[name]
    method = training.method
    place = replace(_source(layout), results=_folder(name))
    train(params, method, place)
    predict.evaluate(params, method, place)
    whitebox.attack_structure(params, method, place, SPLIT)
    predictions = pd.read_parquet(place.predictions(method))
    predictions = predictions[predictions["split"] == SPLIT]
    attacked = pd.read_parquet(place.whitebox(method))
    timing = json.loads((place.timings / f"train-{method}.json").read_text())
    row = {
        "training": name,
        "method": method,
        "eps": training.eps,
        "seed": training.seed,
        "images": timing["images"] // training.epochs,
        "epochs": training.epochs,
        "clean": _accuracy(predictions[predictions["attack"] == CLEAN]),
        "pgd50": _accuracy(attacked[attacked["attack"] == REFERENCE]),
        "autoattack": _accuracy(attacked[attacked["attack"] == AUTOATTACK]),
        "stored": _accuracy(predictions[predictions["attack"] != CLEAN]),
        "seconds": timing["seconds"],
        "passes_per_image": params.passes(method),
        "processor": timing["hardware"],
        "tested": int((attacked["attack"] == REFERENCE).sum()),
        "shown": int((predictions["attack"] == CLEAN).sum()),
    }
    folder = layout.root / _folder(name)
    shutil.copyfile(place.history(method), folder / "history.csv")
    with replacing(folder / "row.csv") as path:
        pd.DataFrame([row], columns=COLUMNS).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def rows(study: Study, layout: Layout = HERE) -> pd.DataFrame:
    """Return the row of each finished training, in the order of params.yaml."""
    paths = [layout.root / _folder(name) / "row.csv" for name in study.trainings]
    frames = [pd.read_csv(path) for path in paths if path.exists()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def histories(study: Study, layout: Layout = HERE) -> dict[str, pd.DataFrame]:
    """Return the training curve of each finished training, by its name."""
    paths = {name: layout.root / _folder(name) / "history.csv" for name in study.trainings}
    return {name: pd.read_csv(path) for name, path in paths.items() if path.exists()}


def _accuracy(rows: pd.DataFrame) -> float:
    """Return the accuracy of rows of predictions, or NaN where there are none."""
    return float((rows["prediction"] == rows["label"]).mean())


def _source(layout: Layout) -> Layout:
    folder = Path("studies", STUDY, "source")
    return replace(layout, images=folder / "data", results=folder, nets=folder / "models")


def _folder(name: str) -> Path:
    return Path("studies", STUDY, "rows", name)
