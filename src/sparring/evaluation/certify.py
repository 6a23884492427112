"""Certified robustness of a net under random draws of its transform: a radius within which no change turns its vote.

The certified classifier names the class for which the net votes most often under fresh draws. There are two
certificates: randomized smoothing by Gaussian noise (Cohen et al., 2019, arXiv 1902.02918) certifies a radius in L2,
and randomized ablation by masks (Levine and Feizi, 2020, arXiv 1911.09272) certifies one in L0.
"""

import bisect
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from scipy import stats
from torch import nn

from sparring import progress, store
from sparring.data.transforms import RandomTransform
from sparring.device import channels_last, choose
from sparring.evaluation import predict, whitebox
from sparring.layout import HERE, Layout, replacing
from sparring.models import classifier, networks
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import PARAMS_FILE
from sparring.params.transforms import Mask, Noise
from sparring.params.values import Count, Section

SPLIT = "test"
ABSTAINED = -1  # in place of a class
COLUMNS = ["index", "split", "seed", "label", "prediction", "votes", "samples", "bound", "radius"]


class Sampling(Section):
    """The numbers of images and draws of a certification, and its error probability.

    images: the number of images, drawn evenly from the classes; all where there are fewer.
    selection: the number of draws that choose an image's class.  samples: the number of other draws, whose votes for
    that class are counted.  alpha: the largest probability of a wrong certificate, for each image.
    """

    images: Count
    samples: Count
    selection: Count
    alpha: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _has_enough_samples(self) -> "Sampling":
        if self.highest_bound <= 0.5:
            needed = int(np.floor(-np.log2(self.alpha))) + 1
            raise ValueError(
                f"samples is {self.samples}; with alpha {self.alpha:g} even votes that all agree decide nothing then; "
                f"use {needed} or more"
            )
        return self

    @property
    def highest_bound(self) -> float:
        """Return the lower bound where all votes agree: the largest that so many samples can give."""
        return float(lower_bounds(np.array([self.samples]), self.samples, self.alpha)[0])


def lower_bounds(votes: np.ndarray, samples: int, alpha: float) -> np.ndarray:
    """Return Clopper and Pearson's (1934) one-sided lower bounds (N,) on a class's probability, float64.

    votes: (N,), for the class among `samples` draws.  alpha: the largest probability that a bound is above the truth.
    """
    bounds: np.ndarray = stats.beta.ppf(alpha, np.maximum(votes, 1), samples - votes + 1)
    return np.where(votes > 0, bounds, 0)


@dataclass(frozen=True)
class Smoothing:
    """The certificate of a net under Gaussian noise of standard deviation `std`, in [0, 1] units."""

    std: float
    norm: ClassVar[str] = "L2"

    def radius(self, bound: float) -> float:
        """Return the L2 radius, in [0, 1] units, within which no change of the image alters the predicted class.

        bound: a lower bound, above 1/2, on the class's probability.
        """
        return float(self.std * stats.norm.ppf(bound))

    def __str__(self) -> str:
        return f"noise, std {self.std:g}"


@dataclass(frozen=True)
class Ablation:
    """The certificate of a net under masks that show `visible` of an image's `positions`, drawn uniformly."""

    positions: int
    visible: int
    norm: ClassVar[str] = "L0"

    def radius(self, bound: float | Fraction) -> float:
        """Return the largest number of positions that may change at once without altering the predicted class.

        bound: a lower bound, above 1/2, on the class's probability.

        A mask that hides all changed positions has the same vote before and after. With a share Δ(r) of masks that do
        not hide r given positions, the class keeps at least `bound` - Δ(r) of the votes, which must be above 1/2.
        """
        needed = Fraction(3, 2) - Fraction(bound)  # 1 - Δ(r) must be above it; floats would lose small shares
        # The shares fall from r = 0 on, so the last r whose share is above `needed` is the radius.
        return float(bisect.bisect_left(self._hidden, -needed, key=lambda share: -share) - 1)

    @cached_property
    def _hidden(self) -> list[Fraction]:
        """Return the shares 1 - Δ(r), for r = 0, 1, …, of masks that hide r given positions, while above 1/2.

        A share is C(d - r, k) / C(d, k), for d positions of which k are visible.
        """
        shares = [Fraction(1)]
        while shares[-1] > Fraction(1, 2):
            changed = len(shares) - 1
            shares.append(shares[-1] * Fraction(self.positions - self.visible - changed, self.positions - changed))
        return shares[:-1]

    def __str__(self) -> str:
        return f"mask, {self.visible} of {self.positions:,} positions visible"


Certificate = Smoothing | Ablation


def certificate(params: Params, structure: str) -> Certificate:
    """Return the certificate that the transform of a structure allows.

    Raises InputError where there is no such structure, or its transform has no certificate.
    """
    transform, settings = params.structure(structure).transform, params.transform(structure)
    where = f"{PARAMS_FILE}: structures.{structure}"
    if isinstance(settings, Noise):
        if not settings.std:
            raise InputError(f"{where} uses noise, whose std is 0; set it above 0 and run `dvc repro`")
        return Smoothing(settings.std)
    if not isinstance(settings, Mask):
        certifiable = [name for name, other in params.structures.items() if other.transform in ("mask", "noise")]
        remedy = f"certify {' or '.join(certifiable)}" if certifiable else "train one with mask or noise"
        raise InputError(f"{where}.transform is {transform}; only mask and noise certify anything; {remedy}")
    if settings.unit != "pixel":
        raise InputError(f"{where} uses mask, whose unit is {settings.unit}; set it to pixel and run `dvc repro`")
    positions = params.data.image_size**2
    visible = _visible_positions(RandomTransform(transform, settings, (0.0, 0.0, 0.0)), params.data.image_size)
    if visible == positions:
        raise InputError(
            f"{where} uses mask, whose share is {settings.share:g} and hides none of {positions} positions; set it to "
            "0.9 or more and run `dvc repro`"
        )
    return Ablation(positions, visible)


