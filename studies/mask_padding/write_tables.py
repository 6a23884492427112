"""Turn what the rows predicted into the article's tables beside ours, the table of controls and the curve over eps.

reads   studies/mask_padding/params.yaml, profiles/digits.yaml, studies/mask_padding/sources/ and rows/
writes  studies/mask_padding/reports/
run     python studies/mask_padding/write_tables.py
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring.params.masking import load_study
from sparring.report import masking


def main() -> None:
    masking.write(load_study())


if __name__ == "__main__":
    run(main)
