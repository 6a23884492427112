"""Trainings that are killed: a process that forks children to train, kills them, and compares what they leave.

run     python killing.py < cases.json     in the folder of a project; each case is [name, values of params.yaml]
writes  a line of JSON for each case; what the children print stands between

A process of its own, as its forks then have no threads to lose, and one, as every start imports torch anew.
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
    """A digest of the nets and the curve that a training wrote."""
    models = [HERE.pretrained] if name == "pretrained" else sorted(HERE.models(name).iterdir())
    found = hashlib.sha256()
    for path in [*models, HERE.history(name)]:
        found.update(str(path).encode() + path.read_bytes())
    return found.hexdigest()


def child(settings: Params, name: str, dies_in: int | None = None) -> int:
    """A fork that trains, saving after almost every batch, and kills itself in the batch of that number."""
    if name != "pretrained":
        shutil.rmtree(HERE.models(name), ignore_errors=True)  # as DVC does before it runs a stage
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status, crop, batches = 1, augmentation.crop, 0

    def counts(*arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == dies_in:
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return crop(*arguments)

    try:
        augmentation.crop, checkpoints.SHARE = counts, 1
        train(settings, name)
        print(f"{batches} batches")
        sys.stdout.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ends(process: int) -> int:
    """0, or the number of the signal that ended it, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def timed(call: Callable[[], int]) -> float:
    began = time.monotonic()
    assert call() == 0
    return time.monotonic() - began


def case(name: str, values: dict[str, Any], chance: np.random.Generator) -> dict[str, Any]:
    settings = params.validate(values)
    batches = settings.training.epochs * -(-settings.data.train // settings.training.batch_size)
    seconds = timed(lambda: ends(child(settings, name)))
    wanted = written(name)
    # Once in a drawn batch of the last seed, and once at any moment of what is left.
    fatal = (len(settings.seeds) - 1) * batches + int(chance.integers(2, batches + 1))
    killed = [ends(child(settings, name, fatal))]
    late = child(settings, name)
    time.sleep(chance.uniform(0, seconds))
    os.kill(late, signal.SIGKILL)  # which may have ended, but was not waited for
    killed.append(ends(late))
    print(f"{name}: the last run")
    ended = ends(child(settings, name))
    left = [str(path) for path in PARTIAL.iterdir()]
    return {"name": name, "killed": killed, "ended": ended, "same": written(name) == wanted, "left": left}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # imports half of torch, once and not in every child
    chance = np.random.default_rng(0)
    for name, values in json.load(sys.stdin):
        print(json.dumps(case(name, values, chance)))
