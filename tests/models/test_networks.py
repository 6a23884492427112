"""Tests classifiers of torchvision by name: their maps, and that all that works with our ResNet works with them."""

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from structures import words
from torch import Tensor, nn
from torchvision import models

from sparring.attacks import engine, generation
from sparring.data import prepare
from sparring.defences.train import train
from sparring.evaluation import predict
from sparring.layout import HERE
from sparring.models import classifier, model_files, networks, torchvision
from sparring.models.classifier import Classifier
from sparring.models.detector import TransformerDetector
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.sections import Network
from sparring.params.structures import Detector
from sparring.training.pretrain import pretrain

CPU = torch.device("cpu")
SIZE = 32  # pixels
CLASSES = 7


class Family(NamedTuple):
    shapes: list[tuple[int, int, int]]  # of the maps, from fine to coarse
    ends: list[int]  # so many of torchvision's own steps lead to each of them


FAMILIES = {
    "vgg11_bn": Family([(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)], [7, 14, 21, 28]),
    "mobilenet_v3_small": Family([(16, 8, 8), (24, 4, 4), (48, 2, 2), (576, 1, 1)], [2, 4, 9, 13]),
    "convnext_tiny": Family([(96, 8, 8), (192, 4, 4), (384, 2, 2), (768, 1, 1)], [2, 4, 6, 8]),
    "vit_b_16": Family([(768, 8, 8)] * 4, [3, 6, 9, 12]),
}


class Case(NamedTuple):
    name: str
    net: Classifier  # in eval mode
    plain: nn.Module  # torchvision's own with the same tensors
    images: Tensor


