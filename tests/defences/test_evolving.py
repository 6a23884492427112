"""Tests evolving opponents against the method written out, and that a killed run keeps their state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_nets import small
from structures import words
from torch import Tensor

from sparring import store
from sparring.checkpoints import Checkpoint
from sparring.data import augmentation
from sparring.data.augmentation import Augmentation
from sparring.defences import evolving, opponents, sampler
from sparring.defences.evolving import EvolvingOpponents
from sparring.defences.train import train
from sparring.device import rng
from sparring.layout import HERE
from sparring.models import model_files
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.structures import Evolving
from sparring.store import Images
from sparring.training.gallery import Batch, Gallery
from sparring.training.loop import fit
from sparring.training.steps import plain_step

CPU = torch.device("cpu")
COUNT, SIZE = 8, 16
SECTION: dict[str, Any] = {
    "eps": "8/255",
    "step": "3/255",
    "momentum": 0.3,
    "consistency": 10,
    "reset": 0,
    "frame": "fixed",
    "start": "random",
    "adv_ratio": 1.0,
    "weight": 6,
}


def section(**changes: Any) -> Evolving:
    return Evolving.model_validate(SECTION | changes)


def signs(epoch: int = 0) -> np.ndarray:
    bits = np.random.default_rng(epoch).integers(0, 2, (COUNT, SIZE, SIZE, 3), np.int8)
    return (8 * (2 * bits - 1)).astype(np.int8)


def following(net: Classifier, settings: Evolving, smoothing: float = 0.2) -> EvolvingOpponents:
    return EvolvingOpponents(net, settings, smoothing, torch.float32, evolving.evolving_only(settings, 0), signs)


def eight(size: int = COUNT) -> Images:
    generator = np.random.default_rng(1)
    return Images(
        np.arange(size) + 50, np.arange(size), generator.integers(0, 256, (size, SIZE, SIZE, 3)).astype(np.uint8)
    )


def view_of(net_sees: str, count: int) -> Augmentation:
    generator = np.random.default_rng(7)
    mirrored = np.where(generator.random(count) < 0.5, -1.0, 1.0)
    boxes = torch.tensor([[[side, 0], [1, 0]] for side in mirrored], dtype=torch.float32)
    shifts = generator.integers(-4, 5, (count, 2)) if net_sees == "shifted" else np.zeros((count, 2), np.int64)
    return Augmentation(boxes, torch.from_numpy(shifts))


@pytest.mark.parametrize(("frame", "consistency"), [("fixed", 10.0), ("moving", 10.0), ("moving", 0.0)])
def test_the_update_is_that_of_the_method(frame: str, consistency: float) -> None:
    """The method is written out in integers, image by image. There are three visits, so that the direction counts."""
    net, settings = small(seed=1).train(), section(frame=frame, consistency=consistency)
    plain = small(seed=1).train()
    following_net = following(net, settings)
    following_net.versions(0, np.arange(COUNT))
    clean, view = eight(), view_of("shifted", COUNT)
    images = torch.from_numpy(clean.image).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(clean.label)
    perturbation = signs().astype(int)
    direction = np.zeros(perturbation.shape)
    rows = torch.tensor([5, 0, 3, 7])
    for _ in range(3):
        views = view.of(rows)
        batch = Batch(rows, views.apply(images[rows]), labels[rows], torch.zeros(4, dtype=torch.bool))
        training_input = following_net.show(batch, views, lambda batch: batch, None)

        moved, running = perturbation[rows].copy(), direction[rows].copy()
        if frame == "moving":
            moved, running = as_seen(moved, views), as_seen(running, views)
        perturbed = (
            (batch.images + torch.from_numpy(moved).permute(0, 3, 1, 2) / 255).clamp(0, 1).float().requires_grad_()
        )
        before = plain(perturbed)
        loss = F.cross_entropy(before, labels[rows], label_smoothing=0.2)
        slope = torch.autograd.grad(loss, perturbed, retain_graph=True)[0].permute(0, 2, 3, 1).double().numpy()
        on_image = as_seen(np.ones_like(moved), views) if frame == "moving" else np.ones_like(moved)
        step = np.clip(moved + 3 * np.sign(slope), -8, 8).astype(int) * on_image
        expected = (batch.images.permute(0, 2, 3, 1).numpy() * 255 + step).clip(0, 255) / 255
        np.testing.assert_allclose(training_input.images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)
        assert training_input.adversarial.all()
        running = slope / np.abs(slope).sum((1, 2, 3), keepdims=True) + 0.3 * running
        moved = np.clip(moved + 3 * np.sign(running), -8, 8).astype(int)
        running = torch.from_numpy(running).to(torch.bfloat16).double().numpy()
        if frame == "moving":
            moved = as_kept(moved, perturbation[rows], views)
            running = as_kept(running, direction[rows], views)
        perturbation[rows], direction[rows] = moved, running
        state = following_net.state_dict()
        differs = state["perturbation"].numpy() != perturbation  # where a slope is 0 but for rounding
        assert differs.mean() < 1e-3
        perturbation = state["perturbation"].numpy().astype(int)
        np.testing.assert_allclose(state["direction"].double().numpy(), direction, rtol=0.02, atol=1e-6)
        direction = state["direction"].double().numpy()
        if not consistency:
            assert training_input.penalty is None
            continue
        assert training_input.penalty is not None
        after = plain(training_input.images)
        penalty = consistency * (after - before).square().mean()
        assert training_input.penalty(net(training_input.images)).item() == pytest.approx(penalty.item(), rel=1e-4)
        # Its gradient goes through both passes.
        gradient = torch.autograd.grad(training_input.penalty(net(training_input.images)), [net.fc.weight])[0]
        expected_gradient = torch.autograd.grad(penalty, [plain.fc.weight])[0]
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-6)
    untouched = np.setdiff1d(np.arange(COUNT), rows)
    np.testing.assert_array_equal(perturbation[untouched], signs()[untouched])


def as_seen(values: np.ndarray, view: Augmentation) -> np.ndarray:
    return moved_by_loops(values, np.zeros_like(values), view, back=False)


def as_kept(values: np.ndarray, lost: np.ndarray, view: Augmentation) -> np.ndarray:
    return moved_by_loops(values, lost, view, back=True)


def moved_by_loops(values: np.ndarray, outside: np.ndarray, view: Augmentation, back: bool) -> np.ndarray:
    """Shift and mirror (N, H, W, 3) from the image's frame to the frame of the net's input, or back."""
    assert view.shifts is not None
    moved = outside.copy()
    for number, ((across, down), mirrored) in enumerate(
        zip(view.shifts.tolist(), (view.boxes[:, 0, 0] < 0).tolist(), strict=True)
    ):
        for row in range(SIZE):
            for column in range(SIZE):
                image_row, image_column = row + down, (SIZE - 1 - column if mirrored else column) + across
                if 0 <= image_row < SIZE and 0 <= image_column < SIZE:
                    image, net = (number, image_row, image_column), (number, row, column)
                    moved[image if back else net] = values[net if back else image]
    return moved


def test_black_and_white_pixels_move() -> None:
    images = torch.cat([torch.zeros(4, 3, SIZE, SIZE), torch.ones(4, 3, SIZE, SIZE)])
    following_net = following(small(seed=1).train(), section())
    following_net.versions(0, np.arange(COUNT))
    batch = Batch(torch.arange(COUNT), images, torch.arange(COUNT), torch.zeros(COUNT, dtype=torch.bool))
    before = torch.from_numpy(signs()).int()
    following_net.show(batch, view_of("whole", COUNT), lambda batch: batch, None)
    after = following_net.state_dict()["perturbation"].int()
    outwards = torch.cat([before[:4] < 0, before[4:] > 0])  # which the clip hides
    assert ((after != before) & outwards).sum() > 0.3 * outwards.sum()


def run(
    settings: Params,
    checkpoint: Checkpoint | None = None,
    stop: int | None = None,
    record: Callable[[Tensor, Tensor], None] = lambda rows, images: None,
) -> tuple[dict[str, Tensor], EvolvingOpponents]:
    """Train on eight images. Return the net's tensors and its opponents.  stop: the batch before which it is killed."""
    clean = eight()
    net = small(seed=1)
    step = plain_step(net, settings.training, torch.float32)
    following_net = following(net, settings.evolving)
    batch_count = 0
    show = following_net.show

    def noting(batch: Batch, *rest: Any) -> Any:
        nonlocal batch_count
        if batch_count == stop:
            raise KeyboardInterrupt
        batch_count += 1
        training_input = show(batch, *rest)
        record(batch.rows, training_input.images.detach() - batch.images)
        return training_input

    following_net.show = noting  # type: ignore[method-assign]
    fit(settings, "eight", net, step, Gallery(clean.image[None], clean, [], CPU), following_net, clean, checkpoint)
    return net.state_dict(), following_net


