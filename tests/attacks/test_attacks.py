"""The attacks against the same attacks of torchattacks, and what becomes of them when they are stored."""

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from sparring import attacks, params, store
from sparring.attacks import engine, generation
from sparring.layout import HERE, PARTIAL
from sparring.models import classifier, model_files, networks, resnet
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.attacks import BUILT_IN, TORCHATTACKS, Attack
from sparring.params.errors import InputError
from sparring.params.names import SPLITS
from sparring.params.sections import Store
from sparring.store import Images

CPU = torch.device("cpu")
LEVEL = 1 / 255
NST: dict[str, Any] = {"steps": 5, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0005}


@pytest.fixture
def images(digits: Images) -> Tensor:
    return classifier.to_images(digits.image, CPU).contiguous()


@pytest.fixture
def labels(digits: Images) -> Tensor:
    return torch.from_numpy(digits.label)


@pytest.fixture
def opponent(tiny: Callable[..., Params]) -> Callable[..., tuple[Params, Attack]]:
    """Parameters whose one attack is `it`, and that attack."""

    def make(arguments: dict[str, Any], **changes: Any) -> tuple[Params, Attack]:
        chosen = tiny(attacks={"it": arguments}, unseen_attacks={}, **changes)
        return chosen, chosen.attacks["it"]

    return make


def changes(found: Tensor, images: Tensor) -> Tensor:
    return (found - images).square().flatten(1).sum(1).sqrt()


@torch.no_grad()
def fooled(net: ResNet, images: Tensor, labels: Tensor, found: Tensor) -> Tensor:
    """Which images were classified correctly before and wrongly after."""
    before, after = net(images).argmax(1), net(found).argmax(1)
    return torch.logical_and(before == labels, after != labels)


def whole(
    chosen: Params,
    attack: Attack,
    net: ResNet,
    clean: Images,
    pool: Images | None = None,
    model: engine.Fast | None = None,
) -> Images:
    """All shards of an attacked set, put together."""
    model, pool = model or engine.Fast(net, CPU, torch.float32), clean if pool is None else pool
    shards = [
        generation.attacked(chosen, attack, "it", net, model, shard, pool, CPU)
        for shard in store.in_shards(clean, chosen.store.shard_size)
    ]
    index, label, image = (
        np.concatenate([getattr(shard, name) for shard in shards]) for name in ("index", "label", "image")
    )
    columns = {name: np.concatenate([shard.columns[name] for shard in shards]) for name in shards[0].columns}
    return Images(index, label, image, columns)


# Against torchattacks


@pytest.mark.parametrize("eps", [0.005, 6 / 255, 0.2])
def test_fgsm_is_that_of_torchattacks(net: ResNet, images: Tensor, labels: Tensor, eps: float) -> None:
    wanted = torchattacks.FGSM(net, eps=eps)(images, labels)
    torch.testing.assert_close(attacks.find("fgsm")(net, images, labels, eps=eps), wanted, rtol=0, atol=1e-6)
    folded = attacks.find("fgsm")(networks.frozen(net), images, labels, eps=eps)
    # Where the gradient is as good as 0, folding may turn its sign.
    assert ((folded - wanted).abs() <= 1e-6).float().mean() > 0.999


@pytest.mark.parametrize(("eps", "step", "steps"), [(6 / 255, 0.005, 6), (0.03, 0.03, 2), (0.1, 0.01, 4)])
def test_bim_is_that_of_torchattacks(
    net: ResNet, images: Tensor, labels: Tensor, eps: float, step: float, steps: int
) -> None:
    arguments = {"eps": eps, "step": step, "first_step": step, "steps": steps}
    wanted = torchattacks.BIM(net, eps=eps, alpha=step, steps=steps)(images, labels)
    found = attacks.find("bim")(net, images, labels, **arguments)
    assert ((found - wanted).abs() <= 1e-6).float().mean() > 0.999
    frozen = networks.frozen(net)
    wanted = torchattacks.BIM(frozen, eps=eps, alpha=step, steps=steps)(images, labels)
    assert ((attacks.find("bim")(frozen, images, labels, **arguments) - wanted).abs() <= 1e-6).float().mean() > 0.999


def test_the_first_step_of_bim_has_its_own_size(net: ResNet, images: Tensor, labels: Tensor) -> None:
    one = attacks.find("bim")(net, images, labels, eps=0.1, step=0.05, first_step=0.001, steps=1)
    torch.testing.assert_close(one, attacks.find("fgsm")(net, images, labels, eps=0.001))
    two = attacks.find("bim")(net, images, labels, eps=0.1, step=0.05, first_step=0.001, steps=2)
    torch.testing.assert_close(two, attacks.find("fgsm")(net, one, labels, eps=0.05))


