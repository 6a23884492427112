"""Gather what the study of masked and padded features measured, and compute the numbers of its tables and words.

A frame of its predictions has the columns of mask_padding.COLUMNS, one row per image, attack and attacker, and
`correct`; `seed` is the number of the split. Images of two splits overlap, and every split has a training of its own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from scipy.stats import t

from sparring import statistics
from sparring.layout import Layout
from sparring.mask_padding import COLUMNS, WHITEBOX, rows_of
from sparring.params.masking import UNDEFENDED, Study
from sparring.params.names import CLEAN
from sparring.params.values import fraction

CW = "cw"
NET = ["dataset", "network", "defence"]
KEYS = [*NET, "attacker", "attack"]
LOCAL = ["gradient_norm", "linearity_error"]
Condition = tuple[str, str, str]  # defence, attacker and attack: which net meets which images


@dataclass(frozen=True)
class Facts:
    """The study's predictions and measures of flatness.

    rows: the predictions; those under C&W are there once more for each radius, as the attack that `cw_within` names.
    local: the frame of mask_padding's linearity files.
    missing_rows: data set and defence of rows without files.  empty_datasets: data sets whose rows have no images.
    """

    study: Study
    rows: pd.DataFrame
    local: pd.DataFrame
    missing_rows: list[tuple[str, str]]
    empty_datasets: list[str]

    @cached_property
    def measured(self) -> pd.DataFrame:
        """Return the `measures` by dataset, network, defence, attacker and attack."""
        return measures(self.rows, KEYS)

    @cached_property
    def by_condition(self) -> dict[Any, dict[Any, Any]]:
        """Return `measured` as a dict for each combination, by the tuple of its keys."""
        return self.measured.to_dict("index")

    @cached_property
    def flatness(self) -> pd.DataFrame:
        """Return the means of gradient_norm and linearity_error by dataset, network and defence.

        They are means over splits of means over images; <name>_sd is the standard deviation over splits, nan for one
        split.
        """
        splits = self.local.groupby([*NET, "seed"], sort=False)[LOCAL].mean().groupby(level=NET, sort=False)
        return splits.mean().join(splits.std().add_suffix("_sd"))

    @cached_property
    def radii(self) -> dict[str, float]:
        """Return the L∞ radius of every attack that has one, in [0, 1] units."""
        attacks = {name: float(fraction(entry["eps"])) for name, entry in self.study.attacks.items() if "eps" in entry}
        return attacks | {f"fgsm_{level}": level / 255 for level in self.study.curve}

    @cached_property
    def measured_datasets(self) -> list[str]:
        """Return the names of the data sets that have predictions, in the study's order."""
        names = {dataset for dataset, *_ in self.by_condition}
        return [name for name in self.study.datasets if name in names]

    @cached_property
    def splits(self) -> dict[str, int]:
        """Return the number of splits on which each data set was measured, by its name."""
        counts = self.measured["trainings"].groupby(level="dataset").max()
        return {str(dataset): int(count) for dataset, count in counts.items()}

    def networks(self, dataset: str) -> list[str]:
        """Return those networks of a data set that were measured with any defence."""
        measured = {network for name, network, *_ in self.by_condition if name == dataset}
        return [name for name in self.study.datasets[dataset].networks if name in measured]

    @cached_property
    def _groups(self) -> dict[Any, pd.DataFrame]:
        return {key: group[["seed", "index", "correct"]] for key, group in self.rows.groupby(KEYS, sort=False)}

    def difference(self, dataset: str, network: str, first: Condition, other: Condition) -> dict[str, float] | None:
        """Return the accuracy in one condition minus that in another, paired by image and split.

        The keys are difference, difference_low and difference_high (95 %), side (1 above zero, -1 below it, beyond
        chance, else 0) and trainings, as in statistics.paired_difference. None where the two have no image in common.
        """
        first_rows, other_rows = (self._groups.get((dataset, network, *condition)) for condition in (first, other))
        if first_rows is None or other_rows is None:
            return None
        pairs = first_rows.merge(other_rows, on=["seed", "index"], validate="one_to_one")
        if pairs.empty:
            return None
        gains = pairs["correct_x"].astype(float) - pairs["correct_y"].astype(float)
        over_images = statistics.paired_difference(gains.groupby(pairs["index"]).mean().to_numpy()[:, None])
        splits = gains.groupby(pairs["seed"]).mean()
        if len(splits) == 1:
            return over_images
        # An image counts once, however many splits it is in; the trainings' own spread comes on top of that.
        value, by_image = float(splits.mean()), over_images["difference"]
        ends = value - (by_image - over_images["image_low"]), value + (over_images["image_high"] - by_image)
        return _over_splits(value, *ends, splits)

    def flatness_difference(
        self, dataset: str, network: str, defence: str, column: str, other: str = UNDEFENDED
    ) -> dict[str, float] | None:
        """Return the mean of a column of `local` minus that of the net with the other defence, paired by image.

        The keys are those of `difference`. With a single training `side` is over images alone, as nothing is known of
        how far trainings lie apart. None where fewer than two images have both.
        """
        local = self.local[(self.local["dataset"] == dataset) & (self.local["network"] == network)]
        first_rows, other_rows = (local[local["defence"] == name] for name in (defence, other))
        pairs = first_rows.merge(other_rows, on=["seed", "index"], validate="one_to_one")
        changes = pairs[f"{column}_x"].astype(float) - pairs[f"{column}_y"].astype(float)
        images, splits = changes.groupby(pairs["index"]).mean(), changes.groupby(pairs["seed"]).mean()
        if len(images) < 2:
            return None
        half_width = float(t.ppf((1 + statistics.LEVEL) / 2, len(images) - 1) * images.sem())
        value = float(splits.mean())
        if len(splits) > 1:
            return _over_splits(value, value - half_width, value + half_width, splits)
        return _difference(value, value - half_width, value + half_width, 1)


