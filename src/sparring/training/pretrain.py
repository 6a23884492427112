"""Trains the pretrained net, which is attacked, and which is the baseline of every table."""

import shutil

from sparring import checkpoints, distributed, progress, store
from sparring.checkpoints import Checkpoint
from sparring.device import channels_last, choose, precision
from sparring.layout import HERE, Layout
from sparring.params import Params, check_classes
from sparring.training.gallery import load_gallery
from sparring.training.loop import Opponents, fit
from sparring.training.results import new_net, save_history, save_net
from sparring.training.steps import plain_step


def pretrain(params: Params, layout: Layout = HERE) -> None:
    """Train the pretrained net on the clean training images and save it."""
    device = choose(params)
    dtype = precision(params, device)
    with progress.timed(layout, "pretrain", device, dtype, distributed.size()) as done:
        inputs = [layout.clean / f"{split}.parquet" for split in ("train", "validation")]
        clean, validation = store.read(inputs[0], ()), store.read(inputs[1])
        check_classes(params, len(clean.metadata["classes"]))  # for all attacks, before hours of training
        settings = [params.seed, params.deterministic, params.network, params.training, checkpoints.machine(device)]
        settings += [params.store.batch_size, params.store.memory_budget, distributed.size()]
        unfinished = checkpoints.folder("pretrain", settings, inputs, __name__, device, dtype)
        checkpoint = Checkpoint(unfinished / f"{params.seed}.pt")
        net = new_net(params, "pretrained", len(clean.metadata["classes"]))
        channels_last(net, device)
        history = fit(
            params,
            "pretrained",
            net,
            plain_step(net, params.training, dtype),
            load_gallery(params, layout, [], "", device),
            Opponents(),
            validation,
            checkpoint,
        )
        distributed.wait()  # or one process may still read the checkpoint that another removes
        if distributed.first():
            save_net(params, "pretrained", layout.pretrained, net, dtype, clean)
            save_history(layout.history("pretrained"), history)
            count = len(clean) * params.training.epochs
            done(count, f"{params.training.epochs} epochs of {len(clean):,} images", checkpoint.earlier)
            shutil.rmtree(unfinished)
