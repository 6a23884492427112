"""Attack every stored image once.

reads   data/clean/, models/pretrained.safetensors
writes  data/adversarial/<attack>/, or data/unseen/<attack>/ for one of unseen_attacks
run     python stages/attack.py fgsm
"""

from _stage import run

from sparring import params
from sparring.attacks import generation


def main(attack: str) -> None:
    generation.attack_splits(params.load(), attack)


if __name__ == "__main__":
    run(main)
