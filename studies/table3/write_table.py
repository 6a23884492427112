"""Turn the stored predictions of the rows of Table 3 into that table.

reads   studies/table3/params.yaml, studies/table3/rows/, data/clean/, data/adversarial/
writes  studies/table3/reports/
run     python studies/table3/write_table.py
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import params
from sparring.params.variants import load_rows
from sparring.report import table3


def main() -> None:
    table3.write(params.load(), load_rows())


if __name__ == "__main__":
    run(main)
