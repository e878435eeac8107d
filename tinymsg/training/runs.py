"""A whole training run: its logs, its checkpoints, and a clean end when it is told to stop."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import Batches, read_image
from ..evaluate import provenance, write_results
from ..machine import atomic_write
from ..model import save_model
from ..train import Record, TrainState, fit
from .checkpoint import save_checkpoint
from .parallel import highest, mean_over_processes, rank_and_processes, training_network
from .validation import Validation


@dataclass(frozen=True)
class Plan:
    """What happens beside learning, and how often; 0 is never. None of it changes what is learned."""

    log_every: int = 100  # steps between rows of log.csv
    save_every: int = 500  # steps between checkpoints
    save_minutes: float = 0  # and minutes, for slow steps
    validate_every: int = 0  # steps
    tensorboard: bool = False


# --- logs ---------------------------------------------------------------------------------------------------


class _Table:
    """A CSV file that grows by a row at a time; what an earlier run wrote beyond `step` is dropped and written anew."""

    def __init__(self, path: Path, step: int):
        rows = _rows_before(path, step)
        with atomic_write(path) as partial:  # a kill here leaves the old file or the new one
            partial.write_text("".join(rows))
        self.file, self.empty = open(path, "a"), not rows

    def write(self, values: dict[str, float]) -> None:
        header = ",".join(values) + "\n" if self.empty else ""
        self.file.write(header + ",".join(f"{value:.6g}" for value in values.values()) + "\n")
        self.file.flush()
        self.empty = False


def _rows_before(path: Path, step: int) -> list[str]:
    """Lines of an earlier log up to `step`: what came after the checkpoint will be written anew."""
    header, *rows = (path.read_text().splitlines(keepends=True) if path.exists() else []) or [""]
    if step == 0 or not header.endswith("\n"):
        return []
    return [header, *(row for row in rows if row.endswith("\n") and int(float(row.split(",")[0])) <= step)]


class Logs:
    """log.csv (losses), speed.csv, validation.csv, and the same for TensorBoard.

    The losses stand alone, so that two runs can be compared byte by byte.
    """

    def __init__(self, out: Path, step: int, tensorboard: bool):
        self.out = out
        self.writer = _summary_writer(out / "tensorboard", step + 1) if tensorboard else None
        self.tables = {name: _Table(out / f"{name}.csv", step) for name in ("log", "speed", "validation")}

    def write(self, table: str, values: dict[str, float]) -> None:
        """Add a row, {"step": ..., ...}."""
        self.tables[table].write(values)
        if self.writer is not None:
            for name, value in values.items():
                if name != "step":
                    self.writer.add_scalar(f"{table}/{name}", value, values["step"])

    def picture(self, path: Path, step: int) -> None:
        """Show a validation strip in TensorBoard too."""
        if self.writer is not None:
            self.writer.add_image("validation/blurry, restored, sharp", read_image(path), step)

    def sync(self) -> None:
        """Onto the disk, before a checkpoint relies on it."""
        for table in self.tables.values():
            os.fsync(table.file.fileno())
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        """Close the files."""
        for table in self.tables.values():
            table.file.close()
        if self.writer is not None:
            self.writer.close()


def _summary_writer(folder: Path, purge_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "TensorBoard is not installed here: pip install tensorboard, or leave out --tensorboard"
        ) from None
    return SummaryWriter(str(folder), purge_step=purge_step)  # hides what an earlier process logged from there on


class _Clock:
    """Wraps the batches and times them: crops a second, and the share of the time spent waiting for data.

    On a GPU that share holds for pairs from files. Synthetic ones wait while they are made, and so for the kernels of the
    step before, which are counted as waiting; to wait for those here would part every step from the next.
    """

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
        """The row since the last reading; sets the clock back."""
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
    """Highest memory so far in bytes: allocated on a GPU, or resident of this process."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage also counts what the process was forked from, a notebook's kernel for one
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- the run ------------------------------------------------------------------------------------------------


