"""Two processes on the CPU train what one does. Both run this file as a script."""

import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_values
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from structures import words
from torch import Tensor, nn

from sparring import checkpoints, distributed, params, store
from sparring.data import augmentation
from sparring.defences import evolving, opponents
from sparring.defences.joint import joint_step
from sparring.defences.opponents import OnlineOpponents
from sparring.device import torch_seed
from sparring.layout import HERE, PARTIAL
from sparring.models import classifier, model_files, networks
from sparring.models.classifier import Classifier
from sparring.models.detector import TransformerDetector
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.sections import Network
from sparring.params.structures import Online, Structure
from sparring.training.gallery import batch_stops, load_gallery
from sparring.training.loop import Opponents, TrainingInput
from sparring.training.loop import fit as run_training
from sparring.training.results import new_net
from sparring.training.steps import plain_step

STAGES = Path(__file__).resolve().parent.parent / "stages"
CPU = torch.device("cpu")
# Two processes sum gradients in another order than one, so the results differ by the effect of rounding on a training.
# That effect depends on the machine, and on whether it moves a unit across zero. It is measured with one process, in
# every case and in two ways. The difference of two processes may be so many times as large.
ROUNDING = 2
NUDGES: dict[str, Callable[[Tensor], Tensor]] = {
    "up": lambda weights: torch.nextafter(weights, torch.tensor(torch.inf)),
    "last bit": lambda weights: (weights.view(torch.int32) ^ 1).view(torch.float32),
}
# 300 images: five batches of 59, which two processes halve unevenly, and one of 5. One epoch, as every step makes more
# of rounding that moves a unit across zero.
CASES: dict[str, dict[str, Any]] = {
    "plain": {"training": {"epochs": 1, "batch_size": 59, "label_smoothing": 0.1, "ema": 0.5}},
    "joint": {"training": {"epochs": 1, "batch_size": 59}, "detector": {"dropout": 0.0}},
    "streamed": {"training": {"epochs": 1, "batch_size": 59}, "store": {"memory_budget": 1e-6}},
    "online": {"training": {"epochs": 1, "batch_size": 59}},
    "evolving": {
        "training": {"epochs": 1, "batch_size": 59, "crop_area": [1.0, 1.0]},
        "evolving": {"frame": "moving"},
        "structures": {"evolving": words("evolving")},
    },
}
# This case has BatchNorm and dropout, whose numbers differ between the processes.
RESUMED: dict[str, Any] = {"training": {"epochs": 3, "batch_size": 59}, "detector": {"dropout": 0.3}}


