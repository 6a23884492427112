"""Attack the same images of the same model with Sparring and its peers, in one run.

reads   params.yaml, data/clean/test.parquet and models/pretrained.safetensors of a finished `make repro`
writes  a table to the terminal; --json: the rows {attack, library, images, images_per_second,
        stored_images_per_second, success_float, success_stored, l2_median_stored, linf_max_stored, peak_mb};
        --chart: a bar chart of stored_images_per_second
run     make bench && .venv/bin/python benchmarks/attacks.py --json attacks.json

All get the same steps and budgets. Each runs in a process of its own, on the images that the model classifies
correctly; the rate is the median of --runs runs after one on a small batch. images_per_second is of the attack as
floats. stored_images_per_second is of the whole, until a file is written: by Sparring with its storage, which decides
in float32 what an image is worth and stretches what rounding has undone; by its peers as their users save images,
rounded, in one file of torch.save. What is stored is measured on all images after Sparring's storage.
A library that cannot run is left out, with the reason.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import alone
import matplotlib
import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from sparring import attacks, device, params, store
from sparring.attacks import engine, storage
from sparring.layout import HERE
from sparring.models import classifier, networks
from sparring.models.classifier import Classifier
from sparring.params.attacks import Attack
from sparring.params.errors import InputError

EPS, STEP, STEPS = 6 / 255, 0.005, 10
DEEPFOOL: dict[str, Any] = {"steps": 5, "overshoot": 0.02}
CW: dict[str, Any] = {"c": 1.0, "kappa": 0.0, "steps": 50, "learning_rate": 0.01}
NST = {"steps": 10, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0005, "style": "maps"}
SETTINGS: dict[str, dict[str, Any]] = {
    "gaussian": {"std": 0.1},
    "fgsm": {"eps": EPS},
    "bim": {"eps": EPS, "step": STEP, "first_step": STEP, "steps": STEPS},
    "deepfool": DEEPFOOL,
    "cw": {**CW, "search_steps": 1},
    "nst": NST,
}
# (images, labels) → attacked images
Run = Callable[[Tensor, Tensor], Tensor]


def ours(attack: str, net: Classifier, dtype: torch.dtype, on: torch.device, batch_size: int | None = None) -> Run:
    """Return Sparring's attack, on all images at a time or on `batch_size`."""
    model = engine.Fast(net, on, dtype)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        extra: dict[str, Tensor] = {}
        if attack == "gaussian":
            extra = {"noise": torch.randn(images.shape, device=on)}
        if attack == "nst":
            extra = {"partners": images.roll(1, 0)}
        function = partial(attacks.find(attack), **SETTINGS[attack])
        size = batch_size or len(images)
        parts = [
            engine.run(
                function,
                model,
                images[start : start + size],
                labels[start : start + size],
                {name: value[start : start + size] for name, value in extra.items()},
            )
            for start in range(0, len(images), size)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return run


def with_torchattacks(attack: str, net: Classifier) -> Run:
    import torchattacks

    peer = {
        "gaussian": lambda: torchattacks.GN(net, std=0.1),
        "fgsm": lambda: torchattacks.FGSM(net, eps=EPS),
        "bim": lambda: torchattacks.BIM(net, eps=EPS, alpha=STEP, steps=STEPS),
        "deepfool": lambda: torchattacks.DeepFool(net, **DEEPFOOL),
        "cw": lambda: torchattacks.CW(net, c=CW["c"], kappa=CW["kappa"], steps=CW["steps"], lr=CW["learning_rate"]),
    }[attack]()
    return lambda images, labels: peer(images, labels)


def with_foolbox(attack: str, net: Classifier) -> Run:
    import foolbox

    model = foolbox.PyTorchModel(net, bounds=(0, 1), device=next(net.parameters()).device)
    peer = {
        "fgsm": lambda: foolbox.attacks.LinfFastGradientAttack(random_start=False),
        "bim": lambda: foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=STEP, steps=STEPS, random_start=False),
        "deepfool": lambda: foolbox.attacks.L2DeepFoolAttack(**DEEPFOOL),
        "cw": lambda: foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=1, steps=CW["steps"], stepsize=CW["learning_rate"], initial_const=CW["c"]
        ),
    }[attack]()
    radius = EPS if attack in ("fgsm", "bim") else None
    return lambda images, labels: peer(model, images, labels, epsilons=radius)[1]


