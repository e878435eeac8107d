"""A training of its own process, started, watched, stopped and resumed from a notebook.

The process belongs to nobody: it goes on when the notebook is closed, and is found again by the lock in its folder.
All that is shown is read from the files that it writes.
"""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..evaluate import read_results
from ..training.checkpoint import checkpoints, training_process
from .display import Panel, show
from .figures import COLORS, smooth

MESSAGES = "train.log"  # in the run's folder: what the process says


@dataclass(frozen=True)
class Progress:
    """What a run's folder says of its training."""

    process: int | None  # number of the process that trains now
    step: int  # of the last line of log.csv
    steps: int | None  # of the whole training; None before it has begun
    losses: list[dict[str, float]]  # rows of log.csv
    validation: list[dict[str, float]]  # rows of validation.csv
    strip: Path | None  # the last picture: blurry, restored, sharp
    message: str  # the last line that the process said
    saved: int | None  # step of the newest checkpoint

    @property
    def complete(self) -> bool:
        """Whether the training has reached its last step."""
        return self.process is None and self.steps is not None and self.step >= self.steps

    def __str__(self) -> str:
        if self.process is not None:
            where = f"step {self.step:,} of {self.steps:,}" if self.steps else "starting"
            return f"running as process {self.process}: {where}"
        if self.complete:
            return f"complete: {self.steps:,} steps"
        if self.saved is not None:
            return f"stopped; it goes on from step {self.saved:,} of {self.steps or 0:,}"
        return f"not running. {self.message}".strip()


def training_progress(out: str | Path) -> Progress:
    """Read a run's folder, whether its training runs or not. It may not be there yet."""
    out = Path(out)
    losses, validation = (_rows(out / name) for name in ("log.csv", "validation.csv"))
    strip = max((out / "validation").glob("[0-9]*.png"), default=None)
    saved = max((int(path.stem.removeprefix("checkpoint-")) for path in checkpoints(out)), default=None)
    steps, step = None, int(losses[-1]["step"]) if losses else 0
    with contextlib.suppress(OSError, ValueError):
        steps = read_results(out / "run.json")["steps"]
    said = (out / MESSAGES).read_text(errors="replace").split("\n") if (out / MESSAGES).is_file() else []
    message = next(filter(str.strip, reversed(said)), "")
    return Progress(training_process(out), step, steps, losses, validation, strip, message, saved)


def _rows(path: Path) -> list[dict[str, float]]:
    """A CSV file that another process writes: a line that is not yet whole is left out."""
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.is_file() else []
    return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(whole)]


def start_training(
    arguments: Sequence[str], out: str | Path, processes: int = 1, cwd: str | Path | None = None
) -> subprocess.Popen:
    """Start, or resume, `python -m tinymsg train ARGUMENTS --out OUT` as a process of its own session.

    Args:
        processes: above 1, so many under torchrun.
        cwd: where it runs (default: here); `out` counts from here.
    Raises: RuntimeError if a training already runs there.
    """
    out = Path(out).resolve()
    if (running := training_process(out)) is not None:
        raise RuntimeError(f"{out.name}: process {running} trains there already; stop it first")
    out.mkdir(parents=True, exist_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *torchrun, "-m", "tinymsg", "train", *arguments, "--out", str(out)]
    with open(out / MESSAGES, "w") as messages:
        streams = {"stdin": subprocess.DEVNULL, "stdout": messages, "stderr": messages}
        quiet = os.environ | {"TQDM_DISABLE": "1"}
        return subprocess.Popen(command, cwd=cwd, env=quiet, start_new_session=True, **streams)


def stop_training(out: str | Path, wait: float = 0) -> bool:
    """Ask the training in a folder to write a checkpoint and end; whether it has, after so many seconds at the most."""
    if (process := training_process(out)) is not None:
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + wait
    while (running := training_process(out) is not None) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not running


