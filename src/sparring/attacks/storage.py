"""Storage of attacked images as whole levels, at the least change that still fools the original model where that is
asked for, and what this model says of them."""

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

# How far a change may be stretched or shrunk to be stored, either way; and how near to the least scale that fools the
# model the search goes on.
FARTHEST, NEAR_ENOUGH = 16.0, 1.02
# How far from where a straight line meets the boundary the search looks, to find it between two scales.
BESIDE = 1.008
# A copy may be wrong by so many times what it was wrong by at most on the first shard.
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
    """Attacked images (N, C, H, W) as levels (N, H, W, C) of the type `store.dtype`, never past the attack's eps; a
    minimal-norm attack's are stretched or shrunk to the least change whose rounded image still fools `net`, where
    `store.faithful` asks for it.

    net: the original model.  model: its fast copy.  clean: levels (N, H, W, C), labels (N,), on the device of
    `attacked`.  judge: is shown the images, where there is one.
    """
    levels = as_stored(clean, attacked, attack, settings.dtype)
    found = Found(levels, None, None)
    if settings.faithful and attack.minimal:
        found = least_change(net, model, clean, attacked, labels, settings.margin, levels)
    if judge is not None:
        logits = model.quick(to_images(found.levels, levels.device)) if found.logits is None else found.logits
        judge.see("prediction", found.levels, logits, held=True)
        if attack.minimal:
            judge.see("prediction_float", attacked, model.quick(attacked))
            if found.rounded is None:
                judge.see("prediction_rounded", levels, logits, held=True)
            else:
                judge.know("prediction_rounded", found.rounded)
    return found.levels


@torch.no_grad()
def as_stored(clean: Tensor, attacked: Tensor, attack: Attack, dtype: str) -> Tensor:
    """Attacked images (N, C, H, W) as levels (N, H, W, C) in uint8 or float16, to nearest, never past the attack's eps.

    clean: levels (N, H, W, C), on the same device. An L2 ball is kept by shrinking the change and rounding again until
    it fits.
    """
    wanted = attacked.permute(0, 2, 3, 1).float() * 255
    start = clean.float()
    levels = _rounded(wanted, dtype)
    linf, l2 = attack.linf, attack.l2
    if linf is not None:
        radius = round(255 * linf)  # whole levels, so that its ends are values of either type
        levels = levels.clamp(start - radius, start + radius)
    if l2 is not None:
        scale = torch.ones(len(clean), 1, 1, 1, device=clean.device)
        while len(outside := (l2_lengths(levels, start) > l2).nonzero()[:, 0]):
            scale[outside] *= 0.98
            shrunk = start[outside] + scale[outside] * (wanted[outside] - start[outside])
            levels[outside] = _rounded(shrunk, dtype)
    return levels.to(getattr(torch, dtype))


def l2_lengths(levels: Tensor, clean: Tensor) -> Tensor:
    """The L2 length of each image's change (N,), in [0, 1] units, float64; both in levels (N, H, W, C)."""
    change = levels.float() - clean.float()
    return change.square().flatten(1).sum(1, dtype=torch.float64).sqrt() / 255


def largest_changes(levels: Tensor, clean: Tensor) -> Tensor:
    """The largest change of a pixel of each image (N,), in [0, 1] units; both in levels (N, H, W, C)."""
    return (levels.float() - clean.float()).abs().flatten(1).amax(1) / 255


def _rounded(levels: Tensor, dtype: str) -> Tensor:
    """The nearest levels that `dtype` holds, as float32."""
    levels = levels.clamp(0, 255)
    return levels.round() if dtype == "uint8" else levels.half().float()


class Found(NamedTuple):
    """A batch as it is stored.

    levels: (N, H, W, C), from 0 to 255.  logits: the net's of these (N, classes), up to the rounding of a batch of
    another size.  rounded: the net's of the images after plain rounding. None where nobody asked for them.
    """

    levels: Tensor
    logits: Tensor | None
    rounded: Tensor | None


