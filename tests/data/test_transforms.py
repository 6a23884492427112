"""Crops against resizing, and where they lie."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.data import transforms


def test_a_crop_of_the_whole_area_changes_nothing() -> None:
    images = torch.rand(6, 3, 16, 16)
    boxes = transforms.draw_crops(np.random.default_rng(0), 6, (1.0, 1.0), False)
    torch.testing.assert_close(transforms.crop(images, boxes), images, rtol=0, atol=1e-5)


def test_half_of_the_images_are_mirrored_where_asked() -> None:
    images = torch.rand(200, 3, 8, 8)
    found = transforms.crop(images, transforms.draw_crops(np.random.default_rng(0), 200, (1.0, 1.0), True))
    kept, mirrored = ((found - wanted).abs().amax((1, 2, 3)) < 1e-5 for wanted in (images, images.flip(3)))
    assert (kept ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.floats(0.05, 1), st.floats(0.05, 1), st.booleans(), st.integers(0, 1000))
def test_crops_lie_within_the_image(one: float, other: float, flip: bool, seed: int) -> None:
    area = (min(one, other), max(one, other))
    boxes = transforms.draw_crops(np.random.default_rng(seed), 50, area, flip).double()
    assert boxes.shape == (50, 2, 2)
    sides = boxes[:, :, 0]
    assert (boxes[:, :, 1].abs() + sides.abs() <= 1 + 1e-6).all()
    assert (sides[:, 1] > 0).all() and (flip or (sides > 0).all())
    width, height = sides.abs().unbind(1)
    share, cut = width * height, (width > 1 - 1e-6) | (height > 1 - 1e-6)
    assert (share <= area[1] + 1e-6).all() and (share[~cut] >= area[0] - 1e-6).all()
    aspect = (width / height)[~cut]
    assert ((aspect > 0.75 - 1e-5) & (aspect < 4 / 3 + 1e-5)).all()


def test_a_crop_is_bilinear_resizing_of_the_box() -> None:
    images = torch.rand(2, 3, 12, 16)
    # Of the first image the left upper quarter, of the second the lower three quarters, mirrored.
    boxes = torch.tensor([[[0.5, -0.5], [0.5, -0.5]], [[-1, 0], [0.75, 0.25]]])
    parts = [images[:1, :, :6, :8], images[1:, :, 3:].flip(3)]
    wanted = [F.interpolate(part, (12, 16), mode="bilinear", align_corners=False) for part in parts]
    found = transforms.crop(images, boxes)
    torch.testing.assert_close(found[:, :, 2:-2, 2:-2], torch.cat(wanted)[:, :, 2:-2, 2:-2], rtol=0, atol=1e-5)
