"""Accuracy of an undefended net under FGSM by its radius, on validation images: how eps in params.yaml was chosen.

reads   studies/mask_padding/params.yaml, profiles/digits.yaml, studies/mask_padding/sources/<dataset>/
run     python studies/mask_padding/calibrate.py gtsrb dnn1
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import mask_padding
from sparring.params.masking import load_study


def main(dataset: str, network: str) -> None:
    mask_padding.calibrate(load_study(), dataset, network)


if __name__ == "__main__":
    run(main)
