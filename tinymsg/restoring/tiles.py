"""A photograph of any size in bounded memory: the tiles are inside each sampling step, so that they leave no seam.

The whole noisy state z_t lies in memory, or in a memory-mapped file. At each step the network sees it tile by tile,
each with a margin, and only then the sampler moves the whole state on. The noise is drawn in bands of rows, each from
a generator of its own, so that it is the same whatever the tiles are.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from ..data import pad_to_multiple
from ..machine import out_of_memory, use_bf16
from ..model import Model, pretrained
from ..sample import Prepared, Setting, get_sampler, prepare
from ..schedule import Schedule, make_schedule, q_sample

SMALLEST, LARGEST = 64, 2048  # sides of the tiles that are chosen, in pixels without their margin
WORKING_SET = 0.8e9  # bytes that the network may take on a CPU, less what a large picture takes, but half in any case
BAND = 64  # rows whose noise is drawn together; another number is other noise
LARGE = 2**22  # pixels from which the state is kept in float16: 0.02 gray levels on the mean, 0.5 in one value of 10^4
_BYTES_PER_PIXEL = 40  # of a large picture: x, where the chain begins, the state, and what is read and written
_ARRAYS = 4  # of the picture's size at the most: z_t, two answers of the network, the mean of several samples
# Peak of the network per pixel of a tile and channel of the first level, at a fold of 1. Measured on the CPU by
# `benchmarks/memory.py --tile 0` at 512x512, in bf16: 41 (everyday), 37 (cpu), 43 (full); in fp32: 78 (everyday)
_BYTES_PER_PIXEL_AND_CHANNEL = {True: 45, False: 80}

Span = tuple[int, int]  # from, to (exclusive), in pixels


# --- how far the network sees -----------------------------------------------------------------------------------


def reach(model: Model) -> int:
    """The receptive field's radius: how many pixels deep what lies beyond the edge of a tile gets into the answer.

    A tile that begins at a multiple of `model.multiple` has the whole picture's grids at every level. There a 3x3
    convolution lets the error in by one cell, pooling rounds it up to whole cells of the next level, and nearest
    upsampling keeps it. A skip has no more of it than what it is appended to. A guidance scale's antialiased
    downsampling adds one cell, its bilinear upsampling (where it is concatenated) half a cell.
    """
    unet, guidance = model.unet, model.guidance
    cell = model.multiple // 2 ** (len(unet.widths) - 1)  # of the first level, in pixels: the fold
    guided = 0  # cells of the level where it joins; counted as if it joined them all
    for net in getattr(guidance, "nets", []):
        head = _convolutions(net.head) if guidance.inject == "structure" else 0
        guided = max(guided, 1 + _convolutions(net.conv_in) + _convolutions(net.blocks) + head)
    depth = cell * _convolutions(unet.conv_in)
    if guidance.concat_channels:
        depth += _round_up(math.ceil(model.multiple * (guided + 0.5)), cell)
    for k, level in enumerate(unet.down):
        if k > 0:
            cell *= 2
            depth = _round_up(depth, cell)
        depth = max(depth + cell * _convolutions(level), cell * guided)
    depth += cell * _convolutions(unet.middle)
    for k, level in enumerate(unet.up):
        if k > 0:
            cell //= 2
        depth += cell * _convolutions(level)
    return depth + cell * _convolutions(unet.conv_out)


def margin(model: Model) -> int:
    """What is put around a tile, in pixels: all of `reach`, so that tiles and the whole picture agree to rounding.

    Less is not safe: where a picture is flat, a pixel that is normalised on its own makes much of a small difference.
    After five steps of a network of reach 95, trained on scenes, half of that changed two values in 1000 by more than
    a gray level of 255, some by 140; three quarters changed two in 100,000, by up to 3.
    """
    return _round_up(reach(model), model.multiple)


def _convolutions(module: nn.Module) -> int:
    """Cells that the convolutions of a module, one after the other, look to one side."""
    return sum(layer.kernel_size[-1] // 2 for layer in module.modules() if isinstance(layer, nn.Conv2d))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# --- what fits --------------------------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device; None where none can be told."""
    if device.type != "cpu":
        try:
            kept = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
            return torch.accelerator.get_memory_info(device)[0] + kept
        except (AttributeError, RuntimeError):  # older versions of torch, Apple's GPUs
            return None
    table = Path("/proc/meminfo")
    return int(table.read_text().split("MemAvailable:")[1].split()[0]) * 1024 if table.exists() else None


def tile_bytes(model: Model, device: torch.device) -> float:
    """Bytes of memory that the network takes for each pixel of what it is given at once."""
    config, fold = model.config, model.multiple // 2 ** (len(model.config.widths) - 1)
    per_channel = _BYTES_PER_PIXEL_AND_CHANNEL[use_bf16(config.precision, device)]
    return per_channel * config.widths[0] / fold**2


