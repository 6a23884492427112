"""Names in figures: a font for every character, or its code point where no installed font has it."""

import functools
import logging
import unicodedata
from collections.abc import Iterable

import matplotlib
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties

from sparring.report.escape import code_point

# Nobody can read these fonts: parts of formulas, boxes for what other fonts lack, and colours that are not drawn.
UNREADABLE = ("cm", "STIXSize", "STIXNonUnicode", "Last Resort", "Noto Color", "Apple Color")
WEIGHTS = ("normal", "bold")
# Controls, surrogates, characters that nobody assigned, and line breaks; formats turn the direction of what follows.
HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"  # formats that letters of some scripts need

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # else it tells of each font without a bold face


def short(name: str, limit: int = 12) -> str:
    """Shorten a name to `limit` characters on one line. A character that no font has becomes its code point."""
    glyphs = [character if _family(character) and not name.isspace() else code_point(character) for character in name]
    if sum(map(len, glyphs)) <= limit:
        return "".join(glyphs)
    text = ""
    for glyph in glyphs:
        if len(text) + len(glyph) >= limit:
            break
        text += glyph
    return text + "…"


def families(texts: Iterable[str]) -> list[str]:
    """Return rcParams["font.family"] for these texts: matplotlib's own, then installed ones with what it lacks."""
    fonts = {_family(character) for character in "".join(texts)}
    own = _own()
    return [*own, *sorted(family for family in fonts if family and family not in own)]


def _own() -> list[str]:
    return list(matplotlib.rcParamsDefault["font.family"])


@functools.lru_cache(maxsize=4096)
def _family(character: str) -> str | None:
    """Return the first font family that has a character; None where none has, or there is nothing to be drawn."""
    if unicodedata.category(character) in HIDDEN and character not in JOINERS:
        return None
    own = _own()
    if any(ord(character) in _characters(family) for family in own):
        return own[0]
    return next((family for family in _installed() if ord(character) in _characters(family)), None)


@functools.cache
def _installed() -> list[str]:
    names = {entry.name for entry in font_manager.fontManager.ttflist if not entry.name.startswith(UNREADABLE)}
    return sorted(names, key=lambda name: ("Sans" not in name, name))


@functools.cache
def _characters(family: str) -> frozenset[int]:
    """Return the code points that a font family has in every weight that figures use."""
    by_weight = []
    for weight in WEIGHTS:
        try:
            path = font_manager.findfont(FontProperties(family=[family], weight=weight), fallback_to_default=False)
            by_weight.append(frozenset(font_manager.get_font(path).get_charmap()))
        except (OSError, RuntimeError, ValueError):  # a broken file, a font of pictures, a font that is gone
            return frozenset()
    return frozenset.intersection(*by_weight)
