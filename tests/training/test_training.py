"""Tests whole trainings: their bytes, what they train on, and what they refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_nets import fails
from structures import words
from torch import Tensor

from sparring import store
from sparring.attacks import generation
from sparring.data import prepare
from sparring.defences import sampler
from sparring.defences.train import train as train_structure
from sparring.device import rng
from sparring.layout import HERE
from sparring.models import model_files, networks
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import BASELINE
from sparring.params.sections import Network, Training
from sparring.training.pretrain import pretrain
from sparring.training.steps import Step, plain_step

CPU = torch.device("cpu")


def train(settings: Params, name: str) -> dict[str, bytes]:
    """Train a structure, or `pretrained`. Return the files' bytes by path."""
    if name == "pretrained":
        pretrain(settings)
        paths = [HERE.pretrained]
    else:
        train_structure(settings, name)
        paths = sorted(HERE.models(name).iterdir())
    return {str(path): path.read_bytes() for path in [*paths, HERE.history(name)]}


STRUCTURES = {
    "ours": words("sampler", detector="detector"),
    "classical": words("fixed"),
    "plain": words("none"),
    "online": words("online_pgd"),
}


@pytest.mark.parametrize("name", ["pretrained", "ours", "classical", "online"])
def test_training_twice_gives_the_same_bytes(project: Path, tiny: Callable[..., Params], name: str) -> None:
    settings = tiny(training={"epochs": 2, "batch_size": 50}, structures=STRUCTURES)
    first = train(settings, name)
    np.random.seed(3)
    torch.manual_seed(3)
    torch.randn(3)
    assert train(settings, name) == first
    if name == "pretrained":
        return
    expected_paths = {f"models/{name}/0.safetensors", f"data/history/{name}.csv"}
    assert first.keys() == expected_paths | ({"models/ours/0.detector.safetensors"} if name == "ours" else set())


def test_seeds_give_other_nets(project: Path, tiny: Callable[..., Params]) -> None:
    changes = {"training": {"epochs": 1, "batch_size": 50}}
    nets = [train(tiny(seed=seed, **changes), "pretrained")[str(HERE.pretrained)] for seed in (0, 1)]
    assert nets[0] != nets[1]


