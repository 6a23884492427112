"""Run a whole profile, from encoded images to the report, within so many minutes on one machine.

reads   --data: a folder with the data set as Parquet files (docs/data.md)
writes  --out: run/ (what `dvc repro` makes), plan.json, rates.json, benchmark.json, tasks/ (time and output of each),
        gpu.csv, and full_size.tar.gz, below 16 MB: all of these but the images and the nets
run     python benchmarks/full_size.py --minutes 8 --data cifar10 --out full_size

It measures this machine, plans epochs, batch size, C&W's steps and white-box images so that all fits, and runs the
parts in their order without DVC, on a GPU several tasks side by side. When time gets short, later parts shrink or are
left out, and the report says so. Killed, the same command goes on where it was, with its minutes anew.
`--rates FILE` prints the plan for another machine, whose rates are in the file, and runs nothing.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

# So that nothing of this repository has to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import measuring
import packing
import planning
from tasks import Task, Tasks

# All that the tasks need is loaded once, here: they are forked from this process, so that none starts Python and torch
# anew. So this process itself never uses CUDA or several threads, which a forked one could not go on using.
from sparring import params, profiles
from sparring.attacks import generation
from sparring.data import prepare
from sparring.defences.train import train
from sparring.evaluation import corruptions, detect, predict, whitebox
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import BASELINE
from sparring.report import render
from sparring.training.pretrain import pretrain

ROOT = Path(__file__).resolve().parent.parent
SHORT, HELDOUT = 30, 2000  # in fewer minutes than SHORT there are so many held-out images
LATER = planning.PARTS[planning.PARTS.index("pretrain") :]  # than the measurements that the plan is made from
LEAST_SECONDS = 60  # that any part has, however short it was planned
SLOWEST = ("cw", "ddn", "deepfool", "nst")  # attacks that begin first


def of_part(part: str, settings: Params, out: Path) -> dict[str, Task]:
    """The tasks of a part by name; any of them can run beside any other."""

    def each(stage: Callable[[Params, str], None], names: Iterable[str]) -> dict[str, Task]:
        return {f"{part}-{name}": partial(stage, settings, name) for name in names}

    methods = {name: attack.method for name, attack in (settings.attacks | settings.unseen_attacks).items()}
    slowest_first = sorted(methods, key=lambda name: SLOWEST.index(methods[name]) if methods[name] in SLOWEST else 9)
    parts: dict[str, dict[str, Task]] = {
        "prepare": {"prepare": partial(prepare.prepare, settings)},
        "measure": {"measure": partial(measuring.write, settings, out / "rates.json", time.time())},
        "pretrain": {"pretrain": partial(pretrain_baseline, settings)},
        "attacks": each(generation.attack_splits, slowest_first),
        "train": each(train, settings.trained),
        "evaluate": each(predict.evaluate, settings.structures),
        "whitebox": each(whitebox.attack_structure, settings.structures),
        "detect": each(detect.detect, settings.structures),
        "corruptions": each(corruptions.evaluate, settings.structures),
        "benchmark": {"benchmark": partial(measuring.benchmark, settings, out / "benchmark.json")},
    }
    return parts[part]


def pretrain_baseline(settings: Params) -> None:
    """Train the pretrained net, and make the baseline of it, which every later part needs."""
    pretrain(settings)
    train(settings, BASELINE)


def carry_out(run: Tasks, out: Path, profile: str, given: list[str]) -> None:
    """Every part in its order, and last the report, whatever is missing by then."""
    file = out / "run" / "params.yaml"
    if not file.exists():
        profiles.apply(profile, given, file)
    for part in ("prepare", "measure"):
        if not run.do(part, of_part(part, params.load(file), out), run.end, 1):
            raise InputError(run.reasons[part])
    rates = planning.Rates(**json.loads((out / "rates.json").read_text()))
    chosen = stored_plan(run, out, profile, given, rates)
    settings = chosen.applied(params.load(file))
    for number, part in enumerate(LATER[:-1]):
        if done(run, part, settings, out):
            continue
        images, later = chosen.whitebox_images, [name for name in LATER[number:] if not done(run, name, settings, out)]
        chosen = planning.shrunk(chosen, rates, settings, run.left, later)
        if any(run.finished(task) for task in of_part("whitebox", settings, out)):
            chosen = replace(chosen, whitebox_images=images)  # or the structures would meet different images
        elif part == "whitebox":
            write_plan(out, whitebox_images=chosen.whitebox_images)
        settings = chosen.applied(settings)
        if part in chosen.left_out:
            continue
        needed = [name for name in later if name not in (part, *planning.OPTIONAL)]
        deadline = run.end - sum(chosen.parts[name] for name in needed)
        if part in planning.OPTIONAL:  # so that none takes the time of those after it
            deadline = min(deadline, time.monotonic() + max(LEAST_SECONDS, 2 * chosen.parts[part]))
        if not run.do(part, of_part(part, settings, out), deadline, rates.at_once):
            if part == "pretrain":
                raise InputError(f"{run.reasons[part]}; the same command goes on with it")
            settings = without_unfinished(run, part, settings)
    left_out = {part: "there was no time for it" for part in chosen.left_out} | run.reasons
    (out / "tasks" / "report.json").unlink(missing_ok=True)  # of an earlier run, which may have left out more
    run.do("report", {"report": partial(render.render, settings, left_out)}, float("inf"), 1)
    if not run.finished("report"):
        raise InputError(run.reasons["report"])


def done(run: Tasks, part: str, settings: Params, out: Path) -> bool:
    """Whether all tasks of a part are finished; the report, which says what is missing, never is."""
    return part != "report" and all(run.finished(task) for task in of_part(part, settings, out))


def stored_plan(run: Tasks, out: Path, profile: str, given: list[str], rates: planning.Rates) -> planning.Plan:
    """The plan of this run, made when it began; its settings stand in run/params.yaml from then on."""
    file, stored = out / "run" / "params.yaml", out / "plan.json"
    if not stored.exists():
        settings = params.load(file)
        chosen = planning.plan(rates, settings, run.left, LATER)
        profiles.apply(profile, [*given, *chosen.settings(settings)], file)
        write_plan(out, **chosen.record())
    record = json.loads(stored.read_text())
    print(f"plan: {json.dumps(record)}", flush=True)
    chosen = planning.Plan(**{name: record[name] for name in planning.Plan.__dataclass_fields__})
    return replace(chosen, left_out=[])  # whoever goes on may have time for it


def write_plan(out: Path, **values: object) -> None:
    """Write plan.json, or change these values in it."""
    path = out / "plan.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | values, indent=2) + "\n")


def without_unfinished(run: Tasks, part: str, settings: Params) -> Params:
    """The parameters without the attacks that are not stored, or the structures that are not trained or evaluated."""
    if part == "attacks":
        left = {name: attack for name, attack in settings.attacks.items() if run.finished(f"attacks-{name}")}
        if not left:
            raise InputError(f"{run.reasons[part]}; no attack is stored, the same command goes on with them")
        weights = settings.sampler.model_copy(
            update={"weights": {name: weight for name, weight in settings.sampler.weights.items() if name in left}}
        )
        return settings.model_copy(update={"attacks": left, "sampler": weights})
    if part in ("train", "evaluate"):
        finished = [BASELINE, *(name for name in settings.trained if run.finished(f"{part}-{name}"))]
        trained = {name: entry for name, entry in settings.structures.items() if name in finished}
        return settings.model_copy(update={"structures": trained})
    return settings


def planned(profile: str, given: list[str], rates: Path, seconds: float) -> planning.Plan:
    """The plan for a machine whose rates are in a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        profiles.apply(profile, given, file)
        return planning.plan(planning.Rates(**json.loads(rates.read_text())), params.load(file), seconds)


