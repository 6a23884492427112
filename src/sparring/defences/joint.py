"""Trains a classifier and the detector jointly."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring import distributed
from sparring.models.classifier import Classifier
from sparring.models.detector import TransformerDetector
from sparring.params.sections import Training
from sparring.params.structures import Detector
from sparring.training.steps import Penalty, Step, autocast, sgd, update


def joint_step(
    net: Classifier,
    pretrained: Classifier,
    detector: TransformerDetector,
    settings: Training,
    detector_settings: Detector,
    dtype: torch.dtype,
) -> Step:
    """Return the step of joint training with the detector ("ours"; arXiv 2204.11596, equation 1).

    The net learns by alpha × cross-entropy + beta × SmoothL1(z_net, z_pretrained), z being the detector's class token;
    the detector by cross-entropy on the pretrained net's maps. The matching term has no gradient to the detector or the
    pretrained net. Its two z's come from the detector before its step and without dropout, or, where
    `detector.order` is `after`, from the detector after its step and with dropout, as in the published code.
    """
    after = detector_settings.order == "after"
    optimizer, step_net = _net_step(net, detector, settings, detector_settings, dtype)
    detector_optimizer, step_detector = _detector_step(detector, settings, detector_settings, dtype)

    def run(images: Tensor, labels: Tensor, adversarial: Tensor, penalty: Penalty | None = None) -> dict[str, Tensor]:
        batch_size, labels, adversarial = len(labels), distributed.mine(labels), distributed.mine(adversarial)
        with autocast(images.device, dtype), torch.no_grad():
            source_maps = pretrained.maps(images, last=detector.last_map)
        if after:
            of_detector = step_detector(source_maps, adversarial, batch_size)
            return step_net(images, labels, source_maps, batch_size, penalty) | of_detector
        return step_net(images, labels, source_maps, batch_size, penalty) | step_detector(
            source_maps, adversarial, batch_size
        )

    return Step(run, [optimizer, detector_optimizer], (detector,))


def _net_step(
    net: Classifier,
    detector: TransformerDetector,
    settings: Training,
    detector_settings: Detector,
    dtype: torch.dtype,
) -> tuple[torch.optim.Optimizer, Callable[..., dict[str, Tensor]]]:
    """Return the net's optimizer, and a function that makes its step on one batch and returns the batch's sums."""
    optimizer = sgd(net, settings.learning_rate, settings)
    after = detector_settings.order == "after"

    def classify(images: Tensor, labels: Tensor, target_token: Tensor, penalty: Penalty | None) -> tuple[Tensor, ...]:
        with autocast(images.device, dtype):
            maps = net.maps(images)
            logits = net.classify(maps)
            token = detector.token(maps)
        classification = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
        matching = F.smooth_l1_loss(token.float(), target_token.float())
        loss = detector_settings.alpha * classification + detector_settings.beta * matching
        loss = loss if penalty is None else loss + penalty(logits.float())
        return loss, classification, matching, logits

    classify_of_all = distributed.parallel(net, classify)

    def step(
        images: Tensor, labels: Tensor, source_maps: dict[str, Tensor], batch_size: int, penalty: Penalty | None
    ) -> dict[str, Tensor]:
        detector.train(after).requires_grad_(False)
        with autocast(images.device, dtype), torch.no_grad():
            target_token = detector.token(source_maps)
        loss, classification, matching, logits = classify_of_all(images, labels, target_token, penalty)
        update(optimizer, distributed.weighted(loss, batch_size))
        return {
            "loss": loss.detach() * len(labels),
            "accuracy": (logits.argmax(1) == labels).sum(),
            "classification_loss": classification.detach() * len(labels),
            "matching_loss": matching.detach() * len(labels),
        }

    return optimizer, step


def _detector_step(
    detector: TransformerDetector, settings: Training, detector_settings: Detector, dtype: torch.dtype
) -> tuple[torch.optim.Optimizer, Callable[..., dict[str, Tensor]]]:
    """Return the detector's optimizer, and a function that makes its step on one batch and returns the batch's sums."""
    optimizer = sgd(detector, detector_settings.learning_rate, settings)

    def detect(maps: dict[str, Tensor], adversarial: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(adversarial.device, dtype):
            guess = detector(maps)
        return F.cross_entropy(guess.float(), adversarial.long()), guess

    detect_of_all = distributed.parallel(detector, detect)

    def step(source_maps: dict[str, Tensor], adversarial: Tensor, batch_size: int) -> dict[str, Tensor]:
        detector.train().requires_grad_(True)
        detection, guess = detect_of_all(source_maps, adversarial)
        update(optimizer, distributed.weighted(detection, batch_size))
        return {
            "detector_loss": detection.detach() * len(adversarial),
            "detector_accuracy": (guess.argmax(1) == adversarial).sum(),
        }

    return optimizer, step
