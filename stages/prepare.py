"""Read the data set, split it by class and store it at one size.

reads   what data.source and data.path name
writes  data/clean/{train,validation,test,heldout}.parquet
run     python stages/prepare.py
"""

from _stage import run

from sparring import params
from sparring.data import prepare


def main() -> None:
    prepare.prepare(params.load())


if __name__ == "__main__":
    run(main)
