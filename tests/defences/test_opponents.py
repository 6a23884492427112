"""Tests how the training loop calls opponents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparring.checkpoints import Checkpoint
from sparring.data import augmentation
from sparring.data.augmentation import Augmentation
from sparring.data.transforms import Draw
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.store import Images
from sparring.training.gallery import Batch, Gallery
from sparring.training.loop import Opponents, TrainingInput, fit
from sparring.training.steps import plain_step

CPU = torch.device("cpu")


class Remembering(Opponents):
    """These opponents count the visits of each image, and scale its brightness by the count."""

    def __init__(self) -> None:
        self.visits = torch.zeros(8)
        self.batches: list[tuple[Tensor, ...]] = []

    def show(self, batch: Batch, view: Augmentation, transform_draw: Draw, noise: Tensor | None) -> TrainingInput:
        self.visits[batch.rows] += 1
        self.batches.append((batch.rows, batch.labels, view.boxes))
        return TrainingInput(batch.images * (self.visits[batch.rows] / 10).view(-1, 1, 1, 1), batch.adversarial)

    def state_dict(self) -> dict[str, Any]:
        return {"visits": self.visits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.visits = state["visits"]


def test_opponents_see_rows_and_crops_and_their_state_joins_the_checkpoint(
    tiny: Callable[..., Params], tmp_path: Path
) -> None:
    settings = tiny(training={"epochs": 3, "batch_size": 3, "crop_area": [0.5, 1.0]})
    images = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), np.uint8)
    clean = Images(np.arange(8), np.arange(8), images)
    gallery = Gallery(clean.image[None], clean, [], CPU)

    def run(opponents: Remembering, stop: bool = False) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = ResNet((1, 1, 1, 1), 4, 8)
        step = plain_step(net, settings.training, torch.float32)
        checkpoint = Checkpoint(tmp_path / "state.pt")
        if stop:
            checkpoint.due = lambda: True  # type: ignore[method-assign]
            show = opponents.show

            def killed(*batch: Any) -> TrainingInput:
                if len(opponents.batches) == 4:
                    raise KeyboardInterrupt
                return show(*batch)

            opponents.show = killed  # type: ignore[method-assign]
        fit(settings, "eight", net, step, gallery, opponents, clean, checkpoint)
        return net.state_dict()

    undisturbed = Remembering()
    expected = run(undisturbed)
    rows = torch.cat([rows for rows, _, _ in undisturbed.batches])
    assert torch.equal(rows.view(3, 8).sort(1).values, torch.arange(8).expand(3, -1))
    assert all(torch.equal(labels, rows) for rows, labels, _ in undisturbed.batches)  # as image k is of class k here
    epoch = torch.cat([boxes for _, _, boxes in undisturbed.batches[:3]])[rows[:8].argsort()]
    assert torch.equal(epoch, augmentation.draw(settings.training, 8, settings.seed, 0, CPU).boxes)
    (tmp_path / "state.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(Remembering(), stop=True)
    resumed = Remembering()
    tensors = run(resumed)
    assert len(resumed.batches) == 9 - 4 and torch.equal(resumed.visits, torch.full((8,), 3.0))
    assert all(torch.equal(tensors[key], value) for key, value in expected.items())
