"""One training in several processes, on one machine or many, as torchrun starts them; torch.compile."""

import datetime
import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn as nn

from ..train import TrainState

T = TypeVar("T")
_control = None  # a group on the CPU: what the processes agree on between steps never waits for a GPU


def rank_and_processes() -> tuple[int, int]:
    """(this process's number over all machines, how many there are); (0, 1) without torchrun."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def join_processes(device: torch.device, timeout_minutes: float = 10) -> torch.device:
    """Under torchrun, join the other processes and return this one's own device; else `device` unchanged.

    timeout_minutes: how long to wait for a process that does not answer, before all end with an error.
    Raises: ValueError for more processes than GPUs on this machine.
    """
    global _control
    if "LOCAL_RANK" not in os.environ or torch.distributed.is_initialized():
        return device
    if device.type != "cpu":  # LOCAL_RANK counts on one machine, RANK (read by torch) over all of them
        device, count = torch.device(device.type, int(os.environ["LOCAL_RANK"])), torch.accelerator.device_count()
        here = max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), device.index + 1)
        if here > count:  # said by every process: none waits for those without a GPU
            advice = f"give torchrun --nproc-per-node {count}" if count else "give --device cpu"
            raise ValueError(
                f"each process needs a GPU of its own: {here} processes were started on this machine, which has {count}: "
                + advice
            )
        torch.accelerator.set_device_index(device.index)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = torch.distributed.get_default_backend_for_device(device)
    bound = None if device.type == "cpu" else device
    torch.distributed.init_process_group(backend, timeout=timeout, device_id=bound)
    _control = torch.distributed.new_group(backend="gloo", timeout=timeout)
    return device


def leave_processes() -> None:
    """Undo `join_processes`."""
    global _control
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _control = None


def from_first(produce: Callable[[], T]) -> T:
    """What `produce` gives in the first process, in every process; it is called there alone.

    Raises: what it raised there; ValueError in the other processes.
    """
    rank, processes = rank_and_processes()
    if processes == 1:
        return produce()
    answer, error = [None, None], None
    if rank == 0:
        try:
            answer = [produce(), None]
        except Exception as raised:  # whatever it is: the others wait for an answer
            plain = isinstance(raised, ValueError | OSError)
            answer, error = [None, str(raised) if plain else f"{type(raised).__name__}: {raised}"], raised
    torch.distributed.broadcast_object_list(answer, src=0, group=_control)
    if error is not None:
        raise error
    if answer[1] is not None:
        raise ValueError(answer[1])
    return answer[0]


def highest(value: int) -> int:
    """The highest of the processes' values; every process must ask at the same step."""
    if rank_and_processes()[1] == 1:
        return value
    values = torch.tensor([value])
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=_control)
    return int(values)


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean of the processes' values; every process must ask at the same step."""
    _, processes = rank_and_processes()
    if processes > 1:
        value = value / processes
        torch.distributed.all_reduce(value)
    return value


def training_network(state: TrainState) -> nn.Module:
    """What `fit` calls instead of state.model: compiled where the recipe says so, its gradients shared under torchrun."""
    network, c = state.model, state.training
    if c.compile:
        # torch keeps 8 compiled forms of a function and refuses a ninth: they would be those of earlier trainings here
        torch.compiler.reset()
        network = torch.compile(network, mode=c.compile, fullgraph=True, dynamic=False)  # a training has one shape
    if not torch.distributed.is_initialized():
        return network
    # static_graph counts the backward passes of a step: it does not go with no_sync. There are no buffers that change
    return nn.parallel.DistributedDataParallel(
        network,
        device_ids=None if state.device.type == "cpu" else [state.device.index],
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        static_graph=c.accumulate == 1,
    )
