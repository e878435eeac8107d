"""Pairs from a folder of one's own, told by the folders' names."""

from pathlib import Path

import torch
from torch import Tensor

from ..data import ImageError, picture_files, read_image, to_model
from ..rng import Draws


class PairedImages:
    """Real pairs from a folder. Layouts, tried in this order; files are matched by name:

        GoPro:  SEQUENCE/blur/NAME + SEQUENCE/sharp/NAME   (`blur` chooses blur or blur_gamma)
        flat:   blur/NAME + sharp/NAME, or input/NAME + target/NAME

    Args:
        folder: e.g. data/GOPRO_Large/train.
        blur: name of the folders with blurry pictures, in the GoPro layout.
        seed: of the crops.
    Raises: ValueError if no pairs are found, or a blurry picture has no sharp one.
    """

    def __init__(self, folder: str | Path, blur: str = "blur", seed: int = 0, device: torch.device | str = "cpu"):
        self.folder, self.seed, self.device = Path(folder), seed, torch.device(device)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is not a folder; see data_scripts/ for how to get the data")
        self.paths: list[tuple[Path, Path]] = []
        for blur_name, sharp_name in ((blur, "sharp"), ("input", "target")):
            for blur_folder in sorted(p for p in self.folder.rglob(blur_name) if p.is_dir()):
                self.paths += self._match(blur_folder, blur_folder.with_name(sharp_name))
        if not self.paths:
            raise ValueError(
                f"no pairs below {folder}: expected SEQUENCE/{blur}/ beside SEQUENCE/sharp/, or input/ beside target/"
            )
        self.name = f"{len(self.paths)} pairs of {self.folder.name} ({blur})"

    @staticmethod
    def _match(blur_folder: Path, sharp_folder: Path) -> list[tuple[Path, Path]]:
        blurry = picture_files(blur_folder)
        missing = [p.name for p in blurry if not (sharp_folder / p.name).is_file()]
        if missing:
            raise ValueError(f"{sharp_folder} lacks {len(missing)} of {len(blurry)} pictures, the first: {missing[0]}")
        return [(sharp_folder / p.name, p) for p in blurry]

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> tuple[Tensor, Tensor]:
        """Whole pair number i: (y0, x), both (1, 3, h, w) in [-1, 1]."""
        sharp, blurry = (read_image(path) for path in self.paths[i])
        if sharp.shape != blurry.shape:
            raise ImageError(
                f"{self.paths[i][1]}: sizes of the pair differ, {tuple(sharp.shape)} and {tuple(blurry.shape)}"
            )
        return to_model(sharp)[None].to(self.device), to_model(blurry)[None].to(self.device)

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), both (n, 3, size, size): picture, place and mirroring drawn from (seed, index)."""
        draws = Draws(self.seed, index.cpu())
        which, place, flip = draws.integers(len(self)).tolist(), draws.uniform(2).tolist(), draws.integers(2).tolist()
        cut = []
        for i, (top, left), mirrored in zip(which, place, flip, strict=True):
            pair = torch.cat(self.image(i))
            h, w = pair.shape[-2:]
            if min(h, w) < size:
                raise ImageError(f"{self.paths[i][1]}: {h}x{w} is smaller than the crop of {size}")
            top, left = int(top * (h - size + 1)), int(left * (w - size + 1))
            pair = pair[..., top : top + size, left : left + size]
            cut.append(pair.flip(-1) if mirrored else pair)
        y0, x = torch.stack(cut, dim=1)
        return y0, x
