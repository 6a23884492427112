"""Compares the detector with PyTorch's own layers and the sizes that the paper gives."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_nets import MAPS, SMALL, detector_for, small, some_maps
from torch import Tensor, nn

from sparring.models.detector import Dropout, Layer


@pytest.mark.parametrize(
    ("source", "tokens", "count", "dim"),
    [
        ("full", "auto", 512, 256),
        ("full", "channel", 512, 256),
        ("full", "position", 256, 512),
        ("low", "auto", 256, 128),
        ("low", "position", 256, 128),
        ("low", "channel", 128, 256),
    ],
)
def test_tokens(source: str, tokens: str, count: int, dim: int) -> None:
    with torch.no_grad():
        detector = detector_for(MAPS, input=source, tokens=tokens)
        maps = some_maps(MAPS)
        assert detector.position.shape == (1, count + 1, dim)
        assert detector.token(maps).shape == (2, dim)
        assert detector(maps).shape == (2, 2)
    assert detector.last_map == ("layer4" if source == "full" else "layer1")


@pytest.mark.parametrize("centre", ["layer1", "layer2", "layer3", "layer4"])
def test_every_map_is_brought_to_the_centre(centre: str) -> None:
    shapes = {name: (channels // 8, height, width) for name, (channels, height, width) in MAPS.items()}
    with torch.no_grad():
        detector = detector_for(shapes, centre=centre, tokens="position")
        maps = some_maps(shapes)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            assert detector.embed[name](maps[name]).shape[1:] == shapes[centre]
        channels, height, width = shapes[centre]
        assert detector.position.shape == (1, height * width + 1, 4 * channels)


def test_the_embedding_of_the_paper() -> None:
    embed = detector_for({name: (c // 8, h, w) for name, (c, h, w) in MAPS.items()}).embed
    kinds = {
        name: [(type(m), m.kernel_size, m.stride) for m in part.modules() if hasattr(m, "kernel_size")]
        for name, part in embed.items()
    }
    up = (nn.ConvTranspose2d, (2, 2), (2, 2))
    assert kinds == {
        "layer1": [(nn.Conv2d, (3, 3), (2, 2))],
        "layer2": [(nn.Conv2d, (1, 1), (1, 1))],
        "layer3": [up],
        "layer4": [up, up],
    }
    assert [step.out_channels for step in embed["layer4"]] == [32, 16]


def test_the_detector_of_the_paper_has_the_published_size_and_start() -> None:
    detector = detector_for(MAPS, input="full", layers=2)
    assert sum(parameter.numel() for parameter in detector.parameters()) == 2_589_442
    assert not detector.position.any() and not detector.class_token.any()


@pytest.mark.parametrize(("source", "count"), [("full", 4), ("low", 4), ("low", 300)])
def test_a_detector_is_a_stack_of_pytorchs_encoder_layers(source: str, count: int) -> None:
    """300 images pass through the layers in several parts."""
    detector = detector_for(SMALL, input=source, layers=3).eval()
    maps = some_maps(SMALL, count)
    with torch.no_grad():
        parts = torch.cat([detector.embed[name](maps[name]) for name in detector.inputs], 1).flatten(2)
        tokens = parts if source == "full" else parts.mT
        flow = torch.cat([detector.class_token.expand(count, -1, -1), tokens], 1) + detector.position
        for layer in detector.layers:
            assert isinstance(layer, Layer)
            flow = plain_layer(layer)(flow)
        token = F.layer_norm(flow[:, 0], flow.shape[-1:], detector.norm.weight, detector.norm.bias)
        torch.testing.assert_close(detector.token(maps), token, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(detector(maps), detector.head(token), rtol=1e-4, atol=1e-5)


def plain_layer(layer: Layer) -> nn.Module:
    """Return PyTorch's own pre-norm encoder layer with the same weights."""
    dim = layer.query.in_features
    plain = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
    plain.self_attn.in_proj_weight.data = torch.cat([layer.query.weight, layer.key_value.weight])
    plain.self_attn.in_proj_bias.data = torch.cat([layer.query.bias, layer.key_value.bias])
    pairs: list[tuple[nn.Module, nn.Module]] = [(plain.norm1, layer.norm1), (plain.norm2, layer.norm2)]
    pairs += [
        (plain.self_attn.out_proj, layer.projection),
        (plain.linear1, layer.mlp[0]),
        (plain.linear2, layer.mlp[3]),
    ]
    for plain_part, our_part in pairs:
        plain_part.load_state_dict(our_part.state_dict())
    return plain.train()  # eval would take the fused path


def test_a_layer_in_bfloat16_is_as_close_to_float32_as_pytorchs() -> None:
    torch.manual_seed(0)
    layer = Layer(64, 0.0)
    plain = plain_layer(layer)
    tokens = torch.randn(8, 33, 64)
    expected, expected_gradients = with_gradients(layer, tokens, torch.float32)
    (ours, our_gradients), (pytorchs, pytorchs_gradients) = (
        with_gradients(module, tokens, torch.bfloat16) for module in (layer, plain)
    )
    assert 0 < (ours - expected).norm() < 1.5 * (pytorchs - expected).norm()
    assert 0 < (our_gradients - expected_gradients).norm() < 1.5 * (pytorchs_gradients - expected_gradients).norm()


def with_gradients(layer: nn.Module, tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a layer's output, and the gradient of half its sum of squares by the input tokens."""
    tokens = tokens.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = layer(tokens).float()
    (gradient,) = torch.autograd.grad(out.square().sum() / 2, tokens)
    return out.detach(), gradient


def test_the_class_token_alone_is_that_of_the_whole_layer() -> None:
    layer = detector_for(SMALL).layers[0]
    assert isinstance(layer, Layer)
    tokens = torch.randn(3, 9, layer.query.in_features)
    torch.testing.assert_close(layer(tokens, class_only=True), layer(tokens)[:, :1], rtol=1e-5, atol=1e-6)


def test_low_needs_layer1_only() -> None:
    detector = detector_for(SMALL, input="low").eval()
    net = small().eval()
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(detector(net.maps(images, last=detector.last_map)), detector(net.maps(images)))


def test_dropout_acts_in_training_only() -> None:
    detector, maps = detector_for(SMALL, dropout=0.5), some_maps(SMALL)
    assert not torch.equal(detector.train()(maps), detector(maps))
    assert torch.equal(detector.eval()(maps), detector(maps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_is_pytorchs_but_for_the_draw(p: float, dtype: torch.dtype) -> None:
    ours, pytorchs = Dropout(p).train(), nn.Dropout(p).train()
    tokens = torch.ones(500, 401, dtype=dtype, requires_grad=True)  # not a multiple of four
    torch.manual_seed(0)
    dropped, reference = ours(tokens), pytorchs(tokens)
    assert dropped.dtype == dtype
    assert set(dropped.unique().tolist()) == set(reference.unique().tolist())
    mask = (dropped != 0).double()
    tolerance = 5 * math.sqrt(p * (1 - p) / mask.numel())  # five standard deviations
    assert abs(mask.mean() - (1 - p)) <= tolerance
    for lag in (1, 2, 3, 4, 8, 401):  # no chance tells of another
        flat = mask.flatten() - (1 - p)
        assert abs((flat[lag:] * flat[:-lag]).mean()) <= tolerance
    (gradient,) = torch.autograd.grad(dropped.sum(), tokens)
    assert torch.equal(gradient, dropped)
    torch.manual_seed(0)
    assert torch.equal(ours(tokens), dropped)
    assert torch.equal(ours(tokens), dropped) == (p == 0)
    assert ours.eval()(tokens) is tokens
