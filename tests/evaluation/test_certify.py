"""Certificates: against closed forms and enumeration, from votes to rows, and the command with its table and curve."""

import itertools
import math
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, tiny_values
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML
from scipy import stats
from scipy.special import gammaln
from torch import Tensor, nn
from typer.testing import CliRunner

from sparring import __main__ as command_line
from sparring import store
from sparring.data.transforms import RandomTransform
from sparring.defences.train import train
from sparring.evaluation import certify
from sparring.evaluation.certify import ABSTAINED, Ablation, Sampling, Smoothing
from sparring.layout import HERE
from sparring.models import model_files
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.errors import InputError, validated
from sparring.params.transforms import Mask, Noise
from sparring.report import certified

USED: dict[str, Any] = {"training": True, "draws": 0}
MEAN = (0.2, 0.4, 0.6)
ALONE = {"opponents": "none", "evolving": "none", "detector": "none"}
STRUCTURES = {"masked": ALONE | {"transform": "mask"}, "noisy": ALONE | {"transform": "noise"}}
FEW = Sampling(images=12, samples=60, selection=20, alpha=0.01)


def noise(std: float) -> RandomTransform:
    return RandomTransform("noise", Noise(std=std, **USED), MEAN)


def mask(share: float, fill: str = "zero") -> RandomTransform:
    return RandomTransform("mask", Mask(share=share, unit="pixel", patch=1, fill=fill, **USED), MEAN)


# Clopper and Pearson


@settings(deadline=None, max_examples=100)
@given(samples=st.integers(1, 500), share=st.floats(0, 1), alpha=st.floats(1e-6, 0.5))
def test_the_bound_is_that_of_scipys_binomial_test(samples: int, share: float, alpha: float) -> None:
    votes = round(share * samples)
    (bound,) = certify.lower_bounds(np.array([votes]), samples, alpha)
    test = stats.binomtest(votes, samples, alternative="greater")
    assert bound == pytest.approx(test.proportion_ci(1 - alpha, "exact").low, abs=1e-9)
    if votes:  # and where the share is the bound, so many votes or more have exactly the probability alpha
        assert stats.binom.sf(votes - 1, samples, bound) == pytest.approx(alpha, rel=1e-6)
    (highest,) = certify.lower_bounds(np.array([samples]), samples, alpha)
    assert highest == pytest.approx(alpha ** (1 / samples)) and bound <= highest


@pytest.mark.parametrize("samples", [1, 7, 40])
def test_whatever_the_share_is_the_bound_lies_above_it_in_at_most_alpha_of_all_trials(samples: int) -> None:
    alpha, votes = 0.05, np.arange(samples + 1)
    bounds = certify.lower_bounds(votes, samples, alpha)
    for share in np.linspace(0.001, 0.999, 500):
        assert stats.binom.pmf(votes, samples, share)[bounds > share].sum() <= alpha + 1e-12
    drawn = np.random.default_rng(0).binomial(samples, 0.7, 20_000)
    assert (certify.lower_bounds(drawn, samples, alpha) > 0.7).mean() < alpha + 0.007


# Noise


