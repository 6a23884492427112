"""Predict every test and held-out image, clean and under the attack left out, with what was trained without it.

reads   data/clean/, data/adversarial/, models/pretrained.safetensors, leave_one_out/rows/<attack>/models/
writes  leave_one_out/rows/<attack>/data/predictions/
run     python stages/leave_one_out_evaluate.py fgsm
"""

from _stage import run

from sparring import evaluation, files, params


def main(attack: str) -> None:
    settings = params.only(params.load(), attack)
    with files.results_below(files.LEAVE_ONE_OUT / attack):
        for structure in settings.structures:
            evaluation.evaluate(settings, structure)


if __name__ == "__main__":
    run(main)
