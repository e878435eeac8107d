"""FID and KID: closed forms, with a stand-in for the network that is a download."""

import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import register_colours

from tinymsg.evaluate import MetricUnavailable
from tinymsg.paper import fid
from tinymsg.paper.fid import SET_METRICS, set_distances


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """In the place of Inception: two features a picture."""
    return register_colours(monkeypatch)


def gaussian_pictures(
    folder: Path, mean, covariance, count=40, seed=0, sizes=((6, 5), (4, 9))
) -> tuple[Path, np.ndarray]:
    """(folder, features): pictures of one colour each, of differing sizes, red and green drawn from a Gaussian."""
    folder.mkdir()
    values = np.random.default_rng(seed).multivariate_normal(mean, covariance, count).clip(0, 255).round()
    for i, (red, green) in enumerate(values):
        Image.new("RGB", sizes[i % len(sizes)], (int(red), int(green), 7)).save(folder / f"{i:03d}.png")
    return folder, values / 16


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Between the Gaussians of two sets of features, by the symmetric root (Heusel 2017, eq. 6)."""
    s, t = np.cov(a.T), np.cov(b.T)
    w, v = np.linalg.eigh(s)
    root = v @ np.diag(np.sqrt(w)) @ v.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ t @ root)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross)


def unbiased_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Of the kernel (x.y / d + 1)^3 (Binkowski 2018, eq. 4), sum by sum."""
    kernel = lambda x, y: (x @ y / len(x) + 1) ** 3
    n, m = len(a), len(b)
    own = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(kernel(x, y) for x in a for y in b) / (n * m)


def test_closed_forms(tmp_path):
    a, features_a = gaussian_pictures(tmp_path / "a", (100, 120), ((400, 120), (120, 300)))
    b, features_b = gaussian_pictures(tmp_path / "b", (140, 90), ((200, -80), (-80, 500)), seed=1)
    same = set_distances(a, a)
    assert same["fid"] == pytest.approx(0, abs=1e-6) and same["kid"] <= 1e-9
    found = set_distances(b, a)
    assert found["fid"] == pytest.approx(frechet(features_a, features_b), rel=1e-6)
    assert found["kid"] == pytest.approx(1000 * unbiased_mmd(features_a, features_b), rel=1e-6)
    assert tuple(found) == SET_METRICS


def test_a_shift_is_its_square(tmp_path):
    a, _ = gaussian_pictures(tmp_path / "a", (100, 120), ((100, 20), (20, 80)))
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in sorted(a.iterdir()):
        with Image.open(path) as image:
            red, green, blue = image.getpixel((0, 0))
        Image.new("RGB", (3, 3), (red + 32, green + 16, blue)).save(moved / path.name)
    assert set_distances(moved, a)["fid"] == pytest.approx(2**2 + 1**2, rel=1e-6)


def test_lists_of_pictures_and_pieces(tmp_path, colours):
    a, _ = gaussian_pictures(tmp_path / "a", (100, 120), ((400, 120), (120, 300)), count=6, sizes=((8, 4), (9, 5)))
    b, _ = gaussian_pictures(
        tmp_path / "b", (100, 120), ((400, 120), (120, 300)), count=6, seed=1, sizes=((8, 4), (9, 5))
    )
    as_lists = set_distances(sorted(b.iterdir()), sorted(a.iterdir()))
    (b / "._000.png").write_bytes(b"left by a Mac: no picture")
    assert as_lists == set_distances(b, a)
    colours.seen = 0
    pieces = set_distances(b, a, pieces=4)
    assert colours.seen == 24  # two whole pieces of 4x4 in each of twelve pictures
    assert pieces["fid"] != pytest.approx(as_lists["fid"], rel=1e-3)  # each counted twice: another sample covariance
    with pytest.raises(ValueError, match="two pictures or pieces on each side, got 0 and 0"):
        set_distances(b, a, pieces=100)
    with pytest.raises(ValueError, match="got 1 and 6"):
        set_distances([b / "000.png"], a)


def test_the_truth_is_looked_at_once(tmp_path, colours):
    a, _ = gaussian_pictures(tmp_path / "a", (100, 120), ((400, 120), (120, 300)), count=5)
    b, _ = gaussian_pictures(tmp_path / "b", (90, 120), ((400, 120), (120, 300)), count=5, seed=1)
    first = set_distances(b, a, remember=tmp_path / "features")
    colours.seen = 0
    assert set_distances(b, a, remember=tmp_path / "features") == first and colours.seen == 5
    Image.new("RGB", (3, 3), (0, 0, 0)).save(a / "000.png")  # another truth
    assert set_distances(b, a, remember=tmp_path / "features") != first


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    import torch_fidelity

    a, _ = gaussian_pictures(tmp_path / "a", (100, 120), ((400, 120), (120, 300)), count=3)

    def no_network(**_):
        raise URLError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(torch_fidelity, "calculate_metrics", no_network)
        with pytest.raises(MetricUnavailable, match="download at first use.*no route"):
            set_distances(a, a)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", None)
        with pytest.raises(MetricUnavailable, match="extra `full`"):
            set_distances(a, a)


def test_wrong_inception_weights_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(fid, "EXTRACTOR", "inception-v3-compat")
    a, _ = gaussian_pictures(tmp_path / "a", (100, 120), ((400, 120), (120, 300)), count=2)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "wrong.pth")
    with pytest.raises(MetricUnavailable, match="wrong.pth does not hold"):
        set_distances(a, a, weights=tmp_path / "wrong.pth")
