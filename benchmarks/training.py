"""Time one training step of each structure, the bare step that it cannot beat, and a plain loop in the manner of
published code, in one run.

reads   params.yaml, data/clean/train.parquet and data/adversarial/*/train.parquet of a finished `make repro`
writes  a table to the terminal; --json: the rows {name, network, batch, images_per_second, peak_mb}
run     .venv/bin/python benchmarks/training.py --width 64 --json training.json

bare               forward, backward and update of the net on one batch that is in memory already
adv, ours_*        what the pipeline does for a batch: draw, gather, crop, scale, step; full or low, 4 or 2 layers
plain_*            the same training from JPEG files: one sample at a time by two DataLoader workers, float32, attention
                   written out with dropout on its weights, every token through every layer, two backward passes
sampler            drawing, gathering, cropping and scaling alone
dataloader         the plain loop's DataLoader alone

Each runs in a process of its own. Weights are random, as they do not decide the speed, and both detectors have the
article's centre, layer2. A rate is the median of --runs runs of --steps batches, after a step on eight images.
peak_mb is what the process came to hold beyond the stores: its resident memory on a CPU, without that of the workers.
"""

import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Annotated, Any

import alone
import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as plain_transforms

from sparring import device, params, store
from sparring.data import augmentation
from sparring.defences import sampler
from sparring.defences.joint import joint_step
from sparring.layout import HERE
from sparring.models import classifier, networks
from sparring.models.classifier import Classifier
from sparring.models.detector import HEADS, MLP_RATIO, TransformerDetector
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.sections import Network
from sparring.params.structures import Detector
from sparring.training.gallery import Gallery
from sparring.training.steps import plain_step, sgd, update

ROWS = ("bare", "adv", "ours_full_4", "ours_low_2", "plain_adv", "plain_ours_full_4", "sampler", "dataloader")
DETECTORS: dict[str, dict[str, object]] = {
    "full_4": {"input": "full", "layers": 4, "tokens": "channel", "centre": "layer2"},
    "low_2": {"input": "low", "layers": 2, "tokens": "position", "centre": "layer2"},
}
RESNET34 = [3, 4, 6, 3]
WARM_UP = 8  # images
BATCHES_FOR_A_STEP = 50  # of the rows without a net, which would be over too soon to be timed

Batch = tuple[Tensor, Tensor, Tensor]


def read_versions(settings: Params, count: int | None) -> list[store.Images]:
    """Read the first `count` training images, clean and under every attack."""
    versions = [store.read(HERE.clean / "train.parquet")]
    versions += [store.read(HERE.adversarial / name / "train.parquet", ("image", "linf")) for name in settings.attacks]
    return [images[:count] for images in versions]


def sampled_batches(settings: Params, gallery: Gallery) -> Generator[Batch, None, None]:
    """Yield whole batches as the training loop draws them, epoch after epoch."""
    training, names = settings.training, list(settings.attacks)
    count, size = len(gallery.label), training.batch_size
    for epoch in itertools.count():
        visits = device.rng(settings.seed, "order", epoch).permutation(count)
        version = sampler.draw(
            settings.sampler,
            names,
            seed=settings.seed,
            epoch=epoch,
            visits=visits,
            batch_size=size,
        )
        views = augmentation.draw(training, count, settings.seed, epoch, gallery.device)
        visits_of_whole_batches = [visits[: count - count % size]]
        for rows, images, labels, adversarial in gallery.batches(visits_of_whole_batches, version, size, 0):
            yield views.of(rows).apply(images), labels, adversarial


def write_folders(settings: Params, count: int | None, folder: Path) -> None:
    """Write folder/version/class/row.jpg for every training image, clean and under every attack."""
    for version, images in enumerate(read_versions(settings, count)):
        for row, (image, label) in enumerate(zip(images.image, images.label, strict=True)):
            path = folder / str(version) / str(label) / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(image).astype(np.uint8)).save(path)


