"""Pairs in one memory-mapped file a split: no picture is decoded in training.

A packed folder holds `pairs.npy`, uint8 (N, 2, H, W, 3) with the sharp picture first, and `manifest.json`: names, true
sizes and SHA-256 of each pair, where they come from and which blur was chosen. Where sizes differ (RealBlur), a
picture stands in the upper left corner of its frame and the rest is zero; crops are cut from the picture alone.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import ImageError, Pair, Pairs, to_model
from ..rng import Draws
from .folders import PairedImages
from .layouts import DATASETS, find_pairs

FORMAT = "tinymsg pairs, version 1"
PIXELS, MANIFEST = "pairs.npy", "manifest.json"
# Of the free GPU memory may go to the pairs: training takes the rest, and its estimate (training.estimate) does not count them.
# GoPro's are 11.63 GB: with the full profile's 14.3 GB too much for a card of 24 GB, with its 54.0 GB not for one of 80 GB
GPU_SHARE = 0.25
UPLOAD = 64 << 20  # bytes a piece on the way to the GPU


def packed_folder(name: str, split: str, root: str | Path = "data") -> Path:
    """Where the packed form of a data set's split lies unless one says otherwise."""
    return Path(root) / "packed" / f"{name}-{split}"


def is_packed(folder: str | Path) -> bool:
    """Whether a folder holds packed pairs, whole or damaged."""
    return (Path(folder) / MANIFEST).is_file()


def identity(manifest: dict) -> str:
    """SHA-256 over all that a manifest says, hence over every pixel."""
    content = {key: value for key, value in manifest.items() if key != "identity"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a packed folder: format, tinymsg, source, split, blur, shape, pairs [[name, h, w, sha256]], identity.

    Raises: ValueError if it is missing, damaged, or of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        whole = manifest["identity"] == identity(manifest)
        known = manifest["format"] == FORMAT
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no packed pairs: there is no {MANIFEST}; python -m tinymsg pack makes it"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}); pack again into a new folder") from None
    if not known:
        raise ValueError(
            f"{path} is of format {manifest['format']!r}, this version reads {FORMAT!r}; pack again into a new folder"
        )
    if not whole:
        raise ValueError(
            f"{path} is damaged or was edited: its content does not give its own checksum; pack again into a new folder"
        )
    return manifest


def open_frames(folder: str | Path, shape: list[int]) -> np.memmap:
    """Memory-map the pixels, read only. Raises: ValueError if the file is missing, short, long or of another shape."""
    path = Path(folder) / PIXELS
    try:
        frames = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise ValueError(f"{folder} lacks {PIXELS}; pack again into a new folder") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); pack again into a new folder") from None
    if frames.dtype != np.uint8 or list(frames.shape) != list(shape):
        raise ValueError(
            f"{path} holds {frames.dtype} {frames.shape}, its manifest says uint8 {tuple(shape)}; pack again"
        )
    expected = frames.offset + frames.size
    if path.stat().st_size != expected:
        raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {expected}; pack again into a new folder")
    return frames


def frame_hashes(frames: np.ndarray) -> Iterator[str]:
    """SHA-256 of each pair of frames in order, computed on all cores (about a second a gigabyte and core)."""
    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from threads.map(lambda i: hashlib.sha256(frames[i].data).hexdigest(), range(len(frames)))
    finally:
        threads.shutdown(cancel_futures=True)


