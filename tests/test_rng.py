import math

import pytest
import torch

from tinymsg.rng import Draws

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(z: int) -> int:
    """SplitMix64's finaliser in Python's own integers."""
    z &= MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference_uniform(seed: int, index: int, call: int, element: int) -> float:
    key = splitmix(index * GOLDEN + splitmix(seed * GOLDEN))
    key += call * 0x632BE59BD9B4E019
    return (splitmix(splitmix(key) + element * GOLDEN) >> 40) * 2.0**-24


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 2**64 + 5, -(10**30)])
def test_agrees_with_exact_integer_arithmetic(seed, device):
    index = [0, 1, 17, -3, 2**63 - 1, -(2**63)]
    draws = Draws(seed, torch.tensor(index, device=device))
    for call in (1, 2):
        values = draws.uniform(2, 3).cpu()
        expected = torch.tensor([[reference_uniform(seed, i, call, e) for e in range(6)] for i in index])
        assert torch.equal(values, expected.reshape(6, 2, 3))


def test_values_never_change():
    """Shipped weights and results files were made from these numbers."""
    values = Draws(0, torch.tensor([0, 1])).uniform(3)
    expected = [
        [0.343771755695343, 0.9604102373123169, 0.48606669902801514],
        [0.6759659051895142, 0.6452916860580444, 0.43354368209838867],
    ]
    assert torch.equal(values, torch.tensor(expected))


def test_a_row_depends_on_its_index_alone():
    index = torch.tensor([5, 900, -7, 5])
    together = Draws(3, index)
    backwards = Draws(3, index.flip(0))
    for kind, arguments in (("uniform", (4,)), ("normal", (2, 2)), ("integers", (10, 3))):
        rows = getattr(together, kind)(*arguments)
        assert torch.equal(rows, getattr(backwards, kind)(*arguments).flip(0))
        assert torch.equal(rows[0], rows[3])
        assert not torch.equal(rows[0], rows[1])
    assert torch.equal(Draws(3, index).uniform(4)[1:2], Draws(3, index[1:2]).uniform(4))


def test_streams_of_different_seeds_calls_and_elements_are_uncorrelated():
    index = torch.arange(20_000)
    draws, other = Draws(1, index), Draws(2, index)
    first, second = draws.uniform(2), draws.uniform(2)
    columns = torch.stack([first[:, 0], first[:, 1], second[:, 0], other.uniform(2)[:, 0], first[:, 0].roll(1)])
    correlation = torch.corrcoef(columns) - torch.eye(5)
    assert correlation.abs().max() < 4.5 / math.sqrt(len(index))


def test_a_stream_goes_on_on_another_device(device):
    here, there = Draws(3, torch.arange(4)), Draws(3, torch.arange(4))
    here.uniform(2), there.uniform(2)
    there = there.on(device)
    assert there.device.type == device.type and torch.equal(here.uniform(5), there.uniform(5).cpu())


def test_uniform_moments_and_range(device):
    values = Draws(4, torch.arange(1000, device=device)).uniform(200, low=-1.0, high=3.0)
    assert values.min() >= -1 and values.max() < 3
    n = values.numel()
    assert abs(values.mean().item() - 1) < 5 * math.sqrt(16 / 12 / n)
    assert abs(values.var().item() - 16 / 12) < 0.02
    assert values.min() < -0.99 and values.max() > 2.99


def test_normal_moments_and_tails(device):
    values = Draws(5, torch.arange(1000, device=device)).normal(200).double()
    n = values.numel()
    assert torch.isfinite(values).all()
    assert abs(values.mean().item()) < 5 / math.sqrt(n)
    assert abs(values.var().item() - 1) < 5 * math.sqrt(2 / n)
    assert abs((values**3).mean().item()) < 5 * math.sqrt(15 / n)
    assert abs((values**4).mean().item() - 3) < 5 * math.sqrt(96 / n)
    inside = (values.abs() < 1).double().mean().item()
    assert abs(inside - math.erf(1 / math.sqrt(2))) < 0.005


def test_integers_are_uniform_and_within_bounds():
    values = Draws(6, torch.arange(7000)).integers(7, 10)
    counts = torch.bincount(values.flatten(), minlength=7).double()
    assert len(counts) == 7
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum().item()
    assert chi_square < 22.5  # 6 degrees of freedom: p = 0.001
    assert (Draws(6, torch.arange(9)).integers(1) == 0).all()


def test_shapes_without_arguments():
    draws = Draws(0, torch.arange(3))
    assert draws.uniform().shape == draws.normal().shape == draws.integers(5).shape == (3,)
    assert len(draws) == 3 and draws.uniform(0).shape == (3, 0)


@pytest.mark.parametrize("index", [torch.zeros(2), torch.zeros(2, dtype=torch.int32), torch.tensor(3)])
def test_a_wrong_index_says_what_was_expected(index):
    with pytest.raises(ValueError, match="int64"):
        Draws(0, index)
