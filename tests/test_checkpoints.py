"""Training that was killed or stopped anywhere goes on and ends with the bytes of an undisturbed run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_values
from ruamel.yaml import YAML
from structures import words

from sparring import checkpoints, params
from sparring.checkpoints import Checkpoint
from sparring.data import augmentation
from sparring.defences.train import train as train_structure
from sparring.layout import HERE, PARTIAL
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.training.pretrain import pretrain

STAGES = Path(__file__).resolve().parent.parent / "stages"
CPU = torch.device("cpu")
CHANGES: dict[str, Any] = {"training": {"epochs": 3, "batch_size": 50}, "detector": {"dropout": 0.3}}


def train(settings: Params, name: str) -> dict[str, bytes]:
    """Train a structure, or `pretrained`, and return what it wrote, by path."""
    if name == "pretrained":
        pretrain(settings)
    else:
        train_structure(settings, name)
    return written(name)


def written(name: str) -> dict[str, bytes]:
    models = [HERE.pretrained] if name == "pretrained" else sorted(HERE.models(name).iterdir())
    return {str(path): path.read_bytes() for path in [*models, HERE.history(name)]}


def write(values: dict[str, Any]) -> Params:
    YAML().dump(values, Path("params.yaml"))
    return params.validate(values)


@contextmanager
def stage(name: str) -> Iterator[subprocess.Popen[str]]:
    """Start the stage as a process, and yield it once it has saved something."""
    command = [STAGES / "pretrain.py"] if name == "pretrained" else [STAGES / "train.py", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: more threads round differently
    before = {path: path.stat().st_mtime_ns for path in PARTIAL.rglob("*.pt")}
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and before == {p: p.stat().st_mtime_ns for p in PARTIAL.rglob("*.pt")}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = write(tiny_values(**CHANGES | {"training": {"epochs": 12, "batch_size": 50}}))
    wanted = train(settings, "ours")
    assert not list(PARTIAL.iterdir())
    with stage("ours") as process:
        time.sleep(np.random.default_rng(1).uniform(0, 0.7))
        process.kill()
    assert list(PARTIAL.iterdir()) or process.returncode == 0
    capfd.readouterr()
    assert train(settings, "ours") == wanted
    assert "ours: going on after epoch " in capfd.readouterr().out or process.returncode == 0
    assert not list(PARTIAL.iterdir())


RECIPE = {"schedule": "one_cycle", "label_smoothing": 0.1, "ema": 0.8, "keep": "best"}
STRUCTURES = {
    "adv": words("sampler"),
    "ours": words("sampler", detector="detector"),
    "classical": words("fixed"),
    "fgsm": words("online_fgsm"),
    "pgd": words("online_pgd"),
}
STREAMED = {"store": {"memory_budget": 1e-6, "shard_size": 100, "batch_size": 50}}


@pytest.mark.slow
def test_killed_at_any_moment_every_structure_ends_with_the_same_bytes(project: Path) -> None:
    short = {"epochs": 2, "batch_size": 50}
    changes: dict[str, Any] = {
        "structures": STRUCTURES,
        "training": short,
        "detector": {"dropout": 0.3},
        "online_pgd": {"steps": 2},
    }
    recipe = {"training": short | RECIPE}
    cases: list[tuple[str, dict[str, Any]]] = [("adv", recipe), ("ours", recipe), ("classical", {}), ("fgsm", {})]
    cases += [("pgd", recipe), ("ours", {"seeds": [0, 1]} | STREAMED), ("adv", {"seeds": [0, 1]}), ("pretrained", {})]
    stdin = json.dumps([(name, tiny_values(**changes | more)) for name, more in cases])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("killing.py")
    process = subprocess.run([sys.executable, script], input=stdin, capture_output=True, text=True, env=environment)
    lines = process.stdout.splitlines()
    results = [json.loads(line) for line in lines if line.startswith("{")]
    assert [result["name"] for result in results] == [name for name, _ in cases], process.stderr
    for result in results:
        assert result["killed"][0] == -signal.SIGKILL, result
        assert result["same"] and result["ended"] == 0 and not result["left"], result
    assert sum(": going on after epoch " in line for line in lines) >= len(cases)
    # All of them were killed in the last seed, of 12 batches; the finished seeds were not trained again.
    last = [int(lines[number - 1].split()[0]) for number, line in enumerate(lines) if line.startswith("{")]
    assert all(batches < 12 or result["killed"][1] == 0 for batches, result in zip(last, results, strict=True))


def test_a_stage_that_is_told_to_stop_saves_and_says_where_it_goes_on(project: Path) -> None:
    write(tiny_values(**CHANGES | {"training": {"epochs": 500, "batch_size": 50}}))
    with stage("ours") as process:
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode > 0
    (line,) = error.splitlines()
    assert line.startswith("ours: stopped; the same command goes on after epoch ")
    with stage("ours") as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode > 0 and out.startswith("ours: going on " + line.partition("goes on ")[2])


@contextmanager
def stopped_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send Ctrl-C during the n-th batch of the training in the block, which has to end there."""
    batches_left, crop = batches, augmentation.crop

    def count_batches(*arguments: Any) -> Any:
        nonlocal batches_left
        batches_left -= 1
        if batches_left == 0:
            signal.raise_signal(signal.SIGINT)
        return crop(*arguments)

    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="goes on after epoch"):
        patched.setattr(augmentation, "crop", count_batches)
        yield


