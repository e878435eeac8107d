import pytest
import torch

from tinymsg import scenes as module
from tinymsg.scenes import render_scenes


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
    with pytest.raises(ValueError, match="at least 8 .* 7"):
        render_scenes(torch.arange(1), 7)


def test_a_leaf_covers_its_inside(monkeypatch):
    index = torch.arange(40)
    monkeypatch.setattr(module, "SHAPES", 0)
    ground = render_scenes(index, 32)
    monkeypatch.setattr(module, "SHAPES", 1)
    changed = ((render_scenes(index, 32) - ground).abs().amax(dim=1) > 1e-3).float().mean(dim=(1, 2))
    assert 0.005 < changed.mean() < 0.2  # p(r) ~ r^-2: most leaves are small
    assert changed.max() > 4 * changed.median()
