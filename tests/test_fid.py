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


def coloured(folder: Path, features: np.ndarray) -> list[Path]:
    """Pictures of one colour and differing sizes, with these features (n, 2)."""
    folder.mkdir()
    for i, (red, green) in enumerate(np.uint8(features * 16)):
        Image.new("RGB", ((6, 5), (4, 9))[i % 2], (int(red), int(green), 7)).save(folder / f"{i:03d}.png")
    return sorted(folder.iterdir())


def unbiased_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Of the kernel (x.y / d + 1)^3 (Binkowski 2018, eq. 4)."""
    own, cross = [(x @ x.T / 2 + 1) ** 3 for x in (a, b)], (a @ b.T / 2 + 1) ** 3
    return sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in own) - 2 * cross.mean()


def test_of_a_set_moved_by_a_step_fid_is_its_square(tmp_path):
    features = np.random.default_rng(0).integers(60, 120, (40, 2)) / 16
    truth, moved = coloured(tmp_path / "truth", features), coloured(tmp_path / "moved", features + (2, 1))
    same, found = set_distances(truth, truth, CPU), set_distances(moved, truth, CPU)
    assert tuple(found) == SET_METRICS and same["kid"] <= 1e-9
    assert same["fid"] == pytest.approx(0, abs=1e-6) and found["fid"] == pytest.approx(2**2 + 1**2, rel=1e-6)
    assert found["kid"] == pytest.approx(1000 * unbiased_mmd(features, features + (2, 1)), rel=1e-6)
    with pytest.raises(ValueError, match="1 and 40"):
        set_distances(moved[:1], truth, CPU)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    import torch_fidelity

    a = coloured(tmp_path / "a", np.ones((3, 2)))

    def no_network(**_):
        raise URLError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(torch_fidelity, "calculate_metrics", no_network)
        with pytest.raises(MetricUnavailable, match="download.*no route"):
            set_distances(a, a, CPU)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MetricUnavailable, match="torch-fidelity"):
        set_distances(a, a, CPU)
