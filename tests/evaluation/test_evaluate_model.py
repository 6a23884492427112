"""Models from elsewhere: what is no fixed function of numbers is refused, and conventions of others are understood."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from measured_models import Linear, exported, measured, refused
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import sparring
from sparring import __main__ as command_line
from sparring import statistics, store
from sparring.evaluation import foreign, predict, programs
from sparring.layout import HERE
from sparring.models import classifier, model_files, networks
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.sections import Network

RESNET = "{name: resnet, blocks: [1, 1, 1, 1], width: 4}"
DIGITS = [str(digit) for digit in range(10)]
CPU = torch.device("cpu")


# A fixed function that gives numbers


@pytest.mark.parametrize(("number", "what"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_weights_that_are_no_numbers_are_refused_with_the_path(
    project: Path, tiny: Callable[..., Params], number: float, what: str
) -> None:
    net, facts = sparring.load(HERE.pretrained), model_files.facts(HERE.pretrained)
    with torch.no_grad():
        net.get_parameter("layer2.0.conv1.weight")[0, 0, 0, 0] = number
    model_files.save_model(net, HERE.pretrained, facts)
    save_file(load_file(HERE.pretrained), "bare.safetensors")
    says = rf"holds {what} in layer2\.0\.conv1\.weight, .*train it again"
    refused(f"^models/pretrained.safetensors {says}", "models/pretrained.safetensors")
    refused(f"^bare.safetensors {says}", "bare.safetensors", "--network", RESNET)
    for load in (
        lambda: sparring.load(HERE.pretrained),
        lambda: networks.load(tiny().network, DIGITS, 16, HERE.pretrained),
        lambda: predict.evaluate(tiny(), "baseline"),
    ):
        with pytest.raises(InputError, match=f"^models/pretrained.safetensors {says}"):
            load()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Linear(after=lambda logits: logits + (logits - logits).log() * 0), "NaN for an image"),
        (lambda: Linear(after=lambda logits: logits.relu().log()), "infinity for an image"),
        (lambda: Linear(before=nn.Dropout(0.1)), "other logits when it is asked again .*: dropout is left on"),
        (lambda: Linear(after=nn.Dropout(0.1)), "other logits when it is asked again .*: dropout is left on"),
        (lambda: Linear(before=nn.BatchNorm2d(3)), "other logits beside other images .*: statistics of the batch are"),
        (lambda: Linear(before=lambda images: images - images.mean(0)), "beside other images .* set the model to eval"),
        (lambda: Linear(before=lambda images: images + images.new_tensor(range(16)) * images.shape[0]), "beside other"),
    ],
)
def test_what_is_no_fixed_function_of_numbers_is_refused(
    project: Path, make: Callable[[], nn.Module], says: str
) -> None:
    refused(rf"^mine\.pt2 gives .*{says}", exported(make().train()))


def test_no_number_for_one_stored_image_is_refused(project: Path) -> None:
    """The first images that the model is tried on are others."""
    last = store.read(HERE.clean / "heldout.parquet").image[-1:]
    mean = classifier.to_images(last, CPU).mean((1, 2, 3), keepdim=True)

    def spoil(images: Tensor) -> Tensor:
        off = (images.mean((1, 2, 3), keepdim=True) - mean).abs()
        return images / (off > 1e-5)

    path = Path(exported(Linear(before=spoil)))
    model = foreign.Model(programs.read(path, CPU), path, 10, None, CPU)
    foreign.check_fixed_function(model, path, store.read(HERE.clean / "test.parquet").image, CPU)
    refused(r"^mine\.pt2 gives (NaN|infinity) for an image", str(path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_difference(project: Path, dtype: torch.dtype) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = sparring.load(HERE.pretrained).to(dtype)

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images.to(dtype))

    assert measured(exported(Rounded().eval())).loc[("test", "clean"), "accuracy"] > 0.7


# Conventions of checkpoints


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_with_a_prefix_and_batch_norm_without_counters(project: Path, prefix: str) -> None:
    wanted = measured(str(HERE.pretrained))
    tensors = load_file(HERE.pretrained)
    assert any(name.endswith("num_batches_tracked") for name in tensors)
    few = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    save_file({prefix + name: tensor for name, tensor in few.items()}, "mine.safetensors")
    pd.testing.assert_frame_equal(measured("mine.safetensors", "--network", RESNET), wanted)
    few.pop("fc.bias")
    save_file(few, "mine.safetensors")
    Path("out.json").unlink()
    refused(r"fc\.bias is absent, not 10;", "mine.safetensors", "--network", RESNET)


def test_a_pickle_is_converted_as_the_documentation_shows(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(__file__).parents[2].joinpath("docs/audit.md").read_text()
    net = torchvision.models.squeezenet1_1(num_classes=10)
    torch.save(net.state_dict(), "mine.pth")
    with pytest.raises(SystemExit):
        command_line.main(["evaluate-model", "mine.pth"])
    says = capfd.readouterr().err
    call = says[says.index("safetensors.torch.save_file") :].strip()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if call in block)
    assert says.count("\n") == 1 and len(says) < 260
    monkeypatch.setattr(torchvision.models, "resnet18", torchvision.models.squeezenet1_1)  # which is smaller
    exec(block, {})
    converted, _ = foreign.read(Path("mine.safetensors"), Network(name="squeezenet1_1"), 10, 64, CPU)
    assert all(torch.equal(tensor, converted.state_dict()[name]) for name, tensor in net.state_dict().items())


# Normalised images


class Normalised(nn.Module):
    """The pretrained net for images that are normalised by these numbers."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net = sparring.load(HERE.pretrained)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images * self.std + self.mean)


