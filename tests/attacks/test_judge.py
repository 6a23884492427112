"""The judge's predictions are exactly the original net's, though most images pass its copy alone. The search for the
least scale finds it in few passes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from attacking import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparring import store
from sparring.attacks import generation, storage
from sparring.device import channels_last
from sparring.layout import HERE
from sparring.models import classifier, networks
from sparring.params import Params
from sparring.params.names import SPLITS


class Counted(torch.nn.Module):
    """This linear net records the sizes of its batches."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return images.flatten(1) @ self.weight


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 2**31), st.floats(0, 1.0), st.booleans())
def test_the_judge_is_right_whatever_a_copy_is_wrong_by(seed: int, wrong: float, retained: bool) -> None:
    chance = torch.Generator().manual_seed(seed)
    net, images = Counted(seed), torch.rand(60, 3, 2, 2, generator=chance)
    logits = net(images)
    truth = logits.argmax(1)
    copied = logits + wrong * (
        torch.rand(logits.shape, generator=chance) - 0.5
    )  # a difference moves by `wrong` at most
    net.sizes.clear()

    def judge_of_all(bounds: dict[str, float]) -> storage.Judge:
        judge = storage.Judge(net, 16, ["prediction"], bounds)  # type: ignore[arg-type]
        for rows in torch.arange(60).split(16):
            judge.add("prediction", images[rows], copied[rows], retained=retained)
        assert judge.predictions()["prediction"].tolist() == truth.tolist()
        return judge

    facts = judge_of_all({}).facts()["prediction"]
    assert facts["exact"] == 60 and net.sizes == [16, 16, 16, 12]
    assert facts["bound"] == pytest.approx(4 * (logits - copied).sub((logits - copied).amin(1, keepdim=True)).max())
    net.sizes.clear()
    known = judge_of_all({"prediction": facts["bound"]}).facts()["prediction"]
    near = copied.topk(2, 1).values
    assert known["exact"] == (near[:, 0] - near[:, 1] <= facts["bound"]).sum()
    assert net.sizes == [16] * -(-int(known["exact"]) // 16)  # filled up: a batch of another size rounds differently


def test_what_is_no_number_is_decided_by_the_net_itself() -> None:
    net, images = Counted(0), torch.rand(8, 3, 2, 2)
    judge = storage.Judge(net, 4, ["prediction"], {"prediction": 0.1})  # type: ignore[arg-type]
    judge.add("prediction", images, torch.full((8, 5), torch.nan))
    assert judge.predictions()["prediction"].tolist() == net(images).argmax(1).tolist()


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.floats(0.08, 14), st.floats(0.2, 4), st.floats(0.1, 30))
def test_the_search_finds_where_a_falling_function_crosses(root: float, bend: float, size: float) -> None:
    """The function is a power of the scale: a straight line (bend 1), or flat before or behind the root."""

    def value(scale: Tensor) -> Tensor:
        return size * (1 - (scale / root) ** bend)

    search = storage._Search(value(torch.zeros(1)))
    passes, row = 0, torch.zeros(1, dtype=torch.int64)
    while search.open.any():
        search.observe(row, value(search.next))
        passes += 1
        assert passes <= 40
    low, high = float(search.low), float(search.high)
    assert low <= root * 1.0001 and high >= root * 0.9999
    assert high / low < storage.NEAR_ENOUGH
    if bend == 1:
        assert passes <= 5


def test_a_function_that_never_crosses_ends_the_search() -> None:
    for value, end in ((1.0, storage.FARTHEST), (-1.0, 1 / storage.FARTHEST)):
        search, row = storage._Search(torch.tensor([value])), torch.zeros(1, dtype=torch.int64)
        for _ in range(20):
            if search.open.any():
                search.observe(row, torch.tensor([value]))
        assert not search.open.any()
        assert (search.low if value > 0 else 1 / search.high) >= (end if value > 0 else 1 / end)


@pytest.mark.parametrize("name", ["fgsm", "deepfool"])
def test_stored_predictions_are_those_of_the_net_in_float32_on_every_image(
    project: Path, tiny: Callable[..., Params], name: str
) -> None:
    """The copy computes in bfloat16, and only on the first shard is its error measured."""
    settings = tiny(precision="bfloat16", store={"shard_size": 20, "batch_size": 10})
    generation.attack_splits(settings, name)
    net = networks.load(settings.network, [str(digit) for digit in range(10)], 16, HERE.pretrained)
    shares = []
    for split in SPLITS:
        stored = store.read(HERE.adversarial / name / f"{split}.parquet")
        expected = classifier.predict(channels_last(net, CPU), stored.image, 10, CPU).argmax(1)
        np.testing.assert_array_equal(stored.columns["prediction"], expected)
        decided = stored.metadata["decided"]
        assert decided.keys() == set(stored.columns) & {"prediction", "prediction_float"}
        shares.append(decided["prediction"]["in_float32"])
    assert decided["prediction"]["bound"] > 0
    assert min(shares) < 1, "the copy has decided no image, so nothing was tried"
