"""Packing: pairs of pictures into one memory-mapped file; in parallel, resumable after a kill at any moment, verified.

The pixels go to their places in the file, a chunk of pairs at a time; a record says which pairs are there. The manifest
is written last, when every pair has been read back with its checksum: without it a folder holds no packed pairs.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout

from .. import __version__
from ..data import ImageError, Pair, read_image
from ..machine import atomic_write, begin_worker
from .folders import single_sharp
from .packed import FORMAT, MANIFEST, PIXELS, check_frames, identity, is_packed, open_frames, read_manifest

RECORD, LOCK = "packing.json", "packing.lock"  # of an unfinished pack
CHUNK = 16  # pairs: what a kill may cost each worker


def pack(
    pairs: list[Pair],
    out: str | Path,
    source: str,
    split: str = "train",
    blur: str = "blur",
    workers: int | None = None,
    verify: bool = False,
) -> dict:
    """Pack pairs into the folder `out`; after an interruption the same call goes on. Returns the manifest.

    The result depends on the pictures alone, neither on `workers` nor on interruptions. A finished `out` of the same
    pairs is left as it is.

    Args:
        pairs: from `find_pairs` or `folder_pairs`.
        source, split, blur: what the pairs are, for the manifest.
        workers: processes that decode; None: one a core; 1: this process alone.
        verify: decode every picture a second time and compare, also of a finished `out`.
    Raises: ValueError, one sentence, for pictures that cannot be packed, an `out` that holds something else, or a
        result that does not verify; OSError for a full disk and the like.
    """
    out, workers = Path(out), workers or os.cpu_count() or 1
    shape, rows = _measure(pairs)
    plan = {"format": FORMAT, "source": source, "split": split, "blur": blur, "shape": list(shape), "pairs": rows}
    jobs = [
        _Job(i, (single_sharp(pair), pair.blurry), (h, w), shape)
        for i, (pair, (_, h, w)) in enumerate(zip(pairs, rows, strict=True))
    ]
    if not is_packed(out):
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / LOCK).exists())):
            raise ValueError(f"{out} exists and is no packed folder: move it away, or choose another")
        out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(out / LOCK, timeout=0):
                _make(out, plan, jobs, workers)
        except Timeout:
            raise ValueError(f"another process is packing into {out}: wait for it, or stop it") from None
    manifest = _finished(out, plan)
    for name in (RECORD, LOCK):
        (out / name).unlink(missing_ok=True)
    if verify:
        _compare(out, manifest, jobs, workers)
    return manifest


# --- what is to be done -------------------------------------------------------------------------------------


_Done = tuple[int, str, list[int]]  # number, SHA-256 of the frames, stamp


class _Job(NamedTuple):
    """One pair to decode, on its way to another process."""

    number: int
    paths: tuple[Path, Path]  # sharp, blurry
    size: tuple[int, int]  # (h, w) of the pictures
    shape: tuple[int, ...]  # shape of the file: (N, 2, H, W, 3)

    def stamp(self) -> list[int]:
        """Changes when a picture does: bytes and time of change of each."""
        return [value for path in self.paths for value in (path.stat().st_size, path.stat().st_mtime_ns)]


def _measure(pairs: list[Pair]) -> tuple[tuple[int, ...], list[list]]:
    """((N, 2, H, W, 3), [[name, h, w]]) from the headers of the pictures."""
    if not pairs:
        raise ValueError("there are no pairs to pack")
    names = sorted(pair.name for pair in pairs)
    if twice := [a for a, b in zip(names, names[1:], strict=False) if a == b]:
        raise ValueError(f"two pairs are named {twice[0]}")
    with ThreadPoolExecutor() as threads:
        sizes = list(threads.map(lambda pair: (_size(single_sharp(pair)), _size(pair.blurry)), pairs))
    for pair, (sharp, blurry) in zip(pairs, sizes, strict=True):
        if sharp != blurry:
            found = f"{blurry[0]}x{blurry[1]} and {sharp[0]}x{sharp[1]} (height x width)"
            raise ImageError(f"{pair.blurry}: sizes of the pair differ, {found}")
    height, width = (max(edges) for edges in zip(*(sharp for sharp, _ in sizes), strict=True))
    rows = [[pair.name, *sharp] for pair, (sharp, _) in zip(pairs, sizes, strict=True)]
    return (len(pairs), 2, height, width, 3), rows


def _size(path: Path) -> tuple[int, int]:
    """(h, w) as read_image will give it, without decoding the picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # Asking a PNG without EXIF data for it would decode the whole picture
            turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) >= 5
            width, height = image.size
            return (width, height) if turned else (height, width)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: not a picture that can be read ({type(error).__name__})") from None


