"""Attack one structure itself, on test images, and predict what comes of it.

reads   data/clean/test.parquet, models/
writes  data/whitebox/<structure>.parquet
run     python stages/whitebox.py ours
"""

from _stage import run

from sparring import params
from sparring.evaluation import whitebox


def main(structure: str) -> None:
    whitebox.attack_structure(params.load(), structure)


if __name__ == "__main__":
    run(main)
