"""This module defines the sections of random transforms, which a structure's key `transform` names."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sparring.params.values import BelowOne, Count, CountOrZero, NotNegative, Positive, Section, Share

Fill = Literal["zero", "mean"]


class Transform(Section):
    """A transform changes images at random before the net.

    training: whether it changes the images in training, with a new draw for each image and visit.
    draws: the number of draws over which a prediction is averaged; 0 where the net predicts from the image itself.
    """

    training: bool
    draws: CountOrZero

    @model_validator(mode="after")
    def _check_use(self) -> "Transform":
        if not self.training and not self.draws:
            raise ValueError("training is false and draws is 0, so it is never used; set one of them")
        return self


class Masking(Section):
    """What a mask hides: a share of an image's units, which it fills with black or the mean colour."""

    share: BelowOne
    unit: Literal["pixel", "channel", "patch"]
    patch: Count
    fill: Fill


class Padded(Section):
    """How an image is padded or shrunk at random, by `most` pixels at most in height and in width."""

    most: CountOrZero
    order: Literal["pad", "resize"]
    fill: Fill


class Mask(Transform, Masking):
    pass


class Padding(Transform, Padded):
    pass


class MaskPadding(Transform):
    mask: Masking
    padding: Padded


class Noise(Transform):
    std: NotNegative


class Cutout(Transform):
    side: Count
    fill: Fill


class Erasing(Transform):
    probability: Share
    area: Annotated[list[Share], Field(min_length=2, max_length=2)]
    aspect: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    fill: Fill

    @field_validator("area", "aspect")
    @classmethod
    def _check_range(cls, ends: list[float]) -> list[float]:
        if not 0 < ends[0] <= ends[1]:
            raise ValueError("it is [smallest, largest], both above 0")
        return ends
