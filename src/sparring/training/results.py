"""Creates the net that a training starts from, and writes the files that it ends with."""

from pathlib import Path

import torch
from torch import nn

from sparring import store
from sparring.data.transforms import RandomTransform
from sparring.device import torch_seed
from sparring.layout import replacing
from sparring.models import model_files, networks
from sparring.models.classifier import Classifier
from sparring.params import Params


def new_net(params: Params, role: str, classes: int) -> Classifier:
    """Create a net with random weights. The seed and `role` decide the weights."""
    with torch_seed(params.seed, "weights", role):
        return networks.create(params.network, classes, params.data.image_size)


def save_net(
    params: Params,
    name: str,
    path: Path,
    module: nn.Module,
    dtype: torch.dtype,
    clean: store.Images,
    transform: RandomTransform | None = None,
) -> None:
    """Write a trained module as safetensors, with metadata that tell how to use it."""
    facts: dict[str, object] = {
        "name": name,
        "network": params.network.model_dump(),
        "classes": clean.metadata["classes"],
        "image_size": params.data.image_size,
        "precision": str(dtype).removeprefix("torch."),
        "epochs": params.training.epochs,
    }
    if transform is not None:
        facts["mean_colour"] = list(transform.mean)
    model_files.save_model(module, path, facts)


def save_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write a training curve, one row per epoch, as CSV."""
    import pandas as pd  # here, as loading it takes longer than all else that a training loads beside torch

    with replacing(path) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False, float_format="%.6f")
