"""This module splits images, stratified by class. Groups stay together, and so do equal images."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sparring import device
from sparring.data.sources import Source, some
from sparring.params.errors import InputError
from sparring.params.names import PARAMS_FILE, SPLITS
from sparring.params.sections import Data


def split(
    source: Source, data: Data, seed: int, equal: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the ascending rows of the source for each of the four splits, and remarks for the user.

    equal: (N,) a number for each row, the same for rows whose images are known to be equal; None if none are.
    Validation and test are carved from the official training images, heldout too if there is no official test set.

    Raises InputError for a class that gets no training image, a path without a group, or a pattern where the source has
    groups itself.
    """
    sizes = {name: int(getattr(data, name)) for name in SPLITS}
    groups = source.group if data.group_pattern is None else _groups(source, data.group_pattern)
    pool, official = np.flatnonzero(~source.heldout), np.flatnonzero(source.heldout)
    carved = sizes if not len(official) else {name: size for name, size in sizes.items() if name != "heldout"}
    label = source.label[pool]
    pool_groups = None if groups is None else [groups[row] for row in pool.tolist()]
    parts = carve(label, carved, seed, pool_groups, None if equal is None else equal[pool])
    rows = {name: pool[part] for name, part in parts.items()}
    if len(official):
        rows["heldout"] = official[carve(source.label[official], {"heldout": sizes["heldout"]}, seed)["heldout"]]

    count = {name: np.bincount(source.label[rows[name]], minlength=len(source.classes)) for name in SPLITS}
    untrained = [name for name, images in zip(source.classes, count["train"], strict=True) if not images]
    if untrained:
        bound = "" if groups is None else " (groups of images are kept together)"
        raise InputError(
            f"{PARAMS_FILE}: data.train is {data.train}; that leaves {class_list(untrained)} without training "
            f"images{bound}; make it larger, or the other splits smaller"
        )
    return rows, _remarks(source, sizes, carved, rows, count)


