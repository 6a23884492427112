"""Draws, intervals, differences and scores that the report's numbers are made of."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring import statistics
from sparring.params.names import CLEAN

DIFFERENCE = ("difference", "difference_low", "difference_high")


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), max_size=120),
    attacks=st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=7, unique=True),
    percent=st.integers(0, 100),
    seed=st.integers(0, 2**32),
)
def test_mixture_is_even_overall_and_within_classes(
    labels: list[int], attacks: list[str], percent: int, seed: int
) -> None:
    label = np.array(labels, np.int64)
    index = np.arange(len(label)) * 3 + 5
    draw = statistics.draw_mixture(index, label, attacks, percent / 100, seed, "test")
    assert sorted(draw["index"]) == list(index)
    attacks_of_images = draw.set_index("index")["attack"].loc[index].to_numpy()
    for group in [np.ones(len(label), bool), *(label == value for value in range(5))]:
        counts = Counter(attacks_of_images[group])
        attacked = sum(counts[name] for name in attacks)
        assert attacked + counts[CLEAN] == group.sum()
        assert abs(100 * attacked - percent * group.sum()) < 100  # the exact share, rounded up or down
        assert max(counts[name] for name in attacks) - min(counts[name] for name in attacks) <= 1
    order = np.random.default_rng(0).permutation(len(label))
    again = statistics.draw_mixture(index[order], label[order], attacks[::-1], percent / 100, seed, "test")
    pd.testing.assert_frame_equal(again, draw)


def test_mixture_differs_by_seed_and_split() -> None:
    index, label = np.arange(100), np.arange(100) % 10
    draws = [
        tuple(
            statistics.draw_mixture(index, label, ["a", "b"], 0.5, seed, split).set_index("index").loc[index, "attack"]
        )
        for seed, split in ((0, "test"), (1, "test"), (0, "heldout"))
    ]
    assert len(set(draws)) == 3


@settings(deadline=None)
@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_agrees_with_its_formula(n: int, share: float) -> None:
    successes = round(n * share)
    low, high = statistics.wilson(successes, n)
    z, rate = 1.959963984540054, successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    assert low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert high == pytest.approx(min(centre + half, 1), abs=1e-9)
    assert 0 <= low <= rate <= high <= 1


def test_wilson_of_nothing() -> None:
    assert np.isnan(statistics.wilson(0, 0)).all()


def test_paired_difference_agrees_with_bonett_and_price() -> None:
    ours = np.repeat([1, 1, 0, 0], [40, 15, 5, 30]).astype(bool)
    theirs = np.repeat([1, 0, 1, 0], [40, 15, 5, 30]).astype(bool)
    rows = pd.concat(
        pd.DataFrame({"split": "test", "structure": name, "seed": 0, "index": range(90), "correct": correct})
        for name, correct in (("ours", ours), ("theirs", theirs))
    )
    compared = statistics.comparisons(rows, ["ours", "theirs", "absent"], ["split"])
    difference, low, high = compared.loc[("test", "ours", "theirs"), list(DIFFERENCE)]
    gain, loss = 16 / 92, 6 / 92
    half = 1.959963984540054 * np.sqrt((gain + loss - (gain - loss) ** 2) / 92)
    assert difference == pytest.approx(10 / 90)
    assert (low, high) == pytest.approx((gain - loss - half, gain - loss + half))
    assert compared.loc[("test", "ours", "absent"), list(DIFFERENCE)].isna().all()


def compared(**right: list[int]) -> pd.DataFrame:
    """Compare structures with each other, and with one without predictions, on the same images.

    right: of a structure, the number of its two trainings that are right, by image.
    """
    frames = [
        pd.DataFrame({"structure": name, "index": range(len(counts)), "seed": seed, "correct": np.array(counts) > seed})
        for name, counts in right.items()
        for seed in (0, 1)
    ]
    rows = pd.concat(frames, ignore_index=True).assign(split="test")
    return statistics.comparisons(rows, [*right, "absent"], ["split"]).loc["test"]


def test_mcnemar_has_known_values() -> None:
    a = [2] * 10 + [0] * 2 + [2] * 30
    rows = compared(a=a, b=[0] * 10 + [2] * 2 + [2] * 30, same=a)[["more", "less", "p"]]
    more, less, p = rows.loc[("a", "b")]
    assert (more, less) == (10, 2)
    assert p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert rows.loc[("b", "a")].tolist() == [2, 10, p]
    assert rows.loc[("a", "same")].tolist() == [0, 0, 1.0]
    assert np.isnan(rows.loc[("a", "absent"), "p"])


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_mcnemar_counts_an_image_for_the_one_with_more_right_trainings(counts: list[tuple[int, int]]) -> None:
    rows = compared(a=[count for count, _ in counts], b=[count for _, count in counts])
    more, less = rows.loc[("a", "b"), ["more", "less"]].astype(int)
    p = rows.loc[("a", "b"), "p"]
    assert more == sum(first > second for first, second in counts)
    assert less == sum(first < second for first, second in counts)
    n = more + less
    assert p == pytest.approx(min(1, 2 * sum(math.comb(n, k) for k in range(min(more, less) + 1)) / 2**n))
    assert rows.loc[("b", "a"), ["more", "less", "p"]].tolist() == [less, more, p]
    difference, low, high = rows.loc[("a", "b"), list(DIFFERENCE)]
    assert difference == pytest.approx(np.mean([first - second for first, second in counts]) / 2)
    assert rows.loc[("b", "a"), list(DIFFERENCE)].tolist() == pytest.approx([-difference, -high, -low])


def test_detector_metrics() -> None:
    score = np.array([0.1, 0.4, 0.6, 0.9])
    perfect = statistics.detector_metrics(np.array([False, False, True, True]), score)
    assert perfect == {"accuracy": 1.0, "majority": 0.5, "auroc": 1.0, "tpr_at_fpr05": 1.0}
    mixed = statistics.detector_metrics(np.array([False, True, False, True]), score)
    assert mixed == {"accuracy": 0.5, "majority": 0.5, "auroc": 0.75, "tpr_at_fpr05": 0.5}
    one_class = statistics.detector_metrics(np.zeros(4, bool), score)
    assert one_class == {"accuracy": 0.5, "majority": 1.0, "auroc": None, "tpr_at_fpr05": None}
    assert set(statistics.detector_metrics(np.zeros(0, bool), np.zeros(0)).values()) == {None}


def test_unchanged_images_count_as_clean_for_the_detector() -> None:
    mixture = pd.DataFrame({"split": "test", "attack": ["a", "a", CLEAN], "index": [7, 8, 9]})
    stored = pd.DataFrame({"split": "test", "attack": "a", "index": [9, 8, 7], "linf": [0.1, 0.0, 0.1]})
    assert list(statistics.detector_rows(mixture, stored)["adversarial"]) == [True, False, False]
