"""Train "ours" as one row of Table 3 has it.

reads   studies/table3/params.yaml, data/clean/, data/adversarial/, models/pretrained.safetensors
writes  studies/table3/rows/<row>/models/, studies/table3/rows/<row>/data/history/
run     python studies/table3/train_row.py low_050_2
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import distributed, params
from sparring.defences.train import train
from sparring.layout import HERE
from sparring.params.names import ABLATED
from sparring.params.variants import load_rows, row_params


def main(row: str) -> None:
    settings = row_params(params.load(), row, load_rows())
    distributed.run(settings, lambda: train(settings, ABLATED, HERE.row("table3", row)))


if __name__ == "__main__":
    run(main)
