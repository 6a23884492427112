"""Turn the stored predictions of the rows of Table 3 into that table.

reads   ablation/params.yaml, ablation/rows/, data/clean/, data/adversarial/
writes  ablation/reports/
run     python stages/ablation_report.py
"""

from _stage import run

from sparring import params, report


def main() -> None:
    report.render_ablation(params.load(), params.load_rows())


if __name__ == "__main__":
    run(main)
