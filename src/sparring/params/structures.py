"""This module defines the structures of params.yaml, and the sections that say how they are trained."""

from typing import Literal

from pydantic import model_validator

from sparring.params.names import RANDOM, WORDS
from sparring.params.values import BelowOne, Count, CountOrZero, Levels, NotNegative, Positive, Radius, Section, Share

MOST_LEVELS = 127  # of int8


class Sampler(Section):
    adv_ratio: Share
    range: Share
    redraw: Literal["epoch", "batch"]
    weights: dict[str, NotNegative]

    @model_validator(mode="after")
    def _check_range(self) -> "Sampler":
        if self.adv_ratio - self.range < -1e-9 or self.adv_ratio + self.range > 1 + 1e-9:
            raise ValueError(
                f"range is {self.range}; adv_ratio {self.adv_ratio} ± range must stay within 0 to 1, "
                f"so at most {min(self.adv_ratio, 1 - self.adv_ratio):g}"
            )
        return self


class Detector(Section):
    input: Literal["full", "low"]
    layers: Count
    tokens: Literal["auto", "channel", "position"]
    centre: Literal["layer1", "layer2", "layer3", "layer4"]
    dropout: BelowOne
    alpha: NotNegative
    beta: NotNegative
    order: Literal["before", "after"]
    learning_rate: Positive


class Online(Section):
    eps: Radius
    step: Positive
    steps: Count
    noise: NotNegative

    @model_validator(mode="after")
    def _check_noise(self) -> "Online":
        if self.noise != 1 and self.steps > 1:
            raise ValueError(
                f"noise is {self.noise:g} and steps {self.steps}; another start than within eps is for a single step, "
                "so use noise: 1 or steps: 1"
            )
        return self


class Evolving(Section):
    eps: Levels
    step: Levels
    momentum: NotNegative
    consistency: NotNegative
    reset: CountOrZero
    frame: Literal["fixed", "moving"]
    start: str
    adv_ratio: Share
    weight: Positive

    @property
    def whole(self) -> tuple[int, int]:
        """Return eps and step in levels of 255."""
        return round(255 * self.eps), round(255 * self.step)

    @model_validator(mode="after")
    def _check_start(self) -> "Evolving":
        if self.whole[0] > MOST_LEVELS:
            raise ValueError(f"eps is {self.whole[0]}/255; it is kept as int8, so use {MOST_LEVELS}/255 at most")
        if self.start != RANDOM and self.frame != "moving":
            raise ValueError(
                f"start is {self.start}, and frame {self.frame}; stored changes belong to the image's pixels, so use "
                f"frame: moving or start: {RANDOM}"
            )
        return self


class Structure(Section):
    opponents: Literal["sampler", "fixed", "online_fgsm", "online_pgd", "evolving", "none", "pretrained"]
    evolving: Literal["evolving", "none"]
    detector: Literal["detector", "none"]
    transform: Literal["mask", "padding", "mask_padding", "noise", "cutout", "erasing", "resizing", "none"]

    @property
    def pretrained(self) -> bool:
        """Tell whether the structure is the pretrained net itself."""
        return self.opponents == "pretrained"

    @property
    def stored(self) -> bool:
        """Tell whether the structure trains on stored attacks."""
        return self.opponents in ("sampler", "fixed")

    @property
    def online(self) -> bool:
        """Tell whether PGD or FGSM attacks the net anew at every training step, as the section online_… says."""
        return self.opponents in ("online_fgsm", "online_pgd")

    @property
    def evolves(self) -> bool:
        """Tell whether the structure trains on evolving perturbations of its images, alone or among stored attacks."""
        return "evolving" in (self.opponents, self.evolving)

    @property
    def aimed_at(self) -> bool:
        """Tell whether the structure's opponents attack the net that is being trained."""
        return self.online or self.evolves

    @property
    def sections(self) -> dict[str, str]:
        """Return for each key of the structure its value: the section of params.yaml that it uses, or `none`."""
        return {word: getattr(self, word) for word in WORDS}

    @model_validator(mode="after")
    def _check_words(self) -> "Structure":
        if self.evolving != "none" and not self.stored:
            mend = "use none" if self.opponents == "evolving" else "use none, or evolving as opponents"
            raise ValueError(
                f"evolving is for who stands among stored opponents, sampler or fixed; opponents is {self.opponents}, "
                f"so {mend}"
            )
        if self.detector != "none" and self.opponents in ("none", "pretrained"):
            raise ValueError("detector needs adversarial images to learn from; name its opponents: sampler or fixed")
        if self.detector != "none" and self.online:
            raise ValueError(
                f"detector has no clean images to learn from, as {self.opponents} attacks every image; use none, or "
                "sampler or fixed as opponents"
            )
        if self.transform != "none" and self.pretrained:
            raise ValueError("transform is for nets of their own training; the pretrained net has none, so use none")
        return self
