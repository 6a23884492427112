"""Predict every clean and attacked test and held-out image with one row of Table 3.

reads   studies/table3/params.yaml, studies/table3/rows/<row>/models/, data/clean/, data/adversarial/,
        models/pretrained.safetensors
writes  studies/table3/rows/<row>/data/predictions/
run     python studies/table3/evaluate_row.py low_050_2
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import params
from sparring.evaluation import predict
from sparring.layout import HERE
from sparring.params.names import ABLATED
from sparring.params.variants import load_rows, row_params


def main(row: str) -> None:
    predict.evaluate(row_params(params.load(), row, load_rows()), ABLATED, HERE.row("table3", row))


if __name__ == "__main__":
    run(main)