def main(
    minutes: Annotated[float, typer.Option(min=0.2, help="All that it may take.")],
    data: Annotated[Path | None, typer.Option(help="A folder with the data set as Parquet files.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write; a killed run in it is gone on with.")] = None,
    profile: Annotated[str, typer.Option(help="A file of profiles/, without .yaml.")] = "paper",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A value on top of the profile.")
    ] = None,
    rates: Annotated[Path | None, typer.Option(help="Print the plan for the machine of this file, and stop.")] = None,
) -> None:
    """Run a whole profile within so many minutes, and pack what came of it into one archive.

    For example: python benchmarks/full_size.py --minutes 8 --data cifar10 --out full_size
    """
    data, out, rates = (path and path.resolve() for path in (data, out, rates))
    os.chdir(ROOT)
    given = [*([f"data.heldout={HELDOUT}"] if minutes < SHORT else []), *(settings or [])]
    if rates is not None:
        print(json.dumps(planned(profile, given, rates, 60 * minutes).record(), indent=2))
        return
    if data is None or out is None:
        raise InputError("--data and --out are missing; name a folder with Parquet files, and one to write")
    if not data.exists():
        raise InputError(f"--data is {data}; there is no such folder")
    for folder in ("run", "tasks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    run = Tasks(out / "tasks", out / "run", time.monotonic() + 60 * minutes)
    with packing.gpu_use(out / "gpu.csv"):
        try:
            carry_out(run, out, profile, [*given, "data.source=parquet", f"data.path={data}"])
        finally:
            packing.pack(out)


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as problem:
        sys.exit(f"error: {problem}")
