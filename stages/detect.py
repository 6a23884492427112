"""Score clean, attacked and benignly changed images with a structure's detector and two known ones, and attack both.

reads   data/clean/, data/adversarial/, data/unseen/, models/
writes  data/detection/<structure>.parquet (without rows for a structure without a detector)
run     python stages/detect.py ours
"""

from _stage import run

from sparring import params
from sparring.evaluation import detect


def main(structure: str) -> None:
    detect.detect(params.load(), structure)


if __name__ == "__main__":
    run(main)
