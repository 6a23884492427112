"""Tests steps, schedules and the choice of the final net, each against a plain version of the method."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_nets import SMALL, detecting, detector_for, fails, small
from torch import Tensor, nn

from sparring.data.augmentation import Augmentation
from sparring.defences.joint import joint_step
from sparring.defences.opponents import OnlineOpponents
from sparring.device import rng
from sparring.models import classifier, model_files
from sparring.models.classifier import Classifier
from sparring.models.detector import Layer, TransformerDetector
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.structures import Online
from sparring.store import Images
from sparring.training.gallery import Batch, Gallery, batch_stops
from sparring.training.loop import Monitor, Opponents
from sparring.training.loop import fit as run_training
from sparring.training.steps import Step, plain_step

CPU = torch.device("cpu")


def test_a_version_that_an_attack_left_unchanged_is_not_adversarial() -> None:
    image = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    clean = Images(np.arange(4), np.array([3, 1, 2, 0]), image)
    attacked = [
        Images(clean.index, clean.label, image + shift, {"linf": np.array(linf, np.float32)})
        for shift, linf in ((50, [0.1, 0, 0.2, 0]), (100, [0, 0, 0, 1 / 255]))
    ]
    gallery = Gallery(np.stack([image, image + 50, image + 100]), clean, attacked, CPU)
    assert gallery.adversarial.tolist() == [[False] * 4, [True, False, True, False], [False, False, False, True]]
    rows, images, labels, adversarial = gallery.batch(torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 3, 1]))
    assert rows.tolist() == [0, 0, 3, 1]
    assert labels.tolist() == [3, 3, 0, 1]
    assert adversarial.tolist() == [False, True, True, False]
    expected = np.stack([image[0], image[0] + 50, image[3] + 100, image[1] + 50])
    np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected / 255, atol=1e-6)


def slow_token(detector: TransformerDetector, maps: dict[str, Tensor]) -> Tensor:
    """Return the class token, with attention written out, and with queries from every token in every layer."""
    parts = torch.cat([detector.embed[name](maps[name]) for name in detector.inputs], 1).flatten(2)
    flow = parts if detector.by_channel else parts.mT
    flow = torch.cat([detector.class_token.expand(len(flow), -1, -1), flow], 1) + detector.position
    for layer in detector.layers:
        assert isinstance(layer, Layer)
        normed = layer.norm1(flow)
        projections = torch.cat([layer.query(normed), layer.key_value(normed)], -1)
        heads = []
        for query, key, value in zip(*(part.chunk(4, -1) for part in projections.chunk(3, -1)), strict=True):
            weights = (query @ key.mT / query.shape[-1] ** 0.5).exp()
            heads.append(weights / weights.sum(-1, keepdim=True) @ value)
        flow = flow + layer.projection(torch.cat(heads, -1))
        flow = flow + layer.mlp(layer.norm2(flow))
    return detector.norm(flow)[:, 0]


class SlowSgd:
    """This is the textbook's SGD with momentum and weight decay."""

    def __init__(self, module: nn.Module, learning_rate: float, momentum: float, decay: float) -> None:
        self.parameters = list(module.parameters())
        self.speed = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.settings = learning_rate, momentum, decay

    def step(self, gradients: tuple[Tensor, ...]) -> None:
        learning_rate, momentum, decay = self.settings
        with torch.no_grad():
            for parameter, speed, gradient in zip(self.parameters, self.speed, gradients, strict=True):
                speed.mul_(momentum).add_(gradient + decay * parameter)
                parameter.sub_(learning_rate * speed)


