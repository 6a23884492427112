"""White-box evaluation, from the rows in data/whitebox/: accuracies, worst cases, the curve over eps, sanity checks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparring import layout, statistics
from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.params.errors import InputError
from sparring.params.names import AUTOATTACK, BASELINE, CLEAN, MORE_STEPS, SQUARE
from sparring.report import escape, figures, tables
from sparring.report.page import Figure, Section
from sparring.report.tables import Table

COLUMNS = ["index", "seed", "attack", "label", "prediction", "l2", "linf"]
TITLE = "White-box: attacks aimed at each structure itself"
WORST, ANY = "worst case", "any of these"
UNBOUNDED = "without a bound nothing is left"
MUCH = 0.02  # of accuracy, that more steps may take away
RULE = (
    "How they are decided: each compares two accuracies on the same images and *passes* unless the 95 % interval of "
    "their paired difference lies wholly on the wrong side of zero, or for more steps of "
    f"{MUCH:g}. It is an interval over images alone, as the question is about these very nets. Few images make wide "
    "intervals, so a pass on few images says little. The last check has no interval: one image that is still "
    "classified correctly fails it."
)


def read(params: Params, test_index: np.ndarray, test_label: np.ndarray) -> pd.DataFrame:
    """The rows of every structure: structure, seed, attack, index, label, prediction, l2, linf, correct.

    test_index, test_label: (N,), the test split.  Raises InputError where a file, an attack or an image is missing.
    """
    if not params.whitebox.images:
        return statistics.no_rows([*COLUMNS, "structure"], {"attack": "str", "structure": "str"})
    known = pd.Series(test_label, index=test_index)
    parts = []
    for structure in params.structures:
        path = layout.WHITEBOX / f"{structure}.parquet"
        rows = statistics.read(path, COLUMNS)
        _check(params, rows, path, known)
        parts.append(rows.assign(structure=structure, correct=rows["label"] == rows["prediction"]))
    found = pd.concat(parts, ignore_index=True)
    return found[found["attack"].isin([CLEAN, *params.whitebox.runs])]


def _check(params: Params, rows: pd.DataFrame, path: Path, known: pd.Series) -> None:
    wanted = {CLEAN: params.whitebox.images} | {name: count for name, (_, count) in params.whitebox.runs.items()}
    seeds = sorted(rows["seed"].unique())
    if len(known) and params.whitebox.images and not seeds:
        raise InputError(f"{path} has no rows; run `dvc repro`")
    for seed in seeds:
        for name, count in wanted.items():
            index = rows.loc[(rows["seed"] == seed) & (rows["attack"] == name), "index"]
            expected = min(count, len(known))
            if index.nunique() != expected or len(index) != expected:
                raise InputError(
                    f"{path}: seed {seed}, {name}: {index.nunique()} images, not {expected}; run `dvc repro`"
                )
    if (known.reindex(rows["index"]).to_numpy() != rows["label"].to_numpy()).any():
        raise InputError(f"{path}: labels differ from the test images' labels; run `dvc repro`")


def radius(attack: Attack) -> str:
    """The ball that an attack keeps to, as `Linf 8/255` or `L2 0.5`; empty for one without."""
    if attack.linf is not None:
        return f"Linf {round(255 * attack.linf)}/255"
    return "" if attack.l2 is None else f"L2 {attack.l2:g}"


def worst_cases(params: Params, rows: pd.DataFrame) -> pd.DataFrame:
    """A row per (radius, structure, seed, index) with `correct`: whether the image withstood every attack.

    Whatever attack made an image, it counts for each ball that it lies in: those of `whitebox.attacks` and AutoAttack.
    A clean image lies in all of them. Without any ball, every image counts for ANY,
    which stands where else a radius stands.
    """
    attacks = [params.whitebox.runs[name][0] for name in _in_table(params)]
    balls = {radius(attack): attack for attack in attacks if radius(attack)}
    inside = {}
    for name, attack in balls.items():
        if attack.linf is not None:
            inside[name] = 255 * rows["linf"] <= 255 * attack.linf + 1e-3
        elif attack.l2 is not None:
            inside[name] = rows["l2"] <= attack.l2 * (1 + 1e-4)
    inside[ANY] = np.logical_or.reduce(list(inside.values())) if inside else rows["linf"].notna()
    keys = ["structure", "seed", "index"]
    return pd.concat([_withstood(rows[within], keys).assign(radius=name) for name, within in inside.items()])


def _withstood(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row of each group, `correct` where all of its rows are."""
    return rows.groupby(keys, sort=False)["correct"].all().reset_index()


