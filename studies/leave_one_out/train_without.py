"""Train every structure that trains on stored attacks without one of them.

reads   data/clean/, data/adversarial/, models/pretrained.safetensors
writes  studies/leave_one_out/rows/<attack>/models/, studies/leave_one_out/rows/<attack>/data/history/
run     python studies/leave_one_out/train_without.py fgsm
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import distributed, params
from sparring.defences.train import train
from sparring.layout import HERE, Layout
from sparring.params.variants import without


def main(attack: str) -> None:
    settings = without(params.load(), attack)
    distributed.run(settings, lambda: _train(settings, HERE.row("leave_one_out", attack)))


def _train(settings: params.Params, layout: Layout) -> None:
    for structure in settings.structures:
        train(settings, structure, layout)


if __name__ == "__main__":
    run(main)
