"""What tests about GPUs share: a GPU that is not there, and the rules of one that is."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tinymsg import blur


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, torch raises where the CPU would wait for the GPU (where it notices); afterwards nothing is forbidden."""
    try:
        with warnings.catch_warnings():  # the first call of a process warns, once the mode is set, of a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Forbidden(AssertionError):
    """Something was done that the device cannot do, or would have to be waited for."""


class OnDevice(torch.Tensor):
    """A tensor of the CPU, `held`, that says it lies on another device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=device
        )

    def __init__(self, held: torch.Tensor, device: torch.device):
        self.held = held

    def __deepcopy__(self, memo):
        twin = OnDevice(self.held.clone(), self.device).requires_grad_(self.requires_grad)
        twin._is_param = getattr(self, "_is_param", False)
        return twin

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise Forbidden(f"{function} outside of a StandIn")


class StandIn(TorchDispatchMode):
    """Within, "cuda" is a device that computes on the CPU and refuses what real ones cannot do or would be waited for:

    float64 (Apple's GPUs have none) and tensors of two devices in one operation; unless it may wait, also a value that
    is read, a copy to the CPU, and a copy to the device that blocks or comes from memory that is not pinned.
    """

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # torch then asks no driver for the device

    def __init__(self, may_wait: bool = False):
        super().__init__()
        self.device, self.may_wait = torch.device("cuda", 0), may_wait
        torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does: there is no driver to change devices by

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        arrives = target is not None and target.type == self.device.type
        leaves = bool(here) and target is not None and not arrives
        if arrives:
            kwargs["device"] = "cpu"
        self.check(function, tensors, here, arrives, leaves, kwargs)

        def held(leaf):
            return leaf.held if isinstance(leaf, OnDevice) else leaf

        result = function(*tree_map(held, args), **tree_map(held, kwargs))
        if leaves or not (here or arrives):
            return result
        known = {id(tensor.held): tensor for tensor in here}  # what works in place returns what it was given

        def on_device(leaf):
            if not isinstance(leaf, torch.Tensor):
                return leaf
            if leaf.dtype == torch.float64:
                raise Forbidden(f"{function} makes float64 on the device")
            return known.get(id(leaf)) if id(leaf) in known else OnDevice(leaf, self.device)

        return tree_map(on_device, result)

    def check(self, function, tensors, here, arrives, leaves, kwargs) -> None:
        elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim > 0]
        copies = arrives or bool(here) and "copy_" in str(function)
        if here and elsewhere and not copies:
            raise Forbidden(f"{function} of tensors on two devices")
        if self.may_wait:
            return
        if here and (leaves or function is torch.ops.aten._local_scalar_dense.default):
            raise Forbidden(f"{function} waits for the device")
        if copies and elsewhere and not all(hasattr(tensor, "pinned") for tensor in elsewhere):
            raise Forbidden(f"{function} copies from memory that is not pinned")
        if arrives and elsewhere and not kwargs.get("non_blocking"):
            raise Forbidden(f"{function} blocks")


@pytest.fixture
def stand_in(monkeypatch):
    """stand_in(may_wait=False) -> a context in which there seems to be a GPU: see StandIn. Only where there is none."""
    if torch.cuda.is_available():
        pytest.skip("a real GPU is here")

    class Generator(torch.Generator):
        """One of the CPU that says it is of the device that was asked for."""

        def __new__(cls, device="cpu"):
            made = super().__new__(cls)
            made.named = torch.device(device)
            return made

        device = property(lambda self: self.named)

    def pin_memory(tensor):
        pinned = tensor.clone()
        pinned.pinned = True
        return pinned

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # knows no tensors like ours
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    blur._jpeg_constants.cache_clear()
    yield StandIn
    blur._jpeg_constants.cache_clear()
