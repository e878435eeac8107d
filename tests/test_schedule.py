import math

import pytest
import torch
from jaxtyping import TypeCheckError

from tinymsg.schedule import SCHEDULES, Schedule, cosine, linear, make_schedule, max_noise_for, q_sample


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps, max_noise", [(1, 0.3), (2, 0.001), (7, 0.99), (100, 0.3), (2000, 0.02), (2000, 0.01)])
def test_schedule_contract(name, steps, max_noise):
    schedule = make_schedule(name, steps, max_noise)
    ab, beta = schedule.alpha_bar, schedule.beta
    assert steps == schedule.T and len(ab) == len(beta) == steps + 1 and ab.dtype == torch.float64
    assert ab[0] == 1 and beta[0] == 0 and (ab.diff() < 0).all() and ab[-1] > 0
    assert (beta[1:] > 0).all() and beta.max() <= max_noise + 1e-12
    torch.testing.assert_close(torch.cumprod(1 - beta, dim=0), ab, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.noise_level**2, ab)


def test_linear_closed_form():
    schedule = linear(5, max_noise=0.5, min_noise=0.1)
    torch.testing.assert_close(schedule.beta, torch.tensor([0, 0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64))
    assert abs(linear(1, 0.7).beta[1] - 0.7) < 1e-15
    # Unless told, the first step is as large as the rise to each later one: a short chain has noise to take to its end
    torch.testing.assert_close(linear(4, 0.8).beta[1:], torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))


def test_cosine_closed_form():
    schedule = cosine(100)
    t = torch.arange(1, 100, dtype=torch.float64)
    curve = torch.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(schedule.alpha_bar[1:100], curve / math.cos(0.008 / 1.008 * math.pi / 2) ** 2)
    assert abs(schedule.beta[100] - 0.999) < 1e-12


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps, max_noise", [(0, 0.5), (-3, 0.5), (10, 0.0), (10, 1.0), (10, math.nan)])
def test_wrong_arguments_say_what_is_allowed(name, steps, max_noise):
    with pytest.raises(ValueError, match="at least 1|lie in"):
        make_schedule(name, steps, max_noise)


def test_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match="sigmoid.*" + ", ".join(SCHEDULES)):
        make_schedule("sigmoid", 10, 0.5)


@pytest.mark.parametrize("alpha_bar", [[1.0], [0.9, 0.5], [1.0, 1.0], [1.0, 0.5, 0.6]])
def test_a_schedule_must_fall_from_one_to_above_zero(alpha_bar):
    with pytest.raises(ValueError, match="fall strictly"):
        Schedule(torch.tensor(alpha_bar, dtype=torch.float64))


@pytest.mark.parametrize("alpha_bar", [[1.0, 0.0], [1.0, -0.1], [1.0, 1e-61], [1.0, 1e-300, 0.0, 0.0]])
def test_a_schedule_must_leave_something(alpha_bar):
    with pytest.raises(ValueError, match="fewer steps or a smaller max_noise"):
        Schedule(torch.tensor(alpha_bar, dtype=torch.float64))


# --- q(y_t | y_0) -----------------------------------------------------------------------------------------------


def test_q_sample_closed_form_and_ends(device):
    y0, eps = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(device).unbind(1)
    y_t = q_sample(y0, torch.tensor([0.6, 1.0]), eps)
    torch.testing.assert_close(y_t[0], 0.6 * y0[0] + 0.8 * eps[0])
    assert torch.equal(y_t[1], y0[1])
    assert torch.equal(q_sample(y0, torch.zeros(2), eps), eps)


def test_q_sample_moments():
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(1, 1, 500, 500, generator=generator)
    y_t = q_sample(torch.full_like(eps, 0.7), torch.tensor([0.8]), eps)
    assert abs(y_t.mean() - 0.8 * 0.7) < 5 * 0.6 / 500
    assert abs(y_t.var() - 0.36) < 0.005


