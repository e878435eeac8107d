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
from tinymsg.paper.fid import SET_METRICS, set_distances

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """In the place of Inception: two features a picture."""
    return register_colours(monkeypatch)


def gaussian_pictures(folder: Path, mean, covariance, count=40, seed=0) -> tuple[list[Path], np.ndarray]:
    """(pictures, features): of one colour and differing sizes, red and green drawn from a Gaussian."""
    folder.mkdir()
    values = np.random.default_rng(seed).multivariate_normal(mean, covariance, count).clip(0, 255).round()
    for i, (red, green) in enumerate(values):
        Image.new("RGB", ((6, 5), (4, 9))[i % 2], (int(red), int(green), 7)).save(folder / f"{i:03d}.png")
    return sorted(folder.iterdir()), values / 16


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Between the Gaussians of two sets of features, by the symmetric root (Heusel 2017, eq. 6)."""
    s, t = np.cov(a.T), np.cov(b.T)
    w, v = np.linalg.eigh(s)
    root = v @ np.diag(np.sqrt(w)) @ v.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ t @ root)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross)


def unbiased_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Of the kernel (x.y / d + 1)^3 (Binkowski 2018, eq. 4)."""
    own, cross = [(x @ x.T / 2 + 1) ** 3 for x in (a, b)], (a @ b.T / 2 + 1) ** 3
    return sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in own) - 2 * cross.mean()


def test_closed_forms(tmp_path):
    a, features_a = gaussian_pictures(tmp_path / "a", (100, 120), ((400, 120), (120, 300)))
    b, features_b = gaussian_pictures(tmp_path / "b", (140, 90), ((200, -80), (-80, 500)), seed=1)
    same = set_distances(a, a, CPU)
    assert same["fid"] == pytest.approx(0, abs=1e-6) and same["kid"] <= 1e-9
    found = set_distances(b, a, CPU)
    assert found["fid"] == pytest.approx(frechet(features_a, features_b), rel=1e-6)
    assert found["kid"] == pytest.approx(1000 * unbiased_mmd(features_a, features_b), rel=1e-6)
    assert tuple(found) == SET_METRICS
    with pytest.raises(ValueError, match="1 and 40"):
        set_distances(b[:1], a, CPU)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    import torch_fidelity

    a, _ = gaussian_pictures(tmp_path / "a", (100, 120), ((400, 120), (120, 300)), count=3)

    def no_network(**_):
        raise URLError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(torch_fidelity, "calculate_metrics", no_network)
        with pytest.raises(MetricUnavailable, match="download.*no route"):
            set_distances(a, a, CPU)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MetricUnavailable, match="torch-fidelity"):
        set_distances(a, a, CPU)
