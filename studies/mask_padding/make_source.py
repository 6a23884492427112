"""Prepare a data set, train its undefended nets, attack its test images against each, and measure these nets.

reads   studies/mask_padding/params.yaml, profiles/digits.yaml, the data set's files
writes  studies/mask_padding/sources/<dataset>/
run     python studies/mask_padding/make_source.py gtsrb
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import mask_padding
from sparring.params.masking import load_study


def main(dataset: str) -> None:
    mask_padding.make_source(load_study(), dataset)


if __name__ == "__main__":
    run(main)
