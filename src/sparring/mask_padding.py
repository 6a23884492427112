"""The study of masked and padded features: nets with and without a defence, on images that were attacked elsewhere and
under attacks of their own.

Method: the second article, which trains with masked or padded features; what it leaves open is decided in
docs/mask_padding.md. Every data set, network and split is a pipeline in small, of the same functions as the main one.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sparring import store
from sparring.attacks import engine, generation
from sparring.data import prepare
from sparring.data.sources import location
from sparring.defences.train import train
from sparring.device import choose
from sparring.evaluation import linearity, predict, whitebox
from sparring.layout import HERE, Layout, replacing
from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.params.masking import RESEEDED, UNDEFENDED, Study, check_row, net_params, networks_of
from sparring.params.names import BASELINE, CLEAN, EVALUATED_SPLITS
from sparring.training.pretrain import pretrain

STUDY = Path("studies/mask_padding")
SPLIT = "heldout"  # the official test images, or those carved in their place
COLUMNS = ["dataset", "network", "defence", "seed", "attacker", "attack", "index", "label", "prediction", "l2", "linf"]
NEITHER, TRANSFER, WHITEBOX = "none", "transfer", "white-box"  # who attacks


def make_source(study: Study, dataset: str, layout: Layout = HERE) -> None:
    """Prepare a data set, train its undefended nets, attack its test images against each, and measure these nets.

    Without the files that the data set's `path` names, what it writes has no rows.
    """
    check_row(study, dataset, UNDEFENDED)
    if _absent(study, dataset):
        _write(layout, dataset, UNDEFENDED, [], [])
        return
    predictions, local = [], []
    for seed in study.datasets[dataset].seeds:
        first: Path | None = None
        for network in networks_of(study, dataset, UNDEFENDED):
            params = net_params(study, dataset, network, seed, UNDEFENDED)
            place = _place(layout, dataset, network, seed)
            if first is None:
                prepare.prepare(params, place)
                first = place.clean
            else:  # which do not depend on the network
                shutil.copytree(first, place.clean, dirs_exist_ok=True)
            pretrain(params, place)
            for attack in params.all_attacks:
                generation.attack_splits(params, attack, place, EVALUATED_SPLITS)
            train(params, BASELINE, place)
            found = _measure(study, params, BASELINE, place)
            predictions.append(_told(found[0], dataset, network, UNDEFENDED, seed))
            local.append(_told(found[1], dataset, network, UNDEFENDED, seed))
    _write(layout, dataset, UNDEFENDED, predictions, local)


def make_row(study: Study, dataset: str, defence: str, layout: Layout = HERE) -> None:
    """Train a defence on every network and split of a data set, and measure the nets."""
    check_row(study, dataset, defence)
    if _absent(study, dataset):
        _write(layout, dataset, defence, [], [])
        return
    predictions, local = [], []
    for seed in study.datasets[dataset].seeds:
        for network in networks_of(study, dataset, defence):
            params = net_params(study, dataset, network, seed, defence)
            place = _place(layout, dataset, network, seed)
            place = replace(place, results=_folder(dataset, defence) / str(seed) / network)
            params = _with_noise(study, params, defence, place)
            _train(study, params, defence, place)
            found = _measure(study, params, defence, place)
            predictions.append(_told(found[0], dataset, network, defence, seed))
            local.append(_told(found[1], dataset, network, defence, seed))
    _write(layout, dataset, defence, predictions, local)


def calibrate(study: Study, dataset: str, network: str, layout: Layout = HERE) -> None:
    """Print the accuracy of an undefended net under FGSM on validation images, for radii of 0 to 32 levels of 255."""
    check_row(study, dataset, UNDEFENDED)
    seed = study.datasets[dataset].seeds[0]
    params = net_params(study, dataset, network, seed, UNDEFENDED)
    place, device = _place(layout, dataset, network, seed), choose(params)
    images = store.read(place.clean / "validation.parquet")
    net = predict.trained(params, place, BASELINE, seed, images.metadata["classes"], device)
    model = engine.Fast(net, device, torch.float32)
    for level in range(33):
        attack = Attack(method="fgsm", arguments={"eps": level / 255})
        parts = []
        for start in range(0, len(images), params.store.batch_size):
            batch = images[start : start + params.store.batch_size]
            shown = generation.attack_batch(params, attack, "fgsm", model, batch, images, device)
            stored = engine.as_stored(batch.image, shown, attack, "uint8")
            parts.append(predict.classified(net, store.Images(batch.index, batch.label, stored), len(batch), device))
        rows = pd.concat(parts)
        accuracy = (rows["prediction"] == rows["label"]).mean()
        print(f"{level}/255: {accuracy:.3f} of {len(rows):,} validation images right", flush=True)


def folder_of(layout: Layout, dataset: str, defence: str) -> Path:
    """Where a row keeps what it made."""
    return layout.root / _folder(dataset, defence)


def _folder(dataset: str, defence: str) -> Path:
    return STUDY / "sources" / dataset if defence == UNDEFENDED else STUDY / "rows" / f"{dataset}-{defence}"


def _place(layout: Layout, dataset: str, network: str, seed: int) -> Layout:
    """The files of a data set's split and the undefended net of one architecture."""
    folder = _folder(dataset, UNDEFENDED) / str(seed) / network
    return replace(layout, images=folder / "data", results=folder, nets=folder / "models")