class JpegFolders(Dataset[tuple[Tensor, int, bool]]):
    """Reads one sample at a time: it picks at random the clean or an attacked file, opens, decodes and crops it."""

    def __init__(self, settings: Params, folder: Path) -> None:
        self.folder, self.share = folder, settings.sampler.adv_ratio
        self.versions = len(settings.attacks)
        self.samples = sorted((int(path.stem), path.parent.name) for path in folder.glob("0/*/*.jpg"))
        steps = [
            plain_transforms.RandomResizedCrop(settings.data.image_size, tuple(settings.training.crop_area)),
            plain_transforms.RandomHorizontalFlip(0.5 if settings.training.horizontal_flip else 0),
            plain_transforms.ToTensor(),
        ]
        self.transform = plain_transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, bool]:
        row, label = self.samples[index]
        adversarial = torch.rand(()).item() < self.share
        version = 1 + int(torch.randint(self.versions, ())) if adversarial else 0
        with Image.open(self.folder / str(version) / label / f"{row}.jpg") as image:
            return self.transform(image.convert("RGB")), int(label), adversarial


def jpeg_batches(settings: Params, folder: Path, on: torch.device) -> Generator[Batch, None, None]:
    """Yield batches from JPEG files, epoch after epoch. The workers stay, so that their start is not timed."""
    size = settings.training.batch_size
    loader = DataLoader(
        JpegFolders(settings, folder),
        size,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork",  # Linux's default; else the workers would inherit the row's spawn
    )
    while True:
        for images, labels, adversarial in loader:
            yield images.to(on), labels.to(on), adversarial.to(on)


