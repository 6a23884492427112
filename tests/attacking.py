"""Shared by the tests of the attacks: which images one fooled, how far it went, and all that is stored of it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring import store
from sparring.attacks import engine, generation, storage
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.store import Images

CPU = torch.device("cpu")
NST: dict[str, Any] = {"steps": 5, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0005}


def changes(found: Tensor, images: Tensor) -> Tensor:
    return (found - images).square().flatten(1).sum(1).sqrt()


@torch.no_grad()
def fooled(net: ResNet, images: Tensor, labels: Tensor, found: Tensor) -> Tensor:
    """Which images were classified correctly before and wrongly after."""
    before, after = net(images).argmax(1), net(found).argmax(1)
    return torch.logical_and(before == labels, after != labels)


def judge(net: ResNet, chosen: Params, attack: Attack) -> storage.Judge:
    return storage.Judge(net, chosen.store.batch_size, attack.predictions)


def whole(
    chosen: Params,
    attack: Attack,
    net: ResNet,
    clean: Images,
    pool: Images | None = None,
    model: engine.Fast | None = None,
) -> Images:
    """All shards of an attacked set, put together."""
    model, pool = model or engine.Fast(net, CPU, torch.float32), clean if pool is None else pool
    shards = [
        generation.attacked(chosen, attack, "it", net, model, shard, pool, CPU, judge(net, chosen, attack))
        for shard in store.in_shards(clean, chosen.store.shard_size)
    ]
    index, label, image = (
        np.concatenate([getattr(shard, name) for shard in shards]) for name in ("index", "label", "image")
    )
    columns = {name: np.concatenate([shard.columns[name] for shard in shards]) for name in shards[0].columns}
    return Images(index, label, image, columns)