class Linear(nn.Module):
    """Two classes: logits (0, w·x + b)."""

    def __init__(self, weight: Tensor, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(weight), offset

    def forward(self, images: Tensor) -> Tensor:
        margin = (images * self.weight).sum((1, 2, 3)) + self.offset
        return torch.stack([torch.zeros_like(margin), margin], 1)


def margins(net: Linear, images: store.Images) -> np.ndarray:
    """The signed distance (w·x + b) / ‖w‖ of each image from the boundary."""
    pixels = torch.from_numpy(images.image).permute(0, 3, 1, 2).double() / 255
    weight = net.weight.detach().double()
    return (((pixels * weight).sum((1, 2, 3)) + net.offset) / weight.norm()).numpy()


def test_of_a_linear_net_the_radius_is_the_distance_from_its_boundary() -> None:
    generator = torch.Generator().manual_seed(0)
    net = Linear(torch.randn(3, 6, 6, generator=generator), 0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), np.uint8)
    images = store.Images(np.arange(40) + 300, np.zeros(40, np.int64), pixels)
    net.offset = -float(net.weight.detach().norm() * np.median(margins(net, images)))
    exact, std, samples, alpha = margins(net, images), 0.25, 4000, 1e-4
    votes = certify.count_votes(net, noise(std), images, 3, "samples", samples, 500)
    assert (votes.sum(1) == samples).all()
    # A vote is that of a point on a line through the boundary, so Φ(distance / std) of them are for class 1.
    shares = stats.norm.cdf(exact / std)
    p = [stats.binomtest(int(one), samples, share).pvalue for one, share in zip(votes[:, 1], shares, strict=True)]
    assert min(p) > 1e-5
    prediction = votes.argmax(1)
    bounds = certify.lower_bounds(votes.max(1), samples, alpha)
    decided = bounds > 0.5
    assert decided.sum() > 25 and (~decided).any()  # those beside the boundary are left open
    assert (prediction[decided] == (exact > 0)[decided]).all()
    radii = np.array([Smoothing(std).radius(bound) for bound in bounds])
    assert (radii[decided] <= np.abs(exact[decided])).all()
    reach = Smoothing(std).radius(alpha ** (1 / samples))
    near = decided & (np.abs(exact) < 0.7 * reach)
    assert near.sum() > 15 and (radii[near] > np.abs(exact[near]) - 0.05).all()
    assert radii.max() <= reach == pytest.approx(std * stats.norm.ppf(alpha ** (1 / samples)))


# Masks


def hidden_share(positions: int, visible: int, changed: int) -> Fraction:
    """The share of masks that hide the first so many positions, by enumeration."""
    masks = list(itertools.combinations(range(positions), visible))
    return Fraction(sum(min(visible_positions) >= changed for visible_positions in masks), len(masks))


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 9), st.data())
def test_the_radius_is_the_largest_that_enumeration_certifies(positions: int, data: st.DataObject) -> None:
    visible = data.draw(st.integers(1, positions))
    # Bounds on which the inequality is an equality, too, as far as a float can have them.
    ties = [float(Fraction(3, 2) - hidden_share(positions, visible, r)) for r in range(1, positions + 1)]
    bound = data.draw(st.floats(0.5, 1, exclude_min=True) | st.sampled_from([tie for tie in ties if tie <= 1] or [1.0]))
    if bound <= 0.5:
        return
    certain = [
        r for r in range(positions + 1) if Fraction(bound) - (1 - hidden_share(positions, visible, r)) > Fraction(1, 2)
    ]
    radius = Ablation(positions, visible).radius(bound)
    assert radius == max(certain) and certain == list(range(len(certain)))


@pytest.mark.parametrize(("positions", "visible", "values", "seed"), [(6, 1, 3, 0), (7, 1, 2, 1), (8, 1, 2, 2)])
def test_no_change_within_the_radius_turns_the_vote(positions: int, visible: int, values: int, seed: int) -> None:
    """Every input, every mask, every other input within the radius, of classifiers that are nothing but random."""
    generator = np.random.default_rng(seed)
    masks = list(itertools.combinations(range(positions), visible))
    inputs = np.array(list(itertools.product(range(values), repeat=positions)))
    certified_somewhere, turned_beyond = 0, 0
    for likely in (0.6, 0.8, 0.9):
        votes_by_mask = {
            (mask_positions, seen): int(generator.random() < likely)
            for mask_positions in masks
            for seen in itertools.product(range(values), repeat=visible)
        }
        votes = np.array([sum(votes_by_mask[m, tuple(x[list(m)].tolist())] for m in masks) for x in inputs])
        distance = (inputs[:, None] != inputs).sum(2)
        for place, one in enumerate(votes.tolist()):
            most = max(one, len(masks) - one)
            if 2 * most == len(masks):
                continue
            radius = Ablation(positions, visible).radius(Fraction(most, len(masks)))
            lead = (2 * votes - len(masks)) * np.sign(2 * one - len(masks))  # of the class of the input at `place`
            assert (lead[distance[place] <= radius] > 0).all()
            certified_somewhere += radius > 0
            turned_beyond += (lead[distance[place] == radius + 1] <= 0).any()
    assert certified_somewhere and turned_beyond


