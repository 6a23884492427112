"""Random transforms are tested for what they hide, where they place images, and what their draws depend on."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch import Tensor
from torchvision.transforms.v2 import RandomErasing

from sparring.data.draws import Draws
from sparring.data.transforms import RandomTransform
from sparring.params.transforms import Cutout, Erasing, Mask, MaskPadding, Noise, Padding, Transform

USED = {"training": True, "draws": 0}
MEAN = (0.2, 0.4, 0.6)
SECTIONS: dict[str, tuple[type[Transform], dict[str, Any]]] = {
    "mask": (Mask, {"share": 0.3, "unit": "pixel", "patch": 4, "fill": "zero"}),
    "padding": (Padding, {"most": 2, "order": "pad", "fill": "zero"}),
    "mask_padding": (
        MaskPadding,
        {
            "mask": {"share": 0.3, "unit": "pixel", "patch": 4, "fill": "zero"},
            "padding": {"most": 2, "order": "pad", "fill": "zero"},
        },
    ),
    "noise": (Noise, {"std": 0.1}),
    "cutout": (Cutout, {"side": 6, "fill": "zero"}),
    "erasing": (Erasing, {"probability": 0.5, "area": [0.02, 0.33], "aspect": [0.3, 3.3], "fill": "zero"}),
    "resizing": (Padding, {"most": 3, "order": "resize", "fill": "zero"}),
}


def transform(word: str, **changes: Any) -> RandomTransform:
    section, values = SECTIONS[word]
    return RandomTransform(word, section.model_validate(values | USED | changes), MEAN)


def applied(drawer: RandomTransform, images: Tensor, epoch: int = 0, numbers: np.ndarray | None = None) -> Tensor:
    numbers = np.arange(len(images)) if numbers is None else numbers
    return drawer.draw(tuple(images.shape[1:]), numbers, 0, "transform", epoch)(images)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["pixel", "channel", "patch"]),
    st.integers(1, 7),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 5),
)
def test_exactly_the_share_of_the_units_is_masked(
    share: float, unit: str, patch: int, size: tuple[int, int], epoch: int
) -> None:
    images = torch.ones(5, 3, *size)
    hidden = applied(transform("mask", share=share, unit=unit, patch=patch), images, epoch) == 0
    if unit == "channel":
        units, hidden_units = 3 * math.prod(size), hidden.flatten(1).sum(1)
    else:
        assert (hidden == hidden[:, :1]).all()  # all channels of a position together
        side = patch if unit == "patch" else 1
        grid = [math.ceil(length / side) for length in size]
        units = math.prod(grid)
        corners = hidden[:, 0, ::side, ::side]
        whole = corners.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : size[0], : size[1]]
        assert torch.equal(whole, hidden[:, 0])  # and all of a patch
        hidden_units = corners.flatten(1).sum(1)
    assert (hidden_units == min(round(share * units), units - 1)).all()


def test_every_position_is_masked_equally_often_and_independently_of_the_others() -> None:
    hidden = (applied(transform("mask", share=0.25), torch.ones(20_000, 3, 4, 4))[:, 0] == 0).flatten(1).double()
    assert chisquare(hidden.sum(0)).pvalue > 1e-3
    # Without replacement, two of 16 positions are both masked with probability 4/16 · 3/15.
    together = (hidden.T @ hidden)[~torch.eye(16, dtype=torch.bool)] / len(hidden)
    assert (together - 4 * 3 / (16 * 15)).abs().max() < 5 * math.sqrt(0.05 * 0.95 / len(hidden))


def test_a_large_image_is_masked_by_longer_words_as_exactly() -> None:
    images = torch.ones(2, 3, 80, 80)
    hidden = applied(transform("mask", share=0.95), images)[:, 0] == 0
    assert (hidden.flatten(1).sum(1) == 6080).all()


@pytest.mark.parametrize("word", ["mask", "cutout", "erasing"])
def test_the_mean_colour_fills_what_is_hidden_and_the_rest_stays(word: str) -> None:
    images = torch.rand(40, 3, 12, 12)
    black = applied(transform(word, **({"probability": 1.0} if word == "erasing" else {})), images)
    changes = {"fill": "mean"} | ({"probability": 1.0} if word == "erasing" else {})
    coloured = applied(transform(word, **changes), images)
    hidden = (black == 0).all(1, keepdim=True) & (images > 0).any(1, keepdim=True)
    assert hidden.flatten(1).any(1).all()
    wanted = torch.where(hidden, torch.tensor(MEAN).view(1, 3, 1, 1), images)
    torch.testing.assert_close(coloured, wanted, rtol=0, atol=1e-6)


def canvas(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Pad an image (3, H, W) with black by torch.  box: rows above and below, columns left and right."""
    above, below, left, right = box
    return F.pad(image, (left, right, above, below))