def fails(match: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Create a net of one family, whose BatchNorm averages and last layer are not trivial."""
    torch.manual_seed(0)
    net = networks.create(Network(name=request.param), CLASSES, SIZE).eval()
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]
        if name.endswith("heads.head"):
            nn.init.normal_(module.weight, 0, 0.1)  # torchvision's is 0
    with torch.device("meta"):  # its tensors are those of the net, by the names that torchvision gives them
        if request.param == "vit_b_16":  # of 4 × 4 pixels a patch, as 16 × 16 would cut these images into 2 × 2
            plain: nn.Module = models.VisionTransformer(SIZE, 4, 12, 12, 768, 3072, num_classes=CLASSES)
        else:
            plain = models.get_model(request.param, num_classes=CLASSES)
    plain.load_state_dict(net.state_dict(), assign=True)
    yield Case(request.param, net, plain.eval(), torch.rand(3, 3, SIZE, SIZE))


@torch.no_grad()
def test_maps_are_the_last_before_each_halving_from_fine_to_coarse(case: Case) -> None:
    family = FAMILIES[case.name]
    names = ["layer1", "layer2", "layer3", "layer4"]
    assert classifier.map_shapes(case.net, SIZE) == dict(zip(names, family.shapes, strict=True))
    maps = case.net.maps(case.images)
    assert classifier.layers(maps) == names
    for name, end in zip(names, family.ends, strict=True):
        torch.testing.assert_close(maps[name], plain_map(case.plain, case.images, end))


def plain_map(plain: nn.Module, images: Tensor, end: int) -> Tensor:
    if not isinstance(plain, models.VisionTransformer):
        maps = plain.features[:end](images)  # type: ignore[index, operator]
        # A ConvNeXt's stage is followed by a norm, at the same resolution, and that by a convolution that halves it.
        return plain.features[end][0](maps) if isinstance(plain, models.ConvNeXt) and end < 8 else maps
    tokens = plain._process_input(images)
    tokens = torch.cat([plain.class_token.expand(len(images), -1, -1), tokens], 1)
    tokens = plain.encoder.layers[:end](tokens + plain.encoder.pos_embedding)
    return tokens[:, 1:].mT.reshape(len(images), -1, 8, 8)


@torch.no_grad()
def test_logits_are_torchvisions_own(case: Case) -> None:
    expected = case.plain(case.images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(case.net(case.images), expected)
    torch.testing.assert_close(case.net.classify(case.net.maps(case.images)), expected)


@torch.no_grad()
def test_a_pass_stops_at_the_map_asked_for(case: Case) -> None:
    maps = case.net.maps(case.images)
    for last in ("layer1", "layer3"):
        part = case.net.maps(case.images, last=last)
        assert list(part) == classifier.layers(maps)[: int(last[-1])]
        torch.testing.assert_close(part[last], maps[last])
    torch.testing.assert_close(case.net(case.images), case.net.classify(maps))  # and the next goes on to the end


@torch.no_grad()
def test_a_frozen_net_is_the_same_function_in_tensors_of_its_own(case: Case) -> None:
    case.net.train()
    try:
        frozen = networks.frozen(case.net)
        assert case.net.training and all(parameter.requires_grad for parameter in case.net.parameters())
    finally:
        case.net.eval()
    assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    places = [{tensor.data_ptr() for tensor in net.state_dict().values()} for net in (case.net, frozen)]
    assert not places[0] & places[1]
    torch.testing.assert_close(frozen(case.images), case.net(case.images), rtol=1e-4, atol=1e-4)
    frozen_maps, maps = frozen.maps(case.images), case.net.maps(case.images)
    assert list(frozen_maps) == list(maps)
    for name in classifier.layers(maps):
        torch.testing.assert_close(frozen_maps[name], maps[name], rtol=1e-4, atol=1e-4)


def detecting(**changes: object) -> Detector:
    values: dict[str, object] = {"input": "full", "layers": 1, "tokens": "auto", "centre": "layer2", "dropout": 0.0}
    values |= {"alpha": 1.0, "beta": 1.0, "order": "before", "learning_rate": 0.01}
    return Detector.model_validate(values | changes)


@pytest.mark.parametrize("source", ["low", "full"])
def test_a_detector_learns_from_the_maps_and_gives_the_images_a_gradient(case: Case, source: str) -> None:
    torch.manual_seed(0)
    detector = TransformerDetector(detecting(input=source), classifier.map_shapes(case.net, SIZE))
    images = case.images.clone().requires_grad_()
    case.net.requires_grad_(False)
    try:
        logits = detector(case.net.maps(images, last=detector.last_map))
    finally:
        case.net.requires_grad_(True)
    assert logits.shape == (3, 2) and logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1])).backward()
    for gradient in (images.grad, *(parameter.grad for parameter in detector.parameters())):
        assert gradient is not None and gradient.isfinite().all()
    for gradient in (images.grad, *(parameter.grad for parameter in detector.embed.parameters())):
        assert gradient is not None and gradient.any()


def small_net(name: str = "mobilenet_v3_small", size: int = SIZE) -> Classifier:
    torch.manual_seed(1)
    return networks.create(Network(name=name), CLASSES, size).eval()


def test_a_copy_notes_its_own_maps() -> None:
    net, images = small_net(), torch.rand(2, 3, SIZE, SIZE)
    expected = net.maps(images)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for name, feature_map in other.maps(images).items():
        assert torch.equal(feature_map, expected[name]), name
    assert not net.maps(images)["layer1"].any()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", pytest.param("vit_b_16", marks=pytest.mark.slow)])
def test_torch_compile_gives_the_same_maps_and_gradients(name: str) -> None:
    net = small_net(name)
    fast = engine.Fast(net, CPU, torch.float32)
    # The back end alone is left out: it would compile C++ for a minute.
    torch._dynamo.reset()
    compiled = torch.compile(fast.net.maps, backend="eager", dynamic=True)
    for count in (2, 3):
        images = torch.rand(count, 3, SIZE, SIZE, requires_grad=True)
        expected, compiled_maps = fast.maps(images), compiled(images)
        assert list(compiled_maps) == list(expected)
        for key in expected:
            torch.testing.assert_close(compiled_maps[key], expected[key])
        torch.testing.assert_close(
            *(torch.autograd.grad(maps["layer4"].square().sum(), images)[0] for maps in (compiled_maps, expected))
        )


@pytest.mark.parametrize("name", ["swin_t", "densenet121", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet"])
@torch.no_grad()
def test_other_families(name: str) -> None:
    net = small_net(name, 64)
    shapes = list(classifier.map_shapes(net, 64).values())
    assert len(shapes) == 4
    assert all(fine[1] > coarse[1] and fine[1:] == (fine[1], fine[1]) for fine, coarse in pairwise(shapes))
    assert shapes[-1][1] > 1  # the head's pooling to 1 × 1 is no map
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(networks.frozen(net)(images), net(images), rtol=1e-4, atol=1e-4)
    # Also where the net goes on to change a map in place, as DenseNet does.
    for last in ("layer2", "layer4"):
        torch.testing.assert_close(net.maps(images, last=last)[last], net.maps(images)[last])


def test_patches_fit_the_image() -> None:
    sides = {(16, 32): 4, (16, 64): 8, (16, 224): 16, (32, 224): 32, (14, 224): 14, (16, 8): 1, (16, 200): 10}
    assert {key: torchvision.patch_size(*key) for key in sides} == sides


def test_a_small_image_has_fewer_maps_and_the_detector_reads_those() -> None:
    net = small_net(size=8)
    shapes = classifier.map_shapes(net, 8)
    assert [shape[1] for shape in shapes.values()] == [4, 2, 1]
    detector = TransformerDetector(detecting(centre="layer2"), shapes)
    assert detector.inputs == ("layer1", "layer2", "layer3") and detector.last_map == "layer3"
    assert detector(net.maps(torch.rand(2, 3, 8, 8))).isfinite().all()
    fails(
        r"detector\.centre is layer4; this network has layer1, layer2, layer3 for images of data\.image_size",
        lambda: TransformerDetector(detecting(centre="layer4"), shapes),
    )


def test_an_image_too_small_for_a_net_is_one_line() -> None:
    fails(
        r"network\.name is squeezenet1_1, which cannot read images of 8 pixels \(.+\); use a larger data\.image_size",
        lambda: small_net("squeezenet1_1", 8),
    )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.integers(1, 40), min_size=4, max_size=4), st.integers(1, 4))
def test_maps_of_any_size_are_brought_to_the_centre(sides: list[int], centre: int) -> None:
    shapes = {f"layer{number}": (4 * number, side, side) for number, side in enumerate(sides, 1)}
    detector_settings = detecting(centre=f"layer{centre}", tokens="position")
    detector = TransformerDetector(detector_settings, shapes)
    for name, (channels, side, _) in shapes.items():
        images = torch.rand(1, channels, side, side, requires_grad=True)
        embedded = detector.embed[name](images)
        assert embedded.shape[1:] == shapes[f"layer{centre}"]
        if side >= sides[centre - 1]:  # every place of a map counts
            assert torch.autograd.grad(embedded.sum(), images)[0].any(1).all()


def test_a_model_of_another_architecture_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    model_files.save_model(small_net(), path, {})
    resnet = Network(name="resnet", blocks=[1, 1, 1, 1], width=4)
    fails(r"classifier\.0\.bias is 1024, not absent;", lambda: networks.load(resnet, CLASSES, SIZE, path))
    larger = Network(name="mobilenet_v3_large")
    fails(r"classifier\.0\.bias is 1024, not 1280;", lambda: networks.load(larger, CLASSES, SIZE, path))
    same = Network(name="mobilenet_v3_small")
    fails(r"classifier\.3\.bias is 7, not 10;", lambda: networks.load(same, 10, SIZE, path))


def test_all_stages_run_with_a_net_of_torchvision(
    tiny: Callable[..., Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nst = {"steps": 1, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0005, "style": "gram"}
    params = tiny(
        network={"name": "mobilenet_v3_small"},
        data={"train": 100, "validation": 10, "test": 20, "heldout": 20},
        # 100 = 33 + 33 + 34: one image alone would stop BatchNorm, whose last maps here are 1 × 1.
        training={"epochs": 1, "batch_size": 33},
        attacks={"fgsm": {"eps": 0.05}, "nst": nst},
        unseen_attacks={},
        structures={"ours": words("sampler", detector="detector")},
        detector={"input": "full", "layers": 1, "centre": "layer1"},
    )
    prepare.prepare(params)
    pretrain(params)
    first = HERE.pretrained.read_bytes()
    pretrain(params)
    assert HERE.pretrained.read_bytes() == first  # its dropout is drawn under the seed
    for name in params.attacks:
        generation.attack_splits(params, name)
    for structure in params.structures:
        train(params, structure)
        predict.evaluate(params, structure)
        rows = pd.read_parquet(HERE.predictions(structure))
        assert len(rows) == 2 * 20 * 3 and rows["confidence"].between(0, 1).all()
    assert rows["detector_score"].between(0, 1).all()
    facts = model_files.facts(HERE.pretrained)
    assert facts["network"] == {"name": "mobilenet_v3_small"} and facts["image_size"] == 16
    models.get_model("mobilenet_v3_small", num_classes=10).load_state_dict(load_file(HERE.pretrained))
