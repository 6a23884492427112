"""The tests of reading images share these small data sets: parameters, pictures, and what `prepare` makes of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from sparring import params, store
from sparring.data import prepare as datasets
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import SPLITS

REPOSITORY = Path(__file__).resolve().parent.parent


def values(**data: Any) -> dict[str, Any]:
    whole: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "profiles" / "digits.yaml")
    small = {"image_size": 8, "train": 20, "validation": 4, "test": 8, "heldout": 8}
    whole["data"] = {**whole["data"], **small, **data}
    return whole


def settings(**data: Any) -> Params:
    return params.validate(values(**data))


def prepare(**data: Any) -> dict[str, store.Images]:
    """Run `prepare` and return the four splits that it writes below the current folder."""
    datasets.prepare(settings(**data))
    return {name: store.read(Path(f"data/clean/{name}.parquet")) for name in SPLITS}


def fails(match: str, **data: Any) -> None:
    """Check that the input is refused in one line that has `match` in it, and that no file is written."""
    with pytest.raises(InputError, match=match) as caught:
        datasets.prepare(settings(**data))
    assert "\n" not in str(caught.value)
    assert not Path("data/clean").exists()


def noise(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """Make a picture of its own for each seed."""
    height, width = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def folder(top: str | Path, classes: dict[str, int], first: int = 0) -> Path:
    """Write folders of PNG files, each a picture of its own: seeds count on from `first` over all classes."""
    for name, count in classes.items():
        (Path(top) / name).mkdir(parents=True)
        for i in range(count):
            (Path(top) / name / f"{i:03}.png").write_bytes(encoded(noise(first)))
            first += 1
    return Path(top)
