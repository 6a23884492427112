"""The report: reads what the other stages left in files, asks no model anything, and writes reports/."""

import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sparring import figures, files, statistics, store, tables
from sparring.params import ABLATED, BASELINE, CLEAN, EVALUATED_SPLITS, InputError, Params, Row, row_params

PREDICTION_COLUMNS = ["index", "split", "seed", "attack", "label", "prediction", "detector_score"]
HISTORY_COLUMNS = ["epoch", "loss", "accuracy", "validation_accuracy"]
GALLERY_ROWS = 10


@dataclass(frozen=True)
class Results:
    """All that the tables and figures are made from; the frames are those that `statistics` describes."""

    params: Params
    clean: dict[str, store.Images]  # by split, without pixels
    predictions: pd.DataFrame
    stored: pd.DataFrame
    mixture: pd.DataFrame  # the predictions that the draw picks, with `adversarial`
    histories: dict[str, pd.DataFrame]
    timings: list[dict[str, Any]]

    @property
    def structures(self) -> list[str]:
        return [BASELINE, *self.params.structures]

    @property
    def detectors(self) -> list[str]:
        return [name for name, structure in self.params.structures.items() if structure.detector != "none"]

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.clean["train"].metadata["classes"]]


def render(params: Params) -> None:
    """Write reports/ from the stored predictions, attacks, histories and timings, and print one line.

    Raises InputError where a file, or a part of it, is missing or does not fit the clean images. The old reports stay
    as they are until all new ones are made.
    """
    start = time.perf_counter()
    results = _read(params)
    temporary = Path(f".{files.REPORTS}.{os.getpid()}.tmp")
    try:
        (temporary / "figures").mkdir(parents=True)
        made = _tables(results)
        for table in made:
            tables.save(table, temporary / "tables")
        drawn = _figures(results, made[1].tidy, made[2].tidy, temporary / "figures")
        summary = _summary(results, made)
        _json(temporary / "summary.json", summary)
        _json(temporary / "metrics.json", _metrics(summary))
        (temporary / "report.md").write_text(_page(results, made, drawn), encoding="utf-8", newline="\n")
        _publish(temporary, files.REPORTS)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"report: {len(made)} tables, {len(drawn)} figures in {time.perf_counter() - start:.1f} s", flush=True)


def render_ablation(params: Params, rows: dict[str, Row]) -> None:
    """Write Table 3, detector input × adversarial share × layers, from the rows' stored predictions.

    rows: by name, as in ablation/params.yaml.  Raises InputError as `render` does.
    """
    clean = _clean()
    facts = _ablation_facts(params, rows, clean)
    table = tables.ablation(params, rows, facts, [_paper_note(params, clean)])
    temporary = files.ABLATION_REPORTS.with_name(f".{files.ABLATION_REPORTS.name}.{os.getpid()}.tmp")
    try:
        tables.save(table, temporary)
        _publish(temporary, files.ABLATION_REPORTS)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"table 3: {len(rows)} rows", flush=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Let the new files take the place of the old; what else lies in the folder stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for new in sorted(temporary.iterdir()):
        old = folder / new.name
        if new.is_dir() and old.exists():
            old.rename(temporary / f"old-{new.name}")
        new.replace(old)


# Reading


def _read(params: Params) -> Results:
    clean = _clean()
    stored = _all_stored(params, clean)
    predictions = pd.concat(
        [_predictions(params, structure, clean) for structure in (BASELINE, *params.structures)], ignore_index=True
    )
    return Results(
        params,
        clean,
        predictions,
        stored,
        _mixture(params, params.mixture.adv_ratio, clean, predictions, stored),
        {name: _history(files.HISTORY / f"{name}.csv") for name in ("pretrained", *params.structures)},
        _timings(params),
    )


