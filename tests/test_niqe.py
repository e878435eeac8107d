import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tinymsg.data import photo
from tinymsg.paper.niqe import (
    Pristine,
    _features,
    _halve,
    _normalise,
    fit_aggd,
    load_pristine,
    niqe_score,
    patch_features,
)


@pytest.fixture(scope="module")
def photographs() -> list[torch.Tensor]:
    """Three photographs, display values, at least four patches each."""
    return [photo(name).float()[:, :384, :384] / 255 for name in ("astronaut", "coffee", "stereo_motorcycle")]


@pytest.fixture(scope="module")
def pristine(photographs) -> Pristine:
    """The Gaussian of all patches of those."""
    features = torch.cat([patch_features(image) for image in photographs])
    features = features[torch.isfinite(features).all(dim=1)]
    return Pristine(features.mean(dim=0), torch.cov(features.T), "made")


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


@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_of_neighbours_products_tells_how_they_go_together(sign):
    noise = torch.randn(1, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = noise + sign * noise.roll(1, dims=2)  # each value shares half with the next: products of mean 1 or -1
    features = _features(pairs)[0]
    assert float(features[3]) == pytest.approx(sign, rel=0.3) and abs(float(features[7])) < 0.2


def test_values_are_normalised_by_their_surroundings(photographs):
    gray = (photographs[0][0].double() * 255).round()
    at = torch.arange(-3.0, 4.0, dtype=torch.float64)
    window = torch.outer(*2 * [torch.softmax(-(at**2) / (2 * (7 / 6) ** 2), dim=0)])
    piece = gray[17:24, 37:44]
    mean = (window * piece).sum()
    deviation = (window * (piece - mean) ** 2).sum().sqrt()
    assert float(_normalise(gray)[20, 40]) == pytest.approx(float((gray[20, 40] - mean) / (deviation + 1)))


def test_features_are_of_whole_patches(photographs):
    image = photographs[0][:, :192, :288]
    features = patch_features(image)
    assert features.shape == (6, 36) and features.dtype == torch.float64
    more = torch.cat([image, image[:, :, :50]], dim=2)
    torch.testing.assert_close(patch_features(more), features)  # the rest of a patch is left out


def test_the_second_scale_is_the_picture_halved(photographs):
    """Of a constant gradient a half keeps the gradient, but where the border is mirrored."""
    gray = photographs[0][0].double() * 255
    ramp = torch.arange(96.0, dtype=torch.float64).expand(96, 96)
    torch.testing.assert_close(_halve(ramp)[:, 4:-4], (ramp[::2, ::2] + 0.5)[:48, 4:44], rtol=0, atol=1e-9)
    assert _halve(gray).shape == (192, 192)
    torch.testing.assert_close(_halve(gray).mean(), gray.mean(), rtol=1e-3, atol=0)


def test_blur_and_noise_are_less_natural(photographs, pristine):
    generator = torch.Generator().manual_seed(0)
    for image in photographs:
        sharp = niqe_score(image, pristine)
        blurred = niqe_score(F.avg_pool2d(F.pad(image[None], (4,) * 4, mode="reflect"), 9, 1)[0], pristine)
        noisy = niqe_score((image + 0.2 * torch.randn(image.shape, generator=generator)).clamp(0, 1), pristine)
        assert 0 < sharp < min(blurred, noisy)


def test_the_distance_is_that_of_the_two_gaussians(photographs):
    """Against a model that is the picture's own, moved by one known step."""
    features = patch_features(photographs[0])
    step = torch.zeros(36, dtype=torch.float64)
    step[0] = 2.0
    covariance = 2 * torch.eye(36, dtype=torch.float64) - torch.cov(features.T)  # the pooled one is the identity
    moved = Pristine(features.mean(dim=0) + step, covariance, "made")
    assert niqe_score(photographs[0], moved) == pytest.approx(2.0)


@pytest.mark.parametrize("keys", [("mu_prisparam", "cov_prisparam"), ("mu_pris_param", "cov_pris_param")])
@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_files_of_others(keys, suffix, tmp_path):
    """The authors' modelparameters.mat holds a row vector; copies of it in other packages have other names."""
    from scipy.io import savemat

    path = tmp_path / f"modelparameters{suffix}"
    values = dict(zip(keys, (np.arange(36.0)[None], np.eye(36)), strict=True))
    if suffix == ".mat":
        savemat(path, values)
    else:
        np.savez(path, **values)
    found = load_pristine(path)
    assert found.mean.tolist() == list(range(36)) and torch.equal(found.covariance, torch.eye(36, dtype=torch.float64))
    assert path.name in found.source


def test_mistakes_are_one_sentence(tmp_path, pristine):
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.mat").write_text("no matrix")
    np.savez(tmp_path / "other.npz", mu_prisparam=np.zeros(35), cov_prisparam=np.eye(36))
    for name in ("missing.mat", "text.npz", "text.mat", "other.npz"):
        with pytest.raises(ValueError, match=name):
            load_pristine(tmp_path / name)
    with pytest.raises(ValueError, match="50x200"):
        niqe_score(torch.rand(3, 200, 50), pristine)
    with pytest.raises(ValueError, match="flat"):
        niqe_score(torch.full((3, 96, 288), 0.5), pristine)
    assert math.isfinite(niqe_score(torch.rand(3, 96, 192), pristine))
