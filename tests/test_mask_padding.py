"""The study of masked and padded features is tested by its parameters, and by a tiny study that its functions make."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML
from small_nets import fails

from sparring import mask_padding, store
from sparring.layout import HERE
from sparring.models import model_files
from sparring.params import masking
from sparring.params.names import BASELINE
from sparring.params.structures import Structure

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "studies" / "mask_padding"
DIGITS = {"source": "digits", "path": None, "group_pattern": None, "background": "white", "image_size": 16}
DIGITS |= {"train": 250, "validation": 30, "test": 0, "heldout": 60}


ONE: dict[str, Any] = {"data": DIGITS, "seeds": [0], "networks": ["dnn4"], "controls": []}


def tiny_values(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(SCRIPTS / "params.yaml")
    values["base"] |= {"device": "cpu", "precision": "float32"}
    values["base"]["store"] |= {"shard_size": 100, "batch_size": 50}
    values["networks"] = {
        "dnn4": {"network": {"name": "dnn4", "dropout": 0.0}, "training": {"epochs": 10, "batch_size": 16}},
        "other": {"network": {"name": "dnn4", "dropout": 0.1}, "training": {"epochs": 1}},
    }
    two = {"data": DIGITS, "seeds": [0, 1], "networks": ["dnn4", "other"], "controls": ["dnn4"]}
    absent = {"data": DIGITS | {"source": "folder", "path": "not there"}, "seeds": [0], "networks": ["dnn4"]}
    values["datasets"] = {"digits": two, "absent": absent | {"controls": []}}
    values["attacks"]["cw"]["steps"] = 5
    values["attacks"]["pgd"]["steps"] = 3
    names = ("seed", "cw_training", "mask_20", "mask_0", "noise")
    values["defences"] = {name: values["defences"][name] for name in names}
    values["defences"]["cw_training"]["train"] = 120
    values |= {"images": 40, "curve": [8], "linearity": {"images": 20, "steps": 2}}
    return values | changes


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every row of the tiny study was made by its scripts. Read only."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "profiles").symlink_to(ROOT / "profiles")
    (folder / "studies/mask_padding").mkdir(parents=True)
    YAML().dump(tiny_values(), folder / "studies/mask_padding/params.yaml")
    study = masking.load_study(folder / "studies/mask_padding/params.yaml")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for dataset in study.datasets:
            mask_padding.make_source(study, dataset)
            for defence in study.defences:
                mask_padding.make_row(study, dataset, defence)
    return folder


def rows(study_folder: Path, defence: str, dataset: str = "digits") -> pd.DataFrame:
    place = mask_padding.folder_of(HERE, dataset, defence)
    return pd.read_parquet(study_folder / place / "predictions.parquet").assign(
        correct=lambda table: table["label"] == table["prediction"]
    )


def test_every_net_meets_every_attack_of_both_attackers(study_folder: Path) -> None:
    attacks = {"fgsm", "ifgsm", "rfgsm", "pgd", "cw", "fgsm_8"}
    met = {"none": {"clean"}, "transfer": attacks, "white-box": attacks}
    for defence in ("none", *tiny_values()["defences"]):
        table = rows(study_folder, defence)
        assert list(table.columns[:-1]) == mask_padding.COLUMNS and set(table["defence"]) == {defence}
        networks = {"dnn4"} if defence in ("mask_20", "mask_0", "noise") else {"dnn4", "other"}
        kinds = table.groupby(["network", "seed", "attacker"])["attack"].agg(set)
        assert set(kinds.index.get_level_values("network")) == networks
        assert set(kinds.index.get_level_values("seed")) == {0, 1}
        for attacker, names in met.items():
            assert all(attacked == names for attacked in kinds.xs(attacker, level="attacker"))
        counts = table.groupby(["attacker", "network", "seed", "attack"])["index"].nunique()
        assert (counts["white-box"] == 40).all() and (counts["transfer"] == 40).all()
        bounded = table[table["attack"].isin(["fgsm", "ifgsm", "rfgsm", "pgd"])]
        assert bounded["linf"].max() <= 3 / 255 + 1e-6 and bounded["linf"].max() > 2.9 / 255
        local = pd.read_parquet(study_folder / mask_padding.folder_of(HERE, "digits", defence) / "linearity.parquet")
        assert len(local) == 20 * 2 * len(networks) and (local["linearity_error"] >= 0).all()


def test_transfer_images_are_those_of_the_undefended_net(study_folder: Path) -> None:
    keys, net = ["seed", "attack", "index"], "network == 'dnn4' and attacker == "
    undefended, masked = (rows(study_folder, name).query(net + "'transfer'") for name in ("none", "mask_20"))
    both = undefended.merge(masked, on=keys, suffixes=("", "_other"))
    assert len(both) == len(undefended) and both["l2"].equals(both["l2_other"])
    # Of the net itself, they are those of its white-box attacks, but for images that it gets wrong anyway.
    aimed = rows(study_folder, "none").query(net + "'white-box'").merge(undefended, on=keys, suffixes=("", "_other"))
    attacked = aimed[aimed["l2"] > 0]
    assert len(attacked) > 100 and (attacked["correct"] == attacked["correct_other"]).mean() > 0.97
    assert not (both["prediction"] == both["prediction_other"]).all()


def test_rows_are_what_their_names_say(study_folder: Path) -> None:
    place = {name: mask_padding.folder_of(HERE, "digits", name) for name in ("mask_0", "mask_20", "seed", "noise")}
    nets = {
        name: model_files.read(
            study_folder / folder / "0/dnn4/models" / name / f"{1000 if name == 'seed' else 0}.safetensors"
        )
        for name, folder in place.items()
    }
    weights = {name: net["head.1.weight" if "head.1.weight" in net else next(iter(net))] for name, net in nets.items()}
    for name in ("mask_20", "seed", "noise"):
        assert not (weights["mask_0"] == weights[name]).all()
    # C&W training saw fewer images, attacked for it.
    own = study_folder / mask_padding.folder_of(HERE, "digits", "cw_training") / "0/dnn4/data"
    attacked = store.read(own / "adversarial/cw/train.parquet")
    assert len(attacked) == 120 and np.array_equal(attacked.index, store.read(own / "clean/train.parquet").index)
    clean = {int(index) for index in store.read(own / "clean/train.parquet").index}
    tested = study_folder / mask_padding.folder_of(HERE, "digits", "none") / "0/dnn4/data/clean/heldout.parquet"
    assert not clean & {int(index) for index in store.read(tested).index}


def test_the_noise_changes_an_image_as_much_as_the_mask(study_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = masking.load_study(study_folder / "studies/mask_padding/params.yaml")
    place = mask_padding._place(HERE, "digits", "dnn4", 0)
    params = masking.net_params(study, "digits", "dnn4", 0, "noise")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(study_folder)
        std = mask_padding._with_noise(study, params, "noise", place).noise.std
        images = store.read(place.clean / "train.parquet").image / 255
    hidden = np.random.default_rng(0).random(images.shape[:3]) < 0.2
    assert std == pytest.approx(np.sqrt((images**2 * hidden[..., None]).mean()), rel=0.03)


def test_a_data_set_that_is_not_there_has_empty_rows(study_folder: Path) -> None:
    for defence in ("none", "mask_20"):
        table = rows(study_folder, defence, "absent")
        assert table.empty and list(table.columns[:-1]) == mask_padding.COLUMNS


def test_tables_are_written_by_the_script(study_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "write_tables.py"], cwd=study_folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(study_folder / "studies/mask_padding/reports/rows.csv")
    columns = "dataset network defence seed attack attacker eps images accuracy ci_low ci_high balanced_accuracy"
    columns += " gradient_norm linearity_error"
    assert list(table.columns) == columns.split() and set(table["dataset"]) == {"digits"}
    one = table.query("defence == 'mask_20' and seed == 1 and attack == 'fgsm' and attacker == 'transfer'").iloc[0]
    mask_rows = rows(study_folder, "mask_20").query("seed == 1 and attack == 'fgsm' and attacker == 'transfer'")
    assert one["accuracy"] == pytest.approx(mask_rows["correct"].mean(), abs=1e-4) and one["images"] == 40


def test_parameters_of_a_net_are_those_of_its_row() -> None:
    study = masking.load_study(SCRIPTS / "params.yaml")
    for dataset, entry in study.datasets.items():
        for defence in study.defences:
            for network in masking.networks_of(study, dataset, defence):
                for seed in entry.seeds:
                    masking.net_params(study, dataset, network, seed, defence)
    params = masking.net_params(study, "gtsrb", "dnn1", 0, "mask_30")
    assert params.mask.share == 0.3 and params.mask.unit == "pixel" and params.training.crop_area == [1.0, 1.0]
    assert list(params.structures) == [BASELINE, "mask_30"] and params.structures["mask_30"].transform == "mask"
    assert masking.net_params(study, "gtsrb", "dnn1", 0, "dropout").network.dropout == 0.5
    assert masking.net_params(study, "gtsrb", "dnn4", 0, "cw_training").data.train == 5000
    assert masking.net_params(study, "orl", "facenet", 3, "cw_training").data.train == 280
    assert masking.net_params(study, "orl", "facenet", 3, "padding").seeds == [3]
    # Rows under which the tables need every attack, both ways.
    runs = params.whitebox.runs
    assert set(runs) == set(params.all_attacks) and all(count == study.images for _, count in runs.values())
    assert {attack.linf for name, (attack, _) in runs.items() if name in ("fgsm", "ifgsm", "rfgsm", "pgd")} == {3 / 255}
    assert {structure.detector for structure in params.structures.values()} == {"none"}
    assert isinstance(params.structures["mask_30"], Structure)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"eps": 3}, r"eps is 3; an L∞ radius is a share"),
        ({"radii": []}, "radii"),
        ({"defences": {"none": {}}}, "none cannot be a name here"),
        ({"attacks": {"pgd": {"eps": 0.1}}}, "attacks.cw is missing; add it"),
        ({"networks": {}}, "datasets.digits.networks has dnn4, which is not in networks"),
        ({"datasets": {"digits": ONE | {"seeds": [0, 0]}}}, r"datasets.digits.seeds is \[0, 0\]; name each seed once"),
        ({"datasets": {"digits": ONE | {"controls": ["other"]}}}, "digits.controls has other, which"),
        ({"datasets": {"digits": ONE | {"data": DIGITS | {"path": 5}}}}, "datasets.digits.data.path is 5"),
    ],
)
def test_what_is_wrong_with_the_study_is_said_in_one_line(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    YAML().dump(json.loads(json.dumps(tiny_values(**change))), tmp_path / "params.yaml")
    fails(expected, lambda: masking.load_study(tmp_path / "params.yaml"))


def test_names_that_there_are_not_are_told() -> None:
    study = masking.load_study(SCRIPTS / "params.yaml")
    call: Callable[..., Any] = masking.net_params
    fails("datasets.mnist is missing; there are gtsrb", lambda: call(study, "mnist", "dnn1", 0, "seed"))
    fails("networks.dnn9 is missing; there are dnn1", lambda: call(study, "gtsrb", "dnn9", 0, "seed"))
    fails("defences.prayer is missing; there are seed", lambda: call(study, "gtsrb", "dnn1", 0, "prayer"))
    fails("datasets.mnist is missing; there are gtsrb", lambda: mask_padding.make_source(study, "mnist"))
    fails("datasets.mnist is missing", lambda: mask_padding.calibrate(study, "mnist", "dnn1"))
    fails("defences.mask_2O is missing; there are seed", lambda: mask_padding.make_row(study, "gtsrb", "mask_2O"))
    changes = {"defences": {"wrong": {"transform": "mask", "changes": {"mask": {"share": 1.0}}}}}
    wrong = masking.Study.model_validate(tiny_values(**changes)).model_copy(update={"base": study.base})
    fails("digits, dnn4, wrong: mask.share is 1.0", lambda: call(wrong, "digits", "dnn4", 0, "wrong"))
