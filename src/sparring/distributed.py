"""Training on several devices: a process each, started by torchrun, on PyTorch's DistributedDataParallel (DDP).

Every process makes all draws for the whole batch and takes its slice of the rows, so that what is drawn does not depend
on the number of processes. With one process every function here hands back what it was given.
"""

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparring.device import choose
from sparring.params import Params
from sparring.params.errors import InputError

Rows = TypeVar("Rows", Tensor, np.ndarray)
LEAST = 2  # images of a batch that each process gets: BatchNorm has nothing to average over one, where a map is 1×1
PERIOD = 0.5  # seconds between two questions of the processes to each other
PARENT = os.getppid()


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return rank() == 0


def mine(rows: Rows) -> Rows:
    """Of something (N, …) of a whole batch, the rows of this process."""
    return rows if size() == 1 else rows[_start(rank(), len(rows)) : _start(rank() + 1, len(rows))]


def _start(number: int, count: int) -> int:
    return count * number // size()


def parallel(net: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, which uses the net in any way to compute a loss, as DDP calls it: its backward pass leaves in every
    process the average of all processes' gradients.

    On CUDA, the net's BatchNorm becomes SyncBatchNorm, which PyTorch has for GPUs only.
    """
    if size() == 1:
        return forward
    if next(net.parameters()).device.type == "cuda":
        sync_norms(net)
    # Buffers are averaged as it is; to send them at each forward pass would change those of a pass that came before.
    return DistributedDataParallel(_Forward(net, forward), broadcast_buffers=False)


class _Forward(nn.Module):
    def __init__(self, net: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.net = net  # for DDP to find the parameters
        self.run = forward

    def forward(self, *inputs: Any) -> Any:
        return self.run(*inputs)


def sync_norms(net: nn.Module) -> None:
    """Make every BatchNorm of the net a SyncBatchNorm; parameters, names and hooks, which note maps, stay."""
    hooks = {name: module._forward_hooks for name, module in net.named_modules()}
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for name, module in net.named_modules():
        module._forward_hooks = hooks[name]


def weighted(loss: Tensor, whole: int) -> Tensor:
    """A mean over this process's rows, so weighted that the average over processes, which DDP takes of gradients, is
    the mean over the whole batch of `whole` rows, also where the slices are not of one size."""
    if size() == 1:
        return loss
    return loss * ((_start(rank() + 1, whole) - _start(rank(), whole)) * size() / whole)


def average_norms(net: nn.Module) -> None:
    """On the CPU, average BatchNorm's running averages over the processes, each of which has those of its slices."""
    buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    if size() == 1 or not buffers or buffers[0].device.type == "cuda":
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, mean in zip(buffers, (flat / size()).split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def total(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over all processes."""
    if size() > 1:
        for value in sums.values():
            dist.all_reduce(value)
    return sums


def gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, of one shape, by rank."""
    if size() == 1:
        return [tensor]
    found = [torch.empty_like(tensor, device="cpu") for _ in range(size())]
    dist.all_gather(found, tensor.cpu())
    return found


def all_rows(rows: Tensor, whole: int) -> Tensor:
    """The slices (n, …) of all processes as the whole batch (N, …).  whole: N."""
    if size() == 1:
        return rows
    slices = [slice(_start(number, whole), _start(number + 1, whole)) for number in range(size())]
    lengths = [part.stop - part.start for part in slices]
    # Bytes of one length, as that is what every backend gathers.
    sent = rows.new_zeros(max(lengths), *rows.shape[1:])
    sent[: len(rows)] = rows
    found = [torch.empty_like(sent).view(torch.uint8) for _ in slices]
    dist.all_gather(found, sent.view(torch.uint8))
    return torch.cat([part.view(rows.dtype)[:length] for part, length in zip(found, lengths, strict=True)])


def wait() -> None:
    """For all processes."""
    if size() > 1:
        dist.all_reduce(torch.zeros(1))


class Agreement:
    """Lets all processes do the same thing at the same batch, as saving and stopping need."""

    def __init__(self) -> None:
        self._asked = time.monotonic()
        self._batches = self._left = 1

    def __call__(self, *wishes: bool, now: bool = False) -> list[bool]:
        """Which of these any process wishes; to be called by all, at the same batches. As asking makes them wait for
        each other, they do it about twice a second, and `now`; in between nobody's wish counts."""
        if size() == 1:
            return list(wishes)
        self._left -= 1
        if self._left > 0 and not now:
            return [False] * len(wishes)
        batches, time_now = self._batches - self._left, time.monotonic()
        pace = min(PERIOD * batches / max(time_now - self._asked, 1e-6), 1e4)
        told = torch.tensor([*map(float, wishes), pace])  # on the CPU, so that no GPU has to finish what it is at
        dist.all_reduce(told, dist.ReduceOp.MAX)
        self._asked, self._batches = time.monotonic(), max(1, int(told[-1]))
        self._left = self._batches
        return [bool(wish) for wish in told[:-1]]


def orphaned() -> bool:
    """Whether what started the processes is gone, as after SIGKILL, so that nobody waits for them any more."""
    return size() > 1 and os.getppid() != PARENT


def run(params: Params, work: Callable[[], None]) -> None:
    """Do the work in as many processes as `training.devices` says: here, or, where that is more than one, in processes
    that torchrun starts with this one's command line, which come here again and work together.

    Raises InputError for devices that there are not; SystemExit where the processes failed, who have said why.
    """
    processes = count(params)
    if processes == 1:
        work()
    elif "LOCAL_RANK" in os.environ:
        _work_together(choose(params), work)
    else:
        _launch(processes)


def count(params: Params) -> int:
    """How many processes `training.devices` asks for, or torchrun has started. Raises InputError as `run` does."""
    device, wanted = choose(params), params.training.devices
    gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    processes = wanted if isinstance(wanted, int) else gpus
    if device.type == "cpu" and wanted == "auto":
        processes = 1
    if "LOCAL_RANK" in os.environ:
        processes = int(os.environ["WORLD_SIZE"])
        if wanted not in ("auto", processes):
            raise InputError(f"params.yaml: training.devices is {wanted}; torchrun has started {processes}; use auto")
    if device.type == "cuda" and processes > gpus:
        raise InputError(
            f"params.yaml: training.devices is {wanted}; device {params.device} has {gpus} CUDA GPUs for {processes} "
            "processes; use auto"
        )
    if processes > 1 and params.training.batch_size < LEAST * processes:
        raise InputError(
            f"params.yaml: training.batch_size is {params.training.batch_size}; {processes} devices share it and need "
            f"{LEAST} images each; use {LEAST * processes} or more, or fewer training.devices"
        )
    return processes


def _launch(processes: int) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # torchrun's own account of a failure that the processes have told in one line
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")  # for the last batch and the checkpoint
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody else on the network is to join
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except SignalException:
            raise SystemExit(1) from None
        except ChildFailedError as failed:
            number, failure = failed.get_first_failure()
            if failure.exitcode > 0:
                raise SystemExit(failure.exitcode) from None
            ended = signal.Signals(-failure.exitcode).name
            raise SystemExit(f"error: process {number} of {processes} was ended by {ended}") from None


def _work_together(device: torch.device, work: Callable[[], None]) -> None:
    """Join the other processes and work. Of all that end in the same error, or in consequence of one, one tells."""
    from torch.distributed.rendezvous import rendezvous

    def leave(number: int, frame: object) -> None:
        raise SystemExit("stopped")

    def heed(handler: Callable[[int, object], None] | signal.Handlers) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handler)

    heed(leave)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    store, number, processes = next(rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=number, world_size=processes)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if first() else nowhere):
            work()
    except BaseException as error:
        heed(signal.SIG_IGN)  # torchrun ends the others as soon as one has ended, and they may yet have to tell
        # Where who launched this process is gone, so are the store of what is told and whoever would read it.
        told = orphaned() or store.add("told", 1) > 1
        if isinstance(error, InputError | SystemExit):
            dist.destroy_process_group()
        if told:
            raise SystemExit(1) from None
        raise
    heed(signal.SIG_IGN)  # all is done
    dist.destroy_process_group()