def batches(count: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(5)
    return [(torch.rand(8, 3, 16, 16), torch.randint(0, 10, (8,)), torch.rand(8) < 0.5) for _ in range(count)]


def equal(module: nn.Module, expected_module: nn.Module) -> None:
    for (name, tensor), expected in zip(
        module.state_dict().items(), expected_module.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5, msg=f"{name} differs")


@pytest.mark.parametrize(
    ("source", "layers", "alpha", "beta", "order"),
    [
        ("full", 4, 1.0, 1.0, "before"),
        ("full", 1, 1.0, 1.0, "before"),
        ("low", 2, 0.5, 2.0, "before"),
        ("full", 2, 1.0, 1.0, "after"),
        ("low", 1, 0.5, 2.0, "after"),
    ],
)
def test_joint_steps_are_those_of_the_method(
    tiny: Callable[..., Params], source: str, layers: int, alpha: float, beta: float, order: str
) -> None:
    settings = tiny(training={"learning_rate": 0.05}).training
    detector_settings = detecting(input=source, layers=layers, alpha=alpha, beta=beta, order=order, learning_rate=0.1)
    net, pretrained = small(seed=1), small(seed=2).eval()
    detector = detector_for(SMALL, input=source, layers=layers)
    for name, parameter in detector.named_parameters():  # biases too must tell
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.3)
    slow_net, slow_detector = copy.deepcopy(net).train(), copy.deepcopy(detector)
    before = model_files.digest(pretrained)

    step = joint_step(net.train(), pretrained, detector, settings, detector_settings, torch.float32)
    slow = SlowSgd(slow_net, 0.05, settings.momentum, settings.weight_decay)
    slow_second = SlowSgd(slow_detector, 0.1, settings.momentum, settings.weight_decay)
    for images, labels, adversarial in batches():
        sums = step.run(images, labels, adversarial)
        # The plain way: every pass on its own, both gradients at the old weights, then both steps; or in turn.
        guess = slow_detector.head(slow_token(slow_detector, pretrained.maps(images)))
        detection = -F.log_softmax(guess, 1)[torch.arange(8), adversarial.long()].mean()
        detector_gradients = torch.autograd.grad(detection, slow_second.parameters)
        if order == "after":
            slow_second.step(detector_gradients)
        with torch.no_grad():
            target_token = slow_token(slow_detector, pretrained.maps(images))
        maps = slow_net.maps(images)
        classification = -F.log_softmax(slow_net.classify(maps), 1)[torch.arange(8), labels].mean()
        difference = (slow_token(slow_detector, maps) - target_token).abs()
        matching = torch.where(difference < 1, difference.square() / 2, difference - 0.5).mean()
        gradients = torch.autograd.grad(alpha * classification + beta * matching, slow.parameters)
        for module, expected_gradients in ((net, gradients), (detector, detector_gradients)):
            for (name, parameter), gradient in zip(module.named_parameters(), expected_gradients, strict=True):
                assert parameter.grad is not None
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5, msg=f"{name} differs")
        slow.step(gradients)
        if order == "before":
            slow_second.step(detector_gradients)
        expected = {"classification_loss": classification, "matching_loss": matching, "detector_loss": detection}
        expected |= {"loss": alpha * classification + beta * matching}
        for name, value in expected.items():
            assert float(sums[name]) == pytest.approx(8 * value.item(), rel=1e-4), name
        assert float(sums["detector_accuracy"]) == (guess.argmax(1) == adversarial).sum()
    equal(net, slow_net)
    equal(detector, slow_detector)
    assert model_files.digest(pretrained) == before  # running averages included
    assert not pretrained.training
    assert all(parameter.grad is None for parameter in pretrained.parameters())


@pytest.mark.parametrize("order", ["before", "after"])
def test_dropout_is_on_for_the_detectors_loss_and_as_published_for_the_matching_term(
    tiny: Callable[..., Params], order: str
) -> None:
    settings, batch = tiny().training, batches(1)[0]
    sums = []
    for dropout in (0.0, 0.8):
        detector_settings = detecting(dropout=dropout, order=order, learning_rate=1e-9)
        detector = detector_for(SMALL, dropout=dropout)
        step = joint_step(
            small(seed=1).train(), small(seed=2).eval(), detector, settings, detector_settings, torch.float32
        )
        sums.append(step.run(*batch))
    without, with_dropout = sums
    assert torch.equal(without["matching_loss"], with_dropout["matching_loss"]) == (order == "before")
    assert torch.equal(without["classification_loss"], with_dropout["classification_loss"])
    assert not torch.equal(without["detector_loss"], with_dropout["detector_loss"])


def test_plain_steps_are_cross_entropy(tiny: Callable[..., Params]) -> None:
    settings = tiny(training={"learning_rate": 0.05}).training
    net = small(seed=1).train()
    slow_net = copy.deepcopy(net)
    step = plain_step(net, settings, torch.float32)
    slow = SlowSgd(slow_net, 0.05, settings.momentum, settings.weight_decay)
    for images, labels, adversarial in batches():
        sums = step.run(images, labels, adversarial)
        loss = F.cross_entropy(slow_net(images), labels)
        assert float(sums["loss"]) == pytest.approx(8 * loss.item(), rel=1e-4)
        slow.step(torch.autograd.grad(loss, slow.parameters))
    equal(net, slow_net)


