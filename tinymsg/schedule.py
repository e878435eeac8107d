"""The forward process: how a sharp image turns into noise, in closed form.

    y_t = sqrt(alpha_bar_t) y_0 + sqrt(1 - alpha_bar_t) eps          (Ho 2020, eq. 4)

Arrays over time have length T + 1 and alpha_bar[0] = 1, so that `t` in the code is the papers' t = 1 .. T.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Image = Float[Tensor, "b c h w"]  # a batch of pictures, or of residuals
Level = Float[Tensor, " b"]  # noise levels, sqrt(alpha_bar) in [0, 1]


def q_sample(y0: Image, noise_level: Level, eps: Image) -> Image:
    """Draw y_t from q(y_t | y_0) (Ho 2020, eq. 4).

    Args:
        eps: standard normal.
        noise_level: sqrt(alpha_bar) in [0, 1]: 1 is the clean image, 0 is pure noise.
    """
    a = noise_level.to(y0.device)[:, None, None, None]
    return a * y0 + torch.sqrt(1 - a**2) * eps


@dataclass(frozen=True)
class Schedule:
    """alpha_bar of T steps. Float64 on the CPU: products of hundreds of factors, and differences from 1.

    Attributes:
        alpha_bar: (T + 1,), strictly falling from alpha_bar[0] = 1 to alpha_bar[T] >= 1e-60.
    """

    alpha_bar: Float[Tensor, " T_plus_1"]

    def __post_init__(self):
        ab = self.alpha_bar
        if ab.ndim == 1 and len(ab) > 1 and ab[-1] < 1e-60:  # samplers divide float32 images by its root
            end = f"alpha_bar ends at {float(ab[-1]):.0e}, below 1e-60"
            raise ValueError(f"{end}: so much noise cannot be undone; use fewer steps or a smaller max_noise")
        if ab.ndim != 1 or len(ab) < 2 or ab[0] != 1 or not (ab.diff() < 0).all():
            raise ValueError("alpha_bar must be one-dimensional and fall strictly from exactly 1 to above 0")

    @property
    def T(self) -> int:
        return len(self.alpha_bar) - 1

    @property
    def noise_level(self) -> Float[Tensor, " T_plus_1"]:
        """sqrt(alpha_bar): what the network is told (Chen 2021, WaveGrad, Sec. 2.2)."""
        return self.alpha_bar.sqrt()

    @property
    def beta(self) -> Float[Tensor, " T_plus_1"]:
        """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}; beta[0] = 0."""
        beta = torch.zeros_like(self.alpha_bar)
        beta[1:] = 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]
        return beta

    def posterior(self, t: int, y_t: Image, y0_hat: Image) -> tuple[Image, float]:
        """Mean and variance of q(y_{t-1} | y_t, y_0), t = 1 .. T (Ho 2020, eqs. 6 and 7)."""
        ab, ab_before, beta = float(self.alpha_bar[t]), float(self.alpha_bar[t - 1]), float(self.beta[t])
        mean = (math.sqrt(ab_before) * beta * y0_hat + math.sqrt(1 - beta) * (1 - ab_before) * y_t) / (1 - ab)
        return mean, (1 - ab_before) / (1 - ab) * beta

    def random_noise_level(self, batch: int, generator: torch.Generator | None = None) -> Float[Tensor, " batch"]:
        """Continuous noise levels for training: a random step, then uniform between its two ends (Chen 2021, Alg. 1).

        A network that has seen every level in between can be sampled later with any number of steps.

        Args:
            generator: of the CPU, where the levels are drawn: not every GPU has float64.
        """
        level = self.noise_level
        t = torch.randint(1, self.T + 1, (batch,), generator=generator)
        fraction = torch.rand(batch, generator=generator, dtype=level.dtype)
        return (level[t] + fraction * (level[t - 1] - level[t])).float()


def linear(steps: int, max_noise: float = 0.02, min_noise: float | None = None) -> Schedule:
    """beta_t rises linearly to max_noise (Ho 2020, Sec. 4; with few steps DvSR, supplement Sec. 6).

    Args:
        steps: T, at least 1.
        max_noise: beta_T, in (0, 1). DvSR searches 0.01 .. 0.5 at 10 .. 500 steps.
        min_noise: beta_1. None: max_noise / T, so that a short chain's last evaluation still has noise to take away.
            With DvSR's 1e-6 it meets a picture with a noise of 0.001, and does nothing.
    """
    _check(steps, max_noise)
    return Schedule(_cumulative(_linear_betas(steps, max_noise, min_noise)))


def max_noise_for(steps: int, alpha_bar_T: float) -> float:
    """The max_noise with which `linear` ends at alpha_bar_T in (0, 1) after so many steps, by bisection."""
    if not 0 < alpha_bar_T < 1:
        raise ValueError(f"alpha_bar_T must lie in (0, 1), got {alpha_bar_T}")
    low, high = 1e-7, 1 - 1e-7
    for _ in range(60):
        middle = (low + high) / 2
        too_clean = float(torch.log1p(-_linear_betas(steps, middle)).sum()) > math.log(alpha_bar_T)
        low, high = (middle, high) if too_clean else (low, middle)
    return low


def cosine(steps: int, max_noise: float = 0.999, offset: float = 0.008) -> Schedule:
    """alpha_bar follows a squared cosine (Nichol & Dhariwal 2021, eq. 17), each beta_t clipped at max_noise."""
    _check(steps, max_noise)
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    return Schedule(_cumulative((1 - curve[1:] / curve[:-1]).clamp(max=max_noise)))


def _linear_betas(steps: int, max_noise: float, min_noise: float | None = None) -> Tensor:
    first = max_noise / steps if min_noise is None else min(min_noise, max_noise)
    beta = torch.linspace(first, max_noise, steps, dtype=torch.float64)
    beta[-1] = max_noise  # of one step, its only one
    return beta


def _cumulative(beta: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta, dim=0)])


def _check(steps: int, max_noise: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < max_noise < 1:
        raise ValueError(f"max_noise is the largest beta_t and must lie in (0, 1), got {max_noise}")


SCHEDULES: dict[str, Callable[[int, float], Schedule]] = {"linear": linear, "cosine": cosine}


def make_schedule(name: str, steps: int, max_noise: float) -> Schedule:
    """Build a registered schedule; see `linear` and `cosine` for the arguments.

    >>> make_schedule("linear", steps=4, max_noise=0.9).noise_level
    tensor([1.0000, 0.8803, 0.6529, 0.3722, 0.1177], dtype=torch.float64)
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    return SCHEDULES[name](steps, max_noise)