def _finished(out: Path, plan: dict) -> dict:
    """The manifest of a finished pack. Raises: ValueError if it is one of other pairs, or damaged."""
    manifest = read_manifest(out)
    open_frames(out, manifest["shape"])
    held, asked = (
        f"{len(of['pairs'])} pairs of {of['source']} {of['split']} ({of['blur']})" for of in (manifest, plan)
    )
    if held != asked or [pair[:3] for pair in manifest["pairs"]] != plan["pairs"]:
        raise ValueError(f"{out} holds {held}, other ones than these {asked}: choose another --out")
    return manifest


# --- the pixels ---------------------------------------------------------------------------------------------


def _make(out: Path, plan: dict, jobs: list[_Job], workers: int) -> None:
    """Decode what is not there yet, read everything back, write the manifest."""
    record = {"plan": identity(plan), "done": {}}  # done: {number: [SHA-256, stamp]}, of pictures as they were then
    if (out / RECORD).exists() and (out / PIXELS).exists():
        record = json.loads((out / RECORD).read_text())
        if record["plan"] != identity(plan):
            raise ValueError(f"{out} is an unfinished pack of something else: remove it, or choose another --out")
    else:
        _allocate(out / PIXELS, plan["shape"])
        _write(out / RECORD, record)
    done = record["done"]
    todo = [job for job in jobs if done.get(str(job.number), [None, None])[1] != job.stamp()]
    for chunk in _decode(todo, workers, out / PIXELS):
        done |= {str(number): [sha256, stamp] for number, sha256, stamp in chunk}
        _write(out / RECORD, record)
    rows = [[*pair, done[str(number)][0]] for number, pair in enumerate(plan["pairs"])]
    check_frames(out / PIXELS, open_frames(out, plan["shape"]), rows)
    manifest = plan | {"tinymsg": __version__, "pairs": rows}
    _write(out / MANIFEST, manifest | {"identity": identity(manifest)})


def _write(path: Path, content: dict) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def _allocate(path: Path, shape: list[int]) -> None:
    """Make the file, of zeros that take no space yet."""
    need, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(path.parent).free
    if need > free:
        raise ValueError(f"{need / 1e9:.2f} GB are needed for {path}, {free / 1e9:.2f} GB are free")
    with atomic_write(path) as partial:
        np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=tuple(shape))


def _decode(jobs: list[_Job], workers: int, pixels: Path | None) -> Iterator[list[_Done]]:
    """Chunk after chunk, each pair written to its place in the file `pixels`; None: to be compared."""
    from tqdm import tqdm

    work, chunks = partial(_decode_chunk, pixels=pixels), [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    found, pool = map(work, chunks), None
    if workers > 1 and len(chunks) > 1:
        pool = ProcessPoolExecutor(min(workers, len(chunks)), get_context("spawn"), begin_worker)
        with _no_interrupts():
            found = pool.map(work, chunks)
    try:
        title = "packing" if pixels else "verifying"
        with tqdm(desc=title, total=len(jobs), unit="pair", disable=None) as bar:  # None: where there is no terminal
            for chunk in found:
                yield chunk
                bar.update(len(chunk))
    except BrokenProcessPool:
        what = "a worker was killed, perhaps for lack of memory"
        raise ValueError(f"{what}: use fewer --workers; what is done stays done") from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes that start within never see Ctrl-C, which reaches them all: their parent sees to the end."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _decode_chunk(jobs: list[_Job], pixels: Path | None) -> list[_Done]:
    done = []
    # Not written through the memory map: where the disk is full, that would end the process
    with open(pixels, "r+b") if pixels else contextlib.nullcontext() as file:
        for job in jobs:
            stamp, frame = job.stamp(), _frame(job)
            if file:
                start = os.fstat(file.fileno()).st_size - job.shape[0] * frame.nbytes  # behind the header
                file.seek(start + job.number * frame.nbytes)
                file.write(frame.data)
            done.append((job.number, hashlib.sha256(frame.data).hexdigest(), stamp))
        if file:
            file.flush()
            os.fsync(file.fileno())  # the record must not know of more than the disk
    return done


def _frame(job: _Job) -> np.ndarray:
    """(2, H, W, 3) uint8: both pictures, zero beside them."""
    frame = np.zeros(job.shape[1:], dtype=np.uint8)
    h, w = job.size
    for side, path in enumerate(job.paths):
        display = read_image(path)
        if display.shape[1:] != job.size:
            found = f"{display.shape[1]}x{display.shape[2]} pixels (height x width)"
            raise ImageError(f"{path}: {found}, but its header says {h}x{w}")
        frame[side, :h, :w] = (display * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return frame


def _compare(out: Path, manifest: dict, jobs: list[_Job], workers: int) -> None:
    """Raise ValueError unless the file's bytes, and the pictures as decoded now, both have the manifest's checksums."""
    check_frames(out / PIXELS, open_frames(out, manifest["shape"]), manifest["pairs"])
    for chunk in _decode(jobs, workers, None):
        for number, sha256, _ in chunk:
            name, _, _, expected = manifest["pairs"][number]
            if sha256 != expected:
                what = f"the pictures of {name} are not those that were packed"
                raise ValueError(f"{out}: {what}; pack again into a new folder")