def _clean() -> dict[str, store.Images]:
    return {split: store.read(files.CLEAN / f"{split}.parquet", ()) for split in ("train", *EVALUATED_SPLITS)}


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
    folder = files.ADVERSARIAL if attack in params.attacks else files.UNSEEN
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
    path = files.PREDICTIONS / f"{structure}.parquet"
    try:
        rows = pd.read_parquet(path, columns=PREDICTION_COLUMNS)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; `dvc repro` makes it") from error
    except (pa.ArrowException, ValueError, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read ({message}); delete it and run `dvc repro`") from error
    rows = rows[rows["split"].isin(EVALUATED_SPLITS) & rows["attack"].isin([CLEAN, *_attacks(params)])]
    for split in EVALUATED_SPLITS:
        statistics.check_complete(rows, path, split, clean[split].index, clean[split].label, _attacks(params))
    has_detector = structure in params.structures and params.structures[structure].detector != "none"
    if has_detector and rows["detector_score"].isna().any():
        raise InputError(f"{path} has rows without detector_score, but {structure} has a detector; run `dvc repro`")
    return rows.assign(structure=structure, correct=rows["label"] == rows["prediction"])


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
    names = [BASELINE, *params.structures, *_attacks(params)]
    order = ["prepare", "pretrain", "attack", "attack_unseen", "train", "evaluate"]
    found = []
    for path in sorted(files.TIMINGS.glob("*.json")):
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


def _tables(results: Results) -> list[tables.Table]:
    params = results.params
    baseline = results.predictions[results.predictions["structure"] == BASELINE]
    facts = statistics.attack_facts(results.stored, baseline[baseline["attack"] == CLEAN])
    differences = {
        (split, structure): statistics.paired_difference(
            results.mixture[results.mixture["split"] == split], structure, BASELINE
        )
        for split in EVALUATED_SPLITS
        for structure in params.structures
    }
    difference_frame = pd.DataFrame.from_dict(
        differences, orient="index", columns=["difference", "difference_low", "difference_high"], dtype=float
    )
    difference_frame.index = pd.MultiIndex.from_tuples(list(differences), names=["split", "structure"])
    notes = [_paper_note(params, results.clean), *_seed_note(results)]
    return [
        tables.intensity(params, facts),
        tables.mixture(params, statistics.accuracies(results.mixture, ["split", "structure"]), difference_frame, notes),
        tables.per_attack(params, statistics.accuracies(results.predictions, ["split", "structure", "attack"]), notes),
    ]


def _ablation_facts(params: Params, rows: dict[str, Row], clean: dict[str, store.Images]) -> pd.DataFrame:
    """What each row scores on a mixture with its own adversarial share and on one with mixture.adv_ratio.

    Index: split, row, mixture (own | fixed); columns: majority, detector_accuracy, detector_low, detector_high, auroc,
    accuracy, ci_low, ci_high, images.
    """
    stored = _all_stored(params.model_copy(update={"unseen_attacks": {}}), clean)
    facts: list[dict[str, Any]] = []
    for name, row in rows.items():
        with files.results_below(files.ABLATION / name):
            predictions = _predictions(row_params(params, name, rows), ABLATED, clean)
        for kind, adv_ratio in (("own", row.adv_ratio), ("fixed", params.mixture.adv_ratio)):
            mixture = _mixture(params, adv_ratio, clean, predictions, stored)
            classified = statistics.accuracies(mixture, ["split"])
            found = (mixture["detector_score"] > 0.5) == mixture["adversarial"]
            detected = statistics.accuracies(mixture.assign(correct=found), ["split"]).drop(columns="images")
            detected.columns = pd.Index(["detector_accuracy", "detector_low", "detector_high"])
            for split, part in mixture.groupby("split"):
                adversarial, score = part["adversarial"].to_numpy(bool), part["detector_score"].to_numpy(float)
                metrics = statistics.detector_metrics(adversarial, score)
                fact = {"split": split, "row": name, "mixture": kind, **detected.loc[split], **classified.loc[split]}
                facts.append(fact | {key: metrics[key] for key in ("majority", "auroc")})
    index = ["split", "row", "mixture"]
    columns = ["majority", "detector_accuracy", "detector_low", "detector_high", "auroc"]
    columns += ["accuracy", "ci_low", "ci_high", "images"]
    return pd.DataFrame(facts, columns=[*index, *columns]).set_index(index).astype(float)


def _paper_note(params: Params, clean: dict[str, store.Images]) -> str:
    source = clean["train"].metadata["source"]
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
    several = [f"{name} {count}" for name, count in seeds.items() if count > 1]
    return [f"Trained more than once, with the runs pooled: {', '.join(several)}."] if several else []


def _detector_metrics(results: Results, structure: str, split: str) -> dict[str, float | None]:
    rows = results.mixture
    rows = rows[(rows["structure"] == structure) & (rows["split"] == split)]
    return statistics.detector_metrics(rows["adversarial"].to_numpy(bool), rows["detector_score"].to_numpy(float))


def _summary(results: Results, made: list[tables.Table]) -> dict[str, Any]:
    clean = results.clean
    data = {"source": clean["train"].metadata["source"], "classes": len(results.classes)}
    data |= {split: len(images) for split, images in clean.items()}
    return {"data": data, **_split_summary(results, made, "test"), "heldout": _split_summary(results, made, "heldout")}


def _split_summary(results: Results, made: list[tables.Table], split: str) -> dict[str, Any]:
    facts, mixture, single = (table.tidy[table.tidy["split"] == split] for table in made)
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
        "mixture": mixture.set_index("structure")[["accuracy", "ci_low", "ci_high"]].to_dict("index"),
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


# Figures


def _figures(results: Results, mixture: pd.DataFrame, single: pd.DataFrame, folder: Path) -> dict[str, str]:
    """Draw all figures that there are images for; returns file name → caption, in the report's order."""
    params = results.params
    titles = {name: tables.attack_title(params, name) for name in (CLEAN, *_attacks(params))}
    test = single[single["split"] == "test"]
    drawn = {}
    if test["images"].any():
        figures.mixture(folder / "mixture.png", mixture)
        drawn["mixture.png"] = "Accuracy on the mixture, with 95 % intervals."
        wrapped = {name: title.replace(" ", "\n") for name, title in titles.items()}
        figures.accuracy_by_attack(folder / "accuracy_by_attack.png", test, wrapped)
        drawn["accuracy_by_attack.png"] = (
            f"Accuracy on the test images by attack, with 95 % intervals; white-box for {BASELINE}, transfer otherwise."
        )
        _gallery(results, folder / "gallery.png", titles)
        drawn["gallery.png"] = (
            "A test image of each class, clean and under each attack, each with what the attack changed."
        )
    test[["attack", "structure", "accuracy"]].to_csv(
        folder / "accuracy_by_attack.csv", index=False, float_format="%.6g", lineterminator="\n"
    )
    lines = {}
    for name in results.detectors:
        rows = results.mixture[(results.mixture["structure"] == name) & (results.mixture["split"] == "test")]
        if rows["adversarial"].nunique() == 2:
            auroc = tables.number(_detector_metrics(results, name, "test")["auroc"])
            adversarial, score = rows["adversarial"].to_numpy(bool), rows["detector_score"].to_numpy(float)
            lines[f"{name} (area {auroc})"] = statistics.roc(adversarial, score)
    if lines:
        figures.detector_roc(folder / "detector_roc.png", lines)
        drawn["detector_roc.png"] = "What the detector finds against what it wrongly accuses."
    figures.curves(folder / "curves.png", results.histories)
    drawn["curves.png"] = "Training, by epoch" + (
        f"; of the structures the mean of {len(params.seeds)} seeds." if len(params.seeds) > 1 else "."
    )
    return drawn


def _gallery(results: Results, path: Path, titles: dict[str, str]) -> None:
    """One test image a class: the first that the pretrained net classifies correctly, or else the first."""
    predictions = results.predictions
    clean_rows = predictions[
        (predictions["structure"] == BASELINE) & (predictions["split"] == "test") & (predictions["attack"] == CLEAN)
    ].drop_duplicates("index")
    picked = clean_rows.sort_values(["label", "correct", "index"], ascending=[True, False, True])
    picked = picked.drop_duplicates("label").head(GALLERY_ROWS)
    clean = store.read(files.CLEAN / "test.parquet", ("image",))
    place = pd.Series(np.arange(len(clean)), index=clean.index)
    rows = place.loc[picked["index"]].to_numpy()

    def example(name: str, images: np.ndarray, prediction: np.ndarray) -> figures.Example:
        return figures.Example(
            titles[name].replace(" ", "\n"), images, [results.classes[found] for found in prediction]
        )

    attacked = []
    for name in _attacks(results.params):
        images = store.read(_store_path(results.params, "test", name), ("image", "prediction"))[rows]
        attacked.append(example(name, images.image, images.columns["prediction"]))
    names = [results.classes[label] for label in picked["label"]]
    figures.gallery(path, names, example(CLEAN, clean.image[rows], picked["prediction"].to_numpy()), attacked)


# The page


def _page(results: Results, made: list[tables.Table], drawn: dict[str, str]) -> str:
    table1, table2, table4 = made

    def picture(name: str) -> list[str]:
        return [f"![{drawn[name]}](figures/{name})"] if name in drawn else []

    parts = [
        "# What the stored opponents did, and what training on them changed",
        *_opening(results, table2.tidy),
        "## Accuracy on the mixture",
        tables.markdown(table2),
        *picture("mixture.png"),
        "## Accuracy under each attack",
        tables.markdown(table4),
        *picture("accuracy_by_attack.png"),
        "## The attacks",
        tables.markdown(table1),
        *picture("gallery.png"),
        "## The detector",
        *_detector_part(results),
        *picture("detector_roc.png"),
        "## Training",
        *picture("curves.png"),
        "## How to read this",
        *_reading(),
        "## How it was made",
        *_making(results),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _opening(results: Results, mixture: pd.DataFrame) -> list[str]:
    params, clean = results.params, results.clean
    unseen = f", and {len(params.unseen_attacks)} that nobody trained on" if params.unseen_attacks else ""
    others = [name for name, structure in params.structures.items() if structure.online]
    online = f" ({', '.join(others)}: on attacks made on the fly instead)" if others else ""
    lines = [
        f"Data: {clean['train'].metadata['source']}, {len(results.classes)} classes, {len(clean['train'])} training, "
        f"{len(clean['test'])} test and {len(clean['heldout'])} held-out images. Opponents: {', '.join(params.attacks)}"
        f"{unseen}. Each attacked every image once, on the pretrained net, and the results were stored; the "
        f"structures ({', '.join(params.structures) or 'none'}) were trained on them{online} for "
        f"{params.training.epochs} epochs and are compared with the pretrained net itself (`{BASELINE}`)."
    ]
    bullets = []
    for split in EVALUATED_SPLITS:
        rows = mixture[(mixture["split"] == split) & mixture["accuracy"].notna()]
        found = [
            f"{row.structure} {tables.with_interval(row.accuracy, row.ci_low, row.ci_high)}"
            for row in tables.rows(rows)
        ]
        if found:
            title = tables.SPLIT_TITLES[split]
            bullets.append(f"- {title}, accuracy on a mixture of clean and attacked images: {', '.join(found)}.")
            bullets += [f"  - {line}" for line in _differences(results, split)]
    return [*lines, *(["\n".join(bullets)] if bullets else [])]


def _differences(results: Results, split: str) -> list[str]:
    """Each structure against the baseline, each detector against the same opponents without one, and the sampler
    against other opponents."""
    structures = results.params.structures
    pairs = [(name, BASELINE) for name in structures]
    pairs += [
        (name, other)
        for name in results.detectors
        for other, entry in structures.items()
        if entry.detector == "none" and entry.opponents == structures[name].opponents
    ]
    plain = {name: entry.opponents for name, entry in structures.items() if entry.detector == "none"}
    pairs += [(name, other) for name in plain for other in plain if plain[name] == "sampler" != plain[other]]
    rows = results.mixture[results.mixture["split"] == split]
    lines = []
    for name, other in pairs:
        difference, low, high = statistics.paired_difference(rows, name, other)
        verdict = "" if low > 0 or high < 0 else "; zero is within the interval, so this run does not tell them apart"
        lines.append(f"{name} minus {other}: {difference:+.3f} [{low:+.3f}, {high:+.3f}]{verdict}")
    return lines


def _detector_part(results: Results) -> list[str]:
    if not results.detectors:
        return ["No structure here has a detector."]
    settings, ratio = results.params.detector, results.params.mixture.adv_ratio
    paper = pd.read_csv(tables.PAPER / "table3_ablation.csv")
    same = (paper["input"] == settings.input) & (paper["layers"] == settings.layers) & (paper["adv_ratio"] == ratio)
    published = paper.loc[same, "detector_accuracy"]
    rows = []
    for name in results.detectors:
        for split in EVALUATED_SPLITS:
            metrics = _detector_metrics(results, name, split)
            row = {"structure": name, "images": tables.SPLIT_TITLES[split].lower()}
            row |= {
                "accuracy": tables.number(metrics["accuracy"]),
                "majority": tables.number(metrics["majority"]),
                "AUROC": tables.number(metrics["auroc"]),
                "found at 5 % accused": tables.number(metrics["tpr_at_fpr05"]),
            }
            rows.append(row | ({"paper's accuracy": f"{published.iloc[0]:.4f}"} if len(published) else {}))
    return [
        f"The detector ({settings.input} input, {settings.layers} layers) looks at the pretrained net's feature maps "
        "and says whether the image was attacked. It is measured on the mixture above; an image that its attack left "
        "unchanged counts as clean. *Majority* is what always giving the commoner answer would score; *found at 5 % "
        "accused* is the share of adversarial images found when at most 5 % of the clean ones are accused.",
        tables.grid(pd.DataFrame(rows)),
        "It has only met attackers who did not know of it: one who does can be expected to pass it far more often.",
    ]


def _reading() -> list[str]:
    return [
        "- *Stored*: each attack ran once over each image, and the image it made is kept, rounded to 8 bits and no "
        "further. All structures face the very same images, so they can be compared image by image.\n"
        "- *White-box* and *transfer*: the attacks could see the pretrained net and nothing else. Its figures are "
        "those of a net whose attacker knows everything about it; the other structures only show how well the images "
        "carry over to a net that the attacker has never seen. That is closer to data augmentation than to a worst "
        "case: accuracy against an attacker who aims at the defended model can be expected to be far lower, and is "
        "not measured here.\n"
        "- *Test* images are carved from the data set's training images, as in the paper; *held-out* images are its "
        "official test images where it has such, and carved likewise where it has not. Neither were used to choose "
        "anything.",
    ]


def _making(results: Results) -> list[str]:
    params = results.params
    parts = ["Parameters (`params.yaml`):"]
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
        shown["detector"] = params.detector
    shown |= {"structures": params.structures, "mixture": params.mixture}
    parts.append("\n".join(f"- {name}: {_words(value)}" for name, value in shown.items()))
    if not results.timings:
        return parts
    machines = {f"{timing.get('hardware', '?')}, torch {timing.get('torch', '?')}" for timing in results.timings}
    columns = {"stage": "stage", "images": "images", "seconds": "seconds", "images_per_second": "images/s"}
    columns |= {"device": "device", "precision": "precision"}
    rows = [{title: str(timing.get(key, "-")) for key, title in columns.items()} for timing in results.timings]
    return [*parts, f"Hardware: {'; '.join(sorted(machines))}.", tables.grid(pd.DataFrame(rows))]


def _words(value: Any) -> str:
    """A section of the parameters in one line."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if not isinstance(value, dict):
        return str(value)
    inner = {key: f"({_words(entry)})" if isinstance(entry, dict) else _words(entry) for key, entry in value.items()}
    return ", ".join(f"{key} {text}" for key, text in inner.items()) or "none"
