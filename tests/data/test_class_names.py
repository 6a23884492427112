"""Class names are compared wherever a model meets images, as the same integer may mean another class."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from measured_models import Linear, measured, refused
from safetensors.torch import load_file
from torch import nn

import sparring
from sparring.evaluation import exchange, predict, programs
from sparring.layout import HERE
from sparring.models import model_files, networks
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.sections import Network

DIGITS = [str(digit) for digit in range(10)]
MIXED = [DIGITS[number] for number in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]


def renamed(classes: list[str], path: Path = Path("mine.safetensors")) -> Path:
    """Save the pretrained net as one that was trained with its classes in this order."""
    tensors, facts = load_file(HERE.pretrained), model_files.facts(HERE.pretrained)
    order = [DIGITS.index(name) if name in DIGITS else number for number, name in enumerate(classes)]
    net = sparring.load(HERE.pretrained)
    net.load_state_dict(tensors | {name: tensors[name][order] for name in ("fc.weight", "fc.bias")})
    model_files.save_model(net, path, facts | {"classes": classes})
    return path


@pytest.mark.parametrize("program", [False, True])
def test_the_same_classes_in_another_order_are_put_in_the_datas(
    project: Path, capsys: pytest.CaptureFixture[str], program: bool
) -> None:
    wanted = measured(str(HERE.pretrained))
    path = renamed(MIXED)
    if program:
        exchange.export(path, path := Path("mine.pt2"))
    capsys.readouterr()
    pd.testing.assert_frame_equal(measured(str(path)), wanted, atol=0.026)
    assert capsys.readouterr().err == (
        f"note: {path} calls class 0 3, the stored images call it 0; the logits are put in the order of the stored "
        "images' classes\n"
    )


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize("classes", [[*DIGITS[:4], "four", *DIGITS[5:]], [*DIGITS[:4], "3", *DIGITS[5:]]])
def test_other_classes_are_one_line(project: Path, classes: list[str], program: bool) -> None:
    path = renamed(classes)
    if program:
        exchange.export(path, path := Path("mine.pt2"))
    refused(
        f"^{path} calls class 4 {classes[4]}, the stored images call it 4; use a model of these classes, or", str(path)
    )


@pytest.mark.parametrize("noted", [b"no JSON", b"[1]"])
def test_what_a_program_notes_has_to_be_readable(project: Path, noted: bytes) -> None:
    program = torch.export.export(Linear(), (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, "mine.pt2", extra_files={programs.FACTS: noted.decode()})
    refused(r"^mine\.pt2: its sparring\.json cannot be read \(.+\); export it again", "mine.pt2")


def test_the_stages_compare_names_too(
    project: Path, tiny: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    predict.evaluate(tiny(), "baseline")
    path = HERE.predictions("baseline")
    wanted = pd.read_parquet(path)
    original = networks.load(tiny().network, DIGITS, 16, HERE.pretrained)
    capsys.readouterr()
    renamed(MIXED, Path("mixed.safetensors")).replace(HERE.pretrained)
    predict.evaluate(tiny(), "baseline")
    pd.testing.assert_frame_equal(pd.read_parquet(path), wanted)
    assert (
        "note: models/pretrained.safetensors calls class 0 3, the stored images call it 0;" in capsys.readouterr().err
    )
    reordered = networks.load(tiny().network, DIGITS, 16, HERE.pretrained)
    assert model_files.digest(reordered) == model_files.digest(original)
    model_files.save_model(original, HERE.pretrained, {"classes": [*DIGITS[:9], "nine"]})
    with pytest.raises(InputError, match=r"calls class 9 nine, the stored images call it 9; delete it and run `dvc"):
        predict.evaluate(tiny(), "baseline")
    model_files.save_model(original, HERE.pretrained, {"classes": DIGITS[:9]})
    with pytest.raises(InputError, match=r"names 9 classes, the stored images 10; delete it and run `dvc"):
        predict.evaluate(tiny(), "baseline")


@pytest.mark.parametrize("name", ["resnet", "squeezenet1_1", "mobilenet_v3_small"])
def test_any_last_layer_is_put_in_another_order(name: str, tmp_path: Path) -> None:
    resnet = {"blocks": [1, 1, 1, 1], "width": 4} if name == "resnet" else {}
    network = Network.model_validate({"name": name, **resnet})
    torch.manual_seed(0)
    net = networks.create(network, 10, 32)
    for tensor in [*net.parameters()][-2:]:
        nn.init.normal_(tensor, 0, 0.1)  # torchvision's is 0 in some nets
    model_files.save_model(net, tmp_path / "net.safetensors", {"classes": MIXED})
    reordered = networks.load(network, DIGITS, 32, tmp_path / "net.safetensors")
    images = torch.rand(2, 3, 32, 32)
    wanted = net.eval()(images)[:, [MIXED.index(digit) for digit in DIGITS]]
    assert not torch.allclose(wanted, net(images))
    torch.testing.assert_close(reordered.eval()(images), wanted)
