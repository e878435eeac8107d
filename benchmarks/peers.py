"""The networks and training steps that are compared: ours, and its peers at matched cost, attention off.

diffusers' UNet2DModel and denoising_diffusion_pytorch's Unet come from the package index (extra `bench`); SR3 is
written here, after the structure that Saharia 2021 publishes. Each has two ways of being trained: as its own trainer
sets it ("shipped"), and with the usual tricks ("tuned": our number type, memory layout and allocator settings, fused
optimiser, compiled on a GPU).
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from tinymsg.data import Batches
from tinymsg.datasets.folders import folder_pairs
from tinymsg.datasets.packed import PackedPairs
from tinymsg.machine import use_bf16
from tinymsg.model import Recipe
from tinymsg.sample import prepare
from tinymsg.train import TrainState, fit
from tinymsg.training.parallel import training_network

STEPS_FOREVER = 10**7


def our_recipe(width: int, guided: bool = True, **changes) -> Recipe:
    """Base `width`, multiples 1-2-3-4; plain: exactly these widths.

    Four blocks a resolution: the peers have three on the way down and four on the way up, ours as many up as down.
    """
    recipe = Recipe().change(
        widths=(width, 2 * width, 3 * width, 4 * width), blocks=4, crop=128, steps=STEPS_FOREVER, **changes
    )
    return recipe.change(guidance_width=2 * width) if guided else recipe.change(scales=())


# --- the peers' networks: (y_t, x, noise_level) -> eps_hat ----------------------------------------------------


class Diffusers(nn.Module):
    """diffusers.UNet2DModel, block_out_channels (w, 2w, 3w, 4w), three layers a block."""

    def __init__(self, width: int):
        super().__init__()
        from diffusers import UNet2DModel

        self.net = UNet2DModel(
            in_channels=6,
            out_channels=3,
            layers_per_block=3,
            block_out_channels=tuple(k * width for k in (1, 2, 3, 4)),
            down_block_types=("DownBlock2D",) * 4,
            up_block_types=("UpBlock2D",) * 4,
            add_attention=False,
        )

    def forward(self, y_t: Tensor, x: Tensor, noise_level: Tensor) -> Tensor:
        return self.net(torch.cat([y_t, x], dim=1), 1000 * (1 - noise_level)).sample


class _Nothing(nn.Module):
    """In the place of an attention whose output is added: adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class DenoisingDiffusionPytorch(nn.Module):
    """denoising_diffusion_pytorch.Unet, dim 11w/8 for as many FLOPs, multiples 1-2-3-4."""

    def __init__(self, width: int):
        super().__init__()
        from denoising_diffusion_pytorch import Unet
        from denoising_diffusion_pytorch import denoising_diffusion_pytorch as package

        self.net = Unet(dim=11 * width // 8, dim_mults=(1, 2, 3, 4), channels=6, out_dim=3)
        for module in list(self.net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, (package.Attention, package.LinearAttention)):
                    setattr(module, name, _Nothing())  # works for the numbered ones of a ModuleList too

    def forward(self, y_t: Tensor, x: Tensor, noise_level: Tensor) -> Tensor:
        return self.net(torch.cat([y_t, x], dim=1), 1000 * (1 - noise_level))


class _SR3Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(min(32, inputs), inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.noise = nn.Linear(embedding, outputs)
        self.norm_2, self.conv_2 = nn.GroupNorm(32, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        out = self.conv_1(F.silu(self.norm_1(h))) + self.noise(embedding)[:, :, None, None]
        return self.conv_2(F.silu(self.norm_2(out))) + self.skip(h)


class SR3(nn.Module):
    """The structure of SR3 (Saharia 2021, Sec. 2.4, App. A): GroupNorm of 32 groups, strided and nearest resampling."""

    def __init__(self, width: int):
        super().__init__()
        widths, self.width = [k * width for k in (1, 2, 3, 4)], width
        self.embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.first = nn.Conv2d(6, width, 3, padding=1)
        self.down, skips, here = nn.ModuleList(), [width], width
        for level, outputs in enumerate(widths):
            for _ in range(3):
                self.down.append(_SR3Block(here, outputs, width))
                here = outputs
                skips.append(here)
            if level < 3:
                self.down.append(nn.Conv2d(here, here, 3, stride=2, padding=1))
                skips.append(here)
        self.middle = nn.ModuleList([_SR3Block(here, here, width) for _ in range(2)])
        self.up = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(widths))):
            for _ in range(4):
                self.up.append(_SR3Block(here + skips.pop(), outputs, width))
                here = outputs
            if level > 0:
                self.up.append(
                    nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(here, here, 3, padding=1))
                )
        self.last = nn.Sequential(nn.GroupNorm(32, here), nn.SiLU(), nn.Conv2d(here, 3, 3, padding=1))

    def forward(self, y_t: Tensor, x: Tensor, noise_level: Tensor) -> Tensor:
        frequency = torch.exp(-math.log(1e4) * torch.arange(self.width // 2, device=x.device) / (self.width // 2))
        angle = noise_level[:, None] * frequency
        embedding = self.embed(torch.cat([angle.sin(), angle.cos()], dim=1))
        h = self.first(torch.cat([y_t, x], dim=1))
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, _SR3Block) else layer(h)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), embedding) if isinstance(layer, _SR3Block) else layer(h)
        return self.last(h)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "diffusers": Diffusers,
    "denoising_diffusion_pytorch": DenoisingDiffusionPytorch,
    "sr3": SR3,
}


