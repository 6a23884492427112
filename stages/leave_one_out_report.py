"""Turn the stored predictions of what was trained with and without each attack into a table.

reads   data/clean/, data/adversarial/, data/predictions/, leave_one_out/rows/
writes  leave_one_out/reports/
run     python stages/leave_one_out_report.py
"""

from _stage import run

from sparring import params
from sparring.report import render


def main() -> None:
    render.render_leave_one_out(params.load())


if __name__ == "__main__":
    run(main)
