"""Make one training of the study, and attack the net: a row.

reads   studies/evolving/params.yaml, profiles/digits.yaml, studies/evolving/source/
writes  studies/evolving/rows/<training>/
run     python studies/evolving/make_net.py evolving-8-0
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import evolving
from sparring.params.evolving import load_study


def main(training: str) -> None:
    evolving.make_row(load_study(), training)


if __name__ == "__main__":
    run(main)
