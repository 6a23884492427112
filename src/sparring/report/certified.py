"""Write certified accuracy by radius, a table and a curve: a report of its own (reports/certified/)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from sparring import statistics
from sparring.evaluation.certify import ABSTAINED, Certificate, Sampling, certificate
from sparring.layout import HERE, Layout
from sparring.params import Params
from sparring.report import escape
from sparring.report.figure import LONGEST, canvas, line_look
from sparring.report.lettering import short
from sparring.report.publish import replacing
from sparring.report.table import ACCURACY, INTERVALS, Table, intervals, number, save

UNITS = {"L0": "positions changed", "L2": "length of the change, in [0, 1] units"}
ROWS, POINTS = 20, 100  # about so many radii are in the table and on the curve


def write(params: Params, structures: Sequence[str], sampling: Sampling, layout: Layout = HERE) -> None:
    """Write the table and the curve from the stored rows of these structures, and print one line."""
    rows = pd.concat(
        [pd.read_parquet(layout.certified(name)).assign(structure=name) for name in structures], ignore_index=True
    )
    rows["correct"] = rows["prediction"] == rows["label"]
    proofs = {name: certificate(params, name) for name in structures}
    folder = layout.reports / "certified"
    with replacing(folder) as temporary:
        save(table(rows, proofs, sampling), temporary, temporary / "tex")
        draw_curve(temporary, by_radius(rows, proofs, POINTS))
    print(f"certified accuracy of {', '.join(structures)}: {folder}/certified.md", flush=True)


def by_radius(rows: pd.DataFrame, proofs: dict[str, Certificate], points: int) -> pd.DataFrame:
    """Return certified accuracy at about `points` radii of each norm, from 0 to just beyond the largest of any image.

    rows: as `certify` writes them, with `structure` and `correct`.  proofs: by structure.
    Columns: norm, structure, radius, accuracy, ci_low, ci_high, images, sd.
    """
    parts = []
    norms = rows["structure"].map({name: proof.norm for name, proof in proofs.items()})
    for norm, of_norm in rows.groupby(norms, sort=False):
        radii = _radii(of_norm["radius"].max(), points, integer=norm == "L0")
        # An image without a certificate has the radius nan, which is not above any.
        certified = [of_norm.assign(correct=of_norm["correct"] & (of_norm["radius"] >= at), at=at) for at in radii]
        accuracy = statistics.accuracies(pd.concat(certified), ["structure", "at"])
        order = pd.MultiIndex.from_product([of_norm["structure"].unique(), radii], names=["structure", "radius"])
        parts.append(accuracy.reindex(order).reset_index().assign(norm=norm))
    tidy = pd.concat(parts, ignore_index=True)
    return tidy[["norm", *tidy.columns.drop("norm")]]


def _radii(largest: float, points: int, integer: bool) -> list[float]:
    """Return about `points` round radii from 0 to beyond the largest, which is nan where nothing is certified."""
    if not largest > 0:
        return [0.0]
    ticks = MaxNLocator(points, steps=[1, 2, 2.5, 5, 10], integer=integer, min_n_ticks=1).tick_values(0, largest)
    step = ticks[1] - ticks[0]
    return [float(radius) for radius in np.round(step * np.arange(largest // step + 2), 12)]


def table(rows: pd.DataFrame, proofs: dict[str, Certificate], sampling: Sampling) -> Table:
    """Return the table of certified accuracy.  rows, proofs: as in `by_radius`."""
    tidy = by_radius(rows, proofs, ROWS)
    overview = _overview(rows, proofs, sampling)
    wide = {"Structures": _readable(overview)}
    for norm, of_norm in tidy.groupby("norm", sort=False):
        cells = {
            str(structure): intervals(own, *ACCURACY) for structure, own in of_norm.groupby("structure", sort=False)
        }
        radii = [f"{radius:g}" for radius in of_norm["radius"].unique()]
        wide[f"{norm} radius: {UNITS[str(norm)]}"] = pd.DataFrame({"within": radii, **cells})
    tidy = tidy.merge(overview[["structure", "certificate", "abstained", "largest_possible"]], on="structure")
    notes = _notes(overview, sampling, int(tidy["images"].max()))
    return Table("certified", "Certified accuracy of test images by radius.", tidy, wide, notes)


def _overview(rows: pd.DataFrame, proofs: dict[str, Certificate], sampling: Sampling) -> pd.DataFrame:
    """Return one row per structure.

    Columns: structure, certificate (in words), accuracy, ci_low, ci_high, images, sd, abstained (a share), largest (the
    largest radius of an image that it gets right), largest_possible.
    """
    overview = statistics.accuracies(rows, ["structure"])
    overview["certificate"] = [str(proofs[name]) for name in overview.index]
    overview["abstained"] = rows["prediction"].eq(ABSTAINED).groupby(rows["structure"]).mean()
    overview["largest"] = rows[rows["correct"]].groupby("structure")["radius"].max()
    overview["largest_possible"] = [proofs[name].radius(sampling.highest_bound) for name in overview.index]
    return overview.reset_index()


def _readable(overview: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "structure": overview["structure"],
            "certificate": overview["certificate"],
            "accuracy": intervals(overview, *ACCURACY),
            "abstained": [number(share) for share in overview["abstained"]],
            "largest radius": [f"{radius:.3g}" if radius >= 0 else "-" for radius in overview["largest"]],
            "largest possible": [f"{radius:.3g}" for radius in overview["largest_possible"]],
        }
    )


def _notes(overview: pd.DataFrame, sampling: Sampling, images: int) -> list[str]:
    idle = overview.loc[overview["largest_possible"] == 0, "structure"]
    return [
        "Measured is the randomized classifier, which names the class for which the net votes most often under random "
        "draws of its transform: by noise, randomized smoothing (Cohen et al., 2019, arXiv 1902.02918); by masks, "
        "randomized ablation (Levine and Feizi, 2020, arXiv 1911.09272). *Certified accuracy* is the share of images "
        "that it gets right, and would whatever is changed within the radius, by any attacker. Where votes do not "
        "decide, it abstains, which counts as wrong. Nothing is certified of the net without the transform.",
        f"{images:,} test images, evenly from the classes. For each, {sampling.selection:,} draws choose the class, "
        f"and {sampling.samples:,} others bound its probability from below (Clopper and Pearson). The certificate of "
        f"an image holds with a probability of {1 - sampling.alpha:g} at least (alpha {sampling.alpha:g}), for each "
        "image by itself. *Largest possible* is the radius where all of so many votes agree: more samples reach "
        "further.",
        *(
            f"The mask of {escape.markdown(str(name))} leaves so many positions visible that no change of even one "
            "can be certified: its radius is 0 for every image. A larger share, 0.9 or more, can."
            for name in idle
        ),
        INTERVALS,
    ]


def draw_curve(folder: Path, curve: pd.DataFrame) -> None:
    """Draw certified accuracy with 95 % intervals: one panel per norm, one line per structure.

    curve: from `by_radius`.
    """
    norms = list(curve["norm"].unique())
    with canvas(folder, "certified", 4.4 * len(norms) + 0.6, 3.8, picture=True) as figure:
        panels = np.ravel(figure.subplots(1, len(norms), sharey=True, squeeze=False))
        looks = {name: line_look(place) for place, name in enumerate(curve["structure"].unique())}
        for panel, norm in zip(panels, norms, strict=True):
            for name, rows in curve[curve["norm"] == norm].groupby("structure", sort=False):
                look = looks[name]
                ends, label = (rows["ci_low"], rows["ci_high"]), short(str(name), LONGEST)
                # Between two radii stands what holds within the larger one, so that the line never says too much.
                style = {"drawstyle": "steps-pre"} | ({"marker": "o", "ms": 3} if norm == "L0" else {})
                panel.fill_between(rows["radius"], *ends, step="pre", color=look["color"], alpha=0.15, lw=0)
                panel.plot(rows["radius"], rows["accuracy"], label=label, **look, **style)
            panel.set(xlabel=f"{norm} radius: {UNITS[norm]}", ylim=(0, 1.02))
        panels[0].set_ylabel("certified accuracy")
        figure.legend(loc="outside upper center", ncols=min(len(looks), 4))
