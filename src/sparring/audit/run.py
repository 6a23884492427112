"""The attacks of an audit, run within its time. Finished batches are kept, and what does not fit is noted."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sparring import progress, store
from sparring.attacks import engine
from sparring.audit import plan
from sparring.audit.model import Subject
from sparring.audit.plan import CURVE, WORST, Clock, PlannedAttack, Rates
from sparring.evaluation import aimed, corruptions, predict
from sparring.params.attacks import Attack
from sparring.params.names import CLEAN, CORRUPTIONS, STRENGTHS
from sparring.params.sections import Store

SEED = 0
PICTURES = 12  # the images broken by an attack that are kept for the page, at most


@dataclass(frozen=True)
class Settings:
    """These settings decide how an audit's attacked images are made. They have the names that params.yaml has."""

    store: Store
    seed: int = SEED
    device: str = "auto"
    deterministic: bool = False

    def describe(self, name: str, attack: Attack) -> str:
        return f"the audit's {name}"


def settings_of(batch_size: int) -> Settings:
    """Return the settings of an audit. Attacked images are float16 levels, as rounding to 8 bits weakens attacks."""
    store_settings = Store(
        shard_size=batch_size, batch_size=batch_size, dtype="float16", faithful=True, margin=1e-3, memory_budget=1.0
    )
    return Settings(store_settings)


@dataclass(frozen=True)
class Picture:
    """An image that an attack broke.  attack: its title.  image: (S, S, 3), levels.  prediction: the wrong class."""

    attack: str
    image: np.ndarray
    prediction: int


@dataclass
class Work:
    """The state of an audit while it runs.

    images: (N, S, S, 3).  clean: one row of predictions per image, with `correct`.  folder: keeps finished batches.
    frames: rows of predictions under attacks, with `attack`, its `title`, `part`, `correct`, and `inside`: whether the
    change lies within the ball.  attack_rows: one row per attack of the worst case.
    left_out: what was not done, or not whole → why.  pictures: broken images, by index.
    right (N,): whether an image is right when clean.  standing (N,): whether it is, and no attack so far has broken it
    within the ball.
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
    attack_rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    pictures: dict[int, Picture] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.right = self.clean["correct"].to_numpy(bool)
        self.standing = self.right.copy()

    def attack(
        self, planned: PlannedAttack, only: np.ndarray, part: str, aim: engine.Aim | None = None
    ) -> pd.DataFrame:
        """Attack the images where `only` (N,) is true, as far as the time allows. Returns a row for each attacked one.

        part: the part of the audit that this belongs to, as plan.WORST. In every part, `standing` becomes false for
        images that are broken within the ball.  aim: the model that the attack queries; by default the audited one.
        """
        seconds_per_image, count = self.rates.seconds(planned), int(only.sum())
        fits = seconds_per_image * count <= self.clock.left
        spent = f"{self.clock.used / 60:.1f} of {self.clock.seconds / 60:g} minutes are over"
        met = int(self.has_met(planned, part).sum())
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
                self.clock.allows(seconds_per_image) if fits else lambda count: False,
            )
        rows = rows.assign(attack=planned.key, title=planned.title, part=part)
        rows["correct"] = rows["prediction"] == rows["label"]
        rows["inside"] = is_inside_ball(rows, self.norm, self.eps)
        self.frames.append(rows)
        fallen = ~rows["correct"] & rows["inside"]
        self._record_fallen(rows, attacked, fallen, planned.title)
        if part == WORST:
            self._record_attack(planned, rows, count, int(fallen.sum()), attacked)
        self._record_time(f"{part}: {planned.title}", met + len(rows), met + count, seconds_per_image)
        return rows

    def has_met(self, planned: PlannedAttack, part: str) -> np.ndarray:
        """Return (N,) whether this attack, as one of this part, has met each image."""
        frames = [rows.loc[(rows["attack"] == planned.key) & (rows["part"] == part), "index"] for rows in self.frames]
        return np.isin(self.images.index, np.concatenate(frames) if frames else [])

    def predict(self, images: store.Images) -> pd.DataFrame:
        """Return the model's predictions, one row per image."""
        return predict.classified(self.subject.model, images, self.settings.store.batch_size, self.device)

    def _record_fallen(self, rows: pd.DataFrame, attacked: store.Images, fallen: pd.Series, title: str) -> None:
        """Note which images an attack broke within the ball, and keep the first few for the page."""
        fallen_index = rows.loc[fallen, "index"].to_numpy()
        self.standing &= ~np.isin(self.images.index, fallen_index)
        for place in np.flatnonzero(fallen.to_numpy())[:PICTURES]:
            picture = Picture(title, np.array(attacked.image[place]), int(rows["prediction"].iloc[place]))
            self.pictures.setdefault(int(rows["index"].iloc[place]), picture)

    def _record_time(self, name: str, met: int, count: int, seconds_per_image: float) -> None:
        """Note in `left_out` where an attack met fewer than `count` images."""
        if met == count:
            self.left_out.pop(name, None)
            return
        needed = f"would take up to {seconds_per_image * (count - met) / 60:.1f} minutes, which were not left"
        begun = f"met {met:,} of {count:,} images; the others {needed}"
        self.left_out[name] = begun if met else f"not begun; its {count:,} images {needed}"

    def _record_attack(
        self, planned: PlannedAttack, rows: pd.DataFrame, count: int, fallen: int, attacked: store.Images
    ) -> None:
        """Note what an attack of the worst case did to `count` images. What it did in a second run is added."""
        facts = next((row for row in self.attack_rows if row["key"] == planned.key), None)
        if facts is not None:
            facts["of"] = facts["met"] + count
        if rows.empty:
            return
        facts = facts or {"key": planned.key, "attack": planned.title, "met": 0, "of": count, "fooled": 0, "seconds": 0}
        seconds, accuracy = float(attacked.columns["seconds"].sum()), float(self.standing.mean())
        facts |= {"met": facts["met"] + len(rows), "fooled": facts["fooled"] + fallen, "accuracy": accuracy}
        facts["seconds"] += seconds
        self.attack_rows = [row for row in self.attack_rows if row is not facts] + [facts]
        summary = f"{fallen:,} of {len(rows):,} images fell; accuracy left {accuracy:.3f}; {seconds:.1f} s"
        print(f"{planned.title}: {summary}", flush=True)


