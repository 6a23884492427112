"""Turn stored predictions into tables, figures and one readable page, as Markdown and as HTML.

reads   data/clean/, data/adversarial/, data/unseen/, data/predictions/, data/history/, data/timings/
writes  reports/
run     python stages/report.py
"""

from _stage import run

from sparring import params
from sparring.report import render


def main() -> None:
    render.render(params.load())


if __name__ == "__main__":
    run(main)