@pytest.mark.parametrize(
    ("name", "recipe", "more"),
    [
        ("pretrained", {}, {}),
        ("adv", {"schedule": "step"}, {}),
        ("ours", RECIPE, {}),
        ("ours", {}, STREAMED),
        ("classical", {}, {}),
        ("pgd", {}, {"online_pgd": {"steps": 2}}),
    ],
)
def test_stopped_after_any_batch_it_ends_with_the_same_bytes(
    project: Path,
    tiny: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    recipe: dict[str, Any],
    more: dict[str, Any],
) -> None:
    settings = tiny(**CHANGES | {"training": CHANGES["training"] | recipe, "structures": STRUCTURES} | more)
    wanted = train(settings, name)
    # At the end of an epoch and within one, again in what is left, and at the very end.
    for stops in ([6], [8, 1, 2], [18]) if recipe == RECIPE else ([8, 1, 2],):
        for batches in stops:
            with stopped_after(batches, monkeypatch):
                train(settings, name)
        assert train(settings, name) == wanted
        assert not list(PARTIAL.iterdir())


def test_finished_seeds_are_not_trained_again(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(**CHANGES, seeds=[0, 1])
    wanted = train(settings, "ours")
    with stopped_after(18 + 8, monkeypatch):
        train(settings, "ours")
    shutil.rmtree(HERE.models("ours"))  # as DVC does before it runs the stage again
    batches = 0
    crop = augmentation.crop

    def count_batches(*arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        return crop(*arguments)

    monkeypatch.setattr(augmentation, "crop", count_batches)
    assert train(settings, "ours") == wanted
    assert batches == 10


def test_no_other_run_takes_a_checkpoint(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with stopped_after(8, monkeypatch):
        train(tiny(**CHANGES), "ours")
    (folder,) = PARTIAL.iterdir()
    other = tiny(**CHANGES | {"training": CHANGES["training"] | {"learning_rate": 0.01}})
    wanted = train(other, "ours")
    assert folder.exists() and "going on" not in capfd.readouterr().out
    assert train(tiny(**CHANGES), "ours") != wanted
    assert not folder.exists() and "going on" in capfd.readouterr().out


def test_what_decides_the_results_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, code = tmp_path / "data.bin", tmp_path / "code"
    data.write_bytes(b"1")
    (code / "inner").mkdir(parents=True)
    texts = {"a": "from sparring import b", "b": "from sparring.inner.c import d", "inner/c": ""}
    for name, text in (texts | {"figures": ""}).items():
        (code / f"{name}.py").write_text(text)
    monkeypatch.setattr(checkpoints, "CODE", code)

    def folder(settings: object = ("x", 1), dtype: torch.dtype = torch.float32, device: str = "cpu") -> Path:
        return checkpoints.folder("ours", settings, [data], "sparring.a", torch.device(device), dtype)

    first = folder()
    assert first == folder() and first.parent == tmp_path / PARTIAL and first.name.startswith("ours-")
    others = [folder(settings=("x", 2)), folder(dtype=torch.bfloat16), folder(device="cuda:0")]
    assert folder(device="cuda:1") == others[-1]
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "0")
        others.append(folder())
    data.write_bytes(b"2")
    others.append(folder())
    data.write_bytes(b"1")
    for name, text in texts.items():
        (code / f"{name}.py").write_text(f"{text}\n# edited")
        others.append(folder())
        (code / f"{name}.py").write_text(text)
    assert len({first, *others}) == 1 + 5 + len(texts)
    (code / "figures.py").write_text("# edited")  # which the stage does not use
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "hardware", lambda device: "another")
        assert folder() == first and checkpoints.machine(CPU) == "cpu, another"


def test_the_code_of_a_stage_is_what_it_imports() -> None:
    training, attacking = (checkpoints.code(f"sparring.{name}") for name in ("defences.train", "attacks.generation"))
    names = {path.relative_to(checkpoints.CODE).as_posix() for path in training}
    assert {"defences/train.py", "training/loop.py", "defences/sampler.py", "device.py"} <= names
    assert {"attacks/pgd.py", "attacks/losses.py"} <= names
    assert not {"report/render.py", "report/figure.py", "report/table.py", "report/whitebox.py"} & names
    assert not {"evaluation/whitebox.py", "evaluation/exchange.py", "attacks/cw.py", "attacks/generation.py"} & names
    assert {path.stem for path in attacking} >= {"cw", "deepfool", "nst", "engine", "generation"}


def test_a_broken_checkpoint_is_no_checkpoint(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = tiny(**CHANGES)
    wanted = train(settings, "adv")
    with stopped_after(8, monkeypatch):
        train(settings, "adv")
    (path,) = PARTIAL.rglob("*.pt")
    path.write_bytes(path.read_bytes()[:-1000])
    assert train(settings, "adv") == wanted
    assert f"{path.name} cannot be read" in capfd.readouterr().out


def test_a_loss_that_explodes_leaves_no_checkpoint(project: Path, tiny: Callable[..., Params]) -> None:
    with pytest.raises(InputError, match="lower training"):
        train(tiny(training={"epochs": 2, "batch_size": 50, "learning_rate": 1e20}), "adv")
    assert not list(PARTIAL.iterdir())


def test_saving_takes_two_percent_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, cost, spent = 0.0, 0.0, 0.0

    def save(*_: object) -> None:
        nonlocal now, spent
        now += cost
        spent += cost

    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    monkeypatch.setattr(torch, "save", save)
    checkpoint = Checkpoint(tmp_path / "state.pt")
    chance = np.random.default_rng(0)
    saved = 0
    for _ in range(20_000):
        now += 0.1
        cost = chance.uniform(0.05, 0.5)
        if checkpoint.due():
            checkpoint.save({})
            saved += 1
    assert saved > 50 and spent <= 0.02 * now + 0.5
    assert not Checkpoint(None).due()


def test_the_timing_counts_all_runs_of_a_training(
    project: Path, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: save(state | {"seconds": 1000.0}, file))
    with stopped_after(8, monkeypatch):
        train(tiny(**CHANGES), "adv")
    train(tiny(**CHANGES), "adv")
    assert 1000 < YAML(typ="safe").load(HERE.timings / "train-adv.json")["seconds"] < 1100


def test_what_nobody_goes_on_from_is_removed_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long_ago = time.time() - checkpoints.ABANDONED - 60
    for name in ("train-old", "train-new"):
        (PARTIAL / name).mkdir(parents=True)
        (PARTIAL / name / "0.pt").write_bytes(b"state")
    for path in ("train-old/0.pt", "train-old", "train-new", "watch.json"):
        (PARTIAL / path).touch()
        os.utime(PARTIAL / path, (long_ago, long_ago))
    checkpoints.folder("train-ours", {}, [], "sparring.structures", CPU, torch.float32)
    assert {path.name for path in PARTIAL.iterdir()} == {"train-new", "watch.json"}
