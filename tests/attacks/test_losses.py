"""A net's confidence must not weaken an attack: tests the losses, and every attack that follows their gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import attacks, store
from sparring.attacks import losses
from sparring.data.augmentation import Augmentation
from sparring.defences.opponents import OnlineOpponents
from sparring.evaluation import adaptive as adaptive_attacks
from sparring.layout import HERE
from sparring.models import classifier, networks
from sparring.models.resnet import ResNet
from sparring.params.structures import Online
from sparring.training.gallery import Batch

CPU = torch.device("cpu")
EPS = 0.05


class Scaled(nn.Module):
    """Makes the decisions of `net`, with logits multiplied by `scale`."""

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.net(images)


class Sure(nn.Module):
    """Adds to `net`'s logits of the labels, so that each image has the same margin."""

    def __init__(self, net: nn.Module, images: Tensor, labels: Tensor, margin: float) -> None:
        super().__init__()
        self.net = net
        with torch.no_grad():
            missing = margin - losses.margin(net(images), labels)
        self.added = missing[:, None] * F.one_hot(labels, net(images).shape[1])

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) + self.added


@pytest.fixture
def frozen(net: ResNet) -> nn.Module:
    return networks.frozen(net)


@pytest.fixture
def images(template: Path) -> Tensor:
    """460 digits: enough that one of half of them is less than half a point."""
    parts = [store.read(template / HERE.clean / f"{split}.parquet").image for split in ("train", "test", "heldout")]
    return classifier.to_images(np.concatenate(parts), CPU).contiguous()


@pytest.fixture
def labels(template: Path) -> Tensor:
    parts = [store.read(template / HERE.clean / f"{split}.parquet").label for split in ("train", "test", "heldout")]
    return torch.from_numpy(np.concatenate(parts))


def starts(images: Tensor, count: int = 1) -> Tensor:
    return torch.randn((len(images), count, *images.shape[1:]), generator=torch.Generator().manual_seed(0))


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return F.cosine_similarity(first.flatten(1).double(), second.flatten(1).double())


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("margin", [5, 16, 20, 40, 80])
def test_gradients_have_the_direction_of_cross_entropys_at_any_margin(classes: int, margin: float) -> None:
    torch.manual_seed(0)
    net = ResNet((1, 1, 1, 1), 4, classes).eval()
    images, labels = torch.rand(16, 3, 16, 16), torch.arange(16) % classes
    exact = Sure(net.double(), images.double(), labels, margin)
    inputs = images.double().requires_grad_()
    logits = exact(inputs)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    odds = others.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]
    (expected,) = torch.autograd.grad(F.softplus(odds).sum(), inputs)
    expected /= expected.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    rounded = Sure(net.float(), images, labels, margin)
    gradient = losses.loss_gradient(rounded, images, labels)
    torch.testing.assert_close(losses.unit(gradient).double(), expected, rtol=1e-3, atol=1e-4)
    assert gradient.abs().flatten(1).amax(1).min() > 1e-4
    inputs = images.clone().requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(rounded(inputs), labels, reduction="sum"), inputs)
    if margin > 17:  # cross-entropy itself goes another way, or none
        assert cosine(plain, expected).median() < 0.99


def test_log_odds_are_those_of_the_probabilities() -> None:
    logits = torch.tensor([[1.0, 2.0], [-3.0, 4.0], [200.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 1, 0])
    log_odds = losses.log_odds(logits, labels)
    assert log_odds.tolist() == [1, -7, -200]
    (gradient,) = torch.autograd.grad(log_odds.sum(), logits)
    assert gradient.tolist() == [[-1, 1], [1, -1], [-1, 1]]
    more = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    own = F.one_hot(torch.arange(20) % 5).bool()
    share = more.softmax(1)[own]
    torch.testing.assert_close(losses.log_odds(more, torch.arange(20) % 5), ((1 - share) / share).log())


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-13, 1.0, 1e30])
def test_a_direction_has_length_1_however_small_the_change(size: float) -> None:
    change = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    change[1] = 0
    direction = losses.unit(size * change)
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(direction, losses.unit(change), rtol=1e-3, atol=1e-5)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return attacks.find("fgsm")(model, images, labels, eps=EPS)


