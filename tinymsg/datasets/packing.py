"""Packing: pairs of pictures into one memory-mapped file; in parallel, resumable after a kill at any moment, verified.

All work happens in OUT.part: the pixels, and a journal with a line for each pair that is done. The folder gets its name
when every pair in the file has been read back and has its checksum: a packed folder is whole, or it is not there.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch

from .. import __version__
from ..data import ImageError, Pair, read_image
from ..machine import begin_worker
from .folders import PairedImages
from .packed import (
    FORMAT,
    MANIFEST,
    PIXELS,
    frame_hashes,
    identity,
    is_packed,
    open_frames,
    read_manifest,
    single_sharp,
)

JOURNAL = "journal.jsonl"
SAMPLE = 16  # pairs that are decoded a second time and compared, where not all are


def folder_pairs(folder: str | Path, blur: str = "blur") -> list[Pair]:
    """The pairs of a folder of one's own, in the layouts of data.PairedImages, named by the blurry picture's path."""
    paths = PairedImages(folder, blur).paths
    return sorted(Pair(blurry.relative_to(folder).as_posix(), sharp, blurry) for sharp, blurry in paths)


def pack(
    pairs: list[Pair],
    out: str | Path,
    source: str,
    split: str = "train",
    blur: str = "blur",
    workers: int | None = None,
    verify: bool = False,
    progress: bool = False,
) -> dict:
    """Pack pairs into the folder `out`; after an interruption the same call goes on. Returns the manifest.

    The result depends on the pictures alone, neither on `workers` nor on interruptions. A finished `out` of the same
    pairs is left as it is.

    Args:
        pairs: from `find_pairs` or `folder_pairs`.
        source, split, blur: what the pairs are, for the manifest.
        workers: processes that decode; None: one a core; 1: this process alone.
        verify: decode every pair a second time and compare, also of a finished `out`; else a sample of SAMPLE.
        progress: show bars.
    Raises: ValueError, one sentence, for pictures that cannot be packed, an `out` that holds something else, or a result
        that does not verify; OSError for a full disk and the like.
    """
    out, workers = Path(out), workers or _cores()
    plan = {"format": FORMAT, "source": source, "split": split, "blur": blur} | _measure(pairs)
    jobs = [
        _Job(i, single_sharp(pair), pair.blurry, (h, w), tuple(plan["shape"][2:4]))
        for i, (pair, (_, h, w)) in enumerate(zip(pairs, plan["pairs"], strict=True))
    ]
    if is_packed(out):
        manifest = _finished(out, plan)
        if verify:
            _compare(out, manifest, jobs, workers, progress)
        return manifest
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no packed folder: move it away, or choose another")
    work = out.with_name(out.name + ".part")
    with _journal(work) as journal:
        done = _resume(journal, plan, jobs)
        _fill(work, plan, jobs, done, journal, workers, progress)
        manifest = plan | {"tinymsg": __version__, "pairs": [[*pair, done[i]] for i, pair in enumerate(plan["pairs"])]}
        manifest["identity"] = identity(manifest)
        _write_manifest(work / MANIFEST, manifest)
        sample = np.unique(np.linspace(0, len(jobs) - 1, SAMPLE).astype(int))
        _compare(work, manifest, jobs if verify else [jobs[i] for i in sample], workers, progress)
    work.replace(out)
    _sync(out.parent)
    (out / JOURNAL).unlink()
    return manifest


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- what is to be done -------------------------------------------------------------------------------------


class _Job(NamedTuple):
    """One pair to decode, on its way to another process."""

    number: int
    sharp: Path
    blurry: Path
    size: tuple[int, int]  # (h, w) of the pictures
    frame: tuple[int, int]  # (H, W) in the file, at least as large


def _measure(pairs: list[Pair]) -> dict:
    """{"shape": (N, 2, H, W, 3), "pairs": [[name, h, w]]} from the headers of the pictures."""
    if not pairs:
        raise ValueError("there are no pairs to pack")
    names = [pair.name for pair in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"two pairs are named {next(name for name in names if names.count(name) > 1)}")
    with ThreadPoolExecutor() as threads:
        sharp = list(threads.map(lambda pair: _size(single_sharp(pair)), pairs))
        blurry = list(threads.map(lambda pair: _size(pair.blurry), pairs))
    for pair, a, b in zip(pairs, sharp, blurry, strict=True):
        if a != b:
            raise ImageError(
                f"{pair.blurry}: sizes of the pair differ, {b[0]}x{b[1]} and {a[0]}x{a[1]} (height x width)"
            )
    return {
        "shape": [len(pairs), 2, max(h for h, _ in sharp), max(w for _, w in sharp), 3],
        "pairs": [[name, h, w] for name, (h, w) in zip(names, sharp, strict=True)],
    }


def _size(path: Path) -> tuple[int, int]:
    """(h, w) as read_image will give it, without decoding the picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # Asking a PNG without EXIF data for it would decode the whole picture
            turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) >= 5
            return image.size if turned else image.size[::-1]
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: not a picture that can be read ({type(error).__name__})") from None