def grouped(net: Classifier) -> Classifier:
    """Replace BatchNorm by GroupNorm, so that the outputs for an image do not depend on the rest of the batch."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.GroupNorm(2, module.num_features))
    return net


def fit(
    settings: Params,
    name: str,
    normed: Callable[[Classifier], Classifier],
    checkpoint: Path | None = None,
    nudge: Callable[[Tensor], Tensor] = lambda weights: weights,
) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Train on the project's images. Return the tensors of net and detector, and of an attack if any, and the history.

    nudge: changes the first weights.
    """
    net = normed(new_net(settings, "target", 10))
    pretrained = networks.load(settings.network, 10, 16, HERE.pretrained)
    with torch_seed(0, "weights", "detector"):
        detector = TransformerDetector(settings.detector, classifier.map_shapes(net, 16))
    with torch.no_grad():
        for weights in (*net.parameters(), *detector.parameters()):
            weights.copy_(nudge(weights))
    attacked: list[Tensor] = []
    if name == "joint":
        frozen = networks.frozen(pretrained)
        step = joint_step(net, frozen, detector, settings.training, settings.detector, torch.float32)
    else:
        step = plain_step(net, settings.training, torch.float32)
    attacks = list(settings.attacks)
    structure = Structure(opponents="sampler", evolving="none", detector="none", transform="none")
    stored = opponents.create(settings, structure, attacks, net, torch.float32)

    class NotedOpponents(OnlineOpponents):
        """These opponents attack the stored versions, and note the images that result."""

        def versions(self, epoch: int, visits: np.ndarray) -> np.ndarray:
            return stored.versions(epoch, visits)

        def show(self, *batch: Any) -> TrainingInput:
            attack = super().show(*batch)
            attacked.append(attack.images)
            return attack

    opponents_of: dict[str, Opponents] = {}
    if name == "online":
        opponents_of[name] = NotedOpponents(net, Online(eps=0.05, step=0.02, steps=2, noise=1), torch.float32, 0)
    if name == "evolving":
        start = evolving.starts(settings, store.read(HERE.clean / "train.parquet", ()), "", HERE)
        alone = settings.structure("evolving")
        opponents_of[name] = opponents.create(settings, alone, attacks, net, torch.float32, start)

    history = run_training(
        settings,
        name,
        net,
        step,
        load_gallery(settings, HERE, attacks, model_files.digest(pretrained), CPU),
        opponents_of.get(name, stored),
        store.read(HERE.clean / "validation.parquet"),
        checkpoints.Checkpoint(checkpoint),
    )
    tensors = {f"net.{key}": value for key, value in net.state_dict().items()}
    tensors |= {f"detector.{key}": value for key, value in detector.state_dict().items()}
    tensors |= {"attacked": attacked[0]} if attacked else {}  # of the first batch, this process's slice
    if name == "evolving":
        tensors |= {"perturbation": opponents_of[name].state_dict()["perturbation"]}
    return {key: value.contiguous().clone() for key, value in tensors.items()}, pd.DataFrame(history)


def every_case(folder: Path, nudge: str | None = None) -> None:
    """Train each case and write this process's results.  nudge: the one of NUDGES that changes the first weights."""
    folder = folder / (nudge or f"{distributed.rank()}-of-{distributed.size()}")
    folder.mkdir(parents=True)
    changed = {"nudge": NUDGES[nudge]} if nudge else {}
    for name, changes in CASES.items():
        tensors, history = fit(params.validate(tiny_values(**changes)), name, grouped, **changed)
        save_file(tensors, folder / f"{name}.safetensors")
        history.to_csv(folder / f"{name}.csv")


def distance(folder: Path, other: Path, name: str) -> float:
    """Return the largest difference between the trained weights of a case in two folders."""
    one, two = (load_file(place / f"{name}.safetensors") for place in (folder, other))
    weights = one.keys() - {"attacked", "perturbation"}
    return max(float((two[key] - one[key]).abs().max()) for key in weights)


def losses_distance(folder: Path, other: Path, name: str) -> float:
    """Return the largest difference between the losses of a case's histories in two folders, as a share of the loss.

    Rounding may move an accuracy by a whole image, so accuracies have to agree to two images.
    """
    one, two = (pd.read_csv(place / f"{name}.csv", index_col=0) for place in (folder, other))
    assert list(one) == list(two) and len(one) == len(two)
    losses = [column for column in one if column.endswith("loss")]
    for column in one.columns.drop(losses):
        images = {"epoch": math.inf, "validation_accuracy": 20}.get(column, 300)
        assert ((two[column] - one[column]).abs() <= 2 / images + 1e-6).all(), column
    return float((two[losses] / one[losses] - 1).abs().max(axis=None))


