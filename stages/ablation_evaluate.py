"""Predict every clean and attacked test and held-out image with one row of Table 3.

reads   ablation/params.yaml, data/clean/, data/adversarial/, models/pretrained.safetensors, ablation/rows/<row>/models/
writes  ablation/rows/<row>/data/predictions/
run     python stages/ablation_evaluate.py low_050_2
"""

from _stage import run

from sparring import evaluation, files, params


def main(row: str) -> None:
    with files.results_below(files.ABLATION / row):
        evaluation.evaluate(params.row_params(params.load(), row, params.load_rows()), params.ABLATED)


if __name__ == "__main__":
    run(main)
