"""What tests on a GPU share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, torch raises where the CPU would wait for the GPU (where it notices); afterwards nothing is forbidden."""
    try:
        with (
            warnings.catch_warnings()
        ):  # the first call of a process warns, after it has set the mode, that it is a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