@pytest.mark.parametrize(("mean", "std"), [("0.45,0.5,0.55", "0.05,0.04,0.03"), ("0.5", "0.04")])
def test_a_model_for_normalised_images_is_told_of_and_mended(
    project: Path, capsys: pytest.CaptureFixture[str], mean: str, std: str
) -> None:
    wanted = measured(str(HERE.pretrained))
    assert capsys.readouterr().err == ""
    numbers = [[float(part) for part in text.split(",")] for text in (mean, std)]
    model = exported(Normalised(*numbers).eval())
    accuracy = measured(model).xs("clean", level="attack")
    assert (accuracy["accuracy"] < 0.3).all()
    warning = capsys.readouterr().err
    right = (accuracy["accuracy"] * accuracy["images"]).sum() / accuracy["images"].sum()
    assert warning == (
        f"warning: mine.pt2 gets {right:.3f} of 160 clean images right, no more than guessing does (0.106); check its "
        "normalisation (--mean, --std), the order of its classes and its image size\n"
    )
    mended = measured(model, "--mean", mean, "--std", std)
    assert capsys.readouterr().err == ""
    pd.testing.assert_frame_equal(mended, wanted, atol=0.026)  # rounding may move a held-out image of 40


def test_a_usual_normalisation_that_was_forgotten_is_told_with_its_options(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = exported(Normalised([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval())
    accuracy = measured(model).xs("clean", level="attack")["accuracy"]
    says = capsys.readouterr().err
    options = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    assert f"warning: mine.pt2 gets {accuracy['test']:.3f} of 120 images in [0, 1] right, and" in says
    assert f"as for ImageNet; add {' '.join(options)}, or --mean 0 --std 1 to leave them so" in says
    for heeded in (options, ["--mean", "0", "--std", "1"]):
        measured(model, *heeded)
        assert "normalised as for" not in capsys.readouterr().err


def test_what_gives_no_number_for_normalised_images_does_not_want_them(project: Path) -> None:
    root = exported(Linear(before=lambda images: images.sqrt()))
    assert measured(root)["accuracy"].between(0, 1).all()


@pytest.mark.parametrize(("right", "says"), [(1, "no more than guessing does (0.333)"), (6, "few images cannot")])
def test_few_images_cannot_tell_a_model_from_guessing(right: int, says: str) -> None:
    label = np.arange(12) % 3
    clean = pd.DataFrame({"label": label, "correct": np.arange(12) < right})
    guessed = statistics.as_if_guessed(clean)
    assert guessed is not None
    sentence = foreign.guessing_sentence(Path("mine.pt2"), clean, guessed, "take more --images, or ")
    assert says in sentence and ("take more --images, or check" in sentence) == (right == 6)


def test_classes_in_an_order_that_the_file_does_not_say_are_told_of(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Far below chance is no better than chance."""
    tensors = load_file(HERE.pretrained)
    last = {name: tensors[name].roll(1, 0) for name in ("fc.weight", "fc.bias")}
    save_file(tensors | last, "mine.safetensors")
    assert measured("mine.safetensors", "--network", RESNET).loc[("test", "clean"), "accuracy"] < 0.05
    assert "no more than guessing does (0.106); check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--mean", "0.5,0.5", "--std", "1"],
            "--mean is 0.5,0.5; give three numbers, as in 0.5,0.4,0.3, or one for all",
        ),
        (["--mean", "0.5", "--std", "1,1,1,1"], "--std is 1,1,1,1; give three numbers"),
        (["--mean", "half", "--std", "1"], "--mean is half; give three numbers"),
        (["--mean", "0.5", "--std", ""], "--std is ; give three numbers"),
        (["--mean", "0.5", "--std", "nan"], "--std is nan; give three numbers"),
        (["--mean", "0.5", "--std", "0.2,0,0.2"], "--std is 0.2,0,0.2; give numbers above 0"),
        (["--mean", "0.5", "--std", "-1"], "--std is -1; give numbers above 0"),
        (["--mean", "0.5"], r"--mean is given without --std; give both \(--std 1 leaves the images alone\)"),
        (["--std", "0.5"], r"--std is given without --mean; give both \(--mean 0 leaves the images alone\)"),
    ],
)
def test_a_normalisation_that_is_none_is_one_line(project: Path, options: list[str], says: str) -> None:
    refused(f"^{says}", "models/pretrained.safetensors", *options)


# No images, and help


def test_of_no_images_there_are_predictions_of_every_class(project: Path, digits: store.Images) -> None:
    none = digits[:0]
    path = exported(Linear())
    model = foreign.Model(programs.read(Path(path), CPU), Path(path), 10, None, CPU)
    for net in (sparring.load(HERE.pretrained), model):
        probabilities = classifier.predict(net, none.image, 7, CPU)
        assert probabilities.shape == (0, 10) and probabilities.dtype == np.float32
        rows = predict.classified(net, none, 7, CPU)
        assert rows.empty and rows["prediction"].dtype == np.int64 and rows["confidence"].dtype == np.float32


def test_help_ends_with_an_example_that_is_true(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CliRunner().invoke(command_line.app, ["evaluate-model", "--help"]).stdout
    words = shlex.split(text.rpartition("For example:")[2])
    assert words[:2] == ["sparring", "evaluate-model"]
    net = networks.create(Network.model_validate({"name": "resnet", "blocks": [2, 2, 2, 2], "width": 64}), 10, 16)
    model_files.save_model(net, Path(words[2]), {})
    accuracy = measured(*words[2:])
    assert accuracy["images"].loc[("test", "clean")] == 120
