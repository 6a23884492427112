"""The report: reads what the other stages left in files, asks no model anything, and writes reports/.

It is a list of sections (`_sections`), from which report.md and index.html are rendered alike.
"""

import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from sparring import layout, statistics, store
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import (
    ABLATED,
    BASELINE,
    CLEAN,
    CORRUPTIONS,
    EVALUATED_SPLITS,
    KNOWN_DETECTORS,
    MIXTURE,
    STRENGTHS,
    outputs,
)
from sparring.params.variants import Row, only, row_params
from sparring.report import escape, figures, page, tables
from sparring.report import whitebox as robustness
from sparring.report.lettering import short
from sparring.report.page import Figure, Gallery, Section, Thumbnails

PREDICTION_COLUMNS = ["index", "split", "seed", "attack", "label", "prediction", "confidence", "detector_score"]
DETECTION_COLUMNS = ["index", "split", "seed", "kind", "attack", "label", "prediction", "detector", *KNOWN_DETECTORS]
HISTORY_COLUMNS = ["epoch", "loss", "accuracy", "validation_accuracy"]
TITLE = "What the stored opponents did, and what training on them changed"
GALLERY_ROWS = 10
GALLERY_BYTES = 4_000_000  # of pixels that the web page's gallery may hold: fewer images where they are large
FAILURES = 8  # a structure


@dataclass(frozen=True)
class Results:
    """All that the tables and figures are made from; the frames are those that `statistics` describes."""

    params: Params
    clean: dict[str, store.Images]  # by split, without pixels
    predictions: pd.DataFrame
    stored: pd.DataFrame
    mixture: pd.DataFrame  # the predictions that the draw picks, with `adversarial`
    whitebox: pd.DataFrame  # from robustness.read
    corruptions: pd.DataFrame  # predictions of corrupted held-out images
    scores: pd.DataFrame  # of detectors, with what they accuse
    pairs: pd.DataFrame  # of those, clean and attacked
    histories: dict[str, pd.DataFrame]
    timings: list[dict[str, Any]]
    left_out: Mapping[str, str]  # parts of which there are no rows, and why

    @property
    def structures(self) -> list[str]:
        return list(self.params.structures)

    @property
    def detectors(self) -> list[str]:
        return _detectors(self.params)

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.clean["train"].metadata["classes"]]


def render(params: Params, left_out: Mapping[str, str] | None = None) -> None:
    """Write reports/ from the stored predictions, attacks, histories and timings, and print one line.

    left_out: which of `whitebox`, `detect` and `corruptions` are not read at all, and why, which the report says.
    Raises InputError where a file, or a part of it, is missing or does not fit the clean images. The old reports stay
    as they are until all new ones are made.
    """
    start = time.perf_counter()
    if left_out and "whitebox" in left_out:
        params = params.model_copy(update={"whitebox": params.whitebox.model_copy(update={"images": 0})})
    results = _read(params, left_out or {})
    temporary = Path(f".{layout.REPORTS}.{os.getpid()}.tmp")
    try:
        (temporary / "figures").mkdir(parents=True)
        numbers = _numbers(results)
        sections = _sections(results, numbers, temporary)
        for section in sections:
            for table in section.tables:
                tables.save(table, temporary / "tables", temporary / "tex")
        summary = _summary(results, numbers)
        _json(temporary / "summary.json", summary)
        _json(temporary / "metrics.json", _metrics(summary))
        for name, text in (
            ("report.md", page.markdown(TITLE, sections, figures.PICTURES)),
            ("index.html", page.html(TITLE, sections, temporary / "vector")),
        ):
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
        _publish(temporary, layout.REPORTS)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = [sum(len(getattr(section, kind)) for section in sections) for kind in ("tables", "figures")]
    seconds = time.perf_counter() - start
    print(f"report: {counts[0]} tables, {counts[1]} figures in {seconds:.1f} s", flush=True)


def render_ablation(params: Params, rows: dict[str, Row]) -> None:
    """Write Table 3, detector input × adversarial share × layers, from the rows' stored predictions.

    rows: by name, as in studies/table3/params.yaml.  Raises InputError as `render` does.
    """
    clean = _clean()
    facts = _ablation_facts(params, rows, clean)
    table = tables.ablation(params, rows, facts, [_paper_note(params, clean)])
    _publish_table(table, layout.ABLATION_REPORTS)
    print(f"table 3: {len(rows)} rows", flush=True)


def render_leave_one_out(params: Params) -> None:
    """Write studies/leave_one_out/reports/ from the predictions of structures trained with all attacks and without one.

    Raises InputError as `render` does.
    """
    clean = _clean()
    facts = [
        fact
        for attack in params.attacks
        for structure in only(params, attack).structures
        for fact in _left_out(params, attack, structure, clean)
    ]
    table = tables.leave_one_out(params, pd.DataFrame(facts).set_index(["split", "attack", "structure"]))
    _publish_table(table, layout.LEAVE_ONE_OUT_REPORTS)
    print(f"leave one out: {len(params.attacks)} attacks", flush=True)


def _left_out(params: Params, attack: str, structure: str, clean: dict[str, store.Images]) -> list[dict[str, Any]]:
    """Of a structure trained with all attacks and without one, what tables.leave_one_out shows; a dict a split."""
    settings = only(params, attack)
    predictions = {"with": _predictions(settings, structure, clean)}
    with layout.results_below(layout.LEAVE_ONE_OUT / attack):
        predictions["without"] = _predictions(settings, structure, clean)
    rows = pd.concat([part.assign(structure=name) for name, part in predictions.items()], ignore_index=True)
    rows = rows[rows["attack"].isin([CLEAN, attack])]
    accuracy = statistics.accuracies(rows, ["split", "attack", "structure"]).to_dict("index")
    compared = statistics.comparisons(rows, ("without", "with"), ["split", "attack"]).to_dict("index")
    facts = []
    for split in rows["split"].unique():
        fact: dict[str, Any] = {"split": split, "attack": attack, "structure": structure}
        for name in predictions:
            one = accuracy[(split, attack, name)]
            fact |= {f"{name}_accuracy": one["accuracy"], f"{name}_low": one["ci_low"], f"{name}_high": one["ci_high"]}
            fact[f"{name}_sd"] = one["sd"]
        under, on_clean = (compared[(split, version, "without", "with")] for version in (attack, CLEAN))
        fact |= {name: under[name] for name in ("more", "less", "p", "trainings", "images")}
        for name, difference in (("difference", under), ("clean", on_clean)):
            fact |= {name: difference["difference"], f"{name}_side": difference["side"]}
            fact |= {f"{name}_{end}": difference[f"difference_{end}"] for end in ("low", "high", "sd")}
        facts.append(fact)
    return facts


