"""Trains the structures: nets from scratch on clean and adversarial images, with or without the detector."""

import shutil
from pathlib import Path

import torch

from sparring import checkpoints, distributed, progress, store
from sparring.data.transforms import RandomTransform
from sparring.defences import evolving, monitor
from sparring.defences.joint import joint_step
from sparring.defences.opponents import create as create_opponents
from sparring.device import channels_last, choose, precision, torch_seed
from sparring.layout import HERE, Layout, replacing
from sparring.models import classifier, model_files, networks
from sparring.models.classifier import Classifier
from sparring.models.detector import TransformerDetector
from sparring.params import Params, check_classes
from sparring.params.errors import InputError
from sparring.params.names import RANDOM
from sparring.params.sections import Training
from sparring.params.structures import Structure
from sparring.training.gallery import load_gallery
from sparring.training.loop import fit
from sparring.training.results import new_net, save_history, save_net
from sparring.training.steps import Step, plain_step


def train(params: Params, name: str, layout: Layout = HERE) -> None:
    """Make the nets of the structure `structures.<name>`. Raises InputError where there is no such structure."""
    if params.structure(name).pretrained:
        copy_pretrained(params, layout, name)
    else:
        train_from_scratch(params, layout, name)


def copy_pretrained(params: Params, layout: Layout, name: str) -> None:
    """Save the pretrained net, once, and its training curve under a structure's name."""
    if not distributed.first():
        return
    with progress.timed(layout, f"train@{name}", torch.device("cpu")) as done:
        (seed,) = params.seeds_of(name)
        copies = {
            layout.pretrained: layout.model(name, seed),
            layout.history("pretrained"): layout.history(name),
        }
        for original, target in copies.items():
            if not original.exists():
                raise InputError(f"{original} is missing; `dvc repro` makes it")
            with replacing(target) as path:
                shutil.copyfile(original, path)
        done(0, "the pretrained net, copied")


def train_from_scratch(params: Params, layout: Layout, name: str) -> None:
    """Train a structure once for each of `seeds`, and save it, with its detector where it has one."""
    structure = params.structure(name)
    device = choose(params)
    dtype = precision(params, device)
    with progress.timed(layout, f"train@{name}", device, dtype, distributed.size()) as done:
        inputs = [layout.clean / f"{split}.parquet" for split in ("train", "validation")]
        clean, validation = store.read(inputs[0], ()), store.read(inputs[1])
        classes = clean.metadata["classes"]
        check_classes(params, len(classes))
        attacks = list(params.attacks) if structure.stored else []
        pretrained = networks.load(params.network, classes, params.data.image_size, layout.pretrained)
        source = model_files.digest(pretrained)
        gallery = load_gallery(params, layout, attacks, source, device)

        transform = _transform(params, name, inputs[0])
        unfinished = _unfinished(params, name, attacks, layout, device, dtype)
        rows: list[dict[str, float]] = []
        saved: list[checkpoints.Checkpoint] = []
        earlier = 0.0
        for seed in params.seeds:
            # A finished seed's state is its last checkpoint, so after an interruption nothing is trained again.
            checkpoint = checkpoints.Checkpoint(unfinished / f"{seed}.pt")
            saved.append(checkpoint)
            seed_params = params.model_copy(update={"seed": seed, "training": _settings(params, structure)})
            net = channels_last(new_net(seed_params, "target", len(classes)), device)
            detector = None if structure.detector == "none" else new_detector(seed_params, net, device)
            step = _step(seed_params, net, pretrained, detector, device, dtype)
            start = evolving.starts(seed_params, clean, source, layout) if structure.evolves else None
            opponents = create_opponents(seed_params, structure, attacks, net, dtype, start)
            measure = monitor.attack_monitor(seed_params, validation, device)
            history = fit(seed_params, name, net, step, gallery, opponents, validation, checkpoint, transform, measure)
            if distributed.first():
                save_net(seed_params, name, layout.model(name, seed), net, dtype, clean, transform)
            if distributed.first() and detector is not None:
                save_net(seed_params, name, layout.detector(name, seed), detector, dtype, clean)
            rows += [row | {"seed": seed} for row in history] if len(params.seeds) > 1 else history
            earlier += checkpoint.earlier
        distributed.wait()  # or one process may still read the checkpoint that another removes
        if distributed.first():
            save_history(layout.history(name), rows)
            epochs = params.training.epochs * len(params.seeds)
            done(len(clean) * epochs, f"{epochs} epochs of {len(clean):,} images", earlier)
            for checkpoint in saved:  # and no other seed's, which another run may be using
                checkpoint.delete()


def _unfinished(
    params: Params, name: str, attacks: list[str], layout: Layout, device: torch.device, dtype: torch.dtype
) -> Path:
    """Return the folder of a structure's checkpoints.  attacks: the stored attacks that it trains on."""
    structure = params.structure(name)
    settings = [params.deterministic, params.network, params.training, checkpoints.machine(device)]
    settings += [params.store.batch_size, params.store.memory_budget, distributed.size()]
    settings += [structure, [getattr(params, word) for word in structure.sections.values()], attacks, params.monitor]
    starting = [params.evolving.start] if structure.evolves and params.evolving.start != RANDOM else []
    inputs = [layout.clean / "train.parquet", layout.clean / "validation.parquet", layout.pretrained]
    inputs += [layout.adversarial / attack / "train.parquet" for attack in dict.fromkeys([*attacks, *starting])]
    return checkpoints.folder(f"train-{name}", settings, inputs, __name__, device, dtype)


def _settings(params: Params, structure: Structure) -> Training:
    """Return the settings of a structure's training. Where its opponents do not attack the net in training, the value
    `best_robust` of `keep` becomes `last`.

    Such a net ends with no accuracy under PGD, so its best epoch would be one before it has learned.
    """
    settings = params.training
    if settings.keep != "best_robust" or structure.aimed_at:
        return settings
    return settings.model_copy(update={"keep": "last"})


def _transform(params: Params, name: str, clean: Path) -> RandomTransform | None:
    """Return a structure's transform, None where it has none.  clean: path of the training images."""
    if params.transform(name) is None:
        return None
    return RandomTransform.of(params, name, store.mean_colour(clean))


def _step(
    params: Params,
    net: Classifier,
    pretrained: Classifier,
    detector: TransformerDetector | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Step:
    """Create the step by which the net learns: alone, or together with the detector."""
    if detector is None:
        return plain_step(net, params.training, dtype)
    helper = channels_last(networks.frozen(pretrained), device)
    return joint_step(net, helper, detector, params.training, params.detector, dtype)


def new_detector(params: Params, net: Classifier, device: torch.device) -> TransformerDetector:
    """Create a detector for the net's maps. The seed decides its weights."""
    with torch_seed(params.seed, "weights", "detector"):
        detector = TransformerDetector(params.detector, classifier.map_shapes(net, params.data.image_size))
    return detector.to(device)
