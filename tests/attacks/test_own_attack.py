"""An attack of one's own takes the three steps that docs/guide.md names, and no other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from sparring import store
from sparring.layout import HERE
from sparring.params.names import SPLITS

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """from torch import Tensor


def mine(model: object, images: Tensor, labels: Tensor, *, strength: float) -> Tensor:
    return (images + strength).clamp(0, 1)
"""
STEPS = {
    "src/sparring/attacks/": SOURCE,
    "src/sparring/attacks/__init__.py": {
        "from sparring.attacks.nst import nst": "from sparring.attacks.mine import mine",
        "METHODS: dict[str, Callable[..., Tensor]] = {": '    "mine": mine,',
    },
    "src/sparring/params/attacks.py": {
        "\nclass Fgsm(Section):\n    eps: Radius\n": "\nclass Mine(Section):\n    strength: Share\n",
        "BUILT_IN: dict[str, type[Section]] = {": '    "mine": Mine,',
    },
}


def stage(code: Path) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(code / "stages" / "attack.py"), "mine"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)


def write(strength: float) -> None:
    values = YAML(typ="safe").load(Path("params.yaml"))
    values["attacks"]["mine"] = {"strength": strength}
    YAML().dump(values, Path("params.yaml"))


def test_an_attack_of_ones_own(project: Path, tmp_path: Path) -> None:
    section = (
        (ROOT / "docs/guide.md").read_text().partition("**A new function** takes three steps:")[2].partition("\n## ")[0]
    )
    assert all(f"`{path}`" in section for path in STEPS) and section.count("`src/") == len(STEPS)
    code = tmp_path / "code"
    for folder in ("src", "stages"):
        shutil.copytree(ROOT / folder, code / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, step in STEPS.items():
        if isinstance(step, str):
            (code / path / "mine.py").write_text(step)
            continue
        text = (code / path).read_text()
        for line, added in step.items():
            assert text.count(line) == 1
            text = text.replace(line, f"{line}\n{added}")
        (code / path).write_text(text)
    write(0.1)
    done = stage(code)
    assert done.returncode == 0, done.stderr
    for split in SPLITS[:1] + SPLITS[2:]:
        clean = store.read(HERE.clean / f"{split}.parquet").image
        attacked = store.read(HERE.adversarial / "mine" / f"{split}.parquet", ("image", "linf"))
        expected = np.rint(np.minimum(clean / 255 + 0.1, 1) * 255)
        assert np.abs(attacked.image - expected).max() <= 1 and attacked.columns["linf"].max() > 0.09
    write(2.0)
    done = stage(code)
    assert done.returncode and done.stderr.strip().splitlines() == [
        "error: params.yaml: attacks.mine.strength is 2.0; it is a share, so 0 to 1"
    ]
