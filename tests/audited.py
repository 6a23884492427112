"""Helpers of the tests of audits: a function that runs one, and models and images to audit."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest

from sparring import __main__ as command_line
from sparring import store
from sparring.audit import facts, plan, sections
from sparring.params import attacks

DATA = "data/clean/test.parquet"
NET = "models/pretrained.safetensors"
MODELS = '''
import torch
from torch import nn
import sparring

class Linear(nn.Module):
    """Logits 0 and w · x + b."""
    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3 * 8 * 8, generator=generator))
        self.bias = nn.Parameter(-0.5 * self.weight.detach().sum())
    def forward(self, images):
        value = images.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(value), value], 1)

class Turned(torch.autograd.Function):
    """The identity, whose gradient points the wrong way."""
    @staticmethod
    def forward(context, images):
        return images.clone()
    @staticmethod
    def backward(context, gradient):
        return -gradient

class Around(nn.Module):
    def __init__(self, before=None, after=None, **more):
        super().__init__()
        self.net = sparring.load("models/pretrained.safetensors")
        self.before, self.after = before, after
        for name, module in more.items():
            setattr(self, name, module)
    def forward(self, images):
        logits = self.net(images if self.before is None else self.before(images))
        return logits if self.after is None else self.after(logits)

def linear(): return Linear()
def plain(): return Around()
def masked(): return Around(before=Turned.apply)
def stepped(): return Around(before=lambda images: (images * 15).round() / 15)
def decided(): return Around(after=lambda logits: nn.functional.one_hot(logits.argmax(1), 10).float())
def normalised(): return Around(before=lambda images: images * torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
    + torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1))
def nan(): return Around(after=lambda logits: logits * float("nan"))
def noisy(): return Around(before=lambda images: images + 0.1 * torch.randn_like(images))
def seven(): return Around(after=lambda logits: logits[:, :7])
def constant(): return Around(after=lambda logits: logits * 0 + torch.arange(10.0))
def number(): return 3
def broken(): raise RuntimeError("no weights\\nhere")
'''


def write_models() -> None:
    Path("audited_models.py").write_text(MODELS)


def audited(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Run an audit by the command line and return its audit.json.  code: the exit status that it should have."""
    with pytest.raises(SystemExit) as stop:
        command_line.main(["audit", *arguments])
    assert (stop.value.code or 0) == code
    return json.loads(Path("audit/audit.json").read_text())


def grey(count: int, seed: int = 0) -> store.Images:
    """Images of 8 × 8 pixels, with levels so far from black and white that no small change reaches either."""
    levels = np.random.default_rng(seed).integers(90, 166, (count, 8, 8, 3)).astype(np.uint8)
    return store.Images(np.arange(count), np.zeros(count, np.int64), levels)


def write_store(path: Path, images: store.Images, classes: list[str], **more: Any) -> None:
    shape = list(images.image.shape[1:])
    store.write(path, [images], {"shape": shape, "classes": classes, "split": "test"} | more)


def shorten(monkeypatch: pytest.MonkeyPatch, **numbers: int | tuple[int, ...]) -> None:
    """Give the audit's attacks other numbers, by their names in capitals, as those of AutoAttack take a minute."""
    for name, number in numbers.items():
        for module in (attacks, plan, facts):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, number)


@contextmanager
def _not_drawn(folder: Path, name: str, *_: object, **__: object) -> Iterator[MagicMock]:
    figure = MagicMock()
    figure.subplots.side_effect = lambda rows=0, columns=0, **_: (
        np.array([Mock() for _ in range(columns)]) if columns else Mock()
    )
    yield figure
    for path in (folder / "vector" / f"{name}.svg", folder / "figures" / f"{name}.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"<svg></svg>")


def leave_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the figures be empty, as drawing takes half of the time of so small an audit."""
    monkeypatch.setattr(sections, "canvas", _not_drawn)
