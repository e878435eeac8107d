"""Pairs of pictures on the disk, decoded anew for every crop: from a list, or from a folder of one's own."""

from pathlib import Path

import torch
from torch import Tensor

from ..data import ImageError, Pair, picture_files, read_image, to_model
from ..rng import Draws
from .layouts import DATASETS


class ListedPairs:
    """Pairs from a list of files; the seed is of the crops. Raises: ValueError for several sharp frames (Köhler)."""

    def __init__(self, pairs: list[Pair], name: str, seed: int = 0, device: torch.device | str = "cpu"):
        self.paths = [(single_sharp(pair), pair.blurry) for pair in pairs]
        self.names = [pair.name for pair in pairs]
        self.name, self.seed, self.device = name, seed, torch.device(device)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> tuple[Tensor, Tensor]:
        """Whole pair number i: (y0, x), both (1, 3, h, w) in [-1, 1]. Raises: ImageError."""
        sharp, blurry = (read_image(path) for path in self.paths[i])
        if sharp.shape != blurry.shape:
            found = f"{tuple(sharp.shape)} and {tuple(blurry.shape)}"
            raise ImageError(f"{self.paths[i][1]}: sizes of the pair differ, {found}")
        return to_model(sharp)[None].to(self.device), to_model(blurry)[None].to(self.device)

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), both (n, 3, size, size), drawn from (seed, index): the crops of the same pairs packed."""
        draws = Draws(self.seed, index.cpu())
        which, place, turns = draws.integers(len(self)).tolist(), draws.uniform(2).tolist(), draws.integers(8).tolist()
        cut = []
        for i, (top, left), turn in zip(which, place, turns, strict=True):
            pair = torch.cat(self.image(i))
            h, w = pair.shape[-2:]
            if min(h, w) < size:
                raise ImageError(f"{self.paths[i][1]}: {h}x{w} is smaller than the crop of {size}")
            top, left = int(top * (h - size + 1)), int(left * (w - size + 1))
            pair = pair[..., top : top + size, left : left + size]
            pair = pair.rot90(turn % 4, (-2, -1))
            cut.append(pair.flip(-1) if turn >= 4 else pair)
        y0, x = torch.stack(cut, dim=1)
        return y0, x

    def pictures(self, index: Tensor) -> Tensor:
        """Which of the pairs each of these crops is cut from: int64 (n,), on the CPU."""
        return Draws(self.seed, index.cpu()).integers(len(self))


class PairedImages(ListedPairs):
    """The pairs of a folder, as `folder_pairs` finds them."""

    def __init__(self, folder: str | Path, blur: str = "blur", seed: int = 0, device: torch.device | str = "cpu"):
        pairs = folder_pairs(folder, blur)
        super().__init__(pairs, f"{len(pairs)} pairs of {Path(folder).name} ({blur})", seed, device)


def folder_pairs(folder: str | Path, blur: str = "blur") -> list[Pair]:
    """The pairs of a folder of one's own, matched by name. Layouts, anywhere below it:

        GoPro:  SEQUENCE/blur/NAME + SEQUENCE/sharp/NAME   (`blur` chooses blur or blur_gamma)
        flat:   blur/NAME + sharp/NAME, or input/NAME + target/NAME

    Returns: pairs named SEQUENCE/NAME, without the suffix.
    Raises: ValueError if no pairs are found, or a blurry picture has no sharp one.
    """
    folder, pairs = Path(folder), []
    if not folder.is_dir():
        raise ValueError(f"{folder} is neither a data set ({', '.join(DATASETS)}) nor a folder of pairs")
    for blur_name, sharp_name in ((blur, "sharp"), ("input", "target")):
        for place in sorted(path for path in folder.rglob(blur_name) if path.is_dir()):
            blurry, sharp_place = picture_files(place), place.with_name(sharp_name)
            if missing := [path.name for path in blurry if not (sharp_place / path.name).is_file()]:
                what = f"{sharp_place} lacks {len(missing)} of {len(blurry)} pictures"
                raise ValueError(f"{what}, the first: {missing[0]}")
            sequence = place.parent.relative_to(folder)
            pairs += [Pair((sequence / path.stem).as_posix(), sharp_place / path.name, path) for path in blurry]
    if not pairs:
        wanted = f"SEQUENCE/{blur}/ beside SEQUENCE/sharp/, or input/ beside target/"
        raise ValueError(f"no pairs below {folder}: expected {wanted}")
    return pairs


def single_sharp(pair: Pair) -> Path:
    """The sharp picture of a pair. Raises: ValueError if it has many."""
    if isinstance(pair.sharp, Path):
        return pair.sharp
    raise ValueError(f"{pair.blurry} has {len(pair.sharp)} sharp frames and no one target: it serves evaluation only")