def is_inside_ball(rows: pd.DataFrame, norm: str, eps: float) -> pd.Series:
    """Tell for each row whether its change, `linf` or `l2`, lies within the ball, with room for rounding."""
    if norm == "linf":
        return 255 * rows["linf"] <= 255 * eps + 1e-3
    return rows["l2"] <= eps * (1 + 1e-4)


def run_worst_case(work: Work, attacks: Sequence[PlannedAttack]) -> list[PlannedAttack]:
    """Run the attacks of the worst case, each on the images that none has broken and that it has not met yet.

    Returns those that lacked time. An attack that reached only some of its images is among these.
    """
    waiting = []
    for planned in attacks:
        if not work.standing.any():
            break
        standing = work.standing & ~work.has_met(planned, WORST)
        if len(work.attack(planned, standing, WORST)) < standing.sum():
            waiting.append(planned)
    return waiting


def run_parts(work: Work, planned: dict[str, list[PlannedAttack]], sizes: dict[str, int]) -> None:
    """Run the other parts, each on the first images that are right when clean.

    planned: attacks by part.  sizes: numbers of images by part.
    """
    for name, attacks in planned.items():
        if not attacks:
            continue
        if not sizes[name]:
            work.left_out[name] = f"fewer than {plan.FEWEST} images would fit the time"
            continue
        subset = work.right & (np.cumsum(work.right) <= sizes[name])
        standing = subset.copy()
        for attack in attacks:
            rows = work.attack(attack, standing if name == CURVE else subset, name)
            if name == CURVE:  # an image that falls at a radius falls at all larger ones
                standing = standing & ~np.isin(work.images.index, rows.loc[~rows["correct"], "index"])
                if not standing.any():
                    break


def predict_corrupted(work: Work, seconds_per_image: float) -> pd.DataFrame:
    """Predict as many images as fit the time under common corruptions: columns corruption, strength, correct.

    seconds_per_image: the seconds that all kinds and strengths of one image take.
    """
    count = min(len(work.images), int(max(work.clock.left, 0) / seconds_per_image))
    if count < min(plan.FEWEST, len(work.images)):
        work.left_out["corruptions"] = f"fewer than {plan.FEWEST} images would fit the time"
        return pd.DataFrame(columns=["index", "corruption", "strength", "correct", "seed"])
    if count < len(work.images):
        work.left_out["corruptions"] = f"seen on {count:,} of {len(work.images):,} images, as more had no time"
    images = work.images[:count]
    frames = []
    kinds = [(name, strength) for name in CORRUPTIONS for strength in STRENGTHS]
    with progress.bar("corruptions", len(kinds) * count) as advance:
        for name, strength in [(CLEAN, 0), *kinds]:
            image = corruptions.corrupt(images, name, strength, work.settings.seed) if strength else images.image
            rows = work.predict(store.Images(images.index, images.label, image))
            rows["correct"] = rows["prediction"] == rows["label"]
            frames.append(rows.assign(corruption=name, strength=strength, seed=0))
            advance(count)
    return pd.concat(frames, ignore_index=True)


def unfinished_folder(out: Path, subject: Subject, size: int, settings: Settings, norm: str, eps: float) -> Path:
    """Return the folder, below that of the audit, where finished batches are kept, and say so where it exists already.

    Its name is a digest of the model and the settings; its files have digests of their images in their names.
    """
    facts = [subject.digest, size, norm, eps, settings.store.model_dump(), settings.seed, torch.__version__]
    folder = out / "unfinished" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    if folder.exists():
        print(f"going on with what {out} has of an earlier run", file=sys.stderr)
    return folder
