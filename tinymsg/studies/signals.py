"""One-dimensional pairs for the toy: images of height 1, so that the whole library serves them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..blur import convolve
from ..data import photo_contents, to_model
from ..rng import Draws


def render_signals(index: Tensor, length: int = 128, seed: int = 0) -> Tensor:
    """One-dimensional scenes, constant pieces and ramps: index int64 (n,) -> float32 (n, 1, 1, length) in [0, 1]."""
    draws = Draws(seed, index)
    pieces = 12
    gaps = draws.uniform(pieces, low=0.2, high=1.8)
    edges = (gaps.cumsum(dim=1) / gaps.sum(dim=1, keepdim=True) * length)[:, :, None]
    position = torch.arange(length) + 0.5
    piece = (position > edges).sum(dim=1)  # n, length: which piece a sample lies in
    start = torch.cat([torch.zeros_like(edges[:, :1, 0]), edges[:, :, 0]], dim=1).gather(1, piece)
    level = draws.uniform(pieces + 1, low=0.1, high=0.9).gather(1, piece)
    is_ramp = (draws.uniform(pieces + 1) < 0.35).gather(1, piece)
    slope = draws.uniform(pieces + 1, low=-4.0, high=4.0).gather(1, piece)
    signal = level + torch.where(is_ramp, slope * (position - start) / length, 0.0)
    return signal.clamp(0, 1)[:, None, None]


@dataclass(eq=False)
class SignalPairs:
    """Signals, each blurred by one of some fixed kernels; on the CPU."""

    kernels: Tensor  # (m, k), k odd, each summing to 1
    count: int = 1000  # how many distinct signals
    seed: int = 0  # of signals and pairs
    noise: float = 0.0  # standard deviation of white noise on the blurry signal
    photos: bool = False  # rows of scikit-image's photographs instead of procedural signals

    def __post_init__(self):
        what = "photos" if self.photos else "signals"
        self.name = f"{self.count} {what}, {len(self.kernels)} kernel(s), seed {self.seed}"

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), both (n, 1, 1, size) in [-1, 1]."""
        draws = Draws(self.seed, index)
        margin = self.kernels.shape[-1] // 2
        length = size + 2 * margin
        if self.photos:  # the middle row of a square crop, green
            signal = photo_contents().crops(draws, length)[:, 1:2, length // 2, None]
        else:
            signal = render_signals(draws.integers(self.count), length, self.seed)
        kernel = self.kernels[draws.integers(len(self.kernels))]
        x = convolve(signal, kernel[:, None, :], padding="valid")
        x = (x + self.noise * draws.normal(*x.shape[1:])).clamp(0, 1)
        return to_model(signal[..., margin : length - margin]), to_model(x)


def box_kernels(*widths: int) -> Tensor:
    """(m, k) box kernels of the given odd widths, zero-padded to the widest."""
    if any(w % 2 == 0 or w < 1 for w in widths):
        raise ValueError(f"box widths must be odd and positive, got {widths}")
    position = torch.arange(max(widths)) - max(widths) // 2
    return torch.stack([(position.abs() <= width // 2) / width for width in widths])


def gauss_kernel(sigma: float, size: int = 25) -> Tensor:
    """(1, size) Gaussian of standard deviation sigma samples."""
    position = torch.arange(size) - size // 2
    kernel = torch.exp(-(position**2) / (2 * sigma**2))
    return (kernel / kernel.sum())[None]


def two_bump_kernel(gap: int = 10, width: int = 5) -> Tensor:
    """(1, k): two box bumps `gap` samples apart, as of a hand that rested twice."""
    kernel = torch.zeros(gap + width + (gap + width + 1) % 2)
    for start in (0, gap):
        kernel[start : start + width] += 0.5 / width
    return kernel[None]