def with_art(attack: str, net: Classifier) -> Run:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    shape = (3, 32, 32)
    classes = net(torch.zeros(1, *shape, device=next(net.parameters()).device)).shape[1]
    model = PyTorchClassifier(net, torch.nn.CrossEntropyLoss(), shape, classes, clip_values=(0.0, 1.0))

    def run(images: Tensor, labels: Tensor) -> Tensor:
        size: dict[str, Any] = {"batch_size": len(images)}
        quiet = size | {"verbose": False}
        peer = {
            "fgsm": lambda: evasion.FastGradientMethod(model, eps=EPS, **size),
            "bim": lambda: evasion.BasicIterativeMethod(model, eps=EPS, eps_step=STEP, max_iter=STEPS, **quiet),
            "deepfool": lambda: evasion.DeepFool(model, DEEPFOOL["steps"], DEEPFOOL["overshoot"], classes, **quiet),
            "cw": lambda: evasion.CarliniL2Method(
                model,
                learning_rate=CW["learning_rate"],
                binary_search_steps=1,
                max_iter=CW["steps"],
                initial_const=CW["c"],
                **quiet,
            ),
        }[attack]()
        return torch.from_numpy(peer.generate(images.cpu().numpy(), labels.cpu().numpy())).to(images.device)

    return run


def with_adv_lib(attack: str, net: Classifier) -> Run:
    from adv_lib import attacks as peer

    return {
        "bim": lambda: partial(
            peer.pgd_linf, net, **{"ε": EPS}, steps=STEPS, random_init=False, absolute_step_size=STEP
        ),
        "deepfool": lambda: partial(peer.df, net, **DEEPFOOL),
        "cw": lambda: partial(
            peer.carlini_wagner_l2,
            net,
            learning_rate=CW["learning_rate"],
            initial_const=CW["c"],
            binary_search_steps=1,
            max_iterations=CW["steps"],
        ),
    }[attack]()


PEERS = {"torchattacks": with_torchattacks, "foolbox": with_foolbox, "art": with_art, "adv-lib": with_adv_lib}
ROWS = {
    "gaussian": ["sparring", "torchattacks"],
    "fgsm": ["sparring", "torchattacks", "foolbox", "art"],
    "bim": ["sparring", "torchattacks", "foolbox", "art", "adv-lib"],
    "deepfool": ["sparring", "torchattacks", "foolbox", "art", "adv-lib"],
    # Not ART, whose line search makes a step so long that 100 images took it 23 minutes (on shared cores).
    "cw": ["sparring", "torchattacks", "foolbox", "adv-lib"],
    "nst": ["sparring", "image by image"],
}


def measure(attack: str, library: str, count: int, runs: int) -> dict[str, Any]:
    """Time one row: an attack by a library on `count` images, and its storage."""
    settings = params.load()
    on = device.choose(settings)
    dtype = device.precision(settings, on)
    clean = store.read(HERE.clean / "test.parquet")
    classes = len(clean.metadata["classes"])
    net = networks.load(settings.network, classes, settings.data.image_size, HERE.pretrained).eval().to(on)
    right = classifier.predict(net, clean.image, settings.store.batch_size, on).argmax(1) == clean.label
    clean = clean[np.flatnonzero(right)[:count]]
    images = classifier.to_images(clean.image, on).contiguous()
    # torchattacks' inverse of tanh is infinite at 0 and 1: half a level inside rounds to the same image.
    images = images.clamp(0.5 / 255, 254.5 / 255) if attack == "cw" else images
    labels = torch.from_numpy(clean.label).to(on)
    if library == "sparring":
        run = ours(attack, net, dtype, on)
    elif library == "image by image":
        run = ours(attack, net, dtype, on, batch_size=1)
    else:
        run = PEERS[library](attack, net)
    run(images[:4], labels[:4])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
    seconds = []
    for number in range(runs):
        torch.manual_seed(number)
        start = time.perf_counter()
        adversarial = run(images, labels)
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if on.type == "cuda":
        peak = torch.cuda.max_memory_allocated(on) / 2**20
    adversarial = adversarial.detach().to(on).float()
    spec = Attack(method=attack, arguments=SETTINGS[attack])
    keep = partial(stored, net, engine.Fast(net, on, dtype), clean, adversarial, spec, settings, on)
    first, bounds = keep({})
    writers = {"sparring": partial(keep, bounds), "image by image": partial(keep, bounds)}
    write = writers.get(library, partial(saved, adversarial, labels))
    storing = []
    for _ in range(runs):
        start = time.perf_counter()
        write()
        storing.append(time.perf_counter() - start)
    change = (first.image.astype(np.float64) - clean.image) / 255
    with torch.no_grad():
        floats = net(adversarial).argmax(1).cpu().numpy()
    return {
        "attack": attack,
        "library": library,
        "images": len(clean),
        "images_per_second": round(len(clean) / statistics.median(seconds), 2),
        "stored_images_per_second": round(len(clean) / (statistics.median(seconds) + statistics.median(storing)), 2),
        "success_float": round(float((floats != clean.label).mean()), 4),
        "success_stored": round(float((first.columns["prediction"] != clean.label).mean()), 4),
        "l2_median_stored": round(float(np.median(np.sqrt(np.square(change).sum((1, 2, 3))))), 5),
        "linf_max_stored": round(float(np.abs(change).max()), 5),
        "peak_mb": round(peak, 1),
        "storing": len(clean) / statistics.median(storing),
        "hardware": f"{device.hardware(on)}, gradients in {str(dtype)[6:]}, torch {torch.__version__}",
    }


