"""Panels that compute on request: what is shown, when, and what Cancel, mistakes and newer values do to it."""

import base64
import io
import threading

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tinymsg.course.live import LivePanel, live_panel

SECONDS = 30  # far more than anything here takes


def gray(level: float) -> torch.Tensor:
    return torch.full((1, 2, 3), level)


def shown(panel: LivePanel) -> tuple[str, np.ndarray]:
    """Words and pixels of the picture."""
    _, words, _, source, *_ = panel.picture.value.split('"')
    return words, np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split("base64,")[1]))).convert("L"))


class Work:
    """Three steps that wait for the test: each is allowed by `go`, and told by `came`."""

    def __init__(self):
        self.go, self.came, self.closed, self.free = threading.Semaphore(0), threading.Semaphore(0), 0, True

    def __call__(self, level, name):
        try:
            for step in (1, 2, 3):
                if not self.free:
                    self.came.release()
                    assert self.go.acquire(timeout=SECONDS)
                yield step, 3, gray(level * step / 3), f"{name} at {level}."
        except GeneratorExit:
            self.closed += 1
            raise


def done(panel: LivePanel) -> bool:
    """Wait for what is being computed."""
    panel._thread.join(SECONDS)
    return panel.cancel.disabled


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def panel(work):
    panel = LivePanel(work, {"level": (0.0, 1.0, 0.01), "name": ["up", "down"]}, {"level": 0.5})
    work.free = False
    return panel


def finish(panel, work, steps: int) -> None:
    for _ in range(steps):
        work.go.release()
    assert done(panel)


def test_the_first_picture_is_that_of_the_first_values(panel):
    words, pixels = shown(panel)
    assert words == "up at 0.5." and pixels.shape == (4, 6) and (pixels == round(0.75 * 255)).all()
    assert panel.compute.disabled is False and panel.cancel.disabled is True


def test_it_computes_for_the_values_of_the_moment(panel, work):
    panel.controls["level"].value, panel.controls["name"].value = 0.87, "down"
    assert "press Compute" in panel.status.value
    assert shown(panel)[0] == "up at 0.5.", "the picture says what it shows, not where the controls are"
    panel.compute.click()
    finish(panel, work, 3)
    words, pixels = shown(panel)
    assert words == "down at 0.87." and (pixels == round((0.87 / 2 + 0.5) * 255)).all()
    assert panel.progress.value == panel.progress.max == 3
    assert panel.status.value.startswith("Done in ")


def test_partial_pictures_come_and_cancel_stops_at_the_next(panel, work):
    panel.compute.click()
    assert panel.compute.disabled and not panel.cancel.disabled
    assert work.came.acquire(timeout=SECONDS)
    work.go.release()
    assert work.came.acquire(timeout=SECONDS)  # the second step has begun: the first is shown
    words, pixels = shown(panel)
    assert words == "up at 0.5. Unfinished: 1 of 3." and (pixels == round((0.5 / 3 / 2 + 0.5) * 255)).all()
    assert panel.progress.value == 1 and panel.status.value == "1 of 3"
    panel.cancel.click()
    finish(panel, work, 1)
    assert work.closed == 1 and "2 of 3" in panel.status.value
    assert shown(panel)[0].endswith("Unfinished: 2 of 3.")
    assert panel.compute.disabled is False and panel.cancel.disabled is True
    panel.compute.click()  # and it can be started anew
    finish(panel, work, 3)
    assert shown(panel)[0] == "up at 0.5." and panel.status.value.startswith("Done")


def test_a_second_press_while_it_computes_does_nothing(panel, work):
    panel.compute.click()
    thread = panel._thread
    panel.controls["level"].value = 0.1
    panel.compute.click()  # a disabled button sends nothing from a browser; this goes past it
    finish(panel, work, 3)
    assert panel._thread is thread and shown(panel)[0] == "up at 0.5."


