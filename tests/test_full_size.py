"""benchmarks/full_size.py has to plan for a machine, keep to its time, and complete a run at toy size."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sparring import params, profiles
from sparring.params import Params
from sparring.params.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import full_size  # noqa: E402
import packing  # noqa: E402
import planning  # noqa: E402
from tasks import Tasks  # noqa: E402

TOY = [
    *("data.train=120", "data.validation=20", "data.test=30", "data.heldout=30", "data.image_size=16"),
    *("network.width=4", "network.blocks=[1, 1, 1, 1]", "training.epochs=8", "detector.layers=1"),
    *("store.shard_size=50", "store.batch_size=25", "attacks.deepfool.steps=1", "attacks.nst.steps=1"),
    *("attacks.bim.steps=2", "attacks.cw.steps=2", "whitebox.attacks.cw.steps=2", "whitebox.attacks.ddn.steps=2"),
    *("whitebox.images=4", "whitebox.checks.steps=21", "whitebox.checks.queries=2", "whitebox.curve.eps=[8, 255]"),
    "detection.steps=2",
]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Params:
    path = tmp_path_factory.mktemp("paper") / "params.yaml"
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        profiles.apply("paper", ["data.heldout=2000"], path)
    finally:
        os.chdir(before)
    return params.load(path)


@pytest.fixture(scope="module")
def h100() -> planning.Rates:
    return planning.Rates(**json.loads((BENCHMARKS / "h100.json").read_text()))


def test_a_plan_fits_and_leaves_nothing_out_where_there_is_time(h100: planning.Rates, paper: Params) -> None:
    plan = planning.plan(h100, paper, 480)
    assert plan.seconds <= 480 and not plan.left_out and list(plan.parts) == list(planning.PARTS)
    assert planning.LEAST_EPOCHS <= plan.epochs < 150
    assert planning.LEAST_CW_STEPS <= plan.cw_steps <= 100
    # No time is left over: with one epoch more the plan does not fit.
    more = plan.epochs + 1
    longer = planning.seconds_of(planning.replace(plan, epochs=more), h100, paper)
    assert sum(longer.values()) > (1 - planning.RESERVE) * 480


def test_with_more_time_a_plan_grows_to_what_was_asked_for(h100: planning.Rates, paper: Params) -> None:
    plans = [planning.plan(h100, paper, 60 * minutes) for minutes in (8, 10, 12, 20, 40, 500)]
    for name in ("epochs", "cw_steps", "whitebox_images"):
        sizes = [getattr(plan, name) for plan in plans]
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert (plans[-1].epochs, plans[-1].cw_steps, plans[-1].whitebox_images) == (150, 100, 5000)


@given(st.floats(0, 600))
def test_later_parts_are_left_out_first_and_the_report_never(seconds: float) -> None:
    rates = planning.Rates(**json.loads((BENCHMARKS / "h100.json").read_text()))
    plan = planning.plan(rates, PAPER, seconds)
    assert tuple(plan.left_out) == planning.OPTIONAL[: len(plan.left_out)]
    assert set(plan.parts) == set(planning.PARTS) - set(plan.left_out) and "report" in plan.parts
    assert plan.seconds <= seconds or len(plan.left_out) == len(planning.OPTIONAL)


@pytest.fixture(autouse=True, scope="module")
def _paper_for_properties(paper: Params) -> None:
    global PAPER
    PAPER = paper


def test_the_plan_is_what_the_run_is_set_to(h100: planning.Rates, paper: Params, tmp_path: Path) -> None:
    plan = planning.plan(h100, paper, 480)
    values = dict(setting.split("=", 1) for setting in plan.settings(paper))
    assert values["training.epochs"] == str(plan.epochs) and values["training.schedule"] == "one_cycle"
    assert float(values["training.learning_rate"]) == pytest.approx(paper.training.learning_rate * 512 / 64)
    fewer = plan.applied(paper).whitebox
    assert fewer.images == plan.whitebox_images and fewer.checks.images == plan.whitebox_images // 5


def test_tasks_end_at_the_deadline_and_are_not_done_twice(tmp_path: Path) -> None:
    for name in ("records", "work"):
        (tmp_path / name).mkdir()
    log = tmp_path / "done.txt"

    def quick() -> None:
        print("quick here")
        log.open("a").write("quick\n")

    def wrong() -> None:
        raise InputError("data.path is nowhere")

    def long() -> None:
        time.sleep(60)

    run = Tasks(tmp_path / "records", tmp_path / "work", time.monotonic() + 30)
    began = time.monotonic()
    assert not run.do("one", {"quick": quick, "wrong": wrong}, time.monotonic() + 20, 2)
    assert run.reasons == {"one": "wrong: data.path is nowhere"}
    assert not run.do("two", {"quick": quick, "long": long}, time.monotonic() + 0.5, 1)
    assert run.reasons["two"] == "long: there was no time for it"
    assert time.monotonic() - began < 20 and log.read_text() == "quick\n"
    assert (tmp_path / "records" / "quick.log").read_text() == "quick here\n"


def test_who_goes_on_with_less_time_shows_the_same_white_box_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, h100: planning.Rates
) -> None:
    """All tasks but those of the white-box part do nothing, and one of these fails the first time."""
    monkeypatch.chdir(ROOT)
    for name in ("run", "tasks"):
        (tmp_path / name).mkdir()
    (tmp_path / "rates.json").write_text(json.dumps(planning.asdict(h100)))
    failing = tmp_path / "failing"
    failing.touch()

    def note(name: str, settings: Params) -> None:
        if name == "b" and failing.exists():
            raise InputError("not yet")
        (tmp_path / f"images-{name}").write_text(str(settings.whitebox.images))

    def tasks(part: str, settings: Params, out: Path) -> dict[str, Any]:
        if part == "whitebox":
            return {f"whitebox-{name}": partial(note, name, settings) for name in "ab"}
        return {part: lambda: None}

    left_out: list[set[str]] = []
    monkeypatch.setattr(full_size, "of_part", tasks)
    monkeypatch.setattr(
        full_size.render, "render", lambda settings, why: (tmp_path / "why").write_text(json.dumps(why))
    )
    for minutes in (15, 2):
        run = Tasks(tmp_path / "tasks", tmp_path / "run", time.monotonic() + 60 * minutes)
        full_size.carry_out(run, tmp_path, "paper", ["data.heldout=2000"])
        left_out.append(set(json.loads((tmp_path / "why").read_text())))
        failing.unlink(missing_ok=True)
    assert left_out == [{"whitebox"}, set()]
    images = [(tmp_path / f"images-{name}").read_text() for name in "ab"]
    assert images[0] == images[1] == str(json.loads((tmp_path / "plan.json").read_text())["whitebox_images"])
    assert int(images[0]) > planning.LEAST_WHITEBOX


def test_use_of_the_gpu_is_told_by_task(tmp_path: Path) -> None:
    lines = [f"2026/03/01 12:00:0{second}.500, {10 * second}, {1000 + second}" for second in range(6)]
    (tmp_path / "gpu.csv").write_text("\n".join(lines) + "\n")
    noon = datetime(2026, 3, 1, 12).timestamp()
    (tmp_path / "train.json").write_text(json.dumps({"began": noon + 1, "ended": noon + 4}))
    (row,) = packing.by_part(tmp_path / "gpu.csv", tmp_path).to_dict("records")
    assert row == {"task": "train", "seconds": 3, "mean_use": 20, "largest_use": 30, "largest_memory": 1003}


def test_an_archive_stays_small_and_names_what_it_leaves_behind(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, size in (
        ("plan.json", 100),
        ("run/data/predictions/a.parquet", 9_000_000),
        ("run/data/whitebox/b", 9_000_000),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(draw.bytes(size))
    archive = packing.pack(tmp_path)
    assert archive.stat().st_size < packing.LIMIT
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        left_behind = tar.extractfile("full_size/left_behind.txt").read().decode()
    assert "full_size/run/data/predictions/a.parquet" in names and left_behind == "run/data/whitebox/b\n"


def write_images(folder: Path) -> None:
    """Write 300 images of 10 classes, of which the last 60 are an official test set."""
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 256, (10, 3))
    folder.mkdir()
    for name, count in (("train", 240), ("test", 60)):
        encoded = []
        for row in range(count):
            pixels = colours[row % 10] + draw.integers(-60, 60, (16, 16, 3))
            buffer = io.BytesIO()
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": f"{row}.png"})
        table = pa.table({"image": encoded, "label": [row % 10 for row in range(count)]})
        pq.write_table(table, folder / f"{name}.parquet")


def command(folder: Path, minutes: float, *settings: str) -> list[str]:
    options: list[Any] = ["--minutes", minutes, "--data", folder / "images", "--out", folder / "out"]
    options += [part for setting in (*TOY, *settings) for part in ("--set", setting)]
    return [sys.executable, str(BENCHMARKS / "full_size.py"), *map(str, options)]


@pytest.mark.slow
def test_a_run_at_toy_size_killed_and_gone_on_with_ends_in_a_report(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    with subprocess.Popen(command(tmp_path, 5), env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while not (out / "tasks" / "attacks-fgsm.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    pretrained = (out / "tasks" / "pretrain.json").read_bytes()
    plan = (out / "plan.json").read_bytes()
    result = subprocess.run(command(tmp_path, 5), env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (out / "tasks" / "pretrain.json").read_bytes() == pretrained and (out / "plan.json").read_bytes() == plan
    archive = out / "full_size.tar.gz"
    assert archive.stat().st_size < 16_000_000
    with tarfile.open(archive) as tar:
        names = {name.removeprefix("full_size/") for name in tar.getnames()}
    wanted = {"plan.json", "rates.json", "machine.json", "run/params.yaml", "run/reports/report.md"}
    wanted |= {"run/reports/summary.json", "run/data/predictions/ours.parquet", "run/data/history/pretrained.csv"}
    assert wanted <= names
    summary = json.loads((out / "run" / "reports" / "summary.json").read_text())
    assert set(summary["mixture"]) == set(summary["whitebox"]) == {"baseline", "adv", "ours", "evolving"}
    rates = json.loads((out / "rates.json").read_text())
    assert all(rate > 0 for steps in rates["steps"].values() for rate in steps.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "--data and --out are missing; name a folder with Parquet files"),
        ({"data": Path("nowhere"), "out": Path("out")}, "--data is .*nowhere; there is no such folder"),
        ({"data": Path(), "out": Path("out"), "settings": ["data.train=oops"]}, "data.train is"),
        ({"data": Path(), "out": Path("out"), "profile": "papers"}, "profile papers does not exist; use"),
    ],
)
def test_a_run_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        full_size.main(1, **arguments)
    assert "\n" not in str(caught.value)
