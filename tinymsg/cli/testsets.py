"""Which pictures the paper's evaluation is of: published test sets, folders of one's own, crops to choose on."""

from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch

from ..data import Pair
from ..datasets.folders import folder_pairs
from ..datasets.layouts import find_pairs, get_dataset
from ..datasets.packed import open_pairs
from ..paper.choose import HeldOut
from ..paper.protocol import PROTOCOL_OF, TestSet
from ..training.validation import RealPairs, centre_crops, choose_held_out


def open_set(
    name: str,
    root: str | Path = "data",
    blur: str = "blur",
    limit: int | None = None,
    complete: bool = True,
    protocol: str | None = None,
) -> TestSet:
    """A published test set. limit: so many of its pictures, evenly spread. Raises: ValueError as `find_pairs`."""
    found, protocol = get_dataset(name), protocol or PROTOCOL_OF.get(name, "plain")
    if protocol == "realblur" and find_spec("cv2") is None:
        raise ValueError("RealBlur's protocol needs opencv-python-headless; --align plain does without it")
    pairs = find_pairs(name, root, "test", blur if name == "gopro" else "blur", complete)
    identity = f"{name} ({blur})" if name == "gopro" else name
    return TestSet(name, found.title, identity, _spread(pairs, limit), found.counts["test"], protocol)


def open_folder(
    folder: str | Path, blur: str = "blur", limit: int | None = None, protocol: str | None = None
) -> TestSet:
    """One's own pairs, as `folder_pairs` finds them. Raises: ValueError as there, and for pairs of one name."""
    folder, pairs = Path(folder).resolve(), sorted(folder_pairs(folder, blur))
    if len({pair.name for pair in pairs}) < len(pairs):
        raise ValueError(f"two pairs of {folder} have one name, but for the suffix or input/ and blur/: rename one")
    identity = f"{folder} ({blur})"
    return TestSet(folder.name, folder.name, identity, _spread(pairs, limit), len(pairs), protocol or "plain")


def validation_crops(
    count: int, size: int, root: str | Path, blur: str, complete: bool, device: torch.device
) -> HeldOut:
    """`count` crops of GoPro's *training* split, of the pairs that a training with --validate-every holds out."""
    pairs = cast(RealPairs, open_pairs("gopro", "train", blur, 0, device, root, complete))
    numbers, words = choose_held_out(pairs.names)
    y0, x = centre_crops(pairs, numbers, count, size)
    return HeldOut(y0, x, f"{len(x)} of {words}, GoPro ({blur})")


def _spread(pairs: list[Pair], limit: int | None) -> tuple[Pair, ...]:
    count = min(limit or len(pairs), len(pairs))
    return tuple(pairs[i * len(pairs) // count] for i in range(count))
