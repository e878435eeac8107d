"""Figures and widgets of the lessons.

Widgets are made of frames computed beforehand: they answer at once, work without a kernel in the exported HTML,
and leave one PNG with alternative text wherever widgets cannot run.
"""

import base64
import html
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import to_display
from ..evaluate import HIGHER_IS_BETTER, bootstrap_interval, psnr

# Okabe & Ito 2008: told apart with any common colour blindness. One colour a thing, in every lesson.
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
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "image.interpolation": "nearest",
            "figure.constrained_layout.use": True,
        }
    )


def show(figure: Figure, alt: str) -> None:
    """Display a figure once, with its text alternative (what a reader without the picture must know)."""
    from IPython.display import display

    if not alt.strip():
        raise ValueError("a figure needs a text alternative")
    png = base64.b64encode(_palette_png(_png(figure))).decode()
    display({"image/png": png, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # no version string: reproducible bytes
    plt.close(figure)
    return buffer.getvalue()


def _palette_png(png: bytes) -> bytes:
    """The PNG with the 64 colours that serve it best, or 256: a third of the bytes (a lesson may weigh 500 kB).

    64 do where they change a pixel by less than one level of 255 on average: in curves, not in photographs.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.getcolors(256) is None:
        image = image.point([v & 0xFC | v >> 6 for v in range(256)] * 3)  # 6 bits: fewer colours to sort, white stays
    stop = image.width * image.height // 50  # k-means ends when fewer pixels change their colour
    for colors in (64, 256):
        reduced = image.quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=stop, dither=Image.Dither.NONE)
        change = np.abs(np.asarray(reduced.convert("RGB"), dtype=int) - np.asarray(image)).max(axis=-1)
        if change.mean() < 1:
            break
    return _bytes(reduced, optimize=True)


def _bytes(image: Image.Image, **options) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def _array(image: Tensor, model_range: bool) -> np.ndarray:
    """(c, h, w) or (1, c, h, w) -> (h, w, 3 or nothing), for imshow."""
    image = image.detach().float().cpu()
    image = image[0] if image.ndim == 4 else image
    image = to_display(image) if model_range else image.clamp(0, 1)
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def image_grid(
    rows: dict[str, Sequence[Tensor]] | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    size: float = 1.9,
    model_range: bool = True,
) -> Figure:
    """Pictures in rows and columns.

    Args:
        rows: {row label: pictures}, or one unlabelled row; pictures (c, h, w), in [-1, 1], or [0, 1] with
            model_range=False.
        titles: one a column.
        notes: text below each picture, e.g. its score: notes[row][column].
        size: inches a picture.
    """
    rows = rows if isinstance(rows, dict) else {"": rows}
    columns = max(len(row) for row in rows.values())
    note_space = 0.25 if notes else 0.0
    figure, axes = plt.subplots(
        len(rows), columns, squeeze=False, figsize=(columns * size + 0.3, len(rows) * (size + note_space) + 0.3)
    )
    for i, (label, pictures) in enumerate(rows.items()):
        for j, axis in enumerate(axes[i]):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            if j >= len(pictures):
                continue
            axis.imshow(_array(pictures[j], model_range), cmap="gray", vmin=0, vmax=1)
            if i == 0 and titles:
                axis.set_title(titles[j])
            if j == 0 and label:
                axis.set_ylabel(label)
            if notes:
                axis.set_xlabel(notes[i][j])
    return figure


def path_picture(path: Tensor, points: Tensor | None = None, reach: int = 20, zoom: int = 6) -> Tensor:
    """A camera path as a picture, quick enough to follow a slider; lines every 5 pixels, the middle darker.

    Args:
        path: (steps, >=2) shifts (dx, dy) in pixels.
        points: (m, 2) shifts to mark by discs.
        reach: pixels shown on each side of the middle.
        zoom: side of a camera pixel in the picture.
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
            rgb = torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])[:, None, None]
            picture = picture * (1 - ink) + rgb * ink
    return picture


def watch(records: Iterator, total: int, every: int = 10) -> list[dict[str, float]]:
    """Drain a training run with a progress bar; returns every n-th record as plain numbers, for a curve."""
    from tqdm.auto import tqdm

    quiet = os.environ.get("TQDM_DISABLE", "0") != "0"  # tqdm's notebook bar forgets its own variable
    bar = tqdm(records, total=total, unit="step", disable=quiet)
    return [record.to_dict() for record in bar if record.step % every == 0]


