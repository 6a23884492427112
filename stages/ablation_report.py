"""Turn the stored predictions of the rows of Table 3 into that table.

reads   ablation/params.yaml, ablation/rows/, data/clean/, data/adversarial/
writes  ablation/reports/
run     python stages/ablation_report.py
"""

from _stage import run

from sparring import params
from sparring.params.variants import load_rows
from sparring.report import render


def main() -> None:
    render.render_ablation(params.load(), load_rows())


if __name__ == "__main__":
    run(main)
