"""An audit: from a model and images to a page on how robust the model is, without a pipeline.

Its modules are used in the order images, model, plan, run, facts, verdict, page.
"""

import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from sparring import statistics
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
from sparring.params.values import Count, Positive, Section, Share, fraction

# Seconds that are planned for all corruptions of an image of 32 pixels, and for the page.
PER_CORRUPTED, FOR_PAGE = 0.006, 8.0


class Limits(Section):
    """The bounds of those options of an audit that are plain numbers."""

    images: Count
    image_size: Annotated[int, Field(ge=8)] | None
    minutes: Positive
    fail_under: Share | None


@dataclass(frozen=True)
class Options:
    """The options of an audit, by their names on the command line.

    eps: in [0, 1] units.  images: how many at most.  batch_size: None for as many images as fit.
    transfer_from: a model; images that are attacked through it are given to the audited model, too.
    command: the command line, for the page.
    """

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
    """Parse the option --eps, in [0, 1] units. Raises InputError for what is no radius in this norm."""
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
    """Parse the option --batch-size; None for auto. Raises InputError for anything but a number of images."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch-size is {text}; use auto, or a number of images, 1 or more")
    return int(text)


def audit(options: Options) -> numbers.Facts:
    """Audit a model, write index.html, audit.md and audit.json into `options.out`, and print each attack's result.

    Raises InputError, before any attack, where the model or the images cannot be used.
    """
    clock = Clock(60 * options.minutes)
    began = time.time()
    work, classes, data = _prepare_work(options, clock)
    has_gradients = work.subject.has_gradients
    size, norm, eps = work.images.image.shape[1], options.norm, options.eps
    transfer_aim = _transfer_aim(options, work) if options.transfer_from else None
    parts = {
        plan.CHECKS: plan.check_attacks(norm, eps, has_gradients),
        plan.CURVE: plan.curve_attacks(norm, eps, size, has_gradients),
        plan.LEAST: plan.minimum_norm_attacks(has_gradients),
    }
    sizes = plan.part_sizes(parts, int(work.right.sum()), clock.seconds, work.rates)
    corruption_seconds = 31 * work.rates.forward + PER_CORRUPTED * (size / 32) ** 2
    end_seconds = FOR_PAGE + min(corruption_seconds * len(work.images), 0.1 * clock.seconds)
    parts_seconds = sum(sizes[name] * plan.part_seconds(name, attacks, work.rates) for name, attacks in parts.items())
    clock.reserved = end_seconds + parts_seconds
    if transfer_aim is not None:
        work.attack(plan.transfer_attack(norm, eps), work.right, plan.WORST, transfer_aim)
    waiting = run.run_worst_case(work, plan.worst_case_attacks(norm, eps, len(classes), has_gradients))
    clock.reserved = end_seconds
    run.run_parts(work, parts, sizes)
    waiting = run.run_worst_case(work, waiting)  # the other parts may have left some of their time
    clock.reserved = FOR_PAGE
    corruptions = run.predict_corrupted(work, corruption_seconds)
    facts = numbers.gather(work, classes, waiting, corruptions)
    verdict = words.verdict(facts, data)
    page.write(options.out, facts, verdict, _page_data(options, work, classes, data, time.time() - began))
    if not waiting:
        shutil.rmtree(options.out / "unfinished", ignore_errors=True)  # nothing is left to go on with
    for sentence in verdict.sentences:
        print(sentence.replace("**", ""))
    print(page.one_line(facts, options.out), flush=True)
    return facts


def _prepare_work(options: Options, clock: Clock) -> tuple[Work, list[str], str]:
    """Open the model and the images. Returns the work before its first attack, the class names and the data set's name.

    Raises InputError where the model or the images cannot be used.
    """
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out is {options.out}, a file; name a folder")
    source = models.open_model(options.model, options.network)
    data_set = images.open_data(options.data)
    named_classes = data_set.classes or [str(number) for number in range(int(data_set.source.label.max()) + 1)]
    size = options.image_size or source.size or images.native_size(data_set, data_set.rows)
    settings = run.settings_of(options.batch_size or 1)
    device = choose(settings)
    net, count = models.load(source, len(named_classes), size, device)
    rows = images.choose(data_set, count, options.images, settings.seed)
    classes = named_classes + [str(number) for number in range(len(named_classes), count)]
    batch_size = options.batch_size or models.largest_batch(net, size, device)
    settings = run.settings_of(batch_size)
    all_images = images.read(data_set, rows, size)
    subject = models.subject(source, net, classes, all_images, options.scaling, batch_size, device)
    probe = all_images[:batch_size]
    pixels, labels = classifier.to_images(probe.image, device), on_device(probe.label, device)
    clean = predict.classified(subject.model, all_images, batch_size, device)
    clean["correct"] = clean["prediction"] == clean["label"]
    if (guessed := statistics.as_if_guessed(clean)) is not None:
        raise InputError(foreign.guessing_sentence(source.path, clean, guessed, "take more --images, or "))
    rates = plan.measure_rates(subject.aim, pixels, labels, subject.has_gradients)
    attacks = plan.worst_case_attacks(options.norm, options.eps, count, subject.has_gradients)
    fits = plan.images_that_fit(len(all_images), clock.seconds - clock.used, rates, attacks)
    folder = run.unfinished_folder(options.out, subject, size, settings, options.norm, options.eps)
    norm, eps = options.norm, options.eps
    work = Work(settings, subject, all_images[:fits], clean[:fits], norm, eps, rates, clock, folder, device)
    if fits < len(all_images):
        rest = len(all_images) - fits
        work.left_out["images"] = f"{rest:,} of {len(all_images):,}, as more --minutes would be needed"
        print(f"note: {fits:,} of {len(all_images):,} images fit {options.minutes:g} minutes", file=sys.stderr)
    passes = f"{1 / rates.gradient:,.0f} passes forward and back, {1 / rates.forward:,.0f} forward a second"
    print(f"{options.model}: {fits:,} images of {size} pixels, {count} classes, {passes}", flush=True)
    if not subject.has_gradients:
        print(f"warning: {options.model} has no gradient; only attacks without one are run", file=sys.stderr)
    return work, classes, data_set.name


def _transfer_aim(options: Options, work: Work) -> engine.Aim:
    """Load the net of --transfer-from for attacks. Raises InputError where it has no gradient or other classes."""
    text, classes, device = str(options.transfer_from), work.subject.model.classes or 0, work.device
    source = models.open_model(text, None)
    net, count = models.load(source, classes, work.images.image.shape[1], device)
    if count != classes:
        raise InputError(f"--transfer-from {text} tells {count} classes apart, the audited model {classes}")
    aim: engine.Aim = foreign.Model(net, source.path, classes, None, device)
    if isinstance(net, Classifier):
        aim = engine.Fast(net, device, torch.float32)
    if not models.has_gradients(aim, work.images[: models.PROBE], device):
        raise InputError(f"--transfer-from {text} has no gradient, so nothing can be made against it; name another")
    return aim


def _page_data(options: Options, work: Work, classes: list[str], data: str, seconds: float) -> sections.PageData:
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
    return sections.PageData(title, options.command, facts, data, work.images, work.pictures)
