"""Full-reference scores where picture and truth do not lie on each other, or there are many truths.

Each protocol takes (estimate, truths), an estimate (3, h, w) and a list of sharp pictures of that size, display values
in [0, 1], and returns {"psnr": dB, "ssim": value}. Which data set is scored by which: PROTOCOLS, and `protocol.PROTOCOL_OF`.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..evaluate import IDENTICAL, MetricUnavailable, psnr, ssim

Scores = dict[str, float]
ECC_ITERATIONS, ECC_EPSILON, ECC_BLUR = 100, 0.0, 5  # RealBlur's evaluation script (Rim 2020)


def plain_scores(estimate: Tensor, truths: list[Tensor]) -> Scores:
    """Pixel on pixel."""
    (truth,) = truths
    _same_size(estimate, truth)
    return _scores(float(psnr(estimate[None], truth[None])), float(ssim(estimate[None], truth[None])))


def realblur_scores(estimate: Tensor, truths: list[Tensor]) -> Scores:
    """RealBlur's own protocol (Rim 2020): intensity, then a homography, then scores where both pictures are.

    Without it, the shift between the two cameras counts as error: the same restoration scores more than 1 dB less. The
    intensity is matched before the pictures are aligned, as in the authors' script.
    Raises: MetricUnavailable without OpenCV; ValueError where no homography can be found.
    """
    (truth,) = truths
    _same_size(estimate, truth)
    moved, mask = register_homography(match_intensity(estimate, truth), truth)
    covered = float(mask.sum())
    if covered < 0.1 * mask.numel():
        raise ValueError("the homography found leaves less than a tenth of the picture")
    squares = ((moved - truth) ** 2 * mask).double().sum()
    masked_psnr = -10 * math.log10(float(squares) / (3 * covered)) if squares > 0 else math.inf
    return _scores(masked_psnr, masked_ssim(moved * mask, truth * mask, mask))


def shifted_scores(estimate: Tensor, truths: list[Tensor], reach: int = 10) -> Scores:
    """The best whole-pixel shift of up to `reach` pixels, without the border that it can leave uncovered.

    For kernels that are not centred (Levin 2009), which move the whole restored picture.
    """
    (truth,) = truths
    return _shifted(estimate, truth, reach)


def kohler_scores(estimate: Tensor, truths: list[Tensor], reach: int = 20) -> Scores:
    """Best of all sharp frames of the exposure, each after intensity and whole-pixel shift (after Köhler 2012, Sec. 4).

    The authors' script registers to a fraction of a pixel: whole pixels are our simplification, and score no higher.
    """
    for truth in truths:
        _same_size(estimate, truth)
    rows = [_shifted(match_intensity(estimate, truth), truth, reach) for truth in truths]
    return {name: max(row[name] for row in rows) for name in ("psnr", "ssim")}


PROTOCOLS: dict[str, Callable[[Tensor, list[Tensor]], Scores]] = {
    "plain": plain_scores,
    "realblur": realblur_scores,
    "shift": shifted_scores,
    "kohler": kohler_scores,
}


def match_intensity(estimate: Tensor, truth: Tensor) -> Tensor:
    """The estimate times the one factor that brings it nearest to the truth (least squares)."""
    power = float((estimate.double() ** 2).sum())
    return estimate * (float((estimate.double() * truth).sum()) / power) if power > 0 else estimate


def register_homography(estimate: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(estimate moved onto the truth (3, h, w), mask (1, h, w) of where it covers it), by ECC (Evangelidis 2008).

    Raises: MetricUnavailable without OpenCV; ValueError where it does not converge.
    """
    try:
        import cv2
    except ImportError as error:
        raise MetricUnavailable(
            f"RealBlur's alignment needs opencv-python-headless, of the extra `full`: {error}"
        ) from None

    h, w = truth.shape[1:]
    moving, fixed = (
        np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy(), dtype=np.float32) for image in (estimate, truth)
    )
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ECC_ITERATIONS, ECC_EPSILON)
    grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (fixed, moving)]
    try:
        _, warp = cv2.findTransformECC(*grays, np.eye(3, dtype=np.float32), cv2.MOTION_HOMOGRAPHY, stop, None, ECC_BLUR)
    except cv2.error as error:
        raise ValueError(f"no alignment was found ({str(error).strip().splitlines()[-1]})") from None
    back = cv2.WARP_INVERSE_MAP
    moved = cv2.warpPerspective(moving, warp, (w, h), flags=cv2.INTER_CUBIC | back, borderMode=cv2.BORDER_REFLECT)
    mask = cv2.warpPerspective(
        np.ones((h, w), np.float32),
        warp,
        (w, h),
        flags=cv2.INTER_NEAREST | back,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return torch.from_numpy(moved).permute(2, 0, 1).to(truth.device), torch.from_numpy(mask)[None].to(truth.device)


def masked_ssim(estimate: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean of the SSIM map (Wang 2004, Gaussian window of 11) where mask (1, h, w) is 1, without the window's border."""
    from skimage.metrics import structural_similarity

    pictures = [image.permute(1, 2, 0).cpu().numpy() for image in (truth, estimate)]
    _, similarity = structural_similarity(
        *pictures, channel_axis=2, gaussian_weights=True, use_sample_covariance=False, data_range=1.0, full=True
    )
    inside = mask[0, 5:-5, 5:-5].cpu().numpy()
    return float((similarity[5:-5, 5:-5].mean(axis=2) * inside).sum() / inside.sum())


def best_shift(estimate: Tensor, truth: Tensor, reach: int) -> tuple[int, int]:
    """(down, right) of at most `reach` pixels: estimate[y + down, x + right] is nearest to truth[y, x] in least squares.

    Over the truth without a border of `reach`. All shifts at once: the sum of squares by an integral image, the
    products by an FFT.
    """
    h, w = truth.shape[1:]
    core = truth[:, reach : h - reach, reach : w - reach].double()
    moving = estimate.double()
    spectrum = torch.fft.rfft2(moving) * torch.fft.rfft2(core, s=(h, w)).conj()
    products = torch.fft.irfft2(spectrum, s=(h, w)).sum(dim=0)[: 2 * reach + 1, : 2 * reach + 1]
    integral = torch.nn.functional.pad((moving**2).sum(dim=0).cumsum(0).cumsum(1), (1, 0, 1, 0))
    a, b = core.shape[1:]
    squares = (integral[a:, b:] - integral[:-a, b:] - integral[a:, :-b] + integral[:-a, :-b])[
        : 2 * reach + 1, : 2 * reach + 1
    ]
    place = int((squares - 2 * products).argmin())
    return place // (2 * reach + 1) - reach, place % (2 * reach + 1) - reach


def overlap(estimate: Tensor, truth: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Both pictures (c, h, w) where they lie on each other after the best whole-pixel shift, without a border of `reach`.

    reach: of the shift, in pixels; smaller for pictures that would leave less than 11 pixels.
    """
    _same_size(estimate, truth)
    h, w = truth.shape[1:]
    reach = min(reach, (min(h, w) - 11) // 2)  # SSIM needs 11 pixels
    if reach < 0:
        raise ValueError(f"pictures of at least 11x11 are needed, got {w}x{h}")
    down, right = best_shift(estimate, truth, reach)
    moved = estimate[:, reach + down : h - reach + down, reach + right : w - reach + right]
    return moved, truth[:, reach : h - reach, reach : w - reach]


def _shifted(estimate: Tensor, truth: Tensor, reach: int) -> Scores:
    moved, core = overlap(estimate, truth, reach)
    return plain_scores(moved, [core])


def _scores(psnr_value: float, ssim_value: float) -> Scores:
    return {"psnr": min(psnr_value, IDENTICAL), "ssim": ssim_value}


def _same_size(estimate: Tensor, truth: Tensor) -> None:
    if estimate.shape != truth.shape:
        raise ValueError(f"sizes differ: {estimate.shape[2]}x{estimate.shape[1]} and {truth.shape[2]}x{truth.shape[1]}")
