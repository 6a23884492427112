"""Train the pretrained net on the clean images.

reads   data/clean/train.parquet, data/clean/validation.parquet
writes  models/pretrained.safetensors, data/history/pretrained.csv
run     python stages/pretrain.py
"""

from _stage import run

from sparring import params, training


def main() -> None:
    training.pretrain(params.load())


if __name__ == "__main__":
    run(main)