def _in_table(params: Params) -> list[str]:
    return [name for name in params.whitebox.runs if name in (*params.whitebox.attacks, AUTOATTACK)]


def accuracies(params: Params, rows: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """Columns attack, radius, structure, accuracy, ci_low, ci_high, images, sd, l2_median (of the changes that fool),
    in the order of the table: clean, each attack, then the worst cases.

    cases: from `worst_cases`.
    """
    single = statistics.accuracies(rows, ["attack", "structure"])
    fooled = rows[~rows["correct"] & (rows["linf"] > 0)].groupby(["attack", "structure"])["l2"].median()
    single = single.assign(l2_median=fooled.reindex(single.index).astype(float)).reset_index()
    radii = {name: radius(params.whitebox.runs[name][0]) for name in _in_table(params)}
    single = single[single["attack"].isin([CLEAN, *radii])].assign(radius=single["attack"].map(radii).fillna(""))
    worst = statistics.accuracies(cases, ["radius", "structure"]).reset_index().assign(attack=WORST)
    columns = ["attack", "radius", "structure", "accuracy", "ci_low", "ci_high", "images", "sd", "l2_median"]
    return pd.concat([single, worst], ignore_index=True).reindex(columns=columns)


def comparisons(params: Params, cases: pd.DataFrame) -> pd.DataFrame:
    """Every structure against every other in each worst case, as statistics.comparisons by split and attack.

    cases: from `worst_cases`.
    """
    rows = cases.assign(split="test", attack=WORST + ", " + cases["radius"])
    return statistics.comparisons(rows, list(params.structures), ["split", "attack"])


def curve(params: Params, rows: pd.DataFrame) -> pd.DataFrame:
    """The reference PGD by radius: columns structure, eps (in 1/255; 0 is clean), accuracy, ci_low, ci_high, images,
    success (of the images that are right when clean, the share that is fooled)."""
    points = {CLEAN: 0} | dict(zip(params.whitebox.on_curve, params.whitebox.curve.eps, strict=True))
    found = rows[rows["attack"].isin(list(points))]
    met = found.loc[found["attack"] != CLEAN, ["structure", "seed", "index"]].drop_duplicates()
    found = found.merge(met, on=["structure", "seed", "index"])
    if found.empty:
        return pd.DataFrame(columns=["structure", "eps", "accuracy", "ci_low", "ci_high", "images", "success"])
    table = statistics.accuracies(found.assign(eps=found["attack"].map(points)), ["structure", "eps"]).reset_index()
    clean = table[table["eps"] == 0].set_index("structure")["accuracy"].replace(0, np.nan)
    return table.assign(success=1 - table["accuracy"] / table["structure"].map(clean))


def checks(params: Params, rows: pd.DataFrame, transfer: pd.DataFrame) -> pd.DataFrame:
    """Signs of attacks that are too weak, or of gradients that are masked (Carlini et al., 2019, arXiv 1902.06705).

    transfer: predictions of the stored attacks (statistics) on test images, with `structure` and `correct`.
    Columns check, compared (what with what, and at which radius), structure, images, accuracy (what should be lower),
    against (the other), low, high (of accuracy minus against, 95 %), passed (True, False, or None: not to be decided).
    """
    found = []
    for structure in params.structures:
        own, stored = rows[rows["structure"] == structure], transfer[transfer["structure"] == structure]
        for check, compared, lower, other, tolerance in _comparisons(params, own, stored):
            found.append(
                {"check": check, "compared": compared, "structure": structure, **_paired(lower, other, tolerance)}
            )
        line = curve(params, own)
        if len(line):
            end = line.iloc[-1]
            fact = {"images": end["images"], "accuracy": end["accuracy"], "passed": bool(end["accuracy"] == 0)}
            compared = f"{params.whitebox.reference} at Linf {end['eps']}/255"
            found.append({"check": UNBOUNDED, "compared": compared, "structure": structure, **fact})
    columns = ["check", "compared", "structure", "images", "accuracy", "against", "low", "high", "passed"]
    return pd.DataFrame(found, columns=columns)


def _comparisons(
    params: Params, own: pd.DataFrame, stored: pd.DataFrame
) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame, float]]:
    """Of a structure: (check, what is compared, rows that should be correct less often, the others, tolerance)."""
    settings = params.whitebox
    by_radius: dict[str, dict[str, str]] = {}
    for name, attack in settings.attacks.items():
        if attack.linf is not None and attack.method in ("fgsm", "pgd"):
            by_radius.setdefault(radius(attack), {}).setdefault(attack.method, name)
    under = dict(list(own.groupby("attack")))
    none = own.iloc[:0]
    gallery = params.attacks | params.unseen_attacks
    for ball, names in by_radius.items():
        same = [name for name, attack in gallery.items() if radius(attack) == ball]
        if "pgd" in names and same:
            # As in the white-box rows, an image that is wrong when clean counts as wrong.
            shown = stored[stored["attack"].isin([CLEAN, *same])]
            worst = _withstood(shown, ["seed", "index"]) if (own["structure"] != BASELINE).any() else none
            yield (
                "white-box beats transfer",
                f"{names['pgd']}, stored {' and '.join(same)}, {ball}",
                under.get(names["pgd"], none),
                worst,
                0,
            )
    for ball, names in by_radius.items():
        if len(names) == 2:
            lower, other = (under.get(names[method], none) for method in ("pgd", "fgsm"))
            yield "iterative beats single step", f"{names['pgd']}, {names['fgsm']}, {ball}", lower, other, 0
    reference = under.get(settings.reference, none)
    steps, ball = settings.attacks[settings.reference].arguments["steps"], radius(settings.attacks[settings.reference])
    compared = f"{settings.reference} with {steps} and {settings.checks.steps} steps, {ball}"
    yield "more steps do not help much", compared, reference, under.get(MORE_STEPS, none), MUCH
    compared = f"{settings.reference}, Square with {settings.checks.queries} queries, {ball}"
    yield "black box does not beat white box", compared, reference, under.get(SQUARE, none), 0


