"""Tests the ResNet, its maps and its frozen copy; model files; predictions."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_nets import MAPS, fails, small, stirred
from torch import nn

from sparring.models import classifier, model_files, networks, resnet
from sparring.models.resnet import ResNet
from sparring.params.sections import Network
from sparring.store import Images

CPU = torch.device("cpu")


def test_maps_of_resnet34_have_the_papers_shapes() -> None:
    net = ResNet((3, 4, 6, 3), 64, 10).eval()
    with torch.no_grad():
        maps = net.maps(torch.zeros(1, 3, 32, 32))
        logits = net.classify(maps)
    assert {name: tuple(feature_map.shape[1:]) for name, feature_map in maps.items()} == MAPS
    assert list(maps) == list(resnet.LAYERS)
    torch.testing.assert_close(logits, net.fc(maps["layer4"].mean((2, 3))))
    # 21.28 million, as the ResNet-34 with this stem that is known from the literature on CIFAR-10.
    assert sum(parameter.numel() for parameter in net.parameters()) == 21_282_122


def test_map_shapes_are_measured_without_a_trace() -> None:
    net = small(width=8).train()
    before = model_files.digest(net)
    shapes = classifier.map_shapes(net, 16)
    assert shapes["layer1"] == (8, 16, 16) and shapes["layer4"] == (64, 2, 2)
    assert model_files.digest(net) == before and net.training


def test_maps_stop_where_asked() -> None:
    assert list(small().eval().maps(torch.zeros(1, 3, 16, 16), last="layer2")) == ["stem", "layer1", "layer2"]


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (2, 1, 3, 1)])
def test_a_frozen_net_is_the_same_function(blocks: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    net = stirred(ResNet(blocks, 8, 7)).train()
    before = model_files.digest(net)
    folded = networks.frozen(net)
    assert model_files.digest(net) == before and net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not folded.training and not any(parameter.requires_grad for parameter in folded.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        maps, folded_maps = net.eval().maps(images), folded.maps(images)
        for name in resnet.LAYERS:
            torch.testing.assert_close(folded_maps[name], maps[name], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(folded(images), net(images), rtol=1e-5, atol=1e-5)


def test_digest_is_of_the_tensors(tmp_path: Path) -> None:
    net = small()
    digest = model_files.digest(net)
    assert model_files.digest(copy.deepcopy(net).to(memory_format=torch.channels_last)) == digest
    for name in ("a", "b"):
        model_files.save_model(net, tmp_path / name, {"name": name})
        other = small(seed=3)
        assert model_files.digest(other) != digest
        model_files.load_into(other, tmp_path / name)
        assert model_files.digest(other) == digest
    for name, tensor in net.state_dict().items():
        changed = copy.deepcopy(net)
        changed.state_dict()[name].view(-1)[0].add_(1)
        assert model_files.digest(changed) != digest, f"{name} does not count ({tuple(tensor.shape)})"


def test_a_model_comes_back_as_saved(tmp_path: Path) -> None:
    net, path = small(), tmp_path / "below" / "net.safetensors"
    model_files.save_model(net, path, {"name": "x", "classes": ["é"]})
    network = Network(name="resnet", blocks=[1, 2, 1, 1], width=4)
    loaded = networks.load(network, 10, 16, path)
    assert loaded.state_dict().keys() == net.state_dict().keys() == load_file(path).keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
    assert model_files.facts(path) == {"name": "x", "classes": ["é"]}
    before = path.read_bytes()
    model_files.save_model(loaded, path, {"classes": ["é"], "name": "x"})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_model_of_another_architecture_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    model_files.save_model(small(), path, {})
    same, wider, deeper = (
        Network(name="resnet", blocks=blocks, width=width)
        for blocks, width in (([1, 2, 1, 1], 4), ([1, 2, 1, 1], 8), ([2, 2, 1, 1], 4))
    )
    fails(r"net\.safetensors .*: fc\.bias is 10, not 7;", lambda: networks.load(same, 7, 16, path))
    fails(r"net\.safetensors .*: fc\.weight is 10×32, not 10×64;", lambda: networks.load(wider, 10, 16, path))
    fails(r"layer1\.1\.conv1\.weight is absent, not 4×4×3×3;", lambda: networks.load(deeper, 10, 16, path))


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    path, network = tmp_path / "net.safetensors", Network(name="resnet", blocks=[1, 2, 1, 1], width=4)
    fails(r"net\.safetensors is missing; `dvc repro` makes it", lambda: networks.load(network, 10, 16, path))
    path.write_bytes(b"")
    fails(r"net\.safetensors is not a model file", lambda: networks.load(network, 10, 16, path))
    path.write_bytes(b"something else altogether")
    fails(r"net\.safetensors is not a model file", lambda: networks.load(network, 10, 16, path))
    model_files.save_model(small(), path, {})
    path.write_bytes(path.read_bytes()[:-100])
    fails(r"net\.safetensors is not a model file", lambda: networks.load(network, 10, 16, path))
    save_file({"weight": torch.zeros(2)}, path)
    fails(r"net\.safetensors is not a model file", lambda: networks.load(network, 10, 16, path))


def test_predictions_do_not_depend_on_batches(net: ResNet, digits: Images) -> None:
    probabilities = classifier.predict(net, digits.image, 120, CPU)
    np.testing.assert_allclose(classifier.predict(net, digits.image, 7, CPU), probabilities, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == digits.label).mean() > 0.7
    assert classifier.predict(net, digits.image[:0], 7, CPU).shape == (0, 10)
