"""Tests each attack on its own, and those of torchattacks by name."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from attacking import CPU, NST, changes, fooled, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparring import attacks
from sparring.models import classifier, model_files, networks, resnet
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.attacks import BUILT_IN, Attack
from sparring.params.errors import InputError
from sparring.store import Images


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.floats(0, 0.5), st.floats(0.001, 0.3), st.floats(0.001, 0.3), st.integers(1, 4))
def test_bim_stays_in_its_ball(eps: float, step: float, first_step: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    net = resnet.ResNet((1, 1, 1, 1), 4, 3).eval()
    images = torch.rand(6, 3, 8, 8, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)
    labels = torch.arange(6) % 3
    adversarial = attacks.find("bim")(net, images, labels, eps=eps, step=step, first_step=first_step, steps=steps)
    assert (adversarial - images).abs().max() <= eps + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert (adversarial - images).abs().max() > 0 or eps < 1e-6


def test_a_search_over_c_finds_what_one_c_does_not(net: ResNet, images: Tensor, labels: Tensor) -> None:
    arguments = {"c": 0.05, "kappa": 0.0, "steps": 30, "learning_rate": 0.02}
    single, searched = (attacks.find("cw")(net, images, labels, **arguments, search_steps=number) for number in (1, 6))
    right = net(images).argmax(1) == labels
    assert (
        fooled(net, images, labels, searched).sum()
        > 0.95 * right.sum()
        > 1.2 * fooled(net, images, labels, single).sum()
    )
    both = fooled(net, images, labels, single) & fooled(net, images, labels, searched)
    assert (changes(searched, images)[both] <= changes(single, images)[both] + 1e-6).all()


def test_gaussian_adds_clipped_noise(net: ResNet, images: Tensor, labels: Tensor) -> None:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = attacks.find("gaussian")(net, images, labels, std=0.1, noise=noise)
    inside = (noisy > 0) & (noisy < 1)
    torch.testing.assert_close((noisy - images)[inside], 0.1 * noise[inside], rtol=0, atol=1e-6)
    assert noisy.min() == 0 and noisy.max() == 1


def test_stored_noise_is_standard_normal(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    grey = Images(digits.index, digits.label, np.full_like(digits.image, 128))
    attacked = whole(*opponent({"method": "gaussian", "std": 0.1}), net, grey)
    levels = attacked.image.astype(float) - 128
    assert levels.mean() == pytest.approx(0, abs=0.5)
    assert levels.std() == pytest.approx(25.5, rel=0.02)
    assert not np.array_equal(attacked.image[0], attacked.image[1])


@pytest.mark.parametrize("style", ["maps", "gram"])
def test_nst_moves_an_image_towards_its_partner(net: ResNet, images: Tensor, labels: Tensor, style: str) -> None:
    frozen, partners = networks.frozen(net), images.roll(1, 0)
    adversarial = attacks.find("nst")(frozen, images, labels, **NST, style=style, partners=partners)

    def distance(batch: Tensor) -> Tensor:
        maps, partner_maps = frozen.maps(batch), frozen.maps(partners)
        first, goal = maps["layer1"].flatten(2), partner_maps["layer1"].flatten(2)
        if style == "gram":
            first, goal = (part @ part.mT / part.shape[2] for part in (first, goal))
        deep = (maps["layer4"] - partner_maps["layer4"]).square().flatten(1).mean(1)
        return deep + (first - goal).square().flatten(1).mean(1)

    before, after = distance(images), distance(adversarial)
    assert (after < before).float().mean() > 0.9
    assert adversarial.min() >= 0 and adversarial.max() <= 1 and changes(adversarial, images).min() > 0


@pytest.mark.parametrize("style", ["maps", "gram"])
def test_nst_of_a_batch_is_that_of_its_images(net: ResNet, images: Tensor, labels: Tensor, style: str) -> None:
    images, labels, partners = images[:12], labels[:12], images[12:24]
    run = attacks.find("nst")
    together = run(net, images, labels, **NST, style=style, partners=partners)
    rows = [slice(row, row + 1) for row in range(12)]
    alone = torch.cat([run(net, images[r], labels[r], **NST, style=style, partners=partners[r]) for r in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_partners_are_of_another_class(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pool holds, for every label, one plain grey of its own: so a partner's colour tells its label.
    pool = Images(np.arange(10), np.arange(10), np.full((10, 16, 16, 3), 20, np.uint8))
    pool.image[:] += np.arange(10, dtype=np.uint8)[:, None, None, None]
    partner_labels: list[int] = []

    def spy(model: ResNet, images: Tensor, labels: Tensor, *, steps: int, partners: Tensor, **rest: Any) -> Tensor:
        partner_labels.extend((partners[:, 0, 0, 0] * 255 - 20).round().int().tolist())
        return images

    monkeypatch.setitem(attacks.METHODS, "nst", spy)
    whole(*opponent({"method": "nst", **NST, "style": "maps"}), net, digits, pool)
    assert len(partner_labels) == len(digits)
    assert not any(partner == own for partner, own in zip(partner_labels, digits.label.tolist(), strict=True))
    assert len(set(partner_labels)) == 10


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "gaussian", "std": 0.1},
        {"method": "fgsm", "eps": 0.05},
        {"method": "deepfool", "steps": 4, "overshoot": 0.02},
        {"method": "cw", "c": 1.0, "kappa": 0.0, "steps": 8, "learning_rate": 0.05, "search_steps": 1},
        {"method": "nst", **NST, "style": "maps"},
    ],
    ids=lambda arguments: arguments["method"],
)
def test_neighbours_do_not_matter(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]], arguments: dict[str, Any]
) -> None:
    clean = digits[:100]
    # Unrounded, so that no level hides or makes a difference.
    exact = {"dtype": "float16", "faithful": False}
    together = whole(*opponent(arguments, store={"batch_size": 100, "shard_size": 100, **exact}), net, clean)
    for size in (1, 7):
        others = whole(*opponent(arguments, store={"batch_size": size, "shard_size": 3 * size, **exact}), net, clean)
        assert together.index.tolist() == others.index.tolist() == clean.index.tolist()
        assert (together.columns["prediction"] == others.columns["prediction"]).mean() >= 0.999
        # Kernels for batches of other sizes round otherwise, which may decide in which step an image gets through.
        apart = np.abs(together.columns["l2"] - others.columns["l2"])
        assert (apart < 1e-3).mean() >= 0.98 and apart.max() < 1e-2
    some = digits[[5, 17, 60]]
    few = whole(*opponent(arguments), net, some, clean)
    stored = whole(*opponent(arguments), net, clean)
    difference = np.abs(few.image.astype(int) - stored.image[[5, 17, 60]]).max((1, 2, 3))
    assert (difference <= 1).all()


def test_torchattacks_by_name(net: ResNet, images: Tensor, labels: Tensor) -> None:
    arguments = {"eps": 0.05, "alpha": 0.02, "steps": 3, "random_start": False}
    expected = torchattacks.PGD(net, **arguments)(images, labels)
    assert torch.equal(attacks.find("torchattacks.PGD")(net, images, labels, **arguments), expected)
    assert changes(expected, images).min() > 0


def test_pgd_is_stored_within_eps(net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]) -> None:
    params, attack = opponent({"method": "torchattacks.PGD", "eps": 0.05, "alpha": 0.02, "steps": 3})
    attacked = whole(params, attack, net, digits)
    change = np.abs(attacked.image.astype(int) - digits.image)
    assert change.max() == 12  # floor(255 × 0.05)
    right = classifier.predict(net, digits.image, 64, CPU).argmax(1) == digits.label
    assert (attacked.columns["prediction"][right] != digits.label[right]).mean() > 0.1
    again = whole(params, attack, net, digits)
    assert np.array_equal(again.image, attacked.image), "its random start is not a function of the seed"


def test_pgdl2_is_stored_within_its_ball(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    params, attack = opponent({"method": "torchattacks.PGDL2", "eps": 0.4, "alpha": 0.2, "steps": 3})
    attacked = whole(params, attack, net, digits)
    l2 = np.sqrt(np.square((attacked.image.astype(float) - digits.image) / 255).sum((1, 2, 3)))
    assert l2.max() <= 0.4 and np.median(l2) > 0.36
    np.testing.assert_allclose(attacked.columns["l2"], l2, rtol=1e-5)


def test_targeted_attacks_know_the_number_of_classes(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    head, net.fc = net.fc, torch.nn.Linear(32, 5)
    net.fc.weight.data, net.fc.bias.data = head.weight.data[:5], head.bias.data[:5]
    five = digits[digits.label < 5]
    params, attack = opponent({"method": "torchattacks.APGDT", "eps": 0.1, "steps": 5})
    assert "n_classes" not in attack.arguments
    attacked = whole(params, attack, net, five)
    right = classifier.predict(net, five.image, 50, CPU).argmax(1) == five.label
    assert (attacked.columns["prediction"][right] != five.label[right]).mean() > 0.3
    assert np.abs(attacked.image.astype(int) - five.image).max() <= 25


def test_an_unknown_class_of_torchattacks_is_one_line(tiny: Callable[..., Params]) -> None:
    with pytest.raises(InputError, match=r"attacks\.it\.method is torchattacks\.PGDD; .* did you mean PGD") as caught:
        tiny(attacks={"it": {"method": "torchattacks.PGDD"}}, unseen_attacks={})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "bim", "eps": 0.05, "step": 0.02, "first_step": 0.02, "steps": 2},
        {"method": "deepfool", "steps": 2, "overshoot": 0.02},
        {"method": "torchattacks.PGD", "eps": 0.05, "steps": 2},
    ],
    ids=lambda arguments: arguments["method"],
)
def test_the_users_model_is_not_changed(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]], arguments: dict[str, Any]
) -> None:
    net.fc.weight.requires_grad_(False)
    before = model_files.digest(net)
    flags = [parameter.requires_grad for parameter in net.parameters()]
    state = torch.get_rng_state()
    whole(*opponent(arguments), net, digits[:40])
    assert model_files.digest(net) == before  # running averages included
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    net.train()
    whole(*opponent(arguments), net, digits[:40])
    assert model_files.digest(net) == before


def test_arguments_in_params_are_those_of_the_functions() -> None:
    assert attacks.METHODS.keys() == BUILT_IN.keys()
    for name, model in BUILT_IN.items():
        keywords = inspect.signature(attacks.find(name)).parameters
        given_by_the_engine = {"model", "images", "labels", "noise", "starts", "partners"}
        assert keywords.keys() - given_by_the_engine == model.model_fields.keys(), name
        types = {key: parameter.annotation for key, parameter in keywords.items() if key not in given_by_the_engine}
        for key, field in model.model_fields.items():
            expected = str if field.annotation not in (int, float) else field.annotation
            assert types[key] is expected, f"{name}.{key}"
