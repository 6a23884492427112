"""Common corruptions: what each does to the pixels, and predictions of every image under each."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from staging import stage

from sparring import store
from sparring.evaluation import corruptions, predict
from sparring.layout import HERE
from sparring.params import Params
from sparring.params.names import CORRUPTIONS, STRENGTHS


def indexed(pixels: np.ndarray) -> store.Images:
    return store.Images(np.arange(len(pixels)), np.zeros(len(pixels), np.int64), pixels)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_grows_with_its_strength_and_leaves_the_other_images_alone(name: str, digits: store.Images) -> None:
    before = digits.image.copy()
    by_strength = [corruptions.corrupt(digits, name, strength, 0) for strength in STRENGTHS]
    changes = [np.abs(corrupted.astype(int) - before).mean() for corrupted in by_strength]
    assert changes == sorted(changes) and changes[0] < changes[-1] / 1.3
    for strength, corrupted in zip(STRENGTHS, by_strength, strict=True):
        assert corrupted.shape == before.shape and corrupted.dtype == np.uint8
        some = corruptions.corrupt(digits[5:8], name, strength, 0)
        np.testing.assert_array_equal(some, corrupted[5:8])
    np.testing.assert_array_equal(digits.image, before)
    assert corruptions.corrupt(digits[:0], name, 3, 0).shape == (0, *before.shape[1:])


def test_noise_has_its_size_and_its_seed() -> None:
    grey = indexed(np.full((20, 32, 32, 3), 128, np.uint8))
    for strength, size in zip(STRENGTHS, corruptions.NOISE, strict=True):
        noise = corruptions.corrupt(grey, "noise", strength, 0).astype(float) - 128
        assert noise.std() / 255 == pytest.approx(size, rel=0.03) and abs(noise.mean()) < 1
    again, other = (corruptions.corrupt(grey, "noise", 5, seed) for seed in (0, 1))
    np.testing.assert_array_equal(again - 128.0, noise)
    assert (again != other).mean() > 0.9


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(STRENGTHS))
def test_pixels_are_moved_as_the_docs_say(seed: int, strength: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(2, 16, 16, 3), dtype=np.uint8)
    pixels[0, 0, 0] = 0
    images, place = indexed(pixels), strength - 1
    levels = pixels.astype(float)

    def corrupted(name: str) -> np.ndarray:
        return corruptions.corrupt(images, name, strength, 0).astype(float)

    mean = levels.mean((1, 2), keepdims=True)
    wanted = (mean + corruptions.CONTRAST[place] * (levels - mean)).clip(0, 255)
    assert np.abs(corrupted("contrast") - wanted).max() <= 0.51
    more = 255 * corruptions.BRIGHTNESS[place]
    value = levels.max(-1)
    assert np.abs(corrupted("brightness").max(-1) - np.minimum(value + more, 255)).max() <= 0.51
    assert np.abs(corrupted("brightness")[0, 0, 0] - more).max() <= 0.51
    file = io.BytesIO()
    Image.fromarray(pixels[1]).save(file, "jpeg", quality=corruptions.JPEG[place])
    np.testing.assert_array_equal(corrupted("jpeg")[1], np.asarray(Image.open(file)))
    # Blur and pixelation mix pixels: a flat image stays, and of any other no value leaves its range.
    flat = indexed(np.full((1, 16, 16, 3), 77, np.uint8))
    for name in ("blur", "pixelate", "contrast"):
        assert (corruptions.corrupt(flat, name, strength, 0) == 77).all()
        assert corrupted(name).min() >= levels.min() - 1 and corrupted(name).max() <= levels.max() + 1


def test_pixelation_by_half_is_the_mean_of_four() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(1, 32, 32, 3), dtype=np.uint8)
    pixelated = corruptions.corrupt(indexed(pixels), "pixelate", 2, 0)
    blocks = pixels.reshape(1, 16, 2, 16, 2, 3).astype(float).mean((2, 4))
    assert np.abs(pixelated[:, ::2, ::2] - blocks).max() <= 0.51
    np.testing.assert_array_equal(pixelated[:, ::2, ::2], pixelated[:, 1::2, 1::2])


def test_every_image_is_predicted_under_every_corruption(project: Path, tiny: Callable[..., Params]) -> None:
    params = tiny()
    corruptions.evaluate(params, "baseline")
    predict.evaluate(params, "baseline")
    path = HERE.corruptions("baseline")
    rows = pd.read_parquet(path)
    assert list(rows) == ["index", "split", "seed", "corruption", "strength", "label", "prediction", "confidence"]
    assert len(rows) == 40 * (1 + 6 * 5) and not rows.duplicated(["index", "corruption", "strength"]).any()
    clean = pd.read_parquet(HERE.predictions("baseline")).query("attack == 'clean' and split == 'heldout'")
    columns = ["index", "label", "prediction", "confidence"]
    same = rows[rows["strength"] == 0][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, clean[columns].reset_index(drop=True))
    accuracy = (rows["label"] == rows["prediction"]).groupby([rows["corruption"], rows["strength"]]).mean()
    assert accuracy[("contrast", 5)] < accuracy[("clean", 0)]
    before = path.read_bytes()
    corruptions.evaluate(params, "baseline")
    assert path.read_bytes() == before


def test_the_stage_ends_in_one_line(project: Path) -> None:
    done = stage("corruptions", "advv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: params.yaml: structures.advv is missing; there are baseline, adv, ours\n"
