"""One-dimensional pairs for the toy."""

import pytest
import torch

from tinymsg.studies.signals import SignalPairs, box_kernels, render_signals


def test_signals_are_pieces_and_ramps():
    signals = render_signals(torch.arange(50), 128)
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


def test_signal_pairs():
    pairs = SignalPairs(box_kernels(9), count=20, seed=1)
    index = torch.arange(30)
    y0, x = pairs.crops(index, 64)
    assert y0.shape == x.shape == (30, 1, 1, 64)
    assert y0.abs().max() <= 1 and x.abs().max() <= 1
    expected = torch.nn.functional.avg_pool1d(y0[:, :, 0], 9, stride=1)
    torch.testing.assert_close(x[:, :, 0, 4:-4], expected, rtol=0, atol=1e-4)
    again = pairs.crops(index[7:9], 64)
    torch.testing.assert_close(again[1], x[7:9], rtol=0, atol=1e-5)
    assert len(torch.unique(y0.flatten(1), dim=0)) <= 20
    noisy = SignalPairs(box_kernels(9), count=20, seed=1, noise=0.05).crops(index, 64)
    assert torch.equal(noisy[0], y0) and 0.08 < (noisy[1] - x).std() < 0.102  # 0.1 in [-1, 1], a little clipped


def test_signal_pairs_use_every_kernel():
    y0, x = SignalPairs(box_kernels(1, 15), seed=0).crops(torch.arange(40), 64)
    sharp = (y0 - x).abs().flatten(1).amax(dim=1) < 1e-4
    assert 8 < sharp.sum() < 32


def test_box_kernels():
    kernels = box_kernels(3, 7, 1)
    assert kernels.shape == (3, 7)
    torch.testing.assert_close(kernels.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(kernels[0], torch.tensor([0, 0, 1, 1, 1, 0, 0]) / 3)
    with pytest.raises(ValueError, match="odd and positive"):
        box_kernels(4)
