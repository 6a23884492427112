"""Audit a model beside AutoAttack: the same images, which of them each breaks, and how long it takes.

reads   a model file of Sparring and a data set, as `python -m sparring audit` does
writes  a line a peer to the terminal; --json: {name: {accuracy, seconds, standing}}, renewed after each peer, and with
        it the images that a peer breaks and the audit does not
run     make bench && .venv/bin/python benchmarks/audit.py models/ours/0.safetensors --data data/clean/test.parquet

Peers are AutoAttack, standard version: torchattacks' (whose APGD and FAB make 10 steps where the original makes 100)
and pyautoattack, which RobustBench uses. They get the model as a user loads it, in batches of 250. The audit's time is
that of its worst case alone and that of all of it, with its page.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

import sparring
from sparring import audit as audits
from sparring import store
from sparring.audit import images as audited_images
from sparring.device import hardware
from sparring.models import classifier
from sparring.models.classifier import Classifier

BATCH = 250


def run_torchattacks(net: Classifier, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    import torchattacks

    attack = torchattacks.AutoAttack(net, norm="Linf", eps=eps, n_classes=net(images[:1]).shape[1], seed=0)
    return torch.cat([attack(*batch) for batch in zip(images.split(BATCH), labels.split(BATCH), strict=True)])


def run_pyautoattack(net: Classifier, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    from pyautoattack import AutoAttack

    attack = AutoAttack(net, norm="Linf", eps=eps, version="standard", seed=0)
    adversarial: Tensor = attack.run_standard_evaluation(images, labels, batch_size=BATCH)[0]
    return adversarial


PEERS: dict[str, Callable[..., Tensor]] = {"torchattacks": run_torchattacks, "pyautoattack": run_pyautoattack}


def main(
    model: Annotated[str, typer.Argument(help="A model file of Sparring.")],
    data: Annotated[str, typer.Option(help="As `audit` takes it.")],
    images: Annotated[int, typer.Option(help="How many.")] = 500,
    eps: Annotated[str, typer.Option(help="The L∞ radius.")] = "8/255",
    minutes: Annotated[float, typer.Option(help="What the audit gets.")] = 10,
    only: Annotated[str, typer.Option(help="Which to run, with commas.")] = "audit,torchattacks,pyautoattack",
    to: Annotated[
        Path | None, typer.Option("--json", help="Where the figures go; one that is there is added to.")
    ] = None,
) -> None:
    """Run the audit and its peers on the same images of a model."""
    radius = audits.radius(eps, "linf")
    audited_set = choose_images(model, data, images)
    figures = json.loads(to.read_text()) if to is not None and to.exists() else {}
    figures |= {"model": model, "images": len(audited_set), "eps": eps, "hardware": hardware(torch.device("cpu"))}
    for name in only.split(","):
        figures[name] = (
            run_audit(model, data, images, radius, minutes)
            if name == "audit"
            else run_peer(name, model, audited_set, radius)
        )
        print(f"{name}: {figures[name]['accuracy']:.3f} in {figures[name]['seconds']:.0f} s", flush=True)
        for peer in set(PEERS) & set(figures):
            if "audit" in figures:
                missed = sorted(set(figures["audit"]["standing"]) - set(figures[peer]["standing"]))
                figures[peer]["breaks_what_the_audit_does_not"] = missed
        if to is not None:
            to.write_text(json.dumps(figures, indent=2) + "\n")


def choose_images(model: str, data: str, count: int) -> store.Images:
    """The images that an audit takes, sorted by index."""
    source = audits.models.open_model(model, None)
    data_set = audited_images.open_data(data)
    rows = audited_images.choose(data_set, len(source.classes or ()), count, 0)
    images = audited_images.read(data_set, rows, int(source.size or 0))
    return images[images.index.argsort(kind="stable")]


def run_peer(name: str, model: str, audited_set: store.Images, eps: float) -> dict[str, object]:
    """Run a peer. Returns the accuracy that it leaves, its seconds, and the indices of the images left standing."""
    net = sparring.load(model)
    images = classifier.to_images(audited_set.image, torch.device("cpu")).contiguous()
    labels = torch.from_numpy(audited_set.label)
    began = time.perf_counter()
    adversarial = PEERS[name](net, images, labels, eps).detach()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        stands = torch.cat([net(batch).argmax(1) for batch in adversarial.split(BATCH)]) == labels
    assert float((adversarial - images).abs().max()) <= eps + 1e-5
    standing = audited_set.index[stands.numpy()].tolist()
    return {"accuracy": len(standing) / len(audited_set), "seconds": seconds, "standing": standing}


def run_audit(model: str, data: str, images: int, eps: float, minutes: float) -> dict[str, object]:
    """Run the audit. Returns the same as `run_peer`, with the seconds of its worst case, and further facts."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        options = audits.Options(model, data, eps=eps, images=images, minutes=minutes, out=Path(folder))
        facts = audits.audit(options)
        whole = time.perf_counter() - began
    standing = facts.images.loc[facts.images["standing"], "index"].tolist()
    seconds = float(facts.attacks["seconds"].sum())
    figures = {"accuracy": facts.worst["accuracy"], "seconds": seconds, "whole_seconds": whole, "standing": standing}
    return figures | {"left_out": facts.left_out, "attacks": facts.attacks.to_dict("records")}


if __name__ == "__main__":
    typer.run(main)
