"""The stage `watch` notices changes among the files that data.path names, so that `prepare` runs again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparring.data import watch
from sparring.layout import HERE, PARTIAL
from sparring.params import Params
from sparring.params.errors import InputError


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write two class folders of two images each below the current folder, which is also the repository's."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        path = Path("images", "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return Path("images")


@pytest.fixture
def watched(tiny: Callable[..., Params]) -> Callable[..., dict[str, Any]]:
    def run(source: str = "folder", path: str | None = "images") -> dict[str, Any]:
        watch.watch(tiny(data={"source": source, "path": path}).data)
        return json.loads(HERE.source.read_text())

    return run


def changed_bytes(images: Path) -> None:
    """Change a file but not its size, as retouching a picture may."""
    path = images / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


@pytest.mark.parametrize(
    "change",
    [
        changed_bytes,
        lambda images: (images / "a" / "0.png").unlink(),
        lambda images: (images / "a" / "0.png").rename(images / "b" / "0.png"),
        lambda images: shutil.copy(images / "a" / "0.png", images / "a" / "9.png"),
    ],
    ids=["content", "removed", "moved", "added"],
)
def test_every_change_is_seen(
    images: Path, watched: Callable[..., dict[str, Any]], change: Callable[[Path], object]
) -> None:
    before = watched()
    assert before["files"] == 4 and watched() == before
    change(images)
    assert watched()["digest"] != before["digest"]


def test_the_digest_is_of_contents_and_paths_alone(
    images: Path, watched: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    before = watched()
    shutil.copytree(images, "elsewhere")
    shutil.rmtree(PARTIAL)
    assert watched(path="elsewhere") == before
    assert watched(path=str(tmp_path / "elsewhere")) == before
    Path("elsewhere", ".hidden").write_text("")
    assert watched(path="elsewhere") == before


def test_files_that_have_not_changed_are_not_read_again(
    images: Path, watched: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = watched()
    paths = []
    digest = watch._digest
    monkeypatch.setattr(watch, "_digest", lambda path: paths.append(path) or digest(path))
    assert watched() == before and not paths
    os.utime(images / "b" / "1.png", (1, 1))
    assert watched() == before and [Path(path).name for path in paths] == ["1.png"]
    (PARTIAL / "watch.json").write_text("[cut sh")
    assert watched() == before and len(paths) == 1 + 4


def test_a_link_to_a_folder_above_ends(images: Path, watched: Callable[..., dict[str, Any]]) -> None:
    (images / "a" / "up").symlink_to(images.resolve(), target_is_directory=True)
    assert watched()["files"] == 4


def test_one_file_and_sources_without_files(images: Path, watched: Callable[..., dict[str, Any]]) -> None:
    Path("train.parquet").write_bytes(b"anything")
    one = watched("parquet", "train.parquet")
    assert one["files"] == 1
    Path("train.parquet").write_bytes(b"anythinG")
    assert watched("parquet", "train.parquet")["digest"] != one["digest"]
    assert watched("digits", None) == {"source": "digits"}


@pytest.mark.parametrize("source", ["folder", "parquet", "gtsrb", "belgium", "orl", "yale"])
def test_every_source_of_the_users_files_is_watched(
    images: Path, watched: Callable[..., dict[str, Any]], source: str
) -> None:
    before = watched(source)
    assert before["files"] == 4
    (images / "a" / "GT-final_test.csv").write_text("labels")
    assert watched(source)["digest"] != before["digest"]


def test_a_missing_path_is_one_line_and_keeps_what_was_noted(
    images: Path, watched: Callable[..., dict[str, Any]]
) -> None:
    watched()
    before = HERE.source.read_bytes()
    with pytest.raises(InputError, match=r"params\.yaml: data\.path is nowhere; there is no .*nowhere$"):
        watched(path="nowhere")
    assert HERE.source.read_bytes() == before


def test_a_path_of_a_study_may_be_absent_and_come_later(images: Path) -> None:
    def facts_on(path: str | None, name: str = "one") -> dict[str, Any]:
        target = Path("watched", f"{name}.json")
        watch.watch_path(path, target)
        return json.loads(target.read_text())

    assert facts_on("later") == {"path": "later", "absent": True}
    shutil.copytree(images, "later")
    facts = facts_on("later")
    assert facts["files"] == 4 and "absent" not in facts
    changed_bytes(Path("later"))
    assert facts_on("later")["digest"] != facts["digest"]
    assert facts_on(None) == {"path": None}


def test_each_path_of_a_study_remembers_its_own_files(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(images, "second")
    paths = []
    digest = watch._digest
    monkeypatch.setattr(watch, "_digest", lambda path: paths.append(path) or digest(path))
    for _ in range(2):
        for path in ("images", "second"):
            watch.watch_path(path, Path("watched", f"{path}.json"))
    assert len(paths) == 8
