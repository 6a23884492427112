"""White-box attacks: every image is attacked through the very net whose predictions are stored."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sparring import checkpoints, progress, store
from sparring.attacks import engine
from sparring.device import channels_last, choose, rng
from sparring.evaluation import aimed
from sparring.evaluation import predict as evaluation
from sparring.layout import HERE, Layout, replacing
from sparring.models import networks
from sparring.models.averaged import Averaged, as_attacked
from sparring.models.classifier import Classifier
from sparring.params import Params, check_classes
from sparring.params.attacks import Attack
from sparring.params.names import CLEAN, SINGLE_DRAW

COLUMNS = ["index", "split", "seed", "attack", "label", "prediction", "confidence", "detector_score", "l2", "linf"]


def draw(index: np.ndarray, label: np.ndarray, seed: int) -> np.ndarray:
    """Draw a permutation (N,) of the images, every prefix of which has the classes in their proportions.

    The test split lies in the order of its source, where images of one class may stand together.
    """
    shuffled = np.argsort(index, kind="stable")[rng(seed, "whitebox").permutation(len(index))]
    positions = np.empty(len(index))
    for class_number in np.unique(label):
        rows = shuffled[label[shuffled] == class_number]
        positions[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return shuffled[np.argsort(positions[shuffled], kind="stable")]


def attack_structure(params: Params, structure: str, layout: Layout = HERE, split: str = "test") -> None:
    """Run every attack of `whitebox` against every seed of a structure, and write a row of predictions for each image,
    attack and seed. Raises InputError for a structure that is not in params.yaml.

    An image that the structure misclassifies when clean is not attacked: its rows have the clean image's prediction.
    Attacked images are kept below PARTIAL until the rows are written: a run that was killed continues after them.
    """
    params.structure(structure)
    device = choose(params)
    with progress.timed(layout, f"whitebox@{structure}", device) as done:
        path = layout.clean / f"{split}.parquet"
        test = store.read(path)
        classes = test.metadata["classes"]
        check_classes(params, len(classes))
        order = draw(test.index, test.label, params.seed)[: params.whitebox.images]
        pretrained = networks.load(params.network, classes, params.data.image_size, layout.pretrained)
        channels_last(pretrained, device)
        seeds = params.seeds_of(structure)
        trained = [model for model in (layout.model(structure, seed) for seed in seeds) if model.exists()]
        settings = [params.seed, params.deterministic, params.network, params.whitebox, params.transform(structure)]
        settings.append(params.store.model_dump(exclude={"memory_budget"}))
        inputs = [path, layout.pretrained, *trained]
        unfinished = checkpoints.folder(f"whitebox-{structure}", settings, inputs, __name__, device, torch.float32)
        runs = runs_of(params, params.predicts_at_random(structure))
        total = len(seeds) * sum(min(count, len(order)) for _, count in runs.values())
        parts = []
        with progress.bar(f"whitebox@{structure}", total) as advance:
            for seed in seeds:
                net, detector = evaluation.load_models(params, layout, structure, seed, pretrained, classes, device)
                predict = partial(evaluation.classified_and_scored, params, net, pretrained, detector, device=device)
                rows = _attacked_rows(params, net, predict, test, order, device, unfinished / str(seed), advance)
                parts.append(rows.assign(seed=seed, split=split))
        rows = pd.concat(parts, ignore_index=True)
        with replacing(layout.whitebox(structure)) as path:
            rows[COLUMNS].to_parquet(path, index=False)
        done(len(rows), f"{len(rows):,} predictions of the attacked structure")
        shutil.rmtree(unfinished, ignore_errors=True)


def runs_of(params: Params, at_random: bool) -> dict[str, tuple[Attack, int]]:
    """Return every attack on a structure by name, with the largest number of images that it is run on.

    at_random: whether the structure predicts at random.
    """
    return params.whitebox.runs | (params.whitebox.single_draw_runs if at_random else {})


def _attacked_rows(
    params: Params,
    net: Classifier,
    predict: aimed.Predict,
    test: store.Images,
    order: np.ndarray,
    device: torch.device,
    folder: Path,
    advance: progress.Advance,
) -> pd.DataFrame:
    """Return rows of the images test[order], clean and under each attack on `net`. An attack takes a prefix of `order`.

    Gradients are float32 whatever `precision` says: rounded ones make an attacker weaker.
    """
    runs = runs_of(params, isinstance(net, Averaged))
    images, rank = test[np.sort(order)], np.argsort(order)
    shape = test.image.shape[1:]
    compiled = any(engine.worth_compiling(net, attack, shape, count, device) for attack, count in runs.values())
    if compiled:
        engine.compile_below(folder / "compiled")
    model = engine.Fast(as_attacked(net), device, torch.float32, compiled=compiled)
    clean = predict(images).assign(l2=np.float32(0), linf=np.float32(0))
    is_right = (clean["prediction"] == clean["label"]).to_numpy(bool)
    parts = [clean.assign(attack=CLEAN)]
    for name, (attack, count) in runs.items():
        is_attacked = rank < count
        advance(int((is_attacked & ~is_right).sum()))
        aim = model
        if name == SINGLE_DRAW and isinstance(net, Averaged):
            aim = engine.Fast(net.of_one_draw(), device, torch.float32)
        rows, _ = aimed.attack_images(
            params, attack, name, net, aim, predict, images, is_attacked & is_right, test, folder, device, advance
        )
        rows = pd.concat([rows, clean[is_attacked & ~is_right]]).sort_values("index")
        parts.append(rows.assign(attack=name))
    return pd.concat(parts, ignore_index=True)