def compare(net: ResNet, images: Tensor, labels: Tensor, found: Tensor, peer: Tensor) -> None:
    """Success within a point of the peer's or better, median L2 within 2 % of the peer's or better."""
    mine, theirs = fooled(net, images, labels, found), fooled(net, images, labels, peer)
    right = (net(images).argmax(1) == labels).sum()
    assert theirs.sum() > right / 4, "the peer fools too few images to compare with"
    assert mine.sum() / right >= theirs.sum() / right - 0.01
    both = mine & theirs
    assert changes(found, images)[both].median() <= 1.02 * changes(peer, images)[both].median()


def test_deepfool_is_as_good_as_that_of_torchattacks(net: ResNet, images: Tensor, labels: Tensor) -> None:
    images, labels = images[:100], labels[:100]
    peer = torchattacks.DeepFool(net, steps=6, overshoot=0.02)(images, labels)
    for model in (net, networks.frozen(net)):
        found = attacks.find("deepfool")(model, images, labels, steps=6, overshoot=0.02)
        compare(net, images, labels, found, peer)
        assert found.min() >= 0 and found.max() <= 1


def test_deepfool_leaves_what_is_wrong_already(net: ResNet, images: Tensor, labels: Tensor) -> None:
    found = attacks.find("deepfool")(net, images, labels, steps=5, overshoot=0.02)
    wrong = net(images).argmax(1) != labels
    assert wrong.any()
    assert torch.equal(found[wrong], images[wrong])
    assert (changes(found, images)[~wrong] > 0).all()


@pytest.mark.parametrize(("c", "steps"), [(1.0, 20), (5.0, 15)])
def test_cw_is_as_good_as_that_of_torchattacks(
    net: ResNet, images: Tensor, labels: Tensor, c: float, steps: int
) -> None:
    # torchattacks' inverse of tanh is infinite at pixels of 0 and 1, and its loss then not a number.
    images = images.clamp(0.01, 0.99)
    peer = torchattacks.CW(net, c=c, kappa=0.0, steps=steps, lr=0.05)(images, labels)
    for model in (net, networks.frozen(net)):
        found = attacks.find("cw")(
            model, images, labels, c=c, kappa=0.0, steps=steps, learning_rate=0.05, search_steps=1
        )
        compare(net, images, labels, found, peer)
        assert found.min() >= 0 and found.max() <= 1


def test_cw_gives_back_what_it_could_not_fool(net: ResNet, images: Tensor, labels: Tensor) -> None:
    found = attacks.find("cw")(net, images, labels, c=1.0, kappa=0.0, steps=8, learning_rate=0.01, search_steps=1)
    missed = net(found).argmax(1) == labels
    assert missed.any() and not missed.all()
    assert torch.equal(found[missed], images[missed])


def test_cw_wins_by_the_margin_asked_for(net: ResNet, images: Tensor, labels: Tensor) -> None:
    found = attacks.find("cw")(net, images, labels, c=10.0, kappa=1.0, steps=30, learning_rate=0.05, search_steps=1)
    logits = net(found)
    own = logits.gather(1, labels[:, None])[:, 0]
    margin = logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own
    moved = changes(found, images) > 0
    assert moved.sum() > 60
    assert (margin[moved] >= 1 - 1e-4).all()


@pytest.mark.parametrize(
    ("norm", "eps", "step", "peer"),
    [("linf", 0.06, 0.02, foolbox.attacks.LinfPGD), ("l2", 0.6, 0.2, foolbox.attacks.L2PGD)],
)
def test_pgd_is_as_good_as_that_of_foolbox(
    net: ResNet, images: Tensor, labels: Tensor, norm: str, eps: float, step: float, peer: type
) -> None:
    torch.manual_seed(0)  # foolbox draws its start from the global generator
    theirs = peer(abs_stepsize=step, steps=8)(foolbox.PyTorchModel(net, (0, 1)), images, labels, epsilons=eps)[1]
    starts = torch.randn((len(images), 4, *images.shape[1:]), generator=torch.Generator().manual_seed(0))
    run = partial(attacks.find("pgd"), eps=eps, step=step, steps=8, norm=norm, loss="cross_entropy")
    found = run(net, images, labels, restarts=1, starts=starts)
    length = changes(found, images) if norm == "l2" else (found - images).abs().flatten(1).amax(1)
    assert length.max() <= eps + 1e-5 and length.median() > 0.9 * eps
    assert found.min() >= 0 and found.max() <= 1
    won, peers = (fooled(net, images, labels, each).float().mean() for each in (found, theirs))
    assert peers > 0.1 and won >= peers - 0.03
    # Restarts only add to what one start fools.
    four = fooled(net, images, labels, run(net, images, labels, restarts=4, starts=starts))
    assert (four >= fooled(net, images, labels, found)).all()
    step_less = run(net, images, labels, restarts=1, starts=starts, step=1e-9)
    spread = (step_less - images)[(images > eps) & (images < 1 - eps)] / eps
    if norm == "linf":  # uniform: mean 0, variance a third
        assert spread.mean().abs() < 0.03 and spread.var() == pytest.approx(1 / 3, rel=0.03)