@pytest.mark.parametrize("name", SCHEDULES)
def test_step_by_step_noising_is_the_closed_form(name):
    """Mean and variance after T steps of y_t = sqrt(1 - beta) y_{t-1} + sqrt(beta) eps (Ho 2020, eq. 2)."""
    schedule = make_schedule(name, 20, 0.3)
    mean, variance = 1.0, 0.0
    for t in range(1, 21):
        beta = float(schedule.beta[t])
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert abs(mean - schedule.noise_level[t]) < 1e-12
        assert abs(variance - (1 - schedule.alpha_bar[t])) < 1e-12


# --- q(y_{t-1} | y_t, y_0) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [2, 3, 9])
def test_posterior_is_the_product_of_its_two_gaussians(name, t):
    """Bayes on a grid: q(y_{t-1} | y_t, y_0) ~ q(y_t | y_{t-1}) q(y_{t-1} | y_0)."""
    schedule = make_schedule(name, 9, 0.4)
    y0, y_t = 0.7, -0.4
    before = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    beta, ab_before = float(schedule.beta[t]), float(schedule.alpha_bar[t - 1])
    log_p = -((y_t - math.sqrt(1 - beta) * before) ** 2) / (2 * beta)
    log_p = log_p - (before - math.sqrt(ab_before) * y0) ** 2 / (2 * (1 - ab_before))
    p = torch.softmax(log_p, dim=0)
    expected_mean = (p * before).sum()
    expected_variance = (p * (before - expected_mean) ** 2).sum()
    mean, variance = schedule.posterior(t, *(torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (y_t, y0)))
    assert abs(mean - expected_mean) < 1e-6
    assert abs(variance - expected_variance) < 1e-6


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_step_has_no_noise_left(name):
    y_t, y0 = torch.randn(2, 1, 1, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, variance = make_schedule(name, 5, 0.4).posterior(1, y_t, y0)
    torch.testing.assert_close(mean, y0)
    assert variance == 0


# --- continuous levels ------------------------------------------------------------------------------------------


def test_random_levels_lie_uniformly_between_neighbouring_steps():
    schedule = linear(4, 0.5, min_noise=0.1)
    levels = schedule.random_noise_level(40_000, torch.Generator().manual_seed(0))
    assert levels.shape == (40_000,) and levels.dtype == torch.float32
    ends = schedule.noise_level.flip(0)
    share = torch.histogram(levels.double(), bins=ends).hist / 40_000
    torch.testing.assert_close(share, torch.full((4,), 0.25, dtype=torch.float64), rtol=0, atol=0.015)
    expected = (ends[1:] + ends[:-1]).mean() / 2  # uniform within each of four equally likely pieces
    assert abs(levels.double().mean() - expected) < 0.003
    assert len(levels.unique()) > 30_000


def test_random_levels_repeat_and_work_without_a_generator():
    schedule = linear(10, 0.5)
    first, second = (schedule.random_noise_level(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert schedule.random_noise_level(5).shape == (5,)


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
@pytest.mark.parametrize("alpha_bar_T", [0.01, 0.3, 0.9])
def test_max_noise_for_ends_where_it_was_asked_to(steps, alpha_bar_T):
    assert float(linear(steps, max_noise_for(steps, alpha_bar_T)).alpha_bar[-1]) == pytest.approx(alpha_bar_T, rel=1e-6)
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"\(0, 1\)"):
            max_noise_for(steps, wrong)


# --- shapes as types --------------------------------------------------------------------------------------------


def test_wrong_shapes_fail_in_tests():
    """conftest.py has every call of the method's functions checked against the shapes that they state."""
    y0, level = torch.zeros(2, 3, 8, 8), torch.full((2,), 0.5)
    q_sample(y0, level, y0)
    for wrong in ((y0, level[:1], y0), (y0, level, y0[:, :1]), (y0[0], level, y0[0]), (y0, level.int(), y0)):
        with pytest.raises(TypeCheckError):
            q_sample(*wrong)
