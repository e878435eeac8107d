"""What the benchmarks share: the clock, and the name of the machine."""

import platform
import time
from pathlib import Path

import torch

from tinymsg.machine import synchronize


def clock(device: torch.device) -> float:
    """Seconds, once what was asked of the device is done."""
    synchronize(device)
    return time.perf_counter()


def place(device: torch.device) -> str:
    """The GPU's name, or the processor's and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