# --- what they learn from: one folder of PNG pairs ---------------------------------------------------------------

# Processes that decode, as each one's own trainer sets them: diffusers' example none, SR3 in its usual form 8; here no
# more than cores
WORKERS = {"diffusers": 0, "denoising_diffusion_pytorch": os.cpu_count() or 1, "sr3": min(8, os.cpu_count() or 1)}
Source = Callable[[int], tuple[Tensor, Tensor]]


class PngPairs(torch.utils.data.Dataset):
    """Crops of 128 pixels of the pairs of a folder: decoded, cropped and flipped at every visit, as the trainers do."""

    def __init__(self, folder: Path):
        self.pairs = folder_pairs(folder)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        _, sharp, blurry = self.pairs[index]
        pictures = [torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()) for path in (sharp, blurry)]
        height, wide = pictures[0].shape[:2]
        top, left = int(torch.randint(height - 127, ())), int(torch.randint(wide - 127, ()))
        crops = [
            picture[top : top + 128, left : left + 128].permute(2, 0, 1).float() / 127.5 - 1 for picture in pictures
        ]
        return tuple(crop.flip(-1) for crop in crops) if torch.rand(()) < 0.5 else tuple(crops)


def png_batches(folder: Path, batch: int, workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(y0, x) without end, from a DataLoader."""
    pairs = PngPairs(folder)
    drawn = torch.utils.data.RandomSampler(pairs, replacement=True, num_samples=10**6)
    for y0, x in torch.utils.data.DataLoader(
        pairs, batch, sampler=drawn, num_workers=workers, pin_memory=device.type == "cuda"
    ):
        yield y0.to(device, non_blocking=True), x.to(device, non_blocking=True)


# --- one thing to measure -----------------------------------------------------------------------------------


class Contender:
    """A network that can be trained by a step and asked for one: `train(y0, x)`, `begin(x)` then `step()`."""

    def __init__(self, name: str, width: int, device: torch.device, batch: int):
        """name: "ours", "ours, guided", or NETWORK, "NETWORK, tuned"."""
        self.device = device
        kind, _, variant = name.partition(", ")
        self.ours, self.kind, self.batch = kind == "ours", kind, batch
        self.tuned = variant == "tuned"
        self.bf16 = (self.ours or self.tuned) and use_bf16("auto", device)
        if self.ours:
            compiled = "" if device.type == "cpu" else "default"
            self.state = TrainState(our_recipe(width, variant == "guided", batch=batch, compile=compiled), device)
            self.network = self.state.model
            return
        # The tuned ones' in training, as ours has it for crops of 128 (tinymsg.train); sampling is channels_last
        self.layout = torch.contiguous_format if device.type == "cpu" and not self.bf16 else torch.channels_last
        torch.manual_seed(0)
        self.network = NETWORKS[kind](width).to(device).train()
        if self.tuned:
            self.network = self.network.to(memory_format=self.layout)
        # AdamW in diffusers' example, Adam in the others'; neither fused there. Both clip at 1 and keep an EMA
        kind_of = torch.optim.AdamW if kind == "diffusers" or self.tuned else torch.optim.Adam
        self.optimizer = kind_of(
            self.network.parameters(), lr=1e-4, betas=(0.9, 0.99), **({"fused": True} if self.tuned else {})
        )
        self.ema = [p.detach().clone() for p in self.network.parameters()]
        self.call = (
            torch.compile(self.network, fullgraph=True, dynamic=False)
            if self.tuned and device.type == "cuda"
            else self.network
        )

    def source(self, pictures: Path, packed: Path) -> Source:
        """Batches as its own trainer makes them: ours from the packed file, the others from the folder of PNGs."""
        if self.ours:
            return Batches(PackedPairs(packed, device=self.device), self.batch, 128)
        batches = png_batches(
            pictures, self.batch, (os.cpu_count() or 1) if self.tuned else WORKERS[self.kind], self.device
        )
        return lambda step: next(batches)

    def train(self, source: Source, steps: int = 1) -> None:
        """So many optimiser steps on batches (y0, x)."""
        if self.ours:
            self.batches = source
            if not hasattr(self, "records"):
                network = training_network(self.state)
                self.records = fit(self.state, lambda step: self.batches(step), network=network)
            for _ in range(steps):
                next(self.records)
            return
        for step in range(steps):
            y0, x = source(step)
            if self.tuned:
                y0, x = (image.contiguous(memory_format=self.layout) for image in (y0, x))
            level = torch.rand(len(y0), device=self.device)
            eps = torch.randn_like(y0)
            y_t = level[:, None, None, None] * y0 + torch.sqrt(1 - level**2)[:, None, None, None] * eps
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = F.mse_loss(self.call(y_t, x, level).float(), eps)
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self._average()
            if not self.tuned:
                loss.item()  # their progress bars show it at every step

    @torch.no_grad()
    def _average(self) -> None:
        parameters = list(self.network.parameters())
        if self.tuned:
            torch._foreach_lerp_(self.ema, parameters, 1e-3)
            return
        for average, parameter in zip(self.ema, parameters, strict=True):
            average.lerp_(parameter, 1e-3)

    @torch.inference_mode()
    def begin(self, x: Tensor) -> None:
        """Get ready to restore x (b, 3, h, w): what depends on x alone is computed here."""
        self.x, self.y_t = x, torch.randn_like(x)
        self.level = torch.full((len(x),), 0.5, device=self.device)
        self.network.eval()
        if self.ours:
            self.prepared = prepare(self.network, x)
        elif self.tuned:
            self.x, self.y_t = (image.contiguous(memory_format=torch.channels_last) for image in (self.x, self.y_t))

    @torch.inference_mode()
    def step(self) -> None:
        """One network evaluation of a restoration."""
        if self.ours:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.prepared.bf16):
                self.prepared.denoise(self.y_t, self.level)
            return
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            self.network(self.y_t, self.x, self.level)

    def gigaflops(self, size: int = 128) -> float:
        """Of one forward pass of a crop, as counted by PyTorch."""
        from torch.utils.flop_counter import FlopCounterMode

        zeros, level = torch.zeros(1, 3, size, size, device=self.device), torch.full((1,), 0.5, device=self.device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.network(zeros, zeros, level)
        return counter.get_total_flops() / 1e9


CONTENDERS = ("ours", "ours, guided", *(f"{name}{variant}" for name in NETWORKS for variant in ("", ", tuned")))
