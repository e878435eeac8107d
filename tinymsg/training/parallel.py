"""One training in several processes, on one machine or many, as torchrun starts them; torch.compile."""

import datetime
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn as nn

from ..train import TrainState

T = TypeVar("T")
_control: Any = None  # a group on the CPU: what the processes agree on between steps never waits for a GPU


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
    global _control
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        return device
    if device.type != "cpu":  # LOCAL_RANK counts on one machine, RANK (read by torch) over all of them
        device, count = torch.device(device.type, int(os.environ["LOCAL_RANK"])), torch.accelerator.device_count()
        here = max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), device.index + 1)
        if here > count:  # said by every process: none waits for those without a GPU
            raise ValueError(
                f"each process needs a GPU of its own: {here} were started on this machine, which has {count}: "
                + (f"give torchrun --nproc-per-node {count}" if count else "give --device cpu")
            )
        torch.accelerator.set_device_index(device.index)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(backend, timeout=timeout, device_id=None if device.type == "cpu" else device)
    _control = dist.new_group(backend="gloo", timeout=timeout)
    return device


def leave_processes() -> None:
    """Undo `join_processes`."""
    global _control
    if _control is not None:
        dist.destroy_process_group()
    _control = None


def from_first(produce: Callable[[], T]) -> T:
    """What `produce` gives in the first process, in every process; it is called there alone.

    Raises: what it raised there, in every process too.
    """
    rank, processes = rank_and_processes()
    if processes == 1:
        return produce()
    answer: list[Any] = [None, None]
    if rank == 0:
        try:
            answer[0] = produce()
        except Exception as error:  # whatever it is: the others wait for an answer
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, group=_control)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def highest(value: int) -> int:
    """The highest of the processes' values; every process must ask at the same step."""
    if rank_and_processes()[1] == 1:
        return value
    values = torch.tensor([value])
    dist.all_reduce(values, dist.ReduceOp.MAX, group=_control)
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
    network: nn.Module = state.model
    c = state.training
    if c.compile:
        # torch keeps 8 compiled forms of a function and refuses a ninth: they would be those of earlier trainings here
        torch.compiler.reset()
        compiled = torch.compile(network, mode=c.compile, fullgraph=True, dynamic=False)  # a training has one shape
        network = cast(nn.Module, compiled)
    if rank_and_processes()[1] == 1:
        return network
    ddp = nn.parallel.DistributedDataParallel
    names = ("forward_sync_buffers", "broadcast_buffers")  # the second before torch renamed it
    sync = next(name for name in names if name in inspect.signature(ddp).parameters)
    # static_graph counts the backward passes of a step: it does not go with no_sync. There are no buffers that change
    ours: dict[str, Any] = {sync: False, "gradient_as_bucket_view": True, "static_graph": c.accumulate == 1}
    return ddp(network, device_ids=None if state.device.type == "cpu" else [state.device.index], **ours)
