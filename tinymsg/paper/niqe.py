"""NIQE (Mittal 2013, "Making a completely blind image quality analyzer"): how far is a picture from natural ones?

36 numbers describe each 96x96 patch; a Gaussian is fitted to the patches of the picture, and its distance to the
Gaussian of many sharp ("pristine") pictures is the score: lower is better, no sharp original is needed. The pristine
Gaussian is data: no package that is looked after brings the authors' own, so it is read from their file, or fitted.
Values of different pristine models, and of different implementations, are not comparable.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import IMAGE_SUFFIXES, picture_files, read_image
from ..machine import sha256

PATCH = 96  # pixels; half as many at the second scale
SHARPEST = (
    0.75  # share of the picture's sharpest patch, below which a patch is no model of sharpness (Mittal 2013, Sec. II.C)
)
# Names of (mean, covariance): the authors' modelparameters.mat, then the copies that went into other packages, then ours
KEYS = (("mu_prisparam", "cov_prisparam"), ("mu_pris_param", "cov_pris_param"), ("mean", "covariance"))
WHERE = (
    "give the authors' modelparameters.mat (from their NIQE release) by --niqe-parameters, or a folder of sharp pictures "
    "to fit a model of your own to, whose values cannot be compared with published ones"
)


@dataclass(frozen=True)
class Pristine:
    """The Gaussian of patches of sharp pictures: mean (36,), covariance (36, 36), float64, and where it is from."""

    mean: Tensor
    covariance: Tensor
    source: str
    fitted_here: bool  # by fit_pristine: not comparable with published values

    def save(self, path: str | Path) -> None:
        """Write a .npz that `load_pristine` reads."""
        import numpy as np

        with open(path, "wb") as file:
            np.savez(file, mean=self.mean.numpy(), covariance=self.covariance.numpy(), fitted_on=self.source)


def load_pristine(path: str | Path) -> Pristine:
    """Read a pristine model: the authors' .mat, or a .npz.

    Raises: FileNotFoundError; ValueError if it holds no mean of 36 and covariance of 36x36 numbers under a known name.
    """
    import numpy as np

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no NIQE parameters at {path}; {WHERE}")
    try:
        if path.suffix == ".mat":
            from scipy.io import loadmat

            values = loadmat(path)
        else:
            with np.load(path) as archive:
                values = dict(archive)
    except Exception as error:  # what a file that is none makes the two readers raise is not to be listed
        raise ValueError(f"{path} is neither a .mat nor a .npz file that can be read: {error}") from None
    for mean, covariance in KEYS:
        if mean in values and covariance in values:
            mu, cov = (torch.from_numpy(np.asarray(values[k], dtype=np.float64).squeeze()) for k in (mean, covariance))
            if mu.shape == (36,) and cov.shape == (36, 36):
                fitted = "fitted_on" in values
                source = str(values["fitted_on"]) if fitted else f"{path.name}, SHA-256 {sha256(path)[:12]}"
                return Pristine(mu, cov, source, fitted)
    wanted = " or ".join("/".join(pair) for pair in KEYS)
    raise ValueError(f"{path} holds no NIQE model: wanted {wanted} of 36 and 36x36 numbers")


def fit_pristine(folder: str | Path) -> Pristine:
    """The pristine model of all pictures below a folder: from the patches at least SHARPEST as sharp as the picture's sharpest.

    Raises: ValueError if there are no pictures, or too few patches (37 at least, and many more to be of use).
    """
    paths = picture_files(folder, recursive=True)
    if not paths:
        raise ValueError(f"no pictures ({', '.join(IMAGE_SUFFIXES)}) below {folder}")
    kept = []
    for path in paths:
        image = read_image(path)
        if min(image.shape[1:]) >= PATCH:
            features, sharpness = patch_features(image)
            features = features[sharpness > SHARPEST * sharpness.max()]
            kept.append(features[torch.isfinite(features).all(dim=1)])
    patches = torch.cat(kept) if kept else torch.zeros(0, 36)
    if len(patches) < 37:
        raise ValueError(
            f"{folder} gives {len(patches)} sharp patches of {PATCH}x{PATCH}, and 37 are needed: give more pictures"
        )
    source = f"own model of {len(patches)} patches of {len(paths)} pictures of {Path(folder).name}"
    return Pristine(patches.mean(dim=0), torch.cov(patches.T), source, fitted_here=True)


def niqe_score(image: Tensor, pristine: Pristine) -> float:
    """Score of one picture (3, h, w) in [0, 1]: lower is better; what fills no whole patch is left out.

    Raises: ValueError for less than two patches of 96x96 that are not flat.
    """
    patches, _ = patch_features(image)
    patches = patches[torch.isfinite(patches).all(dim=1)]  # a flat patch has no statistics
    if len(patches) < 2:
        raise ValueError(f"NIQE needs at least two patches of {PATCH}x{PATCH} that are not flat, got {len(patches)}")
    difference = pristine.mean - patches.mean(dim=0)
    pooled = (pristine.covariance + torch.cov(patches.T)) / 2
    return float(torch.sqrt(difference @ torch.linalg.pinv(pooled, hermitian=True) @ difference))  # Mittal 2013, eq. 10


def patch_features(image: Tensor) -> tuple[Tensor, Tensor]:
    """(features (patches, 36), sharpness (patches,)) of a picture (3, h, w) in [0, 1], float64."""
    h, w = (side // PATCH * PATCH for side in image.shape[1:])
    if min(h, w) == 0:
        raise ValueError(f"NIQE needs pictures of at least {PATCH}x{PATCH}, got {image.shape[2]}x{image.shape[1]}")
    red, green, blue = (image[:, :h, :w].double() * 255).round()
    gray = (0.2989 * red + 0.5870 * green + 0.1140 * blue).round()  # 8 bit, as the authors' code has it
    features = []
    for size in (PATCH, PATCH // 2):
        normalised, deviation = _mscn(gray)
        patches = _blocks(normalised, size)
        features.append(_features(patches))
        if size == PATCH:
            sharpness = _blocks(deviation, size).mean(dim=(1, 2))
            gray = _half(gray)
    return torch.cat(features, dim=1), sharpness


def _mscn(gray: Tensor) -> tuple[Tensor, Tensor]:
    # Mean-subtracted, contrast-normalised (Mittal 2013, eq. 1), under a 7x7 Gaussian of 7/6 pixels
    t = torch.arange(-3.0, 4.0, dtype=torch.float64)
    window = torch.exp(-(t**2) / (2 * (7 / 6) ** 2))
    window = window / window.sum()

    def smooth(values: Tensor) -> Tensor:
        padded = F.pad(values[None, None], (3, 3, 3, 3), mode="replicate")
        return F.conv2d(F.conv2d(padded, window[None, None, :, None]), window[None, None, None, :])[0, 0]

    mean = smooth(gray)
    deviation = torch.sqrt((smooth(gray * gray) - mean * mean).abs())
    return (gray - mean) / (deviation + 1), deviation


def _half(gray: Tensor) -> Tensor:
    # Half the size by an antialiased cubic of a = -1/2; mirrored border, as MATLAB's imresize
    h, w = gray.shape
    rows, columns = (
        torch.cat([torch.arange(7, -1, -1), torch.arange(n), torch.arange(n - 1, n - 9, -1)]) for n in (h, w)
    )
    padded = gray[rows][:, columns]
    halved = F.interpolate(
        padded[None, None], size=(h // 2 + 8, w // 2 + 8), mode="bicubic", antialias=True, align_corners=False
    )
    return halved[0, 0, 4:-4, 4:-4]


def _blocks(values: Tensor, size: int) -> Tensor:
    h, w = values.shape  # -> (blocks, size, size)
    return values.reshape(h // size, size, w // size, size).transpose(1, 2).reshape(-1, size, size)


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
    below, above = (
        (values * values * side).sum(1) / side.sum(1) for side in ((values < 0).double(), (values > 0).double())
    )
    left, right = below.sqrt(), above.sqrt()
    ratio = left / right
    r_hat = values.abs().mean(dim=1) ** 2 / (values**2).mean(dim=1)
    r_hat = r_hat * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alphas = torch.arange(0.2, 10.0005, 0.001, dtype=torch.float64)
    # rho(alpha) = Gamma(2/a)^2 / (Gamma(1/a) Gamma(3/a)) rises with alpha: the nearest entry of a table of it
    rho = torch.exp(2 * torch.lgamma(2 / alphas) - torch.lgamma(1 / alphas) - torch.lgamma(3 / alphas))
    high = torch.searchsorted(rho, r_hat.nan_to_num(0.0)).clamp(1, len(rho) - 1)
    nearest = torch.where((rho[high] - r_hat).abs() < (rho[high - 1] - r_hat).abs(), high, high - 1)
    alpha = alphas[nearest]
    scale = torch.exp((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2)
    return alpha, left * scale, right * scale