def _publish_table(table: tables.Table, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        tables.save(table, temporary, temporary / "tex")
        _publish(temporary, folder)
        (folder / f"{table.name}.tex").unlink(missing_ok=True)  # where it was before there was the folder tex
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Let the new files take the place of the old; what else lies in the folder stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for new in sorted(temporary.iterdir()):
        old = folder / new.name
        if new.is_dir() and old.exists():
            old.rename(temporary / f"old-{new.name}")
        new.replace(old)


# Reading


def _read(params: Params, left_out: Mapping[str, str]) -> Results:
    clean, structures = _clean(), list(params.structures)
    stored = _all_stored(params, clean)
    predictions = pd.concat([_predictions(params, structure, clean) for structure in structures], ignore_index=True)
    scores = _scores([] if "detect" in left_out else _detectors(params), params, clean)
    noise = [name for name, attack in {**params.attacks, **params.unseen_attacks}.items() if attack.noise]
    source_clean = predictions[(predictions["structure"] == BASELINE) & (predictions["attack"] == CLEAN)]
    return Results(
        params,
        clean,
        predictions,
        stored,
        _mixture(params, params.mixture.adv_ratio, clean, predictions, stored),
        robustness.read(params, clean["test"].index, clean["test"].label),
        _read_corruptions(() if "corruptions" in left_out else structures, clean["heldout"]),
        scores,
        statistics.matched(scores, stored, source_clean, noise),
        {name: _history(layout.HISTORY / f"{name}.csv") for name in structures},
        _timings(params),
        left_out,
    )


def _detectors(params: Params) -> list[str]:
    """The structures that have one."""
    return [name for name, structure in params.structures.items() if structure.detector != "none"]


def _clean() -> dict[str, store.Images]:
    return {split: store.read(layout.CLEAN / f"{split}.parquet", ()) for split in ("train", *EVALUATED_SPLITS)}


def _mixture(
    params: Params, adv_ratio: float, clean: dict[str, store.Images], predictions: pd.DataFrame, stored: pd.DataFrame
) -> pd.DataFrame:
    """The predictions that the draw with this adversarial share picks, with `adversarial`."""
    draws = [
        statistics.draw_mixture(
            clean[split].index, clean[split].label, list(params.attacks), adv_ratio, params.seed, split
        ).assign(split=split)
        for split in EVALUATED_SPLITS
    ]
    mixture = predictions.merge(pd.concat(draws), on=["split", "index", "attack"], validate="many_to_one")
    return statistics.detector_rows(mixture, stored)


def _attacks(params: Params) -> list[str]:
    return [*params.attacks, *params.unseen_attacks]


def _store_path(params: Params, split: str, attack: str) -> Path:
    folder = layout.ADVERSARIAL if attack in params.attacks else layout.UNSEEN
    return folder / attack / f"{split}.parquet"


def _all_stored(params: Params, clean: dict[str, store.Images]) -> pd.DataFrame:
    parts = [_stored(params, split, attack, clean[split]) for split in EVALUATED_SPLITS for attack in _attacks(params)]
    return pd.concat(parts, ignore_index=True)


def _stored(params: Params, split: str, attack: str, clean: store.Images) -> pd.DataFrame:
    path = _store_path(params, split, attack)
    images = store.read(path, ("prediction", "prediction_float", "prediction_rounded", "l2", "linf"))
    store.check_rows(clean, images, path)
    return pd.DataFrame({"index": images.index, "label": images.label, **images.columns}).assign(
        split=split, attack=attack
    )


def _predictions(params: Params, structure: str, clean: dict[str, store.Images]) -> pd.DataFrame:
    path = layout.PREDICTIONS / f"{structure}.parquet"
    rows = statistics.read(path, PREDICTION_COLUMNS)
    rows = rows[rows["split"].isin(EVALUATED_SPLITS) & rows["attack"].isin([CLEAN, *_attacks(params)])]
    for split in EVALUATED_SPLITS:
        statistics.check_complete(rows, path, split, clean[split].index, clean[split].label, _attacks(params))
    has_detector = structure in params.structures and params.structures[structure].detector != "none"
    if has_detector and rows["detector_score"].isna().any():
        raise InputError(f"{path} has rows without detector_score, but {structure} has a detector; run `dvc repro`")
    return rows.assign(structure=structure, correct=rows["label"] == rows["prediction"])


def _scores(structures: Sequence[str], params: Params, clean: dict[str, store.Images]) -> pd.DataFrame:
    """Scores of these structures' detectors, under the structure's name, and, once, of the known ones; with what they
    accuse, as statistics.accuse tells it, and attrs `fitted`."""
    parts: list[pd.DataFrame] = []
    fitted: dict[str, Any] = {}
    for name in structures:
        path = layout.DETECTION / f"{name}.parquet"
        rows = statistics.read(path, DETECTION_COLUMNS)
        rows = rows[(rows["kind"] != "attack") | rows["attack"].isin(_attacks(params))]
        stored = rows[rows["kind"].isin([CLEAN, "attack"])]
        for split in EVALUATED_SPLITS:
            statistics.check_complete(stored, path, split, clean[split].index, clean[split].label, _attacks(params))
        columns = {"detector": name} | ({} if parts else {known: known for known in KNOWN_DETECTORS})
        if rows["detector"].isna().any() or rows.loc[rows["kind"] != "aimed", list(columns)].isna().any(axis=None):
            raise InputError(f"{path} has rows without scores; run `dvc repro`")
        fitted = fitted or json.loads(pq.read_schema(path).metadata[store.METADATA_KEY])
        for column, method in columns.items():
            parts.append(rows.drop(columns=["detector", *KNOWN_DETECTORS]).assign(method=method, score=rows[column]))
    if not parts:
        parts.append(pd.DataFrame(columns=[*DETECTION_COLUMNS, "method", "score"]))
    scores = statistics.accuse(pd.concat(parts, ignore_index=True))
    scores.attrs["fitted"] = fitted
    return scores


def _read_corruptions(structures: Sequence[str], clean: store.Images) -> pd.DataFrame:
    """Predictions of these structures for the held-out images (`clean`) under common corruptions; InputError where some
    are missing."""
    kinds = [(name, strength) for name in CORRUPTIONS for strength in STRENGTHS]
    columns = ["index", "split", "seed", "corruption", "strength", "label", "prediction"]
    if not structures:
        return statistics.no_rows(columns, {"split": "str", "corruption": "str"})
    parts = []
    for structure in structures:
        path = layout.CORRUPTIONS / f"{structure}.parquet"
        rows = statistics.read(path, columns)
        versions = rows["corruption"].where(
            rows["strength"] == 0, rows["corruption"] + ":" + rows["strength"].astype(str)
        )
        wanted = [f"{name}:{strength}" for name, strength in kinds]
        statistics.check_complete(rows.assign(attack=versions), path, "heldout", clean.index, clean.label, wanted)
        parts.append(rows.assign(structure=structure, correct=rows["label"] == rows["prediction"]))
    return pd.concat(parts, ignore_index=True)


def _history(path: Path) -> pd.DataFrame:
    try:
        history = pd.read_csv(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; `dvc repro` makes it") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and run `dvc repro`") from error
    absent = [name for name in HISTORY_COLUMNS if name not in history]
    if absent:
        raise InputError(f"{path} has no column {absent[0]}; delete it and run `dvc repro`")
    return history.groupby("epoch", as_index=False).mean() if "seed" in history else history


def _timings(params: Params) -> list[dict[str, Any]]:
    """The timings of stages that params.yaml still has, in the order in which they run."""
    names = [*params.structures, *_attacks(params)]
    order = ["prepare", "pretrain", "attack", "attack_unseen", "train", "evaluate", "whitebox", "corruptions", "detect"]
    found = []
    for path in sorted(layout.TIMINGS.glob("*.json")):
        try:
            timing = json.loads(path.read_text())
            stage, _, item = timing["stage"].partition("@")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a timing of a stage; delete it and run `dvc repro`") from error
        if not item or item in names:
            place = order.index(stage) if stage in order else len(order)
            found.append((place, names.index(item) if item else -1, path.name, timing))
    return [timing for *_, timing in sorted(found, key=lambda entry: entry[:3])]


# Numbers


@dataclass(frozen=True)
class Numbers:
    """The tables that others are made from, and every structure against every other (statistics.comparisons by split
    and attack), in the worst cases of white-box attacks too."""

    intensity: tables.Table
    mixture: tables.Table
    per_attack: tables.Table
    whitebox: tables.Table
    checks: tables.Table
    detection: list[tables.Table]  # of tables.detectors; none where no structure has a detector
    on_mixture: pd.DataFrame
    on_attacks: pd.DataFrame
    in_worst_cases: pd.DataFrame

    def of(self, split: str, structure: str, other: str) -> dict[str, Any]:
        """What the comparison of two structures on the mixture found."""
        return {str(key): value for key, value in self._found[(split, MIXTURE, structure, other)].items()}

    @cached_property
    def _found(self) -> dict[Any, dict[Any, Any]]:
        return self.on_mixture.to_dict("index")


def _numbers(results: Results) -> Numbers:
    params = results.params
    baseline = results.predictions[results.predictions["structure"] == BASELINE]
    facts = statistics.attack_facts(results.stored, baseline[baseline["attack"] == CLEAN])
    by = ["split", "attack"]
    on_mixture = statistics.comparisons(results.mixture.assign(attack=MIXTURE), results.structures, by)
    differences = on_mixture[[*tables.DIFFERENCE, "trainings"]].reset_index()
    differences = differences[differences["other"] == BASELINE].drop(columns=["attack", "other"])
    notes = [_paper_note(params, results.clean), *_seed_note(results)]
    test = results.predictions[results.predictions["split"] == "test"]
    intensity = tables.intensity(params, facts)
    worst_cases = robustness.worst_cases(params, results.whitebox)
    return Numbers(
        intensity,
        tables.mixture(
            params,
            statistics.accuracies(results.mixture, ["split", "structure"]),
            differences.set_index(["split", "structure"]),
            notes,
        ),
        tables.per_attack(params, statistics.accuracies(results.predictions, ["split", "structure", "attack"]), notes),
        robustness.table(params, robustness.accuracies(params, results.whitebox, worst_cases)),
        robustness.checks_table(params, robustness.checks(params, results.whitebox, test)),
        tables.detectors(params, intensity.tidy, results.scores, results.pairs) if len(results.scores) else [],
        on_mixture,
        statistics.comparisons(results.predictions, results.structures, by),
        robustness.comparisons(params, worst_cases),
    )


def _ablation_facts(params: Params, rows: dict[str, Row], clean: dict[str, store.Images]) -> pd.DataFrame:
    """What each row scores on a mixture with its own adversarial share and on one with mixture.adv_ratio.

    Index: split, row, mixture (own | fixed); columns: majority, detector_accuracy, detector_low, detector_high,
    detector_sd, auroc, accuracy, ci_low, ci_high, images, sd.
    """
    stored = _all_stored(params.model_copy(update={"unseen_attacks": {}}), clean)
    facts: list[dict[str, Any]] = []
    for name, row in rows.items():
        with layout.results_below(layout.ABLATION / name):
            predictions = _predictions(row_params(params, name, rows), ABLATED, clean)
        for kind, adv_ratio in (("own", row.adv_ratio), ("fixed", params.mixture.adv_ratio)):
            mixture = _mixture(params, adv_ratio, clean, predictions, stored)
            classified = statistics.accuracies(mixture, ["split"])
            found = (mixture["detector_score"] > 0.5) == mixture["adversarial"]
            detected = statistics.accuracies(mixture.assign(correct=found), ["split"]).drop(columns="images")
            detected.columns = pd.Index(tables.DETECTED)
            for split, part in mixture.groupby("split"):
                adversarial, score = part["adversarial"].to_numpy(bool), part["detector_score"].to_numpy(float)
                metrics = statistics.detector_metrics(adversarial, score)
                fact = {"split": split, "row": name, "mixture": kind, **detected.loc[split], **classified.loc[split]}
                facts.append(fact | {key: metrics[key] for key in ("majority", "auroc")})
    index = ["split", "row", "mixture"]
    columns = ["majority", *tables.DETECTED, "auroc", "accuracy", "ci_low", "ci_high", "images", "sd"]
    return pd.DataFrame(facts, columns=[*index, *columns]).set_index(index).astype(float)


def _paper_note(params: Params, clean: dict[str, store.Images]) -> str:
    source = escape.markdown(clean["train"].metadata["source"])
    note = (
        "The paper's figures are for CIFAR-10, a ResNet-34 and 150 epochs (arXiv 2204.11596v2); ours are for "
        f"{source} ({len(clean['train'])} training, {len(clean['test'])} test, {len(clean['heldout'])} held-out "
        f"images), {params.network.words}, "
        f"and {params.training.epochs} epochs."
    )
    if params.data.source != "cifar10":
        note += " On another data set the paper's figures are for orientation only."
    return note


def _seed_note(results: Results) -> list[str]:
    seeds = results.predictions.groupby("structure")["seed"].nunique()
    several = [f"{escape.markdown(str(name))} {count}" for name, count in seeds.items() if count > 1]
    if not several:
        return []
    return [
        f"Trained more than once: {', '.join(several)}. Figures are then means over the trainings, ± their standard "
        "deviation; an accuracy's interval in brackets counts each image once and does not contain that deviation."
    ]


def _detector_metrics(results: Results, structure: str, split: str) -> dict[str, float | None]:
    """On the mixture; the mean over the trainings."""
    rows = results.mixture
    rows = rows[(rows["structure"] == structure) & (rows["split"] == split)]
    found = [
        statistics.detector_metrics(part["adversarial"].to_numpy(bool), part["detector_score"].to_numpy(float))
        for _, part in rows.groupby("seed")
    ] or [statistics.detector_metrics(np.empty(0, bool), np.empty(0))]
    return {
        key: None if value is None else float(np.mean([metrics[key] for metrics in found]))
        for key, value in found[0].items()
    }


def _detector_accuracy(results: Results, structure: str, split: str) -> tuple[float, float, float, float]:
    """Of the detector's verdicts on the mixture: accuracy, ci_low, ci_high, sd; nan without images."""
    rows = results.mixture
    rows = rows[(rows["structure"] == structure) & (rows["split"] == split)]
    found = statistics.accuracies(
        rows.assign(correct=(rows["detector_score"] > 0.5) == rows["adversarial"]), ["structure"]
    )
    accuracy, low, high, sd = found[list(tables.ACCURACY)].to_numpy(float)[0] if len(found) else [math.nan] * 4
    return float(accuracy), float(low), float(high), float(sd)


def _summary(results: Results, numbers: Numbers) -> dict[str, Any]:
    clean = results.clean
    data = {"source": clean["train"].metadata["source"], "classes": len(results.classes)}
    data |= {split: len(images) for split, images in clean.items()}
    test, heldout = (
        _split_summary(results, numbers, split) | _detection_summary(numbers.detection, split)
        for split in EVALUATED_SPLITS
    )
    whitebox = robustness.summary(numbers.whitebox.tidy, numbers.checks.tidy)
    return {"data": data, **test, "whitebox": whitebox, "heldout": heldout}


def _detection_summary(detection: list[tables.Table], split: str) -> dict[str, Any]:
    """Each detector's figures by attack, and each structure's joint robust accuracy by attacker."""
    if not detection:
        return {}
    found, _, _, joint = (table.tidy[table.tidy["split"] == split].set_index("attack") for table in detection)
    columns = ["auroc", "tpr_05", "tpr_01"]
    return {
        "detection": {method: rows[columns].to_dict("index") for method, rows in found.groupby("method", sort=False)},
        "joint": {method: rows["joint"].to_dict() for method, rows in joint.groupby("method", sort=False)},
    }


def _split_summary(results: Results, numbers: Numbers, split: str) -> dict[str, Any]:
    facts, mixture, single = (
        table.tidy[table.tidy["split"] == split] for table in (numbers.intensity, numbers.mixture, numbers.per_attack)
    )
    rates = {
        timing["stage"].partition("@")[2]: timing.get("images_per_second")
        for timing in results.timings
        if timing["stage"].startswith(("attack@", "attack_unseen@"))
    }
    attacks = facts.set_index("attack")[
        ["success", "success_float", "success_rounded", "l2_median", "linf_max", "unchanged", "images"]
    ]
    detector = {name: _detector_metrics(results, name, split) for name in results.detectors}
    return {
        "mixture": mixture.set_index("structure")[["accuracy", "ci_low", "ci_high", "sd"]].to_dict("index"),
        "differences": {
            f"{later} minus {first}": numbers.of(split, later, first)
            for first, later in itertools.combinations(results.structures, 2)
            if len(results.clean[split])
        },
        "per_attack": {
            structure: rows.set_index("attack")["accuracy"].to_dict()
            for structure, rows in single.groupby("structure", sort=False)
        },
        "detector": {
            name: {key: metrics[key] for key in ("accuracy", "auroc", "tpr_at_fpr05")}
            for name, metrics in detector.items()
        },
        "attacks": {
            name: {**facts, "images_per_second": rates.get(str(name))}
            for name, facts in attacks.to_dict("index").items()
        },
    }


def _metrics(summary: dict[str, Any]) -> dict[str, Any]:
    """The few figures that `dvc exp show` shows, of the test images."""
    return {
        "mixture": {name: entry["accuracy"] for name, entry in summary["mixture"].items()},
        "whitebox": {name: entry["worst_case"] for name, entry in summary["whitebox"].items()},
        "detector": {
            name: {key: entry[key] for key in ("accuracy", "auroc")} for name, entry in summary["detector"].items()
        },
    }


def _json(path: Path, tree: dict[str, Any]) -> None:
    digits = 4 if path.name == "metrics.json" else 6
    path.write_text(json.dumps(_plain(tree, digits), indent=2, allow_nan=False) + "\n")


def _plain(value: Any, digits: int) -> Any:
    """JSON's own types: numbers rounded, null for what is not known."""
    if isinstance(value, dict):
        return {str(key): _plain(entry, digits) for key, entry in value.items()}
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), digits)
    return int(value) if isinstance(value, np.integer) else value


