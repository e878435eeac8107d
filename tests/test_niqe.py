import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tinymsg.data import photo, write_image
from tinymsg.paper.niqe import KEYS, Pristine, fit_aggd, fit_pristine, load_pristine, niqe_score, patch_features


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[torch.Tensor]:
    """Three photographs, display values, at least four patches each."""
    return [photo(name).float()[:, :384, :384] / 255 for name in ("astronaut", "coffee", "stereo_motorcycle")]


@pytest.fixture(scope="module")
def pristine(photographs, tmp_path_factory) -> Pristine:
    """A pristine model of those, cut to pieces: every piece has a sharpest patch of its own."""
    folder = tmp_path_factory.mktemp("sharp")
    for i, image in enumerate(photographs):
        for j in range(16):
            top, left = j // 4 * 96, j % 4 * 96
            write_image(folder / f"{i}_{j}.png", image[:, top : top + 96, left : left + 96])
    return fit_pristine(folder)


@pytest.mark.parametrize(
    ("alpha", "left", "right"), [(2.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.7, 0.5, 2.0), (2.5, 3.0, 1.0)]
)
def test_aggd_finds_the_parameters_that_made_the_values(alpha, left, right):
    """|v| / beta is Gamma(1/alpha) ** (1/alpha); the sides weigh as their betas."""
    rng = np.random.default_rng(0)
    n = 400_000
    size = rng.gamma(1 / alpha, 1.0, n) ** (1 / alpha)
    side = rng.random(n) < left / (left + right)
    values = torch.from_numpy(np.where(side, -left * size, right * size))[None]
    found = torch.stack(fit_aggd(values))[:, 0]
    torch.testing.assert_close(found, torch.tensor([alpha, left, right], dtype=torch.float64), rtol=0.03, atol=0)


def test_features_have_their_shape_and_the_sharpest_patch_is_the_sharp_one(photographs):
    image = photographs[0][:, :192, :288].clone()
    image[:, :96, :96] = F.avg_pool2d(image[:, :96, :96], 9, 1, 4)
    features, sharpness = patch_features(torch.cat([image, image[:, :, :50]], dim=2))  # the rest of a patch is left out
    assert features.shape == (6, 36) and features.dtype == torch.float64 and sharpness.shape == (6,)
    before = patch_features(photographs[0][:, :192, :288])[1]
    assert sharpness[0] < before[0] and torch.equal(sharpness[5], before[5])  # the opposite corner is untouched


def test_the_second_scale_is_the_picture_halved(photographs):
    """A picture of constant gradient has none but constant values: the mirrored border alone differs from a mean of four."""
    from tinymsg.paper.niqe import _half

    gray = photographs[0][0].double() * 255
    ramp = torch.arange(96.0, dtype=torch.float64).expand(96, 96)
    torch.testing.assert_close(_half(ramp)[:, 4:-4], (ramp[::2, ::2] + 0.5)[:48, 4:44], rtol=0, atol=1e-9)
    assert _half(gray).shape == (192, 192)
    torch.testing.assert_close(_half(gray).mean(), gray.mean(), rtol=1e-3, atol=0)


def test_blur_noise_and_flatness_are_less_natural(photographs, pristine):
    generator = torch.Generator().manual_seed(0)
    for image in photographs:
        sharp = niqe_score(image, pristine)
        blurred = niqe_score(F.avg_pool2d(F.pad(image[None], (4,) * 4, mode="reflect"), 9, 1)[0], pristine)
        noisy = niqe_score((image + 0.2 * torch.randn(image.shape, generator=generator)).clamp(0, 1), pristine)
        assert 0 < sharp < min(blurred, noisy)


def test_the_distance_is_that_of_the_two_gaussians(photographs):
    """Against a model that is the picture's own, moved by one known step."""
    features, _ = patch_features(photographs[0])
    step = torch.zeros(36, dtype=torch.float64)
    step[0] = 2.0
    covariance = 2 * torch.eye(36, dtype=torch.float64) - torch.cov(
        features.T
    )  # so that the pooled one is the identity
    assert niqe_score(photographs[0], Pristine(features.mean(dim=0) + step, covariance, "made", True)) == pytest.approx(
        2.0
    )


def test_own_model_round_trip_and_is_marked(pristine, tmp_path):
    pristine.save(tmp_path / "own.npz")
    again = load_pristine(tmp_path / "own.npz")
    assert torch.equal(again.mean, pristine.mean) and torch.equal(again.covariance, pristine.covariance)
    assert again.fitted_here and again.source == pristine.source and "of 48 pictures of sharp" in again.source


@pytest.mark.parametrize("keys", KEYS, ids=lambda keys: keys[0])
@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_files_of_others(keys, suffix, tmp_path):
    """The authors' modelparameters.mat holds a row vector; copies of it in other packages have other names."""
    path = tmp_path / f"modelparameters{suffix}"
    values = dict(zip(keys, (np.arange(36.0)[None], np.eye(36)), strict=True))
    if suffix == ".mat":
        from scipy.io import savemat

        savemat(path, values)
    else:
        np.savez(path, **values)
    found = load_pristine(path)
    assert found.mean.tolist() == list(range(36)) and torch.equal(found.covariance, torch.eye(36, dtype=torch.float64))
    assert not found.fitted_here and path.name in found.source and "SHA-256" in found.source


def test_mistakes_are_one_sentence(tmp_path, pristine):
    with pytest.raises(FileNotFoundError, match="--niqe-parameters"):
        load_pristine(tmp_path / "missing.mat")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.mat").write_text("no matrix")
    np.savez(tmp_path / "other.npz", mean=np.zeros(35), covariance=np.eye(36))
    for name in ("text.npz", "text.mat"):
        with pytest.raises(ValueError, match="neither a .mat nor a .npz"):
            load_pristine(tmp_path / name)
    with pytest.raises(ValueError, match="mu_prisparam/cov_prisparam"):
        load_pristine(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="no pictures"):
        fit_pristine(tmp_path)
    (tmp_path / "._a.png").write_bytes(b"left by a Mac: no picture")
    write_image(tmp_path / "a.png", photo("coffee")[:, :96, :96].float() / 255)
    with pytest.raises(ValueError, match="1 sharp patches"):
        fit_pristine(tmp_path)
    with pytest.raises(ValueError, match="at least 96x96, got 50x200"):
        niqe_score(torch.rand(3, 200, 50), pristine)
    with pytest.raises(ValueError, match="two patches of 96x96 that are not flat, got 0"):
        niqe_score(torch.full((3, 96, 288), 0.5), pristine)
    assert math.isfinite(niqe_score(torch.rand(3, 96, 192), pristine))
