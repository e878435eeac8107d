"""Figures and widgets of the lessons: the only user of matplotlib and ipywidgets.

Widgets are made of frames computed beforehand: they answer at once, work without a kernel in the exported HTML,
and leave one PNG with alternative text wherever widgets cannot run.
"""

import base64
import html
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .data import to_display
from .evaluate import psnr

# Okabe & Ito 2008: told apart with any common colour blindness. One colour a thing, in every lesson.
COLORS = {"blurry": "#999999", "regression": "#E69F00", "plain": "#D55E00", "guided": "#0072B2", "sharp": "#000000",
          "control": "#CC79A7", "structure": "#009E73", "input": "#56B4E9"}  # fmt: skip


def use_style() -> None:
    """Figure defaults of the lessons."""
    plt.rcParams.update({
        "figure.dpi": 80, "savefig.dpi": 80, "font.size": 11, "axes.titlesize": 11, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False,
        "image.interpolation": "nearest", "figure.constrained_layout.use": True,
    })  # fmt: skip


def show(figure: Figure, alt: str) -> None:
    """Display a figure once, with its text alternative (what a reader without the picture must know)."""
    from IPython.display import display

    if not alt.strip():
        raise ValueError("a figure needs a text alternative")
    display({"image/png": base64.b64encode(_png(figure)).decode(), "text/plain": alt}, raw=True,
            metadata={"image/png": {"alt": alt}})  # fmt: skip


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # no version string: reproducible bytes
    plt.close(figure)
    return buffer.getvalue()


def _array(image: Tensor, model_range: bool) -> np.ndarray:
    """(c, h, w) or (1, c, h, w) -> (h, w, 3 or nothing), for imshow."""
    image = image.detach().float().cpu()
    image = image[0] if image.ndim == 4 else image
    image = to_display(image) if model_range else image.clamp(0, 1)
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def image_grid(rows: dict[str, Sequence[Tensor]] | Sequence[Tensor], titles: Sequence[str] | None = None,
               notes: Sequence[Sequence[str]] | None = None, size: float = 1.9, model_range: bool = True) -> Figure:  # fmt: skip
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
    figure, axes = plt.subplots(len(rows), columns, squeeze=False,
                                figsize=(columns * size + 0.3, len(rows) * (size + note_space) + 0.3))  # fmt: skip
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


def watch(records: Iterator, total: int, every: int = 10) -> list[dict[str, float]]:
    """Drain a training run with a progress bar; returns every n-th record as plain numbers, for a curve."""
    from tqdm.auto import tqdm

    return [record.to_dict() for record in tqdm(records, total=total, unit="step") if record.step % every == 0]


def smooth(values: Iterable[float], window: int = 9) -> np.ndarray:
    """Running median, for noisy training curves; the same length as `values`."""
    values = np.asarray(list(values), dtype=float)
    padded = np.pad(values, window // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)[: len(values)]


def plot_losses(histories: dict[str, list[dict[str, float]]], key: str = "denoise") -> Figure:
    """Training curves (running medians) of several runs; colours by name where the name has one."""
    figure, axis = plt.subplots(figsize=(6.4, 3))
    for name, history in histories.items():
        axis.plot([row["step"] for row in history], smooth(row[key] for row in history),
                  label=name, color=COLORS.get(name))  # fmt: skip
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


def plot_scores(results: dict, rows: Sequence[str], metric: str = "psnr", domains: Sequence[str] | None = None,
                relative_to: str | None = None) -> Figure:  # fmt: skip
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
            axis.errorbar(j + offset, cell["mean"], [[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]],
                          fmt="o", capsize=3, color=COLORS.get(row.removesuffix("-mean")),
                          markerfacecolor=None if row.endswith("-mean") else "white",
                          label=row if j == 0 else None)  # fmt: skip
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
    picture = axis.imshow(values, cmap="viridis", aspect="auto")
    for cell in cells:
        i, j = steps.index(cell["steps"]), noises.index(cell["max_noise"])
        dark = picture.norm(values[i, j]) < 0.6
        noisy = " ×" if cell["alpha_bar_T"] > 0.15 else ""
        axis.text(j, i, f"{values[i, j]:.2f}{noisy}", ha="center", va="center", color="white" if dark else "black")
    axis.set_xticks(range(len(noises)), noises)
    axis.set_yticks(range(len(steps)), steps)
    axis.set(xlabel="max_noise (largest beta)", ylabel="steps", title=f"{metric} (× : alpha_bar_T > 0.15)")
    axis.grid(False)
    return figure


# --- widgets ------------------------------------------------------------------------------------------------


def frame_bytes(frame: Figure | Tensor, scale: int = 2, model_range: bool = True) -> bytes:
    """PNG of a figure, or of a picture (c, h, w) enlarged `scale` times without smoothing."""
    from PIL import Image

    if isinstance(frame, Figure):
        return _png(frame)
    array = (_array(frame, model_range) * 255).round().astype(np.uint8)
    image = Image.fromarray(array)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def frame_explorer(frame: Callable[..., Figure | Tensor], controls: dict[str, Sequence], alt: Callable[..., str] | str,
                   start: dict[str, object] | None = None) -> None:  # fmt: skip
    """Display sliders over pictures computed beforehand: one for every combination of the controls' values.

    Args:
        frame: called with one value of each control, by position; returns a Figure or a picture (c, h, w).
        controls: {slider label: its values}; a control whose values are text becomes a row of buttons.
        alt: text alternative of a frame, or a function of the control values that gives it.
        start: values shown first (default: the first of each).

    The sliders are linked to the pictures in the browser (no kernel needed) and move with the arrow keys.
    """
    import ipywidgets
    from IPython.display import display

    names, choices = list(controls), [list(values) for values in controls.values()]
    start_values = tuple((start or {}).get(name, values[0]) for name, values in zip(names, choices, strict=True))
    describe = alt if callable(alt) else lambda *values: alt
    pictures = {values: frame_bytes(frame(*values)) for values in itertools.product(*choices)}
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
    text = describe(*start_values)
    bundle = {
        "application/vnd.jupyter.widget-view+json": {"version_major": 2, "version_minor": 0, "model_id": view.model_id},
        "image/png": base64.b64encode(pictures[start_values]).decode(),
        "text/plain": text,
    }
    display(bundle, raw=True, metadata={"image/png": {"alt": text}})


def _control(name: str, values: list, start: object):
    import ipywidgets

    options = [(str(value), value) for value in values]
    kind = ipywidgets.ToggleButtons if isinstance(values[0], str) else ipywidgets.SelectionSlider
    return kind(options=options, value=start, description=name, style={"description_width": "initial"},
                layout={"width": "auto", "max_width": "36em"})  # fmt: skip


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def score_text(estimate: Tensor, truth: Tensor) -> str:
    """PSNR of one picture in the model's range, for captions."""
    estimate, truth = (to_display(image if image.ndim == 4 else image[None]) for image in (estimate, truth))
    return f"{float(psnr(estimate, truth)):.1f} dB"
