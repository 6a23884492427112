"""Attacks give the same results where their passes are replayed and their batches shrink by halves. A stand-in replaces
CUDA's capture on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attacking import CPU, NST, changes, fooled
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import recorded
from torch import Tensor

from sparring import attacks
from sparring.attacks import engine, graphs
from sparring.attacks.graphs import Graphs
from sparring.models.resnet import ResNet

PGD = {"eps": 0.1, "step": 0.03, "steps": 5, "restarts": 2}
FIXED: dict[str, tuple[str, dict[str, Any]]] = {  # attacks with the same number of steps for all images
    "fgsm": ("fgsm", {"eps": 0.1}),
    "bim": ("bim", {"eps": 0.1, "step": 0.03, "first_step": 0.02, "steps": 5}),
    "rfgsm": ("rfgsm", {"eps": 0.1, "alpha": 0.05}),
    "nst maps": ("nst", NST | {"style": "maps"}),
    "nst gram": ("nst", NST | {"style": "gram"}),
    "pgd": ("pgd", PGD | {"norm": "linf", "loss": "cross_entropy"}),
    "pgd_l2": ("pgd", PGD | {"norm": "l2", "loss": "margin"}),
}
SHRINKING: dict[str, tuple[str, dict[str, Any]]] = {  # of which images leave the batch when they are finished
    "deepfool": ("deepfool", {"steps": 6, "overshoot": 0.02}),
    "cw": ("cw", {"c": 1.0, "kappa": 0.0, "steps": 60, "learning_rate": 0.05, "search_steps": 3}),
    "cw of a margin": ("cw", {"c": 10.0, "kappa": 2.0, "steps": 40, "learning_rate": 0.05, "search_steps": 1}),
    "ddn": ("ddn", {"steps": 20, "gamma": 0.05, "start": 1.0}),
}
BATCH = 24


class Counting:
    """This stand-in counts recordings and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], Any]]:
        self.recorded += 1
        result, replay = recorded(work)

        def again() -> Any:
            self.replayed += 1
            return replay()

        return result, again


def batches(
    model: torch.nn.Module, images: Tensor, labels: Tensor, entry: tuple[str, dict[str, Any]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Attack four batches and a smaller one. Return their images, their labels and the attacked images."""
    chance = torch.Generator().manual_seed(0)
    method, arguments = entry
    function, results = attacks.find(method), []
    for start in range(0, 4 * BATCH + 10, BATCH):
        rows = slice(start, min(start + BATCH, 4 * BATCH + 10))
        batch_images, extra = images[rows], {}
        noise = torch.randn(len(batch_images), 2, *batch_images.shape[1:], generator=chance)
        if method == "pgd":
            extra["starts"] = noise
        if method == "rfgsm":
            extra["noise"] = noise[:, 0]
        if method == "nst":
            extra["partners"] = batch_images.flip(0)
        results.append(function(model, batch_images, labels[rows], **arguments, **extra))
    count = sum(map(len, results))
    return images[:count], labels[:count], torch.cat(results)


@pytest.mark.parametrize("name", FIXED)
def test_replayed_passes_change_no_bit(net: ResNet, images: Tensor, labels: Tensor, name: str) -> None:
    model = engine.Fast(net, CPU, torch.float32)
    *_, plain = batches(model, images, labels, FIXED[name])
    count = Counting()
    model.graphs = Graphs(count)
    *_, replayed = batches(model, images, labels, FIXED[name])
    assert torch.equal(plain, replayed)
    assert count.recorded >= 1 and count.replayed >= 1
    assert not torch.equal(replayed, images[: len(replayed)])


@pytest.mark.parametrize("name", SHRINKING)
def test_halves_and_replays_find_the_same_images(
    net: ResNet, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = engine.Fast(net, CPU, torch.float32)
    inputs, targets, plain = batches(model, images, labels, SHRINKING[name])
    count = Counting()
    model.graphs = Graphs(count)
    monkeypatch.setattr(graphs, "in_halves", lambda device: True)
    *_, halved = batches(model, images, labels, SHRINKING[name])
    assert count.recorded >= 1 and count.replayed > count.recorded
    # In a batch of another size the net rounds otherwise, by which a step may cross a boundary or not.
    assert (fooled(net, inputs, targets, plain) == fooled(net, inputs, targets, halved)).float().mean() > 0.97
    assert fooled(net, inputs, targets, halved).float().mean() > 0.5
    torch.testing.assert_close(changes(plain, inputs).mean(), changes(halved, inputs).mean(), rtol=0.02, atol=0)
    assert ((plain - halved).abs().amax((1, 2, 3)) < 1e-3).float().mean() > 0.9


def test_what_is_finished_stays_as_it_is(
    net: ResNet, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that is misclassified from the start comes back unchanged, though it stays in the batch."""
    monkeypatch.setattr(graphs, "in_halves", lambda device: True)
    wrong = labels.clone()
    wrong[::3] = (net(images[::3]).argmax(1) + 1) % 10
    for method, arguments in SHRINKING.values():
        if not arguments.get("kappa"):  # with one, whoever is wrong by less is attacked
            adversarial = attacks.find(method)(net, images, wrong, **arguments)
            assert torch.equal(adversarial[::3], images[::3]), method
            assert not torch.equal(adversarial[1::3], images[1::3]), method


def test_where_recording_fails_attacks_go_on(
    net: ResNet, images: Tensor, labels: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(work: Callable[[], Any]) -> tuple[Any, Callable[[], Any]]:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    model = engine.Fast(net, CPU, torch.float32)
    *_, plain = batches(model, images, labels, FIXED["bim"])
    model.graphs = Graphs(fails)
    *_, adversarial = batches(model, images, labels, FIXED["bim"])
    assert torch.equal(plain, adversarial)
    message = "going on without a CUDA graph: operation not permitted when stream is capturing\n"
    assert capsys.readouterr().err == message


@settings(deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=1, max_size=70), st.integers(0, 20))
def test_a_batch_shrinks_by_halves(active: list[bool], step: int) -> None:
    mask = torch.tensor(active)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "in_halves", lambda device: True)
        rows = graphs.rows_to_keep(mask, step)
    if step % graphs.CHECK_INTERVAL:
        assert rows is None
        return
    sizes = [len(active) >> halvings for halvings in range(8)]
    count, size = sum(active), len(active) if rows is None else len(rows)
    assert size in sizes and size >= count
    assert size // 2 < count or size == 0
    if rows is not None:
        assert len(set(rows.tolist())) == size and mask[rows].sum() == count


def test_a_replay_keeps_no_history_of_what_it_was_given(net: ResNet, images: Tensor, labels: Tensor) -> None:
    """NST passes images that require a gradient. Copied with their history, each step would keep the last graph."""
    model = engine.Fast(net, CPU, torch.float32)
    model.graphs = Graphs(Counting())
    batches(model, images, labels, FIXED["nst maps"])
    assert all(not tensor.requires_grad for inputs, _ in model.graphs._recorded.values() for tensor in inputs)
