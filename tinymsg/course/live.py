"""Pictures computed on request: sliders as fine as one likes, progress, and a way to stop.

What `explore` shows was computed beforehand and needs no kernel; this asks the kernel. Where there is none (the site,
GitHub), the picture of the first settings is left, with its words.
"""

import base64
import html
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from .figures import display_view, frame_bytes

# One state of the work: how much is done, of how much, its picture (None: none yet), and what the picture shows
Frame = tuple[int, int, Figure | Tensor | None, str]


class LivePanel:
    """Controls, buttons to compute and to cancel, a progress bar, and the picture with its words.

    Args:
        work: called with one value of each control, by position, in a thread; a generator of (done, total, frame, words).
            Frames are Figures (made without pyplot, whose state threads share) or pictures (c, h, w) in [-1, 1]; each is
            shown as it comes, the last one stays. The words are its caption and its text alternative.
        controls: {label: (lowest, highest, step)} for a slider, {label: [texts]} for a row of buttons.
        start: values at first (default: the lowest, or the first). They are computed at once, so that there is a picture.
        instant: for work of less than some 100 ms: every move computes anew, the newest values win; no buttons to press.
        scale: pictures are enlarged so many times.
        every: seconds at least between two pictures of the same run; the last one is always shown.

    `panel.show()` displays it. Cancel stops at the next frame; a mistake in `work` becomes a sentence in `panel.status`.
    """

    def __init__(
        self,
        work: Callable[..., Iterator[Frame]],
        controls: dict[str, Sequence],
        start: dict[str, object] | None = None,
        instant: bool = False,
        scale: int = 2,
        every: float = 0.1,
    ):
        import ipywidgets

        self.work, self.instant, self.scale, self.every = work, instant, scale, every
        width = f"{max(map(len, controls)) + 2}ch"  # one column of labels
        self.controls = {
            name: _control(name, values, (start or {}).get(name), width) for name, values in controls.items()
        }
        self._first = self.values
        self.compute = ipywidgets.Button(description="Compute", icon="play", button_style="primary")
        self.cancel = ipywidgets.Button(description="Cancel", icon="stop", disabled=True)
        self.reset = ipywidgets.Button(description="First settings", icon="undo")
        self.progress = ipywidgets.IntProgress(bar_style="info", layout={"width": "16em"})
        self.status, self.picture = ipywidgets.HTML(), ipywidgets.HTML()
        row = [self.reset] if instant else [self.compute, self.cancel, self.progress]
        self.view = ipywidgets.VBox([*self.controls.values(), ipywidgets.HBox([*row, self.status]), self.picture])
        self._lock, self._stop, self._thread = threading.Lock(), threading.Event(), None
        self._busy, self._wanted = False, None
        self._shown: tuple[bytes, str] = b"", ""
        frames = [
            (frame, words) for _, _, frame, words in work(*self.values) if frame is not None
        ]  # no thread: mistakes are raised
        if not frames:
            raise ValueError("work yielded no picture")
        self._draw(*frames[-1])
        self.compute.on_click(lambda _: self._ask())
        self.cancel.on_click(lambda _: self._stop.set())
        self.reset.on_click(lambda _: self._reset())
        for control in self.controls.values():
            control.observe(lambda _: self._moved(), names="value")

    @property
    def values(self) -> tuple:
        """The controls' values of this moment."""
        return tuple(control.value for control in self.controls.values())

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until what is being computed is done; False if it takes longer."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self._busy

    def show(self) -> None:
        """Display it. Where widgets cannot run, the picture and its words are left."""
        display_view(self.view, *self._shown)

    def _moved(self) -> None:
        if self.instant:
            self._ask()
        elif not self._busy:
            self._say("The controls have moved: press Compute.")

    def _reset(self) -> None:
        for control, value in zip(self.controls.values(), self._first, strict=True):
            control.value = value

    def _ask(self) -> None:
        """Compute for the values of this moment, unless the same panel still computes and does not take newer ones."""
        with self._lock:
            if self.instant or not self._busy:
                self._wanted = self.values
            if self._busy:
                return  # the thread looks for newer values before it ends
            self._stop.clear()
            self._set_busy(True)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                values, self._wanted = self._wanted, None
                if values is None:
                    self._set_busy(False)
                    return
            try:
                self._compute(values)
            except Exception as error:  # whatever `work` raises: a thread has nobody else to tell
                sentence = next(iter(str(error).splitlines()), "") or type(error).__name__
                self._say(f"This could not be computed: {sentence.rstrip('.')}.")

    def _set_busy(self, busy: bool) -> None:
        self._busy = self.compute.disabled = busy
        self.cancel.disabled = not busy

    def _compute(self, values: tuple) -> None:
        """One run: to its end, to a press of Cancel, or to newer values."""
        begun, looked, waiting = time.perf_counter(), -1.0, None
        if not self.instant:
            self.progress.value = 0
            self._say("Computing …")
        steps = self.work(*values)
        for done, total, frame, words in steps:
            self.progress.max, self.progress.value = total, done
            over = done >= total or self._stop.is_set() or self._wanted is not None
            if frame is not None:
                waiting = frame, words if done >= total else f"{words} Unfinished: {done} of {total}."
            if waiting and (over or time.perf_counter() - looked >= self.every):
                self._draw(*waiting)
                looked, waiting = time.perf_counter(), None
            if over and done < total:
                steps.close()
                if self._stop.is_set():
                    self._say(f"Cancelled after {done} of {total}.")
                return
            if not self.instant:
                self._say(f"{done} of {total}")
        if waiting:  # it ended before its total
            self._draw(*waiting)
        seconds = time.perf_counter() - begun
        self._say(f"{1000 * seconds:.0f} ms" if self.instant else f"Done in {seconds:.1f} seconds.")

    def _draw(self, frame: Figure | Tensor, words: str) -> None:
        self._shown = frame_bytes(frame, self.scale), words
        source, text = base64.b64encode(self._shown[0]).decode(), html.escape(words, quote=True)
        self.picture.value = (
            f'<img alt="{text}" src="data:image/png;base64,{source}"><div aria-hidden="true">{text}</div>'
        )

    def _say(self, sentence: str) -> None:
        self.status.value = html.escape(sentence)


def _control(name: str, values: Sequence, start: object, label_width: str):
    """A row of buttons for texts, a slider for (lowest, highest, step)."""
    import ipywidgets

    options = {
        "description": name,
        "style": {"description_width": label_width},
        "layout": {"width": "auto", "max_width": "40em"},
    }
    if isinstance(values[0], str):
        options["style"]["button_width"] = "auto"
        options["layout"] |= {"display": "flex", "margin": "3px 2px"}  # the label stays beside them
        return ipywidgets.ToggleButtons(options=list(values), value=start or values[0], **options)
    low, high, step = values
    whole = all(isinstance(value, int) for value in values)
    kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    places = {} if whole else {"readout_format": ".2f" if step < 0.1 else ".1f"}
    return kind(value=low if start is None else start, min=low, max=high, step=step, **options, **places)


def live_panel(
    work: Callable[..., Iterator[Frame]],
    controls: dict[str, Sequence],
    start: dict[str, object] | None = None,
    instant: bool = False,
    **options,
) -> LivePanel:
    """Display a `LivePanel`; returns it."""
    panel = LivePanel(work, controls, start, instant, **options)
    panel.show()
    return panel
