"""Note whether the files of a data set have changed, or are there at all, which DVC itself does not see.

reads   studies/mask_padding/params.yaml, the data set's files
writes  studies/mask_padding/watched/<dataset>.json
run     python studies/mask_padding/watch_data.py gtsrb
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from _stage import run

from sparring.data import watch
from sparring.params.masking import UNDEFENDED, check_row, load_study


def main(dataset: str) -> None:
    study = load_study()
    check_row(study, dataset, UNDEFENDED)
    watch.watch_path(study.datasets[dataset].data.path, Path(f"studies/mask_padding/watched/{dataset}.json"))


if __name__ == "__main__":
    run(main)
