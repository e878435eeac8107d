"""Kill trainings with SIGKILL at random points, resume them, and hold them against one that was left alone.

`fast` forks each training from one process that has loaded everything (a training starts in milliseconds); `real`
starts each from the command line, alone or under torchrun. Used by test_kill.py; `python tests/kill_training.py --help`
for a run of one's own.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "widths=16,16",
    "scales=1",
    "guidance_width=8",
    "guidance_blocks=1",
    "crop=16",
    "batch=4",
    "warmup=2",
    "precision=fp32",
]
EXACT = ("log.csv", "validation.csv", "weights.safetensors")  # files that must be the same to the byte
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def arguments(out: Path, data: Path, steps: int, save_every: int = 3) -> list[str]:
    """The same training, into any folder."""
    return [
        "train",
        "--out",
        str(out),
        "--data",
        str(data),
        "--device",
        "cpu",
        "--log-every",
        "1",
        "--save-every",
        str(save_every),
        "--validate-every",
        "10",
        "--validation-count",
        "2",
        "--validation-size",
        "16",
        "--set",
        f"steps={steps}",
        *TINY,
    ]


def environment() -> dict[str, str]:
    """Of a training process: this checkout, one thread; several meet on this machine alone."""
    here = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return os.environ | here | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def lives(process: psutil.Process) -> bool:
    """Whether a process is there and no zombie: those whose parent was killed may be buried late."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class Real:
    """Trainings from the command line; under torchrun with `two`."""

    def __init__(self, two: bool = False):
        self.largest = 0  # how many processes the largest family had that was killed
        self.start_of = [sys.executable, *(TORCHRUN if two else []), "-m", "tinymsg"]

    def start(self, command: list[str], log: Path) -> subprocess.Popen:
        """A session of its own, so that all its processes can be killed at once."""
        with open(log, "ab") as file:
            return subprocess.Popen(
                [*self.start_of, *command],
                cwd=ROOT,
                env=environment(),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def kill(self, process: subprocess.Popen) -> int:
        """SIGKILL to every process of it (torchrun's are of other sessions), in any order; returns the status."""
        first = psutil.Process(process.pid)
        family = [first, *first.children(recursive=True)]
        self.largest = max(self.largest, len(family))
        for member in random.sample(family, len(family)):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        status = process.wait()
        while any(map(lives, family)):  # they take a moment to go
            time.sleep(0.01)
        return status

    def poll(self, process: subprocess.Popen) -> int | None:
        """Its exit status, None while it runs."""
        return process.poll()


class Forked:
    """Trainings forked from this process, which must have one thread and never have computed anything."""

    def start(self, command: list[str], log: Path, prepare=lambda: None) -> int:
        """Its process number. `prepare` is called in the new process first."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1), os.dup2(handle, 2)
            from tinymsg.cli import main

            prepare()
            status = main(command)
        finally:
            sys.stdout.flush()
            os._exit(status)

    def kill(self, pid: int) -> int:
        """SIGKILL; returns the status as subprocess has it."""
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def poll(self, pid: int) -> int | None:
        """Its exit status, None while it runs."""
        done, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else None


def kill_many(trainings, folder: Path, data: Path, steps: int, kills: int, seed: int, say=print) -> dict[str, int]:
    """Train into folder/whole without interruption, and into folder/torn with `kills` SIGKILLs; compare.

    A kill comes at one of: a random moment, the first steps, while a checkpoint is being written. Whenever the torn
    training completes before enough kills, it is thrown away and begun anew, so that each kill hits a training.
    Returns: how many kills came at each kind of moment, how many trainings were completed, and how many of the kills
        left a checkpoint half written.
    Raises: AssertionError if a training fails, or ends with other losses or weights.
    """
    random.seed(seed)
    whole, torn = folder / "whole", folder / "torn"
    log = folder / "messages.txt"
    started = time.monotonic()
    process = trainings.start(arguments(whole, data, steps), log)
    wait(trainings, process, log)
    usual = time.monotonic() - started
    counts = {"random": 0, "first steps": 0, "writing": 0, "half written": 0, "completed": 0}
    while sum(counts[kind] for kind in ("random", "first steps", "writing")) < kills:
        kind = random.choice(["random", "first steps", "writing"])
        process = trainings.start(arguments(torn, data, steps), log)
        killed = strike(trainings, process, torn, kind, usual)
        if killed:
            counts[kind] += 1
            counts["half written"] += bool(list(torn.glob(".checkpoint-*.part.pt")))
            continue
        counts["completed"] += 1
        compare(whole, torn, log)
        clear(torn)
    wait(trainings, trainings.start(arguments(torn, data, steps), log), log)
    compare(whole, torn, log)
    counts["completed"] += 1
    say(f"{counts} at {steps} steps, seed {seed}: every completed training equals the whole one")
    return counts


def die(*_) -> None:
    """End here, as by a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def patch(owner, name: str, replacement) -> None:
    """Replace owner.name by replacement(original)."""
    setattr(owner, name, replacement(getattr(owner, name)))


def _half_a_checkpoint() -> None:
    def save(values, path, original):
        original(values, path)
        os.truncate(path, os.path.getsize(path) // 2)
        die()

    patch(sys.modules["torch"], "save", lambda original: lambda values, path: save(values, path, original))


def _before_the_sync() -> None:
    patch(sys.modules["torch"], "save", lambda original: lambda values, path: (original(values, path), die()))


def die_at(method: str, prefix: str) -> None:
    """Die where a Path's `method` is called on a file whose name begins so."""
    patch(
        Path,
        method,
        lambda original: (
            lambda path, *args, **more: die() if path.name.startswith(prefix) else original(path, *args, **more)
        ),
    )


def _before_the_name() -> None:
    die_at("replace", ".checkpoint-")


def _before_the_older_one_goes() -> None:
    die_at("unlink", "checkpoint-")


def _half_a_row() -> None:
    from tinymsg.training import runs

    def write(logs, table, values):
        if table == "log" and values["step"] % 5 == 0:
            logs.files[table].write(f"{values['step']},0.1")
            logs.files[table].flush()
            die()
        return original(logs, table, values)

    original = runs.Logs.write
    runs.Logs.write = write


def _while_the_log_is_trimmed() -> None:
    die_at("replace", ".log.")


POINTS = {
    "half a checkpoint is written": _half_a_checkpoint,
    "before a checkpoint is synced": _before_the_sync,
    "before it has its name": _before_the_name,
    "before the older one goes": _before_the_older_one_goes,
    "half a row of the log is written": _half_a_row,
    "while the log is trimmed": _while_the_log_is_trimmed,
}


def kill_at_points(trainings: Forked, folder: Path, data: Path, attempts: int = 1, steps: int = 16, say=print) -> None:
    """Die at each of POINTS, `attempts` times with a few good steps between; compare as `kill_many` does."""
    whole, log = folder / "whole", folder / "messages.txt"
    wait(trainings, trainings.start(arguments(whole, data, steps), log), log)
    for name, prepare in POINTS.items():
        torn = folder / name.replace(" ", "_")
        for attempt in range(attempts):
            pid = trainings.start(arguments(torn, data, steps), log, prepare)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert status == -signal.SIGKILL, f"{name}: ended with {status}: {log.read_text()[-2000:]}"
            if attempt < attempts - 1:
                strike(trainings, trainings.start(arguments(torn, data, steps), log), torn, "first steps", 0)
        wait(trainings, trainings.start(arguments(torn, data, steps), log), log)
        compare(whole, torn, log)
        say(f"killed {name}: equal")


def strike(trainings, process, torn: Path, kind: str, usual: float) -> bool:
    """Kill a training at a moment of a kind; False if it completed before."""
    start, delay = time.monotonic(), random.uniform(0, usual)
    rows = rows_of(torn) + random.randint(1, 3)
    while True:
        waited = time.monotonic() - start
        now = {
            "random": waited > delay,
            "first steps": rows_of(torn) >= rows,
            "writing": waited > delay / 2 and bool(list(torn.glob(".checkpoint-*.part.pt"))),
        }[kind]
        status = trainings.poll(process)
        if status is not None:
            assert status == 0, f"a training ended with status {status}"
            return False
        if now:
            return trainings.kill(process) == -signal.SIGKILL
        time.sleep(0 if kind == "writing" else 0.002)


def rows_of(out: Path) -> int:
    """How many steps are in the log now."""
    log = out / "log.csv"
    return log.read_text().count("\n") - 1 if log.exists() else -1


def wait(trainings, process, log: Path) -> None:
    """Until it is done."""
    while (status := trainings.poll(process)) is None:
        time.sleep(0.01)
    assert status == 0, log.read_text()[-2000:]


def compare(whole: Path, torn: Path, log: Path) -> None:
    """The files of EXACT, byte by byte."""
    for name in EXACT:
        assert (whole / name).read_bytes() == (torn / name).read_bytes(), (
            f"{name} differs; messages: {log.read_text()[-2000:]}"
        )


def clear(folder: Path) -> None:
    """Begin anew."""
    import shutil

    shutil.rmtree(folder)


def main() -> None:
    """From the command line: also the process that `Forked` needs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--how", choices=("fast", "points", "real", "two"), default="fast")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.how in ("fast", "points"):
        import torch
        import torchmetrics.functional.image  # noqa: F401
        import tqdm  # noqa: F401

        from tinymsg.datasets import packed  # noqa: F401
        from tinymsg.training import estimate, runs  # noqa: F401

        torch.set_num_threads(1)
    if args.how == "points":
        kill_at_points(Forked(), args.folder, args.data, args.kills)
        return
    trainings = Forked() if args.how == "fast" else Real(args.how == "two")
    kill_many(trainings, args.folder, args.data, args.steps, args.kills, args.seed)
    assert args.how != "two" or trainings.largest >= 3, "no kill hit torchrun and both of its trainings"


if __name__ == "__main__":
    main()
