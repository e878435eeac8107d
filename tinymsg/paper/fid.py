"""Metrics of whole sets of pictures: (folder or list of estimates, folder or list of truths) -> value."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data import picture_files, read_image
from ..evaluate import MetricUnavailable

SET_METRICS = ("fid", "kid")  # what `set_distances` gives
EXTRACTOR = (
    "inception-v3-compat"  # torch-fidelity's name of the network of Heusel 2017, with their weights and resizing
)


class _Pieces(Dataset):
    """uint8 (3, h, w): whole pictures, or all whole size x size pieces of each, without overlap."""

    def __init__(self, pictures: list[Path], size: int | None):
        self.pictures, self.size = pictures, size
        self.places = [(i, 0, 0) for i in range(len(pictures))]
        if size is not None:
            self.places = [
                (i, top, left)
                for i, path in enumerate(pictures)
                for h, w in [_height_width(path)]
                for top in range(0, h - size + 1, size)
                for left in range(0, w - size + 1, size)
            ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        i, top, left = self.places[index]
        image = (read_image(self.pictures[i]) * 255).round().to(torch.uint8)
        return image if self.size is None else image[:, top : top + self.size, left : left + self.size].contiguous()


def _pngs(folder: str | Path) -> list[Path]:
    return [path for path in picture_files(folder, recursive=True) if path.suffix == ".png"]


def _height_width(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width


def set_distances(
    estimates: str | Path | list[Path],
    truth: str | Path | list[Path],
    device: torch.device | str = "cpu",
    pieces: int | None = None,
    weights: str | Path | None = None,
    remember: str | Path | None = None,
) -> dict[str, float]:
    """FID (Heusel 2017) and 1000 x KID (Binkowski 2018) of two sets of pictures, by torch-fidelity, in one pass.

    Args:
        estimates, truth: folders (all PNGs below them) or lists of pictures.
        pieces: None takes each picture whole (the network sees it at 299x299); else its pieces of that many pixels.
        weights: a file with the Inception weights, instead of their download at first use.
        remember: a folder for the truth's features, so that many estimates cost one pass over it.
    Raises: MetricUnavailable, with the reason: weights not to be had, torch-fidelity not there; ValueError for fewer
        than two pictures.
    """
    import warnings

    try:
        from torch_fidelity import calculate_metrics
    except ImportError as error:
        raise MetricUnavailable(f"FID and KID need torch-fidelity, of the extra `full`: {error}") from None
    lists = [_pngs(s) if isinstance(s, str | Path) else list(s) for s in (estimates, truth)]
    first, second = (_Pieces(pictures, pieces) for pictures in lists)
    smaller = min(len(first), len(second))
    if smaller < 2:
        raise ValueError(f"FID and KID need two pictures or pieces on each side, got {len(first)} and {len(second)}")
    stamps = [f"{path.absolute()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in lists[1]]
    name = hashlib.sha256(f"{EXTRACTOR} {pieces} {weights} {stamps}".encode()).hexdigest()[:24] if remember else None
    device = torch.device(device)
    with warnings.catch_warnings(), torch.cuda.device(device if device.type == "cuda" else -1):
        warnings.simplefilter("ignore")  # the package speaks of its own internals
        try:
            found = calculate_metrics(
                input1=first,
                input2=second,
                fid=True,
                kid=True,
                verbose=False,
                kid_subset_size=min(1000, smaller),
                kid_subsets=100 if smaller > 1000 else 1,
                feature_extractor=EXTRACTOR,
                feature_extractor_weights_path=weights and str(weights),
                cuda=device.type == "cuda",
                batch_size=1 if pieces is None else 32,
                save_cpu_ram=True,
                input2_cache_name=name,
                cache_root=remember and str(remember),
                cache=bool(remember),
            )
        except OSError as error:  # urllib's errors are OSErrors
            raise MetricUnavailable(f"FID and KID need Inception's weights, a download at first use: {error}") from None
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            raise MetricUnavailable(f"{weights} does not hold torch-fidelity's Inception weights") from None
    return {"fid": found["frechet_inception_distance"], "kid": 1000 * found["kernel_inception_distance_mean"]}
