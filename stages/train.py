"""Train one structure on clean and stored adversarial images.

reads   data/clean/, data/adversarial/, models/pretrained.safetensors
writes  models/<structure>/, data/history/<structure>.csv
run     python stages/train.py ours
"""

from _stage import run

from sparring import distributed, params
from sparring.defences.train import train


def main(structure: str) -> None:
    settings = params.load()
    distributed.run(settings, lambda: train(settings, structure))


if __name__ == "__main__":
    run(main)
