"""An attack that aims at a classifier and its detector at once."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sparring import store
from sparring.attacks import losses
from sparring.attacks.engine import run
from sparring.attacks.pgd import pgd
from sparring.device import channels_last, rng, torch_seed
from sparring.models import classifier, networks
from sparring.models.averaged import as_attacked
from sparring.models.classifier import Classifier
from sparring.models.detector import TransformerDetector
from sparring.params import Params

RUNS = (0.0, 0.5)  # of the adaptive attack: the weight of the score as long as an image is classified right


def rows_of(images: store.Images, split: str, seed: int, kind: str, attack: str) -> pd.DataFrame:
    rows = pd.DataFrame({"index": images.index, "label": images.label})
    return rows.assign(split=split, seed=seed, kind=kind, attack=attack)


# The detector, and who aims at it


def detector_score(pretrained: Classifier, detector: TransformerDetector, images: Tensor) -> Tensor:
    """How much likelier than clean the detector takes images (N, 3, H, W) to be adversarial: (N,), in logits, which
    unlike probabilities do not run into 1."""
    logits = detector(pretrained.maps(images, last=detector.last_map))
    return logits[:, 1] - logits[:, 0]


def adaptive(
    net: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    score: Callable[[Tensor], Tensor],
    eps: float,
    steps: int,
    starts: Tensor,
) -> Tensor:
    """PGD in L∞ on a classifier and its detector together, in two runs from random starts.

    A step follows the sign of a weighted sum of two gradients, each brought to length 1, so that no detector's scale
    decides: up the cross-entropy (by losses.log_odds) and down the score. An image that is classified wrongly follows
    the score's and half of the other; until then it follows the cross-entropy's, alone in the first run (as in
    selective PGD: Bryniarski et al., 2021, arXiv 2106.15023), with half of the score's in the second.

    net: images (N, 3, H, W) in [0, 1] → logits.  score: images → (N,), higher for adversarial.  eps: largest change of
    a pixel, same unit.  starts: (N, 2, 3, H, W), standard normal.
    Returns for each image the one with the lowest score among all wrongly classified ones on the way, the clean image
    included, which is the best against every threshold; where there is none, the last.
    """
    with torch.no_grad():
        wrong = net(images).argmax(1) != labels
        lowest = torch.where(wrong, score(images), torch.inf)
    best = last = images
    for number, weight in enumerate(RUNS):
        last = (images + eps * torch.erf(starts[:, number] / 2**0.5)).clamp(0, 1)
        for left in range(steps, -1, -1):
            last = last.detach().requires_grad_(left > 0)
            with torch.set_grad_enabled(left > 0):
                logits, found = net(last), score(last)
            wrong = logits.argmax(1) != labels
            better = wrong & (found.detach() < lowest)
            lowest = torch.where(better, found.detach(), lowest)
            best = torch.where(_each(better), last.detach(), best)
            if left:
                up = _unit(losses.log_odds(logits, labels), last)
                down = -_unit(found, last)
                way = torch.where(_each(wrong), down + up / 2, up + weight * down).sign()
                change = (last.detach() + step_length(eps, steps) * way - images).clamp(-eps, eps)
                last = (images + change).clamp(0, 1)
    return torch.where(_each(lowest.isinf()), last.detach(), best)


def step_length(eps: float, steps: int) -> float:
    """PGD's steps, together two and a half times the radius: any point of the ball can be reached from any start."""
    return 2.5 * eps / steps


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _unit(values: Tensor, images: Tensor) -> Tensor:
    """The gradient (N, 3, H, W) of each image's own value, values (N,), of L2 length 1 (or 0)."""
    return losses.unit(torch.autograd.grad(values.sum(), images)[0])


def aimed_rows(
    params: Params,
    split: str,
    clean: store.Images,
    seed: int,
    net: Classifier,
    pretrained: Classifier,
    detector: TransformerDetector,
    device: torch.device,
) -> Iterator[pd.DataFrame]:
    """Rows of kind aimed for a draw of `detection.images` images of a split: unchanged, under an attacker who sees the
    classifier alone, and under one who sees both. Nothing is rounded to 8 bits."""
    settings, size = params.detection, params.store.batch_size
    drawn = rng(params.seed, "detection", split).permutation(len(clean))[: settings.images]
    clean = clean[np.sort(drawn)]
    detector.requires_grad_(False)
    fast, helper = (channels_last(networks.frozen(found), device) for found in (as_attacked(net), pretrained))
    score = partial(detector_score, helper, detector)
    reach: dict[str, Any] = {"eps": settings.eps, "steps": settings.steps}
    attacks: dict[str, Callable[..., Tensor]] = {
        "unaware": partial(
            pgd, step=step_length(settings.eps, settings.steps), norm="linf", restarts=1, loss="cross_entropy", **reach
        ),
        "adaptive": partial(adaptive, score=score, **reach),
    }
    for start in range(0, len(clean), size):
        batch = clean[start : start + size]
        images = classifier.to_images(batch.image, device)
        labels = torch.from_numpy(batch.label).to(device)
        shape = (len(RUNS), *images.shape[1:])
        drawn = np.stack([rng(params.seed, "aimed", index).standard_normal(shape, np.float32) for index in batch.index])
        starts = torch.from_numpy(drawn).to(device)
        shown = {"none": images}
        with torch_seed(params.seed, "aimed", int(batch.index[0])):  # from which a random transform is drawn
            shown |= {name: run(attack, fast, images, labels, {"starts": starts}) for name, attack in attacks.items()}
        for attack, attacked in shown.items():
            with torch.no_grad():
                prediction = net.eval()(attacked).argmax(1).cpu().numpy()
                found = detector_score(pretrained.eval(), detector, attacked).cpu().numpy()
            yield rows_of(batch, split, seed, "aimed", attack).assign(prediction=prediction, detector=found)
