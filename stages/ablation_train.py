"""Train "ours" as one row of Table 3 has it.

reads   ablation/params.yaml, data/clean/, data/adversarial/, models/pretrained.safetensors
writes  ablation/rows/<row>/models/, ablation/rows/<row>/data/history/
run     python stages/ablation_train.py low_050_2
"""

from _stage import run

from sparring import distributed, layout, params
from sparring.defences.train import train
from sparring.params.names import ABLATED
from sparring.params.variants import load_rows, row_params


def main(row: str) -> None:
    settings = row_params(params.load(), row, load_rows())
    with layout.results_below(layout.ABLATION / row):
        distributed.run(settings, lambda: train(settings, ABLATED))


if __name__ == "__main__":
    run(main)