def choose_tile(model: Model, height: int, width: int, device: torch.device) -> int:
    """Side of the largest tiles that the free memory is good for, half of which stays free.

    Raises: MemoryError, one sentence, if not even the smallest fits.
    """
    free, a_pixel, around = free_memory(device), tile_bytes(model, device), 2 * margin(model)
    room = math.inf if free is None else free / 2
    if device.type == "cpu":  # with WORKING_SET a process stays within 1.5 GB up to 12 million pixels
        room = min(room, max(WORKING_SET - _BYTES_PER_PIXEL * height * width, WORKING_SET / 2))
    pixels = room / a_pixel
    if height * width <= pixels and max(height, width) <= LARGEST:
        return max(height, width)
    if free is not None and (SMALLEST + around) ** 2 * a_pixel > free:
        raise MemoryError(_too_little(device, f"only {free / 1e9:.1f} GB are free"))
    side = LARGEST if math.isinf(pixels) else int(math.sqrt(pixels)) - around
    return min(max(side, SMALLEST), LARGEST)


def _too_little(device: torch.device, why: str) -> str:
    return f"not enough memory on {device} for a tile of {SMALLEST} pixels: {why}; close programs or use another device"


# --- restoring --------------------------------------------------------------------------------------------------


def restore_large(
    model: Model,
    x: Tensor,
    setting: Setting,
    seed: int,
    tile: int | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    workspace: str | Path | None = None,
) -> Tensor:
    """Deblur a picture of any size: `sample.restore`, in tiles within each step.

    Args:
        x: (c, h, w) blurry, in [-1, 1], float16 or float32 on the CPU; may be memory-mapped.
        seed: any integer. The noise depends on (seed, sample, step, place) alone: not on device and tiles.
        tile: side in pixels of what the network is given at once, without its margin; 0 is the whole picture, None as
            large as the free memory allows. Halved each time that memory runs out.
        device: where the network runs; its weights are there.
        progress: called as progress(done, total) after the network has seen a tile.
        workspace: folder for memory-mapped files, whose names are gone at once, however we end. None: in memory, or
            among the system's temporary files if that would take more than half of it.
    Returns: (c, h, w) in [-1, 1] on the CPU; float32, above 4 million pixels float16. Memory for that, above x and the
        tile: at most 18 bytes per pixel, 24 with several samples.
    Raises: ValueError on wrong shapes, ranges or values that are not finite; MemoryError, one sentence, if not even
        a tile of 64 pixels fits.
    """
    if x.ndim != 3 or x.numel() == 0 or (tile is not None and tile < 0):
        raise ValueError(f"x must have shape (c, h, w), tile must be at least 0; got {tuple(x.shape)} and {tile}")
    steps, samples = (1, 1) if model.config.kind == "regression" else (setting.steps, setting.samples)
    schedule = make_schedule(setting.grid, steps, setting.max_noise)
    begin, start = setting.start if model.config.kind == "diffusion" else None, None
    network = _Network(model, x, tile, torch.device(device), progress, steps * samples, 1 if begin else 0)
    if begin:
        begun = progress and (lambda done, total: progress(done, total * network.passes))
        start = restore_large(pretrained(begin, device), x, Setting(), seed, tile, device, begun, workspace)
    new = _allocator(x.shape[0], network.height, network.width, workspace)
    z_t, answers = new(), [new(), new() if steps > 1 else None]
    y0_hat = new() if samples > 1 else z_t  # which is free after its only sample
    (h, w), scale = x.shape[1:], 1 / samples
    for sample in range(samples):
        for rows in _bands(network.height):
            noise = torch.randn(z_t[:, rows].shape, generator=_generator(seed, sample, schedule.T, rows.start))
            z_t[:, rows] = noise if start is None else network.begin(start, rows, schedule.noise_level[-1:], noise)
        if sample == samples - 1:
            start = None  # the network needs the memory
        z0_hat = _draw(network, schedule, get_sampler(setting.sampler), z_t, answers, (seed, sample))
        for rows in _bands(h):
            y0 = model.decode(z0_hat[None, :, rows, :w].float(), x[None, :, rows].float())[0]
            y0_hat[:, rows, :w] = scale * y0 if sample == 0 else y0_hat[:, rows, :w] + scale * y0
    return y0_hat[:, :h, :w]


def _draw(network: "_Network", schedule: Schedule, sampler, z_t: Tensor, answers: list, key: tuple[int, int]) -> Tensor:
    """z0_hat at a chain's end, of which z_t and the last two answers are kept, all (c, height, width), overwritten."""
    z0_hat, before = answers
    for t in range(schedule.T, 0, -1):
        network(z_t, float(schedule.noise_level[t]), z0_hat)
        if t == 1:  # alpha_bar[0] = 1: the last answer is the sample
            break
        for rows in _bands(network.height):  # one step of a chain that is entered at t
            z, answer, past = (part[None, :, rows].float() for part in (z_t, z0_hat, before))
            denoise, generator = partial(_answer, answer), _generator(*key, t - 1, rows.start)
            chain = sampler(denoise, schedule, z, generator, T=t, before=past if t < schedule.T else None)
            z_t[:, rows] = next(chain)[1][0]
        z0_hat, before = before, z0_hat
    return z0_hat


