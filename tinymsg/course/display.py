"""Pictures on a page: with a text alternative, and under sliders.

Sliders move over frames computed beforehand: they answer at once and work without a kernel in the exported HTML.
Wherever widgets cannot run, one picture with its words is left.
"""

import base64
import html
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import IPython.display
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFile, ImageFont
from torch import Tensor

from ..data import to_display

Picture = Figure | Tensor  # a tensor is (c, h, w) in [-1, 1]
ImageFile.MAXBLOCK = 2**24  # bytes: an optimised JPEG of noise outgrows Pillow's own buffer ("broken data stream")
STILL = "Still picture of a widget; it works in JupyterLab (make lab)."


def show(figure: Figure | str | Path, alt: str) -> None:
    """Display a figure once, or a picture file, with its text alternative (for a reader without the picture)."""
    if not alt.strip():
        raise ValueError("a figure needs a text alternative")
    _display(Image.open(io.BytesIO(frame_bytes(figure)) if isinstance(figure, Figure) else figure), alt)


def display_view(view: ipywidgets.DOMWidget, png: bytes, text: str) -> None:
    """Display a widget. Where widgets cannot run, a still picture that says so and its words are left."""
    picture, font = Image.open(io.BytesIO(png)).convert("RGB"), ImageFont.load_default(size=12)
    _, _, width, height = font.getbbox(STILL)
    page = Image.new("RGB", (max(picture.width, int(width) + 4), picture.height + int(height) + 6), "white")
    page.paste(picture)
    ImageDraw.Draw(page).text((2, picture.height + 2), STILL, font=font, fill="#666666")
    model = {"version_major": 2, "version_minor": 0, "model_id": view.model_id}
    _display(page, text, {"application/vnd.jupyter.widget-view+json": model})


def _display(picture: Image.Image, alt: str, bundle: dict | None = None) -> None:
    kind, small = _small(picture.convert("RGB"))
    bundle = (bundle or {}) | {kind: base64.b64encode(small).decode(), "text/plain": alt}
    IPython.display.display(bundle, raw=True, metadata={kind: {"alt": alt}})


def _small(picture: Image.Image) -> tuple[str, bytes]:
    """Type and bytes of the smaller file: a PNG of the 64 colours that serve it best, unless they show, or a JPEG."""
    stop = picture.width * picture.height // 50  # k-means ends when fewer pixels change their colour
    few = picture.quantize(64, Image.Quantize.MAXCOVERAGE, kmeans=stop, dither=Image.Dither.NONE)
    change = np.abs(np.asarray(few.convert("RGB"), dtype=int) - np.asarray(picture)).max(axis=-1)
    png, jpeg = _bytes(few, "PNG", optimize=True), _bytes(picture, "JPEG", quality=85, optimize=True)
    if change.mean() < 1 and len(png) < len(jpeg):  # a level of 255: curves and words, no photographs
        return "image/png", png
    return "image/jpeg", jpeg


def _bytes(picture: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(image: Tensor, model_range: bool = True) -> np.ndarray:
    """(c, h, w) or (1, c, h, w) in [-1, 1], or in [0, 1] with model_range=False -> (h, w, 3 or nothing) in [0, 1]."""
    image = image.detach().float().cpu().reshape(image.shape[-3:])
    image = to_display(image) if model_range else image.clamp(0, 1)
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def frame_bytes(frame: Picture, scale: int = 2) -> bytes:
    """PNG of a figure, which is closed, or of a picture (c, h, w) in [-1, 1] enlarged `scale` times unsmoothed."""
    if isinstance(frame, Figure):
        buffer = io.BytesIO()
        frame.savefig(buffer, format="png", metadata={"Software": None})  # no version string: reproducible bytes
        plt.close(frame)
        return buffer.getvalue()
    picture = Image.fromarray((pixels(frame) * 255).round().astype(np.uint8))
    return _bytes(picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST), "PNG")


def picture_html(png: bytes, words: str) -> str:
    """An <img> with its text alternative."""
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


class Panel:
    """Controls in rows, over a line that says how things stand, and a picture with its words."""

    def __init__(self, *rows: Sequence[ipywidgets.Widget]):
        self.status, self.picture, self.shown = ipywidgets.HTML(), ipywidgets.HTML(), (b"", "")
        self.view = ipywidgets.VBox([*map(ipywidgets.HBox, rows), self.status, self.picture])

    def say(self, sentence: str) -> None:
        """Change the line."""
        self.status.value = html.escape(sentence)

    def draw(self, frame: Picture, words: str, scale: int = 2) -> None:
        """Change the picture, and its words."""
        self.shown = frame_bytes(frame, scale), words
        self.picture.value = picture_html(*self.shown)

    def show(self) -> None:
        """Display all of it. Where widgets cannot run, the picture of this moment and its words are left."""
        display_view(self.view, *self.shown)


def choice(name: str, values: Sequence, start: object, label_width: str = "initial"):
    """A widget to choose one of the values: a row of buttons for texts, a slider for numbers."""
    layout = {"width": "auto", "max_width": "40em"}
    if not isinstance(values[0], str):
        kind, style = ipywidgets.SelectionSlider, {"description_width": label_width}
    else:
        kind, style = ipywidgets.ToggleButtons, {"description_width": label_width, "button_width": "auto"}
        layout |= {"display": "flex", "margin": "3px 2px"}  # the label stays beside them
    return kind(options=list(values), value=start, description=name, tooltip=name, style=style, layout=layout)


def frame_explorer(
    frame: Callable[..., Picture], controls: dict, alt: Callable[..., str], start: dict | None = None, scale: int = 2
) -> None:
    """Display sliders, linked in the browser to pictures computed beforehand for every combination of their values.

    frame, alt: of one value of each control, by position: a picture (a tensor is enlarged `scale` times), its words.
    controls: {label: its values}; texts become a row of buttons. start: {label: value shown first}, else the first.
    """
    first = {name: values[0] for name, values in controls.items()} | (start or {})
    handles = [choice(name, values, first[name]) for name, values in controls.items()]
    pictures = {values: frame_bytes(frame(*values), scale) for values in itertools.product(*controls.values())}

    def stack(chosen: tuple) -> ipywidgets.Widget:
        """The pictures that are left once the first controls are set: a Stack of Stacks of pictures."""
        if chosen in pictures:
            return ipywidgets.HTML(picture_html(pictures[chosen], alt(*chosen)))
        handle = handles[len(chosen)]
        box = ipywidgets.Stack([stack((*chosen, value)) for value in handle.options], selected_index=handle.index)
        ipywidgets.jslink((handle, "index"), (box, "selected_index"))
        return box

    view, shown = ipywidgets.VBox([*handles, stack(())]), tuple(handle.value for handle in handles)
    display_view(view, pictures[shown], alt(*shown))


def swipe(before: Tensor, after: Tensor, names: tuple[str, str] = ("before", "after"), stops: int = 21) -> None:
    """Display one picture over another, (c, h, w) each in [-1, 1], with a slider that moves the border between them."""
    width, label = before.shape[-1], f"{names[0]} up to (%)"
    percents = [round(100 * i / (stops - 1)) for i in range(stops)]

    def frame(percent: int) -> Tensor:
        border = round(width * percent / 100)
        picture = torch.cat([before[..., :border], after[..., border:]], dim=-1)
        if 0 < border < width:
            picture[..., border] = 1.0  # a white line
        return picture

    def words(percent: int) -> str:
        return f"One picture: {names[0]} in the left {percent} % of it, {names[1]} in the rest."

    frame_explorer(frame, {label: percents}, words, {label: percents[stops // 2]})