def bim(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return attacks.find("bim")(model, images, labels, eps=EPS, step=EPS / 4, first_step=EPS / 4, steps=8)


def pgd(model: nn.Module, images: Tensor, labels: Tensor, **changes: Any) -> Tensor:
    arguments = {"eps": EPS, "step": EPS / 4, "steps": 8, "norm": "linf", "restarts": 1, "loss": "cross_entropy"}
    return attacks.find("pgd")(model, images, labels, **arguments | changes, starts=starts(images))


def pgd_l2(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return pgd(model, images, labels, eps=10 * EPS, step=2.5 * EPS, norm="l2")


def online(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    settings = Online(eps=EPS, step=EPS / 4, steps=8, noise=1)
    opponents = OnlineOpponents(model, settings, torch.float32, 0)  # type: ignore[arg-type]
    batch = Batch(torch.arange(len(labels)), images, labels, torch.zeros(len(labels), dtype=torch.bool))
    noise = opponents.draw(batch, 0, 0)
    return opponents.show(batch, Augmentation(torch.empty(0), None), lambda attacked: attacked, noise).images


def ddn(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return attacks.find("ddn")(model, images, labels, steps=20, gamma=0.05, start=1.0)


def adaptive(model: nn.Module, images: Tensor, labels: Tensor, score: float = 1.0) -> Tensor:
    return adaptive_attacks.adaptive(
        model,
        images,
        labels,
        score=lambda attacked: score * (attacked - F.avg_pool2d(attacked, 3, 1, 1)).square().mean((1, 2, 3)),
        eps=EPS,
        steps=8,
        starts=starts(images, 2),
    )


@pytest.mark.parametrize("attack", [fgsm, bim, pgd, pgd_l2, online, ddn, adaptive])
def test_larger_logits_leave_no_more_images(
    frozen: nn.Module, images: Tensor, labels: Tensor, attack: Callable[..., Tensor]
) -> None:
    images, labels = images[::2], labels[::2]

    def accuracy(scale: float) -> float:
        adversarial = attack(Scaled(frozen, scale).eval(), images, labels)
        return (frozen(adversarial).argmax(1) == labels).float().mean().item()

    before, clean = accuracy(1), (frozen(images).argmax(1) == labels).float().mean().item()
    assert before < clean - 0.05, "too weak an attack to see it weakened"
    for scale in (10, 20):
        assert accuracy(scale) <= before + 0.01


def test_cross_entropys_own_gradient_leaves_more(frozen: nn.Module, images: Tensor, labels: Tensor) -> None:
    """The test above would fail without the log odds."""

    def accuracy(scale: float) -> float:
        inputs = images.clone().requires_grad_()
        loss = F.cross_entropy(scale * frozen(inputs), labels, reduction="sum")
        adversarial = (images + EPS * torch.autograd.grad(loss, inputs)[0].sign()).clamp(0, 1)
        return (frozen(adversarial).argmax(1) == labels).float().mean().item()

    assert accuracy(20) > accuracy(1) + 0.03


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_on_the_margin_is_the_same_at_any_scale(
    frozen: nn.Module, images: Tensor, labels: Tensor, norm: str
) -> None:
    images, labels = images[:100], labels[:100]
    reach = {"eps": 1.0, "step": 0.25} if norm == "l2" else {}
    adversarial = [
        pgd(Scaled(frozen, scale), images, labels, norm=norm, loss="margin", **reach) for scale in (1, 8, 16, 2**-60)
    ]
    assert (frozen(adversarial[0]).argmax(1) != labels).float().mean() > 0.1
    assert all(torch.equal(other, adversarial[0]) for other in adversarial[1:])
    other = pgd(frozen, images, labels, norm=norm, **reach)
    assert not torch.equal(adversarial[0], other)


def test_of_two_classes_log_odds_are_the_margin(net: ResNet, images: Tensor, labels: Tensor) -> None:
    # So DDN's images, and those of PGD on cross-entropy, are the same at any scale.
    head, net.fc = net.fc, nn.Linear(32, 2)
    net.fc.weight.data, net.fc.bias.data = head.weight.data[:2], head.bias.data[:2]
    frozen = networks.frozen(net)
    images, labels = images[labels < 2], labels[labels < 2]
    for attack in (ddn, pgd, pgd_l2):
        adversarial = [attack(Scaled(frozen, scale).eval(), images, labels) for scale in (1, 8, 16)]
        assert (adversarial[0] - images).abs().flatten(1).amax(1).max() > 0.01
        assert torch.equal(adversarial[0], adversarial[1]) and torch.equal(adversarial[0], adversarial[2]), attack
    assert torch.equal(pgd(frozen, images, labels), pgd(frozen, images, labels, loss="margin"))


def test_ddns_changes_are_no_longer_on_a_sure_net(frozen: nn.Module, images: Tensor, labels: Tensor) -> None:
    images, labels = images[:120], labels[:120]

    def median(scale: float) -> Tensor:
        adversarial = ddn(Scaled(frozen, scale), images, labels)
        length = (adversarial - images).flatten(1).norm(dim=1)
        return length[frozen(images).argmax(1) == labels].median()

    assert median(1) > 0.1
    for scale in (10, 20):
        assert median(scale) <= 1.02 * median(1)


def test_the_attack_on_a_detector_is_the_same_at_any_scale_of_its_score(
    frozen: nn.Module, images: Tensor, labels: Tensor
) -> None:
    images, labels = images[:60], labels[:60]
    plain = adaptive(frozen, images, labels)
    assert torch.equal(adaptive(frozen, images, labels, score=2.0**-60), plain)
    assert torch.equal(adaptive(frozen, images, labels, score=64.0), plain)
