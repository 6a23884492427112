"""This module holds what torchattacks demands of arguments and data. The library itself checks it only when it runs.

The demands were observed when each class of torchattacks 3.5.1 ran; tests/attacks/test_torchattacks.py runs them all.
"""

from typing import Any

# These classes need what no parameter file can hold.
REFUSED = {
    "MultiAttack": "it joins attacks that are objects of Python; list each attack by itself",
    "LGV": "it trains nets of its own on a data loader, an object of Python; use another attack",
}
BALLS = ("Linf", "L2")
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "APGD": {"norm": BALLS, "loss": ("ce", "dlr")},
    "APGDT": {"norm": BALLS},
    "AutoAttack": {"norm": BALLS, "version": ("standard", "plus", "rand")},
    "FAB": {"norm": BALLS},
    "Square": {"norm": BALLS, "loss": ("margin", "ce")},
    "UPGD": {"loss": ("ce", "dlr", "margin")},
    "PGDRS": {"noise_type": ("guassian", "uniform")},  # as the library spells it
    "PGDRSL2": {"noise_type": ("guassian", "uniform")},
    "TIFGSM": {"kernel_name": ("gaussian", "linear", "uniform")},
    "Pixle": {"pixel_mapping": ("random", "similarity", "similarity_random", "distance", "distance_random")},
}
# These arguments are whole numbers. All are 1 or more, but for n_classes, from 2 on, and seed, from 0 on.
COUNTS = {
    *("steps", "n_restarts", "restarts", "eot_iter", "m", "N", "n_queries", "nb_iter", "nb_sample", "max_batch_size"),
    *("binary_search_steps", "max_iterations", "num_iter_set", "noise_batch_size", "batch_max", "pixels", "popsize"),
    *("inf_batch", "len_kernel", "n_classes", "seed"),
}
LEAST = {("EADL1", "max_iterations"): 10, ("EADEN", "max_iterations"): 10}


def arguments_problem(name: str, arguments: dict[str, Any]) -> str | None:
    """Say what is wrong with the arguments of torchattacks.<name>, as `key is value; what it should be`; or None."""
    for key, value in arguments.items():
        choices = CHOICES.get(name, {}).get(key)
        if choices and value not in choices:
            return f"{key} is {value}; use {', '.join(choices[:-1])} or {choices[-1]}"
        if key not in COUNTS or (key == "seed" and value is None):
            continue
        least = {"seed": 0, "n_classes": 2}.get(key) or LEAST.get((name, key), int(key != "seed"))
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            return f"{key} is {value}; it is a whole number, {least} or more"
    if name == "Pixle" and arguments.get("update_each_iteration"):
        return "update_each_iteration is true; torchattacks can then take one image only; use false"
    return None


def image_size_problem(name: str, arguments: dict[str, Any], size: int) -> str | None:
    """Say why torchattacks.<name> cannot attack images of size × size pixels, and the mend; or None."""
    if "resize_rate" in arguments:
        rate = arguments["resize_rate"]
        if int(size * rate) < 1 or int(size * rate) == size:
            return f"resize_rate {rate:g} brings {size} pixels to {int(size * rate)}; use a share such as 0.9"
    if name == "JSMA" and size > 64:
        # Tables of (3 · size²)² numbers, several at a time: at 64 pixels 1.2 GB each.
        return f"it needs images of 64 pixels at most, as it compares all pairs of values; data.image_size is {size}"
    return None


def classes_problem(name: str, arguments: dict[str, Any], classes: int) -> str | None:
    """Say why torchattacks.<name> cannot attack a net of so many classes, and the mend; or None."""
    n_classes = arguments.get("n_classes", classes)
    if n_classes > classes:
        return f"n_classes is {n_classes}, but the data has {classes} classes; it can be left out"
    least = 2
    if name in ("APGDT", "autoattack") or (name == "AutoAttack" and arguments.get("version") != "rand"):
        least = 4
    elif name == "AutoAttack" or arguments.get("loss") == "dlr":
        least = 3
    elif name == "JSMA":
        least = 10  # Its targets are (label + 1) % 10.
    return None if classes >= least else f"it needs {least} classes or more, but the data has {classes}"
