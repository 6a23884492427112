"""Predict every test and held-out image, clean and under the attack left out, with what was trained without it.

reads   data/clean/, data/adversarial/, models/pretrained.safetensors, studies/leave_one_out/rows/<attack>/models/
writes  studies/leave_one_out/rows/<attack>/data/predictions/
run     python studies/leave_one_out/evaluate_without.py fgsm
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import params
from sparring.evaluation import predict
from sparring.layout import HERE
from sparring.params.variants import only


def main(attack: str) -> None:
    settings = only(params.load(), attack)
    for structure in settings.structures:
        predict.evaluate(settings, structure, HERE.row("leave_one_out", attack))


if __name__ == "__main__":
    run(main)
