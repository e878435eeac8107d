"""Plots of the lessons, in one style; what displays them comes along from `display`."""

import os
from collections.abc import Iterable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from ..data import to_display
from ..evaluate import bootstrap_interval, psnr
from .display import frame_bytes, frame_explorer, pixels, show, swipe  # noqa: F401 (for the lessons)

# Okabe & Ito 2008: distinguishable with any common colour blindness. One colour per thing, in every lesson.
COLORS = {
    "blurry": "#666666",
    "regression": "#E69F00",
    "plain": "#D55E00",
    "guided": "#0072B2",
    "sharp": "#000000",
    "control": "#CC79A7",
    "structure": "#009E73",
    "input": "#56B4E9",
}


def use_style() -> None:
    """Figure defaults of the lessons."""
    plt.rc("figure", dpi=80)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("font", size=11)
    plt.rc("axes", titlesize=11, grid=True)
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("grid", alpha=0.25)
    plt.rc("legend", frameon=False)
    plt.rc("image", interpolation="auto")


def score_text(estimate: Tensor, truth: Tensor) -> str:
    """PSNR of one picture (c, h, w) or (1, c, h, w) in the model's range, for captions."""
    estimate, truth = (to_display(image if image.ndim == 4 else image[None]) for image in (estimate, truth))
    return f"{float(psnr(estimate, truth)):.1f} dB"


def image_grid(
    rows: dict[str, Sequence[Tensor]] | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    size: float = 1.9,
    model_range: bool = True,
) -> Figure:
    """Pictures in rows and columns.

    rows: {row label: pictures}, or one unlabelled row; (c, h, w) in [-1, 1], in [0, 1] with model_range=False.
    titles: one per column. notes: text below each picture, notes[row][column], e.g. a score. size: inches per picture.
    """
    rows = rows if isinstance(rows, dict) else {"": rows}
    columns = max(len(row) for row in rows.values())
    inches = columns * size + 0.3, len(rows) * (size + (0.25 if notes else 0)) + 0.3
    figure, axes = plt.subplots(len(rows), columns, squeeze=False, figsize=inches)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    for i, (label, pictures) in enumerate(rows.items()):
        axes[i, 0].set_ylabel(label)
        for j, picture in enumerate(pictures):
            axes[i, j].imshow(pixels(picture, model_range), cmap="gray", vmin=0, vmax=1)
            axes[i, j].set_xlabel(notes[i][j] if notes else "")
    for axis, title in zip(axes[0], titles or (), strict=False):
        axis.set_title(title)
    return figure


def path_picture(path: Tensor, points: Tensor | None = None, reach: int = 20, zoom: int = 6) -> Tensor:
    """A camera path as a picture, quick enough to follow a slider; lines every 5 pixels, the middle darker.

    path: (steps, >=2) shifts (dx, dy) in pixels, up to `reach`; points: (m, 2) of them, marked by discs.
    Returns: (3, s, s) in [0, 1] with s = (2 reach + 1) zoom, the size of a kernel of 2 reach + 1 enlarged `zoom` times.
    """
    axis = (torch.arange((2 * reach + 1) * zoom) + 0.5) / zoom - reach - 0.5
    off_line = (axis - 5 * (axis / 5).round()).abs() * zoom
    line = torch.where(off_line < 0.6, torch.where(axis.abs() < 1, 0.45, 0.15), 0.0)
    picture = (1 - torch.maximum(line[:, None], line[None, :])).expand(3, -1, -1)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    for marks, radius, color in ((path, 1.6, COLORS["structure"]), (points, 4.5, COLORS["plain"])):
        if marks is not None:
            distance = torch.cdist(places.flatten(0, 1), marks[:, :2].float()).amin(dim=1).reshape(places.shape[:2])
            ink = (radius + 0.5 - distance * zoom).clamp(0, 1)
            picture = picture * (1 - ink) + torch.tensor(to_rgb(color))[:, None, None] * ink
    return picture


def watch(records: Iterator, total: int, every: int = 10) -> list[dict[str, float]]:
    """Drain a training run with a progress bar; returns every n-th record as plain numbers, for a curve."""
    quiet = os.environ.get("TQDM_DISABLE", "0") != "0"  # tqdm's notebook bar forgets its own variable
    bar = tqdm(records, total=total, unit="step", disable=quiet)
    return [record.to_dict() for record in bar if record.step % every == 0]


def smooth(values: Iterable[float], window: int = 9) -> np.ndarray:
    """Running median, for noisy training curves; the same length as `values`."""
    values = np.asarray(list(values), dtype=float)
    padded = np.pad(values, window // 2, constant_values=np.nan)  # at the ends, of fewer values
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)[: len(values)]


def plot_signals(signals: dict[str, Tensor], title: str = "") -> Figure:
    """Signals (1, 1, w) in [-1, 1], one panel each, with the first ("sharp") behind all others in gray."""
    figure, axes = plt.subplots(len(signals), 1, figsize=(8, 1.15 * len(signals) + 0.4), sharex=True, sharey=True)
    reference = next(iter(signals.values())).flatten().cpu()
    for axis, (name, signal) in zip(np.atleast_1d(axes), signals.items(), strict=True):
        axis.plot(reference, color="0.75", linewidth=3)
        axis.plot(signal.flatten().cpu(), color=COLORS.get(name, "black"), linewidth=1.3)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(ylim=(-1.25, 1.25), yticks=[])
    figure.suptitle(title, fontsize=11)
    return figure


def plot_differences(differences: dict[str, dict[str, Tensor]], ylabel: str = "PSNR minus plain (dB)") -> Figure:
    """{arm: {domain: (n,) paired differences}} as boxes, with mean and 95 % bootstrap interval in black beside each."""
    domains = list(next(iter(differences.values())))
    figure, axis = plt.subplots(figsize=(1.45 * len(domains) + 1.4, 3.6))
    step = 0.8 / len(differences)
    palette = [COLORS["guided"], COLORS["structure"], COLORS["control"], COLORS["input"]]
    look = {"manage_ticks": False, "patch_artist": True, "widths": 0.5 * step, "medianprops": {"color": "white"}}
    look["flierprops"] = {"markersize": 3, "alpha": 0.4}
    for i, (arm, by_domain) in enumerate(differences.items()):
        color, offset = COLORS.get(arm, palette[i % len(palette)]), (i - (len(differences) - 1) / 2) * step
        for j, domain in enumerate(domains):
            values = by_domain[domain]
            (box,) = axis.boxplot(values.numpy(), positions=[j + offset - 0.06], **look)["boxes"]
            box.set(facecolor=color, edgecolor=color, label=arm if j == 0 else None)
            mean, (low, high) = float(values.mean()), bootstrap_interval(values)
            axis.errorbar(j + offset + 0.3 * step, mean, [[mean - low], [high - mean]], fmt="k_", capsize=3)
    axis.axhline(0, color="black", linewidth=1)
    axis.set_xticks(range(len(domains)), [domain.replace("_", " ") for domain in domains])
    axis.set(ylabel=ylabel, xlim=(-0.55, len(domains) - 0.35))
    axis.legend(ncols=len(differences), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