def one_cycle(step: int, steps: int) -> float:
    """Return the rate's factor: half a cosine from 1/25 to 1 in the first 30 % of the steps, then down to 1/250,000."""
    top = 0.3 * steps - 1
    start, end, share = (1 / 25, 1, step / top) if step <= top else (1, 4e-6, (step - top) / (steps - 1 - top))
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize(("eps", "step", "steps"), [(0.05, 0.0625, 1), (0.05, 0.02, 4)])
def test_online_attacks_are_pgd_on_the_net_as_it_is(eps: float, step: float, steps: int) -> None:
    net = small().train()
    torch.manual_seed(1)
    images, labels = torch.rand(16, 3, 16, 16), torch.randint(10, (16,))
    images[:2] = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    before = copy.deepcopy(net.state_dict())
    opponents = OnlineOpponents(net, Online(eps=eps, step=step, steps=steps, noise=1), torch.float32, 0)

    def attack(images: Tensor, labels: Tensor, epoch: int, number: int) -> Tensor:
        batch = Batch(torch.arange(16), images, labels, torch.zeros(16, dtype=torch.bool))
        start_noise = opponents.draw(batch, epoch, number)
        return opponents.show(
            batch, Augmentation(torch.empty(0), None), lambda batch_images: batch_images, start_noise
        ).images

    attacked = attack(images, labels, 3, 7)
    assert net.training and all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters()) and not attacked.requires_grad
    assert torch.equal(attack(images, labels, 3, 7), attacked)
    assert not torch.equal(attack(images, labels, 3, 8), attacked) and not torch.equal(
        attack(images, labels, 4, 7), attacked
    )
    generator = torch.Generator().manual_seed(int(rng(0, "online", 3, 7).integers(2**62)))
    noise = torch.randn(16, 1, 3, 16, 16, generator=generator)[:, 0]
    uniform = 2 * torch.distributions.Normal(0, 1).cdf(noise) - 1
    assert abs(uniform.mean()) < 0.02 and abs(uniform.var() - 1 / 3) < 0.02
    by_hand = (images + eps * uniform).clamp(0, 1)
    net.eval()
    for _ in range(steps):
        by_hand.requires_grad_()
        gradient = torch.cat(
            [
                torch.autograd.grad(F.cross_entropy(net(by_hand[n : n + 1]), labels[n : n + 1]), by_hand)[0][n : n + 1]
                for n in range(16)
            ]
        )
        by_hand = (by_hand + step * gradient.sign()).detach()
        by_hand = torch.minimum(torch.maximum(by_hand, images - eps), images + eps).clamp(0, 1)
    # Where a gradient is next to nothing, rounding decides its sign.
    assert ((attacked - by_hand).abs() < 1e-6).float().mean() > 0.999
    assert (attacked - images).abs().max() <= eps + 1e-6 and attacked.min() >= 0 and attacked.max() <= 1
    with torch.no_grad():
        assert F.cross_entropy(net(attacked), labels) > F.cross_entropy(net(images), labels)


def eight() -> Images:
    images = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), np.uint8)
    return Images(np.arange(8), np.arange(8), images)