def _paired(lower: pd.DataFrame, other: pd.DataFrame, tolerance: float) -> dict[str, Any]:
    """Both accuracies on the images that both have, and whether the first is higher by more than chance allows."""
    keys = ["seed", "index"]
    both = lower[[*keys, "correct"]].merge(other[[*keys, "correct"]], on=keys, suffixes=("", "_other"))
    if both.empty:
        return {"images": 0, "passed": None}
    frames = [both.assign(structure="lower"), both.assign(structure="other", correct=both["correct_other"])]
    compared = statistics.comparisons(pd.concat(frames).assign(split="test"), ("lower", "other"), ["split"])
    low, high = compared[["image_low", "image_high"]].to_numpy(float)[0]  # the first is `lower` against `other`
    facts = {
        "images": both["index"].nunique(),
        "accuracy": both["correct"].mean(),
        "against": both["correct_other"].mean(),
    }
    return facts | {"low": low, "high": high, "passed": bool(low <= tolerance)}


def table(params: Params, found: pd.DataFrame) -> Table:
    """Structures × attacks, the worst cases last.  found: from `accuracies`."""
    structures = list(params.structures)
    kinds = found[["attack", "radius"]].drop_duplicates()
    wide = []
    for kind in tables.rows(kinds):
        cells = found[(found["attack"] == kind.attack) & (found["radius"] == kind.radius)].set_index("structure")
        row = {"attack": kind.attack, "within": kind.radius or ("-" if kind.attack == CLEAN else "no radius")}
        row |= {"images": f"{cells['images'].max()}"}
        for structure in structures:
            cell = cells.loc[structure]
            row[structure] = tables.with_interval(*cell[list(tables.ACCURACY)])
        wide.append(row)
    return Table(
        "whitebox",
        "Accuracy under attacks aimed at each structure itself (white-box), on test images.",
        found,
        {"": pd.DataFrame(wide, columns=["attack", "within", "images", *structures])},
        [
            "Every structure is attacked by its own gradients; an image that it misclassifies when clean counts as "
            "misclassified. `worst case`: the share of images that withstood every attack. A changed image counts for "
            "each radius that it lies within, whichever attack made it, those of the sanity checks and of the curve "
            f"included; `{ANY}` counts what lies within at least one. None of these attackers looks at the detector. "
            + tables.INTERVALS,
            *_without_radius(found),
        ],
    )


