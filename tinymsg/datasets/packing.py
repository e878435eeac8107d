"""Packing: pairs of pictures into one memory-mapped file, verified, beside its place and renamed when it is whole."""

import contextlib
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from .. import __version__
from ..data import MAX_PIXELS, ImageError, Pair, open_picture, read_image
from .folders import single_sharp
from .packed import FORMAT, MANIFEST, PIXELS, check_frames, identity, is_packed, open_frames, read_manifest


def pack(
    pairs: list[Pair],
    out: str | Path,
    source: str,
    split: str = "train",
    blur: str = "blur",
    workers: int | None = None,
    verify: bool = False,
) -> dict:
    """Pack pairs into the folder `out`; returns the manifest. A finished `out` of the same pairs is left as it is.

    Args:
        pairs: from `find_pairs` or `folder_pairs`.
        source, split, blur: what the pairs are, for the manifest.
        workers: threads that decode; None: one per core.
        verify: decode every picture a second time and compare, also of a finished `out`.
    Raises: ValueError, one sentence, for pictures that cannot be packed, an `out` that holds something else, or a
        result that does not verify; OSError for a full disk and the like.
    """
    out, workers = Path(out), workers or os.cpu_count() or 1
    shape, rows = _measure(pairs)
    plan = {"format": FORMAT, "source": source, "split": split, "blur": blur, "shape": list(shape), "pairs": rows}
    if not is_packed(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} exists and is no packed folder: move it away, or choose another")
        work = out.with_name(out.name + ".part")
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{work}.lock", timeout=0), contextlib.ExitStack() as undo:
                shutil.rmtree(work, ignore_errors=True)  # of a pack that was killed: it is made anew, in minutes
                undo.callback(shutil.rmtree, work, ignore_errors=True)  # when it fails; once renamed, it is not there
                _make(work, plan, pairs, workers)
                if out.exists():
                    out.rmdir()
                work.rename(out)
        except Timeout:
            raise ValueError(f"another process is packing into {out}: wait for it, or stop it") from None
    manifest = _finished(out, plan)
    if verify:
        frames = open_frames(out, manifest["shape"])
        check_frames(out / PIXELS, frames, manifest["pairs"])
        now = _decode(pairs, plan, workers)
        for (name, *_, expected), found in zip(manifest["pairs"], now, strict=True):
            if found != expected:
                what = f"the pictures of {name} are not those that were packed"
                raise ValueError(f"{out}: {what}; pack again into a new folder")
    return manifest


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
    with open_picture(path, MAX_PIXELS) as image:
        # Asking a PNG without EXIF data for it would decode the whole picture
        turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


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


def _make(work: Path, plan: dict, pairs: list[Pair], workers: int) -> None:
    """Decode every pair to its place in the file, read everything back, write the manifest."""
    work.mkdir()
    path, need = work / PIXELS, int(np.prod(plan["shape"], dtype=np.int64))
    if need > (free := shutil.disk_usage(work).free):
        raise ValueError(f"{need / 1e9:.2f} GB are needed for {path}, {free / 1e9:.2f} GB are free")
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=tuple(plan["shape"]))
    found = _decode(pairs, plan, workers, path)
    rows = [[*row, digest] for row, digest in zip(plan["pairs"], found, strict=True)]
    check_frames(path, open_frames(work, plan["shape"]), rows)
    manifest = plan | {"tinymsg": __version__, "pairs": rows}
    (work / MANIFEST).write_text(json.dumps(manifest | {"identity": identity(manifest)}, indent=1) + "\n")


def _decode(pairs: list[Pair], plan: dict, workers: int, pixels: Path | None = None) -> list[str]:
    """SHA-256 of every pair's frames, each written to its place in the file `pixels` if there is one."""
    from tqdm import tqdm

    def work(number: int) -> str:
        frame = _frame(pairs[number], plan["pairs"][number][1:], plan["shape"])
        if pixels:  # not through the memory map: where the disk is full, that would end the process
            with open(pixels, "r+b") as file:
                header = os.fstat(file.fileno()).st_size - len(pairs) * frame.nbytes
                file.seek(header + number * frame.nbytes)
                file.write(frame.data)
        return hashlib.sha256(frame.data).hexdigest()

    pool = ThreadPoolExecutor(workers)  # decoding and hashing let other threads run
    try:
        found = pool.map(work, range(len(pairs)))
        return list(tqdm(found, "packing" if pixels else "verifying", len(pairs), unit="pair", disable=None))
    finally:
        pool.shutdown(cancel_futures=True)


def _frame(pair: Pair, size: list[int], shape: list[int]) -> np.ndarray:
    """(2, H, W, 3) uint8: both pictures, zero beside them."""
    frame = np.zeros(shape[1:], dtype=np.uint8)
    h, w = size
    for side, path in enumerate((single_sharp(pair), pair.blurry)):
        display = read_image(path)
        if list(display.shape[1:]) != [h, w]:
            found = f"{display.shape[1]}x{display.shape[2]} pixels (height x width)"
            raise ImageError(f"{path}: {found}, but its header says {h}x{w}")
        frame[side, :h, :w] = (display * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return frame
