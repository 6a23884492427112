"""Turn the stored predictions of the rows of Table 3 into that table.

reads   studies/table3/params.yaml, studies/table3/rows/, data/clean/, data/adversarial/
writes  studies/table3/reports/
run     python studies/table3/write_table.py
"""

import sys

sys.path.append("stages")  # of the main folder, in which this runs

from _stage import run

from sparring import params
from sparring.params.variants import load_rows
from sparring.report import render


def main() -> None:
    render.render_ablation(params.load(), load_rows())


if __name__ == "__main__":
    run(main)