def _without_radius(found: pd.DataFrame) -> list[str]:
    free = found[(found["radius"] == "") & found["l2_median"].notna()]
    if free.empty:
        return []
    lengths = [
        f"{escape.markdown(row.attack)} on {escape.markdown(row.structure)} {row.l2_median:.2f}"
        for row in tables.rows(free)
    ]
    return [
        "An attack without a radius goes as far as it must, so its accuracy alone says nothing: the median L2 length "
        f"of its successes is {', '.join(lengths)}. In a worst case it counts where it stays within the radius."
    ]


def checks_table(params: Params, found: pd.DataFrame) -> Table:
    """found: from `checks`."""
    structures = list(params.structures)
    wide = []
    for kind in tables.rows(found[["check", "compared"]].drop_duplicates()):
        here = found[(found["check"] == kind.check) & (found["compared"] == kind.compared)].set_index("structure")
        row = {"check": kind.check, "compared": kind.compared, "images": f"{here['images'].max():.0f}"}
        for structure in structures:
            cell = here.loc[structure]
            words = {True: "pass", False: "FAIL"}.get(cell["passed"], "-")
            figures_shown = [tables.number(cell[key]) for key in ("accuracy", "against") if not pd.isna(cell[key])]
            row[structure] = f"{words}: {', '.join(figures_shown)}" if figures_shown else words
        wide.append(row)
    return Table(
        "checks",
        "Sanity checks of the white-box attacks: with each verdict, both accuracies in the order of “compared”.",
        found,
        {"": pd.DataFrame(wide, columns=["check", "compared", "images", *structures])},
        [
            RULE,
            "A failed check means that the white-box figures flatter the structure: its gradients mislead the "
            "attacker, or the attacker did not try hard enough. The pretrained net's stored attacks were white-box "
            f"themselves, so `{BASELINE}` has no transfer to be compared with.",
        ],
    )


def warnings(found: pd.DataFrame) -> list[str]:
    """A line for each structure that an attacker without a bound does not bring to zero.  found: from `checks`."""
    ends = found[(found["check"] == UNBOUNDED) & ~found["passed"].astype(bool)]
    return [
        f"**Warning: gradients may be masked.** {escape.markdown(row.structure)} still classifies a share of "
        f"{row.accuracy:.3f} of {row.images:.0f} images correctly under {escape.markdown(row.compared)}, where any "
        "image can be made grey: its white-box figures cannot be taken for its robustness."
        for row in tables.rows(ends)
    ]


def summary(accuracy: pd.DataFrame, found: pd.DataFrame) -> dict[str, dict[str, object]]:
    """By structure: accuracy under each attack, worst_case within any radius, and the names of the failed checks.

    accuracy: from `accuracies`.  found: from `checks`.
    """
    trees: dict[str, dict[str, object]] = {}
    lowest = worst(accuracy)["accuracy"]
    for structure, rows in accuracy.groupby("structure", sort=False):
        single = rows[rows["attack"] != WORST]
        failed = found[(found["structure"] == structure) & found["passed"].eq(False)]
        trees[str(structure)] = {
            "attacks": dict(zip(single["attack"], single["accuracy"], strict=True)),
            "worst_case": float(lowest[structure]),
            "failed_checks": ", ".join(dict.fromkeys(failed["check"])),
        }
    return trees


def worst(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The rows of the worst case within any radius, by structure.  accuracy: from `accuracies`."""
    return accuracy[accuracy["radius"] == ANY].set_index("structure")


def section(
    params: Params, rows: pd.DataFrame, accuracy: Table, compared: pd.DataFrame, found: Table, folder: Path
) -> Section:
    """The report's section, warnings first; draws whitebox_curve into the report's `folder`, with its figures as .csv.

    rows: from `read`.  accuracy: from `table`.  compared: from `comparisons`.  found: from `checks_table`.
    """
    if accuracy.tidy.empty:
        return Section(TITLE, ["No white-box attack was run (`whitebox.images`), or there are no test images."])
    parts: list[str | Table | Figure] = [*warnings(found.tidy), accuracy]
    parts += tables.mcnemar(params, "whitebox_mcnemar", compared, ["test"])
    points = curve(params, rows)
    if len(points):
        points.to_csv(folder / "figures" / "whitebox_curve.csv", index=False, float_format="%.6g", lineterminator="\n")
        figures.whitebox_curve(folder, points)
        steps = params.whitebox.attacks[params.whitebox.reference].arguments["steps"]
        caption = f"Accuracy under white-box PGD of {steps} steps by its radius, with 95 % intervals. "
        parts.append(Figure("whitebox_curve", caption + "It must end at zero."))
    return Section(TITLE, [*parts, found])