def run(
    state: TrainState, batches: Batches, out: Path, plan: Plan = Plan(), validation: Validation | None = None
) -> int:
    """Drain `fit`: progress bar, logs, validation, checkpoints, and at the end out/weights.safetensors (the EMA).

    Of several processes, the first writes. SIGTERM and Ctrl-C end the step in hand, write a checkpoint and return;
    a second Ctrl-C interrupts at once.
    Returns: 0 when the training is complete, or the number of the signal that stopped it.
    """
    from tqdm import tqdm

    state.share = rank_and_processes()
    first = state.share[0] == 0
    if first:
        out.mkdir(parents=True, exist_ok=True)
        _write_run(state, batches, out, validation)
    logs = Logs(out, state.step, plan.tensorboard) if first else None
    clock = _Clock(batches, state.device)
    saved = time.monotonic()
    with (
        nullcontext() if logs is None else closing(logs),
        _signals() as received,
        tqdm(
            fit(state, clock, network=training_network(state)),
            total=state.training.steps,
            initial=state.step,
            unit="step",
            mininterval=1,
            disable=None if first else True,
        ) as bar,
    ):
        for record in bar:
            if _due(record.step, plan.log_every, state):
                record.denoise, record.guidance = mean_over_processes(torch.stack([record.denoise, record.guidance]))
            if logs is not None:
                _log(record, state, logs, clock, plan, validation, bar)
            stop = _agreed_stop(state, received)
            too_long = plan.save_minutes and time.monotonic() - saved > 60 * plan.save_minutes
            if logs is not None and (stop or too_long or _due(record.step, plan.save_every, state)):
                logs.sync()
                save_checkpoint(out, state)
                saved = time.monotonic()
            if stop and record.step < state.training.steps:
                highest(0)  # nobody leaves before the checkpoint is written
                return stop
    if first:
        save_model(state.ema_model, out / "weights.safetensors")
    return 0


def _due(step: int, every: int, state: TrainState) -> bool:
    return bool(every) and (step % every == 0 or step == state.training.steps)


def _log(
    record: Record, state: TrainState, logs: Logs, clock: _Clock, plan: Plan, validation: Validation | None, bar
) -> None:
    if _due(record.step, plan.log_every, state):
        values = record.to_dict()
        logs.write("log", values)
        logs.write("speed", clock.read(record.step, state.training.batch))
        bar.set_postfix(denoise=f"{values['denoise']:.4f}", guidance=f"{values['guidance']:.4f}")
    if validation is not None and _due(record.step, plan.validate_every, state):
        before = time.perf_counter()
        state.check_finite()
        row = validation(state, logs.out / "validation")
        logs.write("validation", row)
        logs.picture(logs.out / "validation" / f"{record.step:08d}.png", record.step)
        clock.start += time.perf_counter() - before  # looking is not learning


def _write_run(state: TrainState, batches: Batches, out: Path, validation: Validation | None) -> None:
    c, (_, processes) = state.training, rank_and_processes()
    write_results(
        out / "run.json",
        provenance()
        | {
            "data": batches.pairs.name,
            "source": state.data,
            "validation": validation.name if validation else None,
            "seed": c.seed,
            "steps": c.steps,
            "images_seen": c.steps * c.batch,
            "device": state.device.type,
            "processes": processes,
            "bf16": state.bf16,
            "config": state.recipe.to_dict(),
        },
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The list fills with SIGTERM or SIGINT when one arrives; the first only notes it, a second acts as ever."""
    received: list[int] = []
    before = {}

    def note(number: int, frame) -> None:
        received.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agreed_stop(state: TrainState, received: list[int]) -> int:
    """The signal that ends the training after this step in every process; 0 for none.

    On GPUs the processes ask each other every tenth step: an answer costs about a tenth of a millisecond.
    """
    if rank_and_processes()[1] > 1 and state.device.type != "cpu" and state.step % 10:
        return 0
    return highest(received[0] if received else 0)
