"""The study of opponents that follow the net: nets trained with them and with what is known, then attacked."""

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
    """Prepare the images, train the net that the stored attacks are made against, and make them."""
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
    stored = pd.read_parquet(place.predictions(method))
    stored = stored[stored["split"] == SPLIT]
    aimed = pd.read_parquet(place.whitebox(method))
    timing = json.loads((place.timings / f"train-{method}.json").read_text())
    row = {
        "training": name,
        "method": method,
        "eps": training.eps,
        "seed": training.seed,
        "images": timing["images"] // training.epochs,
        "epochs": training.epochs,
        "clean": _accuracy(stored[stored["attack"] == CLEAN]),
        "pgd50": _accuracy(aimed[aimed["attack"] == REFERENCE]),
        "autoattack": _accuracy(aimed[aimed["attack"] == AUTOATTACK]),
        "stored": _accuracy(stored[stored["attack"] != CLEAN]),
        "seconds": timing["seconds"],
        "passes_per_image": params.passes(method),
        "processor": timing["hardware"],
        "tested": int((aimed["attack"] == REFERENCE).sum()),
        "shown": int((stored["attack"] == CLEAN).sum()),
    }
    folder = layout.root / _folder(name)
    shutil.copyfile(place.history(method), folder / "history.csv")
    with replacing(folder / "row.csv") as path:
        pd.DataFrame([row], columns=COLUMNS).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def rows(study: Study, layout: Layout = HERE) -> pd.DataFrame:
    """A row of each training that was made, in the order of params.yaml."""
    paths = [layout.root / _folder(name) / "row.csv" for name in study.trainings]
    made = [pd.read_csv(path) for path in paths if path.exists()]
    return pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=COLUMNS)


def histories(study: Study, layout: Layout = HERE) -> dict[str, pd.DataFrame]:
    """The training curve of each training that was made, by its name."""
    paths = {name: layout.root / _folder(name) / "history.csv" for name in study.trainings}
    return {name: pd.read_csv(path) for name, path in paths.items() if path.exists()}


def _accuracy(rows: pd.DataFrame) -> float:
    """Of rows of predictions; NaN without any."""
    return float((rows["prediction"] == rows["label"]).mean())


def _source(layout: Layout) -> Layout:
    folder = Path("studies", STUDY, "source")
    return replace(layout, images=folder / "data", results=folder, nets=folder / "models")


def _folder(name: str) -> Path:
    return Path("studies", STUDY, "rows", name)
