"""Pictures that git keeps are small."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from sparring.params import Params
from sparring.report import figure, render
from sparring.report.figure import PICTURES


def test_pictures_have_a_palette_and_few_bytes(finished: Params) -> None:
    render.render(finished)
    for name in PICTURES:
        path = Path(f"reports/figures/{name}.png")
        assert path.stat().st_size <= 150_000 and Image.open(path).mode == "P", name


def test_a_picture_too_large_gets_fewer_colours_and_then_fewer_pixels() -> None:
    generator = np.random.default_rng(0)
    for side, keeps_size in ((200, True), (500, False)):
        noise = Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8))
        content = figure.small_png(noise)
        picture = Image.open(io.BytesIO(content))
        assert len(content) <= 150_000 and content == figure.small_png(noise)
        assert (picture.size == noise.size) == keeps_size
        assert len(picture.getcolors()) >= 30
    grid = Image.fromarray(np.kron(generator.integers(0, 256, (10, 10, 3)), np.ones((40, 40, 1))).astype(np.uint8))
    picture = Image.open(io.BytesIO(figure.small_png(grid)))
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - np.asarray(grid)).max() <= 1  # 100 colours: all fit
