"""Images are carved into splits by class and by group."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.data import splits
from sparring.params.names import SPLITS

pools = st.lists(st.integers(0, 6), min_size=1, max_size=300).map(np.array)
wishes = st.fixed_dictionaries({name: st.integers(int(name == "train"), 120) for name in SPLITS})


@settings(deadline=None, max_examples=60, derandomize=True)
@given(pools, wishes, st.integers(0, 3))
def test_carving(label: np.ndarray, wish: dict[str, int], seed: int) -> None:
    parts = splits.carve(label, wish, seed)
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows) == min(sum(wish.values()), len(label))
    assert all((np.diff(part) > 0).all() for part in parts.values())
    scale = min(1.0, len(label) / sum(wish.values()))
    count = np.bincount(label)
    for name, part in parts.items():
        assert len(part) <= wish[name]
        assert abs(len(part) - wish[name] * scale) < 1
        share = np.bincount(label[part], minlength=len(count)) - count * len(part) / len(label)
        moved = len(count)  # at most this many places went to classes that had none in train
        assert np.abs(share).max() <= 2 + moved
    if len(parts["train"]) >= np.count_nonzero(count):
        assert set(label[parts["train"]]) == set(label)
    again = splits.carve(label, wish, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_classes_keep_their_shares() -> None:
    label = np.repeat(np.arange(5), [400, 300, 200, 90, 10])
    parts = splits.carve(label, {"train": 500, "validation": 50, "test": 200, "heldout": 100}, 0)
    for part in parts.values():
        share = np.bincount(label[part], minlength=5)
        assert np.abs(share - np.bincount(label) * len(part) / 1000).max() < 2


@settings(deadline=None, max_examples=60, derandomize=True)
@given(pools, wishes, st.integers(1, 8), st.integers(0, 3), st.booleans())
def test_groups_stay_together(label: np.ndarray, wish: dict[str, int], largest: int, seed: int, mixed: bool) -> None:
    label = label if mixed else np.sort(label)
    groups = [f"{0 if mixed else label[row]}/{row // largest}" for row in range(len(label))]
    parts = splits.carve(label, wish, seed, groups)
    owners: dict[str, set[str]] = {}
    for name, part in parts.items():
        assert len(part) <= wish[name]
        for row in part:
            owners.setdefault(groups[row], set()).add(name)
    assert all(len(owner) == 1 for owner in owners.values())
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows)
    if wish["train"] >= len(set(label)):
        assert set(label[parts["train"]]) == set(label)
    again = splits.carve(label, wish, seed, groups)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_another_seed_splits_otherwise() -> None:
    label = np.arange(200) % 4
    wish = {"train": 50, "test": 50}
    first, second = (splits.carve(label, wish, seed)["test"] for seed in (0, 1))
    assert not np.array_equal(first, second)
