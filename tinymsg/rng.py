"""Random numbers that are a pure function of (seed, index): the same on every device, in any order.

A data set whose pair number 17 is always the same pair, on a laptop or on a GPU, alone or in a batch,
needs random numbers without a hidden state. `Draws` hashes (seed, index, call, element) with SplitMix64.
"""

import copy
import math

import torch
from torch import Tensor

from .machine import upload

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as a signed integer
_MUL_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MUL_2 = 0x94D049BB133111EB - (1 << 64)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's `>>` on int64 copies the sign bit, so it is masked away."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014, Fig. 16); int64 products wrap around as uint64's do."""
    z = (z ^ _shift(z, 30)) * _MUL_1
    z = (z ^ _shift(z, 27)) * _MUL_2
    return z ^ _shift(z, 31)


class Draws:
    """A stream of random numbers for each index of a batch.

    Args:
        seed: any integer; different seeds give independent streams.
        index: int64, shape (n,). Row i of every draw depends on (seed, index[i]) and on how many draws
            were made before, not on n, the order of the batch or the device.

    >>> Draws(0, torch.tensor([3, 7])).uniform()[1] == Draws(0, torch.tensor([7])).uniform()
    tensor([True])
    """

    def __init__(self, seed: int, index: Tensor):
        if index.dtype != torch.int64 or index.ndim != 1:
            raise ValueError(f"index must be int64 of shape (n,), got {index.dtype} of shape {tuple(index.shape)}")
        seed = (seed + 2**63) % 2**64 - 2**63  # wrapped, as the products below are
        seed_key = int(_mix(torch.tensor([seed], dtype=torch.int64) * _GOLDEN))  # on the CPU: nobody waits for a GPU
        self._key = _mix(index * _GOLDEN + seed_key)

    @property
    def device(self) -> torch.device:
        return self._key.device

    def on(self, device: torch.device) -> "Draws":
        """The same stream from here on, drawn on another device."""
        twin = copy.copy(self)
        twin._key = upload(self._key, device)
        return twin

    def rows(self, rows: Tensor) -> "Draws":
        """The streams of some of the images, `rows` int64 (m,), from here on."""
        twin = copy.copy(self)
        twin._key = self._key[rows]
        return twin

    def __len__(self) -> int:
        return len(self._key)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Float32 of shape (n, *shape), uniform in [low, high)."""
        self._key = self._key + 0x632BE59BD9B4E019  # odd, so every call of a stream has its own key
        element = torch.arange(math.prod(shape), device=self.device)
        bits = _shift(_mix(_mix(self._key)[:, None] + element * _GOLDEN), 40)  # 24 bits: exact in float32
        unit = bits.to(torch.float32) * 2.0**-24
        return (low + (high - low) * unit).reshape(len(self), *shape)

    def normal(self, *shape: int) -> Tensor:
        """Float32 of shape (n, *shape), standard normal (Box & Muller 1958)."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform(*shape)))
        return radius * torch.cos(2 * math.pi * self.uniform(*shape))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Int64 of shape (n, *shape), uniform in 0 .. high-1."""
        return (self.uniform(*shape) * high).long().clamp_(max=high - 1)
