"""Pairs in one memory-mapped file per split: no picture is decoded in training.

A packed folder holds `pairs.npy`, uint8 (N, 2, H, W, 3) with the sharp picture first, and `manifest.json`: names, true
sizes and SHA-256 of each pair, where they come from and which blur was chosen. Where sizes differ (RealBlur), a
picture stands in the upper left corner of its frame and the rest is zero; crops are cut from the picture alone.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import ImageError, to_model
from ..machine import upload
from ..rng import Draws
from .folders import ListedPairs, PairedImages
from .layouts import DATASETS, find_pairs

FORMAT = "tinymsg pairs, version 1"
PIXELS, MANIFEST = "pairs.npy", "manifest.json"
# Of the free GPU memory that the pairs may take: training needs the rest, and its estimate (training.estimate) does not
# count them. GoPro's are 11.63 GB: with the full profile too much for a card of 24 GB, but not for one of 80 GB
GPU_SHARE = 0.25


def packed_folder(name: str, split: str, root: str | Path = "data") -> Path:
    """Where the packed form of a data set's split lies unless one says otherwise."""
    return Path(root) / "packed" / f"{name}-{split}"


def is_packed(folder: str | Path) -> bool:
    """Whether a folder holds packed pairs, whole or damaged; an unfinished one does not."""
    return (Path(folder) / MANIFEST).is_file()


def identity(manifest: dict) -> str:
    """SHA-256 over all that a manifest says, hence over every pixel."""
    content = {key: value for key, value in manifest.items() if key != "identity"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a packed folder: format, tinymsg, source, split, blur, shape, pairs [[name, h, w, sha256]],
    identity. Raises: ValueError if it is missing, damaged, or of another version."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            what = f"is of format {manifest['format']!r}, this version reads {FORMAT!r}"
        elif manifest["identity"] != identity(manifest):
            what = "is damaged or was edited: its content does not give its own checksum"
        else:
            return manifest
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no packed pairs: there is no {MANIFEST}; tinymsg pack makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"is damaged ({type(error).__name__})"
    raise ValueError(f"{path} {what}; pack again into a new folder")


def open_frames(folder: str | Path, shape: list[int]) -> np.memmap:
    """Memory-map the pixels; writes stay in memory. Raises: ValueError if the file is missing, or not of this shape."""
    path = Path(folder) / PIXELS
    try:
        frames = np.lib.format.open_memmap(path, mode="c")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); pack again into a new folder") from None
    if frames.dtype != np.uint8 or list(frames.shape) != list(shape):
        what = f"holds {frames.dtype} {frames.shape}, its manifest says uint8 {tuple(shape)}"
        raise ValueError(f"{path} {what}; pack again into a new folder")
    return frames


