"""Training runs on several devices by PyTorch's DistributedDataParallel (DDP). torchrun starts a process for each.

Every process makes all draws for the whole batch and takes its slice of the rows, so that what is drawn does not depend
on the number of processes. With one process every function here returns its argument.
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
LEAST = 2  # the fewest images of a batch for a process: BatchNorm cannot average over one image where a map is 1×1
PERIOD = 0.5  # seconds from one exchange of an Agreement to the next
PARENT = os.getppid()


def size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def first() -> bool:
    """Tell whether this is the process that writes files and shows progress."""
    return rank() == 0


def mine(rows: Rows) -> Rows:
    """Return this process's slice of the rows (N, …) of a whole batch."""
    return rows if size() == 1 else rows[_start(rank(), len(rows)) : _start(rank() + 1, len(rows))]


def _start(number: int, count: int) -> int:
    """Return the first of `count` rows that belongs to the process of this number."""
    return count * number // size()


def parallel(net: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `forward`, which computes a loss with the net, in DDP. Its backward pass then leaves in every process the
    average of all processes' gradients.

    On CUDA, the net's BatchNorm becomes SyncBatchNorm, which PyTorch has for GPUs only.
    """
    if size() == 1:
        return forward
    if next(net.parameters()).device.type == "cuda":
        sync_norms(net)
    # `average_norms` averages the buffers. Sending them at each forward pass would change those of an earlier pass.
    return DistributedDataParallel(_Forward(net, forward), broadcast_buffers=False)


class _Forward(nn.Module):
    def __init__(self, net: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.net = net  # for DDP to find the parameters
        self.run = forward

    def forward(self, *inputs: Any) -> Any:
        return self.run(*inputs)


def sync_norms(net: nn.Module) -> None:
    """Make every BatchNorm of the net a SyncBatchNorm. Parameters, names and the hooks that keep feature maps stay."""
    hooks = {name: module._forward_hooks for name, module in net.named_modules()}
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for name, module in net.named_modules():
        module._forward_hooks = hooks[name]


def weighted(loss: Tensor, whole: int) -> Tensor:
    """Weight a mean over this process's rows so that the average over the processes is the mean over the whole batch.

    DDP gives the gradients of all processes the same weight, although their slices may differ in size.
    whole: the number of rows of the whole batch.
    """
    if size() == 1:
        return loss
    return loss * ((_start(rank() + 1, whole) - _start(rank(), whole)) * size() / whole)


def average_norms(net: nn.Module) -> None:
    """Average BatchNorm's running averages over the processes. On CUDA SyncBatchNorm does so, and nothing is done."""
    buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    if size() == 1 or not buffers or buffers[0].device.type == "cuda":
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, mean in zip(buffers, (flat / size()).split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def total(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add up each of the tensors over all processes, in place."""
    if size() > 1:
        for value in sums.values():
            dist.all_reduce(value)
    return sums


def gather(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, which are of one shape, in the order of their ranks."""
    if size() == 1:
        return [tensor]
    tensors = [torch.empty_like(tensor, device="cpu") for _ in range(size())]
    dist.all_gather(tensors, tensor.cpu())
    return tensors


def all_rows(rows: Tensor, whole: int) -> Tensor:
    """Join the slices (n, …) of all processes to the whole batch (N, …).

    whole: N.
    """
    if size() == 1:
        return rows
    slices = [slice(_start(number, whole), _start(number + 1, whole)) for number in range(size())]
    lengths = [part.stop - part.start for part in slices]
    # Every backend can gather bytes of one length.
    sent = rows.new_zeros(max(lengths), *rows.shape[1:])
    sent[: len(rows)] = rows
    gathered = [torch.empty_like(sent).view(torch.uint8) for _ in slices]
    dist.all_gather(gathered, sent.view(torch.uint8))
    return torch.cat([part.view(rows.dtype)[:length] for part, length in zip(gathered, lengths, strict=True)])


def wait() -> None:
    """Wait until all processes have come here."""
    if size() > 1:
        dist.all_reduce(torch.zeros(1))


class Agreement:
    """An agreement lets all processes act at the same batch, as saving and stopping need."""

    def __init__(self) -> None:
        self._last_question = time.monotonic()
        self._batches = self._left = 1

    def __call__(self, *wishes: bool, now: bool = False) -> list[bool]:
        """Tell for each wish whether any process has it. All processes must call this at the same batches.

        An exchange makes the processes wait for each other, so there is one about every PERIOD seconds, and one where
        `now` is true. Between the exchanges every answer is False.
        """
        if size() == 1:
            return list(wishes)
        self._left -= 1
        if self._left > 0 and not now:
            return [False] * len(wishes)
        batches, time_now = self._batches - self._left, time.monotonic()
        pace = min(PERIOD * batches / max(time_now - self._last_question, 1e-6), 1e4)
        answers = torch.tensor([*map(float, wishes), pace])  # on the CPU, so that no GPU has to finish what it is at
        dist.all_reduce(answers, dist.ReduceOp.MAX)
        self._last_question, self._batches = time.monotonic(), max(1, int(answers[-1]))
        self._left = self._batches
        return [bool(wish) for wish in answers[:-1]]


def orphaned() -> bool:
    """Tell whether the process that started these has ended, as after SIGKILL, so that nobody waits for them."""
    return size() > 1 and os.getppid() != PARENT


def run(params: Params, work: Callable[[], None]) -> None:
    """Do the work in as many processes as `training.devices` says.

    If it is one, this process does the work. Otherwise torchrun starts them with this process's command line; each of
    them then calls this function again, and they work together.
    Raises InputError for devices that do not exist, and SystemExit where the processes failed and have said why.
    """
    processes = count(params)
    if processes == 1:
        work()
    elif "LOCAL_RANK" in os.environ:
        _work_together(choose(params), work)
    else:
        _launch(processes)


def count(params: Params) -> int:
    """Return how many processes `training.devices` asks for, or torchrun has started. Raises InputError as `run`."""
    device, devices = choose(params), params.training.devices
    gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    processes = devices if isinstance(devices, int) else gpus
    if device.type == "cpu" and devices == "auto":
        processes = 1
    if "LOCAL_RANK" in os.environ:
        processes = int(os.environ["WORLD_SIZE"])
        if devices not in ("auto", processes):
            raise InputError(f"params.yaml: training.devices is {devices}; torchrun has started {processes}; use auto")
    if device.type == "cuda" and processes > gpus:
        raise InputError(
            f"params.yaml: training.devices is {devices}; device {params.device} has {gpus} CUDA GPUs for {processes} "
            "processes; use auto"
        )
    if processes > 1 and params.training.batch_size < LEAST * processes:
        raise InputError(
            f"params.yaml: training.batch_size is {params.training.batch_size}; {processes} devices share it and need "
            f"{LEAST} images each; use {LEAST * processes} or more, or fewer training.devices"
        )
    return processes


def _launch(processes: int) -> None:
    """Let torchrun start the processes, and wait for their end."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # torchrun would report again a failure that the processes have reported in one line
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")  # for the last batch and the checkpoint
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # so that nobody else on the network can join
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
    """Join the other processes and work. Where several fail, for the same reason or because one did, one reports it."""
    from torch.distributed.rendezvous import rendezvous

    def stop(number: int, frame: object) -> None:
        raise SystemExit("stopped")

    def handle_stop_signals(handler: Callable[[int, object], None] | signal.Handlers) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handler)

    handle_stop_signals(stop)
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
        # torchrun stops the others as soon as one has ended, and this one may still have to report.
        handle_stop_signals(signal.SIG_IGN)
        # Without the launcher there is neither the store that counts the reports nor anybody who would read one.
        is_reported = orphaned() or store.add("told", 1) > 1
        if isinstance(error, InputError | SystemExit):
            dist.destroy_process_group()
        if is_reported:
            raise SystemExit(1) from None
        raise
    handle_stop_signals(signal.SIG_IGN)  # The work is done.
    dist.destroy_process_group()
