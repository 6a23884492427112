"""Stores attacked images as levels, on request at the least change that still fools the original model. Also collects
this model's predictions for them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sparring.attacks import losses
from sparring.attacks.engine import Aim
from sparring.models.classifier import to_images
from sparring.params.attacks import Attack
from sparring.params.sections import Store

# The largest factor by which a change is stretched or shrunk to be stored; and how near to the least scale that fools
# the model the search goes on.
FARTHEST, NEAR_ENOUGH = 16.0, 1.02
# The search looks this factor beside the point where a straight line meets the boundary, to enclose the boundary.
BESIDE = 1.008
# The bound on a copy's error is its largest error on the first shard times this factor.
SAFETY = 4.0


def store(
    net: nn.Module,
    model: Aim,
    clean: Tensor,
    attacked: Tensor,
    labels: Tensor,
    attack: Attack,
    settings: Store,
    judge: "Judge | None" = None,
) -> Tensor:
    """Return attacked images (N, C, H, W) as levels (N, H, W, C) of the type `store.dtype`, never past the attack's
    eps. With `store.faithful`, the changes of a minimal-norm attack are stretched or shrunk to the least change whose
    rounded image still fools `net`.

    net: the original model.  model: its fast copy.  clean: levels (N, H, W, C), labels (N,), on the device of
    `attacked`.  judge: gets the images, where there is one.
    """
    levels = as_stored(clean, attacked, attack, settings.dtype)
    batch = StoredBatch(levels, None, None)
    if settings.faithful and attack.minimal:
        batch = least_change(net, model, clean, attacked, labels, settings.margin, levels)
    if judge is not None:
        logits = model.quick(to_images(batch.levels, levels.device)) if batch.logits is None else batch.logits
        judge.add("prediction", batch.levels, logits, retained=True)
        if attack.minimal:
            judge.add("prediction_float", attacked, model.quick(attacked))
            if batch.rounded is None:
                judge.add("prediction_rounded", levels, logits, retained=True)
            else:
                judge.add_exact("prediction_rounded", batch.rounded)
    return batch.levels


@torch.no_grad()
def as_stored(clean: Tensor, attacked: Tensor, attack: Attack, dtype: str) -> Tensor:
    """Return attacked images (N, C, H, W) as the nearest levels (N, H, W, C) in uint8 or float16, never past the
    attack's eps.

    clean: levels (N, H, W, C), on the same device. For an L2 ball, the change is shrunk and rounded again until it
    fits.
    """
    exact = attacked.permute(0, 2, 3, 1).float() * 255
    start = clean.float()
    levels = _rounded(exact, dtype)
    linf, l2 = attack.linf, attack.l2
    if linf is not None:
        radius = round(255 * linf)  # whole levels, so that its ends are values of either type
        levels = levels.clamp(start - radius, start + radius)
    if l2 is not None:
        scale = torch.ones(len(clean), 1, 1, 1, device=clean.device)
        while len(outside := (l2_lengths(levels, start) > l2).nonzero()[:, 0]):
            scale[outside] *= 0.98
            shrunk = start[outside] + scale[outside] * (exact[outside] - start[outside])
            levels[outside] = _rounded(shrunk, dtype)
    return levels.to(getattr(torch, dtype))


def l2_lengths(levels: Tensor, clean: Tensor) -> Tensor:
    """Return the L2 length of each image's change (N,), in [0, 1] units, float64. Both are levels (N, H, W, C)."""
    change = levels.float() - clean.float()
    return change.square().flatten(1).sum(1, dtype=torch.float64).sqrt() / 255


def largest_changes(levels: Tensor, clean: Tensor) -> Tensor:
    """Return the largest change of a pixel of each image (N,), in [0, 1] units. Both are levels (N, H, W, C)."""
    return (levels.float() - clean.float()).abs().flatten(1).amax(1) / 255


def _rounded(levels: Tensor, dtype: str) -> Tensor:
    """Return the nearest levels that `dtype` holds, as float32."""
    levels = levels.clamp(0, 255)
    return levels.round() if dtype == "uint8" else levels.half().float()


class StoredBatch(NamedTuple):
    """Holds a batch in its stored form.

    levels: (N, H, W, C), from 0 to 255.  logits: the net's logits for the levels (N, classes), up to the rounding of a
    batch of another size.  rounded: the net's logits for the plainly rounded images. Both are None unless computed.
    """

    levels: Tensor
    logits: Tensor | None
    rounded: Tensor | None


