"""What every attack runs through: a fast copy of the model for the gradients, smaller batches when memory runs out,
and storage, where the original model decides in float32 what an attacked image is worth."""

import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sparring.attacks import losses
from sparring.device import channels_last
from sparring.models.averaged import Averaged
from sparring.models.classifier import Classifier, predict
from sparring.models.networks import frozen
from sparring.params.attacks import Attack
from sparring.params.sections import Store

# How far a change may be stretched or shrunk to be stored: by 4 doublings either way; and how near to the least scale
# that fools the model the search goes on.
FARTHEST, NEAR_ENOUGH = 16.0, 1.02
# Floating-point operations of a run from which on torch.compile pays (docs/attacks.md).
WORTH_COMPILING = {"cpu": 2e14, "cuda": 1e16}


class Fast(nn.Module):
    """A copy of a net that gives gradients fast: eval mode, parameters without gradient, BatchNorm folded into the
    convolutions, channels_last, and matrix work in `dtype` (logits and maps come back as float32).
    The net itself stays as it is.

    compiled: by torch.compile, when first used; where that is impossible, as without a C++ compiler, standard error
    says so and the copy works as it is.
    """

    def __init__(self, net: Classifier, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> None:
        super().__init__()
        self.net = channels_last(frozen(net), device)
        self.dtype = dtype
        self.compiled = compiled
        if compiled:
            # DeepFool goes back through one pass several times, so its buffers must outlive the first.
            torch._functorch.config.donated_buffer = False
        # Batches shrink as images are finished: one compilation for all sizes.
        self.fast_maps = torch.compile(self.net.maps, dynamic=True) if compiled else self.net.maps
        self.fast_logits = torch.compile(self.net.forward, dynamic=True) if compiled else self.net.forward
        self.eval()

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        with self._precision(images):
            maps = self._guarded(self.fast_maps, self.net.maps, images)
        return {name: found.float() for name, found in maps.items()}

    def forward(self, images: Tensor) -> Tensor:
        with self._precision(images):
            logits = self._guarded(self.fast_logits, self.net.forward, images)
        return logits.float()

    def _precision(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _guarded(self, fast: Callable[[Tensor], Any], plain: Callable[[Tensor], Any], images: Tensor) -> Any:
        if self.compiled:
            # Imported here, as it takes seconds, which only a compiled attack should pay.
            from torch._dynamo.exc import TorchDynamoException

            try:
                return fast(images)
            except TorchDynamoException as error:
                print(f"going on without torch.compile: {' '.join(str(error).split())[:200]}", file=sys.stderr)
                self.compiled = False
        return plain(images)


def worth_compiling(net: Classifier, attack: Attack, shape: tuple[int, ...], count: int, device: torch.device) -> bool:
    """Whether attacking `count` images (H, W, C) is so much work that torch.compile earns its own time back.

    Judged by the whole run, also where a part of it is done already: both parts must compute alike.
    """
    if isinstance(net, Averaged):  # its draws are made in numpy, at which the compiler would stop
        return False
    passes = math.prod(int(attack.arguments.get(name, 1)) for name in ("steps", "restarts", "search_steps"))
    runs = 2 * count * passes  # forward and back
    # First by a bound, as counting takes two seconds: a weight multiplies and adds at each pixel once at most.
    weights = sum(weight.numel() for weight in net.parameters())
    if runs * 2 * weights * shape[0] * shape[1] < WORTH_COMPILING[device.type]:
        return False
    from torch.utils.flop_counter import FlopCounterMode  # as loading it loads Triton, a third of a stage's own start

    probe = torch.zeros(1, shape[2], *shape[:2], device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(probe)
    return runs * counter.get_total_flops() >= WORTH_COMPILING[device.type]


def compile_below(folder: Path) -> None:
    """Have torch.compile keep its files in a folder, begun anew.

    A process that is killed while it compiles leaves a library cut short, on which the next one to find it would fail.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def run(
    attack: Callable[..., Tensor], model: nn.Module, images: Tensor, labels: Tensor, extra: dict[str, Tensor]
) -> Tensor:
    """Attacked images (N, 3, H, W), in halves and halves of halves where memory runs out for the whole batch.

    extra: what else the attack takes an image, such as noise (N, …).  Raises the out-of-memory error for one image.
    """
    try:
        return attack(model, images, labels, **extra)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if len(images) < 2 or not _is_memory(error):
            raise
    # Outside of the handler, whose traceback would keep the failed attempt's tensors alive.
    if images.device.type == "cuda":
        torch.cuda.empty_cache()
    half = len(images) // 2
    parts = [
        run(attack, model, images[rows], labels[rows], {name: value[rows] for name, value in extra.items()})
        for rows in (slice(0, half), slice(half, None))
    ]
    return torch.cat(parts)


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Stored(NamedTuple):
    """A batch as it is stored, and what the original model says of it on the way there; predictions (N,) int64."""

    image: np.ndarray  # (N, H, W, C) uint8 or float16, in levels from 0 to 255
    prediction: np.ndarray  # of the images as stored
    prediction_float: np.ndarray  # as the attack left them
    prediction_rounded: np.ndarray  # after plain rounding

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: str) -> "Stored":
        none = np.empty(0, np.int64)
        return cls(np.empty((0, *shape), dtype), none, none, none)


def store(
    net: Classifier, clean: np.ndarray, attacked: Tensor, labels: Tensor, attack: Attack, settings: Store
) -> Stored:
    """Round attacked images (N, C, H, W) to `store.dtype`, never past the attack's eps; a minimal-norm attack's are
    stretched or shrunk to the least change whose rounded image still fools `net`, where `store.faithful` asks for it.

    net: the original model.  clean: (N, H, W, C) uint8.  labels: (N,), on the device of `attacked`.
    """
    device = attacked.device
    with torch.no_grad():
        floats = net.eval()(attacked.to(memory_format=torch.channels_last)).argmax(1).cpu().numpy()
    image = as_stored(clean, attacked, attack, settings.dtype)
    prediction = rounded = predict(net, image, len(image), device).argmax(1)
    if settings.faithful and attack.minimal:
        image = _faithful(net, clean, attacked, labels, settings.margin, image)
        prediction = predict(net, image, len(image), device).argmax(1)
    return Stored(image, prediction, floats, rounded)


def as_stored(clean: np.ndarray, attacked: Tensor, attack: Attack, dtype: str) -> np.ndarray:
    """Attacked images (N, C, H, W) as levels (N, H, W, C) in uint8 or float16, to nearest, never past the attack's eps.

    clean: (N, H, W, C) uint8. An L2 ball is kept by shrinking the change and rounding again until it fits.
    """
    wanted = attacked.detach().permute(0, 2, 3, 1).cpu().numpy().astype(np.float32) * 255
    start = clean.astype(np.float32)
    levels = _rounded(wanted, dtype)
    linf, l2 = attack.linf, attack.l2
    if linf is not None:
        radius = round(255 * linf)  # whole levels, so that its ends are values of either type
        levels = np.clip(levels, start - radius, start + radius)
    if l2 is not None:
        scale = np.ones((len(clean), 1, 1, 1), np.float32)
        while len(outside := np.flatnonzero(np.sqrt(np.square((levels - start) / 255).sum((1, 2, 3))) > l2)):
            scale[outside] *= 0.98
            shrunk = start[outside] + scale[outside] * (wanted[outside] - start[outside])
            levels[outside] = _rounded(shrunk, dtype)
    return levels.astype(dtype)


def _rounded(levels: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest levels that `dtype` holds, as float32."""
    levels = np.clip(levels, 0, 255)
    return np.rint(levels) if dtype == "uint8" else levels.astype(dtype).astype(np.float32)


@torch.no_grad()
def _faithful(
    net: Classifier, clean: np.ndarray, attacked: Tensor, labels: Tensor, margin: float, rounded: np.ndarray
) -> np.ndarray:
    """Each image at the least scale of its change at which it fools `net` by `margin` once rounded as `rounded` is.

    For a change along one gradient, scaling and rounding is the least whole-numbered change that crosses a linear
    boundary. Images that the attack left alone, or that no scale stores, are as in `rounded`.
    """
    start = torch.from_numpy(clean).to(attacked.device).float()
    change = 255 * attacked.detach().permute(0, 2, 3, 1) - start
    largest = change.abs().flatten(1).amax(1)
    rows = (largest > 1e-3).nonzero()[:, 0]  # less is the arithmetic of an untouched image
    whole = rounded.dtype == np.uint8
    if whole:  # a change too small to move any pixel by a level begins where it moves its first
        change *= (0.5 / largest).clamp(min=1).nan_to_num(1, 1, 1).view(-1, 1, 1, 1)
    low, high = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    scale = torch.ones_like(largest)

    def at(rows: Tensor, scale: Tensor) -> Tensor:
        levels = (start[rows] + scale[rows].view(-1, 1, 1, 1) * change[rows]).clamp_(0, 255)
        return levels.round_() if whole else levels.half().float()

    while len(rows):
        logits = net((at(rows, scale) / 255).permute(0, 3, 1, 2))
        fooled = losses.margin(logits, labels[rows]) <= -margin
        high[rows[fooled]] = scale[rows[fooled]]
        low[rows[~fooled]] = scale[rows[~fooled]]
        # Doubled or halved until both sides are known, then halved between them.
        scale = torch.where(high.isinf(), 2 * low, torch.where(low == 0, high / 2, (low * high).sqrt()))
        done = (high / low < NEAR_ENOUGH) | (low >= FARTHEST) | (high <= 1 / FARTHEST)
        rows = rows[~done[rows]]
    found = high.isfinite().nonzero()[:, 0]
    image = rounded.copy()
    image[found.cpu().numpy()] = at(found, high).cpu().numpy().astype(image.dtype)
    return image
