"""ORL and Yale have a class for each person, in numeric order, and Yale's copies are left out."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from images import encoded, fails, noise, prepare
from PIL import Image

from sparring.params.names import SPLITS

REAL = os.environ.get("SPARRING_TEST_DATA")
ORL: dict[str, Any] = {"source": "orl", "path": "faces"}
YALE: dict[str, Any] = {"source": "yale", "path": "faces"}
CONDITIONS = [
    "centerlight",
    "glasses",
    "happy",
    "leftlight",
    "noglasses",
    "normal",
    "rightlight",
    "sad",
    "sleepy",
    "surprised",
    "wink",
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def grey(seed: int) -> Image.Image:
    return noise(seed, (14, 12)).convert("L")


def orl(top: str, persons: list[str], count: int = 10, suffix: str = "pgm") -> Path:
    for place, person in enumerate(persons):
        (Path(top) / person).mkdir(parents=True)
        for number in range(1, count + 1):
            file = Path(top) / person / f"{number}.{suffix}"
            file.write_bytes(encoded(grey(100 * place + number), "PPM"))
    return Path(top)


def yale(top: str, persons: int = 3, suffix: str = "", kind: str = "GIF") -> Path:
    Path(top).mkdir(parents=True)
    for person in range(1, persons + 1):
        for place, condition in enumerate(CONDITIONS):
            file = Path(top) / f"subject{person:02}.{condition}{suffix}"
            file.write_bytes(encoded(grey(100 * person + place), kind))
    return Path(top)


def pictures(**data: Any) -> int:
    parts = prepare(**data, train=200, validation=0, test=0, heldout=0)
    return len(parts["train"])


# ORL


def test_people_in_the_order_of_their_numbers() -> None:
    orl("faces/orl_faces", [f"s{number}" for number in (1, 10, 11, 2, 3)])
    Path("faces/orl_faces/README").write_text("about the faces")
    parts = prepare(**ORL, image_size=32, train=30)
    train = parts["train"]
    assert train.metadata["classes"] == ["s1", "s2", "s3", "s10", "s11"]
    assert np.array_equal(train.image[..., 0], train.image[..., 2])
    assert [len(parts[name]) for name in SPLITS] == [30, 4, 8, 8]
    assert all(set(part.label) == set(range(5)) for part in (train, parts["test"], parts["heldout"]))


def test_files_in_the_order_of_their_numbers() -> None:
    orl("faces", ["s1", "s2"])
    train = prepare(**ORL, image_size=16, train=200, validation=0, test=0, heldout=0)["train"]
    wanted = [
        Image.open(f"faces/s1/{number}.pgm").resize((16, 16), Image.Resampling.BILINEAR) for number in range(1, 11)
    ]
    assert [image[..., 0].tobytes() for image in train.image[:10]] == [image.tobytes() for image in wanted]


@pytest.mark.parametrize("path", ["faces", "faces/att", "faces/att/orl_faces"])
def test_orl_is_found_below_the_path(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    orl("faces/att/orl_faces", ["S1", "S02"], suffix="PGM")
    orl("faces/__MACOSX/orl_faces", ["s1", "s2"])
    for name in (".DS_Store", "Thumbs.db"):
        Path("faces/att/orl_faces/S1", name).write_bytes(b"no image")
    assert pictures(source="orl", path=path) == 20
    assert "left out" not in capsys.readouterr().err


def test_what_orl_leaves_out_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    top = orl("faces", ["s1", "s2"])
    (top / "s3").mkdir()
    (top / "s1" / "age.doc").write_text("no image")
    assert pictures(**ORL) == 20
    assert "1 folders that are not called s1, s2 and so on, or have no image (s3), 1 files that are none of" in (
        capsys.readouterr().err
    )


def test_a_person_there_twice() -> None:
    orl("faces", ["s1", "s01", "s2"])
    fails("faces/s01 and .*faces/s1 are both of person 1; leave one of them there", **ORL)


def test_no_faces() -> None:
    Path("faces").mkdir()
    fails(
        "data.path is .*faces, which has no folder with the folders s1, s2 and so on; it needs a folder a pers", **ORL
    )
    fails("data.path is .*faces, which has no folder with files like subject01.normal; it needs files like", **YALE)
    orl("faces/one", ["s1", "s2"])
    orl("faces/two", ["s1", "s2"])
    fails("more than one folder with the folders s1, s2 and so on .*; leave one of them there", **ORL)


def test_groups_of_orl_can_be_told() -> None:
    orl("faces", ["s1", "s2"], count=20)
    parts = prepare(**ORL, group_pattern=r"(s[0-9]+/[12]?)", train=20, validation=0, test=8, heldout=0)
    assert len(parts["train"]) + len(parts["test"]) > 20


# Yale


@pytest.mark.parametrize(
    ("suffix", "kind"), [("", "GIF"), (".gif", "GIF"), (".pgm", "PPM"), (".png", "PNG"), (".GIF", "GIF")]
)
def test_yale_with_and_without_suffixes(suffix: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    top = yale("faces/yalefaces", suffix=suffix, kind=kind)
    (top / "Readme.txt").write_text("about the faces")
    (top / ".DS_Store").write_bytes(b"no image")
    parts = prepare(**YALE, image_size=16, train=21)
    assert parts["train"].metadata["classes"] == ["subject01", "subject02", "subject03"]
    assert sum(len(part) for part in parts.values()) == 33
    stored = {image[..., 0].tobytes() for part in parts.values() for image in part.image}
    assert grey(100).resize((16, 16), Image.Resampling.BILINEAR).tobytes() in stored
    assert "left out" not in capsys.readouterr().err


def test_copies_of_a_person_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    top = yale("faces")
    (top / "subject02.normal").write_bytes((top / "subject02.glasses").read_bytes())
    (top / "subject03.noglasses").write_bytes(encoded(grey(300 + 5), "PNG"))  # as `normal`, in another format
    (top / "subject01.gif").write_bytes((top / "subject01.centerlight").read_bytes())
    (top / "subject01.glasses.gif").write_bytes(encoded(grey(999), "GIF"))  # named like a copy, but none
    assert pictures(**YALE) == 33 - 2 + 1
    assert (
        "left out 3 images that equal another one of the same person pixel for pixel (subject01.gif = "
        "subject01.centerlight, subject02.normal = subject02.glasses, subject03.normal = subject03.noglasses)\n"
    ) in capsys.readouterr().err


def test_a_copy_under_another_person_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    top = yale("faces")
    (top / "subject02.normal").write_bytes((top / "subject01.normal").read_bytes())
    assert pictures(**YALE) == 33
    error = capsys.readouterr().err
    assert "1 pictures are there under more than one class (the first: classes subject01, subject02); mend" in error


def test_odd_numbers_of_people(capsys: pytest.CaptureFixture[str]) -> None:
    top = yale("faces", persons=12)
    for file in top.glob("subject04.*"):
        file.rename(top / file.name.replace("subject04", "subject4"))
    for file in top.glob("subject07.*"):
        file.unlink()
    (top / "subject05.normal").rename(top / "Subject5.normal")
    (top / "class.names").write_text("no image")
    names = prepare(**YALE, train=100)["train"].metadata["classes"]
    assert names == [f"subject{number:02}" for number in range(1, 13) if number != 7]
    assert "1 files that are none of its images (class.names)" in capsys.readouterr().err


def test_a_broken_face() -> None:
    (yale("faces") / "subject01.sad").write_bytes(b"GIF89a")
    fails("subject01.sad is no readable image .*; mend it or remove it", **YALE, train=200)


@pytest.mark.skipif(not REAL, reason="SPARRING_TEST_DATA names no folder of real data sets")
def test_real_faces_of_orl() -> None:
    rows = pq.read_table(f"{REAL}/orl.parquet").to_pylist()
    for row in rows:
        file = Path("faces", row["image"]["path"]).with_suffix(".pgm")
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(BytesIO(row["image"]["bytes"])) as image:
            image.save(file)
    parts = prepare(**ORL, image_size=32, train=280, validation=0, test=60, heldout=60)
    assert [len(parts[name]) for name in SPLITS] == [280, 0, 60, 60]
    assert parts["train"].metadata["classes"] == [f"s{number}" for number in range(1, 41)]