def _visible_positions(mask: RandomTransform, size: int) -> int:
    """Count the positions that a mask leaves visible: there a light and a dark image still differ."""
    draw = mask.draw((3, size, size), np.zeros(1, np.int64), 0, "certify")
    light, dark = draw(torch.ones(1, 3, size, size)), draw(torch.zeros(1, 3, size, size))
    return int((light != dark).any(1).sum())


def certify(params: Params, structure: str, sampling: Sampling, layout: Layout = HERE) -> None:
    """Certify test images for every seed of a structure, and write a row for each image and seed.

    Columns: index, split, seed, label; prediction, ABSTAINED where the bound is not above 1/2; votes for the selected
    class among `samples` draws; bound, the lower bound of its probability; radius, in the norm of the structure's
    certificate, NaN where it abstains.
    Raises InputError as `certificate` does, and where there is no test image or no net.
    """
    proof = certificate(params, structure)
    device = choose(params)
    with progress.timed(layout, f"certify@{structure}", device) as done:
        path = layout.clean / f"{SPLIT}.parquet"
        test = store.read(path)
        if not len(test):
            raise InputError(f"{path} holds no images to certify; set data.{SPLIT} above 0 and run `dvc repro`")
        images = test[np.sort(whitebox.draw(test.index, test.label, params.seed)[: sampling.images])]
        seeds = params.seeds_of(structure)
        parts = []
        draws_per_image = sampling.selection + sampling.samples
        with progress.bar(f"certify@{structure}", len(seeds) * len(images) * draws_per_image) as advance:
            for seed in seeds:
                seed_rows = _certified_rows(params, layout, structure, seed, proof, sampling, images, device, advance)
                parts.append(seed_rows.assign(split=SPLIT, seed=seed, samples=sampling.samples))
        rows = pd.concat(parts, ignore_index=True)
        with replacing(layout.certified(structure)) as path:
            rows[COLUMNS].to_parquet(path, index=False)
        done(len(rows), f"{len(rows):,} images, each under {draws_per_image:,} draws")


def _certified_rows(
    params: Params,
    layout: Layout,
    structure: str,
    seed: int,
    proof: Certificate,
    sampling: Sampling,
    images: store.Images,
    device: torch.device,
    advance: progress.Advance,
) -> pd.DataFrame:
    """Certify images for one seed. Returns rows: index, label, prediction, votes, bound, radius."""
    path = layout.model(structure, seed)
    net = networks.load(params.network, images.metadata["classes"], params.data.image_size, path)
    transform = predict.transform_of(params, structure, path)
    assert transform is not None  # as `certificate` has checked
    vote_arguments = channels_last(net, device).eval(), transform, images, params.seed
    size = params.store.batch_size
    # The class is chosen by other draws than those that are counted, or the bound would not hold.
    selected = count_votes(*vote_arguments, "selection", sampling.selection, size, advance).argmax(1)
    votes = count_votes(*vote_arguments, "samples", sampling.samples, size, advance)[np.arange(len(images)), selected]
    bound = lower_bounds(votes, sampling.samples, sampling.alpha)
    decided = bound > 0.5
    return pd.DataFrame(
        {
            "index": images.index,
            "label": images.label,
            "prediction": np.where(decided, selected, ABSTAINED),
            "votes": votes,
            "bound": bound,
            "radius": [
                proof.radius(low) if is_decided else np.nan for low, is_decided in zip(bound, decided, strict=True)
            ],
        }
    )


@torch.no_grad()
def count_votes(
    net: nn.Module,
    transform: RandomTransform,
    images: store.Images,
    seed: int,
    purpose: str,
    draws: int,
    batch_size: int,
    advance: progress.Advance = lambda done, note="": None,
) -> np.ndarray:
    """Count the draws under which the net, in eval mode, predicts each class of each image: (N, classes) int64.

    A draw is a function of the seed, the purpose, its number and the image's index, so it does not depend on the other
    images. A batch has `batch_size` views of images, under one draw or several.
    """
    device = next(net.parameters()).device
    counts = []
    for shard in store.in_shards(images, batch_size):
        pixels = classifier.to_images(shard.image, device)
        shape, draws_at_once = tuple(pixels.shape[1:]), max(batch_size // len(shard), 1)
        votes = torch.zeros((), dtype=torch.int64, device=device)
        for first in range(0, draws, draws_at_once):
            numbers = range(first, min(first + draws_at_once, draws))
            views = [transform.draw(shape, shard.index, seed, "certify", purpose, number)(pixels) for number in numbers]
            logits = net(torch.cat(views))
            choices = F.one_hot(logits.argmax(1), logits.shape[1]).view(len(numbers), len(shard), -1)
            votes = votes + choices.sum(0)
            advance(len(logits))
        counts.append(votes.cpu().numpy())
    return np.concatenate(counts)
