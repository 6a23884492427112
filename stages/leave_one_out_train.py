"""Train every structure that trains on stored attacks without one of them.

reads   data/clean/, data/adversarial/, models/pretrained.safetensors
writes  leave_one_out/rows/<attack>/models/, leave_one_out/rows/<attack>/data/history/
run     python stages/leave_one_out_train.py fgsm
"""

from _stage import run

from sparring import distributed, files, params, structures


def main(attack: str) -> None:
    settings = params.without(params.load(), attack)
    with files.results_below(files.LEAVE_ONE_OUT / attack):
        distributed.run(settings, lambda: _train(settings))


def _train(settings: params.Params) -> None:
    for structure in settings.structures:
        structures.train(settings, structure)


if __name__ == "__main__":
    run(main)