def test_ddn_is_as_good_as_that_of_foolbox(net: ResNet, images: Tensor, labels: Tensor) -> None:
    peer = foolbox.attacks.DDNAttack(steps=40)(foolbox.PyTorchModel(net, (0, 1)), images, labels, epsilons=None)[1]
    found = attacks.find("ddn")(net, images, labels, steps=40, gamma=0.05, start=1.0)
    compare(net, images, labels, found, peer)
    assert found.min() >= 0 and found.max() <= 1
    wrong = net(images).argmax(1) != labels
    assert torch.equal(found[wrong], images[wrong])


def test_rfgsm_is_as_good_as_foolbox_from_a_random_start(
    net: ResNet, digits: Images, images: Tensor, labels: Tensor, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    chosen, attack = opponent({"method": "torchattacks.RFGSM", "eps": 0.1, "alpha": 0.05, "steps": 1})
    found = whole(chosen, attack, net, digits)
    assert np.abs(found.image.astype(int) - digits.image).max() <= 25
    torch.manual_seed(0)
    # The article's step is what the start leaves of eps; foolbox starts anywhere in the ball, torchattacks at a corner.
    peer = foolbox.attacks.LinfPGD(abs_stepsize=0.05, steps=1)
    theirs = peer(foolbox.PyTorchModel(net, (0, 1)), images, labels, epsilons=0.1)[1]
    right = (net(images).argmax(1) == labels).numpy()
    share = (found.columns["prediction"] != digits.label)[right].mean()
    assert share > 0.05 and share > fooled(net, images, labels, theirs).float().sum().item() / right.sum() - 0.1


@pytest.mark.parametrize("arguments", [{"n_queries": 150}, {}], ids=["Square", "AutoAttack"])
def test_square_and_autoattack_do_what_weaker_attacks_cannot(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]], arguments: dict[str, Any]
) -> None:
    # On a few images: fooled by foolbox's PGD of the same radius means fooled by AutoAttack; Square needs no gradient.
    name = "Square" if arguments else "AutoAttack"
    few = digits[:24]
    chosen, attack = opponent({"method": f"torchattacks.{name}", "eps": 0.1, **arguments})
    found = whole(chosen, attack, net, few)
    assert np.abs(found.image.astype(int) - few.image).max() <= 25
    images, labels = classifier.to_images(few.image, CPU).contiguous(), torch.from_numpy(few.label)
    peer = foolbox.attacks.LinfPGD(steps=10)(foolbox.PyTorchModel(net, (0, 1)), images, labels, epsilons=25 / 255)[1]
    weaker = net(peer).argmax(1) != labels
    stronger = torch.from_numpy(found.columns["prediction"] != few.label)
    if name == "AutoAttack":
        assert (weaker & ~stronger).sum() <= 1
    else:
        assert stronger.sum() > (net(images).argmax(1) != labels).sum()


