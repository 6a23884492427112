"""A team's cache, in a clone of its own: what one clone made and pushed, a fresh one takes over."""

import filecmp
from pathlib import Path

import pytest
from clones import commit, ran, run
from ruamel.yaml import YAML


@pytest.fixture(scope="module")
def pushed(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose cache is in a folder, which is its remote."""
    run(clone, "dvc", "remote", "add", "-d", "storage", str(tmp_path_factory.mktemp("storage")))
    commit(clone)
    run(clone, "git", "tag", "-a", "ours@v1.0.0", "-m", "first")
    run(clone, "dvc", "push")
    return clone


def test_a_fresh_clone_takes_all_from_the_teams_cache_and_runs_nothing(pushed: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    run(tmp_path, "git", "clone", "-q", str(pushed), str(fresh))
    in_git = ("report.md", "metrics.json", "tables/table2.md", "figures/gallery.png")
    assert all((fresh / "reports" / name).exists() for name in in_git)
    cached = ("reports/index.html", "reports/tex/table2.tex", "reports/vector/gallery.svg", "models/ours/0.safetensors")
    cached += ("models/pretrained.safetensors", "data/predictions/ours.parquet", "data/timings/train-ours.json")
    assert not any((fresh / name).exists() for name in cached)
    output = run(fresh, "dvc", "repro", "--pull")
    assert ran(output) == set()
    assert not run(fresh, "git", "status", "--porcelain"), "dvc.lock and the reports in git are as they were"
    for name in (*cached, *(f"reports/{name}" for name in in_git)):
        assert filecmp.cmp(fresh / name, pushed / name, shallow=False), name


def test_nets_are_artifacts_which_a_registry_can_fetch(pushed: Path, tmp_path: Path) -> None:
    artifacts = YAML(typ="safe").load(pushed / "dvc.yaml")["artifacts"]
    paths = {artifact["path"] for artifact in artifacts.values()}
    structures = YAML(typ="safe").load(pushed / "profiles/digits.yaml")["structures"]
    assert paths == {"models/pretrained.safetensors"} | {f"models/{name}" for name in structures if name != "baseline"}
    run(tmp_path, "dvc", "artifacts", "get", str(pushed), "ours", "-o", "net")
    names = {"0.safetensors", "0.detector.safetensors"}
    assert {path.name for path in (tmp_path / "net").iterdir()} == names
    assert filecmp.cmpfiles(tmp_path / "net", pushed / "models/ours", names, shallow=False)[0]
