"""Model files: what is exported runs without Sparring, and what comes in is measured or refused in one line."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import sparring
from sparring import __main__ as command_line
from sparring import statistics
from sparring.evaluation import foreign, predict, programs
from sparring.layout import HERE
from sparring.models import model_files, networks
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.sections import Network

RESNET = "{name: resnet, blocks: [1, 1, 1, 1], width: 4}"
ALONE = """
import sys
sys.modules["sparring"] = None
import torch
more = {"sparring.json": ""}
net = torch.export.load(sys.argv[1], extra_files=more).module()
torch.save({"one": net(torch.load(sys.argv[2])[:1]), "all": net(torch.load(sys.argv[2])), "facts": more}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def program(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretrained net of the tiny project, exported by the command line."""
    target = tmp_path_factory.mktemp("exported") / "baseline.pt2"
    call = [sys.executable, "-m", "sparring", "export", "baseline", str(target)]
    done = subprocess.run(call, cwd=template, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target}: baseline, from models/baseline/0.safetensors\n"
    return target


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        command_line.main(list(arguments))
    assert not stop.value.code


def measured(*arguments: str) -> pd.DataFrame:
    run("evaluate-model", *arguments, "--json", "out.json")
    return pd.DataFrame(json.loads(Path("out.json").read_text())).set_index(["split", "attack"])


def test_a_model_file_is_loaded_without_parameters(project: Path, tiny: Callable[..., Params]) -> None:
    wanted = networks.load(tiny().network, 10, 16, HERE.pretrained).eval()
    images = torch.rand(3, 3, 16, 16)
    Path("params.yaml").unlink()
    net = sparring.load("models/pretrained.safetensors")
    assert isinstance(net, torch.nn.Module) and not net.training
    assert torch.equal(net(images), wanted(images))


def test_an_exported_program_runs_without_sparring(program: Path, template: Path, tmp_path: Path) -> None:
    images = torch.rand(7, 3, 16, 16)
    torch.save(images, tmp_path / "images")
    call = [sys.executable, "-c", ALONE, str(program), str(tmp_path / "images"), str(tmp_path / "logits")]
    subprocess.run(call, check=True, capture_output=True)
    results = torch.load(tmp_path / "logits")
    wanted = sparring.load(template / HERE.pretrained)(images)
    torch.testing.assert_close(results["all"], wanted)
    torch.testing.assert_close(results["one"], wanted[:1])
    assert json.loads(results["facts"]["sparring.json"])["image_size"] == 16
    with zipfile.ZipFile(program) as archive:
        assert not any(str(Path.cwd()).encode() in archive.read(name) for name in archive.namelist())


def test_a_users_model_is_measured_as_a_structure_is(
    program: Path, project: Path, tiny: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    predict.evaluate(tiny(), "baseline")
    rows = pd.read_parquet(HERE.predictions("baseline"))
    rows["correct"] = rows["prediction"] == rows["label"]
    wanted = statistics.accuracies(rows, ["split", "attack"])[["accuracy", "ci_low", "ci_high", "images"]]
    save_file(load_file(HERE.pretrained), "bare.safetensors")
    shutil.copytree("data", "elsewhere")
    shutil.rmtree("data")
    capsys.readouterr()
    for arguments in (["models/pretrained.safetensors"], ["bare.safetensors", "--network", RESNET], [str(program)]):
        accuracy = measured(*arguments, "--data", "elsewhere")
        pd.testing.assert_frame_equal(accuracy[wanted.columns].loc[wanted.index], wanted, atol=0.006, check_dtype=False)
        assert set(accuracy.index.unique("attack")) == {"clean", "gaussian", "fgsm", "deepfool", "strong"}
        printed = capsys.readouterr().out
        low, high = statistics.wilson(round(accuracy.loc[("test", "fgsm"), "accuracy"] * 120), 120)
        assert f"{accuracy.loc[('test', 'fgsm'), 'accuracy']:.3f} [{low:.3f}, {high:.3f}]" in printed
        assert "strong (unseen)" in printed and "held-out images" in printed


def saved(name: str, net: torch.nn.Module, **facts: Any) -> str:
    model_files.save_model(net, Path(name), facts)
    return name


def resnet(classes: int = 10, width: int = 4) -> torch.nn.Module:
    return networks.create(Network(name="resnet", blocks=[1, 1, 1, 1], width=width), classes, 16)


@pytest.mark.parametrize(
    ("make", "network", "says"),
    [
        (lambda: "absent.safetensors", None, r"absent\.safetensors is missing; name a \.safetensors or a \.pt2 file"),
        (lambda: saved("a.safetensors", resnet()), None, "does not say its architecture; name it, as in --network vgg"),
        (lambda: saved("a.safetensors", resnet(7)), RESNET, "tells 7 classes apart; the stored images have 10"),
        (lambda: saved("a.safetensors", resnet(), classes=[*"ab"]), RESNET, "tells 2 classes apart; the stored"),
        (
            lambda: saved("a.safetensors", resnet(), image_size=32),
            RESNET,
            "images of 32 pixels, not of 16",
        ),
        (
            lambda: saved("a.safetensors", resnet(width=8)),
            RESNET,
            r"holds another architecture .*: fc\.weight is 10×64, not 10×32; name its own with --network",
        ),
        (lambda: "a.safetensors", "vgg11bn", r'--network: name is "vgg11bn"; use resnet, .*did you mean vgg11_bn'),
        (lambda: "a.safetensors", "{name: resnet, blocks: [1, 1, 1, 1], widht: 4}", "widht is not a key; did you mean"),
        (lambda: Path("a.safetensors").write_text("no") and "a.safetensors", RESNET, "is not a safetensors file"),
        (lambda: Path("a.pth").write_text("no") and "a.pth", None, r"a\.pth is neither .*convert it .*safetensors"),
        (lambda: Path("a.pt2").write_text("no") and "a.pt2", None, r"a\.pt2 is not a program of torch\.export"),
        (lambda: Path("a.pt2").write_text("no") and "a.pt2", RESNET, "leave out --network"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(
    project: Path, make: Callable[[], str], network: str | None, says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        arguments = ["evaluate-model", make(), *([] if network is None else ["--network", network])]
        command_line.app(arguments, standalone_mode=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "advv", "a.pt2"], "error: params.yaml: structures.advv is missing; there are baseline, adv, ours"),
        (["export", "adv", "a.pt2"], "error: models/adv/0.safetensors is missing; `dvc repro` makes it"),
        (["export", "adv", "a.pt2", "--seed", "3"], "error: --seed 3: adv was trained with 0"),
        (["export", "baseline", "a.onnx"], "error: a.onnx should end in .pt2, as programs of torch.export do"),
        (["evaluate-model", "mine.pth"], "error: mine.pth is missing; name a .safetensors or a .pt2 file"),
    ],
)
def test_bad_calls_end_in_one_line_and_another_exit_status(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        command_line.main(arguments)
    assert stop.value.code == 1
    assert capsys.readouterr() == ("", f"{says}\n")
    assert not list(Path().glob("*.pt2")) and not list(Path().glob(".*.tmp"))


def test_a_program_for_other_images_is_one_line(program: Path, project: Path) -> None:
    cpu = torch.device("cpu")
    net = programs.read(program, cpu)
    for classes, size, says in ((7, 16, "tells 10 classes apart"), (10, 24, "cannot read 2 images of 3×24×24")):
        with pytest.raises(InputError, match=says) as caught:
            model = foreign.Model(net, program, classes, None, cpu)
            foreign.check_fixed_function(model, program, np.empty((0, size, size, 3), np.uint8), cpu)
        assert "\n" not in str(caught.value)


class Trap:
    """What an unpickler would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def tamper(source: Path, change: Callable[[str, bytes], bytes]) -> Path:
    target = Path("tampered.pt2")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
    return target


def replace(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    return lambda part, content: content.replace(old, new) if part.endswith(".json") else content


def trapped(part: str, content: bytes) -> bytes:
    if part.startswith("data/sample_inputs/"):
        torch.save(Trap(), "trap")
        return Path("trap").read_bytes()
    return content


def test_a_program_runs_nothing_but_its_operations(program: Path, project: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("models/model.json"))
        assert b'"guards_code": []' in archive.read(name)
    tampered = tamper(program, trapped)
    with pytest.raises(Exception, match=r".*"):  # the test's own trap works
        torch.export.load(tampered)
    assert Path("sprung").exists()
    Path("sprung").unlink()
    images = torch.rand(2, 3, 16, 16)
    net = programs.read(tampered, torch.device("cpu"))
    torch.testing.assert_close(net(images), sparring.load(HERE.pretrained)(images))
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"use_pickle": false', b'"use_pickle": true', "is pickled"),
        (b'"path_name": "weight_0"', b'"path_name": "opaque_obj_0"', "is pickled"),
        (b"Symbol('", b"open('sprung','w').write('", "a size is open"),
        (b"torch.ops.aten.relu_.default", b"_operator.attrgetter", "it calls _operator.attrgetter"),
        (b"torch.ops.aten.relu_.default", b"torch.ops.aten.from_file.default", "it calls torch.ops.aten.from_file"),
        (b"torch.ops.aten.relu_.default", b"torch.hub.load", "it calls torch.hub.load"),
        (b'"name": "images"', b'"name": "a=open(1)"', r"a name is a=open\(1\)"),
        (b"builtins.dict", b"collections.defaultdict", "does not take one tensor of images"),
    ],
)
def test_a_program_that_could_do_more_is_refused(
    program: Path, project: Path, old: bytes, new: bytes, says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        programs.read(tamper(program, replace(old, new)), torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert not Path("sprung").exists()
