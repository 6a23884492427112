"""Attacked images stay in their balls when they are stored, and fool as stored."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attacking import CPU, NST, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparring import attacks
from sparring.attacks import storage
from sparring.models import classifier, networks
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.attacks import TORCHATTACKS, Attack
from sparring.store import Images

eps_values = st.floats(1 / 255, 0.9)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(eps_values, st.integers(0, 2**31), st.sampled_from(["uint8", "float16"]))
def test_an_linf_ball_is_kept_as_stored(eps: float, seed: int, dtype: str) -> None:
    chance = np.random.default_rng(seed)
    clean = chance.integers(0, 256, (4, 3, 3, 3), np.uint8)
    attack = Attack(method="fgsm", arguments={"eps": eps})
    attacked = clean / 255 + chance.uniform(-1.2 * eps, 1.2 * eps, clean.shape)
    stored = as_stored(clean, as_tensor(attacked), attack, dtype)
    assert stored.dtype == dtype
    radius = int(np.floor(255 * eps + 0.001))
    assert attack.linf == radius / 255 == attack.run_arguments()["eps"]
    assert np.abs(stored.astype(float) - clean).max() <= radius
    # To nearest wherever the ball allows it.
    nearest = np.clip(attacked * 255, 0, 255)
    if dtype == "float16":
        bounded = np.clip(nearest, clean - float(radius), clean + float(radius))
        assert np.abs(stored - bounded).max() <= 1 / 16 + 1e-3  # half the distance of two float16 near 255
        return
    nearest = np.rint(nearest)
    bounded = np.clip(nearest, clean.astype(int) - radius, clean.astype(int) + radius)
    assert (np.abs(stored - bounded) <= (np.abs(attacked * 255 % 1 - 0.5) < 1e-3)).all()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.floats(0.02, 3), st.integers(0, 2**31), st.booleans(), st.sampled_from(["uint8", "float16"]))
def test_an_l2_ball_is_kept_as_stored(eps: float, seed: int, outwards: bool, dtype: str) -> None:
    chance = np.random.default_rng(seed)
    clean = chance.choice([0, 128, 255], (4, 5, 5, 3)).astype(np.uint8)
    direction = chance.standard_normal(clean.shape)
    length = np.sqrt(np.square(direction).sum((1, 2, 3), keepdims=True))
    attacked = clean / 255 + (1.3 if outwards else 1) * eps * direction / length
    ball = Attack(method="torchattacks.PGDL2", arguments={"eps": eps})
    stored = as_stored(clean, as_tensor(attacked), ball, dtype)
    change = (stored.astype(float) - clean) / 255
    assert np.sqrt(np.square(change).sum((1, 2, 3))).max() <= eps * (1 + 1e-6)
    assert (change * direction >= 0).all()


def as_stored(clean: np.ndarray, attacked: Tensor, attack: Attack, dtype: str) -> np.ndarray:
    levels: np.ndarray = storage.as_stored(torch.from_numpy(clean), attacked, attack, dtype).numpy()
    return levels


def as_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.clip(0, 1).astype(np.float32)).permute(0, 3, 1, 2)


def test_an_attack_without_eps_is_rounded_to_nearest() -> None:
    clean = np.zeros((1, 2, 2, 3), np.uint8)
    levels = np.array([[[0.4, 0.6, 254.4], [254.6, 255, 0], [99.51, 99.49, 7], [1, 2, 3]]]).reshape(1, 2, 2, 3)
    stored = as_stored(clean, as_tensor(levels / 255), Attack(method="deepfool", arguments={}), "uint8")
    assert stored.reshape(-1).tolist() == [0, 1, 254, 255, 255, 0, 100, 99, 7, 1, 2, 3]


def test_columns_tell_what_is_stored(
    net: ResNet, digits: Images, images: Tensor, labels: Tensor, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    arguments = {"steps": 2, "overshoot": 0.02}
    stored = whole(*opponent({"method": "deepfool", **arguments}), net, digits)
    floats = attacks.find("deepfool")(networks.frozen(net), images, labels, **arguments)
    assert (stored.columns["prediction_float"] == net(floats).argmax(1).numpy()).mean() > 0.98
    rounded = as_stored(digits.image, floats, Attack(method="deepfool", arguments={}), "uint8")
    again = classifier.predict(net, rounded, 17, CPU).argmax(1)
    assert (stored.columns["prediction_rounded"] == again).mean() > 0.98
    assert (stored.columns["prediction_rounded"] != stored.columns["prediction"]).any()
    change = (stored.image.astype(float) - digits.image) / 255
    np.testing.assert_allclose(stored.columns["l2"], np.sqrt(np.square(change).sum((1, 2, 3))), rtol=1e-5)
    np.testing.assert_allclose(stored.columns["linf"], np.abs(change).max((1, 2, 3)), rtol=1e-5)
    prediction = classifier.predict(net, stored.image, 17, CPU).argmax(1)
    np.testing.assert_array_equal(stored.columns["prediction"], prediction)
    unchanged = (stored.image == digits.image).all((1, 2, 3))
    np.testing.assert_array_equal(unchanged, stored.columns["linf"] == 0)
    assert unchanged.any() and not unchanged.all()


def test_an_empty_set_gives_an_empty_shard(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    params, attack = opponent({"method": "nst", **NST, "style": "maps"})
    shard = whole(params, attack, net, digits[:0], digits)
    assert len(shard) == 0 and shard.image.shape == (0, 16, 16, 3)
    assert shard.columns.keys() == {"prediction", "l2", "linf"}


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
    stored = whole(*opponent(arguments, store={"margin": 0.05, "dtype": dtype}), net, inner)
    assert stored.image.dtype == dtype
    right = classifier.predict(net, inner.image, 50, CPU).argmax(1) == inner.label
    as_float = right & (stored.columns["prediction_float"] != inner.label)
    assert as_float.sum() > right.sum() / 4
    assert (stored.columns["prediction"][as_float] != inner.label[as_float]).mean() >= 0.99
    changed = stored.columns["linf"] > 0
    with torch.no_grad():
        logits = net(classifier.to_images(stored.image, CPU)).numpy()
    own = np.take_along_axis(logits, inner.label[:, None], 1)[:, 0]
    np.put_along_axis(logits, inner.label[:, None], -np.inf, 1)
    fooled = changed & (stored.columns["prediction"] != inner.label)
    assert (logits.max(1) - own)[fooled].min() >= 0.05 - 1e-4
    # False stores what rounding leaves.
    plain = whole(*opponent(arguments, store={"faithful": False, "dtype": dtype}), net, inner)
    np.testing.assert_array_equal(plain.columns["prediction"], plain.columns["prediction_rounded"])
    np.testing.assert_array_equal(plain.columns["prediction_rounded"], stored.columns["prediction_rounded"])
    if not arguments["method"].startswith(TORCHATTACKS) and dtype == "uint8":
        assert (plain.columns["prediction"][as_float] == inner.label[as_float]).any()


class Line(torch.nn.Module):
    """Has two classes and a flat boundary between them, so that the least change that crosses it is known."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([-score, score], 1) / 2

    quick = forward


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
        attacked = start + overshoot * step
        rounded = storage.as_stored(clean, attacked, Attack(method="deepfool", arguments={}), "uint8")
        label = torch.zeros(1, dtype=torch.long)
        stored = storage.least_change(line, line, clean, attacked, label, 0.0, rounded)  # type: ignore[arg-type]
        assert stored.logits is not None and stored.logits.argmax(1).tolist() == [1]
        assert line(classifier.to_images(stored.levels, CPU)).argmax(1).tolist() == [1]
        change = (stored.levels.float() - clean).permute(0, 3, 1, 2)
        # The best whole-numbered change: levels are added where they bring most for their length, until it crosses.
        best = min(
            (levels.norm() for scale in np.geomspace(0.05, 500, 2000)
             if line(start + (levels := (weight * scale).round()) / 255).argmax(1) == 1),
            default=torch.tensor(0.0),
        )  # fmt: skip
        assert change.norm() <= 1.05 * best + 1
