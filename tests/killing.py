"""This script forks children that train, kills them, and compares what they leave.

run     python killing.py < cases.json     in the folder of a project; each case is [name, values of params.yaml]
writes  a line of JSON for each case; what the children print stands between

It is a process of its own, so that its forks have no threads to lose, and a single one, as every start imports torch.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sparring import checkpoints, params
from sparring.data import augmentation
from sparring.defences.train import train as train_structure
from sparring.layout import HERE, PARTIAL
from sparring.params import Params
from sparring.training.pretrain import pretrain


def train(settings: Params, name: str) -> None:
    if name == "pretrained":
        pretrain(settings)
    else:
        train_structure(settings, name)


def written(name: str) -> str:
    """Return a digest of the nets and the curve that a training wrote."""
    models = [HERE.pretrained] if name == "pretrained" else sorted(HERE.models(name).iterdir())
    digest = hashlib.sha256()
    for path in [*models, HERE.history(name)]:
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


def child(settings: Params, name: str, fatal_batch: int | None = None) -> int:
    """Fork a child that trains, saves after almost every batch, and kills itself in the fatal batch. Returns its id."""
    if name != "pretrained":
        shutil.rmtree(HERE.models(name), ignore_errors=True)  # as DVC does before it runs a stage
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status, crop, batches = 1, augmentation.crop, 0

    def count_batches(*arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == fatal_batch:
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return crop(*arguments)

    try:
        augmentation.crop, checkpoints.SHARE = count_batches, 1
        train(settings, name)
        print(f"{batches} batches")
        sys.stdout.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ends(process: int) -> int:
    """Wait for a process and return 0, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def timed(call: Callable[[], int]) -> float:
    """Return the seconds of a call, which has to return 0."""
    began = time.monotonic()
    assert call() == 0
    return time.monotonic() - began


def case(name: str, values: dict[str, Any], chance: np.random.Generator) -> dict[str, Any]:
    """Train undisturbed, then killed twice, and tell whether both ended with the same bytes."""
    settings = params.validate(values)
    batches = settings.training.epochs * -(-settings.data.train // settings.training.batch_size)
    seconds = timed(lambda: ends(child(settings, name)))
    undisturbed = written(name)
    # Once in a drawn batch of the last seed, and once at any moment of what is left.
    fatal_batch = (len(settings.seeds) - 1) * batches + int(chance.integers(2, batches + 1))
    killed = [ends(child(settings, name, fatal_batch))]
    process = child(settings, name)
    time.sleep(chance.uniform(0, seconds))
    os.kill(process, signal.SIGKILL)  # It may have ended, but nobody has waited for it.
    killed.append(ends(process))
    print(f"{name}: the last run")
    ended = ends(child(settings, name))
    leftovers = [str(path) for path in PARTIAL.iterdir()]
    return {"name": name, "killed": killed, "ended": ended, "same": written(name) == undisturbed, "left": leftovers}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # imports half of torch, once and not in every child
    chance = np.random.default_rng(0)
    for name, values in json.load(sys.stdin):
        print(json.dumps(case(name, values, chance)))
