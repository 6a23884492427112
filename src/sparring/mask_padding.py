"""The study of masked and padded features: nets with and without a defence, on images that were attacked elsewhere and
under attacks of their own.

Method: the second article, which trains with masked or padded features; what it leaves open is decided in
docs/mask_padding.md. Every data set, network and split is a pipeline in small, of the same functions as the main one.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sparring import store
from sparring.attacks import engine, generation, storage
from sparring.data import prepare
from sparring.data.sources import location
from sparring.defences.train import train
from sparring.device import choose, on_device
from sparring.evaluation import linearity, predict, whitebox
from sparring.layout import HERE, Layout, replacing
from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.params.masking import UNDEFENDED, Study, check_row, net_params, networks_of
from sparring.params.names import BASELINE, CLEAN, EVALUATED_SPLITS
from sparring.training.pretrain import pretrain

STUDY = Path("studies/mask_padding")
SPLIT = "heldout"  # the official test images, or those carved in their place
COLUMNS = ["dataset", "network", "defence", "seed", "attacker", "attack", "index", "label", "prediction", "l2", "linf"]
NEITHER, TRANSFER, WHITEBOX = "none", "transfer", "white-box"  # who attacks


def make_source(study: Study, dataset: str, layout: Layout = HERE) -> None:
    """Prepare a data set, train its undefended nets, attack its test images against each, and measure these nets.

    Without the files that the data set's `path` names, what it writes has no rows. Raises InputError where the study
    has no such data set.
    """

    def make(params: Params, place: Layout, network: str, seed: int) -> tuple[str, Params, Layout]:
        first = _place(layout, dataset, networks_of(study, dataset, UNDEFENDED)[0], seed)
        if place == first:
            prepare.prepare(params, place)
        else:  # the images do not depend on the network
            shutil.copytree(first.clean, place.clean, dirs_exist_ok=True)
        pretrain(params, place)
        for attack in params.all_attacks:
            generation.attack_splits(params, attack, place, EVALUATED_SPLITS)
        train(params, BASELINE, place)
        return BASELINE, params, place

    _make_nets(study, dataset, UNDEFENDED, layout, make)


def make_row(study: Study, dataset: str, defence: str, layout: Layout = HERE) -> None:
    """Train a defence on every network and split of a data set, and measure the nets. Raises InputError where the study
    has no such data set or defence."""

    def make(params: Params, place: Layout, network: str, seed: int) -> tuple[str, Params, Layout]:
        place = replace(place, results=_folder(dataset, defence) / str(seed) / network)
        params = _with_noise(study, params, defence, place)
        _train(params, defence, place)
        return defence, params, place

    _make_nets(study, dataset, defence, layout, make)


def _make_nets(
    study: Study,
    dataset: str,
    defence: str,
    layout: Layout,
    make: Callable[[Params, Layout, str, int], tuple[str, Params, Layout]],
) -> None:
    """Make and measure a row's nets, one for each split and network, and write what the report reads of them.

    make: trains the net of a network and a seed from its parameters, where the files of the undefended net lie; returns
    the name of its structure, its parameters and where its files lie.
    """
    check_row(study, dataset, defence)
    predictions: list[pd.DataFrame] = []
    flatness: list[pd.DataFrame] = []
    for seed in [] if _absent(study, dataset) else study.datasets[dataset].seeds:
        for network in networks_of(study, dataset, defence):
            params = net_params(study, dataset, network, seed, defence)
            net = make(params, _place(layout, dataset, network, seed), network, seed)
            for frames, rows in zip((predictions, flatness), _measure(study, *net), strict=True):
                frames.append(rows.assign(dataset=dataset, network=network, defence=defence, seed=seed))
    _write(layout, dataset, defence, predictions, flatness)


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
            stored = storage.as_stored(on_device(batch.image, device), shown, attack, "uint8").cpu().numpy()
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


def _train(params: Params, defence: str, place: Layout) -> None:
    """Train the net of a row; where that takes stored attacks, of so many images as the row has, attacked here."""
    if not params.structure(defence).stored:
        train(params, defence, place)
    else:
        own = replace(place, images=place.results / "data")
        prepare.prepare(params, own)
        generation.attack_splits(params, "cw", own, ["train"])
        train(params, defence, own)


def _measure(study: Study, name: str, params: Params, place: Layout) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The predictions of a net, a row an image, attack and attacker; and how locally linear it is, a row an image."""
    predict.evaluate(params, name, place)
    whitebox.attack_structure(params, name, place, SPLIT)
    elsewhere = pd.read_parquet(place.predictions(name))
    test = store.read(place.clean / f"{SPLIT}.parquet")
    order = whitebox.draw(test.index, test.label, params.seed)
    met = test.index[order[: study.images]]  # by either attacker
    elsewhere = elsewhere[(elsewhere["split"] == SPLIT) & elsewhere["index"].isin(met)].drop(columns=["split", "seed"])
    lengths = [_lengths(params, attack, place) for attack in params.all_attacks]
    elsewhere = elsewhere.merge(pd.concat(lengths), on=["attack", "index"], how="left", validate="one_to_one")
    elsewhere = elsewhere.fillna({"l2": 0.0, "linf": 0.0})
    attackers = np.where(elsewhere["attack"] == CLEAN, NEITHER, TRANSFER)
    aimed = pd.read_parquet(place.whitebox(name)).assign(attacker=WHITEBOX)
    aimed = aimed[aimed["attack"] != CLEAN]
    rows = pd.concat([elsewhere.assign(attacker=attackers), aimed], ignore_index=True)

    device = choose(params)
    classes = test.metadata["classes"]
    (seed,) = params.seeds_of(name)
    net = predict.trained(params, place, name, seed, classes, device)
    flatness = linearity.linearity_rows(
        net,
        test[np.sort(order[: study.linearity.images])],
        study.eps,
        study.linearity.steps,
        params.seed,
        params.store.batch_size,
        device,
    )
    return rows, flatness


def _lengths(params: Params, attack: str, place: Layout) -> pd.DataFrame:
    """How far the images of an attack lie from the clean ones: a row an image, attack, index, l2 and linf."""
    attacked = store.read(place.attacked(params, attack) / f"{SPLIT}.parquet", ("l2", "linf"))
    return pd.DataFrame({"attack": attack, "index": attacked.index, **attacked.columns})


def _write(
    layout: Layout, dataset: str, defence: str, predictions: list[pd.DataFrame], flatness: list[pd.DataFrame]
) -> None:
    """The files that the report reads; of a row without data, without rows."""
    folder = folder_of(layout, dataset, defence)
    names = ["dataset", "network", "defence", "seed", "index", "gradient_norm", "linearity_error"]
    for name, parts, columns in (("predictions", predictions, COLUMNS), ("linearity", flatness, names)):
        rows = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
        with replacing(folder / f"{name}.parquet") as path:
            rows.reindex(columns=columns).to_parquet(path, index=False)


def rows_of(study: Study, layout: Layout = HERE) -> Iterator[tuple[str, str, Path]]:
    """Data set, defence and folder of every row of the study."""
    for dataset in study.datasets:
        for defence in (UNDEFENDED, *study.defences):
            yield dataset, defence, folder_of(layout, dataset, defence)
