import pytest
import torch

from tinymsg import scenes as module
from tinymsg.scenes import render_scenes, render_signals


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    return render_scenes(torch.arange(12), 64)


def test_shape_range_and_variety(scenes):
    assert scenes.shape == (12, 3, 64, 64) and scenes.dtype == torch.float32
    assert scenes.min() >= 0 and scenes.max() <= 1
    assert scenes.min() < 0.05 and scenes.max() > 0.95
    assert 0.3 < scenes.mean() < 0.7
    assert (scenes.flatten(1).std(dim=1) > 0.05).all()
    assert (scenes.std(dim=1).mean(dim=(1, 2)) > 0.01).any()  # colour, not only gray
    difference = (scenes[:, None] - scenes[None]).abs().mean(dim=(2, 3, 4))
    assert (difference + torch.eye(12)).min() > 0.05


def test_edges_have_the_heavy_tails_of_photographs(scenes):
    """Few strong edges among much that is smooth: the kurtosis of differences is far above a Gaussian's 3."""
    step = (scenes[..., 1:] - scenes[..., :-1]).double()
    assert (step**4).mean() / (step**2).mean() ** 2 > 8


def test_a_scene_depends_on_seed_and_index_alone(scenes, device):
    alone = render_scenes(torch.tensor([7, 3], device=device), 64)
    assert alone.device.type == device.type
    difference = (alone.cpu() - scenes[[7, 3]]).abs()
    assert difference.mean() < 1e-4 and (difference > 0.01).float().mean() < 1e-3
    other = render_scenes(torch.tensor([7, 3]), 64, seed=1)
    assert (other - scenes[[7, 3]]).abs().mean() > 0.05


def test_any_index_and_the_smallest_size():
    scenes = render_scenes(torch.tensor([-5, 2**62]), 8, seed=-1)
    assert scenes.shape == (2, 3, 8, 8) and torch.isfinite(scenes).all()
    assert not torch.equal(scenes[0], scenes[1])


def test_too_small_says_so():
    with pytest.raises(ValueError, match="at least 8 pixels, got 7"):
        render_scenes(torch.arange(1), 7)
    with pytest.raises(ValueError, match="at least 16 samples, got 15"):
        render_signals(torch.arange(1), 15)


def test_signals_are_pieces_and_ramps(device):
    signals = render_signals(torch.arange(50, device=device), 128).cpu()
    assert signals.shape == (50, 1, 1, 128)
    assert signals.min() >= 0 and signals.max() <= 1
    step = signals.diff(dim=-1).abs()
    assert (step < 1e-6).float().mean() > 0.4  # constant pieces
    assert ((step > 1e-3) & (step < 0.04)).float().mean() > 0.1  # ramps
    jumps = (step > 0.05).flatten(1).sum(dim=1)
    assert jumps.float().mean() > 4 and jumps.max() <= 12  # twelve pieces and the one after the last edge


def test_signals_are_a_function_of_seed_and_index():
    index = torch.tensor([4, 11, 4])
    signals = render_signals(index, 64, seed=2)
    assert torch.equal(signals[0], signals[2]) and not torch.equal(signals[0], signals[1])
    assert torch.allclose(render_signals(index[1:2], 64, seed=2), signals[1:2])
    assert not torch.allclose(render_signals(index, 64, seed=3), signals)


def test_a_leaf_covers_its_inside(monkeypatch):
    index = torch.arange(40)
    monkeypatch.setattr(module, "SHAPES", 0)
    ground = render_scenes(index, 32)
    monkeypatch.setattr(module, "SHAPES", 1)
    changed = ((render_scenes(index, 32) - ground).abs().amax(dim=1) > 1e-3).float().mean(dim=(1, 2))
    assert 0.005 < changed.mean() < 0.2  # p(r) ~ r^-2: most leaves are small
    assert changed.max() > 4 * changed.median()