def _finished(out: Path, plan: dict) -> dict:
    """The manifest of a finished pack, if it is one of the same pairs."""
    manifest = read_manifest(out)
    for key in ("source", "split", "blur"):
        if manifest[key] != plan[key]:
            raise ValueError(
                f"{out} holds {manifest['source']} {manifest['split']} with {key} {manifest[key]}, not {plan[key]}: "
                "choose another --out"
            )
    if [pair[:3] for pair in manifest["pairs"]] != plan["pairs"]:
        raise ValueError(
            f"{out} holds {len(manifest['pairs'])} other pairs than the {len(plan['pairs'])} of {plan['source']}: "
            "choose another --out"
        )
    open_frames(out, manifest["shape"])
    (out / JOURNAL).unlink(missing_ok=True)  # left by a kill in the very last moment
    return manifest


# --- the journal --------------------------------------------------------------------------------------------


@contextmanager
def _journal(work: Path) -> Iterator[TextIO]:
    """The journal of an unfinished pack, locked: the system lets go of the lock when this process ends, however it ends."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / JOURNAL, "a+", errors="replace") as journal:
        try:
            import fcntl

            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not a Unix: nobody is kept out
            pass
        except BlockingIOError:
            raise ValueError(f"another process is packing into {work}: wait for it, or stop it") from None
        yield journal


def _resume(journal: TextIO, plan: dict, jobs: list[_Job]) -> dict[int, str]:
    """{number: SHA-256} of the pairs that an earlier run finished from the pictures as they still are.

    What follows a torn line is cut off.
    """
    head = {key: plan[key] for key in ("source", "split", "blur", "shape")} | {"plan": identity(plan)}
    journal.seek(0)
    lines, whole = [], 0
    for line in journal.read().splitlines(keepends=True):
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
        if not line.endswith("\n"):
            lines.pop()
            break
        whole += len(line.encode())
    journal.truncate(whole)
    if not lines:
        _note(journal, head)
    elif lines[0] != head:
        what = ", ".join(f"{key} {lines[0].get(key)}" for key in ("source", "split", "blur", "shape"))
        raise ValueError(
            f"{Path(journal.name).parent} is an unfinished pack of something else ({what}): remove it, or choose another --out"
        )
    return {line["number"]: line["sha256"] for line in lines[1:] if line["stamp"] == _stamp(jobs[line["number"]])}


def _note(journal: TextIO, entry: dict) -> None:
    journal.write(json.dumps(entry) + "\n")
    journal.flush()


def _stamp(job: _Job) -> list[int]:
    """Changes when a picture does: [bytes, time of change, bytes, time of change]."""
    return [value for path in (job.sharp, job.blurry) for value in (path.stat().st_size, path.stat().st_mtime_ns)]


# --- the pixels ---------------------------------------------------------------------------------------------


def _fill(
    work: Path, plan: dict, jobs: list[_Job], done: dict[int, str], journal: TextIO, workers: int, progress: bool
) -> None:
    """Decode what is not done; read everything back; what has another checksum is decoded once more."""
    offset = _allocate(work / PIXELS, plan["shape"])
    for attempt in range(2):
        todo = [job for job in jobs if job.number not in done]
        bar = _bar(_decode(todo, workers, work / PIXELS, offset), progress, "packing", len(jobs), len(done))
        for number, sha256, stamp in bar:
            _note(journal, {"number": number, "sha256": sha256, "stamp": stamp})
            done[number] = sha256
        _sync(work / PIXELS)
        hashes = _bar(frame_hashes(open_frames(work, plan["shape"])), progress, "reading back", len(jobs))
        wrong = [number for number, sha256 in enumerate(hashes) if done[number] != sha256]
        if not wrong:
            return
        if attempt:
            raise ValueError(
                f"{work / PIXELS} gives back other bytes than were written, first for {plan['pairs'][wrong[0]][0]}: "
                "check the disk"
            )
        for number in wrong:  # the power went before these reached the disk
            del done[number]


def _allocate(path: Path, shape: list[int]) -> int:
    """Make the file of this shape, or take the one that is there; returns where the pixels begin."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
        offset = file.tell()
        size = offset + int(np.prod(shape, dtype=np.int64))
        have = os.fstat(file.fileno())
        need = size - getattr(have, "st_blocks", have.st_size // 512) * 512  # holes in the file are not there yet
        if need > (free := shutil.disk_usage(path.parent).free):
            raise ValueError(f"{need / 1e9:.2f} GB are needed for {path}, {free / 1e9:.2f} GB are free")
        file.truncate(size)
    return offset


def _decode(
    jobs: list[_Job], workers: int, pixels: Path | None = None, offset: int = 0
) -> Iterator[tuple[int, str, list[int]]]:
    """(number, SHA-256, stamp) of each job's pair, in order; written to its place in the file `pixels` if there is one."""
    work = partial(_decode_one, pixels=pixels, offset=offset)
    if workers == 1 or len(jobs) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers: a picture is too small to share
        try:
            yield from map(work, jobs)
        finally:
            torch.set_num_threads(threads)
        return
    # Not by fork: this process has threads, of torch, whose locks a fork would copy as they happen to be
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])  # torch is imported once, not once a worker
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker)
    try:
        yield from pool.map(work, jobs)
    except BrokenProcessPool:
        raise ValueError(
            "a worker was killed, perhaps for lack of memory: use fewer --workers; what is done stays done"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    begin_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent sees to the end


def _decode_one(job: _Job, pixels: Path | None, offset: int) -> tuple[int, str, list[int]]:
    stamp = _stamp(job)
    h, w = job.size
    frame = np.zeros((2, *job.frame, 3), dtype=np.uint8)
    for side, path in enumerate((job.sharp, job.blurry)):
        display = read_image(path)
        if display.shape[1:] != job.size:
            raise ImageError(
                f"{path}: {display.shape[1]}x{display.shape[2]} pixels (height x width), but its header says {h}x{w}"
            )
        frame[side, :h, :w] = (display * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    if pixels is not None:
        with open(pixels, "r+b") as file:
            file.seek(offset + job.number * frame.nbytes)
            file.write(frame.data)
    return job.number, hashlib.sha256(frame.data).hexdigest(), stamp


def _compare(folder: Path, manifest: dict, jobs: list[_Job], workers: int, progress: bool) -> None:
    """Raise ValueError unless the pictures, decoded now, and the file's bytes both have the manifest's checksums."""
    frames = open_frames(folder, manifest["shape"])
    bar = _bar(_decode(jobs, workers), progress, "verifying", len(jobs))
    for number, sha256, _ in bar:
        name, _, _, expected = manifest["pairs"][number]
        if hashlib.sha256(frames[number].data).hexdigest() != expected:
            raise ValueError(f"{folder / PIXELS}: pair {name} is damaged; pack again into a new folder")
        if sha256 != expected:
            raise ValueError(
                f"{folder}: the pictures of {name} are not those that were packed; pack again into a new folder"
            )


def _bar(steps: Iterable, progress: bool, what: str, total: int, initial: int = 0) -> Iterable:
    from tqdm import tqdm

    return tqdm(steps, what, total, initial=initial, unit="pair", disable=not progress, mininterval=0.5)


# --- files that are there after a power cut -----------------------------------------------------------------


def _write_manifest(path: Path, manifest: dict) -> None:
    """JSON, a pair a line."""
    head = json.dumps({key: value for key, value in manifest.items() if key != "pairs"}, indent=1).removesuffix("\n}")
    rows = ",\n  ".join(json.dumps(pair) for pair in manifest["pairs"])
    path.write_text(f'{head},\n "pairs": [\n  {rows}\n ]\n}}\n')
    _sync(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
