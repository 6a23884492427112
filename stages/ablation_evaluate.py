"""Predict every clean and attacked test and held-out image with one row of Table 3.

reads   ablation/params.yaml, data/clean/, data/adversarial/, models/pretrained.safetensors, ablation/rows/<row>/models/
writes  ablation/rows/<row>/data/predictions/
run     python stages/ablation_evaluate.py low_050_2
"""

from _stage import run

from sparring import layout, params
from sparring.evaluation import predict
from sparring.params.names import ABLATED
from sparring.params.variants import load_rows, row_params


def main(row: str) -> None:
    with layout.results_below(layout.ABLATION / row):
        predict.evaluate(row_params(params.load(), row, load_rows()), ABLATED)


if __name__ == "__main__":
    run(main)
