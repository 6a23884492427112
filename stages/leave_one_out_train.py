"""Train every structure that trains on stored attacks without one of them.

reads   data/clean/, data/adversarial/, models/pretrained.safetensors
writes  leave_one_out/rows/<attack>/models/, leave_one_out/rows/<attack>/data/history/
run     python stages/leave_one_out_train.py fgsm
"""

from _stage import run

from sparring import distributed, layout, params
from sparring.defences.train import train
from sparring.params.variants import without


def main(attack: str) -> None:
    settings = without(params.load(), attack)
    with layout.results_below(layout.LEAVE_ONE_OUT / attack):
        distributed.run(settings, lambda: _train(settings))


def _train(settings: params.Params) -> None:
    for structure in settings.structures:
        train(settings, structure)


if __name__ == "__main__":
    run(main)
