"""Predict every clean and attacked test and held-out image with one structure.

reads   data/clean/, data/adversarial/, data/unseen/, models/
writes  data/predictions/<structure>.parquet
run     python stages/evaluate.py ours
"""

from _stage import run

from sparring import params
from sparring.evaluation import predict


def main(structure: str) -> None:
    predict.evaluate(params.load(), structure)


if __name__ == "__main__":
    run(main)