def _absent(study: Study, dataset: str) -> bool:
    path = study.datasets[dataset].data.path
    if path is None or location(path).exists():
        return False
    print(f"{dataset}: there is no {location(path)}, so its rows stay empty; put the data set there", flush=True)
    return True


def _with_noise(study: Study, params: Params, defence: str, place: Layout) -> Params:
    """The parameters with noise of the mean square that a mask's change has: the squares of a share of the pixels."""
    share = study.defences[defence].noise_of_mask
    if share is None:
        return params
    pixels = store.read(place.clean / "train.parquet").image
    mean_square = float(np.square(pixels, dtype=np.float32).mean(dtype=np.float64)) / 255**2
    std = round(math.sqrt(share * mean_square), 4)
    print(f"{defence}: noise.std is {std}, as a mask of {share:g} changes the images", flush=True)
    return params.model_copy(update={"noise": params.noise.model_copy(update={"std": std})})


def _train(study: Study, params: Params, defence: str, place: Layout) -> None:
    """Train the net of a row; where that takes stored attacks, of so many images as the row has, attacked here."""
    if defence == RESEEDED:  # the pretrained net with another draw of everything
        params = params.model_copy(update={"seeds": [seed + 1000 for seed in params.seeds]})
    if not params.structure(defence).stored:
        train(params, defence, place)
    else:
        own = replace(place, images=place.results / "data")
        prepare.prepare(params, own)
        generation.attack_splits(params, "cw", own, ["train"])
        train(params, defence, own)


def _measure(study: Study, params: Params, name: str, place: Layout) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The predictions of a net, a row an image, attack and attacker; and how locally linear it is, a row an image."""
    if name == RESEEDED:
        params = params.model_copy(update={"seeds": [seed + 1000 for seed in params.seeds]})
    predict.evaluate(params, name, place)
    whitebox.attack_structure(params, name, place, SPLIT)
    elsewhere = pd.read_parquet(place.predictions(name))
    test = store.read(place.clean / f"{SPLIT}.parquet")
    order = whitebox.draw(test.index, test.label, params.seed)
    met = test.index[order[: study.images]]  # by either attacker
    elsewhere = elsewhere[(elsewhere["split"] == SPLIT) & elsewhere["index"].isin(met)].drop(columns=["split", "seed"])
    changes = [_changes(params, attack, place) for attack in params.all_attacks]
    elsewhere = elsewhere.merge(pd.concat(changes), on=["attack", "index"], how="left", validate="one_to_one")
    elsewhere = elsewhere.fillna({"l2": 0.0, "linf": 0.0})
    attackers = np.where(elsewhere["attack"] == CLEAN, NEITHER, TRANSFER)
    aimed = pd.read_parquet(place.whitebox(name)).assign(attacker=WHITEBOX)
    aimed = aimed[aimed["attack"] != CLEAN]
    rows = pd.concat([elsewhere.assign(attacker=attackers), aimed], ignore_index=True)

    device = choose(params)
    classes = test.metadata["classes"]
    (seed,) = params.seeds_of(name)
    net = predict.trained(params, place, name, seed, classes, device)
    local = linearity.linearity_rows(
        net,
        test[np.sort(order[: study.linearity.images])],
        study.eps,
        study.linearity.steps,
        params.seed,
        params.store.batch_size,
        device,
    )
    return rows, local


def _told(rows: pd.DataFrame, dataset: str, network: str, defence: str, seed: int) -> pd.DataFrame:
    """Rows with the net that they are of."""
    return rows.assign(dataset=dataset, network=network, defence=defence, seed=seed)


def _changes(params: Params, attack: str, place: Layout) -> pd.DataFrame:
    attacked = store.read(place.attacked(params, attack) / f"{SPLIT}.parquet", ("l2", "linf"))
    return pd.DataFrame({"attack": attack, "index": attacked.index, **attacked.columns})


def _write(
    layout: Layout, dataset: str, defence: str, predictions: list[pd.DataFrame], local: list[pd.DataFrame]
) -> None:
    """The files that the report reads; of a row without data, without rows."""
    folder = folder_of(layout, dataset, defence)
    names = ["dataset", "network", "defence", "seed", "index", "gradient_norm", "linearity_error"]
    for name, parts, columns in (("predictions", predictions, COLUMNS), ("linearity", local, names)):
        rows = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
        with replacing(folder / f"{name}.parquet") as path:
            rows.reindex(columns=columns).to_parquet(path, index=False)


def rows_of(study: Study, layout: Layout = HERE) -> Iterator[tuple[str, str, Path]]:
    """Data set, defence and folder of every row of the study."""
    for dataset in study.datasets:
        for defence in (UNDEFENDED, *study.defences):
            yield dataset, defence, folder_of(layout, dataset, defence)
