"""Prepare the images of the study, train the net that its stored attacks are made against, and make them.

reads   studies/evolving/params.yaml, profiles/digits.yaml, the data set's files
writes  studies/evolving/source/
run     python studies/evolving/make_gallery.py
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import evolving
from sparring.params.evolving import load_study


def main() -> None:
    evolving.make_source(load_study())


if __name__ == "__main__":
    run(main)
