"""This study measures nets with and without masked or padded features, under transferred and under white-box attacks.

The method is that of the second article, which trains with masked or padded features; docs/mask_padding.md decides what
it leaves open. Every data set, network and split is a small pipeline of the same functions as the main one.
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
NEITHER, TRANSFER, WHITEBOX = "none", "transfer", "white-box"  # the attackers


def make_source(study: Study, dataset: str, layout: Layout = HERE) -> None:
    """Prepare a data set, train its undefended nets, attack its test images against each, and measure these nets.

    Where the data set's `path` names no files, the results have no rows. Raises InputError where the study has no such
    data set.
    """

    def train_undefended(params: Params, place: Layout, network: str, seed: int) -> tuple[str, Params, Layout]:
        first = _place(layout, dataset, networks_of(study, dataset, UNDEFENDED)[0], seed)
        if place == first:
            prepare.prepare(params, place)
        else:  # The images do not depend on the network.
            shutil.copytree(first.clean, place.clean, dirs_exist_ok=True)
        pretrain(params, place)
        for attack in params.all_attacks:
            generation.attack_splits(params, attack, place, EVALUATED_SPLITS)
        train(params, BASELINE, place)
        return BASELINE, params, place

    _make_nets(study, dataset, UNDEFENDED, layout, train_undefended)


def make_row(study: Study, dataset: str, defence: str, layout: Layout = HERE) -> None:
    """Train a defence on every network and split of a data set, and measure the nets. Raises InputError where the study
    has no such data set or defence."""

    def train_defended(params: Params, place: Layout, network: str, seed: int) -> tuple[str, Params, Layout]:
        place = replace(place, results=_folder(dataset, defence) / str(seed) / network)
        params = _with_noise(study, params, defence, place)
        _train(params, defence, place)
        return defence, params, place

    _make_nets(study, dataset, defence, layout, train_defended)


def _make_nets(
    study: Study,
    dataset: str,
    defence: str,
    layout: Layout,
    train_net: Callable[[Params, Layout, str, int], tuple[str, Params, Layout]],
) -> None:
    """Make and measure a row's nets, one for each split and network, and write what the report reads of them.

    train_net: trains a net from its parameters, the layout of the undefended net, the network's name and the seed. It
    returns the name of the net's structure, its parameters and its layout.
    """
    check_row(study, dataset, defence)
    predictions: list[pd.DataFrame] = []
    flatness: list[pd.DataFrame] = []
    for seed in [] if _is_absent(study, dataset) else study.datasets[dataset].seeds:
        for network in networks_of(study, dataset, defence):
            params = net_params(study, dataset, network, seed, defence)
            net = train_net(params, _place(layout, dataset, network, seed), network, seed)
            for frames, rows in zip((predictions, flatness), _measure(study, *net), strict=True):
                frames.append(rows.assign(dataset=dataset, network=network, defence=defence, seed=seed))
    _write(layout, dataset, defence, predictions, flatness)


def calibrate(study: Study, dataset: str, network: str, layout: Layout = HERE) -> None:
    """Print the accuracy of an undefended net on validation images under FGSM, for radii of 0 to 32 levels of 255."""
    check_row(study, dataset, UNDEFENDED)
    seed = study.datasets[dataset].seeds[0]
    params = net_params(study, dataset, network, seed, UNDEFENDED)
    layout_of_net, device = _place(layout, dataset, network, seed), choose(params)
    images = store.read(layout_of_net.clean / "validation.parquet")
    net = predict.trained(params, layout_of_net, BASELINE, seed, images.metadata["classes"], device)
    model = engine.Fast(net, device, torch.float32)
    for level in range(33):
        attack = Attack(method="fgsm", arguments={"eps": level / 255})
        frames = []
        for start in range(0, len(images), params.store.batch_size):
            batch = images[start : start + params.store.batch_size]
            attacked = generation.attack_batch(params, attack, "fgsm", model, batch, images, device)
            stored = storage.as_stored(on_device(batch.image, device), attacked, attack, "uint8").cpu().numpy()
            frames.append(predict.classified(net, store.Images(batch.index, batch.label, stored), len(batch), device))
        rows = pd.concat(frames)
        accuracy = (rows["prediction"] == rows["label"]).mean()
        print(f"{level}/255: {accuracy:.3f} of {len(rows):,} validation images right", flush=True)


def folder_of(layout: Layout, dataset: str, defence: str) -> Path:
    """Return the folder of a row's results."""
    return layout.root / _folder(dataset, defence)