# Each on its own


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.floats(0, 0.5), st.floats(0.001, 0.3), st.floats(0.001, 0.3), st.integers(1, 4))
def test_bim_stays_in_its_ball(eps: float, step: float, first_step: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    net = resnet.ResNet((1, 1, 1, 1), 4, 3).eval()
    images = torch.rand(6, 3, 8, 8, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)
    labels = torch.arange(6) % 3
    found = attacks.find("bim")(net, images, labels, eps=eps, step=step, first_step=first_step, steps=steps)
    assert (found - images).abs().max() <= eps + 1e-6
    assert found.min() >= 0 and found.max() <= 1
    assert (found - images).abs().max() > 0 or eps < 1e-6


def test_gaussian_adds_clipped_noise(net: ResNet, images: Tensor, labels: Tensor) -> None:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = attacks.find("gaussian")(net, images, labels, std=0.1, noise=noise)
    inside = (found > 0) & (found < 1)
    torch.testing.assert_close((found - images)[inside], 0.1 * noise[inside], rtol=0, atol=1e-6)
    assert found.min() == 0 and found.max() == 1


def test_stored_noise_is_standard_normal(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    grey = Images(digits.index, digits.label, np.full_like(digits.image, 128))
    found = whole(*opponent({"method": "gaussian", "std": 0.1}), net, grey)
    levels = found.image.astype(float) - 128
    assert levels.mean() == pytest.approx(0, abs=0.5)
    assert levels.std() == pytest.approx(25.5, rel=0.02)
    assert not np.array_equal(found.image[0], found.image[1])


@pytest.mark.parametrize("style", ["maps", "gram"])
def test_nst_moves_an_image_towards_its_partner(net: ResNet, images: Tensor, labels: Tensor, style: str) -> None:
    frozen, partners = networks.frozen(net), images.roll(1, 0)
    found = attacks.find("nst")(frozen, images, labels, **NST, style=style, partners=partners)

    def distance(batch: Tensor) -> Tensor:
        maps, wanted = frozen.maps(batch), frozen.maps(partners)
        first, goal = maps["layer1"].flatten(2), wanted["layer1"].flatten(2)
        if style == "gram":
            first, goal = (part @ part.mT / part.shape[2] for part in (first, goal))
        deep = (maps["layer4"] - wanted["layer4"]).square().flatten(1).mean(1)
        return deep + (first - goal).square().flatten(1).mean(1)

    before, after = distance(images), distance(found)
    assert (after < before).float().mean() > 0.9
    assert found.min() >= 0 and found.max() <= 1 and changes(found, images).min() > 0


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
    drawn: list[int] = []

    def spy(model: ResNet, images: Tensor, labels: Tensor, *, steps: int, partners: Tensor, **rest: Any) -> Tensor:
        drawn.extend((partners[:, 0, 0, 0] * 255 - 20).round().int().tolist())
        return images

    monkeypatch.setitem(attacks.METHODS, "nst", spy)
    whole(*opponent({"method": "nst", **NST, "style": "maps"}), net, digits, pool)
    assert len(drawn) == len(digits)
    assert not any(partner == own for partner, own in zip(drawn, digits.label.tolist(), strict=True))
    assert len(set(drawn)) == 10


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


# torchattacks by name


def test_torchattacks_by_name(net: ResNet, images: Tensor, labels: Tensor) -> None:
    arguments = {"eps": 0.05, "alpha": 0.02, "steps": 3, "random_start": False}
    wanted = torchattacks.PGD(net, **arguments)(images, labels)
    assert torch.equal(attacks.find("torchattacks.PGD")(net, images, labels, **arguments), wanted)
    assert changes(wanted, images).min() > 0


def test_pgd_is_stored_within_eps(net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]) -> None:
    chosen, attack = opponent({"method": "torchattacks.PGD", "eps": 0.05, "alpha": 0.02, "steps": 3})
    found = whole(chosen, attack, net, digits)
    change = np.abs(found.image.astype(int) - digits.image)
    assert change.max() == 12  # floor(255 × 0.05)
    right = classifier.predict(net, digits.image, 64, CPU).argmax(1) == digits.label
    assert (found.columns["prediction"][right] != digits.label[right]).mean() > 0.1
    again = whole(chosen, attack, net, digits)
    assert np.array_equal(again.image, found.image), "its random start is not a function of the seed"


def test_pgdl2_is_stored_within_its_ball(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    chosen, attack = opponent({"method": "torchattacks.PGDL2", "eps": 0.4, "alpha": 0.2, "steps": 3})
    found = whole(chosen, attack, net, digits)
    l2 = np.sqrt(np.square((found.image.astype(float) - digits.image) / 255).sum((1, 2, 3)))
    assert l2.max() <= 0.4 and np.median(l2) > 0.36
    np.testing.assert_allclose(found.columns["l2"], l2, rtol=1e-5)


def test_targeted_attacks_know_the_number_of_classes(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    head, net.fc = net.fc, torch.nn.Linear(32, 5)
    net.fc.weight.data, net.fc.bias.data = head.weight.data[:5], head.bias.data[:5]
    five = digits[digits.label < 5]
    chosen, attack = opponent({"method": "torchattacks.APGDT", "eps": 0.1, "steps": 5})
    assert "n_classes" not in attack.arguments
    found = whole(chosen, attack, net, five)
    right = classifier.predict(net, five.image, 50, CPU).argmax(1) == five.label
    assert (found.columns["prediction"][right] != five.label[right]).mean() > 0.3
    assert np.abs(found.image.astype(int) - five.image).max() <= 25


def test_an_unknown_class_of_torchattacks_is_one_line(tiny: Callable[..., Params]) -> None:
    with pytest.raises(InputError, match=r"attacks\.it\.method is torchattacks\.PGDD; .* did you mean PGD") as caught:
        tiny(attacks={"it": {"method": "torchattacks.PGDD"}}, unseen_attacks={})
    assert "\n" not in str(caught.value)


# As stored

eps_values = st.floats(1 / 255, 0.9)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(eps_values, st.integers(0, 2**31), st.sampled_from(["uint8", "float16"]))
def test_an_linf_ball_is_kept_as_stored(eps: float, seed: int, dtype: str) -> None:
    chance = np.random.default_rng(seed)
    clean = chance.integers(0, 256, (4, 3, 3, 3), np.uint8)
    attack = Attack(method="fgsm", arguments={"eps": eps})
    wanted = clean / 255 + chance.uniform(-1.2 * eps, 1.2 * eps, clean.shape)
    stored = engine.as_stored(clean, as_tensor(wanted), attack, dtype)
    assert stored.dtype == dtype
    radius = int(np.floor(255 * eps + 0.001))
    assert attack.linf == radius / 255 == attack.stored()["eps"]
    assert np.abs(stored.astype(float) - clean).max() <= radius
    # To nearest wherever the ball allows it.
    nearest = np.clip(wanted * 255, 0, 255)
    if dtype == "float16":
        bounded = np.clip(nearest, clean - float(radius), clean + float(radius))
        assert np.abs(stored - bounded).max() <= 1 / 16 + 1e-3  # half the distance of two float16 near 255
        return
    nearest = np.rint(nearest)
    bounded = np.clip(nearest, clean.astype(int) - radius, clean.astype(int) + radius)
    assert (np.abs(stored - bounded) <= (np.abs(wanted * 255 % 1 - 0.5) < 1e-3)).all()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.floats(0.02, 3), st.integers(0, 2**31), st.booleans(), st.sampled_from(["uint8", "float16"]))
def test_an_l2_ball_is_kept_as_stored(eps: float, seed: int, outwards: bool, dtype: str) -> None:
    chance = np.random.default_rng(seed)
    clean = chance.choice([0, 128, 255], (4, 5, 5, 3)).astype(np.uint8)
    direction = chance.standard_normal(clean.shape)
    length = np.sqrt(np.square(direction).sum((1, 2, 3), keepdims=True))
    wanted = clean / 255 + (1.3 if outwards else 1) * eps * direction / length
    ball = Attack(method="torchattacks.PGDL2", arguments={"eps": eps})
    stored = engine.as_stored(clean, as_tensor(wanted), ball, dtype)
    change = (stored.astype(float) - clean) / 255
    assert np.sqrt(np.square(change).sum((1, 2, 3))).max() <= eps * (1 + 1e-6)
    assert (change * direction >= 0).all()


def as_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.clip(0, 1).astype(np.float32)).permute(0, 3, 1, 2)


def test_an_attack_without_eps_is_rounded_to_nearest() -> None:
    clean = np.zeros((1, 2, 2, 3), np.uint8)
    levels = np.array([[[0.4, 0.6, 254.4], [254.6, 255, 0], [99.51, 99.49, 7], [1, 2, 3]]]).reshape(1, 2, 2, 3)
    stored = engine.as_stored(clean, as_tensor(levels / 255), Attack(method="deepfool", arguments={}), "uint8")
    assert stored.reshape(-1).tolist() == [0, 1, 254, 255, 255, 0, 100, 99, 7, 1, 2, 3]


def test_columns_tell_what_is_stored(
    net: ResNet, digits: Images, images: Tensor, labels: Tensor, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    arguments = {"steps": 2, "overshoot": 0.02}
    found = whole(*opponent({"method": "deepfool", **arguments}), net, digits)
    floats = attacks.find("deepfool")(networks.frozen(net), images, labels, **arguments)
    assert (found.columns["prediction_float"] == net(floats).argmax(1).numpy()).mean() > 0.98
    rounded = engine.as_stored(digits.image, floats, Attack(method="deepfool", arguments={}), "uint8")
    again = classifier.predict(net, rounded, 17, CPU).argmax(1)
    assert (found.columns["prediction_rounded"] == again).mean() > 0.98
    assert (found.columns["prediction_rounded"] != found.columns["prediction"]).any()
    change = (found.image.astype(float) - digits.image) / 255
    np.testing.assert_allclose(found.columns["l2"], np.sqrt(np.square(change).sum((1, 2, 3))), rtol=1e-5)
    np.testing.assert_allclose(found.columns["linf"], np.abs(change).max((1, 2, 3)), rtol=1e-5)
    prediction = classifier.predict(net, found.image, 17, CPU).argmax(1)
    np.testing.assert_array_equal(found.columns["prediction"], prediction)
    unchanged = (found.image == digits.image).all((1, 2, 3))
    np.testing.assert_array_equal(unchanged, found.columns["linf"] == 0)
    assert unchanged.any() and not unchanged.all()


def test_an_empty_set_gives_an_empty_shard(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    chosen, attack = opponent({"method": "nst", **NST, "style": "maps"})
    found = whole(chosen, attack, net, digits[:0], digits)
    assert len(found) == 0 and found.image.shape == (0, 16, 16, 3)
    assert found.columns.keys() == {"prediction", "prediction_float", "prediction_rounded", "l2", "linf"}


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
            wanted = str if field.annotation not in (int, float) else field.annotation
            assert types[key] is wanted, f"{name}.{key}"


# True after storage


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "deepfool", "steps": 5, "overshoot": 0.02},
        {"method": "cw", "c": 1.0, "kappa": 0.0, "steps": 30, "learning_rate": 0.02, "search_steps": 1},
        {"method": "torchattacks.CW", "c": 1.0, "steps": 20, "lr": 0.02},
    ],
    ids=lambda arguments: arguments["method"],
)
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_what_fools_as_floats_fools_as_stored(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]], arguments: dict[str, Any], dtype: str
) -> None:
    inner = Images(digits.index, digits.label, digits.image.clip(3, 252))  # torchattacks' tanh has no ends
    found = whole(*opponent(arguments, store={"margin": 0.05, "dtype": dtype}), net, inner)
    assert found.image.dtype == dtype
    right = classifier.predict(net, inner.image, 50, CPU).argmax(1) == inner.label
    as_float = right & (found.columns["prediction_float"] != inner.label)
    assert as_float.sum() > right.sum() / 4
    assert (found.columns["prediction"][as_float] != inner.label[as_float]).mean() >= 0.99
    changed = found.columns["linf"] > 0
    with torch.no_grad():
        logits = net(classifier.to_images(found.image, CPU)).numpy()
    own = np.take_along_axis(logits, inner.label[:, None], 1)[:, 0]
    np.put_along_axis(logits, inner.label[:, None], -np.inf, 1)
    fooled = changed & (found.columns["prediction"] != inner.label)
    assert (logits.max(1) - own)[fooled].min() >= 0.05 - 1e-4
    # False stores what rounding leaves.
    plain = whole(*opponent(arguments, store={"faithful": False, "dtype": dtype}), net, inner)
    np.testing.assert_array_equal(plain.columns["prediction"], plain.columns["prediction_rounded"])
    np.testing.assert_array_equal(plain.columns["prediction_rounded"], found.columns["prediction_rounded"])
    if not arguments["method"].startswith(TORCHATTACKS) and dtype == "uint8":
        assert (plain.columns["prediction"][as_float] == inner.label[as_float]).any()


