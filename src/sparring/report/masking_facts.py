"""What the rows of the study of masked and padded features measured, and the numbers that its tables and words need.

A frame of its predictions has the columns of mask_padding.COLUMNS, one row an image, attack and attacker, and
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
SHOWN = [*NET, "attacker", "attack"]
LOCAL = ["gradient_norm", "linearity_error"]
Seen = tuple[str, str, str]  # defence, attacker and attack: which images a net is shown


@dataclass(frozen=True)
class Facts:
    """rows: the predictions; those under C&W stand there once more for each radius, under the name that `within` gives.
    local: the frame of mask_padding's linearity files.
    unmade: data set and defence of rows without files.  empty: data sets whose rows have no images.
    """

    study: Study
    rows: pd.DataFrame
    local: pd.DataFrame
    unmade: list[tuple[str, str]]
    empty: list[str]

    @cached_property
    def measured(self) -> pd.DataFrame:
        """By dataset, network, defence, attacker and attack: the columns of `measures`."""
        return measures(self.rows, SHOWN)

    @cached_property
    def by_net(self) -> dict[Any, dict[Any, Any]]:
        """The same, a dict each."""
        return self.measured.to_dict("index")

    @cached_property
    def flatness(self) -> pd.DataFrame:
        """By dataset, network and defence: the means of gradient_norm and linearity_error, over several splits of their
        means, and as <name>_sd their standard deviation, nan for one."""
        splits = self.local.groupby([*NET, "seed"], sort=False)[LOCAL].mean().groupby(level=NET, sort=False)
        return splits.mean().join(splits.std().add_suffix("_sd"))

    @cached_property
    def radii(self) -> dict[str, float]:
        """The L∞ radius of every attack that has one, in [0, 1] units."""
        own = {name: float(fraction(entry["eps"])) for name, entry in self.study.attacks.items() if "eps" in entry}
        return own | {f"fgsm_{level}": level / 255 for level in self.study.curve}

    @cached_property
    def present(self) -> list[str]:
        """The data sets that have predictions."""
        found = {dataset for dataset, *_ in self.by_net}
        return [name for name in self.study.datasets if name in found]

    @cached_property
    def splits(self) -> dict[str, int]:
        """How many splits each data set was measured on."""
        most = self.measured["trainings"].groupby(level="dataset").max()
        return {str(dataset): int(count) for dataset, count in most.items()}

    def networks(self, dataset: str) -> list[str]:
        """Those of a data set that were measured, whatever their defence."""
        made = {network for of, network, *_ in self.by_net if of == dataset}
        return [name for name in self.study.datasets[dataset].networks if name in made]

    @cached_property
    def _groups(self) -> dict[Any, pd.DataFrame]:
        return {key: group[["seed", "index", "correct"]] for key, group in self.rows.groupby(SHOWN, sort=False)}

    def difference(self, dataset: str, network: str, first: Seen, other: Seen) -> dict[str, float] | None:
        """Accuracy of one net minus that of another, or the same under another attack, paired by image and split:
        difference, difference_low and difference_high (95 %), side (1 above zero, -1 below it, beyond chance, else 0)
        and trainings, as statistics.paired_difference has them; None where one of the two was not measured."""
        one, two = (self._groups.get((dataset, network, *seen)) for seen in (first, other))
        if one is None or two is None:
            return None
        both = one.merge(two, on=["seed", "index"], validate="one_to_one")
        if both.empty:
            return None
        gains = both["correct_x"].astype(float) - both["correct_y"].astype(float)
        of_images = statistics.paired_difference(gains.groupby(both["index"]).mean().to_numpy()[:, None])
        splits = gains.groupby(both["seed"]).mean()
        if len(splits) == 1:
            return of_images
        # An image counts once, however many splits it is in; the trainings' own spread comes on top of that.
        value, by_image = float(splits.mean()), of_images["difference"]
        ends = value - (by_image - of_images["image_low"]), value + (of_images["image_high"] - by_image)
        return _over_splits(value, *ends, splits)

    def flatter(
        self, dataset: str, network: str, defence: str, column: str, other: str = UNDEFENDED
    ) -> dict[str, float] | None:
        """The mean of a column of `local` minus that of the other net, paired by image: the same keys, but that of a
        single training `side` is over images alone, as nothing is known of how far trainings lie apart."""
        local = self.local[(self.local["dataset"] == dataset) & (self.local["network"] == network)]
        one, two = (local[local["defence"] == name] for name in (defence, other))
        both = one.merge(two, on=["seed", "index"], validate="one_to_one")
        changes = both[f"{column}_x"].astype(float) - both[f"{column}_y"].astype(float)
        images, splits = changes.groupby(both["index"]).mean(), changes.groupby(both["seed"]).mean()
        if len(images) < 2:
            return None
        half_width = float(t.ppf((1 + statistics.LEVEL) / 2, len(images) - 1) * images.sem())
        value = float(splits.mean())
        if len(splits) > 1:
            return _over_splits(value, value - half_width, value + half_width, splits)
        return _difference(value, value - half_width, value + half_width, 1)


def _over_splits(value: float, low: float, high: float, splits: "pd.Series[float]") -> dict[str, float]:
    ends = statistics.over_trainings(value, low, high, float(splits.std()), len(splits))
    return _difference(value, *ends, len(splits))


def _difference(value: float, low: float, high: float, trainings: int) -> dict[str, float]:
    side = int(low > 0) - int(high < 0)
    return {"difference": value, "difference_low": low, "difference_high": high, "side": side, "trainings": trainings}


def gather(study: Study, layout: Layout) -> Facts:
    """Read every row that there is."""
    parts, local, unmade, made = [], [], [], set()
    for dataset, defence, folder in rows_of(study, layout):
        files = folder / "predictions.parquet", folder / "linearity.parquet"
        if not all(file.exists() for file in files):
            unmade.append((dataset, defence))
            continue
        made.add(dataset)
        found, flat = (pd.read_parquet(file) for file in files)
        parts += [found] if len(found) else []
        local += [flat] if len(flat) else []
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    rows = rows.assign(correct=(rows["prediction"] == rows["label"]).astype(bool))
    flat = pd.concat(local, ignore_index=True) if local else pd.DataFrame(columns=[*NET, "seed", "index", *LOCAL])
    flat = flat.astype(dict.fromkeys(LOCAL, float))
    present = set(rows["dataset"])
    empty = [name for name in study.datasets if name in made and name not in present]
    return Facts(study, _with_radii(rows, study.radii), flat, unmade, empty)


def within(radius: float) -> str:
    """The name of C&W where only images count as fooled whose change has this L2 length at most."""
    return f"{CW}_l2_{radius:g}"


def _with_radii(rows: pd.DataFrame, radii: Iterable[float]) -> pd.DataFrame:
    """The rows, and those of C&W for each radius: wrong where the net is wrong when clean, or is fooled within it."""
    image = [*NET, "seed", "index"]
    clean = rows.loc[rows["attack"] == CLEAN, [*image, "correct"]].rename(columns={"correct": "clean_correct"})
    attacked = rows[rows["attack"] == CW].merge(clean, on=image, how="left", validate="many_to_one")
    right_before, fooled = attacked.pop("clean_correct").astype(bool), ~attacked["correct"].astype(bool)
    parts = [rows]
    for radius in radii:
        right = right_before & ~(fooled & (attacked["l2"] <= radius))
        parts.append(attacked.assign(attack=within(radius), correct=right))
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def measures(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Index: `by`; columns: those of statistics.accuracies; balanced_accuracy, the mean of the classes' accuracies,
    over several splits its mean; trainings; and of the net's own C&W, else nan, over the images that are right when
    clean, of all splits: fooled, the share that it fools; l2_median, of its changes' lengths, where an image that it
    never fools is infinitely far."""
    found = statistics.accuracies(rows, by)
    classes = rows.groupby([*by, "seed", "label"], sort=False)["correct"].mean()
    splits = classes.groupby(level=[*by, "seed"], sort=False).mean()
    found["balanced_accuracy"] = splits.groupby(level=by, sort=False).mean()
    found["trainings"] = rows.groupby(by, sort=False)["seed"].nunique()
    own = rows[(rows["attack"] == CW) & (rows["attacker"] == WHITEBOX)]
    attacked = own[own["correct"] | (own["l2"] > 0)]  # an image that is wrong when clean is not, and keeps length zero
    fooled = ~attacked["correct"]
    lengths = attacked.assign(fooled=fooled, length=attacked["l2"].astype(float).where(fooled, math.inf))
    found["fooled"] = lengths.groupby(by, sort=False)["fooled"].mean()
    found["l2_median"] = lengths.groupby(by, sort=False)["length"].median()
    return found


def tidy_rows(facts: Facts) -> pd.DataFrame:
    """rows.csv: one row a training, attack and attacker; eps in [0, 1] units, empty where the attack has none; how flat
    the net is stands in its rows of clean images."""
    own = facts.rows[facts.rows["attack"].isin([CLEAN, CW, *facts.radii])]
    found = measures(own.assign(split=own["seed"]), [*NET, "split", "attack", "attacker"]).reset_index()
    found["eps"] = found["attack"].map(facts.radii)
    found = found.rename(columns={"split": "seed"})
    flat = facts.local.groupby([*NET, "seed"], sort=False)[LOCAL].mean().reset_index().assign(attack=CLEAN)
    found = found.merge(flat, on=[*NET, "seed", "attack"], how="left", validate="many_to_one")
    columns = ["accuracy", "ci_low", "ci_high", "balanced_accuracy", *LOCAL]
    return found[[*NET, "seed", "attack", "attacker", "eps", "images", *columns]]
