"""The parts of an audit by themselves: images, model, plan, published figures and calibration."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from audited import audited, leave_undrawn, shorten, write_models, write_store
from hypothesis import assume, given
from hypothesis import strategies as st
from measured_models import exported
from PIL import Image
from safetensors.torch import save_file

import sparring
from sparring import statistics, store
from sparring.attacks.engine import Fast
from sparring.audit import images, plan, verdict
from sparring.audit import model as models
from sparring.models.adapted import Adapted
from sparring.models.resnet import ResNet
from sparring.params.errors import InputError
from sparring.params.values import fraction

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_undrawn(monkeypatch)


# Images


def folder(sizes: list[tuple[int, int]], top: str = "photos") -> str:
    for number, size in enumerate(sizes):
        path = Path(top, "cat" if number % 2 else "dog", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), 20 * number, np.uint8)).save(path)
    return top


def test_a_folder_is_read_at_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    data = images.open_data(folder([(13, 13)] * 6))
    assert data.classes == ["cat", "dog"] and images.native_size(data, data.rows) == 13
    assert "no official test images, so all of its 6 may be taken" in capsys.readouterr().err
    rows = images.choose(data, 2, 4, 0)
    assert len(rows) == 4 and sorted(data.source.label[rows]) == [0, 0, 1, 1]
    read = images.read(data, rows, 13)
    assert read.image.shape == (4, 13, 13, 3) and read.index.tolist() == rows.tolist()
    names = [int(Path(str(data.source.path[row])).stem) for row in rows]
    assert read.image[:, 0, 0, 0].tolist() == [20 * name for name in names]


def test_images_of_several_sizes_need_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = images.open_data(folder([(13, 13), (20, 10)]))
    with pytest.raises(InputError, match=r"have 13×13, 20×10 pixels; .*--image-size 224"):
        images.native_size(data, data.rows)


def test_the_test_images_of_a_folder_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder([(8, 8)] * 6, "set/train")
    folder([(8, 8)] * 4, "set/test")
    data = images.open_data("set")
    assert len(data.rows) == 4
    assert all("test/" in str(data.source.path[row]) for row in data.rows)


class FakeSet:
    """In place of a data set of torchvision, such as MNIST: as large as a test needs, and stored in `there` only."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        if Path(root).name != "there":
            raise RuntimeError("Dataset not found or corrupted." if not download else "no network")
        count = 30 if train else 10
        self.classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        self.targets = torch.arange(count) % 10
        self.data = torch.arange(count, dtype=torch.uint8)[:, None, None].expand(count, 28, 28)


@pytest.mark.parametrize("name", ["CIFAR100", "MNIST", "FashionMNIST"])
def test_data_sets_of_torchvision_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torchvision.datasets, name, FakeSet)
    word = {"CIFAR100": "cifar100", "MNIST": "mnist", "FashionMNIST": "fashion_mnist"}[name]
    data = images.open_data(f"{word}:there")
    assert len(data.rows) == 10 and images.native_size(data, data.rows) == 28
    assert images.read(data, data.rows, 28).image[:, 5, 5, 1].tolist() == list(range(10))
    with pytest.raises(InputError, match=rf"{word}: .*absent does not have it .*torchvision.datasets.FakeSet puts it"):
        images.open_data(f"{word}:absent")


