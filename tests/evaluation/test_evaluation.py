"""Predictions: those of the stores for the baseline, and one line for a store that does not belong to them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import measure
from staging import stage
from structures import words

from sparring import params, store
from sparring.attacks import generation
from sparring.defences.train import train
from sparring.evaluation import predict
from sparring.layout import HERE
from sparring.models import model_files, networks
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.report import render

COLUMNS = ["index", "split", "seed", "attack", "label", "prediction", "confidence", "detector_score"]
STRUCTURES = {
    "ours": words("sampler", detector="detector"),
    "adv": words("sampler"),
}


def evaluate(settings: Params, structure: str) -> pd.DataFrame:
    predict.evaluate(settings, structure)
    return pd.read_parquet(HERE.predictions(structure))


def test_the_baseline_repeats_the_stores_predictions(project: Path, tiny: Callable[..., Params]) -> None:
    settings = tiny()
    rows = evaluate(settings, "baseline")
    assert list(rows.columns) == COLUMNS
    assert rows["detector_score"].isna().all() and (rows["seed"] == 0).all()
    keys = [*settings.attacks, *settings.unseen_attacks]
    assert rows["attack"].unique().tolist() == ["clean", *keys]
    for (split, attack), part in rows.groupby(["split", "attack"]):
        clean = store.read(HERE.clean / f"{split}.parquet")
        assert part["index"].tolist() == clean.index.tolist()
        assert part["label"].tolist() == clean.label.tolist()
        if attack != "clean":
            stored = store.read(HERE.attacked(settings, str(attack)) / f"{split}.parquet")
            assert part["prediction"].tolist() == stored.columns["prediction"].tolist()
    # The comparison means something only where the attacks changed some predictions, and not all.
    clean_rows, attacked = (rows[rows["attack"] == name].reset_index() for name in ("clean", "deepfool"))
    assert 0.1 < (clean_rows["prediction"] != attacked["prediction"]).mean() < 1


def test_confidence_is_the_softmax_of_the_prediction(project: Path, tiny: Callable[..., Params]) -> None:
    settings = tiny()
    rows = evaluate(settings, "baseline").query("attack == 'fgsm' and split == 'test'")
    net = networks.load(settings.network, 10, settings.data.image_size, HERE.pretrained).eval()
    images = store.read(HERE.adversarial / "fgsm" / "test.parquet").image
    with torch.no_grad():
        wanted = net(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).softmax(1)
    np.testing.assert_allclose(rows["confidence"], wanted.amax(1), atol=1e-5)
    assert (rows["prediction"] == wanted.argmax(1).numpy()).mean() > 0.98


def test_scores_are_those_of_the_detector(project: Path, tiny: Callable[..., Params]) -> None:
    settings = tiny(training={"epochs": 2, "batch_size": 50}, structures=STRUCTURES)
    for name in STRUCTURES:
        train(settings, name)
    assert evaluate(settings, "adv")["detector_score"].isna().all()
    rows = evaluate(settings, "ours")
    assert rows["detector_score"].between(0, 1).all() and rows["detector_score"].nunique() > 50
    baseline = evaluate(settings, "baseline")
    assert rows[["index", "split", "attack", "label"]].equals(baseline[["index", "split", "attack", "label"]])
    assert (rows["prediction"] != baseline["prediction"]).any()
    before = HERE.predictions("ours").read_bytes()
    evaluate(settings, "ours")
    assert HERE.predictions("ours").read_bytes() == before
    # The detector looks at the pretrained net's maps, whichever net it defends.
    shutil.copy(HERE.model("adv", 0), HERE.model("ours", 0))
    np.testing.assert_array_equal(evaluate(settings, "ours")["detector_score"], rows["detector_score"])


@pytest.mark.slow
def test_each_seed_is_a_training_of_its_own_from_training_to_report(project: Path, tiny: Callable[..., Params]) -> None:
    def run(seeds: list[int]) -> tuple[dict[str, bytes], pd.DataFrame, pd.DataFrame]:
        settings = tiny(training={"epochs": 2, "batch_size": 50}, structures=STRUCTURES, seeds=seeds)
        shutil.rmtree(HERE.models("ours"), ignore_errors=True)
        train(settings, "ours")
        models = {path.name: path.read_bytes() for path in HERE.models("ours").iterdir()}
        return models, pd.read_csv(HERE.history("ours")), evaluate(settings, "ours")

    alone = {seed: run([seed]) for seed in (1, 0)}
    models, history, rows = run([0, 1])
    assert models == alone[0][0] | alone[1][0] and len(models) == 4 and len(set(models.values())) == 4
    for seed, (_, its_history, its_rows) in alone.items():
        assert history[history["seed"] == seed].drop(columns="seed").reset_index(drop=True).equals(its_history)
        assert rows[rows["seed"] == seed].reset_index(drop=True).equals(its_rows)
    settings = tiny(structures={"ours": STRUCTURES["ours"]}, seeds=[0, 1])
    measure(settings)
    render.render(settings)
    assert "ours 2" in Path("reports/tables/table2.md").read_text()
    assert Path("reports/vector/curves.svg").stat().st_size > 10_000


@pytest.mark.slow
def test_float16_images_go_from_attack_to_report(project: Path, tiny: Callable[..., Params]) -> None:
    changes = {"training": {"epochs": 1, "batch_size": 50}, "store": {"dtype": "float16"}}
    settings = tiny(**changes, structures={"adv": STRUCTURES["adv"]})
    for name in (*settings.attacks, *settings.unseen_attacks):
        generation.attack_splits(settings, name)
    clean = store.read(HERE.clean / "test.parquet")
    attacked = store.read(HERE.adversarial / "gaussian" / "test.parquet")
    assert attacked.image.dtype == np.float16 and (attacked.image % 1 > 0).mean() > 0.1
    np.testing.assert_allclose(
        attacked.columns["linf"], np.abs(attacked.image / 255 - clean.image / 255).max((1, 2, 3)), atol=1e-3
    )
    train(settings, "adv")
    rows = evaluate(settings, "baseline").query("attack == 'deepfool' and split == 'test'")
    stored = store.read(HERE.adversarial / "deepfool" / "test.parquet")
    assert rows["prediction"].tolist() == stored.columns["prediction"].tolist()
    measure(settings)
    render.render(settings)
    assert Path("reports/figures/gallery.png").stat().st_size > 10_000


def test_no_images_are_no_rows(project: Path, tiny: Callable[..., Params]) -> None:
    settings = tiny()
    for folder in (HERE.clean, *(HERE.attacked(settings, name) for name in ("gaussian", "fgsm", "deepfool"))):
        path = folder / "heldout.parquet"
        images = store.read(path)
        store.write(path, [images[:0]], images.metadata)
    path = HERE.unseen / "strong" / "heldout.parquet"
    store.write(path, [store.read(path)[:0]], store.read(path).metadata)
    rows = evaluate(settings, "baseline")
    assert rows["split"].unique().tolist() == ["test"]


def test_an_unknown_structure_is_one_line(project: Path, tiny: Callable[..., Params]) -> None:
    with pytest.raises(InputError, match=r"structures\.advv is missing; there are baseline, adv, ours"):
        predict.evaluate(tiny(), "advv")


def test_a_structure_without_its_model_is_one_line(project: Path, tiny: Callable[..., Params]) -> None:
    with pytest.raises(InputError, match=r"models/adv/0\.safetensors is missing; `dvc repro` makes it"):
        predict.evaluate(tiny(), "adv")
    assert not HERE.predictions("adv").exists()


def foreign_model(settings: Params) -> str:
    torch.manual_seed(1)
    model_files.save_model(networks.create(settings.network, 10, settings.data.image_size), HERE.pretrained, {})
    return r"gaussian/test\.parquet was made against model \w{64}, not \w{64}; delete it"


def moved_rows(settings: Params) -> str:
    path = HERE.adversarial / "fgsm" / "heldout.parquet"
    images = store.read(path)
    store.write(path, [images[::-1]], images.metadata)
    return r"fgsm/heldout\.parquet: row 0 has index \d+ and label \d, the clean set \d+ and \d; delete it"


def missing_rows(settings: Params) -> str:
    path = HERE.unseen / "strong" / "test.parquet"
    images = store.read(path)
    store.write(path, [images[:-1]], images.metadata)
    return r"strong/test\.parquet holds 119 rows, the clean set 120; delete it"


def renamed_class(settings: Params) -> str:
    path = HERE.adversarial / "fgsm" / "test.parquet"
    images = store.read(path)
    names = images.metadata["classes"]
    store.write(path, [images], images.metadata | {"classes": [names[0], names[2], names[1], *names[3:]]})
    return r"fgsm/test\.parquet: class 1 is 2, in the clean set 1; delete it"


def missing_store(settings: Params) -> str:
    shutil.rmtree(HERE.adversarial / "deepfool")
    return r"deepfool/test\.parquet is missing; `dvc repro` makes it"


@pytest.mark.parametrize("spoil", [foreign_model, moved_rows, missing_rows, renamed_class, missing_store])
def test_a_store_that_does_not_belong_here_is_one_line(
    project: Path, tiny: Callable[..., Params], spoil: Callable[[Params], str]
) -> None:
    says = spoil(tiny())
    with pytest.raises(InputError, match=says) as caught:
        predict.evaluate(tiny(), "baseline")
    assert "\n" not in str(caught.value)
    assert not HERE.predictions("baseline").exists()


def test_the_stage_script_ends_in_one_line_and_keeps_its_predictions(
    project: Path, tiny: Callable[..., Params]
) -> None:
    assert params.load() == tiny()
    done = stage("evaluate", "baseline")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("evaluate@baseline: 800 predictions in ") and done.stdout.count("\n") == 1
    path = HERE.predictions("baseline")
    before = path.read_bytes()
    moved_rows(tiny())
    failed = stage("evaluate", "baseline")
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("error: data/adversarial/fgsm/heldout.parquet: row 0 has index ")
    assert failed.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