def distances(images: Tensor, others: Tensor) -> Tensor:
    """Return each image's distance from each of the others, by differences, as products would round too coarsely."""
    return torch.cdist(images.flatten(1), others.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_padding_is_a_canvas_of_every_size_and_place_scaled_by_torch(most: int) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 9, 7).expand(600, -1, -1, -1)
    padded = applied(transform("padding", most=most), images)
    boxes = [
        (above, tall - above, left, wide - left)
        for tall in range(most + 1)
        for wide in range(most + 1)
        for above in range(tall + 1)
        for left in range(wide + 1)
    ]
    # A canvas holds every pixel of the image, and is scaled to its size by torch's own bilinear interpolation.
    scaled = [
        F.interpolate(canvas(images[0], box)[None], (9, 7), mode="bilinear", align_corners=False) for box in boxes
    ]
    least, which = distances(padded, torch.cat(scaled)).min(1)
    assert least.max() < 1e-4
    drawn = {boxes[number] for number in which.tolist()}
    heights, widths = {box[0] + box[1] for box in drawn}, {box[2] + box[3] for box in drawn}
    assert heights == widths == set(range(most + 1))  # both ends of the range are reached
    if most <= 2:
        assert drawn == set(boxes)


def test_resizing_is_the_smaller_image_of_torch_on_a_canvas() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 8, 8).expand(400, -1, -1, -1)
    resized = applied(transform("resizing", most=2), images)
    wanted, boxes = [], []
    for tall in (6, 7, 8):
        for wide in (6, 7, 8):
            small = F.interpolate(images[:1], (tall, wide), mode="bilinear", align_corners=False)[0]
            for above in range(9 - tall):
                for left in range(9 - wide):
                    boxes.append((tall, wide, above, left))
                    wanted.append(canvas(small, (above, 8 - tall - above, left, 8 - wide - left)))
    least, which = distances(resized, torch.stack(wanted)).min(1)
    assert least.max() < 1e-4
    assert {boxes[number] for number in which.tolist()} == set(boxes)


def test_padding_fills_with_the_mean_colour() -> None:
    images = torch.tensor(MEAN).view(1, 3, 1, 1).expand(50, -1, 8, 8)
    for word in ("padding", "resizing"):
        torch.testing.assert_close(applied(transform(word, fill="mean"), images), images, rtol=0, atol=1e-6)


def test_noise_is_standard_normal_times_std() -> None:
    noise = applied(transform("noise", std=0.25), torch.zeros(30, 3, 16, 16)).numpy()
    assert kstest(noise.ravel() / 0.25, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.reshape(30, -1)) - np.eye(30)).max() < 0.2


def hidden_boxes(images: Tensor) -> np.ndarray:
    """Return top, left, height and width of the black box in each image (N, 3, H, W), which is one elsewhere."""
    boxes = []
    for hidden in (images[:, 0] == 0).numpy():
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        if not len(rows):
            boxes.append((-1, -1, 0, 0))
            continue
        boxes.append((rows[0], columns[0], len(rows), len(columns)))
        assert hidden.sum() == len(rows) * len(columns)
    return np.array(boxes)


def test_cutout_hides_a_square_around_a_pixel_as_far_as_it_lies_in_the_image() -> None:
    boxes = hidden_boxes(applied(transform("cutout", side=6), torch.ones(3000, 3, 16, 16)))
    assert boxes[:, 2:].max() == 6 and boxes[:, 2:].min() == 3  # the centre is a pixel of the image
    # Every centre is as probable as the others: the square's first row is 0 for centres 0 to 3.
    first = np.bincount(boxes[:, 0], minlength=13)
    assert chisquare(first, 3000 * np.array([4, *[1] * 12]) / 16).pvalue > 1e-3