def test_a_mistake_becomes_a_sentence_and_the_panel_lives(work):
    def fussy(level):
        yield 1, 2, gray(level), f"{level}"
        if level > 0.5:
            raise ValueError("<level> is too high.\nmuch")
        yield 2, 2, gray(level), f"{level}"

    panel = LivePanel(fussy, {"level": (0.0, 1.0, 0.1)})
    panel.controls["level"].value = 0.9
    panel.compute.click()
    assert done(panel)
    assert "&lt;level&gt; is too high" in panel.status.value and "much" not in panel.status.value
    assert not panel.compute.disabled
    panel.controls["level"].value = 0.2
    panel.compute.click()
    assert done(panel) and shown(panel)[0] == "0.2"


def test_a_mistake_at_the_first_values_stops_the_lesson():
    with pytest.raises(ZeroDivisionError):
        LivePanel(lambda level: iter([(1, 1, gray(1 / level), "")]), {"level": (0, 5, 1)})
    with pytest.raises(ValueError, match="no picture"):
        LivePanel(lambda level: iter([]), {"level": (0, 5, 1)})


def test_instant_every_move_computes_and_the_newest_wins():
    came, go, seen = threading.Semaphore(0), threading.Semaphore(0), []

    def work(level):
        if threading.current_thread() is not threading.main_thread():
            seen.append(level)
            came.release()
            assert go.acquire(timeout=SECONDS)
        yield 1, 1, gray(level / 10), f"level {level}"

    panel = LivePanel(work, {"level": (0, 10, 1)}, {"level": 3}, instant=True)
    panel.controls["level"].value = 4
    assert came.acquire(timeout=SECONDS)
    for value in (5, 6, 7, 8):  # while 4 is being computed
        panel.controls["level"].value = value
    go.release()
    go.release()
    assert done(panel)
    assert seen == [4, 8] and shown(panel)[0] == "level 8"


def test_a_figure_is_a_frame_and_leaves_nothing_open():
    import matplotlib.pyplot as plt

    def work(level):
        figure = Figure(figsize=(2, 1), dpi=50)
        figure.add_subplot().plot([0, level])
        yield 1, 1, figure, "a line"

    before = plt.get_fignums()  # other tests may have left some
    panel = LivePanel(work, {"level": (0.0, 2.0, 0.1)}, instant=True)
    panel.controls["level"].value = 1.5
    assert done(panel)
    assert shown(panel)[1].shape == (50, 100) and plt.get_fignums() == before


def test_controls_are_as_fine_as_they_say_and_labels_stand_in_one_column():
    panel = LivePanel(
        lambda *values: iter([(1, 1, gray(0), str(values))]),
        {"steps": (1, 50, 1), "max_noise": (0.01, 0.99, 0.01), "sampler": ["ancestral", "ddim"]},
        {"max_noise": 0.9},
    )
    steps, noise, sampler = panel.controls.values()
    assert (steps.min, steps.max, steps.step, steps.value) == (1, 50, 1, 1)
    assert (noise.min, noise.max, noise.step, noise.value) == (0.01, 0.99, 0.01, 0.9)
    assert sampler.options == ("ancestral", "ddim") and panel.values == (1, 0.9, "ancestral")
    assert len({control.style.description_width for control in panel.controls.values()}) == 1


def test_where_widgets_cannot_run_the_same_picture_and_its_words_are_left(monkeypatch):
    import IPython.display

    left = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, **options: left.append((bundle, options)))

    def work(level):
        yield 1, 1, gray(level), f'"{level}"'

    panels = [live_panel(work, {"level": (0.0, 1.0, 0.5)}) for _ in range(2)]
    assert [bundle["text/plain"] for bundle, _ in left] == ['"0.0"'] * 2
    assert left[0][0]["image/png"] == left[1][0]["image/png"]
    assert left[0][1]["metadata"]["image/png"]["alt"] == '"0.0"'
    assert left[1][0]["application/vnd.jupyter.widget-view+json"]["model_id"] == panels[1].view.model_id
    assert "&quot;0.0&quot;" in panels[0].picture.value