@pytest.mark.parametrize(("positions", "visible"), [(6, 2), (7, 3), (8, 2)])
def test_one_position_more_turns_the_vote_of_the_worst_classifier(positions: int, visible: int) -> None:
    masks = list(itertools.combinations(range(positions), visible))
    for votes in range(len(masks) // 2 + 1, len(masks) + 1):
        radius = int(Ablation(positions, visible).radius(Fraction(votes, len(masks))))
        # It lets go of the class wherever it sees one of the first positions changed, and has it there first of all.
        for changed in (radius, radius + 1):
            by_sight = sorted(masks, key=lambda mask_positions: min(mask_positions) >= changed)
            left = sum(min(mask_positions) >= changed for mask_positions in by_sight[:votes])
            assert (left > len(masks) / 2) == (changed == radius)


@pytest.mark.parametrize(("positions", "share"), [(1024, 0.95), (1024, 0.99), (224 * 224, 0.95), (512 * 512, 0.999)])
def test_large_images_are_counted_without_overflow(positions: int, share: float) -> None:
    visible = positions - round(share * positions)
    proof = Ablation(positions, visible)
    changed = np.arange(positions - visible)
    hidden = np.exp(
        gammaln(positions - changed + 1)
        - gammaln(positions - changed - visible + 1)
        - gammaln(positions + 1)
        + gammaln(positions - visible + 1)
    )
    for bound in (0.501, 0.7, 0.9, 0.999, 1.0):
        assert proof.radius(bound) == changed[bound - (1 - hidden) > 0.5].max()


class Reading(nn.Module):
    """Of an image of so many positions: class 1 where what it sees has a sum above a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images: Tensor) -> Tensor:
        excess = images.sum((1, 2, 3)) - self.threshold
        return torch.stack([-excess, excess], 1)


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_votes_under_masks_come_in_the_shares_of_enumeration(fill: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 3, 3, 3), np.uint8)
    images = store.Images(np.arange(4), np.zeros(4, np.int64), pixels)
    transform, samples, hidden = mask(7 / 9, fill), 3000, np.zeros(3) if fill == "zero" else np.array(MEAN)
    threshold = 7 * hidden.sum() + 3.0
    votes = certify.count_votes(Reading(threshold), transform, images, 0, "samples", samples, 64)
    for one, image in zip(votes, pixels.reshape(4, 9, 3) / 255, strict=True):
        masks = list(itertools.combinations(range(9), 2))
        share = np.mean([image[list(visible)].sum() + 7 * hidden.sum() > threshold for visible in masks])
        assert abs(one[1] - samples * share) <= 5 * math.sqrt(samples * max(share * (1 - share), 1e-9))
    assert 0 < votes[:, 1].mean() < samples


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.floats(0.01, 1, exclude_max=True), st.integers(2, 20), st.sampled_from(["zero", "mean"]), st.integers(0, 9))
def test_as_many_positions_stay_visible_as_the_certificate_says(share: float, size: int, fill: str, seed: int) -> None:
    visible = certify._visible_positions(mask(share), size)
    draw = mask(share, fill).draw((3, size, size), np.arange(5), seed, "certify", "samples", seed)
    seen = (draw(torch.ones(5, 3, size, size)) != draw(torch.zeros(5, 3, size, size))).any(1).flatten(1)
    assert (seen.sum(1) == visible).all()


# Rows


@pytest.fixture
def untrained(project: Path, net: ResNet, tiny: Callable[..., Params]) -> Callable[..., Params]:
    """Parameters whose two structures are the pretrained net: untrained(store={"batch_size": 7})."""

    def make(**changes: Any) -> Params:
        params = tiny(**{"mask": {"share": 0.3}, "noise": {"std": 0.1}, "structures": STRUCTURES} | changes)
        for name, seed in itertools.product(STRUCTURES, params.seeds):
            model_files.save_model(net, HERE.model(name, seed), {"mean_colour": list(MEAN)})
        return params

    return make


def rows_of(params: Params, structure: str, sampling: Sampling = FEW) -> pd.DataFrame:
    certify.certify(params, structure, sampling)
    return pd.read_parquet(HERE.certified(structure))


def test_rows_say_what_was_asked_and_answered(untrained: Callable[..., Params]) -> None:
    params = untrained(seeds=[0, 3])
    rows = rows_of(params, "noisy")
    assert list(rows) == ["index", "split", "seed", "label", "prediction", "votes", "samples", "bound", "radius"]
    assert rows.groupby("seed")["label"].value_counts().between(1, 2).all() and len(rows) == 24
    first, second = (part.drop(columns="seed").reset_index(drop=True) for _, part in rows.groupby("seed"))
    pd.testing.assert_frame_equal(first, second)  # here the two are one net
    np.testing.assert_allclose(rows["bound"], certify.lower_bounds(rows["votes"].to_numpy(), 60, 0.01))
    sure = rows["prediction"] != ABSTAINED
    assert sure.equals(rows["bound"] > 0.5) and rows["radius"].notna().equals(sure)
    np.testing.assert_allclose(rows["radius"][sure], 0.1 * stats.norm.ppf(rows["bound"][sure]))
    assert (rows["label"] == rows["prediction"]).mean() > 0.7
    many = rows_of(params, "noisy", FEW.model_copy(update={"images": 1000, "samples": 20, "selection": 1}))
    assert len(many) == 240 and (many["prediction"] == ABSTAINED).any()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_images_rows_do_not_depend_on_the_others(untrained: Callable[..., Params], structure: str) -> None:
    whole = rows_of(untrained(), structure)
    for size in (1, 5, 25, 100):
        pd.testing.assert_frame_equal(rows_of(untrained(store={"batch_size": size}), structure), whole)
    fewer = rows_of(untrained(), structure, FEW.model_copy(update={"images": 5}))
    pd.testing.assert_frame_equal(fewer, whole[whole["index"].isin(fewer["index"])].reset_index(drop=True))
    assert not rows_of(untrained(seed=1), structure)["index"].equals(whole["index"])


def test_the_class_is_chosen_by_other_draws_than_those_counted(
    untrained: Callable[..., Params], digits: store.Images, net: ResNet
) -> None:
    rows = rows_of(untrained(noise={"std": 0.5}), "noisy", FEW.model_copy(update={"selection": 7}))
    images = digits[np.isin(digits.index, rows["index"])]
    selected, counted, others = (
        certify.count_votes(net, noise(0.5), images, 0, *what, 50)
        for what in (("selection", 7), ("samples", 60), ("selection", 60))
    )
    assert rows["votes"].tolist() == counted[np.arange(12), selected.argmax(1)].tolist()
    assert (counted != others).any(1).sum() > 6


def test_an_interrupted_run_leaves_the_rows_of_before(
    untrained: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls, count = rows_of(untrained(), "masked"), [], certify.count_votes

    def killed(*arguments: Any) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return count(*arguments)

    monkeypatch.setattr(certify, "count_votes", killed)
    with pytest.raises(KeyboardInterrupt):
        certify.certify(untrained(seeds=[5, 6]), "masked", FEW)
    pd.testing.assert_frame_equal(pd.read_parquet(HERE.certified("masked")), before)
    assert [file.name for file in HERE.certified("masked").parent.iterdir()] == ["masked.parquet"]


# What is refused


@pytest.mark.parametrize(
    ("changes", "structure", "says"),
    [
        (
            {},
            "plain",
            "structures.plain.transform is none; only mask and noise certify anything; certify masked or noi",
        ),
        (
            {},
            "cut",
            "structures.cut.transform is cutout; only mask and noise certify anything; certify masked or noisy",
        ),
        ({}, "advv", "structures.advv is missing; there are baseline, plain, cut, masked, noisy"),
        ({"mask": {"share": 0.0}}, "masked", "structures.masked uses mask, whose share is 0 and hides none of 256 pos"),
        ({"mask": {"share": 0.001}}, "masked", "whose share is 0.001 and hides none of 256 positions; set it to 0.9"),
        ({"mask": {"unit": "patch"}}, "masked", "structures.masked uses mask, whose unit is patch; set it to pixel an"),
        ({"mask": {"unit": "channel"}}, "masked", "whose unit is channel; set it to pixel and run `dvc repro`"),
        ({"noise": {"std": 0.0}}, "noisy", "structures.noisy uses noise, whose std is 0; set it above 0 and run"),
    ],
)
def test_what_has_no_certificate_is_one_line(
    tiny: Callable[..., Params], changes: dict[str, Any], structure: str, says: str
) -> None:
    more = {"plain": ALONE | {"transform": "none"}, "cut": ALONE | {"transform": "cutout"}}
    with pytest.raises(InputError) as caught:
        certify.certify(tiny(structures=more | STRUCTURES, **changes), structure, FEW)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("params.yaml: structures.")


def test_a_net_that_is_missing_or_had_no_transform_is_one_line(
    project: Path, net: ResNet, tiny: Callable[..., Params]
) -> None:
    params = tiny(structures=STRUCTURES)
    with pytest.raises(InputError, match=r"^models/masked/0\.safetensors is missing; `dvc repro` makes it$"):
        certify.certify(params, "masked", FEW)
    model_files.save_model(net, HERE.model("masked", 0), {})
    with pytest.raises(InputError, match=r"^models/masked/0\.safetensors was trained without a transform; run `dvc"):
        certify.certify(params, "masked", FEW)
    test = HERE.clean / "test.parquet"
    store.write(test, [store.read(test)[:0]], store.read(test).metadata)
    with pytest.raises(InputError, match=r"^data/clean/test\.parquet holds no images to certify; set data\.test above"):
        certify.certify(params, "masked", FEW)
    assert not HERE.certified("masked").parent.exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("images", "0", "certify: images is 0; it should be greater than or equal to 1"),
        ("samples", "0", "certify: samples is 0; it should be greater than or equal to 1"),
        ("selection", "-1", "certify: selection is -1; it should be greater than or equal to 1"),
        ("alpha", "0", "certify: alpha is 0.0; it should be greater than 0"),
        ("alpha", "1", "certify: alpha is 1.0; it should be less than 1"),
        ("alpha", "nan", "certify: alpha is NaN; it should be less than 1"),
        (
            "samples",
            "9",
            "certify: samples is 9; with alpha 0.001 even votes that all agree decide nothing then; use 10",
        ),
    ],
)
def test_bad_numbers_are_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, says: str
) -> None:
    with pytest.raises(SystemExit, match="1"):
        command_line.main(["certify", "masked", f"--{option}", value])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {says}") and captured.err.count("\n") == 1


@given(st.floats(1e-12, 1, exclude_max=True))
def test_with_as_many_samples_as_the_line_says_votes_can_decide(alpha: float) -> None:
    def sampling(samples: int) -> Sampling:
        return validated(Sampling, {"images": 1, "samples": samples, "selection": 1, "alpha": alpha}, "certify")

    least = next(samples for samples in range(1, 60) if alpha ** (1 / samples) > 0.5 + 1e-9)
    assert sampling(least).highest_bound > 0.5
    if least > 1 and alpha ** (1 / (least - 1)) < 0.5 - 1e-9:
        with pytest.raises(InputError, match=f"use {least} or more$"):
            sampling(least - 1)


# Table and curve


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([20, 100]))
def test_certified_accuracy_is_the_share_right_with_that_radius_and_only_falls(seed: int, points: int) -> None:
    generator = np.random.default_rng(seed)
    proofs: dict[str, certify.Certificate] = {"masked": Ablation(256, 13), "noisy": Smoothing(0.25)}
    images, parts = int(generator.integers(1, 12)), []
    for name, seed_ in itertools.product(proofs, (0, 1)):
        radius = generator.integers(0, 14, images) if name == "masked" else generator.exponential(0.2, images)
        sure = generator.random(images) < 0.8
        rows = pd.DataFrame({"index": range(images), "structure": name, "seed": seed_})
        rows["radius"], rows["prediction"] = np.where(sure, radius, np.nan), np.where(sure, 1, ABSTAINED)
        parts.append(rows.assign(correct=sure & (generator.random(images) < 0.8)))
    rows = pd.concat(parts, ignore_index=True)
    tidy = certified.by_radius(rows, proofs, points)
    for name, line in tidy.groupby("structure"):
        own = rows[rows["structure"] == name]
        for radius, accuracy in zip(line["radius"], line["accuracy"], strict=True):
            right = sum(1 for row in own.itertuples() if row.correct and row.radius >= radius)
            assert accuracy == pytest.approx(right / (2 * images))
        assert line["radius"].iloc[0] == 0 and line["radius"].is_monotonic_increasing
        assert line["accuracy"].is_monotonic_decreasing and len(line) <= points + 2
        largest = own["radius"].max()
        assert not largest > 0 or line["radius"].iloc[-2] <= largest < line["radius"].iloc[-1]
    masked = tidy[tidy["structure"] == "masked"]
    assert (masked["radius"] == np.arange(len(masked))).all()  # every number of positions


def test_a_mask_that_can_certify_nothing_has_radius_zero_and_says_so(
    untrained: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = untrained()
    rows = rows_of(params, "masked")
    assert (rows["radius"].dropna() == 0).all() and rows["radius"].notna().any()
    certified.write(params, ["masked"], FEW)
    text = Path("reports/certified/certified.md").read_text()
    assert "The mask of masked leaves so many positions visible that no change of even one can be certified" in text
    assert pd.read_csv("reports/certified/certified.csv")["radius"].tolist() == [0]


def test_the_command_certifies_trained_structures(
    project: Path, tiny: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"mask": {"share": 0.9}, "noise": {"std": 0.25}, "structures": STRUCTURES}
    YAML().dump(tiny_values(**changes), Path("params.yaml"))
    for name in STRUCTURES:
        train(tiny(**changes), name)
    capsys.readouterr()
    numbers = ["--images", "30", "--samples", "100", "--selection", "20", "--alpha", "0.01"]
    with pytest.raises(SystemExit, match="0"):
        command_line.main(["certify", "noisy", "masked", "noisy", *numbers])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[-1] == "certified accuracy of noisy, masked: reports/certified/certified.md" and captured.err == ""
    assert [line.partition(" in ")[0] for line in lines[:-1]] == [
        f"certify@{name}: 30 images, each under 120 draws" for name in ("noisy", "masked")
    ]
    tidy = pd.read_csv("reports/certified/certified.csv")
    assert tidy["structure"].unique().tolist() == ["noisy", "masked"]
    for name, line in tidy.groupby("structure"):
        rows = pd.read_parquet(HERE.certified(str(name)))
        right = rows["label"] == rows["prediction"]
        assert line["accuracy"].iloc[0] == pytest.approx(right.mean(), abs=1e-5) and right.mean() > 0.2
        assert line["accuracy"].is_monotonic_decreasing and line["accuracy"].iloc[1] > 0
        assert rows["radius"].max() <= line["largest_possible"].iloc[0] + 1e-5
    text = Path("reports/certified/certified.md").read_text()
    assert "mask, 26 of 256 positions visible" in text and "noise, std 0.25" in text
    assert "30 test images" in text and "probability of 0.99 at least (alpha 0.01)" in text
    picture = Path("reports/certified/figures/certified.png")
    assert Image.open(picture).mode == "P" and Path("reports/certified/vector/certified.svg").stat().st_size > 5000
    files = {path: path.read_bytes() for path in Path("reports/certified").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="0"):
        command_line.main(["certify", "noisy", "masked", *numbers])
    assert files == {path: path.read_bytes() for path in Path("reports/certified").rglob("*") if path.is_file()}


def test_help_has_an_example_and_git_ignores_what_is_written() -> None:
    text = " ".join(CliRunner().invoke(command_line.app, ["certify", "--help"]).stdout.split())
    assert "For example: sparring certify masked noisy" in text
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is no clone: git ignores nothing here")
    written = [HERE.certified("masked"), HERE.timings / "certify-masked.json", HERE.reports / "certified/certified.md"]
    for path in written:
        done = subprocess.run(["git", "check-ignore", "-q", str(path)], cwd=REPOSITORY, check=False)
        assert done.returncode == 0, path
