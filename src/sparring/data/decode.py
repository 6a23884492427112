"""This module decodes images to upright, opaque RGB of 8 bits at one size, and refuses what is ambiguous.

Each kind of pixel has a known range (8, 12 and 16 bits: the whole of it; floats: 0 to 1) or is an error.
"""

import io
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from sparring.data.sources import Encoded, Region, some
from sparring.params.errors import InputError, reason

MOST_PIXELS = 50_000_000  # of one encoded image: a small file can claim to be a picture that fills the memory
THREADS = min(4, os.cpu_count() or 1)  # more threads than cores only wait for each other
TOGETHER = 16  # images that a thread gets at once: handing small ones over one by one takes longer than decoding
NAMED = 10  # the number of broken images that an error names
STILL = ("MPO", "PSD")  # formats whose further frames are previews or layers of the one picture

# This makes Pillow try the common formats first. Listing all suffixes, as the sources do, would put some formats before
# them that read a whole header to see that it is not theirs: a PPM image then took twice as long.
Image.preinit()


class _Refused(Exception):
    """This exception says why an image cannot be used, and the mend."""


def decoded(
    batches: Iterator[list[tuple[str, Encoded]]], size: int, background: str, several: list[str]
) -> Iterator[np.ndarray]:
    """Decode batches of M images, each with its name for an error, to batches (M, S, S, 3) uint8.

    size: S.
    background: a colour that Pillow knows, behind transparent images.
    several: a list to which this appends the names of images with several frames or pages, of which it takes the first.

    Raises InputError, once all are read, with the names of the first ten broken images and their number.
    """
    broken: dict[str, list[str]] = {}

    def read(part: list[tuple[str, Encoded]]) -> list[np.ndarray | _Refused]:
        return [_decoded_or_refused(name, encoded, size, background, several) for name, encoded in part]

    with _strict_pillow(), ThreadPoolExecutor(THREADS) as pool:
        for batch in batches:
            images = []
            parts = [batch[start : start + TOGETHER] for start in range(0, len(batch), TOGETHER)]
            for (name, _), image in zip(batch, chain.from_iterable(pool.map(read, parts)), strict=True):
                if isinstance(image, _Refused):
                    broken.setdefault(str(image), []).append(name)
                else:
                    images.append(image)
            if images and not broken:
                yield np.stack(images)
    if broken:
        raise InputError(_error_message(broken))


def native_size(encoded: Encoded) -> tuple[int, int] | None:
    """Return width and height in pixels of an image, upright and before scaling. Returns None where it cannot be read,
    which `decoded` reports."""
    if isinstance(encoded, np.ndarray):
        return encoded.shape[1], encoded.shape[0]
    if isinstance(encoded, Region):
        left, top, right, bottom = encoded.box
        return right - left, bottom - top
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else str(encoded)) as image:
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (image.height, image.width) if is_turned else image.size
    except Exception:  # whatever a broken file provokes
        return None


def _error_message(broken: dict[str, list[str]]) -> str:
    """Return one line on all broken images, by reason: the names of the first ten, and their number."""
    number = sum(len(names) for names in broken.values())
    if number == 1:
        return "".join(f"{names[0]} {why}" for why, names in broken.items())
    parts, names_left = [], NAMED
    for why, names in broken.items():
        if names_left:
            parts.append(f"{some(names, names_left)}: {why}")
            names_left -= min(names_left, len(names))
    return f"{number:,} images cannot be used; {' | '.join(parts)}"


def _decoded_or_refused(
    name: str, encoded: Encoded, size: int, background: str, several: list[str]
) -> np.ndarray | _Refused:
    try:
        return _decode(name, encoded, size, background, several)
    except _Refused as error:
        return error


def _decode(name: str, encoded: Encoded, size: int, background: str, several: list[str]) -> np.ndarray:
    """Decode one image to (S, S, 3) uint8. Raises _Refused."""
    if encoded is None:
        raise _Refused("has no image (null); write its bytes there, or remove the row")
    if isinstance(encoded, np.ndarray):
        return _at_size(Image.fromarray(encoded), size)
    box = None
    if isinstance(encoded, Region):
        box, encoded = encoded.box, encoded.file
    too_large = f"has more than {MOST_PIXELS / 1e6:.0f} million pixels; make it smaller or remove it"
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            if image.width * image.height > MOST_PIXELS:
                raise _Refused(too_large)
            if getattr(image, "is_animated", False) and image.format not in STILL:
                several.append(name)
            reduced = _reduced(image, size) if box is None else _cut(image, box)
            if reduced.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                ImageOps.exif_transpose(reduced, in_place=True)
            return _at_size(_opaque(_in_8_bits(reduced), background), size)
    except _Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _Refused(too_large) from error
    except Exception as error:  # Pillow's decoders let out whatever a broken file provokes: SyntaxError, struct.error …
        why = "not in an image format" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise _Refused(f"is no readable image ({why}); mend it or remove it") from error


def _reduced(image: Image.Image, size: int) -> Image.Image:
    """Read a large JPEG at half, a quarter or an eighth of its size, at least twice the final one, then scale it.

    Return images that are no JPEG, or too small for that, as they are.
    """
    full_size = image.size
    draft = image.draft(None, (2 * size, 2 * size))
    if draft is None or image.size == full_size:
        return image
    # The box is needed, as the last column and row of the reduced image may reach beyond the edge of the full one.
    return image.resize((size, size), Image.Resampling.BILINEAR, box=draft[1])


def _cut(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    if box[2] > image.width or box[3] > image.height:
        edges = ", ".join(map(str, box))
        raise _Refused(
            f"has {image.width} × {image.height} pixels, and its region of interest ({edges}) reaches beyond; "
            f"mend the region in its CSV file"
        )
    return image.crop(box)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Scale the image to 8 bits a channel where Pillow would clip it. Raises _Refused for pixels of unknown range."""
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, rgb, "LAB", "RGB")) or image
    if image.mode == "F":
        pixels = np.asarray(image)
        if not np.isfinite(pixels).all():
            raise _Refused("has pixels that are no numbers (NaN or infinite); mend it or remove it")
        if pixels.min() < 0 or pixels.max() > 1:
            raise _Refused(
                f"has floats from {pixels.min():.4g} to {pixels.max():.4g}, of which only 0 to 1 has a meaning here; "
                f"scale it to that, or save it with 8 or 16 bits"
            )
        return Image.fromarray((pixels * 255).round().astype(np.uint8))
    if not image.mode.startswith("I"):
        return image
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # which have 16 bits at most, and are scaled to them
        raise _Refused("has integers whose range nobody knows (signed, or of 32 bits); save it with 8 or 16 bits")
    pixels = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    highest = 2 ** tags.get(BITSPERSAMPLE, (16,))[0] - 1
    level = (np.clip(pixels, 0, highest) / (highest / 255)).round().astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero, which Pillow knows of 8 bits only
        level = 255 - level
    grey = Image.fromarray(level)
    if isinstance(image.info.get("transparency"), int):
        alpha = np.where(pixels == image.info["transparency"], 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(alpha))
    return grey


def _opaque(image: Image.Image, background: str) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image)


def _at_size(image: Image.Image, size: int) -> np.ndarray:
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)  # Pillow's is antialiased when it shrinks images
    return np.asarray(image)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Make Pillow raise for decompression bombs when it reads the header, and hide its other warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