def test_a_structure_trains_on_what_the_sampler_draws(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(training={"epochs": 2, "batch_size": 50, "crop_area": [1.0, 1.0]}, structures=STRUCTURES)
    clean = store.read(HERE.clean / "train.parquet")
    versions = [clean, *(store.read(HERE.adversarial / name / "train.parquet") for name in settings.attacks)]
    batches_seen: list[tuple[np.ndarray, Tensor]] = []

    def spy(net: ResNet, training_settings: Training, dtype: torch.dtype) -> Step:
        def run(images: Tensor, labels: Tensor, adversarial: Tensor, penalty: None) -> dict[str, Tensor]:
            batches_seen.append(((images * 255).round().byte().permute(0, 2, 3, 1).numpy(), labels))
            return {"loss": torch.zeros(())}

        return Step(run, [])

    monkeypatch.setattr("sparring.defences.train.plain_step", spy)
    train_structure(settings, "classical")
    assert len(batches_seen) == 2 * 6
    images_by_epoch = np.concatenate([images for images, _ in batches_seen]).reshape(2, 300, -1)
    for epoch in range(2):
        visits = rng(0, "order", epoch).permutation(300)
        versions_drawn = sampler.draw_fixed(
            settings.fixed, list(settings.attacks), seed=0, epoch=epoch, visits=visits, batch_size=50
        )
        expected = np.stack([versions[version].image[row].ravel() for row, version in enumerate(versions_drawn)])
        np.testing.assert_array_equal(images_by_epoch[epoch], expected[visits])
        assert sorted(visits.tolist()) == list(range(300))


def test_online_training_attacks_every_image_and_needs_no_store(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"crop_area": [1.0, 1.0], "epochs": 2, "batch_size": 50}
    settings = tiny(training=changes, structures=STRUCTURES, online_pgd={"eps": 0.06, "step": 0.02, "steps": 2})
    shutil.rmtree(HERE.adversarial)
    clean = store.read(HERE.clean / "train.parquet").image / 255
    batches_seen: list[np.ndarray] = []
    original = plain_step

    def spy(net: ResNet, training_settings: Training, dtype: torch.dtype) -> Step:
        step = original(net, training_settings, dtype)

        def run(images: Tensor, labels: Tensor, adversarial: Tensor, penalty: None) -> dict[str, Tensor]:
            assert net.training
            batches_seen.append(images.permute(0, 2, 3, 1).numpy())
            return step.run(images, labels, adversarial)

        return Step(run, step.optimizers)

    monkeypatch.setattr("sparring.defences.train.plain_step", spy)
    train_structure(settings, "online")
    epochs = np.concatenate(batches_seen).reshape(2, 300, *clean.shape[1:])
    for epoch, attacked in enumerate(epochs):
        change = np.abs(attacked - clean[rng(0, "order", epoch).permutation(300)])
        assert change.max() <= 0.06 + 1e-6
        assert (change.max((1, 2, 3)) > 0.03).all()
    with pytest.raises(InputError, match="is missing"):
        train_structure(settings, "classical")


def test_history_has_a_row_an_epoch(project: Path, tiny: Callable[..., Params]) -> None:
    train(tiny(training={"epochs": 3, "batch_size": 50}, structures=STRUCTURES), "ours")
    history = pd.read_csv(HERE.history("ours"))
    assert history["epoch"].tolist() == [0, 1, 2]
    for name in ("accuracy", "detector_accuracy", "validation_accuracy"):
        assert history[name].between(0, 1).all()
    total = history["classification_loss"] + history["matching_loss"]
    np.testing.assert_allclose(history["loss"], total, atol=1e-5)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    facts = model_files.facts(HERE.model("ours", 0))
    assert facts["name"] == "ours" and facts["epochs"] == 3 and facts["precision"] == "float32"
    assert facts["classes"] == [str(digit) for digit in range(10)] and facts["image_size"] == 16
    network = Network.model_validate(facts["network"])
    assert networks.load(network, 10, 16, HERE.model("ours", 0)).fc.out_features == 10
    assert json.loads((HERE.timings / "train-ours.json").read_text())["images"] == 900


def test_no_validation_images_are_needed(
    tiny: Callable[..., Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The profile `paper` has none."""
    monkeypatch.chdir(tmp_path)
    short = {"epochs": 2, "batch_size": 50}
    params = tiny(data={"validation": 0}, attacks={"fgsm": {"eps": 0.05}}, structures=STRUCTURES, training=short)
    prepare.prepare(params)
    pretrain(params)
    generation.attack_splits(params, "fgsm")
    train_structure(params, "ours")
    for name in ("pretrained", "ours"):
        history = pd.read_csv(HERE.history(name))
        assert history["accuracy"].notna().all() and history["validation_accuracy"].isna().all()
    output = capsys.readouterr().out
    assert (
        "ours: epoch 1/" in output and "validation" not in output.replace("0 validation,", "") and "nan" not in output
    )


def test_training_leaves_the_pretrained_net_alone(project: Path, tiny: Callable[..., Params]) -> None:
    before = HERE.pretrained.read_bytes()
    train(tiny(training={"epochs": 1, "batch_size": 50}, structures=STRUCTURES), "ours")
    assert HERE.pretrained.read_bytes() == before


@pytest.mark.parametrize("name", ["pretrained", "ours"])
def test_a_loss_that_explodes_is_one_line_and_writes_nothing(
    project: Path, tiny: Callable[..., Params], name: str
) -> None:
    good = tiny(training={"epochs": 1, "batch_size": 50}, structures=STRUCTURES)
    bad = tiny(training={"epochs": 2, "batch_size": 50, "learning_rate": 1e20}, structures=STRUCTURES)
    message = rf"^{name}: \w+ is (nan|inf|-inf) in epoch \d; lower training.learning_rate \(1e\+20\)"
    if name != "pretrained":
        fails(message, lambda: train(bad, name))
        assert not HERE.models(name).exists() and not HERE.history(name).exists()
    before = train(good, name)
    fails(message, lambda: train(bad, name))
    assert {path: Path(path).read_bytes() for path in before} == before
    assert not list(Path().rglob("*.tmp"))


def test_the_baseline_is_one_copy_of_the_pretrained_net(project: Path, tiny: Callable[..., Params]) -> None:
    shutil.rmtree(HERE.models(BASELINE))
    train_structure(tiny(seeds=[3, 4]), BASELINE)
    (copy,) = HERE.models(BASELINE).iterdir()
    assert copy == HERE.model(BASELINE, tiny().seed) and copy.read_bytes() == HERE.pretrained.read_bytes()
    assert HERE.history(BASELINE).read_bytes() == HERE.history("pretrained").read_bytes()
    HERE.pretrained.unlink()
    fails(r"models/pretrained\.safetensors is missing; `dvc repro` makes it", lambda: train_structure(tiny(), BASELINE))
    assert copy.exists()


def test_an_unknown_structure_is_one_line(project: Path, tiny: Callable[..., Params]) -> None:
    fails(
        "structures.our is missing; there are baseline, ours, classical, plain, online",
        lambda: train(tiny(structures=STRUCTURES), "our"),
    )


def test_a_store_of_another_model_is_not_trained_on(project: Path, tiny: Callable[..., Params]) -> None:
    settings = tiny(training={"epochs": 1, "batch_size": 50}, structures=STRUCTURES)
    model_files.save_model(small_like(settings), HERE.pretrained, {})
    fails(r"gaussian/train\.parquet was made against model \w{64}, not \w{64};", lambda: train(settings, "classical"))
    assert not HERE.models("classical").exists()
    assert train(settings, "plain")  # has no opponents


def small_like(settings: Params) -> ResNet:
    torch.manual_seed(9)
    return networks.create(settings.network, 10, 16)
