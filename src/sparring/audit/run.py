"""The attacks of an audit, run within its time: what is finished is kept, and what does not fit is named."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sparring import progress, store
from sparring.attacks import engine
from sparring.audit import plan
from sparring.audit.model import Subject
from sparring.audit.plan import CURVE, WORST, Clock, Planned, Rates
from sparring.evaluation import aimed, corruptions, predict
from sparring.params.attacks import Attack
from sparring.params.names import CLEAN, CORRUPTIONS, STRENGTHS
from sparring.params.sections import Store

SEED = 0
PICTURES = 12  # images that fell, of each attack, that are kept for the page


@dataclass(frozen=True)
class Settings:
    """What decides how attacked images are made; as params.yaml would say it."""

    store: Store
    seed: int = SEED
    device: str = "auto"
    deterministic: bool = False

    def describe(self, name: str, attack: Attack) -> str:
        return f"the audit's {name}"


def settings_of(batch_size: int) -> Settings:
    """Attacked images are kept as float16 levels, so that rounding costs an attacker next to nothing."""
    kept = Store(
        shard_size=batch_size, batch_size=batch_size, dtype="float16", faithful=True, margin=1e-3, memory_budget=1.0
    )
    return Settings(kept)


@dataclass(frozen=True)
class Picture:
    """An image that fell.  attack: what broke it, for reading.  image: (S, S, 3), levels.  prediction: a class."""

    attack: str
    image: np.ndarray
    prediction: int


@dataclass
class Work:
    """An audit while it runs.

    images: (N, S, S, 3).  clean: a row of predictions of each, with `correct`.  folder: keeps what is finished.
    frames: rows of predictions under attacks, with `attack`, its `title`, `part`, `correct`, and `inside`: whether the
    change lies within the ball.  ran: a row an attack of the worst case.
    left_out: what was not done, and why.  pictures: of fallen images, by index.
    """

    settings: Settings
    subject: Subject
    images: store.Images
    clean: pd.DataFrame
    norm: str
    eps: float
    rates: Rates
    clock: Clock
    folder: Path
    device: torch.device
    frames: list[pd.DataFrame] = field(default_factory=list)
    ran: list[dict[str, object]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    pictures: dict[int, Picture] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.right = self.clean["correct"].to_numpy(bool)
        self.standing = self.right.copy()

    def attack(self, planned: Planned, only: np.ndarray, part: str, aim: engine.Aim | None = None) -> pd.DataFrame:
        """Run an attack on the images that `only` (N,) names, as far as the time allows: a row of each that it met.

        Whatever part it belongs to, an image that it brings across the boundary within the ball stands no longer.
        """
        each, count = self.rates.seconds(planned), int(only.sum())
        fits = each * count <= self.clock.left
        spent = f"{self.clock.used / 60:.1f} of {self.clock.seconds / 60:g} minutes are over"
        with progress.bar(f"{part}: {planned.title} ({spent})", count) as advance:
            rows, attacked = aimed.attack_images(
                self.settings,
                planned.attack,
                planned.key,
                self.subject.model,
                aim or self.subject.aim,
                self.predict,
                self.images,
                only,
                self.images,
                self.folder / part.replace(" ", "-"),
                self.device,
                advance,
                self.clock.allows(each) if fits else lambda count: False,
            )
        rows = rows.assign(attack=planned.key, title=planned.title, part=part)
        rows["correct"] = rows["prediction"] == rows["label"]
        rows["inside"] = inside(rows, self.norm, self.eps)
        self.frames.append(rows)
        fallen = ~rows["correct"] & rows["inside"]
        self._fell(rows, attacked, fallen, planned.title)
        if part == WORST:
            self._note(planned, rows, count, int(fallen.sum()), attacked)
        if len(rows) < count:
            minutes = each * (count - len(rows)) / 60
            self.left_out[f"{part}: {planned.title}"] = (
                f"{count - len(rows):,} of {count:,} images were not attacked: they would take up to "
                f"{minutes:.1f} minutes, which were not left"
            )
        else:
            self.left_out.pop(f"{part}: {planned.title}", None)
        return rows

    def predict(self, images: store.Images) -> pd.DataFrame:
        """What the model says of images, a row each."""
        return predict.classified(self.subject.model, images, self.settings.store.batch_size, self.device)

    def _fell(self, rows: pd.DataFrame, attacked: store.Images, fallen: pd.Series, title: str) -> None:
        down = rows.loc[fallen, "index"].to_numpy()
        self.standing &= ~np.isin(self.images.index, down)
        for place in np.flatnonzero(fallen.to_numpy())[:PICTURES]:
            picture = Picture(title, np.array(attacked.image[place]), int(rows["prediction"].iloc[place]))
            self.pictures.setdefault(int(rows["index"].iloc[place]), picture)

    def _note(self, planned: Planned, rows: pd.DataFrame, count: int, fallen: int, attacked: store.Images) -> None:
        if rows.empty:
            return
        left = float(self.standing.mean())
        self.ran = [row for row in self.ran if row["key"] != planned.key]
        facts = {"key": planned.key, "attack": planned.title, "met": len(rows), "of": count, "fooled": fallen}
        seconds = float(attacked.columns["seconds"].sum())
        self.ran.append(facts | {"accuracy": left, "seconds": seconds})
        said = f"{fallen:,} of {len(rows):,} images fell, {left:.3f} of all are left, {seconds:.0f} s"
        print(f"{planned.title}: {said}", flush=True)


def inside(rows: pd.DataFrame, norm: str, eps: float) -> pd.Series:
    """Whether each change lies within the ball; what rounding adds is forgiven."""
    if norm == "linf":
        return 255 * rows["linf"] <= 255 * eps + 1e-3
    return rows["l2"] <= eps * (1 + 1e-4)


def climb(work: Work, steps: Sequence[Planned]) -> list[Planned]:
    """Run the steps of the worst case, each on the images still standing; returns those that had no time."""
    waiting = []
    for step in steps:
        if not work.standing.any():
            break
        standing = work.standing.copy()
        if len(work.attack(step, standing, WORST)) < standing.sum():
            waiting.append(step)
    return waiting


def parts(work: Work, planned: dict[str, list[Planned]], sizes: dict[str, int]) -> None:
    """Run the other parts, each on its number of images that are right when clean."""
    for name, steps in planned.items():
        if not steps:
            continue
        if not sizes[name]:
            work.left_out[name] = f"fewer than {plan.FEWEST} images would fit the time"
            continue
        chosen = work.right & (np.cumsum(work.right) <= sizes[name])
        open_ones = chosen.copy()
        for step in steps:
            rows = work.attack(step, open_ones if name == CURVE else chosen, name)
            if name == CURVE:  # who falls at a radius falls at a larger one
                open_ones = open_ones & ~np.isin(work.images.index, rows.loc[~rows["correct"], "index"])
                if not open_ones.any():
                    break


def corrupted(work: Work, each: float) -> pd.DataFrame:
    """Predictions under common corruptions: columns corruption, strength, correct, of as many images as fit the time.

    each: seconds that the kinds and strengths of one image take.
    """
    count = min(len(work.images), int(max(work.clock.left, 0) / each))
    if count < min(plan.FEWEST, len(work.images)):
        work.left_out["corruptions"] = f"fewer than {plan.FEWEST} images would fit the time"
        return pd.DataFrame(columns=["index", "corruption", "strength", "correct", "seed"])
    if count < len(work.images):
        work.left_out["corruptions"] = f"seen on {count:,} of {len(work.images):,} images, as more had no time"
    shown = work.images[:count]
    frames = []
    kinds = [(name, strength) for name in CORRUPTIONS for strength in STRENGTHS]
    with progress.bar("corruptions", len(kinds) * count) as advance:
        for name, strength in [(CLEAN, 0), *kinds]:
            image = corruptions.corrupt(shown, name, strength, work.settings.seed) if strength else shown.image
            rows = work.predict(store.Images(shown.index, shown.label, image))
            rows["correct"] = rows["prediction"] == rows["label"]
            frames.append(rows.assign(corruption=name, strength=strength, seed=0))
            advance(count)
    return pd.concat(frames, ignore_index=True)


def unfinished(out: Path, subject: Subject, size: int, settings: Settings, norm: str, eps: float) -> Path:
    """The folder, below that of the audit, where finished batches are kept. Its name is a digest of the model and the
    settings; the names of its files have digests of their images."""
    facts = [subject.digest, size, norm, eps, settings.store.model_dump(), settings.seed, torch.__version__]
    folder = out / "unfinished" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    if folder.exists():
        print(f"going on with what {out} has of an earlier run", file=sys.stderr)
    return folder
