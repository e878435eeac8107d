"""One training in several processes, on one machine or many, as torchrun starts them; torch.compile."""

import datetime
import inspect
import os
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn as nn

from ..train import TrainState


def rank_and_processes() -> tuple[int, int]:
    """(this process's number over all machines, how many there are); (0, 1) without torchrun."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def join_processes(device: torch.device, timeout_minutes: float = 10) -> torch.device:
    """Under torchrun, join the other processes and return this one's own device; else `device` unchanged.

    timeout_minutes: how long to wait for a process that does not answer, before all end with an error.
    Raises: ValueError for more processes than GPUs on this machine.
    """
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        return device
    backend = "cpu:gloo"  # what the processes agree on between steps lies on the CPU, and never waits for a GPU
    if device.type != "cpu":  # LOCAL_RANK counts on one machine, RANK (read by torch) over all of them
        number, count = int(os.environ["LOCAL_RANK"]), torch.accelerator.device_count()
        if max(number + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > count:  # all say so: nobody waits for others
            advice = f"torchrun --nproc-per-node {count}" if count else "--device cpu"
            raise ValueError(f"each process needs a GPU of its own, and this machine has {count}: give {advice}")
        device = torch.device(device.type, number)
        torch.accelerator.set_device_index(number)
        backend += f",{device.type}:{dist.get_default_backend_for_device(device)}"
    timeout = datetime.timedelta(minutes=timeout_minutes)
    dist.init_process_group(backend, timeout=timeout, device_id=None if device.type == "cpu" else device)
    return device


def leave_processes() -> None:
    """Undo `join_processes`."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def from_first(produce: Callable[[], Any]) -> Any:
    """What `produce` gives, or raises, in the first process, in every process; it is called there alone."""
    rank, processes = rank_and_processes()
    if processes == 1:
        return produce()
    answer: list[Any] = [None, None]
    if rank == 0:
        try:
            answer[0] = produce()
        except Exception as error:  # whatever it is: the others wait for an answer
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def highest(value: int) -> int:
    """The highest of the processes' values; every process must ask at the same step."""
    if rank_and_processes()[1] == 1:
        return value
    values = torch.tensor([value])
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean of the processes' values; every process must ask at the same step."""
    _, processes = rank_and_processes()
    if processes > 1:
        value = value / processes
        dist.all_reduce(value)
    return value


def training_network(state: TrainState) -> nn.Module:
    """What `fit` calls instead of state.model: compiled if the recipe says so, its gradients shared under torchrun."""
    network, c = cast(nn.Module, state.model), state.training
    if c.compile:
        # torch keeps 8 compiled forms of a function and refuses a ninth: they would be those of earlier trainings here
        torch.compiler.reset()
        network = cast(nn.Module, torch.compile(network, mode=c.compile, fullgraph=True, dynamic=False))
    if rank_and_processes()[1] == 1:
        return network
    ddp = nn.parallel.DistributedDataParallel
    names = ("forward_sync_buffers", "broadcast_buffers")  # the second before torch renamed it
    sync = next(name for name in names if name in inspect.signature(ddp).parameters)
    # static_graph counts the backward passes of a step: it does not go with no_sync. There are no buffers that change
    ours: dict[str, Any] = {sync: False, "gradient_as_bucket_view": True, "static_graph": c.accumulate == 1}
    return ddp(network, device_ids=None if state.device.type == "cpu" else [state.device.index], **ours)
