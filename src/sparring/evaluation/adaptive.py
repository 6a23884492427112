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

# The adaptive attack's two runs: the weight of the detector's score while an image is still classified correctly.
RUNS = (0.0, 0.5)


def image_rows(images: store.Images, split: str, seed: int, kind: str, attack: str) -> pd.DataFrame:
    """Return one row per image: index and label, and the other arguments, which are the same in all rows."""
    rows = pd.DataFrame({"index": images.index, "label": images.label})
    return rows.assign(split=split, seed=seed, kind=kind, attack=attack)


# The detector, and an attacker who aims at it


def detector_score(pretrained: Classifier, detector: TransformerDetector, images: Tensor) -> Tensor:
    """Return the detector's logit of adversarial minus its logit of clean (N,), for images (N, 3, H, W).

    Unlike probabilities, logits do not saturate at 1.
    """
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
    """Run PGD in L∞ on a classifier and its detector together, twice, each time from a random start.

    A step follows the sign of a weighted sum of two gradients: up the cross-entropy (by losses.log_odds) and down the
    score. Each gradient has length 1, so that the detector's scale does not matter. The weights of cross-entropy and
    score are 1/2 and 1 for an image that is classified wrongly. For any other image they are 1 and 0 in the first run
    (selective PGD: Bryniarski et al., 2021, arXiv 2106.15023), and 1 and 1/2 in the second.

    net: images (N, 3, H, W) in [0, 1] → logits.  score: images → (N,), higher for adversarial.  eps: largest change of
    a pixel, same unit.  starts: (N, 2, 3, H, W), standard normal.
    Returns for each image the version with the lowest score among all that are classified wrongly, the clean image
    included: it is the best against every threshold. Where no version is, it returns the last one.
    """
    with torch.no_grad():
        wrong = net(images).argmax(1) != labels
        lowest = torch.where(wrong, score(images), torch.inf)
    best = last = images
    for number, weight in enumerate(RUNS):
        last = (images + eps * torch.erf(starts[:, number] / 2**0.5)).clamp(0, 1)
        for steps_left in range(steps, -1, -1):
            last = last.detach().requires_grad_(steps_left > 0)
            with torch.set_grad_enabled(steps_left > 0):
                logits, scores = net(last), score(last)
            wrong = logits.argmax(1) != labels
            better = wrong & (scores.detach() < lowest)
            lowest = torch.where(better, scores.detach(), lowest)
            best = torch.where(_per_image(better), last.detach(), best)
            if steps_left:
                up_loss = _unit_gradient(losses.log_odds(logits, labels), last)
                down_score = -_unit_gradient(scores, last)
                direction = torch.where(
                    _per_image(wrong), down_score + up_loss / 2, up_loss + weight * down_score
                ).sign()
                change = (last.detach() + step_length(eps, steps) * direction - images).clamp(-eps, eps)
                last = (images + change).clamp(0, 1)
    return torch.where(_per_image(lowest.isinf()), last.detach(), best)


def step_length(eps: float, steps: int) -> float:
    """Return PGD's step length: all steps together are two and a half radii, so that any start reaches all the ball."""
    return 2.5 * eps / steps


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _unit_gradient(values: Tensor, images: Tensor) -> Tensor:
    """Return the gradient (N, 3, H, W) of values (N,) by the images. Each image's has L2 length 1, or 0."""
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
    """Yield rows, whose `kind` is aimed, for `detection.images` images that are drawn from a split.

    Each image is scored three times: unchanged, as attacked by PGD on the classifier alone, and as attacked by
    `adaptive` on classifier and detector. Nothing is rounded to 8 bits.
    """
    settings, size = params.detection, params.store.batch_size
    rows = rng(params.seed, "detection", split).permutation(len(clean))[: settings.images]
    clean = clean[np.sort(rows)]
    detector.requires_grad_(False)
    frozen_net, frozen_pretrained = (
        channels_last(networks.frozen(model), device) for model in (as_attacked(net), pretrained)
    )
    score = partial(detector_score, frozen_pretrained, detector)
    budget: dict[str, Any] = {"eps": settings.eps, "steps": settings.steps}
    attacks: dict[str, Callable[..., Tensor]] = {
        "unaware": partial(
            pgd, step=step_length(settings.eps, settings.steps), norm="linf", restarts=1, loss="cross_entropy", **budget
        ),
        "adaptive": partial(adaptive, score=score, **budget),
    }
    for start in range(0, len(clean), size):
        batch = clean[start : start + size]
        images = classifier.to_images(batch.image, device)
        labels = torch.from_numpy(batch.label).to(device)
        shape = (len(RUNS), *images.shape[1:])
        noise = np.stack([rng(params.seed, "aimed", index).standard_normal(shape, np.float32) for index in batch.index])
        starts = torch.from_numpy(noise).to(device)
        versions = {"none": images}
        with torch_seed(params.seed, "aimed", int(batch.index[0])):  # from which a random transform is drawn
            versions |= {
                name: run(attack, frozen_net, images, labels, {"starts": starts}) for name, attack in attacks.items()
            }
        for attack, attacked in versions.items():
            with torch.no_grad():
                prediction = net.eval()(attacked).argmax(1).cpu().numpy()
                scores = detector_score(pretrained.eval(), detector, attacked).cpu().numpy()
            yield image_rows(batch, split, seed, "aimed", attack).assign(prediction=prediction, detector=scores)
