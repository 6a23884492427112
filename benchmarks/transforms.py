"""Measures what a random transform adds to a training step: the time to draw and apply it to a batch.

run     python benchmarks/transforms.py [--batch 64] [--repeats 30]

Prints a row a transform: milliseconds, and the share of a step of a ResNet-34 of a quarter of the width and of dnn4, on
images of 32×32 pixels. Every figure is a median. Alone on the machine, or the figures are worth nothing.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer

from sparring import device, params
from sparring.data.transforms import RandomTransform
from sparring.models import networks
from sparring.params.sections import Network
from sparring.training.steps import Step, plain_step

NETS = {
    "resnet34/4": Network(name="resnet", blocks=[3, 4, 6, 3], width=16),
    "dnn4": Network(name="dnn4", dropout=0.0),
}
WORDS = ("mask", "padding", "mask_padding", "noise", "cutout", "erasing", "resizing")


def median(run: Callable[[], object], repeats: int) -> float:
    """Return the median time of a run, in milliseconds."""
    milliseconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        run()
        milliseconds.append(1000 * (time.perf_counter() - start))
    return statistics.median(milliseconds[3:])


def main(batch: Annotated[int, typer.Option()] = 64, repeats: Annotated[int, typer.Option()] = 30) -> None:
    values = params.load("profiles/digits.yaml")
    on = device.choose(values)
    dtype = device.precision(values, on)
    images = torch.rand(batch, 3, 32, 32, device=on).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=on)
    none = torch.zeros(batch, dtype=torch.bool, device=on)
    steps = {}
    for name, network in NETS.items():
        net = device.channels_last(networks.create(network, 10, 32), on).train()
        step = plain_step(net, values.training, dtype)

        def run(step: Step = step) -> None:
            step.run(images, labels, none)["loss"].item()

        steps[name] = median(run, repeats)
    print(f"{device.hardware(on)}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}, batch {batch}")
    print("steps: " + ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in steps.items()))
    numbers = np.random.default_rng(0).permutation(50_000)[:batch]
    for word in WORDS:
        transform = RandomTransform(word, getattr(values, word), (0.5, 0.5, 0.5))

        def apply_draw(transform: RandomTransform = transform) -> float:
            return float(transform.draw((3, 32, 32), numbers, 0, "transform", 0)(images).flatten()[0])

        milliseconds = median(apply_draw, repeats)
        shares = ", ".join(
            f"{milliseconds / step_milliseconds:.1%} of {name}" for name, step_milliseconds in steps.items()
        )
        print(f"{word:13} {milliseconds:5.2f} ms: {shares}", flush=True)


if __name__ == "__main__":
    typer.run(main)