def fit(
    settings: Params, net: ResNet, step: Step, validation: Images | None = None, monitor: Monitor | None = None
) -> pd.DataFrame:
    """Train on eight images, in three batches an epoch where the batch size is 3. Return the history."""
    clean = eight()
    gallery = Gallery(clean.image[None], clean, [], CPU)
    validation_images = clean if validation is None else validation
    history = run_training(settings, "eight", net, step, gallery, Opponents(), validation_images, monitor=monitor)
    return pd.DataFrame(history)


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        ("constant", lambda step: 1),
        ("step", lambda step: 1 if step < 6 else 0.1 if step < 9 else 0.01),
        ("cosine", lambda step: (1 + math.cos(math.pi * step / 12)) / 2),
        ("one_cycle", lambda step: one_cycle(step, 12)),
    ],
)
def test_a_schedule_moves_the_rates_of_net_and_detector(
    tiny: Callable[..., Params], schedule: str, share: Callable[[int], float]
) -> None:
    nets = [nn.Linear(1, 1), nn.Linear(1, 1)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD(net.parameters(), rate) for net, rate in zip(nets, (0.2, 0.1), strict=True)
    ]
    rates: list[list[float]] = []

    def run(images: Tensor, labels: Tensor, adversarial: Tensor, penalty: None) -> dict[str, Tensor]:
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
        for optimizer in optimizers:
            optimizer.step()
        return {"loss": torch.zeros(())}

    settings = tiny(training={"epochs": 4, "batch_size": 3, "schedule": schedule})
    fit(settings, small(), Step(run, optimizers))
    np.testing.assert_allclose(rates, np.outer([share(step) for step in range(12)], [0.2, 0.1]), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_smoothed_labels(tiny: Callable[..., Params], smoothing: float) -> None:
    settings = tiny(training={"label_smoothing": smoothing}).training
    images, labels, adversarial = batches(1)[0]
    net, pretrained, detector = small(seed=1).train(), small(seed=2).eval(), detector_for(SMALL)
    logits = F.log_softmax(copy.deepcopy(net)(images), 1)
    target = (1 - smoothing) * F.one_hot(labels, 10) + smoothing / 10
    expected = -(target * logits).sum(1).mean().item()
    plain = plain_step(copy.deepcopy(net), settings, torch.float32)
    joint = joint_step(net, pretrained, detector, settings, detecting(), torch.float32)
    assert float(plain.run(images, labels, adversarial)["loss"]) == pytest.approx(8 * expected, rel=1e-4)
    sums = joint.run(images, labels, adversarial)
    assert float(sums["classification_loss"]) == pytest.approx(8 * expected, rel=1e-4)


def counting(net: ResNet, helper: nn.Linear) -> Step:
    """Return a step that sets a bias and a running average of the net, and the helper's bias, to the step's number."""
    steps = 0

    def run(images: Tensor, labels: Tensor, adversarial: Tensor, penalty: None) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        with torch.no_grad():
            for tensor in (net.fc.bias, net.stem[1].running_mean, helper.bias):
                tensor.fill_(steps)  # type: ignore[operator, union-attr]
        return {"loss": torch.zeros(())}

    return Step(run, [], (helper,))


def test_the_moving_average_is_validated_and_kept(tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch) -> None:
    net, helper = small(), nn.Linear(1, 1)
    validated = []

    def predict(evaluated: ResNet, *rest: object) -> np.ndarray:
        validated.append(evaluated.fc.bias[0].item())
        return np.eye(10)[:8]

    monkeypatch.setattr(classifier, "predict", predict)
    fit(tiny(training={"epochs": 2, "batch_size": 3, "ema": 0.75}), net, counting(net, helper))
    averages = [1.0]
    for step in range(2, 7):
        averages.append(0.75 * averages[-1] + 0.25 * step)
    assert validated == pytest.approx([averages[2], averages[5]])
    assert net.fc.bias[0].item() == net.stem[1].running_mean[0].item() == validated[1]  # type: ignore[index, union-attr]
    assert helper.bias.item() == 6


def test_the_best_epoch_is_the_first_of_the_best_on_validation_images(
    tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = iter([2, 5, 3, 5, 4])

    def predict(*_: object) -> np.ndarray:
        guesses = np.arange(8)
        guesses[next(right) :] = 9
        return np.eye(10)[guesses]

    monkeypatch.setattr(classifier, "predict", predict)
    net, helper = small(), nn.Linear(1, 1)
    settings = tiny(training={"epochs": 5, "batch_size": 3, "keep": "best"})
    history = fit(settings, net, counting(net, helper))
    np.testing.assert_allclose(history["validation_accuracy"], np.array([2, 5, 3, 5, 4]) / 8)
    assert net.fc.bias[0].item() == net.stem[1].running_mean[0].item() == helper.bias.item() == 6  # type: ignore[index, union-attr]
    fails(
        "keep is best, but there are no validation images",
        lambda: fit(settings, net, counting(net, helper), eight()[:0]),
    )


def test_the_best_epoch_by_pgd_is_of_those_that_are_monitored(tiny: Callable[..., Params]) -> None:
    right = {2: 0.5, 4: 0.75, 5: 0.75}

    def monitor(net: Classifier, epoch: int) -> dict[str, float]:
        return {"pgd_accuracy": right[epoch], "fgsm_accuracy": 0.8} if epoch in right else {}

    settings = tiny(training={"epochs": 5, "batch_size": 3, "keep": "best_robust"}, monitor={"every": 2})
    net = small()
    history = fit(settings, net, counting(net, nn.Linear(1, 1)), monitor=monitor)
    assert history["pgd_accuracy"].dropna().to_dict() == {1: 0.5, 3: 0.75, 4: 0.75}
    assert net.fc.bias[0].item() == 4 * 3
    unwatched = small()  # as the pretrained net is
    fit(settings, unwatched, counting(unwatched, nn.Linear(1, 1)))
    assert unwatched.fc.bias[0].item() == 5 * 3
    fails(
        "keep is best_robust, but there are no validation images",
        lambda: fit(settings, net, counting(net, nn.Linear(1, 1)), eight()[:0]),
    )


@given(st.integers(1, 50), st.integers(2, 9))
def test_batches_hold_every_visit_once_and_none_is_of_one_image(count: int, size: int) -> None:
    stops = batch_stops(count, size)
    sizes = np.diff(stops, prepend=0)
    assert stops[-1] == count and (sizes[:-1] == size).all()
    assert 0 < sizes[-1] <= size + 1 and (count == 1 or sizes[-1] > 1)
