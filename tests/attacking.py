"""The tests of the attacks share these functions on what an attack fools, changes and stores."""

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


def changes(attacked: Tensor, images: Tensor) -> Tensor:
    """Return the L2 length of each image's change."""
    return (attacked - images).square().flatten(1).sum(1).sqrt()


@torch.no_grad()
def fooled(net: ResNet, images: Tensor, labels: Tensor, attacked: Tensor) -> Tensor:
    """Tell which images were classified correctly before the attack and wrongly after it."""
    before, after = net(images).argmax(1), net(attacked).argmax(1)
    return torch.logical_and(before == labels, after != labels)


def judge(net: ResNet, params: Params, attack: Attack) -> storage.Judge:
    return storage.Judge(net, params.store.batch_size, attack.predictions)


def whole(
    params: Params,
    attack: Attack,
    net: ResNet,
    clean: Images,
    pool: Images | None = None,
    model: engine.Fast | None = None,
) -> Images:
    """Attack a set shard by shard, and join the shards."""
    model, pool = model or engine.Fast(net, CPU, torch.float32), clean if pool is None else pool
    shards = [
        generation.attacked(params, attack, "it", net, model, shard, pool, CPU, judge(net, params, attack))
        for shard in store.in_shards(clean, params.store.shard_size)
    ]
    index, label, image = (
        np.concatenate([getattr(shard, name) for shard in shards]) for name in ("index", "label", "image")
    )
    columns = {name: np.concatenate([shard.columns[name] for shard in shards]) for name in shards[0].columns}
    return Images(index, label, image, columns)
