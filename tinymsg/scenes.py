"""Procedural sharp images: dead leaves with shading and texture, endless or a fixed set, nothing to download.

Overlapping shapes whose sizes follow a power law have the edge and scale statistics of photographs
(Lee, Mumford & Huang 2001, "Occlusion models for natural images").
"""

import math

import torch
from torch import Tensor

from .rng import Draws

SHAPES = 48  # leaves per scene: enough to cover it several times over


def _leaf_distance(draws: Draws, grid_x: Tensor, grid_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signed distance in pixels to one random leaf per image (negative inside), and its own coordinates.

    grid_x, grid_y: (h, w) pixel coordinates. Returns three tensors (n, h, w).
    """
    h, w = grid_x.shape
    side = max(h, w)
    kind = draws.integers(4)[:, None, None]
    # p(r) ~ r^-2 between 3 and 45 % of the side: an inverse-transform sample
    small, large = 0.03 * side, 0.45 * side
    radius = (1 / (1 / small + draws.uniform() * (1 / large - 1 / small)))[:, None, None]
    centre = draws.uniform(2, low=-0.1, high=1.1)
    angle = draws.uniform(high=math.pi)[:, None, None]
    aspect = draws.uniform(low=0.35, high=1.0)[:, None, None]
    sides = (3 + draws.integers(4))[:, None, None]

    dx = grid_x - centre[:, 0, None, None] * w
    dy = grid_y - centre[:, 1, None, None] * h
    u = dx * torch.cos(angle) + dy * torch.sin(angle)
    v = dy * torch.cos(angle) - dx * torch.sin(angle)

    ellipse = torch.sqrt(u**2 + (v / aspect) ** 2) - radius
    rectangle = torch.maximum(u.abs() - radius, v.abs() - radius * aspect)
    sector = 2 * math.pi / sides
    theta = torch.remainder(torch.atan2(v, u), sector) - sector / 2
    polygon = torch.sqrt(u**2 + v**2) * torch.cos(theta) - radius
    bend = (u / radius).clamp(-1, 1) ** 2 * radius * (aspect - 0.6)
    stroke = torch.maximum((v - bend).abs() - (0.03 * radius + 0.7), u.abs() - radius)
    distance = torch.where(
        kind == 0, ellipse, torch.where(kind == 1, rectangle, torch.where(kind == 2, polygon, stroke))
    )
    return distance, u, v


def _paint(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Colour (n, 3, h, w) of one leaf: base colour, linear shading, and one of three textures."""
    n, h, w = u.shape
    gray = draws.uniform(1, low=0.02, high=0.98)
    colour = gray + (draws.uniform(3) - 0.5) * draws.uniform(1, high=0.7) ** 1.5
    shading = (draws.uniform(1, 1, low=-0.5, high=0.5) * u + draws.uniform(1, 1, low=-0.5, high=0.5) * v) / max(h, w)
    wave_length = torch.exp(draws.uniform(1, 1, low=math.log(3.0), high=math.log(24.0)))
    phase = 2 * math.pi * (u / wave_length + draws.uniform(1, 1))
    grating = torch.sin(phase)
    checks = torch.sin(phase) * torch.sin(2 * math.pi * v / wave_length)
    grain = draws.normal(h, w)
    kind = draws.integers(5)[:, None, None]  # two in five leaves stay plain
    amplitude = draws.uniform(1, 1, low=0.02, high=0.16)
    texture = torch.where(kind == 0, grating, torch.where(kind == 1, checks, torch.where(kind == 2, 0.5 * grain, 0.0)))
    return colour[:, :, None, None] + (shading + amplitude * texture)[:, None]


def render_scenes(index: Tensor, size: int, seed: int = 0) -> Tensor:
    """Render scenes number `index` of the endless set `seed`.

    Args:
        index: int64 (n,), any values; the scene depends on (seed, index[i], size) alone.
        size: side in pixels, at least 8.
    Returns: float32 (n, 3, size, size) in [0, 1], display (gamma-encoded) values, on index's device.

    >>> render_scenes(torch.arange(2), size=32).shape
    torch.Size([2, 3, 32, 32])
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    draws = Draws(seed, index)
    axis = torch.arange(size, device=index.device, dtype=torch.float32)
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")
    far = grid_x.expand(len(index), size, size)
    canvas = _paint(draws, far, grid_y.expand_as(far))
    for _ in range(SHAPES):
        distance, u, v = _leaf_distance(draws, grid_x, grid_y)
        alpha = (0.5 - distance).clamp(0, 1)[:, None]  # one-pixel antialiased edge
        canvas = torch.lerp(canvas, _paint(draws, u, v), alpha)
    return canvas.clamp(0, 1)