@pytest.mark.parametrize("frame", ["fixed", "moving"])
def test_eps_is_never_left(tiny: Callable[..., Params], frame: str) -> None:
    changes: list[Tensor] = []
    training = {"epochs": 4, "batch_size": 3, "crop_area": [1.0, 1.0], "shift": 4, "horizontal_flip": True}
    settings = tiny(training=training, evolving={"frame": frame})
    _, following_net = run(settings, record=lambda rows, change: changes.append(change))
    change = 255 * torch.cat(changes)
    assert change.abs().max() <= 8 + 1e-3 and (change - change.round()).abs().max() < 1e-3
    assert (change.abs() > 7).float().mean() > 0.3  # where neither clipped nor let in by a shift
    assert following_net.state_dict()["perturbation"].abs().max() == 8


@pytest.mark.parametrize("frame", ["fixed", "moving"])
def test_killed_and_resumed_it_ends_with_the_same_bytes(
    tiny: Callable[..., Params], tmp_path: Path, frame: str
) -> None:
    """This holds too where the resumed epoch is one in which all perturbations begin anew."""
    training = {"epochs": 4, "batch_size": 3, "crop_area": [1.0, 1.0], "shift": 2}
    settings = tiny(training=training, evolving={"frame": frame, "reset": 2})
    expected, undisturbed = run(settings)
    for stop in (4, 7, 8):
        checkpoint = Checkpoint(tmp_path / f"{stop}.pt")
        checkpoint.due = lambda: True  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            run(settings, checkpoint, stop)
        tensors, resumed = run(settings, Checkpoint(tmp_path / f"{stop}.pt"))
        assert all(torch.equal(tensors[key], value) for key, value in expected.items())
        for key, value in undisturbed.state_dict().items():
            assert resumed.state_dict()[key] is value or torch.equal(resumed.state_dict()[key], value)


