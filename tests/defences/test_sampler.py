"""Tests the draws: their expectations, their bounds, and what they may depend on."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparring.defences import sampler
from sparring.device import rng
from sparring.params.structures import Sampler

NAMES = ["gaussian", "fgsm", "bim", "deepfool", "cw", "nst"]


def sampling(
    share: float = 0.5, within: float = 0.0, redraw: str = "epoch", weights: dict[str, float] | None = None
) -> Sampler:
    return Sampler.model_validate({"adv_ratio": share, "range": within, "redraw": redraw, "weights": weights or {}})


def draw(
    settings: Sampler,
    attacks: list[str] = NAMES,
    *,
    epoch: int = 0,
    count: int = 1000,
    fixed: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    visits: np.ndarray | None = None,
) -> np.ndarray:
    visits = rng(seed, "order", epoch).permutation(count) if visits is None else visits
    method = sampler.draw_fixed if fixed else sampler.draw
    return method(settings, attacks, seed=seed, epoch=epoch, visits=visits, batch_size=batch_size)


@st.composite
def samplings(draws: st.DrawFn) -> Sampler:
    share = draws(st.floats(0, 1))
    within = draws(st.floats(0, 1)) * min(share, 1 - share)
    weights = draws(st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.3, 1.0, 2.0, 7.0])))
    assume(any(weights.get(name, 1) for name in NAMES))
    return sampling(share, within, draws(st.sampled_from(["epoch", "batch"])), weights)


many = settings(deadline=None, max_examples=60, derandomize=True)
few = settings(deadline=None, max_examples=15, derandomize=True)


@many
@given(samplings())
def test_weights_are_relative_and_1_unless_given(sampler_settings: Sampler) -> None:
    weights = sampler.weights(sampler_settings, NAMES)
    given_weights = [sampler_settings.weights.get(name, 1.0) for name in NAMES]
    np.testing.assert_allclose(weights * sum(given_weights), given_weights)
    assert weights.sum() == pytest.approx(1)


@many
@given(samplings(), st.integers(0, 1000))
def test_a_dynamic_draw_stays_in_its_range(sampler_settings: Sampler, epoch: int) -> None:
    base = sampler.weights(sampler_settings, NAMES)
    share, weights = sampler.probabilities(sampler_settings, base, rng(0, "test", epoch))
    assert (
        sampler_settings.adv_ratio - sampler_settings.range - 1e-9
        <= share
        <= sampler_settings.adv_ratio + sampler_settings.range + 1e-9
    )
    assert 0 <= share <= 1
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= base * (1 - sampler_settings.range) - 1e-12).all()
    assert (weights <= base * (1 + sampler_settings.range) + 1e-12).all()
    assert (weights[base == 0] == 0).all()
    if sampler_settings.range == 0:
        assert share == sampler_settings.adv_ratio
        np.testing.assert_array_equal(weights, base)


def test_dynamic_draws_keep_their_expectation_and_use_their_range() -> None:
    sampler_settings = sampling(0.5, 0.4, weights={"fgsm": 3, "cw": 0})
    base = sampler.weights(sampler_settings, NAMES)
    draws = [sampler.probabilities(sampler_settings, base, rng(0, "test", number)) for number in range(4000)]
    share, weights = np.array([share for share, _ in draws]), np.array([weights for _, weights in draws])
    for values, expected in ((share, 0.5), *zip(weights.T, base, strict=True)):
        assert abs(values.mean() - expected) <= 4 * values.std() / np.sqrt(len(values)) + 1e-12
    # Uniform in p ± r: its ends are reached, and its standard deviation is that of a uniform variable.
    assert share.min() < 0.11 and share.max() > 0.89
    assert share.std() == pytest.approx(0.8 / np.sqrt(12), rel=0.05)
    assert (weights[:, base > 0].std(0) > 0.05 * base[base > 0]).all()


@few
@given(samplings(), st.integers(0, 5), st.booleans())
def test_share_and_weights_over_epochs(sampler_settings: Sampler, seed: int, fixed: bool) -> None:
    epochs, count = 60, 400
    versions = np.stack(
        [draw(sampler_settings, epoch=epoch, count=count, seed=seed, fixed=fixed) for epoch in range(epochs)]
    )
    adversarial = versions > 0
    # A share varies by the draw of each image and, from epoch to epoch, by the draw of the share itself.
    spread = np.sqrt(0.25 / versions.size + sampler_settings.range**2 / 3 / epochs)
    assert abs(adversarial.mean() - sampler_settings.adv_ratio) <= 5 * spread
    if adversarial.sum() > 200:
        weights = np.bincount(versions[adversarial], minlength=len(NAMES) + 1)[1:] / adversarial.sum()
        independent = count if fixed else adversarial.sum()
        wrong = np.abs(weights - sampler.weights(sampler_settings, NAMES))
        assert (wrong <= 5 * (np.sqrt(0.25 / independent) + sampler_settings.range / np.sqrt(epochs) / 2)).all()


@many
@given(samplings(), st.integers(0, 100), st.booleans())
def test_weight_0_is_never_drawn(sampler_settings: Sampler, epoch: int, fixed: bool) -> None:
    versions = draw(sampler_settings, epoch=epoch, count=3000, fixed=fixed)
    never = [number for number, name in enumerate(NAMES, 1) if sampler_settings.weights.get(name, 1) == 0]
    assert not np.isin(versions, never).any()
    assert ((versions >= 0) & (versions <= len(NAMES))).all()


@pytest.mark.parametrize(("share", "versions"), [(0.0, {0}), (1.0, {1, 2, 3, 4, 5, 6})])
def test_shares_of_none_and_all(share: float, versions: set[int]) -> None:
    assert set(draw(sampling(share)).tolist()) == versions


def test_an_image_meets_many_attacks() -> None:
    versions = np.stack([draw(sampling(0.5, 0.1), epoch=epoch, count=60) for epoch in range(160)])
    assert all(set(image.tolist()) == set(range(7)) for image in versions.T)


def test_fixed_is_one_attack_an_image() -> None:
    sampler_settings = sampling(0.5, 0.1)
    versions = np.stack([draw(sampler_settings, epoch=epoch, count=200, fixed=True) for epoch in range(40)])
    for image in versions.T:
        assert 0 in image and len(set(image.tolist())) == 2
    assert set(versions.max(0).tolist()) == {1, 2, 3, 4, 5, 6}
    assert not np.array_equal(versions[0] > 0, versions[1] > 0)


@many
@given(samplings(), st.integers(0, 50), st.booleans())
def test_an_epoch_can_be_drawn_on_its_own(sampler_settings: Sampler, epoch: int, fixed: bool) -> None:
    alone = draw(sampler_settings, epoch=epoch, count=300, fixed=fixed)
    np.random.seed(epoch)
    for other in (epoch + 1, epoch // 2, 99):
        draw(sampler_settings, epoch=other, count=200, fixed=fixed)
    np.testing.assert_array_equal(draw(sampler_settings, epoch=epoch, count=300, fixed=fixed), alone)


@many
@given(samplings(), st.integers(1, 500))
def test_redrawn_by_epoch_neither_batches_nor_order_matter(sampler_settings: Sampler, batch_size: int) -> None:
    sampler_settings = sampler_settings.model_copy(update={"redraw": "epoch"})
    versions = draw(sampler_settings, count=300)
    np.testing.assert_array_equal(draw(sampler_settings, count=300, batch_size=batch_size), versions)
    np.testing.assert_array_equal(draw(sampler_settings, visits=np.arange(300)), versions)


def test_epochs_and_seeds_differ() -> None:
    first = draw(sampling())
    assert not np.array_equal(draw(sampling(), epoch=1), first)
    assert not np.array_equal(draw(sampling(), seed=1), first)


def test_redrawn_by_epoch_the_share_varies_from_epoch_to_epoch_only() -> None:
    shares = np.array([(draw(sampling(0.5, 0.4), epoch=epoch, count=4000) > 0).mean() for epoch in range(40)])
    assert shares.std() > 0.15 and shares.min() < 0.25 and shares.max() > 0.75
    by_batch = [
        (draw(sampling(0.5, 0.4, "batch"), epoch=epoch, count=4000, batch_size=40) > 0).mean() for epoch in range(40)
    ]
    assert np.std(by_batch) < 0.06


def test_redrawn_by_batch_the_share_and_weights_vary_from_batch_to_batch() -> None:
    visits = rng(1, "visits").permutation(20_000)
    versions = draw(sampling(0.5, 0.4, "batch"), NAMES[:2], visits=visits, batch_size=1000)
    batches = versions[visits].reshape(20, 1000)
    shares = (batches > 0).mean(1)
    # Rows of one batch, in the order of the visits, share a probability: far more spread than chance alone (0.016).
    assert shares.std() > 0.12
    assert versions.reshape(20, 1000).astype(bool).mean(1).std() < 0.05
    first = (batches == 1).sum(1) / (batches > 0).sum(1)
    assert first.std() > 0.04


def test_the_last_batch_may_be_short() -> None:
    versions = draw(sampling(1.0, 0.0, "batch"), count=130, batch_size=64)
    assert (versions > 0).all() and len(versions) == 130