@torch.no_grad()
def least_change(
    net: nn.Module, model: Aim, clean: Tensor, attacked: Tensor, labels: Tensor, margin: float, rounded: Tensor
) -> StoredBatch:
    """Scale each image's change to the least scale at which it fools `net` by `margin`, rounded as `rounded` is.

    For a change along one gradient, scaling and rounding gives the least whole-numbered change that crosses a linear
    boundary. Images that the attack did not change, or that fool at no scale, are as in `rounded`. The other arguments
    are those of `store`.

    The margin is nearly linear in the scale. So the search looks a little above and a little below the point where the
    line through the last two scales meets the boundary (the secant method), and halves where that comes no nearer.
    """
    start = clean.float()
    change = 255 * attacked.permute(0, 2, 3, 1) - start
    largest = change.abs().flatten(1).amax(1)
    is_uint8 = rounded.dtype == torch.uint8
    moves = largest >= 0.5 if is_uint8 else largest > 0
    if is_uint8:  # a change too small to move any pixel by a level begins where it moves its first
        change *= (0.5 / largest).clamp(min=1).nan_to_num(1, 1, 1).view(-1, 1, 1, 1)

    def levels_at(rows: Tensor, scale: Tensor) -> Tensor:
        levels = (start[rows] + scale.view(-1, 1, 1, 1) * change[rows]).clamp_(0, 255)
        return levels.round_() if is_uint8 else levels.half().float()

    rounded_logits = net.eval()(to_images(rounded, rounded.device))
    logits = rounded_logits.clone()
    # A value above 0 does not fool. The clean images' values only guide the search, so the fast copy's will do.
    search = _Search(losses.margin(model.quick(to_images(clean, clean.device)), labels) + margin)
    search.observe(moves.nonzero()[:, 0], (losses.margin(rounded_logits, labels) + margin)[moves])
    rows = (largest > 1e-3).nonzero()[:, 0]  # a smaller change is the rounding error of an unchanged image
    while len(rows := rows[search.open[rows]]):
        new_logits = net(to_images(levels_at(rows, search.next[rows]), clean.device))
        values = losses.margin(new_logits, labels[rows]) + margin
        logits[rows[values <= 0]] = new_logits[values <= 0]
        search.observe(rows, values)
    stored = (search.high.isfinite() & (largest > 1e-3)).nonzero()[:, 0]
    levels, kept_logits = rounded.clone(), rounded_logits.clone()
    levels[stored] = levels_at(stored, search.high[stored]).to(rounded.dtype)
    kept_logits[stored] = logits[stored]
    return StoredBatch(levels, kept_logits, rounded_logits)


class _Search:
    """Searches for the least scale at which a decreasing function of it is 0 or less, for N images at a time.

    at_zero: the function (N,) at scale 0.
    next: the scale (N,) at which to evaluate each image next.  open: which images (N,) the search goes on with.
    low, high: the scales (N,) between which the least one lies; 0 and infinity where none is known.
    """

    def __init__(self, at_zero: Tensor) -> None:
        self.low, self.high = torch.zeros_like(at_zero), torch.full_like(at_zero, torch.inf)
        self.next = torch.ones_like(at_zero)
        self.open = torch.ones_like(at_zero, dtype=torch.bool)
        self._last = torch.zeros_like(at_zero), at_zero.clone()
        self._steps = torch.zeros_like(at_zero)

    def observe(self, rows: Tensor, values: Tensor) -> None:
        """Take the function's values (n,) at the scales `next` of the images in some rows (n,)."""
        scale, (before, value) = self.next[rows], (part[rows] for part in self._last)
        low, high = self.low[rows], self.high[rows]
        high, low = torch.where(values <= 0, scale, high), torch.where(values > 0, scale, low)
        root = scale - values * (scale - before) / (values - value)
        self._steps[rows] += 1
        self.low[rows], self.high[rows] = low, high
        self.next[rows] = _next(low, high, root, self._steps[rows] % 4 == 0)
        self.open[rows] = (high / low >= NEAR_ENOUGH) & (low < FARTHEST) & (high > 1 / FARTHEST)
        for part, latest in zip(self._last, (scale, values), strict=True):
            part[rows] = latest


def _next(low: Tensor, high: Tensor, root: Tensor, guard: Tensor) -> Tensor:
    """Return the next scales, between `low` and `high`: beside the root of a line, or half way where that is no use.

    guard: for which images to go half way in any case, lest the interval shrink from one side alone.
    """
    # Above the root first; below it where `high` is that near already.
    beside = torch.where(high / root > BESIDE**1.5, root * BESIDE, root / BESIDE)
    half = torch.where(high.isinf(), 2 * low, torch.where(low == 0, high / 2, (low * high).sqrt()))
    beside = torch.minimum(beside, 4 * low.where(high.isinf() & (low > 0), torch.inf))
    useful = (beside > low) & (beside < high) & ~guard  # and no NaN
    return torch.where(useful, beside, half)


