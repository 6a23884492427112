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
LATER = planning.PARTS[planning.PARTS.index("pretrain") :]  # the parts after the measurements for the plan
LEAST_SECONDS = 60  # any part has this time, however short it was planned
SLOWEST = ("cw", "ddn", "deepfool", "nst")  # these attacks begin first


def of_part(part: str, settings: Params, out: Path) -> dict[str, Task]:
    """Return the tasks of a part by name. They can run side by side."""

    def tasks_for(stage: Callable[[Params, str], None], names: Iterable[str]) -> dict[str, Task]:
        return {f"{part}-{name}": partial(stage, settings, name) for name in names}

    methods = {name: attack.method for name, attack in (settings.attacks | settings.unseen_attacks).items()}
    slowest_first = sorted(methods, key=lambda name: SLOWEST.index(methods[name]) if methods[name] in SLOWEST else 9)
    parts: dict[str, dict[str, Task]] = {
        "prepare": {"prepare": partial(prepare.prepare, settings)},
        "measure": {"measure": partial(measuring.write, settings, out / "rates.json", time.time())},
        "pretrain": {"pretrain": partial(pretrain_baseline, settings)},
        "attacks": tasks_for(generation.attack_splits, slowest_first),
        "train": tasks_for(train, settings.trained),
        "evaluate": tasks_for(predict.evaluate, settings.structures),
        "whitebox": tasks_for(whitebox.attack_structure, settings.structures),
        "detect": tasks_for(detect.detect, settings.structures),
        "corruptions": tasks_for(corruptions.evaluate, settings.structures),
        "benchmark": {"benchmark": partial(measuring.benchmark, settings, out / "benchmark.json")},
    }
    return parts[part]


def pretrain_baseline(settings: Params) -> None:
    """Train the pretrained net and copy it as the baseline, which every later part needs."""
    pretrain(settings)
    train(settings, BASELINE)


def carry_out(run: Tasks, out: Path, profile: str, overrides: list[str]) -> None:
    """Run every part in its order, and last the report, whatever is missing by then."""
    file = out / "run" / "params.yaml"
    if not file.exists():
        profiles.apply(profile, overrides, file)
    for part in ("prepare", "measure"):
        if not run.do(part, of_part(part, params.load(file), out), run.end, 1):
            raise InputError(run.reasons[part])
    rates = planning.Rates(**json.loads((out / "rates.json").read_text()))
    plan = stored_plan(run, out, profile, overrides, rates)
    settings = plan.applied(params.load(file))
    for number, part in enumerate(LATER[:-1]):
        if is_done(run, part, settings, out):
            continue
        images, later = plan.whitebox_images, [name for name in LATER[number:] if not is_done(run, name, settings, out)]
        plan = planning.shrunk(plan, rates, settings, run.seconds_left, later)
        if any(run.finished(task) for task in of_part("whitebox", settings, out)):
            plan = replace(plan, whitebox_images=images)  # or the structures would be attacked on different images
        elif part == "whitebox":
            write_plan(out, whitebox_images=plan.whitebox_images)
        settings = plan.applied(settings)
        if part in plan.left_out:
            continue
        needed = [name for name in later if name not in (part, *planning.OPTIONAL)]
        deadline = run.end - sum(plan.parts[name] for name in needed)
        if part in planning.OPTIONAL:  # so that none takes the time of those after it
            deadline = min(deadline, time.monotonic() + max(LEAST_SECONDS, 2 * plan.parts[part]))
        if not run.do(part, of_part(part, settings, out), deadline, rates.at_once):
            if part == "pretrain":
                raise InputError(f"{run.reasons[part]}; the same command goes on with it")
            settings = without_unfinished(run, part, settings)
    left_out = {part: "there was no time for it" for part in plan.left_out} | run.reasons
    (out / "tasks" / "report.json").unlink(missing_ok=True)  # of an earlier run, which may have left out more
    run.do("report", {"report": partial(render.render, settings, left_out)}, float("inf"), 1)
    if not run.finished("report"):
        raise InputError(run.reasons["report"])


def is_done(run: Tasks, part: str, settings: Params, out: Path) -> bool:
    """Say whether all tasks of a part are finished. The report never is, as it has to say what is missing."""
    return part != "report" and all(run.finished(task) for task in of_part(part, settings, out))


def stored_plan(run: Tasks, out: Path, profile: str, overrides: list[str], rates: planning.Rates) -> planning.Plan:
    """Return the plan of this run. The first call makes it and writes its settings to run/params.yaml."""
    file, stored = out / "run" / "params.yaml", out / "plan.json"
    if not stored.exists():
        settings = params.load(file)
        plan = planning.plan(rates, settings, run.seconds_left, LATER)
        profiles.apply(profile, [*overrides, *plan.settings(settings)], file)
        write_plan(out, **plan.record())
    record = json.loads(stored.read_text())
    print(f"plan: {json.dumps(record)}", flush=True)
    plan = planning.Plan(**{name: record[name] for name in planning.Plan.__dataclass_fields__})
    return replace(plan, left_out=[])  # a resumed run may have time for them


def write_plan(out: Path, **values: object) -> None:
    """Write plan.json, or update these values in it."""
    path = out / "plan.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | values, indent=2) + "\n")


def without_unfinished(run: Tasks, part: str, settings: Params) -> Params:
    """Return the parameters without attacks that are not stored, or structures that are not trained or evaluated."""
    if part == "attacks":
        stored_attacks = {name: attack for name, attack in settings.attacks.items() if run.finished(f"attacks-{name}")}
        if not stored_attacks:
            raise InputError(f"{run.reasons[part]}; no attack is stored, the same command goes on with them")
        weights = settings.sampler.model_copy(
            update={
                "weights": {name: weight for name, weight in settings.sampler.weights.items() if name in stored_attacks}
            }
        )
        return settings.model_copy(update={"attacks": stored_attacks, "sampler": weights})
    if part in ("train", "evaluate"):
        finished = [BASELINE, *(name for name in settings.trained if run.finished(f"{part}-{name}"))]
        trained = {name: entry for name, entry in settings.structures.items() if name in finished}
        return settings.model_copy(update={"structures": trained})
    return settings


def planned(profile: str, overrides: list[str], rates: Path, seconds: float) -> planning.Plan:
    """Return the plan for a machine whose rates are in a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        profiles.apply(profile, overrides, file)
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
    overrides = [*([f"data.heldout={HELDOUT}"] if minutes < SHORT else []), *(settings or [])]
    if rates is not None:
        print(json.dumps(planned(profile, overrides, rates, 60 * minutes).record(), indent=2))
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
            carry_out(run, out, profile, [*overrides, "data.source=parquet", f"data.path={data}"])
        finally:
            packing.pack(out)


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as problem:
        sys.exit(f"error: {problem}")
