"""Pairs from folders of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from tinymsg.data import ImageError, to_model
from tinymsg.datasets.folders import PairedImages


def pixels(h: int = 6, w: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255


def save_pair(folder, blur: str, sharp: str, name: str, seed: int, h: int = 20, w: int = 30) -> None:
    for side, shift in ((sharp, 0), (blur, 100)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(h, w, seed + shift)).save(folder / side / name)


@pytest.mark.parametrize("blur", ["blur", "blur_gamma"])
def test_gopro_layout(tmp_path, blur):
    for sequence in ("GOPR2", "GOPR1"):
        for i in range(2):
            save_pair(tmp_path / sequence, blur, "sharp", f"{i}.png", seed=i)
    save_pair(tmp_path / "GOPR1", "other", "sharp", "9.png", seed=9)  # sharp pictures without a blurry one: no pair
    pairs = PairedImages(tmp_path, blur)
    assert len(pairs) == 4 and pairs.name == f"4 pairs of {tmp_path.name} ({blur})"
    assert [p.parent.parent.name for p, _ in pairs.paths] == ["GOPR1", "GOPR1", "GOPR2", "GOPR2"]
    y0, x = pairs.image(1)
    assert torch.equal(y0[0], to_model(as_tensor(pixels(20, 30, 1))))
    assert torch.equal(x[0], to_model(as_tensor(pixels(20, 30, 101))))
    if blur == "blur_gamma":
        with pytest.raises(ValueError, match="no pairs below"):
            PairedImages(tmp_path, "blur")


@pytest.mark.parametrize("sides", [("blur", "sharp"), ("input", "target")])
def test_flat_layouts(tmp_path, sides):
    for i in range(3):
        save_pair(tmp_path, *sides, f"{i}.png", seed=i)
    (tmp_path / sides[0] / "._0.png").write_bytes(b"left by a Mac: no picture")  # without a sharp one beside it
    assert len(PairedImages(tmp_path)) == 3


def test_paired_crops_match_and_depend_on_the_index_alone(tmp_path, device):
    for i in range(3):
        save_pair(tmp_path, "blur", "sharp", f"{i}.png", seed=i)
        Image.fromarray(255 - pixels(20, 30, i)).save(tmp_path / "blur" / f"{i}.png")
    pairs = PairedImages(tmp_path, device=device, seed=4)
    y0, x = pairs.crops(torch.arange(20), 12)
    assert y0.shape == (20, 3, 12, 12) and y0.device.type == device.type
    torch.testing.assert_close(y0, -x, rtol=0, atol=1e-6)  # cut, mirrored and turned alike
    again = pairs.crops(torch.tensor([7]), 12)
    assert torch.equal(again[0][0], y0[7]) and torch.equal(again[1][0], x[7])
    assert len(torch.unique(y0.flatten(1), dim=0)) > 15
    assert pairs.crops(torch.arange(2), 20)[0].shape == (2, 3, 20, 20)  # the whole height
    with pytest.raises(ImageError, match="20x30 is smaller than the crop of 21"):
        pairs.crops(torch.arange(2), 21)


def test_pairs_that_do_not_match_say_so(tmp_path):
    save_pair(tmp_path / "a", "blur", "sharp", "1.png", seed=1)
    save_pair(tmp_path / "a", "blur", "sharp", "2.png", seed=1)
    (tmp_path / "a" / "sharp" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"sharp lacks 1 of 2 pictures, the first: 2.png"):
        PairedImages(tmp_path)
    Image.fromarray(pixels(20, 31)).save(tmp_path / "a" / "sharp" / "2.png")
    with pytest.raises(ImageError, match="sizes of the pair differ"):
        PairedImages(tmp_path).image(1)
    with pytest.raises(ValueError, match="neither a data set .gopro, hide"):
        PairedImages(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no pairs below"):
        PairedImages(tmp_path / "a" / "sharp")
