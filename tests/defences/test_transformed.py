"""Tests random transforms in a structure: in training, under online attacks, at prediction, and as a target."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PGD
from safetensors.torch import load_file
from small_nets import small
from structures import words
from torch import Tensor, nn

from sparring import store
from sparring.attacks import engine
from sparring.data.augmentation import Augmentation
from sparring.data.transforms import RandomTransform
from sparring.defences.opponents import OnlineOpponents
from sparring.defences.train import train
from sparring.device import torch_seed
from sparring.evaluation import corruptions, detect, predict, whitebox
from sparring.layout import HERE
from sparring.models import classifier, model_files, networks
from sparring.models.averaged import Averaged, as_attacked
from sparring.models.classifier import Classifier
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.names import CLEAN, SINGLE_DRAW
from sparring.params.structures import Online
from sparring.params.transforms import Mask, Noise
from sparring.report import checks
from sparring.store import Images
from sparring.training.gallery import Batch, Gallery
from sparring.training.loop import Opponents, fit
from sparring.training.steps import Step

CPU = torch.device("cpu")
WORDS = ("mask", "padding", "mask_padding", "noise", "cutout", "erasing", "resizing")
MASK = Mask(share=0.5, unit="pixel", patch=4, fill="zero", training=True, draws=0)


def structure(opponents: str = "none", detector: str = "none", transform: str = "mask") -> dict[str, str]:
    return words(opponents, detector=detector, transform=transform)


@pytest.mark.parametrize("trained_with", [True, False])
def test_the_net_learns_from_draws_by_epoch_and_image(tiny: Callable[..., Params], trained_with: bool) -> None:
    settings = tiny(training={"epochs": 3, "batch_size": 4, "crop_area": [1.0, 1.0]})
    clean = Images(np.arange(10) + 70, np.arange(10), np.full((10, 16, 16, 3), 255, np.uint8))
    gallery = Gallery(clean.image[None], clean, [], CPU)
    transform = RandomTransform("mask", MASK.model_copy(update={"training": trained_with, "draws": 1}), ())
    batches_seen: list[tuple[Tensor, Tensor]] = []

    def note(images: Tensor, labels: Tensor, adversarial: Tensor, penalty: None) -> dict[str, Tensor]:
        batches_seen.append((labels, images))
        return {"loss": torch.tensor(0.0)}

    fit(settings, "ten", small(), Step(note, []), gallery, Opponents(), clean, transform=transform)
    epochs = [batches_seen[:3], batches_seen[3:6], batches_seen[6:]]
    for epoch, batches in enumerate(epochs):
        labels, images = (torch.cat(part) for part in zip(*batches, strict=True))
        images = images[labels.argsort()]
        if not trained_with:
            assert (images > 0.99).all()
            continue
        # Image k is of class k here, and the k-th row of the training images.
        expected = transform.draw((3, 16, 16), np.arange(10), settings.seed, "transform", epoch)(
            torch.ones(10, 3, 16, 16)
        )
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
        assert len({image.numpy().tobytes() for image in images}) == 10


def test_an_online_attacker_sees_the_net_through_the_draw_of_the_batch() -> None:
    net, images, labels = small(), torch.rand(6, 3, 16, 16), torch.arange(6)
    opponents = OnlineOpponents(net, Online(eps=0.1, step=0.125, steps=1, noise=1), torch.float32, 0)
    draw = RandomTransform("mask", MASK, ()).draw((3, 16, 16), np.arange(6), 0, "transform", 0)
    visible = draw(torch.ones(6, 3, 16, 16)) > 0
    batch = Batch(torch.arange(6), images, labels, torch.zeros(6, dtype=torch.bool))
    view = Augmentation(torch.empty(0), None)

    def attacked(transform_draw: Callable[[Tensor], Tensor]) -> Tensor:
        return opponents.show(batch, view, transform_draw, opponents.draw(batch, 0, 1)).images

    attacked_images = attacked(draw)
    # No step is made where the net sees nothing: the change there is that of the random start, which is smaller.
    start = attacked(lambda batch_images: batch_images * 0)
    assert torch.equal(attacked_images[~visible], start[~visible])
    assert (attacked_images != start)[visible].float().mean() > 0.9
    # It is the attack on a net in front of which the draw is made.
    plain = OnlineOpponents(
        nn.Sequential(_Transformed(draw), net), Online(eps=0.1, step=0.125, steps=1, noise=1), torch.float32, 0
    )
    expected = plain.show(batch, view, lambda batch_images: batch_images, plain.draw(batch, 0, 1)).images
    assert torch.equal(attacked_images, expected)


class _Transformed(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, images: Tensor) -> Tensor:
        return self.draw(images)


class _Linear(Classifier):
    """Has two classes, with logits 0 and w · x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 48))

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        return {"layer1": images}

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        score = maps["layer1"].flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(score), score], 1)


def test_a_prediction_is_the_mean_softmax_over_the_draws() -> None:
    noise = RandomTransform("noise", Noise(std=1.0, training=False, draws=3000), ())
    net, images = _Linear(), torch.rand(2, 3, 4, 4)
    averaged = Averaged(net, noise, 3000, 0)
    score = (images.flatten(1) @ net.weight).detach().double()
    # The score under noise is normal, so its mean sigmoid is a one-dimensional integral.
    spread, grid = net.weight.detach().double().norm(), torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2)
    expected = (torch.sigmoid(score[:, None] + spread * grid) * density).sum(1) / density.sum()
    with torch.no_grad():
        probabilities = averaged(images).exp()
        assert torch.equal(averaged(images[1:]), averaged(images)[1:])  # the draws are the same for every image
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    assert (probabilities[:, 1].double() - expected).abs().max() < 0.05
    assert not torch.allclose(probabilities[:, 1].double(), torch.sigmoid(score), atol=0.02)