def _folder(dataset: str, defence: str) -> Path:
    return STUDY / "sources" / dataset if defence == UNDEFENDED else STUDY / "rows" / f"{dataset}-{defence}"


def _place(layout: Layout, dataset: str, network: str, seed: int) -> Layout:
    """Return the layout of a data set's split, with the undefended net of one network."""
    folder = _folder(dataset, UNDEFENDED) / str(seed) / network
    return replace(layout, images=folder / "data", results=folder, nets=folder / "models")


def _is_absent(study: Study, dataset: str) -> bool:
    path = study.datasets[dataset].data.path
    if path is None or location(path).exists():
        return False
    print(f"{dataset}: there is no {location(path)}, so its rows stay empty; put the data set there", flush=True)
    return True


def _with_noise(study: Study, params: Params, defence: str, place: Layout) -> Params:
    """Return the parameters with noise of the mean square of a mask's change: a share of the mean squared pixel."""
    masked_share = study.defences[defence].noise_of_mask
    if masked_share is None:
        return params
    pixels = store.read(place.clean / "train.parquet").image
    mean_square = float(np.square(pixels, dtype=np.float32).mean(dtype=np.float64)) / 255**2
    std = round(math.sqrt(masked_share * mean_square), 4)
    print(f"{defence}: noise.std is {std}, as a mask of {masked_share:g} changes the images", flush=True)
    return params.model_copy(update={"noise": params.noise.model_copy(update={"std": std})})


def _train(params: Params, defence: str, place: Layout) -> None:
    """Train the net of a row. Where it needs stored attacks, make them first, of as many images as the row has."""
    if not params.structure(defence).stored:
        train(params, defence, place)
    else:
        own_place = replace(place, images=place.results / "data")
        prepare.prepare(params, own_place)
        generation.attack_splits(params, "cw", own_place, ["train"])
        train(params, defence, own_place)


def _measure(study: Study, name: str, params: Params, place: Layout) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a net's predictions, a row for each image, attack and attacker, and its local linearity by image."""
    predict.evaluate(params, name, place)
    whitebox.attack_structure(params, name, place, SPLIT)
    transfer = pd.read_parquet(place.predictions(name))
    test = store.read(place.clean / f"{SPLIT}.parquet")
    order = whitebox.draw(test.index, test.label, params.seed)
    index = test.index[order[: study.images]]  # the images that both attackers attack
    transfer = transfer[(transfer["split"] == SPLIT) & transfer["index"].isin(index)].drop(columns=["split", "seed"])
    lengths = [_lengths(params, attack, place) for attack in params.all_attacks]
    transfer = transfer.merge(pd.concat(lengths), on=["attack", "index"], how="left", validate="one_to_one")
    transfer = transfer.fillna({"l2": 0.0, "linf": 0.0})
    attackers = np.where(transfer["attack"] == CLEAN, NEITHER, TRANSFER)
    whitebox_rows = pd.read_parquet(place.whitebox(name)).assign(attacker=WHITEBOX)
    whitebox_rows = whitebox_rows[whitebox_rows["attack"] != CLEAN]
    rows = pd.concat([transfer.assign(attacker=attackers), whitebox_rows], ignore_index=True)

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
    """Return the distances of an attack's images from the clean ones, one row per image: attack, index, l2, linf."""
    attacked = store.read(place.attacked(params, attack) / f"{SPLIT}.parquet", ("l2", "linf"))
    return pd.DataFrame({"attack": attack, "index": attacked.index, **attacked.columns})


def _write(
    layout: Layout, dataset: str, defence: str, predictions: list[pd.DataFrame], flatness: list[pd.DataFrame]
) -> None:
    """Write the files that the report reads. They are without rows where the data set is absent."""
    folder = folder_of(layout, dataset, defence)
    linearity_columns = ["dataset", "network", "defence", "seed", "index", "gradient_norm", "linearity_error"]
    for name, parts, columns in (("predictions", predictions, COLUMNS), ("linearity", flatness, linearity_columns)):
        rows = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
        with replacing(folder / f"{name}.parquet") as path:
            rows.reindex(columns=columns).to_parquet(path, index=False)


def rows_of(study: Study, layout: Layout = HERE) -> Iterator[tuple[str, str, Path]]:
    """Yield data set, defence and folder of every row of the study."""
    for dataset in study.datasets:
        for defence in (UNDEFENDED, *study.defences):
            yield dataset, defence, folder_of(layout, dataset, defence)
