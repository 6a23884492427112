"""Helpers of the tests of models from elsewhere: functions that evaluate one, and programs to evaluate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from sparring import __main__ as command_line
from sparring.evaluation import programs
from sparring.params.errors import InputError


def measured(*arguments: str) -> pd.DataFrame:
    with pytest.raises(SystemExit) as stop:
        command_line.main(["evaluate-model", *arguments, "--json", "out.json"])
    assert not stop.value.code
    return pd.DataFrame(json.loads(Path("out.json").read_text())).set_index(["split", "attack"])


def refused(match: str, *arguments: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        command_line.app(["evaluate-model", *arguments], standalone_mode=False)
    assert "\n" not in str(caught.value)
    assert not Path("out.json").exists()


def exported(net: nn.Module, facts: dict[str, Any] | None = None, size: int = 16) -> str:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net, (torch.rand(2, 3, size, size),), dynamic_shapes=({0: batch},))
    more = {} if facts is None else {programs.FACTS: json.dumps(facts)}
    torch.export.save(program, "mine.pt2", extra_files=more)
    return "mine.pt2"


class Linear(nn.Module):
    """A linear classifier with something before or after it."""

    def __init__(self, before: Callable[[Tensor], Tensor] | None = None, after: Any = None, **modules: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 16 * 16, 10)
        self.before, self.after = before, after
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear((images if self.before is None else self.before(images)).flatten(1))
        return logits if self.after is None else self.after(logits)
