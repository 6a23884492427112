"""Note whether the files that data.path names have changed, which DVC itself does not see.

reads   what data.source and data.path name
writes  data/source.json
run     python stages/watch.py
"""

from _stage import run

from sparring import params
from sparring.data import watch


def main() -> None:
    watch.watch(params.load().data)


if __name__ == "__main__":
    run(main)