def _over_splits(value: float, low: float, high: float, splits: "pd.Series[float]") -> dict[str, float]:
    """Widen a difference's interval over images by the spread of its values over splits."""
    ends = statistics.over_trainings(value, low, high, float(splits.std()), len(splits))
    return _difference(value, *ends, len(splits))


def _difference(value: float, low: float, high: float, trainings: int) -> dict[str, float]:
    """Return a difference, its interval, and the side of zero on which the whole interval lies, 0 for neither."""
    side = int(low > 0) - int(high < 0)
    return {"difference": value, "difference_low": low, "difference_high": high, "side": side, "trainings": trainings}


def gather(study: Study, layout: Layout) -> Facts:
    """Read the files of every row that has been made."""
    parts, local, missing_rows, datasets = [], [], [], set()
    for dataset, defence, folder in rows_of(study, layout):
        files = folder / "predictions.parquet", folder / "linearity.parquet"
        if not all(file.exists() for file in files):
            missing_rows.append((dataset, defence))
            continue
        datasets.add(dataset)
        predictions, flat = (pd.read_parquet(file) for file in files)
        parts += [predictions] if len(predictions) else []
        local += [flat] if len(flat) else []
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    rows = rows.assign(correct=(rows["prediction"] == rows["label"]).astype(bool))
    flat = pd.concat(local, ignore_index=True) if local else pd.DataFrame(columns=[*NET, "seed", "index", *LOCAL])
    flat = flat.astype(dict.fromkeys(LOCAL, float))
    with_images = set(rows["dataset"])
    empty_datasets = [name for name in study.datasets if name in datasets and name not in with_images]
    return Facts(study, _with_radii(rows, study.radii), flat, missing_rows, empty_datasets)


def cw_within(radius: float) -> str:
    """Return the name of the attack C&W limited to a radius: only changes up to this L2 length count as fooling."""
    return f"{CW}_l2_{radius:g}"


def _with_radii(rows: pd.DataFrame, radii: Iterable[float]) -> pd.DataFrame:
    """Add rows of C&W for each radius, which are wrong where the net is wrong when clean, or is fooled within it."""
    image = [*NET, "seed", "index"]
    clean = rows.loc[rows["attack"] == CLEAN, [*image, "correct"]].rename(columns={"correct": "clean_correct"})
    attacked = rows[rows["attack"] == CW].merge(clean, on=image, how="left", validate="many_to_one")
    right_before, fooled = attacked.pop("clean_correct").astype(bool), ~attacked["correct"].astype(bool)
    parts = [rows]
    for radius in radii:
        right = right_before & ~(fooled & (attacked["l2"] <= radius))
        parts.append(attacked.assign(attack=cw_within(radius), correct=right))
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def measures(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Measure each group of predictions; index: `by`.

    Columns: those of statistics.accuracies; balanced_accuracy, the mean of the classes' accuracies, averaged over
    splits; trainings; and two on white-box C&W, nan for others, over the images of all splits that are right when
    clean: fooled, the share that it fools, and l2_median, the median length of its changes, infinite where it fails.
    """
    frame = statistics.accuracies(rows, by)
    classes = rows.groupby([*by, "seed", "label"], sort=False)["correct"].mean()
    splits = classes.groupby(level=[*by, "seed"], sort=False).mean()
    frame["balanced_accuracy"] = splits.groupby(level=by, sort=False).mean()
    frame["trainings"] = rows.groupby(by, sort=False)["seed"].nunique()
    own = rows[(rows["attack"] == CW) & (rows["attacker"] == WHITEBOX)]
    attacked = own[own["correct"] | (own["l2"] > 0)]  # an image that is wrong when clean is not, and keeps length zero
    fooled = ~attacked["correct"]
    lengths = attacked.assign(fooled=fooled, length=attacked["l2"].astype(float).where(fooled, math.inf))
    frame["fooled"] = lengths.groupby(by, sort=False)["fooled"].mean()
    frame["l2_median"] = lengths.groupby(by, sort=False)["length"].median()
    return frame


def tidy_rows(facts: Facts) -> pd.DataFrame:
    """Return the frame of rows.csv: one row per training, attack and attacker.

    eps is in [0, 1] units, nan where the attack has none. The net's flatness is in its rows of clean images.
    """
    rows = facts.rows[facts.rows["attack"].isin([CLEAN, CW, *facts.radii])]
    frame = measures(rows.assign(split=rows["seed"]), [*NET, "split", "attack", "attacker"]).reset_index()
    frame["eps"] = frame["attack"].map(facts.radii)
    frame = frame.rename(columns={"split": "seed"})
    flat = facts.local.groupby([*NET, "seed"], sort=False)[LOCAL].mean().reset_index().assign(attack=CLEAN)
    frame = frame.merge(flat, on=[*NET, "seed", "attack"], how="left", validate="many_to_one")
    columns = ["accuracy", "ci_low", "ci_high", "balanced_accuracy", *LOCAL]
    return frame[[*NET, "seed", "attack", "attacker", "eps", "images", *columns]]
