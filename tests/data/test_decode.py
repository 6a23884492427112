"""Every kind of pixel is decoded in its range, transparency gets a background, and other images are refused."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import encoded, fails, folder, noise, prepare, settings
from PIL import Image

from sparring.data import decode
from sparring.params.errors import InputError

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def decoded(content: bytes, size: int = 8, background: str = "white") -> np.ndarray:
    several: list[str] = []
    (batch,) = decode.decoded(iter([[("picture", content)]]), size, background, several)
    assert not several
    return batch[0]


def tiff(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels), "TIFF")


def refused(content: bytes, match: str) -> None:
    with pytest.raises(InputError, match=f"picture {match}"):
        decoded(content)


def test_floats_from_0_to_1() -> None:
    pixels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(decoded(tiff(pixels))[..., 1], (pixels * 255).round())


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (1.5, "has floats from 0 to 1.5"),
        (-0.25, "has floats from -0.25 to 0"),
        (np.nan, "has pixels that are no numbers"),
        (np.inf, "has pixels that are no numbers"),
    ],
)
def test_floats_of_no_known_range(value: float, match: str) -> None:
    pixels = np.zeros((8, 8), np.float32)
    pixels[3, 4] = value
    refused(tiff(pixels), match)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "PPM"])
def test_16_bits(order: str, kind: str) -> None:
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4
    mode = "I;16" if order == "<u2" or kind != "TIFF" else "I;16B"
    image = Image.frombytes(mode, (8, 8), (levels * 257).astype(order if kind == "TIFF" else "<u2").tobytes())
    assert np.array_equal(decoded(encoded(image, kind))[..., 0], levels)


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_16_bits_of_a_tiff_whose_white_is_zero(white_is_zero: bool) -> None:
    image = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    content = encoded(image, "TIFF", tiffinfo={262: 0} if white_is_zero else {})
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.tag_v2[262] == (0 if white_is_zero else 1)
    assert (decoded(content) == (0 if white_is_zero else 255)).all()


def test_integers_of_no_known_range() -> None:
    refused(tiff(np.full((8, 8), 65535, np.int32)), "has integers whose range nobody knows")
    refused(tiff(np.full((8, 8), -3, np.int32)), "has integers whose range nobody knows")


def half_transparent(mode: str) -> Image.Image:
    """Make an image that is red on the left and fully transparent on the right, over black."""
    image = Image.new("RGBA", (8, 8), (*RED, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 8))
    return image.convert(mode)


@pytest.mark.parametrize(("background", "colour"), [("white", WHITE), ("#0000ff", (0, 0, 255)), ("black", (0, 0, 0))])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency(kind: str, background: str, colour: tuple[int, int, int]) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    pixels = decoded(encoded(half_transparent("RGBA"), kind, **options), background=background)
    assert (pixels[:, :4] == RED).all() and (pixels[:, 4:] == colour).all()


def test_a_bitmap_with_alpha() -> None:
    """Version 4 of its header has a mask for alpha; without one the fourth byte of a pixel means nothing."""
    pixels = np.asarray(half_transparent("RGBA"))[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    content = struct.pack("<2sIII", b"BM", 14 + 108 + len(pixels), 0, 14 + 108) + header + pixels
    pixels_on_lime = decoded(content, background="lime")
    assert (pixels_on_lime[:, :4] == RED).all() and (pixels_on_lime[:, 4:] == (0, 255, 0)).all()
    plain = decoded(encoded(half_transparent("RGBA"), "BMP"))
    assert (plain[:, :4] == RED).all() and (plain[:, 4:] == 0).all()


def test_transparent_grey_and_palettes() -> None:
    grey = decoded(encoded(half_transparent("LA")), background="lime")
    assert (grey[:, :4] == 76).all() and (grey[:, 4:] == (0, 255, 0)).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([*RED, 0, 0, 0])
    palette.paste(1, (4, 0, 8, 8))
    for kind in ("PNG", "GIF"):
        pixels = decoded(encoded(palette, kind, transparency=1), background="lime")
        assert (pixels[:, :4] == RED).all() and (pixels[:, 4:] == (0, 255, 0)).all()
    assert (decoded(encoded(palette))[:, 4:] == 0).all()


def test_one_transparent_level() -> None:
    levels = np.full((8, 8), 40000, np.uint16)
    levels[:, 4:] = 300
    for image, level in ((Image.fromarray(levels), 156), (Image.fromarray((levels / 257).astype(np.uint8)), 155)):
        transparent = 300 if image.mode == "I;16" else 1
        pixels = decoded(encoded(image, transparency=transparent), background="lime")
        assert (pixels[:, :4] == level).all() and (pixels[:, 4:] == (0, 255, 0)).all()


def test_half_covered_pixels_are_mixed_before_they_are_resized() -> None:
    assert (decoded(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 51)))) == 204).all()
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))  # black below full transparency must not bleed in
    image.paste((*WHITE, 255), (0, 0, 7, 16))
    assert (decoded(encoded(image)) == 255).all()


@pytest.mark.parametrize("colour", ["", "whitish", "#12", "#ffffff80"])
def test_backgrounds_that_are_no_opaque_colour(colour: str) -> None:
    with pytest.raises(InputError, match=r"data\.background"):
        settings(background=colour)


def test_cmyk_and_lab() -> None:
    assert np.abs(decoded(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).astype(int) - RED).max() <= 3
    lab = Image.frombytes("LAB", (8, 8), bytes([138, 81, 70]) * 64)  # the red of sRGB, seen in the light of D50
    assert np.abs(decoded(encoded(lab, "TIFF")).astype(int) - RED).max() <= 6


def test_one_bit() -> None:
    image = Image.new("1", (8, 8), 0)
    image.paste(1, (4, 0, 8, 8))
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        pixels = decoded(encoded(image, kind))
        assert (pixels[:, :4] == 0).all() and (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(kind: str) -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is on the right
    pixels = decoded(encoded(image, kind, exif=exif))
    assert (pixels[:, 5:] > 250).all() and (pixels[:, :3] < 5).all()


def test_frames_and_pages(capsys: pytest.CaptureFixture[str]) -> None:
    top = folder("pictures", {"cat": 40, "dog": 40})
    (top / "cat" / "000.png").unlink()
    grey, black = Image.new("L", (8, 8), 200), Image.new("L", (8, 8), 0)
    for name, kind in (("000.gif", "GIF"), ("001.tif", "TIFF")):
        (top / "cat" / name).write_bytes(encoded(grey, kind, save_all=True, append_images=[black]))
    splits = prepare(source="folder", path="pictures", train=80)
    image = np.concatenate([part.image for part in splits.values()])
    assert sum((pixels == 200).all() for pixels in image) == 2
    assert not any((pixels == 0).all() for pixels in image)
    error = capsys.readouterr().err
    assert "several frames or pages, of which the first is taken" in error
    assert "cat/000.gif" in error and "cat/001.tif" in error


def photograph(width: int, height: int) -> Image.Image:
    """Make an image of waves of many lengths and directions, in three colours."""
    y, x = np.mgrid[:height, :width] / width
    waves = [0 * x, 0 * x, 0 * x]
    for channel in range(3):
        for f in (1, 3, 9, 40, 150):
            waves[channel] += np.sin(2 * np.pi * f * (x * np.cos(f + channel) + y * np.sin(f + channel))) / f
    return Image.fromarray((127 + 60 * np.stack(waves, -1)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(1600, 1200), (700, 2100), (300, 257), (64, 48)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_jpegs_are_near_the_whole_decode(size: tuple[int, int], mode: str) -> None:
    content = encoded(photograph(*size).convert(mode), "JPEG", quality=90)
    with Image.open(io.BytesIO(content)) as image:
        whole = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    difference = np.abs(decoded(content, 32) - whole)
    if min(size) < 128:
        assert not difference.any()
    assert difference.mean() < 1 and difference.max() < 10


def test_large_jpegs_are_read_at_a_reduced_scale() -> None:
    content = encoded(Image.new("RGB", (4000, 3000), "gray"), "JPEG")
    for size, width in ((32, 500), (375, 1000), (376, 2000), (1500 // 2, 2000), (800, 4000)):
        with Image.open(io.BytesIO(content)) as image:
            decode._reduced(image, size)
            assert image.width == width and (width == 4000 or image.height >= 2 * size)


def test_all_broken_images_are_named() -> None:
    top = folder("pictures", {"cat": 30, "dog": 30})
    for i in range(12):
        (top / "cat" / f"{i:03}.png").write_bytes(b"no image")
    (top / "dog" / "007.png").write_bytes(tiff(np.full((8, 8), 2.0, np.float32)))
    data = {"source": "folder", "path": "pictures", "train": 60}
    fails(r"13 images cannot be used; .*cat/000.png, .*cat/009.png and 2 more: is no readable image", **data)
    for i in range(3, 12):
        (top / "cat" / f"{i:03}.png").write_bytes(encoded(noise(1000 + i)))
    fails(r"4 images cannot .*cat/002.png: is no readable .* \| .*dog/007.png: has floats from 2 to 2", **data)


def test_nearly_constant_images(capsys: pytest.CaptureFixture[str]) -> None:
    top = folder("pictures", {"cat": 20, "dog": 20})
    data = {"source": "folder", "path": "pictures"}
    prepare(**data)
    assert "nearly constant" not in capsys.readouterr().err
    for i, file in enumerate(sorted(top.rglob("*.png"))[:30]):  # 12 bits kept in 16, so all but black
        levels = np.random.default_rng(i).integers(0, 4096, (8, 8), np.uint16)
        file.write_bytes(encoded(Image.fromarray(levels)))
    prepare(**data)
    assert "30 of 40 images are nearly constant" in capsys.readouterr().err