class Line(torch.nn.Module):
    """Two classes on either side of a flat boundary: the least change that crosses it is known."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([-score, score], 1) / 2


@pytest.mark.slow
@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 2**31), st.floats(0.05, 3))
def test_the_stored_change_is_hardly_larger_than_it_must_be(seed: int, distance: float) -> None:
    chance = torch.Generator().manual_seed(seed)
    clean = torch.randint(60, 190, (1, 8, 8, 3), generator=chance).to(torch.uint8)
    weight = torch.randn(1, 3, 8, 8, generator=chance)
    start = clean.permute(0, 3, 1, 2).float() / 255
    # The boundary lies `distance` levels from the image.
    bias = -(start * weight).sum() - distance / 255 * weight.norm()
    line = Line(weight, float(bias))
    step = (distance / 255) * weight / weight.norm()
    for overshoot in (1.02, 2.5):  # an attack that ends at the boundary, and one that ends far behind it
        found = engine.store(
            line, clean.numpy(), start + overshoot * step, torch.zeros(1, dtype=torch.long),  # type: ignore[arg-type]
            Attack(method="deepfool", arguments={}),
            Store(shard_size=1, batch_size=1, dtype="uint8", faithful=True, margin=0.0, memory_budget=1.0),
        )  # fmt: skip
        assert found.prediction.tolist() == [1] and found.prediction_float.tolist() == [1]
        change = torch.from_numpy(found.image.astype(np.float32) - clean.numpy()).permute(0, 3, 1, 2)
        # The best whole-numbered change: levels are added where they bring most for their length, until it crosses.
        best = min(
            (levels.norm() for scale in np.geomspace(0.05, 500, 2000)
             if line(start + (levels := (weight * scale).round()) / 255).argmax(1) == 1),
            default=torch.tensor(0.0),
        )  # fmt: skip
        assert change.norm() <= 1.05 * best + 1


def test_where_memory_runs_out_halves_give_the_same(net: ResNet, images: Tensor, labels: Tensor) -> None:
    sizes = []

    def hungry(model: ResNet, batch: Tensor, labels: Tensor, *, noise: Tensor) -> Tensor:
        sizes.append(len(batch))
        if len(batch) > 30:
            raise torch.OutOfMemoryError("no more")
        assert len(batch) == len(labels) == len(noise)
        return batch + noise + labels.view(-1, 1, 1, 1)

    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = engine.run(hungry, net, images, labels, {"noise": noise})
    assert torch.equal(found, images + noise + labels.view(-1, 1, 1, 1))
    assert max(sizes) == len(images) and min(sizes) > 1
    with pytest.raises(torch.OutOfMemoryError):
        engine.run(lambda *_, **__: hungry(net, images, labels, noise=noise), net, images[:1], labels[:1], {})
    with pytest.raises(ValueError, match="mine"):
        engine.run(lambda *_, **__: (_ for _ in ()).throw(ValueError("mine")), net, images, labels, {})


def test_a_search_over_c_finds_what_one_c_does_not(net: ResNet, images: Tensor, labels: Tensor) -> None:
    arguments = {"c": 0.05, "kappa": 0.0, "steps": 30, "learning_rate": 0.02}
    one, six = (attacks.find("cw")(net, images, labels, **arguments, search_steps=number) for number in (1, 6))
    right = net(images).argmax(1) == labels
    assert fooled(net, images, labels, six).sum() > 0.95 * right.sum() > 1.2 * fooled(net, images, labels, one).sum()
    both = fooled(net, images, labels, one) & fooled(net, images, labels, six)
    assert (changes(six, images)[both] <= changes(one, images)[both] + 1e-6).all()


@pytest.mark.slow
def test_a_compiled_copy_does_the_same(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    # DeepFool: batches that shrink, and several ways back through one pass.
    settings, attack = opponent(
        {"method": "deepfool", "steps": 3, "overshoot": 0.02}, store={"dtype": "float16", "faithful": False}
    )
    plain = whole(settings, attack, net, digits)
    fast = engine.Fast(net, CPU, torch.float32, compiled=True)
    compiled = whole(settings, attack, net, digits, model=fast)
    assert fast.compiled
    assert (compiled.columns["prediction_float"] == plain.columns["prediction_float"]).mean() >= 0.99
    np.testing.assert_allclose(compiled.columns["l2"], plain.columns["l2"], atol=2e-3)


def test_a_compiled_attack_leaves_no_library_that_a_kill_has_cut_short(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    seen: list[list[Path]] = []

    def compiler(function: Callable[..., Tensor], dynamic: bool) -> Callable[..., Tensor]:
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        seen.append(list(folder.rglob("*")))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "library.so").write_bytes(b"")
        if len(seen) == 1:
            raise KeyboardInterrupt
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(engine, "worth_compiling", lambda *arguments: True)
    with pytest.raises(KeyboardInterrupt):
        generation.attack_splits(tiny(), "fgsm")
    assert list(PARTIAL.rglob("library.so"))
    generation.attack_splits(tiny(), "fgsm")
    assert seen[:2] == [[], []] and not list(PARTIAL.iterdir())


def test_without_a_compiler_it_goes_on(
    net: ResNet, images: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Callable[..., Tensor]:
        def fail(*_: Any) -> Tensor:
            raise TorchDynamoException("no C++ compiler\nat all")

        return fail

    plain = engine.Fast(net, CPU, torch.float32)(images)
    monkeypatch.setattr(torch, "compile", broken)
    fast = engine.Fast(net, CPU, torch.float32, compiled=True)
    assert torch.equal(fast(images), plain) and torch.equal(fast(images), plain)
    assert capsys.readouterr().err == "going on without torch.compile: no C++ compiler at all\n"


def test_compiling_is_decided_by_all_of_the_work(net: ResNet) -> None:
    def worth(count: int, **arguments: float) -> bool:
        return engine.worth_compiling(net, Attack(method="bim", arguments=arguments), (16, 16, 3), count, CPU)

    least = next(count for exponent in range(60) if worth(count := 2**exponent, steps=8))
    assert least > 1000 and not worth(least // 2, steps=8)
    assert worth(8 * least, steps=1) and not worth(4 * least, steps=1)
    assert worth(least // 4, steps=8, restarts=4) and not worth(least // 8, steps=8, search_steps=4)


# Interrupted


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(project: Path, tiny: Callable[..., Params]) -> None:
    folder = HERE.adversarial / "deepfool"

    def stored() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}

    before = stored()
    values = YAML(typ="safe").load(Path("params.yaml"))
    values["store"] |= {"shard_size": 20, "batch_size": 10}
    YAML().dump(values, Path("params.yaml"))
    generation.attack_splits(params.validate(values), "deepfool")
    wanted = stored()
    assert wanted != before
    script = Path(__file__).resolve().parents[2] / "stages" / "attack.py"
    for pause in np.random.default_rng(0).uniform(0, 1, 2):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: more threads round differently
        stage = subprocess.Popen([sys.executable, script, "deepfool"], stdout=subprocess.PIPE, env=environment)
        # Killed once some shards are done, at a random moment after that.
        deadline = time.monotonic() + 120
        while stage.poll() is None and not list(Path(PARTIAL).rglob("train-*.parquet")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(pause)
        stage.kill()
        stage.wait()
        assert list(PARTIAL.rglob("*.parquet")) or stage.returncode == 0
        generation.attack_splits(params.validate(values), "deepfool")
        assert stored() == wanted
        assert not list(PARTIAL.iterdir())


def test_unfinished_shards_belong_to_their_inputs(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, stop = store.write, 3

    def breaks(path: Path, *rest: Any) -> int:
        if PARTIAL in path.parents or PARTIAL.name in path.parts:
            nonlocal stop
            stop -= 1
            if stop < 0:
                raise KeyboardInterrupt
        return write(path, *rest)

    monkeypatch.setattr(store, "write", breaks)
    with pytest.raises(KeyboardInterrupt):
        generation.attack_splits(tiny(), "fgsm")
    (left,) = PARTIAL.iterdir()
    assert len(list(left.iterdir())) == 3
    made = []
    monkeypatch.setattr(store, "write", write)
    attacked = generation.attacked

    def counts(*arguments: Any) -> Images:
        made.append(1)
        return attacked(*arguments)

    monkeypatch.setattr(generation, "attacked", counts)
    generation.attack_splits(tiny(seed=1), "fgsm")  # another seed: nothing of the other run is taken
    assert len(made) == 7 and left.exists()
    made.clear()
    generation.attack_splits(tiny(), "fgsm")
    assert len(made) == 4 and not left.exists()


# The stage


def test_metadata_tells_what_ran(project: Path, tiny: Callable[..., Params]) -> None:
    for name, eps in {"fgsm": 12 / 255, "strong": 51 / 255}.items():
        chosen = tiny()
        folder = HERE.attacked(chosen, name)
        assert folder == (HERE.adversarial if name == "fgsm" else HERE.unseen) / name
        found = store.read(folder / "test.parquet").metadata
        pretrained = networks.load(chosen.network, 10, 16, HERE.pretrained)
        assert found["attack"] == name and found["method"] == "fgsm" and found["split"] == "test"
        assert found["arguments"] == {"eps": eps}
        assert found["source_model"] == model_files.digest(pretrained)
        assert found["shape"] == [16, 16, 3] and len(found["classes"]) == 10


def test_splits_of_seen_and_unseen_attacks(project: Path) -> None:
    assert {path.name for path in (HERE.adversarial / "fgsm").iterdir()} == {f"{split}.parquet" for split in SPLITS}
    assert {path.name for path in (HERE.unseen / "strong").iterdir()} == {"test.parquet", "heldout.parquet"}
    for split in SPLITS:
        clean, found = (store.read(folder / f"{split}.parquet") for folder in (HERE.clean, HERE.adversarial / "fgsm"))
        store.check_rows(clean, found, Path(split))


@pytest.mark.parametrize("name", ["gaussian", "fgsm", "deepfool", "strong"])
def test_the_same_seed_gives_the_same_bytes(project: Path, tiny: Callable[..., Params], name: str) -> None:
    folder = HERE.attacked(tiny(), name)
    before = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    np.random.seed(1)
    torch.manual_seed(1)
    generation.attack_splits(tiny(), name)
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == before
    if name == "gaussian":
        generation.attack_splits(tiny(seed=1), name)
        assert (folder / "test.parquet").read_bytes() != before["test.parquet"]
