"""Which pictures the paper's evaluation is of: published test sets, a folder of one's own, and pictures to choose on."""

from pathlib import Path

import torch

from ..data import Pair
from ..datasets.folders import PairedImages
from ..datasets.layouts import find_pairs, get_dataset
from ..paper.choose import Centres
from ..paper.protocol import TestSet, choose_protocol, spread
from ..training.validation import choose_held_out


def open_set(
    name: str,
    root: str | Path = "data",
    blur: str = "blur",
    limit: int | None = None,
    complete: bool = True,
    protocol: str | None = None,
) -> TestSet:
    """A published test set. limit: so many of its pictures, evenly spread. Raises: ValueError as `find_pairs`."""
    found = get_dataset(name)
    pairs = find_pairs(name, root, "test", blur if name == "gopro" else "blur", complete=complete)
    identity = f"{name} ({blur})" if name == "gopro" else name
    return TestSet(
        name, found.title, identity, spread(pairs, limit), found.counts["test"], choose_protocol(name, protocol)
    )


def open_folder(
    folder: str | Path, blur: str = "blur", limit: int | None = None, protocol: str | None = None
) -> TestSet:
    """One's own pairs, in one of the layouts of `data.PairedImages`. Raises: ValueError as there."""
    folder = Path(folder)
    pairs = sorted(
        Pair(b.relative_to(folder).with_suffix("").as_posix(), s, b) for s, b in PairedImages(folder, blur).paths
    )
    name = folder.resolve().name
    identity = f"{folder.resolve()} ({blur})"
    return TestSet(name, name, identity, spread(pairs, limit), len(pairs), choose_protocol("", protocol))


def validation_pairs(
    count: int, root: str | Path = "data", blur: str = "blur", complete: bool = True, device: torch.device | str = "cpu"
) -> Centres:
    """`count` pairs of GoPro's *training* split, evenly spread: no test set's pictures choose the setting.

    They are of the part that a training with --validate-every holds out; whether one did, `doubt` says.
    """
    pairs = find_pairs("gopro", root, "train", blur, complete=complete)
    numbers, words = choose_held_out([pair.name for pair in pairs])
    kept = [pairs[number] for number in numbers]
    name = f"{min(count, len(kept))} of {len(kept)} pairs held out of GoPro train ({blur})"
    return Centres(list(spread(kept, count)), name, device, words)
