"""Train a defence on every network and split of a data set, and measure the nets: a row of a table.

reads   studies/mask_padding/params.yaml, profiles/digits.yaml, studies/mask_padding/sources/<dataset>/
writes  studies/mask_padding/rows/<dataset>-<defence>/
run     python studies/mask_padding/make_row.py gtsrb mask_20
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import mask_padding
from sparring.params.masking import load_study


def main(dataset: str, defence: str) -> None:
    mask_padding.make_row(load_study(), dataset, defence)


if __name__ == "__main__":
    run(main)
