"""Figures and widgets: alternatives in words, frames that are what they say, colours that everybody can tell apart."""

import base64
import io
import itertools

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from ipywidgets.widgets import widget
from PIL import Image

from tinymsg.blur import path_to_kernel
from tinymsg.course import figures


@pytest.fixture(autouse=True)
def _clean():
    yield
    plt.close("all")


@pytest.fixture
def shown():
    """shown(f) -> what f displayed: a list of (data, metadata)."""
    InteractiveShell.instance()

    def run(f):
        with capture_output() as captured:
            f()
        return [(output.data, output.metadata) for output in captured.outputs]

    return run


# Dichromats, severity 1 (Machado 2009, Table 1), on linear light
SIGHT = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "usual": np.eye(3).tolist(),
}


@pytest.mark.parametrize("sight", SIGHT)
def test_the_arms_colours_can_be_told_apart(sight):
    """CIELAB distance of the colours that stand beside each other in figures; 10 is easily seen side by side."""
    from skimage.color import rgb2lab

    names = ("blurry", "regression", "plain", "guided", "control", "structure", "sharp")
    rgb = np.array([[int(figures.COLORS[name][i : i + 2], 16) / 255 for i in (1, 3, 5)] for name in names])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(SIGHT[sight]).T).clip(0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(seen[None])[0]
    distance = {
        (a, b): float(np.linalg.norm(lab[i] - lab[j])) for (i, a), (j, b) in itertools.combinations(enumerate(names), 2)
    }
    closest = min(distance, key=distance.get)
    assert distance[closest] > 10, (closest, distance[closest])


def test_show_displays_once_with_its_words(shown):
    def draw():
        figure, axis = plt.subplots()
        axis.plot([0, 1])
        figures.show(figure, 'rises from 0 to "1"')

    ((data, metadata),) = shown(draw)
    assert metadata["image/png"]["alt"] == 'rises from 0 to "1"'
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).width > 100
    assert plt.get_fignums() == [], "left open it would be drawn a second time"


def test_a_picture_file_is_shown_as_it_is(shown, tmp_path):
    path = str(tmp_path / "drawing.png")
    Image.new("RGB", (30, 20), "#0072B2").save(path)
    ((data, metadata),) = shown(lambda: figures.show(path, "a drawing"))
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    assert picture.size == (30, 20) and picture.getcolors() == [(600, (0, 0x72, 0xB2))]
    assert metadata["image/png"]["alt"] == "a drawing" == data["text/plain"]


def test_a_picture_of_noise_is_stored(shown):
    noise = torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ((picture, _),) = shown(lambda: figures.frame_explorer(lambda _: noise, {"a": [1]}, lambda _: "noise"))
    assert "image/jpeg" in picture


def test_curves_are_stored_in_few_colours_and_photographs_as_jpeg(shown):
    def curve():
        figure, axis = plt.subplots()
        axis.plot([0, 1, 0.5], color=figures.COLORS["guided"])
        figures.show(figure, "a line")

    noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))[None]
    smooth = torch.nn.functional.interpolate(noise, size=(64, 64), mode="bilinear")[0]
    ((line, _),) = shown(curve)
    ((photograph, metadata),) = shown(lambda: figures.show(figures.image_grid([smooth], model_range=False), "colours"))
    line = Image.open(io.BytesIO(base64.b64decode(line["image/png"])))
    assert len(line.getcolors()) <= 64 and line.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    ink = np.asarray(line.convert("RGB"), dtype=int) - [int(figures.COLORS["guided"][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(ink).max(axis=-1) < 6).sum() > 50, "the line has its colour"
    assert metadata["image/jpeg"]["alt"] == "colours" == photograph["text/plain"] and "image/png" not in photograph
    photograph = Image.open(io.BytesIO(base64.b64decode(photograph["image/jpeg"])))
    exact = Image.open(io.BytesIO(figures.frame_bytes(figures.image_grid([smooth], model_range=False)))).convert("RGB")
    change = np.asarray(photograph, dtype=int) - np.asarray(exact, dtype=int)
    assert photograph.size == exact.size and np.abs(change).mean() < 1.5


def frames_of(view) -> list[str]:
    """The pictures of a frame explorer, in order."""
    if hasattr(view, "value") and str(view.value).startswith("<img"):
        return [view.value]
    return [frame for child in getattr(view, "children", ()) for frame in frames_of(child)]


def widget_of(data):
    return widget._instances[data["application/vnd.jupyter.widget-view+json"]["model_id"]]


def test_a_frame_for_every_combination_linked_to_its_sliders(shown):
    def frame(level, name):
        return torch.full((1, 2, 2), level if name == "up" else -level)

    ((data, metadata),) = shown(
        lambda: figures.frame_explorer(
            frame,
            {"level": [0.0, 0.5, 1.0], "name": ["up", "down"]},
            lambda level, name: f"{name} {level}",
            {"level": 0.5},
        )
    )
    view = widget_of(data)
    pictures = frames_of(view)
    assert [picture.split('"')[1] for picture in pictures] == [
        f"{n} {v}" for v in (0.0, 0.5, 1.0) for n in ("up", "down")
    ]
    pixel = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[5].split("base64,")[1].split('"')[0]))))
    assert (pixel == 0).all(), "1.0 down is black"
    slider, buttons, stack = view.children
    assert slider.index == 1 and stack.selected_index == 1 and buttons.index == 0
    assert metadata["image/png"]["alt"] == "up 0.5" == data["text/plain"]
    links = [w for w in widget._instances.values() if isinstance(w, ipywidgets.widgets.widget_link.Link)]
    linked = {(link.source[0], link.target[0]) for link in links if link.target[1] == "selected_index"}
    assert {(slider, stack), *((buttons, inner) for inner in stack.children)} <= linked


