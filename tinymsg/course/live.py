"""Pictures computed on request: sliders as fine as one likes, progress, and a way to stop."""

import html
import threading
import time
from collections.abc import Callable, Generator, Sequence

import ipywidgets

from .display import Panel, Picture, choice, frame_bytes, picture_html

# Yields (done, total, picture, what it shows); done reaches total at the end
Work = Callable[..., Generator[tuple[int, int, Picture, str], None, None]]


class LivePanel(Panel):
    """Controls, buttons to compute and to cancel, a progress bar, and the picture with its words.

    Args:
        work: called with one value of each control, by position, in a thread (so no pyplot); its pictures are shown as
            they come. A mistake becomes a sentence; at the first values it is raised.
        controls: {label: (lowest, highest, step)} for a slider, {label: [texts]} for a row of buttons.
        start: {label: value at first} (default: the lowest, the first text); computed at once.
        instant: for work of less than some 100 ms: every move computes anew, the newest values win; nothing to press.
    """

    def __init__(self, work: Work, controls: dict, start: dict | None = None, instant: bool = False, scale: int = 2):
        self.work, self.instant, self.scale = work, instant, scale
        first = {name: values[0] for name, values in controls.items()} | (start or {})
        width = f"{max(map(len, controls)) + 2}ch"  # one column of labels
        self.controls, self._firsts = (
            {name: _control(name, values, first[name], width) for name, values in controls.items()} for _ in range(2)
        )
        self.compute = ipywidgets.Button(description="Compute", icon="play", button_style="primary")
        self.cancel = ipywidgets.Button(description="Cancel", icon="stop", disabled=True)
        self.reset = ipywidgets.Button(description="First settings", icon="undo")
        self.progress = ipywidgets.IntProgress(bar_style="info", layout={"width": "16em"})
        super().__init__([self.reset] if instant else [self.compute, self.cancel, self.progress])
        self.view.children = (*self.controls.values(), *self.view.children)
        self._one_at_a_time, self._newest, self._thread = threading.Lock(), 0, threading.Thread()
        self._links: list[ipywidgets.Widget] = []
        for done, total, picture, words in work(*self.values):
            self._picture(done, total, picture, words)
        if not self.shown[0]:
            raise ValueError("work yielded no picture: let it yield (done, total, picture, words) at least once")
        self.compute.on_click(lambda _: self._ask())
        self.cancel.on_click(lambda _: self._outdate())
        self.reset.on_click(lambda _: self._go_back())
        for control in self.controls.values():
            control.observe(lambda _: self._moved(), names="value")

    @property
    def values(self) -> tuple:
        """The controls' values of this moment."""
        return tuple(control.value for control in self.controls.values())

    def _moved(self) -> None:
        if self.instant:
            self._ask()
        elif not self.compute.disabled:
            self.say("The controls have moved: press Compute.")

    def _go_back(self) -> None:
        """First settings, set in the browser by new links: set here, a move that it still holds back would undo them.

        It holds back a control's moves until the kernel has answered the last one, but no press of a button.
        """
        while self._links:
            self._links.pop().close()
        for first, control in zip(self._firsts.values(), self.controls.values(), strict=True):
            value = "index" if isinstance(control, ipywidgets.ToggleButtons) else "value"  # as the browser calls it
            self._links.append(ipywidgets.jsdlink((first, value), (control, value)))

    def _ask(self) -> None:
        """Compute for the values of this moment, in a thread; while another computes, only if it is instant."""
        if self.instant or not self.compute.disabled:
            self.compute.disabled, self.cancel.disabled, self.progress.value = True, False, 0
            self.say("Computing …")
            self._thread = threading.Thread(target=self._run, args=(self.values, self._outdate()), daemon=True)
            self._thread.start()

    def _outdate(self) -> int:
        """What computes now shall stop at its next picture; returns the number of what comes after it."""
        self._newest += 1
        return self._newest

    def _run(self, values: tuple, number: int) -> None:
        with self._one_at_a_time:
            if self.instant:
                if number < self._newest:
                    return
                values = self.values  # of now: JupyterLab may tell of two moves in two threads
            begun = time.perf_counter()
            try:
                for done, total, picture, words in self.work(*values):
                    self.progress.max, self.progress.value = total, done
                    self._picture(done, total, picture, words)
                    if done < total and number < self._newest:
                        self.say(f"Cancelled after {done} of {total}.")
                        break
                    self.say(f"{done} of {total}")
                else:
                    self.say(f"Done in {time.perf_counter() - begun:.2f} seconds.")
            except Exception as error:  # whatever `work` raises: a thread has nobody else to tell
                sentence = next(iter(str(error).splitlines()), "") or type(error).__name__
                self.say(f"This could not be computed: {sentence.rstrip('.')}.")
            self.cancel.disabled, self.compute.disabled = True, False

    def _picture(self, done: int, total: int, picture: Picture, words: str) -> None:
        words = words if done >= total else f"{words} Unfinished: {done} of {total}."
        self.shown = frame_bytes(picture, self.scale), words
        self.picture.value = f'{picture_html(*self.shown)}<div aria-hidden="true">{html.escape(words)}</div>'


def _control(name: str, values: Sequence, start, label_width: str):
    """A row of buttons for texts, a slider for (lowest, highest, step)."""
    if isinstance(values[0], str):
        return choice(name, values, start, label_width)
    low, high, step = values
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    slider = kind(start, min=low, max=high, step=step, description=name, layout={"width": "auto", "max_width": "40em"})
    slider.style.description_width = label_width
    return slider


def live_panel(*arguments, **options) -> LivePanel:
    """Display a `LivePanel` of these arguments; returns it."""
    panel = LivePanel(*arguments, **options)
    panel.show()
    return panel
