"""Tests what is monitored of a net in training, and when it counts as collapsed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchattacks
from structures import words

from sparring import store
from sparring.defences import monitor
from sparring.defences.train import train
from sparring.layout import HERE
from sparring.models import networks
from sparring.params import Params
from sparring.training.collapse import COLLAPSE, collapsed_at

CPU = torch.device("cpu")


def rows(*pairs: tuple[float, float] | None) -> list[dict[str, float]]:
    """Create a history from pairs (accuracy under FGSM, under PGD), None for an epoch that was not monitored."""
    return [{"loss": 1.0} if pair is None else {"fgsm_accuracy": pair[0], "pgd_accuracy": pair[1]} for pair in pairs]


def test_a_collapse_is_fgsm_rising_while_pgd_falls() -> None:
    healthy = [(0.2, 0.15), (0.3, 0.22), (0.33, 0.2), (0.35, 0.21)]
    assert collapsed_at(rows(*healthy)) is None and collapsed_at([]) is None
    assert collapsed_at(rows(*healthy, (0.7, 0.05), (0.9, 0.0))) == 5
    assert collapsed_at(rows(None, healthy[1], None, (0.5, 0.0))) == 4
    assert collapsed_at(rows(healthy[1], (0.1, 0.02))) is None  # both fall: it learns nothing, or something else
    assert collapsed_at(rows((0.3, 0.0), (0.6, 0.0))) is None  # it has never withstood PGD
    assert collapsed_at(rows((0.1, 0.1), (0.5, 0.01))) is None  # nor more than guessing does
    through_a_file = pd.DataFrame(rows(None, healthy[1], None, (0.5, 0.0))).to_dict("records")
    assert collapsed_at(through_a_file) == 4  # type: ignore[arg-type]


def test_the_monitor_counts_what_a_peer_counts(project: Path, tiny: Callable[..., Params]) -> None:
    settings = tiny(monitor={"every": 2, "images": 15, "eps": 0.05}, training={"epochs": 5})
    validation = store.read(HERE.clean / "validation.parquet")
    net = networks.load(settings.network, 10, 16, HERE.pretrained)
    measure = monitor.attack_monitor(settings, validation, CPU)
    assert measure is not None and measure(net, 1) == {} and measure(net, 2) == measure(net, 4) == measure(net, 5)
    accuracies = measure(net.train(), 4)
    all_images = tiny(monitor={"every": 1, "images": 250, "eps": 0.05})
    measure_all = monitor.attack_monitor(all_images, validation, CPU)
    assert measure_all is not None
    images = torch.from_numpy(validation.image).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(validation.label)
    attacked = torchattacks.FGSM(net.eval(), eps=0.05)(images, labels)
    right = float((net(attacked).argmax(1) == labels).float().mean())
    assert measure_all(net, 1)["fgsm_accuracy"] == pytest.approx(right) and 0 < right < 1
    assert accuracies["pgd_accuracy"] <= accuracies["fgsm_accuracy"] <= 1 and accuracies[
        "fgsm_accuracy"
    ] * 15 % 1 == pytest.approx(0)
    assert monitor.attack_monitor(tiny(monitor={"every": 0}), validation, CPU) is None
    assert monitor.attack_monitor(all_images, validation[:0], CPU) is None


def test_a_run_that_collapses_says_so_in_one_line(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up = iter([(0.2, 0.2), (0.3, 0.25), (0.9, 0.01), (0.95, 0.0)])

    def attack_monitor(*_: object) -> Callable[..., dict[str, float]]:
        return lambda net, epoch: dict(zip(("fgsm_accuracy", "pgd_accuracy"), next(made_up), strict=True))

    monkeypatch.setattr(monitor, "attack_monitor", attack_monitor)
    train(tiny(training={"epochs": 4, "batch_size": 50}, structures={"plain": words()}), "plain")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "collapsed" in line] == [f"plain: {COLLAPSE}"]
    assert lines.index(f"plain: {COLLAPSE}") == next(k for k, line in enumerate(lines) if "epoch 3/4" in line) + 1
    history = pd.read_csv(HERE.history("plain"))
    np.testing.assert_allclose(history["pgd_accuracy"], [0.2, 0.25, 0.01, 0.0])


def test_only_who_is_aimed_at_in_training_keeps_the_best_epoch_by_pgd(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A net that ends with no accuracy under PGD has its highest before it has learned anything."""

    def attack_monitor(*_: object) -> Callable[..., dict[str, float]]:
        return lambda net, epoch: {"fgsm_accuracy": 0.2, "pgd_accuracy": 0.1 / epoch}

    monkeypatch.setattr(monitor, "attack_monitor", attack_monitor)
    nets_by_structure: dict[str, list[bytes]] = {"adv": [], "online": []}
    for keep, epochs in (("best_robust", 3), ("last", 3)):
        changes = {"epochs": epochs, "batch_size": 50, "keep": keep, "schedule": "constant"}
        structures = {"adv": words("sampler"), "online": words("online_fgsm")}
        settings = tiny(training=changes, structures=structures, monitor={"every": 1})
        for name, nets in nets_by_structure.items():
            train(settings, name)
            nets.append(HERE.model(name, 0).read_bytes())
    assert (
        nets_by_structure["adv"][0] == nets_by_structure["adv"][1]
        and nets_by_structure["online"][0] != nets_by_structure["online"][1]
    )