def test_frames_are_enlarged_as_asked_and_the_still_says_what_it_is(shown):
    ((data, _),) = shown(
        lambda: figures.frame_explorer(lambda level: torch.zeros(1, 2, 3), {"level": [1]}, str, scale=5)
    )
    (frame,) = frames_of(widget_of(data))
    assert Image.open(io.BytesIO(base64.b64decode(frame.split("base64,")[1].split('"')[0]))).size == (15, 10)
    still = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("L"))
    assert (still[:10, :15] == 128).all() and (still[:10, 15:] == 255).all(), "the picture, with white beside it"
    words = (still[10:] < 200).any(axis=0).nonzero()[0]
    assert words.min() < 5 and 200 < words.max() < still.shape[1], "below it a line, not cut off"


def test_a_path_is_drawn_where_its_kernel_has_its_light():
    """A pixel of the camera is `zoom` pixels of the picture, right and down, as `path_to_kernel` has it."""
    path = torch.tensor([[-4.0, 2.0], [3.0, -1.0]])
    picture = figures.path_picture(path, path[:1], reach=6, zoom=8)
    assert picture.shape == (3, 13 * 8, 13 * 8) and picture.min() >= 0 and picture.max() == 1
    kernel = path_to_kernel(path[None], 13)[0]
    places = [(int(row), int(column)) for row, column in kernel.nonzero()]
    assert places == [(5, 9), (8, 2)]
    hexes = [figures.COLORS[name] for name in ("structure", "plain")]  # a pose; a pose that is marked
    for (row, column), color in zip(places, hexes, strict=True):
        seen = picture[:, 8 * row + 4, 8 * column + 4]
        assert torch.allclose(seen, torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]))
    assert picture[:, 8 * 2 + 4, 8 * 2 + 4].min() == 1  # white where there is neither path nor line


def test_swipe_moves_the_border(shown):
    before, after = -torch.ones(3, 4, 20), torch.zeros(3, 4, 20)
    ((data, _),) = shown(lambda: figures.swipe(before, after, ("blurry", "restored"), stops=3))
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(p.split("base64,")[1].split('"')[0]))).convert("L"))[0]
        for p in frames_of(widget_of(data))
    ]
    assert (pictures[0] == 128).all() and (pictures[2] == 0).all()
    assert (pictures[1][:20] == 0).all() and (pictures[1][20:22] == 255).all() and (pictures[1][22:] == 128).all()


def test_image_grid_has_a_panel_a_picture_with_titles_and_notes():
    picture = torch.zeros(3, 8, 8)
    figure = figures.image_grid(
        {"first": [picture, picture], "second": [picture, picture]}, ["a", "b"], [["1", "2"], ["3", "4"]]
    )
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) == 4 and drawn[0].get_title() == "a"


def test_differences_are_drawn_with_their_intervals():
    axis = figures.plot_differences({"guided": {"home": torch.tensor([1.0, 2.0, 3.0])}}, "gain (dB)").axes[0]
    assert axis.get_ylabel() == "gain (dB)"
    ((segment,),) = [c.get_segments() for c in axis.collections]
    assert 1 <= segment[0][1] < 2 < segment[1][1] <= 3, "the interval of the mean"


def test_watch_thins_out_records():
    class Record:
        def __init__(self, step):
            self.step = step

        def to_dict(self):
            return {"step": self.step, "denoise": 1.0 / self.step}

    history = figures.watch(iter([Record(i) for i in range(1, 26)]), 25, every=10)
    assert [row["step"] for row in history][-1] in (20, 25) and len(history) >= 2


def test_score_text_is_the_psnr():
    truth = torch.zeros(3, 8, 8)
    assert figures.score_text(truth + 0.2, truth) == "20.0 dB"