def test_erasing_draws_the_boxes_of_torchvision() -> None:
    images = torch.ones(2000, 3, 24, 16)
    ours = hidden_boxes(applied(transform("erasing"), images))
    torch.manual_seed(0)
    theirs = RandomErasing(0.5, (0.02, 0.33), (0.3, 3.3))
    peer = hidden_boxes(torch.stack([theirs(image) for image in images]))
    for side in range(4):
        table = [np.bincount(boxes[:, side] + 1, minlength=26) for boxes in (ours, peer)]
        assert np.abs(np.cumsum(table[0]) - np.cumsum(table[1])).max() / len(images) < 1.95 * math.sqrt(2 / len(images))


@pytest.mark.parametrize("word", SECTIONS)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.permutations(range(12)), st.integers(1, 11), st.integers(0, 3))
def test_a_draw_depends_on_seed_epoch_and_image_alone(word: str, order: list[int], cut: int, epoch: int) -> None:
    images, drawer = torch.rand(12, 3, 10, 10, generator=torch.Generator().manual_seed(1)), transform(word)
    numbers = np.array(order) + 500
    whole = applied(drawer, images, epoch, np.arange(12) + 500)
    parts = [applied(drawer, images[order][rows], epoch, numbers[rows]) for rows in (slice(0, cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), whole[order])
    other = drawer.draw((3, 10, 10), np.arange(12) + 500, 0, "transform", epoch + 1)(images)
    assert not torch.equal(other, whole)
    assert not torch.equal(drawer.draw((3, 10, 10), np.arange(12) + 500, 1, "transform", epoch)(images), whole)


@pytest.mark.parametrize("word", SECTIONS)
def test_gradients_pass_through_a_draw(word: str) -> None:
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    draw = transform(word).draw((3, 8, 8), np.arange(4), 0, "transform", 0)
    if word in ("padding", "mask_padding", "resizing"):
        draw(images.float()).sum().backward()  # its places are float32
        assert images.grad is not None and images.grad.abs().sum() > 0
    else:
        assert torch.autograd.gradcheck(draw, images)


def test_the_mask_comes_before_the_padding() -> None:
    images = torch.ones(30, 3, 16, 16)
    both = applied(transform("mask_padding"), images)
    # Masked pixels are blurred by scaling, so fewer are exactly black than were masked, and some are grey.
    assert (((both > 0) & (both < 0.99)).flatten(1).sum(1) > 0).sum() > 20
    assert both.mean() < 0.72


def test_words_are_those_of_philox_as_numpy_counts() -> None:
    draws = Draws(3, "purpose", 7)
    words = draws.words(np.array([5, 0, 5]), 8)
    state = np.random.Philox(key=draws._bits.state["state"]["key"], counter=[0, 0, 5, 0])
    assert np.array_equal(words[0], state.random_raw(8)) and np.array_equal(words[0], words[2])
    assert len(np.unique(words[:2])) == 16


def test_uniform_numbers_are_uniform() -> None:
    numbers = Draws(0, "uniform").uniform(np.arange(5000), 3)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.06


def test_normal_numbers_are_normal_to_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Draws(3, "normal").normal(np.arange(200), (40, 50))
    assert numbers.dtype == np.float32 and kstest(numbers.ravel(), "norm").pvalue > 0.001
    assert abs(np.corrcoef(numbers[:, 0].ravel(), numbers[:, 1].ravel())[0, 1]) < 0.05
    words = np.array([[0, 2**31 - 1, 2**31, 2**32 - 1]], np.uint32)
    monkeypatch.setattr(Draws, "words", lambda self, images, count, dtype: words)
    smallest = Draws(3, "normal").normal(np.arange(1), (4,))[0]
    assert 5 < smallest[1] < 5.5 and smallest[2] == -smallest[1] and 0 < smallest[0] == -smallest[3] < 1e-9
