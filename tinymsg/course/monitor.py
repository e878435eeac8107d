"""A training of its own process, started, watched, stopped and resumed from a notebook.

The process belongs to nobody: it goes on when the notebook is closed, and is found again by the lock in its folder.
All that is shown is read from the files that it writes.
"""

import base64
import csv
import html
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..evaluate import read_results
from ..training.checkpoint import checkpoints, training_process
from .figures import COLORS, display_view, frame_bytes, show, smooth

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
    strips = sorted((out / "validation").glob("[0-9]*.png"))
    try:
        steps = read_results(out / "run.json")["steps"]
    except (OSError, ValueError, KeyError):
        steps = None
    said = (out / MESSAGES).read_text(errors="replace").split("\n") if (out / MESSAGES).is_file() else []
    saved = [int(path.stem.removeprefix("checkpoint-")) for path in checkpoints(out)]
    return Progress(
        training_process(out),
        int(losses[-1]["step"]) if losses else 0,
        steps,
        losses,
        validation,
        strips[-1] if strips else None,
        next((line for line in reversed(said) if line.strip()), ""),
        saved[-1] if saved else None,
    )


def _rows(path: Path) -> list[dict[str, float]]:
    """A CSV file that another process writes: a line that is not yet whole is left out."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def start_training(
    arguments: Sequence[str], out: str | Path, processes: int = 1, cwd: str | Path | None = None
) -> subprocess.Popen:
    """Start, or resume, `python -m tinymsg train ARGUMENTS --out OUT` as a process of its own session.

    Args:
        arguments: of the train command, without --out, e.g. ["--profile", "full", "--data", "gopro"].
        processes: above 1, so many under torchrun.
        cwd: where it runs (default: here); `out` counts from here.
    Raises: RuntimeError if a training already runs there.
    """
    out = Path(out).resolve()
    if (running := training_process(out)) is not None:
        raise RuntimeError(f"{out.name}: process {running} trains there already; stop it first")
    out.mkdir(parents=True, exist_ok=True)
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *torchrun, "-m", "tinymsg", "train", *arguments, "--out", str(out)]
    root = str(Path(__file__).resolve().parents[2])  # where the package is, should it not be installed
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(out / MESSAGES, "w") as messages:
        environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": path}
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            start_new_session=True,
        )


def stop_training(out: str | Path, wait: float = 0) -> bool:
    """Ask the training in a folder to write a checkpoint and end (SIGTERM).

    Args:
        wait: seconds to wait until it has; it ends the step in hand first.
    Returns: whether it has ended (True as well if none ran).
    """
    process = training_process(out)
    if process is None:
        return True
    os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + wait
    while (running := training_process(out)) is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    return running is None


def plot_progress(progress: Progress) -> Figure:
    """Losses, and, where there is validation, its PSNR and its last pictures."""
    from PIL import Image

    looked, strip = bool(progress.validation), progress.strip is not None
    below = 0.0
    if strip:
        with Image.open(progress.strip) as image:
            pictures = np.asarray(image)[: image.width // 3]  # its first row
        below = min(2.6, 0.4 + 2 * len(pictures) / 80)  # inches: a small picture is not blown up
    # Without pyplot: this is drawn in a thread
    figure = Figure(figsize=(9.5 if looked else 6.4, 3 + below), dpi=80, layout="constrained")
    grid = figure.add_gridspec(1 + strip, 1 + looked, height_ratios=[3, below] if strip else None)
    axis = figure.add_subplot(grid[0, 0])
    for key, color in (("denoise", COLORS["guided"]), ("guidance", COLORS["structure"])):
        rows = [row for row in progress.losses if row[key] > 0]
        if rows:
            axis.plot([row["step"] for row in rows], smooth(row[key] for row in rows), color=color, label=key)
    axis.set(xlabel="optimiser steps", ylabel="training loss", title=str(progress))
    if progress.losses:
        axis.set_yscale("log")
        axis.legend()
    else:
        axis.text(0.5, 0.5, "no step yet", transform=axis.transAxes, ha="center", color="0.4")
        axis.set(xticks=[], yticks=[])
    if looked:
        axis = figure.add_subplot(grid[0, 1])
        axis.plot(
            [row["step"] for row in progress.validation],
            [row["psnr"] for row in progress.validation],
            "o-",
            color=COLORS["sharp"],
            markersize=4,
        )
        low, high = axis.get_ylim()
        middle, half = (low + high) / 2, max(high - low, 0.5) / 2  # a jitter of hundredths shall not look like a crash
        axis.set(
            xlabel="optimiser steps",
            ylabel="validation PSNR (dB)",
            title="held-out pictures, averaged weights",
            ylim=(middle - half, middle + half),
        )
    if strip:
        axis = figure.add_subplot(grid[1, :])
        axis.imshow(pictures)
        axis.set_title(f"blurry, restored, sharp at step {int(progress.strip.stem):,}")
        axis.axis("off")
    return figure


def progress_text(progress: Progress) -> str:
    """The text alternative of `plot_progress`."""
    parts = [f"Training, {str(progress).rstrip('.')}."]
    if progress.losses:
        first, last = progress.losses[0], progress.losses[-1]
        parts.append(
            f"Denoising loss from {first['denoise']:.3g} to {last['denoise']:.3g}, guidance loss from "
            f"{first['guidance']:.3g} to {last['guidance']:.3g}."
        )
    if progress.validation:
        first, last = progress.validation[0], progress.validation[-1]
        parts.append(f"Validation PSNR from {first['psnr']:.2f} to {last['psnr']:.2f} dB.")
    if progress.strip is not None:
        parts.append("Below, the blurry, the restored and the sharp picture.")
    return " ".join(parts)


def show_progress(out: str | Path) -> None:
    """Display the curves of a run once, as a figure."""
    progress = training_progress(out)
    show(plot_progress(progress), progress_text(progress))


class TrainingMonitor:
    """Buttons to start (or resume) and stop a training, over its live curves.

    Closing the notebook stops nothing; a monitor made anew on the same folder goes on watching.

    Args:
        arguments, out, processes, cwd: as for `start_training`.
        seconds: between looks at the files while the training runs; 0 looks at the press of a button only.

    `monitor.show()` displays it. Where widgets cannot run, the figure of that moment and its text are left.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        out: str | Path,
        processes: int = 1,
        cwd: str | Path | None = None,
        seconds: float = 3,
    ):
        import ipywidgets

        self.arguments, self.out, self.processes, self.cwd, self.seconds = (
            list(arguments),
            Path(out),
            processes,
            cwd,
            seconds,
        )
        self.start_button = ipywidgets.Button(description="Start", icon="play")
        self.stop_button = ipywidgets.Button(description="Stop", icon="stop", tooltip="writes a checkpoint, then ends")
        self.refresh_button = ipywidgets.Button(description="Refresh", icon="refresh")
        self.status, self.picture = ipywidgets.HTML(), ipywidgets.HTML()
        buttons = {self.start_button: self.start, self.stop_button: self.stop, self.refresh_button: self.refresh}
        for button, action in buttons.items():
            button.on_click(lambda _, action=action: self._carefully(action))
        self.view = ipywidgets.VBox([ipywidgets.HBox(list(buttons)), self.status, self.picture])
        self._child: subprocess.Popen | None = None
        self._thread: threading.Thread | None = None
        self.refresh()

    def start(self) -> None:
        """Start the training, or resume it."""
        self._child = start_training(self.arguments, self.out, self.processes, self.cwd)
        self.refresh()
        self._watch()

    def stop(self) -> None:
        """Ask the training to write a checkpoint and end."""
        stop_training(self.out)
        self.refresh()

    def refresh(self) -> Progress:
        """Read the files and draw anew; returns what they say."""
        progress = training_progress(self.out)
        starting = self._alive() and progress.process is None
        self.status.value = html.escape("starting (PyTorch takes a few seconds)" if starting else str(progress))
        self.start_button.description = "Start" if progress.saved is None else "Resume"
        self.start_button.disabled = starting or progress.process is not None or progress.complete
        self.stop_button.disabled = progress.process is None
        source = base64.b64encode(frame_bytes(plot_progress(progress))).decode()
        alt = html.escape(progress_text(progress), quote=True)
        self.picture.value = f'<img alt="{alt}" src="data:image/png;base64,{source}">'
        return progress

    def show(self) -> None:
        """Display the buttons and the curves, and keep them up to date while the training runs."""
        progress = self.refresh()
        display_view(self.view, frame_bytes(plot_progress(progress)), progress_text(progress))
        if progress.process is not None:
            self._watch()

    def _alive(self) -> bool:
        """Whether the process that was started here still runs."""
        return self._child is not None and self._child.poll() is None

    def _carefully(self, action) -> None:
        """What a button does; an error is shown where one looks."""
        try:
            action()
        except (RuntimeError, OSError, ValueError) as error:
            self.status.value = html.escape(str(error))

    def _watch(self) -> None:
        if self.seconds and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()

    def _look(self) -> None:
        """Refresh until nothing runs any more."""
        running = True
        while running:
            time.sleep(self.seconds)
            running = self._alive() or training_process(self.out) is not None
            self._carefully(self.refresh)
