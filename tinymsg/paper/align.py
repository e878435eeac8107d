"""Full-reference scores where picture and truth do not lie on each other, or there are many truths.

Each protocol takes (estimate, truths), a picture (3, h, w) and its sharp ones, of the same size, display values in
[0, 1], and returns {"psnr": dB, "ssim": value}. Which data set is scored by which: `protocol.PROTOCOL_OF`.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..evaluate import IDENTICAL, MetricUnavailable, psnr, ssim

Scores = dict[str, float]


def plain_scores(estimate: Tensor, truths: list[Tensor]) -> Scores:
    """Pixel on pixel."""
    (truth,) = truths
    found = psnr(estimate[None], truth[None]).clamp(max=IDENTICAL)
    return {"psnr": float(found), "ssim": float(ssim(estimate[None], truth[None]))}


def realblur_scores(estimate: Tensor, truths: list[Tensor]) -> Scores:
    """RealBlur's own protocol (Rim 2020): intensity, then a homography, then scores where both pictures are.

    Without it the shift between the two cameras counts as error: more than 1 dB.
    Raises: MetricUnavailable without OpenCV; ValueError where no homography can be found.
    """
    (truth,) = truths
    moved, mask = register_homography(match_intensity(estimate, truth), truth)
    covered = float(mask.sum())
    if covered < 0.1 * mask.numel():
        raise ValueError("the homography found leaves less than a tenth of the picture")
    error = max(float(((moved - truth) ** 2 * mask).sum()) / (3 * covered), 10 ** (-IDENTICAL / 10))
    return {"psnr": -10 * math.log10(error), "ssim": masked_ssim(moved * mask, truth * mask, mask)}


def shifted_scores(estimate: Tensor, truths: list[Tensor], reach: int = 10) -> Scores:
    """At the best whole-pixel shift: kernels that are not centred (Levin 2009) move the whole restored picture."""
    (truth,) = truths
    moved, core = overlap(estimate, truth, reach)
    return plain_scores(moved, [core])


def kohler_scores(estimate: Tensor, truths: list[Tensor], reach: int = 20) -> Scores:
    """Best of all sharp frames of the exposure, each after intensity and whole-pixel shift (after Köhler 2012, Sec. 4).

    The authors' script registers to a fraction of a pixel: whole pixels are our simplification, and score no higher.
    """
    rows = [shifted_scores(match_intensity(estimate, truth), [truth], reach) for truth in truths]
    return {name: max(row[name] for row in rows) for name in ("psnr", "ssim")}


PROTOCOLS: dict[str, Callable[[Tensor, list[Tensor]], Scores]] = {
    "plain": plain_scores,
    "realblur": realblur_scores,
    "shift": shifted_scores,
    "kohler": kohler_scores,
}


def match_intensity(estimate: Tensor, truth: Tensor) -> Tensor:
    """The estimate times the one factor that brings it nearest to the truth (least squares)."""
    power = float((estimate**2).mean())
    return estimate * (float((estimate * truth).mean()) / power) if power > 0 else estimate


def register_homography(estimate: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(estimate moved onto the truth (3, h, w), mask (1, h, w) of where it covers it), by ECC (Evangelidis 2008).

    Raises: MetricUnavailable without OpenCV; ValueError where it does not converge.
    """
    try:
        import cv2
    except ImportError as error:
        raise MetricUnavailable(f"RealBlur's alignment needs opencv-python-headless: {error}") from None
    h, w = truth.shape[1:]
    fixed, moving = (np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()) for image in (truth, estimate))
    gray, moving_gray = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (fixed, moving))
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 0.0)  # this, and a blur of 5, as RealBlur's script
    try:
        start, everywhere = np.eye(3, dtype=np.float32), np.ones((h, w), np.uint8)
        _, warp = cv2.findTransformECC(gray, moving_gray, start, cv2.MOTION_HOMOGRAPHY, stop, everywhere, 5)
    except cv2.error as error:
        raise ValueError(f"no alignment was found ({str(error).strip().splitlines()[-1]})") from None
    back = cv2.WARP_INVERSE_MAP
    moved = cv2.warpPerspective(moving, warp, (w, h), flags=cv2.INTER_CUBIC | back, borderMode=cv2.BORDER_REFLECT)
    mask = cv2.warpPerspective(np.ones((h, w), np.float32), warp, (w, h), flags=cv2.INTER_NEAREST | back)
    return torch.from_numpy(moved).permute(2, 0, 1).to(truth.device), torch.from_numpy(mask)[None].to(truth.device)


def masked_ssim(estimate: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean of the SSIM map (Wang 2004, Gaussian window of 11) where mask (1, h, w) is 1, 5 pixels from the border."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    estimate, truth = estimate[None].cpu(), truth[None].cpu()
    _, similarity = structural_similarity_index_measure(estimate, truth, data_range=1.0, return_full_image=True)
    inside = mask[0, 5:-5, 5:-5].cpu()
    return float((similarity[0].mean(dim=0)[5:-5, 5:-5] * inside).sum() / inside.sum())


def best_shift(estimate: Tensor, truth: Tensor, reach: int) -> tuple[int, int]:
    """(down, right) of at most `reach` pixels: estimate[y + down, x + right] is nearest to truth[y, x].

    Least squares over the truth without a border of `reach`, all shifts at once by an FFT in float64.
    """
    h, w = truth.shape[1:]
    moving, core = estimate.cpu().double(), truth[:, reach : h - reach, reach : w - reach].cpu().double()

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(a) * torch.fft.rfft2(b, s=(h, w)).conj()
        return torch.fft.irfft2(spectrum, s=(h, w))[:, : 2 * reach + 1, : 2 * reach + 1]

    distance = (correlate(moving**2, torch.ones_like(core)) - 2 * correlate(moving, core)).sum(dim=0)
    place = int(distance.argmin())
    return place // (2 * reach + 1) - reach, place % (2 * reach + 1) - reach


def overlap(estimate: Tensor, truth: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Both pictures (c, h, w) after the best whole-pixel shift of up to `reach`, without a border of as many pixels.

    Pictures of which that would leave less than 11 pixels have a smaller reach.
    """
    h, w = truth.shape[1:]
    reach = min(reach, (min(h, w) - 11) // 2)  # SSIM needs 11 pixels
    if reach < 0:
        raise ValueError(f"pictures of at least 11x11 are needed, got {w}x{h}")
    down, right = best_shift(estimate, truth, reach)
    moved = estimate[:, reach + down : h - reach + down, reach + right : w - reach + right]
    return moved, truth[:, reach : h - reach, reach : w - reach]
