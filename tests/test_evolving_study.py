"""The study of evolving opponents is tested by its parameters, and by a tiny study that its functions make."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML
from small_nets import fails

from sparring import evolving
from sparring.layout import HERE
from sparring.params import attacks
from sparring.params import evolving as parameters
from sparring.report import evolving as report

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "studies" / "evolving"
TRAININGS = {
    "evolving-8-0": {"method": "evolving", "eps": 8, "seed": 0, "epochs": 2, "autoattack": 4},
    "evolving-8-1": {"method": "evolving", "eps": 8, "seed": 1, "epochs": 2, "autoattack": 0},
    "nfgsm-8-0": {"method": "nfgsm", "eps": 8, "seed": 0, "epochs": 2, "autoattack": 4},
    "mixed-16": {"method": "mixed_6", "eps": 16, "seed": 0, "epochs": 1, "autoattack": 0},
    "online_pgd10-8-0": {"method": "online_pgd10", "eps": 8, "seed": 0, "epochs": 2, "autoattack": 0},
}
FINISHED = list(TRAININGS)[:4]


def tiny_values() -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(SCRIPTS / "params.yaml")
    base = values["base"]
    base |= {"device": "cpu", "precision": "float32", "attacks": {"fgsm": {"eps": 0.025}}}
    base["data"] |= {"source": "digits", "image_size": 16, "train": 250, "validation": 30, "test": 60, "heldout": 40}
    base["network"] |= {"blocks": [1, 1, 1, 1], "width": 4}
    base["training"] |= {"epochs": 4, "batch_size": 25, "shift": 1, "horizontal_flip": False}
    base["store"] = {"shard_size": 100, "batch_size": 50}
    base["sampler"] = base["fixed"] = {"weights": {}}
    base["monitor"] |= {"every": 1, "images": 20, "steps": 2}
    return values | {"trainings": TRAININGS, "test": {"images": 20, "steps": 3}}


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all but one training were made. Read only."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "profiles").symlink_to(ROOT / "profiles")
    (folder / "studies/evolving").mkdir(parents=True)
    YAML().dump(tiny_values(), folder / "studies/evolving/params.yaml")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name in ("STEPS", "TARGETS", "QUERIES"):  # AutoAttack's own numbers take most of a minute
            patched.setattr(attacks, name, 4)
        study = parameters.load_study()
        evolving.make_source(study)
        for name in FINISHED:
            evolving.make_row(study, name)
    return folder


def test_a_finished_training_is_a_row(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study_folder)
    rows = evolving.rows(parameters.load_study()).set_index("training")
    assert list(rows.index) == FINISHED and list(rows.columns) == evolving.COLUMNS[1:]
    assert (rows["images"] == 250).all() and (rows["tested"] == 20).all() and (rows["shown"] == 60).all()
    assert (rows["seconds"] > 0).all()
    for column in ("clean", "pgd50", "stored"):
        assert rows[column].between(0, 1).all()
    assert (rows["pgd50"] <= rows["clean"] + 0.2).all()
    assert rows["autoattack"].notna().tolist() == [True, False, True, False]
    assert rows["passes_per_image"].tolist() == [7, 7, 5, 7]
    predictions = pd.read_parquet("studies/evolving/rows/evolving-8-0/data/predictions/evolving.parquet")
    clean = predictions.query("split == 'test' and attack == 'clean'")
    assert rows.loc["evolving-8-0", "clean"] == pytest.approx((clean["label"] == clean["prediction"]).mean(), abs=1e-5)
    aimed = pd.read_parquet("studies/evolving/rows/mixed-16/data/whitebox/mixed_6.parquet")
    assert 255 * aimed["linf"].max() == pytest.approx(16, abs=0.01)


def test_the_methods_differ_in_what_they_name(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study_folder)
    study = parameters.load_study()
    nets = {name: parameters.net_params(study, name) for name in TRAININGS}
    assert nets["evolving-8-1"].seeds == [1] and nets["evolving-8-1"].seed == 0  # one set of stored attacks
    assert nets["evolving-8-0"].evolving.whole == (8, 8) and nets["mixed-16"].evolving.whole == (16, 16)
    assert nets["mixed-16"].evolving.weight == 6 and nets["mixed-16"].structure("mixed_6").stored
    fast, slow = nets["nfgsm-8-0"].online_fgsm, nets["online_pgd10-8-0"].online_pgd
    assert fast.noise == 2 and fast.step == pytest.approx(fast.eps) and fast.eps == pytest.approx(8 / 255)
    assert slow.steps == 10 and slow.step == pytest.approx(slow.eps / 4)
    training = [net.training.model_dump(exclude={"epochs"}) for net in nets.values()]
    assert all(one == training[0] for one in training)
    assert all(net.monitor.eps == pytest.approx(net.whitebox.autoattack.eps) for net in nets.values())


def test_the_studys_own_file_is_valid_for_every_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = parameters.load_study()
    assert len(study.trainings) == 27
    for name, training in study.trainings.items():
        params = parameters.net_params(study, name)
        passes = params.passes(training.method)
        wanted = {"online_fgsm": 5, "nfgsm": 5, "online_pgd10": 23, "adv": 3, "no_consistency": 5}
        assert passes == wanted.get(training.method, 7)


def test_the_report_is_of_the_trainings_that_there_are(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study_folder)
    report.write(parameters.load_study())
    folder = HERE.study_reports("evolving")
    text = (folder / "report.md").read_text()
    assert "evolving minus nfgsm, 8/255, 2 epochs, seeds 0: AutoAttack " in text and "proves nothing" in text
    assert "**Not made yet**: online_pgd10-8-0." in text.replace("\\_", "_")
    table = pd.read_csv(folder / "evolving.csv").set_index(["method", "eps"])
    assert table.loc[("evolving", 8), "trainings"] == 2
    rows = pd.read_csv(folder / "rows.csv")
    mean = rows.query("method == 'evolving'")["pgd50"].mean()
    assert table.loc[("evolving", 8), "pgd50"] == pytest.approx(mean, abs=1e-5)
    assert (folder / "figures/evolving_curve.png").exists() and (folder / "vector/evolving_curve.svg").exists()


def test_several_seeds_have_a_t_interval() -> None:
    base = {"eps": 8, "epochs": 30, "clean": 0.4, "autoattack": np.nan, "stored": 0.4, "tested": 500, "shown": 2000}
    base |= {"passes_per_image": 7, "processor": "a machine"}
    rows = pd.DataFrame(
        [
            base | {"method": method, "seed": seed, "pgd50": value, "seconds": seconds}
            for method, seconds, values in (("evolving", 40.0, (0.31, 0.32, 0.33)), ("online_pgd10", 100.0, (0.3,) * 3))
            for seed, value in enumerate(values)
        ]
    )
    text = report.against(rows, 8, 30, "online_pgd10")
    # Student's t with two degrees of freedom: 4.303 times 0.01 / √3.
    assert "PGD +0.020 [-0.005, +0.045]" in text and "in 0.40 of the time" in text and "one seed" not in text
    other = rows.assign(processor=np.where(rows["method"] == "evolving", "a machine", "another"))
    assert "times say nothing" in report.against(other, 8, 30, "online_pgd10")
    assert report.against(rows, 16, 30, "online_pgd10") == ""


def test_bad_input_is_one_line(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study_folder)
    study = parameters.load_study()
    fails(r"trainings.evolving is missing; there are evolving-8-0,", lambda: evolving.make_row(study, "evolving"))
    command = [sys.executable, str(SCRIPTS / "make_net.py"), "nobody"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "trainings.nobody is missing" in done.stderr
    values = tiny_values()
    values["trainings"]["evolving-8-0"] = TRAININGS["evolving-8-0"] | {"method": "mine"}
    path = study_folder / "wrong.yaml"
    YAML().dump(values, path)
    fails(
        r"trainings.evolving-8-0.method is mine, which is not in methods; use evolving, ",
        lambda: parameters.load_study(path),
    )
    YAML().dump(tiny_values() | {"trainings": TRAININGS | {"x": TRAININGS["nfgsm-8-0"] | {"eps": 0}}}, path)
    fails(r"trainings.x.eps is 0; it should be greater than or equal to 1", lambda: parameters.load_study(path))