# Sections


def _sections(results: Results, numbers: Numbers, folder: Path) -> list[Section]:
    """The report, in the order in which it is read; figures are drawn into its `folder`. One more section is one more
    entry: its tables are saved, and its figures shown, without further ado."""
    reproduced, *beside = _paper_sections(results, numbers)
    return [
        _summary_section(results, numbers, folder),
        reproduced,
        _mixture_section(results, numbers),
        _attacks_section(results, numbers, folder),
        *beside,
        _whitebox_section(results, numbers, folder),
        _corruptions_section(results, folder),
        _opponents_section(results, numbers, folder),
        _failures_section(results, folder),
        _detector_section(results, numbers, folder),
        _training_section(results, folder),
        Section("How to read this", _reading()),
        Section("How it was made", _making(results)),
    ]


def _summary_section(results: Results, numbers: Numbers, folder: Path) -> Section:
    mixture = numbers.mixture.tidy
    drawn = []
    if mixture["images"].any():
        figures.mixture(folder, mixture)
        drawn = [Figure("mixture", "Accuracy on the mixture, with 95 % intervals.")]
    return Section("Summary", [_glance(results, numbers), *_opening(results, numbers), *drawn])


def _glance(results: Results, numbers: Numbers) -> tables.Table:
    """One row a structure: the few figures that one looks for first."""
    attacked_itself = robustness.worst(numbers.whitebox.tidy)
    rows = []
    for name in results.structures:
        row = {"structure": name}
        mixture = numbers.mixture.tidy.set_index(["structure", "split"]).loc[name]
        single = numbers.per_attack.tidy
        single = single[(single["structure"] == name) & (single["split"] == "test")].set_index("attack")
        cells = {"clean test images": single.loc[CLEAN]}
        cells |= {f"mixture, {tables.SPLIT_TITLES[split].lower()}": mixture.loc[split] for split in EVALUATED_SPLITS}
        row |= {title: tables.with_interval(*found[list(tables.ACCURACY)]) for title, found in cells.items()}
        attacked = single.drop(index=CLEAN)
        if attacked["accuracy"].notna().any():
            worst = attacked.nsmallest(1, "accuracy")
            row["weakest under"] = tables.attack_title(results.params, str(worst.index[0]))
            row["accuracy there"] = tables.with_interval(*worst[list(tables.ACCURACY)].to_numpy(float)[0])
        if name in attacked_itself.index:
            row["white-box, worst case"] = tables.with_interval(*attacked_itself.loc[name, list(tables.ACCURACY)])
        if name in results.detectors:
            row["detector's AUROC"] = tables.number(_detector_metrics(results, name, "test")["auroc"])
        rows.append(row)
    return tables.plain(
        "summary",
        f"Accuracy at a glance: white-box for {BASELINE}, transfer for the others; the worst case white-box for all.",
        pd.DataFrame(rows).fillna("-"),
        [tables.INTERVALS],
    )