def test_a_state_goes_to_another_device(tiny: Callable[..., Params], tmp_path: Path) -> None:
    """`meta` stands for another device. A loaded state is on the net's device, and takes three bytes a value."""
    _, following_net = run(tiny(training={"epochs": 1, "batch_size": 3}))
    state = following_net.state_dict()
    assert sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor)) == 3 * (
        COUNT * SIZE * SIZE * 3
    )
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    other = following(small(seed=1).to("meta"), section())
    other.load_state_dict(loaded)
    assert other.state_dict()["perturbation"].device.type == "meta"
    back = following(small(seed=1), section())
    back.load_state_dict(loaded)
    for key in ("perturbation", "direction"):
        assert torch.equal(back.state_dict()[key], state[key])


def test_all_begin_anew_after_so_many_epochs() -> None:
    following_net = following(small(seed=1), section(reset=3))
    for epoch, first_epoch in enumerate([0, 0, 0, 3, 3, 3, 6]):
        following_net.versions(epoch, np.arange(COUNT))
        np.testing.assert_array_equal(following_net.state_dict()["perturbation"].numpy(), signs(first_epoch))
        assert following_net.state_dict()["began"] == first_epoch


def test_a_share_comes_clean() -> None:
    draw_versions = evolving.evolving_only(section(adv_ratio=0.3), 4)
    version, evolves = draw_versions(2, np.arange(5000))
    assert not version.any() and 0.27 < evolves.mean() < 0.33
    assert np.array_equal(draw_versions(2, np.arange(5000))[1], evolves) and not np.array_equal(
        draw_versions(3, np.arange(5000))[1], evolves
    )