class Judge:
    """Collects the original net's exact predictions for a shard's images. Most come from its fast copy: those where
    the two highest logits differ by more than its error. For the others the net itself is run, in float32 and in
    batches of `batch_size`, filled up with zeros.

    columns: names of the predictions.  bounds: by column, a bound on the copy's error in a difference of two logits.
    Without one, the net itself is run on all images, and the error of the copy's logits is measured.
    """

    def __init__(
        self, net: nn.Module, batch_size: int, columns: Sequence[str], bounds: Mapping[str, float] | None = None
    ) -> None:
        self._net, self._batch_size, self._bounds = net.eval(), batch_size, bounds or {}
        self._predictions = {column: [torch.empty(0, dtype=torch.int64)] for column in columns}
        self._pending: dict[str, list[tuple[int, Tensor, Tensor]]] = {}  # batch, images, which are unsure
        self._unsure: dict[str, list[tuple[int, Tensor, Tensor]]] = {}  # batch, rows, their images
        self._exact: dict[str, int] = {}
        self._largest: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, column: str, images: Tensor, logits: Tensor, *, retained: bool = False) -> None:
        """Add the next images of a column and a copy's logits for them.

        images: levels (N, H, W, C), or (N, C, H, W) in [0, 1] as float32.  logits: (N, classes).
        retained: whether `images` stay in memory until the shard's end in any case. Then the host need not wait now to
        learn which of them the net itself has to be run on.
        """
        if column not in self._bounds:
            exact = self._net(_as_images(images))
            wrong = exact - logits
            largest = (wrong.amax(1) - wrong.amin(1)).amax() if len(wrong) else wrong.sum()
            self._largest[column] = torch.maximum(largest, self._largest.get(column, largest))
            self._exact[column] = self._exact.get(column, 0) + len(exact)
            self.add_exact(column, exact)
            return
        best = logits.topk(min(2, logits.shape[1]), 1).values
        unsure = ~(best[:, 0] - best[:, -1] > self._bounds[column])  # also where they are not numbers
        predictions = self._predictions[column]
        self._pending.setdefault(column, []).append((len(predictions), images, unsure))
        predictions.append(logits.argmax(1))
        if not retained:
            self._pick(column)

    def add_exact(self, column: str, exact: Tensor) -> None:
        """Add the next images of a column by the net's own logits (N, classes) for them."""
        self._predictions[column].append(exact.argmax(1))

    def _pick(self, column: str) -> None:
        """Keep those of the pending images on which the net itself has to be run, and drop the others."""
        for batch, images, unsure in self._pending.pop(column, []):
            rows = unsure.nonzero()[:, 0]
            self._unsure.setdefault(column, []).append((batch, rows, images[rows]))

    @torch.no_grad()
    def predictions(self) -> dict[str, np.ndarray]:
        """Return the predictions (N,) for all images added, by column."""
        for column in [*self._pending]:
            self._pick(column)
        for column, unsure in self._unsure.items():
            images = torch.cat([images for _, _, images in unsure])
            self._exact[column] = self._exact.get(column, 0) + len(images)
            if len(images):
                starts = range(0, len(images), self._batch_size)
                exact = torch.cat([self._exact_logits(images[start : start + self._batch_size]) for start in starts])
                for (batch, rows, _), part in zip(
                    unsure, exact.split([len(rows) for _, rows, _ in unsure]), strict=True
                ):
                    self._predictions[column][batch][rows] = part.argmax(1)
        self._unsure.clear()
        return {
            column: torch.cat([part.cpu() for part in parts]).numpy() for column, parts in self._predictions.items()
        }

    def _exact_logits(self, images: Tensor) -> Tensor:
        """Return the net's logits (n, classes), from a batch of the usual size, as another size rounds differently."""
        floats = _as_images(images)
        batch = floats.new_zeros(self._batch_size, *floats.shape[1:]).to(memory_format=torch.channels_last)
        batch[: len(floats)] = floats
        return self._net(batch)[: len(floats)]

    def facts(self) -> dict[str, dict[str, float]]:
        """Return by column the bound, and for how many of the images with a copy's logits the net itself decided."""
        measured = {column: SAFETY * largest.item() for column, largest in self._largest.items()}
        return {
            column: {"bound": self._bounds.get(column, measured.get(column, 0.0)), "exact": exact}
            for column, exact in self._exact.items()
        }


def _as_images(images: Tensor) -> Tensor:
    return images if images.dtype == torch.float32 else to_images(images, images.device)