def carve(
    label: np.ndarray,
    sizes: dict[str, int],
    seed: int,
    groups: Sequence[str] | None = None,
    equal: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Carve disjoint parts out of one pool, stratified by class. The result depends on the arguments alone.

    label: (N,) of small integers.  sizes: images per part; if the pool has fewer than all of them, they shrink in
    proportion.  Without groups the (shrunk) sizes are met exactly, and each class has in each part its share of
    the pool to within three images; every class gets an image of `train` before another gets its second.
    groups: N names, with sizes that have `train`; no group has images in two parts. A part may use some images of a
    group only, the rest stay unused; parts may fall short of their sizes, or be empty where a class is one group.
    equal: (N,) of integers, the same for images that belong into one part although their groups may differ; without
    groups, each image is a group.
    `train` takes what the others leave, up to the size that was asked for.
    Returns ascending positions in `label`.
    """
    sizes = {name: sizes[name] for name in SPLITS if name in sizes}  # train has its share of every class first
    count = np.bincount(label, minlength=1)
    shrunk = dict(sizes)
    if sum(sizes.values()) > len(label):
        parts = _in_proportion(len(label), np.array(list(sizes.values())))
        shrunk = dict(zip(sizes, parts.tolist(), strict=True))
    quotas = _quotas(count, shrunk)
    home = np.full(len(label), -1)  # the position in `sizes` of the part that an image may go to; -1 for any
    if groups is not None or equal is not None:
        names = [f"{row:012}" for row in range(len(label))] if groups is None else groups
        home = _homes(label, names, equal, quotas, seed)
        available = np.bincount(label[home == list(sizes).index("train")], minlength=len(count))
        train_size = min(sizes["train"], int(available.sum()))
        quotas["train"] = _spread(_in_proportion(train_size, available), available)
    positions: dict[str, list[np.ndarray]] = {name: [] for name in sizes}
    for number in range(len(count)):
        rows = np.flatnonzero(label == number)
        rows = rows[device.rng(seed, "split", *sizes, number).permutation(len(rows))]
        for position, name in enumerate(sizes):
            taken = rows[(home[rows] == position) | (home[rows] < 0)][: quotas[name][number]]
            positions[name].append(taken)
            rows = rows[~np.isin(rows, taken)]
    return {name: np.sort(np.concatenate(parts)) for name, parts in positions.items()}


def _in_proportion(total: int, weight: np.ndarray) -> np.ndarray:
    """Split `total` into whole shares in proportion to the weights, by largest remainder. None exceeds its weight."""
    whole = int(weight.sum())
    if not whole:
        return np.zeros(len(weight), np.int64)
    share, rest = np.divmod(weight.astype(np.int64) * total, whole)
    share[np.argsort(-rest, kind="stable")[: total - share.sum()]] += 1
    return share


def _quotas(count: np.ndarray, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Return the number of images of each class for each part. The numbers of a part add up to its size exactly, and
    those of a class, over all parts, to its `count` at most."""
    remaining = _spread(_in_proportion(sum(sizes.values()), count), count)
    quotas = {}
    for name, size in sizes.items():
        share = _in_proportion(size, remaining)
        quotas[name] = _spread(share, remaining) if name == "train" else share
        remaining = remaining - quotas[name]
    return quotas


def _spread(share: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Return the images per class with some moved from the largest classes, so that every class with images gets one.

    Where there are fewer images in all than such classes, some classes get none.
    share: the images that each class gets.  available: those that it has.
    """
    share = share.copy()
    for number in np.flatnonzero((share == 0) & (available > 0)):
        richest = int(np.argmax(share))
        if share[richest] > 1:
            share[richest] -= 1
            share[number] += 1
    return share


def _homes(
    label: np.ndarray, groups: Sequence[str], equal: np.ndarray | None, quotas: dict[str, np.ndarray], seed: int
) -> np.ndarray:
    """Return the part that each image's group may go to, (N,), as its position in `quotas`."""
    joined = _joined(groups, equal)
    members: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        members.setdefault(joined[name], []).append(row)
    names = sorted(joined)
    # All names are shuffled, joined ones too, so that one more pair of equal images moves few others.
    order = device.rng(seed, "split", *quotas, "groups").permutation(len(names))
    shuffled = list(dict.fromkeys(joined[names[number]] for number in order))
    classes = {name: Counter(label[rows].tolist()) for name, rows in members.items()}
    home: dict[str, str] = {}
    # A class without training images is an error, so train has first choice: one group of every class.
    trained: set[int] = set()
    for name in shuffled:
        if not trained.issuperset(classes[name]):
            home[name] = "train"
            trained.update(classes[name])
    # Then the others fill up, the largest first: where groups are scarce, validation can best be spared.
    for part in sorted(quotas.keys() - {"train"}, key=lambda part: (-int(quotas[part].sum()), part)):
        places_left = quotas[part].copy()
        for name in shuffled:
            main_class = min(classes[name], key=lambda number: (-classes[name][number], number))
            if name not in home and places_left[main_class] > 0:
                home[name] = part
                for number, images in classes[name].items():
                    places_left[number] -= images
    position = {part: number for number, part in enumerate(quotas)}
    homes = np.empty(len(label), np.int64)
    for name, rows in members.items():
        homes[rows] = position[home.get(name, "train")]
    return homes


def _joined(groups: Sequence[str], equal: np.ndarray | None) -> dict[str, str]:
    """Map each group to the first group that equal images connect it with, directly or through others: often itself."""
    names = sorted(set(groups))
    if equal is None:
        return {name: name for name in names}
    position_of = {name: number for number, name in enumerate(names)}
    group = np.array([position_of[name] for name in groups])
    _, image = np.unique(equal, return_inverse=True)
    nodes = len(names) + int(image.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(group), bool), (group, len(names) + image)), shape=(nodes, nodes))
    component = connected_components(edges, directed=False)[1][: len(names)]
    _, first = np.unique(component, return_index=True)
    return {name: names[first[component[number]]] for number, name in enumerate(names)}