def smooth(values: Iterable[float], window: int = 9) -> np.ndarray:
    """Running median, for noisy training curves; the same length as `values`."""
    values = np.asarray(list(values), dtype=float)
    padded = np.pad(values, window // 2, constant_values=np.nan)  # at the ends, of fewer values
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)[: len(values)]


def plot_losses(histories: dict[str, list[dict[str, float]]], key: str = "denoise") -> Figure:
    """Training curves (running medians) of several runs; colours by name where the name has one."""
    figure, axis = plt.subplots(figsize=(6.4, 3))
    for name, history in histories.items():
        axis.plot(
            [row["step"] for row in history], smooth(row[key] for row in history), label=name, color=COLORS.get(name)
        )
    axis.set(xlabel="optimiser steps", ylabel=f"{key} loss", yscale="log")
    axis.legend()
    return figure


def plot_signals(signals: dict[str, Tensor], title: str = "") -> Figure:
    """Signals (1, 1, w) in [-1, 1], one panel each, with the first ("sharp") behind all others in grey."""
    figure, axes = plt.subplots(len(signals), 1, figsize=(8, 1.15 * len(signals) + 0.4), sharex=True, sharey=True)
    reference = next(iter(signals.values())).flatten().cpu()
    for axis, (name, signal) in zip(np.atleast_1d(axes), signals.items(), strict=True):
        axis.plot(reference, color="0.75", linewidth=3)
        axis.plot(signal.flatten().cpu(), color=COLORS.get(name, "black"), linewidth=1.3)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(ylim=(-1.25, 1.25), yticks=[])
    figure.suptitle(title, fontsize=11)
    return figure


def plot_scores(
    results: dict,
    rows: Sequence[str],
    metric: str = "psnr",
    domains: Sequence[str] | None = None,
    relative_to: str | None = None,
) -> Figure:
    """Scores of models over domains with 95 % intervals, from a results file.

    Args:
        rows: names in results["domains"][domain]["scores"].
        relative_to: draw paired differences to this row instead of the scores.
    """
    domains = list(domains or results["domains"])
    figure, axis = plt.subplots(figsize=(1.3 * len(domains) + 1.8, 3.4))
    for i, row in enumerate(rows):
        offset = (i - (len(rows) - 1) / 2) * 0.16
        for j, domain in enumerate(domains):
            entry = results["domains"][domain]
            cell = entry["scores"][row] if relative_to is None else entry["difference"][f"{row} - {relative_to}"]
            cell = cell[metric]
            axis.errorbar(
                j + offset,
                cell["mean"],
                [[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]],
                fmt="o",
                capsize=3,
                color=COLORS.get(row.removesuffix("-mean")),
                markerfacecolor=None if row.endswith("-mean") else "white",
                label=row if j == 0 else None,
            )
    unit = " (dB)" if metric == "psnr" else ""
    axis.set_xticks(range(len(domains)), [d.replace("_", "\n") for d in domains])
    axis.set_ylabel(f"{metric}{unit}" if relative_to is None else f"{metric}{unit} minus {relative_to}")
    if relative_to is not None:
        axis.axhline(0, color="black", linewidth=1)
    axis.legend(ncols=min(4, len(rows)), loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return figure


def plot_grid(cells: list[dict], metric: str = "psnr") -> Figure:
    """The steps x maximum noise grid as numbers on colours; cells with alpha_bar_T > 0.15 are crossed out."""
    steps = sorted({cell["steps"] for cell in cells})
    noises = sorted({cell["max_noise"] for cell in cells})
    values = np.full((len(steps), len(noises)), np.nan)
    figure, axis = plt.subplots(figsize=(1.1 * len(noises) + 1.6, 0.5 * len(steps) + 1.2))
    for cell in cells:
        i, j = steps.index(cell["steps"]), noises.index(cell["max_noise"])
        values[i, j] = cell[metric]
    lower_is_better = not HIGHER_IS_BETTER[metric]  # bright is good
    picture = axis.imshow(values, cmap="viridis_r" if lower_is_better else "viridis", aspect="auto")
    for cell in cells:
        i, j = steps.index(cell["steps"]), noises.index(cell["max_noise"])
        share = picture.norm(values[i, j])
        dark = share > 0.4 if lower_is_better else share < 0.6
        noisy = " ×" if cell["alpha_bar_T"] > 0.15 else ""
        axis.text(j, i, f"{values[i, j]:.2f}{noisy}", ha="center", va="center", color="white" if dark else "black")
    axis.set_xticks(range(len(noises)), noises)
    axis.set_yticks(range(len(steps)), steps)
    axis.set(xlabel="max_noise (largest beta)", ylabel="steps", title=f"{metric} (× : alpha_bar_T > 0.15)")
    axis.grid(False)
    return figure


def plot_step_curves(rows: list[dict], start: str, metrics: Sequence[str] = ("psnr", "spectral")) -> Figure:
    """Mean quality against network evaluations for every sampler, from one starting point; the ranges are those of all starts.

    rows: of `steps.step_curves`.
    """
    figure, axes = plt.subplots(1, len(metrics), figsize=(4.3 * len(metrics), 2.7))
    looks = {
        "ancestral": (COLORS["plain"], "o-"),
        "ddim": (COLORS["guided"], "s--"),
        "dpm_solver": (COLORS["structure"], "^:"),
    }
    names = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "spectral": "spectral distance"}
    for axis, metric in zip(np.atleast_1d(axes), metrics, strict=True):
        for sampler, (color, look) in looks.items():
            mine = [row for row in rows if (row["sampler"], row["start"]) == (sampler, start)]
            axis.plot(
                [row["evaluations"] for row in mine],
                [row[metric]["mean"] for row in mine],
                look,
                color=color,
                label=sampler,
            )
        low, *_, high = sorted(row[metric]["mean"] for row in rows)
        axis.set(
            xscale="log",
            xlabel="network evaluations",
            ylabel=names[metric],
            ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)),
        )
        axis.set_xticks(ticks := sorted({row["evaluations"] for row in rows}), ticks)
        axis.minorticks_off()
    np.atleast_1d(axes)[-1].legend()
    return figure


