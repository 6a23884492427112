"""Words that stand for the same thing everywhere: in params.yaml, in stages, files and tables."""

import re
from typing import Any

PARAMS_FILE = "params.yaml"
DEFAULT_FILE = "profiles/digits.yaml"  # the default profile, which has every key
BASELINE = "baseline"
ABLATED = "ours"  # the structure that Table 3 varies
CLEAN = "clean"
# The white-box attacks that `whitebox` describes by numbers, by their names in data/whitebox/.
AUTOATTACK, MORE_STEPS, SQUARE, SINGLE_DRAW = "autoattack", "more_steps", "square", "single_draw"
KNOWN_DETECTORS = ("mahalanobis", "squeezing")  # to which a structure's own is compared
EVOLVING = "evolving"  # the opponents that follow the net, where else the name of a stored attack stands
RANDOM = "random"  # of `evolving.start`: what else begins with the images of an attack
MIXTURE = "mixture"  # stands where else an attack's name stands
# Of the report's tables, beside a column for each structure.
TABLE_COLUMNS = ("structure", "attack", "images", "within", "check", "compared", "corruption")
WORDS = ("opponents", "evolving", "detector", "transform")  # of a structure
SPLITS = ("train", "validation", "test", "heldout")
EVALUATED_SPLITS = ("test", "heldout")
CORRUPTIONS = ("noise", "blur", "brightness", "contrast", "jpeg", "pixelate")
STRENGTHS = (1, 2, 3, 4, 5)


def outputs(classes: list[str]) -> str:
    """Which output of a classifier is which class, as `0 cat, 1 dog`; of more than twelve, ten and the last."""
    numbered = [f"{number} {name}" for number, name in enumerate(classes)]
    return ", ".join(numbered if len(numbered) <= 12 else [*numbered[:10], "…", numbered[-1]])


def structure_entry(opponents: str, **words: str) -> dict[str, str]:
    """An entry of `structures`; the words that are not given are none."""
    return dict.fromkeys(WORDS, "none") | {"opponents": opponents} | words


LONGEST_NAME = 100


def check_names(entries: dict[str, Any], reserved: tuple[str, ...]) -> None:
    """ValueError where an entry's name is no name of a file and of a DVC stage, is too long, or is reserved."""
    for name in entries:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(name)) or name in reserved:
            raise ValueError(f"{name} cannot be a name here; use letters, digits, - and _, not {', '.join(reserved)}")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"{name[:20]}… has {len(name)} characters; files bear such names, so use {LONGEST_NAME}")
