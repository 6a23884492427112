"""How robust is a model of one's own? From a model and images to a page, without a pipeline.

images → model → plan → run → facts → verdict → page
"""

import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sparring.attacks import engine
from sparring.audit import facts as numbers
from sparring.audit import images, page, plan, run, sections
from sparring.audit import model as models
from sparring.audit import verdict as words
from sparring.audit.plan import Clock
from sparring.audit.run import Work
from sparring.device import choose, hardware, on_device
from sparring.evaluation import foreign, predict
from sparring.models import classifier
from sparring.models.classifier import Classifier
from sparring.params.errors import InputError
from sparring.params.sections import Network
from sparring.params.values import fraction

# Seconds, from which the time is planned: making all corruptions of an image of 32 pixels, and the page.
PER_CORRUPTED, FOR_PAGE = 0.006, 8.0


@dataclass(frozen=True)
class Options:
    """What is asked for; the names are those of the command line.  eps: in [0, 1] units.  batch_size: None for what
    fits.  transfer_from: a model whose attacked images are shown to this one, too."""

    model: str
    data: str
    network: Network | None = None
    scaling: foreign.Scaling | None = None
    norm: str = "linf"
    eps: float = 8 / 255
    images: int = 1000
    minutes: float = 10.0
    out: Path = Path("audit")
    batch_size: int | None = None
    image_size: int | None = None
    transfer_from: str | None = None
    command: str = ""


def radius(text: str, norm: str) -> float:
    """The option --eps, in [0, 1] units. Raises InputError for what is no radius in this norm."""
    if norm not in ("linf", "l2"):
        raise InputError(f"--norm is {norm}; use linf or l2")
    try:
        value = float(fraction(text))
    except ValueError as error:
        raise InputError(f"--eps is {text}; write a number or a fraction, as in 8/255") from error
    if not 0 < value < math.inf:
        raise InputError(f"--eps is {text}; it is a radius, so a number above 0")
    level = round(255 * value)
    if norm == "linf" and (value > 1 or level < 1 or abs(255 * value - level) > 0.01):
        near = min(max(1, level if value <= 1 else round(value)), 255)
        raise InputError(
            f"--eps is {text}; images have 256 levels, so a radius in linf is a whole number of them: use {near}/255"
        )
    return level / 255 if norm == "linf" else value


