"""Whole runs: data, logs, validation, signals."""

import contextlib
import json
import math
import os
import signal
import time
import types

import pytest
import torch

from tinymsg.data import Batches, SyntheticPairs, scene_contents
from tinymsg.model import load_model
from tinymsg.train import NotFiniteError, TrainState
from tinymsg.training import runs
from tinymsg.training.checkpoint import resume, save_checkpoint
from tinymsg.training.runs import Plan, run
from tinymsg.training.validation import Validation, synthetic_validation

CPU = torch.device("cpu")


@pytest.fixture
def batches():
    return Batches(SyntheticPairs(scene_contents(8), "gopro_like"), batch=2, size=16)


def steps_of(path) -> list[str]:
    return [line.split(",")[0] for line in path.read_text().splitlines()[1:]]


def test_run_logs_saves_and_goes_on_as_if_never_stopped(tiny_recipe, batches, tmp_path):
    recipe = tiny_recipe()
    run(TrainState(recipe), batches, tmp_path / "straight", Plan(1, 2))
    state = TrainState(recipe)

    class Killed(Exception):
        pass

    def until_four(step):
        if step == 4:
            raise Killed
        return batches(step)

    until_four.pairs = batches.pairs
    with pytest.raises(Killed):
        run(state, until_four, tmp_path / "split", Plan(1, 3))
    again = TrainState(recipe)
    assert resume(tmp_path / "split", again)[0].name == "checkpoint-00000003.pt"
    run(again, batches, tmp_path / "split", Plan(1, 3))
    log = (tmp_path / "straight" / "log.csv").read_text()
    assert (tmp_path / "split" / "log.csv").read_text() == log
    lines = log.splitlines()
    assert lines[0].startswith("step,denoise,guidance") and [line.split(",")[0] for line in lines[1:]] == list("123456")
    weights = [tmp_path / name / "weights.safetensors" for name in ("straight", "split")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    ema = again.ema_model.state_dict()
    assert all(torch.equal(v, ema[k].half().float()) for k, v in load_model(weights[0]).state_dict().items())


def test_plan_of_one_run(tiny_recipe, batches, tmp_path):
    """Rows, checkpoints, validations where they are due; run.json says on what."""
    recipe = tiny_recipe(steps=5)
    watched = synthetic_validation(recipe, 2, CPU)
    state = TrainState(recipe)
    state.data = {"name": "x"}
    assert run(state, batches, tmp_path, Plan(log_every=2, save_every=4, validate_every=2), watched) == 0
    assert (
        steps_of(tmp_path / "log.csv")
        == steps_of(tmp_path / "speed.csv")
        == steps_of(tmp_path / "validation.csv")
        == ["2", "4", "5"]
    )
    assert sorted(p.name for p in tmp_path.glob("checkpoint*")) == ["checkpoint-00000004.pt", "checkpoint-00000005.pt"]
    assert sorted(p.name for p in (tmp_path / "validation").iterdir()) == [
        "00000002.png",
        "00000004.png",
        "00000005.png",
    ]
    said = json.loads((tmp_path / "run.json").read_text())
    assert said["source"] == {"name": "x"} and "2 fresh crops" in said["validation"] and said["processes"] == 1
    assert said["device"].startswith("cpu, ") and f"{torch.get_num_threads()} thread" in said["device"]
    header, *rows = (tmp_path / "speed.csv").read_text().splitlines()
    for row in rows:
        speed = dict(zip(header.split(","), map(float, row.split(",")), strict=True))
        assert 0 < speed["waiting_for_data"] < 1 and speed["peak_memory_gb"] > 0.05
        assert speed["crops_a_second"] == pytest.approx(recipe.training.batch / speed["seconds_a_step"], rel=1e-3)


def test_looking_changes_nothing(tiny_recipe, batches, tmp_path):
    """With and without validation, other intervals: the same losses and weights to the bit."""
    recipe = tiny_recipe()
    watched = synthetic_validation(recipe, 2, CPU)
    run(TrainState(recipe), batches, tmp_path / "a", Plan(1, 0))
    before = torch.random.get_rng_state()
    run(TrainState(recipe), batches, tmp_path / "b", Plan(1, 1, save_minutes=1e-9, validate_every=1), watched)
    assert torch.equal(before, torch.random.get_rng_state())
    for name in ("log.csv", "weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saves_by_the_clock(tiny_recipe, batches, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(runs, "save_checkpoint", lambda out, state: saved.append(state.step))
    now = iter(range(0, 1000, 25))  # seconds: each look at the clock is 25 later
    clock = types.SimpleNamespace(monotonic=lambda: next(now), perf_counter=time.perf_counter)
    monkeypatch.setattr(runs, "time", clock)  # of this module alone
    run(TrainState(tiny_recipe()), batches, tmp_path, Plan(save_every=0, save_minutes=1))
    assert saved == [3, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_stops(tiny_recipe, batches, tmp_path, number):
    def told_at_three(step):
        if step == 3:
            os.kill(os.getpid(), number)
        return batches(step)

    told_at_three.pairs = batches.pairs
    before = signal.getsignal(number)
    state = TrainState(tiny_recipe())
    assert run(state, told_at_three, tmp_path / "told", Plan(1, 100)) == number
    assert signal.getsignal(number) is before and state.step == 4
    assert not (tmp_path / "told" / "weights.safetensors").exists()
    again = TrainState(tiny_recipe())
    assert resume(tmp_path / "told", again)[0].name == "checkpoint-00000004.pt"
    assert run(again, batches, tmp_path / "told", Plan(1, 100)) == 0
    run(TrainState(tiny_recipe()), batches, tmp_path / "whole", Plan(1, 100))
    for name in ("log.csv", "weights.safetensors"):
        assert (tmp_path / "told" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_not_finite_keeps_the_last_good_checkpoint(tiny_recipe, batches, tmp_path):
    def poisoned(step):
        y0, x = batches(step)
        return (y0 * math.inf if step == 3 else y0), x

    poisoned.pairs = batches.pairs
    with pytest.raises(NotFiniteError, match="at step 4"):
        run(TrainState(tiny_recipe()), poisoned, tmp_path, Plan(1, 1))
    state = TrainState(tiny_recipe())
    assert resume(tmp_path, state)[0].name == "checkpoint-00000003.pt"
    assert all(torch.isfinite(p).all() for p in state.model.parameters())


def test_a_torn_log_is_mended(tiny_recipe, batches, tmp_path):
    """A row half written, and rows beyond the checkpoint, are dropped; nothing is there twice."""
    state = TrainState(tiny_recipe())
    state.step = 2
    save_checkpoint(tmp_path, state)
    (tmp_path / "log.csv").write_text("step,denoise\n1,0.5\n2,0.4\n3,0.3\n4,0.")
    with contextlib.ExitStack() as opened:
        runs.Logs(tmp_path, 2, opened).write("log", {"step": 3, "denoise": 0.25})
    assert (tmp_path / "log.csv").read_text() == "step,denoise\n1,0.5\n2,0.4\n3,0.25\n"
    for torn in ("", "step,den"):  # killed before, or within, the header
        (tmp_path / "validation.csv").write_text(torn)
        with contextlib.ExitStack() as opened:
            runs.Logs(tmp_path, 2, opened).write("validation", {"step": 3, "psnr": 20.0})
        assert (tmp_path / "validation.csv").read_text() == "step,psnr\n3,20\n"


def test_a_look_does_not_count_as_learning(tiny_recipe, batches, tmp_path, monkeypatch):
    """Time spent validating is not in the speed: by a clock on which only validations and batches take any."""
    now = [0.0]
    monkeypatch.setattr(runs, "time", types.SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0]))

    class Slow(Validation):
        def __call__(self, state, folder):
            now[0] += 100
            return super().__call__(state, folder)

    def slow_batches(step):
        now[0] += 2
        return batches(step)

    slow_batches.pairs = batches.pairs
    watched = synthetic_validation(tiny_recipe(), 1, CPU)
    run(
        TrainState(tiny_recipe(steps=4)),
        slow_batches,
        tmp_path,
        Plan(4, 0, validate_every=2),
        Slow(watched.pictures, "x"),
    )
    assert (tmp_path / "speed.csv").read_text().splitlines()[1].split(",")[:4] == [
        "4",
        "2",
        "1",
        "1",
    ]  # 2 s a step for 2 crops
