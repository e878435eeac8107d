"""The denoiser: a fully convolutional UNet that sees the noisy image, the blurry one and the noise level.

Structure after DvSR's Fig. 10 (Whang 2022): residual blocks, 4 resolutions, no attention, so that a network
trained on crops runs on whole photographs. Two things are ours: each pixel is normalised on its own (their figure
draws no normalisation), so that crops, tiles and whole pictures are treated alike; and the picture may be folded.
"""

import math
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .schedule import Image, Level


class Features(NamedTuple):
    """What guidance hands to the UNet; both parts may be empty.

    add: {scale k: (b, channels, h / 2^k, w / 2^k)}, added to the encoder's features of that size.
    concat: (b, c, h, w) appended to the UNet's input, or None.
    """

    add: dict[int, Tensor]
    concat: Tensor | None


NO_FEATURES = Features({}, None)


def conv(inputs: int, outputs: int, dims: int, size: int = 3) -> nn.Conv2d:
    """Same-size convolution. For dims = 1 the kernel is 1 x size: signals are images of height 1."""
    height = size if dims == 2 else 1
    return nn.Conv2d(inputs, outputs, (height, size), padding=(height // 2, size // 2))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all its weights zero: it starts as if it were not there, so that deep nets train at once."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


class PixelNorm(nn.LayerNorm):
    """LayerNorm over the channels of one pixel (as in NAFNet, Chen 2022): nothing depends on the rest of the picture.

    In the type of its input: CUDA's autocast would compute it, and keep its output, in fp32.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            out = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, weight, bias, self.eps)
        return out.permute(0, 3, 1, 2)


class NoiseEmbedding(nn.Module):
    """Continuous noise level -> vector, by sines of many frequencies (Chen 2021, WaveGrad, Sec. 3.2)."""

    frequency: Tensor

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        half = channels // 2
        # WaveGrad scales the level by 5000: the fastest sine then distinguishes levels 0.0002 apart
        frequency = 5000 * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("frequency", frequency, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, outputs), nn.SiLU(), nn.Linear(outputs, outputs))

    def forward(self, noise_level: Level) -> Float[Tensor, "b outputs"]:
        angle = noise_level[:, None].float() * self.frequency
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1))


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, modulation by the noise level, SiLU, conv, plus the skip."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dims: int):
        super().__init__()
        self.norm_1 = PixelNorm(inputs)
        self.conv_1 = conv(inputs, outputs, dims)
        self.modulate = nn.Linear(embedding, 2 * outputs)
        self.norm_2 = PixelNorm(outputs)
        self.conv_2 = zeroed(conv(outputs, outputs, dims))  # the block starts as the identity
        self.skip = conv(inputs, outputs, dims, size=1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        out = self.conv_1(F.silu(self.norm_1(h)))
        out = self.norm_2(out) * (1 + scale) + shift
        return self.skip(h) + self.conv_2(F.silu(out))


class UNet(nn.Module):
    """output = unet(y_t, x, noise_level, features); whatever is predicted has the shape of y_t.

    Args:
        channels: of the image: 3, or 1.
        widths: channels at each resolution; each but the first halves it.
        blocks: residual blocks per resolution, on the way down and on the way up.
        concat: extra input channels for guidance that is concatenated.
        dims: 2 for images, 1 for signals (b, c, 1, w).
        fold: 1, or 2 or 4: that many rows and columns of pixels become channels (pixel-unshuffle, Shi 2016): a wider
            network on fewer pixels restores a large picture several times faster. Level j then has scale
            k = j + log2(fold).
    """

    def __init__(
        self,
        channels: int = 3,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        blocks: int = 2,
        concat: int = 0,
        dims: int = 2,
        fold: int = 1,
    ):
        super().__init__()
        self.dims, self.concat, self.widths, self.fold = dims, concat, tuple(widths), fold
        embedding = 4 * widths[0]
        self.embed = NoiseEmbedding(2 * widths[0], embedding)
        self.conv_in = conv((2 * channels + concat) * fold**2, widths[0], dims)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, current = [], widths[0]
        for outputs in self.widths:
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(ResBlock(current, outputs, embedding, dims))
                current = outputs
                skips.append(current)
            self.down.append(level)
        self.middle = nn.ModuleList([ResBlock(current, current, embedding, dims) for _ in range(2)])
        for outputs in reversed(self.widths):
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(ResBlock(current + skips.pop(), outputs, embedding, dims))
                current = outputs
            self.up.append(level)
        self.norm_out = PixelNorm(current)
        self.conv_out = zeroed(conv(current, channels * fold**2, dims))

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this (height is free for dims = 1)."""
        return self.fold * 2 ** (len(self.widths) - 1)

    def _check(self, y_t: Tensor, x: Tensor, noise_level: Tensor, features: Features) -> None:
        if y_t.shape != x.shape:
            raise ValueError(f"y_t and x must have one shape, got {tuple(y_t.shape)} and {tuple(x.shape)}")
        h, w = x.shape[-2:]
        if w % self.multiple or (self.dims == 2 and h % self.multiple):
            raise ValueError(f"height and width must be multiples of {self.multiple}, got {h}x{w}; pad first")
        if noise_level.shape != x.shape[:1]:
            raise ValueError(f"noise_level must have shape ({len(x)},), got {tuple(noise_level.shape)}")
        if self.concat and features.concat is None:
            raise ValueError(f"this UNet expects {self.concat} guidance channels at its input, got none")

    def forward(self, y_t: Tensor, x: Tensor, noise_level: Tensor, features: Features = NO_FEATURES) -> Image:
        """Predict, from the noisy y_t and the blurry x, both (b, c, h, w); noise_level (b,) is sqrt(alpha_bar)."""
        self._check(y_t, x, noise_level, features)
        embedding = F.silu(self.embed(noise_level))
        scale = (2, 2) if self.dims == 2 else (1, 2)
        inputs = [y_t, x] if features.concat is None else [y_t, x, features.concat]
        h = torch.cat(inputs, dim=1)
        h = self.conv_in(F.pixel_unshuffle(h, self.fold) if self.fold > 1 else h)
        skips = []
        for k, level in enumerate(self.down, start=self.fold.bit_length() - 1):
            if level is not self.down[0]:
                h = F.avg_pool2d(h, scale)
            for block in level.children():
                h = block(h, embedding)
                skips.append(h)
            if k in features.add:  # Ren 2023, Fig. 12: structure joins the encoder at its own scale
                h = skips[-1] = h + features.add[k].to(h.dtype)
        for block in self.middle:
            h = block(h, embedding)
        for level in self.up:
            if level is not self.up[0]:
                h = F.interpolate(h, scale_factor=scale, mode="nearest")
            for block in level.children():
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, self.fold) if self.fold > 1 else h
