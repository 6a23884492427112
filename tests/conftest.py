"""The tests share these fixtures: parameters for tiny runs, and one small project, made once."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clones
import finished_run
import pytest
import torch
from filelock import FileLock
from ruamel.yaml import YAML
from torch import Tensor

from sparring import params, store
from sparring.attacks import generation
from sparring.data import prepare
from sparring.defences.train import train
from sparring.evaluation import corruptions, detect, predict, whitebox
from sparring.layout import HERE
from sparring.models import classifier, networks
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.params.names import BASELINE
from sparring.report import render
from sparring.training.pretrain import pretrain

REPOSITORY = Path(__file__).resolve().parent.parent
PGD: dict[str, Any] = {"steps": 5, "norm": "linf", "restarts": 1, "loss": "cross_entropy"}
TINY: dict[str, Any] = {
    "device": "cpu",
    "precision": "float32",
    "data": {"image_size": 16, "train": 300, "validation": 20, "test": 120, "heldout": 40},
    "network": {"name": "resnet", "blocks": [1, 1, 1, 1], "width": 4},
    "training": {"epochs": 8, "batch_size": 32, "crop_area": [0.8, 1.0]},
    "store": {"shard_size": 100, "batch_size": 50},
    "attacks": {"gaussian": {"std": 0.1}, "fgsm": {"eps": 0.05}, "deepfool": {"steps": 3, "overshoot": 0.02}},
    "unseen_attacks": {"strong": {"method": "fgsm", "eps": 0.2}},
    "sampler": {"weights": {}},
    "fixed": {"weights": {}},
    "whitebox": {
        "images": 24,
        "attacks": {
            "fgsm": {"eps": 0.05},
            "pgd": PGD | {"eps": 0.05, "step": 0.02},
            "pgd_l2": PGD | {"method": "pgd", "eps": 0.5, "step": 0.2, "norm": "l2"},
            "cw": {"c": 1.0, "kappa": 0.0, "steps": 10, "learning_rate": 0.05, "search_steps": 1},
        },
        "checks": {"images": 12, "steps": 10, "queries": 30},
        "curve": {"images": 12, "eps": [8, 255]},
    },
    "detection": {"images": 10, "eps": 0.05, "steps": 3},
}


def tiny_values(**changes: Any) -> dict[str, Any]:
    """Return the values of the profile `digits` with the paper's structures, made tiny and changed.

    A change replaces single keys of a section, or the whole network, all attacks or all structures but the baseline.
    """
    values: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "profiles" / "digits.yaml")
    del values["structures"]["evolving"]  # two structures are enough
    for layer in (TINY, changes):
        for section, change in layer.items():
            whole = section in ("attacks", "unseen_attacks", "structures", "network") or not isinstance(change, dict)
            if section == "structures":
                change = {BASELINE: values[section][BASELINE]} | change
            values[section] = change if whole else values[section] | change
    return values


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# The longest file starts first, as the workers then share out the rest. It makes the clone. The second file that needs
# the clone comes when that is finished: the files between keep the other worker busy until then.
FIRST = ("test_pipeline.py", "test_checkpoints.py", "test_full_size.py", "test_report.py", "test_distributed.py")
FIRST += ("test_attack_stage.py", "test_experiments.py", "test_audit.py", "test_sharing.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # Nets this small are slower with more threads.


def measure(settings: Params) -> None:
    """Make all that the report needs of trained structures."""
    for name in settings.structures:
        predict.evaluate(settings, name)
        whitebox.attack_structure(settings, name)
        corruptions.evaluate(settings, name)
    for name in settings.structures:
        detect.detect(settings, name)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh clone with every stage run. It is made once for all files and workers; each file gets a copy."""
    shared_folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared_folder = shared_folder.parent
    original = shared_folder / "fresh"
    with FileLock(shared_folder / "fresh.lock"):
        if not original.exists():
            unfinished = shared_folder / "made"
            clones.fresh(unfinished)
            unfinished.rename(original)
    folder = tmp_path_factory.mktemp("clone") / "sparring"
    shutil.copytree(original, folder, symlinks=True)
    return folder


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Params]:
    """Return a function that makes validated parameters for tiny runs: tiny(training={"epochs": 2})."""
    return lambda **changes: params.validate(tiny_values(**changes))


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Params], None]:
    """Return a function that makes a study's scripts importable and lets them read these parameters: study("table3",
    settings)."""

    def prepare_study(name: str, settings: Params) -> None:
        monkeypatch.setattr(params, "load", lambda: settings)
        for folder in ("stages", f"studies/{name}"):
            monkeypatch.syspath_prepend(str(REPOSITORY / folder))

    return prepare_study


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Make a finished run of made-up results in the current folder, all but the report, and return its parameters."""
    monkeypatch.chdir(tmp_path)
    return finished_run.make_project()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the report's figures be empty files, for tests of its numbers."""
    finished_run.leave_undrawn(monkeypatch, finished_run.FIGURES)


@pytest.fixture(scope="session")
def _rendered_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    with inside(folder), pytest.MonkeyPatch.context() as patched:
        finished_run.leave_undrawn(patched, finished_run.FIGURES)
        render.render(finished_run.make_project())
    return folder


@pytest.fixture
def rendered(_rendered_run: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Enter a finished run of made-up results and return its parameters. Read only: one for all tests.

    Its report is there, with empty files in place of figures.
    """
    monkeypatch.chdir(_rendered_run)
    return params.load()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Params]) -> Path:
    """Return a folder with clean digits, a pretrained net, the baseline and every store of the tiny parameters.

    Tests only read it.
    """
    folder = tmp_path_factory.mktemp("prepared")
    settings = tiny()
    with inside(folder):
        YAML().dump(tiny_values(), Path("params.yaml"))
        prepare.prepare(settings)
        pretrain(settings)
        train(settings, BASELINE)
        for name in (*settings.attacks, *settings.unseen_attacks):
            generation.attack_splits(settings, name)
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that folder to work in, which is also the current one."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def digits(template: Path) -> store.Images:
    """Return 120 clean test digits of 16×16 pixels."""
    return store.read(template / HERE.clean / "test.parquet")


@pytest.fixture
def net(template: Path, tiny: Callable[..., Params]) -> ResNet:
    """Return a classifier trained on digits, in eval mode; a fresh copy for every test."""
    return networks.load(tiny().network, 10, 16, template / HERE.pretrained).eval()


@pytest.fixture
def images(digits: store.Images) -> Tensor:
    return classifier.to_images(digits.image, torch.device("cpu")).contiguous()


@pytest.fixture
def labels(digits: store.Images) -> Tensor:
    return torch.from_numpy(digits.label)


@pytest.fixture
def opponent(tiny: Callable[..., Params]) -> Callable[..., tuple[Params, Attack]]:
    """Return a function that makes parameters with the one attack `it`, and that attack."""

    def make(arguments: dict[str, Any], **changes: Any) -> tuple[Params, Attack]:
        settings = tiny(attacks={"it": arguments}, unseen_attacks={}, **changes)
        return settings, settings.attacks["it"]

    return make