def batch_size(text: str) -> int | None:
    """The option --batch-size; None for auto. Raises InputError for anything but a number of images."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch-size is {text}; use auto, or a number of images, 1 or more")
    return int(text)


def positive(option: str, value: float) -> float:
    """A number above 0. Raises InputError for any other."""
    if not 0 < value < math.inf:
        raise InputError(f"{option} is {value:g}; it is a number above 0")
    return value


def audit(options: Options) -> numbers.Facts:
    """Audit a model and write the page, audit.md and audit.json into `options.out`; prints what each attack did.

    Raises InputError, before any attack, where the model or the images cannot be used.
    """
    clock = Clock(60 * options.minutes)
    began = time.time()
    work, classes, data = _begin(options, clock)
    gradients = work.subject.gradients
    size, norm, eps = work.images.image.shape[1], options.norm, options.eps
    other = _other(options, work) if options.transfer_from else None
    parts = {
        plan.CHECKS: plan.checks(norm, eps, gradients),
        plan.CURVE: plan.curve(norm, eps, size, gradients),
        plan.LEAST: plan.least_norms(gradients),
    }
    sizes = plan.sizes(parts, int(work.right.sum()), clock.seconds, work.rates)
    each = 31 * work.rates.forward + PER_CORRUPTED * (size / 32) ** 2
    for_end = FOR_PAGE + min(each * len(work.images), 0.1 * clock.seconds)
    for_parts = sum(sizes[name] * plan.part_seconds(name, steps, work.rates) for name, steps in parts.items())
    clock.reserved = for_end + for_parts
    if other is not None:
        work.attack(plan.transfer(norm, eps), work.right, plan.WORST, other)
    waiting = run.climb(work, plan.ladder(norm, eps, len(classes), gradients))
    clock.reserved = for_end
    run.parts(work, parts, sizes)
    waiting = run.climb(work, waiting)  # the other parts may have left some of their time
    clock.reserved = FOR_PAGE
    corruptions = run.corrupted(work, each)
    found = numbers.gather(work, classes, waiting, corruptions)
    verdict = words.verdict(found, data)
    page.write(options.out, found, verdict, _made(options, work, classes, data, time.time() - began))
    if not waiting:
        shutil.rmtree(options.out / "unfinished", ignore_errors=True)  # nothing is left to go on with
    for sentence in verdict.sentences:
        print(sentence.replace("**", ""))
    print(page.one_line(found, options.out), flush=True)
    return found


def _begin(options: Options, clock: Clock) -> tuple[Work, list[str], str]:
    """The work before its first attack, the names of the classes, and the data set's name."""
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out is {options.out}, a file; name a folder")
    opened = models.open_model(options.model, options.network)
    data = images.open_data(options.data)
    known = data.classes or [str(number) for number in range(int(data.source.label.max()) + 1)]
    size = options.image_size or opened.size or images.native_size(data, data.rows)
    settings = run.settings_of(options.batch_size or 1)
    device = choose(settings)
    net, count = models.load(opened, len(known), size, device)
    chosen = images.choose(data, count, options.images, settings.seed)
    classes = known + [str(number) for number in range(len(known), count)]
    batch_size = options.batch_size or models.largest_batch(net, size, device)
    settings = run.settings_of(batch_size)
    loaded = images.read(data, chosen, size)
    subject = models.subject(opened, net, classes, loaded, options.scaling, batch_size, device)
    probe = loaded[:batch_size]
    pixels, labels = classifier.to_images(probe.image, device), on_device(probe.label, device)
    clean = predict.classified(subject.model, loaded, batch_size, device)
    clean["correct"] = clean["prediction"] == clean["label"]
    models.check_better_than_guessing(options.model, clean)
    rates = plan.measured(subject.aim, pixels, labels, subject.gradients)
    steps = plan.ladder(options.norm, options.eps, count, subject.gradients)
    fits = plan.images_that_fit(len(loaded), clock.seconds - clock.used, rates, steps)
    folder = run.unfinished(options.out, subject, size, settings, options.norm, options.eps)
    work = Work(settings, subject, loaded[:fits], clean[:fits], options.norm, options.eps, rates, clock, folder, device)
    if fits < len(loaded):
        work.left_out["images"] = f"{len(loaded) - fits:,} of {len(loaded):,}, as more --minutes would be needed"
        print(f"note: {fits:,} of {len(loaded):,} images fit {options.minutes:g} minutes", file=sys.stderr)
    passes = f"{1 / rates.gradient:,.0f} passes forward and back, {1 / rates.forward:,.0f} forward a second"
    print(f"{options.model}: {fits:,} images of {size} pixels, {count} classes, {passes}", flush=True)
    if not subject.gradients:
        print(f"warning: {options.model} has no gradient; only attacks without one are run", file=sys.stderr)
    return work, classes, data.name


def _other(options: Options, work: Work) -> engine.Aim:
    """What attacks ask of the net of --transfer-from. Raises InputError where it has no gradient or other classes."""
    text, classes, device = str(options.transfer_from), work.subject.model.classes or 0, work.device
    opened = models.open_model(text, None)
    net, count = models.load(opened, classes, work.images.image.shape[1], device)
    if count != classes:
        raise InputError(f"--transfer-from {text} tells {count} classes apart, the audited model {classes}")
    aim: engine.Aim = foreign.Model(net, opened.path, classes, None, device)
    if isinstance(net, Classifier):
        aim = engine.Fast(net, device, torch.float32)
    if not models.has_gradients(aim, work.images[: models.PROBE], device):
        raise InputError(f"--transfer-from {text} has no gradient, so nothing can be made against it; name another")
    return aim


def _made(options: Options, work: Work, classes: list[str], data: str, seconds: float) -> sections.Made:
    facts = {
        "model": options.model,
        "model_digest": work.subject.digest,
        "data": options.data,
        "image_size": int(work.images.image.shape[1]),
        "number_of_classes": len(classes),
        "minutes": options.minutes,
        "seconds": round(seconds, 1),
        "batch_size": work.settings.store.batch_size,
        "hardware": hardware(work.device),
        "torch": torch.__version__,
    }
    name = Path(options.model).name
    title = f"How robust is {name}? An audit"
    return sections.Made(title, options.command, facts, data, work.images, work.pictures)
