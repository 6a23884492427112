"""The structures: nets trained from scratch on clean and adversarial images, with or without the detector."""

import shutil

import pandas as pd

from sparring import checkpoints, distributed, progress, store
from sparring.defences import opponents
from sparring.defences.joint import joint_step
from sparring.device import channels_last, choose, precision, torch_seed
from sparring.layout import HERE, Layout, replacing
from sparring.models import classifier, model_files, networks
from sparring.models.detector import TransformerDetector
from sparring.params import Params, check_classes
from sparring.params.errors import InputError
from sparring.training.gallery import load_gallery
from sparring.training.loop import fit
from sparring.training.results import new_net, save_history, save_net
from sparring.training.steps import plain_step


def train(params: Params, name: str, layout: Layout = HERE) -> None:
    """Train the structure `structures.<name>` from scratch, once for each of `seeds`, and save it, with its detector
    where it has one; or copy the pretrained net, where it is that. Raises InputError where there is no such structure.
    """
    structure = params.structure(name)
    device = choose(params)
    dtype = precision(params, device)
    if structure.pretrained:
        with progress.timed(layout, f"train@{name}", device) as done:
            _copy_pretrained(params, layout, name)
            done(0, "the pretrained net, copied")
        return
    with progress.timed(layout, f"train@{name}", device, dtype, distributed.size()) as done:
        inputs = [layout.clean / f"{split}.parquet" for split in ("train", "validation")]
        clean, validation = store.read(inputs[0], ()), store.read(inputs[1])
        classes = clean.metadata["classes"]
        check_classes(params, len(classes))
        attacks = list(params.attacks) if structure.stored else []
        pretrained = networks.load(params.network, classes, params.data.image_size, layout.pretrained)
        gallery = load_gallery(params, layout, attacks, model_files.digest(pretrained), device)

        sections = [getattr(params, word) for word in (structure.opponents, structure.detector)]
        settings = [params.deterministic, params.network, params.training, checkpoints.machine(device)]
        settings += [params.store.batch_size, params.store.memory_budget, distributed.size()]
        inputs += [layout.pretrained, *(layout.adversarial / attack / "train.parquet" for attack in attacks)]
        settings += [structure, sections, attacks]
        unfinished = checkpoints.folder(f"train-{name}", settings, inputs, __name__, device, dtype)
        histories, earlier = [], 0.0
        for seed in params.seeds:
            # A finished seed's state is its last checkpoint: after an interruption nothing of it is trained again.
            checkpoint = checkpoints.Checkpoint(unfinished / f"{seed}.pt")
            once = params.model_copy(update={"seed": seed})
            net = new_net(once, "target", len(classes))
            channels_last(net, device)
            detector = None
            if structure.detector == "none":
                step = plain_step(net, params.training, dtype)
            else:
                with torch_seed(seed, "weights", "detector"):
                    detector = TransformerDetector(params.detector, classifier.map_shapes(net, params.data.image_size))
                detector = detector.to(device)
                helper = channels_last(networks.frozen(pretrained), device)
                step = joint_step(net, helper, detector, params.training, params.detector, dtype)
            met = opponents.create(params, structure, attacks, net, dtype, seed)
            history = fit(once, name, net, step, gallery, met, validation, checkpoint)
            if distributed.first():
                save_net(once, name, layout.model(name, seed), net, dtype, clean)
            if distributed.first() and detector is not None:
                save_net(once, name, layout.detector(name, seed), detector, dtype, clean)
            histories.append(history.assign(seed=seed) if len(params.seeds) > 1 else history)
            earlier += checkpoint.earlier
        distributed.wait()  # or one may still read the checkpoint that another removes
        if distributed.first():
            save_history(layout.history(name), pd.concat(histories))
            epochs = params.training.epochs * len(params.seeds)
            done(len(clean) * epochs, f"{epochs} epochs of {len(clean):,} images", earlier)
            shutil.rmtree(unfinished)


def _copy_pretrained(params: Params, layout: Layout, name: str) -> None:
    """Its model and its training curve, under a structure's name."""
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
