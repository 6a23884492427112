"""A captured step does the same as the step itself. A stand-in replaces CUDA's capture."""

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording import recorded
from small_nets import small
from structures import words
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparring import store
from sparring.checkpoints import Checkpoint
from sparring.defences import opponents
from sparring.defences.joint import joint_step
from sparring.defences.train import new_detector
from sparring.models import networks
from sparring.params import Params
from sparring.params.sections import Training
from sparring.training import graphs, loop
from sparring.training.average import MovingAverage
from sparring.training.gallery import Gallery
from sparring.training.steps import plain_step

CPU = torch.device("cpu")
SIZE, COUNT = 16, 22

STRUCTURES = {
    "stored": words("sampler"),
    "ours": words("sampler", detector="detector"),
    "online": words("online_fgsm"),
    "pgd": words("online_pgd"),
    "evolving": words("evolving"),
    "mixed": words("sampler", evolving="evolving", detector="detector"),
}


def run(tiny: Callable[..., Params], name: str, checkpoint: Checkpoint | None = None, **changes: Any) -> dict[str, Any]:
    """Run a short training: four epochs of five whole batches and a smaller one."""
    entry = STRUCTURES[name]
    training = {"epochs": 4, "batch_size": 4, "schedule": "one_cycle", "ema": 0.9, "horizontal_flip": True}
    settings = tiny(training=training | {"crop_area": [1.0, 1.0], "shift": 2}, structures={"x": entry}, **changes)
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (3, COUNT, SIZE, SIZE, 3), np.uint8)
    label = chance.integers(0, 10, COUNT)
    clean = store.Images(np.arange(COUNT), label, pixels[0], {}, {"shape": [SIZE, SIZE, 3]})
    attacked = [store.Images(clean.index, label, array, {"linf": np.ones(COUNT)}) for array in pixels[1:]]
    gallery = Gallery(pixels, clean, attacked, CPU)
    net = small(seed=1)
    structure = settings.structure("x")
    if structure.detector == "none":
        step = plain_step(net, settings.training, torch.float32)
    else:
        detector = new_detector(settings, net, CPU)
        step = joint_step(net, networks.frozen(net), detector, settings.training, settings.detector, torch.float32)
    signs = chance.choice(np.array([-8, 8], np.int8), (COUNT, SIZE, SIZE, 3))
    attacks = list(settings.attacks)[:2]
    opponent = opponents.create(settings, structure, attacks, net, torch.float32, lambda epoch: signs.copy())
    history = loop.fit(settings, "x", net, step, gallery, opponent, clean, checkpoint)
    trained = [net.state_dict(), *(array.state_dict() for array in step.helpers)]
    nets = {f"{number} {key}": value for number, state in enumerate(trained) for key, value in state.items()}
    return {"nets": nets, "opponents": opponent.state_dict(), "history": history}


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for key, value in first["nets"].items():
        torch.testing.assert_close(value, second["nets"][key], rtol=1e-4, atol=1e-5)
    for key, value in first["opponents"].items():
        torch.testing.assert_close(value, second["opponents"][key], rtol=1e-2, atol=1e-4)
    for row, other_row in zip(first["history"], second["history"], strict=True):
        assert row == pytest.approx(other_row, rel=1e-4, nan_ok=True)


def pretend(monkeypatch: pytest.MonkeyPatch, capture: graphs.Capture) -> None:
    """Have trainings captured as on a GPU, by a stand-in."""

    def captured(learn: graphs.Learn, optimizers: Any, settings: Training, device: torch.device) -> graphs.Learn:
        return learn if settings.graphs == "off" else graphs.Captured(learn, optimizers, settings.batch_size, capture)

    monkeypatch.setattr(graphs, "captured", captured)


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have trainings captured by the stand-in, and count the captures and replays."""
    noted = [0, 0]

    def capture(work: Callable[[], graphs.Sums]) -> tuple[graphs.Sums, Callable[[], graphs.Sums]]:
        noted[0] += 1
        sums, replay = recorded(work)

        def again() -> graphs.Sums:
            noted[1] += 1
            return replay()

        return sums, again

    pretend(monkeypatch, capture)
    return noted


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_captured_training_is_the_training(tiny: Callable[..., Params], capturing: list[int], name: str) -> None:
    captured = run(tiny, name)
    assert capturing == [1, 4 * 5 - graphs.WARM_UP - 1]
    off = run(lambda **changes: tiny(**changes | {"training": changes["training"] | {"graphs": "off"}}), name)
    assert capturing[0] == 1
    same(captured, off)
    assert len({row["loss"] for row in captured["history"]}) == 4


def test_where_a_capture_fails_the_training_goes_on(
    tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run(tiny, "evolving")

    def fails(work: Callable[[], graphs.Sums]) -> tuple[graphs.Sums, Callable[[], graphs.Sums]]:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    pretend(monkeypatch, fails)
    uncaptured = run(tiny, "evolving")
    assert capsys.readouterr().err == (
        "going on without a CUDA graph: operation not permitted when stream is capturing\n"
    )
    for key, value in plain["nets"].items():
        assert torch.equal(value, uncaptured["nets"][key]), key


def test_whoever_goes_on_captures_again(
    tiny: Callable[..., Params], capturing: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(tiny, "mixed")
    draw, batch_numbers = opponents.EvolvingOpponents.draw, iter(range(100))

    def stopped(*arguments: Any) -> None:
        if next(batch_numbers) == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(opponents.EvolvingOpponents, "draw", stopped)
        with pytest.raises(SystemExit, match="stopped"):
            run(tiny, "mixed", Checkpoint(tmp_path / "it.pt"))
    same(undisturbed, run(tiny, "mixed", Checkpoint(tmp_path / "it.pt")))
    assert capturing[0] == 3


def test_the_moving_average_is_that_of_torch() -> None:
    net = small(seed=1)
    ours = MovingAverage(net, 0.9)
    torchs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                tensor.add_(1)
        ours.update(net)
        torchs.update_parameters(net)
    before = copy.deepcopy(ours.net)
    for name, value in torchs.module.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, ours.net.state_dict()[name]), name
    again = MovingAverage(small(seed=2), 0.9)
    again.load_state_dict(ours.state_dict())
    again.update(net)
    ours.update(net)
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), ours.net.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again.net.parameters(), ours.net.parameters(), strict=True))