def plot_progress(progress: Progress) -> Figure:
    """Losses, and, where there is validation, its PSNR and its last pictures."""
    looked, strip, pictures = bool(progress.validation), progress.strip, np.empty(0)
    mosaic, heights = [["losses", "psnr"] if looked else ["losses"]], [3.0]
    if strip is not None:
        with Image.open(strip) as image:
            pictures = np.asarray(image)[: image.width // 3]  # its first row
        mosaic.append(["strip"] * len(mosaic[0]))
        heights.append(min(2.6, 0.4 + 2 * len(pictures) / 80))  # inches: a small picture is not blown up
    # Without pyplot: this is drawn in a thread
    figure = Figure(figsize=(9.5 if looked else 6.4, sum(heights)), dpi=80, layout="constrained")
    axes: dict[str, Axes] = figure.subplot_mosaic(mosaic, height_ratios=heights)  # pyright: ignore
    for key, color in (("denoise", COLORS["guided"]), ("guidance", COLORS["structure"])):
        if rows := [row for row in progress.losses if row[key] > 0]:
            steps = [row["step"] for row in rows]
            axes["losses"].semilogy(steps, smooth(row[key] for row in rows), color=color, label=key)
            axes["losses"].legend()
    axes["losses"].set(xlabel="optimiser steps", ylabel="training loss", title=str(progress))
    if looked:
        axis, title = axes["psnr"], "held-out pictures, averaged weights"
        steps, psnr = ([row[key] for row in progress.validation] for key in ("step", "psnr"))
        axis.plot(steps, psnr, "o-", color=COLORS["sharp"], markersize=4)
        low, high = axis.get_ylim()
        more = max(0.5 - (high - low), 0) / 2  # a jitter of hundredths shall not look like a crash
        axis.set(xlabel="optimiser steps", ylabel="validation PSNR (dB)", title=title, ylim=(low - more, high + more))
    if strip is not None:
        axes["strip"].imshow(pictures)
        axes["strip"].set_title(f"blurry, restored, sharp at step {int(strip.stem):,}")
        axes["strip"].axis("off")
    return figure


def progress_text(progress: Progress) -> str:
    """The text alternative of `plot_progress`."""
    told = f"Training, {str(progress).rstrip('.')}."
    names = {"denoise": "Denoising loss", "guidance": "Guidance loss", "psnr": "Validation PSNR (dB)"}
    for key, name in names.items():
        if rows := progress.validation if key == "psnr" else progress.losses:
            told += f" {name} from {rows[0][key]:.4g} to {rows[-1][key]:.4g}."
    return told if progress.strip is None else f"{told} Below, the blurry, the restored and the sharp picture."


def show_progress(out: str | Path) -> None:
    """Display the curves of a run once, as a figure."""
    progress = training_progress(out)
    show(plot_progress(progress), progress_text(progress))


class TrainingMonitor(Panel):
    """Buttons to start (or resume) and stop a training, as `start_training` does, over its live curves.

    Closing the notebook stops nothing; a monitor made anew on the same folder goes on watching.
    """

    seconds = 3.0  # between looks at the files while the training runs; 0 looks at the press of a button only

    def __init__(self, arguments: Sequence[str], out: str | Path, processes: int = 1, cwd: str | Path | None = None):
        self.out, self._what = Path(out), (arguments, out, processes, cwd)
        self._child: subprocess.Popen | None = None
        self._thread = threading.Thread()
        self.start_button = self._button("Start", "play", self.start)
        self.stop_button = self._button("Stop", "stop", lambda: stop_training(out))
        self.refresh_button = self._button("Refresh", "refresh")
        super().__init__([self.start_button, self.stop_button, self.refresh_button])
        self.refresh()

    def start(self) -> None:
        """Start the training, or resume it."""
        self._child = start_training(*self._what)

    def refresh(self) -> Progress:
        """Read the files and draw anew, from now on by itself while the training runs; returns what they say."""
        progress = training_progress(self.out)
        running = progress.process is not None
        starting = not running and self._child is not None and self._child.poll() is None
        self._running = running or starting
        self.say("starting (PyTorch takes a few seconds)" if starting else str(progress))
        self.start_button.description = "Start" if progress.saved is None else "Resume"
        self.start_button.disabled = self._running or progress.complete
        self.stop_button.disabled = not running
        self.draw(plot_progress(progress), progress_text(progress))
        if self._running and self.seconds and not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return progress

    def _look(self) -> None:
        while self._running:
            time.sleep(self.seconds)
            self.refresh_button.click()

    def _button(self, name: str, icon: str, act: Callable[[], object] | None = None) -> ipywidgets.Button:
        """A button that acts, then reads the files; an error is shown where one looks."""

        def press(_) -> None:
            try:
                if act is not None:
                    act()
                self.refresh()
            except (RuntimeError, OSError, ValueError) as error:
                self.say(str(error))

        button = ipywidgets.Button(description=name, icon=icon)
        button.on_click(press)
        return button
