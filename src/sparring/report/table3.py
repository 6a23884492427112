"""Write Table 3, detector input × adversarial share × layers: a report of its own (studies/table3/)."""

import math
from typing import Any

import pandas as pd

from sparring import statistics
from sparring.layout import HERE, Layout
from sparring.params import Params
from sparring.params.names import EVALUATED_SPLITS
from sparring.params.variants import Row, row_params
from sparring.report import paper, read
from sparring.report.differences import ASSUMED_SPREAD
from sparring.report.publish import publish
from sparring.report.results import detector_verdicts, draw_mixture
from sparring.report.table import ACCURACY, INTERVALS, SPLIT_TITLES, Table, full, intervals, number
from sparring.store import Images

DETECTOR_ACCURACY = ("detector_accuracy", "detector_low", "detector_high", "detector_sd")


def write(params: Params, rows: dict[str, Row], layout: Layout = HERE) -> None:
    """Write Table 3 from the rows' stored predictions, and print one line.

    rows: by name, as in studies/table3/params.yaml.  Raises InputError where a file, or a part of it, is missing or
    does not fit the clean images.
    """
    clean = read.clean(layout)
    table = _table(params, rows, _facts(params, layout, rows, clean), paper.note(params, clean))
    publish(table, layout.study_reports("table3"))
    print(f"table 3: {len(rows)} rows", flush=True)


def _facts(params: Params, layout: Layout, rows: dict[str, Row], clean: dict[str, Images]) -> pd.DataFrame:
    """Return each row's scores on a mixture with its own adversarial share and on one with mixture.adv_ratio.

    Index: split, row, mixture (own | fixed); columns: majority, detector_accuracy, detector_low, detector_high,
    detector_sd, auroc, accuracy, ci_low, ci_high, images, sd.
    """
    stored = read.stored(params.model_copy(update={"unseen_attacks": {}}), layout, clean)
    facts: list[dict[str, Any]] = []
    for name, row in rows.items():
        predictions = read.predictions_of_row(row_params(params, name, rows), layout, name, clean)
        for kind, adv_ratio in (("own", row.adv_ratio), ("fixed", params.mixture.adv_ratio)):
            mixture = draw_mixture(params, adv_ratio, clean, predictions, stored)
            classified = statistics.accuracies(mixture, ["split"])
            detected = statistics.accuracies(detector_verdicts(mixture), ["split"]).drop(columns="images")
            detected.columns = pd.Index(DETECTOR_ACCURACY)
            for split, part in mixture.groupby("split"):
                adversarial, score = part["adversarial"].to_numpy(bool), part["detector_score"].to_numpy(float)
                metrics = statistics.detector_metrics(adversarial, score)
                fact = {"split": split, "row": name, "mixture": kind, **detected.loc[split], **classified.loc[split]}
                facts.append(fact | {key: metrics[key] for key in ("majority", "auroc")})
    index = ["split", "row", "mixture"]
    columns = ["majority", *DETECTOR_ACCURACY, "auroc", "accuracy", "ci_low", "ci_high", "images", "sd"]
    return pd.DataFrame(facts, columns=[*index, *columns]).set_index(index).astype(float)


def _table(params: Params, settings: dict[str, Row], facts: pd.DataFrame, note: str) -> Table:
    """Return Table 3.  facts: from `_facts`.  note: what to say of the paper's columns."""
    tidy = _tidy(params, settings, facts)
    wide = {SPLIT_TITLES[split]: _wide(params, tidy[tidy["split"] == split]) for split in EVALUATED_SPLITS}
    return Table(
        "table3",
        "The detector's accuracy and the classifier's, by detector input, adversarial share and layers (transfer).",
        tidy,
        wide,
        [
            "Each row is trained with its own adversarial share and measured on a mixture with that share, as in the "
            f"paper, and on the mixture of Table 2, with {params.mixture.adv_ratio:g}, on which the rows can be "
            "compared. `majority` is what always giving the commoner answer would score as a detector; an image that "
            "its attack left unchanged counts as clean. " + INTERVALS + " AUROC is no share and has no such interval.",
            _rows_note(len(params.seeds)),
            "Every stored attack was made against the pretrained net, so all these figures are *transfer*: the "
            "attacker never saw the defended models. Against one who aims at them, their accuracy can be expected to "
            "be far lower than printed here.",
            note,
        ],
    )


def _tidy(params: Params, settings: dict[str, Row], facts: pd.DataFrame) -> pd.DataFrame:
    """Add each row's settings and the paper's accuracies to the facts."""
    published = paper.ablation().rename(
        columns={"detector_accuracy": "paper_detector_accuracy", "classification_accuracy": "paper"}
    )
    row_settings = pd.DataFrame([{"row": name, **row.model_dump()} for name, row in settings.items()])
    row_settings = row_settings.merge(published, on=list(Row.model_fields), how="left", validate="many_to_one")
    tidy = full(facts, [EVALUATED_SPLITS, tuple(settings), ("own", "fixed")], ["split", "row", "mixture"])
    tidy = tidy.merge(row_settings, on="row", validate="many_to_one")
    tidy.insert(3, "mixture_ratio", tidy["adv_ratio"].where(tidy["mixture"] == "own", params.mixture.adv_ratio))
    for place, name in enumerate(Row.model_fields, 2):
        tidy.insert(place, name, tidy.pop(name))
    # The paper's figures are for each row's own share.
    tidy.loc[tidy["mixture"] == "fixed", ["paper_detector_accuracy", "paper"]] = math.nan
    return tidy


def _wide(params: Params, tidy: pd.DataFrame) -> pd.DataFrame:
    """Format the rows of one split as a frame."""
    columns: dict[str, Any] = {}
    for kind, suffix in (("own", ""), ("fixed", f" at {params.mixture.adv_ratio:g}")):
        rows = tidy[tidy["mixture"] == kind]
        if kind == "own":
            columns |= {"input": list(rows["input"]), "share": [f"{share:g}" for share in rows["adv_ratio"]]}
            columns |= {"layers": [str(layers) for layers in rows["layers"]]}
        columns[f"majority{suffix}"] = [number(value) for value in rows["majority"]]
        columns[f"detector{suffix}"] = intervals(rows, *DETECTOR_ACCURACY)
        columns[f"AUROC{suffix}"] = [number(value) for value in rows["auroc"]]
        columns[f"accuracy{suffix}"] = intervals(rows, *ACCURACY)
        if kind == "own":
            columns["paper, detector"] = [number(value, 4) for value in rows["paper_detector_accuracy"]]
            columns["paper, accuracy"] = [number(value, 4) for value in rows["paper"]]
    return pd.DataFrame(columns)


def _rows_note(count: int) -> str:
    if count == 1:
        return f"Rows differ by chance too; no interval here compares two of them. {ASSUMED_SPREAD}"
    return (
        f"Rows differ by chance too; no interval here compares two of them. ± is the standard deviation over {count} "
        "trainings."
    )
