"""These functions make a clone of the project with tiny parameters, and run it as its users do.

Most of its time is the start of its stages. So it has three of the profile's six attacks and two of its structures.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "data.image_size=16",
    "data.train=120",
    "data.validation=20",
    "data.test=40",
    "data.heldout=40",
    "network.width=4",
    "training.epochs=1",
    "store.shard_size=50",
    "store.batch_size=25",
    "detector.layers=1",
    "detection.images=5",
    "detection.steps=2",
    "attacks={fgsm: {eps: 0.025}, bim: {eps: 0.026, step: 0.005, first_step: 0.001, steps: 2}, "
    "deepfool: {steps: 1, overshoot: 0.02}}",
    "sampler.weights={}",
    "fixed.weights={}",
    "whitebox.images=10",
    "whitebox.attacks.cw.steps=2",
    "whitebox.attacks.ddn.steps=2",
    "whitebox.checks={images: 5, steps: 21, queries: 2}",
    "whitebox.curve={images: 5, eps: [8, 255]}",
    "structures={baseline: {opponents: pretrained, evolving: none, detector: none, transform: none}, "
    "ours: {opponents: sampler, evolving: none, detector: detector, transform: none}}",
]
ATTACKS = ["fgsm", "bim", "deepfool"]
STRUCTURES = ["baseline", "ours"]
EVALUATIONS = {f"{stage}@{name}" for stage in ("evaluate", "detect") for name in STRUCTURES}  # under stored attacks
PER_STRUCTURE = ("train", "evaluate", "whitebox", "corruptions", "detect")


def retrained(*structures: str) -> set[str]:
    """Return the stages that run after a change in the training of these structures."""
    return {f"{stage}@{name}" for stage in PER_STRUCTURE for name in structures} | {"report"}


# These stages run after a change of a stored attack. The baseline is copied again, but does not change.
DOWNSTREAM = retrained("ours") | {"train@baseline", "evaluate@baseline", "detect@baseline"}


def run(folder: Path, *command: str, ok: bool = True) -> str:
    """Run a command in a folder and return its output and errors.  ok: whether it is expected to succeed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "true",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    output = process.stdout + process.stderr
    assert (process.returncode == 0) == ok, output
    return output


def profile(folder: Path, *settings: str) -> str:
    """Write the profile `digits` with these settings."""
    options = [part for setting in settings for part in ("--set", setting)]
    return run(folder, sys.executable, "-m", "sparring", "profile", "digits", *options)


def ran(output: str) -> set[str]:
    """Return the stages that ran, without `watch`, which runs every time."""
    return set(re.findall(r"Running stage '([^']+)'", output)) - {"watch"}


def fresh(folder: Path) -> None:
    """Clone this repository as it stands in the working tree, and run every stage."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in filter(None, subprocess.check_output(listed, cwd=ROOT, text=True).split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        else:
            target.unlink(missing_ok=True)
    profile(folder, *TINY)
    output = run(folder, "dvc", "repro")
    assert ran(output) == {
        *("prepare", "pretrain", "whitebox@baseline", "corruptions@baseline"),
        *(f"attack@{name}" for name in ATTACKS),
        *DOWNSTREAM,
    }
    commit(folder)


def commit(folder: Path) -> None:
    """Commit everything, as experiments start from a commit."""
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "--allow-empty", "-m", "as it stands")
