"""Train "ours" as one row of Table 3 has it.

reads   ablation/params.yaml, data/clean/, data/adversarial/, models/pretrained.safetensors
writes  ablation/rows/<row>/models/, ablation/rows/<row>/data/history/
run     python stages/ablation_train.py low_050_2
"""

from _stage import run

from sparring import distributed, files, params, structures


def main(row: str) -> None:
    settings = params.row_params(params.load(), row, params.load_rows())
    with files.results_below(files.ABLATION / row):
        distributed.run(settings, lambda: structures.train(settings, params.ABLATED))


if __name__ == "__main__":
    run(main)