class PackedPairs:
    """Packed pairs: memory-mapped on the CPU, or whole on the GPU where they fit; the crops are the same to the bit.

    Crop i is a pure function of (seed, i, size): picture, place, one of eight flips and quarter turns.

    Args:
        folder: made by python -m tinymsg pack.
        seed: of the crops.
        device: where crops are returned.
        resident: hold all pixels in the memory of `device`; None: on a GPU if they take at most GPU_SHARE of what is free.
        verify: compare every pair with its checksum.
    Raises: ValueError, one sentence, if the folder is damaged; torch.OutOfMemoryError only if `resident` insists.
    """

    def __init__(
        self,
        folder: str | Path,
        seed: int = 0,
        device: torch.device | str = "cpu",
        resident: bool | None = None,
        verify: bool = False,
    ):
        self.folder, self.seed, self.device = Path(folder), seed, torch.device(device)
        self.manifest = read_manifest(folder)
        self.names = [name for name, *_ in self.manifest["pairs"]]
        self._sizes = torch.tensor([(h, w) for _, h, w, _ in self.manifest["pairs"]])  # (N, 2)
        self._frames = open_frames(folder, self.manifest["shape"])
        if verify:
            self._verify()
        # By table: the same floats as read_image's on every device, whatever its division does
        self._levels = to_model(torch.arange(256, dtype=torch.float32) / 255).to(self.device)
        self._resident = self._upload() if self._wanted(resident) else None
        blur = f" ({self.manifest['blur']})" if self.manifest["source"] == "gopro" else ""
        self.name = f"{len(self)} packed pairs of {self.manifest['source']} {self.manifest['split']}{blur}"

    @property
    def resident(self) -> bool:
        """Whether the pixels lie in the device's memory."""
        return self._resident is not None

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> tuple[Tensor, Tensor]:
        """Whole pair number i: (y0, x), both (1, 3, h, w) in [-1, 1]."""
        h, w = self._sizes[i].tolist()
        pixels = torch.from_numpy(np.array(self._frames[i, :, :h, :w])).to(self.device)
        return tuple(self._to_model(pixels[:, None]))

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), both (n, 3, size, size) in [-1, 1], channels last in memory, for int64 indices (n,).

        Raises: ImageError if the smallest picture is smaller than the crop.
        """
        plan = self._plan(index, size)
        pixels = self._slice(plan, size) if self._resident is None else self._gather(plan, size)
        y0, x = self._to_model(pixels)
        return y0, x

    @cached_property
    def _smallest(self) -> int:
        return int(self._sizes.amin(dim=1).argmin())

    def _plan(self, index: Tensor, size: int) -> Tensor:
        """(n, 4) int64 on the CPU: picture, top, left, turn (quarter turns, + 4 if mirrored after them)."""
        h, w = self._sizes[self._smallest].tolist()
        if min(h, w) < size:
            raise ImageError(
                f"{self.names[self._smallest]} of {self.folder}: {h}x{w} is smaller than the crop of {size}"
            )
        draws = Draws(self.seed, index.cpu())
        which, place, turn = draws.integers(len(self)), draws.uniform(2), draws.integers(8)
        corner = (place.double() * (self._sizes[which] - size + 1)).long()
        return torch.cat((which[:, None], corner, turn[:, None]), dim=1)

    def _slice(self, plan: Tensor, size: int) -> Tensor:
        """(2, n, size, size, 3) uint8 on the device, cut from the file."""
        gpu = self.device.type == "cuda"
        pixels = torch.empty((2, len(plan), size, size, 3), dtype=torch.uint8, pin_memory=gpu)
        target = pixels.numpy()
        for j, (i, top, left, turn) in enumerate(plan.tolist()):
            crop = np.rot90(self._frames[i, :, top : top + size, left : left + size], turn % 4, axes=(1, 2))
            target[:, j] = crop[:, :, ::-1] if turn >= 4 else crop
        return pixels.to(self.device, non_blocking=gpu)

    def _gather(self, plan: Tensor, size: int) -> Tensor:
        """The same from memory: one indexing for the whole batch, and no waiting for the GPU."""
        gpu = self.device.type == "cuda"
        plan = (plan.pin_memory() if gpu else plan).to(self.device, non_blocking=gpu)
        which, top, left, turn = plan.T[:, :, None, None]  # each (n, 1, 1)
        quarter, mirrored = turn % 4, turn >= 4
        r = torch.arange(size, device=self.device)[None, :, None]
        c = torch.arange(size, device=self.device)[None, None, :]
        c = torch.where(mirrored, size - 1 - c, c)
        # What stands at (r, c) after k quarter turns, as np.rot90 makes them, came from (down, right)
        down, right = torch.where(quarter % 2 == 1, c, r), torch.where(quarter % 2 == 1, r, c)
        down = torch.where(quarter >= 2, size - 1 - down, down)
        right = torch.where((quarter == 1) | (quarter == 2), size - 1 - right, right)
        side = torch.arange(2, device=self.device)[:, None, None, None]
        return self._resident[which, side, top + down, left + right]

    def _to_model(self, pixels: Tensor) -> Tensor:
        """uint8 (2, n, h, w, 3) -> float32 (2, n, 3, h, w) in [-1, 1]."""
        return self._levels.index_select(0, pixels.flatten().int()).view(pixels.shape).permute(0, 1, 4, 2, 3)

    def _verify(self) -> None:
        pairs = zip(self.manifest["pairs"], frame_hashes(self._frames), strict=True)
        damaged = [name for (name, _, _, expected), found in pairs if found != expected]
        if damaged:
            raise ValueError(
                f"{self.folder / PIXELS}: {len(damaged)} of {len(self)} pairs are damaged, the first: {damaged[0]}; "
                "pack again into a new folder"
            )

    def _wanted(self, resident: bool | None) -> bool:
        if resident is not None or self.device.type != "cuda":
            return bool(resident)
        return self._frames.nbytes <= GPU_SHARE * torch.cuda.mem_get_info(self.device)[0]

    def _upload(self) -> Tensor:
        """All pixels in the device's memory, in pieces; to a GPU through two pinned buffers, one filled while one is sent."""
        gpu = self.device.type == "cuda"
        pixels = torch.empty(self._frames.shape, dtype=torch.uint8, device=self.device)
        step = max(1, UPLOAD // max(1, self._frames[0].nbytes))
        buffers = [torch.empty((step, *self._frames.shape[1:]), dtype=torch.uint8, pin_memory=gpu) for _ in range(2)]
        sent = [torch.cuda.Event(), torch.cuda.Event()] if gpu else []
        for number, start in enumerate(range(0, len(self), step)):
            piece = self._frames[start : start + step]
            buffer = buffers[number % 2][: len(piece)]
            if gpu:
                sent[number % 2].synchronize()  # an event that was never recorded is no wait
            buffer.numpy()[:] = piece
            pixels[start : start + step].copy_(buffer, non_blocking=gpu)
            if gpu:
                sent[number % 2].record(torch.cuda.current_stream(self.device))
        if gpu:
            torch.cuda.synchronize(self.device)  # before the buffers are given back
        return pixels


class ListedPairs(PairedImages):
    """Raw pairs from a list of paths instead of a folder's layout; crops and images as PairedImages has them.

    Raises: ValueError for pairs with several sharp frames (Köhler), which have no one target.
    """

    def __init__(self, pairs: list[Pair], name: str, seed: int = 0, device: torch.device | str = "cpu"):
        self.paths = [(single_sharp(pair), pair.blurry) for pair in pairs]
        self.names = [pair.name for pair in pairs]
        self.name, self.seed, self.device = name, seed, torch.device(device)
        self.folder = self.paths[0][1].parent


def single_sharp(pair: Pair) -> Path:
    """The sharp picture of a pair. Raises: ValueError if it has many."""
    if isinstance(pair.sharp, tuple):
        raise ValueError(
            f"{pair.blurry} has {len(pair.sharp)} sharp frames and no one target: it serves evaluation only"
        )
    return pair.sharp


def open_pairs(
    source: str | Path,
    split: str = "train",
    blur: str = "blur",
    seed: int = 0,
    device: torch.device | str = "cpu",
    root: str | Path = "data",
    complete: bool = True,
) -> Pairs:
    """Real pairs, by whatever name one has for them.

    Args:
        source: a data set of DATASETS (its packed form below `root` if there, else its pictures), a packed folder, or a
            folder of pictures in one of the layouts of data.PairedImages.
        split, blur, complete: as for `find_pairs`; a packed folder has made these choices, a folder only has `blur`.
        seed: of the crops.
    Raises: ValueError, one sentence.
    """
    folder = Path(source)
    if str(source) in DATASETS:
        folder = packed_folder(str(source), split, root)
        if not is_packed(folder):
            pairs = find_pairs(str(source), root, split, blur, complete)
            return ListedPairs(pairs, f"{len(pairs)} pairs of {source} {split} ({blur})", seed, device)
        manifest = read_manifest(folder)
        for key, wanted in (("source", str(source)), ("split", split), ("blur", blur)):
            if manifest[key] != wanted:
                raise ValueError(
                    f"{folder} holds {key} {manifest[key]}, not {wanted}: pack that with another --out and name that folder"
                )
    if is_packed(folder):
        return PackedPairs(folder, seed, device)
    if not folder.is_dir():
        raise ValueError(f"{source} is neither a data set ({', '.join(DATASETS)}) nor a folder of pairs")
    return PairedImages(folder, blur, seed, device)
