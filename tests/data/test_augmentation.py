"""Crops are tested against resizing, and shifts against plain loops."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sparring.data import augmentation
from sparring.data.augmentation import Augmentation
from sparring.params import Params


def test_a_crop_of_the_whole_area_changes_nothing() -> None:
    images = torch.rand(6, 3, 16, 16)
    boxes = augmentation.draw_crops(np.random.default_rng(0), 6, (1.0, 1.0), False)
    torch.testing.assert_close(augmentation.crop(images, boxes), images, rtol=0, atol=1e-5)


def test_half_of_the_images_are_mirrored_where_asked() -> None:
    images = torch.rand(200, 3, 8, 8)
    crops = augmentation.crop(images, augmentation.draw_crops(np.random.default_rng(0), 200, (1.0, 1.0), True))
    unmirrored, mirrored = ((crops - wanted).abs().amax((1, 2, 3)) < 1e-5 for wanted in (images, images.flip(3)))
    assert (unmirrored ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.floats(0.05, 1), st.floats(0.05, 1), st.booleans(), st.integers(0, 1000))
def test_crops_lie_within_the_image(one: float, other: float, flip: bool, seed: int) -> None:
    area = (min(one, other), max(one, other))
    boxes = augmentation.draw_crops(np.random.default_rng(seed), 50, area, flip).double()
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
    # These are the left upper quarter of the first image, and the lower three quarters of the second, mirrored.
    boxes = torch.tensor([[[0.5, -0.5], [0.5, -0.5]], [[-1, 0], [0.75, 0.25]]])
    parts = [images[:1, :, :6, :8], images[1:, :, 3:].flip(3)]
    wanted = [F.interpolate(part, (12, 16), mode="bilinear", align_corners=False) for part in parts]
    crops = augmentation.crop(images, boxes)
    torch.testing.assert_close(crops[:, :, 2:-2, 2:-2], torch.cat(wanted)[:, :, 2:-2, 2:-2], rtol=0, atol=1e-5)


def shifted(image: np.ndarray, across: int, down: int, mirrored: bool) -> np.ndarray:
    """Shift and mirror an image (H, W, C) on black ground by plain loops."""
    result = np.zeros_like(image)
    height, width = image.shape[:2]
    for row in range(height):
        for column in range(width):
            above, left = row + down, (width - 1 - column if mirrored else column) + across
            if 0 <= above < height and 0 <= left < width:
                result[row, column] = image[above, left]
    return result


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.booleans()), min_size=1, max_size=5),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_a_shift_moves_whole_pixels_and_can_be_undone(
    shifts: list[tuple[int, int, bool]], size: tuple[int, int]
) -> None:
    images = torch.rand(len(shifts), 3, *size)
    boxes = torch.tensor([[[-1.0 if mirrored else 1.0, 0], [1, 0]] for _, _, mirrored in shifts])
    augmented = Augmentation(boxes, torch.tensor([[across, down] for across, down, _ in shifts]))
    views = augmented.apply(images)
    for image, view_of_image, shift in zip(images, views, shifts, strict=True):
        wanted = shifted(image.permute(1, 2, 0).numpy(), *shift)
        np.testing.assert_array_equal(view_of_image.permute(1, 2, 0).numpy(), wanted)
    lost = torch.full_like(images, -1)
    back, visible = augmented.undo(views, lost), augmented.undo(torch.ones_like(images), torch.zeros_like(images)) == 1
    assert torch.equal(back[visible], images[visible]) and (back[~visible] == -1).all()
    assert int(visible.sum()) == int((augmented.apply(torch.ones_like(images)) == 1).sum())


def test_an_epoch_crops_or_shifts(tiny: Callable[..., Params]) -> None:
    settings = tiny(training={"crop_area": [1.0, 1.0], "shift": 4, "horizontal_flip": True}).training
    augmented = augmentation.draw(settings, 4000, 3, 5, torch.device("cpu"))
    assert augmented.shifts is not None
    for axis in augmented.shifts.numpy().T:
        assert chisquare(np.bincount(axis + 4)).pvalue > 1e-3 and len(np.bincount(axis + 4)) == 9
    mirrored = augmented.boxes[:, 0, 0] < 0
    assert 1800 < mirrored.sum() < 2200
    again = augmentation.draw(settings, 4000, 3, 5, torch.device("cpu")).of(torch.tensor([7, 2]))
    assert torch.equal(again.boxes, augmented.boxes[[7, 2]]) and again.shifts is not None
    assert torch.equal(again.shifts, augmented.shifts[[7, 2]])
    cropped = augmentation.draw(tiny(training={"crop_area": [0.5, 1.0]}).training, 9, 0, 0, torch.device("cpu"))
    assert cropped.shifts is None and (cropped.boxes[:, :, 0].abs() < 1).any()


def test_without_crops_and_shifts_nothing_changes(tiny: Callable[..., Params]) -> None:
    images = torch.rand(6, 3, 20, 20).to(memory_format=torch.channels_last)
    settings = tiny(training={"crop_area": [1.0, 1.0], "horizontal_flip": False}).training
    augmented = augmentation.draw(settings, 6, 0, 0, torch.device("cpu")).apply(images)
    assert torch.equal(augmented, images) and augmented.is_contiguous(memory_format=torch.channels_last)
