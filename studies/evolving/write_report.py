"""Turn the rows that there are into a table, a picture and a page.

reads   studies/evolving/params.yaml, profiles/digits.yaml, studies/evolving/rows/
writes  studies/evolving/reports/
run     python studies/evolving/write_report.py
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring.params.evolving import load_study
from sparring.report import evolving


def main() -> None:
    evolving.write(load_study())


if __name__ == "__main__":
    run(main)