def plot_differences(differences: dict[str, dict[str, Tensor]], ylabel: str = "PSNR minus plain (dB)") -> Figure:
    """Paired differences as boxes over domains, with the mean and its 95 % bootstrap interval in black beside each.

    differences: {arm: {domain: (n,) one value a signal}}.
    """
    domains = list(next(iter(differences.values())))
    figure, axis = plt.subplots(figsize=(1.45 * len(domains) + 1.4, 3.6))
    step = 0.8 / len(differences)
    palette = [COLORS["guided"], COLORS["structure"], COLORS["control"], COLORS["input"]]
    for i, (arm, by_domain) in enumerate(differences.items()):
        color = COLORS.get(arm, palette[i % len(palette)])
        for j, domain in enumerate(domains):
            place, values = j + (i - (len(differences) - 1) / 2) * step, by_domain[domain]
            box = axis.boxplot(
                values.numpy(),
                positions=[place - 0.06],
                widths=0.5 * step,
                manage_ticks=False,
                patch_artist=True,
                flierprops={"markersize": 3, "alpha": 0.4},
                medianprops={"color": "white"},
            )
            box["boxes"][0].set(facecolor=color, edgecolor=color, label=arm if j == 0 else None)
            mean, (low, high) = float(values.mean()), bootstrap_interval(values)
            axis.errorbar(place + 0.3 * step, mean, [[mean - low], [high - mean]], fmt="k_", capsize=3)
    axis.axhline(0, color="black", linewidth=1)
    axis.set_xticks(range(len(domains)), [domain.replace("_", " ") for domain in domains])
    axis.set(ylabel=ylabel, xlim=(-0.55, len(domains) - 0.35))
    axis.legend(ncols=len(differences), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def plot_guidance_diagram() -> Figure:
    """The guided icDPM in our own drawing, after what Figs. 2 and 3 of Ren 2023 show."""
    figure, axis = plt.subplots(figsize=(10.5, 4.6))
    axis.set(xlim=(0, 21), ylim=(0.1, 8.6))
    axis.axis("off")

    def box(x: float, y: float, width: float, text: str, color: str, height: float = 0.9) -> None:
        axis.add_patch(plt.Rectangle((x, y - height / 2), width, height, facecolor=color, alpha=0.18, edgecolor="none"))
        axis.add_patch(plt.Rectangle((x, y - height / 2), width, height, fill=False, edgecolor=color, linewidth=1.6))
        axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=9.5)

    def arrow(*points: tuple[float, float], color: str = "0.35", style: str = "-") -> None:
        xs, ys = zip(*points, strict=True)
        axis.plot(xs[:-1], ys[:-1], color=color, linewidth=1.4, linestyle=style)
        axis.annotate(
            "",
            points[-1],
            points[-2],
            arrowprops={"arrowstyle": "->", "color": color, "linestyle": style, "linewidth": 1.4},
        )

    guided, plain, sharp = COLORS["guided"], COLORS["plain"], COLORS["structure"]
    rows = {0: 7.4, 1: 5.6, 2: 3.8, 3: 2.0}
    box(0.1, rows[0], 1.7, "blurry $x$", COLORS["blurry"])
    arrow((0.95, 6.9), (0.95, rows[3]), (2.0, rows[3]))
    axis.text(0.62, 4.6, "gray", rotation=90, ha="center", va="center", fontsize=9.5)
    for k in (1, 2, 3):
        y = rows[k]
        arrow((0.95, y), (2.0, y))
        box(2.0, y, 1.6, rf"$\varphi_{k}$: 1/{2**k}", guided)
        arrow((3.6, y), (4.2, y))
        box(4.2, y, 2.5, rf"$H_{k}$: res. blocks", guided)
        arrow((5.45, y - 0.45), (5.45, y - 0.95), (6.7, y - 0.95), color=sharp, style=":")
        axis.text(
            6.8,
            y - 0.95,
            rf"$\hat s_{k}$  vs.  $s_{k}$ (sharp, gray, 1/{2**k})",
            color=sharp,
            va="center",
            fontsize=9.5,
        )
        arrow((6.7, y), (8.4, y), color=guided)
        box(8.4, y, 1.5, "1×1 conv", guided)
        arrow((9.9, y), (12.55, y), color=guided)
        axis.text(
            12.85,
            y,
            "+",
            ha="center",
            va="center",
            fontsize=13,
            color=guided,
            bbox={"boxstyle": "circle,pad=0.1", "edgecolor": guided, "facecolor": "white"},
        )
        box(11.9, y + 0.93, 1.9, f"encoder 1/{2**k}", plain, height=0.62)
        arrow((12.85, y + 0.62), (12.85, y + 0.32), color=plain)
        arrow((13.2, y), (16.1, y), color=plain)
        box(16.1, y, 1.9, f"decoder 1/{2**k}", plain, height=0.62)
        arrow((17.05, y + 0.31), (17.05, rows[k - 1] - 0.31), color=plain)
    axis.text(7.55, rows[1] + 0.25, "features", color=guided, ha="center", fontsize=9.5)
    box(8.4, rows[0], 1.5, "$y_t$, $x$", COLORS["blurry"])
    arrow((9.9, rows[0]), (11.9, rows[0]), color=plain)
    box(11.9, rows[0], 1.9, "encoder 1/1", plain, height=0.62)
    arrow((13.8, rows[0]), (16.1, rows[0]), color=plain)
    box(16.1, rows[0], 1.9, "decoder 1/1", plain, height=0.62)
    arrow((18.0, rows[0]), (18.8, rows[0]), color=plain)
    axis.text(18.9, rows[0], r"$\hat\epsilon$  vs.  $\epsilon$", color=plain, va="center", fontsize=11)
    for k in (1, 2, 3):
        arrow((12.85, rows[k - 1] - (0.31 if k == 1 else 0.3)), (12.85, rows[k] + 1.24), color=plain)
    arrow((12.85, rows[3] - 0.3), (12.85, 0.75), (14.0, 0.75), color=plain)
    box(14.0, 0.75, 1.7, "middle", plain, height=0.62)
    arrow((15.7, 0.75), (17.05, 0.75), (17.05, rows[3] - 0.31), color=plain)
    return figure


