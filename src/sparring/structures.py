"""The structures: nets trained from scratch on clean and adversarial images, with or without the detector."""

import shutil
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sparring import checkpoints, distributed, files, networks, progress, sampler, store, training
from sparring.attacks.pgd import pgd
from sparring.detector import TransformerDetector
from sparring.device import channels_last, choose, precision, rng, torch_seed
from sparring.networks import Classifier
from sparring.params import Detector, InputError, Online, Params, Structure, Training, check_classes


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
    the detector by cross-entropy on the pretrained net's maps. The matching term reaches neither the detector nor the
    pretrained net. Its two z's come from the detector before its step and without dropout, or, where
    `detector.order` is `after`, from the detector after its step and with dropout, as in the published code.
    """
    after = detector_settings.order == "after"
    optimizer = training.sgd(net, settings.learning_rate, settings)
    detector_optimizer = training.sgd(detector, detector_settings.learning_rate, settings)

    def classify(images: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        with training.autocast(images.device, dtype):
            maps = net.maps(images)
            logits = net.classify(maps)
            token = detector.token(maps)
        classification = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
        matching = F.smooth_l1_loss(token.float(), wanted.float())
        loss = detector_settings.alpha * classification + detector_settings.beta * matching
        return loss, classification, matching, logits

    def detect(maps: dict[str, Tensor], adversarial: Tensor) -> tuple[Tensor, Tensor]:
        with training.autocast(adversarial.device, dtype):
            guess = detector(maps)
        return F.cross_entropy(guess.float(), adversarial.long()), guess

    classify_of_all = distributed.parallel(net, classify)
    detect_of_all = distributed.parallel(detector, detect)

    def teach_net(images: Tensor, labels: Tensor, source_maps: dict[str, Tensor], whole: int) -> dict[str, Tensor]:
        detector.train(after).requires_grad_(False)
        with training.autocast(images.device, dtype), torch.no_grad():
            wanted = detector.token(source_maps)
        loss, classification, matching, logits = classify_of_all(images, labels, wanted)
        training.update(optimizer, distributed.weighted(loss, whole))
        return {
            "loss": loss.detach() * len(labels),
            "accuracy": (logits.argmax(1) == labels).sum(),
            "classification_loss": classification.detach() * len(labels),
            "matching_loss": matching.detach() * len(labels),
        }

    def teach_detector(source_maps: dict[str, Tensor], adversarial: Tensor, whole: int) -> dict[str, Tensor]:
        detector.train().requires_grad_(True)
        detection, guess = detect_of_all(source_maps, adversarial)
        training.update(detector_optimizer, distributed.weighted(detection, whole))
        return {
            "detector_loss": detection.detach() * len(adversarial),
            "detector_accuracy": (guess.argmax(1) == adversarial).sum(),
        }

    def run(images: Tensor, labels: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        whole, labels, adversarial = len(labels), distributed.mine(labels), distributed.mine(adversarial)
        with training.autocast(images.device, dtype), torch.no_grad():
            source_maps = pretrained.maps(images, last=detector.last_map)
        if after:
            of_detector = teach_detector(source_maps, adversarial, whole)
            return teach_net(images, labels, source_maps, whole) | of_detector
        return teach_net(images, labels, source_maps, whole) | teach_detector(source_maps, adversarial, whole)

    return training.Step(run, [optimizer, detector_optimizer], (detector,))


def online_attack(
    net: Classifier, settings: Online, dtype: torch.dtype, seed: int
) -> Callable[[Tensor, Tensor, int, int], Tensor]:
    """Opponents made on the fly, against the net as it is: PGD in L∞ from one uniform random start (Madry et al., 2018,
    arXiv 1706.06083), which with a single step is FGSM with random start (Wong et al., 2020, arXiv 2001.03994).

    Returns a function of (images (N, 3, H, W) in [0, 1], labels (N,), epoch, number of the batch) that gives every
    image attacked, within eps of it; one of several processes passes its slice of the images, and all labels. The net
    is attacked in eval mode: as the function that it is evaluated as, each image for itself, and with its running
    statistics left alone.
    """

    def logits(images: Tensor) -> Tensor:
        with training.autocast(images.device, dtype):
            return net(images).float()

    def attack(images: Tensor, labels: Tensor, epoch: int, number: int) -> Tensor:
        generator = torch.Generator(images.device)
        generator.manual_seed(int(rng(seed, "online", epoch, number).integers(2**62)))
        starts = torch.randn((len(labels), 1, *images.shape[1:]), generator=generator, device=images.device)
        net.eval()
        attacked = pgd(
            logits,
            images,
            distributed.mine(labels),
            eps=settings.eps,
            step=settings.step,
            steps=settings.steps,
            norm="linf",
            restarts=1,
            loss="cross_entropy",
            starts=distributed.mine(starts),
        )
        net.train()
        return attacked

    return attack


def train(params: Params, name: str) -> None:
    """Train the structure `structures.<name>` from scratch, once for each of `seeds`, and save it, with its detector
    where it has one."""
    if name not in params.structures:
        raise InputError(f"params.yaml: structures.{name} is missing; there are {', '.join(params.structures)}")
    structure = params.structures[name]
    device = choose(params)
    dtype = precision(params, device)
    with progress.timed(f"train@{name}", device, dtype, distributed.size()) as done:
        inputs = [files.CLEAN / f"{split}.parquet" for split in ("train", "validation")]
        clean, validation = store.read(inputs[0], ()), store.read(inputs[1])
        classes = clean.metadata["classes"]
        check_classes(params, len(classes))
        attacks = list(params.attacks) if structure.stored else []
        pretrained = networks.load(params.network, classes, params.data.image_size, files.PRETRAINED)
        gallery = training.gallery(params, attacks, networks.digest(pretrained), device)

        sections = [getattr(params, word) for word in (structure.opponents, structure.detector)]
        settings = [params.deterministic, params.network, params.training, checkpoints.machine(device)]
        settings += [params.store.batch_size, params.store.memory_budget, distributed.size()]
        inputs += [files.PRETRAINED, *(files.ADVERSARIAL / attack / "train.parquet" for attack in attacks)]
        settings += [structure, sections, attacks]
        unfinished = checkpoints.folder(f"train-{name}", settings, inputs, __name__, device, dtype)
        histories, earlier = [], 0.0
        for seed in params.seeds:
            # A finished seed's state is its last checkpoint: after an interruption nothing of it is trained again.
            checkpoint = checkpoints.Checkpoint(unfinished / f"{seed}.pt")
            once = params.model_copy(update={"seed": seed})
            net = training.create(once, "target", len(classes))
            channels_last(net, device)
            detector = None
            if structure.detector == "none":
                step = training.plain_step(net, params.training, dtype)
                if structure.online:
                    online = getattr(params, structure.opponents)
                    step = step._replace(attack=online_attack(net, online, dtype, seed))
            else:
                with torch_seed(seed, "weights", "detector"):
                    detector = TransformerDetector(params.detector, networks.map_shapes(net, params.data.image_size))
                detector = detector.to(device)
                helper = channels_last(networks.frozen(pretrained), device)
                step = joint_step(net, helper, detector, params.training, params.detector, dtype)
            draw = _draw(once, structure, attacks)
            history = training.fit(once, name, net, step, gallery, draw, validation, checkpoint)
            if distributed.first():
                training.save(once, name, files.model(name, seed), net, dtype, clean)
            if distributed.first() and detector is not None:
                training.save(once, name, files.detector(name, seed), detector, dtype, clean)
            histories.append(history.assign(seed=seed) if len(params.seeds) > 1 else history)
            earlier += checkpoint.earlier
        distributed.wait()  # or one may still read the checkpoint that another removes
        if distributed.first():
            training.save_history(name, pd.concat(histories))
            epochs = params.training.epochs * len(params.seeds)
            done(len(clean) * epochs, f"{epochs} epochs of {len(clean):,} images", earlier)
            shutil.rmtree(unfinished)


def _draw(params: Params, structure: Structure, attacks: list[str]) -> Callable[[int, np.ndarray], np.ndarray]:
    """(epoch, order of visits) → version of each image."""

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

    return draw