class PlainLayer(nn.Module):
    """A pre-norm Transformer encoder layer with its attention written out."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.Linear(dim, MLP_RATIO * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(MLP_RATIO * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Tensor, class_only: bool = False) -> Tensor:
        """Transform tokens (N, T, dim). All are returned, whatever class_only is."""
        count, length, dim = tokens.shape
        parts = self.qkv(self.norm1(tokens)).reshape(count, length, 3, HEADS, dim // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        weights = self.dropout((query @ key.transpose(-2, -1) * (dim // HEADS) ** -0.5).softmax(-1))
        tokens = tokens + self.projection((weights @ value).transpose(1, 2).reshape(count, length, dim))
        return tokens + self.mlp(self.norm2(tokens))


def plain_joint(
    settings: Params,
    detector_settings: Detector,
    net: Classifier,
    pretrained: Classifier,
    detector: TransformerDetector,
) -> Any:
    """Return a step of joint training with two backward passes: first the detector's, then the net's."""
    optimizer = sgd(net, settings.training.learning_rate, settings.training)
    detector_optimizer = sgd(detector, detector_settings.learning_rate, settings.training)

    def run(images: Tensor, labels: Tensor, adversarial: Tensor) -> None:
        with torch.no_grad():
            source_maps = pretrained.maps(images)
        update(detector_optimizer, F.cross_entropy(detector(source_maps), adversarial.long()))
        maps = net.maps(images)
        matching = F.smooth_l1_loss(detector.token(maps), detector.token(source_maps).detach())
        update(optimizer, F.cross_entropy(net.classify(maps), labels) + matching)

    return run


def learning_step(
    name: str, settings: Params, network: Network, classes: int, on: torch.device, dtype: torch.dtype
) -> Any:
    """Return the function by which a row learns from a batch."""
    is_plain = name.startswith("plain")
    net, pretrained = (networks.create(network, classes, settings.data.image_size) for _ in range(2))
    net.train()
    if is_plain:
        net, pretrained = net.to(on), pretrained.to(on).eval()
        dtype = torch.float32
    else:
        device.channels_last(net, on)
    if "ours" not in name:
        return plain_step(net, settings.training, dtype).run
    detector_values = settings.detector.model_dump() | DETECTORS[name.split("ours_")[1]]
    detector_settings = Detector.model_validate(detector_values)
    detector = TransformerDetector(detector_settings, classifier.map_shapes(net, settings.data.image_size))
    if is_plain:
        dim = detector.position.shape[-1]
        detector.layers = nn.ModuleList(
            PlainLayer(dim, detector_settings.dropout) for _ in range(detector_settings.layers)
        )
        return plain_joint(settings, detector_settings, net, pretrained, detector.to(on))
    helper = device.channels_last(networks.frozen(pretrained), on)
    return joint_step(net, helper, detector.to(on), settings.training, detector_settings, dtype).run


def measure(name: str, width: int | None, images: int | None, steps: int, runs: int, folder: Path) -> dict[str, Any]:
    """Time one row, and measure its memory.  folder: the JPEG files of write_folders."""
    settings = params.load()
    on = device.choose(settings)
    dtype = device.precision(settings, on)
    network = settings.network
    if width is not None:
        network = network.model_copy(update={"blocks": RESNET34, "width": width})
    size = settings.training.batch_size
    torch.manual_seed(settings.seed)
    if name.startswith("plain") or name == "dataloader":
        classes = len(list((folder / "0").iterdir()))
        batches = jpeg_batches(settings, folder, on)
    else:
        clean, *attacked = read_versions(settings, images)
        classes = len(clean.metadata["classes"])
        pixels = np.stack([version.image for version in (clean, *attacked)])
        batches = sampled_batches(settings, Gallery(pixels, clean, attacked, on))
        del clean, attacked, pixels
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
    before = torch.cuda.memory_allocated(on) / 2**20 if on.type == "cuda" else resident()
    step: Callable[..., object] = lambda *batch: None  # noqa: E731
    if name in ("sampler", "dataloader"):
        steps *= BATCHES_FOR_A_STEP
    else:
        step = learning_step(name, settings, network, classes, on, dtype)
    first = next(batches)
    source = itertools.repeat(first) if name == "bare" else batches
    step(*(part[:WARM_UP] for part in first))
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        for batch in itertools.islice(source, steps):
            step(*batch)
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(on) / 2**20 if on.type == "cuda" else resident()
    batches.close()  # ends the workers, for which the process would wait
    return {
        "name": name,
        "network": "none" if name in ("sampler", "dataloader") else network.words,
        "batch": size,
        "images_per_second": round(size * steps / statistics.median(seconds), 2),
        "peak_mb": round(peak - before, 1),
        "hardware": f"{device.hardware(on)}, {str(dtype)[6:]}, torch {torch.__version__}",
    }


def resident() -> float:
    """Return the most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ratios(rates: dict[str, float]) -> Iterator[str]:
    """Yield sentences that compare the rates, for the rows that were measured."""
    for first, second, text in (
        ("adv", "bare", "adv has {:.1%} of the bare step's rate"),
        ("ours_full_4", "plain_ours_full_4", "ours_full_4 has {:.2f} times the plain loop's rate"),
        ("adv", "plain_adv", "adv has {:.2f} times the plain loop's rate"),
        ("sampler", "dataloader", "the sampler has {:.1f} times the DataLoader's rate"),
    ):
        if first in rates and second in rates:
            yield text.format(rates[first] / rates[second])
    for name in ("ours_low_2", "ours_full_4"):
        if name in rates and "adv" in rates:
            yield f"{name} takes {rates['adv'] / rates[name]:.2f} times the time of adv"


def main(
    width: Annotated[int | None, typer.Option(help="a ResNet-34 of this width, not params.yaml's network")] = None,
    images: Annotated[int | None, typer.Option(min=64, help="how many training images; all by default")] = None,
    steps: Annotated[int, typer.Option(min=1, help="batches a run")] = 3,
    runs: Annotated[int, typer.Option(min=1, help="rates are the median of so many runs")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="rows; all by default")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
) -> None:
    """Time the training steps of Sparring beside the bare step and a plain loop."""
    for name in only or ():
        if name not in ROWS:
            raise InputError(f"--only is {name}; there are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        write_folders(params.load(), images, Path(folder))
        table = alone.rows(measure, {name: (name, width, images, steps, runs, Path(folder)) for name in only or ROWS})
    hardware = table.pop("hardware")
    print(table.to_markdown(index=False))
    rates = dict(zip(table["name"], table["images_per_second"], strict=True))
    print(f"\n{hardware.iloc[0]}.\n" + "".join(f"{text}.\n" for text in ratios(rates)))
    if json_file:
        json_file.write_text(json.dumps(table.to_dict("records"), indent=1) + "\n")


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as problem:
        sys.exit(f"error: {problem}")
