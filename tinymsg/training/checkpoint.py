"""Checkpoints that survive anything, and the lock that keeps two trainings out of one folder."""

import contextlib
import json
import os
import re
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ..machine import atomic_write
from ..model import Recipe
from ..train import TrainState
from .parallel import from_first, rank_and_processes

KEEP = 2  # checkpoints: should the newest be damaged, the one before it serves
LOCK, HOLDER = "lock", "holder.json"  # in the run's folder: the lock, and which process holds it
# May differ from the checkpoint's: the result is the same but for rounding
FREE = ("accumulate", "compile")
# May differ where that is asked for (accept_changes): the network is the same, its training goes on otherwise
TUNABLE = (
    "steps",
    "batch",
    "lr",
    "warmup",
    "weight_decay",
    "ema",
    "clip",
    "clip_guidance",
    "guidance_weight",
    "precision",
)


class CheckpointError(ValueError):
    """What was read is not a checkpoint of this program, or does not hold what it should."""


def state_dict(state: TrainState) -> dict:
    """All that a training needs to go on."""
    return {
        "recipe": json.dumps(state.recipe.to_dict()),
        "data": json.dumps(state.data),
        "step": state.step,
        "model": state.model.state_dict(),
        "ema": state.ema_model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }


def load_state(state: TrainState, saved: dict, accept_changes: bool = False) -> None:
    """Take over what `state_dict` gave; nothing is changed where that fails.

    Args:
        accept_changes: the settings in TUNABLE, and the data, may differ from the checkpoint's.
    Raises: CheckpointError if it is not one of ours; ValueError if it belongs to other settings or data.
    """
    if not isinstance(saved, dict) or set(saved) != set(state_dict(state)):
        raise CheckpointError("it holds other things than a training's state")
    try:
        recipe, data, step = json.loads(saved["recipe"]), json.loads(saved["data"]), int(saved["step"])
        before, now = Recipe.from_dict(recipe).settings(), state.recipe.settings()
        data.keys()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"its settings cannot be read: {error}") from None
    different = [k for k, v in before.items() if v != now[k] and k not in FREE]
    _refuse(different, "settings", TUNABLE if accept_changes else ())
    known = data.keys() | state.data.keys() if data and state.data else ()  # one that says nothing is not asked
    changes = [
        f"{k} is {state.data.get(k)!r} and was {data.get(k)!r}"
        for k in sorted(known)
        if data.get(k) != state.data.get(k)
    ]
    _refuse(changes, "data", tuple(changes) if accept_changes else ())
    for name, module in (("model", state.model), ("ema", state.ema_model)):
        shapes = {k: v.shape for k, v in module.state_dict().items()}
        if shapes != {k: v.shape for k, v in saved[name].items()}:
            raise CheckpointError(f"the weights of its {name} do not fit its settings")
    try:
        state.optimizer.load_state_dict(saved["optimizer"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"its optimiser's state cannot be used: {error}") from None
    for group in state.optimizer.param_groups:
        group["weight_decay"] = state.training.weight_decay
    for weight, moments in state.optimizer.state.items():
        for name in (
            "exp_avg",
            "exp_avg_sq",
        ):  # the fused optimiser walks through memory as it lies: all must lie alike
            moments[name] = torch.empty_like(weight).copy_(moments[name])
    state.model.load_state_dict(saved["model"])
    state.ema_model.load_state_dict(saved["ema"])
    state.step = step


def _refuse(different: list[str], what: str, allowed: tuple[str, ...]) -> None:
    if refused := [name for name in different if name not in allowed]:
        raise ValueError(
            f"the checkpoint was written with other {what}: {', '.join(refused)}; use the same, or another --out folder "
            "(--accept-changes allows other data or settings of the optimisation)"
        )


def save_checkpoint(folder: str | Path, state: TrainState) -> Path:
    """Write checkpoint-STEP.pt: to a temporary file, synced, renamed; older ones than the last two are removed.

    A kill at any moment leaves the previous checkpoints intact.
    Raises: NotFiniteError if the state is spoilt.
    """
    state.check_finite()
    folder = Path(folder)
    path = folder / f"checkpoint-{state.step:08d}.pt"
    for left in folder.glob(".checkpoint-*.part.pt"):  # of a process that was killed
        left.unlink()
    with atomic_write(path) as partial:
        torch.save(state_dict(state), partial)
    _sync_folder(folder)  # the new name itself survives a power cut
    whole = 1
    for old in reversed([p for p in checkpoints(folder) if p.name < path.name]):
        if whole >= KEEP:
            old.unlink()
        whole += is_whole(old) if old.exists() else 0
    return path


def checkpoints(folder: str | Path) -> list[Path]:
    """The files of a folder that are named like checkpoints, oldest first."""
    return sorted(p for p in Path(folder).glob("checkpoint-*.pt") if re.fullmatch(r"checkpoint-\d{8}\.pt", p.name))


def is_whole(path: Path) -> bool:
    """Whether every byte is as it was written: torch.load itself does not compare the file's checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError):
        return False


def resume(folder: str | Path, state: TrainState, accept_changes: bool = False) -> tuple[Path | None, list[str]]:
    """Load the newest usable checkpoint of a folder into `state`.

    Of several processes, the first reads and the others are told: the machines need not share a disk.

    Args:
        accept_changes: see `load_state`.
    Returns: its path (None if there is none), and one sentence for each unusable one that was passed over.
    Raises: ValueError if the checkpoint belongs to other settings or other data.
    """
    path, saved, passed_over = from_first(lambda: _newest(Path(folder), state, accept_changes))
    if saved is not None and rank_and_processes()[0] > 0:
        load_state(state, saved, accept_changes)
    return path, passed_over


def _newest(folder: Path, state: TrainState, accept_changes: bool) -> tuple[Path | None, dict | None, list[str]]:
    passed_over = []
    for path in reversed(checkpoints(folder)):
        if not is_whole(path):
            passed_over.append(f"{path.name} is damaged and was passed over")
            continue
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            load_state(state, saved, accept_changes)
        except CheckpointError as error:
            passed_over.append(f"{path.name} is not a checkpoint of this program ({error}) and was passed over")
        except ValueError:
            raise
        except Exception as error:  # whatever a foreign file makes torch.load raise: the next older one is tried
            passed_over.append(
                f"{path.name} cannot be read as a checkpoint ({type(error).__name__}) and was passed over"
            )
        else:
            return path, saved, passed_over
    return None, None, passed_over


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# --- one training a folder ----------------------------------------------------------------------------------


@contextlib.contextmanager
def training_lock(folder: str | Path) -> Iterator[None]:
    """Hold the run's folder: the operating system lets go of it when the process ends, however it ends.

    Raises: ValueError, one sentence, if another process trains there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=1):  # `training_process` holds it for a moment when it looks
            (folder / HOLDER).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            try:
                yield
            finally:
                (folder / HOLDER).unlink(missing_ok=True)
    except Timeout:
        raise ValueError(
            f"{folder}: {_holder(folder)} trains there already; stop it first, or use another --out folder"
        ) from None


def training_process(folder: str | Path) -> int | None:
    """Number of the process on this machine that trains into a folder; None if none does.

    Raises: RuntimeError if it runs on another machine, or cannot be told.
    """
    folder = Path(folder)
    if not (folder / LOCK).is_file():
        return None
    for _ in range(20):  # taken, but its name not yet written, or no longer: then it is about to let go
        with contextlib.suppress(Timeout), FileLock(folder / LOCK, timeout=0):
            return None
        with contextlib.suppress(OSError, ValueError):
            holder = json.loads((folder / HOLDER).read_text())
            if holder["host"] != socket.gethostname():
                raise RuntimeError(f"{folder}: {_holder(folder)} trains there; stop it there")
            return holder["pid"]
        time.sleep(0.05)
    raise RuntimeError(f"{folder}: some process holds {LOCK}, without its number beside it")


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError):
        return "another process"