def test_a_data_set_is_known_by_its_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in images.CIFAR10:
        Path("some", name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(f"some/{name}/1.png")
    assert images.open_data("some").name == "cifar10"
    assert images.open_data("digits").name == "digits"


# Models


def test_an_adapted_net_normalises_and_reorders_also_in_its_fast_copy(net: ResNet) -> None:
    order = [3, 1, 2, 0, 4, 5, 6, 7, 8, 9]
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    adapted = Adapted(net, (mean.tolist(), std.tolist()), order).eval()
    pixels = torch.rand(5, 3, 16, 16)
    wanted = net((pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))[:, order]
    torch.testing.assert_close(adapted(pixels), wanted)
    torch.testing.assert_close(Fast(adapted, CPU, torch.float32).quick(pixels), wanted, atol=1e-4, rtol=1e-4)


def test_a_net_of_torchvision_and_a_folder_are_all_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch, STEPS=4, QUERIES=20, FEW_QUERIES=10)
    shades = {"dark": 40, "grey": 128, "light": 215, "white": 250}
    rng = np.random.default_rng(0)
    for name, shade in shades.items():
        Path("photos", name).mkdir(parents=True)
        for number in range(3):
            pixels = np.clip(rng.normal(shade, 5, (40, 30, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(f"photos/{name}/{number}.png")
    net = torchvision.models.squeezenet1_1(num_classes=4)
    # Its answer is how light an image is: one weight and a bias for each class.
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    first, last = net.features[0], net.classifier[1]
    torch.nn.init.constant_(first.weight, 1 / 27)
    for name, parameter in net.features.named_parameters():
        if name.endswith("weight") and not name.startswith("0."):
            torch.nn.init.constant_(parameter, 1 / parameter[0].numel())
    with torch.no_grad():
        level = {
            name: float(net.features(torch.full((1, 3, 64, 64), shade / 255)).mean()) for name, shade in shades.items()
        }
        for row, value in enumerate(level.values()):
            last.weight[row] = 2 * value / 512
            last.bias[row] = -(value**2)
        last.weight.mul_(1e4)
        last.bias.mul_(1e4)
        last.bias.add_(1e4)  # its ReLU must not cut the logits off
    save_file(net.state_dict(), "net.safetensors")
    arguments = ("net.safetensors", "--network", "squeezenet1_1", "--data", "photos", "--image-size", "64")
    results = audited(*arguments, "--minutes", "1", "--images", "12", "--mean", "0", "--std", "1")
    assert results["clean"]["accuracy"] == 1 and results["number_of_classes"] == 4
    assert [row["class"] for row in results["classes"]] == sorted(row["class"] for row in results["classes"])


def test_a_program_is_audited(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, STEPS=6, QUERIES=6, FEW_QUERIES=6)
    path = exported(sparring.load("models/pretrained.safetensors"))
    more = ("--data", "data/clean/test.parquet", "--images", "12", "--minutes", "2", "--eps", "12/255")
    program = audited(path, *more)
    assert not program["left_out"] and program["worst_case"]["accuracy"] < program["clean"]["accuracy"]


def test_what_has_no_gradient_is_seen(project: Path) -> None:
    write_models()
    digits = images.open_data("data/clean/test.parquet")
    some_images = images.read(digits, digits.rows[:8], 16)
    for name, wanted in {"plain": True, "masked": True, "stepped": False, "decided": False}.items():
        net, _ = models.load(models.open_model(f"python:audited_models:{name}", None), 10, 16, CPU)
        aim = models.foreign.Model(net, Path(name), 10, None, CPU)
        assert models.has_gradients(aim, some_images, CPU) is wanted, name


def test_classes_that_are_only_numbers_are_those_of_any_names(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, STEPS=4, QUERIES=4, FEW_QUERIES=4)
    digits = store.read(Path("data/clean/test.parquet"))
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    write_store(Path("named.parquet"), digits, names)
    results = audited("models/pretrained.safetensors", "--data", "named.parquet", "--images", "20", "--minutes", "0.5")
    assert results["clean"]["accuracy"] > 0.7 and {row["class"] for row in results["classes"]} <= {*names}


# Plan


def keys(classes: int, has_gradients: bool = True) -> list[str]:
    return [attack.key for attack in plan.worst_case_attacks("linf", 8 / 255, classes, has_gradients)]


def test_attacks_that_are_not_defined_are_not_planned() -> None:
    assert set(plan.AUTOATTACK) <= set(keys(10)) and keys(10)[0] == plan.SINGLE
    assert plan.APGD_T not in keys(3) and plan.FAB_T in keys(2)
    assert keys(10, has_gradients=False) == ["square_short", plan.SQUARE]
    assert not plan.minimum_norm_attacks(False) and not plan.curve_attacks("linf", 0.1, 32, False)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_curve_has_the_radius_and_ends_where_nothing_can_be_left(norm: str) -> None:
    eps = 5 / 255 if norm == "linf" else 0.37
    radii = [plan.radius_of(step, norm) for step in plan.curve_attacks(norm, eps, 32, True)]
    assert radii == sorted(radii) and np.isclose(radii, eps).any()
    # From any image of 32 pixels grey is no farther than this.
    assert radii[-1] >= (128 / 255 if norm == "linf" else 0.5 * np.sqrt(3 * 32**2))


@given(st.integers(1, 5000), st.floats(1, 3600), st.floats(1e-5, 1), st.integers(1, 3000))
def test_parts_keep_to_their_share(wanted: int, seconds: float, seconds_per_pass: float, right: int) -> None:
    rates = plan.Rates(seconds_per_pass, seconds_per_pass / 3)
    attacks = plan.worst_case_attacks("linf", 8 / 255, 10, True)
    fits = plan.images_that_fit(wanted, seconds, rates, attacks)
    assert min(wanted, plan.FEWEST_AUDITED) <= fits <= wanted
    parts = {plan.CHECKS: plan.check_attacks("linf", 8 / 255, True), plan.LEAST: plan.minimum_norm_attacks(True)}
    sizes = plan.part_sizes(parts, right, seconds, rates)
    taken = sum(sizes[name] * plan.part_seconds(name, part, rates) for name, part in parts.items())
    assert taken <= plan.FOR_PARTS * seconds * (1 + 1e-9)
    assert all(size == 0 or size >= min(plan.FEWEST, right) for size in sizes.values())


def test_the_checks_are_the_last_to_be_left_out() -> None:
    rates = plan.Rates(0.01, 0.004)
    parts = {
        plan.CHECKS: plan.check_attacks("linf", 8 / 255, True),
        plan.CURVE: plan.curve_attacks("linf", 8 / 255, 32, True),
        plan.LEAST: plan.minimum_norm_attacks(True),
    }
    sizes_by_time = [plan.part_sizes(parts, 100, seconds, rates) for seconds in (10, 200, 280, 1000)]
    assert [[name for name, size in sizes.items() if size] for sizes in sizes_by_time] == [
        [],
        [plan.CHECKS],
        [plan.CHECKS, plan.CURVE],
        [plan.CHECKS, plan.CURVE, plan.LEAST],
    ]


def test_a_clock_allows_what_fits() -> None:
    clock = plan.Clock(100.0)
    clock.reserved = 40.0
    assert clock.allows(1.0)(50) and not clock.allows(1.0)(61)


# Published figures


def test_the_published_figures() -> None:
    table = verdict.leaderboard()
    assert len(table) == 188 and not table.duplicated(["data", "norm", "model"]).any()
    assert table[["clean", "robust"]].apply(lambda column: column.between(0, 1)).all(axis=None)
    assert set(table["norm"]) == {"linf", "l2"} and table["eps"].map(fraction).astype(float).between(0.01, 1).all()
    carmon = table[(table["model"] == "Carmon2019Unlabeled") & (table["norm"] == "linf")].iloc[0]
    assert (carmon["clean"], carmon["robust"], carmon["eps"]) == (0.8969, 0.5953, "8/255")


@pytest.mark.parametrize(
    ("data", "eps", "some"), [("cifar10", 8 / 255, True), ("cifar10", 4 / 255, False), ("orl", 8 / 255, False)]
)
def test_models_are_compared_within_one_ball_only(data: str, eps: float, some: bool) -> None:
    facts: Any = type("Facts", (), {"norm": "linf", "eps": eps, "worst": {"accuracy": 0.6}})
    sentence = verdict.published_comparison(facts, data)
    assert bool(sentence) is some
    if some:
        table = verdict.published(facts, data)
        assert f"{(table['robust'] < 0.6).sum()} have less" in sentence and f"{table['robust'].max():.3f}" in sentence


# Calibration


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_is_that_of_its_definition(pairs: list[tuple[float, bool]]) -> None:
    confidence, correct = (np.array(part) for part in zip(*pairs, strict=True))
    assume(np.abs(confidence * 15 - np.round(confidence * 15)).min() > 1e-9)  # between two bins rounding decides
    total = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15) if low else confidence <= 1 / 15
        if inside.any():
            total += inside.sum() * abs(correct[inside].mean() - confidence[inside].mean())
    error = statistics.calibration_error(confidence, correct)
    assert error == pytest.approx(total / len(pairs), abs=1e-9)


def test_calibration_error_of_known_cases() -> None:
    assert statistics.calibration_error(np.full(10, 0.8), np.arange(10) < 8) == pytest.approx(0)
    assert statistics.calibration_error(np.full(10, 0.9), np.zeros(10, bool)) == pytest.approx(0.9)
    assert np.isnan(statistics.calibration_error(np.empty(0), np.empty(0, bool)))