def test_an_attacker_gets_new_draws_each_time_and_repeats_with_the_seed(net: ResNet, images: Tensor) -> None:
    averaged = Averaged(net, RandomTransform("mask", MASK, ()), 4, 0)
    fast = engine.Fast(as_attacked(averaged), CPU, torch.float32)
    with torch.no_grad(), torch_seed(0, "attack"):
        first, second = fast(images[:8]), fast(images[:8])
    with torch.no_grad(), torch_seed(0, "attack"):
        assert torch.equal(fast(images[:8]), first)
    assert not torch.allclose(first, second, atol=1e-3)
    with torch.no_grad():  # folded, but else the same
        torch.testing.assert_close(networks.frozen(averaged)(images[:8]), averaged(images[:8]), rtol=0, atol=1e-4)
        single = networks.frozen(averaged.of_one_draw())(images[:8])
        view = next(averaged.views(images[:8]))
        torch.testing.assert_close(single, net(view).log_softmax(1), rtol=0, atol=1e-4)
    assert as_attacked(net) is net and not averaged.fresh and averaged.draws == 4


@pytest.mark.parametrize("opponents", ["none", "sampler", "online_fgsm"])
def test_every_transform_goes_with_every_kind_of_opponents(
    project: Path, tiny: Callable[..., Params], opponents: str
) -> None:
    structures = {word: structure(opponents, transform=word) for word in (*WORDS, "none")}
    settings = tiny(structures=structures, training={"epochs": 1}, resizing={"training": True})
    tensors = {}
    for word in structures:
        train(settings, word)
        tensors[word] = load_file(HERE.model(word, 0))["fc.weight"].numpy().tobytes()
        assert ("mean_colour" in model_files.facts(HERE.model(word, 0))) == (word != "none")
    assert len(set(tensors.values())) == len(structures)
    train(settings, "mask")
    assert load_file(HERE.model("mask", 0))["fc.weight"].numpy().tobytes() == tensors["mask"]


def test_share_0_is_no_transform_and_a_detector_goes_with_one(project: Path, tiny: Callable[..., Params]) -> None:
    structures = {"plain": structure(transform="none"), "masked": structure(), "ours": structure("sampler", "detector")}
    settings = tiny(structures=structures, training={"epochs": 1}, mask={"share": 0.0, "draws": 2})
    for name in structures:
        train(settings, name)
    plain, masked = (load_file(HERE.model(name, 0)) for name in ("plain", "masked"))
    assert all(torch.equal(plain[name], masked[name]) for name in plain)
    detect.detect(settings, "ours")
    assert pd.read_parquet(HERE.detection("ours"))["detector"].between(-50, 50).any()


def test_predictions_through_a_transform_are_those_of_its_draws(project: Path, tiny: Callable[..., Params]) -> None:
    settings = tiny(structures={"masked": structure()}, mask={"share": 0.3, "fill": "mean", "draws": 3})
    train(settings, "masked")
    predict.evaluate(settings, "masked")
    corruptions.evaluate(settings, "masked")
    rows = pd.read_parquet(HERE.predictions("masked"))
    rows = rows[(rows["split"] == "test") & (rows["attack"] == CLEAN)]
    clean = store.read(HERE.clean / "test.parquet")
    net = networks.load(settings.network, 10, 16, HERE.model("masked", 0)).eval()
    mean = store.read(HERE.clean / "train.parquet").image.mean((0, 1, 2)) / 255
    transform = RandomTransform("mask", settings.mask, tuple(mean.tolist()))
    images, total = classifier.to_images(clean.image, CPU), torch.zeros(len(clean), 10)
    for number in range(3):
        draw = transform.draw((3, 16, 16), np.zeros(len(clean), np.int64), 0, "prediction", number)
        with torch.no_grad():
            total += net(draw(images)).softmax(1) / 3
    assert np.array_equal(rows["index"], clean.index)
    np.testing.assert_allclose(rows["confidence"], total.amax(1), atol=1e-4)
    heldout = pd.read_parquet(HERE.corruptions("masked"))
    assert heldout["confidence"].between(0.1, 1).all()


def test_attacking_a_single_draw_would_have_flattered_the_defence(project: Path, tiny: Callable[..., Params]) -> None:
    changes: dict[str, Any] = {"attacks": {"pgd": PGD | {"eps": 0.15, "step": 0.03, "steps": 10}}}
    changes |= {"images": 60, "checks": {"images": 60, "steps": 11, "queries": 1}}
    settings = tiny(
        structures={"masked": structure()}, mask={"share": 0.5, "draws": 16}, whitebox=changes, training={"epochs": 12}
    )
    train(settings, "masked")
    whitebox.attack_structure(settings, "masked")
    rows = pd.read_parquet(HERE.whitebox("masked")).assign(structure="masked")
    rows["correct"] = rows["prediction"] == rows["label"]
    accuracy = rows.groupby("attack")["correct"].mean()
    assert accuracy[CLEAN] > 0.6 and accuracy[SINGLE_DRAW] > accuracy["pgd"] + 0.1
    verdicts = checks.verdicts(settings, rows, rows.iloc[:0]).set_index("check")
    verdict = verdicts.loc["the whole transform beats one draw"]
    verdict = verdict[verdict["structure"] == "masked"].iloc[0]
    assert verdict["passed"] and verdict["against"] > verdict["accuracy"] + 0.1 and verdict["images"] == 60
    before = rows
    whitebox.attack_structure(settings, "masked")
    assert pd.read_parquet(HERE.whitebox("masked")).equals(before.drop(columns=["structure", "correct"]))
