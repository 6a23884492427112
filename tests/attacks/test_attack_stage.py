"""Tests how an attack runs: with little memory, compiled or not, killed and resumed, and as a stage."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacking import CPU, whole
from ruamel.yaml import YAML
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from sparring import params, store
from sparring.attacks import engine, generation
from sparring.layout import HERE, PARTIAL
from sparring.models import model_files, networks
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.params.names import SPLITS
from sparring.store import Images


def test_where_memory_runs_out_halves_give_the_same(net: ResNet, images: Tensor, labels: Tensor) -> None:
    sizes = []

    def hungry(model: ResNet, batch: Tensor, labels: Tensor, *, noise: Tensor) -> Tensor:
        sizes.append(len(batch))
        if len(batch) > 30:
            raise torch.OutOfMemoryError("no more")
        assert len(batch) == len(labels) == len(noise)
        return batch + noise + labels.view(-1, 1, 1, 1)

    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    attacked = engine.run(hungry, net, images, labels, {"noise": noise})
    assert torch.equal(attacked, images + noise + labels.view(-1, 1, 1, 1))
    assert max(sizes) == len(images) and min(sizes) > 1
    with pytest.raises(torch.OutOfMemoryError):
        engine.run(lambda *_, **__: hungry(net, images, labels, noise=noise), net, images[:1], labels[:1], {})
    with pytest.raises(ValueError, match="mine"):
        engine.run(lambda *_, **__: (_ for _ in ()).throw(ValueError("mine")), net, images, labels, {})


@pytest.mark.slow
def test_a_compiled_copy_does_the_same(
    net: ResNet, digits: Images, opponent: Callable[..., tuple[Params, Attack]]
) -> None:
    # DeepFool: batches that shrink, and several ways back through one pass.
    settings, attack = opponent(
        {"method": "deepfool", "steps": 3, "overshoot": 0.02}, store={"dtype": "float16", "faithful": False}
    )
    plain = whole(settings, attack, net, digits)
    fast = engine.Fast(net, CPU, torch.float32, compiled=True)
    compiled = whole(settings, attack, net, digits, model=fast)
    assert fast.compiled
    assert (compiled.columns["prediction_float"] == plain.columns["prediction_float"]).mean() >= 0.99
    np.testing.assert_allclose(compiled.columns["l2"], plain.columns["l2"], atol=2e-3)


def test_a_compiled_attack_leaves_no_library_that_a_kill_has_cut_short(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    files_before: list[list[Path]] = []

    def compiler(function: Callable[..., Tensor], dynamic: bool) -> Callable[..., Tensor]:
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        files_before.append(list(folder.rglob("*")))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "library.so").write_bytes(b"")
        if len(files_before) == 1:
            raise KeyboardInterrupt
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(engine, "worth_compiling", lambda *arguments: True)
    with pytest.raises(KeyboardInterrupt):
        generation.attack_splits(tiny(), "fgsm")
    assert list(PARTIAL.rglob("library.so"))
    generation.attack_splits(tiny(), "fgsm")
    assert files_before[:2] == [[], []] and not list(PARTIAL.iterdir())


def test_without_a_compiler_it_goes_on(
    net: ResNet, images: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Callable[..., Tensor]:
        def fail(*_: Any) -> Tensor:
            raise TorchDynamoException("no C++ compiler\nat all")

        return fail

    plain = engine.Fast(net, CPU, torch.float32)(images)
    monkeypatch.setattr(torch, "compile", broken)
    fast = engine.Fast(net, CPU, torch.float32, compiled=True)
    assert torch.equal(fast(images), plain) and torch.equal(fast(images), plain)
    assert capsys.readouterr().err == "going on without torch.compile: no C++ compiler at all\n"


def test_compiling_is_decided_by_all_of_the_work(net: ResNet) -> None:
    def worth(count: int, **arguments: float) -> bool:
        return engine.worth_compiling(net, Attack(method="bim", arguments=arguments), (16, 16, 3), count, CPU)

    least = next(count for exponent in range(60) if worth(count := 2**exponent, steps=8))
    assert least > 1000 and not worth(least // 2, steps=8)
    assert worth(8 * least, steps=1) and not worth(4 * least, steps=1)
    assert worth(least // 4, steps=8, restarts=4) and not worth(least // 8, steps=8, search_steps=4)


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(project: Path, tiny: Callable[..., Params]) -> None:
    folder = HERE.adversarial / "deepfool"

    def stored() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}

    before = stored()
    values = YAML(typ="safe").load(Path("params.yaml"))
    values["store"] |= {"shard_size": 20, "batch_size": 10}
    YAML().dump(values, Path("params.yaml"))
    generation.attack_splits(params.validate(values), "deepfool")
    expected = stored()
    assert expected != before
    script = Path(__file__).resolve().parents[2] / "stages" / "attack.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: more threads round differently
    stage = subprocess.Popen([sys.executable, script, "deepfool"], stdout=subprocess.PIPE, env=environment)
    # Killed once some shards are done, at a random moment after that.
    deadline = time.monotonic() + 120
    while stage.poll() is None and not list(Path(PARTIAL).rglob("train-*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(np.random.default_rng(0).uniform(0, 1))
    stage.kill()
    stage.wait()
    assert list(PARTIAL.rglob("*.parquet")) or stage.returncode == 0
    generation.attack_splits(params.validate(values), "deepfool")
    assert stored() == expected
    assert not list(PARTIAL.iterdir())


def test_unfinished_shards_belong_to_their_inputs(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, stop = store.write, 3

    def breaks(path: Path, *rest: Any) -> int:
        if PARTIAL in path.parents or PARTIAL.name in path.parts:
            nonlocal stop
            stop -= 1
            if stop < 0:
                raise KeyboardInterrupt
        return write(path, *rest)

    monkeypatch.setattr(store, "write", breaks)
    with pytest.raises(KeyboardInterrupt):
        generation.attack_splits(tiny(), "fgsm")
    (folder,) = PARTIAL.iterdir()
    assert len(list(folder.iterdir())) == 3
    shards = []
    monkeypatch.setattr(store, "write", write)
    attacked = generation.attacked

    def counts(*arguments: Any, **keywords: Any) -> Images:
        shards.append(1)
        return attacked(*arguments, **keywords)

    monkeypatch.setattr(generation, "attacked", counts)
    generation.attack_splits(tiny(seed=1), "fgsm")  # another seed: nothing of the other run is taken
    assert len(shards) == 7 and folder.exists()
    shards.clear()
    generation.attack_splits(tiny(), "fgsm")
    assert len(shards) == 4 and not folder.exists()


def test_metadata_tells_what_ran(project: Path, tiny: Callable[..., Params]) -> None:
    for name, eps in {"fgsm": 12 / 255, "strong": 51 / 255}.items():
        settings = tiny()
        folder = HERE.attacked(settings, name)
        assert folder == (HERE.adversarial if name == "fgsm" else HERE.unseen) / name
        metadata = store.read(folder / "test.parquet").metadata
        pretrained = networks.load(settings.network, 10, 16, HERE.pretrained)
        assert metadata["attack"] == name and metadata["method"] == "fgsm" and metadata["split"] == "test"
        assert metadata["arguments"] == {"eps": eps}
        assert metadata["source_model"] == model_files.digest(pretrained)
        assert metadata["shape"] == [16, 16, 3] and len(metadata["classes"]) == 10


def test_splits_of_seen_and_unseen_attacks(project: Path) -> None:
    assert {path.name for path in (HERE.adversarial / "fgsm").iterdir()} == {f"{split}.parquet" for split in SPLITS}
    assert {path.name for path in (HERE.unseen / "strong").iterdir()} == {"test.parquet", "heldout.parquet"}
    for split in SPLITS:
        clean, attacked = (
            store.read(folder / f"{split}.parquet") for folder in (HERE.clean, HERE.adversarial / "fgsm")
        )
        store.check_rows(clean, attacked, Path(split))


@pytest.mark.parametrize("name", ["gaussian", "fgsm", "deepfool", "strong"])
def test_the_same_seed_gives_the_same_bytes(project: Path, tiny: Callable[..., Params], name: str) -> None:
    folder = HERE.attacked(tiny(), name)
    before = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    np.random.seed(1)
    torch.manual_seed(1)
    generation.attack_splits(tiny(), name)
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == before
    if name == "gaussian":
        generation.attack_splits(tiny(seed=1), name)
        assert (folder / "test.parquet").read_bytes() != before["test.parquet"]