def _opening(results: Results, numbers: Numbers) -> list[str]:
    params, clean, mixture = results.params, results.clean, numbers.mixture.tidy
    unseen = f", and {len(params.unseen_attacks)} that nobody trained on" if params.unseen_attacks else ""
    attacks, structures = ([escape.markdown(name) for name in each] for each in (params.attacks, params.trained))
    others = [escape.markdown(name) for name, structure in params.structures.items() if structure.online]
    online = f" ({', '.join(others)}: on attacks made on the fly instead)" if others else ""
    source = escape.markdown(clean["train"].metadata["source"])
    lines = [
        f"Data: {source}, {len(results.classes)} classes, {len(clean['train'])} training, "
        f"{len(clean['test'])} test and {len(clean['heldout'])} held-out images. Opponents: {', '.join(attacks)}"
        f"{unseen}. Each attacked every image once, on the pretrained net, and the results were stored; the "
        f"structures ({', '.join(structures) or 'none'}) were trained on them{online} for "
        f"{params.training.epochs} epochs and are compared with the pretrained net itself (`{BASELINE}`)."
    ]
    bullets = []
    for split in EVALUATED_SPLITS:
        rows = mixture[(mixture["split"] == split) & mixture["accuracy"].notna()]
        found = [
            f"{escape.markdown(row.structure)} {tables.with_interval(row.accuracy, row.ci_low, row.ci_high, row.sd)}"
            for row in tables.rows(rows)
        ]
        if found:
            title = tables.SPLIT_TITLES[split]
            bullets.append(f"- {title}, accuracy on a mixture of clean and attacked images: {', '.join(found)}.")
            bullets += [f"  - {line}" for line in _differences(results, numbers, split)]
    bullets += _aimed_at_themselves(numbers)
    if results.left_out:
        bullets.append(
            "- **Left out of this run**: "
            + "; ".join(f"{part} ({escape.markdown(why)})" for part, why in results.left_out.items())
            + "."
        )
    count = tables.trainings(numbers.on_mixture)
    notes = [f"{tables.differences_note(count)} {tables.chance_note(count)}"] if params.trained and bullets else []
    return [*lines, *(["\n".join(bullets)] if bullets else []), *notes]