def stopped_and_resumed(folder: Path) -> None:
    """Write the results of a training that was not stopped, and of one that the last process alone stopped twice."""
    folder = folder / f"{distributed.rank()}-of-{distributed.size()}"
    settings = params.validate(tiny_values(**RESUMED))
    undisturbed, history = fit(settings, "joint", lambda net: net)
    distributed.PERIOD = 0  # the processes ask each other after every batch
    crop, batches_left = augmentation.crop, 0

    def stops(*arguments: Any) -> Any:
        nonlocal batches_left
        batches_left -= 1
        if batches_left == 0 and distributed.rank() == distributed.size() - 1:
            signal.raise_signal(signal.SIGTERM)
        return crop(*arguments)

    augmentation.crop = stops
    for batches in (3, 8):
        batches_left = batches
        with pytest.raises(SystemExit, match="goes on after epoch"):
            fit(settings, "joint", lambda net: net, Path("state.pt"))
        assert batches_left == 0
    resumed, other_history = fit(settings, "joint", lambda net: net, Path("state.pt"))
    pd.testing.assert_frame_equal(history, other_history, check_exact=True)
    save_file(undisturbed, folder / "undisturbed.safetensors")
    save_file(resumed, folder / "resumed.safetensors")


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a script in as many processes as its parameters say, and returns its exit status."""

    def run(settings: Params, *command: str | Path) -> int:
        def alone() -> None:
            raise AssertionError("not launched")

        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        try:
            distributed.run(settings, alone)
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 1
        return 0

    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield run
    logging.disable(logging.NOTSET)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_two_processes_at_half_the_batch_follow_one(
    project: Path, tiny: Callable[..., Params], tmp_path: Path, launch: Callable[..., int]
) -> None:
    assert launch(tiny(training={"devices": 2}), __file__, tmp_path) == 0
    every_case(tmp_path)
    for nudge in NUDGES:
        every_case(tmp_path, nudge)
    one, first, second = (tmp_path / name for name in ("0-of-1", "0-of-2", "1-of-2"))
    rounding = max(distance(one, tmp_path / nudge, name) for nudge in NUDGES for name in CASES)
    assert 0 < rounding < 2e-2
    for name in CASES:
        wanted, tensors, others = (load_file(folder / f"{name}.safetensors") for folder in (one, first, second))
        assert tensors.keys() == wanted.keys()
        if name == "online":
            attacked = torch.cat([part.pop("attacked") for part in (tensors, others)])
            # Where a gradient is next to nothing, rounding decides its sign.
            assert ((attacked - wanted.pop("attacked")).abs() < 1e-6).float().mean() > 0.999
        if name == "evolving":
            assert (tensors["perturbation"] == wanted["perturbation"]).float().mean() > 0.99
        assert all(torch.equal(tensors[key], others[key]) for key in wanted), name
        assert distance(one, first, name) <= ROUNDING * rounding, name
        wander = max(losses_distance(one, tmp_path / nudge, name) for nudge in NUDGES)
        assert wander < 5e-3, name
        least = 1e-2 if name == "online" else 1e-4
        assert losses_distance(one, first, name) <= max(least, ROUNDING * wander), name
    for folder in (first, second):
        undisturbed, resumed = (load_file(folder / f"{name}.safetensors") for name in ("undisturbed", "resumed"))
        assert all(torch.equal(resumed[key], tensor) for key, tensor in undisturbed.items())
        assert any("running_mean" in key for key in undisturbed)


def write(**changes: Any) -> Params:
    values = tiny_values(training={"epochs": 15, "batch_size": 50, "devices": 2, "learning_rate": 0.02} | changes)
    YAML().dump(values, Path("params.yaml"))
    return params.validate(values)


@pytest.mark.slow
def test_a_stage_on_two_devices_stops_goes_on_and_ends(
    project: Path, launch: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = write()
    command = [sys.executable, str(STAGES / "train.py"), "ours"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(PARTIAL.rglob("*.pt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        before, error = process.communicate(timeout=60)
    assert process.returncode > 0
    (line,) = error.splitlines()
    assert line.startswith("ours: stopped; the same command goes on after epoch ")

    assert launch(settings, STAGES / "train.py", "ours") == 0
    out, error = capfd.readouterr()
    assert not error
    going, *epochs, last = out.splitlines()
    assert going == "ours: going on " + line.partition("goes on ")[2]
    done = [text.split(",")[0] for text in [*before.splitlines(), *epochs]]
    assert done == [f"ours: epoch {number}/15" for number in range(1, 16)]
    assert last.startswith("train@ours: 15 epochs of 300 images in ")
    assert len(pd.read_csv(HERE.history("ours"))) == 15
    assert networks.load(settings.network, 10, 16, HERE.model("ours", 0))
    assert HERE.detector("ours", 0).exists() and not list(PARTIAL.iterdir())
    assert YAML(typ="safe").load(HERE.timings / "train-ours.json")["hardware"].startswith("2 processes, each on ")


def test_bad_input_of_a_stage_on_two_devices_is_one_line(
    project: Path, launch: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch(write(), STAGES / "train.py", "our") == 1
    out, error = capfd.readouterr()
    assert not out
    assert error == "error: params.yaml: structures.our is missing; there are baseline, adv, ours\n"


@pytest.mark.parametrize(
    ("changes", "environment", "says"),
    [
        ({"devices": 33, "batch_size": 64}, {}, "batch_size is 64; 33 devices share it and need 2 images each; use 66"),
        ({"devices": 2}, {"LOCAL_RANK": "0", "WORLD_SIZE": "3"}, "devices is 2; torchrun has started 3; use auto"),
    ],
)
def test_devices_that_do_not_go_together_are_one_line(
    tiny: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    environment: dict[str, str],
    says: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=says) as caught:
        distributed.count(tiny(training=changes))
    assert "\n" not in str(caught.value)


def test_auto_is_every_visible_gpu_and_one_process_on_a_cpu(
    tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distributed.count(tiny()) == distributed.count(tiny(training={"devices": 1})) == 1
    assert distributed.count(tiny(training={"devices": 3})) == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for device, devices in (("auto", 4), ("cuda", 4), ("cuda:1", 1), ("cpu", 1)):
        assert distributed.count(tiny(device=device)) == devices
    assert distributed.count(tiny(device="cuda", training={"devices": 2})) == 2
    for device, gpus in (("cuda", 4), ("cuda:1", 1)):
        with pytest.raises(InputError, match=f"device {device} has {gpus} CUDA GPUs for 5 processes"):
            distributed.count(tiny(device=device, training={"devices": 5}))


@given(st.integers(1, 40), st.integers(1, 6))
def test_slices_hold_each_row_once_and_weigh_as_much_as_they_hold(count: int, processes: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "size", lambda: processes)
        rows, total, sizes = [], 0.0, []
        for rank in range(processes):
            patched.setattr(distributed, "rank", lambda rank=rank: rank)
            part = distributed.mine(torch.arange(count))
            rows += part.tolist()
            sizes.append(len(part))
            if len(part):
                total += float(distributed.weighted(part.double().mean(), count)) / processes
    assert rows == list(range(count)) and max(sizes) - min(sizes) <= 1
    assert total == pytest.approx((count - 1) / 2)


@given(st.integers(4, 60), st.integers(2, 9), st.integers(2, 4))
def test_every_process_has_two_images_of_every_batch(count: int, size: int, processes: int) -> None:
    size, count = max(size, 2 * processes), max(count, 2 * processes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "size", lambda: processes)
        sizes = np.diff(batch_stops(count, size), prepend=0)
    assert sizes.sum() == count and (sizes[:-1] == size).all() and sizes.min() >= 2 * processes


def test_a_net_with_synchronised_norms_is_the_same_net(tiny: Callable[..., Params]) -> None:
    for network in (tiny().network, Network(name="densenet121")):
        torch.manual_seed(0)
        net = networks.create(network, 10, 32).eval()
        names, images = list(net.state_dict()), torch.rand(2, 3, 32, 32)
        wanted = net.maps(images)
        distributed.sync_norms(net)
        assert list(net.state_dict()) == names
        assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
        maps = net.maps(images)
        assert maps.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(maps[name], tensor)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])

    def work() -> None:
        every_case(folder)
        stopped_and_resumed(folder)

    distributed.run(params.validate(tiny_values(training={"devices": 2})), work)