# --- widgets ------------------------------------------------------------------------------------------------


def frame_bytes(frame: Figure | Tensor, scale: int = 2, model_range: bool = True) -> bytes:
    """PNG of a figure, or of a picture (c, h, w) enlarged `scale` times without smoothing."""
    if isinstance(frame, Figure):
        return _png(frame)
    array = (_array(frame, model_range) * 255).round().astype(np.uint8)
    image = Image.fromarray(array)
    return _bytes(image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST))


def frame_explorer(
    frame: Callable[..., Figure | Tensor],
    controls: dict[str, Sequence],
    alt: Callable[..., str] | str,
    start: dict[str, object] | None = None,
    scale: int = 2,
) -> None:
    """Display sliders over pictures computed beforehand: one for every combination of the controls' values.

    Args:
        frame: called with one value of each control, by position; returns a Figure or a picture (c, h, w).
        controls: {slider label: its values}; a control whose values are text becomes a row of buttons.
        alt: text alternative of a frame, or a function of the control values that gives it.
        start: values shown first (default: the first of each).
        scale: pictures are enlarged so many times.

    The sliders are linked to the pictures in the browser (no kernel needed) and move with the arrow keys.
    """
    import ipywidgets

    names, choices = list(controls), [list(values) for values in controls.values()]
    start_values = tuple((start or {}).get(name, values[0]) for name, values in zip(names, choices, strict=True))
    describe = alt if callable(alt) else lambda *values: alt
    pictures = {values: frame_bytes(frame(*values), scale) for values in itertools.product(*choices)}
    handles = [_control(name, values, first) for name, values, first in zip(names, choices, start_values, strict=True)]
    links = []

    def stack(chosen: tuple) -> ipywidgets.Widget:
        """The pictures that are left once the first controls are set: a Stack of Stacks of pictures."""
        depth = len(chosen)
        if depth == len(names):
            source = base64.b64encode(pictures[chosen]).decode()
            return ipywidgets.HTML(f'<img alt="{_escape(describe(*chosen))}" src="data:image/png;base64,{source}">')
        children = [stack((*chosen, value)) for value in choices[depth]]
        box = ipywidgets.Stack(children, selected_index=choices[depth].index(start_values[depth]))
        links.append(ipywidgets.jslink((handles[depth], "index"), (box, "selected_index")))
        return box

    view = ipywidgets.VBox([*handles, stack(())])
    view._links = links  # kept alive as long as the view is
    display_view(view, pictures[start_values], describe(*start_values))