def test_among_stored_opponents_they_are_one_more_that_is_drawn(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = words("sampler", evolving="evolving", detector="detector")
    settings = tiny(
        training={"epochs": 2, "batch_size": 50, "crop_area": [1.0, 1.0]},
        structures={"mixed": mixed, "adv": words("sampler")},
        evolving={"weight": 3},
    )
    attacks = list(settings.attacks)
    clean = store.read(HERE.clean / "train.parquet")
    versions = [clean, *(store.read(HERE.adversarial / name / "train.parquet") for name in attacks)]
    met: list[tuple[np.ndarray, Tensor, Tensor]] = []
    show = EvolvingOpponents.show

    def noting(self: EvolvingOpponents, batch: Batch, *rest: Any) -> Any:
        attacked = show(self, batch, *rest)
        met.append((batch.rows.numpy(), (255 * attacked.images.detach()).round(), attacked.adversarial))
        return attacked

    monkeypatch.setattr(EvolvingOpponents, "show", noting)
    train(settings, "mixed")
    weighted = settings.sampler.model_copy(update={"weights": {"evolving": 3.0}})
    for epoch, batches in enumerate((met[:6], met[6:])):
        visits = np.concatenate([rows for rows, _, _ in batches])
        attacked = torch.cat([images for _, images, _ in batches]).permute(0, 2, 3, 1).numpy()
        adversarial = torch.cat([flags for _, _, flags in batches]).numpy()
        version_drawn = sampler.draw(
            weighted, [*attacks, "evolving"], seed=0, epoch=epoch, visits=visits, batch_size=50
        )[visits]
        evolves = version_drawn == len(attacks) + 1
        assert 0.15 < evolves.mean() < 0.35  # half of all, of which half: one of three weights of 1, and one of 3
        assert adversarial[evolves].all() and not adversarial[version_drawn == 0].any()
        for version, images in enumerate(versions):
            rows_of_version = version_drawn == version
            np.testing.assert_array_equal(attacked[rows_of_version], images.image[visits[rows_of_version]])
        change = np.abs(attacked[evolves] - clean.image[visits[evolves]])
        assert change.max() == 8 and (change.max((1, 2, 3)) == 8).all()
    assert HERE.detector("mixed", 0).exists()


def test_perturbations_can_begin_as_a_stored_attack(project: Path, tiny: Callable[..., Params]) -> None:
    settings = tiny(
        training={"epochs": 1, "batch_size": 50, "crop_area": [1.0, 1.0]},
        structures={"evolving": words("evolving")},
        evolving={"frame": "moving", "start": "deepfool"},
    )
    clean = store.read(HERE.clean / "train.parquet")
    attacked = store.read(HERE.adversarial / "deepfool" / "train.parquet")
    perturbations = evolving.starts(settings, clean, attacked.metadata["source_model"], HERE)(0)
    expected = (attacked.image.astype(int) - clean.image).clip(-8, 8)
    np.testing.assert_array_equal(perturbations, expected)
    assert perturbations.dtype == np.int8 and (np.abs(expected).max((1, 2, 3)) > 0).mean() > 0.5
    train(settings, "evolving")
    with pytest.raises(InputError, match="was made against model"):
        evolving.starts(settings, clean, "another", HERE)


def test_random_starts_are_signs_at_eps_by_seed_and_epoch(project: Path, tiny: Callable[..., Params]) -> None:
    clean = store.read(HERE.clean / "train.parquet")
    first = evolving.starts(tiny(), clean, "", HERE)
    assert set(np.unique(first(0))) == {-8, 8} and abs(first(0).mean()) < 0.1
    assert np.array_equal(first(0), first(0)) and not np.array_equal(first(0), first(40))
    assert not np.array_equal(evolving.starts(tiny(seed=1), clean, "", HERE)(0), first(0))


def test_training_twice_gives_the_same_bytes(project: Path, tiny: Callable[..., Params]) -> None:
    training = {"epochs": 2, "batch_size": 50, "crop_area": [1.0, 1.0], "shift": 2, "label_smoothing": 0.2, "ema": 0.9}
    settings = tiny(
        training=training, structures={"evolving": words("evolving")}, monitor={"every": 1, "images": 20, "eps": 0.03}
    )
    results = []
    for _ in range(2):
        train(settings, "evolving")
        results.append((HERE.model("evolving", 0).read_bytes(), HERE.history("evolving").read_bytes()))
    assert results[0] == results[1] and b"pgd_accuracy" in results[0][1]
    assert model_files.facts(HERE.model("evolving", 0))["name"] == "evolving"


def test_the_first_pass_makes_no_gradients_of_weights() -> None:
    net = small(seed=1).train()
    following_net = following(net, section())
    following_net.versions(0, np.arange(COUNT))
    clean = eight()
    images = torch.from_numpy(clean.image).permute(0, 3, 1, 2).float() / 255
    batch = Batch(torch.arange(COUNT), images, torch.from_numpy(clean.label), torch.zeros(COUNT, dtype=torch.bool))
    following_net.show(batch, view_of("whole", COUNT), lambda batch: batch, None)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_nfgsm_starts_outside_eps_and_is_not_brought_back(tiny: Callable[..., Params]) -> None:
    settings = tiny(
        online_fgsm={"eps": 0.1, "step": 0.1, "steps": 1, "noise": 2}, structures={"x": words("online_fgsm")}
    )
    net, plain = small(seed=1), small(seed=1).eval()
    opponent = opponents.create(settings, settings.structure("x"), [], net, torch.float32)
    images = 0.4 + 0.2 * torch.rand(COUNT, 3, SIZE, SIZE)
    labels = torch.arange(COUNT)
    batch = Batch(labels, images, labels, torch.zeros(COUNT, dtype=torch.bool))
    view = augmentation.draw(settings.training, COUNT, 0, 0, CPU)
    attacked = opponent.show(batch, view, lambda batch: batch, opponent.draw(batch, 3, 2)).images
    generator = torch.Generator().manual_seed(int(rng(0, "online", 3, 2).integers(2**62)))
    noise = torch.erf(torch.randn((COUNT, 1, 3, SIZE, SIZE), generator=generator)[:, 0] / 2**0.5)
    start = (images + 0.2 * noise).clamp(0, 1).requires_grad_()
    slope = torch.autograd.grad(F.cross_entropy(plain(start), labels), start)[0]
    torch.testing.assert_close(attacked, (start + 0.1 * slope.sign()).clamp(0, 1).detach(), rtol=0, atol=1e-6)
    assert (attacked - images).abs().max() > 0.25