def stored(
    net: Classifier,
    model: engine.Fast,
    clean: store.Images,
    adversarial: Tensor,
    spec: Attack,
    settings: params.Params,
    on: torch.device,
    bounds: dict[str, float],
) -> tuple[store.Images, dict[str, float]]:
    """Write attacked images to a file as Sparring does. Return them as stored, and the bounds of the predictions.

    bounds: those of the first shard; empty where this is the first.
    """
    judge = storage.Judge(net, len(clean), spec.predictions, bounds)
    faithful = settings.store.model_copy(update={"faithful": True})
    pixels, labels = torch.from_numpy(clean.image).to(on), torch.from_numpy(clean.label).to(on)
    image = storage.store(net, model, pixels, adversarial, labels, spec, faithful, judge).cpu().numpy()
    stored_images = store.Images(clean.index, clean.label, image, judge.predictions())
    with tempfile.TemporaryDirectory() as folder:
        store.write(Path(folder) / "images.parquet", [stored_images], clean.metadata)
    return stored_images, {column: fact["bound"] for column, fact in judge.facts().items()}


def saved(adversarial: Tensor, labels: Tensor) -> None:
    """Round attacked images and save them with their labels, as torchattacks' own `save` does."""
    with tempfile.TemporaryDirectory() as folder:
        rounded = (adversarial * 255).round().to(torch.uint8).cpu()
        torch.save({"adv_inputs": rounded, "labels": labels.cpu()}, Path(folder) / "images.pt")


def chart(rows: pd.DataFrame, path: Path) -> None:
    """Draw the rates in images a second by attack and library, on a logarithmic scale."""
    matplotlib.use("Agg")
    wide = rows.pivot(index="attack", columns="library", values="stored_images_per_second")
    wide = wide.reindex(index=list(dict.fromkeys(rows["attack"])), columns=list(dict.fromkeys(rows["library"])))
    axes = wide.plot.bar(logy=True, rot=0, figsize=(9, 4), width=0.8)
    axes.set(xlabel="", ylabel="attacked and stored, images per second (log)")
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(
    images: Annotated[int, typer.Option(min=8, help="how many images to attack")] = 200,
    runs: Annotated[int, typer.Option(min=1, help="rates are the median of so many runs")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="attacks; all by default")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
    chart_file: Annotated[Path | None, typer.Option("--chart", help="draw a bar chart here (.png, .svg)")] = None,
) -> None:
    """Time Sparring's attacks beside those of torchattacks, Foolbox, ART and adv-lib."""
    for name in only or ():
        if name not in ROWS:
            raise InputError(f"--only is {name}; there are {', '.join(ROWS)}")
    calls: dict[str, tuple[object, ...]] = {
        f"{attack} by {library}": (attack, library, images, runs) for attack in only or ROWS for library in ROWS[attack]
    }
    table = alone.rows(measure, calls)
    hardware, storing = table.pop("hardware"), table.pop("storing")
    print(table.to_markdown(index=False))
    own = table["library"] == "sparring"
    rates = [f"{name} {rate:,.0f}" for name, rate in zip(table["attack"][own], storing[own], strict=True)]
    print(f"\nSparring's storage alone, images/s: {', '.join(rates)}.\n{hardware.iloc[0]}.")
    if json_file:
        json_file.write_text(json.dumps(table.to_dict("records"), indent=1) + "\n")
    if chart_file:
        chart(table, chart_file)


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as problem:
        sys.exit(f"error: {problem}")