STILL = "Still picture of a widget; it works in JupyterLab (make lab)."


def display_view(view, png: bytes, text: str) -> None:
    """Display a widget. Where widgets cannot run, a still picture that says so and its words are left."""
    from IPython.display import display

    bundle = {
        "application/vnd.jupyter.widget-view+json": {"version_major": 2, "version_minor": 0, "model_id": view.model_id},
        "image/png": base64.b64encode(_palette_png(_with_caption(png, STILL))).decode(),
        "text/plain": text,
    }
    display(bundle, raw=True, metadata={"image/png": {"alt": text}})


def _with_caption(png: bytes, text: str) -> bytes:
    """The PNG with a line of text below it, on white; wider if the line is."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    font = ImageFont.load_default(size=12)
    _, _, width, height = font.getbbox(text)
    page = Image.new("RGB", (max(picture.width, int(width) + 4), picture.height + int(height) + 6), "white")
    page.paste(picture)
    ImageDraw.Draw(page).text((2, picture.height + 2), text, font=font, fill=COLORS["blurry"])
    return _bytes(page)


def swipe(before: Tensor, after: Tensor, names: tuple[str, str] = ("before", "after"), stops: int = 21) -> None:
    """Display one picture over another, (c, h, w) each in [-1, 1], with a slider that moves the border between them."""

    def frame(percent: int) -> Tensor:
        border = round(before.shape[-1] * percent / 100)
        picture = after.clone()
        picture[..., :border] = before[..., :border]
        if 0 < border < picture.shape[-1]:
            picture[..., border] = 1.0  # a white line
        return picture

    percents = [round(100 * i / (stops - 1)) for i in range(stops)]
    frame_explorer(
        frame,
        {f"{names[0]} up to (%)": percents},
        lambda percent: f"One picture: {names[0]} in the left {percent} % of it, {names[1]} in the rest.",
        {f"{names[0]} up to (%)": percents[stops // 2]},
    )


def _control(name: str, values: list, start: object):
    import ipywidgets

    options = [(str(value), value) for value in values]
    kind, style = (
        (ipywidgets.ToggleButtons, {"button_width": "auto"})
        if isinstance(values[0], str)
        else (ipywidgets.SelectionSlider, {})
    )
    return kind(
        options=options,
        value=start,
        description=name,
        tooltip=name,
        style=style | {"description_width": "initial"},
        layout={"width": "auto", "max_width": "36em"},
    )


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def score_text(estimate: Tensor, truth: Tensor) -> str:
    """PSNR of one picture in the model's range, for captions."""
    estimate, truth = (to_display(image if image.ndim == 4 else image[None]) for image in (estimate, truth))
    return f"{float(psnr(estimate, truth)):.1f} dB"
