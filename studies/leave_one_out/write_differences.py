"""Turn the stored predictions of what was trained with and without each attack into a table.

reads   data/clean/, data/adversarial/, data/predictions/, studies/leave_one_out/rows/
writes  studies/leave_one_out/reports/
run     python studies/leave_one_out/write_differences.py
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring import params
from sparring.report import leave_one_out


def main() -> None:
    leave_one_out.write(params.load())


if __name__ == "__main__":
    run(main)