@torch.no_grad()
def least_change(
    net: nn.Module, model: Aim, clean: Tensor, attacked: Tensor, labels: Tensor, margin: float, rounded: Tensor
) -> Found:
    """Each image at the least scale of its change at which it fools `net` by `margin` once rounded as `rounded` is.

    For a change along one gradient, scaling and rounding is the least whole-numbered change that crosses a linear
    boundary. Images that the attack left alone, or that no scale stores, are as in `rounded`. Arguments as for `store`.

    The margin is nearly linear in the scale, so the boundary is looked for where the line through the two last scales
    meets it (the secant method), a little above and a little below, and by halving where that does not come nearer.
    """
    start = clean.float()
    change = 255 * attacked.permute(0, 2, 3, 1) - start
    largest = change.abs().flatten(1).amax(1)
    whole = rounded.dtype == torch.uint8
    moves = largest >= 0.5 if whole else largest > 0
    if whole:  # a change too small to move any pixel by a level begins where it moves its first
        change *= (0.5 / largest).clamp(min=1).nan_to_num(1, 1, 1).view(-1, 1, 1, 1)

    def at(rows: Tensor, scale: Tensor) -> Tensor:
        levels = (start[rows] + scale.view(-1, 1, 1, 1) * change[rows]).clamp_(0, 255)
        return levels.round_() if whole else levels.half().float()

    of_rounded = net.eval()(to_images(rounded, rounded.device))
    logits = of_rounded.clone()
    # What is above 0 does not fool. The clean image guides the search alone, so its fast copy will do.
    search = _Search(losses.margin(model.quick(to_images(clean, clean.device)), labels) + margin)
    search.see(moves.nonzero()[:, 0], (losses.margin(of_rounded, labels) + margin)[moves])
    rows = (largest > 1e-3).nonzero()[:, 0]  # less is the arithmetic of an untouched image
    while len(rows := rows[search.open[rows]]):
        found = net(to_images(at(rows, search.next[rows]), clean.device))
        values = losses.margin(found, labels[rows]) + margin
        logits[rows[values <= 0]] = found[values <= 0]
        search.see(rows, values)
    stored = (search.high.isfinite() & (largest > 1e-3)).nonzero()[:, 0]
    levels, kept = rounded.clone(), of_rounded.clone()
    levels[stored] = at(stored, search.high[stored]).to(rounded.dtype)
    kept[stored] = logits[stored]
    return Found(levels, kept, of_rounded)


class _Search:
    """The least scale at which a falling function of it is 0 or less, for N images at a time.

    at_zero: the function (N,) at scale 0.
    next: the scale (N,) at which each wants to be seen.  open: which (N,) are not found yet.
    low, high: the scales (N,) between which it lies; 0 and infinity where none is known.
    """

    def __init__(self, at_zero: Tensor) -> None:
        self.low, self.high = torch.zeros_like(at_zero), torch.full_like(at_zero, torch.inf)
        self.next = torch.ones_like(at_zero)
        self.open = torch.ones_like(at_zero, dtype=torch.bool)
        self._last = torch.zeros_like(at_zero), at_zero.clone()
        self._seen = torch.zeros_like(at_zero)

    def see(self, rows: Tensor, values: Tensor) -> None:
        """The function's values (n,) at the scales `next` of some images, by their rows (n,)."""
        scale, (before, value) = self.next[rows], (part[rows] for part in self._last)
        low, high = self.low[rows], self.high[rows]
        high, low = torch.where(values <= 0, scale, high), torch.where(values > 0, scale, low)
        root = scale - values * (scale - before) / (values - value)
        self._seen[rows] += 1
        self.low[rows], self.high[rows] = low, high
        self.next[rows] = _next(low, high, root, self._seen[rows] % 4 == 0)
        self.open[rows] = (high / low >= NEAR_ENOUGH) & (low < FARTHEST) & (high > 1 / FARTHEST)
        for part, seen in zip(self._last, (scale, values), strict=True):
            part[rows] = seen


def _next(low: Tensor, high: Tensor, root: Tensor, guard: Tensor) -> Tensor:
    """Where to look next, between `low` and `high`: beside the root of a line, or half way where that is of no use.

    guard: for which images half way is taken whatever the line says, lest it come nearer from one side alone.
    """
    # Behind the root first; where what is known lies there already, before it.
    beside = torch.where(high / root > BESIDE**1.5, root * BESIDE, root / BESIDE)
    half = torch.where(high.isinf(), 2 * low, torch.where(low == 0, high / 2, (low * high).sqrt()))
    beside = torch.minimum(beside, 4 * low.where(high.isinf() & (low > 0), torch.inf))
    useful = (beside > low) & (beside < high) & ~guard  # and no NaN
    return torch.where(useful, beside, half)


