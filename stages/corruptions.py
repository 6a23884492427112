"""Predict every held-out image, clean and under common corruptions of five strengths, with one structure.

reads   data/clean/heldout.parquet, models/
writes  data/corruptions/<structure>.parquet
run     python stages/corruptions.py ours
"""

from _stage import run

from sparring import params
from sparring.evaluation import corruptions


def main(structure: str) -> None:
    corruptions.evaluate(params.load(), structure)


if __name__ == "__main__":
    run(main)