def _aimed_at_themselves(numbers: Numbers) -> list[str]:
    """The white-box worst case in words, as who reads the summary alone would take the mixture's figures for it."""
    worst = robustness.worst(numbers.whitebox.tidy)
    if worst.empty:
        return []
    names = {name: escape.markdown(str(name)) for name in worst.index}
    found = [f"{names[name]} {tables.with_interval(*worst.loc[name, list(tables.ACCURACY)])}" for name in names]
    case = ("test", f"{robustness.WORST}, {robustness.ANY}")
    sides = numbers.in_worst_cases["side"]
    lower = [names[name] for name in names if sides.get((*case, name, BASELINE), 0) < 0]
    warning = ""
    if lower:
        scope = _scope(tables.trainings(numbers.in_worst_cases))
        warning = f"; {scope}lower than {BASELINE} beyond chance, whatever they gain above: {', '.join(lower)}"
    count = int(worst["images"].max())
    return [
        f"- Attackers who aim at each structure itself, worst case on {count} test images: {', '.join(found)}{warning}."
    ]


def _differences(results: Results, numbers: Numbers, split: str) -> list[str]:
    """Each structure against the baseline, each detector against the same opponents without one, and the sampler
    against other opponents."""
    structures = results.params.trained
    pairs = [(name, BASELINE) for name in structures]
    pairs += [
        (name, other)
        for name in results.detectors
        for other, entry in structures.items()
        if entry.detector == "none" and entry.opponents == structures[name].opponents
    ]
    plain = {name: entry.opponents for name, entry in structures.items() if entry.detector == "none"}
    pairs += [(name, other) for name in plain for other in plain if plain[name] == "sampler" != plain[other]]
    lines = []
    for name, other in pairs:
        found = numbers.of(split, name, other)
        verdict = f"{_scope(found['trainings'])}{'beyond chance' if found['side'] else 'not told apart'}"
        equivalent = ", within ±1 point" if found["equivalent"] else ""
        pair = f"{escape.markdown(name)} minus {escape.markdown(other)}"
        lines.append(f"{pair}: {_signed(found)}; {verdict}{equivalent}")
    return lines


def _signed(found: Mapping[Any, Any]) -> str:
    return tables.signed(*(found[name] for name in ("difference", "difference_low", "difference_high")))


def _scope(trainings: int) -> str:
    """What stands before a verdict that is of one training and of no other."""
    return "in this one training " if trainings == 1 else ""


def _paper_sections(results: Results, numbers: Numbers) -> list[Section]:
    """What was reproduced, in words, and, where there is anything to compare, the tables that the words are from."""
    params = results.params
    note = _paper_note(params, results.clean)
    beside = tables.beside_paper(params, numbers.mixture.tidy, numbers.per_attack.tidy, [tables.RESTORED])
    claims = tables.paper_claims(params, pd.concat([numbers.on_mixture, numbers.on_attacks]))
    shown = [table for table in (claims, beside) if len(table.tidy)]
    detector = [_paper_detector(results, name) for name in results.detectors if name == "ours"]
    verdicts = _verdicts(claims.tidy)
    title = "What was reproduced, and what was not"
    if len(claims.tidy) and tables.trainings(claims.tidy) == 1:
        title = "The paper's claims, in one training"
        verdicts.append(
            "Each structure was trained once, so nothing is reproduced or contradicted here: another training may "
            f"come out otherwise. {tables.chance_note(1)}"
        )
    texts = [" ".join(verdicts), " ".join([*_within(beside.tidy), *detector]), note]
    sections = [Section(title, [text for text in texts if text])]
    return [*sections, *([Section("The paper's tables beside ours", shown)] if shown else [])]


def _verdicts(claims: pd.DataFrame) -> list[str]:
    """What the run says of the paper's claims: each on the mixture in words, those of its Table 4 counted."""
    if claims.empty:
        return ["No two of the paper's structures were trained and measured here, so none of its claims was tried."]
    trainings = claims["trainings"]
    return [text for count in trainings.unique() for text in _verdicts_of(claims[trainings == count], int(count))]