def check_frames(path: Path, frames: np.ndarray, rows: list[list]) -> None:
    """Compare every pair with its checksum, on all cores (about a second a gigabyte and core).

    rows: [name, h, w, SHA-256]. Raises: ValueError.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda frame: hashlib.sha256(frame.data).hexdigest(), frames)
        damaged = [name for (name, *_, sha256), now in zip(rows, found, strict=True) if now != sha256]
    if damaged:
        what = f"{len(damaged)} of {len(rows)} pairs are damaged, the first: {damaged[0]}"
        raise ValueError(f"{path}: {what}; pack again into a new folder")


class PackedPairs:
    """Packed pairs: memory-mapped on the CPU, or whole on the GPU where they fit; the crops are the same to the bit.

    Crop i is a pure function of (seed, i, size): picture, place, one of eight flips and quarter turns.

    Args:
        resident: copy all pixels to the device; None: to CUDA, if they take at most GPU_SHARE of what is free.
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
        frames = open_frames(folder, self.manifest["shape"])
        if verify:
            check_frames(self.folder / PIXELS, frames, self.manifest["pairs"])
        if resident is None:
            gpu = self.device.type == "cuda"
            resident = gpu and frames.nbytes <= GPU_SHARE * torch.cuda.mem_get_info(self.device)[0]
        self.resident = resident
        self._pixels = torch.from_numpy(frames).to(self.device if resident else "cpu", copy=resident)
        # By table: the same floats as read_image's on every device, whatever its division does
        self._levels = to_model(torch.arange(256, dtype=torch.float32) / 255).to(self.device)
        blur = f" ({self.manifest['blur']})" if self.manifest["source"] == "gopro" else ""
        self.name = f"{len(self)} packed pairs of {self.manifest['source']} {self.manifest['split']}{blur}"

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> tuple[Tensor, Tensor]:
        """Whole pair number i: (y0, x), both (1, 3, h, w) in [-1, 1]."""
        h, w = self._sizes[i].tolist()
        return self._to_model(self._pixels[i, :, None, :h, :w])

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), both (n, 3, size, size) in [-1, 1], channels last in memory, for int64 indices (n,).

        Raises: ImageError if the smallest picture is smaller than the crop.
        """
        cut = []
        for i, top, left, turn in self._plan(index, size).tolist():  # planned on the CPU: no GPU is waited for
            crop = self._pixels[i, :, top : top + size, left : left + size].rot90(turn % 4, (1, 2))
            cut.append(crop.flip(2) if turn >= 4 else crop)
        return self._to_model(torch.stack(cut, dim=1))

    def _plan(self, index: Tensor, size: int) -> Tensor:
        """(n, 4) int64 on the CPU: picture, top, left, turn (quarter turns, + 4 if mirrored after them)."""
        smallest = int(self._sizes.amin(dim=1).argmin())
        h, w = self._sizes[smallest].tolist()
        if min(h, w) < size:
            raise ImageError(f"{self.names[smallest]} of {self.folder}: {h}x{w} is smaller than the crop of {size}")
        draws = Draws(self.seed, index.cpu())
        which, place, turn = draws.integers(len(self)), draws.uniform(2), draws.integers(8)
        corner = (place.double() * (self._sizes[which] - size + 1)).long()
        return torch.cat((which[:, None], corner, turn[:, None]), dim=1)

    def _to_model(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (2, n, h, w, 3) -> y0 and x, float32 (n, 3, h, w) in [-1, 1], on the device."""
        pixels = upload(pixels, self.device)
        y0, x = self._levels.index_select(0, pixels.flatten().int()).view(pixels.shape).permute(0, 1, 4, 2, 3)
        return y0, x


def open_pairs(
    source: str | Path,
    split: str = "train",
    blur: str = "blur",
    seed: int = 0,
    device: torch.device | str = "cpu",
    root: str | Path = "data",
    complete: bool = True,
) -> ListedPairs | PackedPairs:
    """Real pairs, by whatever name one has for them.

    Args:
        source: a data set of DATASETS (its packed form below `root` if there, else its pictures), a packed folder, or a
            folder of pictures as `folder_pairs` reads it.
        split, blur, complete: as for `find_pairs`; a packed folder has made these choices, a folder only has `blur`.
        seed: of the crops.
    Raises: ValueError, one sentence.
    """
    name, folder = str(source), Path(source)
    if name in DATASETS:
        folder = packed_folder(name, split, root)
        if not is_packed(folder):
            pairs = find_pairs(name, root, split, blur, complete)
            return ListedPairs(pairs, f"{len(pairs)} pairs of {name} {split} ({blur})", seed, device)
        manifest = read_manifest(folder)
        for key, wanted in (("source", name), ("split", split), ("blur", blur)):
            if manifest[key] != wanted:
                advice = "pack that with another --out and name that folder"
                raise ValueError(f"{folder} holds {key} {manifest[key]}, not {wanted}: {advice}")
    return PackedPairs(folder, seed, device) if is_packed(folder) else PairedImages(folder, blur, seed, device)
