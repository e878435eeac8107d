"""FID and KID: distances between whole sets of pictures, by torch-fidelity."""

import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data import read_image
from ..evaluate import MetricUnavailable, exact

SET_METRICS = ("fid", "kid")  # what `set_distances` gives
EXTRACTOR = "inception-v3-compat"  # the network of Heusel 2017, with its weights and its resizing to 299x299


class _Pictures(Dataset):  # uint8 (3, h, w) each
    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return (read_image(self.paths[index]) * 255).round().to(torch.uint8)


@exact
def set_distances(estimates: list[Path], truth: list[Path], device: torch.device) -> dict[str, float]:
    """FID (Heusel 2017) and 1000 x KID (Binkowski 2018) of two sets of whole pictures, in one pass.

    Raises: MetricUnavailable, with the reason; ValueError for fewer than two pictures.
    """
    try:
        from torch_fidelity import calculate_metrics
    except ImportError as error:
        raise MetricUnavailable(f"FID and KID need torch-fidelity, of the extra `full`: {error}") from None
    smaller = min(len(estimates), len(truth))
    if smaller < 2:
        raise ValueError(f"FID and KID need two pictures on each side, got {len(estimates)} and {len(truth)}")
    with warnings.catch_warnings(), torch.accelerator.device_index(device.index):
        warnings.simplefilter("ignore")  # the package speaks of its own internals
        try:
            found = calculate_metrics(
                input1=_Pictures(estimates),
                input2=_Pictures(truth),
                fid=True,
                kid=True,
                verbose=False,
                kid_subset_size=min(1000, smaller),
                kid_subsets=100 if smaller > 1000 else 1,
                feature_extractor=EXTRACTOR,
                cuda=device.type == "cuda",  # the one kind of accelerator that it knows
                batch_size=1,  # pictures differ in size
                save_cpu_ram=True,
            )
        except OSError as error:  # urllib's errors are OSErrors
            raise MetricUnavailable(f"FID and KID need Inception's weights, a download at first use: {error}") from None
    return {"fid": found["frechet_inception_distance"], "kid": 1000 * found["kernel_inception_distance_mean"]}