def _verdicts_of(claims: pd.DataFrame, count: int) -> list[str]:
    """The same of claims that were tried with this number of trainings."""
    same, neither, opposite = words = tables.verdicts(count)
    scope, differs = _scope(count), "not the same on test and on held-out images"
    said: dict[str, list[str]] = {word: [] for word in (same, differs, neither, opposite)}
    on_mixture = claims[claims["attack"] == MIXTURE]
    for (structure, other), rows in on_mixture.groupby(["structure", "other"], sort=False):
        verdict = rows["verdict"].iloc[0] if rows["verdict"].nunique() == 1 else differs
        here = " and ".join(
            f"{_signed(row)} on {tables.SPLIT_TITLES[row['split']].lower()}"
            + (f", {row['verdict']}" if verdict == differs else "")
            + (", within ±1 point" if row["equivalent"] else "")
            for row in rows.to_dict("records")
        )
        paper = rows["paper"].iloc[0]
        claim = f"that {structure} {'beats' if paper > 0 else 'falls behind'} {other} on the mixture"
        said[verdict].append(f"{claim} (paper {tables.signed(paper)}; here {here})")
    sentences = [f"{_capital(f'{scope}{verdict}')}: {'; '.join(texts)}." for verdict, texts in said.items() if texts]
    single = claims[(claims["attack"] != MIXTURE) & (claims["split"] == claims["split"].iloc[0])]
    if len(single):
        counts = single["verdict"].value_counts()
        parts = ", ".join(f"{counts.get(word, 0)} {word}" for word in words)
        sentences.append(
            f"Of the {len(single)} differences that the paper's Table 4 states for clean images and single attacks, "
            f"{scope}on {tables.SPLIT_TITLES[single['split'].iloc[0]].lower()}: {parts}."
        )
    return sentences


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _within(beside: pd.DataFrame) -> list[str]:
    """How many of the paper's accuracies lie within our intervals."""
    sentences = []
    for split, rows in beside.groupby("split", sort=False):
        inside = rows["within"]
        above = int((rows["minus_paper"] > 0)[~inside].sum())
        sentences.append(
            f"On {tables.SPLIT_TITLES[str(split)].lower()}, our interval over images contains {int(inside.sum())} of "
            f"the {len(rows)} accuracies in the paper's Tables 2 and 4; of the others, ours is above {above} and below "
            f"{len(rows) - int(inside.sum()) - above}."
        )
    return sentences


def _paper_detector(results: Results, structure: str) -> str:
    published = _published_detector(results.params)
    trainings = results.mixture.loc[results.mixture["structure"] == structure, "seed"].nunique()
    verdicts = []
    for split in EVALUATED_SPLITS:
        majority = _detector_metrics(results, structure, split)["majority"]
        found = _detector_accuracy(results, structure, split)
        if majority is not None:
            low, _ = statistics.over_trainings(*found, trainings)
            verdicts.append(
                f"{tables.with_interval(*found)} on {tables.SPLIT_TITLES[split].lower()}, which "
                f"{'beats' if low > majority else 'does not beat'} always giving the commoner answer "
                f"({tables.number(majority)}) beyond chance"
            )
    paper = f" (paper {published:.4f})" if published is not None else ""
    accuracy = _capital(f"{_scope(trainings)}the detector's accuracy on the mixture{paper}")
    return f"{accuracy} is {' and '.join(verdicts)}." if verdicts else ""


def _published_detector(params: Params) -> float | None:
    """The paper's accuracy of a detector with these settings, where its Table 3 has one."""
    paper = pd.read_csv(tables.PAPER / "table3_ablation.csv")
    settings, ratio = params.detector, params.mixture.adv_ratio
    same = (paper["input"] == settings.input) & (paper["layers"] == settings.layers) & (paper["adv_ratio"] == ratio)
    published = paper.loc[same, "detector_accuracy"]
    return float(published.iloc[0]) if len(published) else None


def _mixture_section(results: Results, numbers: Numbers) -> Section:
    compared = tables.mcnemar(results.params, "table2_mcnemar", numbers.on_mixture)
    return Section("Accuracy on the mixture", [numbers.mixture, *compared])


def _attacks_section(results: Results, numbers: Numbers, folder: Path) -> Section:
    single = numbers.per_attack.tidy
    test = single[single["split"] == "test"]
    test[["attack", "structure", "accuracy"]].to_csv(
        folder / "figures" / "accuracy_by_attack.csv", index=False, float_format="%.6g", lineterminator="\n"
    )
    parts: list[str | tables.Table | Figure] = [numbers.per_attack]
    parts += tables.mcnemar(results.params, "table4_mcnemar", numbers.on_attacks)
    if test["images"].any():
        figures.accuracy_by_attack(folder, test, _titles(results.params))
        caption = f"Accuracy on the test images by attack, with 95 % intervals; white-box for {BASELINE}, "
        parts.append(Figure("accuracy_by_attack", caption + "transfer otherwise."))
    return Section("Accuracy under each attack", parts)


def _titles(params: Params) -> dict[str, str]:
    """What stands in figures for clean images and each attack."""
    return {name: tables.attack_title(params, name).replace(" ", "\n") for name in (CLEAN, *_attacks(params))}


def _opponents_section(results: Results, numbers: Numbers, folder: Path) -> Section:
    facts = numbers.intensity.tidy
    test = facts[facts["split"] == "test"]
    if not test["images"].any():
        return Section("The attacks", [numbers.intensity])
    titles = _titles(results.params)
    figures.success(folder, test, {name: titles[name] for name in _attacks(results.params)})
    success = "How often each attack fools the pretrained net, of the test images that it gets right when clean."
    return Section("The attacks", [_gallery(results, folder, titles), numbers.intensity, Figure("success", success)])


