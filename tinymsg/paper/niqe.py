"""NIQE (Mittal 2013, "Making a completely blind image quality analyzer"): how far is a picture from natural ones?

36 numbers describe each 96x96 patch; a Gaussian is fitted to the patches of the picture, and its distance to the
Gaussian of many sharp ("pristine") pictures, read from the authors' file, is the score: lower is better, no sharp
original is needed. Values of different pristine models, and of different implementations, are not comparable.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..machine import sha256

PATCH = 96  # pixels; half as many at the second scale
WHERE = "give the authors' modelparameters.mat, of their NIQE release, by --niqe-parameters"


@dataclass(frozen=True)
class Pristine:
    """The Gaussian of patches of sharp pictures: mean (36,), covariance (36, 36), float64, and where it is from."""

    mean: Tensor
    covariance: Tensor
    source: str


def load_pristine(path: str | Path) -> Pristine:
    """Read the authors' .mat, or a .npz with the same entries.

    Raises: ValueError if there is no such file, or other entries are in it.
    """
    from scipy.io import loadmat

    path = Path(path)
    try:
        entries = dict(loadmat(path) if path.suffix == ".mat" else np.load(path))
        entries = {name.replace("_", ""): values for name, values in entries.items()}  # copies have mu_pris_param
        mean = torch.tensor(entries["muprisparam"], dtype=torch.float64).reshape(36)
        covariance = torch.tensor(entries["covprisparam"], dtype=torch.float64).reshape(36, 36)
    except Exception as error:  # what a file of another kind makes the readers raise is not to be listed
        raise ValueError(f"{path} cannot be read as a NIQE model ({error!r}); {WHERE}") from None
    return Pristine(mean, covariance, f"{path.name}, SHA-256 {sha256(path)[:12]}")


def niqe_score(image: Tensor, pristine: Pristine) -> float:
    """Score of one picture (3, h, w) in [0, 1], on the CPU: lower is better; what fills no whole patch is left out.

    Raises: ValueError for less than two patches of 96x96 that are not flat.
    """
    patches = patch_features(image)
    patches = patches[torch.isfinite(patches).all(dim=1)]  # a flat patch has no statistics
    if len(patches) < 2:
        raise ValueError(f"NIQE needs at least two patches of {PATCH}x{PATCH} that are not flat, got {len(patches)}")
    difference = pristine.mean - patches.mean(dim=0)
    pooled = (pristine.covariance + torch.cov(patches.T)) / 2
    return float(torch.sqrt(difference @ torch.linalg.pinv(pooled, hermitian=True) @ difference))  # Mittal 2013, eq. 10


def patch_features(image: Tensor) -> Tensor:
    """(patches, 36) float64, of a picture (3, h, w) in [0, 1]: 18 of each patch, and 18 of it at half the size."""
    h, w = (side // PATCH * PATCH for side in image.shape[1:])
    if min(h, w) == 0:
        raise ValueError(f"NIQE needs pictures of at least {PATCH}x{PATCH}, got {image.shape[2]}x{image.shape[1]}")
    red, green, blue = (image[:, :h, :w].double() * 255).round()
    gray = (0.2989 * red + 0.5870 * green + 0.1140 * blue).round()  # 8 bit, as the authors' code has it
    features = []
    for values, size in ((gray, PATCH), (_halve(gray), PATCH // 2)):
        patches = _normalise(values).unfold(0, size, size).unfold(1, size, size)
        features.append(_features(patches.flatten(0, 1)))
    return torch.cat(features, dim=1)


def _normalise(gray: Tensor) -> Tensor:
    """(h, w), without its local mean and over its local deviation (Mittal 2013, eq. 1)."""
    from scipy.ndimage import gaussian_filter

    values = torch.stack([gray, gray**2]).numpy()
    mean, square = torch.from_numpy(gaussian_filter(values, sigma=(0, 7 / 6, 7 / 6), radius=3, mode="nearest"))  # 7x7
    return (gray - mean) / ((square - mean**2).abs().sqrt() + 1)


def _halve(gray: Tensor) -> Tensor:
    """(h, w) -> (h / 2, w / 2) by an antialiased cubic of a = -1/2, its border mirrored, as MATLAB's imresize."""
    padded = torch.from_numpy(np.pad(gray.numpy(), 8, mode="symmetric"))[None, None]
    return F.interpolate(padded, scale_factor=0.5, mode="bicubic", antialias=True)[0, 0, 4:-4, 4:-4]


def _features(patches: Tensor) -> Tensor:
    """(patches, s, s) -> (patches, 18): the shape and scale of the values, and of four products of neighbours."""
    alpha, left, right = fit_aggd(patches.flatten(1))
    columns = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):  # horizontal, vertical, two diagonals; round the patch's border
        alpha, left, right = fit_aggd((patches * patches.roll(shift, dims=(1, 2))).flatten(1))
        mean = (right - left) * torch.exp(torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha))  # eq. 8
        columns += [alpha, mean, left, right]
    return torch.stack(columns, dim=1)


def fit_aggd(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric generalised Gaussian of each row by moments (Lasmar 2009): (alpha, beta_left, beta_right), each (n,).

    Density ~ exp(-(|v| / beta)^alpha) with a beta for each side. values: (n, m) float64.
    """
    squares = values**2
    left, right = ((squares * side).sum(1).div(side.sum(1)).sqrt() for side in (values < 0, values > 0))
    ratio = left / right
    r_hat = values.abs().mean(dim=1) ** 2 / squares.mean(dim=1)
    r_hat = r_hat * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alphas = torch.arange(0.2, 10.0005, 0.001, dtype=torch.float64)
    # rho(alpha) = Gamma(2/a)^2 / (Gamma(1/a) Gamma(3/a)) rises with alpha: the nearest entry of a table of it
    rho = torch.exp(2 * torch.lgamma(2 / alphas) - torch.lgamma(1 / alphas) - torch.lgamma(3 / alphas))
    alpha = alphas[torch.searchsorted((rho[1:] + rho[:-1]) / 2, r_hat.nan_to_num(0.0))]
    scale = torch.exp((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2)
    return alpha, left * scale, right * scale
