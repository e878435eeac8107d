import sys

import numpy as np
import pytest
import torch

from tinymsg.data import photo
from tinymsg.evaluate import MetricUnavailable, ssim
from tinymsg.paper import align
from tinymsg.paper.align import (
    IDENTICAL,
    PROTOCOLS,
    best_shift,
    kohler_scores,
    masked_ssim,
    match_intensity,
    plain_scores,
    realblur_scores,
    register_homography,
    shifted_scores,
)


@pytest.fixture(scope="module")
def wide() -> torch.Tensor:
    return photo("coffee").float()[:, :260, :360] / 255


@pytest.fixture(scope="module")
def truth(wide) -> torch.Tensor:
    return wide[:, 30:222, 40:296]


def seen_through(wide: torch.Tensor, homography: list[list[float]]) -> torch.Tensor:
    """What a second camera sees, (192, 256) pixels; `homography` takes the truth's places to the scene's."""
    import cv2

    shift = np.array([[1, 0, 40], [0, 1, 30], [0, 0, 1.0]])
    pixels = np.ascontiguousarray(wide.permute(1, 2, 0).numpy())
    seen = cv2.warpPerspective(
        pixels, shift @ np.array(homography), (256, 192), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    )
    return torch.from_numpy(seen).permute(2, 0, 1).clamp(0, 1)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_identity_stays_identity(name, truth):
    scores = PROTOCOLS[name](truth, [truth])
    assert list(scores) == ["psnr", "ssim"] and plain_scores(truth, [truth])["psnr"] == IDENTICAL
    assert scores["psnr"] > 60 and scores["ssim"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("gain", [1.0, 0.8])
def test_realblur_gives_a_warped_and_gained_picture_its_score_back(wide, truth, gain):
    warp = [[1.004, 0.001, 0.8], [-0.001, 0.998, -0.6], [4e-6, -3e-6, 1]]
    noise = 0.03 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    seen = gain * seen_through(wide, warp)
    ideal = plain_scores(truth + noise, [truth])
    found = realblur_scores(gain * (seen / gain + noise), [truth])
    unaligned = plain_scores(seen + gain * noise, [truth])
    assert found["psnr"] == pytest.approx(ideal["psnr"], abs=1.0)  # sampling twice smooths the noise a little
    assert found["ssim"] == pytest.approx(ideal["ssim"], abs=0.06)
    assert unaligned["psnr"] < ideal["psnr"] - 4


def test_realblur_matches_intensity_before_it_aligns(wide, truth):
    """As the authors' script does: a large shift also costs a wrong gain."""
    seen = seen_through(wide, [[1, 0, 12.0], [0, 1, 0], [0, 0, 1]])
    gain = float(match_intensity(seen, truth).mean() / seen.mean())
    covered = truth[:, :, :-12] if best_shift(seen, truth, 12)[1] < 0 else truth[:, :, 12:]
    assert gain < 0.97
    expected = -10 * np.log10((1 - gain) ** 2 * float((covered**2).mean()))
    assert realblur_scores(seen, [truth])["psnr"] == pytest.approx(expected, abs=0.2)


def test_realblur_scores_only_where_both_pictures_are(wide, truth):
    """Shifted by 12 pixels, the covered part is 12 columns less, and what is beyond it does not count."""
    seen = seen_through(wide, [[1, 0, 12.0], [0, 1, 0], [0, 0, 1]])
    moved, mask = register_homography(seen, truth)
    assert mask.shape == (1, 192, 256) and float((1 - mask).sum()) == pytest.approx(12 * 192, rel=0.05)
    assert float(((moved - truth) ** 2 * mask).mean()) < 1e-4
    whole = float(ssim(truth.flip(2)[None], truth[None]))
    assert masked_ssim(truth.flip(2), truth, torch.ones_like(mask)) == pytest.approx(whole, abs=5e-3)


def test_what_the_homography_leaves_uncovered_does_not_count(truth, monkeypatch):
    left = torch.zeros_like(truth[:1])
    left[..., :100] = 1
    monkeypatch.setattr(align, "register_homography", lambda moving, fixed: (fixed + 0.1 + 5 * (1 - left), left))
    assert realblur_scores(truth, [truth])["psnr"] == pytest.approx(20, abs=1e-3)


def test_match_intensity_is_least_squares(truth):
    torch.testing.assert_close(match_intensity(0.4 * truth, truth), truth)
    dark = torch.zeros_like(truth)
    assert torch.equal(match_intensity(dark, truth), dark)


def test_realblur_says_what_is_missing(truth, monkeypatch):
    with pytest.raises(ValueError, match="no alignment was found|less than a tenth"):
        realblur_scores(torch.zeros_like(truth), [truth])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MetricUnavailable, match="opencv-python-headless"):
        realblur_scores(truth, [truth])


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -5), (-8, 8), (10, -10)])
def test_whole_pixel_shifts_are_found(wide, truth, down, right):
    moved = wide[:, 30 - down : 222 - down, 40 - right : 296 - right]
    assert best_shift(moved, truth, 10) == (down, right)
    assert shifted_scores(moved, [truth]) == {"psnr": IDENTICAL, "ssim": pytest.approx(1)}
    if down:
        assert plain_scores(moved, [truth])["psnr"] < 25
        assert shifted_scores(moved, [truth], reach=2)["psnr"] < 30  # out of reach


def test_best_shift_is_the_least_sum_of_squares(truth):
    """Against every shift tried one by one, on pictures that are not each other's shift."""
    a = torch.rand(3, 24, 28, generator=torch.Generator().manual_seed(0))
    b = torch.rand(3, 24, 28, generator=torch.Generator().manual_seed(1))
    core = b[:, 4:-4, 4:-4]
    tried = {
        (y, x): float(((a[:, 4 + y : 20 + y, 4 + x : 24 + x] - core) ** 2).sum())
        for y in range(-4, 5)
        for x in range(-4, 5)
    }
    assert best_shift(a, b, 4) == min(tried, key=tried.get)


def test_small_pictures_have_a_smaller_reach():
    small = torch.rand(3, 14, 40, generator=torch.Generator().manual_seed(0))
    assert shifted_scores(small, [small])["psnr"] == IDENTICAL
    with pytest.raises(ValueError, match="at least 11x11"):
        shifted_scores(small[:, :8], [small[:, :8]])


def test_kohler_is_the_best_frame_after_intensity_and_shift(wide, truth):
    frames = [wide[:, 30 + i : 222 + i, 40 - 2 * i : 296 - 2 * i] for i in range(3)]
    frames[2] = torch.roll(frames[2], 60, dims=1)  # a frame that fits nowhere does no harm
    noise = 0.02 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    estimate = 0.9 * (frames[1] + noise)
    scores = kohler_scores(estimate, frames, reach=4)
    assert scores["psnr"] == pytest.approx(-20 * np.log10(0.02), abs=0.3)
    assert scores["psnr"] >= kohler_scores(estimate, frames[2:], reach=4)["psnr"] + 10