def share_images(rows: dict[str, np.ndarray], equal: np.ndarray) -> bool:
    """Tell whether two splits have an image in common.  equal: (N,) a number for each row, as in `split`."""
    pairs = {(number, name) for name, part in rows.items() for number in equal[part].tolist()}
    return len(pairs) > len({number for number, _ in pairs})


def remarks_on_equal(source: Source, rows: dict[str, np.ndarray], equal: np.ndarray) -> list[str]:
    """Return remarks for the user on equal images in the splits. The arguments are as in `split`."""
    remarks = []
    drawn_rows = np.concatenate(list(rows.values()))
    carved, official = drawn_rows[~source.heldout[drawn_rows]], drawn_rows[source.heldout[drawn_rows]]
    numbers, count = np.unique(equal[carved], return_counts=True)
    if (count > 1).any():
        remarks.append(
            f"{count[count > 1].sum():,} of {len(carved):,} images equal another one pixel for pixel, so there are "
            f"{len(numbers):,} different ones; equal images went into one split"
        )
    twins = int(np.isin(equal[official], numbers).sum())
    if twins:
        remarks.append(
            f"{twins:,} of {len(official):,} official test images equal a training image pixel for pixel; they stay "
            f"where the data set has them"
        )
    labels = np.unique(np.stack([equal[drawn_rows], source.label[drawn_rows]]), axis=1)[0]
    ambiguous = np.unique(labels)[np.unique(labels, return_counts=True)[1] > 1]
    if len(ambiguous):
        first_rows = np.flatnonzero(equal == ambiguous[0])
        names = class_list([source.classes[number] for number in np.unique(source.label[first_rows])])
        remarks.append(
            f"{len(ambiguous):,} pictures are there under more than one class (the first: {names}); mend the labels"
        )
    return remarks


def _groups(source: Source, pattern: str) -> list[str]:
    """Return each row's group, which the pattern captures from its path. Raises InputError for a path without one."""
    where = f"{PARAMS_FILE}: data.group_pattern is {pattern}"
    if source.group is not None:
        raise InputError(f"{where}; {source.name} has its groups already, by its own layout, so set it to null")
    if source.path is None:
        raise InputError(f"{where}; the images of {source.name} have no paths, so set it to null")
    groups = []
    for row, path in enumerate(source.path):
        match = None if path is None else re.search(pattern, path)
        if (match is None or match[1] is None) and not source.heldout[row]:
            raise InputError(f"{where}; it finds no group in the path {path} of {source.name}; mend the pattern")
        groups.append(match[1] if match and match[1] is not None else "")
    return groups


def _remarks(
    source: Source,
    sizes: dict[str, int],
    carved: dict[str, int],
    rows: dict[str, np.ndarray],
    count: dict[str, np.ndarray],
) -> list[str]:
    remarks = []
    heldout = int(source.heldout.sum())
    pools = {"training": (len(source.label) - heldout, list(carved)), "test": (heldout, ["heldout"])}
    for pool, (images, names) in pools.items():
        total = sum(sizes[name] for name in names)
        if images and images < total:
            shrunk = ", ".join(f"{name} {len(rows[name])} of {sizes[name]}" for name in names)
            remarks.append(f"{source.name} has {images} {pool} images, not the {total} asked for; shrunk to {shrunk}")
    for name in SPLITS:
        if sizes[name] and not len(rows[name]):
            remarks.append(f"data.{name} is {sizes[name]}, but the split is empty: too few images, or groups, for it")
    for name in ("test", "heldout"):
        absent = [class_name for class_name, images in zip(source.classes, count[name], strict=True) if not images]
        if len(rows[name]) and absent:
            remarks.append(f"{source.name}: no image of {class_list(absent)} in split {name}")
    return remarks


def class_list(names: list[str]) -> str:
    """List the first few classes, after the word `class` or `classes`."""
    return f"class{'es' if len(names) > 1 else ''} {some(names)}"
