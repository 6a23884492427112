"""This module holds the words that mean the same thing everywhere: in params.yaml, stages, files and tables."""

import re
from typing import Any

PARAMS_FILE = "params.yaml"
DEFAULT_FILE = "profiles/digits.yaml"  # the default profile, which has every key
BASELINE = "baseline"
ABLATED = "ours"  # the structure that Table 3 varies
CLEAN = "clean"
# The white-box attacks that `whitebox` describes by numbers, by their names in data/whitebox/.
AUTOATTACK, MORE_STEPS, SQUARE, SINGLE_DRAW = "autoattack", "more_steps", "square", "single_draw"
KNOWN_DETECTORS = ("mahalanobis", "squeezing")  # to which a structure's own detector is compared
EVOLVING = "evolving"  # the opponents that follow the net, in place of a stored attack's name
RANDOM = "random"  # the value of `evolving.start` for random changes, in place of an attack's name
MIXTURE = "mixture"  # the mixture of clean and attacked images, in place of an attack's name
# The columns of the report's tables, beside a column for each structure.
TABLE_COLUMNS = ("structure", "attack", "images", "within", "check", "compared", "corruption")
WORDS = ("opponents", "evolving", "detector", "transform")  # the keys of a structure
SPLITS = ("train", "validation", "test", "heldout")
EVALUATED_SPLITS = ("test", "heldout")
CORRUPTIONS = ("noise", "blur", "brightness", "contrast", "jpeg", "pixelate")
STRENGTHS = (1, 2, 3, 4, 5)


def outputs(classes: list[str]) -> str:
    """List the classes of a classifier's outputs, as `0 cat, 1 dog`; of more than twelve, ten and the last.

    Classes that are called like their numbers are `0 to 9`.
    """
    if classes == [str(number) for number in range(len(classes))]:
        return f"0 to {len(classes) - 1}"
    parts = [f"{number} {name}" for number, name in enumerate(classes)]
    return ", ".join(parts if len(parts) <= 12 else [*parts[:10], "…", parts[-1]])


def structure_entry(opponents: str, **words: str) -> dict[str, str]:
    """Return an entry of `structures`, with `none` for the keys that are not given."""
    return dict.fromkeys(WORDS, "none") | {"opponents": opponents} | words


LONGEST_NAME = 100


def check_names(entries: dict[str, Any], reserved: tuple[str, ...]) -> None:
    """Raise ValueError where an entry's name cannot name a file and a DVC stage, is too long, or is reserved."""
    for name in entries:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(name)) or name in reserved:
            raise ValueError(f"{name} cannot be a name here; use letters, digits, - and _, not {', '.join(reserved)}")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"{name[:20]}… has {len(name)} characters; files bear such names, so use {LONGEST_NAME}")
