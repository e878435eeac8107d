"""A whole training run: its logs, its checkpoints, and a clean end when it is told to stop."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import Batches
from ..evaluate import provenance, write_results
from ..machine import atomic_write
from ..model import save_model
from ..train import TrainState, fit
from .checkpoint import save_checkpoint
from .parallel import highest, mean_over_processes, rank_and_processes, training_network
from .validation import Validation


@dataclass(frozen=True)
class Plan:
    """What happens beside learning, and how often; 0 is never. None of it changes what is learnt."""

    log_every: int = 100  # steps between rows of log.csv
    save_every: int = 500  # steps between checkpoints
    save_minutes: float = 0  # and minutes, for slow steps
    validate_every: int = 0  # steps


def run(state: TrainState, batches: Batches, out: Path, plan: Plan, validation: Validation | None = None) -> int:
    """Drain `fit`: progress bar, logs, validation, checkpoints, and at the end out/weights.safetensors (the EMA).

    Of several processes, the first writes. The first SIGTERM or Ctrl-C ends the step in hand and writes a checkpoint.
    Returns: 0 when the training is complete, or the number of the signal that stopped it.
    """
    from tqdm import tqdm

    state.share = rank_and_processes()
    first, last = state.share[0] == 0, state.training.steps
    clock, saved = _Clock(batches, state.device), time.monotonic()

    def due(every: int) -> bool:
        return bool(every) and (state.step % every == 0 or state.step == last)

    with contextlib.ExitStack() as opened:
        logs = None
        if first:
            out.mkdir(parents=True, exist_ok=True)
            _write_run(state, batches, out, validation)
            logs = Logs(out, state.step, opened)
        received = _note_signals(opened)
        records = fit(state, clock, network=training_network(state))
        quiet = None if first else True  # None: where there is no terminal
        bar = tqdm(records, total=last, initial=state.step, unit="step", mininterval=1, disable=quiet)
        for record in opened.enter_context(bar):
            if due(plan.log_every):
                record.denoise, record.guidance = mean_over_processes(torch.stack([record.denoise, record.guidance]))
                if logs is not None:
                    values = record.to_dict()
                    logs.write("log", values)
                    logs.write("speed", clock.read(record.step, state.training.batch))
                    bar.set_postfix(denoise=f"{values['denoise']:.4f}", guidance=f"{values['guidance']:.4f}")
            if logs is not None and validation is not None and due(plan.validate_every):
                before = time.perf_counter()
                state.check_finite()
                logs.write("validation", validation(state, out / "validation"))
                clock.start += time.perf_counter() - before  # looking is not learning
            stop = 0
            if state.share[1] == 1 or state.device.type == "cpu" or state.step % 10 == 0:
                stop = highest(received[0] if received else 0)  # beside GPUs, the answer takes a tenth of a millisecond
            too_long = plan.save_minutes and time.monotonic() - saved > 60 * plan.save_minutes
            if logs is not None and (stop or too_long or due(plan.save_every)):
                logs.sync()
                save_checkpoint(out, state)
                saved = time.monotonic()
            if stop and record.step < last:
                highest(0)  # nobody leaves before the checkpoint is written
                return stop
    if first:
        save_model(state.ema_model, out / "weights.safetensors")
    return 0


def _write_run(state: TrainState, batches: Batches, out: Path, validation: Validation | None) -> None:
    """run.json: what was trained, on what, by which versions."""
    c, kind = state.training, state.device.type
    units = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
    record = provenance() | {
        "data": batches.pairs.name,
        "source": state.data,
        "validation": validation.name if validation else None,
        "seed": c.seed,
        "steps": c.steps,
        "images_seen": c.steps * c.batch,
        "device": torch.cuda.get_device_name(state.device) if kind == "cuda" else f"{kind}, {units}",
        "processes": state.share[1],
        "bf16": state.bf16,
        "config": state.recipe.to_dict(),
    }
    write_results(out / "run.json", record)


def _note_signals(until: contextlib.ExitStack) -> list[int]:
    """A list that fills with SIGTERM or SIGINT when one arrives; the first only notes it, a second acts as ever."""
    received: list[int] = []
    before = {}

    def note(number: int, frame) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, note)
        until.callback(signal.signal, number, before[number])
    return received


class Logs:
    """log.csv (losses alone: the same bytes in the same training), speed.csv and validation.csv.

    What an earlier process wrote beyond `step`, or not to the end of its line, is dropped. `opened` closes them all.
    """

    def __init__(self, out: Path, step: int, opened: contextlib.ExitStack):
        self.files = {}
        for name in ("log", "speed", "validation"):
            path = out / f"{name}.csv"
            lines = path.read_text().splitlines(keepends=True) if step and path.exists() else []
            whole = [line for line in lines if line.endswith("\n")]
            with atomic_write(path) as partial:  # a kill here leaves the old file or the new one
                partial.write_text(
                    "".join(whole[:1] + [row for row in whole[1:] if int(float(row.split(",")[0])) <= step])
                )
            self.files[name] = opened.enter_context(path.open("a"))

    def write(self, table: str, values: dict[str, float]) -> None:
        """Add a row, {"step": ..., ...}, at once."""
        file = self.files[table]
        if not file.tell():
            print(*values, sep=",", file=file)
        print(*(f"{value:.6g}" for value in values.values()), sep=",", file=file, flush=True)

    def sync(self) -> None:
        """Onto the disk, before a checkpoint relies on it."""
        for file in self.files.values():
            os.fsync(file.fileno())


class _Clock:
    """Wraps the batches and times them; beside a GPU, synthetic ones may also wait for the step before."""

    def __init__(self, batches: Callable[[int], tuple[Tensor, Tensor]], device: torch.device):
        self.batches, self.device = batches, device
        self.start, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        before = time.perf_counter()
        batch = self.batches(step)
        self.waited += time.perf_counter() - before
        self.steps += 1
        return batch

    def read(self, step: int, batch: int) -> dict[str, float]:
        """The row since the last reading, `batch` crops per step; sets the clock back."""
        now = time.perf_counter()
        seconds = now - self.start
        row = {
            "step": step,
            "seconds_a_step": seconds / self.steps,
            "crops_a_second": self.steps * batch / seconds,
            "waiting_for_data": self.waited / seconds,
            "peak_memory_gb": peak_memory(self.device) / 1e9,
        }
        self.start, self.waited, self.steps = now, 0.0, 0
        return row


def peak_memory(device: torch.device) -> int:
    """Highest memory so far in bytes: allocated on a GPU, or resident of this process; 0 where none can be told."""
    if device.type != "cpu":
        with contextlib.suppress(RuntimeError):  # before torch 2.14, Apple's GPUs: their memory is the process's
            return torch.accelerator.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # Linux: getrusage also counts what the process was forked from
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    with contextlib.suppress(ImportError):  # Windows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0
