"""Several processes: of one training on one machine or many, as torchrun starts them; workers that share out small jobs; memory
that ran out."""

import datetime
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import TypeVar

import torch

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
    if device.type == "cuda":  # LOCAL_RANK counts on one machine, RANK (read by torch) over all of them
        device, gpus = torch.device("cuda", int(os.environ["LOCAL_RANK"])), torch.cuda.device_count()
        here = max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), device.index + 1)
        if here > gpus:  # said by every process: none waits for those without a GPU
            raise ValueError(
                f"each process needs a GPU of its own: {here} processes were started on this machine, which has "
                f"{gpus}: " + (f"give torchrun --nproc-per-node {gpus}" if gpus else "give --device cpu")
            )
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
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


def begin_worker() -> None:
    """First act of a pool's process: one thread, and an end with the process that asked; killed, that one cannot tell it."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; on the CPU torch says it by a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = (
        "out of memory",
        "not enough memory",
        "allocate memory",
        # CUDA's libraries, which allocate beside torch
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUFFT_ALLOC_FAILED",
        "HOST_ALLOCATION_FAILED",
    )
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
