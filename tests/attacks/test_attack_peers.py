"""Compares the attacks with the same attacks of torchattacks and foolbox."""

from collections.abc import Callable
from functools import partial
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from attacking import CPU, changes, fooled, whole
from torch import Tensor

from sparring import attacks
from sparring.models import classifier, networks
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.store import Images


@pytest.mark.parametrize("eps", [0.005, 6 / 255, 0.2])
def test_fgsm_is_that_of_torchattacks(net: ResNet, images: Tensor, labels: Tensor, eps: float) -> None:
    expected = torchattacks.FGSM(net, eps=eps)(images, labels)
    torch.testing.assert_close(attacks.find("fgsm")(net, images, labels, eps=eps), expected, rtol=0, atol=1e-6)
    folded = attacks.find("fgsm")(networks.frozen(net), images, labels, eps=eps)
    # Where the gradient is as good as 0, folding may turn its sign.
    assert ((folded - expected).abs() <= 1e-6).float().mean() > 0.999


@pytest.mark.parametrize(("eps", "step", "steps"), [(6 / 255, 0.005, 6), (0.03, 0.03, 2), (0.1, 0.01, 4)])
def test_bim_is_that_of_torchattacks(
    net: ResNet, images: Tensor, labels: Tensor, eps: float, step: float, steps: int
) -> None:
    arguments = {"eps": eps, "step": step, "first_step": step, "steps": steps}
    expected = torchattacks.BIM(net, eps=eps, alpha=step, steps=steps)(images, labels)
    adversarial = attacks.find("bim")(net, images, labels, **arguments)
    assert ((adversarial - expected).abs() <= 1e-6).float().mean() > 0.999
    frozen = networks.frozen(net)
    expected = torchattacks.BIM(frozen, eps=eps, alpha=step, steps=steps)(images, labels)
    assert ((attacks.find("bim")(frozen, images, labels, **arguments) - expected).abs() <= 1e-6).float().mean() > 0.999


def test_rfgsm_is_that_of_torchattacks(net: ResNet, images: Tensor, labels: Tensor) -> None:
    torch.manual_seed(5)
    expected = torchattacks.RFGSM(net, eps=0.1, alpha=0.05, steps=1)(images, labels)
    torch.manual_seed(5)
    noise = torch.randn_like(images)
    adversarial = attacks.find("rfgsm")(net, images, labels, eps=0.1, alpha=0.05, noise=noise)
    assert ((adversarial - expected).abs() <= 1e-6).float().mean() > 0.999
    assert (adversarial - images).abs().max() <= 0.1 + 1e-6


def test_the_first_step_of_bim_has_its_own_size(net: ResNet, images: Tensor, labels: Tensor) -> None:
    after_one = attacks.find("bim")(net, images, labels, eps=0.1, step=0.05, first_step=0.001, steps=1)
    torch.testing.assert_close(after_one, attacks.find("fgsm")(net, images, labels, eps=0.001))
    after_two = attacks.find("bim")(net, images, labels, eps=0.1, step=0.05, first_step=0.001, steps=2)
    torch.testing.assert_close(after_two, attacks.find("fgsm")(net, after_one, labels, eps=0.05))


def compare(net: ResNet, images: Tensor, labels: Tensor, adversarial: Tensor, peer: Tensor) -> None:
    """Check that success is at most a point below the peer's, and the median L2 at most 2 % above it."""
    fooled_by_ours, fooled_by_peer = fooled(net, images, labels, adversarial), fooled(net, images, labels, peer)
    right = (net(images).argmax(1) == labels).sum()
    assert fooled_by_peer.sum() > right / 4, "the peer fools too few images to compare with"
    assert fooled_by_ours.sum() / right >= fooled_by_peer.sum() / right - 0.01
    both = fooled_by_ours & fooled_by_peer
    assert changes(adversarial, images)[both].median() <= 1.02 * changes(peer, images)[both].median()


def test_deepfool_is_as_good_as_that_of_torchattacks(net: ResNet, images: Tensor, labels: Tensor) -> None:
    images, labels = images[:100], labels[:100]
    peer = torchattacks.DeepFool(net, steps=6, overshoot=0.02)(images, labels)
    for model in (net, networks.frozen(net)):
        adversarial = attacks.find("deepfool")(model, images, labels, steps=6, overshoot=0.02)
        compare(net, images, labels, adversarial, peer)
        assert adversarial.min() >= 0 and adversarial.max() <= 1


def test_deepfool_leaves_what_is_wrong_already(net: ResNet, images: Tensor, labels: Tensor) -> None:
    adversarial = attacks.find("deepfool")(net, images, labels, steps=5, overshoot=0.02)
    wrong = net(images).argmax(1) != labels
    assert wrong.any()
    assert torch.equal(adversarial[wrong], images[wrong])
    assert (changes(adversarial, images)[~wrong] > 0).all()


@pytest.mark.parametrize(("c", "steps"), [(1.0, 20), (5.0, 15)])
def test_cw_is_as_good_as_that_of_torchattacks(
    net: ResNet, images: Tensor, labels: Tensor, c: float, steps: int
) -> None:
    # torchattacks' inverse of tanh is infinite at pixels of 0 and 1, and its loss then not a number.
    images = images.clamp(0.01, 0.99)
    peer = torchattacks.CW(net, c=c, kappa=0.0, steps=steps, lr=0.05)(images, labels)
    for model in (net, networks.frozen(net)):
        adversarial = attacks.find("cw")(
            model, images, labels, c=c, kappa=0.0, steps=steps, learning_rate=0.05, search_steps=1
        )
        compare(net, images, labels, adversarial, peer)
        assert adversarial.min() >= 0 and adversarial.max() <= 1


