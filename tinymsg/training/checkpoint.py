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

from ..processes import from_first, rank_and_processes
from ..train import CheckpointError, TrainState

KEEP = 2  # checkpoints: should the newest be damaged, the one before it serves
LOCK = "lock"  # in the run's folder: names the process that trains there


def save_checkpoint(folder: str | Path, state: TrainState) -> Path:
    """Write checkpoint-STEP.pt: to a temporary file, synced, renamed; older ones than the last two are removed.

    A kill at any moment leaves the previous checkpoints intact.
    Raises: NotFiniteError if the state is spoilt.
    """
    state.check_finite()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{state.step:08d}.pt"
    for left in folder.glob("checkpoint-*.part"):  # of a process that was killed
        left.unlink()
    partial = path.with_suffix(".part")
    with open(partial, "wb") as file:
        torch.save(state.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
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
        accept_changes: see `TrainState.load_state_dict`.
    Returns: its path (None if there is none), and one sentence for each unusable one that was passed over.
    Raises: ValueError if the checkpoint belongs to other settings or other data.
    """
    path, saved, passed_over, bf16 = from_first(lambda: _newest(Path(folder), state, accept_changes))
    if saved is not None and rank_and_processes()[0] > 0:
        state.load_state_dict(saved, accept_changes)
    state.compute_in(bf16)  # the first one's: measured by each process, it may come out otherwise
    return path, passed_over


def _newest(folder: Path, state: TrainState, accept_changes: bool) -> tuple[Path | None, dict | None, list[str], bool]:
    passed_over = []
    for path in reversed(checkpoints(folder)):
        if not is_whole(path):
            passed_over.append(f"{path.name} is damaged and was passed over")
            continue
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            state.load_state_dict(saved, accept_changes)
        except CheckpointError as error:
            passed_over.append(f"{path.name} is not a checkpoint of this program ({error}) and was passed over")
        except ValueError:
            raise
        except Exception as error:  # whatever a foreign file makes torch.load raise: the next older one is tried
            passed_over.append(
                f"{path.name} cannot be read as a checkpoint ({type(error).__name__}) and was passed over"
            )
        else:
            return path, saved, passed_over, state.bf16
    return None, None, passed_over, state.bf16


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
    with open(folder / LOCK, "a+") as file:
        deadline = time.monotonic() + 1  # `training_process` holds it for a moment when it looks
        while not _take(file):
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{folder}: {_holder(folder)} trains there already; stop it first, or use another --out folder"
                )
            time.sleep(0.05)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def training_process(folder: str | Path) -> int | None:
    """Number of the process on this machine that trains into a folder; None if none does.

    Raises: RuntimeError if it runs on another machine, or cannot be told.
    """
    path = Path(folder) / LOCK
    if not path.is_file():
        return None
    for _ in range(20):  # taken, but its name not yet written, or no longer: then it is about to let go
        with open(path, "a+") as file:
            if _take(file):
                return None
        with contextlib.suppress(ValueError):
            holder = json.loads(path.read_text())
            if holder["host"] != socket.gethostname():
                raise RuntimeError(f"{folder}: {_holder(Path(folder))} trains there; stop it there")
            return holder["pid"]
        time.sleep(0.05)
    raise RuntimeError(f"{folder}: some process holds {path.name}, without its number in it")


def _take(file) -> bool:
    """Try to lock an open file; True if it is ours now. Where there is no flock (Windows) it always is."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / LOCK).read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError):
        return "another process"