class Judge:
    """What the original net says of a shard's images, exactly: of most its fast copy, whose logits differ by more than
    it can be wrong by; of the others the net itself, in float32 and in batches of `batch_size`, filled up with zeros.

    columns: names of the predictions.  bounds: by how much the difference of two logits may be wrong at most, by
    column. Where there is none, the net itself sees all images, and how wrong the other logits were is measured.
    """

    def __init__(
        self, net: nn.Module, batch_size: int, columns: Sequence[str], bounds: Mapping[str, float] | None = None
    ) -> None:
        self._net, self._batch_size, self._given = net.eval(), batch_size, bounds or {}
        self._found = {column: [torch.empty(0, dtype=torch.int64)] for column in columns}
        self._held: dict[str, list[tuple[int, Tensor, Tensor]]] = {}  # batch, images, which of them are not sure
        self._unsure: dict[str, list[tuple[int, Tensor, Tensor]]] = {}  # batch, rows, their images
        self._exact: dict[str, int] = {}
        self._largest: dict[str, Tensor] = {}

    @torch.no_grad()
    def see(self, column: str, shown: Tensor, logits: Tensor, *, held: bool = False) -> None:
        """The next images of a column and what a copy says of them.

        shown: levels (N, H, W, C), or images (N, C, H, W) in [0, 1] as float32.  logits: (N, classes).
        held: whether `shown` is kept until the shard's end in any case, so that the host need not wait now to know
        which of them the net itself has to see.
        """
        if column not in self._given:
            exact = self._net(_images(shown))
            wrong = exact - logits
            largest = (wrong.amax(1) - wrong.amin(1)).amax() if len(wrong) else wrong.sum()
            self._largest[column] = torch.maximum(largest, self._largest.get(column, largest))
            self._exact[column] = self._exact.get(column, 0) + len(exact)
            self.know(column, exact)
            return
        best = logits.topk(min(2, logits.shape[1]), 1).values
        unsure = ~(best[:, 0] - best[:, -1] > self._given[column])  # also where they are not numbers
        found = self._found[column]
        self._held.setdefault(column, []).append((len(found), shown, unsure))
        found.append(logits.argmax(1))
        if not held:
            self._pick(column)

    def know(self, column: str, exact: Tensor) -> None:
        """The next images of a column, and the net's own logits (N, classes) of them."""
        self._found[column].append(exact.argmax(1))

    def _pick(self, column: str) -> None:
        """Keep of the images that are held those that the net itself has to see."""
        for batch, shown, unsure in self._held.pop(column, []):
            rows = unsure.nonzero()[:, 0]
            self._unsure.setdefault(column, []).append((batch, rows, shown[rows]))

    @torch.no_grad()
    def predictions(self) -> dict[str, np.ndarray]:
        """The predictions (N,) of all images seen, by column."""
        for column in [*self._held]:
            self._pick(column)
        for column, unsure in self._unsure.items():
            shown = torch.cat([images for _, _, images in unsure])
            self._exact[column] = self._exact.get(column, 0) + len(shown)
            if len(shown):
                starts = range(0, len(shown), self._batch_size)
                exact = torch.cat([self._exactly(shown[start : start + self._batch_size]) for start in starts])
                for (batch, rows, _), part in zip(
                    unsure, exact.split([len(rows) for _, rows, _ in unsure]), strict=True
                ):
                    self._found[column][batch][rows] = part.argmax(1)
        self._unsure.clear()
        return {column: torch.cat([part.cpu() for part in parts]).numpy() for column, parts in self._found.items()}

    def _exactly(self, shown: Tensor) -> Tensor:
        """The net's logits (n, classes), in a batch of its usual size, as one of another size rounds differently."""
        images = _images(shown)
        batch = images.new_zeros(self._batch_size, *images.shape[1:]).to(memory_format=torch.channels_last)
        batch[: len(images)] = images
        return self._net(batch)[: len(images)]

    def facts(self) -> dict[str, dict[str, float]]:
        """By column: the bound, and of how many images that a copy saw the net itself has decided."""
        measured = {column: SAFETY * largest.item() for column, largest in self._largest.items()}
        return {
            column: {"bound": self._given.get(column, measured.get(column, 0.0)), "exact": exact}
            for column, exact in self._exact.items()
        }


def _images(shown: Tensor) -> Tensor:
    return shown if shown.dtype == torch.float32 else to_images(shown, shown.device)
