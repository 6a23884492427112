"""Training images larger than store.memory_budget are read by row group, and are the same as from memory."""

import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structures import words
from torch import Tensor

from sparring import store
from sparring.defences.train import train
from sparring.device import rng
from sparring.layout import HERE
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.store import Images
from sparring.training.gallery import Gallery, Stream, batch_stops, load_gallery
from sparring.training.pretrain import pretrain
from sparring.training.steps import Step, plain_step

CPU = torch.device("cpu")


def versions(count: int, number: int, shape: tuple[int, int, int], halves: bool, seed: int = 0) -> list[Images]:
    """Create `number` versions of random images, the last in float16 where `halves`."""
    chance = np.random.default_rng(seed)
    index, label = np.arange(count), chance.integers(0, 5, count)
    images_by_version = []
    for _ in range(number):
        linf = chance.integers(0, 2, count).astype(np.float32)
        images_by_version.append(
            Images(index, label, chance.integers(0, 256, (count, *shape), np.uint8), {"linf": linf})
        )
    if halves:
        images_by_version[-1] = Images(
            index, label, (images_by_version[-1].image / 3).astype(np.float16), images_by_version[-1].columns
        )
    return images_by_version


def both(folder: Path, images: list[Images], sizes: list[int], budget: float) -> tuple[Gallery, Stream]:
    """Return a gallery in memory, and a stream of the same images from stores with row groups of these sizes."""
    ends = np.cumsum(sizes)
    groups = []
    for number, version in enumerate(images):
        path = folder / f"{number}.parquet"
        shards = (version[end - size : end] for size, end in zip(sizes, ends, strict=True))
        store.write(path, shards, {"shape": list(version.image.shape[1:]), "classes": []})
        groups.append(store.RowGroups(path))
    clean, *attacked = images
    gallery = Gallery(np.stack([version.image for version in images]), clean, attacked, CPU)
    return gallery, Stream(groups, clean, attacked, budget, CPU)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=20),
    number=st.integers(1, 3),
    halves=st.booleans(),
    size=st.integers(2, 30),
    budget=st.integers(1, 1500),
    epoch=st.integers(0, 3),
)
def test_a_stream_gives_every_image_once_in_its_drawn_version(
    sizes: list[int], number: int, halves: bool, size: int, budget: int, epoch: int
) -> None:
    count, shape = sum(sizes), (2, 3, 3)
    images = versions(count, number, shape, halves)
    with tempfile.TemporaryDirectory() as folder:
        gallery, stream = both(Path(folder), images, sizes, budget)
        version = np.random.default_rng(epoch).integers(0, number, count)
        windows = stream.order(7, epoch)
        assert sorted(np.concatenate(windows).tolist()) == list(range(count))
        for first_window, second_window in zip(windows, stream.order(7, epoch), strict=True):
            np.testing.assert_array_equal(first_window, second_window)
        size_of_image = 18 * (2 if halves else 1)
        for window in windows:  # none takes more than half of the budget, or an eighth of the row groups, but for one
            groups = len(set(np.searchsorted(np.cumsum(sizes), window, "right")))
            assert groups == 1 or (len(window) * size_of_image <= budget / 2 and groups <= len(sizes) / 8)
        batches = list(stream.batches(windows, version, size, 0))
        stops = batch_stops(count, size)
        assert [len(rows) for rows, *_ in batches] == np.diff(stops, prepend=0).tolist()
        expected = gallery.batches(windows, version, size, 0)
        for batch, expected_batch in zip(batches, expected, strict=True):
            assert all(
                torch.equal(tensor, expected_tensor)
                for tensor, expected_tensor in zip(batch, expected_batch, strict=True)
            )
            rows, pixels, labels, _ = batch
            stored = np.stack([images[version[row]].image[row] for row in rows.tolist()]).astype(np.float32)
            np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1).numpy(), stored / 255)
            assert labels.tolist() == images[0].label[rows.numpy()].tolist()
        for skip in {1, len(stops) // 2, len(stops) - 1, len(stops)}:
            tail = list(stream.batches(windows, version, size, skip))
            assert len(tail) == len(stops) - skip
            for batch, expected_batch in zip(tail, batches[skip:], strict=True):
                assert all(
                    torch.equal(tensor, expected_tensor)
                    for tensor, expected_tensor in zip(batch, expected_batch, strict=True)
                )


def test_epochs_differ_in_windows_and_in_order(tmp_path: Path) -> None:
    _, stream = both(tmp_path, versions(160, 1, (1, 1, 3), False), [4] * 40, 100)
    first, second = stream.order(0, 0), stream.order(0, 1)
    assert len(first) > 8
    assert {frozenset(window) for window in first} != {frozenset(window) for window in second}
    assert first[0].tolist() != sorted(first[0])


def test_a_window_mixes_the_classes_of_a_store_that_is_sorted_by_class(tmp_path: Path) -> None:
    images = versions(400, 1, (1, 1, 3), False)[0]
    _, stream = both(tmp_path, [Images(images.index, np.arange(400) // 80, images.image)], [10] * 40, 1e6)
    for epoch in range(3):
        windows = stream.order(epoch, epoch)
        assert len(windows) == 8
        for window in windows:
            assert np.bincount(window // 80).tolist() == [10] * 5


def peak(work: Callable[[], object]) -> int:
    """Return the most bytes that numpy had allocated while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_stream_stays_within_its_budget(tmp_path: Path) -> None:
    images = versions(64 * 32, 3, (32, 32, 3), False)  # 6.3 MB a version, 98 kB a row group
    _, stream = both(tmp_path, images, [32] * 64, 1e6)
    version = np.random.default_rng(0).integers(0, 3, 64 * 32)
    windows = stream.order(0, 0)
    assert len(windows) == 13  # of five row groups
    del images
    arrow, before = 0, pa.total_allocated_bytes()

    def read() -> None:
        nonlocal arrow
        for _ in stream.batches(windows, version, 16, 0):
            arrow = max(arrow, pa.total_allocated_bytes() - before)

    assert peak(read) < 1.3e6 and arrow < 3e5


def set_up(tiny: Callable[..., Params], budget: float, **more: Any) -> Params:
    settings = {"training": {"epochs": 2, "batch_size": 64, "crop_area": [1.0, 1.0]}} | more
    return tiny(**settings, store={"memory_budget": budget, "shard_size": 100, "batch_size": 50})


def test_the_budget_decides_and_no_image_is_in_memory_twice(project: Path, tiny: Callable[..., Params]) -> None:
    names = list(tiny().attacks)
    source = store.read(HERE.adversarial / names[0] / "train.parquet").metadata["source_model"]
    pixels = 4 * 300 * 16 * 16 * 3
    galleries: list[Gallery] = []

    def gallery(budget: float) -> type:
        galleries[:] = [load_gallery(set_up(tiny, budget / 1e9), HERE, names, source, CPU)]
        return type(galleries[0])

    assert peak(lambda: gallery(pixels)) < 1.2 * pixels
    assert gallery(pixels) is Gallery and gallery(pixels - 1) is Stream


@pytest.mark.parametrize("opponents", ["sampler", "fixed"])
def test_streamed_training_sees_what_training_in_memory_sees(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, opponents: str
) -> None:
    images_seen: list[bytes] = []
    original = plain_step

    def spy(net: Classifier, *rest: Any) -> Step:
        step = original(net, *rest)

        def run(images: Tensor, labels: Tensor, adversarial: Tensor, penalty: None) -> dict[str, Tensor]:
            for image, label, attacked in zip(images, labels.tolist(), adversarial.tolist(), strict=True):
                images_seen.append((image * 255).round().byte().numpy().tobytes() + bytes([label, attacked]))
            return step.run(images, labels, adversarial)

        return Step(run, step.optimizers)

    monkeypatch.setattr("sparring.defences.train.plain_step", spy)
    monkeypatch.setattr("sparring.training.pretrain.plain_step", spy)
    runs = []
    for budget in (4, 1e-6, 1e-6):
        settings = set_up(
            tiny,
            budget,
            structures={"adv": words(opponents)},
        )
        images_seen.clear()
        train(settings, "adv")
        runs.append((list(images_seen), HERE.model("adv", 0).read_bytes()))
    (memory, _), (streamed, net), again = runs
    assert len(memory) == 600 and memory != streamed
    for epoch in (slice(0, 300), slice(300, 600)):
        assert sorted(memory[epoch]) == sorted(streamed[epoch])
    assert sorted(memory[:300]) != sorted(memory[300:])
    assert again == (streamed, net)


def test_ours_and_the_pretrained_net_stream_too(project: Path, tiny: Callable[..., Params]) -> None:
    memory, tight = set_up(tiny, 4), set_up(tiny, 1e-6)
    nets = []
    for params in (memory, tight, tight):
        train(params, "ours")
        nets.append(HERE.model("ours", 0).read_bytes() + HERE.detector("ours", 0).read_bytes())
    assert nets[0] != nets[1] == nets[2]
    before = HERE.pretrained.read_bytes()
    pretrain(tight)
    assert HERE.pretrained.read_bytes() != before


@pytest.mark.parametrize("budget", [4, 1e-6])
def test_a_damaged_or_missing_store_is_one_line(project: Path, tiny: Callable[..., Params], budget: float) -> None:
    settings = set_up(tiny, budget)
    path = HERE.adversarial / "fgsm" / "train.parquet"
    content = path.read_bytes()

    def fails(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            train(settings, "adv")
        assert "\n" not in str(caught.value)

    middle = len(content) // 2  # among the pixels of the second of three row groups
    path.write_bytes(content[:middle] + rng(0, "noise").bytes(20_000) + content[middle + 20_000 :])
    fails(r"fgsm/train\.parquet cannot be read \(.*\); delete it and run `dvc repro`")
    path.write_bytes(content[:-100])
    fails(r"fgsm/train\.parquet cannot be read")
    path.unlink()
    fails(r"fgsm/train\.parquet is missing; `dvc repro` makes it")


def test_stores_with_other_row_groups_are_not_streamed(project: Path, tiny: Callable[..., Params]) -> None:
    path = HERE.adversarial / "fgsm" / "train.parquet"
    images = store.read(path)
    store.write(path, store.in_shards(images, 70), images.metadata)
    with pytest.raises(InputError, match=r"fgsm/train\.parquet has other row groups than data/clean/train\.parquet;"):
        train(set_up(tiny, 1e-6), "adv")
    train(set_up(tiny, 4), "adv")
