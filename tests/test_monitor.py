"""The training monitor: buttons pressed without a browser, on a real process."""

import os
import shlex
import signal
import sys
import time

import pytest
import torch

from tinymsg.course import monitor
from tinymsg.course.monitor import (
    Progress,
    TrainingMonitor,
    plot_progress,
    show_progress,
    start_training,
    stop_training,
    training_progress,
)
from tinymsg.data import write_image
from tinymsg.evaluate import write_results
from tinymsg.train import TrainState
from tinymsg.training.checkpoint import save_checkpoint, training_lock

ARGUMENTS = shlex.split(
    "--device cpu --log-every 1 --save-every 50 --validate-every 3 --validation-count 1 --set steps=4000 widths=16,16 "
    "scales=1 guidance_width=8 guidance_blocks=1 crop=16 batch=2 warmup=0 precision=fp32 content_count=4"
)


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """One thread for what is started; a monitor that looks at the press of a button only."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(TrainingMonitor, "seconds", 0)


def until(condition, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def test_start_watch_stop_resume_and_find_again(tmp_path):
    """The whole life of a training, by its buttons."""
    out = tmp_path / "run"
    first = TrainingMonitor(ARGUMENTS, out)
    first.seconds = 0.2
    assert first.start_button.description == "Start" and first.stop_button.disabled
    assert "not running" in first.status.value
    first.start_button.click()
    assert first.start_button.disabled and "starting" in first.status.value
    try:
        until(lambda: "running as" in first.status.value and "Validation PSNR" in first.picture.value)  # by its timer
        assert not first.stop_button.disabled and 'alt="Training, running' in first.picture.value

        again = TrainingMonitor(ARGUMENTS, out)  # the notebook is opened anew
        assert training_progress(out).process == first._child.pid and again.start_button.disabled
        again.start_button.click()
        assert "trains there already" in again.status.value
        again.stop_button.click()
        until(lambda: training_progress(out).process is None)
        until(lambda: not first._timer.is_alive())
        assert first._child.wait(timeout=30) == 128 + signal.SIGTERM
        again.refresh()
        progress = training_progress(out)
        assert again.start_button.description == "Resume"
        assert not again.start_button.disabled and again.stop_button.disabled
        assert progress.saved == progress.step > 0 and f"goes on from step {progress.saved}" in again.status.value

        again.start_button.click()
        until(lambda: training_progress(out).step > progress.step)
        assert training_progress(out).losses[: progress.step] == progress.losses
        assert stop_training(out, wait=60) and stop_training(out)
        again._child.wait(timeout=30)
    finally:
        if (process := training_progress(out).process) is not None:
            os.kill(process, signal.SIGKILL)


def test_a_training_that_fails_says_why(tmp_path):
    watch = TrainingMonitor(["--set", "crop=17"], tmp_path)
    watch.start_button.click()
    assert watch._child.wait(timeout=60) == 2
    watch.refresh_button.click()
    assert "not running" in watch.status.value and "multiple of 8" in watch.status.value
    assert not watch.start_button.disabled


@pytest.fixture
def folder(tmp_path, tiny_recipe):
    """What a run of 20 steps leaves at step 10, a line of it half written."""
    (tmp_path / "log.csv").write_text(
        "step,denoise,guidance\n" + "".join(f"{i},{1 / i},{0.1 / i}\n" for i in range(1, 11)) + "11,0."
    )
    (tmp_path / "validation.csv").write_text("step,psnr\n5,20\n10,21.5\n")
    write_results(tmp_path / "run.json", {"steps": 20})
    write_image(
        tmp_path / "validation" / "00000010.png", torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    )
    state = TrainState(tiny_recipe())
    state.step = 8
    save_checkpoint(tmp_path, state)
    return tmp_path


def test_what_is_read(folder):
    progress = training_progress(folder)
    assert (progress.process, progress.step, progress.steps, progress.saved) == (None, 10, 20, 8)
    assert str(progress) == "stopped; it goes on from step 8 of 20" and not progress.complete
    _, text = plot_progress(progress)
    assert "1 to 0.1" in text and "0.1 to 0.01" in text and "20 to 21.5" in text
    write_results(folder / "run.json", {"steps": 10})
    assert str(training_progress(folder)) == "complete: 10 steps"
    with training_lock(folder):
        assert str(training_progress(folder)) == f"running as process {os.getpid()}: step 10 of 10"
        with pytest.raises(RuntimeError, match="trains there already"):
            start_training([], folder)


def test_the_figure(folder):
    figure, _ = plot_progress(training_progress(folder))
    losses, psnr, strip = figure.axes
    assert [line.get_label() for line in losses.lines] == ["denoise", "guidance"] and losses.get_yscale() == "log"
    assert list(psnr.lines[0].get_ydata()) == [20, 21.5]
    assert strip.images[0].get_array().shape[:2] == (16, 48), "the first picture of two"
    figure, text = plot_progress(Progress(None, 0, 0, [], [], None, "", None))
    assert len(figure.axes) == 1 and "not running" in text


def test_static_outputs_have_alternatives(folder, monkeypatch):
    """A figure, and widgets that leave a figure: with text for those who cannot see it."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw, metadata: shown.append((bundle, metadata)))
    show_progress(folder)
    TrainingMonitor([], folder).show()
    for bundle, metadata in shown:
        ((_, words),) = metadata.items()  # of a PNG or a JPEG
        assert metadata.keys() < bundle.keys() and "stopped; it goes on" in bundle["text/plain"] == words["alt"]
    assert "application/vnd.jupyter.widget-view+json" in shown[1][0] and len(shown) == 2


def test_several_processes_go_through_torchrun(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(monitor.subprocess, "Popen", lambda command, **options: commands.append((command, options)))
    start_training(["--profile", "full"], tmp_path / "run", processes=8)
    ((command, options),) = commands
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"] and "--nproc-per-node=8" in command
    assert command[-7:] == ["-m", "tinymsg", "train", "--profile", "full", "--out", str((tmp_path / "run").resolve())]
    assert options["start_new_session"]
