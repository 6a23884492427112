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


def torchattacks_(net: Classifier, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    import torchattacks

    attack = torchattacks.AutoAttack(net, norm="Linf", eps=eps, n_classes=net(images[:1]).shape[1], seed=0)
    return torch.cat([attack(*batch) for batch in zip(images.split(BATCH), labels.split(BATCH), strict=True)])


def pyautoattack_(net: Classifier, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    from pyautoattack import AutoAttack

    attack = AutoAttack(net, norm="Linf", eps=eps, version="standard", seed=0)
    found: Tensor = attack.run_standard_evaluation(images, labels, batch_size=BATCH)[0]
    return found


PEERS: dict[str, Callable[..., Tensor]] = {"torchattacks": torchattacks_, "pyautoattack": pyautoattack_}


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
    """Audit a model beside its peers."""
    radius = audits.radius(eps, "linf")
    shown = chosen(model, data, images)
    found = json.loads(to.read_text()) if to is not None and to.exists() else {}
    found |= {"model": model, "images": len(shown), "eps": eps, "hardware": hardware(torch.device("cpu"))}
    for name in only.split(","):
        found[name] = (
            audited(model, data, images, radius, minutes) if name == "audit" else attacked(name, model, shown, radius)
        )
        print(f"{name}: {found[name]['accuracy']:.3f} in {found[name]['seconds']:.0f} s", flush=True)
        for peer in set(PEERS) & set(found):
            if "audit" in found:
                missed = sorted(set(found["audit"]["standing"]) - set(found[peer]["standing"]))
                found[peer]["breaks_what_the_audit_does_not"] = missed
        if to is not None:
            to.write_text(json.dumps(found, indent=2) + "\n")


def chosen(model: str, data: str, count: int) -> store.Images:
    """The images that an audit takes, sorted by index."""
    told = audits.models.open_model(model, None)
    opened = audited_images.open_data(data)
    rows = audited_images.choose(opened, len(told.classes or ()), count, 0)
    found = audited_images.read(opened, rows, int(told.size or 0))
    return found[found.index.argsort(kind="stable")]


def attacked(name: str, model: str, shown: store.Images, eps: float) -> dict[str, object]:
    """What a peer leaves standing, and its seconds."""
    net = sparring.load(model)
    images = classifier.to_images(shown.image, torch.device("cpu")).contiguous()
    labels = torch.from_numpy(shown.label)
    began = time.perf_counter()
    adversarial = PEERS[name](net, images, labels, eps).detach()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        stands = torch.cat([net(batch).argmax(1) for batch in adversarial.split(BATCH)]) == labels
    assert float((adversarial - images).abs().max()) <= eps + 1e-5
    standing = shown.index[stands.numpy()].tolist()
    return {"accuracy": len(standing) / len(shown), "seconds": seconds, "standing": standing}


def audited(model: str, data: str, images: int, eps: float, minutes: float) -> dict[str, object]:
    """The same of the audit; seconds are those of its worst case."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        options = audits.Options(model, data, eps=eps, images=images, minutes=minutes, out=Path(folder))
        found = audits.audit(options)
        whole = time.perf_counter() - began
    standing = found.images.loc[found.images["standing"], "index"].tolist()
    seconds = float(found.attacks["seconds"].sum())
    facts = {"accuracy": found.worst["accuracy"], "seconds": seconds, "whole_seconds": whole, "standing": standing}
    return facts | {"left_out": found.left_out, "attacks": found.attacks.to_dict("records")}


if __name__ == "__main__":
    typer.run(main)