def _answer(z0_hat: Tensor, *_) -> Tensor:
    """The network's answer that is there already."""
    return z0_hat


def _bands(height: int) -> list[slice]:
    return [slice(top, min(top + BAND, height)) for top in range(0, height, BAND)]


def _generator(*key: int) -> torch.Generator:
    """Of (seed, sample, step, first row of a band): one for each, so that bands can be drawn in any order."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def _allocator(c: int, height: int, width: int, workspace: str | Path | None) -> Callable[[], Tensor]:
    """new() -> an array of the state's shape and type, in memory or in a file."""
    dtype = torch.float32 if height * width <= LARGE else torch.float16
    size, free = c * height * width, free_memory(torch.device("cpu"))
    if workspace is None and free is not None and _ARRAYS * size * dtype.itemsize > free / 2:
        workspace = tempfile.gettempdir()

    def new() -> Tensor:
        if workspace is None or os.name == "nt":  # Windows deletes no file that is mapped, but can swap
            return torch.empty(c, height, width, dtype=dtype)
        with tempfile.NamedTemporaryFile(dir=workspace, prefix="tinymsg-") as file:  # its name is gone afterwards
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and the process's end later
                os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
            array = torch.from_file(file.name, shared=True, size=size, dtype=dtype)
        return array.view(c, height, width)

    return new


class _Network:
    """The network over a whole picture, in tiles that get smaller when memory runs out."""

    def __init__(
        self, model: Model, x: Tensor, tile: int | None, device: torch.device, progress, passes: int, done: int
    ):
        self.model, self.x, self.device, self.progress = model, x, device, progress
        self.height, self.width = (_round_up(side, model.multiple) for side in x.shape[1:])
        tile = choose_tile(model, self.height, self.width, device) if tile is None else tile
        self._use(tile or max(self.height, self.width))
        self.margin, self.passes, self.done = margin(model), done + passes, done  # over the whole picture

    def _use(self, tile: int) -> None:
        self.tile = _round_up(tile, self.model.multiple)
        self.spans = [(rows, columns) for rows in self._spans(self.height) for columns in self._spans(self.width)]
        self.prepared = lru_cache(1)(self._prepare)  # of a picture that is one tile, guidance runs once

    def _spans(self, length: int) -> list[Span]:
        """Even parts of a side, each at most a tile, all but the last multiples of `model.multiple`."""
        part = _round_up(math.ceil(length / math.ceil(length / self.tile)), self.model.multiple)
        return [(start, min(start + part, length)) for start in range(0, length, part)]

    def _prepare(self, top: int, bottom: int, left: int, right: int) -> Prepared:
        """Of a part of the padded picture: what lies beyond x is mirrored as the whole picture's border is."""
        return prepare(self.model, self.x[None, :, top:bottom, left:right].to(self.device))

    def begin(self, start: Tensor, rows: slice, noise_level: Tensor, noise: Tensor) -> Tensor:
        """(c, rows, width), a band of the state that a chain begins with: start (c, h, w) in [-1, 1], noised."""
        above, multiple = max(rows.start - self.model.multiple, 0), self.model.multiple  # what the border may mirror
        bands = (pad_to_multiple(part[None, :, above : rows.stop].float(), multiple) for part in (start, self.x))
        y0, x = (band[:, :, rows.start - above :] for band in bands)
        return q_sample(self.model.encode(y0, x), noise_level.float(), noise[None])[0]

    def __call__(self, z_t: Tensor, noise_level: float, out: Tensor) -> None:
        """Write z0_hat for the state z_t, both (c, height, width), into `out`."""
        while True:
            try:
                for number, (rows, columns) in enumerate(self.spans, 1):
                    self._tile(z_t, noise_level, rows, columns, out)
                    if self.progress is not None:
                        self.progress(self.done * len(self.spans) + number, self.passes * len(self.spans))
                self.done += 1
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.tile <= SMALLEST:
                    raise MemoryError(_too_little(self.device, "it ran out")) from None
            largest = max(end - start for span in self.spans for start, end in span)
            self._use(max(largest // 2, SMALLEST))  # out of the handler, which holds the failed pass's tensors
            if self.device.type != "cpu":
                torch.accelerator.empty_cache()

    def _tile(self, z_t: Tensor, noise_level: float, rows: Span, columns: Span, out: Tensor) -> None:
        top, bottom = max(rows[0] - self.margin, 0), min(rows[1] + self.margin, self.height)
        left, right = max(columns[0] - self.margin, 0), min(columns[1] + self.margin, self.width)
        prepared = self.prepared(top, bottom, left, right)
        z = z_t[None, :, top:bottom, left:right].to(self.device).float()
        z = z.contiguous(memory_format=torch.channels_last)  # as x is
        level = torch.full((1,), noise_level, device=self.device)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=prepared.bf16):
            z0_hat = prepared.denoise(z, level)
        inside = z0_hat[0, :, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
        out[:, slice(*rows), slice(*columns)] = inside.to("cpu")