def _gallery(results: Results, folder: Path, titles: dict[str, str]) -> Gallery:
    """One test image a class: the first that the pretrained net classifies correctly, or else the first."""
    predictions = results.predictions[results.predictions["split"] == "test"]
    clean_rows = predictions[(predictions["structure"] == BASELINE) & (predictions["attack"] == CLEAN)]
    picked = clean_rows.drop_duplicates("index").sort_values(
        ["label", "correct", "index"], ascending=[True, False, True]
    )
    picked = picked.drop_duplicates("label").head(GALLERY_ROWS)
    clean = store.read(layout.CLEAN / "test.parquet", ("image",))
    place = pd.Series(np.arange(len(clean)), index=clean.index)
    rows = place.loc[picked["index"]].to_numpy()

    def example(name: str, images: np.ndarray, prediction: np.ndarray) -> figures.Example:
        return figures.Example(titles[name], images, [results.classes[found] for found in prediction])

    stored = {
        name: store.read(_store_path(results.params, "test", name), ("image", "prediction", "l2", "linf"))[rows]
        for name in _attacks(results.params)
    }
    attacked = [example(name, images.image, images.columns["prediction"]) for name, images in stored.items()]
    names = [results.classes[label] for label in picked["label"]]
    shown = example(CLEAN, clean.image[rows], picked["prediction"].to_numpy())
    figures.gallery(folder, names, shown, attacked)
    pixels = int(np.prod(clean.metadata["shape"])) * (1 + 2 * len(stored))
    return Gallery(
        "gallery",
        "A test image of each class, clean and under each attack, each with what the attack changed.",
        attacks=[tables.attack_title(results.params, name) for name in stored],
        images=_gallery_images(results, clean[rows][: max(1, GALLERY_BYTES // pixels)], stored, predictions),
    )


def _gallery_images(
    results: Results, clean: store.Images, stored: dict[str, store.Images], predictions: pd.DataFrame
) -> list[dict[str, Any]]:
    """What `Gallery` holds of each image; of several trainings, what the first says."""
    rows = predictions[predictions["index"].isin(clean.index)].drop_duplicates(["structure", "attack", "index"])
    answers = {
        (row.structure, row.attack, row.Index): {
            "taken": results.classes[row.prediction],
            "text": f"{page.isolated(results.classes[row.prediction])}, {row.confidence:.0%}",
        }
        for row in tables.rows(rows.set_axis(rows["index"]).drop(columns="index"))
    }
    changes = {name: images.image[: len(clean)].astype(float) - clean.image for name, images in stored.items()}
    factors = {name: figures.magnification(change / 255) for name, change in changes.items()}

    def said(attack: str, index: int) -> dict[str, dict[str, str]]:
        return {name: answers[(name, attack, index)] for name in results.structures}

    return [
        {
            "label": results.classes[clean.label[row]],
            "clean": page.png(clean.image[row]),
            "said": said(CLEAN, index),
            "attacked": [
                {
                    "image": page.png(images.image[row]),
                    "change": page.png(127.5 + factors[name] * changes[name][row]),
                    "note": f"×{factors[name]}, grey is none; L2 {images.columns['l2'][row]:.2f}, "
                    f"largest {255 * images.columns['linf'][row]:.0f}/255",
                    "said": said(name, index),
                }
                for name, images in stored.items()
            ],
        }
        for row, index in enumerate(clean.index)
    ]


def _whitebox_section(results: Results, numbers: Numbers, folder: Path) -> Section:
    if "whitebox" in results.left_out:
        return Section(robustness.TITLE, [_why_left_out(results, "whitebox")])
    return robustness.section(
        results.params, results.whitebox, numbers.whitebox, numbers.in_worst_cases, numbers.checks, folder
    )


def _corruptions_section(results: Results, folder: Path) -> Section:
    title, rows = "Common corruptions", results.corruptions
    if "corruptions" in results.left_out:
        return Section(title, [_why_left_out(results, "corruptions")])
    each = statistics.accuracies(rows, ["structure", "corruption", "strength"])
    both = pd.concat([rows, rows[rows["strength"] > 0].assign(corruption="all")])
    table = tables.corruptions(results.params, each, statistics.accuracies(both, ["structure", "corruption"]))
    parts: list[str | tables.Table | Figure] = [table]
    if table.tidy["accuracy"].notna().any():
        figures.corruptions(folder, table.tidy)
        caption = "Accuracy on the held-out images by strength of each corruption, with 95 % intervals."
        parts.append(Figure("corruptions", caption))
    return Section(title, parts)


def _why_left_out(results: Results, part: str) -> str:
    return f"Left out of this run: {escape.markdown(results.left_out[part])}."


def _failures_section(results: Results, folder: Path) -> Section:
    test = results.mixture[results.mixture["split"] == "test"]
    title = "Where each model fails"
    if test.empty:
        return Section(title, ["There are no test images."])
    count = len(results.classes)
    matrices = {
        name: np.bincount(
            test.loc[test["structure"] == name, "label"] * count + test.loc[test["structure"] == name, "prediction"],
            minlength=count**2,
        ).reshape(count, count)
        for name in results.structures
    }
    figures.confusion(folder, matrices, results.classes)
    several = " All trainings are counted." if len(results.params.seeds) > 1 else ""
    parts: list[str | tables.Table | Figure] = [
        Figure(
            "confusion",
            "The mixture of test images: how many of each class (rows) are taken for which (columns); the stronger "
            f"the colour, the larger the share of the class.{several}",
        )
    ]
    wrong = test[~test["correct"]].sort_values(["confidence", "index"], ascending=[False, True])
    wrong = wrong.drop_duplicates(["structure", "index"]).groupby("structure", sort=False).head(FAILURES)
    if wrong.empty:
        return Section(title, [*parts, "No structure misclassifies any of them."])
    shown: dict[str, tuple[np.ndarray, list[str]]] = {}
    drawn: dict[str, tuple[np.ndarray, list[str]]] = {}
    for name in results.structures:
        rows = wrong[wrong["structure"] == name]
        if len(rows):
            shown[name] = (_pictures(results, rows), _answers(results, rows, page.isolated))
            drawn[name] = (shown[name][0], _answers(results, rows, short))
    figures.failures(folder, drawn)
    parts.append(
        Thumbnails(
            "failures",
            "The test images of the mixture that each model gets wrong with most confidence: class, what it is taken "
            "for, attack, confidence.",
            rows={
                name: [(page.png(image), text) for image, text in zip(images, texts, strict=True)]
                for name, (images, texts) in shown.items()
            },
        )
    )
    return Section(title, parts)


def _answers(results: Results, rows: pd.DataFrame, text: Callable[[str], str]) -> list[str]:
    """Of each prediction the class, the answer and the attack, whose names `text` makes fit to be shown."""
    classes = [text(name) for name in results.classes]
    return [
        f"{classes[row.label]}, taken for {classes[row.prediction]}\n{text(row.attack)}, {row.confidence:.0%}"
        for row in tables.rows(rows)
    ]


def _pictures(results: Results, rows: pd.DataFrame) -> np.ndarray:
    """The test images (R, H, W, 3) that these predictions are of, in levels, uint8."""
    found: dict[int, np.ndarray] = {}
    for attack, part in rows.groupby("attack"):
        path = layout.CLEAN / "test.parquet" if attack == CLEAN else _store_path(results.params, "test", str(attack))
        images = store.read(path, ("image",))
        place = pd.Series(np.arange(len(images)), index=images.index)
        picked = images.image[place.loc[part["index"]].to_numpy()]
        found |= dict(zip(part["index"], np.clip(np.rint(picked), 0, 255).astype(np.uint8), strict=True))
    return np.stack([found[index] for index in rows["index"]])


def _detector_section(results: Results, numbers: Numbers, folder: Path) -> Section:
    if not results.detectors:
        return Section("The detector", ["No structure here has a detector."])
    settings, published = results.params.detector, _published_detector(results.params)
    rows = []
    for name in results.detectors:
        for split in EVALUATED_SPLITS:
            metrics = _detector_metrics(results, name, split)
            row = {"structure": name, "images": tables.SPLIT_TITLES[split].lower()}
            row |= {
                "accuracy": tables.with_interval(*_detector_accuracy(results, name, split)),
                "majority": tables.number(metrics["majority"]),
                "AUROC": tables.number(metrics["auroc"]),
                "found at 5 % accused": tables.number(metrics["tpr_at_fpr05"]),
            }
            rows.append(row | ({} if published is None else {"paper's accuracy": f"{published:.4f}"}))
    note = (
        "An image that its attack left unchanged counts as clean. *Majority* is what always giving the commoner answer "
        "would score; *found at 5 % accused* is the share of adversarial images found when at most 5 % of the clean "
        "ones are accused. "
    )
    parts: list[str | tables.Table | Figure] = [
        f"The detector ({settings.input} input, {settings.layers} layers) looks at the pretrained net's feature maps "
        "and says whether the image was attacked. Below: how it does on the mixture, as in the paper; on each attack "
        "alone, beside two known detectors; on images that something harmless has changed; and against an attacker "
        "who knows of it, which is what tells its worth as a defence.",
        *([_why_left_out(results, "detect")] if "detect" in results.left_out else []),
        *(
            _detector_verdicts(results, numbers.detection[0].tidy, numbers.detection[-1].tidy)
            if numbers.detection
            else []
        ),
        tables.plain("detector", "The detector on the mixture.", pd.DataFrame(rows), [note + tables.INTERVALS]),
    ]
    lines = {}
    for name in results.detectors:
        found = results.mixture[(results.mixture["structure"] == name) & (results.mixture["split"] == "test")]
        if found["adversarial"].nunique() == 2:
            adversarial, score = found["adversarial"].to_numpy(bool), found["detector_score"].to_numpy(float)
            auroc = statistics.detector_metrics(adversarial, score)["auroc"]
            lines[name] = (*statistics.roc(adversarial, score), tables.number(auroc))
    if lines:
        figures.detector_roc(folder, lines)
        several = ", all trainings together" if len(results.params.seeds) > 1 else ""
        caption = f"The mixture of test images: what the detector finds against what it wrongly accuses{several}."
        parts.append(Figure("detector_roc", caption))
    return Section("The detector", [*parts, *_detector_on_attacks(results, numbers, folder)])


def _detector_on_attacks(results: Results, numbers: Numbers, folder: Path) -> list[str | tables.Table | Figure]:
    """Each attack alone, pairs, benign changes and who aims at the detector; nothing where that was left out."""
    if not numbers.detection:
        return []
    on_attacks, on_pairs, on_benign, aimed = numbers.detection
    parts: list[str | tables.Table | Figure] = [on_attacks]
    titles = _titles(results.params)
    test = results.pairs[results.pairs["split"] == "test"]
    panels = {
        titles.get(str(attack), str(attack)): {
            tables.METHOD_TITLES.get(str(method), str(method)): statistics.roc_of_pairs(rows)
            for method, rows in of_attack.groupby("method", sort=False)
        }
        for attack, of_attack in test.groupby("attack", sort=False)
    }
    if panels:
        figures.detector_roc_by_attack(folder, panels)
        caption = "Each attack alone, on the test images that it changed: what detectors find against what they accuse."
        parts.append(Figure("detector_roc_by_attack", caption))
    return [*parts, on_pairs, on_benign, aimed]


def _detector_verdicts(results: Results, found: pd.DataFrame, aimed: pd.DataFrame) -> list[str]:
    """Of each detector, on test images, its area beside the known ones', and what an attacker leaves of it.

    found, aimed: the tidy frames of the first and the last of tables.detectors.
    """
    every = found[(found["split"] == "test") & (found["attack"] == statistics.ALL)].set_index("method")["auroc"]
    joint = aimed[aimed["split"] == "test"].set_index(["method", "attack"])["joint"]
    known = " and ".join(f"{title} {tables.number(every[name])}" for name, title in tables.METHOD_TITLES.items())
    return [
        f"On test images, the detector of {escape.markdown(name)} has an AUROC of {tables.number(every[name])} over "
        f"{statistics.ALL} ({known}). Of the images attacked by one who sees the classifier alone, a share of "
        f"{tables.number(joint[(name, 'unaware')])} is still classified right or accused; by one who sees the "
        f"detector too, {tables.number(joint[(name, 'adaptive')])}."
        for name in results.detectors
        if not math.isnan(every[name])
    ]


def _training_section(results: Results, folder: Path) -> Section:
    figures.curves(folder, results.histories)
    seeds = len(results.params.seeds)
    caption = "Training, by epoch" + (f"; of the structures the mean of {seeds} seeds." if seeds > 1 else ".")
    return Section("Training", [Figure("curves", caption)])


def _reading() -> list[str]:
    return [
        "- *Stored*: each attack ran once over each image, and the image it made is kept, rounded to 8 bits and no "
        "further. All structures face the very same images, so they can be compared image by image.\n"
        "- *White-box* and *transfer*: the attacks could see the pretrained net and nothing else. Its figures are "
        "those of a net whose attacker knows everything about it; the other structures only show how well the images "
        "carry over to a net that the attacker has never seen. That is closer to data augmentation than to a worst "
        "case: accuracy against an attacker who aims at the defended model can be expected to be far lower. The "
        "section White-box measures that, and the section on the detector one who aims at both; all other figures show "
        "transfer.\n"
        "- *Test* images are carved from the data set's training images, as in the paper; *held-out* images are its "
        "official test images where it has such, and carved likewise where it has not. Neither were used to choose "
        "anything.",
    ]


def _making(results: Results) -> list[str | tables.Table]:
    params = results.params
    parts: list[str | tables.Table] = ["Parameters (`params.yaml`):"]
    shown = {
        "seed": params.seed,
        "seeds": params.seeds,
        "network": params.network,
        "training": params.training,
        "sampler": params.sampler,
    }
    used = {structure.opponents for structure in params.structures.values()}
    shown |= {name: getattr(params, name) for name in ("fixed", "online_fgsm", "online_pgd") if name in used}
    if results.detectors:
        shown |= {"detector": params.detector, "detection": params.detection}
    shown |= {"structures": params.structures, "mixture": params.mixture, "whitebox": params.whitebox}
    parts.append("\n".join(f"- {name}: {escape.markdown(_words(value))}" for name, value in shown.items()))
    parts.append(f"Classes, by the number of their output: {escape.markdown(outputs(results.classes))}.")
    if not results.timings:
        return parts
    machines = {f"{timing.get('hardware', '?')}, torch {timing.get('torch', '?')}" for timing in results.timings}
    columns = {"stage": "stage", "images": "images", "seconds": "seconds", "images_per_second": "images/s"}
    columns |= {"device": "device", "precision": "precision"}
    rows = [{title: str(timing.get(key, "-")) for key, title in columns.items()} for timing in results.timings]
    total = sum(float(timing.get("seconds", 0)) for timing in results.timings)
    caption = f"The time of each stage; {total:.0f} s in all."
    hardware = escape.markdown("; ".join(sorted(machines)))
    return [*parts, f"Hardware: {hardware}.", tables.plain("timings", caption, pd.DataFrame(rows))]


def _words(value: Any) -> str:
    """A section of the parameters in one line."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if not isinstance(value, dict):
        return str(value)
    inner = {key: f"({_words(entry)})" if isinstance(entry, dict) else _words(entry) for key, entry in value.items()}
    return ", ".join(f"{key} {text}" for key, text in inner.items()) or "none"
