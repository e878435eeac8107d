"""A training as a process of its own, started, watched, stopped and resumed from a notebook.

The process belongs to nobody: it goes on when the notebook is closed, and is found again by the lock in its folder.
All that is shown is read from the files that it writes.
"""

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
from matplotlib.figure import Figure
from matplotlib.image import imread

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
    steps: int  # of the whole training; 0 before it has begun
    losses: list[dict[str, float]]  # rows of log.csv
    validation: list[dict[str, float]]  # rows of validation.csv
    strip: Path | None  # the last picture: blurry, restored, sharp
    message: str  # the last line that the process said
    saved: int | None  # step of the newest checkpoint

    @property
    def complete(self) -> bool:
        """Whether the training has reached its last step."""
        return self.process is None and self.step >= self.steps > 0

    def __str__(self) -> str:
        if self.process is not None:
            where = f"step {self.step:,} of {self.steps:,}" if self.steps else "starting"
            return f"running as process {self.process}: {where}"
        if self.complete:
            return f"complete: {self.steps:,} steps"
        if self.saved is not None:
            return f"stopped; it goes on from step {self.saved:,} of {self.steps:,}"
        return f"not running. {self.message}".strip()


def training_progress(out: str | Path) -> Progress:
    """Read a run's folder, whether its training runs or not. It may not be there yet."""
    out, process = Path(out), training_process(out)  # first: what one that then ends has written is read, or next time
    steps = read_results(out / "run.json")["steps"] if (out / "run.json").is_file() else 0
    losses, validation = (
        [{key: float(value) for key, value in row.items()} for row in csv.DictReader(_lines(out / name))]
        for name in ("log.csv", "validation.csv")
    )
    step = int(losses[-1]["step"]) if losses else 0
    strip = max((out / "validation").glob("[0-9]*.png"), default=None)
    message = next(filter(str.strip, reversed(_lines(out / MESSAGES))), "")
    saved = max((int(path.stem.removeprefix("checkpoint-")) for path in checkpoints(out)), default=None)
    return Progress(process, step, steps, losses, validation, strip, message, saved)


def _lines(path: Path) -> list[str]:
    """Those of a file that another process writes; a line that is not yet whole is left out."""
    return path.read_text(errors="replace").rpartition("\n")[0].split("\n") if path.is_file() else []


def start_training(
    arguments: Sequence[str], out: str | Path, processes: int = 1, cwd: str | Path | None = None
) -> subprocess.Popen:
    """Start, or resume, `python -m tinymsg train ARGUMENTS --out OUT`, which goes on when this process ends.

    processes: above 1, so many under torchrun. cwd: where it runs (default: here); `out` counts from here.
    Raises: RuntimeError if a training already runs there.
    """
    out = Path(out).resolve()
    if (running := training_process(out)) is not None:
        raise RuntimeError(f"{out.name}: process {running} trains there already; stop it first")
    out.mkdir(parents=True, exist_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *torchrun, "-m", "tinymsg", "train", *arguments, "--out", str(out)]
    with open(out / MESSAGES, "w") as messages:
        quiet = os.environ | {"TQDM_DISABLE": "1"}
        return subprocess.Popen(command, cwd=cwd, env=quiet, stdout=messages, stderr=messages, start_new_session=True)


def stop_training(out: str | Path, wait: float = 0) -> bool:
    """Ask the training in a folder to write a checkpoint and end; whether it has, after so many seconds at the most."""
    if (process := training_process(out)) is not None:
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + wait
    while (running := training_process(out) is not None) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not running


def plot_progress(progress: Progress) -> tuple[Figure, str]:
    """Losses, and, where there is validation, its PSNR and its last pictures; with the text alternative."""
    strip, told = progress.strip, f"Training, {str(progress).rstrip('.')}."
    # Without pyplot: this is drawn in a thread
    figure = Figure(figsize=(9.5, 5.2) if strip else (6.4, 3), dpi=80, layout="constrained")
    panels = figure.subplot_mosaic([["loss", "psnr"], ["strip", "strip"]] if strip else [["loss"]])
    panels["loss"].set(xlabel="optimiser steps", ylabel="training loss", yscale="log", title=str(progress))
    for key, name, color in (("denoise", "Denoising", "guided"), ("guidance", "Guidance", "structure")):
        if rows := [row for row in progress.losses if row[key] > 0]:
            losses = [row[key] for row in rows]
            panels["loss"].plot([row["step"] for row in rows], smooth(losses), color=COLORS[color], label=key)
            panels["loss"].legend()
            told += f" {name} loss from {losses[0]:.4g} to {losses[-1]:.4g}."
    if strip:
        steps, psnr = ([row[key] for row in progress.validation] for key in ("step", "psnr"))
        panels["psnr"].plot(steps, psnr, "o-", color=COLORS["sharp"], markersize=4)
        panels["psnr"].set(xlabel="optimiser steps", ylabel="validation PSNR (dB)", title="held out, averaged weights")
        pictures = imread(strip)
        panels["strip"].imshow(pictures[: pictures.shape[1] // 3])  # its first row
        panels["strip"].set(xticks=[], yticks=[], title=f"blurry, restored, sharp at step {int(strip.stem):,}")
        told += f" Validation PSNR (dB) from {psnr[0]:.4g} to {psnr[-1]:.4g}." if psnr else ""
        told += " Below, the blurry, the restored and the sharp picture."
    return figure, told


def show_progress(out: str | Path) -> None:
    """Display the curves of a run once, as a figure."""
    show(*plot_progress(training_progress(out)))


class TrainingMonitor(Panel):
    """Buttons to start (or resume), as `start_training` does, and to stop a training, over its live curves."""

    seconds = 3.0  # between looks at the files while the training runs; 0 looks at the press of a button only

    def __init__(self, arguments: Sequence[str], out: str | Path, processes: int = 1, cwd: str | Path | None = None):
        self.out, self._what, self._child = Path(out), (arguments, out, processes, cwd), None
        self.start_button = self._button("Start", "play", self._start)
        self.stop_button = self._button("Stop", "stop", lambda: stop_training(out))
        self.refresh_button = self._button("Refresh", "refresh", lambda: None)
        self._timer = threading.Timer(0, self.refresh_button.click)
        super().__init__([self.start_button, self.stop_button, self.refresh_button])
        self.refresh()

    def _start(self) -> None:
        self._child = start_training(*self._what)

    def refresh(self) -> None:
        """Read the files and draw anew, from now on by itself while the training runs."""
        progress = training_progress(self.out)
        running = progress.process is not None
        starting = not running and self._child is not None and self._child.poll() is None
        self.say("starting (PyTorch takes a few seconds)" if starting else str(progress))
        self.start_button.description = "Start" if progress.saved is None else "Resume"
        self.start_button.disabled = running or starting or progress.complete
        self.stop_button.disabled = not running
        self.draw(*plot_progress(progress))
        self._timer.cancel()  # there is one at a time
        if self.seconds and (running or starting):
            self._timer = threading.Timer(self.seconds, self.refresh_button.click)
            self._timer.daemon = True
            self._timer.start()

    def _button(self, name: str, icon: str, act: Callable[[], object]) -> ipywidgets.Button:
        """A button that acts, then reads the files; an error is shown where one looks."""

        def press(_) -> None:
            try:
                act()
                self.refresh()
            except (RuntimeError, OSError, ValueError) as error:
                self.say(str(error))

        button = ipywidgets.Button(description=name, icon=icon)
        button.on_click(press)
        return button
