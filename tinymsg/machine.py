"""What the method asks of the machine: a device, a number type, memory, files that appear whole."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


def accelerator() -> torch.device:
    """The GPU of this machine (CUDA, Apple's MPS, XPU), or the CPU where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked for, before a clock is read; the CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bf16: as `precision` says ("bf16", "fp32"), or for "auto" if the device has units for it.

    A rule, not a race: two runs on one machine always compute alike. On a GPU "fp32" is what PyTorch makes of it:
    cuDNN's convolutions round their inputs to TF32 unless torch.backends.cudnn.allow_tf32 is False.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # AVX512-bf16 or AMX: without them bf16 is slower than fp32
        units = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, unit)() for unit in units if hasattr(torch.cpu, unit))
    return False


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor on the device; on CUDA without waiting for what the device still does."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)  # a copy from ordinary memory would wait
    return tensor.to(device)  # without waiting, MPS may read a tensor that is freed by then (pytorch issue 189690)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch says it by a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("out of memory", "not enough memory", "allocate memory", "ALLOC_FAILED", "HOST_ALLOCATION_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A path to write to instead of `path`, which appears whole at the end of the block; after an error, not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One per process, or two would write into each other's; the suffix tells some writers the format; names have limits
    partial = path.with_name(f".{path.stem[:50]}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
        with open(partial, "r+b") as file:  # Windows syncs only what may be written to
            os.fsync(file.fileno())  # its content reaches the disk before its name does
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