def test_cw_gives_back_what_it_could_not_fool(net: ResNet, images: Tensor, labels: Tensor) -> None:
    adversarial = attacks.find("cw")(net, images, labels, c=1.0, kappa=0.0, steps=8, learning_rate=0.01, search_steps=1)
    missed = net(adversarial).argmax(1) == labels
    assert missed.any() and not missed.all()
    assert torch.equal(adversarial[missed], images[missed])


def test_cw_wins_by_the_margin_asked_for(net: ResNet, images: Tensor, labels: Tensor) -> None:
    adversarial = attacks.find("cw")(
        net, images, labels, c=10.0, kappa=1.0, steps=30, learning_rate=0.05, search_steps=1
    )
    logits = net(adversarial)
    own = logits.gather(1, labels[:, None])[:, 0]
    margin = logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own
    moved = changes(adversarial, images) > 0
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
    peer_images = peer(abs_stepsize=step, steps=8)(foolbox.PyTorchModel(net, (0, 1)), images, labels, epsilons=eps)[1]
    starts = torch.randn((len(images), 4, *images.shape[1:]), generator=torch.Generator().manual_seed(0))
    run = partial(attacks.find("pgd"), eps=eps, step=step, steps=8, norm=norm, loss="cross_entropy")
    adversarial = run(net, images, labels, restarts=1, starts=starts)
    length = changes(adversarial, images) if norm == "l2" else (adversarial - images).abs().flatten(1).amax(1)
    assert length.max() <= eps + 1e-5 and length.median() > 0.9 * eps
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    success, peer_success = (
        fooled(net, images, labels, attacked).float().mean() for attacked in (adversarial, peer_images)
    )
    assert peer_success > 0.1 and success >= peer_success - 0.03
    # Restarts only add to what one start fools.
    four = fooled(net, images, labels, run(net, images, labels, restarts=4, starts=starts))
    assert (four >= fooled(net, images, labels, adversarial)).all()
    step_less = run(net, images, labels, restarts=1, starts=starts, step=1e-9)
    spread = (step_less - images)[(images > eps) & (images < 1 - eps)] / eps
    if norm == "linf":  # uniform: mean 0, variance a third
        assert spread.mean().abs() < 0.03 and spread.var() == pytest.approx(1 / 3, rel=0.03)


def test_ddn_is_as_good_as_that_of_foolbox(net: ResNet, images: Tensor, labels: Tensor) -> None:
    peer = foolbox.attacks.DDNAttack(steps=40)(foolbox.PyTorchModel(net, (0, 1)), images, labels, epsilons=None)[1]
    adversarial = attacks.find("ddn")(net, images, labels, steps=40, gamma=0.05, start=1.0)
    compare(net, images, labels, adversarial, peer)
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    wrong = net(images).argmax(1) != labels
    assert torch.equal(adversarial[wrong], images[wrong])


def test_rfgsm_is_as_good_as_foolbox_from_a_random_start(
    net: ResNet, digits: Images, images: Tensor, labels: Tensor, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    settings, attack = opponent({"method": "torchattacks.RFGSM", "eps": 0.1, "alpha": 0.05, "steps": 1})
    attacked = whole(settings, attack, net, digits)
    assert np.abs(attacked.image.astype(int) - digits.image).max() <= 25
    torch.manual_seed(0)
    # The article's step is what the start leaves of eps; foolbox starts anywhere in the ball, torchattacks at a corner.
    peer = foolbox.attacks.LinfPGD(abs_stepsize=0.05, steps=1)
    peer_images = peer(foolbox.PyTorchModel(net, (0, 1)), images, labels, epsilons=0.1)[1]
    right = (net(images).argmax(1) == labels).numpy()
    share = (attacked.columns["prediction"] != digits.label)[right].mean()
    assert share > 0.05 and share > fooled(net, images, labels, peer_images).float().sum().item() / right.sum() - 0.1


@pytest.mark.parametrize(
    "settings",
    [{"method": "torchattacks.Square", "n_queries": 150}, {"method": "autoattack", "norm": "linf"}],
    ids=["Square", "AutoAttack"],
)
def test_square_and_autoattack_do_what_weaker_attacks_cannot(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]], settings: dict[str, Any]
) -> None:
    # On a few images: fooled by foolbox's PGD of the same radius means fooled by AutoAttack; Square needs no gradient.
    few = digits[:24]
    params, attack = opponent({"eps": 0.1, **settings})
    attacked = whole(params, attack, net, few)
    assert np.abs(attacked.image.astype(int) - few.image).max() <= 25
    images, labels = classifier.to_images(few.image, CPU).contiguous(), torch.from_numpy(few.label)
    peer = foolbox.attacks.LinfPGD(steps=10)(foolbox.PyTorchModel(net, (0, 1)), images, labels, epsilons=25 / 255)[1]
    weaker = net(peer).argmax(1) != labels
    stronger = torch.from_numpy(attacked.columns["prediction"] != few.label)
    if settings["method"] == "autoattack":
        assert (weaker & ~stronger).sum() <= 1
        library = torchattacks.AutoAttack(net, norm="Linf", eps=25 / 255, seed=0)(images, labels)
        assert ((net(library).argmax(1) != labels) & ~stronger).sum() <= 1
    else:
        assert stronger.sum() > (net(images).argmax(1) != labels).sum()
