"""Train the pretrained net on the clean images.

reads   data/clean/train.parquet, data/clean/validation.parquet
writes  models/pretrained.safetensors, data/history/pretrained.csv
run     python stages/pretrain.py
"""

from _stage import run

from sparring import distributed, params
from sparring.training.pretrain import pretrain


def main() -> None:
    settings = params.load()
    distributed.run(settings, lambda: pretrain(settings))


if __name__ == "__main__":
    run(main)
