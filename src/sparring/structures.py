"""The structures: nets trained from scratch on clean and stored adversarial images, with or without the detector."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparring import files, networks, progress, sampler, store, training
from sparring.detector import TransformerDetector
from sparring.device import channels_last, choose, precision, torch_seed
from sparring.networks import Classifier
from sparring.params import Detector, InputError, Params, Training


def joint_step(
    net: Classifier,
    pretrained: Classifier,
    detector: TransformerDetector,
    settings: Training,
    detector_settings: Detector,
    dtype: torch.dtype,
) -> training.Step:
    """Joint training with the detector ("ours"): arXiv 2204.11596, equation 1.

    The net learns by alpha × cross-entropy + beta × SmoothL1(z_net, z_pretrained), z being the detector's class token;
    the detector by cross-entropy on the pretrained net's maps. Both z's use the detector as it was before its step,
    without dropout; the matching term reaches neither the detector nor the pretrained net.
    """
    optimizer = training.sgd(net, settings.learning_rate, settings)
    detector_optimizer = training.sgd(detector, detector_settings.learning_rate, settings)

    def run(images: Tensor, labels: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        detector.eval().requires_grad_(False)
        with training.autocast(images.device, dtype):
            with torch.no_grad():
                source_maps = pretrained.maps(images, last=detector.last_map)
                wanted = detector.token(source_maps)
            maps = net.maps(images)
            logits = net.classify(maps)
            token = detector.token(maps)
        classification = F.cross_entropy(logits.float(), labels)
        matching = F.smooth_l1_loss(token.float(), wanted.float())
        loss = detector_settings.alpha * classification + detector_settings.beta * matching
        training.update(optimizer, loss)

        detector.train().requires_grad_(True)
        with training.autocast(images.device, dtype):
            guess = detector(source_maps)
        detection = F.cross_entropy(guess.float(), adversarial.long())
        training.update(detector_optimizer, detection)
        count = len(labels)
        return {
            "loss": loss.detach() * count,
            "accuracy": (logits.argmax(1) == labels).sum(),
            "classification_loss": classification.detach() * count,
            "matching_loss": matching.detach() * count,
            "detector_loss": detection.detach() * count,
            "detector_accuracy": (guess.argmax(1) == adversarial).sum(),
        }

    return training.Step(run, [optimizer, detector_optimizer])


def train(params: Params, name: str) -> None:
    """Train the structure `structures.<name>` from scratch and save it, with its detector where it has one."""
    if name not in params.structures:
        raise InputError(f"params.yaml: structures.{name} is missing; there are {', '.join(params.structures)}")
    structure = params.structures[name]
    device = choose(params)
    dtype = precision(params, device)
    with progress.timed(f"train@{name}", device, dtype) as done:
        clean, validation = (store.read(files.CLEAN / f"{split}.parquet") for split in ("train", "validation"))
        classes = len(clean.metadata["classes"])
        attacks = list(params.attacks) if structure.opponents != "none" else []
        pretrained = networks.load(params.network, classes, params.data.image_size, files.PRETRAINED)
        source = networks.digest(pretrained)
        gallery = training.Gallery(clean, [_opponent(clean, attack, source) for attack in attacks], device)

        def draw(epoch: int, visits: np.ndarray) -> np.ndarray:
            if not attacks:
                return np.zeros(len(visits), np.int64)
            return sampler.draw(
                params.fixed if structure.opponents == "fixed" else params.sampler,
                attacks,
                fixed=structure.opponents == "fixed",
                seed=params.seed,
                epoch=epoch,
                visits=visits,
                batch_size=params.training.batch_size,
            )

        net = training.create(params, "target", classes)
        channels_last(net, device)
        detector = None
        if structure.detector == "none":
            step = training.plain_step(net, params.training, dtype)
        else:
            with torch_seed(params.seed, "weights", "detector"):
                detector = TransformerDetector(params.detector, networks.map_shapes(net, params.data.image_size))
            detector = detector.to(device)
            helper = channels_last(networks.frozen(pretrained), device)
            step = joint_step(net, helper, detector, params.training, params.detector, dtype)
        history = training.fit(params, name, net, step, gallery, draw, validation)
        training.save(params, name, files.model(name, params.seed), net, dtype, clean)
        if detector is not None:
            training.save(params, name, files.detector(name, params.seed), detector, dtype, clean)
        training.save_history(name, history)
        done(len(clean) * params.training.epochs, f"{params.training.epochs} epochs of {len(clean):,} images")


def _opponent(clean: store.Images, attack: str, source: str) -> store.Images:
    path = files.ADVERSARIAL / attack / "train.parquet"
    images = store.read(path, ("image", "linf"))
    store.check_rows(clean, images, path)
    store.check_source(images, source, path)
    return images
