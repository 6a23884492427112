"""This module defines the sections of params.yaml on data, stores, networks, training and evaluation."""

import difflib
import re
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from sparring.params.errors import quoted
from sparring.params.values import (
    BelowOne,
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    Radius,
    Section,
    Share,
    fraction,
)

READ_FROM_PATH = ("parquet", "folder", "gtsrb", "belgium", "orl", "yale")
"""These sources read the user's files, which data.path names."""


class Data(Section):
    source: Literal[
        "digits",
        "cifar10",
        "parquet",
        "folder",
        "gtsrb",
        "belgium",
        "orl",
        "yale",
        "cifar100",
        "mnist",
        "fashion_mnist",
    ]
    path: str | None
    group_pattern: str | None
    background: str
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
    train: Count
    validation: CountOrZero
    test: CountOrZero
    heldout: CountOrZero

    @field_validator("group_pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"it is not a regular expression ({error})") from error
            if groups != 1:
                raise ValueError("it needs exactly one (…) that captures the name of the group")
        return pattern

    @field_validator("background")
    @classmethod
    def _check_colour(cls, colour: str) -> str:
        try:
            channels = ImageColor.getrgb(colour)
        except ValueError as error:
            raise ValueError(f"{quoted(colour)} is no colour; use a name like white, or '#rrggbb'") from error
        if len(channels) != 3:
            raise ValueError(f"{quoted(colour)} is transparent itself; leave its last part out")
        return colour

    @model_validator(mode="after")
    def _check_path(self) -> "Data":
        if self.source in READ_FROM_PATH and not self.path:
            raise ValueError(f"path is missing; data.source {self.source} reads the files that data.path names")
        return self


class Store(Section):
    shard_size: Count
    batch_size: Count
    dtype: Literal["uint8", "float16"]
    faithful: bool
    margin: NotNegative
    memory_budget: Positive

    @model_validator(mode="after")
    def _check_batch_size(self) -> "Store":
        # Attack and evaluation must predict the same images together: a batch of another size rounds differently.
        if self.shard_size % self.batch_size:
            raise ValueError(f"batch_size is {self.batch_size}; it must divide shard_size, which is {self.shard_size}")
        return self


RESNET = "resnet"
# The keys beside the name, for each network that is not torchvision's.
NETWORK_KEYS: dict[str, tuple[str, ...]] = {RESNET: ("blocks", "width"), "facenet": ("dropout", "width_factor")}
NETWORK_KEYS |= dict.fromkeys(("dnn1", "dnn2", "dnn3", "dnn4", "mtcnn"), ("dropout",))


class Network(Section):
    """A network is one of NETWORK_KEYS, with its keys, or any classifier of torchvision, by its name alone."""

    name: str
    blocks: Annotated[list[Count], Field(min_length=4, max_length=4)] | None = None
    width: Count | None = None
    dropout: BelowOne | None = None
    width_factor: Annotated[float, Field(gt=0, le=1), BeforeValidator(fraction)] | None = None

    @model_validator(mode="after")
    def _check_name_and_keys(self) -> "Network":
        if self.name not in NETWORK_KEYS and self.name not in (classifiers := torchvision_names()):
            close = difflib.get_close_matches(self.name, [*NETWORK_KEYS, *classifiers], 2)
            raise ValueError(
                f"name is {quoted(self.name)}; use {', '.join(NETWORK_KEYS)} or a classifier of torchvision"
                + (f"; did you mean {' or '.join(close)}?" if close else f", such as {', '.join(classifiers[:3])}")
            )
        for key in ("blocks", "width", "dropout", "width_factor"):
            value, is_required = getattr(self, key), key in NETWORK_KEYS.get(self.name, ())
            if is_required and value is None:
                raise ValueError(f"{key} is missing; add it (profiles/digits.yaml has every key, with its meaning)")
            if not is_required and value is not None:
                owners = ", ".join(name for name, keys in NETWORK_KEYS.items() if key in keys)
                raise ValueError(f"{key} is {quoted(value)}; only {owners} has it: network is {{name: {self.name}}}")
        return self

    @model_serializer(mode="wrap")
    def _without_absent_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}

    @property
    def words(self) -> str:
        """Describe the network for the reader of a report."""
        if self.name not in NETWORK_KEYS:
            return f"torchvision's {self.name}"
        if self.name != RESNET:
            share = "" if self.width_factor is None else f" at {self.width_factor:g} of its width"
            return f"{self.name}{share}" + (f" with dropout of {self.dropout:g}" if self.dropout else "")
        assert self.blocks is not None  # as NETWORK_KEYS says
        return f"a ResNet of {' + '.join(map(str, self.blocks))} blocks and width {self.width}"


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    # torchvision is imported here, as loading it takes longer than checking all else, and a ResNet does not need it.
    from torchvision import models

    return models.list_models(module=models)


class Training(Section):
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    schedule: Literal["constant", "step", "cosine", "one_cycle"]
    momentum: Share
    weight_decay: NotNegative
    crop_area: Annotated[list[Share], Field(min_length=2, max_length=2)]
    shift: CountOrZero
    horizontal_flip: bool
    label_smoothing: BelowOne
    ema: BelowOne
    keep: Literal["last", "best", "best_robust"]
    devices: int | Literal["auto"]
    graphs: Literal["auto", "off"]

    @field_validator("devices", mode="before")
    @classmethod
    def _check_devices(cls, devices: Any) -> Any:
        if devices != "auto" and (not isinstance(devices, int) or isinstance(devices, bool) or devices < 1):
            raise ValueError("use auto or a number of devices, 1 or more")
        return devices

    @field_validator("crop_area")
    @classmethod
    def _check_range(cls, area: list[float]) -> list[float]:
        if not 0 < area[0] <= area[1]:
            raise ValueError("it is [smallest, largest] share of the image, both above 0")
        return area

    @model_validator(mode="after")
    def _check_shift(self) -> "Training":
        if self.shift and self.crop_area != [1, 1]:
            raise ValueError(
                f"shift is {self.shift}, and crop_area {self.crop_area}; images are cropped or shifted, so use "
                "crop_area: [1.0, 1.0] or shift: 0"
            )
        return self


class Monitor(Section):
    every: CountOrZero
    images: Count
    eps: Radius
    steps: Count


class Mixture(Section):
    adv_ratio: Share


class Detection(Section):
    images: Count
    eps: Radius
    steps: Count
