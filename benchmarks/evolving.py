"""Measures what opponents that are made in training cost: the time of a step, in forward passes of the net.

run     python benchmarks/evolving.py [--batch 128] [--width 16] [--repeats 20]

Prints a row a kind: milliseconds of a step of a ResNet-18, its shift and its opponents included, and how many forward
passes that is, where a step on clean images is 3. Every figure is a median. Alone on the machine, or the figures are
worth nothing.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer

from sparring import device, params
from sparring.data import augmentation
from sparring.defences import opponents
from sparring.defences.evolving import EvolvingOpponents
from sparring.models import networks
from sparring.params import PLAIN_PASSES, Params
from sparring.params.names import structure_entry
from sparring.params.sections import Network
from sparring.params.structures import Structure
from sparring.training.gallery import Batch
from sparring.training.steps import plain_step

WORDS = {
    "bare": "none",
    "evolving": "evolving",
    "moving": "evolving",
    "FGSM-RS": "online_fgsm",
    "PGD-7": "online_pgd",
}


def changed(values: Params, name: str) -> Params:
    """Return the parameters of a kind: with the augmentation of robust training, but none for the bare step."""
    bare = name == "bare"
    training = {"crop_area": [1.0, 1.0], "shift": 0 if bare else 4, "horizontal_flip": not bare, "label_smoothing": 0.2}
    measured = Structure.model_validate(structure_entry(WORDS[name]))
    frame = {"frame": "moving" if name == "moving" else "fixed"}
    return values.model_copy(
        update={
            "training": values.training.model_copy(update=training),
            "evolving": values.evolving.model_copy(update=frame),
            "structures": values.structures | {"measured": measured},
        }
    )


def stepper(settings: Params, width: int, size: int, on: torch.device) -> Callable[[], object]:
    """Return a function that makes one step on a batch and waits for it."""
    dtype, count = device.precision(settings, on), 4 * size
    network = Network(name="resnet", blocks=[2, 2, 2, 2], width=width)
    net = device.channels_last(networks.create(network, 10, 32), on).train()
    step = plain_step(net, settings.training, dtype)
    images = torch.rand(size, 3, 32, 32, device=on).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (size,), device=on)
    structure = settings.structure("measured")
    signs = np.where(np.random.default_rng(0).random((count, 32, 32, 3)) < 0.5, -8, 8).astype(np.int8)
    opponent = opponents.create(settings, structure, [], net, dtype, lambda epoch: signs.copy())
    opponent.versions(0, np.arange(count))
    views = augmentation.draw(settings.training, count, 0, 0, on)
    if isinstance(opponent, EvolvingOpponents):
        state = [tensor for tensor in opponent.state_dict().values() if isinstance(tensor, torch.Tensor)]
        bytes_a_value = sum(tensor.numel() * tensor.element_size() for tensor in state) / (count * 3 * 32 * 32)
        print(f"state: {bytes_a_value:g} bytes a pixel and channel")

    def make_step() -> object:
        rows = torch.randperm(count, device=on)[:size]
        view = views.of(rows)
        augmented = images if structure.opponents == "none" else view.apply(images)
        batch = Batch(rows, augmented, labels, torch.zeros(size, dtype=torch.bool, device=on))
        attacked, adversarial, penalty = opponent.show(batch, view, lambda images: images, opponent.draw(batch, 0, 1))
        return step.run(attacked, labels, adversarial, penalty)["loss"].item()

    return make_step


def main(
    batch: Annotated[int, typer.Option()] = 128,
    width: Annotated[int, typer.Option(help="Of the first stage; 64 is a whole ResNet-18.")] = 16,
    repeats: Annotated[int, typer.Option()] = 20,
) -> None:
    values = params.load("profiles/digits.yaml")
    on = device.choose(values)
    print(f"{device.hardware(on)}, torch {torch.__version__}, {device.precision(values, on)}, batch {batch}")
    steppers = {name: stepper(changed(values, name), width, batch, on) for name in WORDS}
    milliseconds: dict[str, list[float]] = {name: [] for name in WORDS}
    for number in range(repeats + 2):
        for name, make_step in steppers.items():  # in turn, as the speed of a shared machine varies
            start = time.perf_counter()
            make_step()
            if number >= 2:
                milliseconds[name].append(1000 * (time.perf_counter() - start))
    for name in WORDS:
        ratio = statistics.median(
            own_time / bare_time for own_time, bare_time in zip(milliseconds[name], milliseconds["bare"], strict=True)
        )
        print(f"{name:9} {statistics.median(milliseconds[name]):8.1f} ms: {PLAIN_PASSES * ratio:.2f} forward passes")


if __name__ == "__main__":
    typer.run(main)
