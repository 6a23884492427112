"""Tests the networks for signs and faces: their layers, by their numbers of parameters, and every network's duties."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import fails
from torch import Tensor, nn

from sparring import params
from sparring.models import classifier, networks
from sparring.models.classifier import Classifier
from sparring.models.detector import TransformerDetector
from sparring.params.sections import Network
from sparring.params.structures import Detector
from sparring.profiles import missing

NAMES = ("dnn1", "dnn2", "dnn3", "dnn4", "mtcnn", "facenet")
PUBLISHED_FACENET = 27_910_327  # of the port to PyTorch that is used most, with its 8,631 classes


def network(name: str, dropout: float = 0.0, width_factor: float = 0.125) -> Network:
    width = {"width_factor": width_factor} if name == "facenet" else {}
    return Network.model_validate({"name": name, "dropout": dropout, **width})


def random_net(name: str, classes: int = 7, size: int = 32, **changes: float) -> Classifier:
    """Create a net whose BatchNorm averages and weights are no longer 0 and 1."""
    torch.manual_seed(0)
    net = networks.create(network(name, **changes), classes, size)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, 0, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def conv(channels_in: int, channels: int, kernel: int) -> int:
    """Count the parameters of a convolution without bias, and of the BatchNorm after it."""
    return channels_in * channels * kernel**2 + 2 * channels


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


PARAMETERS = {
    "dnn1": conv(3, 16, 5) + conv(16, 32, 5) + conv(32, 64, 3) + conv(64, 64, 3)
    # Three pools leave 4 × 4 positions of 32 × 32.
    + linear(64 * 4 * 4, 256) + linear(256, 256) + linear(256, 43),
    "dnn2": sum(conv(inner, width, 3) + conv(width, width, 3) for inner, width in ((3, 16), (16, 32), (32, 64)))
    + linear(64 * 4 * 4, 128) + linear(128, 43),
    "dnn3": conv(3, 16, 3) + 2 * conv(16, 16, 3)
    + sum(conv(half, 2 * half, 3) + conv(2 * half, 2 * half, 3) + conv(half, 2 * half, 1) for half in (16, 32))
    + linear(64, 43),
    # LeNet-5: 5 × 5 convolutions without padding leave 28, pools halve: 14, 10, 5.
    "dnn4": (75 + 1) * 6 + (150 + 1) * 16 + linear(16 * 5 * 5, 120) + linear(120, 84) + linear(84, 43),
    # O-Net: each convolution with its bias and PReLU's slopes; 3 × 3 positions are left of 48 × 48.
    "mtcnn": (27 + 2) * 32 + (9 * 32 + 2) * 64 + (9 * 64 + 2) * 64 + (4 * 64 + 2) * 128
    + linear(128 * 3 * 3, 256) + linear(256, 43),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_layers(name: str) -> None:
    assert count(networks.create(network(name), 43, 32)) == PARAMETERS[name]


def test_facenet_at_its_full_width_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(networks.create(network("facenet", width_factor=1.0), 8631, 32)) == PUBLISHED_FACENET
        quarter = count(networks.create(network("facenet", width_factor=0.25), 8631, 32))
    # Nearly all weights join two layers of channels, but for the classes' own.
    assert quarter - (128 + 1) * 8631 == pytest.approx((PUBLISHED_FACENET - (512 + 1) * 8631) / 16, rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_maps_come_from_the_finest_to_the_coarsest_and_end_where_asked(name: str) -> None:
    net, images = random_net(name).eval(), torch.rand(2, 3, 32, 32)
    shapes = classifier.map_shapes(net, 32)
    assert list(shapes) == [f"layer{number}" for number in range(1, len(shapes) + 1)]
    heights = [shape[1] for shape in shapes.values()]
    assert heights == sorted(heights, reverse=True) and len(shapes) >= 2
    with torch.no_grad():
        maps = net.maps(images)
        assert {key: tuple(feature_map.shape[1:]) for key, feature_map in maps.items()} == shapes
        torch.testing.assert_close(net.classify(maps), net(images))
        assert net(images).shape == (2, 7)
        assert list(net.maps(images, last="layer2")) == ["layer1", "layer2"]
        assert torch.equal(net.maps(images, last="layer2")["layer2"], maps["layer2"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 40])
def test_a_frozen_net_is_folded_and_gives_the_same_logits(name: str, size: int) -> None:
    net, images = random_net(name, size=size).eval(), torch.rand(3, 3, size, size)
    frozen = networks.frozen(net)
    norms = [module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == {"dnn3": 2}.get(name, 0)  # those behind a strided 1×1 convolution that oneDNN is spared
    with torch.no_grad():
        torch.testing.assert_close(frozen(images), net(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "side"), [("mtcnn", 48), ("facenet", 80)])
def test_images_of_faces_are_brought_to_the_size_of_the_layers_by_a_resize_that_gradients_pass(
    name: str, side: int
) -> None:
    net = random_net(name).eval()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    large = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
    inputs_of_layer1: list[Tensor] = []
    net.layer1.register_forward_pre_hook(lambda module, inputs: inputs_of_layer1.append(inputs[0]))  # type: ignore[union-attr]
    net(images).square().sum().backward()
    torch.testing.assert_close(inputs_of_layer1[0], large)
    assert images.grad is not None and images.grad.shape == images.shape
    assert (images.grad.abs().sum(1) > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_of_training_lower_the_loss(name: str) -> None:
    net = random_net(name).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels = torch.arange(28) % 7
    images = 0.2 * torch.rand(28, 3, 32, 32) + 0.1 * labels.view(-1, 1, 1, 1)  # a class is as bright as its number
    optimizer = torch.optim.Adam(net.parameters(), 0.002)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only(name: str) -> None:
    images = torch.rand(4, 3, 32, 32)
    for share in (0.0, 0.5):
        net = random_net(name, dropout=share)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.momentum = 0.0
        with torch.no_grad():
            first, second = net.train()(images), net(images)
            assert torch.equal(net.eval()(images), net(images))
        assert torch.equal(first, second) == (share == 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_reads_the_maps_or_says_which_there_are(name: str) -> None:
    shapes = classifier.map_shapes(random_net(name, width_factor=0.25), 32)
    values: dict[str, Any] = {"input": "full", "layers": 1, "tokens": "auto", "centre": "layer3", "dropout": 0.0}
    values |= {"alpha": 1.0, "beta": 1.0, "order": "before", "learning_rate": 0.01}
    settings = Detector.model_validate(values)
    refused = {"dnn4": "detector.centre is layer3; this network has layer1, layer2"}
    refused |= {"facenet": "detector.centre is layer3; its tokens of 9 numbers cannot be split"}  # of 3 × 3 positions
    if name in refused:
        fails(refused[name], lambda: TransformerDetector(settings, shapes))
    else:
        maps = {key: torch.rand(2, *shape) for key, shape in shapes.items()}
        assert TransformerDetector(settings, shapes)(maps).shape == (2, 2)


def test_images_that_are_too_small_are_refused() -> None:
    fails("network.name is dnn4, which cannot read images of 8 pixels", lambda: networks.create(network("dnn4"), 7, 8))
    assert networks.create(network("mtcnn"), 7, 8)(torch.rand(1, 3, 8, 8)).shape == (1, 7)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("dnn1", "dropout is missing; add it"),
        ("{name: dnn1, dropout: 1.0}", "dropout"),
        ("{name: facenet, dropout: 0.5}", "width_factor is missing; add it"),
        ("{name: facenet, dropout: 0.5, width_factor: 1.5}", "width_factor"),
        ("{name: mtcnn, dropout: 0, width_factor: 0.5}", "width_factor is 0.5; only facenet has it"),
        ("{name: vgg11, dropout: 0.5}", "dropout is 0.5; only facenet, dnn1, dnn2, dnn3, dnn4, mtcnn has it"),
        ("{name: dnn5, dropout: 0.5}", "did you mean dnn"),
    ],
)
def test_keys_that_a_network_has_not_or_lacks_are_named(value: str, expected: str) -> None:
    fails(expected, lambda: params.network(value, "--network"))


def test_a_network_without_blocks_lacks_none(tiny: Callable[..., params.Params]) -> None:
    settings = tiny(network={"name": "facenet", "dropout": 0.1, "width_factor": 0.25})
    assert settings.network.words == "facenet at 0.25 of its width with dropout of 0.1"
    assert not missing(settings.model_dump(mode="json") | {"structures": {"baseline": {}}}).keys() & {"network.blocks"}
